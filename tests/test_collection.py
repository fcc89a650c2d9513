"""Pools and truth: exact log-probabilities, resume, replay, re-roll, manifest; the committed assets."""
import importlib, json
from dataclasses import replace

import numpy as np
import pytest
import torch

from adwm.collection import (CellSpec, Collect, cell_tasks, check_manifest, collect_pool, collect_truth, digest, load_agents, read_truth, replay, reroll,
                             write_manifest, write_truth)
from adwm.core import UserError, root
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
    import gzip; (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(b"policy,epsilon\na,high\n"))
    with pytest.raises(UserError, match="line 2: the field 'epsilon'"): read_truth(tmp_path / "bad.csv.gz")
    with pytest.raises(UserError, match="manifest.json"): check_manifest(tmp_path)


def test_a_manifest_notices_a_changed_file(tmp_path):
    (tmp_path / "agents").mkdir(); (tmp_path / "agents" / "w.bin").write_bytes(b"1"); write_manifest(tmp_path, "make it", {})
    assert check_manifest(tmp_path)["files"]["agents/w.bin"]["bytes"] == 1
    (tmp_path / "agents" / "w.bin").write_bytes(b"2")
    with pytest.raises(UserError, match="remake it with: make it"): check_manifest(tmp_path)


def test_targets_never_log():
    with pytest.raises(UserError, match="cannot log the pool"): CellSpec("x", "webshop", "adwm.webshop", 12, Collect((Recipe("a"),), ("a",), ("a",)))
    with pytest.raises(UserError, match="no recipe"): CellSpec("x", "webshop", "adwm.webshop", 12, Collect((Recipe("a"),), ("a",), ("b",)))


def test_training_products_appear_nowhere_else():
    spec = CellSpec("x", "webshop", "adwm.webshop", 12, Collect((Recipe("a"),), ("a",), ()))
    cell = {p.title for p in cell_tasks(spec)[0].shop.products}
    for w in training_worlds(spec.collect.world_seed, 2, 30): assert len(cell & {p.title for p in w.simulator.shop.products}) <= 1


def cell_of(path):
    from adwm.core import from_dict
    return from_dict(CellSpec, json.loads(path.read_text())["notes"]["cell"], str(path))


def world_of(spec):
    "The cell's engine and tasks; skips where the engine is not installed."
    if missing := getattr(importlib.import_module(spec.module), "unavailable", lambda: "")(): pytest.skip(missing)
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
