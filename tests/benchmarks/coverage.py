"""How often do nominal 90 % intervals hold the truth, by status? python tests/benchmarks/coverage.py [first process] [processes] [sets] [fitted sets]

Fresh random tabular processes, pools of 60, 300 and 1,500 trajectories, targets from close to far, one logger, or two that
are weighed per logger or as a mixture. Per process and condition `sets` pools for the weighting estimators, straight from arrays, and
`fitted sets` for everything in `classical`, through episodes, probes and tabular fits, on smaller processes (0 leaves those out; one takes about a second).
Limits were chosen on processes 0-39 and confirmed on 5000-5039. The default takes about a minute.
"""
import sys

import numpy as np
import pandas as pd

from adwm.core import key_rng
from adwm.fitted import HistoryKey, TableFitter, classical
from adwm.tabular import draw, mix, random_policy, random_process, to_episodes, value
from adwm.weights import ESTIMATED, WEIGHTINGS, IMPOSSIBLE, Logs, ImportanceSampling, exact_probe, mixture_behavior

CLOSE, SIZES = (0.75, 0.4, 0.0), (60, 300, 1500)   # share of the first logger in the target; trajectories


def world(seed, **sizes):
    "A process, two loggers and a sharp policy for the targets; shapes change with the seed."
    p = random_process(seed, **sizes, dense=seed % 2 == 0, vary_length=seed % 3 > 0, vary_actions=seed % 4 > 1, horizon=3 if seed % 5 else 4)
    return p, [random_policy(p, seed + 1), random_policy(p, seed + 2)], random_policy(p, seed + 3, 2.0)


def logs(p, target, loggers, n, sets, key):
    "Pools as arrays: {how they are weighed: [Logs, ...]}; every logger has the same share of each pool."
    k = n // len(loggers)
    drawn = [draw(p, b, k * sets, key_rng(*key, j)) for j, b in enumerate(loggers)]
    score = lambda s, policy: s.look_up(tuple(np.log(np.maximum(x, 1e-300)) for x in policy)).cumsum(1)
    top, below = [score(s, target) for s in drawn], [[score(s, b) for b in loggers] for s in drawn]
    kinds = {"own logger": [t - lp[j] for j, (t, lp) in enumerate(zip(top, below))]}
    if len(loggers) > 1: kinds["mixture"] = [t - np.logaddexp.reduce(lp) + np.log(len(loggers)) for t, lp in zip(top, below)]
    cut = lambda xs, i: np.concatenate([x[i * k:(i + 1) * k] for x in xs])
    rest = [[s.reward for s in drawn], [s.alive for s in drawn], [s.node[:, 0] for s in drawn]]
    return {kind: [Logs(cut(logw, i), *(cut(x, i) for x in rest)) for i in range(sets)] for kind, logw in kinds.items()}


def episodes(p, target, loggers, n, key):
    "The same as a pool of episodes, its probe, and the estimators per kind of denominator."
    names = [f"logger {j}" for j in range(len(loggers))]
    pool = [e for name, b in zip(names, loggers) for e in to_episodes(p, draw(p, b, n // len(loggers), key_rng(*key, name)), b, name)]
    out = {"own logger": classical(HistoryKey(), TableFitter(), TableFitter(bootstrap=False))}
    if len(loggers) > 1:
        below = tuple(mixture_behavior(pool, {(name, 0.0): list(exact_probe(p, b, pool).logp) for name, b in zip(names, loggers)}))
        out["mixture"] = [ImportanceSampling(f, "mixture", denominator=below) for f in WEIGHTINGS]
    return pool, exact_probe(p, target, pool), out


def study(first, processes, sets, fitted_sets):
    "One row per estimate: estimator, condition, status, and whether the interval holds the truth."
    rows = []
    for seed in range(first, first + processes):
        for close, count, n in [(c, k, n) for c in CLOSE for k in (1, 2) for n in SIZES]:
            key, same = (seed, "coverage", close, count, n), dict(process=seed, close=close, loggers=count, n=n)
            def add(what, name, kind, v, e): rows.append(same | dict(pools=what, estimator=name, kind=kind, status=e.status, hit=e.interval[0] <= v <= e.interval[1]))
            p, both, far = world(seed, tasks=30)
            target = mix(far, close, both[0])
            for kind, several in (logs(p, target, both[:count], n, sets, key) if sets else {}).items():
                for x in several:
                    for form in WEIGHTINGS: add("arrays", form, kind, value(p, target), ImportanceSampling(form).from_logs(x))
            p, both, far = world(seed, tasks=12, n_obs=2, n_actions=2)
            target = mix(far, close, both[0])
            for i in range(fitted_sets if n < 1000 else 0):   # text of 1,500 episodes takes long, and shows nothing else
                pool, probe, families = episodes(p, target, both[:count], n, (*key, i))
                for kind, family in families.items():
                    for it in family: add("episodes", it.name, kind, value(p, target), it.estimate(pool, probe, i))
    return pd.DataFrame(rows)


def table(rows, by):
    "Sets, coverage and its binomial error, by status."
    rows = rows[rows.status != IMPOSSIBLE]
    g = rows.assign(status=np.where(rows.status == ESTIMATED, "estimated", "unreliable")).groupby([*by, "status"], sort=False).hit
    out = pd.DataFrame(dict(sets=g.size(), coverage=g.mean()))
    return out.assign(error=(out.coverage * (1 - out.coverage) / out.sets) ** 0.5).unstack("status").swaplevel(axis=1).sort_index(axis=1).round(3)


if __name__ == "__main__":
    first, processes, sets, fitted_sets = (int(a) for a in (sys.argv[1:] + ["0", "20", "4", "0"][len(sys.argv) - 1:]))
    rows = study(first, processes, sets, fitted_sets)
    with pd.option_context("display.width", 200, "display.max_columns", None, "display.max_rows", None):
        for what, some in rows.groupby("pools"):
            print(f"processes {first}-{first + processes - 1}, pools as {what}\n{table(some, ['estimator'])}\n")
            for by in ("kind", "n", "close"): print(table(some[some.estimator.isin(WEIGHTINGS)], [by]), "\n")
