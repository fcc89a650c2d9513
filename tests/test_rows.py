"""Rows: truth, policy lines, what knows nothing, and the summary table."""
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from adwm import rows as m
from adwm.core import UserError, key_rng


def cell(seed=0):
    "A made-up cell: six agents, three epsilons and the shared policy, 40 tasks, three episodes each."
    rng, lines = key_rng(seed, "cell"), []
    for a in range(6):
        for e in (0., .25, 1.):
            if e == 1 and a:
                continue
            p = (.1 + .12 * a) * (1 - e) + .05 * e
            lines += [("shared" if e == 1 else f"agent{a}", e, f"t{t}", r, float(rng.random() < p)) for t in range(40) for r in range(3)]
    return pd.DataFrame(lines, columns=["policy", "epsilon", "task_id", "replicate", "reward"])


def rows_of(truth, shift=0., seeds=(0, 1), **fixed):
    "Rows whose estimate is truth + shift, alternating a little between seeds."
    base = truth.assign(cell="made", setting="ours", estimator="ADWM", metric="reward", n_rollouts=40, status="estimated").assign(**fixed)
    parts = [base.assign(seed=s, value=base["truth"] + shift + (-1) ** s * .01) for s in seeds]
    rows = pd.concat([p.assign(lower=p["value"] - .1, upper=p["value"] + .1) for p in parts])
    return rows[m.ROW]


def test_truth_table_and_episode_array():
    episodes = cell()
    table = m.truth_table(episodes, rollouts=3)
    assert len(table) == 13 and (table["n_truth"] == 120).all() and (table["tasks"] == 40).all()
    assert np.allclose(table["se_rollout"], table["se_within"])
    array = m.episode_array(episodes, list(zip(table["policy"], table["epsilon"])), repeat="replicate")
    assert array.shape == (40, 3, 13) and np.allclose(array.mean((0, 1)), table["truth"])
    with pytest.raises(UserError):
        m.episode_array(episodes.iloc[1:], list(zip(table["policy"], table["epsilon"])), repeat="replicate")
    with pytest.raises(UserError):
        m.episode_array(episodes, [("nobody", 0.)], repeat="replicate")
    with pytest.raises(UserError):
        m.truth_table(episodes.drop(columns="task_id"))


def test_summary_averages_seeds_and_counts_epsilon_one_once():
    truth = m.truth_table(cell())
    own = truth[truth["epsilon"] < 1]
    everyone = pd.concat([own, *(truth[truth["epsilon"] == 1].assign(policy=f"agent{a}") for a in range(6))])
    rows = rows_of(everyone, shift=.02)
    assert len(m.policy_lines(rows)) == 13
    line = m.summary_table(rows).loc[("ours", "ADWM")]
    assert line["policies"] == 13 and np.isclose(line["MAE"], .02) and np.isclose(line["bias"], .02), "seeds averaged first"
    assert line["rho eps=0"] == 1 and np.isclose(line["p eps=0"], 1 / 720) and line["coverage"] == 1 and line["best inside"] == 1
    assert line["MAE lower"] <= line["MAE"] <= line["MAE upper"] and line["rho eps=0 lower"] < 1


def test_floors_enter_the_table_and_skill_refers_to_them():
    rows = rows_of(m.truth_table(cell()), shift=.02)
    table = m.summary_table(pd.concat([rows, m.know_nothing_rows(rows, .3)]))
    assert list(table.index) == [("ours", "ADWM"), *(("floor", n) for n in ("pool mean", "pool mean x (1 - eps)", "-eps", "eps only"))]
    assert table.loc[("floor", "pool mean"), "skill"] == 0
    assert np.isclose(table.loc[("ours", "ADWM"), "skill"], 1 - .02 / table.loc[("floor", "pool mean"), "MAE"])
    assert np.isnan(table.loc[("floor", "-eps"), "MAE"]) and np.isnan(table.loc[("floor", "pool mean"), "rho eps=0"])
    assert np.isclose(table.loc[("floor", "eps only"), "bias"], 0)


def test_refused_rows_are_counted_not_hidden():
    rows = rows_of(m.truth_table(cell()))
    rows.loc[rows["policy"] == "agent5", ["value", "lower", "upper"]] = np.nan
    rows.loc[rows["policy"] == "agent5", "status"] = "refused: pool without high rewards"
    line = m.summary_table(rows, pool_mean=.3).loc[("ours", "ADWM")]
    assert line["policies"] == 13 and line["refused"] == 2 and line["MAE"] < .02
    rows[["value"]] = np.nan
    assert m.summary_table(rows, pool_mean=.3).loc[("ours", "ADWM"), "refused"] == 13


def test_rank_over_agents_that_are_apart():
    assert list(m.apart_chain([.50, .10, .14, .15, .52, .20])) == [1, 3, 5, 0], "from the lowest upward, each .05 above the last taken"
    rng = np.random.default_rng(0)
    for _ in range(20):  # no chain with this spacing is longer
        t = np.sort(rng.random(8) * .4)
        longest = max(k for k in range(1, 9) for c in combinations(t, k) if k == 1 or np.diff(c).min() >= .05)
        assert len(m.apart_chain(t)) == longest
    truth, rows = m.truth_table(cell()), rows_of(m.truth_table(cell()), shift=.02)
    zero = truth[truth["epsilon"] == 0].sort_values("truth")
    n = len(m.apart_chain(zero["truth"], .1))
    line = m.summary_table(rows, apart=.1).loc[("ours", "ADWM")]
    assert line["n_apart eps=0"] == n and line["rho_apart eps=0"] == (1 if n > 2 else pytest.approx(np.nan, nan_ok=True))
    assert np.isnan(m.summary_table(rows, apart=5).loc[("ours", "ADWM"), "rho_apart eps=0"]) and m.summary_table(rows, apart=5).loc[("ours", "ADWM"), "n_apart eps=0"] == 1
    swapped = rows.copy()   # two neighbours closer than the gap: their order does not count
    close = swapped["policy"].isin(zero["policy"].iloc[:2]) & (swapped["epsilon"] == 0)
    swapped.loc[close, "value"] = swapped.loc[close, "value"].to_numpy()[::-1]
    gap = float(zero["truth"].iloc[1] - zero["truth"].iloc[0]) + 1e-6
    after = m.summary_table(swapped, apart=gap).loc[("ours", "ADWM")]
    assert after["rho eps=0"] < 1 and after["n_apart eps=0"] < len(zero)


def test_another_truth_beside_the_same_rows():
    truth = m.truth_table(cell())
    fresh = truth.assign(truth=truth["truth"] + .1)
    line = m.summary_table(rows_of(truth), fresh, pool_mean=.3).loc[("ours", "ADWM")]
    assert np.isclose(line["bias"], -.1)


def test_rows_of_another_shape_are_refused():
    rows = rows_of(m.truth_table(cell()))
    with pytest.raises(UserError, match="lack"):
        m.summary_table(rows.drop(columns="status"))
    with pytest.raises(UserError, match="success"):
        m.summary_table(rows, metric="success")


def test_tables_draw_truth_and_estimate_as_wide_as_their_errors():
    "Behind MAE and rho of the summary: a 90 % interval of half width 1.645 s becomes noise of standard deviation s, the truth's error is taken as it is."
    rows = rows_of(m.truth_table(cell()))
    lines = m.policy_lines(rows).assign(truth_se=.03, lower=lambda d: d["value"] - 1.6449 * .05, upper=lambda d: d["value"] + 1.6449 * .05)
    V, E = m._noisy(lines, .9, 4000, 0)
    assert np.allclose(V.std(0), .03, rtol=.06) and np.allclose(E.std(0), .05, rtol=.06) and abs(np.corrcoef(V[:, 0], E[:, 0])[0, 1]) < .06
    assert np.allclose(V.mean(0), lines["truth"], atol=.003) and np.allclose(E.mean(0), lines["value"], atol=.004)
    sharp = lines.assign(lower=np.nan, upper=np.nan)
    assert (m._noisy(sharp, .9, 10, 0)[1] == sharp["value"].to_numpy()).all(), "an estimate without an interval is taken as it is"
    wide = m.summary_line(lines)["MAE upper"] - m.summary_line(lines)["MAE lower"]
    exact = m.summary_line(lines.assign(truth_se=0., lower=np.nan, upper=np.nan))
    assert wide > .012 and exact["MAE lower"] == exact["MAE"] == exact["MAE upper"]


def test_the_estimators_that_know_nothing_say_what_their_names_say():
    rows = rows_of(m.truth_table(cell()), shift=.02)
    made = m.policy_lines(m.know_nothing_rows(rows, .3)).set_index(["estimator", "policy", "epsilon"])
    truth = m.policy_lines(rows).groupby("epsilon")["truth"].mean()
    for (name, _, epsilon), line in made.iterrows():
        said = {"pool mean": .3, "pool mean x (1 - eps)": .3 * (1 - epsilon), "-eps": -epsilon, "eps only": truth[epsilon]}[name]
        assert np.isclose(line["value"], said) and line["status"] == ("rank only" if name == "-eps" else "floor")


def test_what_was_known_of_the_best_agent_and_the_choice():
    "Regret, bias and coverage of the best agent, from a table in which the estimator prefers the second best and misses the best by far."
    V = np.array([.2, .4, .6, .5])
    lines = m.policy_lines(pd.DataFrame(dict(cell="c", setting="s", estimator="e", policy=list("abcd"), epsilon=0., seed="all", metric="reward", value=[.2, .4, .45, .55], lower=[.1, .3, .4, .5],
                           upper=[.3, .5, .5, .6], truth=V, truth_se=.01, n_rollouts=9, n_truth=9, status="estimated")))
    line = m.summary_line(lines, pool_mean=.3)
    assert np.isclose(line["regret eps=0"], .1) and np.isclose(line["bias of best"], -.15) and line["best inside"] == 0 and line["coverage"] == .75
    assert np.isclose(line["MAE eps=0"], .05) and np.isclose(line["RMSE"], np.sqrt((.15 ** 2 + .05 ** 2) / 4)) and np.isclose(line["rho eps=0"], .8)
    assert np.isclose(line["skill"], 1 - .05 / .175), "the pool's mean is off by .1, .1, .3 and .2"
