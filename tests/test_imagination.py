"The world model as a simulator: protocol, keys, snapping, ends, rewards, generic logs."
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from adwm.core import UserError, key_rng
from adwm.envs import Corridor, Domain, State
from adwm.episodes import TERMINAL, Episode, Task, Turn
from adwm.fitting import FitConfig, fit
from adwm.imagination import AdwmSimulator, Imagine, choose_page, logged_end, reading
from adwm.policies import ReferencePolicy
from adwm.retrieval import PageIndex, by_template, one_step
from adwm.rollouts import make_rows, rollout

torch.set_num_threads(1)
TINY = dict(buckets=256, page_words=8, width=16, context=32, hidden=48, heads=2, history_layers=1, K=20)
HOW = FitConfig(joint=50, cached=150, batch=12, rows=64, every=50, lr=2e-3)


class Rooms(Domain):
    "Pages 'kind: text'."
    def page_type(self, obs): return "end" if obs == TERMINAL else obs.split(":")[0]


NAMES = [f"{c} {x}" for c in ("red", "blue", "green", "white") for x in ("cup", "hat", "sock")]


def pool(n=60, start=0):
    out = []
    for i in range(start, start + n):
        rng = key_rng(0, "rooms", i)
        name, hall = NAMES[rng.integers(len(NAMES))], ("open",)
        turns = [Turn("hall: doors", f"open {name}", 0., hall)]
        if rng.random() < .5: turns += [Turn(f"room: a {name}", "back", 0., ("back", "take")), Turn("hall: doors", f"open {name}", 0., hall)]
        turns.append(Turn(f"room: a {name}", "take", float("red" in name), ("back", "take")))
        out.append(Episode("rooms", Task(f"t{i}", f"take a {name}", "hall: doors", hall), "b", 0., 0, i, tuple(turns), TERMINAL, True, False))
    return out


class Half:
    "A readout that says one half."
    def predict(self, tasks, turns, actions, pages): return np.full(len(tasks), .5)


@lru_cache(maxsize=None)
def fitted(setting="ours"): return fit(pool(), Rooms(), setting, 0, HOW, **TINY)


@lru_cache(maxsize=None)
def index(): return PageIndex(pool(), Rooms())


def sim(setting="ours", readout=None, **how):
    base = Imagine.paper() if setting == "paper" else Imagine()
    return AdwmSimulator(fitted(setting), index(), readout, replace(base, **how), adapter=(lambda z: z[:, None]) if setting == "paper" else None)


def start(n=5): return [State(e.task, e.turns[0].obs, e.turns[0].choices) for e in pool(n)]


def keys(states, turn=0): return [(3, s.task.id, 0, turn) for s in states]


def test_choose_page_weighs_latent_and_words():
    pages, z = torch.eye(2)*2, torch.tensor([[2., .5]])
    best, distance = choose_page(z, pages, None, 1.)
    assert best == 0 and torch.allclose(distance, torch.tensor([(.25/4)**.5]))
    assert choose_page(z, pages, torch.tensor([[0., 1.]]), 3.)[0] == 1


def test_held_out_steps_are_exact():
    rows = one_step(sim(), pool(20, 500))
    table = {r["template"]: r["exact"] for r in by_template(rows, index())}
    assert table["take"] == 1 and table["back"] == 1 and table["all"] > .95
    assert {r["relation"] for r in rows} <= {"end", "new", "again", "copy hall", "copy room", "same"}
    assert all(0 <= r["alike"] <= 1 + 1e-6 for r in by_template(rows, index()))


def test_rows_do_not_depend_on_the_batch():
    for s in (sim(relation="sample", words=0.), sim("paper")):
        states = start(); actions = [f"open {n}" for n in NAMES[:5]]
        together = s.step(states, actions, keys(states))
        order = [3, 0, 4, 1, 2]
        shuffled = s.step([states[i] for i in order], [actions[i] for i in order], [keys(states)[i] for i in order])
        alone = s.step(states[3:4], actions[3:4], keys(states)[3:4])
        assert [together[i].state.obs for i in order] == [o.state.obs for o in shuffled] and alone[0].state.obs == together[3].state.obs
        assert abs(alone[0].info["togo"] - together[3].info["togo"]) < 1e-5


def test_pasts_of_different_length_mix():
    s, states = sim(), start(3)
    first = s.step(states, [f"open {n}" for n in NAMES[:3]], keys(states))
    mixed = [first[0].state, states[1], first[2].state]
    out = s.step(mixed, ["back", "open blue cup", "take"], keys(mixed, 1))
    assert [len(o.state.turns) for o in out] == [2, 1, 2]
    assert out[0].state.obs == "hall: doors" and out[0].info["relation"] == "copy hall" and out[2].terminated and not out[1].terminated


def test_generated_pages_follow_the_argument():
    s, states = sim(words=0.), start(12)
    out = s.step(states, [f"open {n}" for n in NAMES], keys(states))
    assert np.mean([o.state.obs == f"room: a {n}" for o, n in zip(out, NAMES)]) > .8
    assert all(o.info["distance"] < 1 and o.state.choices == ("back", "take") for o in out)
    assert s.index.pages[out[0].info["page"]] == out[0].state.obs


def test_the_mean_is_deterministic_and_a_draw_is_keyed():
    states = start(1)*4
    z = lambda s, k: [o.info["distance"] for o in s.step(states, ["open red cup"]*4, k)]
    k = [(3, "t0", i, 0) for i in range(4)]
    mean = AdwmSimulator(fitted(), index(), how=Imagine.regression())
    assert np.ptp(z(mean, k)) < 1e-6
    assert len(set(np.round(z(sim(), k), 6))) == 4 and np.ptp(z(sim(), k[:1]*4)) < 1e-6


def test_ends_from_the_logs():
    assert logged_end(index(), ("room", "take")) == 1 and logged_end(index(), ("hall", "open")) == 0
    assert logged_end(index(), ("room", "jump")) is None


def test_rewards_of_ours():
    e = pool(1)[0]
    at_room = State(e.task, "room: a red cup", ("back", "take"), (Turn("hall: doors", "open red cup", 0., ("open",)),))
    end, go = (sim(readout=Half()).step([at_room], [a], [(3, "t0", 0, 1)])[0] for a in ("take", "back"))
    assert (end.terminated, end.reward, end.state.obs, end.state.choices) == (True, .5, TERMINAL, ())
    assert not go.terminated and go.reward == 0
    head = sim().step([at_room], ["take"], [(3, "t0", 0, 1)])[0]
    assert abs(head.reward - head.info["togo"]) < 1e-9 and 0 <= head.reward <= 1


def test_paper_carries_its_own_latents_and_pays_every_turn():
    s, states = sim("paper"), start(2)
    out = s.step(states, ["open red cup"]*2, keys(states))
    assert out[0].state.extra.shape == (2, 64) and out[0].state.soft.shape == (1, 64)
    assert torch.allclose(out[0].state.soft[0], out[0].state.extra[1])
    nearest = s.latents[out[0].info["page"]]
    assert not torch.allclose(out[0].state.extra[1], nearest, atol=1e-3)
    assert all(o.reward == o.info["togo"] > 0 for o in out)
    again = s.step([o.state for o in out], ["take"]*2, keys(states, 1))
    assert len(again) == 2


def test_guidance_of_the_action_changes_the_draw():
    states = start(2)
    z = [torch.stack([o.state.extra[1] for o in sim("paper", beta=b, sampler="ddim").step(states, ["open red cup"]*2, keys(states))]) for b in (0., 1., 1.5)]
    assert not torch.allclose(z[0], z[1]) and not torch.allclose(z[1], z[2]) and all(torch.isfinite(x).all() for x in z)


def test_a_continuation_guide_is_called_with_the_rows():
    seen = []
    def continuation(states, actions, keys):
        seen.append((len(states), actions[0]))
        return lambda zk, k, eps_fn: eps_fn(zk, k)
    s = AdwmSimulator(fitted("paper"), index(), how=Imagine.paper(gamma=1.), adapter=lambda z: z[:, None], continuation=continuation)
    plain, states = sim("paper"), start(2)
    a, b = (x.step(states, ["open red cup"]*2, keys(states)) for x in (s, plain))
    assert seen == [(2, "open red cup")] and torch.allclose(a[0].state.extra, b[0].state.extra)


def test_readings():
    rows = make_rows([e.task for e in pool(4)])
    dream = rollout(sim("paper"), ReferencePolicy(Rooms()), rows, 0, 4)
    assert all(abs(reading(e) - sum(t.reward for t in e.turns)) < 1e-9 and reading(e, "last") == e.turns[-1].reward for e in dream)
    with pytest.raises(UserError, match="reading"): reading(dream[0], "mean")


def test_refusals():
    with pytest.raises(UserError, match="adapter"): AdwmSimulator(fitted("paper"), index())
    with pytest.raises(UserError, match="continuation"): AdwmSimulator(fitted(), index(), how=Imagine(gamma=1.))


def test_generic_logs_of_a_user():
    corridor = Corridor()
    tasks = [corridor.task(i) for i in range(30)]
    logs = rollout(corridor, ReferencePolicy(corridor.domain), make_rows(tasks), 0, 10, env="corridor")
    f = fit(logs, Domain(), "ours", 0, FitConfig(joint=60, cached=100, batch=12, rows=64, every=50, lr=2e-3), **TINY)
    s = AdwmSimulator(f, PageIndex(logs, Domain()))
    test = rollout(corridor, ReferencePolicy(corridor.domain), make_rows(tasks[:8]), 1, 10, env="corridor")
    assert by_template(one_step(s, test))[-1]["exact"] > .8
    dream = rollout(s, ReferencePolicy(corridor.domain), make_rows(tasks[:8]), 0, 10)
    assert len(dream) == 8 and any(e.terminated for e in dream)


def test_unseen_lists_are_composed_and_unseen_items_adapted():
    from adwm.policies import ScriptedPolicy
    from adwm.shop import SEP
    from adwm.webshop import read_page
    from tests_helpers import small_shop
    real, best = small_shop(1, 60, 12, goal_seed=1)
    domain, logs = real.domain, rollout(real, ScriptedPolicy("expert", best), make_rows(real.tasks(), [.3]), 3, 10, env="webshop")
    f, pages = fit(logs, domain, "ours", 0, replace(HOW, joint=6, cached=6), **TINY), PageIndex(logs, domain)
    lines = {text for p in pages.pages for text, _ in domain.lines(p)}
    states = [State(t, t.obs, t.choices) for t in real.tasks()[:3]]
    words = ["search[wool cotton blue thing]", "search[small red]", f"search[{best(real.reset([states[2].task], [()])[0])[7:-1]}]"]
    made, plain = (AdwmSimulator(f, pages, how=Imagine(compose=c)) for c in (True, False))
    out, old = made.step(states, words, keys(states)), plain.step(states, words, keys(states))
    for o in out[:2]:
        shown = [text for text, _ in domain.lines(o.state.obs)]
        assert o.info["relation"] == "new" and set(shown) <= lines and len(shown) == len(set(shown)) > 0
        assert {f"click[{x.split(SEP)[0].lower()}]" for x in shown} <= set(o.state.choices)
    assert all(o.state.obs in pages.id for o in old) and out[0].info["made"] and not old[0].info["made"]
    line = next(x for x in domain.lines(out[0].state.obs) if ("results", "item", x[1]) not in pages.acts)
    item = made.step([out[0].state], [f"click[{line[0].split(SEP)[0].lower()}]"], [(3, "t", 0, 1)])[0].state
    page = read_page(item.obs, domain.names)
    assert page.kind == "item" and f"{page.title} {page.price}" == line[1] and "click[buy now]" in item.choices


class Carried(Rooms):
    "What was taken stays in hand, whatever page is found."
    def amend(self, state, action, page, choices): return (page + " (in hand)" if any(t.action == "take" for t in state.turns) else page), (*choices, "sing")


def test_the_domain_amends_what_was_imagined_and_a_text_readout_ends():
    class Always:
        def predict(self, tasks, turns, actions, pages): return np.array([1. if a == "back" else np.nan for a in actions])
    pages = PageIndex(pool(), Carried())
    s = AdwmSimulator(fitted(), pages, how=Imagine(), ending=Always())
    state = [replace(x, turns=(Turn("hall: doors", "take", 0.),)) for x in start(3)]
    for out in s.step(state, [x.choices[0] for x in state], keys(state)):
        assert out.state.obs.endswith("(in hand)") and "sing" in out.state.choices and not out.terminated
    assert all(o.terminated for o in s.step(state, ["back"]*3, keys(state)))
    plain = AdwmSimulator(fitted(), index()).step(start(3), [x.choices[0] for x in start(3)], keys(start(3)))
    amended = s.step(start(3), [x.choices[0] for x in start(3)], keys(start(3)))
    assert [o.state.obs for o in plain] == [o.state.obs for o in amended], "nothing was taken, nothing is changed"
