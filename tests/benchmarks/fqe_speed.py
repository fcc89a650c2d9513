"""Neural FQE per gradient step, against a plain torch loop on the same net: python tests/benchmarks/fqe_speed.py [steps]

Both see the same rows, batches, target network and optimiser; the plain loop is what one would write by hand. The last line trains 16
networks side by side (`fqe_nets`), as a run does for the epsilons, folds and variants of one agent.
The reference in the issue: d3rlpy takes 4.6 to 7 times the plain loop.
"""
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from adwm.fitted import NetConfig, Transitions, fqe_net, fqe_nets

torch.set_num_threads(1)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
N, d, m, config = 3200, 40, 8, NetConfig()
config = NetConfig(epochs=max(1, steps * config.batch // N))
rng = np.random.default_rng(0)
after = np.where(np.arange(1, N + 1) % 6 == 0, -1, np.arange(1, N + 1))
after[-1] = -1
rows = Transitions(rng.normal(size=(N, d)).astype(np.float32), rng.random(N), after, rng.normal(size=(N, m, d)).astype(np.float32), np.full((N, m), 1 / m), np.arange(N) // 6)


def plain():
    x, acts, r = torch.tensor(rows.x), torch.tensor(rows.actions), torch.tensor(rows.reward, dtype=torch.float32)
    nxt, live = torch.tensor(rows.after).clamp(min=0), torch.tensor(rows.after >= 0).float()
    weight = torch.tensor(rows.weight, dtype=torch.float32)
    build = lambda: nn.Sequential(nn.Linear(d, config.width), nn.SiLU(), nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, 1))
    net, slow = build(), build()
    opt, done = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay), 0
    for _ in range(config.epochs):
        order = torch.randperm(N)
        for start in range(0, N, config.batch):
            i = order[start:start + config.batch]
            with torch.no_grad(): goal = r[i] + live[i] * (weight[nxt[i]] * slow(acts[nxt[i]]).squeeze(-1)).sum(-1)
            loss = nn.functional.mse_loss(net(x[i]).squeeze(-1), goal)
            opt.zero_grad()
            loss.backward()
            opt.step()
            with torch.no_grad():
                for a, b in zip(slow.parameters(), net.parameters()): a.mul_(1 - config.polyak).add_(b, alpha=config.polyak)
            done += 1
    return done


def timed(call):
    cpu, wall = time.process_time(), time.perf_counter()
    out = call()
    return time.process_time() - cpu, out, time.perf_counter() - wall


timed(plain), timed(lambda: fqe_net(rows, config))  # warm up
pairs = [(timed(plain), timed(lambda: fqe_net(rows, config))) for _ in range(3)]
count = pairs[0][0][1]
theirs, ours = (min(p[k][0] for p in pairs) / count * 1e3 for k in (0, 1))
their_wall, our_wall = (min(p[k][2] for p in pairs) / count * 1e3 for k in (0, 1))
print(f"{count} gradient steps, batch {config.batch}, {m} actions a row; ms per step, best of 3")
print(f"processor time: plain torch loop {theirs:.3f} ms   adwm.fitted.fqe_net {ours:.3f} ms   ratio {ours / theirs:.2f} (aim: at most 1.1)")
print(f"wall time     : plain torch loop {their_wall:.3f} ms   adwm.fitted.fqe_net {our_wall:.3f} ms   ratio {our_wall / their_wall:.2f}")
many = [replace(rows, use=np.ones(N, bool)) for _ in range(16)]
side = timed(lambda: fqe_nets(many, config))[0] / count * 1e3
print(f"16 networks side by side, processor time: {side:.3f} ms per step, {side / 16:.3f} ms per step and network: {theirs / (side / 16):.1f} times as fast as the plain loop 16 times")
