"An episode that the horizon cuts off keeps what it has earned, where the domain says so."
import numpy as np
from adwm.envs import Corridor, Domain, Outcome
from adwm.episodes import TERMINAL
from adwm.policies import ReferencePolicy
from adwm.readouts import TextReadout, ends, gate
from adwm.retrieval import NearestNeighbour, PageIndex
from adwm.rollouts import make_rows, rollout


class Shaped(Corridor):
    "The corridor, but the middle room pays .5 at once, the lamp .5 more, and what was earned is kept."
    def __init__(self):
        super().__init__(3)
        class Kept(Domain):
            pays_at_truncation = True
            def page_type(self, obs): return "end" if obs == TERMINAL else obs
            def features(self, task, turns, last_action, last_obs):
                seen = {t.obs for t in turns} | {last_obs}
                east = last_action == "go east" and last_obs == "room 0"
                return np.array([1.0, "room 1" in seen or east, last_action == "press" and last_obs == "room 2"], float)
        self.domain = Kept()

    def step(self, states, actions, keys):
        out = []
        for s, o in zip(states, super().step(states, actions, keys)):
            first = o.state.obs == "room 1" != s.obs and all(t.obs != "room 1" for t in s.turns)
            reward = 0.5 * first + 0.5 * o.terminated
            turn = o.state.turns[-1].__class__(s.obs, o.state.turns[-1].action, reward, s.choices)
            o.state.turns = (*s.turns, turn)
            out.append(Outcome(o.state, reward, o.terminated))
        return out


def test_value_is_kept_at_the_cap():
    world = Shaped(); tasks = [world.task(i) for i in range(60)]
    policy = ReferencePolicy(world.domain)
    pool = rollout(world, policy, make_rows(tasks, [1.0], 4), 0, 5, env="corridor")
    assert any(e.truncated and e.ret == 0.5 for e in pool) and any(e.ret == 1 for e in pool)
    assert len(ends(pool, True).rewards) == len(pool) > len(ends(pool).rewards) and np.allclose(ends(pool, True).rewards, [e.ret for e in pool])
    readout = TextReadout(world.domain).fit(pool)
    dream = rollout(NearestNeighbour(PageIndex(pool, world.domain), readout), policy, make_rows(tasks, [1.0], 4), 1, 5)
    assert abs(np.mean([e.ret for e in dream]) - np.mean([e.ret for e in pool])) < 0.06
    for kind in (True, False):
        a, b = ([e.ret for e in es if e.truncated == kind] for es in (dream, pool))
        assert abs(np.mean(a) - np.mean(b)) < 0.08, (kind, np.mean(a), np.mean(b))
    report = gate(lambda es: TextReadout(world.domain).fit(es), pool, cut=True)
    assert report.passed and report.n == len(pool), report
    world.domain.__class__.pays_at_truncation = False   # the rule of before: cut-off episodes are worth nothing to the readout
    assert len(ends(pool, world.domain.pays_at_truncation).rewards) < len(pool)
