"Configurations: what is refused, what a profile changes; jobs that fail late and keep what finished."
import dataclasses
from pathlib import Path

import pytest
import yaml

from adwm.core import UserError, root
from adwm.runs import ENVIRONMENTS, check_config, load_config, overlay, parse_seeds, read_cell, run_jobs

CELLS = sorted(p.stem for p in (root() / "params").glob("*.yaml"))


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
    (dict(source="download"), "repository or remake"), (dict(seeds="42"), "measured the truth")])
def test_unknown_names_are_one_sentence(wrong, says):
    with pytest.raises(UserError, match=says) as err: load_config(**wrong)
    assert "\n" not in str(err.value)


@pytest.fixture
def folder(tmp_path):
    def write(edit):
        values = read_cell("webshop-iter1", root() / "params"); edit(values)
        (tmp_path / "webshop-iter1.yaml").write_text(yaml.safe_dump(values, sort_keys=False)); return tmp_path
    return write


@pytest.mark.parametrize("edit, says", [
    (lambda v: v.update(horizn=3), "no parameter 'horizn'"),
    (lambda v: v["collect"].update(replicas=3), "no parameter 'replicas'"),
    (lambda v: v["estimators"][0].update(kind="oracle"), "adwm or neighbour"),
    (lambda v: v["estimators"][0].update(fit="none"), "needs the fit 'none'"),
    (lambda v: v["estimators"][0].update(adapter="none"), "needs the adapter 'none'"),
    (lambda v: v["estimators"][0].update(split="tomorrow"), "split must be one of"),
    (lambda v: v.update(cell="other"), "must agree"),
    (lambda v: v.update(level="high"), "must be a number"),
    (lambda v: v.update(aims=dict(eror=0.1)), "no parameter 'eror'"),
    (lambda v: v["paper"].update(size=3), "no parameter 'size'")])
def test_bad_files_name_the_place(folder, edit, says):
    with pytest.raises(UserError, match=says): load_config(folder=folder(edit))


def test_broken_yaml_is_one_sentence(tmp_path):
    (tmp_path / "webshop-iter1.yaml").write_text("cell: [")
    with pytest.raises(UserError, match="not readable YAML") as err: load_config(folder=tmp_path)
    assert "\n" not in str(err.value)


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
    for name, e in ENVIRONMENTS.items(): assert e.cell in CELLS and read_cell(e.cell, root() / "params")["env"] == name


def test_a_cell_without_assets_says_how_to_make_them(monkeypatch, tmp_path):
    import dataclasses
    from adwm import evaluation
    (tmp_path / "assets").mkdir(); monkeypatch.setattr(evaluation, "root", lambda: tmp_path)
    with pytest.raises(UserError, match="are not in the repository; make them with: papermill .* -p source remake"):
        evaluation.load_data(evaluation.freeze(dataclasses.replace(load_config(), title="nothing here")))


def test_aims_and_the_papers_pool():
    webshop, other = load_config(), load_config(cell="hotpotqa-dpo")
    assert (webshop.aims.error, webshop.aims.error_zero, webshop.aims.skill) == (0.04, 0.05, 0.75)
    assert (other.aims.error, other.aims.skill, other.aims.rank, other.aims.agents) == (0.06, 0.6, 0.9, 6)
    pools = {c: load_config(cell=c).paper.pool for c in ("hotpotqa-dpo", "hotpotqa-prm", "hotpotqa-cross", "scienceworld-eto", "alfworld-iter1", "alfworld-iter3", "webshop-iter1")}
    assert list(pools.values()) == [512, 512, 512, 512, 256, 744, 640]


def test_what_remakes_a_cell():
    from adwm.evaluation import remake_command
    assert remake_command(load_config(cell="hotpotqa-prm")) == "papermill nbs/eval.ipynb outputs/eval-hotpotqa-prm-remade.ipynb -p cell hotpotqa-prm -p source remake"
    assert "-p profile smoke" in remake_command(load_config(profile="smoke"))


def test_best_of_n_is_hashed_where_it_acts_and_nowhere_else():
    from adwm.evaluation import agent_code
    config = load_config(cell="hotpotqa-prm")
    assert agent_code(config, "a-prm") == ("preference",) and agent_code(config, "b-mid", "a-dpo0", "reference") == ()
    assert agent_code(load_config(), *load_config().collect.targets) == ()


def test_the_perfect_simulator_plays_as_often_as_ours():
    from adwm.evaluation import seeds_of
    assert seeds_of(load_config(cell="alfworld-iter3")) == (0, 1, 2, 3) and seeds_of(load_config(cell="alfworld-iter3"), "fresh") == (0,)
    assert seeds_of(c := load_config(cell="webshop-iter1")) == tuple(c.imagine.seeds)
