"""Which small errors would the tests notice? Changes one place of a module at a time and runs the module's test file.

    python tests/mutation.py --module metrics --sample 20
    python tests/mutation.py                                # every change of every module: hours
    python tests/mutation.py --report                       # what earlier calls found

Works in a copy of the tree. Verdicts are appended to a file of JSON lines as they come, so that an interrupted call goes on where it was; a
verdict holds as long as the module and its test file stay as they are. The sample is drawn by a seed, and a larger one contains a smaller one.
"""
import argparse
import ast
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from adwm.core import key_rng  # noqa: E402

MODULES = ("weights", "fitted", "metrics", "rows", "selfchecks", "readouts")
MEMORY = 8 << 30   # bytes of addresses a test run may ask for: a changed constant must not take the machine down
COMPARISONS = {ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
               ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,)}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
             ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And}
NAMES = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any", "amin": "amax", "amax": "amin"}


def like(node, **changes):
    "A copy of a node with some fields replaced."
    return type(node)(**{**{f: getattr(node, f, None) for f in node._fields}, **changes})


def constants(value):
    "What a number or a truth value is replaced by."
    if isinstance(value, bool): return (not value,)
    return [v for v in (0, 1, 2 * value) if v != value] if isinstance(value, (int, float)) else ()


def changes(node):
    "The nodes that may stand in place of this one."
    if isinstance(node, ast.Compare) and len(node.ops) == 1: return [like(node, ops=[new()]) for new in COMPARISONS[type(node.ops[0])]]
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in OPERATORS: return [like(node, op=OPERATORS[type(node.op)]())]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)): return [node.operand]
    if isinstance(node, ast.Constant): return [ast.Constant(v) for v in constants(node.value)]
    if isinstance(node, ast.Return) and node.value is not None: return [ast.Return(ast.Constant(v)) for v in (None, 0.0)]
    if isinstance(node, ast.Slice) and (node.lower or node.upper):
        more = lambda x, missing: ast.Constant(missing) if x is None else ast.BinOp(x, ast.Add(), ast.Constant(1))
        return [like(node, lower=more(node.lower, 1)), like(node, upper=more(node.upper, -1))]
    if isinstance(node, ast.Call):
        fewer = [like(node, keywords=[k for k in node.keywords if k is not drop]) for drop in node.keywords if drop.arg]
        f, name = node.func, getattr(node.func, "id", getattr(node.func, "attr", None))
        swapped = [like(node, func=like(f, **{"id" if isinstance(f, ast.Name) else "attr": NAMES[name]}))] if name in NAMES else []
        return fewer + swapped
    return []


def places(node):
    "The nodes worth changing: no texts, type hints, decorators, exports or errors."
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"): continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom)): continue
            if isinstance(child, ast.Assign) and getattr(child.targets[0], "id", "") == "__all__": continue
            yield from places(child)


def mutants(source):
    "[(line:column, original, changed, the whole changed source)]."
    lines, out = source.encode().splitlines(keepends=True), []
    for node in places(ast.parse(source)):
        for new in changes(node):
            ends = (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)
            start, stop = (sum(map(len, lines[:line - 1])) + column for line, column in ends)
            text = ast.unparse(ast.fix_missing_locations(new))
            if not isinstance(new, (ast.Return, ast.Slice)): text = f"({text})"
            whole = source.encode()
            out.append((f"{node.lineno}:{node.col_offset}", ast.unparse(node), text, (whole[:start] + text.encode() + whole[stop:]).decode()))
    return out


def copy_tree(folder):
    "The code and its tests as copies, everything else as links."
    for item in ROOT.iterdir():
        if item.name in ("adwm", "tests"): shutil.copytree(item, folder / item.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not item.name.startswith("."): (folder / item.name).symlink_to(item)
    return folder


def run_tests(folder, module, seconds):
    "killed, survived or timeout."
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/test_{module}.py"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    run = subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=limit)
    try: return "survived" if run.wait(seconds) == 0 else "killed"
    except subprocess.TimeoutExpired: return "timeout"
    finally:
        if run.poll() is None: os.killpg(run.pid, signal.SIGKILL); run.wait()


def key_of(module):
    "Of the module's code and of its test file: verdicts on others do not count."
    return hashlib.sha256(b"".join((ROOT / p).read_bytes() for p in (f"adwm/{module}.py", f"tests/test_{module}.py"))).hexdigest()[:12]


def sampled(module, args):
    "The changes to try, in the order of the seed."
    found = mutants((ROOT / "adwm" / f"{module}.py").read_text())
    order = key_rng(args.seed, "mutation", module).permutation(len(found))
    return len(found), [found[i] for i in order[:args.sample or None]]


def verdicts(module, args):
    "(line:column, original, changed) -> verdict, of earlier calls."
    if not args.out.is_file(): return {}
    rows = [json.loads(line) for line in args.out.read_text().splitlines()]
    return {(r["at"], r["original"], r["changed"]): r["verdict"] for r in rows if r["module"] == module and r["key"] == key_of(module)}


def try_module(module, args, folder):
    "Run the tests on every sampled change that has no verdict yet."
    path, start = folder / "adwm" / f"{module}.py", time.monotonic()
    source, known, (_, sample) = path.read_text(), verdicts(module, args), sampled(module, args)
    todo = [m for m in sample if m[:3] not in known]
    if not todo: return
    if run_tests(folder, module, 3600) != "survived": sys.exit(f"tests/test_{module}.py fails on the unchanged module, so that nothing can be learned from it")
    seconds = 20 + 5 * (time.monotonic() - start)
    for at, original, changed, text in todo:
        path.write_text(text)
        verdict = run_tests(folder, module, seconds)
        with open(args.out, "a") as f: f.write(json.dumps(dict(module=module, key=key_of(module), at=at, original=original, changed=changed, verdict=verdict)) + "\n")
    path.write_text(source)


def report(module, args):
    "One line of counts, and every change that nothing noticed."
    n, sample = sampled(module, args)
    known = verdicts(module, args)
    found = [(m, known[m[:3]]) for m in sample if m[:3] in known]
    count = Counter(v for _, v in found)
    print(f"{module}: {len(found)} of {n} changes tried: {count['killed']} killed, {count['survived']} survived, {count['timeout']} timeout")
    for (at, original, changed, _), verdict in sorted(found, key=lambda x: int(x[0][0].split(":")[0])):
        if verdict != "killed": print(f"  {verdict} adwm/{module}.py:{at}: {original}  ->  {changed}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--module", action="append", help=f"may stand more than once; all of {', '.join(MODULES)} by default")
    parser.add_argument("--sample", type=int, default=0, help="so many changes of each module; 0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "mutation.jsonl")
    parser.add_argument("--report", action="store_true", help="run nothing")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for module in args.module or MODULES:
        if not args.report:
            with tempfile.TemporaryDirectory() as folder: try_module(module, args, copy_tree(Path(folder)))
        report(module, args)


if __name__ == "__main__": main()
