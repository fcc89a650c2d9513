"""Statistics against scipy, against closed forms and against the figures printed in the paper."""
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from adwm import metrics as m
from adwm.core import UserError, key_rng

TIED = [([.1, .1, .3, .4, .2], [.2, .5, .5, .9, .1]), ([1, 2, 2, 3, 3, 3], [2, 1, 2, 2, 5, 4]), ([.073, .085, .073, .044, .032], [.484, .481, .466, .459, .458])]


@pytest.mark.parametrize("x, y", TIED)
def test_correlations_agree_with_scipy(x, y):
    assert np.allclose(m.ranks(x), stats.rankdata(x))
    assert np.isclose(m.spearman(x, y), stats.spearmanr(x, y).statistic)
    assert np.isclose(m.kendall(x, y), stats.kendalltau(x, y).statistic)


@pytest.mark.parametrize("statistic", ["spearman", "kendall"])
@pytest.mark.parametrize("x, y", TIED)
def test_exact_p_counts_every_order(x, y, statistic):
    function = {"spearman": lambda a: stats.spearmanr(x, a).statistic, "kendall": lambda a: stats.kendalltau(x, a).statistic}[statistic]
    orders = m.permutations(len(x))
    if len(orders) > 130:
        orders = orders[key_rng(0, "orders").integers(0, len(orders), 400)]
    values = np.array([function(np.array(y)[list(o)]) for o in orders])
    expected, tolerance = (values >= function(y) - 1e-9).mean(), 0 if len(orders) == 120 else .08
    assert abs(m.exact_p(x, y, statistic) - expected) <= tolerance


def test_exact_p_agrees_with_scipy_without_ties():
    rng = key_rng(0, "p")
    for n in (4, 6, 8):
        x, y = rng.normal(size=(2, n))
        assert np.isclose(m.exact_p(x, y, "kendall"), stats.kendalltau(x, y, alternative="greater", method="exact").pvalue)


def test_permutations_are_all_and_distinct():
    table = m.permutations(6)
    assert table.shape == (720, 6) and len(np.unique(table, axis=0)) == 720
    assert m.permutations(1).tolist() == [[0]]


def test_ten_policies_exact_eleven_drawn():
    x = np.arange(10.)
    assert np.isclose(m.exact_p(x, x), 1 / 3628800)
    y = np.arange(11.)
    assert m.exact_p(y, y) == 1 / 100_001, "a drawn p is never zero"
    noise = key_rng(1, "p11").normal(size=11)
    assert abs(m.exact_p(y, noise) - stats.spearmanr(y, noise, alternative="greater").pvalue) < .02


def test_chance_figures():
    assert [round(m.chance(5, r), 3) for r in (.7, .8, .9)] == [.117, .067, .042]
    assert round(m.chance(4, .8), 2) == .17 and round(m.chance(6, .8), 2) == .03


def test_constant_estimates_have_no_rank():
    flat = np.full(6, .1) * 3 / 3
    assert np.isnan(m.spearman(np.arange(6), flat)) and np.isnan(m.exact_p(np.arange(6), flat)) and np.isnan(m.kendall(np.arange(6), flat))
    assert m.regret(np.arange(6), flat) == 2.5


def test_errors_and_bad_input():
    V = np.array([.2, .4, .6])
    assert np.isclose(m.rmse(V, V + [.3, 0, 0]), np.sqrt(.03)) and np.isclose(m.bias(V, V - .1), -.1)
    assert np.isnan(m.skill([.4, .4], [.4, .5], .4)), "a pool mean without error leaves skill undefined"
    for bad in ([.1, .2], [.1, np.nan, .3]):
        with pytest.raises(UserError):
            m.mae(V, bad)
    with pytest.raises(UserError):
        m.exact_p(V, V, "pearson")
    with pytest.raises(UserError):
        m.mean_se([])


def test_mean_se_without_clusters_is_the_textbook_formula():
    x = key_rng(0, "se").normal(size=50)
    assert np.allclose(m.mean_se(x), (x.mean(), x.std(ddof=1) / np.sqrt(50)))
    assert np.isnan(m.mean_se([1., 2.], ["a", "a"])[1])
    assert np.isclose(m.mean_se(np.repeat(x, 3), np.repeat(np.arange(50), 3))[1], m.mean_se(x)[1]), "copies add no information"


def test_within_se_is_zero_for_deterministic_tasks():
    assert m.within_se(np.repeat([.1, .5, .9], 4), np.repeat([0, 1, 2], 4)) == 0
    assert np.isnan(m.within_se([.1, .2], [0, 1])), "one episode a task says nothing about the noise inside it"


def test_wilson_agrees_with_scipy():
    for k, n in ((0, 72), (5, 64), (128, 128)):
        expected = stats.binomtest(k, n).proportion_ci(.9, "wilson")
        assert np.allclose(m.wilson(k, n), (expected.low, expected.high))


def test_bootstrap_speed_and_spread():
    x = key_rng(0, "speed").normal(size=1000)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        draws = m.bootstrap_means(x)
        best = min(best, time.perf_counter() - start)
    assert draws.shape == (10_000,) and best < 2, f"{best:.2f} s"
    assert abs(draws.std() / (x.std() / np.sqrt(1000)) - 1) < .03
    assert np.array_equal(draws, m.bootstrap_means(x)), "the same seed gives the same draws"


def test_self_normalised_bootstrap():
    x, w = key_rng(0, "ratio").random((2, 200))
    draws = m.bootstrap_means(x, 4000, weight=w)
    assert abs(draws.mean() - (w * x).sum() / w.sum()) < .005


def test_resample_of_constants_tasks_and_seeds():
    w, u = m.bootstrap_weights(30, 7, key_rng(0, "w")), m.bootstrap_weights(3, 7, key_rng(0, "u"))
    table = key_rng(0, "t").normal(size=(30, 3, 5))
    assert np.allclose(m.resample(table, w, u), np.einsum("bt,bs,tsp->bp", w, u, table))
    assert np.allclose(m.resample(table, w), m.resample(table.mean(1), w))
    assert np.allclose(m.resample([.3, .4], w), [[.3, .4]] * 7)


def test_paired_interval_sees_what_two_intervals_hide():
    rng = key_rng(0, "paired")
    V, ease = np.linspace(.2, .6, 6), rng.normal(0, .3, (200, 1))
    truth = V + ease + rng.normal(0, .1, (200, 6))
    near, far = (V + d + ease[:, None] + rng.normal(0, .1, (200, 2, 6)) for d in (.03, .05))
    a, b, d = m.metric_interval(truth, near), m.metric_interval(truth, far), m.paired_interval(truth, near, far)
    assert d.upper < 0 and a.lower <= a.value <= a.upper and np.isclose(d.value, a.value - b.value)
    swapped = m.paired_interval(truth, far, near)
    assert np.isclose(swapped.lower, -d.upper) and np.isclose(swapped.upper, -d.lower)
    assert m.paired_interval(truth, near, near).upper == 0
    with pytest.raises(UserError):
        m.metric_interval(truth, near[:100])
    assert m.metric_interval(truth, near[:100], same_tasks=False).upper > 0


def test_noise_floor_has_its_closed_form_and_vanishes():
    V = np.linspace(.2, .7, 6)
    floor = m.noise_floor(V, np.full(6, .02), np.full(6, .03))
    assert np.isclose(floor["mae"].value, np.sqrt(2 / np.pi * (.02**2 + .03**2)), rtol=.02)
    exact = m.noise_floor(V, np.zeros(6), np.zeros(6))
    assert exact["mae"].value == 0 and exact["rho"].value == 1


PAPER = {
    "HotpotQA-DPO": ([.165, .151, .082, .095, .065], [.508, .496, .454, .418, .364], .125, .900, .336, .900, .040),
    "ScienceWorld-ETO": ([.141, .078, .047, .047, .016], [.589, .567, .522, .474, .478], .117, .821, .460, .975, .061),
    "ALFWorld-iter1": ([.153, .097, .056, .000, .000], [.554, .547, .537, .538, .541], .035, .667, .482, .975, .054),
    "ALFWorld-iter3": ([.250, .139, .056, .028, .000], [.792, .789, .789, .767, .778], .058, .872, .688, 1.000, .073),
    "WebShop-iter1": ([.073, .085, .073, .044, .032], [.484, .481, .466, .459, .458], .050, .821, .408, .821, .021),
}


@pytest.mark.parametrize("name", PAPER)
def test_printed_figures(name):
    V, E, pool, rho, error, rho_eps, error_pool = PAPER[name]
    assert np.isclose(m.spearman(V, E), rho, atol=6e-4) and np.isclose(m.mae(V, E), error, atol=6e-4)
    assert np.isclose(m.spearman(V, -np.arange(5)), rho_eps, atol=6e-4) and np.isclose(m.mae(V, pool), error_pool, atol=6e-4)


def test_perfect_simulator_at_each_epsilon():
    V, epsilon = np.r_[np.linspace(.2, .7, 6), np.linspace(.20, .23, 6), .1, .2], np.r_[np.zeros(6), np.full(6, .25), .5, .5]
    floor = m.noise_floor(V, np.full(14, .015), np.full(14, .02), epsilon=epsilon)
    assert list(floor) == ["mae", "rho", "rho eps=0", "rho eps=0.25"], "two agents cannot be ranked"
    assert floor["rho eps=0"].tenth > .9 and floor["rho eps=0.25"].tenth < .5, "agents .006 apart cannot be ordered, by a perfect simulator neither"
    for f in floor.values(): assert f.lower <= f.tenth <= f.upper
    alone = m.noise_floor(V, np.full(14, .015), np.full(14, .02))
    assert alone["mae"] == floor["mae"] and alone["rho"] == floor["rho"], "asking more changes nothing that was asked before"


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=9), st.lists(st.integers(-1000, 1000), min_size=9, max_size=9), st.integers(-300, 296))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_ranks_do_not_know_the_unit(x, y, power):
    "Values in any unit, from 1e-300 to 1e300, have the same order, the same ties and the same regret in that unit."
    x, y, unit = np.array(x) / 7, np.array(y[:len(x)]) / 7, 10.0 ** power
    assert np.array_equal(m.ranks(x * unit), m.ranks(x)) and np.array_equal(m.ranks(x), stats.rankdata(x))
    assert np.array_equal(m.spearman(y, x * unit), m.spearman(y, x), equal_nan=True) and np.array_equal(m.kendall(y, x * unit), m.kendall(y, x), equal_nan=True)
    assert np.isclose(m.regret(y, x * unit), m.regret(y, x))
    for statistic in ("spearman", "kendall"):
        if len(x) < 6: assert np.array_equal(m.exact_p(y, x * unit, statistic), m.exact_p(y, x, statistic), equal_nan=True)


def test_ties_are_those_of_rounding():
    "Equal sums in another order tie; what differs in the tenth digit does not; an infinite estimate ranks last and decides nothing else."
    assert m.ranks([.1 + .2, .3, .7 - .4]).tolist() == [2, 2, 2] and m.ranks([1e-13, 3e-13, 2e-13]).tolist() == [1, 3, 2]
    assert m.ranks([1, 1 + 1e-10, 2]).tolist() == [1, 2, 3] and m.ranks([0., 0., 0.]).tolist() == [2, 2, 2]
    assert m.ranks([.2, np.inf, .1, -np.inf]).tolist() == [3, 4, 2, 1]
    assert m.ranks([[1e-9, 2e-9], [2e9, 1e9]]).tolist() == [[1, 2], [2, 1]], "every row has its own unit"


def test_within_se_is_the_error_of_the_mean_over_these_tasks():
    "Unequal numbers of episodes: the pooled variance has (episodes - tasks) degrees of freedom, so that its mean is the true variance."
    rng, task, level = key_rng(0, "within"), np.repeat(np.arange(8), [2, 2, 3, 3, 2, 4, 2, 1]), np.linspace(0, 3, 8)
    se = np.array([m.within_se(level[task] + rng.normal(size=len(task)), task) for _ in range(3000)])
    count = np.bincount(task)
    assert np.isclose((se ** 2).mean(), np.mean(1 / count) / 8, rtol=.02), "noise of variance 1, whatever the tasks' levels"
    assert np.isclose(m.within_se([0., 2., 1., 1., 1.], [0, 0, 1, 1, 1]), np.sqrt(2 / 3 * np.mean([1 / 2, 1 / 3]) / 2))
    assert np.isclose(m.within_se([0., 2., 0., 2.], [0, 0, 1, 1], 5), np.sqrt(2 / 5 / 2)), "the same noise in five episodes a task"


def test_seeds_that_disagree_widen_every_interval():
    "The noise of a seed is noise of the estimate: of the value, of a metric, and of a difference of metrics."
    rng = key_rng(0, "seeds")
    truth, level = np.full(4, .5), rng.normal(0, .2, (1, 5, 4))
    table = .5 + level + rng.normal(0, .01, (80, 5, 4))
    alone = table.mean(1)
    spread = lambda t: np.std(m.metric_draws(truth, {"it": t})[1]["it"], axis=0)
    expected = np.sqrt(level.var(1)[0] / 5)
    assert np.allclose(spread(table), expected, rtol=.05) and (spread(alone) < .01).all()
    wide, narrow = m.value_interval(table), m.value_interval(alone[:, None])
    assert ((wide.upper - wide.lower) > 10 * (narrow.upper - narrow.lower)).all()
    width = lambda t: np.subtract(*[getattr(m.paired_interval(truth, t, np.full(4, .4)), side) for side in ("upper", "lower")])
    assert width(table) > 5 * width(alone)
    assert np.allclose(*[m.metric_draws(truth, {"a": table, "b": table + 1})[1][k] + c for k, c in (("a", 1), ("b", 0))]), "equal seeds share their coins"


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:All-NaN slice")   # one policy has no rank
def test_the_worst_tenth_of_a_perfect_simulator_is_a_tenth():
    floor = m.noise_floor([.5], [.03], [.04])["mae"]
    half = stats.halfnorm(scale=.05)
    assert np.allclose([floor.lower, floor.tenth, floor.value, floor.upper], [half.ppf(.05), half.ppf(.1), half.mean(), half.ppf(.95)], rtol=.06)


def test_bad_input_is_refused_or_counted():
    with pytest.raises(UserError, match="one estimate per policy"): m.mae([.1, .2], [.1, .2, .3])
    with pytest.raises(UserError, match="empty"): m.mae([], [])
    assert np.isnan(m.coverage([.1], [np.nan], [.2])) and m.coverage([.1, .2], [.1, .2], [.1, .2]) == 1, "a bound on the truth holds it"
    V = np.full((50, 2), .5) + key_rng(0, "bad").normal(size=(50, 2))
    near = m.metric_interval(V, V + .001)
    assert near.lower >= 0 and m.metric_interval(V, V - .2, m.bias).upper < 0, "an error is never negative, a bias may be"
