"""Episodes per second of a small agent in the real shop, against a plain loop without a cache.

    OMP_NUM_THREADS=1 python tests/benchmarks/agent_speed.py [checkpoint] [rows]

Without a checkpoint a committed agent of the web shop is used, or a fresh one of the same size. The plain loop
rolls a tenth of the rows: it reads the whole episode again for every token it writes. Reward, turns and tokens of
both are printed for the rows that both played, so that equal work is visible.
"""
import sys, time

import numpy as np
import torch

from adwm.agents import Cursor, LMAgent
from adwm.core import key_rng, root
from adwm.rollouts import make_rows, roll_chunk
from adwm.training import Recipe, build_model, demonstrate, texts_of, train_tokenizer
from adwm.shop import generated_shop, sample_goals
from adwm.webshop import WebShopSimulator, expert


class PlainSession:
    "The same policy without cache, grouping or early stop: one row and one token at a time."
    def __init__(self, agent, tasks): self.agent, self.inner = agent, agent.session(tasks)
    def observe(self, rows, states, actions): self.inner.observe(rows, states, actions)

    @torch.no_grad()
    def act(self, rows, states, rngs):
        out = []
        for r, s, rng in zip(rows, states, rngs):
            text, cursor = self.inner.prompt(r, s), Cursor(self.agent.trie(s))
            while len(ok := self.agent.grammar.allowed(cursor)):
                logits = self.agent.model(input_ids=torch.tensor([text])).logits[0, -1].double().numpy()[ok]
                p = np.exp(logits - logits.max()).cumsum()
                token = int(ok[min(np.searchsorted(p, (rng.random() if len(ok) > 1 else 0) * p[-1], side="right"), len(p) - 1)])
                cursor.push(token); text.append(token)
            out.append(self.agent.domain.parse(self.agent.vocab.text(cursor.ids[:-1]), s.obs, s.choices))
        return out


class Plain:
    "LMAgent behind a PlainSession."
    def __init__(self, agent): self.agent, self.name = agent, agent.name
    def session(self, tasks): return PlainSession(self.agent, tasks)


def find_agent(path, simulator, teacher):
    "The checkpoint asked for, a committed one, or a fresh model."
    committed = root() / "assets" / "webshop-iter1" / "agents" / "b-early"
    if path or committed.is_dir(): return LMAgent.from_pretrained(path or committed, simulator.domain)
    tokenizer = train_tokenizer(texts_of(demonstrate(simulator, simulator.tasks()[:100], teacher, 0), simulator.domain))
    return LMAgent(build_model(Recipe("fresh"), tokenizer), tokenizer, simulator.domain, "fresh")


def timed(call):
    "Its result, wall seconds and processor seconds."
    wall, cpu = time.perf_counter(), time.process_time()
    out = call()
    return out, time.perf_counter() - wall, time.process_time() - cpu


def main(path=None, rows=256):
    "Print episodes and tokens per second of both loops; their actions must agree."
    torch.set_num_threads(1)
    shop = generated_shop(0); goals = sample_goals(shop, rows, "eval", 0)
    simulator, by = WebShopSimulator(shop, goals), {g.id: g for g in goals}
    agent = find_agent(path, simulator, lambda s: expert(shop, by[s.task.id], s))
    todo = make_rows(simulator.tasks(), [0.0])
    roll_chunk(simulator, agent, todo[:16], 1, 12)
    few = todo[:max(rows // 10, 1)]
    fast, wall, cpu = timed(lambda: roll_chunk(simulator, agent, todo, 0, 12))
    slow, plain_wall, plain_cpu = timed(lambda: roll_chunk(simulator, Plain(agent), few, 0, 12))
    tokens = lambda episodes: sum(len(s.ids) for e in episodes for s in agent.sequences(e.turns, e.task)[0])
    same = np.mean([[t.action for t in a.turns] == [t.action for t in b.turns] for a, b in zip(fast, slow)])
    inner = sum(p.numel() for p in agent.model.parameters()) - agent.embed.weight.numel()
    print(f"{agent.name}: {inner:,} parameters beside the embedding; {rows} episodes batched, the first {len(few)} of them in the plain loop")
    for name, played in (("batched, cached", fast[:len(few)]), ("plain loop", slow)):
        print(f"{name:16s} on those {len(few)}: mean reward {np.mean([e.ret for e in played]):.3f}, {np.mean([len(e.turns) for e in played]):.1f} turns and {tokens(played) / len(few):.0f} tokens an episode")
    for name, n, w, c in (("batched, cached", rows, wall, cpu), ("plain loop", len(few), plain_wall, plain_cpu)):
        print(f"{name:16s} {n / c:6.1f} episodes/s of processor time ({c:.2f} s), {n / w:6.1f} of wall time ({w:.2f} s)")
    print(f"ratio {rows / cpu * plain_cpu / len(few):.1f} by processor time, {rows / wall * plain_wall / len(few):.1f} by wall time; {tokens(fast) / cpu:,.0f} tokens/s batched; episodes that agree: {same:.0%}")
    return rows / cpu, len(few) / plain_cpu, same


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] != "-" else None, int(sys.argv[2]) if len(sys.argv) > 2 else 256)
