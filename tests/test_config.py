"Configurations: what is refused, what a profile changes; jobs that fail late and keep what finished."
import copy, dataclasses, json, math, re

import nbformat
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adwm.core import UserError, from_dict, root
from adwm.envs import OURS, find_environment
from adwm.config import (EstimatorPart, RunConfig, check_parameters, checked, load_config, overlay, parse_seeds, profiles_of, read_cell, run_jobs, schema,
                       write_schema)

CELLS = sorted(p.stem for p in (root() / "params").glob("*.yaml"))
FILE = "params/webshop-iter1.yaml"


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_and_profile_loads(cell):
    values = read_cell(cell, root() / "params")
    for profile in ("default", *values.get("profiles", {})):
        c = load_config(env=values["env"], cell=cell, profile=profile)
        assert c.cell == cell and c.profile == profile
        assert set(c.collect.targets).isdisjoint(c.collect.behaviors)


@pytest.mark.parametrize("wrong, says", [
    (dict(env="chess"), "valid ones are .*webshop"), (dict(cell="webshop-iter9"), "valid ones are .*webshop-iter1"),
    (dict(profile="huge"), "valid ones are default.*smoke.*"), (dict(seeds="0,one"), "whole numbers"),
    (dict(source="download"), "valid ones are repository, remake"),
    (dict(seeds="42"), "measured the truth"), (dict(seeds="0,7"), "logged the pool"), (dict(seeds="1,1"), "stands twice"), (dict(seeds=[1.5]), "whole numbers"), (dict(seeds="-1"), "at least 0"),
    (dict(cell="/tmp/other"), "plain name"), (dict(cell="../webshop"), "plain name"), (dict(cell=5), "no cell '5'"), (dict(profile=3), "no profile '3'"),
    (dict(profile=["smoke"]), "no profile"), (dict(env=["webshop"]), "no environment"), (dict(seeds="1_0"), "whole numbers")])
def test_unknown_names_are_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says) as err: load_config(**wrong)
    assert "\n" not in str(err.value)


@pytest.fixture(scope="module")
def values():
    return {k: v for k, v in read_cell("webshop-iter1", root() / "params").items() if k != "profiles"}


def put(values, place, value):
    "The values with another one at a place such as estimators.0.imagine.beta."
    out = at = copy.deepcopy(values)
    *path, last = [int(p) if p.isdigit() else p for p in place.split(".")]
    for p in path: at = at.setdefault(p, {}) if isinstance(at, dict) else at[p]
    at[last] = value
    return out


def refusal(values):
    "The one sentence with which the values are refused."
    with pytest.raises(UserError) as err: checked(values, FILE)
    assert "\n" not in str(err.value) and str(err.value).startswith(FILE), str(err.value)
    return str(err.value)


NAN, INF = math.nan, math.inf
NONSENSE = [   # place, value, what the refusal says beside the place
    ("estimators.0.imagine.relation", "modee", "did you mean 'mode'"), ("estimators.0.imagine.beta", NAN, "finite number"), ("estimators.0.imagine.words", -3, "at least 0"),
    ("collect.temperature", -1, "at least 0"), ("collect.temperature", INF, "finite number"), ("fits.ours.train.clip", 0, "above 0"), ("fits.ours.train.joint", -5, "at least 1"),
    ("estimators.3.imagine", {"draw": 0}, "draw must be at least 1"), ("estimators.3.imagine", {"argument": NAN}, "argument must be a finite"), ("estimators.3.domain", "genericc", "did you mean 'generic'"),
    ("estimators.0.imagine.value", "endd", "did you mean 'end'"), ("estimators.0.tasks", -1, "at least 0"), ("fits.ours.train.ema", 2.0, "below 1"), ("classical.net.epochs", 0, "at least 1"),
    ("imagine.chunk", -1, "at least 1"), ("imagine.chunk", 0, "at least 1"), ("horizon", 0, "at least 1"), ("level", 1.5, "below 1"), ("level", 0, "above 0"), ("folds", 0, "at least 2"),
    ("classical.folds", -1, "at least 0"), ("imagine.epsilons", [2.0], "below 1"), ("imagine.epsilons", [0.0, 0.0], "stands twice"), ("imagine.epsilons", [], "at least 1 item"),
    ("imagine.epsilons", [0.3], "was measured at 0, 0.1, 0.25, 0.5, 1"), ("fits.ours.setting", "theirs", "valid ones are paper, ours"), ("estimators.0.setting", "theirs", "valid ones"),
    ("collect.targets", ["b-early", "b-early"], "stands twice"), ("collect.targets", [], "is empty"), ("collect.behaviors", ["a-weak", "a-weak"], "stands twice"), ("imagine.seeds", [], "is empty"),
    ("imagine.seeds", [1, 1], "stands twice"), ("imagine.seeds", [42], "measured the truth"), ("imagine.seeds", [7], "logged the pool"), ("estimators.0.seeds", [42], "measured the truth"),
    ("classical.seeds", [42], "measured the truth"), ("collect.pool_seed", 42, "another seed"), ("workers", 0, "at least 1"), ("estimators.0.name", "", "empty"), ("title", " ", "empty"),
    ("horizn", 3, "did you mean 'horizon'"), ("collect.replicas", 3, "did you mean 'replicates'"), ("fits.ours.train.clipp", 1, "did you mean 'clip'"), ("fits.ours.model.widht", 1, "did you mean 'width'"),
    ("adapters.contrastive.updats", 1, "did you mean 'updates'"), ("classical.net.epoch", 1, "did you mean 'epochs'"), ("collect.recipes.0.widht", 1, "did you mean 'width'"),
    ("collect.slots", [{"polcy": "a-weak"}], "did you mean 'policy'"), ("estimators.0.imagine.draw", 2, "no parameter 'draw'"), ("estimators.3.imagine", {"beta": 1.0}, "no parameter 'beta'"),
    ("imagine.folds", 2, "no parameter 'folds'"), ("aims.eror", 0.1, "did you mean 'error'"), ("paper.size", 3, "no parameter 'size'"), ("collect.world.slipp", 0.2, "did you mean 'slip'"),
    ("collect.world.data", "shop", "no parameter 'data'"), ("collect.world.shops", -1, "above 0"), ("collect.world.slip", "often", "must be a number"), ("estimators.0.kind", "oracle", "adwm, neighbour"),
    ("estimators.0.imagine", {"gamma": 1.0}, "imagine.gamma needs an adapter"), ("estimators.0.imagine", {"soft": True}, "imagine.soft needs an adapter"), ("estimators.0.reading", "sum", "readout is 'text'"),
    ("estimators.0.readout", "logged", "reads no logged reward"), ("estimators.3.pool", 751, "751, and 750 trajectories were logged"), ("classical.pool", 751, "classical: pool"), ("folds", 151, "has 150 tasks"), ("classical.folds", 151, "has 150 tasks"),
    ("collect.slots", [{"policy": "a-weak", "tasks": 151}], "slot of the pool asks for 151"), ("aims.epsilons", [0.7], "aims.epsilons"), ("fits.ours.model", {"heads": 3}, "multiple of heads"), ("fits.ours.model", {"n_actions": 5}, "leave it out"),
    ("collect.recipes.0.width", 97, "width must be a multiple of heads"), ("collect.recipes.2.parent", "", "continues a parent, and names none"), ("paper.table", "", "must not be empty"),
    ("estimators.0.fit", "none", "needs the fit 'none'"), ("estimators.0.adapter", "none", "needs the adapter 'none'"), ("estimators.0.split", "tomorrow", "valid ones are pool, fresh"),
    ("estimators.0.agents", ["a-iter9"], "did you mean 'a-iter"), ("estimators.0.structured", False, "means nothing"), ("estimators.3.fit", "ours", "means nothing"),
    ("estimators.3.readout", "head", "no head"), ("estimators.0.tasks", 1000, "has 150"), ("level", "high", "must be a number"), ("horizon", "12", "whole number"), ("horizon", True, "whole number"),
    ("horizon", 12.0, "whole number"), ("workers", None, "whole number"), ("env", "chess", "valid ones are webshop"), ("collect.recipes.0.name", "../a", "plain name"), ("collect.recipes.0.name", "a/b", "plain name"),
    ("collect.recipes.0.parent", "none", "does not stand before"), ("collect.reads", ["a-wek"], "did you mean 'a-weak'"), ("cell", "../x", "plain name"), ("assets", "../x", "plain name"),
    ("agents", "/tmp", "plain name"), ("cache", "../..", "below the project"), ("cache", "", "below the project"), ("fits", {"../f": {"setting": "ours"}}, "plain name"), ("collect", None, "must be a mapping"),
    ("estimators", {"name": "x"}, "must be a list"), ("fits.ours", [], "must be a mapping"), ("title", 3, "must be text")]


@pytest.mark.parametrize("place, value, says", NONSENSE, ids=[f"{p}={v!r}"[:60] for p, v, _ in NONSENSE])
def test_nonsense_is_refused_where_it_stands(values, place, value, says):
    said = refusal(put(values, place, value))
    assert re.search(says, said), said


def test_the_place_is_a_path(values):
    assert f"{FILE}: estimators[1].imagine.beta must be" in refusal(put(values, "estimators.1.imagine.beta", NAN))
    assert f"{FILE}: collect.recipes[3].tokens must be" in refusal(put(values, "collect.recipes.3.tokens", -1))


def test_doubled_estimators_are_refused(values):
    said = refusal({**values, "estimators": [*values["estimators"], values["estimators"][0]]})
    assert "two estimators of the setting 'ours' are called 'ADWM'" in said


def test_a_missing_part_is_named(values):
    for key in ("cell", "collect", "fits", "estimators"): assert f"lacks the parameter '{key}'" in refusal({k: v for k, v in values.items() if k != key})


@pytest.mark.parametrize("text, says", [
    ("cell: [", "not readable YAML"), ("horizon: 3\ntitle: x\nhorizon: 12", "line 3 .*'horizon' stands twice, first in line 1"), ("a: {b: 1, b: 2}", "line 1 .*'b' stands twice"), ("2: 3", "not text"),
    ("- a", "mapping of parameters"), ("a: 2020-13-45", "not readable"), ("a: " + "[" * 1200, "not readable"), ("a: &x [*x]", "no parameter 'a'|not readable"), ("profiles: null", "profiles must be a mapping"),
    ("profiles: {smoke: 3}", "profiles must be a mapping"), ("profile: smoke", "chosen where the cell is run"), ("a: !!python/object:os.system 1", "not readable YAML")])
def test_a_bad_file_is_one_sentence(tmp_path, text, says):
    (tmp_path / "webshop-iter1.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as err: load_config(folder=tmp_path)
    assert "\n" not in str(err.value) and FILE in str(err.value)


def test_a_profile_that_is_not_asked_for_is_checked_too(tmp_path):
    text = (root() / FILE).read_text().replace("    workers: 1\n", "    workers: 0\n")
    (tmp_path / "webshop-iter1.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params/webshop-iter1.yaml \(profile smoke\): workers must be at least 1"): load_config(folder=tmp_path)


def test_the_name_of_the_file_is_that_of_the_cell(tmp_path):
    (tmp_path / "other.yaml").write_text((root() / FILE).read_text())
    with pytest.raises(UserError, match="must agree"): load_config(cell="other", folder=tmp_path)


def places(node, path=()):
    "Every path to a value in a nest of mappings and lists."
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key); yield from places(value, (*path, key))


PLACES = sorted(places({k: v for k, v in read_cell("webshop-iter1", root() / "params").items() if k != "profiles"}), key=str)
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["..", "nan", "1e-4", "webshop", "a-weak", "ours", "adwm"]), st.lists(st.integers(-1, 50), max_size=3),
                     st.dictionaries(st.text(max_size=5), st.integers(), max_size=2), st.dates())


@settings(max_examples=200, derandomize=True, deadline=None)
@given(place=st.sampled_from(PLACES), how=st.sampled_from(["replace", "rename", "remove", "add"]), value=ANYTHING, name=st.text(max_size=6))
def test_a_file_changed_anywhere_loads_or_is_one_sentence(values, place, how, value, name):
    changed = copy.deepcopy(values); at = changed
    for p in place[:-1]: at = at[p]
    key = place[-1]
    if how == "replace": at[key] = value
    elif how == "add" and isinstance(at, dict): at[name] = value
    elif how == "rename" and isinstance(at, dict): at[name] = at.pop(key)
    else: del at[key]
    try: c = checked(changed, FILE)
    except UserError as err:
        named = [str(p) for p in place if isinstance(p, str)] + [name]
        assert str(err).startswith(FILE) and "\n" not in str(err) and len(str(err)) < 900
        assert any(repr(n)[1:-1] in str(err) or n in str(err) for n in named) or re.search(r"estimator|recipe|cell |fit", str(err)), str(err)
    else: assert from_dict(RunConfig, json.loads(json.dumps(dataclasses.asdict(c))), "again") == c, "what loads comes back from text"


def test_direct_construction_is_checked_as_well():
    with pytest.raises(UserError, match="EstimatorPart: kind cannot be 'oracle'"): EstimatorPart("x", "ours", "oracle")
    with pytest.raises(UserError, match="EstimatorPart: imagine has no parameter 'temperature'"): EstimatorPart("x", "ours", "adwm", imagine=dict(temperature=-1))
    with pytest.raises(UserError, match="RunConfig: workers"): dataclasses.replace(load_config(), workers=0)
    from adwm.imagination import Imagine
    from adwm.retrieval import MatchWeights
    for make in (lambda: Imagine(temperature=-1), lambda: Imagine(steps=0), lambda: MatchWeights(draw=0), lambda: MatchWeights(argument=NAN)):
        with pytest.raises(UserError): make()


def essence(node):
    "A schema without what differs between versions of pydantic: titles, descriptions, defaults."
    keep = {"enum", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "items", "anyOf", "$ref"}
    if isinstance(node, list): return [essence(v) for v in node]
    if not isinstance(node, dict): return node
    return {k: {n: essence(v) for n, v in node[k].items()} for k in ("properties", "$defs") if k in node} | {k: essence(v) for k, v in node.items() if k in keep}


def test_the_schema_is_that_of_the_configuration_and_every_file_names_it(tmp_path):
    committed = json.loads((root() / "params" / "schema.json").read_text())
    assert essence(committed) == essence(json.loads(write_schema(tmp_path / "schema.json").read_text())), "run the command of nbs/61_config.ipynb again"
    assert essence(committed)["$defs"]["Imagine"]["properties"]["relation"]["enum"] == ["mode", "sample", "off"]
    for cell in CELLS: assert (root() / "params" / f"{cell}.yaml").read_text().startswith("# yaml-language-server: $schema=schema.json\n")


def test_every_file_fits_the_schema_and_nonsense_does_not(values):
    jsonschema = pytest.importorskip("jsonschema")   # comes with nbformat
    judge = jsonschema.Draft202012Validator(json.loads((root() / "params" / "schema.json").read_text()))
    for cell in CELLS: assert not list(judge.iter_errors(read_cell(cell, root() / "params")))
    for place, value in (("horizn", 3), ("horizon", 0), ("estimators.0.imagine.relation", "modee"), ("fits.ours.train.clip", 0), ("collect.recipes.0.kind", "dream"), ("profiles", {"smoke": {"collect": {"targts": []}}})):
        assert list(judge.iter_errors(put(values, place, value))), place


def test_unknown_papermill_parameters_are_refused():
    check_parameters(dict(env="", cell="x", profile="smoke", seeds="0", source="", warnings=json, load_config=load_config, In=[""], Out={}, _="", __name__="__main__"))
    with pytest.raises(UserError, match="no parameter 'sed' \\(did you mean 'seeds'\\?\\)"): check_parameters(dict(env="", sed=5))


def test_a_refusal_in_a_notebook_is_one_sentence(tmp_path):
    import nbclient
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("from adwm.core import UserError\ndef f(): raise UserError('no such cell')\nf()")])
    nbformat.write(book, tmp_path / "small.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError): nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    assert book.cells[0].outputs[-1]["traceback"] == ["UserError: no such cell"]


def test_seeds_and_overlay():
    assert parse_seeds("3, 4") == parse_seeds([3, 4]) == (3, 4) and parse_seeds(7) == (7,) and parse_seeds("") == ()
    assert load_config(seeds="3,4").imagine.seeds == (3, 4)
    assert overlay({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}


def test_profiles_change_only_what_they_name():
    a, b = load_config(), load_config(profile="smoke")
    assert a.cell == b.cell and a.horizon == b.horizon and a.collect.truth_seed == b.collect.truth_seed and a != b


def test_failed_job_keeps_the_others(tmp_path):
    jobs = [("os.mkdir", (str(tmp_path / "no" / "such"),)), ("os.mkdir", (str(tmp_path / "done"),))]
    with pytest.raises(UserError, match="demo: FileNotFoundError.*finished stages are kept"): run_jobs(jobs, 2, "demo")
    assert (tmp_path / "done").is_dir()


def test_environments_name_real_cells():
    for name in OURS: assert (cell := find_environment(name).cell) in CELLS and read_cell(cell, root() / "params")["env"] == name


def test_a_cell_without_assets_says_how_to_make_them(monkeypatch, tmp_path):
    import dataclasses
    from adwm import stages
    (tmp_path / "assets").mkdir(); monkeypatch.setattr(stages, "root", lambda: tmp_path)
    with pytest.raises(UserError, match="are not in the repository: there is no folder .*; correct .*, or make them with: papermill .* -p source remake"):
        stages.load_data(stages.freeze(dataclasses.replace(load_config(), title="nothing here")))


def test_aims_and_the_papers_pool():
    webshop, other = load_config(), load_config(cell="hotpotqa-dpo")
    assert (webshop.aims.error, webshop.aims.error_zero, webshop.aims.skill) == (0.04, 0.05, 0.75)
    assert (other.aims.error, other.aims.skill, other.aims.rank, other.aims.agents) == (0.06, 0.6, 0.9, 6)
    pools = {c: load_config(cell=c).paper.pool for c in ("hotpotqa-dpo", "hotpotqa-prm", "hotpotqa-cross", "scienceworld-eto", "alfworld-iter1", "alfworld-iter3", "webshop-iter1")}
    assert list(pools.values()) == [512, 512, 512, 512, 256, 744, 640]


def test_what_remakes_a_cell():
    from adwm.stages import remake_command
    assert remake_command(load_config(cell="hotpotqa-prm")) == "papermill nbs/eval.ipynb outputs/eval-hotpotqa-prm-remade.ipynb -p cell hotpotqa-prm -p source remake"
    assert "-p profile smoke" in remake_command(load_config(profile="smoke"))


def test_best_of_n_is_hashed_where_it_acts_and_nowhere_else():
    from adwm.stages import agent_code
    config = load_config(cell="hotpotqa-prm")
    assert agent_code(config, "a-prm") == ("preference",) and agent_code(config, "b-mid", "a-dpo0", "reference") == ()
    assert agent_code(load_config(), *load_config().collect.targets) == ()


def test_the_perfect_simulator_plays_as_often_as_ours():
    from adwm.stages import seeds_of
    assert seeds_of(load_config(cell="alfworld-iter3")) == (0, 1, 2, 3) and seeds_of(load_config(cell="alfworld-iter3"), "fresh") == (0,)
    assert seeds_of(c := load_config(cell="webshop-iter1")) == tuple(c.imagine.seeds)
