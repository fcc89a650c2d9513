"Two thousand spoiled files: each is read as what it says, or refused in one sentence."
import copy, gzip, json, math
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adwm.adapter import Adapter, load_adapter, save_adapter
from adwm.agents import load_checkpoint
from adwm.core import UserError
from adwm.envs import Corridor
from adwm.episodes import TERMINAL, read_episodes, read_tasks, to_line, write_episodes
from adwm.recipes import is_made
from adwm.training import Recipe, build_model, save_checkpoint, train_tokenizer
from tests_helpers import corridor_episodes

EPISODES = corridor_episodes(4)
LINES = [json.loads(to_line(e)) for e in EPISODES]
TASKS = [asdict(Corridor().task(i)) for i in range(3)]


def tries(n): return settings(max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def accepted(read, *args):
    "What a reader returns, or None where it refuses in one sentence; anything else fails the test."
    try: return read(*args)
    except UserError as err:
        assert len(str(err)) > 20 and "\n" not in str(err)
        return None


NASTY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=4), st.sampled_from(
        [TERMINAL, "", " ", "\ud800", "0", "nan", 1e308, -1e308, 10**400, -10**30, 2**63, 1e-7, 3.5, [], {}, [[]], [None], [1], [""], ["go east"], {"a": 1}, [[["x"]]]]))


def places(d, path=()):
    "Every place of a nested object."
    inside = d.items() if isinstance(d, dict) else enumerate(d) if isinstance(d, list) else ()
    return [p for k, v in inside for p in ((*path, k), *places(v, (*path, k)))]


@st.composite
def spoiled(draw, records):
    "One of some records after one or two changes: a field dropped, replaced, doubled or added."
    d = copy.deepcopy(draw(st.sampled_from(records)))
    for _ in range(draw(st.integers(1, 2))):
        if not (found := places(d)): break
        *path, last = draw(st.sampled_from(found)); at = d
        for key in path: at = at[key]
        how = draw(st.sampled_from(("drop", "replace", "replace", "double", "add")))
        if how == "drop": del at[last]
        elif how == "replace": at[last] = copy.deepcopy(draw(NASTY))
        elif isinstance(at, list): at.insert(0, copy.deepcopy(at[last]))
        else: at[draw(st.sampled_from(("note", "logp", "reward", "terminated")))] = at[last]
    return d


def one_of(records):
    "(which, spoiled) for one of some records."
    return st.integers(0, len(records) - 1).flatmap(lambda i: st.tuples(st.just(i), spoiled([records[i]])))


def text_of(records): return "".join(json.dumps(d) + "\n" for d in records)


def sound(episodes, folder):
    "What an accepted file must be: numbers that can be computed with, one end each, and the same after writing."
    for e in episodes:
        assert math.isfinite(e.ret) and 0 <= e.epsilon <= 1 and e.terminated != e.truncated and (e.last_obs == TERMINAL) == e.terminated and e.turns
        for t in e.turns:
            assert t.action.strip() and t.obs != TERMINAL and all(isinstance(c, str) and c for c in t.choices)
            assert t.logp is None or (math.isfinite(t.logp) and t.logp <= 1e-6)
    assert len({(e.policy, e.epsilon, e.seed, e.task.id, e.index) for e in episodes}) == len(episodes)
    assert read_episodes(write_episodes(folder / "again.jsonl", episodes)) == episodes


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


@tries(800)
@given(one_of(LINES))
def test_spoiled_episodes(folder, change):
    path, (at, bad) = folder / "a.jsonl", change
    path.write_text(text_of([*LINES[:at], bad, *LINES[at + 1:]]))
    if (got := accepted(read_episodes, path)) is not None: sound(got, folder)


@tries(400)
@given(one_of(TASKS))
def test_spoiled_tasks(folder, change):
    path, (at, bad) = folder / "tasks.jsonl", change
    path.write_text(text_of([*TASKS[:at], bad, *TASKS[at + 1:]]))
    got = accepted(read_tasks, path)
    assert got is None or len({t.id for t in got}) == len(got) and all(t.obs != TERMINAL and all(t.choices) for t in got)


@st.composite
def damage(draw, data):
    "Bytes cut off, flipped, inserted or thrown away."
    out, how = bytearray(data), draw(st.sampled_from(("cut", "flip", "insert", "hole")))
    at = draw(st.integers(0, len(out) - 1))
    if how == "cut": del out[at:]
    elif how == "flip": out[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "insert": out[at:at] = draw(st.binary(min_size=1, max_size=6))
    else: del out[at:at + draw(st.integers(1, 40))]
    return bytes(out)


PLAIN = text_of(LINES).encode()


@tries(350)
@given(st.one_of(damage(PLAIN), st.binary(max_size=60), st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass"))))
def test_damaged_text(folder, data):
    (folder / "b.jsonl").write_bytes(data)
    if (got := accepted(read_episodes, folder / "b.jsonl")) is not None: sound(got, folder)
    accepted(read_tasks, folder / "b.jsonl")


@tries(250)
@given(damage(gzip.compress(PLAIN, mtime=0)))
def test_damaged_archives(folder, data):
    (folder / "c.jsonl.gz").write_bytes(data)
    if (got := accepted(read_episodes, folder / "c.jsonl.gz")) is not None: sound(got, folder)


@pytest.fixture(scope="module")
def adapter(folder): return save_adapter(folder / "adapter", Adapter(4, 8, 8))


SIZES = dict(sizes=dict(d_z=4, width=8, size=8, hidden=128), curves=[])


@tries(100)
@given(st.one_of(spoiled([SIZES]).map(json.dumps), damage(json.dumps(SIZES).encode()).map(lambda b: b.decode("latin1"))))
def test_spoiled_adapters(folder, adapter, text):
    (adapter / "adapter.json").write_text(text)
    accepted(load_adapter, adapter)


@tries(50)
@given(st.one_of(spoiled([dict(recipe=dict(name="a"), curves={})]).map(json.dumps), st.text(max_size=20)))
def test_spoiled_recipes(folder, text):
    (folder / "recipe.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert is_made(folder) in (True, False)


@pytest.fixture(scope="module")
def checkpoint(folder):
    tokenizer = train_tokenizer(["go east", "go west", "press the lamp"] * 3, 270)
    return save_checkpoint(build_model(Recipe("x", width=16, inner=16, heads=2, kv_heads=1, layers=1), tokenizer), tokenizer, folder / "agent")


@tries(60)
@given(st.data())
def test_spoiled_checkpoints(checkpoint, data):
    name = data.draw(st.sampled_from(("config.json", "tokenizer_config.json", "model.safetensors")))
    whole = (checkpoint / name).read_bytes()
    new = data.draw(damage(whole)) if name.endswith("safetensors") else json.dumps(data.draw(spoiled([json.loads(whole)]))).encode()
    (checkpoint / name).write_bytes(new)
    try: got = accepted(load_checkpoint, checkpoint)
    finally: (checkpoint / name).write_bytes(whole)
    assert got is None or all(torch.isfinite(p).all() for p in got[0].parameters())
