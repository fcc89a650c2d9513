"One call from logs to a value: known truths, what is kept on disk, estimators of others, and every bad input in one sentence."
import re
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from adwm.core import UserError, root
from adwm.envs import Corridor, Domain, Outcome, State, advance
from adwm.episodes import Task, write_episodes
from adwm.estimation import (ESTIMATORS, AgentError, Classical, EvalConfig, FunctionPolicy, LookUp, PolicyValue, WorldModel,
                             as_policy, estimate, fit_logs, generic_domain, held_out_parts, read_logs)
from adwm.policies import ReferencePolicy, ScriptedPolicy
from adwm.rollouts import make_rows, rollout

WORLD = Corridor(4)
EAST = ScriptedPolicy("east", lambda s: "press" if s.obs == "room 3" else "go east")
TASKS = [WORLD.task(i) for i in range(60)]
WEST, RANDOM = ScriptedPolicy("west", lambda s: "go west"), ReferencePolicy(WORLD.domain)
TINY = (("buckets", 512), ("width", 32), ("hidden", 64), ("page_words", 16), ("history_layers", 1), ("context", 64), ("text_buckets", 256))


def walk_to_the_lamp(state):
    "The same as EAST, as a function."
    return EAST.choose(state)


@lru_cache
def walks():
    "60 random walks, a quarter of which find the lamp."
    return tuple(rollout(WORLD, RANDOM, make_rows(TASKS), 0, 12, env="corridor"))


@lru_cache
def fitted():
    return fit_logs(list(walks()), seeds=range(4))


def truth(policy, epsilon=0.0):
    "Mean return of 1,000 real episodes."
    return np.mean([e.ret for e in rollout(WORLD, policy, make_rows([WORLD.task(i) for i in range(1000)], [epsilon]), 7, 12)])


@pytest.mark.parametrize("agent, epsilon", [(EAST, 0.0), (EAST, 0.9), (RANDOM, 0.0), (WEST, 0.0)], ids=["east", "lost", "random", "west"])
def test_the_look_up_knows_what_agents_earn_in_the_corridor(agent, epsilon):
    found = fitted().judge(agent, epsilon)
    assert abs(found.value - truth(agent, epsilon)) < .1, found
    assert found.interval[0] <= found.value <= found.interval[1] and len(found.imagined) == 240
    assert np.isclose(np.mean(list(found.per_task.values())), found.value) and set(found.per_task) == {e.task.id for e in walks()}
    assert all(np.isclose(v, np.mean([e.ret for e in found.imagined if e.task.id == task])) for task, v in found.per_task.items())


def test_world_model_and_regression_know_the_extremes(tmp_path, monkeypatch):
    from adwm.fitting import FitConfig
    how = dict(model=TINY, train=FitConfig(joint=20, cached=60, batch=16, rows=64))
    found = fit_logs(list(walks()), WorldModel(**how), seeds=(0,), work=tmp_path)
    assert found.judge(EAST).value == 1 and found.judge(lambda s: "go west").value == 0
    monkeypatch.setattr("adwm.fitting.train_joint", lambda *a, **k: pytest.fail("trained again"))
    again = estimate(list(walks()), EAST, WorldModel("regression", regression=True, **how), seeds=(0,), work=tmp_path)
    assert again.value == 1 and again.estimator == "regression"


def test_the_answer_is_one_sentence():
    found = fitted().judge(EAST)
    covers = "noise of 240 imagined episodes alone, which all earned the same"
    assert re.fullmatch(rf"V\(east\) = 1\.00 \[1\.00, 1\.00\] \(90%, {covers}\); refuse: east is put at 1\.00, .*\.", str(found)), str(found)
    assert "epsilon 0.5)" in str(fitted().judge(EAST, .5)) and "imagined episodes" in found._repr_html_() and repr(found) == str(found)
    assert list(found.table()["policy"]) == ["reference", "east (look-up)"] and "room 3 -> press  (reward 1)" in found.episodes(1)
    assert len(found.figure().axes) == 2


def test_the_same_call_writes_the_same_bytes(tmp_path):
    for name, seeds in (("a", (0, 1)), ("b", (0, 1)), ("c", (2, 3))): estimate(list(walks()), RANDOM, seeds=seeds).save(tmp_path / name)
    read = lambda name: [(tmp_path / name / f).read_bytes() for f in ("estimate.json", "episodes.jsonl.gz")]
    assert read("a") == read("b") and read("a")[1] != read("c")[1]


@pytest.mark.parametrize("estimator", ["look-up", "pool mean", "IS"])
def test_what_is_saved_is_what_is_loaded(tmp_path, estimator):
    found = estimate(list(walks()), walk_to_the_lamp, estimator)
    again = PolicyValue.load(found.save(tmp_path))
    same = lambda a, b: a == b or a != a and b != b
    for name in PolicyValue.__dataclass_fields__:
        a, b = getattr(found, name), getattr(again, name)
        assert all(map(same, a, b)) if name == "interval" else same(a, b), name
    (tmp_path / "estimate.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"): PolicyValue.load(tmp_path)
    with pytest.raises(UserError, match="no saved estimate"): PolicyValue.load(tmp_path / "nowhere")


def test_logs_may_be_a_file_and_rewards_have_any_unit(tmp_path):
    path = write_episodes(tmp_path / "logs.jsonl.gz", list(walks()))
    pay = [replace(e, turns=tuple(replace(t, reward=t.reward * 50) for t in e.turns)) for e in walks()]
    plain, scaled = estimate(path, RANDOM), estimate(pay, RANDOM)
    assert np.allclose([scaled.value, *scaled.interval], 50 * np.array([plain.value, *plain.interval])) and scaled.verdict == plain.verdict
    assert max(e.ret for e in scaled.imagined) == 50 and scaled.checks == plain.checks


class Job:
    "Never ends; working pays a tenth of a unit every turn."
    domain = Domain()
    def reset(self, tasks, keys): return [State(t, t.obs, t.choices) for t in tasks]
    def step(self, states, actions, keys): return [self.turn(s, .1 * (a == "work"), a) for s, a in zip(states, actions)]
    def turn(self, s, pay, action): return Outcome(advance(s, action, pay, s.obs, s.choices), pay, False)


def test_rewards_on_the_way_are_kept_when_nothing_ends():
    tasks = [Task(f"day {i}", "earn", "a desk", ("work", "rest")) for i in range(20)]
    logs = rollout(Job(), ReferencePolicy(Domain()), make_rows(tasks), 0, 5)
    assert generic_domain(logs).pays_at_truncation and not generic_domain(list(walks())).pays_at_truncation
    assert np.isclose(estimate(logs, lambda s: "work").value, .5) and estimate(logs, lambda s: "rest").value == 0
    with pytest.raises(UserError, match="pay on the way"): estimate(logs, lambda s: "work", "world model")


def test_an_estimator_is_imported_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "mine_for_a_test.py").write_text(
        "from adwm.estimation import PolicyValue\n"
        "class Best:\n"
        "    name = 'best'\n"
        "    def fit(self, logs, domain, how): self.top = max(e.ret for e in logs); return self\n"
        "    def judge(self, agent, epsilon=0.0): return PolicyValue(agent.name, self.name, self.top)\n"
        "class Silent(Best):\n"
        "    def judge(self, agent, epsilon=0.0): return self.top\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = estimate(list(walks()), EAST, "mine_for_a_test:Best")
    assert str(found) == "V(east) = 1.00; not checked." and found.loggers[0]["policy"] == "reference"
    assert PolicyValue.load(found.save(tmp_path)).value == 1
    with pytest.raises(UserError, match="must return a PolicyValue"): estimate(list(walks()), EAST, "mine_for_a_test:Silent")


class Optimist(LookUp):
    "Every imagined move ends and pays 1."
    def simulator(self, parts, domain, how): return self
    domain = Domain()
    def reset(self, tasks, keys): return [State(t, t.obs, t.choices) for t in tasks]
    def step(self, states, actions, keys):
        return [Outcome(advance(s, a, 1., "<end>", ()), 1., True) for s, a in zip(states, actions)]


def test_a_wrong_simulator_is_refused():
    found = estimate(list(walks()), lambda s: "go west", Optimist("optimist"))
    assert found.value == 1 and found.verdict == "refuse" and any("replayed" in r for r in found.reasons)


def test_the_strongest_logger_is_left_out_where_several_logged():
    strong = rollout(WORLD, EAST, make_rows(TASKS, [.5]), 1, 12, env="corridor")
    logs = [*walks(), *strong]
    held = held_out_parts(logs)
    train, test = held["all of east"]
    assert {e.policy for e in test} == {"east"} and {e.policy for e in train} == {"reference"}
    tasks = held["a fifth of the tasks"]
    assert not {e.task.id for e in tasks[0]} & {e.task.id for e in tasks[1]}
    found = estimate(logs, walk_to_the_lamp, seeds=(0,))
    assert {c["item"].split("held out: ")[-1] for c in found.checks if c["name"] == "page is exact"} == set(held)
    assert [line["policy"] for line in found.loggers] == ["east, epsilon 0.5", "reference"]


def test_the_agent_is_told_from_the_loggers_and_from_what_pages_offer():
    own = fitted().judge(RANDOM)
    assert own.verdict == "caution" and "'reference' logged 60 of these episodes" in own.reasons[0]
    wild = fitted().judge(FunctionPolicy(lambda s: "dance", "dancer"))
    assert wild.verdict == "refuse" and "100% of its actions, such as 'dance'" in str(wild)


def test_a_function_claims_no_probabilities():
    coin = np.random.default_rng(0)
    policy = as_policy(lambda s: str(coin.choice(s.choices)))
    assert not policy.has_log_prob and policy.name == "agent" and as_policy(walk_to_the_lamp).name == "walk_to_the_lamp"
    with pytest.raises(UserError, match="not known"): policy.log_probs(list(walks()))
    found = estimate(list(walks()), policy, "WIS")
    assert np.isnan(found.value) and found.verdict == "refuse" and "has no log-probability" in str(found)
    assert not np.isnan(estimate(list(walks()), policy, "DM", seeds=(0,)).value)


def test_classical_names_are_those_of_the_family():
    from adwm.fitted import HistoryKey, classical
    names = {it.name for it in classical(HistoryKey())}
    mine = {name for name, it in ESTIMATORS.items() if isinstance(it, Classical) and "fitted behavior" not in name}
    assert mine == {n for n in names if "mixture" not in n}


def test_an_agent_is_asked_once_for_all_classical_estimators(tmp_path):
    calls = []
    def counted(state): calls.append(state); return EAST.choose(state)
    first = estimate(list(walks()), counted, "DM (paper)", work=tmp_path)
    asked = len(calls)
    second = estimate(list(walks()), counted, "checkpoint replay", work=tmp_path, seeds=(0,))
    assert asked and len(calls) == asked and second.value > first.value


def test_weights_answer_as_they_do_by_themselves():
    from adwm.weights import ImportanceSampling, agent_probe, probe_from_agent
    u = RANDOM
    known = lambda e, logp: replace(e, turns=tuple(replace(t, logp=float(x)) for t, x in zip(e.turns, logp)))
    logged = list(map(known, walks(), u.log_probs(list(walks()))))
    found, alone = estimate(logged, u, "WIS"), ImportanceSampling("WIS").estimate(logged, agent_probe(u, logged))
    assert np.isclose(found.value, alone.value) and np.allclose(found.interval, alone.interval) and found.verdict == "caution"   # it logged them
    half = estimate(logged, EAST, "PDIS", epsilon=.5)
    alone = ImportanceSampling("PDIS").estimate(logged, probe_from_agent(EAST, logged, .5, domain=WORLD.domain))
    assert half.epsilon == .5 and np.isclose(half.value, alone.value) and half.value > 1.5 * found.value


FAILS = dict(empty=([], EAST, {}, "the logs are empty"),
             nothing=("nowhere.jsonl", EAST, {}, "no file"),
             text=("not episodes".split(), EAST, {}, "a list of Episode, not list"),
             one_task=(lambda: [replace(e, task=WORLD.task(0)) for e in walks()], EAST, {}, "nothing can be held out"),
             no_rewards=(lambda: paid(0.0), EAST, {}, "carries a reward"),
             constant=(lambda: paid(2.0), EAST, {}, "every logged return is 2"),
             costs=(lambda: [paid(-1.0)[0], *paid(-2.0)[1:]], EAST, {}, "rewards must be gains"),
             agent=(walks, "gpt", {}, "an agent is a policy"),
             cls=(walks, ScriptedPolicy, {}, "an agent is a policy"),
             estimator=(walks, EAST, dict(estimator="lookup"), "no estimator 'lookup'; the valid ones are look-up, world model"),
             path=(walks, EAST, dict(estimator="adwm.nothing:It"), "cannot be imported"),
             no_fit=(walks, EAST, dict(estimator=3), "has a method fit"),
             epsilon=(walks, EAST, dict(epsilon=2), "a probability"),
             level=(walks, EAST, dict(level=90), "a probability"),
             seeds=(walks, EAST, dict(seeds=()), "one or more"),
             twice=(walks, EAST, dict(seeds=(1, 1)), "each once"),
             seed=(walks, EAST, dict(seeds=3), "a list"),
             horizon=(walks, EAST, dict(horizon=0), "at least one turn"),
             domain=(walks, EAST, dict(domain="webshop"), "adwm.envs.Domain"))


def paid(last):
    "The walks, each with one reward at its end."
    pay = lambda e: (*(replace(t, reward=0.0) for t in e.turns[:-1]), replace(e.turns[-1], reward=last))
    return [replace(e, turns=pay(e)) for e in walks()]


@pytest.mark.parametrize("logs, agent, options, says", FAILS.values(), ids=FAILS)
def test_bad_input_is_one_sentence(logs, agent, options, says):
    logs = logs() if callable(logs) else logs
    with pytest.raises(UserError, match=says) as err: estimate(list(logs) if isinstance(logs, tuple) else logs, agent, **options)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("answer, says", [(None, "answered None on the page 'room 0'"), ("  ", "an action is a text, not empty"), (3, "answered 3")])
def test_an_answer_that_is_no_action_is_refused(answer, says):
    with pytest.raises(AgentError, match=says): fitted().judge(lambda s: answer)


def test_an_agent_that_fails_goes_on_where_it_stopped(tmp_path):
    calls = []
    def flaky(state):
        calls.append(state.task.id)
        if len(calls) == 150: raise TimeoutError("no answer")
        return EAST.choose(state)
    asked = lambda work: estimate(list(walks()), flaky, work=work, seeds=(0, 1))
    says = r"TimeoutError: no answer\); 32 of 120 imagined episodes were finished and are in .*imagined-"
    with pytest.raises(AgentError, match=says) as err: asked(tmp_path)
    assert len(err.value.episodes) == EvalConfig().chunk and all(e.ret == 1 for e in err.value.episodes)
    resumed = asked(tmp_path)
    assert len(calls) == 150 + 4 * (120 - EvalConfig().chunk), "finished episodes were asked for again"
    assert resumed.imagined == asked(None).imagined
    calls[:] = calls[:100]
    with pytest.raises(AgentError, match="give `work` a folder"): asked(None)


def test_work_of_other_logs_is_not_taken_for_ones_own(tmp_path):
    first = estimate(list(walks()), EAST, work=tmp_path, seeds=(0,))
    other = estimate(list(walks()[:40]), EAST, work=tmp_path, seeds=(0,))
    assert len(first.imagined) == 60 and len(other.imagined) == 40 and len(list(tmp_path.glob("imagined-*"))) == 2


def test_an_agent_that_was_edited_is_asked_again(tmp_path):
    def walker(direction):
        def agent(state): return "press" if state.obs == "room 3" else f"go {direction}"
        return agent
    def agent(state): return "press"
    values = [estimate(list(walks()), a, work=tmp_path, seeds=(0,)).value for a in (walker("east"), walker("west"), agent, walker("east"))]
    assert values == [1, 0, 0, 1] and len(list(tmp_path.glob("imagined-*"))) == 3


def test_the_package_offers_it_and_stays_light():
    code = "import sys, adwm; assert 'numpy' not in sys.modules; from adwm import estimate as it; assert 'torch' not in sys.modules; print(it.__module__)"
    out = subprocess.run([sys.executable, "-c", code], cwd=root(), capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "adwm.estimation"
    import adwm
    with pytest.raises(AttributeError): adwm.nothing


@pytest.mark.parametrize("own", [False, True], ids=["generic domain", "shop's domain"])
def test_a_shop_agent_is_judged_by_a_part_of_its_pool(own):
    "The generic domain cannot read the shop's reward, and says so."
    from adwm.preference import load_agent
    from adwm.webshop import domain
    shop, pool = domain(), read_logs(root() / "assets/webshop-iter1/pool.jsonl.gz")
    tasks = sorted({e.task.id for e in pool})[:12]
    agent = load_agent(root() / "assets/webshop-iter1/agents/b-early", shop, name="b-early")
    found = estimate([e for e in pool if e.task.id in tasks], agent, domain=shop if own else None, seeds=(0,))
    assert len(found.imagined) == 12 and 0 < found.value < 1
    assert own or found.verdict == "refuse" and any("gate" in r for r in found.reasons)


def test_a_fitted_behavior_weighs_logs_without_probabilities():
    assert np.isfinite(estimate(list(walks()), EAST, "WIS, fitted behavior", epsilon=.5).value)
