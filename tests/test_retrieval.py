"The page index and the nearest-neighbour simulator: relations, ties, filters, composed lists, batching, held-out accuracy."
import time
from dataclasses import replace

import numpy as np
import pytest

from adwm.core import UserError
from adwm.envs import Domain, Outcome, State, advance
from adwm.episodes import TERMINAL, Episode, Task, Turn, split_by_task
from adwm.policies import ReferencePolicy, ScriptedPolicy
from adwm.retrieval import (NearestNeighbour, MatchWeights, PageIndex, TfIdf, by_template, follow, last_of_type, offered,
                            one_step, relations, split_by_policy, tune, weights_for)
from adwm.rollouts import make_rows, rollout
from adwm.webshop import WebShopDomain
from tests_helpers import small_shop


class Rooms(Domain):
    "Pages 'hall', 'shelf x', 'box y'; the type is the first word."
    def page_type(self, obs): return "end" if obs == TERMINAL else obs.split()[0]


def episode(steps, last=TERMINAL, task="t", policy="p", index=0, reward=1.0):
    "An episode from (page, action) pairs; the last turn pays."
    turns = tuple(Turn(o, a, reward * (i == len(steps) - 1), ("back", "take x")) for i, (o, a) in enumerate(steps))
    return Episode("rooms", Task(task, f"find {task}", steps[0][0], ("back",)), policy, 0.0, 0, index, turns, last, last == TERMINAL, last != TERMINAL)


WALK = episode([("hall", "open shelf red"), ("shelf red", "look"), ("shelf red", "open box one"), ("box one", "back"), ("shelf red", "take x")])


def test_relations_same_copy_new():
    assert relations(WALK, Rooms()) == ["new", "same", "new", "copy", "new"]


def test_a_repeated_act_that_brings_the_same_page_is_new_again():
    e = episode([("hall", "search a"), ("shelf a", "back"), ("hall", "search a"), ("shelf a", "take x")])
    assert relations(e, Rooms()) == ["new", "copy", "new", "new"]


def test_follow_uses_ones_own_history():
    mine, d = ["hall", "shelf blue", "box two"], Rooms()
    assert follow("same", "shelf red", mine, d) == "box two"
    assert follow("copy", "shelf red", mine, d) == "shelf blue"
    assert follow("new", "shelf red", mine, d) == "shelf red"
    assert follow("copy", "cellar", mine, d) == "cellar" and last_of_type(mine, "cellar", d) is None


def test_copy_is_transferred_not_the_text():
    nn = NearestNeighbour(PageIndex([WALK], Rooms()))
    history = (Turn("hall", "open shelf blue", 0.0), Turn("shelf blue", "open box two", 0.0))
    out = nn.step([State(Task("u", "find u", "hall"), "box two", ("back",), history)], ["back"], [(0, "u", 0, 2)])[0]
    assert out.state.obs == "shelf blue" and out.info["relation"] == "copy" and not out.terminated


def test_hard_filter_on_type_and_template():
    "A look in a box is answered by a look somewhere (same template), never by another act, however alike the words."
    nn = NearestNeighbour(PageIndex([WALK], Rooms()))
    out = nn.step([State(Task("t", "find t", "hall"), "box one", ("back",))], ["look"], [(0, "t", 0, 0)])[0]
    assert out.state.obs == "box one"
    out = nn.step([State(Task("t", "find t", "hall"), "hall", ("back",))], ["fly away"], [(0, "t", 0, 0)])[0]
    assert out.state.obs == "hall" and out.reward == 0 and "source" not in out.info


def test_other_tasks_answer():
    nn = NearestNeighbour(PageIndex([WALK, episode([("hall", "open cellar"), ("cellar", "take x")], task="other")], Rooms()))
    out = nn.step([State(Task("t", "find t", "hall"), "hall", ("back",))], ["open cellar"], [(0, "t", 0, 0)])[0]
    assert out.state.obs == "cellar" and out.info["source"] == (1, 0)


def test_ties_are_broken_by_the_rows_key_and_reach_all():
    logs = [episode([("hall", "toss coin"), (f"shelf {side}", "take x")], index=i) for i, side in enumerate(["heads", "tails"] * 5)]
    nn = NearestNeighbour(PageIndex(logs, Rooms()), weights=MatchWeights(fit=0))
    s = State(Task("t", "find t", "hall"), "hall", ("back",))
    keys = [(0, "t", r, 0) for r in range(60)]
    many = [o.state.obs for o in nn.step([s] * 60, ["toss coin"] * 60, keys)]
    assert 15 < many.count("shelf heads") < 45
    assert [nn.step([s], ["toss coin"], [k])[0].state.obs for k in keys] == many


def test_pages_without_known_choices_are_never_handed_out():
    logs = [episode([("hall", "open shelf red")], last="shelf red"), episode([("hall", "open shelf green"), ("shelf green", "take x")], index=1)]
    index = PageIndex(logs, Rooms())
    assert not index.playable[index.id["shelf red"]] and list(index.after("hall", "open")) == [index.id["shelf green"]]
    out = NearestNeighbour(index).step([State(Task("t", "find t", "hall"), "hall", ("back",))], ["open shelf red"], [(0, "t", 0, 0)])[0]
    assert out.state.obs == "shelf green" and out.state.choices


def test_index_knows_where_pages_occur_and_lookups_add_nothing():
    index = PageIndex([WALK], Rooms())
    assert index.occurrences[index.id["shelf red"]] == [(0, 1), (0, 2), (0, 4)] and index.occurrences[index.id[TERMINAL]] == [(0, 5)]
    assert index.nearest(["a red shelf"])[0][0] == index.id["shelf red"] and index.similar(["box one"]).shape == (1, len(index.pages))
    with pytest.raises(KeyError): index.id["nowhere"]
    with pytest.raises(UserError, match="empty pool"): PageIndex([], Rooms())


def test_unknown_words_make_a_match_imperfect():
    w = TfIdf(["red scarf", "blue hat"])
    same, half = (w(["red scarf", "red scarf unheard"]) @ w(["red scarf"]).T).toarray().ravel()
    assert same == pytest.approx(1, abs=1e-6) and half < .9 and w([""]).nnz == 0


def test_reward_is_logged_without_a_readout_and_read_with_one():
    index = PageIndex([WALK], Rooms())
    s = State(Task("t", "find t", "hall"), "shelf red", ("back",), (Turn("hall", "open shelf red", 0.0),))
    assert NearestNeighbour(index).step([s], ["take x"], [(0, "t", 0, 0)])[0].reward == 1
    seen = []

    class Readout:
        def predict(self, tasks, turns, actions, pages): seen.append((turns, actions, pages)); return np.array([.25])
    out = NearestNeighbour(index, Readout()).step([s], ["take x"], [(0, "t", 0, 0)])[0]
    assert out.terminated and out.reward == .25 and out.state.turns[-1].reward == .25 and seen == [([s.turns], ["take x"], ["shelf red"])]


def test_offered():
    d = WebShopDomain()
    item = "Back to Search [SEP] < Prev [SEP] color [SEP] red [SEP] blue [SEP] wool hat [SEP] Price: $5.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
    other = item.replace("red", "green")
    clicks = ("click[red]", "click[blue]", "click[buy now]")
    assert offered(d, other, clicks, item, (Turn(item, "click[blue]", 0.0),)) and not offered(d, other, clicks, item, (Turn(item, "click[red]", 0.0),))
    assert not offered(d, TERMINAL, (), item, (Turn(item, "click[blue]", 0.0),)) and offered(d, TERMINAL, (), TERMINAL, ())


@pytest.fixture(scope="module")
def market():
    "A small shop, its logs by the expert at two rates of random acts, and other episodes on the same tasks."
    real, best = small_shop(2, 120, 30, goal_seed=2)
    domain, teacher = real.domain, ScriptedPolicy("expert", best)
    lazy = ScriptedPolicy("lazy", lambda s: "click[buy now]" if domain.page_type(s.obs) == "item" else best(s))
    logs = rollout(real, teacher, make_rows(real.tasks(), [.3]), 0, 12) + rollout(real, lazy, make_rows(real.tasks(), [.3]), 1, 12)
    return real, domain, logs, rollout(real, teacher, make_rows(real.tasks(), [.15]), 5, 12)


def test_structure_beats_raw_text_on_held_out_episodes(market):
    real, domain, logs, test = market
    index = PageIndex(logs, domain)
    score = {name: by_template(one_step(sim, test, index=index), index)[-1] for name, sim in
             dict(raw=NearestNeighbour(index, structured=False), structured=NearestNeighbour(index, compose=False), composed=NearestNeighbour(index)).items()}
    assert score["structured"]["exact"] > score["raw"]["exact"] and score["composed"]["offered"] >= score["structured"]["offered"] - .01
    assert score["structured"]["exact"] > .7 and score["structured"]["alike"] > .85


def test_logged_steps_are_answered_exactly(market):
    real, domain, logs, _ = market
    rows = by_template(one_step(NearestNeighbour(PageIndex(logs, domain)), logs[:20], index=PageIndex(logs, domain)))
    table = {r["template"]: r for r in rows}
    assert table["search"]["exact"] == 1 and table["search"]["twin"] == 1 and table["all"]["exact"] > .95


def test_batching_does_not_matter(market):
    real, domain, logs, test = market
    nn = NearestNeighbour(PageIndex(logs, domain))
    steps = [(State(e.task, t.obs, t.choices, e.turns[:i]), t.action, (3, e.task.id, e.index, i)) for e in test for i, t in enumerate(e.turns)][:80]
    together = nn.step(*map(list, zip(*steps)))
    order = np.random.default_rng(0).permutation(len(steps))
    apart = nn.step(*map(list, zip(*[steps[i] for i in order])))
    assert all(together[i].state.obs == o.state.obs and together[i].reward == o.reward for i, o in zip(order, apart))


def test_composed_lists(market):
    real, domain, logs, _ = market
    nn = NearestNeighbour(PageIndex(logs, domain))
    s = State(logs[0].task, logs[0].task.obs, logs[0].task.choices)
    first = nn.step([s], ["search[a query of words nobody typed before hat]"], [(0, "x", 0, 0)])[0].state
    assert domain.page_type(first.obs) == "results" and 0 < len(domain.lines(first.obs)) <= 10
    second = nn.step([first], ["click[next >]"], [(0, "x", 0, 1)])[0].state
    assert not {t for t, _ in domain.lines(first.obs)} & {t for t, _ in domain.lines(second.obs)} and "Page 2" in second.obs
    again = nn.step([second], ["click[back to search]"], [(0, "x", 0, 2)])[0].state
    assert domain.page_type(again.obs) == "index"
    pick = [c for c in first.choices if c.startswith("click[b0")][0]
    item = nn.step([first], [pick], [(0, "x", 0, 1)])[0].state
    line = next(a for t, a in domain.lines(first.obs) if t.lower().startswith(pick[6:-1]))
    assert domain.page_type(item.obs) == "item" and line.split(" $")[0] in item.obs and f"Price: ${line.split(' $')[1]}" in item.obs


def test_tuning_and_splits(market):
    real, domain, logs, _ = market
    folds = split_by_policy(logs)
    assert [{e.policy for e in test} for _, test in folds] == [{"expert"}, {"lazy"}]
    weights, table = tune(folds[:1], domain, (MatchWeights(argument=0, page=0, task=0, hidden=0, fit=0), MatchWeights()))
    assert weights["item"] == MatchWeights() and all(r["offered chosen"] >= r["offered default"] for r in table)
    with pytest.raises(UserError, match="only one policy"): split_by_policy([e for e in logs if e.policy == "lazy"])
    assert tune(split_by_task(logs, 3)[:1], domain, (MatchWeights(),))[0][""] == MatchWeights()


def test_generic_logs_without_types():
    "Logs of an unknown environment: one page type, verbs as templates."
    nn = NearestNeighbour(PageIndex([WALK], Domain()))
    out = nn.step([State(Task("t", "find t", "hall"), "hall", ("back",))], ["open shelf red"], [(0, "t", 0, 0)])[0]
    assert out.state.obs == "shelf red"


def test_fast_enough(market):
    real, domain, logs, test = market
    nn = NearestNeighbour(PageIndex(logs, domain))
    steps = [(State(e.task, t.obs, t.choices, e.turns[:i]), t.action, (3, e.task.id, e.index, i)) for e in test for i, t in enumerate(e.turns)]
    start = time.process_time()
    nn.step(*map(list, zip(*steps)))
    assert (time.process_time() - start) / len(steps) < .003, "10,000 predictions take more than half a minute"


class Houses(Rooms):
    "Every task is a house of its own; what a move concerns is its argument, and whether it was painted."
    def world(self, task, turns, action, obs): return task.id, " ".join(t.action for t in turns if t.action.startswith("paint"))

    def move_kind(self, action, obs): return "", self.template(action, obs)[0]

    def amend(self, state, action, page, choices): return page + " with a lamp" if any(t.action == "take lamp" for t in state.turns) else page, (*choices, "sit")


def test_a_move_is_answered_from_its_own_world_and_its_state():
    "Two houses with a shelf red each; in house b it was painted in one of two episodes."
    painted = episode([("hall", "paint red"), ("hall wet", "open red"), ("shelf red new", "take x")], task="b", index=1)
    pool = [episode([("hall", "open red"), ("shelf of a", "take x")], task="a"), episode([("hall", "open red"), ("shelf of b", "take x")], task="b"), painted]
    ask = lambda task, turns=(): State(Task(task, "find it", "hall"), "hall", ("back",), turns)
    step = lambda domain, s: NearestNeighbour(PageIndex(pool, domain)).step([s], ["open red"], [(0, "x", 0, 0)])[0].state
    assert step(Houses(), ask("a")).obs == "shelf of a" and step(Houses(), ask("b")).obs == "shelf of b"
    assert step(Houses(), ask("b", (Turn("hall", "paint red", 0.0),))).obs == "shelf red new", "in the same state of its world"
    assert step(Houses(), ask("c")).obs.startswith("shelf"), "a house that was never logged is answered from the others"
    assert "sit" in step(Houses(), ask("a")).choices and step(Houses(), ask("a", (Turn("hall", "take lamp", 0.0),))).obs == "shelf of a with a lamp"
    assert "sit" not in step(Rooms(), ask("a")).choices and Rooms().world(None, (), "", "") == ("", "") and not Rooms().many_worlds


def test_a_domain_without_worlds_is_scored_as_before():
    index = PageIndex([WALK], Rooms())
    nn, state = NearestNeighbour(index), State(Task("u", "find u", "hall"), "shelf red", ("back",))
    q = nn.matcher.query(state, "open box two")
    assert "world" not in nn.matcher.parts(q.kind, [q])
    assert np.array_equal(nn.matcher.score(q.kind, [q], MatchWeights()), nn.matcher.score(q.kind, [q], MatchWeights(world=0.0)))


class Says:
    "A readout of ends that says the same of every move."
    def __init__(self, p): self.p = p

    def predict(self, tasks, turns, actions, pages): return np.full(len(tasks), self.p)


def test_ends_are_judged_before_a_page_is_looked_up():
    ask = [State(Task("t", "find t", "hall"), "shelf red", ("back",))]
    step = lambda p, a: NearestNeighbour(PageIndex([WALK], Rooms()), ending=Says(p)).step(ask, [a], [(0, "t", 0, 0)])[0]
    assert step(np.nan, "take x").terminated and step(1.0, "take x").terminated and step(1.0, "look").terminated
    assert not step(0.0, "look").terminated and not step(np.nan, "look").terminated
    on = step(0.0, "take x")
    assert not on.terminated and on.state.obs == "shelf red", "every logged move of its kind ended, so nothing changes"


WAY = {("hall", "east"): "kitchen", ("kitchen", "west"): "hall", ("hall", "south"): "cellar", ("cellar", "north"): "hall",
       ("kitchen", "south"): "garden", ("garden", "north"): "kitchen", ("cellar", "east"): "garden", ("garden", "west"): "cellar"}


class FourRooms:
    "Four rooms in a square; a lamp stands in the garden, and taking it there pays 1 and ends."
    choices = ("go north", "go east", "go south", "go west", "take lamp")

    def __init__(self, text, pages): self.text, self.pages, self.domain = text, pages, Domain()

    def task(self, i): return Task(f"t{i}", self.text, self.pages["hall"], self.choices)

    def reset(self, tasks, keys): return [State(t, t.obs, t.choices) for t in tasks]

    def room(self, page): return next(r for r, p in self.pages.items() if p == page)

    def step(self, states, actions, keys):
        out = []
        for s, a in zip(states, actions):
            won = a == "take lamp" and self.room(s.obs) == "garden"
            obs = TERMINAL if won else self.pages[WAY.get((self.room(s.obs), a.split()[1]), self.room(s.obs))]
            out.append(Outcome(advance(s, a, won, obs, () if won else self.choices), float(won), won))
        return out


NAMED = {r: f"You are in the {r}. A {thing} stands here." for r, thing in dict(hall="coat", kitchen="pot", cellar="barrel", garden="lamp").items()}
NUMBERED = dict(hall="You stand at row 1, column 2.", kitchen="You stand at row 2, column 1.", cellar="You stand at row 2, column 3.", garden="You stand at row 3, column 2.")


@pytest.mark.parametrize("text, pages", [("take the lamp in the garden", NAMED), ("look around in the hall and in the cellar", NAMED), ("do it", NUMBERED)])
def test_what_the_logs_show_is_found_by_default(text, pages):
    "A stranger's deterministic world, every move of which was logged: the look-up plays it as it is, whatever the task's words are and however alike two pages."
    world = FourRooms(text, pages)
    rows = make_rows([world.task(i) for i in range(300)])
    pool = rollout(world, ReferencePolicy(world.domain), rows, 0, 12)
    index = PageIndex(pool, world.domain)
    for way in (["go south", "go east"], ["go east", "go south"], ["go east", "go west", "go south", "take lamp", "go north", "go south", "go east"]):
        target = ScriptedPolicy("target", lambda s: [*way, "take lamp"][min(len(s.turns), len(way))])
        real, imagined = (rollout(simulator, target, rows[:40], 0, 12) for simulator in (world, NearestNeighbour(index)))
        assert [e.pages for e in imagined] == [e.pages for e in real] and all(e.ret == 1 for e in imagined)


class Visited(FourRooms):
    "The same house, whose pages also name the visitor: no page is ever seen twice."
    def task(self, i): return Task(f"t{i}", self.text, f"{self.pages['hall']} Visitor {i}.", self.choices)

    def room(self, page): return super().room(page.split(" Visitor")[0])

    def step(self, states, actions, keys):
        bare = super().step(states, actions, keys)
        name = lambda s, o: o.state.obs if o.terminated else f"{o.state.obs} Visitor {s.task.id[1:]}."
        return [replace(o, state=replace(o.state, obs=name(s, o))) for s, o in zip(states, bare)]


def test_a_new_page_is_answered_by_the_page_most_like_it():
    "No twin anywhere: the page decides, not the words of the task."
    world = Visited("take the lamp in the garden", NAMED)
    pool = rollout(world, ReferencePolicy(world.domain), make_rows([world.task(i) for i in range(200)]), 0, 12)
    nn = NearestNeighbour(PageIndex(pool, world.domain))
    for room in NAMED:
        s = State(world.task(500), f"{NAMED[room]} Visitor 500.", world.choices)
        found = [o.state.obs for o in nn.step([s] * 4, list(world.choices[:4]), [(0, "t500", 0, 0)] * 4)]
        assert [world.room(page) for page in found] == [WAY.get((room, side.split()[1]), room) for side in world.choices[:4]]


def test_the_domain_says_what_its_look_up_weighs():
    class Shop(Rooms): look_up = {"fit": 3.0, "twin": 0.0}
    assert weights_for(Rooms()) == MatchWeights() and weights_for(Shop()) == MatchWeights(fit=3.0, twin=0.0)
    nn = NearestNeighbour(PageIndex([WALK], Shop()))
    assert nn.find.weights[""] == weights_for(Shop()) and NearestNeighbour(PageIndex([WALK], Shop()), weights=MatchWeights()).find.weights[""] == MatchWeights()
    assert tune([([WALK], [replace(WALK, policy="q")])], Shop())[0][""] == weights_for(Shop())


def test_a_twin_is_the_same_act_on_the_same_page_in_the_same_state():
    nn = NearestNeighbour(PageIndex([WALK], Rooms()))
    ask = lambda page, action: [nn.matcher.same_act(nn.matcher.group(q.kind), [q]).sum() for q in [nn.matcher.query(State(Task("t", "find t", "hall"), page, ()), action)]]
    assert ask("shelf red", "open box one") == [1] and ask("shelf red", "open box two") == [0] and ask("hall", "open box one") == [0] and ask("hall", "open shelf red") == [1]
    index = PageIndex([episode([("hall", "open red"), ("shelf", "take x")], task="a"), episode([("hall", "open red"), ("shelf", "take x")], task="b")], Houses())
    matcher = NearestNeighbour(index).matcher
    q = matcher.query(State(Task("a", "find it", "hall"), "hall", ()), "open red")
    assert matcher.same_act(matcher.group(q.kind), [q]).tolist() == [[1.0, 0.0]], "another house is another world"


def test_where_an_act_leads_are_pages_that_were_new_then():
    "A door that stayed shut shows the hall again: the hall is not where `open` leads."
    index = PageIndex([episode([("hall", "open red"), ("hall", "open blue"), ("shelf blue", "take x")])], Rooms())
    assert [index.pages[i] for i in index.after("hall", "open")] == ["shelf blue"]
