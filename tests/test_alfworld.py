"ALFWorld: generated games are solvable, the parsing cache changes nothing, planner and explorer win, batching and kills do not matter, bad input."
import dataclasses, gzip, json

import numpy as np
import pytest
from hypothesis import given

from adwm import alfworld as alf
from adwm.core import UserError, key_rng, shared_data
from adwm.envs import State, advance
from adwm.episodes import TERMINAL, Task, Turn, to_line
from adwm.rollouts import make_rows, rollout
from tests_helpers import survives_a_kill
from tests_mutations import quick, spoiled

needs_engine = pytest.mark.skipif(alf.alfworld_missing() is not None, reason=alf.alfworld_missing() or "")
SHARED = shared_data("alfworld", "valid_seen.jsonl.gz")
needs_games = pytest.mark.skipif(SHARED is None, reason="the benchmark's games are not beside the project (shared/data/alfworld)")


@pytest.fixture(scope="module")
def sim(): return alf.AlfworldSimulator()


# without the engine

def test_pages_and_templates():
    d, page = alf.AlfworldDomain(), "You arrive at fridge 1. The fridge 1 is closed.\nYou are at fridge 1. You hold egg 2."
    assert alf.place_of(page) == ("fridge 1", "egg 2") and d.page_type(page) == "fridge in hand" and d.page_type(TERMINAL) == "end"
    assert d.template("heat egg 2 with microwave 1", page) == ("heat", "egg 2 with microwave 1") and d.template("look", page) == ("look", "")
    assert d.reference(None, page, ("look", "help")).log_prob("help") == np.log(.5)
    assert d.page_type(page.replace("egg 2", "nothing")) == "fridge"
    assert d.render(page) == "fridge 1 hold egg 2 : closed"
    assert d.render("On the desk 1, you see a pen 1, and a mug 2.\nYou are at desk 1. You hold nothing.") == "desk 1 : see pen 1 mug 2"


def test_what_is_decided_is_said_first():
    d, said = alf.AlfworldDomain(), {"go to desk 1": "desk 1", "take mug 1 from desk 1": "mug 1 take", "move mug 1 to desk 1": "put in desk 1", "heat egg 2 with microwave 1": "heat",
                                     "open drawer 2": "open drawer 2", "examine mug 1": "examine mug 1", "use desklamp 1": "use desklamp 1", "look": "look"}
    for action, words in said.items(): assert d.verbalize(action, "") == words and d.parse(words, "", tuple(said)) == action
    assert d.parse("sing", "", tuple(said)) == "sing"


@needs_engine
def test_no_two_commands_of_a_page_are_said_alike(sim):
    for g in alf.generate_games(6, 21):
        sim.player.page(g.id, ())
        walk = walk_of(sim.player.houses[g.id], 5, 15)
        for t in range(len(walk) + 1): c = sim.player.page(g.id, tuple(walk[:t])).choices; assert len(set(sim.domain.menu("", c))) == len(c)


def test_a_page_of_another_house_gets_the_names_of_this_one():
    d = alf.AlfworldDomain()
    closed = "You arrive at cabinet 1. The cabinet 1 is closed.\nYou are at cabinet 1. You hold mug 1."
    assert d.adapt(closed, "cabinet 12") == closed.replace("cabinet 1", "cabinet 12") and d.adapt(closed, "drawer 1") == closed
    put = "You move the mug 1 to the cabinet 1.\nYou are at cabinet 1. You hold nothing."
    assert d.adapt(put, "mug 2 to cabinet 1") == put.replace("mug 1", "mug 2") and d.adapt("Nothing happens.", "mug 2") == "Nothing happens."
    task = Task("t", "put a mug in desk", "o", ("go to cabinet 12", "go to desk 1", "look"))
    assert d.choices(task, closed, ("go to sofa 1", "look", "open cabinet 1")) == ("go to cabinet 12", "go to desk 1", "look", "open cabinet 1")
    assert "go to desk 1" not in d.choices(task, "x\nYou are at desk 1. You hold nothing.", ("look",)) and d.choices(task, TERMINAL, ()) == ()


def test_instructions_are_understood():
    texts = {"put a mug in desk": ("pick_and_place_simple", "mug", "desk"), "find two soapbar and put them in garbagecan": ("pick_two_obj_and_place", "soapbar", "garbagecan"),
             "put two pen in drawer": ("pick_two_obj_and_place", "pen", "drawer"), "heat some egg and put it in fridge": ("pick_heat_then_place_in_recep", "egg", "fridge"),
             "put a cool pan in stoveburner": ("pick_cool_then_place_in_recep", "pan", "stoveburner"), "examine the cd with the desklamp": ("look_at_obj_in_light", "cd", "desklamp")}
    for text, (kind, target, place) in texts.items():
        a = alf.parse_task(text); assert (a.kind, a.target, a.place) == (kind, target, place)
    assert alf.parse_task("buy a mug").kind == ""


def test_progress_is_read_from_actions():
    def after(*pairs):
        s = State(Task("t", "put a clean mug in desk", "o", ()), "o", ())
        for action, page in pairs: s = advance(s, action, 0.0, page, ())
        return alf.AlfworldProgress(s.task.text, s.turns)
    ok = [("take mug 1 from desk 1", "You pick up"), ("clean mug 1 with sinkbasin 1", "You clean"), ("move mug 1 to desk 1", "You move"), ("look", "x")]
    assert after(*ok).placed == {"mug 1"} and after(*ok).treated == 1
    assert not after(ok[0], ok[2], ok[3]).placed and not after(ok[0], (ok[1][0], "Nothing happens."), ok[2], ok[3]).placed
    assert after(*ok, ("take mug 1 from desk 1", "You pick up"), ("look", "x")).placed == set()
    assert after(*ok).reached == 1 and after(ok[0], ok[2], ok[3]).reached == 0
    lamp = [("go to desk 1", "x"), ("use desklamp 1", "x"), ("go to bed 1", "x"), ("take pen 2 from bed 1", "x"), ("go to desk 1", "x"), ("look", "x")]
    def lit(n):
        s = State(Task("t", "look at pen under the desklamp", "o", ()), "o", ())
        for action, page in lamp[:n]: s = advance(s, action, 0.0, page, ())
        return alf.AlfworldProgress(s.task.text, s.turns).reached
    assert [lit(n) for n in range(1, 7)] == [0, 0, 0, 0, 1, 1]


ROW = dict(id="a", task_type=alf.TYPES[0], task="put a mug in desk", pddl_problem="(define (problem p) (:goal (x)))", pddl_params=dict(object_target="Mug", parent_target="Desk", toggle_target=""))


def row(*path_and_value):
    "A file of three games, the second with one field changed, or left out where the value is `...`."
    *path, key, value = path_and_value
    spoilt = inner = json.loads(json.dumps({**ROW, "id": "b"}))
    for p in path: inner = inner[p]
    if value is ...: del inner[key]
    else: inner[key] = value
    return "".join(json.dumps(r) + "\n" for r in (ROW, spoilt, {**ROW, "id": "c"}))


def test_no_games_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(UserError, match="there are no ALFWorld games"): alf.load_games()
    with pytest.raises(UserError, match="holds no game.tw-pddl"): alf.load_games(tmp_path)


@pytest.mark.parametrize("text,says", [
    ("{", "line 1, cannot be read"), ("", "holds no game"), ("[]\n", r"line 1, has \[\]"), ('{"id": "a"}\n', "line 1, lacks the field 'task_type'"), (row("id", "a"), "lines 1 and 2 have one id, 'a'"),
    ('{"id": "a", "id": "b"}', "'id' stands twice"), ("[" * 100_000, "nested too deeply"), (row("task", float("nan")), "NaN is not a number"),
    *((row(f, ...), f"line 2, lacks the field '{f}'") for f in ROW), *((row(f, v), f"line 2, .* as '{f}") for f in ROW for v in (None, 3, [], "")),
    *((row("pddl_params", f, ...), f"line 2, lacks the field 'pddl_params.{f}'") for f in ROW["pddl_params"]), *((row("pddl_params", f, 3), f"has 3 as 'pddl_params.{f}'") for f in ROW["pddl_params"]),
    (row("task_type", "cook"), "line 2, holds a game that cannot be played: .*of the type 'cook'"), (row("task", " "), "must not be blank"), (row("pddl_problem", "x"), "line 2, .*no PDDL problem"), (row("pddl_problem", ROW["pddl_problem"][:-1]), "brackets that do not match")])
def test_bad_files(tmp_path, text, says):
    for name, data in (("x.jsonl", text.encode()), ("x.jsonl.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=says) as error: alf.load_games(tmp_path / name)
        assert "\n" not in str(error.value)


def test_damaged_archives_are_one_sentence(tmp_path):
    whole, path = gzip.compress(row("task", "put a mug in desk").encode()), tmp_path / "x.jsonl.gz"
    for data in (whole[:-9], whole[:15], b"no archive", "\u00e4".encode("latin-1"), *(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1:] for i in range(10, len(whole), 3))):
        path.write_bytes(data)
        with pytest.raises(UserError, match="x.jsonl.gz is not readable"): alf.load_games(path)


GAME, ABOUT = dict(pddl_problem=ROW["pddl_problem"], grammar='"rhs": "Your task is to: put a mug in desk."', solvable=True), {k: ROW[k] for k in ("task_type", "pddl_params")}


@pytest.mark.parametrize("game,about,says", [(GAME, ABOUT, None), ("{", ABOUT, "game.tw-pddl is not readable"), (GAME, "", "traj_data.json is not readable"), ([], ABOUT, r"game.tw-pddl has \[\]"), (GAME, 3, "traj_data.json has 3"),
                                             ({**GAME, "grammar": 3}, ABOUT, "has 3 as 'grammar'"), ({**GAME, "grammar": "x"}, ABOUT, "without an instruction"), ({**GAME, "solvable": "no"}, ABOUT, "as 'solvable'"), (GAME, {"task_type": alf.TYPES[0]}, "lacks the field 'pddl_params'"),
                                             (GAME, {**ABOUT, "pddl_params": []}, "as 'pddl_params'"), ({**GAME, "solvable": False}, ABOUT, "none of the 1 games"), ({k: GAME[k] for k in ("grammar", "solvable")}, ABOUT, "lacks the field 'pddl_problem'")])
def test_the_benchmarks_folders(tmp_path, game, about, says):
    (folder := tmp_path / "trial").mkdir()
    for name, value in (("game.tw-pddl", game), ("traj_data.json", about)): (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    if says is None: assert alf.load_games(tmp_path)[0].text == "put a mug in desk"
    else:
        with pytest.raises(UserError, match=says) as error: alf.load_games(tmp_path)
        assert "\n" not in str(error.value)


@quick
@given(row=spoiled(ROW))
def test_a_spoiled_game_loads_or_is_one_sentence(path, row):
    path.write_text(json.dumps(row))
    try: alf.load_games(path)
    except UserError as error: assert "\n" not in str(error)


@pytest.fixture(scope="module")
def path(tmp_path_factory): return tmp_path_factory.mktemp("games") / "x.jsonl"


@needs_engine
@pytest.mark.parametrize("old,new", [("(atLocation agent1 loc_0)", "(fliesTo agent1 loc_0)"), ("(atLocation agent1 loc_0)", "(atLocation agent1)"), ("(atLocation agent1 loc_0)", "3"), ("agent1 - agent", "agent1 - robot"),
                                     ("(:goal", "(:gaol"), ("(:init", "(:init" + "(" * 5000 + ")" * 5000), ("(:init", "(:init (= x)"), ("agent1 - agent", "agent1 - agent agent1 - agent"), ("(:domain alfred)", "(:domain alfred) (:metric minimize (x))")])
def test_a_problem_the_engine_does_not_understand_is_one_sentence(old, new):
    "The translator raises anything and even leaves Python."
    game = alf.generate_game(alf.TYPES[0], 0, 0)
    with pytest.raises(UserError, match="the engine cannot load game bad") as error: alf.AlfworldEngine([dataclasses.replace(game, id="bad", problem=game.problem.replace(old, new))]).open("bad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("world,says", [({"game": 3}, "did you mean 'games'"), ({"data": "x"}, "no parameter 'data'; the valid ones are games"), ({"games": 0}, "games must be at least 1"), ({"games": "9"}, "games must be a whole number")])
def test_the_world_of_a_cell_takes_only_what_it_knows(world, says):
    for make in (lambda **w: alf.cell_tasks(0, 3, 2, **w), lambda **w: alf.training_worlds(0, **w)):
        with pytest.raises(UserError, match=says): make(**world)


def test_missing_engine_is_one_sentence(monkeypatch):
    monkeypatch.setattr(alf.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(alf.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="pip install 'adwm\\[alfworld\\]' after `apt-get install g\\+\\+ make`"): alf.AlfworldSimulator()


# with the engine

@needs_engine
def test_one_hundred_generated_games_are_solved_by_the_planner():
    import fast_downward
    alf.speed_up(); fast_downward.pddl2sas.planning = True
    from alfworld.info import ALFRED_PDDL_PATH
    domain, lib = open(ALFRED_PDDL_PATH).read(), fast_downward.load_lib()
    for g in alf.generate_games(100, seed=7):
        _, sas = fast_downward.pddl2sas(domain, g.problem, optimize=True)
        assert lib.solve_sas(sas.encode(), False), g.id
        assert 2 < lib.get_last_plan_length() < alf.ALFWORLD_HORIZON, g.id


@needs_engine
def test_generated_games_depend_on_their_id_alone():
    a, b = alf.generate_games(12, 3), alf.generate_games(12, 3)
    assert a == b and alf.generate_game(a[7].type, 3, 1) == a[7] and len({g.problem for g in a}) == 12
    with pytest.raises(UserError, match="no task type"): alf.generate_game("cook", 0, 0)


def walk_of(house, seed, turns):
    "Random commands, now and then one that the engine does not know; half of them not a walk to somewhere else."
    out, page = [], house.page(())
    for t in range(turns):
        rng = key_rng(seed, "walk", house.game.id, t)
        stay = [c for c in page.choices if not c.startswith("go to ")]
        menu = stay if rng.random() < .5 else list(page.choices)
        out.append("fly to the moon" if rng.random() < .05 else menu[int(rng.integers(len(menu)))])
        page = house.page(tuple(out))
        if page.ended: break
    return out


@pytest.fixture
def plain_engine():
    yield lambda: alf.speed_up(False)
    alf.speed_up(True)


@needs_engine
def test_twenty_games_are_the_same_word_by_word_with_and_without_the_shortcuts(plain_engine):
    games, street = alf.generate_games(20, seed=11), alf.Street(alf.AlfworldEngine([]))
    for g in games: street.page(g.id, ())
    walks = {g.id: walk_of(street.houses[g.id], 0, 5) for g in games}
    quick = {g.id: [street.page(g.id, tuple(walks[g.id][:t])) for t in range(len(walks[g.id]) + 1)] for g in games}
    def live(game):
        game, out = alf.AlfredGame(game), []
        return [game.page(), *(game.step(a) for a in walks[game.game.id])]
    assert all(live(g) == quick[g.id] for g in games)
    plain_engine()
    for g in games: assert live(g) == quick[g.id], g.id


@needs_engine
def test_long_walks_through_a_house_equal_live_games():
    games, street = alf.generate_games(6, seed=12), alf.Street(alf.AlfworldEngine([]))
    for seed in range(3):
        for g in games:
            street.page(g.id, ())
            walk, live = walk_of(street.houses[g.id], seed, 30), alf.AlfredGame(g)
            pages = [live.page(), *(live.step(a) for a in walk)]
            assert pages == [street.page(g.id, tuple(walk[:t])) for t in range(len(walk) + 1)], (g.id, walk)
            if seed == 2: assert pages[-1].ended or len(street.houses[g.id].spots) > 8


@needs_engine
def test_what_the_graph_leaves_out_decides_nothing():
    "`checked` stands in no precondition, goal or sentence, and a place's location is never an effect."
    import re
    from alfworld.gen.goal_library import gdict
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
    rules = "\n".join(line.split(";")[0] for line in open(ALFRED_PDDL_PATH)).lower()
    parts = re.findall(r":precondition(.*?):effect(.*?)(?=\(:action|$)", rules, re.S)
    assert len(parts) >= 10 and not any("checked" in before for before, _ in parts) and not any("receptacleatlocation" in after for _, after in parts)
    assert "checked" not in open(ALFRED_TWL2_PATH).read().lower() and not any("checked" in gdict[k]["pddl"] for k in alf.TYPES)


@needs_engine
def test_solutions_win_in_the_graph_and_live(sim):
    for g in alf.generate_games(6, seed=13):
        plan, live = sim.player.engine.walkthrough(g.id), alf.AlfredGame(g)
        for a in plan: page = live.step(a)
        assert page == sim.player.page(g.id, tuple(plan)) and page.value == 1


@needs_engine
def test_forgetting_houses_changes_nothing(sim):
    small = alf.Street(alf.AlfworldEngine([]), spots=3)
    for i in range(3):
        for g in alf.generate_games(2, 0):
            walk = walk_of(alf.House(g, alf.Shared()), i, 6)
            for t in range(len(walk) + 1): assert small.page(g.id, tuple(walk[:t])) == sim.player.page(g.id, tuple(walk[:t]))


@needs_engine
@needs_games
def test_graphs_of_real_kitchens():
    games = sorted(alf.load_games(SHARED), key=lambda g: len(g.problem))[:2]
    street = alf.Street(alf.AlfworldEngine(games))
    for g in games:
        street.page(g.id, ())
        walk, live = walk_of(street.houses[g.id], 1, 12), alf.AlfredGame(g)
        assert [live.page(), *(live.step(a) for a in walk)] == [street.page(g.id, tuple(walk[:t])) for t in range(len(walk) + 1)]


@needs_engine
def test_worlds_of_a_cell_share_no_house():
    (_, split), there = alf.cell_tasks(4, 3, 3), alf.training_worlds(4, games=6)[0]
    ids = [t.id for part in (*split.values(), there.tasks) for t in part]
    assert len(set(ids)) == len(ids) == 12 and [len(split[k]) for k in ("pool", "fresh")] == [3, 3]
    assert there.teacher(there.simulator.reset(there.tasks[:1], [()])[0]) in there.tasks[0].choices


@needs_engine
def test_planner_and_explorer_win(sim):
    tasks = sim.tasks([g.id for g in alf.generate_games(12, 2)])
    for t in tasks[:6]: assert sim.player.page(t.id, tuple(sim.player.engine.walkthrough(t.id))).value == 1
    won = rollout(sim, alf.AlfworldExplorer(), make_rows(tasks), 0, alf.ALFWORLD_HORIZON, env="alfworld")
    assert np.mean([e.ret for e in won]) >= .7
    for e in won:
        assert e.terminated == (e.ret == 1) and (e.last_obs == TERMINAL) == e.terminated
        for n in range(1, len(e.turns) + 1): assert alf.AlfworldProgress(e.task.text, e.turns[:n]).reached == float(e.terminated and n == len(e.turns)), "the goal is read from the actions"


@needs_engine
def test_batching_and_memory_do_not_matter(sim):
    tasks = sim.tasks([g.id for g in alf.generate_games(4, 5)])
    rows = make_rows(tasks, [0.5])
    a = rollout(sim, alf.AlfworldExplorer(), rows, 3, 8, env="alfworld")
    fresh = alf.AlfworldSimulator(slots=1, quick=False)
    b = [rollout(fresh, alf.AlfworldExplorer(), [r], 3, 8, env="alfworld")[0] for r in rows[::-1]][::-1]
    assert [to_line(e) for e in a] == [to_line(e) for e in b]


@needs_engine
def test_odd_words_change_nothing(sim):
    s = sim.reset(sim.tasks(["pick_and_place_simple-0-0"]), [()])
    first = s[0].choices
    for a in ("", "fly", "go to moon 3"): s = [sim.step(s, [a], [()])[0].state]
    assert s[0].choices == first and "Nothing happens" in s[0].obs
    with pytest.raises(UserError, match="no game of this simulator"): sim.tasks(["kitchen-9"])


@needs_engine
def test_broken_problem_is_one_sentence(sim):
    g = alf.generate_game(alf.TYPES[0], 0, 0)
    with pytest.raises(UserError, match="cannot load game"): alf.AlfredGame(alf.Game("x", g.type, g.target, g.place, "", g.text, g.problem[:400] + ":goal"))


@needs_engine
@needs_games
def test_the_benchmarks_own_games(tmp_path):
    games = alf.load_games(SHARED)
    assert len(games) == 140 and {g.type for g in games} == set(alf.TYPES)
    assert all(alf.parse_task(g.text).kind == g.type for g in games)
    small = sorted(games, key=lambda g: len(g.problem))[:2]
    sim = alf.AlfworldSimulator(small)
    won = rollout(sim, alf.AlfworldExplorer(), make_rows(sim.tasks([g.id for g in small])), 0, alf.ALFWORLD_HORIZON, env="alfworld")
    assert any(e.ret == 1 for e in won)
    folder = tmp_path / "trial"; folder.mkdir()
    d = json.loads(gzip.open(SHARED, "rt").readline())
    (folder / "game.tw-pddl").write_text(json.dumps(dict(pddl_problem=d["pddl_problem"], grammar=f'"rhs": "Your task is to: {d["task"]}."', solvable=True)))
    (folder / "traj_data.json").write_text(json.dumps(dict(task_type=d["task_type"], pddl_params=d["pddl_params"])))
    loaded = alf.load_games(tmp_path)[0]
    assert (loaded.text, loaded.problem, loaded.id) == (d["task"], d["pddl_problem"], "trial")


@needs_engine
def test_killed_collection_equals_uninterrupted_one(tmp_path, sim):
    build = "from adwm import alfworld as alf; sim = alf.AlfworldSimulator(); tasks = sim.tasks([g.id for g in alf.generate_games(4, 0)])"
    survives_a_kill(tmp_path, build, sim, sim.tasks([g.id for g in alf.generate_games(4, 0)]), at=5, horizon=3, env="alfworld")


def in_house(page, action, choices=(), turns=()):
    "What a command shows in the imagination, after some turns."
    return alf.AlfworldDomain().amend(State(Task("t", "put a mug in desk", "", ()), turns[-1][1] if turns else "You are at the middle of the room. You hold nothing.", (),
                                            tuple(Turn(obs, a, 0.0) for obs, a in ((t[0], t[2]) for t in turns))), action, page, choices)


MUG = ("You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 2.\nYou are at desk 1. You hold nothing.", "You pick up the mug 1 from the desk 1.\nYou are at desk 1. You hold mug 1.", "take mug 1 from desk 1")


def test_the_hand_stays_as_this_episode_left_it():
    page, offers = in_house("You arrive at shelf 2. On the shelf 2, you see a book 1.\nYou are at shelf 2. You hold nothing.", "go to shelf 2", ("look", "take book 1 from shelf 2"), (MUG,))
    assert page.endswith("You are at shelf 2. You hold mug 1.") and "a book 1." in page
    assert set(offers) == {"look", "examine mug 1", "move mug 1 to shelf 2"}, "with full hands nothing can be taken"
    page, offers = in_house("You arrive at shelf 2. On the shelf 2, you see a book 1.\nYou are at shelf 2. You hold pen 2.", "go to shelf 2", ("look", "move pen 2 to shelf 2", "examine pen 2"), (MUG,))
    assert set(offers) == {"look", "examine mug 1", "move mug 1 to shelf 2"}
    page, offers = in_house("You arrive at shelf 2. On the shelf 2, you see a book 1.\nYou are at shelf 2. You hold pen 2.", "go to shelf 2", ("look", "move pen 2 to shelf 2", "examine pen 2"))
    assert page.endswith("You hold nothing.") and set(offers) == {"look", "take book 1 from shelf 2"}


def test_things_lie_where_this_episode_put_them():
    "What was taken is gone from its place, and a place that was seen keeps its things."
    page, _ = in_house("You arrive at desk 1. On the desk 1, you see a cup 1, and a mug 1.\nYou are at desk 1. You hold nothing.", "go to desk 1", (), (MUG,))
    assert "you see a pen 2." in page
    put = (MUG[1], "You move the mug 1 to the shelf 2.\nYou are at shelf 2. You hold nothing.", "move mug 1 to shelf 2")
    page, offers = in_house("You arrive at shelf 2. On the shelf 2, you see nothing.\nYou are at shelf 2. You hold nothing.", "go to shelf 2", ("look",), (MUG, put))
    assert "you see a mug 1." in page and "take mug 1 from shelf 2" in offers
    assert in_house(TERMINAL, "go to shelf 2", ("x",), (MUG,)) == (TERMINAL, ("x",))


def test_the_state_of_a_place_is_what_was_done_to_it():
    turns = lambda *actions: tuple(Turn("", a, 0.0) for a in actions)
    assert alf.done_to("safe 1", turns("open safe 1", "go to desk 1", "take pen 1 from desk 1")) == "open"
    assert alf.done_to("safe 1", turns("open safe 1", "move pen 1 to safe 1", "close safe 1")) == "closed ; move pen 1"
    assert alf.done_to("desk 1", turns("take pen 1 from desk 1", "move pen 1 to desk 1")) == "closed", "taken and put back"
    said = alf.AlfworldDomain()
    assert said.world(Task("h7", "", "", ()), (), "go to desk 1", "") == ("h7", "closed") and said.move_kind("go to desk 1", "x\nYou are at bed 1. You hold nothing.") == ("", "go to")


@needs_engine
def test_amending_the_true_page_of_the_engine_changes_nothing(sim):
    "200 random turns in three real houses."
    said, rng = alf.AlfworldDomain(), np.random.default_rng(0)
    for task in sim.tasks([g.id for g in alf.generate_games(3, 77)]):
        state = sim.reset([task], [(0, task.id, 0, 0)])[0]
        for t in range(70):
            action = str(rng.choice([c for c in state.choices if rng.random() < 0.3 or not c.startswith("go to")] or list(state.choices)))
            out = sim.step([state], [action], [(0, task.id, 0, t)])[0]
            if out.terminated: break
            page, offers = said.amend(state, action, out.state.obs, out.state.choices)
            assert page == out.state.obs and set(said.choices(task, page, offers)) == set(out.state.choices), (action, page)
            state = out.state
