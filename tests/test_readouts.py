"Readouts and their gate: learners, held-out tests, sabotage, heads read two ways, calibration from logs."
from dataclasses import replace

import numpy as np
import pytest

from adwm.core import UserError, key_rng
from adwm.envs import Domain
from adwm.episodes import TERMINAL, Episode, Task, Turn
from adwm.readouts import (Boosted, Endings, GateRule, HeadReadout, Kernel, Ridge, Shift, TextReadout, auc, behavior_shift, bounded, ends, gate, gate_reasons, held_out, log_odds_shift,
                           r_squared, shifted, task_bootstrap)


class Bids(Domain):
    "The reward depends on the task's word, the last page's word and whether it was wrapped on the way."
    def features(self, task, turns, last_action, last_obs):
        same = float(task.split()[-1] == last_obs.split()[-1])
        wrapped = float(any(t.action == "wrap" for t in turns))
        return np.array([same, wrapped, same * wrapped, len(turns)])


def logs(tasks=30, each=4, seed=0, noise=0.0):
    "Episodes with reward .2 + .5 same + .3 wrapped; some are cut off."
    rng, out, words = key_rng(seed, "logs"), [], "ash birch cedar".split()
    for i in range(tasks):
        want = words[int(rng.integers(3))]
        for j in range(each):
            got, wrap = words[int(rng.integers(3))], rng.random() < .5
            reward = .2 + .5 * (got == want) + .3 * wrap + noise * float(rng.normal())
            done = rng.random() < .9
            turns = (Turn("start", "wrap" if wrap else "wait", 0.0), Turn(f"shelf {got}", "buy", reward if done else 0.0))
            out.append(Episode("bids", Task(f"t{i}", f"bring {want}", "start"), f"p{j % 2}", 0.0, 0, j, turns, TERMINAL if done else "shelf", done, not done))
    return out


def test_ends_are_the_final_turns_of_ended_episodes():
    pool = logs()
    rows = ends(pool)
    assert len(rows.rewards) == sum(e.terminated for e in pool) and rows.pages[0].startswith("shelf") and set(rows.actions) == {"buy"}
    assert all(len(t) == 1 for t in rows.turns) and TERMINAL not in rows.pages
    with pytest.raises(UserError, match="no episode of this pool terminated"): ends([e for e in pool if not e.terminated])


@pytest.mark.parametrize("learner", [Ridge(), Boosted(), Kernel()])
def test_learners_learn_and_survive_constant_columns(learner):
    rng = key_rng(1, "x")
    x = np.column_stack([rng.normal(size=(200, 3)), np.ones(200)])
    y = .5 * (x[:, 0] > 0) + .2 * x[:, 1]
    assert r_squared(y[150:], learner.fit(x[:150], y[:150]).predict(x[150:])) > .6
    assert np.allclose(learner.fit(np.ones((20, 2)), np.full(20, .3)).predict(np.ones((3, 2))), .3)


def test_ridge_is_least_squares_without_a_penalty():
    rng = key_rng(2, "x")
    x, slope = rng.normal(size=(50, 3)), np.array([1., -2, .5])
    assert np.allclose(Ridge(1e-9).fit(x, x @ slope + 4).predict(x), x @ slope + 4, atol=1e-6)


def test_boosted_is_reproducible_and_seeded():
    rng = key_rng(3, "x")
    x, y = rng.normal(size=(80, 3)), rng.normal(size=80)
    a, b, c = (Boosted(seed=s).fit(x, y).predict(x) for s in (0, 0, 1))
    assert (a == b).all() and not (a == c).all()


def test_text_readout_recovers_the_reward_and_stays_in_range():
    readout = TextReadout(Bids()).fit(logs())
    test = ends(logs(seed=9))
    guess = readout.predict(*test.inputs())
    assert r_squared(test.rewards, guess) > .95 and guess.min() >= .2 - 1e-9 and guess.max() <= 1 + 1e-9
    assert readout.predict([], [], [], []).shape == (0,)


def test_predictions_do_not_depend_on_the_batch():
    readout, test = TextReadout(Bids()).fit(logs(noise=.1)), ends(logs(seed=9))
    whole = readout.predict(*test.inputs())
    assert np.allclose(whole, [readout.predict(*([c[i]] for c in test.inputs()))[0] for i in range(len(whole))], atol=1e-12)


def test_generic_features_work_on_any_logs():
    assert gate(lambda train: TextReadout(Domain()).fit(train), logs(60)).r2[0] > .3


def test_held_out_never_sees_the_task():
    seen = []

    class Spy:
        def __init__(self, train): self.tasks = {e.task.id for e in train}
        def predict(self, tasks, turns, actions, pages): seen.append({t.id for t in tasks} & self.tasks); return np.zeros(len(tasks))
    rows, guess = held_out(Spy, logs())
    assert len(rows) == len(guess) == sum(e.terminated for e in logs()) and not any(seen)


def test_gate_passes_the_good_and_names_what_is_wrong():
    report = gate(lambda train: TextReadout(Bids()).fit(train), logs())
    assert report.passed and report.verdict.startswith("pass") and report.r2[1] <= report.r2[0] <= report.r2[2] and report.auc[0] > .95
    assert sum(r["n"] for r in report.ranges) == report.n and {p["policy"] for p in report.policies} == {"p0", "p1"}
    assert not gate(lambda train: TextReadout(Bids()).fit(train), logs(), rule=GateRule(tasks=99)).passed


class Constant:
    def __init__(self, train): self.value = ends(train).rewards.mean()
    def predict(self, tasks, turns, actions, pages): return np.full(len(tasks), self.value)


class Shrunk(TextReadout):
    def predict(self, *inputs): return .5 + .1 * (super().predict(*inputs) - .5)


def test_gate_refuses_a_constant_a_shrunk_and_an_inverted_readout():
    assert "R^2" in gate(Constant, logs()).verdict and "AUC" in gate(Constant, logs()).verdict
    shrunk = gate(lambda train: Shrunk(Bids()).fit(train), logs())
    assert shrunk.auc[0] > .95 and not shrunk.passed and "R^2" in shrunk.verdict, "AUC is blind to shrinkage, the gate is not"
    assert shrunk.ranges[0]["bias"] > .15 and shrunk.ranges[-1]["bias"] < -.15

    class Inverted(TextReadout):
        def predict(self, *inputs): return 1.2 - super().predict(*inputs)
    assert gate(lambda train: Inverted(Bids()).fit(train), logs()).auc[0] < .1


def test_gate_refuses_a_readout_that_is_wrong_about_one_policy():
    class Partial(TextReadout):
        def predict(self, tasks, turns, actions, pages): return super().predict(tasks, turns, actions, pages) - .3 * np.array([t[0].action == "wrap" for t in turns])
    pool = [e for e in logs(60) if (e.policy == "p0") == (e.turns[0].action == "wrap")]
    assert "it misjudges p0" in gate(lambda train: Partial(Bids()).fit(train), pool).verdict


def test_auc_and_r_squared():
    assert auc(np.array([1, 1, 0], bool), np.array([2., 1, 1])) == .75 and np.isnan(auc(np.ones(3, bool), np.zeros(3)))
    assert np.isnan(r_squared(np.ones(3), np.zeros(3))) and r_squared(np.array([0., 1]), np.array([1., 0])) == -3


def test_bootstrap_draws_tasks():
    draws = task_bootstrap(["a", "a", "b"], 20)
    assert all(set(np.diff(np.sort(d))) <= {0, 1, 2} and (np.sum(d == 0) == np.sum(d == 1)) for d in draws)


def test_heads_are_read_at_the_end_or_summed():
    values = lambda tasks, turns, actions, pages: [np.array([.2, .4, .8])] * len(tasks)
    inputs = ([0], [()], ["a"], ["p"])
    assert HeadReadout(values).predict(*inputs) == pytest.approx([.8]) and HeadReadout(values, "sum").predict(*inputs) == pytest.approx([1.4])
    assert HeadReadout(values, delta=-1.0).predict(*inputs)[0] < .8
    with pytest.raises(UserError, match="'end' or 'sum'"): HeadReadout(values, "max")


@pytest.mark.parametrize("base", [.02, .3, .9])
def test_log_odds_shift_hits_the_base_rate_and_keeps_the_order(base):
    p = key_rng(0, "p").random(200)
    moved = shifted(p, log_odds_shift(p, base))
    assert moved.mean() == pytest.approx(base, abs=1e-6) and (np.argsort(moved) == np.argsort(p)).all()
    assert (shifted(p, 0.0) == p).all()


def test_behavior_shift_is_applied_only_when_told_from_zero():
    assert behavior_shift([.1, .2, .3], [.21, .29, .41]).apply(.5) == pytest.approx(.6033, abs=1e-3)
    assert behavior_shift([.1, .4, .2], [.3, .2, .2]).apply(.5) == .5
    assert behavior_shift([.1], [.9]).apply(.5) == .5 and Shift(.2, .0, 2).apply(.5) == .5


class Keys(Domain):
    "A door opens when the key in the task was taken."
    def features(self, task, turns, last_action, last_obs):
        return np.array([1.0, float(any(t.action == f"take {task.split()[-1]}" for t in turns)), len(turns) / 5])


def doors(n=60, start=0):
    "One takes a key, looks around and tries the door: it opens, and ends the episode, with the right key."
    out = []
    for i in range(start, start + n):
        rng = key_rng(0, "doors", i)
        want, got = (("red", "blue")[int(k)] for k in rng.integers(2, size=2))
        turns = tuple(Turn("hall", a, 0.0) for a in (f"take {got}", *["look"] * int(rng.integers(3)), "try door"))
        out.append(Episode("doors", Task(f"t{i}", f"use {want}", "hall"), "p", 0.0, 0, 0, turns, TERMINAL if want == got else "hall", want == got, want != got))
    return out


def test_ends_are_read_from_what_was_done():
    endings, other = Endings(Keys()).fit(doors()), doors(40, 100)
    last = lambda e: (e.task, e.turns[:-1], e.turns[-1].action, e.turns[-1].obs)
    p = endings.predict(*zip(*map(last, other)))
    assert np.array_equal(p >= 0.5, [e.terminated for e in other]), "held-out episodes"
    first = endings.predict(*zip(*[(e.task, (), e.turns[0].action, "hall") for e in other]))
    assert np.isnan(first).all(), "`take` never ended an episode, so nothing is said"
    assert list(endings.members) == ["try"]


def test_two_ends_teach_nothing_and_no_order_matters():
    won = [e for e in doors() if e.terminated]
    assert Endings(Keys()).fit(won[:2] + [e for e in doors() if not e.terminated]).members == {} and Endings(Keys()).fit(won).members == {}
    rows = list(zip(*[(e.task, e.turns[:-1], e.turns[-1].action, e.turns[-1].obs) for e in doors(10, 200)]))
    endings = Endings(Keys()).fit(doors())
    assert np.allclose(endings.predict(*rows)[::-1], endings.predict(*(r[::-1] for r in rows)), atol=1e-12, rtol=0)
    assert endings.predict([], [], [], []).shape == (0,)


def paying(pool, reward):
    "The same episodes, every end of which pays the same."
    return [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=reward if e.terminated else 0.0))) for e in pool]


@pytest.mark.parametrize("reward", [1.0, 0.0, 0.3, 1e-9])
def test_where_every_end_pays_the_same_tasks_and_bias_decide(reward):
    report = gate(lambda train: TextReadout(Bids()).fit(train), paying(logs(), reward))
    assert len(report.ranges) == 1 and report.ranges[0]["n"] == report.n
    assert report.passed and report.verdict == f"pass: all {report.n} ends of {report.tasks} held-out tasks pay the same, so that R^2 and AUC say nothing"

    class Off(TextReadout):
        def predict(self, *inputs): return super().predict(*inputs) - .2
    low = gate(lambda train: Off(Bids()).fit(train), paying(logs(), reward))
    assert not low.passed and low.reasons[0].startswith("it misjudges p") and low.reasons[0].endswith("by -0.20") and len(low.reasons) == 1 and "pay the same" in low.verdict
    assert gate(lambda train: TextReadout(Bids()).fit(train), paying(logs(8), reward)).reasons == ["only 8 tasks to test on, 10 are needed"]


def test_the_gate_does_not_ask_in_which_unit_rewards_are_paid():
    "Rewards of 1e-8 are not constant, and those of a million are no other question."
    for unit in (1e-8, 1e6):
        pool = [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=unit * e.turns[-1].reward))) for e in logs()]
        one, other = (gate(lambda train: TextReadout(Bids()).fit(train), some, success=s) for some, s in ((logs(), .8), (pool, .8 * unit)))
        assert np.allclose(one.r2, other.r2) and np.allclose(one.auc, other.auc)


def test_one_failure_is_too_few_to_rank():
    pool = paying(logs(), 1.0)
    pool[0] = paying(logs(), 0.2)[0]
    assert "too few ends differ from the others to take an AUC" in gate(lambda train: TextReadout(Bids()).fit(train), pool).reasons


def test_the_rule_of_the_gate_is_kept_at_its_limits():
    "Lower bounds decide, not values; a bias counts where even its nearer bound is beyond the limit; the worst policy is named."
    rule, line = GateRule(), lambda name, low, high: dict(policy=name, epsilon=0.0, bias=(low + high) / 2, lower=low, upper=high)
    assert (rule.r2, rule.auc, rule.bias, rule.tasks) == (.2, .65, .1, 10)
    ask = lambda tasks=10, r2=(.5, .21, .8), area=(.9, .66, 1.), policies=(): gate_reasons(rule, tasks, r2, area, list(policies))
    assert ask() == [] and ask(9) == ["only 9 tasks to test on, 10 are needed"]
    assert ask(r2=(.5, .19, .8)) == ["R^2 may be as low as 0.19 on unseen tasks, 0.20 is needed"] and ask(area=(.9, .64, 1.)) == ["AUC may be as low as 0.64, 0.65 is needed"]
    assert ask(policies=[line("a", .09, .5), line("b", -.5, -.09)]) == []
    assert ask(policies=[line("a", .11, .13), line("b", -.4, -.11), line("c", 0, 0)]) == ["it misjudges b (epsilon 0) by -0.26"]


def test_bounds_are_of_ninety_percent_and_come_from_as_many_tasks_as_there_are():
    draws = [np.array([i]) for i in range(101)]
    assert bounded(lambda i: float(i[0]) if len(i) == 1 else -1.0, draws, 101) == (-1.0, 5.0, 95.0)
    assert bounded(lambda i: np.nan if i[0] % 2 and len(i) == 1 else float(i[0]), draws, 101)[1:] == (5.0, 95.0), "draws without an answer are left out"
    ids = [t for t in "abcde" for _ in range(3)]
    assert all(len(d) == 15 for d in task_bootstrap(ids, 30)) and len({tuple(np.unique(d)) for d in task_bootstrap(ids, 30)}) > 5


def test_an_end_is_worth_what_the_whole_episode_earned():
    e = replace(logs(1)[0], terminated=False, truncated=True)
    paid = replace(e, turns=(replace(e.turns[0], reward=.25), *e.turns[1:-1], replace(e.turns[-1], reward=.5)))
    assert ends([paid], cut=True).rewards.tolist() == [.75]
    with pytest.raises(UserError): ends([paid])


def test_a_readout_never_leaves_the_logged_range():
    class Wild:
        def __init__(self, value): self.value = value
        def fit(self, x, y): return self
        def predict(self, x): return np.full(len(x), self.value)
    pool = logs()
    rewards = ends(pool).rewards
    for value, expected in ((9.0, rewards.max()), (-9.0, rewards.min())):
        assert (TextReadout(Bids(), lambda: [Wild(value)]).fit(pool).predict(*ends(pool).inputs()) == expected).all()


def test_success_is_a_full_reward_where_enough_ends_have_one_and_else_more_than_the_median():
    class Noise:
        def predict(self, tasks, turns, actions, pages): return np.sin(17.0 * np.arange(len(tasks)))
    fit, pool = lambda train: Noise(), [e for e in logs() if e.terminated]
    full = [i for i, e in enumerate(pool) if e.ret >= 1 - 1e-9]
    pool = [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=1.0))) if i in full else e for i, e in enumerate(pool)]
    few = [e for i, e in enumerate(pool) if i not in full[4:]]
    assert 5 <= len(full) <= len(pool) - 5 and gate(fit, pool).auc == gate(fit, pool, success=1.0).auc != gate(fit, pool, success=.7).auc
    assert gate(fit, few).auc == gate(fit, few, success=np.median([e.ret for e in few]) + 1e-9).auc != gate(fit, few, success=1.0).auc


def test_a_shift_is_told_from_zero_by_its_standard_error():
    shift = behavior_shift([.1, .2, .3], [.2, .2, .5])
    assert (shift.value, shift.n) == (pytest.approx(.1), 3) and shift.se == pytest.approx(.1 / np.sqrt(3))
    assert Shift(.1, .05, 5).apply(.5) == .6 and Shift(.1, .07, 5).apply(.5) == .5 and Shift(-.1, .05, 5).apply(.5) == .4


def test_a_template_that_ended_nearly_always_teaches_nothing():
    pool = doors()
    won, lost = [e for e in pool if e.terminated], [e for e in pool if not e.terminated]
    assert Endings(Keys()).fit(won + lost[:2]).members == {} and list(Endings(Keys()).fit(won + lost[:3]).members) == ["try"]
