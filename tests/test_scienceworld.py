"ScienceWorld: gold paths win, replays are identical, rewards sum to the value, a Java that dies or hangs and a killed collection lose nothing, bad input."
import os, signal

import numpy as np
import pytest

from adwm import scienceworld as sw
from adwm.core import UserError, key_rng, root
from adwm.envs import State, advance
from adwm.episodes import TERMINAL, Task, Turn, read_episodes, to_line
from adwm.policies import ReferencePolicy
from adwm.rollouts import Row, make_rows, rollout
from tests_helpers import survives_a_kill

needs_engine = pytest.mark.skipif(sw.scienceworld_missing() is not None, reason=sw.scienceworld_missing() or "")


@pytest.fixture(scope="module")
def sim():
    simulator = sw.ScienceWorldSimulator(engines=1, short=True, teleport=True)
    yield simulator
    simulator.close()


# without the engine

LOOK = "This outside location is called the outside. Here you see: \n\tthe agent\n\ta substance called air\n\tan axe\n\ta baby beaver\n\ta dove egg\n\ta fountain (containing a substance called water)\n\tthe ground\nYou also see:\n\tA door to the kitchen (that is open)\n"
PAGE = sw.compose("You move to the outside.", LOOK, "In your inventory, you see:\n\tan orange\n")
CHOICES = ("focus on axe", "focus on dove", "go to kitchen", "look around", "pick up axe", "pick up dove", "put down orange", "teleport to hallway", "wait1")


def test_page_is_taken_apart():
    assert sw.room_of(PAGE) == "outside" and sw.message_of(PAGE) == "You move to the outside."
    here, doors, held = sw.things(PAGE)
    assert here == ["axe", "baby beaver", "dove egg", "fountain (containing water)", "ground"] and doors == ["kitchen"] and held == ["orange"]
    assert sw.compose(LOOK, LOOK, "x") == LOOK.strip() + "\nx"


def test_reference_is_exact_and_verb_balanced():
    ref = sw.ScienceWorldDomain().reference(None, PAGE, CHOICES)
    verbs = [sw.split_action(a)[0] for a in ref.actions]
    assert abs(ref.probs.sum() - 1) < 1e-12 and len(set(verbs)) == 7
    for v in set(verbs): assert abs(sum(np.exp(ref.log_prob(a)) for a, w in zip(ref.actions, verbs) if w == v) - 1 / 7) < 1e-12
    without = sw.ScienceWorldDomain(focus=False).reference(None, PAGE, CHOICES)
    assert without.log_prob("focus on axe") == -np.inf and abs(without.log_prob("go to kitchen") - np.log(1 / 6)) < 1e-12


def test_templates_and_snapping():
    d = sw.ScienceWorldDomain()
    assert d.template("move dove to red box", PAGE) == ("move", "dove to red box") and d.template("wait1", PAGE) == ("wait1", "")
    question = "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):\n0:\tfocus on a\n1:\tfocus on b"
    assert d.page_type(question) == "question" and d.template("1", question) == ("answer", "focus on b")
    assert d.unresolve("focus on", "dove egg", PAGE, CHOICES) == "focus on dove" and d.unresolve("focus on", "elephant", PAGE, CHOICES) is None
    assert d.unresolve("look around", "", PAGE, CHOICES) == "look around" and d.page_type(TERMINAL) == "end" and d.page_type(PAGE) == "outside"


def test_features_tell_a_right_focus_from_a_wrong_one():
    d, task = sw.ScienceWorldDomain(), "Your task is to find the animal with the longest life span.  Focus on the animal with the longest life span."
    page = PAGE.replace("dove egg", "mouse")
    def last(action):
        return d.features(task, (), action, page)  # as readouts ask: the turns before, the last action, the page it was taken on
    right, wrong = last("focus on baby beaver"), last("focus on mouse")
    assert right.shape == wrong.shape and not np.array_equal(right, wrong)
    assert d.hidden(advance(State(Task("t", task, page, ()), page, ()), "focus on mouse", 0.0, page, ()).turns) == "focus on mouse"


def test_relevant_actions():
    valid = ["focus on air", "focus on bathroom door", "focus on dove", "move orange to bowl", "move orange to kitchen", "move dove to bowl", "put down orange", "mix orange", "teleport to kitchen", "go to door to kitchen"]
    assert sw.relevant(valid) == ("focus on dove", "move orange to bowl", "put down orange", "teleport to kitchen")


def test_instruction_in_short():
    d = sw.ScienceWorldDomain()
    assert d.render_task("Your task is to find a(n) living thing. First, focus on the thing. Then, move it to the purple box in the living room.") == "find living thing , purple box in living room"
    assert d.render_task("Your task is to find the animal with the longest life span.  The animals are in the 'outside' location.  Focus on the animal with the longest life span.") == "longest life span"
    both = "Your task is to find the animal with the longest life span, then the shortest life span. First, focus on the animal with the longest life span.  Then, focus on the animal with the shortest life span. The animals are in the 'outside' location."
    assert d.render_task(both) == "longest life span then shortest life span" and d.render_task("Boil  Water") == "boil water"


def test_the_way_through_the_house():
    for a in sw.HOUSE:
        for b in sw.HOUSE:
            here, steps = a, 0
            while here != b: here, steps = sw.towards(here, b), steps + 1
            assert steps <= 4
    assert sw.towards("question", "kitchen") == "kitchen"


def test_bad_ids():
    for bad in ("find-plant", "boil-3", "find-plant-x", "find-plant-", "find-plant--1", "find-plant-\u00b2", "find-plant-01", "find-plant-1\n", "", None, 3):
        with pytest.raises(UserError, match="not a ScienceWorld task"): sw.parse_id(bad)


def test_missing_java_and_package_are_one_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere"); monkeypatch.delenv("JAVA_HOME", raising=False)
    if sw.importlib.util.find_spec("scienceworld"):
        with pytest.raises(UserError, match="apt-get install openjdk"): sw.ScienceEngine()
    monkeypatch.setattr(sw.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"): sw.ScienceEngine()


# with the engine

@needs_engine
def test_gold_paths_win_and_rewards_sum_to_the_value(sim):
    tasks = sim.draw(6, "dev", seed=3)
    assert sorted(sw.parse_id(t.id)[0] for t in tasks) == sorted(sw.TASKS)
    states, live = sim.reset(tasks, [()] * 6), list(range(6))
    golds = [sim.players[0].engine.gold(t.id) for t in tasks]
    ended = [False] * 6
    for turn in range(max(len(g) for g in golds)):  # walking and opening open doors, gold paths may take more than our cap
        live = [i for i in live if not ended[i] and turn < len(golds[i])]
        if not live: break
        for i, o in zip(live, sim.step([states[i] for i in live], [golds[i][turn] for i in live], [()] * len(live))): states[i], ended[i] = o.state, o.terminated
    for s, e in zip(states, ended): assert e and s.obs == TERMINAL and sum(t.reward for t in s.turns) == 1.0


@needs_engine
def test_quick_list_is_the_engines_filtered():
    engine = sw.ScienceEngine(short=True)
    for task in ("find-plant-9", "lifespan-longest-lived-4"):
        game = engine.open(task)
        for turn in range(5):
            engine.random.setSeed(0); quick = sw.relevant(game.valid())  # of several names that fit, the engine draws one
            engine.random.setSeed(0); full = sw.relevant(list(game.java.getValidActionObjectCombinations()))
            assert quick == full
            game.step(str(key_rng(0, task, turn).choice([a for a in quick if not a.startswith("focus")])), show=False)
        engine.drop(game)
    engine.close()


@needs_engine
def test_walking_expert_wins_and_objects_are_used_again():
    simulator, tasks = sw.cell_tasks(0, 6, 6)
    train = sw.training_worlds(0, train=6)[0]
    ids = [t.id for t in (*tasks["pool"], *tasks["fresh"], *train.tasks)]
    assert len(set(ids)) == 18 and train.simulator is simulator and not any(c.startswith("teleport") for c in tasks["pool"][0].choices)
    rows, player = make_rows(tasks["pool"]), simulator.players[0]
    won = rollout(simulator, sw.ScienceWorldExpert(simulator), rows, 0, sw.SCIENCE_HORIZON, env="scienceworld")
    assert np.mean([e.ret for e in won]) > .9 and 3 < np.mean([len(e.turns) for e in won]) < 9 and player.engine.spare
    player.pages.clear(); player.games.clear()
    assert [to_line(e) for e in rollout(simulator, sw.ScienceWorldExpert(simulator), rows, 0, sw.SCIENCE_HORIZON, env="scienceworld")] == [to_line(e) for e in won]
    simulator.close(); sw._simulator.cache_clear(); sw.training_worlds.__wrapped__.cache_clear()


@needs_engine
def test_wrong_focus_ends_at_zero(sim):
    task = sim.tasks(["find-animal-200"])[0]
    s = sim.reset([task], [()])
    for a in ("teleport to outside", "focus on axe"): o = sim.step(s, [a], [()])[0]; s = [o.state]
    assert o.terminated and sum(t.reward for t in o.state.turns) == 0.0 and o.reward < 0


@needs_engine
def test_expert_wins_from_any_state_and_batching_does_not_matter(sim):
    tasks, expert = sim.draw(6, "dev", seed=3), sw.ScienceWorldExpert(sim)
    rows = make_rows(tasks[:4], [0.0]) + [Row(tasks[4], 0.4), Row(tasks[0], 0.4)]
    sim.domain.focus = False
    a = rollout(sim, expert, rows, 1, sw.SCIENCE_HORIZON, env="scienceworld")
    for p in sim.players: p.pages.clear(); p.games.clear()
    b = [rollout(sim, expert, [r], 1, sw.SCIENCE_HORIZON, env="scienceworld")[0] for r in rows[::-1]][::-1]
    sim.domain.focus = True
    assert np.mean([e.ret for e in a]) > .9 and [to_line(e) for e in a] == [to_line(e) for e in b]


@needs_engine
def test_same_names_are_told_apart_the_same_way_each_time(sim):
    path = ("teleport to art studio",)
    first = sim.pages([("lifespan-longest-lived-0", path)])[0]
    sim.pages([("find-living-thing-1", path), ("find-plant-5", path)])
    for p in sim.players: p.pages.clear(); p.games.clear()
    assert sim.pages([("lifespan-longest-lived-0", path)])[0] == first


def strike(engine, sign):
    "The next work meets a process that is killed or stopped just now; one that is stopped has a second to answer."
    def struck(function, *args):
        del engine.call
        def work():
            engine.watch.patience = 1.0
            os.kill(engine.process.pid, sign)
            return function(*args)
        return engine.call(work)
    engine.call = struck


@needs_engine
def test_a_java_that_hangs_in_a_rollout_is_a_dead_one(sim):
    "A process that is stopped between two turns costs a replay: the episodes are those of an undisturbed run."
    rows, player = make_rows(sim.tasks(["find-plant-160", "lifespan-longest-lived-4"]), [1.0]), sim.players[0]
    whole = [to_line(e) for e in rollout(sim, ReferencePolicy(sim.domain), rows, 3, 4, env="scienceworld")]
    player.pages.clear(); player.games.clear()
    class Stopped:
        domain, reset = sim.domain, sim.reset
        def step(self, states, actions, keys):
            if len(states[0].turns) == 2: strike(player.engine, signal.SIGSTOP)
            return sim.step(states, actions, keys)
    before = player.counts["restarts"]
    assert [to_line(e) for e in rollout(Stopped(), ReferencePolicy(sim.domain), rows, 3, 4, env="scienceworld")] == whole
    assert player.counts["restarts"] == before + 1 and player.engine.watch.patience == player.engine.patience


@needs_engine
def test_a_death_in_gold_paths_and_draws_costs_nothing(sim):
    engine, draw = sim.players[0].engine, lambda: sim.draw(2, "dev", seed=9, names=sw.TASKS[:2])
    gold, tasks = engine.gold("find-animal-200"), draw()
    strike(engine, signal.SIGKILL)
    assert engine.gold("find-animal-200") == gold
    strike(engine, signal.SIGSTOP)
    assert draw() == tasks


@needs_engine
def test_games_of_a_process_that_was_replaced_are_played_again(sim):
    "A gold path that outlives its process starts another; the games of the old one are dead, whatever the new one answers."
    player, path = sim.players[0], ("teleport to kitchen",)
    whole = player.page("find-plant-162", (*path, "look around"))
    player.pages.clear(); player.games.clear()
    player.page("find-plant-162", path)
    strike(player.engine, signal.SIGKILL)
    player.engine.gold("find-plant-162")
    assert player.page("find-plant-162", (*path, "look around")) == whole


@needs_engine
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_death_in_start_up_is_tried_again(sign, monkeypatch):
    engine, connect = sw.ScienceEngine(short=True), sw.ScienceEngine._connect
    def struck(self, port):
        monkeypatch.setattr(sw.ScienceEngine, "_connect", connect)
        self.watch.patience = 1.0
        os.kill(self.process.pid, sign)
        return connect(self, port)
    monkeypatch.setattr(sw.ScienceEngine, "_connect", struck)
    assert len(engine.split("find-plant", "dev")) == 75
    engine.close()


@needs_engine
def test_a_java_that_never_starts_is_one_sentence():
    with pytest.raises(UserError, match="died 3 times on the split .* Java did not start ScienceWorld .* must work and 1x of memory be free") as error: sw.ScienceEngine("1x").split("find-plant", "dev")
    assert "\n" not in str(error.value)


@needs_engine
def test_odd_words_change_nothing(sim):
    task = sim.tasks(["find-plant-160"])[0]
    s = sim.reset([task], [()])
    for a in ("", "fly away", "\n\t", "focus", "look at everything"): s = [sim.step(s, [a], [()])[0].state]
    assert s[0].choices == task.choices and len(s[0].turns) == 5 and sw.room_of(s[0].obs) == sw.room_of(task.obs)


@needs_engine
def test_official_splits(sim):
    engine = sim.players[0].engine
    parts = [set(engine.split("find-plant", s)) for s in ("train", "dev", "test")]
    assert [len(p) for p in parts] == [150, 75, 75] and len(set.union(*parts)) == 300
    with pytest.raises(UserError, match="321 tasks"): sim.draw(1000, "test")
    with pytest.raises(UserError, match="train, dev and test"): engine.split("find-plant", "valid")
    with pytest.raises(UserError, match="'boil' is not one of the task types"): engine.split("boil", "dev")
    with pytest.raises(UserError, match="-1 tasks were asked for"): sim.draw(-1)
    with pytest.raises(UserError, match="variations 0 to"): engine.open("find-plant-300")


@needs_engine
def test_killed_collection_equals_uninterrupted_one(tmp_path, sim):
    build = "from adwm import scienceworld as sw; sim = sw.ScienceWorldSimulator(1, focus=False, short=True, teleport=True); tasks = sim.draw(4, 'dev')"
    sim.domain = sw.ScienceWorldDomain(focus=False)
    survives_a_kill(tmp_path, build, sim, sim.draw(4, "dev"), at=6, horizon=4, env="scienceworld")
    sim.domain = sw.ScienceWorldDomain()


# what an episode knows of its world

BOX = "Your task is to find a(n) animal.  First, focus on the thing. Then, move it to the red box in the kitchen."
HALL = sw.compose("You move to the hallway.", "This room is called the hallway. In it, you see: \n\tthe agent\n\ta picture\nYou also see:\n\tA door to the kitchen (that is open)\n", "In your inventory, you see:\n\ta shovel\n")
KITCHEN = sw.compose("You move to the kitchen.", "This room is called the kitchen. In it, you see: \n\tthe agent\n\ta blue box (containing nothing)\n\ta table. On the table is: nothing.\nYou also see:\n\tA door to the hallway (that is open)\n",
                     "In your inventory, you see:\n\ta shovel\n")
OFFERS = ("focus on blue box", "focus on shovel", "go to hallway", "look around", "move shovel to blue box", "move shovel to table", "pick up blue box", "put down shovel", "wait1")


def amend(action, page, choices, obs=PAGE, own=CHOICES, turns=()): return sw.ScienceWorldDomain().amend(State(Task("t", BOX, PAGE, ()), obs, own, turns), action, page, choices)


def test_a_page_survives_being_taken_apart():
    assert sw.things(sw.Scene.read(PAGE).page()) == sw.things(PAGE) and sw.Scene.read(PAGE).held == ["\tan orange"]
    assert sw.Scene.read(HALL.replace("\ta shovel", "\tnothing")).held == [] and sw.line_of("dove", sw.Scene.read(PAGE).room) == "\ta dove egg"
    assert sw.line_of("elephant", sw.Scene.read(PAGE).room) is None and sw.without("b", ["a", "b", "b"]) == ["a", "b"] and sw.without(None, ["a"]) == ["a"]


def test_hands_keep_what_they_hold():
    page, offers = amend("go to hallway", HALL, ("focus on picture", "focus on shovel", "go to kitchen", "pick up picture", "put down shovel"))
    assert sw.things(page)[2] == ["orange"] and set(offers) == {"focus on picture", "pick up picture", "go to kitchen", "put down orange", "focus on orange"}


def test_taking_and_putting():
    page, offers = amend("pick up dove", PAGE.replace("You move to the outside.", "You move the dove to the inventory."), CHOICES)
    assert "dove egg" not in sw.things(page)[0] and sw.things(page)[2] == ["dove egg", "orange"] and sw.room_of(page) == "outside"
    assert {"put down dove", "focus on dove", "put down orange"} <= set(offers) and "pick up dove" not in offers and sw.message_of(page) == "You move the dove to the inventory."
    page, offers = amend("put down orange", HALL, ())
    assert "orange" in sw.things(page)[0] and sw.things(page)[2] == ["nothing"] and "pick up orange" in offers and not sw.in_hand(offers)
    page, offers = amend("move shovel to blue box", KITCHEN, OFFERS, KITCHEN, OFFERS)
    assert "blue box (containing shovel)" in sw.things(page)[0] and not sw.in_hand(offers)


def test_the_box_of_the_instruction_stands_in_its_room():
    "A kitchen of another task shows another box; a kitchen that was seen is as it was."
    page, offers = amend("go to kitchen", KITCHEN, OFFERS)
    assert "red box" in sw.things(page)[0] and "blue box" not in " ".join(sw.things(page)[0]) and "move orange to red box" in offers and not any("blue" in c for c in offers)
    bathroom = KITCHEN.replace("called the kitchen", "called the bathroom")
    page, offers = amend("go to bathroom", bathroom, OFFERS)
    assert "box" not in " ".join(sw.things(page)[0]) and not any("box" in c for c in offers)
    seen = (Turn(KITCHEN, "go to outside", 0.0, OFFERS),)
    page, _ = amend("go to kitchen", HALL, (), turns=seen)
    assert "blue box" in sw.things(page)[0] and sw.things(page)[2] == ["orange"]


def test_questions_and_ends_are_left_alone():
    question = "Ambiguous request: Please enter the number for the action you intended (or blank to cancel):\n0:\tfocus on a\n1:\tfocus on b"
    assert amend("focus on a", question, ("0", "1")) == (question, ("0", "1")) and amend("focus on a", TERMINAL, ()) == (TERMINAL, ())
    assert sw.ScienceWorldDomain().world(Task("v", "", "", ()), (), "look around", PAGE) == ("v", "turn 0") and sw.ScienceWorldDomain().move_kind("go to kitchen", PAGE) == ("kitchen", "go to")


POOL = root() / "assets" / "scienceworld-eto" / "pool.jsonl.gz"


@pytest.mark.skipif(not POOL.is_file(), reason="assets/scienceworld-eto is not here")
def test_amending_the_pages_that_followed_in_the_logs_keeps_room_hands_and_next_action():
    "Bees fly and plants grow by themselves, and a thing that lay in another is named anew by the engine: the rest is as it was."
    domain, same = sw.ScienceWorldDomain(), []
    for e in read_episodes(POOL, "scienceworld")[::4]:
        for i, (t, after) in enumerate(zip(e.turns, e.turns[1:])):
            if "question" in (sw.room_of(t.obs), sw.room_of(after.obs)): continue
            page, offers = domain.amend(State(e.task, t.obs, t.choices, e.turns[:i]), t.action, after.obs, after.choices)
            hands = [{w for x in sw.things(p)[2] for w in x.split()} for p in (page, after.obs)]
            same.append((sw.room_of(page) == sw.room_of(after.obs), hands[0] == hands[1], after.action in offers))
    found = np.mean(same, 0)
    assert len(same) > 500 and found[0] == 1 and found[1] > 0.9 and found[2] > 0.95, found


@pytest.mark.parametrize("world,says", [({"trains": 3}, "did you mean 'train'.*; the valid ones are teleport, slots, train"), ({"data": "x"}, "no parameter 'data'"), ({"train": 0}, "train must be at least 1"), ({"slots": -1}, "slots must be at least 1"), ({"teleport": 1}, "teleport must be")])
def test_the_world_of_a_cell_takes_only_what_it_knows(world, says):
    for make in (lambda **w: sw.cell_tasks(0, 1, 1, **w), lambda **w: sw.training_worlds(0, **w)):
        with pytest.raises(UserError, match=says): make(**world)
