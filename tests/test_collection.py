"""Pools and truth: exact log-probabilities, resume, replay, re-roll, manifest; the committed assets."""
import gzip, json, sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from adwm.collection import (CellSpec, Collect, Slot, cell_tasks, check_assets, check_world, check_logged, check_manifest, collect_pool, collect_truth, digest, listed_hashes, load_agents,
                             read_truth, replay, reroll, write_manifest, write_truth)
from adwm.core import UserError, root
from adwm.envs import find_environment
from adwm.episodes import TERMINAL, read_episodes
from adwm.policies import ReferencePolicy, ScriptedPolicy, policy_log_probs
from adwm.training import Recipe
from adwm.webshop import training_worlds
from tests_helpers import small_shop

torch.set_num_threads(1)
CELLS = sorted((root() / "assets").glob("*/manifest.json"))
needs_assets = pytest.mark.skipif(not CELLS, reason="no committed cell under assets/")


@pytest.fixture(scope="module")
def shop():
    simulator, best = small_shop(5, 60, 20)

    def teacher(state):
        "The expert; a state that comes from a record is played again to know where it stands."
        if state.extra is None:
            turns, state = state.turns, simulator.reset([state.task], [()])[0]
            for t in turns: state = simulator.step([state], [t.action], [()])[0].state
        return best(state)
    return simulator, teacher


def agents_of(shop):
    simulator, teacher = shop
    return {"weak": ScriptedPolicy("weak", lambda s: "click[buy now]" if "click[buy now]" in s.choices else teacher(s)), "strong": ScriptedPolicy("strong", teacher)}


@pytest.fixture(scope="module")
def pool(shop, tmp_path_factory):
    return collect_pool(shop[0], agents_of(shop), shop[0].tasks(), 7, 12, tmp_path_factory.mktemp("pool"), "webshop")


def test_every_task_is_logged_by_every_kind_of_behavior(pool, shop):
    for t in shop[0].tasks(): assert len([e for e in pool if e.task.id == t.id]) == 4
    assert {e.epsilon for e in pool} == {0., .25, .5, 1.} and len({e.policy for e in pool}) == 3


def test_behavior_log_probabilities_are_the_mixtures(pool, shop):
    agents = {**agents_of(shop), "reference": ReferencePolicy(shop[0].domain)}
    for e in pool:
        want = policy_log_probs(agents[e.policy], [e], e.epsilon, shop[0].domain)[0]
        assert np.allclose([t.logp for t in e.turns], want, atol=1e-5) and np.isfinite(want).all(), "what was done had positive probability"


def test_terminal_pages_say_nothing(pool):
    assert all((e.last_obs == TERMINAL) == e.terminated for e in pool) and not any("score" in t.obs.lower() for e in pool for t in e.turns)


def test_an_interrupted_collection_goes_on(shop, tmp_path, pool):
    collect_pool(shop[0], agents_of(shop), shop[0].tasks(), 7, 12, tmp_path, "webshop")
    victim = next(tmp_path.glob("*strong*0.0*")); victim.write_bytes(victim.read_bytes()[:700])
    next(tmp_path.glob("*reference*")).unlink()
    assert collect_pool(shop[0], agents_of(shop), shop[0].tasks(), 7, 12, tmp_path, "webshop") == pool


def test_replay_agrees_and_notices_a_change(pool, shop):
    assert replay(shop[0], pool) == []
    long = next(e for e in pool if len(e.turns) > 2)
    assert replay(shop[0], [replace(long, turns=(replace(long.turns[0], reward=.5), *long.turns[1:]))])
    assert replay(shop[0], [replace(long, turns=(long.turns[0], replace(long.turns[1], obs="another page"), *long.turns[2:]))])


def test_truth_is_shared_at_epsilon_one_and_comes_back_from_disk(shop, tmp_path):
    tasks = dict(pool=shop[0].tasks()[:6], fresh=shop[0].tasks()[6:9])
    plan = dict(pool=((0., .5, 1.), 2), fresh=((0.,), 1))
    rows = collect_truth(shop[0], agents_of(shop), tasks, plan, 42, 12, tmp_path / "work", "webshop")
    assert len(rows) == 2 * (2 * 2 * 6 + 3) + 2 * 6 and {r["policy"] for r in rows if r["epsilon"] == 1} == {"reference"}
    path = write_truth(tmp_path / "truth.csv.gz", rows); assert read_truth(path) == rows
    assert write_truth(tmp_path / "again.csv.gz", rows).read_bytes() == path.read_bytes()
    assert np.mean([r["reward"] for r in rows if r["policy"] == "strong" and r["epsilon"] == 0]) > .9
    wanted = [(r["policy"], next(t for t in shop[0].tasks() if t.id == r["task_id"]), r["epsilon"], r["replicate"], r["seed"], r["digest"]) for r in rows[::5] if r["epsilon"] < 1]
    assert reroll(shop[0], agents_of(shop), wanted, 12) == []
    assert len(reroll(shop[0], agents_of(shop), [(*wanted[0][:5], "0" * 12)], 12)) == 1


def test_bad_tables_and_folders_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no truth table"): read_truth(tmp_path / "none.csv.gz")
    (tmp_path / "bad.csv.gz").write_bytes(b"junk")
    with pytest.raises(UserError, match="cannot be read"): read_truth(tmp_path / "bad.csv.gz")
    with pytest.raises(UserError, match="manifest.json"): check_manifest(tmp_path)


def test_a_manifest_notices_a_changed_file(tmp_path):
    (tmp_path / "agents").mkdir(); (tmp_path / "agents" / "w.bin").write_bytes(b"1"); write_manifest(tmp_path, "make it", {})
    assert check_manifest(tmp_path)["files"]["agents/w.bin"]["bytes"] == 1
    (tmp_path / "agents" / "w.bin").write_bytes(b"2")
    with pytest.raises(UserError, match="remake it with: make it"): check_manifest(tmp_path)


def test_targets_never_log():
    with pytest.raises(UserError, match="cannot log the pool"): CellSpec("x", "webshop", 12, Collect((Recipe("a"),), ("a",), ("a",)))
    with pytest.raises(UserError, match="collect names .b.; the valid ones are a"): CellSpec("x", "webshop", 12, Collect((Recipe("a"),), ("a",), ("b",)))


def test_training_products_appear_nowhere_else():
    spec = CellSpec("x", "webshop", 12, Collect((Recipe("a"),), ("a",), ()))
    cell = {p.title for p in cell_tasks(spec)[0].shop.products}
    for w in training_worlds(spec.collect.world_seed, shops=2, goals=30): assert len(cell & {p.title for p in w.simulator.shop.products}) <= 1


def cell_of(path):
    from adwm.core import from_dict
    return from_dict(CellSpec, json.loads(path.read_text())["notes"]["cell"], str(path))


def world_of(spec):
    "The cell's engine and tasks; skips where the engine is not installed."
    if missing := find_environment(spec.env).unavailable(): pytest.skip(missing)
    return cell_tasks(spec)


@needs_assets
@pytest.mark.parametrize("manifest", CELLS, ids=[c.parent.name for c in CELLS])
def test_committed_cell_is_whole_and_replays(manifest):
    check_manifest(manifest.parent); spec = cell_of(manifest)
    simulator, tasks = world_of(spec); pool = read_episodes(manifest.parent / "pool.jsonl.gz", spec.env)
    assert {e.task.id for e in pool} == {t.id for t in tasks["pool"]} and replay(simulator, pool) == []
    assert not {e.policy for e in pool} & set(spec.collect.targets)


@needs_assets
@pytest.mark.parametrize("manifest", CELLS, ids=[c.parent.name for c in CELLS])
def test_committed_agents_act_again_as_logged(manifest):
    spec, folder = cell_of(manifest), manifest.parent
    simulator, tasks = world_of(spec); place = {t.id: t for ts in tasks.values() for t in ts}
    pool, truth = read_episodes(folder / "pool.jsonl.gz"), read_truth(folder / "truth.csv.gz")
    home = folder if (folder / "agents").is_dir() else folder.parent / json.loads(manifest.read_text())["notes"]["agents"]   # another cell's agents
    policies = {**load_agents(home, (*spec.collect.behaviors, *spec.collect.targets), simulator.domain), "reference": ReferencePolicy(simulator.domain)}
    wanted = [(e.policy, e.task, e.epsilon, e.index, e.seed, digest(e)) for e in pool[::len(pool) // 20][:20]]
    wanted += [(r["policy"], place[r["task_id"]], r["epsilon"], r["replicate"], r["seed"], r["digest"]) for r in truth[::len(truth) // 20][:20]]
    assert len(wanted) == 40 and reroll(simulator, policies, wanted, spec.horizon) == []


def test_every_committed_cell_and_profile_uses_assets_that_were_made_for_it():
    from adwm.config import load_config, profiles_of, read_cell, spec_of
    seen = 0
    for path in sorted((root() / "params").glob("*.yaml")):
        for profile in profiles_of(read_cell(path.stem, path.parent), path.stem):
            c = load_config(cell=path.stem, profile=profile); folder = root() / "assets" / (c.assets or c.cell)
            if folder.is_dir(): check_assets(folder, spec_of(c)); seen += 1
    assert seen >= 20 or not CELLS


def with_collect(spec, **changes): return replace(spec, collect=replace(spec.collect, **changes))


@needs_assets
@pytest.mark.parametrize("change, says", [
    (lambda s: with_collect(s, world_seed=3), "collect.world_seed = 0, and the configuration says 3"), (lambda s: with_collect(s, world={**s.collect.world, "slip": 0.1}), "collect.world.slip = null, and the configuration says 0.1"),
    (lambda s: replace(s, horizon=11), "horizon = 12, and the configuration says 11"), (lambda s: with_collect(s, temperature=0.5), "temperature = 1.0, .* 0.5"), (lambda s: with_collect(s, truth_seed=5), "truth_seed = 42"),
    (lambda s: with_collect(s, pool_seed=5), "pool_seed = 7"), (lambda s: with_collect(s, epsilons=(0.0, 1.0)), "epsilons"), (lambda s: with_collect(s, pool_tasks=10), "pool_tasks = 150"),
    (lambda s: with_collect(s, recipes=(replace(s.collect.recipes[0], seed=99), *s.collect.recipes[1:])), "recipe a-weak.seed = 10, .* 99"), (lambda s: with_collect(s, targets=("a-new",), recipes=(*s.collect.recipes, Recipe("a-new"))), "recipe a-new.name = null"),
    (lambda s: with_collect(s, behaviors=s.collect.behaviors[:2]), "collect.behaviors")])
def test_assets_of_another_cell_are_refused_with_both_values(change, says):
    folder = root() / "assets" / "webshop-iter1"; spec = cell_of(folder / "manifest.json")
    assert check_assets(folder, with_collect(spec, targets=spec.collect.targets[:2])) == spec, "fewer may be judged"
    with pytest.raises(UserError, match=says) as err: check_assets(folder, change(spec))
    assert "\n" not in str(err.value)


@needs_assets
@pytest.mark.parametrize("change, says", [(dict(module="os"), "notes.cell has no parameter 'module'"), (dict(env="antigravity:A"), "env"), (dict(horizon="x"), "notes.cell: horizon must be a whole number"), (None, "notes.cell")])
def test_a_manifest_of_another_form_is_one_sentence_and_imports_nothing(tmp_path, change, says):
    spec = cell_of(root() / "assets" / "webshop-iter1" / "manifest.json")
    write_manifest(tmp_path, "x", dict(cell=change and json.loads(json.dumps(asdict(spec))) | change))
    with pytest.raises(UserError, match=f"{tmp_path}/manifest.json.*{says}"): check_assets(tmp_path, spec)
    assert "antigravity" not in sys.modules
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"files": {', '"files": {}, "files": {'))
    with pytest.raises(UserError, match="manifest.json is missing or damaged .*'files' stands twice"): check_manifest(tmp_path)


def test_a_renamed_or_shortened_pool_is_noticed(pool):
    spec = CellSpec("x", "webshop", 12, Collect((Recipe("weak"), Recipe("strong"), Recipe("new")), ("weak", "strong"), ("new",), pool_tasks=len({e.task.id for e in pool})))
    check_logged(pool, spec)
    with pytest.raises(UserError, match="0 episodes of new|of new at"): check_logged([replace(e, policy="new") if e.policy == "strong" else e for e in pool], spec)
    with pytest.raises(UserError, match="and its plan has"): check_logged(pool[:-1], spec)


GOOD = "policy,epsilon,split,task_id,replicate,seed,reward,success,turns,digest\na,0.0,pool,t,0,42,0.5,0,3,0123456789ab\n"


def truth_file(tmp_path, text):
    path = tmp_path / "truth.csv.gz"; path.write_bytes(gzip.compress(text if isinstance(text, bytes) else text.encode())); return path


@pytest.mark.parametrize("edit, says", [
    (lambda t: t.replace("0.5", "nan"), "line 2: the field 'reward' must be a number of at most 1e\\+09"), (lambda t: t.replace("0.5", "inf"), "line 2: the field 'reward'"), (lambda t: t.replace("0.5", "abc"), "line 2: the field 'reward' is not a number"),
    (lambda t: t.replace("0.0", "7"), "line 2: the field 'epsilon' must be a share"), (lambda t: t.replace("0.0", "nan"), "line 2: the field 'epsilon'"), (lambda t: t.replace("pool", "poool"), "line 2: the field 'split' must be pool or fresh"),
    (lambda t: t + t.splitlines()[1] + "\n", "line 3: the episode of line 2 stands here again"), (lambda t: "", "line 1: the columns must be"), (lambda t: t.splitlines()[0] + "\n", "holds no rows"),
    (lambda t: t.replace("reward", "rewad"), "line 1: the columns must be"), (lambda t: t.replace(",3,", ",y,3,"), "line 2: 11 fields stand where 10"), (lambda t: t.replace(",3,0123456789ab", ""), "line 2: 8 fields"),
    (lambda t: t.replace("0,42", "0,4.2"), "line 2: the field 'seed' is not a number"), (lambda t: t.replace(",0,3,", ",2,3,"), "'success' must be 0 or 1"), (lambda t: t.replace(",0,3,", ",1,3,"), "line 2: the field 'success' is 1, and the reward 0.5"), (lambda t: t.replace("t,0", "t,1_0"), "line 2: the field 'replicate' is not a number"), (lambda t: t.replace("a,0.0", " ,0.0"), "'policy' must be a name"),
    (lambda t: t.replace(",3,", ",0,"), "'turns' must be at least 1"), (lambda t: t.replace("89ab", "89"), "'digest' must be 12"), (lambda t: t + t.splitlines()[1].replace("t,0,42", "t,1,43") + "\n", "line 3: the field 'seed' is 43, and 42 on line 2"),
    (lambda t: b"\xff\xfe", "cannot be read"), (lambda t: t.replace("t,0", '"t,0'), "cannot be read")])
def test_bad_truth_is_one_sentence_with_its_line(tmp_path, edit, says):
    assert len(read_truth(truth_file(tmp_path, GOOD))) == 1
    with pytest.raises(UserError, match=says) as err: read_truth(truth_file(tmp_path, edit(GOOD)))
    assert "\n" not in str(err.value)


def test_damaged_gzip_is_one_sentence(tmp_path):
    path = truth_file(tmp_path, GOOD * 50); whole = path.read_bytes()
    for i in range(0, len(whole), 3):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1:])
        try: read_truth(path)
        except UserError as err: assert "\n" not in str(err)


ENTRY = dict(bytes=1, sha256="6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b", command="make it")


@pytest.mark.parametrize("text, says", [
    ("{}", "lacks the parameter 'notes'"), ("[]", "must be a mapping"), ("null", "must be a mapping"), ("{", "missing or damaged"), ("", "missing or damaged"), ("[" * 100_000, "missing or damaged"), ('{"notes": {}}', "lacks the parameter 'files'"),
    ('{"notes": [], "files": {}}', "notes must be a mapping"), ('{"notes": {}, "files": []}', "files must be a mapping"), ('{"notes": {}, "files": {}}', "w.bin is not in the folder's manifest"),
    ({"w.bin": {}}, "lacks the parameter 'bytes'"), ({"w.bin": None}, "must be a mapping"), ({"w.bin": {**ENTRY, "sha256": 3}}, "sha256 must be text"), ({"w.bin": {**ENTRY, "bytes": "1"}}, "bytes must be a whole number"),
    ({"w.bin": {**ENTRY, "bytes": 2}}, "differs from its manifest"), ({"w.bin": {**ENTRY, "sha256": "0"}}, "differs from its manifest"), ({"w.bin": {**ENTRY, "comand": ""}}, "did you mean 'command'"),
    ({"../x": ENTRY}, "below its folder"), ({"/etc/passwd": ENTRY}, "below its folder"), ({"a/../w.bin": ENTRY}, "below its folder"), ({"./w.bin": ENTRY}, "below its folder"), ({"": ENTRY}, "below its folder"),
    ({"w.bin": ENTRY, "gone": ENTRY}, "gone is missing; remake it with: make it")], ids=str)
def test_bad_manifests_are_one_sentence(tmp_path, text, says):
    (tmp_path / "w.bin").write_bytes(b"1"); (tmp_path / "manifest.json").write_text(text if isinstance(text, str) else json.dumps(dict(notes={}, files=text)))
    with pytest.raises(UserError, match=says) as err: check_manifest(tmp_path)
    assert "\n" not in str(err.value)


def test_files_that_nothing_vouches_for_are_refused(tmp_path):
    (tmp_path / "agents" / "a").mkdir(parents=True); (tmp_path / "agents" / "a" / "w.bin").write_bytes(b"1"); write_manifest(tmp_path, "make it", {})
    manifest = check_manifest(tmp_path)
    assert listed_hashes(manifest, "agents/a/") == {"agents/a/w.bin": ENTRY["sha256"]}
    with pytest.raises(UserError, match="lists no file agents/b/"): listed_hashes(manifest, "agents/b/")
    (tmp_path / "agents" / "b").mkdir(); (tmp_path / "agents" / "b" / "w.bin").write_bytes(b"2")
    with pytest.raises(UserError, match="agents/b/w.bin is not in the folder's manifest"): check_manifest(tmp_path)


def test_what_the_world_may_hold_the_environment_declares():
    spec = CellSpec("x", "webshop", 12, Collect((Recipe("a"),), ("a",), ()))
    with pytest.raises(UserError, match="collect.world has no parameter 'slipp' .did you mean 'slip'"): check_world(with_collect(spec, world={"slipp": 0.2}))
    with pytest.raises(UserError, match="collect.world: slip must be a number"): check_world(with_collect(spec, world={"slip": "often"}))
    with pytest.raises(UserError, match="does not stand before it"): with_collect(spec, recipes=(Recipe("a", kind="more", parent="b"), Recipe("b")))
    with pytest.raises(UserError, match="collect.reads names 'b'"): with_collect(spec, reads=("b",))
    with pytest.raises(UserError, match="slot of the pool names 'b'"): with_collect(spec, slots=(Slot("b"),))
