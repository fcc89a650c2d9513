"""The tabular process: laws, values, samples, and its three faces (simulator, agent, records)."""
import numpy as np
import pytest

from adwm.core import UserError, key_rng
from adwm.episodes import TERMINAL, Turn, from_line, to_line
from adwm.tabular import (TabularAgent, TabularDomain, TabularSimulator, action_values, draw, joint, law, lengths, locate, mix,
                          normalise, random_policy, random_process, returns, task_of, tilt, to_episodes, uniform_policy, value)

KINDS = [dict(), dict(vary_actions=True), dict(vary_length=True), dict(vary_actions=True, vary_length=True, dense=True), dict(deterministic=True, dense=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 3, 3), (2, 3, 4), (1, 2, 5)])
def test_law_sums_to_one_and_value_agrees_with_backward_induction(kind, shape):
    p = random_process(1, *shape, **kind)
    pi = random_policy(p, 2, 2.0)
    for policy in (pi, uniform_policy(p), mix(pi, 0.3, uniform_policy(p))):
        assert abs(law(p, policy).sum() - 1) < 1e-12
        for discount in (1.0, 0.7):
            assert abs(law(p, policy) @ returns(p, discount) - value(p, policy, discount)) < 1e-12


def test_enumeration_against_a_plain_recursion():
    p = random_process(5, vary_actions=True, vary_length=True, dense=True)
    pi = random_policy(p, 6)

    def walk(t, n):
        out = 0.0
        for a in np.flatnonzero(p.legal[t][n]):
            for o in range(p.n_obs + 1):
                prob = pi[t][n, a] * p.step[t][n, a, o]
                if prob > 0: out += prob * (p.reward[t][n, a, o] + (0 if o == p.n_obs else walk(t + 1, p.child[t][n, a, o])))
        return out
    assert abs(sum(p.start[i] * walk(0, i) for i in range(len(p.start))) - value(p, pi)) < 1e-12


def test_joint_recovers_policy_and_environment():
    p = random_process(3, vary_actions=True, vary_length=True)
    pi = random_policy(p, 4)
    mass = joint(p, law(p, pi))
    for t in range(p.horizon):
        assert np.abs(normalise(mass)[t] - p.step[t]).max() < 1e-12
        assert np.abs(normalise([m.sum(-1) for m in mass])[t] - pi[t]).max() < 1e-12


def test_tilt_stays_finite_at_language_model_scale():
    q, log_z = tilt(np.log([0.5, 0.3, 0.2]), np.array([-500.0, 500.0, 499.0]))
    assert np.isfinite(q).all() and abs(q.sum() - 1) < 1e-12 and q[1] > q[2] > q[0] >= 0 and abs(log_z - 500) < 2


def test_samples_follow_the_law():
    p = random_process(7, vary_length=True, dense=True)
    pi = random_policy(p, 8)
    s = draw(p, pi, 60_000, key_rng(0, "test"))
    g, l = s.reward.sum(1), s.alive.sum(1)
    for x, exact in ((g, value(p, pi)), (l, law(p, pi) @ lengths(p))): assert abs(x.mean() - exact) < 4 * x.std() / 60_000**0.5
    q, v = action_values(p, pi)
    assert abs((s.look_up(v)[:, 0]).mean() - value(p, pi)) < 0.01 and s.look_up(q).shape == g.shape + (p.horizon,)


def test_rollout_through_the_protocol_is_batch_independent_and_follows_the_law():
    rollouts = pytest.importorskip("adwm.rollouts")
    p = random_process(23, vary_actions=True, vary_length=True)
    pi = random_policy(p, 1, 2.0)
    agent, tasks = TabularAgent("target", p, pi), [task_of(p, 0), task_of(p, 1)]
    rows = rollouts.make_rows(tasks, [0.0, 0.5], 300)
    one = rollouts.rollout(TabularSimulator(p), agent, rows, 0, p.horizon, env="tabular")
    two = rollouts.rollout(TabularSimulator(p), agent, rows, 0, p.horizon, chunk=7, env="tabular")
    assert one == two and all(e.terminated and e.last_obs == TERMINAL for e in one)
    for eps in (0.0, 0.5):
        policy = mix(pi, eps, uniform_policy(p))
        v = action_values(p, policy)[1][0]
        for i in (0, 1):
            g = np.array([e.ret for e in one if e.epsilon == eps and e.task.id == f"tabular-{i}"])
            assert abs(g.mean() - v[i]) < 4 * g.std() / len(g) ** 0.5


def test_records_round_trip_and_log_probabilities_agree():
    p = random_process(9, vary_actions=True, vary_length=True)
    b = random_policy(p, 3)
    episodes = to_episodes(p, draw(p, b, 50, key_rng(1, "pool")), b)
    assert [from_line(to_line(e), "line") for e in episodes] == episodes
    for e, lp in zip(episodes, TabularAgent("b", p, b).log_probs(episodes)):
        assert np.allclose(lp, [t.logp for t in e.turns], atol=1e-12) and len(locate(p, e.task, e.turns, e.last_obs)) == len(e.turns)
    assert len({(e.task.id, e.index) for e in episodes}) == 50


def test_domain_has_the_whole_interface():
    envs = pytest.importorskip("adwm.envs")
    for name in (n for n in dir(envs.Domain) if not n.startswith("_")): assert hasattr(TabularDomain, name), name
    p = random_process(0)
    task = task_of(p, 0)
    u = TabularDomain().reference(task, task.obs, task.choices)
    assert abs(np.exp([u.log_prob(a) for a in task.choices]).sum() - 1) < 1e-12 and u.log_prob("move 99") == -np.inf
    assert u.sample(key_rng(0, "u")) in task.choices


def test_bad_input_is_one_sentence():
    p, fixed = random_process(0), random_process(0, deterministic=True)
    s, gone = TabularSimulator(p), int((fixed.child[0][0, 0] < 0).argmax())
    state = s.reset([task_of(p, 0)], [(0,)])[0]
    move = (Turn("page 0", "move 0", 0.0),)
    for call in (lambda: random_process(0, n_actions=0), lambda: s.step([state], ["move 9"], [(0, 0)]), lambda: s.step([state], ["dance"], [(0, 0)]),
                 lambda: locate(p, task_of(p, 0), move, "page 9x"), lambda: locate(fixed, task_of(fixed, 0), move, f"page {gone}")):
        with pytest.raises(UserError) as err: call()
        assert "\n" not in str(err.value)
