"The one loop: exact value, batching, resume after a kill, wrong files."
import signal, subprocess, sys, textwrap
from dataclasses import replace

import numpy as np
import pytest

from adwm.core import UserError
from adwm.envs import Corridor, Reference
from adwm.episodes import to_line
from adwm.policies import ReferencePolicy, ScriptedPolicy, mixture_log_prob, policy_log_probs
from adwm.rollouts import Row, make_rows, rollout
from tests_helpers import corridor_episodes

EAST = ScriptedPolicy("east", lambda s: "press" if s.obs == "room 2" else "go east")


def test_value_is_exact_in_expectation():
    world = Corridor(); rows = make_rows([world.task(i) for i in range(200)], [0.5], 10)
    got = np.mean([e.ret for e in rollout(world, EAST, rows, 1, 3)])
    want = (2 / 3) ** 3
    assert abs(got - want) < 3 * np.sqrt(want * (1 - want) / 2000)


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_batching_does_not_matter(chunk):
    world = Corridor(); rows = make_rows([world.task(i) for i in range(30)], [0.0, 0.4], 2)
    assert [to_line(e) for e in rollout(world, EAST, rows, 0, 5, chunk)] == [to_line(e) for e in rollout(world, EAST, rows, 0, 5)]


def test_row_order_does_not_matter():
    world = Corridor(); rows = make_rows([world.task(i) for i in range(30)], [0.4])
    a = {e.task.id: to_line(e) for e in rollout(world, EAST, rows, 0, 5)}
    assert a == {e.task.id: to_line(e) for e in rollout(world, EAST, rows[::-1], 0, 5)}


def test_killed_run_equals_uninterrupted_one(tmp_path):
    code = textwrap.dedent("""
        import os, signal, sys
        from adwm.envs import Corridor
        from adwm.policies import ScriptedPolicy
        from adwm.rollouts import make_rows, rollout
        calls = 0
        def choose(s):
            global calls; calls += 1
            if calls == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
            return "press" if s.obs == "room 2" else "go east"
        world = Corridor()
        rollout(world, ScriptedPolicy("east", choose), make_rows([world.task(i) for i in range(64)], [0.3], 2), 5, 6, 16, sys.argv[1])""")
    run = lambda path, n: subprocess.run([sys.executable, "-c", code, str(path), str(n)]).returncode
    assert run(tmp_path / "whole.jsonl", 0) == 0
    assert run(tmp_path / "cut.jsonl", 150) == -signal.SIGKILL
    with open(tmp_path / "cut.jsonl", "a") as f: f.write('{"env": "half a li')
    assert run(tmp_path / "cut.jsonl", 0) == 0
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_file_of_another_run_is_refused(tmp_path):
    world = Corridor(); tasks = [world.task(i) for i in range(4)]
    rollout(world, EAST, make_rows(tasks), 0, 5, path=tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="other episodes"): rollout(world, EAST, make_rows(tasks), 1, 5, path=tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="other episodes"): rollout(world, EAST, make_rows(tasks), 0, 5, path=tmp_path / "a.jsonl", env="another")
    with pytest.raises(UserError, match="did two runs write"): rollout(world, EAST, make_rows(tasks[:2]), 0, 5, path=tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="nothing to roll out"): rollout(world, EAST, [], 0, 5)


@pytest.mark.parametrize("wrong,said", [(dict(chunk=0), "chunk must be at least 1"), (dict(chunk=-1), "chunk must be at least 1"), (dict(horizon=0), "horizon must be at least 1")])
def test_sizes_that_roll_nothing_are_refused(wrong, said, tmp_path):
    world = Corridor()
    with pytest.raises(UserError, match=said): rollout(world, EAST, make_rows([world.task()]), 0, **{"horizon": 5, **wrong}, path=tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_names_its_turn(reward):
    class Broken(Corridor):
        def step(self, states, actions, keys): return [replace(o, reward=reward) if s.obs == "room 1" else o for s, o in zip(states, super().step(states, actions, keys))]
    world = Broken()
    with pytest.raises(UserError, match=f"Broken answered 'go east' with the reward {reward} at turn 1 of task corridor-0"): rollout(world, EAST, make_rows([world.task()]), 0, 5)


def test_memory_is_given_back_between_chunks(monkeypatch):
    "A process keeps what was freed in small pieces: every chunk ends with a call that returns it."
    calls, world = [], Corridor()
    monkeypatch.setattr("adwm.rollouts._give_back", lambda: calls.append(1))
    rollout(world, EAST, make_rows([world.task(i) for i in range(5)]), 0, 5, 2)
    assert len(calls) == 3


def test_epsilon_one_is_the_reference():
    world = Corridor(); rows = [Row(world.task(i), 1.0) for i in range(50)]
    a = rollout(world, EAST, rows, 0, 6); b = rollout(world, ScriptedPolicy("x", lambda s: "press"), rows, 0, 6)
    assert [[t.action for t in e.turns] for e in a] == [[t.action for t in e.turns] for e in b]


def test_mixture_probabilities_sum_to_one():
    world = Corridor(); u = world.domain.reference(world.task(), "room 0", world.choices)
    logp = np.log([.7, .2, .1]); logu = np.array([u.log_prob(a) for a in world.choices])
    for eps in (0, .1, .5, 1): assert abs(np.exp(mixture_log_prob(logp, logu, eps)).sum() - 1) < 1e-12


def test_policy_log_probs_of_logged_mixture():
    es = corridor_episodes(300, epsilon=.3); lps = policy_log_probs(EAST, es, .3, Corridor().domain)
    for e, lp in zip(es, lps):
        for t, x in zip(e.turns, lp):
            best = "press" if t.obs == "room 2" else "go east"
            assert abs(x - np.log(.8 if t.action == best else .1)) < 1e-12
    share = np.mean([t.action == ("press" if t.obs == "room 2" else "go east") for e in es for t in e.turns])
    assert abs(share - .8) < .04


def test_reference_needs_an_action():
    with pytest.raises(UserError, match="at least one action"): Reference([])
    assert ReferencePolicy(Corridor().domain).log_probs(corridor_episodes(2))[0].shape[0] > 0
