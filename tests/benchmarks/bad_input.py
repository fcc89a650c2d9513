"""Malformed input, kind by kind: what is refused clearly, what unclearly, and what changes a result in silence.

    python tests/benchmarks/bad_input.py             # all kinds; two to three minutes on one core
    python tests/benchmarks/bad_input.py params      # kinds whose name begins so
    python tests/benchmarks/bad_input.py --papermill # besides, two real runs of papermill

The rule. Every case is one fault in one sound input, and is tried by calling what a run calls.
* clear: a UserError of one line whose text holds every mark of the case: the file (or the configuration) and the field, key, line or name.
* unclear: any other exception, or a UserError without one of its marks, of several lines, or longer than 600 characters.
* harmless: accepted, and the result equals that of the sound input; or the case says beforehand why another result is right.
* silent and bad: accepted with another result.
A case that cannot be tried here counts as unclear. Exit status 1 where anything is silent and bad.
"""
import argparse, contextlib, copy, gzip, io, json, math, os, pickle, shutil, subprocess, sys, tempfile, time, warnings
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))   # tests_helpers

import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from adwm import alfworld, hotpotqa, stages
from adwm import shop as shops
from adwm.adapter import Adapter, load_adapter, save_adapter
from adwm.agents import LMAgent
from adwm.catalogue import generate_catalogue, write_catalogue
from adwm.collection import CellSpec, Collect, check_assets, check_logged, check_manifest, listed_hashes, read_truth, write_manifest, write_truth
from adwm.core import UserError, atomic_write, cached, root, stage_key
from adwm.envs import Corridor
from adwm.episodes import TERMINAL, read_episodes, read_tasks, to_line, write_episodes
from adwm.preference import RewardModel, load_agent, reward_model_files
from adwm.recipes import is_made
from adwm.rollouts import make_rows, rollout
from adwm.policies import ScriptedPolicy
from adwm.config import check_parameters, load_config, read_cell
from adwm.training import Recipe, build_model, save_checkpoint, train_tokenizer
from adwm.weights import PolicyProbe, read_probe, write_probe
from adwm.world_model import ActionSpace, ModelConfig, load_model, new_model, save_model
from tests_helpers import corridor_episodes

NAN, INF = math.nan, math.inf
KINDS = ("params", "episodes, truth, tasks", "checkpoints, judges", "manifest, assets", "catalogues, worlds, games", "damaged finished stages", "papermill parameters")


@dataclass
class Case:
    "One fault."
    kind: str
    name: str
    run: Callable[[Path], Any]   # in a folder of its own; what it returns is compared
    sound: Any = None            # what the sound input gives
    marks: tuple = ()            # the sentence holds each; a tuple in it: one of these
    right: str = ""              # why another result is right


def judge(case):
    "(verdict, what was said or returned)."
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try: got = case.run(Path(folder))
        except UserError as err: said, kind = str(err), "said"
        except BaseException as err: return "unclear", f"{type(err).__name__}: {err}"[:200]
        else: return ("harmless" if case.right or got == case.sound else "silent and bad"), repr(got)[:120]
    lacks = [m for m in case.marks if not any(x in said for x in (m if isinstance(m, tuple) else (m,)))]
    if "\n" in said or len(said) > 600 or lacks: return "unclear", f"(lacks {lacks}) {said[:300]}"
    return "clear", said


def places(node, path=()):
    "Every path to a value in a nest of mappings and lists."
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*path, key), value
        yield from places(value, (*path, key))


def put(values, path, value):
    "A copy with another value at a place; no value: without it."
    out = at = copy.deepcopy(values)
    for p in path[:-1]: at = at[p]
    if value is put: del at[path[-1]]
    else: at[path[-1]] = value
    return out


def wrong(value, free=False):
    "Values that cannot stand in the place of this one, whatever the place."
    if isinstance(value, bool): return ["yes please", 3, None]
    if isinstance(value, int): return [-1, "12", 1.5, None, NAN]
    if isinstance(value, float): return [-1.0, NAN, INF, "much", None]
    if isinstance(value, str): return [3, None, ""] + ([] if free else [value + value[-1]])
    if isinstance(value, list): return [None, "x", {"a": 1}] + ([value + value[:1]] if value else [])
    if isinstance(value, dict): return [[], "x", {**value, "unheard": 1}]
    return []


# ---------------------------------------------------------------- params

CELLS = ("webshop-iter1", "alfworld-iter1", "hotpotqa-prm", "webshop-slip", "webshop-ablations")
FREE = ("title", "name", "table", "mix", "length", "pool")   # of text: any is right; the paper's figures are cited


def loaded(cell, text):
    "A function of a folder that loads a file of parameters, and what the cell starts from."
    def run(folder):
        (folder / f"{cell}.yaml").write_text(text, encoding="utf-8")
        config = load_config(cell=cell, folder=folder)
        stages.load_data(config)
        return config
    return run


def params():
    "Wrong values at every kind of place, names that are nearly right, combinations, text that is no YAML."
    seen, texts = set(), {c: yaml.safe_dump(read_cell(c, root() / "params"), sort_keys=False) for c in CELLS}
    sound = {c: load_config(cell=c) for c in CELLS}

    def case(cell, name, values, *marks, right=""):
        text = values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False)
        return Case("params", f"{cell}: {name}", loaded(cell, text), sound[cell], marks, right)

    for cell in CELLS:
        values = read_cell(cell, root() / "params")
        for path, value in places(values):
            general = tuple(p for p in path if isinstance(p, str))
            general = tuple("*" if i and general[i - 1] in ("profiles", "fits", "adapters") else p for i, p in enumerate(general))
            if general in seen or general[:1] == ("profiles",) and len(general) < 3: continue
            seen.add(general)
            label = ".".join(map(str, path))
            field = next(str(p) for p in reversed(path) if isinstance(p, str))
            own = (field, str(value)) if isinstance(value, str) else (field, field.removesuffix("s"))
            options = wrong(value, field in FREE)
            if value == "generic": options.remove("")   # the other domain
            if general[0] in ("collect", "assets", "agents", "horizon"): marks = (own,)   # may be refused beside the assets, whose manifest is named then
            else: marks = (f"params/{cell}.yaml", own)
            for bad in options[len(seen) % len(options):][:2] if general[:1] == ("profiles",) else options:
                if bad is None and general in {("classical",), ("paper",)}: continue   # switched off
                yield case(cell, f"{label} = {bad!r:.30}", put(values, path, bad), *marks)
            if isinstance(value, dict) or general[:1] == ("profiles",): continue
            parent = values
            for p in path[:-1]: parent = parent[p]
            if isinstance(parent, dict):
                yield case(cell, f"{label} misspelt", put(put(values, path, put), (*path[:-1], str(path[-1]) + "s"), value), f"params/{cell}.yaml", field)

    w = read_cell("webshop-iter1", root() / "params")
    changes = [("estimators.0.imagine", {"gamma": 1.0}, "gamma"), ("estimators.0.imagine", {"soft": True}, "soft"), ("estimators.0.reading", "sum", "reading"), ("estimators.0.readout", "logged", "readout"),
               ("estimators.3.reading", "sum", "reading"), ("estimators.0.pool", 10**6, "pool"), ("estimators.3.pool", 10**6, "pool"), ("fits.ours.pool", 10**6, "pool"), ("classical.pool", 10**6, "pool"),
               ("classical.seeds", [42], "classical.seeds"), ("estimators.0.seeds", [7], "seeds"), ("imagine.seeds", [42], "seeds"), ("folds", 1000, "folds"), ("classical.folds", 1000, "folds"),
               ("collect.slots", [{"policy": "a-weak", "tasks": 5000}], "slot"), ("collect.slots", [{"policy": "b-early"}], "slot"), ("collect.reads", ["b-early"], "reads"), ("collect.world_seed", 1, "world_seed"),
               ("collect.world.slip", 0.2, "world"), ("collect.temperature", 0.5, "temperature"), ("horizon", 13, "horizon"), ("collect.pool_seed", 8, "pool_seed"), ("collect.truth_seed", 43, "truth_seed"),
               ("collect.vocabulary", 1300, "vocabulary"), ("collect.recipes.0.tokens", 7, "tokens"), ("collect.recipes.0.width", 97, "width"), ("collect.recipes.1.kind", "leap", ("kind", "parent", "continues")), ("collect.recipes.1.heads", 3, "heads"),
               ("collect.recipes.0.parent", "a-iter0", ("parent", "continues")), ("collect.recipes.2.kind", "demos", "kind"), ("collect.recipes.2.parent", "", "parent"), ("collect.recipes.1.name", "a-weak", "a-weak"), ("collect.pool_tasks", 140, "pool_tasks"),
               ("collect.replicates", 3, "replicates"), ("collect.targets", ["a-weak"], "a-weak"), ("collect.behaviors", ["a-weak", "a-iter0"], "behaviors"), ("collect.targets", ["a-iter2"], "a-iter2"), ("collect.epsilons", [0.0], "epsilon"),
               ("imagine.epsilons", [0.3], "epsilon"), ("estimators.0.epsilons", [1.0], "epsilons"), ("estimators.7.epsilons", [0.5], "epsilon"), ("profile", "smoke", "profile"), ("assets", "webshop-slip", "webshop-slip"), ("assets", "nowhere", "nowhere"),
               ("aims.epsilons", [0.7], "aims.epsilons"), ("fits.unused", {"setting": "ours", "train": {"joint": 0}}, "joint"), ("estimators.0.name", "a\nb", "name"), ("fits.ours.model", {"width": 97}, "width"), ("fits.ours.model", {"heads": 3}, "heads"),
               ("adapters.contrastive.loss", "papers", "loss"), ("adapters.contrastive.updates", 0, "updates"), ("fits.ours.train.batch", 0, "batch"), ("level", 1.0, "level"), ("cache", "/", "cache"), ("cache", "../x", "cache"), ("cache", ".", "cache")]
    for place, value, *marks in changes:
        path = tuple(int(p) if p.isdigit() else p for p in place.split("."))
        values = copy.deepcopy(w)
        for i, p in enumerate(path[:-1]):
            at = values
            for q in path[:i]: at = at[q]
            if isinstance(at, dict): at.setdefault(p, {})
        beside = path[0] in ("collect", "horizon", "assets")
        yield case("webshop-iter1", f"{place} = {value!r:.40}", put(values, path, value), *(() if beside else ("params/webshop-iter1.yaml",)), *marks, right="absolute folders are allowed" if value == "/" else "")
    doubled = copy.deepcopy(w); doubled["estimators"].append(doubled["estimators"][0])
    yield case("webshop-iter1", "an estimator twice", doubled, "params/webshop-iter1.yaml", "ADWM")
    text = texts["webshop-iter1"]
    for name, spoilt, *marks in [("a key twice", text + "horizon: 12\n", "horizon"), ("a bracket open", text + "x: [\n", "line"), ("a tab", text + "\tx: 1\n", "line"), ("a Python object", text + "x: !!python/object/apply:os.system [true]\n", "line"),
                                 ("a list", "- 1\n", "mapping"), ("empty", "", "mapping"), ("a key that is a number", text + "3: 4\n", "line"), ("an unknown alias", text + "x: *y\n", "line"), ("bytes", "cell: \x00\n", "YAML"),
                                 ("two documents", text + "---\na: 1\n", "YAML"), ("profiles: null", text.split("profiles:")[0] + "profiles: null\n", "profiles"), ("a number as a profile", text.split("profiles:")[0] + "profiles: {smoke: 3}\n", "profiles"),
                                 ("brackets 1200 deep", "x: " + "[" * 1200, "YAML"), ("text after a quote", 'title: "a" b\n', "line")]:
        yield case("webshop-iter1", name, spoilt, "params/webshop-iter1.yaml", *marks)


# ---------------------------------------------------------------- episodes, truth, tasks

def files(kind, suffix, read, sound_text, spoilt, packed=False):
    "Cases of one reader: (name, text or bytes, marks)."
    def of(data):
        def run(folder):
            path = folder / f"x{suffix}"
            data_ = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
            path.write_bytes(gzip.compress(data_) if packed and not isinstance(data, bytes) else data_)
            return read(path)
        return run
    with tempfile.TemporaryDirectory() as folder: sound = of(sound_text)(Path(folder))
    for name, data, *marks in spoilt: yield Case(kind, name, of(data), sound, (f"x{suffix}", *marks))


def episodes():
    "Fields of the second of three lines, lines among lines, archives; truth and tasks alike."
    kind, three = KINDS[1], [json.loads(to_line(e)) for e in corridor_episodes(3)]
    text = lambda rows: "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    second = lambda d: text([three[0], d, three[2]])
    spoilt = []
    optional = {"logp"}
    for path, value in places(three[1]):
        field = next(p for p in reversed(path) if isinstance(p, str))
        if any(isinstance(p, int) and p > 0 for p in path): continue
        label = "episode: " + ".".join(map(str, path))
        if isinstance(path[-1], str) and field not in optional: spoilt.append((f"{label} missing", second(put(three[1], path, put)), "line 2", field))
        if isinstance(path[-1], str):
            another = {"epsilon": 0.25, "reward": 0.5, "seed": 5, "index": 5, "policy": "x", "action": "x", "text": "x", "logp": -2.0, "id": "x"}.get(field)
            one = json.dumps(put(three[1], path, "HERE")).replace('"HERE"', f'{json.dumps(value)}, "{field}": {json.dumps(another)}')
            if another is not None: spoilt.append((f"{label} twice", second(one), "line 2", field))
        bad = {"epsilon": [NAN, 7, -0.1, "0", None], "reward": [NAN, INF, 1e308, "1", None, 10**400], "logp": ["abc", NAN, 3.0, -INF, 1e308], "seed": ["0", 1.5, None, 10**30], "index": [-1, 1.5, None],
               "terminated": [1, None, "true"], "truncated": [1, None, "true"], "env": [3, None], "policy": ["", " ", 3, None], "id": ["", 3], "text": [3, None], "obs": [TERMINAL, 3, None], "action": ["", " ", 3, None],
               "choices": [[1], [None], [""], "x", None], "last_obs": [3, None], "turns": [[], None, {}], "task": [[], None, "x"]}.get(field, []) if isinstance(path[-1], str) else []
        spoilt += [(f"{label} = {b!r:.20}", second(put(three[1], path, b)), "line 2", field) for b in bad]
    e = three[1]
    both = lambda a, b: second({**e, "terminated": a, "truncated": b})
    unlike = copy.deepcopy(e); unlike["turns"][0]["obs"] = "another page"
    unlisted = copy.deepcopy(e); unlisted["turns"][0]["choices"] = ["go nowhere"]
    spoilt += [("both ends", both(True, True), "line 2", "terminated"), ("no end", both(False, False), "line 2", "terminated"), ("an unknown field", second({**e, "note": 1}), "line 2", "note"), ("an episode twice", text([*three, e]), "line 4"),
               ("a task with another text", text([*three, {**e, "index": 1, "task": {**e["task"], "text": "other"}}]), "line 4", "text"), ("a task with another first page", text([*three, {**e, "index": 1, "task": {**e["task"], "obs": "other"}}]), "line 4"),
               ("the first page is not the task's", second(unlike), "line 2", "obs"), ("the first choices are not the task's", second(unlisted), "line 2", "choices"),
               ("an empty line", text([three[0], "", three[2]]), "line 2"), ("half a line", second(json.dumps(e)[:60]), "line 2"), ("a list", second([1]), "line 2"), ("a number", second("3"), "line 2"), ("half a surrogate pair", second({**e, "last_obs": "\ud800"}), "line 2"),
               ("brackets 100,000 deep", second("[" * 100000), "line 2"), ("a byte-order mark", "\ufeff" + text(three), "line 1"), ("latin-1", b"\xe4\n", "after line 0"), ("empty", "", "no episode"), ("two objects in a line", second(json.dumps(e) * 2), "line 2"),
               ("real terminal page", second({**e, "terminated": True, "truncated": False, "last_obs": "score 1"}), "line 2", "last_obs"), ("terminal page, cut", second({**e, "terminated": False, "truncated": True, "last_obs": TERMINAL}), "line 2", "last_obs")]
    yield from files(kind, ".jsonl", read_episodes, text(three), spoilt)
    whole = gzip.compress(text(three).encode(), mtime=0)
    yield from files(kind, ".jsonl.gz", read_episodes, text(three), [(f"archive cut at {n}", whole[:n], ("cannot be read", "no episode")) for n in (0, 5, 12, 60, len(whole) - 3)]
                     + [(f"archive with byte {n} changed", whole[:n] + bytes([whole[n] ^ 85]) + whole[n + 1:], "x.jsonl") for n in (0, 2, 20, 70, len(whole) - 6)], packed=True)
    yield Case(kind, "no file", lambda f: read_episodes(f / "x.jsonl"), None, ("x.jsonl",))
    yield Case(kind, "a folder", lambda f: read_episodes(f), None, ("file",))
    yield Case(kind, "another environment", lambda f: read_episodes(write_episodes(f / "x.jsonl", corridor_episodes(2)), "webshop"), None, ("x.jsonl", "corridor"))
    tasks = [asdict(Corridor().task(i)) for i in range(3)]
    mid = lambda d: text([tasks[0], d, tasks[2]])
    bad = [(f"task: {k} = {b!r}", mid({**tasks[1], k: b}), "line 2", k) for k, bs in {"id": ["", 3, None], "text": [3, None], "obs": [TERMINAL, 3], "choices": [[1], [""], "x", None]}.items() for b in bs]
    bad += [(f"task: {k} missing", mid({a: v for a, v in tasks[1].items() if a != k}), "line 2", k) for k in tasks[1]]
    bad += [("task: unknown field", mid({**tasks[1], "x": 1}), "line 2", "x"), ("task: id twice", mid({**tasks[1], "id": tasks[0]["id"]}), "line 2", tasks[0]["id"]), ("tasks: empty", "", "no task"), ("task: key twice", mid(json.dumps(tasks[1])[:-1] + ', "id": "z"}'), "line 2", "id")]
    yield from files(kind, ".jsonl", read_tasks, text(tasks), bad)
    yield from truths(kind)
    yield from resumed(kind)


def truths(kind):
    rows = [dict(policy="a", epsilon=e, split="pool", task_id=f"t{i}", replicate=0, seed=42, reward=float(i), success=i, turns=3, digest="0" * 12) for e in (0.0, 0.5) for i in range(2)]
    with tempfile.TemporaryDirectory() as f: lines = gzip.decompress(write_truth(Path(f) / "x.csv.gz", rows).read_bytes()).decode().splitlines()
    names = lines[0].split(",")
    def cell(field, value):
        parts = lines[2].split(","); parts[names.index(field)] = value
        return "\n".join([*lines[:2], ",".join(parts), *lines[3:]]) + "\n"
    bad = {"policy": ["", " "], "epsilon": ["nan", "inf", "7", "-1", "x", "", "0_0"], "split": ["", "pools", "test"], "task_id": [""], "replicate": ["-1", "x", "1.5", "1_0", ""], "seed": ["x", "", "1.5", "-1"],
           "reward": ["nan", "inf", "-inf", "x", "", "1e308", "1_0"], "success": ["2", "-1", "x", "", "0"], "turns": ["-1", "0", "x", "", "3.5"], "digest": ["", "xyz", "0" * 11]}
    spoilt = [(f"truth: {k} = {v!r}", cell(k, v), "line 3", k) for k, vs in bad.items() for v in vs]
    body = "\n".join(lines) + "\n"
    spoilt += [("truth: a row twice", body + lines[1] + "\n", "line 6"), ("truth: no header", "\n".join(lines[1:]) + "\n", "line 1"), ("truth: columns swapped", body.replace("policy,epsilon", "epsilon,policy"), "line 1"), ("truth: empty", "", "line 1"),
               ("truth: header alone", lines[0] + "\n", "no rows"), ("truth: a field too many", cell("digest", "0" * 12 + ",x"), "line 3"), ("truth: a field too few", body.replace(",000000000000", "", 1), "line 2"), ("truth: a blank line", body + "\n", "line 6"),
               ("truth: a quote open", body + '"', "x.csv.gz"), ("truth: semicolons", body.replace(",", ";"), "line 1"), ("truth: two measuring seeds", cell("seed", "43"), "line 3", "seed")]
    spoilt += [("truth: not an archive", body.encode(), "cannot be read"), ("truth: half an archive", gzip.compress(body.encode())[:50], "cannot be read"), ("truth: latin-1", gzip.compress(b"\xe4"), "cannot be read")]
    yield from files(kind, ".csv.gz", read_truth, body, spoilt, packed=True)


def resumed(kind):
    "Work files of an interrupted rollout."
    world = Corridor()
    east = ScriptedPolicy("east", lambda s: "press" if s.obs == "room 2" else "go east")
    again = lambda path: rollout(world, east, make_rows([world.task(i) for i in range(6)], [0.3]), 0, 6, 2, path, "corridor")
    with tempfile.TemporaryDirectory() as f:
        sound = again(Path(f) / "w.jsonl"); lines = (Path(f) / "w.jsonl").read_text().splitlines(keepends=True)
    def of(text):
        def run(folder): (folder / "w.jsonl").write_text(text); return again(folder / "w.jsonl")
        return run
    other = json.loads(lines[0])
    for name, text, *marks in [("cut in a line", "".join(lines[:3]) + lines[3][:40]), ("cut after one", lines[0]), ("empty", ""), ("another order", lines[1] + lines[0], "w.jsonl"), ("too many", "".join(lines) + lines[0], "w.jsonl"),
                               ("another policy", json.dumps({**other, "policy": "x"}) + "\n" + lines[1], "w.jsonl"), ("another seed", json.dumps({**other, "seed": 1}) + "\n" + lines[1], "w.jsonl"), ("nonsense", "x\n" + lines[1], "w.jsonl", "line 1"),
                               ("another environment", json.dumps({**other, "env": "x"}) + "\n" + lines[1], "w.jsonl")]:
        yield Case(kind, f"work file: {name}", of(text), sound, tuple(marks))


# ---------------------------------------------------------------- checkpoints, judges

class Boom:
    "A pickle that leaves a file where it is opened."
    def __reduce__(self): return (Path.touch, (Path(tempfile.gettempdir()) / "adwm-opened-a-pickle",))


def checkpoints(base):
    "A tiny agent with a judge, an adapter, a world model, a probe; each with one file spoilt."
    kind, domain = KINDS[2], Corridor().domain
    tokenizer = train_tokenizer(["go east", "go west", "press the lamp", "room 0 room 1"] * 3, 270)
    model = build_model(Recipe("x", width=16, inner=16, heads=2, kv_heads=1, layers=2), tokenizer)
    files = reward_model_files(RewardModel(model.base_model, 16, tokenizer.convert_tokens_to_ids("</act>")), 3)
    home = save_checkpoint(model, tokenizer, base / "agent", {**files, "recipe.json": json.dumps(dict(recipe=asdict(Recipe("x"))))})
    trap = Path(tempfile.gettempdir()) / "adwm-opened-a-pickle"

    def state(agent):
        inner = getattr(agent, "agent", agent)
        total = sum(float(p.double().abs().sum()) for p in [*inner.model.parameters(), *(agent.reward_model.parameters() if hasattr(agent, "reward_model") else ())])
        logits = inner.model(torch.arange(20)[None]).logits.double()
        return type(agent).__name__, getattr(agent, "samples", 0), total, float(logits.abs().sum()), [inner.vocab.text([i]) for i in range(5, 40)]
    def of(spoil):
        def run(folder):
            spoil_at = Path(shutil.copytree(home, folder / "agent"))
            spoil(spoil_at); trap.unlink(missing_ok=True)
            try: return state(load_agent(spoil_at, domain))
            finally:
                if trap.exists(): raise SystemExit("a pickle was opened")
        return run
    sound = of(lambda p: None)(Path(tempfile.mkdtemp(dir=base)))
    def edit(name, **change):
        def spoil(p):
            d = json.loads((p / name).read_text())
            for k, v in change.items():
                if v is put: d.pop(k)
                else: d[k] = v
            (p / name).write_text(json.dumps(d))
        return spoil
    def text(name, data): return lambda p: (p / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    def tensors(name, change):
        def spoil(p): d = load_file(p / name); change(d); save_file({k: v.contiguous() for k, v in d.items()}, p / name, {"format": "pt"})
        return spoil
    def one(value):
        def change(d): k = sorted(d)[0]; d[k] = d[k].clone(); d[k].view(-1)[0] = value
        return change
    def all_as(dtype): return lambda d: d.update({k: v.to(dtype) for k, v in d.items()})
    drop = lambda d: d.pop(sorted(d)[0])
    extra = lambda d: d.update(more=torch.zeros(2))
    turn = lambda d: d.update({sorted(d)[0]: d[sorted(d)[0]][:-1]})
    spoils = []
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"): spoils.append((f"{name} missing", lambda p, n=name: (p / n).unlink()))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"): spoils += [(f"{name} {what}", text(name, d)) for what, d in (("empty", ""), ("{}", "{}"), ("a list", "[]"), ("cut", "{\"a\""), ("nonsense", "\x00\xff"))]
    for n in (0, 4, 100): spoils.append((f"weights cut at {n}", lambda p, n=n: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:n])))
    spoils += [("weights cut at the end", lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-5])), ("weights are a pickle", text("model.safetensors", pickle.dumps(Boom()))),
               ("pytorch_model.bin instead", lambda p: ((p / "model.safetensors").unlink(), torch.save({"x": torch.zeros(1)}, p / "pytorch_model.bin"))), ("a pickle as pytorch_model.bin instead", lambda p: ((p / "model.safetensors").unlink(), (p / "pytorch_model.bin").write_bytes(pickle.dumps(Boom())))),
               ("a weight NaN", tensors("model.safetensors", one(NAN))), ("a weight infinite", tensors("model.safetensors", one(INF))), ("weights int8", tensors("model.safetensors", all_as(torch.int8))), ("weights int32", tensors("model.safetensors", all_as(torch.int32))),
               ("weights boolean", tensors("model.safetensors", all_as(torch.bool))), ("a tensor missing", tensors("model.safetensors", drop)), ("a tensor too many", tensors("model.safetensors", extra)), ("a tensor of another shape", tensors("model.safetensors", turn))]
    for change in (dict(num_hidden_layers=1), dict(num_hidden_layers=3), dict(num_hidden_layers=-1), dict(num_hidden_layers=0), dict(num_hidden_layers="2"), dict(hidden_size=32), dict(hidden_size=-16), dict(hidden_size="x"), dict(vocab_size=10), dict(vocab_size=400),
                   dict(num_attention_heads=3), dict(num_attention_heads=0), dict(model_type="chess"), dict(model_type="bert"), dict(model_type=3), dict(model_type=put), dict(architectures=["Chess"]), dict(intermediate_size=17), dict(num_key_value_heads=2),
                   dict(hidden_act="chess"), dict(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}), dict(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"), dict(rms_norm_eps="x"), dict(rms_norm_eps=NAN), dict(tie_word_embeddings=False)):
        def spoil(p, change=change):
            edit("config.json", **change)(p); (p / "evil.py").write_text(f"import pathlib; pathlib.Path({str(trap)!r}).touch()\n")
        spoils.append((f"config: {change!r:.70}", spoil))
    def permute(p):
        d = json.loads((p / "tokenizer.json").read_text()); v = d["model"]["vocab"]; a, b = sorted(v, key=v.get)[-2:]; v[a], v[b] = v[b], v[a]; (p / "tokenizer.json").write_text(json.dumps(d))
    def swap(a, b):
        def spoil(p):
            d = json.loads((p / "tokenizer.json").read_text()); v = d["model"]["vocab"]; v[a], v[b] = v[b], v[a]; (p / "tokenizer.json").write_text(json.dumps(d))
        return spoil
    def untag(p):
        for n in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (p / n).is_file(): (p / n).write_text((p / n).read_text().replace("<obs>", "<xyz>"))
    spoils += [("vocabulary permuted at its end", permute), ("two letters swapped", swap("a", "b")), ("a tag missing", untag)]
    judged = [("judge: prm.json missing", lambda p: (p / "prm.json").unlink()), ("judge: weights missing", lambda p: (p / "prm.safetensors").unlink())]
    judged += [(f"judge: prm.json {what}", text("prm.json", d)) for what, d in (("empty", ""), ("a list", "[]"), ("null", "null"), ("without samples", "{}"), ("samples 0", '{"samples": 0}'), ("samples -1", '{"samples": -1}'), ("samples text", '{"samples": "3"}'), ("samples 2.5", '{"samples": 2.5}'),
               ("samples true", '{"samples": true}'), ("samples 10**9", '{"samples": 1000000000}'), ("samples NaN", '{"samples": NaN}'), ("an unknown field", '{"samples": 3, "x": 1}'), ("samples twice", '{"samples": 9, "samples": 4}'), ("bytes", b"\xff"), ("deep", "[" * 100000))]
    judged += [("judge: a weight NaN", tensors("prm.safetensors", one(NAN))), ("judge: a tensor missing", tensors("prm.safetensors", drop)), ("judge: a tensor too many", tensors("prm.safetensors", extra)), ("judge: another shape", tensors("prm.safetensors", turn)), ("judge: int8", tensors("prm.safetensors", all_as(torch.int8))),
               ("judge: a pickle", text("prm.safetensors", pickle.dumps(Boom()))), ("judge: cut", text("prm.safetensors", b"\x00" * 9))]
    right = {"generation_config.json": "how a chat model samples; agents here sample themselves"}
    for name, spoil in spoils + judged:
        marks = ("agent", "prm" if name.startswith("judge") else "agent")
        yield Case(kind, name, of(spoil), sound, marks, next((r for n, r in right.items() if name.startswith(n)), ""))
    for name, data in (("empty", ""), ("a list", "[]"), ("without recipe", "{}"), ("bytes", b"\xff")):   # such a checkpoint is made again
        yield Case(kind, f"recipe.json {name}", lambda f, d=data: (atomic_write(f / "recipe.json", d), is_made(f))[1], False)
    yield from others(kind, base)


def others(kind, base):
    "Adapters, world models and probes."
    def family(label, make, read, names, spoils):
        home = make(base / label)
        sound = read(home)
        for name, spoil in spoils:
            def run(folder, spoil=spoil): p = Path(shutil.copytree(home, folder / label)); spoil(p); return read(p)
            yield Case(kind, f"{label}: {name}", run, sound, (label,))
    def text(name, d): return lambda p: (p / name).write_bytes(d if isinstance(d, bytes) else d.encode())
    def weights(name, change):
        def spoil(p): d = load_file(p / name); change(d); save_file({k: v.contiguous() for k, v in d.items()}, p / name)
        return spoil
    def first(v):
        def change(d): k = sorted(k for k in d if d[k].is_floating_point())[0]; d[k] = d[k].clone(); d[k].view(-1)[0] = v
        return change
    common = lambda js, st: [(f"{js} missing", lambda p: (p / js).unlink()), (f"{st} missing", lambda p: (p / st).unlink()), (f"{js} empty", text(js, "")), (f"{js} a list", text(js, "[]")), (f"{js} bytes", text(js, b"\xff")), (f"{st} cut", text(st, b"\x00" * 20)), (f"{st} a pickle", text(st, pickle.dumps(Boom()))),
                             ("a weight NaN", weights(st, first(NAN))), ("a tensor missing", weights(st, lambda d: d.pop(sorted(d)[0]))), ("a tensor too many", weights(st, lambda d: d.update(more=torch.zeros(1)))), ("integers", weights(st, lambda d: d.update({k: v.int() for k, v in d.items()})))]
    def size(key, value):
        def spoil(p): d = json.loads((p / "adapter.json").read_text()); d["sizes"][key] = value; (p / "adapter.json").write_text(json.dumps(d))
        return spoil
    yield from family("adapter", lambda p: save_adapter(p, Adapter(4, 8, 8)), lambda p: {k: v.tolist() for k, v in load_adapter(p).state_dict().items()}, (),
                      common("adapter.json", "adapter.safetensors") + [(f"{k} = {v!r}", size(k, v)) for k, v in (("width", 0), ("width", 16), ("size", -8), ("hidden", "x"), ("d_z", None), ("d_z", 5))])
    def made(p):
        return save_model(p, new_model(ModelConfig.small(3), 0), ActionSpace("vocab", ("a", "b")), {})
    def conf(key, value, part="config"):
        def spoil(p): d = json.loads((p / "model.json").read_text()); d[part][key] = value; (p / "model.json").write_text(json.dumps(d))
        return spoil
    def read(p): m, space, notes = load_model(p); return {k: float(v.double().sum()) for k, v in m.state_dict().items()}, repr(space), notes
    spoils = common("model.json", "model.safetensors") + [("an unknown size", conf("widht", 3)), ("width 0", conf("width", 0)), ("width text", conf("width", "x")), ("prediction", conf("prediction", "noisee")), ("actions of another kind", conf("kind", "x", "actions")), ("an action less", conf("names", ["a"], "actions")), ("an action twice", conf("names", ["a", "a"], "actions")), ("a size twice", lambda p: (p / "model.json").write_text((p / "model.json").read_text().replace(chr(34) + "history" + chr(34) + ": ", chr(34) + "history" + chr(34) + ": 2, " + chr(34) + "history" + chr(34) + ": ", 1))), ("heads 3", conf("heads", 3))]
    yield from family("worldmodel", made, read, (), spoils)
    probe = PolicyProbe("a", 0.0, (torch.tensor([-1.0, -2.0]).numpy(),), ((("x", "y"), ("x",)),), ((torch.tensor([0.5, 0.5]).numpy(), torch.tensor([1.0]).numpy()),))
    def made_probe(p): write_probe(p / "probe.json.gz", probe); return p
    def zipped(d): return lambda p: (p / "probe.json.gz").write_bytes(d if isinstance(d, bytes) else gzip.compress(d.encode()))
    def field(k, v):
        def spoil(p):
            d = json.loads(gzip.decompress((p / "probe.json.gz").read_bytes()))
            if v is put: d.pop(k)
            else: d[k] = v
            (p / "probe.json.gz").write_bytes(gzip.compress(json.dumps(d).encode()))
        return spoil
    plain = lambda p: repr(read_probe(p / "probe.json.gz"))
    bad = [("missing", lambda p: (p / "probe.json.gz").unlink()), ("empty", zipped(b"")), ("no archive", zipped(b"xx")), ("cut", lambda p: (p / "probe.json.gz").write_bytes((p / "probe.json.gz").read_bytes()[:40])), ("a list", zipped("[]")), ("null", zipped("null")), ("bytes", zipped(gzip.compress(b"\xff"))),
           ("damaged", lambda p: (p / "probe.json.gz").write_bytes((p / "probe.json.gz").read_bytes()[:30] + b"\xff" * 20))]
    bad += [(f"{k} = {v!r:.20}", field(k, v)) for k, v in (("logp", put), ("logp", "x"), ("logp", [["x"]]), ("actions", put), ("actions", 3), ("weights", [[["x"]]]), ("weights", put), ("epsilon", put), ("epsilon", "x"), ("policy", 3))]
    yield from family("probe", made_probe, plain, (), bad)


# ---------------------------------------------------------------- manifest, assets

def assets(base):
    "A folder of assets in miniature, and its manifest."
    kind = KINDS[3]
    spec = CellSpec("small", "webshop", 12, Collect(recipes=(Recipe("a"), Recipe("b")), behaviors=("a",), targets=("b",), pool_tasks=2, fresh_tasks=2))
    home = base / "small"
    for name in ("pool.jsonl.gz", "fresh.jsonl", "truth.csv.gz", "agents/a/model.safetensors", "agents/b/model.safetensors"): atomic_write(home / name, name)
    write_manifest(home, "make it", dict(cell=asdict(spec), behaviors=["a"], targets=["b"]))
    def use(folder, spec=spec):
        m = check_manifest(folder)
        check_assets(folder, spec)
        return [listed_hashes(m, s) for s in ("pool", "fresh", "truth", "agents/a/", "agents/b/")]
    sound = use(home)
    def of(spoil, use=use):
        def run(folder):
            p = Path(shutil.copytree(home, folder / "small", symlinks=True)); spoil(p); return use(p)
        return run
    def manifest(change):
        def spoil(p):
            d = json.loads((p / "manifest.json").read_text()); d = change(d) or d; (p / "manifest.json").write_text(json.dumps(d))
        return spoil
    def text(name, d): return lambda p: (p / name).write_bytes(d if isinstance(d, bytes) else d.encode())
    def at(*path, value):
        return manifest(lambda d: put(d, path, value))
    pool = ("files", "pool.jsonl.gz")
    def link(name, target):
        def spoil(p):
            there = p.parent / "elsewhere"; there.write_bytes((p / name).read_bytes()); (p / name).unlink(); (p / name).symlink_to(target or there)
        return spoil
    def linked_folder(p): shutil.move(p / "agents" / "a", p.parent / "a"); (p / "agents" / "a").symlink_to(p.parent / "a")
    other = dict(bytes=1, sha256="0" * 64, command="x")
    cases = [("no manifest", lambda p: (p / "manifest.json").unlink(), "manifest.json"), *[(f"manifest {n}", text("manifest.json", d), "manifest.json") for n, d in (("empty", ""), ("{}", "{}"), ("a list", "[]"), ("null", "null"), ("cut", '{"notes"'), ("bytes", b"\xff"), ("deep", "[" * 100000), ("a number", "3"))],
             *[(f"files = {v!r}", at("files", value=v), "manifest.json", "files") for v in (None, [], "x", {"a": 1}, {"a": {}}, {"a": []})], ("no notes", at("notes", value=put), "manifest.json", "notes"), ("notes a list", at("notes", value=[]), "manifest.json", "notes"),
             *[(f"bytes = {v!r}", at(*pool, "bytes", value=v), "pool.jsonl.gz") for v in (-1, "x", None, 1.5, 10**30, True, put)], *[(f"sha256 = {v!r:.12}", at(*pool, "sha256", value=v), "pool.jsonl.gz") for v in ("", "x", None, 3, "0" * 64, put)],
             *[(f"command = {v!r}", at(*pool, "command", value=v), "pool.jsonl.gz", "command") for v in (None, 3, "", put)], ("an unknown field", at(*pool, "x", value=1), "pool.jsonl.gz", "x"), ("an unknown key", at("x", value=1), "manifest.json", "x"),
             *[(f"lists {n}", at("files", n, value=other), n if n else "files") for n in ("../x", "/etc/passwd", "a/../../x", "", ".", "a//b", "a\\b", "nowhere")], ("a file twice in the manifest", lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text().replace('"fresh.jsonl": {', '"fresh.jsonl": {"bytes": 1, "sha256": "x", "command": "y"}, "fresh.jsonl": {')), "fresh.jsonl"),
             *[(f"{n} missing", lambda p, n=n: (p / n).unlink(), n) for n in ("pool.jsonl.gz", "fresh.jsonl", "agents/a/model.safetensors")], *[(f"{n} changed", lambda p, n=n: (p / n).write_text("other"), n) for n in ("pool.jsonl.gz", "truth.csv.gz", "agents/b/model.safetensors")],
             *[(f"{n} unlisted", at("files", n, value=put), n) for n in ("pool.jsonl.gz", "truth.csv.gz", "agents/b/model.safetensors")], *[(f"a strange file {n}", lambda p, n=n: atomic_write(p / n, "x"), n) for n in ("x", "agents/a/config.json", "agents/c/model.safetensors", "agents/.hidden")],
             ("a link to another file of one content", link("pool.jsonl.gz", None), "pool.jsonl.gz"), ("a link to /etc/hostname", link("pool.jsonl.gz", "/etc/hostname"), "pool.jsonl.gz"), ("a link to nowhere", link("pool.jsonl.gz", "/nowhere"), "pool.jsonl.gz"), ("a folder that is a link", linked_folder, "agents/a"),
             ("a link to a folder beside", lambda p: (p / "agents" / "z").symlink_to("/etc"), "agents/z"), ("the manifest is a link", link("manifest.json", None), "manifest.json"), ("a loop of links", lambda p: (p / "loop").symlink_to(p), "loop"), ("a pipe", lambda p: os.mkfifo(p / "pipe"), "pipe"),
             *[(f"notes.cell = {v!r}", at("notes", "cell", value=v), "manifest.json", "cell") for v in (None, [], "x", {}, put)], *[(f"notes.cell.{'.'.join(k)} = {v!r}", at("notes", "cell", *k, value=v), "manifest.json", k[-1]) for k, v in ((("horizon",), 13), (("env",), "alfworld"), (("collect", "world_seed"), 1), (("collect", "world"), {"slip": .5}),
               (("collect", "temperature"), .5), (("collect", "pool_seed"), 3), (("collect", "truth_seed"), 3), (("collect", "epsilons"), [0.0]), (("collect", "replicates"), 2), (("collect", "x"), 1), (("horizon",), "x"), (("module",), "os"), (("module",), "adwm.alfworld"))], ("notes.cell.collect.behaviors = ['b']", at("notes", "cell", "collect", "behaviors", value=["b"]), "manifest.json: notes.cell", "cannot log the pool"), ("notes.cell.collect.targets = []", at("notes", "cell", "collect", "targets", value=[]), "small", "truth of b")]
    for name, spoil, *marks in cases: yield Case(kind, name, of(spoil), sound, tuple(marks))
    for what, changed in (("horizon", replace(spec, horizon=13)), ("world_seed", replace(spec, collect=replace(spec.collect, world_seed=1))), ("world", replace(spec, collect=replace(spec.collect, world={"slip": .2}))), ("temperature", replace(spec, collect=replace(spec.collect, temperature=.5))), ("recipe", replace(spec, collect=replace(spec.collect, recipes=(Recipe("a", seed=5), Recipe("b"))))),
                          ("c", replace(spec, collect=replace(spec.collect, recipes=(Recipe("a"), Recipe("b"), Recipe("c")), targets=("c",))))):
        yield Case(kind, f"the configuration has another {what}", of(lambda p: None, lambda p, s=changed: use(p, s)), sound, ("manifest.json" if what != "c" else "small", what))
    full = load_config()
    folder = root() / "assets" / "webshop-iter1"
    pool_, made = read_episodes(folder / "pool.jsonl.gz"), check_assets(folder, stages.spec_of(full))
    def logged(change): return lambda f: (check_logged(change(pool_), made, "the pool"), stages.check_pool(full, change(pool_)))[0]
    for name, change, *marks in (("half of the pool renamed", lambda es: [replace(e, policy="x") if i % 2 else e for i, e in enumerate(es)], "the pool"), ("an episode missing", lambda es: es[1:], "the pool"), ("a target among the loggers", lambda es: [replace(es[0], policy="b-early"), *es[1:]], "the pool"),
                                 ("another epsilon", lambda es: [replace(es[0], epsilon=.3), *es[1:]], "the pool")):
        yield Case(kind, f"pool: {name}", logged(change), "refused", tuple(marks))


# ---------------------------------------------------------------- catalogues, worlds, games

def worlds(base):
    "Files of WebShop, HotpotQA and ALFWorld, and what a cell may ask of its world."
    kind, c = KINDS[4], generate_catalogue(0, 6)
    raw, ins = json.loads(json.dumps(list(c.products))), json.loads(json.dumps(c.instructions))
    def shop_of(products, entries, human=None):
        def run(folder):
            for n, v in (("items_shuffle.json", products), ("items_ins_v2.json", entries), ("items_human_ins.json", human)):
                if v is not put and (v is not None or n != "items_human_ins.json"): (folder / n).write_bytes(v if isinstance(v, bytes) else json.dumps(v).encode())
            s = shops.read_shop(folder, human=human is not None)
            return repr((s.products, sorted(s.prices.items()), s.goals))
        return run
    with tempfile.TemporaryDirectory() as f: sound = shop_of(raw, ins)(Path(f))
    name = "items_shuffle.json"
    needed = ("asin", "name", "full_description", "small_description", "customization_options", "category", "product_category", "query")
    for k in needed: yield Case(kind, f"product without {k}", shop_of(put(raw, (1, k), put), ins), sound, ("product 1", k))
    for k, bads in {"asin": [3, None, "", "short"], "name": [3, None], "full_description": [3, None], "small_description": [3, None, [1]], "customization_options": [3, [], {"Color": 3}, {"Color": []}, {"Color": [{}]}, {"Color": [{"value": 3}]}, {"Color": [{"value": ""}]}],
                    "pricing": [3, "free", "$", "$-3", "$nan", "$inf"], "category": [3, None], "product_category": [3], "query": [3, None]}.items():
        for b in bads: yield Case(kind, f"product: {k} = {b!r}", shop_of(put(raw, (1, k), b), ins), sound, ("product 1", k))
    yield Case(kind, "product twice, with another price", shop_of([*raw, {**raw[0], "pricing": "$1.00"}], ins), sound, ("product", raw[0]["asin"]))
    for n, b in (("empty", b""), ("null", None), ("{}", {}), ("[]", []), ("a number", 3), ("[3]", [3]), ("cut", b'[{"asin"'), ("latin-1", b"[\xe4]"), ("NaN", b'[{"asin": NaN}]'), ("a key twice", json.dumps(raw).replace('"query": ', '"query": "x", "query": ', 1).encode()), ("deep", b"[" * 100000), ("missing", put)):
        yield Case(kind, f"products {n}", shop_of(b if b is not None else b"null", ins), sound, (("items_shuffle", "products"),))
    asin = next(k for k, v in ins.items() if v.get("instruction"))
    for k, bads in {"attributes": [3, [3], [""], None], "instruction": [3, ["x"]], "instruction_attributes": [3, [3], [""], None, []]}.items():
        for b in bads: yield Case(kind, f"instructions: {k} = {b!r}", shop_of(raw, put(ins, (asin, k), b)), sound, ("items_ins_v2.json", asin))
    for n, b in (("[]", []), ("{}", {}), ("a number", 3), ("cut", b"{"), ("an entry that is a list", {asin: []}), ("of other products", {"B999999999": ins[asin]}), ("missing", put)): yield Case(kind, f"instructions {n}", shop_of(raw, b), sound, (("items_ins_v2", "attributes and instructions"),))
    written = {asin: [dict(instruction="i want it", instruction_attributes=["x"], instruction_options=[])]}
    for n, b in (("[]", []), ("{}", {}), ("no list", {asin: {}}), ("instruction 3", put(written, (asin, 0, "instruction"), 3)), ("no options", put(written, (asin, 0, "instruction_options"), put)), ("attributes null", put(written, (asin, 0, "instruction_attributes"), None))): yield Case(kind, f"human instructions {n}", shop_of(raw, ins, b), "refused", ("items_human_ins.json",))

    world = hotpotqa.generate_world(3, 20, 50)
    rows = json.loads(hotpotqa.write_world(world, base / "w.json").read_text())
    def asked(data):
        def run(folder):
            p = folder / "w.json"; p.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
            w = hotpotqa.read_world(p); return repr((sorted(w.pages.items()), w.questions))
        return run
    with tempfile.TemporaryDirectory() as f: sound = asked(rows)(Path(f))
    for k in rows[1]: yield Case(kind, f"question without {k}", asked(put(rows, (1, k), put)), sound, ("w.json", "question 1", k))
    for k, bads in {"_id": [3, "", None, rows[0]["_id"]], "question": [3, "", " "], "answer": [3, "", " "], "type": ["x", None], "supporting_facts": [[], 3, [["x"]], [["x", -1]], [[3, 0]], [["Nobody's page", 0]], [[rows[1]["supporting_facts"][0][0], 999]]], "context": [3, [["x"]], [[3, []]], [["x", [3]]], None]}.items():
        for b in bads:
            right = "the origin says how many questions were dropped" if "Nobody" in str(b) else "the official file has such references" if "999" in str(b) else ""
            yield Case(kind, f"question: {k} = {b!r:.30}", asked(put(rows, (1, k), b)), sound, ("w.json", (k, "id", "question 1") if k == "_id" else k), right)
    twin = copy.deepcopy(rows); twin[1]["context"].append([rows[0]["context"][0][0], ["Another text."]])
    yield Case(kind, "a page with two texts", asked(twin), sound, ("w.json", rows[0]["context"][0][0]))
    for n, b in (("empty", b""), ("{}", {}), ("[]", []), ("[3]", [3]), ("cut", b"[{"), ("deep", b"[" * 100000), ("latin-1", b"\xe4")): yield Case(kind, f"questions {n}", asked(b), sound, ("w.json",))

    problem = "(define (problem p) (:domain alfred) (:objects a - agent) (:init (x)) (:goal (and (y))))"
    row = dict(id="a", task_type="pick_and_place_simple", pddl_params=dict(object_target="Mug", parent_target="Desk", toggle_target="", object_sliced=False), task="put a mug in desk", pddl_problem=problem)
    def played(data):
        def run(folder):
            p = folder / "g.jsonl"; p.write_bytes(data if isinstance(data, bytes) else "".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in data).encode()); return repr(alfworld.load_games(p))
        return run
    three = [{**row, "id": i} for i in "abc"]
    with tempfile.TemporaryDirectory() as f: sound = played(three)(Path(f))
    for k in row: yield Case(kind, f"game without {k}", played(put(three, (1, k), put)), sound, ("g.jsonl, line 2", k))
    for path, bads in {("id",): [3, "", "a"], ("task_type",): [3, "pick_and_fly", ""], ("task",): [3, "", " "], ("pddl_problem",): [3, "", "x", problem[:-1], problem.replace("(:goal", "(goal")], ("pddl_params",): [3, {}, []], ("pddl_params", "object_target"): [3, "", None], ("pddl_params", "parent_target"): [3, None], ("pddl_params", "toggle_target"): [None, 3]}.items():
        for b in bads: yield Case(kind, f"game: {'.'.join(path)} = {b!r:.20}", played(put(three, (1, *path), b)), sound, ("g.jsonl", (path[-1], "PDDL", "type", "line 2", "lines 1 and 2")))
    for n, b in (("empty", b""), ("[]", b"[]\n"), ("a blank line between", [three[0], "", three[1]]), ("cut", b'{"id"'), ("deep", b"[" * 100000), ("latin-1", b"\xe4"), ("a key twice", [json.dumps(row)[:-1] + ', "id": "b"}'])): yield Case(kind, f"games {n}", played(b), sound, ("g.jsonl",))
    for env, module in (("webshop", webshop), ("hotpotqa", hotpotqa), ("alfworld", alfworld)):
        for change in ({"slipp": .2}, {"slip": 1.5}, {"slip": NAN}, {"shops": 0}, {"data": "x"}, {"goals": "many"}, {"games": -1}, {"questions": 0}, {"people": "x"}):
            key = next(iter(change))
            yield Case(kind, f"world of {env}: {change}", lambda f, m=module, ch=change: m.cell_tasks(0, 2, 2, **ch), "refused", ("HotpotQA file x" if (env, key) == ("hotpotqa", "data") else key,))


# ---------------------------------------------------------------- damaged finished stages

def stages():
    "A finished stage with one fault: it is made again, with a warning, or the fault touches nothing that is read."
    kind = KINDS[5]
    def make(folder): atomic_write(folder / "a.json", '{"x": 1}'); atomic_write(folder / "sub" / "b.bin", b"\x00\x01"); atomic_write(folder / "seconds.txt", "1.0")
    def read(folder): return json.loads((folder / "a.json").read_text()), (folder / "sub" / "b.bin").read_bytes(), float((folder / "seconds.txt").read_text())
    def of(spoil, before=False):
        def run(folder):
            if not before: done = cached(folder, "s", dict(k=1), make); cached(folder, "s", dict(k=1), make)
            else: done = None
            spoil(done or folder)
            from adwm import core
            core._damaged.cache_clear()   # as in a new process
            return read(cached(folder, "s", dict(k=1), make))
        return run
    sound = of(lambda d: None)(Path(tempfile.mkdtemp()))
    def text(n, d): return lambda p: (p / n).write_bytes(d if isinstance(d, bytes) else d.encode())
    def both(*fs): return lambda p: [f(p) for f in fs]
    cut = lambda p: (p / "sums.json").write_text((p / "sums.json").read_text()[:30])
    spoils = [("a.json empty", text("a.json", "")), ("a.json changed", text("a.json", '{"x": 2}')), ("a.json missing", lambda p: (p / "a.json").unlink()), ("a.json cut", text("a.json", "{")), ("bytes", text("a.json", b"\xff")), ("b.bin changed", text("sub/b.bin", b"\x01")), ("b.bin missing", lambda p: (p / "sub/b.bin").unlink()),
              ("the subfolder missing", lambda p: shutil.rmtree(p / "sub")), ("seconds changed", text("seconds.txt", "2")), ("seconds empty", text("seconds.txt", "")), ("key.json missing", lambda p: (p / "key.json").unlink()), ("key.json empty", text("key.json", "")), ("sums.json missing", lambda p: (p / "sums.json").unlink()),
              *[(f"sums.json {n}", text("sums.json", d)) for n, d in (("empty", ""), ("{}", "{}"), ("a list", "[]"), ("null", "null"), ("bytes", b"\xff"), ("a number", "3"))], ("sums.json cut", cut), ("a strange file", text("z", "x")), ("sums.json missing and a.json changed", both(lambda p: (p / "sums.json").unlink(), text("a.json", '{"x": 2}'))),
              ("sums.json {} and a.json changed", both(text("sums.json", "{}"), text("a.json", '{"x": 2}'))), ("sums.json a folder", lambda p: ((p / "sums.json").unlink(), (p / "sums.json").mkdir())), ("a.json a folder", lambda p: ((p / "a.json").unlink(), (p / "a.json").mkdir())),
              ("the folder is empty", lambda p: [shutil.rmtree(x) if x.is_dir() else x.unlink() for x in list(p.iterdir())]), ("a.json a link to another content", lambda p: ((p.parent / "o").write_text('{"x": 9}'), (p / "a.json").unlink(), (p / "a.json").symlink_to(p.parent / "o")))]
    for name, spoil in spoils: yield Case(kind, name, of(spoil), sound, ("s-",))
    done = f"s-{stage_key(dict(k=1))}"
    yield Case(kind, "a file in the stage's place", of(lambda f: (f / done).write_text("x"), True), sound, (done,))
    yield Case(kind, "a file in the partial folder's place", of(lambda f: (f / (done + ".part")).write_text("x"), True), sound, (done,))
    yield Case(kind, "a lock left behind", of(lambda f: (f / (done + ".lock")).write_text(""), True), sound, (done,))
    yield Case(kind, "a folder in the lock's place", of(lambda f: (f / (done + ".lock")).mkdir(), True), sound, (done,))
    yield Case(kind, "the cache is a file", lambda f: ((f / "c").write_text(""), cached(f / "c", "s", dict(k=1), make))[1], "refused", ("s", "/c"))


# ---------------------------------------------------------------- papermill parameters

def papermill(real):
    "What stands behind -p."
    kind, sound = KINDS[6], load_config()
    for change, *marks in [(dict(env="chess"), "chess"), (dict(env=5), "5"), (dict(env="webshop", cell="alfworld-iter1"), "alfworld-iter1"), (dict(cell="webshop-iter9"), "webshop-iter9"), (dict(cell="../webshop-iter1"), "../webshop"), (dict(cell="/etc/passwd"), "/etc"), (dict(cell=5), "5"), (dict(cell=["webshop-iter1"]), "cell"), (dict(cell="webshop-iter1.yaml"), "webshop-iter1.yaml"),
                           (dict(cell="webshop-iter1\n"), "cell"), (dict(cell=True), "True"), (dict(profile="smok"), "smok"), (dict(profile=3), "3"), (dict(profile=""), "profile"), (dict(profile=None), "profile"), (dict(profile=["smoke"]), "profile"), (dict(seeds="0,one"), "one"), (dict(seeds="42"), "42"), (dict(seeds="7"), "7"), (dict(seeds="1,1"), "twice"), (dict(seeds=-1), "-1"), (dict(seeds=1.5), "1.5"), (dict(seeds=[1.5]), "1.5"),
                           (dict(seeds=True), "True"), (dict(seeds={"a": 1}), "seeds"), (dict(seeds="0;1"), "0;1"), (dict(seeds=[[0]]), "seeds"), (dict(seeds="0,,1"), "seeds"), (dict(seeds=","), "seeds"), (dict(seeds="1_0"), "1_0"), (dict(seeds=NAN), "nan"), (dict(source="download"), "download"), (dict(source=3), "source"), (dict(source=True), "source"), (dict(env=None), "env"), (dict(cell=0), "0"), (dict(env=["webshop"]), "env")]:
        yield Case(kind, f"{change}", lambda f, ch=change: load_config(**ch), sound, tuple(marks))
    for change in (dict(sed=5), dict(Seeds="0"), dict(cel="x"), dict(profil="smoke"), dict(workers=4), dict(horizon=3), dict(folder="/tmp"), dict(seed=None), dict(x=[1]), dict(cache="/tmp")):
        yield Case(kind, f"an unknown {change}", lambda f, ch=change: check_parameters(dict(env="", cell="", profile="smoke", seeds="", source="") | ch), "refused", (next(iter(change)),))
    for args, mark in ((("-p", "cell", "/abs/path"), "/abs/path"), (("-p", "sed", "5"), "sed")) if real else ():
        def run(folder, args=args):
            out = subprocess.run([sys.executable, "-m", "papermill", "nbs/eval.ipynb", str(folder / "x.ipynb"), *args], cwd=root(), capture_output=True, text=True)
            if out.returncode: raise UserError(out.stderr.strip().splitlines()[-1])
        yield Case(kind, f"papermill {' '.join(args)}", run, "refused", (mark,))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*"); parser.add_argument("--papermill", action="store_true"); parser.add_argument("--all", action="store_true", help="print every case with its verdict")
    args, start = parser.parse_args(), time.time()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()   # it reports what it refuses in tables of its own
    table, rest = {k: Counter() for k in KINDS}, []
    with tempfile.TemporaryDirectory() as base:
        makers = dict(zip(KINDS, (params, episodes, lambda: checkpoints(Path(base)), lambda: assets(Path(base)), lambda: worlds(Path(base)), stages, lambda: papermill(args.papermill))))
        for kind, make in makers.items():
            if args.kinds and not any(kind.startswith(k) for k in args.kinds): continue
            for case in make():
                verdict, said = judge(case)
                table[kind][verdict] += 1
                if args.all or verdict in ("unclear", "silent and bad"): rest.append(f"{verdict}: [{kind}] {case.name}: {said}")
    names = ("clear", "unclear", "silent and bad", "harmless")
    print("| input | cases | " + " | ".join(names) + " |\n" + "|---" * 6 + "|")
    for kind, c in table.items(): print(f"| {kind} | {sum(c.values())} | " + " | ".join(str(c[n]) for n in names) + " |")
    total = sum(table.values(), Counter())
    print(f"| all | {sum(total.values())} | " + " | ".join(str(total[n]) for n in names) + " |\n")
    print("\n".join(sorted(rest)) or "Every case is clear or harmless.")
    print(f"\n{time.time() - start:.0f} seconds")
    sys.exit(total["silent and bad"] > 0)


if __name__ == "__main__": main()
