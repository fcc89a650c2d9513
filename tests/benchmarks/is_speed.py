"""IS, PDIS, DR, WDR on many trajectories, against SCOPE-RL where it is installed: python tests/benchmarks/is_speed.py [trajectories] [turns]

Prints seconds and values of both in one run. Without SCOPE-RL the reference is the same sums by plain products in one pass of numpy
per turn, which is the least any implementation must do (and which overflows where ours does not). For SCOPE-RL see scope_rl_reference.py.
"""
import sys
import time

import numpy as np
from scope_rl_reference import load

from adwm.fitted import dr_terms, wdr_terms
from adwm.weights import Logs, conclude, is_terms, pdis_terms

n, T = (int(a) for a in (sys.argv[1:] + ["200000", "6"][len(sys.argv) - 1:]))
rng = np.random.default_rng(0)
ratio, reward = rng.normal(0, 0.3, (n, T)), rng.uniform(0, 1, (n, T))
q, v = rng.uniform(0, 1, (n, T)), rng.uniform(0, 1, (n, T))
logs = Logs(ratio.cumsum(1), reward, np.ones((n, T), bool))


def timed(call, repeats=3):
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        out = call()
        best = min(best, time.process_time() - start)
    return best, out


def plain(name):
    w, total, before = np.ones(n), np.zeros(n), np.ones(n)
    for t in range(T):
        w = w * np.exp(ratio[:, t])
        if name == "PDIS": total += w * reward[:, t]
        elif name == "DR": total += w * (reward[:, t] - q[:, t]) + before * v[:, t]
        elif name == "WDR": total += w / w.mean() * (reward[:, t] - q[:, t]) + before / before.mean() * v[:, t]
        else: total += reward[:, t]
        before = w
    x = total * w if name == "IS" else total
    return x.mean(), x.std() / n**0.5


classes = load()
if classes:
    dist = np.stack([0.5 * np.exp(ratio).ravel(), 1 - 0.5 * np.exp(ratio).ravel()], 1)
    table = np.stack([q.ravel(), ((v - dist[:, 0].reshape(n, T) * q) / dist[:, 1].reshape(n, T)).ravel()], 1)  # so that sum_a pi(a) Q(a) is v
    flat = dict(step_per_trajectory=T, action=np.zeros(n * T, int), reward=reward.ravel(), pscore=np.full(n * T, 0.5), gamma=1.0,
                evaluation_policy_action_dist=dist, state_action_value_prediction=table)
    library = {k: (lambda c=classes[c]: c()._estimate_trajectory_value(**flat).mean()) for k, c in (("IS", "IS"), ("PDIS", "PDIS"), ("DR", "DR"), ("WDR", "SNDR"))}
else: library = {k: (lambda k=k: plain(k)[0]) for k in ("IS", "PDIS", "DR", "WDR")}
reference = "SCOPE-RL" if classes else "plain products"

print(f"{n} trajectories of {T} turns; CPU seconds, best of 3; reference: {reference}")
for name, terms in (("IS", is_terms), ("PDIS", pdis_terms), ("DR", lambda x: dr_terms(x, q, v)), ("WDR", lambda x: wdr_terms(x, q, v))):
    (a, mine), (b, theirs) = timed(lambda: conclude(*terms(logs), None)), timed(library[name])
    print(f"{name:5s} ours, with interval {a:.3f} s   reference, value only {b:.3f} s   ratio {a / b:.2f}   values {mine.value:.6f} {theirs:.6f}")
