"An environment is one declared record: ours, and one that a reader writes into a folder of their own, from agents to rows."
import dataclasses, sys

import pytest

from adwm import envs
from adwm.core import UserError, configuration, root
from adwm.envs import OURS, Domain, Environment, check_environment, environment_name, find_environment, takes

CUPS = '''
import numpy as np
from adwm.core import configuration
from adwm.envs import Domain, Environment, Outcome, State, World, advance, takes
from adwm.episodes import TERMINAL, Task

@configuration
class Cups:
    rooms: int = 3

class Words(Domain):
    name = "cups"
    def page_type(self, obs): return obs.split(" cup")[0]
    def features(self, task, turns, last_action, last_obs):
        right = turns[-1].obs.split()[-2] in task if turns else False
        return np.array([1.0, float(last_obs == TERMINAL), float(last_obs == TERMINAL and right)])

class Hall:
    "Rooms around a hall, a cup of another colour in each; taking the one that is asked for pays 1."
    colours = ("red", "blue", "green", "white")
    def __init__(self, rooms): self.rooms, self.domain = rooms, Words()
    def listed(self, page): return tuple(f"open door {i}" for i in range(self.rooms)) if page == "the hall" else ("take the cup", "go back")
    def task(self, i): return Task(f"cup-{i}", f"take the {self.colours[i % self.rooms]} cup", "the hall", self.listed("the hall"))
    def reset(self, tasks, keys): return [State(t, t.obs, t.choices) for t in tasks]
    def step(self, states, actions, keys): return [self.one(*x) for x in zip(states, actions)]
    def one(self, s, a):
        if a == "take the cup" and a in s.choices: page, won = TERMINAL, float(s.obs.split()[-2] in s.task.text)
        else: page, won = f"a room with a {self.colours[int(a[-1])]} cup" if a in s.choices and a[-1].isdigit() else "the hall", 0.0
        return Outcome(advance(s, a, won, page, () if page == TERMINAL else self.listed(page)), won, page == TERMINAL)
    def teach(self, s):
        if s.obs == "the hall": return f"open door {self.colours.index(s.task.text.split()[2])}"
        return "take the cup" if s.obs.split()[-2] in s.task.text else "go back"

@takes(Cups)
def cell_tasks(seed, pool, fresh, world):
    hall = Hall(world.rooms)
    tasks = [hall.task(i) for i in range(pool + fresh)]
    return hall, dict(pool=tasks[:pool], fresh=tasks[pool:])

@takes(Cups)
def training_worlds(seed, world):
    hall = Hall(world.rooms)
    return [World(hall, [hall.task(1000 + i) for i in range(60)], hall.teach)]

CUPS = Environment("cups", Words, cell_tasks, training_worlds, Cups, cell="cups", title="The cup that is asked for")
'''

CELL = '''
cell: cups
env: cups_of_a_reader:CUPS
title: "The cup that is asked for"
horizon: 5
folds: 2
collect:
  world: {rooms: 4}
  recipes:
    - {name: a, seed: 1, width: 32, layers: 1, heads: 2, kv_heads: 1, inner: 64, episodes: 80, tokens: 20000, batch_tokens: 512}
    - {name: b, seed: 2, width: 32, layers: 1, heads: 2, kv_heads: 1, inner: 64, episodes: 80, tokens: 10000, batch_tokens: 512}
  behaviors: [a]
  targets: [b]
  vocabulary: 120
  pool_tasks: 12
  fresh_tasks: 2
  epsilons: [0.0, 0.25, 1.0]
  fresh_epsilons: [0.0, 0.25]
  replicates: 1
  fresh_replicates: 1
imagine: {seeds: [0], epsilons: [0.0, 0.25]}
fits:
  ours: {setting: ours, train: {joint: 4, cached: 8, batch: 8}}
estimators:
  - {name: ADWM, setting: ours, kind: adwm, fit: ours}
  - {name: look-up, setting: baseline, kind: neighbour, readout: logged}
check_episodes: 4
source: remake
workers: 1
'''


@pytest.fixture
def reader(tmp_path, monkeypatch):
    "A reader's folder: a module and a params file."
    (tmp_path / "cups_of_a_reader.py").write_text(CUPS)
    (tmp_path / "cups.yaml").write_text(CELL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("cups_of_a_reader", None); envs.load_environment.cache_clear()


@pytest.mark.parametrize("name", OURS)
def test_ours_are_declared_whole(name):
    e = find_environment(name)
    assert e.name == name and e.domain().name == name and e.title and e.homepage.startswith("https://") and e.options({}) == e.world()
    assert (root() / "params" / f"{e.cell}.yaml").is_file() and (e.unavailable() or "").count("\n") == 0
    for f in (e.cell_tasks, e.training_worlds):
        with pytest.raises(UserError, match="world has no parameter 'slipp'"): f(0, slipp=1)


def test_domains_inherit_what_they_do_not_say():
    class Own(Domain):
        def adapt(self, obs, argument): return argument
    class Denies(Own): adapts = False
    assert Own().adapts and not Own().composes and not Own().many_worlds and not Denies().adapts and not Domain().adapts
    d = Domain()
    assert d.world(None, (), "look", "a page") == ("", "") and d.amend(None, "look", "a page", ("look",)) == ("a page", ("look",))
    assert d.adapt("a page", "x") == "a page" and d.listed("look", "a page") is None and d.lines("a page") == () and d.free_word == "search"
    assert d.move_kind("open door 1", "a page") == ("page", "open") and d.render_task("Find It") == "find it"


def test_functions_take_options_or_their_fields():
    @configuration
    class Options: rooms: int = 3
    @takes(Options)
    def make(seed, world): return seed, world.rooms
    assert make(1) == (1, 3) and make(1, rooms=5) == make(1, Options(5)) == (1, 5) and make.__name__ == "make"
    with pytest.raises(UserError, match="rooms must be a whole number"): make(1, rooms="5")


def test_names_without_importing():
    for name in (*OURS, "my.own_module:NAME"): assert environment_name(name) == name
    for name in ("chess", "", "os", "a b:C", "x:", ":X", "../x:Y", "x.py:Y:Z"):
        with pytest.raises(ValueError, match="names no environment"): environment_name(name)
    with pytest.raises(UserError, match="did you mean 'webshop'.*the valid ones are webshop, hotpotqa"): find_environment("webshp")


def test_an_entry_point_gives_a_name(reader, monkeypatch):
    from importlib import metadata
    point = metadata.EntryPoint("cups", "cups_of_a_reader:CUPS", envs.GROUP)
    fake = metadata.EntryPoint("webshop", "cups_of_a_reader:CUPS", envs.GROUP)   # no package takes a name of ours
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point, fake] if group == envs.GROUP else [])
    assert find_environment("cups") is find_environment("cups_of_a_reader:CUPS") and find_environment("webshop").name == "webshop"
    with pytest.raises(UserError, match="did you mean 'cups'"): find_environment("cup")


def test_what_is_not_an_environment_is_refused_in_one_sentence(reader):
    whole = find_environment("cups_of_a_reader:CUPS")
    assert check_environment(whole, "here") is whole
    class Part: pass
    part = Part()
    for f in dataclasses.fields(Environment): setattr(part, f.name, getattr(whole, f.name))
    part.module, part.options = whole.module, whole.options
    assert check_environment(part, "here") is part, "another object with the same members will do"
    del part.training_worlds
    bad = [(part, "here lacks training_worlds"), (dict, "here is no environment"), (dataclasses.replace(whole, world=dict), "as its world, which must be a configuration"),
           (dataclasses.replace(whole, name=" "), "must be a name"), (dataclasses.replace(whole, unavailable="no"), "must be a function"), (dataclasses.replace(whole, cell=None), "or nothing")]
    for found, says in bad:
        with pytest.raises(UserError, match=says) as err: check_environment(found, "here")
        assert "\n" not in str(err.value)
    (reader / "broken_of_a_reader.py").write_text("import nothing_of_that_name\n")
    for path, says in (("cups_of_a_reader:NONE", "AttributeError"), ("broken_of_a_reader:X", "nothing_of_that_name"), ("no_module_at_all:X", "ModuleNotFoundError"), ("json:dumps", "is no environment")):
        with pytest.raises(UserError, match=says) as err: find_environment(path)
        assert "\n" not in str(err.value)


def test_a_misspelt_option_is_refused_when_the_file_is_read(reader):
    from adwm.config import load_config
    (reader / "cups.yaml").write_text(CELL.replace("rooms: 4", "room: 4"))
    with pytest.raises(UserError, match="params/cups.yaml: collect.world has no parameter 'room' .did you mean 'rooms'"): load_config(cell="cups", folder=reader)


def test_a_readers_environment_from_agents_to_rows(reader):
    from adwm.collection import check_assets, read_truth
    from adwm.config import load_config, spec_of
    from adwm.episodes import read_episodes
    from adwm.evaluation import evaluate
    from adwm.stages import assets_folder
    config = load_config(env="cups_of_a_reader:CUPS", folder=reader)   # the cell is the environment's own
    config = dataclasses.replace(config, cache=str(reader / "cache"))
    run = evaluate(config)
    folder = assets_folder(config)
    pool = read_episodes(folder / "pool.jsonl.gz", config.env)
    assert {e.env for e in pool} == {"cups_of_a_reader:CUPS"} and len(pool) == 12 * 3 and {r["policy"] for r in read_truth(folder / "truth.csv.gz")} == {"b", "reference"}
    told = run.rows[run.rows["estimator"].isin(["ADWM", "look-up"])]
    assert set(told["estimator"]) == {"ADWM", "look-up"} and told["truth"].notna().all() and (told["n_rollouts"] == 12).all()
    assert (told["status"][told["estimator"] == "look-up"] == "estimated").all(), "what it reads is in the logs; for the gate of a readout they are few"
    assert check_assets(folder, spec_of(config)).env == config.env
    with pytest.raises(UserError, match="env = \"cups_of_a_reader:CUPS\", and the configuration says \"webshop\""):
        check_assets(folder, dataclasses.replace(spec_of(config), env="webshop"))
