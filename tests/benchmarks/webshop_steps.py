"""Steps per second of the WebShop engine on the recorded mix of actions (23 % searches, no query cache).

    python tests/benchmarks/webshop_steps.py

Prints wall-clock and processor steps per second and their ratio to a yardstick of the same run: how often the same processor splits and joins a result page.
Without the recorded episodes it uses the generated shop and a walk of the same mix.
"""
import gzip
import json
import time

from adwm.core import key_rng, shared_data
from adwm.shop import SEP, generated_shop, read_shop, sample_goals


def recorded_mix(path):
    "The recorded episodes on the original's products: (shop, [(goal, actions)])."
    nouns = json.loads((path / "golden_nouns.json").read_text())
    shop = read_shop(path, nouns=nouns.__getitem__)
    episodes = [json.loads(line) for line in gzip.open(path / "golden_traj_textmode.jsonl.gz")]
    return shop, [(shop.goals[e["goal_idx"]], [s["action"] for s in e["steps"][1:]]) for e in episodes]


def generated_mix():
    "A walk on the generated shop: about a quarter of the actions are searches."
    shop, plan = generated_shop(0), []
    for g in sample_goals(shop, 150, "all"):
        actions = [f"search[{' '.join(g.attributes)} {g.query}]"]
        v = shop.step(shop.open(g), actions[0])[0]
        rng = key_rng(0, "mix", g.id)
        for _ in range(4):
            clicks = [c for c in shop.choices(v) if c.startswith("click[")]
            actions.append(clicks[int(rng.integers(len(clicks)))] if clicks else actions[0])
            v = shop.step(v, actions[-1])[0]
        plan.append((g, actions))
    return shop, plan


def play(shop, plan) -> int:
    "Play every episode, reading page and clickables after each step."
    steps = 0
    for goal, actions in plan:
        v = shop.open(goal)
        for a in actions:
            v, r, done = shop.step(v, a)
            shop.page(v), shop.clickables(v)
            steps += 1
    return steps


def main():
    path = shared_data("webshop")
    shop, plan = recorded_mix(path) if path else generated_mix()
    share = sum(a.startswith("search[") for _, actions in plan for a in actions) / sum(len(actions) for _, actions in plan)
    play(shop, plan)
    best = []
    for _ in range(7):
        wall, cpu = time.perf_counter(), time.process_time()
        n = sum(play(shop, plan) for _ in range(3))
        best.append((n / (time.process_time() - cpu), n / (time.perf_counter() - wall)))
    page = shop.page(shop.step(shop.open(plan[0][0]), plan[0][1][0])[0])
    cpu = time.process_time()
    for _ in range(20000): SEP.join(page.split(SEP))
    yardstick = 20000 / (time.process_time() - cpu)
    on_cpu, on_wall = max(x for x, _ in best), max(x for _, x in best)
    print(f"data: {shop.origin if path is None else 'the recorded episodes, 1000 products'}; searches {share:.0%} of the actions")
    print(f"steps/s: {on_wall:,.0f} wall, {on_cpu:,.0f} processor; a step costs {yardstick / on_cpu:.1f} page split-and-joins ({yardstick:,.0f}/s)")
    print("target 15,000:", "met" if on_cpu >= 15000 else "missed")


if __name__ == "__main__": main()
