"Self-checks: limits, replay, events, reach; an honest simulator is not refused, every sabotaged one is."
from dataclasses import replace

import numpy as np
import pytest

from adwm.core import UserError, key_rng
from adwm.envs import Corridor, Outcome, advance
from adwm.episodes import TERMINAL, split_by_task
from adwm.policies import ReferencePolicy, ScriptedPolicy
from adwm.readouts import TextReadout, ends, gate
from adwm.retrieval import NearestNeighbour, PageIndex
from adwm.rollouts import make_rows, rollout
from adwm.selfchecks import (Check, CheckRule, SelfCheck, event_checks, event_rates, grade, reach_checks, replay, resimulate, selfcheck, track_checks, unseen_checks, value_checks, variation)
from tests_helpers import small_shop


class Constant:
    def fit(self, episodes): self.value = ends(episodes).rewards.mean(); return self
    def predict(self, tasks, turns, actions, pages): return np.full(len(tasks), self.value)


class AnyPage(NearestNeighbour):
    "An untrained simulator: any logged page."
    def step(self, states, actions, keys):
        rows = np.flatnonzero(self.index.playable)
        picks = [self.index.pages[key_rng(*k, "any").choice(rows)] for k in keys]
        return [Outcome(advance(s, a, 0.0, p, self.index.choices[self.index.id[p]]), 0.0, p == TERMINAL) for s, a, p in zip(states, actions, picks)]


class Far(NearestNeighbour):
    "A simulator that reports the distance of its latents."
    def step(self, states, actions, keys):
        return [replace(o, info=o.info | {"distance": 1.3}) for o in super().step(states, actions, keys)]


class Rebuilt:
    "The real environment behind states that are text only: their past is acted out first."
    def __init__(self, real): self.real, self.domain = real, real.domain
    def reset(self, tasks, keys): return self.real.reset(tasks, keys)

    def step(self, states, actions, keys):
        out = []
        for s, a in zip(states, actions):
            now = self.real.reset([s.task], [()])[0]
            for t in s.turns: now = self.real.step([now], [t.action], [()])[0].state
            out += self.real.step([now], [a], [()])
        return out


@pytest.fixture(scope="module")
def shop():
    "Simulator of the shop, reference policy, pool, the best and the worst component held out."
    real, best = small_shop(3, 120, 24, goal_seed=3)
    teacher, reference = ScriptedPolicy("expert", best), ReferencePolicy(real.domain)
    pool = rollout(real, teacher, make_rows(real.tasks(), [.1, .3, .6]), 3, 12) + rollout(real, reference, make_rows(real.tasks(), [1.]), 3, 12)
    train, held = [e for e in pool if e.epsilon in (.3, .6)], [e for e in pool if e.epsilon in (.1, 1.)]
    return real, reference, pool, train, held


def honest(train, domain): return NearestNeighbour(PageIndex(train, domain), TextReadout(domain).fit(train))


def test_the_real_environment_is_trusted_and_the_honest_simulator_is_not_refused(shop):
    real, reference, pool, train, held = shop
    report = selfcheck(Rebuilt(real), held, pool, behaviors={"reference": reference}, index=PageIndex(train, real.domain))
    assert all(c.value == 1 for c in report.checks if c.name in ("page is exact", "page offers the next act", "replay is on track"))
    assert all(c.verdict in ("trust", "-") for c in report.checks if c.name.startswith(("page", "replay", "value replayed")))
    mine = selfcheck(honest(train, real.domain), held, pool, index=PageIndex(train, real.domain))
    assert mine.verdict != "refuse", mine.line
    assert mine.line.startswith(mine.verdict) and "\n" not in mine.line


def dealt(episodes):
    acts = iter(key_rng(0, "deal").permutation([t.action for e in episodes for t in e.turns]))
    return [replace(e, turns=tuple(replace(t, action=str(next(acts))) for t in e.turns)) for e in episodes]


def test_shuffled_actions_are_refused(shop):
    real, _, pool, train, held = shop
    report = selfcheck(NearestNeighbour(PageIndex(dealt(train), real.domain), TextReadout(real.domain).fit(train)), held, pool)
    assert report.verdict == "refuse" and "offer what was done next" in report.line


def test_an_untrained_simulator_is_refused(shop):
    real, _, pool, train, held = shop
    report = selfcheck(AnyPage(PageIndex(train, real.domain)), held, pool)
    assert report.verdict == "refuse" and "on their track" in " ".join(c.reason for c in report.checks)


def test_a_constant_readout_is_refused_by_component_and_by_its_gate(shop):
    real, _, pool, train, held = shop
    constant = NearestNeighbour(PageIndex(train, real.domain), Constant().fit(train))
    report = selfcheck(constant, held, pool)
    assert report.verdict == "refuse" and "value of reference, epsilon 1" in report.line
    failed = gate(lambda logs: Constant().fit(logs), train)
    report = selfcheck(honest(train, real.domain), held, pool, gate=failed)
    assert report.verdict == "refuse" and "does not pass its gate" in report.line
    assert selfcheck(honest(train, real.domain), held, pool, gate={"passed": False, "verdict": "fail: x"}).verdict == "refuse"


def test_far_latents_are_refused(shop):
    real, _, pool, train, held = shop
    report = selfcheck(Far(PageIndex(train, real.domain), TextReadout(real.domain).fit(train)), held, pool)
    assert report.verdict == "refuse" and "1.30 from the nearest logged one" in report.line


def test_a_pool_without_high_rewards_and_an_estimate_beyond_it_are_refused(shop):
    real, _, pool, _, _ = shop
    weak = [e for e in pool if e.ret < .6]
    assert reach_checks(weak, {}, CheckRule())[0].verdict == "refuse" and reach_checks(pool, {}, CheckRule())[0].verdict == "trust"
    best = max(np.mean([e.ret for e in pool if e.epsilon == eps]) for eps in (.1, .3, .6))
    verdicts = [reach_checks(pool, {"t": best + extra}, CheckRule())[1].verdict for extra in (0, .15, .3)]
    assert verdicts == ["trust", "caution", "refuse"]


def test_replay_in_the_real_environment_is_the_log(shop):
    real, _, _, _, held = shop
    made, there = replay(real, held)
    assert [e.pages for e in made] == [e.pages for e in held] and [e.ret for e in made] == [e.ret for e in held]
    assert all(all(t) and len(t) == len(e.turns) for t, e in zip(there, held))


def test_resimulation_meets_the_logs_rows(shop):
    real, reference, _, _, held = shop
    made, beside = resimulate(real, {"reference": reference, "nobody": reference}, held, 12, 3)
    assert [e.task.id for e in made] == [e.task.id for e in beside] and {e.policy for e in made} == {"reference"} and {e.epsilon for e in made} == {1.0}
    assert [e.pages for e in made] == [e.pages for e in beside], "the same seed in the same environment"


def test_value_checks_judge_components_only_beyond_their_bounds():
    world = Corridor(2)
    go = ScriptedPolicy("go", lambda s: "press" if s.obs == "room 1" else "go east")
    logs = rollout(world, go, make_rows([world.task(i) for i in range(15)], [0.0]), 0, 5)
    low = [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=.7))) for e in logs]
    assert {c.verdict for c in value_checks(logs, logs, CheckRule())} == {"trust"}
    assert {c.verdict for c in value_checks(low, logs, CheckRule())} == {"refuse"}
    assert {c.verdict for c in value_checks(low[:5], logs[:5], CheckRule())} == {"-"}, "too few to grade"
    noisy = [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=float(i % 2)))) for i, e in enumerate(logs)]
    assert value_checks(noisy, logs, CheckRule(bias=(.05, .45)))[0].verdict == "caution", "bounds reach below the limit"


def test_events_and_limits():
    world = Corridor(2)
    go = ScriptedPolicy("go", lambda s: "press" if s.obs == "room 1" else "go east")
    rates = event_rates(rollout(world, go, make_rows([world.task()], [0.0]), 0, 5), world.domain)
    assert rates == {"page types": {"page": 1.0}, "acts": {"go": .5, "press": .5}, "ends": {"turn 2": 1.0}}
    assert variation(rates["acts"], {"go": 1.0}) == .5 and variation({"a": 1.}, {"b": 1.}) == 1
    assert [grade(x, (.8, .6)) for x in (.9, .7, .5)] == [grade(x, (.1, .2)) for x in (0, .15, .3)] == ["trust", "caution", "refuse"]


def test_the_worst_line_decides_and_the_answer_is_one_line():
    lines = [Check("a", "x", 1, .5, verdict="trust"), Check("b", "x", 1, .5, verdict="caution", reason="b is odd"), Check("c", "x", 1, .5)]
    assert SelfCheck(lines[:1]).line == "trust: all 1 checks passed." and SelfCheck(lines).line == "caution: b is odd."
    assert SelfCheck(lines).table()[-1]["name"] == "c"
    many = [Check("d", str(i), 1, 0., verdict="refuse", reason=f"reason {i}") for i in range(6)]
    assert SelfCheck(lines + many).verdict == "refuse" and SelfCheck(lines + many).line.endswith("reason 3 (and 2 more).")


def test_nothing_held_out_is_an_error(shop):
    real, _, pool, _, _ = shop
    with pytest.raises(UserError, match="no held-out episodes"): selfcheck(real, [], pool)


def test_what_the_simulator_has_seen_cannot_test_it(shop):
    real, _, pool, train, held = shop
    simulator = honest(train, real.domain)
    with pytest.raises(UserError, match=rf"^1 of {len(held) + 1} held-out episodes .* expert on task {train[3].task.id}\), so that it would be tested on its memory"): selfcheck(simulator, [*held, train[3]], pool)
    with pytest.raises(UserError, match="tested on its memory"): selfcheck(Rebuilt(real), train, pool, index=PageIndex(train, real.domain))
    again = replace(train[3], seed=train[3].seed + 1)
    assert unseen_checks(simulator, [again])[0].verdict == "trust", "the same walk by another roll of the dice is another episode"


def test_a_check_that_was_not_made_did_not_pass(shop):
    real, reference, pool, train, held = shop
    blind = selfcheck(Rebuilt(real), held, pool, gate={"passed": True, "verdict": "pass"})
    assert blind.verdict == "caution" and "Not checked: whether the simulator has seen the held-out episodes" in blind.line
    bare = selfcheck(Rebuilt(real), held, pool, index=PageIndex(train, real.domain))
    assert bare.verdict == "caution" and bare.line.startswith("caution: all") and "the readout, since its gate was not given" in bare.line and "\n" not in bare.line
    full = selfcheck(Rebuilt(real), held, pool, gate={"passed": True, "verdict": "pass"}, index=PageIndex(train, real.domain))
    assert full.verdict == "trust" and "Not checked" not in full.line
    asked = selfcheck(Rebuilt(real), held, pool, {"passed": True, "verdict": "pass"}, {"nobody": reference}, index=PageIndex(train, real.domain))
    assert asked.verdict == "caution" and "none of the policies given logged a held-out episode" in asked.line
    assert "Not checked" in selfcheck(AnyPage(PageIndex(train, real.domain)), held, pool).line, "also beside a refusal"


def test_the_ten_lines_of_the_readme_get_a_verdict():
    "Every end pays 1; the look-up is exact. Without a gate: caution. With it: trust. For an agent far better than the logs: refuse, and why."
    world = Corridor(4)
    rows = make_rows([world.task(i) for i in range(100)])
    pool = rollout(world, ReferencePolicy(world.domain), rows, seed=0, horizon=12)
    train, held = split_by_task(pool)[0]
    simulator, passed = NearestNeighbour(PageIndex(train, world.domain)), gate(lambda logs: TextReadout(world.domain).fit(logs), train)
    assert passed.passed and "pay the same" in passed.verdict
    ask = lambda **given: selfcheck(simulator, held, pool, index=simulator.index, **given)
    assert ask().line == "caution: all 8 checks that were made passed. Not checked: the readout, since its gate was not given (25_readouts)."
    assert ask(gate=passed).line == "trust: all 9 checks passed."
    assert ask(gate=passed, estimates={"east": 1.0}).line == "refuse: east is put at 1.00, the pool's best policy earned 0.25: no logged agent was that good."
    with pytest.raises(UserError, match="tested on its memory"): selfcheck(simulator, train, pool)


def test_the_limits_are_the_ones_written_down():
    "At a limit a line is still good; beyond the first a reader should be careful, beyond the second there is no estimate; what is not a number is refused."
    rule, off = CheckRule(), 1e-9
    for limits, worse in ((rule.offered, -1), (rule.distance, 1), (rule.events, 1), (rule.track, -1), (rule.bias, 1), (rule.beyond, 1), (rule.high, -1)):
        assert [grade(x, limits) for x in (limits[0], limits[0] + worse * off, limits[1], limits[1] + worse * off)] == ["trust", "caution", "caution", "refuse"]
    assert (rule.offered, rule.distance, rule.events, rule.track) == ((.75, .55), (.75, 1.), (.15, .3), (.5, .25)), "no good estimate was ever made beyond these"
    assert (rule.bias, rule.beyond, rule.high, rule.few) == ((.05, .1), (.1, .25), (.05, .01), 10)
    assert grade(float("nan"), rule.bias) == grade(float("inf"), rule.offered) == "refuse"


def walks(lengths, reward=1.0, policy="go", epsilon=0.0):
    "Walks through a corridor of the given numbers of turns: the horizon cut them off."
    world, go = Corridor(9), ScriptedPolicy("go", lambda s: "go east")
    made = [rollout(world, go, make_rows([world.task(i)]), 0, n)[0] for i, n in enumerate(lengths)]
    return [replace(e, policy=policy, epsilon=epsilon, turns=(*e.turns[:-1], replace(e.turns[-1], reward=reward))) for e in made]


def test_a_replay_asks_no_further_than_the_log_goes_and_then_repeats_the_last_act():
    held = walks([1, 3, 5])
    made, there = replay(Corridor(9), held)
    assert [len(t) for t in there] == [1, 3, 5] and all(all(t) for t in there)
    assert [[t.action for t in e.turns] for e in made] == [["go east"] * 5] * 3
    lines = track_checks([[True], [True, True, False], [True, True, False, False, False]], held, CheckRule())
    assert [(c.n, c.value) for c in lines] == [(3, 1.0), (2, 1.0), (2, 0.0), (1, 0.0), (1, 0.0)]
    assert [c.verdict for c in lines] == ["-", "trust", "-", "-", "-"], "judged at turn 1, the middle of the middle episode"
    assert track_checks([[True, False]] * 3, held, CheckRule())[1].reason == "at turn 1 only 0% of replayed episodes are on their track"


def test_page_types_and_acts_are_judged_and_lengths_are_not():
    world, logged = Corridor(9), walks([3] * 4)
    short = walks([1] * 4)
    verdicts = {c.name: (c.value, c.verdict) for c in event_checks(short, logged, world.domain, CheckRule(), "replay")}
    assert verdicts["rates of ends"][1] == "-" and verdicts["rates of acts"] == (0, "trust") and verdicts["rates of page types"] == (0, "trust")
    pressed = [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], action="press"))) for e in logged]
    line = {c.name: c for c in event_checks(pressed, logged, world.domain, CheckRule(), "replay")}["rates of acts"]
    assert line.value == pytest.approx(1 / 3) and line.verdict == "refuse" and "33%" in line.reason


def test_a_component_is_a_policy_at_one_epsilon_and_overrating_has_a_plus():
    logged = walks([2] * 12, .5) + walks([2] * 12, .5, epsilon=.5)
    shift = lambda a, b: [replace(e, turns=(*e.turns[:-1], replace(e.turns[-1], reward=.5 + d))) for e, d in zip(logged, [a] * 12 + [b] * 12)]
    read = lambda made: [(c.item, round(c.value, 3), c.verdict) for c in value_checks(made, logged, CheckRule())]
    assert read(shift(0, .15)) == [("all", .075, "caution"), ("go, epsilon 0", 0, "trust"), ("go, epsilon 0.5", .15, "refuse")]
    assert read(shift(-.07, 0)) == [("all", -.035, "trust"), ("go, epsilon 0", -.07, "caution"), ("go, epsilon 0.5", 0, "trust")]
    assert "off by +0.15" in value_checks(shift(0, .15), logged, CheckRule())[2].reason


def test_reach_is_measured_on_the_scale_of_the_environment_and_by_the_best_on_both_sides():
    pool = walks([2] * 90, 2.0) + walks([2] * 10, 9.5, policy="best")
    top, beyond = reach_checks(pool, {"weak": 1.0, "strong": 11.4}, CheckRule(), scale=10.0)
    assert (top.value, top.verdict) == (.1, "trust") and beyond.item == "strong" and beyond.value == pytest.approx(1.9) and beyond.verdict == "caution"
    assert reach_checks(walks([2] * 10, 8.5), {}, CheckRule(), scale=10.0)[0].verdict == "refuse", "nine tenths of the scale count as the top"
