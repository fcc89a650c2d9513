"""Importance weights against exact oracles, sixty-digit arithmetic and plain loops."""
import gzip, json
from dataclasses import replace
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adwm.core import UserError, key_rng
from adwm.envs import Reference
from adwm.policies import mixture_log_prob
from adwm.tabular import (Sample, TabularAgent, TabularDomain, draw, mix, random_policy, random_process, to_episodes, uniform_policy, value)
from adwm.weights import (ESTIMATED, WEIGHTINGS, IMPOSSIBLE, UNRELIABLE, Logs, ImportanceSampling, action_coverage, action_span, add_terms, agent_probe, exact_probe, fit_behavior, hill, is_terms,
                          kish_ess, largest_share, logger_log_probs, mix_probes, mixture_behavior, normalised, pdis_terms, probe_from_agent, read_probe, reference_probe, resolved, scaled, spread_draws, stack, stepwis_terms,
                          t_quantile, thin, weight_notes, WeightRule, wis_terms, write_probe)

getcontext().prec = 60


def everything(process, behavior):
    "Every trajectory of a process as a Sample, and its probability under the behavior policy."
    rows = []

    def walk(t, n, prob, path):
        for a in np.flatnonzero(process.legal[t][n]):
            for o in np.flatnonzero(process.step[t][n, a] > 0):
                p, here = prob * behavior[t][n, a] * process.step[t][n, a, o], path + [(n, a, o, process.reward[t][n, a, o])]
                if o == process.n_obs: rows.append((p, here))
                else: walk(t + 1, process.child[t][n, a, o], p, here)
    for i, p in enumerate(process.start): walk(0, i, p, [])
    table = np.full((len(rows), process.horizon, 4), -1.0)
    for i, (_, path) in enumerate(rows): table[i, :len(path)] = path
    alive = table[..., 0] >= 0
    cols = [table[..., k].astype(int) for k in range(3)]
    return np.array([p for p, _ in rows]), Sample(*cols, np.where(alive, table[..., 3], 0.0), alive)


def log_ratio(target, behavior):
    return tuple(np.log(np.where(b > 0, e, 1) / np.where(b > 0, b, 1)) for e, b in zip(target, behavior))


def logs_of(sample, target, behavior):
    return Logs(sample.look_up(log_ratio(target, behavior)).cumsum(1), sample.reward, sample.alive)


def random_logs(n=40, T=5, seed=0, spread=1.0):
    rng = key_rng(seed, "logs")
    alive = np.arange(T) < rng.integers(1, T + 1, n)[:, None]
    return Logs((alive * rng.normal(0, spread, (n, T))).cumsum(1), rng.normal(size=(n, T)) * alive, alive)


@pytest.mark.parametrize("seed", range(6))
def test_unbiased_by_enumeration(seed):
    p = random_process(seed, dense=True, vary_length=seed % 2 == 0, vary_actions=seed % 3 == 0)
    b, e = random_policy(p, 50 + seed), random_policy(p, 90 + seed, 2.0)
    prob, sample = everything(p, b)
    logs = logs_of(sample, e, b)
    assert abs(prob.sum() - 1) < 1e-12
    for terms in (is_terms, pdis_terms):
        for discount in (1.0, 0.8):
            x, shift = terms(logs, discount)
            assert abs(np.exp(shift) * (prob @ x) - value(p, e, discount)) < 1e-12


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_plain_loops_in_the_notation_of_cobs(discount):
    logs = random_logs()
    n, T = logs.reward.shape
    w, G = np.exp(logs.logw), logs.reward @ discount ** np.arange(T)
    plain = {"IS": np.mean([w[i, -1] * G[i] for i in range(n)]),
             "PDIS": np.mean([sum(discount**t * w[i, t] * logs.reward[i, t] for t in range(T)) for i in range(n)]),
             "WIS": sum(w[i, -1] * G[i] for i in range(n)) / sum(w[:, -1])}
    for name, sure in plain.items():
        x, shift = WEIGHTINGS[name](logs, discount)
        assert abs(np.exp(shift) * x.mean() - sure) < 1e-12
    held = sum(discount**t * sum(w[i, t] * logs.reward[i, t] for i in range(n)) / sum(w[:, t]) for t in range(T))
    cut = sum(discount**t * sum(w[i, t] * logs.reward[i, t] for i in range(n)) / sum(w[i, t] for i in range(n) if logs.alive[i, t]) for t in range(T) if logs.alive[:, t].any())
    assert abs(stepwis_terms(logs, discount, "hold")[0].mean() - held) < 1e-12
    assert abs(stepwis_terms(logs, discount, "zero")[0].mean() - cut) < 1e-12 and abs(held - cut) > 1e-3
    with pytest.raises(UserError): stepwis_terms(logs, discount, "forget")


def sixty_digits(logs, form):
    "Mean and standard error of an estimator's terms, and the size of what is summed, which is what rounding is relative to."
    D = lambda a: [[Decimal(float(x)) for x in row] for row in a]
    W, R = [[x.exp() for x in row] for row in D(logs.logw)], D(logs.reward)
    n, T, G = len(W), len(W[0]), [sum(r) for r in D(logs.reward)]
    if form in ("IS", "PDIS"):
        cut = [[w[-1]] * T if form == "IS" else w for w in W]
        x, size = [sum(a * b for a, b in zip(w, r)) for w, r in zip(cut, R)], sum(a * abs(b) for w, r in zip(cut, R) for a, b in zip(w, r)) / n
    else:
        x, size = [Decimal(0)] * n, Decimal(0)
        for t, xs in [(T - 1, G)] if form == "WIS" else [(t, [r[t] for r in R]) for t in range(T)]:
            here = [w[t] if form != "step-WIS (zero)" or alive else Decimal(0) for w, alive in zip(W, logs.alive[:, t])]
            if not (total := sum(here)): continue
            v = sum(w * y for w, y in zip(here, xs)) / total
            x = [a + v + n * w / total * (y - v) for a, w, y in zip(x, here, xs)]
            size += sum(w * (sum(map(abs, r)) if form == "WIS" else abs(r[t])) for w, r in zip(here, R)) / total
    m = sum(x) / n
    return m, (sum((a - m) ** 2 for a in x) / (n - 1) / n).sqrt(), size


def estimated(form, logs):
    return ImportanceSampling(form.split(" ")[0], after_end="zero" if "zero" in form else "hold").from_logs(logs)


def agree(form, logs):
    "Value and bounds against sixty digits, or the sentence where a double cannot hold them."
    n = len(logs.logw)
    e, (m, se, size) = estimated(form, logs), sixty_digits(logs, form)
    half = Decimal(t_quantile(0.95, n - 1)) * se
    scale = max(abs(m), half)
    if scale > Decimal("1e308"): assert e.status == IMPOSSIBLE and "beyond a double" in e.reason
    elif 0 < scale < Decimal("1e-300"): assert e.status == IMPOSSIBLE or abs(e.value) <= 1e-300
    elif scale < Decimal("1e307"):
        for mine, sure in ((e.value, m), (e.interval[0], m - half), (e.interval[1], m + half)):
            assert np.isfinite(mine) and abs(Decimal(float(mine)) - sure) <= Decimal("1e-8") * scale + Decimal("1e-11") * size, (form, mine, sure)
    return e


@pytest.mark.parametrize("form", list(WEIGHTINGS))
@pytest.mark.parametrize("kind", ["mixed", "all low", "all high", "one giant"])
def test_finite_and_correct_at_500_nats(form, kind):
    rng = key_rng(1, kind)
    totals = {"mixed": rng.uniform(-500, 500, 30), "all low": -500 + rng.normal(size=30), "all high": 500 - rng.exponential(size=30),
              "one giant": np.r_[500.0, np.full(29, -500.0)]}[kind]
    ratio = rng.dirichlet(np.ones(6), 30) * totals[:, None]
    assert agree(form, Logs(ratio.cumsum(1), rng.uniform(0, 1, (30, 6)), np.ones((30, 6), bool))).status == UNRELIABLE


@st.composite
def hard_logs(pick):
    "Log-ratios spread over 0 to 1,000 nats; rewards that are nothing, tiny, negative or mixed; episodes of different lengths."
    n, T, spread = pick(st.integers(2, 9)), pick(st.integers(1, 3)), pick(st.sampled_from([0.0, 1.0, 30.0, 300.0, 500.0]))
    kinds = pick(st.sampled_from([(0.0, 1.0), (0.0, 1e-5), (0.0, 1e-300), (1.0, -1.0, 0.0), (-0.3, 0.0), (1e-300, 1e-5, 1.0, 0.0, -2.5), (0.0,)]))
    total = np.array(pick(st.lists(st.floats(-spread, spread), min_size=n, max_size=n)))
    reward = np.array(pick(st.lists(st.sampled_from(kinds), min_size=n * T, max_size=n * T))).reshape(n, T)
    alive = np.arange(T) < np.array(pick(st.lists(st.integers(1, T), min_size=n, max_size=n)))[:, None]
    part = np.array(pick(st.lists(st.floats(0.05, 1.0), min_size=n * T, max_size=n * T))).reshape(n, T) * alive
    return Logs((part / part.sum(1, keepdims=True) * total[:, None]).cumsum(1), reward * alive, alive)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(logs=hard_logs())
def test_value_and_interval_to_1e_8_at_any_scale(logs):
    for form in (*WEIGHTINGS, "step-WIS (zero)"): agree(form, logs)


@pytest.mark.parametrize("top", [50.0, 100.0, 380.0, 709.0, 760.0, 1000.0])
def test_the_heaviest_trajectory_may_earn_nothing(top):
    logs = Logs(np.r_[top, np.zeros(29)][:, None], np.r_[0.0, np.ones(9), np.zeros(20)][:, None], np.ones((30, 1), bool))
    for form in ("IS", "PDIS"):
        e = ImportanceSampling(form).from_logs(logs)
        assert e.value == pytest.approx(0.3, rel=1e-12) and e.interval[1] - e.interval[0] == pytest.approx(0.29, abs=0.005)
        assert agree(form, replace(logs, reward=1e-5 * logs.reward)).status == UNRELIABLE
        assert agree(form, replace(logs, reward=0.0 * logs.reward)).value == 0


def test_a_value_may_be_a_double_where_its_largest_term_is_none():
    e = ImportanceSampling("IS").from_logs(plain_logs(np.r_[714.0, np.zeros(4999)]))
    assert e.value == pytest.approx(np.exp(714 - np.log(5000)), rel=1e-9) and np.isfinite(e.interval[1])


def test_terms_add_on_the_larger_scale():
    a, b = scaled(np.array([-900.0, -901.0]), np.ones(2)), scaled(np.zeros(2), np.array([0.0, 2.0]))
    for x, y in ((a, b), (b, a)):
        terms, shift = add_terms(x, y)
        assert np.allclose(terms * np.exp(shift), [0, 2], atol=1e-12)
    nothing = scaled(np.zeros(2), np.zeros(2))
    assert add_terms(a, nothing)[1] == a[1] == add_terms(nothing, a)[1] and not add_terms(nothing, nothing)[0].any()


def test_wis_converges_and_equal_policies_give_the_mean_return():
    p = random_process(2, dense=True, vary_length=True)
    b = random_policy(p, 1)
    e = mix(random_policy(p, 2, 2.0), 0.3, b)
    s = draw(p, b, 100_000, key_rng(0, "wis"))
    for form in ("WIS", "step-WIS"):
        est = ImportanceSampling(form).from_logs(logs_of(s, e, b))
        assert abs(est.value - value(p, e)) < 4 * (est.interval[1] - est.interval[0]) / 3.29 and est.interval[1] - est.interval[0] < 0.05
    for form in WEIGHTINGS: assert abs(ImportanceSampling(form).from_logs(logs_of(s, b, b)).value - s.reward.sum(1).mean()) < 1e-12


def test_intervals_cover():
    p = random_process(17, dense=True, vary_length=True)
    b = random_policy(p, 5)
    e, sets, n = mix(random_policy(p, 6, 2.0), 0.75, b), 2000, 150
    logs = logs_of(draw(p, b, n * sets, key_rng(2, "cover")), e, b)
    for form in ("PDIS", "step-WIS"):
        hits = 0
        for i in range(sets):
            c = slice(i * n, (i + 1) * n)
            low, high = ImportanceSampling(form).from_logs(Logs(logs.logw[c], logs.reward[c], logs.alive[c])).interval
            hits += low <= value(p, e) <= high
        assert 0.88 <= hits / sets <= 0.92, (form, hits / sets)


def test_diagnostics():
    assert kish_ess(np.zeros(50)) == pytest.approx(50) and kish_ess(np.array([0.0, -1000, -1000])) == pytest.approx(1) and kish_ess(np.full(3, -np.inf)) == 0
    assert largest_share(np.array([700.0, 700.0])) == pytest.approx(0.5) and largest_share(np.full(3, -np.inf)) == 0
    for tail in (1.0, 3.0): assert hill(np.log(key_rng(0, "pareto").pareto(tail, 50_000) + 1)) == pytest.approx(tail, rel=0.1)
    assert hill(np.zeros(100)) == np.inf and np.isnan(hill(np.zeros(4)))
    assert np.abs(normalised(np.array([[900.0, -np.inf], [899.0, -np.inf]])).sum(0) - [1, 0]).max() < 1e-12
    for df in (9, 20, 500): assert t_quantile(0.95, df) == pytest.approx(stats.t.ppf(0.95, df), abs=2e-4)
    assert action_span([5, 6, 7], [5, 6, 9, 9]) == (2, 4)
    with pytest.raises(UserError): action_span([5, 6], [5, 6])


@pytest.fixture(scope="module")
def world():
    p = random_process(23, tasks=12, vary_actions=True, vary_length=True, dense=True)
    b = random_policy(p, 2)
    e = mix(random_policy(p, 1, 2.0), 0.5, b)
    return p, b, e, to_episodes(p, draw(p, b, 120, key_rng(0, "pool")), b)


def test_probe_of_an_agent_is_the_exact_probe(world):
    p, b, e, pool = world
    agent, domain, u = TabularAgent("target", p, e), TabularDomain(), uniform_policy(p)
    for eps in (0.0, 0.4, 1.0):
        exact = exact_probe(p, mix(e, eps, u), pool)
        asked = probe_from_agent(agent, pool, eps, m=6, domain=domain, score=eps == 0)
        mixed = mix_probes(exact_probe(p, e, pool), reference_probe(domain, pool), eps)
        for x, y, z in zip(exact.logp, asked.logp, mixed.logp): assert np.allclose(x, y, atol=1e-12) and np.allclose(x, z, atol=1e-12)
        for row_a, row_w, ex_a, ex_w in zip(mixed.actions, mixed.weights, exact.actions, exact.weights):
            for a, w, xa, xw in zip(row_a, row_w, ex_a, ex_w):
                total = {}
                for k, y in zip(a, w): total[k] = total.get(k, 0) + y
                assert all(abs(total[k] - y) < 1e-12 for k, y in zip(xa, xw))
        assert all(abs(w.sum() - 1) < 1e-12 for row in asked.weights for w in row)
    share = np.mean([(np.array(a) == "move 0").mean() for row in probe_from_agent(agent, pool, m=40).actions for a in row])
    sure = np.mean([w[list(a).index("move 0")] for A, W in zip(exact_probe(p, e, pool).actions, exact_probe(p, e, pool).weights) for a, w in zip(A, W)])
    assert abs(share - sure) < 0.03
    assert probe_from_agent(agent, pool[:5], m=3, seed=7).actions == probe_from_agent(agent, pool[:9], m=3, seed=7).actions[:5], "keyed, not batched"
    assert 0.9 < action_coverage(pool, exact_probe(p, e, pool)) <= 1


def test_estimate_is_near_the_truth_and_status_is_explicit(world):
    p, b, e, pool = world
    probe = exact_probe(p, e, pool)
    for form in WEIGHTINGS:
        est = ImportanceSampling(form).estimate(pool, probe, 0)
        assert est.interval[0] < est.value < est.interval[1] and abs(est.value - value(p, e)) < 0.6
    assert ImportanceSampling("WIS").estimate(pool[:1], exact_probe(p, e, pool[:1]), 0).status == IMPOSSIBLE
    blank = [replace(x, turns=tuple(replace(t, logp=None) for t in x.turns)) for x in pool]
    assert ImportanceSampling("WIS").estimate(blank, probe, 0).status == IMPOSSIBLE
    assert ImportanceSampling("WIS", "estimated", domain=TabularDomain()).estimate(blank, probe, 0).status in (ESTIMATED, UNRELIABLE)
    never = replace(probe, logp=tuple(np.full(len(x), -np.inf) for x in probe.logp))
    assert ImportanceSampling("WIS").estimate(pool, never, 0).status == IMPOSSIBLE and "no logged trajectory" in ImportanceSampling("IS").estimate(pool, never, 0).reason
    far = Logs(np.r_[800.0, np.zeros(9)][:, None], np.ones((10, 1)), np.ones((10, 1), bool))
    assert ImportanceSampling("IS").from_logs(far).status == IMPOSSIBLE and ImportanceSampling("WIS").from_logs(far).status == UNRELIABLE
    one = [x for x in pool if x.task.id == pool[0].task.id]
    assert "one task" in ImportanceSampling("PDIS").estimate(one, exact_probe(p, e, one), 0).reason


def test_a_target_without_a_log_probability_is_asked_and_not_weighed(world, tmp_path):
    p, b, e, pool = world
    class Chooser(TabularAgent):
        has_log_prob = False
        def log_probs(self, episodes): raise AssertionError("nobody knows")
    some = pool[:40]
    probe = agent_probe(Chooser("chooser", p, e), some, m=3, score=True)
    probe.check(some)
    assert probe.logp is None and probe.action_logp is None and probe.actions == agent_probe(TabularAgent("chooser", p, e), some, m=3).actions
    assert read_probe(write_probe(tmp_path / "probe.json.gz", probe)).logp is None
    other = exact_probe(p, uniform_policy(p), some, "reference", 1.0)
    assert mix_probes(probe, other, 0.3).logp is None and mix_probes(probe, other, 1.0).logp is other.logp
    for form in WEIGHTINGS: assert ImportanceSampling(form).estimate(some, mix_probes(probe, other, 0.3)).status == IMPOSSIBLE
    with pytest.raises(UserError): stack(some, probe)
    with pytest.raises(UserError): probe.check(some[:5])


@pytest.mark.parametrize("df,want", [(1, 6.3137515), (2, 2.9199856), (3, 2.3533634), (30, 1.6972609)])
def test_student_quantiles_with_few_degrees_of_freedom(df, want):
    assert abs(t_quantile(0.95, df) - want) < 1e-6


def test_bad_input_is_one_sentence(world):
    p, b, e, pool = world
    probe = exact_probe(p, e, pool)
    nan = [replace(pool[0], turns=(replace(pool[0].turns[0], reward=float("nan")), *pool[0].turns[1:])), *pool[1:]]
    for call in (lambda: stack(pool, exact_probe(p, e, pool[:3])), lambda: stack(pool, replace(probe, logp=(np.zeros(99), *probe.logp[1:]))),
                 lambda: stack(pool, replace(probe, logp=(np.full(len(pool[0].turns), np.nan), *probe.logp[1:]))), lambda: stack(nan, probe),
                 lambda: stack(pool, probe, [np.full(len(x.turns), -np.inf) for x in pool]), lambda: stack(pool, probe, [np.zeros(1)] + [np.zeros(9)] * (len(pool) - 1)),
                 lambda: ImportanceSampling("SNIPS"), lambda: ImportanceSampling("IS", "guessed"), lambda: fit_behavior(pool, None), lambda: probe_from_agent(TabularAgent("t", p, e), pool, 0.5)):
        with pytest.raises(UserError) as err: call()
        assert "\n" not in str(err.value)


def test_fitted_behavior_recovers_a_policy_its_features_can_express(world):
    p, b, e, _ = world
    u = uniform_policy(p)
    pool = to_episodes(p, draw(p, u, 300, key_rng(3, "pool")), u)
    gap = np.concatenate(fit_behavior(pool, TabularDomain())) - np.concatenate([[t.logp for t in x.turns] for x in pool])
    assert np.abs(gap).mean() < 0.15


def test_behavior_fitted_before_is_used_as_it_is(world):
    p, b, e, pool = world
    probe, domain = exact_probe(p, e, pool), TabularDomain()
    before = tuple(fit_behavior(pool, domain))
    assert ImportanceSampling("WIS", "estimated", denominator=before).estimate(pool, probe).value == ImportanceSampling("WIS", "estimated", domain=domain).estimate(pool, probe).value


def test_a_probe_survives_being_written(world, tmp_path):
    p, b, e, pool = world
    probe = exact_probe(p, e, pool)
    probe = replace(probe, logp=(np.full(len(pool[0].turns), -np.inf), *probe.logp[1:]))
    first, again = (write_probe(tmp_path / n, probe).read_bytes() for n in "ab")
    back = read_probe(tmp_path / "a")
    assert first == again and back.actions == probe.actions and all((x == y).all() for x, y in zip(back.logp, probe.logp))
    assert all((x == y).all() for r, q in zip(back.weights, probe.weights) for x, y in zip(r, q))
    said = json.loads(gzip.decompress((tmp_path / "a").read_bytes()))
    for data in (b"no probe", first[:40], first[:30] + b"\xff" * 20, *(gzip.compress(json.dumps(d).encode()) for d in (None, [], said | dict(logp="x"), said | dict(epsilon="x"), said | dict(policy=3), said | dict(weights=[[["x"]]]), {k: v for k, v in said.items() if k != "actions"}))):
        (tmp_path / "c").write_bytes(data)
        with pytest.raises(UserError, match=f"{tmp_path}/c is not a probe") as err: read_probe(tmp_path / "c")
        assert "\n" not in str(err.value)


def test_thinning_is_unbiased_and_keyed(world):
    p, b, e, pool = world
    w, mean = np.array([.5, .3, .15, .05]), np.zeros(4)
    for i in range(4000):
        for k, x in spread_draws(w, 2, key_rng(i, "t")).items(): mean[k] += x / 4000
    assert np.abs(mean - w).max() < 0.02
    probe = exact_probe(p, e, pool)
    few = thin(probe, 1, 3)
    assert all(len(a) == 1 and x[0] == 1 for r, q in zip(few.actions, few.weights) for a, x in zip(r, q)) and few.actions == thin(probe, 1, 3).actions
    assert thin(probe, 9).actions == probe.actions


def test_resolved_coverage_forgives_word_order_and_line_numbers():
    from adwm.webshop import WebShopDomain
    domain = WebShopDomain()
    key = resolved(domain)
    assert key("WebShop [SEP] Search", "search[red cotton shirt]") == key("WebShop [SEP] Search", "search[shirt red cotton]") != key("WebShop [SEP] Search", "search[red shirt]")
    page = lambda a, b: f"Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] {a} [SEP] {b}"
    one, two = "B000000001 [SEP] red shirt [SEP] $10.0", "B000000002 [SEP] blue mug [SEP] $5.0"
    assert key(page(one, two), "click[b000000001]") == key(page(two, one), "click[b000000001]") != key(page(one, two), "click[b000000002]")


def plain_logs(logw, reward=None, task=None):
    logw = np.asarray(logw, float)[:, None]
    return Logs(logw, np.ones(logw.shape) if reward is None else np.asarray(reward, float)[:, None], np.ones(logw.shape, bool), task)


def test_a_mean_weight_far_from_one_is_said_whatever_the_form():
    rng = key_rng(0, "mean weight")
    small = plain_logs(-50 + 0.3 * rng.normal(size=200))
    missing = plain_logs(np.where(rng.random(400) < 0.13, 0.0, -np.inf))
    for form in WEIGHTINGS:
        for logs, word in ((small, "most"), (missing, "most"), (plain_logs(np.where(rng.random(400) < 0.75, 0.0, -np.inf)), "part")):
            e = ImportanceSampling(form).from_logs(logs)
            assert e.status == UNRELIABLE and "where 1 is expected" in e.reason and f"{word} of what the target does was never logged" in e.reason, (form, e)
        assert "do not belong together" in ImportanceSampling(form).from_logs(plain_logs(2 + 0.3 * rng.normal(size=200))).reason
        assert ImportanceSampling(form).from_logs(plain_logs(0.3 * rng.normal(size=200) - 0.045)).status == ESTIMATED
    assert ImportanceSampling("IS").from_logs(small).notes["log_mean_weight"] == pytest.approx(-50 + 0.045, abs=0.1)


def test_the_error_of_the_mean_weight_is_clustered_by_task():
    logw, task = np.repeat(np.log([0.5, 1.5, 0.8, 1.2]), 25), np.repeat(np.arange(4), 25)
    alone, together = weight_notes(plain_logs(logw)), weight_notes(plain_logs(logw, task=task))
    assert alone["mean_weight"] == pytest.approx(1.0) == together["mean_weight"]
    assert together["mean_weight_se"] == pytest.approx(stats.sem([0.5, 1.5, 0.8, 1.2])) and together["mean_weight_se"] > 4 * alone["mean_weight_se"]


def test_every_limit_of_the_rule_decides_at_its_place():
    rule, fine = WeightRule(), dict(ess=500.0, share=0.01, tail=5.0, mean_weight=1.0, mean_weight_se=0.05, log_mean_weight=0.0)
    at = lambda **change: bool(rule.reason(**fine | change))
    assert not at()
    assert at(ess=19.9) and not at(ess=20.1)
    assert at(share=0.21) and not at(share=0.19)
    assert at(tail=1.99) and not at(tail=2.01) and not at(tail=np.nan) and not at(tail=np.inf)
    assert at(mean_weight=1 - 0.051, mean_weight_se=0.0) and not at(mean_weight=1 - 0.049, mean_weight_se=0.0)
    z = rule.max_errors
    assert at(mean_weight=1 - (z + 0.1) * 0.1, mean_weight_se=0.1) and not at(mean_weight=1 - (z - 0.1) * 0.1, mean_weight_se=0.1)
    assert at(mean_weight=0.49, mean_weight_se=9.0) and not at(mean_weight=0.51, mean_weight_se=9.0), "a wide error excuses nothing beyond the largest gap"


def test_the_interval_has_tasks_as_clusters_and_their_number_as_freedom():
    x, task = np.repeat([0.0, 1.0, 2.0, 3.0, 5.0], 20), np.repeat(np.arange(5), 20)
    e = ImportanceSampling("IS").from_logs(plain_logs(np.zeros(100), x, task))
    half = stats.t.ppf(0.95, 4) * stats.sem([0.0, 1.0, 2.0, 3.0, 5.0])
    assert e.value == pytest.approx(2.2) and e.interval == pytest.approx((2.2 - half, 2.2 + half))


@pytest.mark.parametrize("k", [5, 40])
def test_hill_is_the_mean_excess_over_the_next_largest(k):
    x = np.sort(np.log(key_rng(0, "hill").pareto(1.5, 400) + 1))[::-1]
    assert hill(key_rng(1, "order").permutation(x), k) == pytest.approx(k / sum(x[i] - x[k] for i in range(k)), rel=1e-12)
    assert hill(x) == pytest.approx(hill(x, 40), rel=1e-12)


def test_coverage_of_a_mixture_is_the_mixture_of_coverages(world):
    p, b, e, pool = world
    seen, never = exact_probe(p, e, pool), reference_probe(TabularDomain(), pool)
    never = replace(never, actions=tuple(tuple(tuple("move 99" for _ in a) for a in row) for row in never.actions))
    full = action_coverage(pool, seen)
    assert full > 0.9 and action_coverage(pool, never) == 0
    for eps in (0.1, 0.8): assert action_coverage(pool, mix_probes(seen, never, eps)) == pytest.approx((1 - eps) * full)


def test_an_agent_is_told_what_was_really_done(world):
    p, b, e, pool = world

    class Echo:
        "Answers what it was last told, as an agent with a memory would."
        name, has_log_prob = "echo", False
        def session(self, tasks): self.told = {}; return self
        def act(self, rows, states, rngs): return [self.told.get(i, "first") for i in rows]
        def observe(self, rows, states, actions): self.told.update(zip(rows, actions))
    probe = agent_probe(Echo(), pool[:20], m=2)
    for episode, row in zip(pool, probe.actions):
        assert row == tuple((a, a) for a in ("first", *[t.action for t in episode.turns[:-1]]))


def test_a_fitted_behavior_starts_from_the_reference(world):
    p, b, e, _ = world

    class Skewed(TabularDomain):
        "A reference that prefers the first choice; features cannot tell choices apart, so only the offset can."
        def template(self, action, obs): return "move", ""
        def reference(self, task, obs, choices):
            probs = np.r_[4.0, np.ones(len(choices) - 1)]
            return Reference(list(super().reference(task, obs, choices).actions), list(probs))
    first = tuple(np.where(np.arange(x.shape[1]) == 0, 4.0, 1.0) * x for x in p.legal)
    policy = tuple(x / x.sum(-1, keepdims=True) for x in first)
    pool = to_episodes(p, draw(p, policy, 200, key_rng(4, "pool")), policy)
    gap = np.concatenate(fit_behavior(pool, Skewed())) - np.concatenate([[t.logp for t in x.turns] for x in pool])
    assert np.abs(gap).mean() < 0.05


def every_trajectory(process, loggers, copies):
    "A pool that holds every trajectory of every logger, its probability under that logger, and the loggers' log-probabilities."
    pool, prob = [], []
    for (name, epsilon), b in loggers.items():
        p, s = everything(process, b)
        keep = p > 0
        s = Sample(*(x[keep] for x in (s.node, s.action, s.outcome, s.reward, s.alive)))
        pool += copies[name] * to_episodes(process, s, b, name, epsilon=epsilon)
        prob += copies[name] * list(p[keep])
    with np.errstate(divide="ignore"): under = {who: list(exact_probe(process, b, pool).logp) for who, b in loggers.items()}
    return pool, np.array(prob), under


@pytest.mark.parametrize("seed", range(3))
def test_the_mixture_of_loggers_is_unbiased_where_no_logger_alone_is(seed):
    p = random_process(seed, dense=True, vary_length=True)
    e, one, two = (random_policy(p, 10 * seed + k, 2.0) for k in range(3))
    first = np.arange(p.n_actions) == 0
    drop = lambda policy, no: tuple(x / x.sum(-1, keepdims=True) for x in (np.where(no(i), 0.0, x) for i, x in enumerate(policy)))
    loggers = {("one", 0.0): drop(one, lambda t: first & (t == 0)), ("two", 0.3): drop(two, lambda t: ~first & (t == 0))}
    pool, prob, under = every_trajectory(p, loggers, dict(one=3, two=1))
    probe, below = exact_probe(p, e, pool), mixture_behavior(pool, under)
    for form in (is_terms, pdis_terms):
        x, shift = form(stack(pool, probe, below))
        per_logger, s = form(stack(pool, probe))
        assert abs(expected(pool, prob, np.exp(shift) * x) - value(p, e)) < 1e-12
        assert abs(expected(pool, prob, np.exp(s) * per_logger) - value(p, e)) > 0.05
    assert abs(expected(pool, prob, np.exp(stack(pool, probe, below).logw[:, -1])) - 1) < 1e-12
    known, mixed = ImportanceSampling("IS"), ImportanceSampling("IS", "mixture", denominator=tuple(below))
    assert mixed.name == "IS, mixture of loggers" and known.name == "IS"
    assert mixed.estimate(pool, probe).value != known.estimate(pool, probe).value
    half = [i for i, x in enumerate(pool) if x.policy == "two"]
    alone = mixture_behavior([pool[i] for i in half], {k: [v[i] for i in half] for k, v in under.items()})
    assert all(np.allclose(x, under["two", 0.3][i], atol=1e-12) for x, i in zip(alone, half)), "a part of a pool has its own shares"


def expected(pool, prob, x):
    "Expectation of the mean of x when every logger's episodes are drawn from its own law."
    owner, total = np.array([e.policy for e in pool]), 0.0
    for name in set(owner):
        mine = owner == name
        total += mine.mean() * (prob[mine] @ x[mine]) / prob[mine].sum()
    return total


def test_loggers_are_put_together_from_probes_and_checked_against_what_they_wrote(world):
    p, b, e, _ = world
    u = uniform_policy(p)
    laws = {("one", 0.0): b, ("one", 0.5): mix(b, 0.5, u), ("two", 0.25): mix(e, 0.25, u), ("reference", 1.0): u}
    pool = [x for (name, eps), law in laws.items() for x in to_episodes(p, draw(p, law, 30, key_rng(0, name, eps)), law, name, epsilon=eps)]
    probes = dict(one=exact_probe(p, b, pool), two=exact_probe(p, e, pool), reference=reference_probe(TabularDomain(), pool))
    found = logger_log_probs(pool, probes)
    assert set(found) == set(laws)
    for who, law in laws.items(): assert all(np.allclose(x, y, atol=1e-12) for x, y in zip(found[who], exact_probe(p, law, pool).logp))
    blank = replace(probes["two"], logp=None)
    for given, word in ((dict(probes, two=probes["one"]), "another agent"), (dict(probes, two=blank), "no log-probability"), ({"one": probes["one"], "reference": probes["reference"]}, "no probe of two")):
        with pytest.raises(UserError, match=word): logger_log_probs(pool, given)
    for given, word in (({k: v for k, v in found.items() if k[0] != "two"}, "not given"), (dict(found, extra=[]) | {("two", 0.25): found["two", 0.25][:3]}, "one array per episode"),
                        ({k: [np.full(len(x), -np.inf) for x in v] for k, v in found.items()}, "none of the loggers")):
        with pytest.raises(UserError, match=word): mixture_behavior(pool, given)
    with pytest.raises(UserError, match="must be given"): ImportanceSampling("IS", "mixture")
    assert sum(map(len, mixture_behavior(pool, found))) == sum(len(x.turns) for x in pool)


def test_an_episode_without_a_turn_is_named(world):
    p, b, e, pool = world
    probe = exact_probe(p, e, pool)
    none = [*pool[:3], replace(pool[3], turns=()), *pool[4:]]
    cut = replace(probe, **{k: tuple(r[:0] if i == 3 else r for i, r in enumerate(getattr(probe, k))) for k in ("logp", "actions", "weights")})
    for call in (lambda: stack(none, cut), lambda: ImportanceSampling("IS").estimate(none, cut), lambda: mixture_behavior(none, {("behavior", 0.0): list(cut.logp)})):
        with pytest.raises(UserError, match="episode 3 holds no turn"): call()


def test_dropping_ended_episodes_is_never_called_an_estimate_of_the_value():
    logs = random_logs(400, spread=0.1)
    assert ImportanceSampling("step-WIS").from_logs(logs).status == ESTIMATED
    e = ImportanceSampling("step-WIS", after_end="zero").from_logs(logs)
    assert e.status == UNRELIABLE and "not the value of the process" in e.reason
    full = replace(logs, alive=np.ones_like(logs.alive))
    assert ImportanceSampling("step-WIS", after_end="zero").from_logs(full).status == ESTIMATED


def test_a_value_too_small_for_a_double_is_not_zero():
    "A value of e^-900 or e^-710 is not 0 and has no double: it is refused, not rounded."
    alive, task = np.ones((40, 1), bool), np.arange(40)
    for nats in (-710.0, -900.0):
        logs = Logs(np.full((40, 1), nats), 1 + key_rng(0, "small").random((40, 1)), alive, task)
        for form in ("IS", "PDIS"):
            found = ImportanceSampling(form).from_logs(logs)
            assert found.status == IMPOSSIBLE and "too small for a double" in found.reason, (form, nats)


def test_scores_of_sampled_actions_are_their_log_probabilities(world):
    "What an agent would do is drawn and scored as the same agent acts."
    p, _, e, pool = world
    probe, exact = agent_probe(TabularAgent("target", p, e), pool[:40], 3, 0, score=True), exact_probe(p, e, pool[:40])
    for acts, scores, known, logs in zip(probe.actions, probe.action_logp, exact.actions, exact.action_logp):
        for a, s, k, lp in zip(acts, scores, known, logs):
            assert np.allclose(s, [lp[k.index(x)] for x in a], atol=1e-12)


def test_a_fitted_behavior_looks_at_the_words_an_action_shares_with_the_task():
    from adwm.envs import Domain
    from adwm.episodes import Episode, Task, Turn
    from adwm.weights import action_features
    task = Task("t", "find the red lamp", "page", ())
    turns = (Turn("page", "click red lamp", 0.0, ("click red lamp",)), Turn("page", "click blue lamp", 0.0, ("click blue lamp",)))
    e = Episode(env="x", policy="p", epsilon=0.0, seed=0, index=0, task=task, turns=turns, last_obs="page", terminated=True, truncated=False)
    rows = action_features(Domain(), e, 1, ["click red lamp", "click blue lamp", "click green door"], {"click": 0})
    assert np.allclose(rows[:, 1], [1, .5, 0]), "share of the argument's words that stand in the task"
    assert np.allclose(rows[:, 2], [1, .5, 0]), "and in what was done before"
    assert list(rows[:, 3]) == [1, 0, 0] and np.allclose(rows[:, 5], [1 / 8, .5 / 8, 0])
