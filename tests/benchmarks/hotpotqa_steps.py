"""Steps per second of the HotpotQA engine: half of the actions are the expert's, half are the reference distribution's (no caching of searches).

    python tests/benchmarks/hotpotqa_steps.py

Prints wall-clock and processor steps per second and the ratio to a yardstick of the same run: how often the processor splits and joins an observation.
"""
import time

from adwm.core import key_rng
from adwm.hotpotqa import HotpotSimulator, Reading, act, expert, generate_world


def plan(world):
    "Questions and the actions taken on them."
    sim, out = HotpotSimulator(world, world.questions[:300]), []
    for i, task in enumerate(sim.tasks()):
        state, actions = sim.reset([task], [()])[0], []
        for turn in range(12):
            u = sim.domain.reference(task, state.obs, state.choices)
            action = expert(world, sim.questions[task.id], state) if i % 2 else u.sample(key_rng(0, task.id, turn))
            actions.append(action)
            outcome = sim.step([state], [action], [()])[0]
            state = outcome.state
            if outcome.terminated: break
        out.append((sim.questions[task.id], actions))
    return out


def play(world, episodes) -> int:
    "Play them; the number of steps."
    steps = 0
    for question, actions in episodes:
        r = Reading(question)
        for a in actions:
            r, printed, reward = act(world, r, a)
            steps += 1
    return steps


def main():
    world = generate_world(0)
    episodes = plan(world)
    best = []
    for _ in range(7):
        wall, cpu = time.perf_counter(), time.process_time()
        n = sum(play(world, episodes) for _ in range(5))
        best.append((n / (time.process_time() - cpu), n / (time.perf_counter() - wall)))
    page = " ".join(next(iter(world.pages.values())))
    cpu = time.process_time()
    for _ in range(20000): " ".join(page.split(" "))
    yardstick = 20000 / (time.process_time() - cpu)
    on_cpu, on_wall = max(x for x, _ in best), max(x for _, x in best)
    misses = sum(a.startswith("Search") and world.find(a[7:-1]) is None for _, actions in episodes for a in actions) / sum(len(actions) for _, actions in episodes)
    print(f"data: {world.origin}; {misses:.0%} of the actions search a title that does not exist")
    print(f"steps/s: {on_wall:,.0f} wall, {on_cpu:,.0f} processor; a step costs {yardstick / on_cpu:.1f} split-and-joins ({yardstick:,.0f}/s)")
    print("target 20,000:", "met" if on_cpu >= 20000 else "missed")


if __name__ == "__main__": main()
