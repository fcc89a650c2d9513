"""FittedQ values and their corrections against exact oracles, plain loops and each other."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from test_weights import everything, log_ratio, logs_of, random_logs

from adwm.core import UserError, key_rng
from adwm.fitted import (cross_checked, half_rows, unconfirmed, DoublyRobust, DMPaper, Encoded, FittedQ, HistoryKey, NetConfig, NetFitter, Memoized, CheckpointReplay, TableFitter, TextFeatures, blends, classical, dr_terms,
                         fit_reason, fit_together, fit_values, fold_parts, fqe_iterate, fqe_net, fqe_nets, fqe_solve, half_samples, is_random, likely, magic_terms, make_net, returns_to_go, simplex_qp, standardiser, transitions, wdr_terms)
from adwm.tabular import TabularDomain, action_values, draw, mix, random_policy, random_process, to_episodes, uniform_policy, value
from adwm.weights import ESTIMATED, IMPOSSIBLE, UNRELIABLE, Estimate, Logs, ImportanceSampling, action_coverage, conclude, exact_probe, fit_behavior, mix_probes, pdis_terms, t_quantile

torch.set_num_threads(1)
mean = lambda terms: float(np.exp(terms[1]) * terms[0].mean())


@pytest.fixture(scope="module")
def world():
    p = random_process(23, n_obs=2, tasks=8, vary_actions=True, vary_length=True, dense=True)
    b, u = random_policy(p, 2), uniform_policy(p)
    e = mix(random_policy(p, 1, 2.0), 0.4, b)
    return p, b, e, u, to_episodes(p, draw(p, b, 240, key_rng(0, "pool")), b)


@pytest.mark.parametrize("page_only,discount", [(False, 1.0), (True, 0.9), (False, 0.7)])
def test_tabular_fqe_is_the_linear_solve(world, page_only, discount):
    p, b, e, u, pool = world
    key = HistoryKey(page_only)
    rows = transitions(pool, exact_probe(p, e, pool), key)
    A, r = np.eye(key.size), np.zeros(key.size)                          # the same system, entry by entry
    for k in range(key.size):
        mine = np.flatnonzero(rows.x == k)
        if not len(mine): r[k] = 0.3
        for i in mine:
            r[k] += rows.reward[i] / len(mine)
            if rows.after[i] >= 0:
                for a, w in zip(rows.actions[rows.after[i]], rows.weight[rows.after[i]]): A[k, a] -= discount * w / len(mine)
    q = np.linalg.solve(A, r)
    assert np.abs(fqe_solve(rows, key.size, discount, 0.3) - q).max() < 1e-12
    assert np.abs(fqe_iterate(rows, key.size, discount, 500, 0.3) - q).max() < 1e-11


def test_tabular_fqe_is_exact_on_a_fully_logged_deterministic_process():
    p = random_process(4, n_obs=2, n_actions=2, horizon=3, tasks=3, deterministic=True, dense=True)
    e, u = random_policy(p, 9), uniform_policy(p)
    s = draw(p, u, 2000, key_rng(0, "all"))
    pool, key = to_episodes(p, s, u), HistoryKey()
    rows = transitions(pool, exact_probe(p, e, pool), key)
    assert np.abs(rows.spread(fqe_solve(rows, key.size)[rows.x]) - s.look_up(action_values(p, e)[0])).max() < 1e-12
    fit = fit_values(pool, exact_probe(p, e, pool), HistoryKey(), TableFitter())
    assert np.abs(fit.v - s.look_up(action_values(p, e)[1])).max() < 1e-12


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_doubly_robust_limits_and_the_formula_of_its_authors(discount):
    logs = random_logs(seed=3)
    rng = key_rng(0, "qv")
    q, v = rng.normal(size=logs.reward.shape) * logs.alive, rng.normal(size=logs.reward.shape) * logs.alive
    n, T = q.shape
    for terms, weights in ((dr_terms, np.exp(logs.logw) / n), (wdr_terms, np.exp(logs.logw) / np.exp(logs.logw).sum(0))):
        before = np.concatenate([np.full((n, 1), 1 / n), weights[:, :-1]], 1)
        whole = sum(discount**t * (weights[:, t] * (logs.reward[:, t] - q[:, t]) * logs.alive[:, t] + before[:, t] * v[:, t] * logs.alive[:, t]).sum() for t in range(T))
        assert abs(mean(terms(logs, q, v, discount)) - whole) < 1e-12
    assert abs(mean(dr_terms(logs, 0 * q, 0 * v, discount)) - mean(pdis_terms(logs, discount))) < 1e-12
    assert DoublyRobust(None).from_logs(replace(logs, logw=logs.logw - 900), 0 * q, 0 * v).status == IMPOSSIBLE, "e^-900 is no double, and not 0"
    never = replace(logs, logw=np.full(q.shape, -np.inf))
    for terms in (dr_terms, wdr_terms): assert abs(mean(terms(never, q, v, discount)) - v[:, 0].mean()) < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_dr_is_unbiased_for_any_q_by_enumeration(seed):
    p = random_process(seed, n_obs=2, dense=True, vary_length=seed % 2 == 0, vary_actions=True)
    b, e = random_policy(p, 50 + seed), random_policy(p, 90 + seed, 2.0)
    prob, s = everything(p, b)
    wrong = tuple(np.where(l, key_rng(seed, "wrong", t).normal(size=l.shape), 0.0) for t, l in enumerate(p.legal))
    v = tuple((x * y).sum(-1) for x, y in zip(e, wrong))
    x, shift = dr_terms(logs_of(s, e, b), s.look_up(wrong), s.look_up(v), 0.9)
    assert abs(np.exp(shift) * (prob @ x) - value(p, e, 0.9)) < 1e-12


def test_dr_with_exact_q_and_deterministic_transitions_is_exact_for_every_trajectory():
    p = random_process(8, tasks=6, deterministic=True, dense=True)
    e, b = random_policy(p, 1, 3.0), random_policy(p, 2)
    s = draw(p, b, 100, key_rng(0, "d"))
    q, v = action_values(p, e)
    for terms in (dr_terms, wdr_terms): assert np.abs(terms(logs_of(s, e, b), s.look_up(q), s.look_up(v))[0] - s.look_up(v)[:, 0]).max() < 1e-12


def test_huge_ratios_stay_finite():
    logs = random_logs(spread=60.0, n=60)
    q = v = 0.5 * logs.alive
    for form in ("DR", "WDR", "MAGIC"):
        est = DoublyRobust(None, form=form).from_logs(logs, q, v)
        assert np.isfinite([est.value, *est.interval]).all() and est.status == UNRELIABLE


def in_many_digits(form, logs, q, v):
    "Value and interval in 50 digits; MAGIC's quadratic program by trying every support."
    from itertools import combinations
    mp = pytest.importorskip("mpmath").mp.clone()
    mp.dps = 50
    n, T = q.shape
    exact = lambda a: [[mp.mpf(float(x)) for x in row] for row in a]
    W, r, Q, V = [[mp.exp(x) for x in row] for row in exact(logs.logw)], exact(logs.reward), exact(q), exact(v)
    rungs = [[V[i][0] for i in range(n)]]
    for t in range(T):
        delta, total = [r[i][t] + (V[i][t + 1] if t + 1 < T else 0) - Q[i][t] for i in range(n)], sum(W[i][t] for i in range(n))
        middle = sum(W[i][t] * delta[i] for i in range(n)) / total
        rungs.append([rungs[-1][i] + (W[i][t] * delta[i] if form == "DR" else middle + n * W[i][t] / total * (delta[i] - middle)) for i in range(n)])
    g, k = [sum(x) / n for x in rungs], T + 1
    if form != "MAGIC":
        half = mp.mpf(t_quantile(0.95, n - 1)) * mp.sqrt(sum((x - g[-1]) ** 2 for x in rungs[-1]) / (n - 1) / n)
        return g[-1], g[-1] - half, g[-1] + half
    cov = [[sum((x - a) * (y - b) for x, y in zip(X, Y)) / (n - 1) / n for Y, b in zip(rungs, g)] for X, a in zip(rungs, g)]
    half = mp.mpf(t_quantile(0.75, n - 1)) * mp.sqrt(cov[-1][-1])
    b = [max(x - g[-1] - half, g[-1] - half - x, 0) for x in g]
    A = mp.matrix([[cov[i][j] + b[i] * b[j] for j in range(k)] for i in range(k)])
    A = A + mp.mpf(1e-6) * sum(A[i, i] for i in range(k)) / k * mp.eye(k)
    best = None
    for on in (c for size in range(1, k + 1) for c in combinations(range(k), size)):
        try: z = mp.lu_solve(mp.matrix([[A[i, j] for j in on] for i in on]), mp.matrix([1] * len(on)))
        except ZeroDivisionError: continue   # all rungs are one number
        x = [z[on.index(i)] / sum(z) if i in on else mp.mpf(0) for i in range(k)]
        if min(x) >= 0:
            cost = sum(x[i] * A[i, j] * x[j] for i in range(k) for j in range(k))
            if best is None or cost < best[0]: best = cost, x
    m, half = sum(a * b for a, b in zip(best[1], g)) if best else g[-1], mp.mpf(t_quantile(0.95, n - 1)) * mp.sqrt(cov[-1][-1])
    return m, min(m, g[-1] - half), max(m, g[-1] + half)


def same_as_in_many_digits(form, logs, q, v):
    est, exact = DoublyRobust(None, form=form).from_logs(logs, q, v), in_many_digits(form, logs, q, v)
    size = max(map(abs, exact))
    if 0 < size and not -707 < np.log(2) * size.man_exp[1] + float(np.log(float(size.man_exp[0]))) < 708: return est.status == IMPOSSIBLE or np.allclose([*map(float, exact)], [est.value, *est.interval], 1e-6, 0)
    return all(np.isfinite(mine) and abs(mine - sure) <= 1e-8 * size for mine, sure in zip((est.value, *est.interval), exact))


@settings(derandomize=True, deadline=None, max_examples=150)
@given(form=st.sampled_from(["DR", "WDR", "MAGIC"]), span=st.sampled_from([0, 1, 30, 300, 710, 1000]), where=st.sampled_from(["low", "around 0", "high"]),
       reward=st.sampled_from(["zero", "tiny", "negative", "mixed", "heaviest earns nothing"]), fit=st.sampled_from(["none", "some", "tiny"]), n=st.integers(2, 7), T=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_values_and_intervals_at_any_scale_against_fifty_digits(form, span, where, reward, fit, n, T, seed):
    rng = key_rng(seed, "scale")
    totals = rng.uniform(0, span, n) - span * {"low": 1, "around 0": 0.5, "high": 0}[where]
    r = rng.uniform(0, 1, (n, T)) * {"zero": 0, "tiny": 10.0 ** rng.integers(-300, -4, (n, T)), "negative": -1, "mixed": rng.choice([-1, 0, 1e-5, 1], (n, T)), "heaviest earns nothing": (totals < totals.max())[:, None]}[reward]
    logs = Logs((rng.dirichlet(np.ones(T), n) * totals[:, None]).cumsum(1), r, np.ones((n, T), bool))
    q, v = rng.uniform(0, 1, (2, n, T)) * {"none": 0, "some": 1, "tiny": 1e-200}[fit]
    assert same_as_in_many_digits(form, logs, q, v)


@pytest.mark.parametrize("fit", ["random", "near", "poor"])
@pytest.mark.parametrize("kind", ["mixed", "all low", "all high", "one giant"])
def test_longer_pools_at_500_nats_against_fifty_digits(kind, fit):
    n, T, rng = 30, 6, key_rng(2, kind, fit)
    totals = {"mixed": rng.uniform(-500, 500, n), "all low": -500 + rng.normal(size=n), "all high": 500 - rng.exponential(size=n), "one giant": np.r_[500.0, np.full(n - 1, -500.0)]}[kind]
    logs = Logs((rng.dirichlet(np.ones(T), n) * totals[:, None]).cumsum(1), rng.uniform(0, 1, (n, T)), np.ones((n, T), bool))
    q, v = rng.uniform(0, 1, (2, n, T))
    if fit == "near": q, v = (np.cumsum(logs.reward[:, ::-1], 1)[:, ::-1] + 0.1 * x for x in (q, v))
    if fit == "poor": q, v = q - 5, v - 5
    est = DoublyRobust(None, form="MAGIC").from_logs(logs, q, v)
    assert all(same_as_in_many_digits(form, logs, q, v) for form in ("DR", "WDR", "MAGIC"))
    assert abs(est.notes["mixed"].sum() - 1) < 1e-12 and est.notes["mixed"].min() >= 0


def test_quadratic_program_against_scipy():
    for seed in range(6):
        A = key_rng(seed, "qp").normal(size=(6, 4 if seed % 2 else 6))
        A = A @ A.T
        x = simplex_qp(A)
        best = minimize(lambda z: z @ A @ z, np.full(6, 1 / 6), jac=lambda z: 2 * A @ z, bounds=[(0, 1)] * 6, constraints=[dict(type="eq", fun=lambda z: z.sum() - 1)], method="SLSQP", options=dict(ftol=1e-14, maxiter=500)).fun
        assert abs(x.sum() - 1) < 1e-9 and (x >= -1e-12).all() and x @ A @ x <= best + 1e-7 * max(best, 1)


def test_magic_lies_between_its_ends_and_picks_the_right_one(world):
    p, b, e, u, _ = world
    q, v = action_values(p, e)
    s = draw(p, b, 600, key_rng(3, "magic"))
    logs, q, v = logs_of(s, e, b), s.look_up(q), s.look_up(v)
    for factor in (1.0, 0.0, 4.0):
        x, _, mixed = magic_terms(logs, factor * q, factor * v)
        g = blends(logs, factor * q, factor * v).mean(0)
        assert g.min() - 1e-9 <= x.mean() <= g.max() + 1e-9 and abs(mixed.sum() - 1) < 1e-9
        assert abs(g[0] - factor * v[:, 0].mean()) < 1e-12 and abs(g[-1] - mean(wdr_terms(logs, factor * q, factor * v))) < 1e-12
        if factor == 1: assert mixed[:2].sum() > 0.8, "the quiet ones"
        else: assert abs(x.mean() - g[-1]) < 0.25 * abs(g[0] - g[-1])


def test_wdr_converges_and_covers(world):
    p, b, e, u, _ = world
    q, v = action_values(p, e)
    sets, n = 1000, 120
    s = draw(p, b, sets * n, key_rng(4, "cover"))
    logs, q, v = logs_of(s, e, b), 0.6 * s.look_up(q), 0.6 * s.look_up(v)
    assert abs(mean(wdr_terms(logs, q, v)) - value(p, e)) < 0.01
    hits = 0
    for i in range(sets):
        c = slice(i * n, (i + 1) * n)
        low, high = conclude(*wdr_terms(Logs(logs.logw[c], logs.reward[c], logs.alive[c]), q[c], v[c]), None).interval
        hits += low <= value(p, e) <= high
    assert 0.86 <= hits / sets <= 0.93


def test_network_fit_is_the_plain_loop_and_depends_on_the_seed_alone(world):
    p, b, e, u, pool = world
    rows = transitions(pool, exact_probe(p, e, pool), TextFeatures(TabularDomain(), 12))
    rows = rows.rows_of(np.arange(60))
    config = NetConfig(width=16, epochs=2)
    q = fqe_net(rows, config, 0.9, seed=5)
    torch.manual_seed(99)
    assert (fqe_net(rows, config, 0.9, seed=5)(rows.x) == q(rows.x)).all() and not np.allclose(fqe_net(rows, config, 0.9, seed=6)(rows.x), q(rows.x))
    from adwm.core import key_int
    z = standardiser(rows.x)
    net, slow = make_net(rows.x.shape[1], config, 5), make_net(rows.x.shape[1], config, 5)
    opt, order = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay), torch.Generator().manual_seed(key_int(5, "fqe order"))
    for _ in range(config.epochs):
        for i in torch.randperm(len(rows.x), generator=order).split(config.batch):
            goal = []
            for j in i.tolist():
                k = rows.after[j]
                with torch.no_grad(): nxt = 0.0 if k < 0 else float((torch.as_tensor(rows.weight[k]).float() * slow(z(rows.actions[k]))[:, 0]).sum())
                goal.append(rows.reward[j] + 0.9 * nxt)
            loss = ((net(z(rows.x[i.numpy()]))[:, 0] - torch.tensor(goal)) ** 2).mean()
            opt.zero_grad(); loss.backward(); opt.step()
            with torch.no_grad():
                for a, c in zip(slow.parameters(), net.parameters()): a += config.polyak * (c - a)
    assert np.abs(q(rows.x) - net(z(rows.x))[:, 0].detach().numpy()).max() < 1e-4


def test_networks_side_by_side_are_the_networks_one_by_one(world):
    p, b, e, u, pool = world
    own, other = exact_probe(p, e, pool), exact_probe(p, u, pool, "reference", 1.0)
    encode = Encoded(TextFeatures(TabularDomain(), 12))
    rows = [encode.rows(pool, mix_probes(own, other, x)) for x in (0.0, 0.3)]
    several, config = [rows[0], rows[1], rows[1].only(np.arange(100))], NetConfig(width=16, epochs=2)
    together = fqe_nets(several, config, 0.9, seed=5)
    for r, q in zip(several, together): assert np.abs(q(r.x) - fqe_net(r, config, 0.9, seed=5)(r.x)).max() < 1e-5
    assert np.abs(together[1](rows[1].x) - together[2](rows[1].x)).max() > 1e-3, "rows out of use are not learned from"
    with pytest.raises(UserError): fqe_nets([rows[0], transitions(pool, own, TextFeatures(TabularDomain(), 12))], config)
    fitter = Memoized(NetFitter(config))
    fit_together(pool, [mix_probes(own, other, x) for x in (0.0, 0.3)], encode, fitter, 2, 1.0, 0)
    before = set(fitter.known)
    assert len(before) == 12, "two epsilons: all rows, two folds that are also the halves, the filter and its halves"
    for it in classical(encode, fitter, NetFitter(config, bootstrap=False)):
        if is_random(it) and it.fitter is fitter: it.estimate(pool, mix_probes(own, other, 0.3), 0)
    assert set(fitter.known) == before, "nothing is fitted twice"


def test_remembered_rows_are_those_of_the_mixture(world):
    p, b, e, u, pool = world
    own, other, key = exact_probe(p, e, pool), exact_probe(p, u, pool, "reference", 1.0), HistoryKey()
    encode = Encoded(key)
    for x in (0.0, 0.4, 1.0):
        probe = mix_probes(own, other, x)
        kept, plain = encode.rows(pool, probe), transitions(pool, probe, key)
        dense = lambda r: np.stack([np.bincount(a, w, key.size) for a, w in zip(r.actions, r.weight)])
        assert np.abs(dense(kept) - dense(plain)).max() < 1e-12 and (kept.x == plain.x).all()
        assert abs(encode.coverage(pool, probe) - action_coverage(pool, probe)) < 1e-12
    assert encode.rows(pool, mix_probes(own, other, 0.4)).actions is encode.rows(pool, mix_probes(own, other, 0.1)).actions
    thinned = Encoded(key, m=1).rows(pool, own)
    assert thinned.actions.shape[1] == 1 and (thinned.weight == 1).all()


def test_the_filter_keeps_the_likelier_half_even_where_most_are_impossible(world):
    p, b, e, u, pool = world
    probe = exact_probe(p, e, pool)
    some = replace(probe, logp=tuple(np.full(len(x), -np.inf) if i % 4 else x for i, x in enumerate(probe.logp)))
    kept = likely(some)
    assert kept.sum() == len(pool) // 2 and kept[::4].all()


def test_the_filter_asks_how_likely_a_turn_is_and_not_how_long_the_episode(world):
    p, b, e, u, pool = world
    told = tuple(np.full(n, m) for n, m in ((6, -1.0), (1, -3.0), (2, -2.0), (5, -4.0)))   # by their sums the second would be first
    assert likely(replace(exact_probe(p, e, pool[:4]), logp=told)).tolist() == [True, False, True, False]


def test_a_fit_outside_the_logs_is_not_believed(world):
    p, b, e, u, pool = world
    probe = exact_probe(p, e, pool)
    low, high = min(x.ret for x in pool), max(x.ret for x in pool)
    said = lambda v, probe=probe: fit_reason(pool, probe, np.full(len(pool), v))[0]
    assert said((low + high) / 2) == "" and "diverged" in said(np.nan)
    assert "outside the logged returns" in said(high + 0.06 * (high - low)) and "outside the logged returns" in said(low - 0.06 * (high - low))
    strange = replace(probe, actions=tuple(tuple(tuple(f"{a}!" for a in acts) for acts in row) for row in probe.actions))
    assert "has seen 0.0%" in said((low + high) / 2, strange)
    assert FittedQ(HistoryKey(page_only=True), TableFitter()).estimate(pool, strange, 0).status == UNRELIABLE


def test_pairs_that_nobody_tried_are_worth_the_mean_return_to_go(world):
    p, b, e, u, pool = world
    key, strange = HistoryKey(page_only=True), exact_probe(p, e, pool)
    strange = replace(strange, actions=tuple(tuple(tuple(f"{a}!" for a in acts) for acts in row) for row in strange.actions))
    rows = transitions(pool, strange, key)
    for fitter in (TableFitter(), TableFitter(bootstrap=False)):
        q = fitter.fit(rows, 0.9, 0)
        assert np.allclose(q(rows.actions[rows.weight > 0]), returns_to_go(rows, 0.9).mean()) and q(np.array([10**6]))[0] == pytest.approx(returns_to_go(rows, 0.9).mean())


def test_a_fit_is_estimated_where_weights_confirm_it(world):
    p, b, e, u, pool = world
    pool = [replace(x, task=replace(x.task, id=f"{x.task.id}/{i}")) for i, x in enumerate(pool)]
    own = [replace(x, task=replace(x.task, id=x.task.id.split("/")[0])) for x in pool]
    near, free = exact_probe(p, b, own), lambda task, *rest: key(replace(task, id=task.id.split("/")[0]), *rest)
    key, fitter = HistoryKey(), TableFitter()
    asked = lambda probe=near, encode=free, pool=pool, **how: FittedQ(encode, fitter, **how).estimate(pool, probe, 0)
    assert asked().status == ESTIMATED and asked().reason == ""
    biased = lambda *pair: 0   # one key for everything: the target's value is the pool's
    better = tuple(x * np.exp(4 * y) for x, y in zip(b, action_values(p, b)[0]))
    better = mix(tuple(x / x.sum(-1, keepdims=True) for x in better), 0.3, b)
    est = asked(exact_probe(p, better, own), biased, splits=3)
    assert est.status == UNRELIABLE and "doubly robust" in est.reason
    assert "not measured" in asked(splits=0).reason and "no log-probability" in asked(replace(near, logp=None)).reason
    silent = [replace(x, turns=tuple(replace(t, logp=None) for t in x.turns)) for x in pool]
    assert asked(pool=silent).status == UNRELIABLE and "without behavior log-probabilities" in asked(pool=silent).reason
    assert DMPaper().estimate(pool, near, 0).status == UNRELIABLE
    told = lambda value, half: Estimate(value, (value - half, value + half), ESTIMATED)
    assert unconfirmed(told(1, 0.2), told(1.09, 0.19)) == "" and "only" in unconfirmed(told(1, 0.2), told(1, 0.21)) and "says 1.11" in unconfirmed(told(1, 0.2), told(1.11, 0.1))
    fits = [fitter.fit(r, 1.0, 0) for r in half_rows(pool, transitions(pool, near, free), 1, 0)]
    assert cross_checked(FittedQ(free, fitter), pool, near, fits, 0).value == DoublyRobust(free, fitter).estimate(pool, near, 0).value, "nobody is valued by a fit that knows him"


def test_features_the_logs_never_show_cannot_blow_up():
    x = np.zeros((50, 3))
    x[:, 0], x[0, 1] = np.arange(50), 1e-3
    z = standardiser(x)(np.array([[10.0, 1.0, 1.0]]))
    assert z.abs().max() <= 4 and z[0, 2] == 0


def test_network_learns_a_value(world):
    p, b, e, u, pool = world
    probe = exact_probe(p, e, pool)
    keys = HistoryKey()
    rows = transitions(pool, probe, keys)
    onehot = lambda k: np.eye(keys.size, dtype=np.float32)[k]
    dense = replace(rows, x=onehot(rows.x), actions=onehot(rows.actions))
    q = fqe_net(dense, NetConfig(width=32, epochs=30, lr=3e-3, polyak=0.1))
    v = (dense.weight * q(dense.actions)).sum(1)[np.flatnonzero(np.diff(rows.episode, prepend=-1))].mean()
    assert abs(v - value(p, e)) < 0.2 and np.isfinite(v)


def test_epsilon_variants(world):
    p, b, e, u, pool = world
    own, other, key = exact_probe(p, e, pool), exact_probe(p, u, pool, "reference", 1.0), HistoryKey()
    grid = (0.0, 0.5, 1.0)
    curve = {how: [FittedQ(key, TableFitter(), epsilon=how).estimate(pool, mix_probes(own, other, x), 0).value for x in grid] for how in ("refit", "evaluation", "paper")}
    assert abs(np.diff(curve["evaluation"], 2)[0]) < 1e-12, "a straight line"
    assert abs(curve["refit"][0] - curve["evaluation"][0]) < 1e-12 and abs(curve["refit"][2] - curve["evaluation"][2]) > 1e-6
    assert len({round(x, 9) for x in curve["paper"]}) == 3
    lonely = exact_probe(p, mix(e, 0.5, u), pool, epsilon=0.5)
    assert FittedQ(key, TableFitter(), epsilon="evaluation").estimate(pool, lonely, 0).status == IMPOSSIBLE


def test_the_family_on_one_pool(world):
    p, b, e, u, pool = world
    probe = mix_probes(exact_probe(p, e, pool), exact_probe(p, u, pool, "reference", 1.0), 0.25)
    names = set()
    for it in classical(HistoryKey(page_only=True), TableFitter(), TableFitter(bootstrap=False), fitted_behavior=tuple(fit_behavior(pool, TabularDomain()))):
        est = it.estimate(pool, probe, 0)
        names.add(it.name)
        assert np.isfinite(est.value) and est.interval[0] <= est.value <= est.interval[1] and (est.status == "estimated") == (est.reason == "")
        assert it.estimate(pool, probe, 0).value == est.value
        assert it.estimate(pool[:1], exact_probe(p, e, pool[:1]), 0).status == IMPOSSIBLE
    assert len(names) == 18
    flat = [DMPaper().estimate(pool, mix_probes(*probe.parts, x), 0).value for x in (0.0, 1.0)]
    assert flat[0] == flat[1] == pytest.approx(np.mean([x.ret for x in pool]))


def test_halves_are_balanced_and_the_first_split_is_that_of_two_folds(world):
    p, b, e, u, pool = world
    halves, task = half_samples(pool, 3, 5), np.array([x.task.id for x in pool])
    signs = []
    for A, B in zip(halves[::2], halves[1::2]):
        assert not set(task[A]) & set(task[B]) and sorted([*A, *B]) == list(range(len(pool)))
        signs.append([1 if t in set(task[A]) else -1 for t in sorted(set(task))])
    assert (np.array(signs) @ np.transpose(signs) == len(set(task)) * np.eye(3)).all(), "orthogonal over eight tasks"
    assert {tuple(x) for x in halves[:2]} == {tuple(train) for train, _ in fold_parts(pool, 2, 5)}
    assert half_samples([x for x in pool if x.task.id in sorted(set(task))[:3]], 1, 5) == []
    with pytest.raises(UserError): half_samples(pool, 4, 5)


@pytest.mark.parametrize("how,splits", [("refit", 1), ("refit", 3), ("paper", 1), ("evaluation", 2)])
def test_the_fits_error_is_the_spread_of_fits_on_halves(world, how, splits):
    p, b, e, u, pool = world
    probe = mix_probes(exact_probe(p, e, pool), exact_probe(p, u, pool, "reference", 1.0), 0.3)
    key, keep = HistoryKey(page_only=True), likely(probe) if how == "paper" else np.ones(len(pool), bool)

    class Part(Encoded):
        def rows(self, pool, probe): return transitions(pool, probe, self.encode).only(np.flatnonzero(self.some))

    def value_of(some):
        part = Part(key)
        part.some = some
        return FittedQ(part, TableFitter(), epsilon="refit" if how == "paper" else how, splits=0).estimate(pool, probe, 2).value
    full, alone = (FittedQ(key, TableFitter(), epsilon=how, splits=s).estimate(pool, probe, 2) for s in (splits, 0))
    inside = lambda half: np.isin(np.arange(len(pool)), half) & keep
    at = [value_of(inside(h)) for h in half_samples(pool, splits, 2)]
    error = np.sqrt(np.mean(np.subtract(at[::2], at[1::2]) ** 2) / 4)
    width = np.hypot((alone.interval[1] - alone.interval[0]) / 2, t_quantile(0.95, splits) * error)
    assert full.value == alone.value and full.notes["fit_error"] == pytest.approx(error, rel=1e-9) and error > 0
    assert np.allclose(full.interval, (full.value - width, full.value + width), atol=1e-12)


def test_intervals_of_direct_estimators_cover_where_the_table_can_express_the_value():
    p = random_process(31, n_obs=2, n_actions=2, horizon=2, tasks=1, dense=True)
    b, e, n, hits = random_policy(p, 2), random_policy(p, 3, 1.5), 120, []
    drawn = to_episodes(p, draw(p, b, n * 150, key_rng(3, "cover fit")), b)
    free = lambda key: lambda task, *rest: key(replace(task, id=""), *rest)
    for i in range(150):
        pool = drawn[i * n:(i + 1) * n]
        probe, pool = exact_probe(p, e, pool), [replace(x, task=replace(x.task, id=str(j))) for j, x in enumerate(pool)]
        low, high = FittedQ(free(HistoryKey()), TableFitter(), splits=3).estimate(pool, probe, i).interval
        hits.append(low <= value(p, e) <= high)
    assert 0.83 <= np.mean(hits) <= 0.97


def test_too_few_tasks_and_targets_without_a_log_probability(world):
    p, b, e, u, pool = world
    few = [x for x in pool if x.task.id in sorted({y.task.id for y in pool})[:3]]
    key = HistoryKey(page_only=True)
    est = FittedQ(key, TableFitter()).estimate(few, exact_probe(p, e, few), 0)
    assert est.status == UNRELIABLE and "too few tasks" in est.reason and est.interval[0] < est.value < est.interval[1]
    mute, full = replace(exact_probe(p, e, pool), logp=None), exact_probe(p, e, pool)
    for x in (0.0, 0.3):
        asked, known = (mix_probes(own, exact_probe(p, u, pool, "reference", 1.0), x) for own in (mute, full))
        for it in classical(key, TableFitter(), TableFitter(bootstrap=False), fitted_behavior=tuple(fit_behavior(pool, TabularDomain()))):
            est = it.estimate(pool, asked, 0)
            if isinstance(it, (DMPaper, CheckpointReplay)) or it.name in ("DM", "FQE", "FQE (mixed at evaluation)"): assert est.value == it.estimate(pool, known, 0).value
            else: assert est.status == IMPOSSIBLE and "no log-probability" in est.reason and np.isnan(est.value)
    fit_together(pool, [asked], Encoded(key), Memoized(TableFitter()))


def test_replay_with_exact_values_and_terminal_rewards():
    p = random_process(3, tasks=6, vary_length=True)
    b = random_policy(p, 1)
    pool = to_episodes(p, draw(p, b, 3000, key_rng(0, "replay")), b)
    est = CheckpointReplay(HistoryKey(), TableFitter(bootstrap=False)).estimate(pool, exact_probe(p, b, pool), 0)
    assert abs(est.value - value(p, b)) < 0.05, "replaying the behavior policy gives its value"


@pytest.mark.parametrize("prefixes,discount", [(1, 1.0), (3, 0.6), (5, 0.9)])
def test_replay_is_what_was_earned_plus_the_next_actions_value_at_evenly_spread_prefixes(world, prefixes, discount):
    p, b, e, u, pool = world
    probe, key = exact_probe(p, e, pool), HistoryKey(page_only=True)
    q, values = TableFitter(bootstrap=False).fit(transitions(pool, probe, key), discount, 0), []
    for x, acts, weights in zip(pool, probe.actions, probe.weights):
        asked = sorted({round(i * (len(x.turns) - 1) / max(prefixes - 1, 1)) for i in range(prefixes)})
        worth = lambda t: sum(w * q(np.array([key(x.task, x.turns[:t], x.turns[t].obs, a)]))[0] for a, w in zip(acts[t], weights[t]))
        values.append(np.mean([sum(discount**k * x.turns[k].reward for k in range(t)) + discount**t * worth(t) for t in asked]))
    assert CheckpointReplay(key, TableFitter(bootstrap=False), prefixes, discount).estimate(pool, probe, 0).value == pytest.approx(np.mean(values), abs=1e-12)
    assert CheckpointReplay(None).prefixes == 5


def test_fits_are_shared_and_truncation_has_no_successor(world):
    p, b, e, u, pool = world
    calls = []

    class Counting(TableFitter):
        def fit(self, rows, discount, seed):
            calls.append(len(rows.x))
            return super().fit(rows, discount, seed)
    family = classical(HistoryKey(page_only=True), Counting(), Counting(bootstrap=False))
    for it in family: it.estimate(pool, exact_probe(p, e, pool), 0)
    assert len(calls) == 13, "FQE, two folds for DR, WDR, MAGIC and FQE's error together, the paper's filter and its halves; one regression on returns and its six halves"
    cut = [replace(x, terminated=False, truncated=True, last_obs="page 0") for x in pool]
    rows, cut_rows = (transitions(x, exact_probe(p, e, pool), HistoryKey()) for x in (pool, cut))
    assert (rows.after == cut_rows.after).all() and np.allclose(returns_to_go(rows)[np.flatnonzero(np.diff(rows.episode, prepend=-1))], [x.ret for x in pool])
    assert Memoized(TableFitter()).fit(rows, 1.0, 0)(rows.x).shape == rows.x.shape


def test_an_episode_drawn_twice_counts_as_an_equal_copy_of_it(world):
    p, b, e, u, pool = world
    probe, task = exact_probe(p, e, pool), np.array([x.task.id for x in pool])
    drawn = key_rng(0, "bootstrap").integers(0, len(pool), len(pool))
    resampled = [pool[i] for i in drawn]
    asked = replace(probe, **{k: tuple(getattr(probe, k)[i] for i in drawn) for k in ("logp", "actions", "weights")}, action_logp=None)
    assert len(set(drawn)) < len(drawn) and [*map(list, fold_parts(resampled, 2, 3)[0])] == [*map(list, fold_parts([replace(x) for x in resampled], 2, 3)[0])]
    assert np.isin(np.arange(len(pool)), np.concatenate([test for _, test in fold_parts(resampled, 3, 3)])).all(), "every row is valued"
    for it in classical(HistoryKey(page_only=True), TableFitter(), TableFitter(bootstrap=False)):
        twice, copies = it.estimate(resampled, asked, 0), it.estimate([replace(x) for x in resampled], asked, 0)
        assert twice.value == copies.value and twice.interval == copies.interval, it.name


def test_remembered_rows_follow_the_episodes_of_a_list_that_changes(world):
    p, b, e, u, pool = world
    probe, encode, some = exact_probe(p, e, pool), Encoded(HistoryKey()), list(pool)
    first = encode.rows(some, probe)
    some[0] = replace(some[0], turns=tuple(replace(t, reward=t.reward + 7) for t in some[0].turns))
    assert (encode.rows(some, probe).reward != first.reward).sum() == len(some[0].turns) and encode.rows(list(pool), probe) is first


def test_mixture_rows_stand_beside_the_others_on_the_same_fits(world):
    p, b, e, u, pool = world
    probe, below = exact_probe(p, e, pool), tuple(np.array([t.logp for t in x.turns]) - 0.1 for x in pool)
    fitter = Memoized(TableFitter())
    rows = {kind: classical(HistoryKey(page_only=True), fitter, TableFitter(bootstrap=False), **given) for kind, given in dict(alone={}, both=dict(mixture=below), guessed=dict(fitted_behavior=below)).items()}
    added = lambda kind: [it for it in rows[kind] if it.name not in {x.name for x in rows["alone"]}]
    assert [it.name for it in added("both")] == [f"{f}, mixture of loggers" for f in ("IS", "PDIS", "WIS", "step-WIS (hold)", "DR", "WDR", "MAGIC")]
    assert [it.name for it in added("guessed")] == [f"{f}, fitted behavior" for f in ("IS", "WIS", "DR", "WDR")]
    alone = {it.name: it.estimate(pool, probe, 0).value for it in rows["alone"]}
    known = set(fitter.known)
    for it in added("both") + added("guessed"):
        value = it.estimate(pool, probe, 0).value
        assert np.isfinite(value) and value != alone[it.name.split(",")[0]], "what divides is what was given"
    lengths = np.array([len(x.turns) for x in pool])
    assert set(fitter.known) == known and rows["both"][-1].name == "checkpoint replay"
    assert ImportanceSampling("IS", "mixture", denominator=below).estimate(pool, probe).value == pytest.approx(np.mean(np.exp(0.1 * lengths) * np.array([np.exp(sum(lp) - sum(t.logp for t in x.turns)) * x.ret for x, lp in zip(pool, probe.logp)])))
    with pytest.raises(UserError, match="mixture"): DoublyRobust(HistoryKey(), behavior="mixture")


def test_bad_input_is_one_sentence(world):
    p, b, e, u, pool = world
    probe = exact_probe(p, e, pool)
    mute = replace(probe, actions=tuple(tuple(() for _ in row) for row in probe.actions), weights=tuple(tuple(np.zeros(0) for _ in row) for row in probe.weights))
    nan = [replace(pool[0], turns=(replace(pool[0].turns[0], reward=float("nan")), *pool[0].turns[1:])), *pool[1:]]
    empty, none = [pool[0], replace(pool[1], turns=()), *pool[2:]], replace(probe, **{k: (getattr(probe, k)[0], (), *getattr(probe, k)[2:]) for k in ("logp", "actions", "weights")}, action_logp=None)
    for call in (lambda: transitions(pool, mute, HistoryKey()), lambda: transitions(nan, probe, HistoryKey()), lambda: transitions(pool[:3], probe, HistoryKey()),
                 lambda: FittedQ(HistoryKey(), TableFitter(), epsilon="sometimes").estimate(pool, probe, 0), lambda: DoublyRobust(HistoryKey(), TableFitter(), "SDR").estimate(pool, probe, 0),
                 lambda: DMPaper().estimate(nan, probe, 0), lambda: FittedQ(HistoryKey(), TableFitter()).estimate(empty, none, 0), lambda: DoublyRobust(HistoryKey(), TableFitter()).estimate(empty, none, 0),
                 lambda: CheckpointReplay(HistoryKey(), TableFitter(bootstrap=False)).estimate(empty, none, 0)):
        with pytest.raises(UserError) as err: call()
        assert "\n" not in str(err.value)
    with pytest.raises(UserError, match="episode 1 holds no turn"): transitions(empty, none, HistoryKey())
    one = [x for x in pool if x.task.id == pool[0].task.id]
    assert DoublyRobust(HistoryKey(), TableFitter()).estimate(one, exact_probe(p, e, one), 0).status == IMPOSSIBLE
