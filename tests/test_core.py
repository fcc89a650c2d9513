"Keyed randomness, configurations, atomic files and the stage cache."
import dataclasses, os, pickle, shutil, signal, subprocess, sys, textwrap, warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest

from adwm import core
from adwm.core import Check, Count, Name, Rate, Share, UserError, atomic_write, cached, configuration, distinct, from_dict, is_cached, key_int, key_rng, patch, root, stage_key


def test_streams_are_named_not_ordered():
    a = [key_rng(3, "act", i).random() for i in range(50)]
    b = [key_rng(3, "act", i).random() for i in reversed(range(50))][::-1]
    assert a == b and len(set(a)) == 50


def test_streams_are_uniform_and_uncorrelated():
    x = np.array([[key_rng(0, "a", i).random(), key_rng(0, "b", i).random()] for i in range(4000)])
    assert abs(x.mean() - .5) < .02 and abs(np.corrcoef(x.T)[0, 1]) < .05


def test_key_parts_do_not_run_together():
    assert key_int(0, "a", "b") != key_int(0, "ab") != key_int(0, "a,b")


@configuration
class Inner:
    rate: Rate = 1.0
    way: Literal["mode", "off"] = "mode"


@configuration
class Outer:
    name: Name
    inner: Inner = field(default_factory=Inner)
    sizes: Annotated[tuple[Count, ...], Check(distinct)] = (1,)
    limit: int | None = None
    share: Share = 0.5
    on: bool = True
    parts: dict[str, Inner] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Plain:
    size: int


def test_from_dict_fills_nested():
    got = from_dict(Outer, {"name": "x", "inner": {"rate": 2}, "sizes": [3, 4], "limit": None, "parts": {"a": {"way": "off"}}})
    assert got == Outer("x", Inner(2.0), (3, 4), None, parts={"a": Inner(way="off")}) and type(got.inner.rate) is float
    assert from_dict(Outer, dataclasses.asdict(got)) == got == pickle.loads(pickle.dumps(got)) and hash(Inner()) == hash(Inner(1))
    assert from_dict(Plain, {"size": 3}) == Plain(3), "a plain dataclass will do"


@pytest.mark.parametrize("bad, says", [
    ({"nam": "x"}, "^file.yaml has no parameter 'nam' .did you mean 'name'"), ({}, "^file.yaml lacks the parameter 'name'"), ({"name": 3}, "name must be text, not 3"), (3, "must be a mapping"), ([], "must be a mapping"),
    ({"name": "x", "inner": {"rate": "1e-4"}}, "inner.rate must be a number, not '1e-4' .YAML wants 1.0e-4"), ({"name": "x", "sizes": 3}, "sizes must be a list"),
    ({"name": "x", "inner": {"speed": 1}}, "file.yaml: inner has no parameter 'speed'"), ({"name": "x", "sizes": [True]}, r"sizes\[0\] must be a whole number"), ({"name": "x", "sizes": [1, 1]}, "1 stands twice"),
    ({"name": "x", "sizes": [-1]}, "at least 0"), ({"name": "x", "inner": {"rate": 0}}, "above 0"), ({"name": "x", "inner": {"rate": float("nan")}}, "finite"), ({"name": "x", "share": float("inf")}, "finite"),
    ({"name": "x", "share": 1.5}, "at most 1"), ({"name": "x", "on": 1}, "true or false"), ({"name": "../x"}, "plain name"), ({"name": "x\ny"}, "plain name"), ({"name": ""}, "plain name"), ({"name": "x", 3: 4}, "no parameter '3'"),
    ({"name": "x", "parts": {"a": {"way": "modee"}}}, "parts.a.way cannot be 'modee' .did you mean 'mode'.*; the valid ones are mode, off"), ({"name": "x", "limit": 1.0}, "whole number"), ({"name": "x", "inner": None}, "must be a mapping")])
def test_from_dict_refuses(bad, says):
    with pytest.raises(UserError, match=says) as err: from_dict(Outer, bad, "file.yaml")
    assert "\n" not in str(err.value)


@pytest.mark.parametrize("make, says", [
    (lambda: Inner(rate=-1), "^Inner: rate must be above 0, not -1"), (lambda: Inner(-1), "^Inner: rate must"), (lambda: Inner(speed=1), "^Inner has no parameter 'speed'"), (lambda: Outer(), "^Outer lacks the parameter 'name'"),
    (lambda: dataclasses.replace(Inner(), way="of"), "did you mean 'off'"), (lambda: Outer("x", sizes=(2, 2)), "stands twice"), (lambda: from_dict(Plain, {"size": "3"}), "^Plain: size must be a whole number")])
def test_no_call_makes_nonsense(make, says):
    with pytest.raises(UserError, match=says): make()


def test_the_validator_is_imported_when_it_is_needed():
    code = "import sys, adwm, adwm.core; assert 'pydantic' not in sys.modules and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_atomic_write_replaces_and_reports(tmp_path):
    p = atomic_write(tmp_path / "a" / "b.txt", "one"); atomic_write(p, b"two")
    assert p.read_text() == "two" and list(p.parent.iterdir()) == [p]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"): atomic_write(tmp_path / "file" / "x", "1")


def test_full_disk_is_one_sentence():
    if not Path("/dev/full").exists(): pytest.skip("no /dev/full on this system")
    from adwm.episodes import append_episodes
    from tests_helpers import corridor_episodes
    with pytest.raises(UserError, match="cannot append"): append_episodes("/dev/full", corridor_episodes(2000))


def test_cache_keeps_partial_work_after_kill(tmp_path):
    code = textwrap.dedent(f"""
        import os, signal
        from adwm.core import cached
        def make(p):
            (p / 'part.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)
        cached({str(tmp_path)!r}, 'stage', {{'k': 1}}, make)""")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    def make(p): assert (p / "part.txt").read_text() == "half"; (p / "all.txt").write_text("whole")
    done = cached(tmp_path, "stage", {"k": 1}, make)
    assert (done / "all.txt").exists() and not done.name.endswith(".part")


def test_of_two_runs_at_once_the_second_waits(tmp_path):
    code = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from adwm.core import cached
        def make(p):
            with open({str(tmp_path / 'made')!r}, 'a') as f: f.write('x')
            (p / 'a.txt').write_text('half'); time.sleep(0.5); (p / 'a.txt').write_text('whole')
        print((cached(Path({str(tmp_path)!r}) / 'cache', 'stage', {{'k': 1}}, make) / 'a.txt').read_text())""")
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [r.communicate(timeout=60)[0].strip() for r in runs] == ["whole"] * 3 and (tmp_path / "made").read_text() == "x"
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [""], "neither a partial folder nor a lock is left"


def stage(folder, calls):
    "A stage of two files, one in a folder; computing it is counted."
    def make(p): calls.append(1); (p / "in").mkdir(exist_ok=True); (p / "a.json").write_text('{"x": 1}'); (p / "in" / "b.bin").write_bytes(bytes(100))
    return cached(folder, "stage", {"k": 1}, make)


@pytest.mark.parametrize("spoil, name", [
    (lambda d: (d / "a.json").write_text('{"x": 2}'), "a.json"), (lambda d: (d / "a.json").write_text(""), "a.json"),
    (lambda d: (d / "a.json").unlink(), "a.json"), (lambda d: (d / "in" / "b.bin").write_bytes(bytes(99) + b"\1"), "b.bin"),
    (lambda d: shutil.rmtree(d / "in"), "b.bin"), (lambda d: (d / "sums.json").write_text("["), "sums.json"), (lambda d: (d / "sums.json").write_text("3"), "sums.json"),
    (lambda d: (d / "sums.json").write_text("{}"), "sums.json"), (lambda d: (d / "sums.json").unlink(), "sums.json")])
def test_a_damaged_stage_is_named_and_computed_again(tmp_path, spoil, name):
    calls = []
    done = stage(tmp_path, calls); whole = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    spoil(done); core._damaged.cache_clear()   # as another process would find it
    with pytest.warns(UserWarning, match=f"stage 'stage': .*{name} is missing or damaged"): assert not is_cached(lambda: stage(tmp_path, calls))
    with pytest.warns(UserWarning, match=name): assert stage(tmp_path, calls) == done
    assert len(calls) == 2 and {p: p.read_bytes() for p in done.rglob("*") if p.is_file()} == whole
    core._damaged.cache_clear()
    with warnings.catch_warnings(): warnings.simplefilter("error"); stage(tmp_path, calls)
    assert len(calls) == 2


def test_keys_depend_on_everything():
    assert stage_key({"a": 1}) == stage_key({"a": 1}) != stage_key({"a": 2})


PACKAGE = {"a": """from .b import scale
LIMIT = 3   # used

def work(x: int) -> int:
    "What it does."
    if x > LIMIT: raise ValueError("too large")
    return scale(x)

class Tool:
    factor = 2
    def used(self): return self.helper() + 1
    def helper(self): return self.factor
    def other(self): return 7
""", "b": """def scale(x):
    from .c import shift
    return shift(2 * x)

def unrelated(x): return x
""", "c": """def shift(x): return x + 1
"""}


def keys_of(folder, files):
    "Code keys of a small package in a process of its own: of a function, and of a method."
    for name, text in (files | {"__init__": ""}).items(): (folder / "pk").mkdir(exist_ok=True), (folder / "pk" / f"{name}.py").write_text(text)
    code = "from pk import a; from adwm.core import code_key; print(code_key(a.work), code_key(a.Tool.used))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{root()}"}).stdout.split()


@pytest.mark.parametrize("module, old, new, moves", [
    ("a", "# used", "# a limit", ""), ("a", "What it does.", "It works.", ""), ("a", "x: int) -> int", "x)", ""), ("a", "too large", "above the limit", ""), ("a", "    return scale(x)", "\n    return (scale(\n        x))", ""),
    ("a", "LIMIT = 3", "LIMIT = 4", "function"), ("a", "return scale(x)", "return scale(x) + 1", "function"), ("b", "2 * x", "3 * x", "function"), ("c", "x + 1", "x + 2", "function"),
    ("b", "unrelated(x): return x", "unrelated(x): return -x", ""), ("a", "return 7", "return 8", ""), ("a", "self.factor", "self.factor + 1", "method"), ("a", "self.helper() + 1", "self.helper()", "method")])
def test_a_code_key_moves_with_what_a_function_reaches_and_with_nothing_else(tmp_path, module, old, new, moves):
    before, after = keys_of(tmp_path, PACKAGE), keys_of(tmp_path, PACKAGE | {module: PACKAGE[module].replace(old, new)})
    assert PACKAGE[module] != PACKAGE[module].replace(old, new) and [a != b for a, b in zip(before, after)] == [moves == "function", moves == "method"]


def test_code_keys_reach_what_was_forgotten_by_hand():
    "Randomness under a trained model, a domain's features under a gate, the sampler under imagination."
    from adwm.core import code_closure
    from adwm.envs import Domain
    from adwm.estimation import Simulated, WorldModel
    from adwm.fitting import fit
    assert ("adwm.core", "key_int") in code_closure(fit) and ("adwm.envs", "Domain") in code_closure(Simulated.ask_gate, Domain)
    assert {("adwm.schedule", "denoise"), ("adwm.retrieval", "PageIndex")} <= set(code_closure(WorldModel.simulator, WorldModel.learn))


def test_a_method_may_be_spread_over_cells():
    class Lamp: pass
    def brightness(self: Lamp): return 3
    assert patch(brightness) is None and Lamp().brightness() == 3 and brightness.__qualname__ == "Lamp.brightness"
    def _price(self: Lamp): return 5
    patch(property(_price))
    assert Lamp()._price == 5
