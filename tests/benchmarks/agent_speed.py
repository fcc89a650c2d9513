"""Episodes per second of a small agent in the real shop, against a plain loop without a cache.

    OMP_NUM_THREADS=1 python tests/benchmarks/agent_speed.py [checkpoint] [rows]

Without a checkpoint the first committed agent is used, or a fresh one of the same size. The plain loop
rolls a tenth of the rows: it reads the whole episode again for every token it writes.
"""
import sys, time

import numpy as np
import torch

from adwm.agents import Cursor, LMAgent
from adwm.core import key_rng, root
from adwm.rollouts import make_rows, roll_chunk
from adwm.training import Recipe, build_model, demonstrate, texts_of, train_tokenizer
from adwm.webshop import WebShopSimulator, expert, generated_shop, sample_goals


class PlainSession:
    "The same policy without cache, grouping or early stop: one row and one token at a time."
    def __init__(self, agent, tasks): self.agent, self.inner = agent, agent.session(tasks)
    def took(self, rows, states, actions): self.inner.took(rows, states, actions)

    @torch.no_grad()
    def act(self, rows, states, rngs):
        out = []
        for r, s, rng in zip(rows, states, rngs):
            text, cursor = self.inner._prompt(r, s), Cursor(self.agent.root(s))
            while len(ok := self.agent.grammar.allowed(cursor)):
                logits = self.agent.model(input_ids=torch.tensor([text])).logits[0, -1].double().numpy()[ok]
                p = np.exp(logits - logits.max()).cumsum()
                token = int(ok[min(np.searchsorted(p, (rng.random() if len(ok) > 1 else 0) * p[-1], side="right"), len(p) - 1)])
                cursor.push(token); text.append(token)
            out.append(self.agent.domain.hear(self.agent.vocab.text(cursor.ids[:-1]), s.obs, s.choices))
        return out


class Plain:
    "LMAgent behind a PlainSession."
    def __init__(self, agent): self.agent, self.name = agent, agent.name
    def session(self, tasks): return PlainSession(self.agent, tasks)


def find_agent(path, simulator, teacher):
    "The checkpoint asked for, a committed one, or a fresh model."
    committed = sorted((root() / "assets").glob("*/agents/*/config.json"))
    if path or committed: return LMAgent.from_pretrained(path or committed[0].parent, simulator.domain)
    tokenizer = train_tokenizer(texts_of(demonstrate(simulator, simulator.tasks()[:100], teacher, 0), simulator.domain))
    return LMAgent(build_model(Recipe("fresh"), tokenizer), tokenizer, simulator.domain, "fresh")


def main(path=None, rows=256):
    "Print episodes and tokens per second of both loops; their actions must agree."
    torch.set_num_threads(1)
    shop = generated_shop(0); goals = sample_goals(shop, rows, "eval", 0)
    simulator, by = WebShopSimulator(shop, goals), {g.id: g for g in goals}
    agent = find_agent(path, simulator, lambda s: expert(shop, by[s.task.id], s))
    todo = make_rows(simulator.tasks(), [0.0])
    roll_chunk(simulator, agent, todo[:16], 1, 12)
    clock, cpu = time.perf_counter(), time.process_time()
    fast = roll_chunk(simulator, agent, todo, 0, 12)
    wall, cpu = time.perf_counter() - clock, time.process_time() - cpu
    n = sum(len(s.ids) for e in fast for s in agent._sequences(e.turns, e.task)[0])
    few = todo[:max(rows // 10, 1)]
    clock2 = time.process_time(); slow = roll_chunk(simulator, Plain(agent), few, 0, 12); plain = time.process_time() - clock2
    same = np.mean([[t.action for t in a.turns] == [t.action for t in b.turns] for a, b in zip(fast, slow)])
    inner = sum(p.numel() for p in agent.model.parameters()) - agent.embed.weight.numel()
    print(f"{agent.name}: {inner:,} parameters beside the embedding, {rows} episodes, {n / rows:.0f} tokens each, mean reward {np.mean([e.ret for e in fast]):.3f}")
    print(f"batched, cached : {rows / cpu:6.1f} episodes/s of CPU time ({rows / wall:.1f} of wall time), {n / cpu:,.0f} tokens/s")
    print(f"plain loop      : {len(few) / plain:6.1f} episodes/s of CPU time; episodes that agree: {same:.0%}")
    return rows / cpu, len(few) / plain, same


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 and sys.argv[1] != "-" else None, int(sys.argv[2]) if len(sys.argv) > 2 else 256)
