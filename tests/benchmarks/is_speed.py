"""IS, PDIS, DR, WDR on many trajectories, equal work on both sides: python tests/benchmarks/is_speed.py [trajectories] [turns]

Everyone starts from flat arrays of turns, in the form its own logs have: rewards, and of the logged actions under both policies ours
takes log-probabilities and SCOPE-RL probabilities, and for DR and WDR fitted values. All that follows is inside the timer, the
cumulative weights included. Ours ends with value and 90 % interval. References: the same sums by plain products from the same
log-probabilities, one pass of numpy a turn (the least any implementation must do, and it overflows where ours does not), with the same
Student interval; and SCOPE-RL, value only, where it is installed (pip install --no-deps --target SITE scope-rl==0.2.1; PYTHONPATH=SITE).
"""
import sys
import time

import numpy as np
from scope_rl_reference import load

from adwm.fitted import dr_terms, wdr_terms
from adwm.weights import Logs, conclude, held_sum, is_terms, pdis_terms, t_quantile

n, T = (int(a) for a in (sys.argv[1:] + ["200000", "6"][len(sys.argv) - 1:]))
rng = np.random.default_rng(0)
target, behavior = rng.uniform(0.3, 0.7, n * T), rng.uniform(0.3, 0.7, n * T)   # of the logged actions
logp_target, logp_behavior = np.log(target), np.log(behavior)
reward, q, v = rng.uniform(0, 1, (3, n * T))
TERMS = {"IS": lambda x, q, v: is_terms(x), "PDIS": lambda x, q, v: pdis_terms(x), "DR": dr_terms, "WDR": wdr_terms}


def ours(name):
    shape = (n, T)
    logs = Logs(held_sum((logp_target - logp_behavior).reshape(shape)), reward.reshape(shape), np.ones(shape, bool))
    e = conclude(*TERMS[name](logs, q.reshape(shape), v.reshape(shape)), None)
    return e.value, e.interval


def plain(name):
    ratio, r, Q, V = (np.exp(logp_target - logp_behavior).reshape(n, T), *(x.reshape(n, T) for x in (reward, q, v)))
    w, total, before = np.ones(n), np.zeros(n), np.ones(n)
    for t in range(T):
        w = w * ratio[:, t]
        if name == "PDIS": total += w * r[:, t]
        elif name == "DR": total += w * (r[:, t] - Q[:, t]) + before * V[:, t]
        elif name == "WDR": total += w / w.mean() * (r[:, t] - Q[:, t]) + before / before.mean() * V[:, t]
        else: total += r[:, t]
        before = w
    x = total * w if name == "IS" else total
    half = t_quantile(0.95, n - 1) * x.std(ddof=1) / n**0.5
    return x.mean(), (x.mean() - half, x.mean() + half)


def scope(classes):
    "SCOPE-RL's estimators on a log of two actions, of which the first was always taken; its values are v in the mean."
    both = np.stack([target, 1 - target], 1)
    table = np.stack([q, (v - target * q) / (1 - target)], 1)
    log = dict(step_per_trajectory=T, action=np.zeros(n * T, int), reward=reward, pscore=behavior, gamma=1.0, evaluation_policy_action_dist=both, state_action_value_prediction=table)
    return {k: (lambda c=classes[c]: (c()._estimate_trajectory_value(**log).mean(), None)) for k, c in (("IS", "IS"), ("PDIS", "PDIS"), ("DR", "DR"), ("WDR", "SNDR"))}


def timed(call, repeats=5):
    "Least wall and processor seconds of several runs, and the answer."
    best = [np.inf, np.inf]
    for _ in range(repeats):
        start = time.perf_counter(), time.process_time()
        out = call()
        best = [min(best[0], time.perf_counter() - start[0]), min(best[1], time.process_time() - start[1])]
    return *best, out


if __name__ == "__main__":
    classes = load()
    rivals = {"plain products": {k: (lambda k=k: plain(k)) for k in TERMS}} | ({"SCOPE-RL": scope(classes)} if classes else {})
    print(f"{n} trajectories of {T} turns, from flat logs; seconds on the wall (of the processor), best of 5")
    for name in TERMS:
        wall, cpu, (value, interval) = timed(lambda: ours(name))
        print(f"{name:5s} ours, with interval {wall:.3f} ({cpu:.3f})   {value:.6f}")
        for who, calls in rivals.items():
            w, c, (other, _) = timed(calls[name])
            print(f"      {who:20s} {w:.3f} ({c:.3f})   {other:.6f}   ours / theirs {wall / w:.2f} ({cpu / c:.2f})")
    if not classes: print("SCOPE-RL is not installed here: its rows are left out")
