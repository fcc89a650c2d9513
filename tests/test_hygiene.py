"""The tree itself: exports in sync, imports downward, run notebooks thin, nothing of a machine or of third parties."""
import ast
import configparser
import filecmp
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adwm.core import shared_data

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb"))
NUMBERED = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
RUNS = [p for p in NOTEBOOKS if not re.match(r"\d\d_", p.name) and p.stem != "index"]
SIMULATED = [*range(20, 28), *range(30, 40), 56]  # notebooks of the method: they must not see the truth
name = lambda p: p.stem


def code_cells(path):
    "Code cells of a notebook as (source, cell)."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [("".join(c["source"]), c) for c in cells if c["cell_type"] == "code"]


def module_of(path):
    "The module a notebook exports, or None."
    found = [m.group(1) for s, _ in code_cells(path) for m in [re.search(r"^#\|\s*default_exp\s+(\S+)", s, re.M)] if m]
    return found[0] if found else None


MODULES = {module_of(p): int(p.name[:2]) for p in NUMBERED if module_of(p)}


def tracked():
    "Files git tracks; skips the test outside a checkout."
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout")
    out = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / f for f in out.decode().split("\0") if f and (ROOT / f).is_file()]


def text_of(path):
    "Text of a file, or None for a binary one."
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def parsed(source):
    "Syntax tree of a cell without its magics."
    return ast.parse("\n".join(l for l in source.splitlines() if not l.lstrip().startswith(("%", "!"))))


def imports(tree):
    "Modules a syntax tree imports, relative ones of the package as adwm.x."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ("adwm." if node.level else "") + (node.module or "")
            yield base
            yield from (f"{base.rstrip('.')}.{a.name}" for a in node.names if base.rstrip(".") == "adwm")


def test_exports_are_in_sync(tmp_path):
    "nbdev_export on a copy changes nothing."
    tool = Path(sys.executable).with_name("nbdev_export")
    if not tool.exists():
        pytest.skip("nbdev is not installed: pip install -e '.[dev]'")
    for part in ("nbs", "adwm"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for part in ("settings.ini", "setup.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / part, tmp_path / part)
    subprocess.run([str(tool)], cwd=tmp_path, check=True, capture_output=True)
    names = {p.name for folder in (ROOT, tmp_path) for p in (folder / "adwm").glob("*.py")}
    stale = [n for n in sorted(names) if not (ROOT / "adwm" / n).exists() or not filecmp.cmp(ROOT / "adwm" / n, tmp_path / "adwm" / n, shallow=False)]
    assert not stale, f"run nbdev_export and commit adwm/: {stale} differ from the notebooks"


def test_no_orphan_modules():
    here = {p.stem for p in (ROOT / "adwm").glob("*.py")} - {"__init__", "_modidx"}
    assert here == set(MODULES), f"without a notebook: {here - set(MODULES)}; without a module: {set(MODULES) - here}"


@pytest.mark.parametrize("path", NUMBERED, ids=name)
def test_imports_point_downward(path):
    number, own = int(path.name[:2]), module_of(path)
    for source, _ in code_cells(path):
        for module in imports(parsed(source)):
            part = module.split(".")[1] if module.startswith("adwm.") else None
            assert part is None or part == own or MODULES.get(part, 100) < number, f"imports adwm.{part} from notebook {MODULES.get(part)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_import_no_notebook_tools(module):
    used = {m.split(".")[0] for m in imports(ast.parse((ROOT / "adwm" / f"{module}.py").read_text(encoding="utf-8")))}
    assert not used & {"nbdev", "fastcore", "IPython", "ipywidgets", "pytest", "diffusers"}


@pytest.mark.parametrize("module", sorted(m for m, n in MODULES.items() if n in SIMULATED))
def test_the_method_cannot_read_the_truth(module):
    source = (ROOT / "adwm" / f"{module}.py").read_text(encoding="utf-8")
    used = {m.split(".")[1] for m in imports(ast.parse(source)) if m.startswith("adwm.") and "." in m}
    assert not used & {"shop", "webshop", "catalogue", "hotpotqa", "scienceworld", "alfworld", "replayer", "collection", "runs", "evaluation"}, "a part of the method imports an environment's engine or its collection"
    assert not re.search(r"truth[\w-]*\.(csv|jsonl|parquet)", source), "a part of the method names a truth file"


@pytest.mark.parametrize("path", NUMBERED, ids=name)
def test_public_functions_have_docstrings(path):
    for source, _ in code_cells(path):
        if re.search(r"^#\|\s*export", source, re.M):
            for node in parsed(source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_are_saved_executed_and_clean(path):
    printing, shown = [], 0
    for source, cell in code_cells(path):
        assert not any(o["output_type"] == "error" for o in cell["outputs"]), "a saved output is an error"
        assert not any(o.get("name") == "stderr" for o in cell["outputs"]), f"a saved output is on stderr: {source[:60]!r}"
        assert set(cell["metadata"]) <= {"tags"}, f"cell metadata {sorted(cell['metadata'])}"
        shown += bool(cell["outputs"])
        calls = [n.value.func for n in parsed(source).body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
        if any(getattr(f, "id", None) == "print" for f in calls) and not cell["outputs"]:
            printing.append(source[:60])
    assert not printing, f"cells that print were saved without output: {printing}"
    assert shown or not code_cells(path), "the notebook was saved without any output: execute it"
    assert path.stat().st_size < 1_500_000, "outputs too heavy to review"


@pytest.mark.parametrize("path", NUMBERED, ids=name)
def test_notebooks_open_and_close_alike(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first = "".join(cells[0]["source"])
    assert cells[0]["cell_type"] == "markdown" and first.startswith("# ") and re.search(r"^> \S", first, re.M), "opens with a title and a one-line subtitle"
    assert cells[-1]["cell_type"] == "markdown", "closes with what we have and where next"


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_run_notebooks_are_thin(path):
    cells = code_cells(path)
    tagged = [s for s, c in cells if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "a run notebook has exactly one cell tagged `parameters`"
    assert module_of(path) is None and not any("#| export" in s for s, _ in cells), "a run notebook exports nothing"
    for source, _ in cells:
        for node in ast.walk(parsed(source)):
            assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While)), "a run notebook defines and loops over nothing"


def test_configuration_files_fit_the_configuration():
    "Every key of every cell and profile is a field of the configuration; the config function rejects the rest."
    runs, yaml = pytest.importorskip("adwm.config"), pytest.importorskip("yaml")
    files = sorted((ROOT / "params").glob("*.yaml"))
    assert files, "params/ holds one file per cell"
    for path in files:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for profile in {"default": {}, **values.get("profiles", {})}:
            assert runs.load_config(values["env"], path.stem, profile, folder=ROOT / "params").cell == path.stem


@pytest.mark.parametrize("path", RUNS, ids=name)
def test_parameters_cell_and_configuration_agree(path):
    runs, papermill = pytest.importorskip("adwm.config"), pytest.importorskip("papermill")
    cell = papermill.inspect_notebook(str(path))
    known = set(inspect.signature(runs.load_config).parameters) - {"folder"}
    assert cell and set(cell) <= known, f"parameters {set(cell) - known} do nothing"
    assert all(p["help"] for p in cell.values()), "every parameter says in a comment what it is"


def test_settings_keep_the_parameters_tag_and_the_version():
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    settings = settings["DEFAULT"]
    assert settings["allowed_cell_metadata_keys"].strip() == "tags", "without it nbdev_clean deletes papermill's parameters tag"
    assert f'"{settings["version"]}"' in (ROOT / "adwm" / "__init__.py").read_text(encoding="utf-8")
    assert "nbdev" not in settings["requirements"] and "nbdev>=2.4.14,<3" in settings["dev_requirements"]


def test_readme_has_two_one_line_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for which, must in {"main": "papermill nbs/eval.ipynb", "tests": "pytest -q tests"}.items():
        block = re.search(rf"<!-- command: {which} -->\n```bash\n(.*?)\n```", text, re.S)
        assert block and "\n" not in block.group(1) and must in block.group(1), f"the {which} command"


def test_readme_examples_run(tmp_path):
    "The ten lines print what they promise, and the one call reads their logs from a file and says the same."
    blocks = re.findall(r"```python\n(.*?)\n```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    one_call, example = next(b for b in blocks if "adwm.estimate(" in b), next(b for b in blocks if re.search(r"# [\d. ]+$", b, re.M))
    promised = re.findall(r"# ([\d. ]+)$", example, re.M)[-1]
    between = "from adwm.episodes import write_episodes\nwrite_episodes('logs.jsonl', pool)\nagent = target"
    out = subprocess.run([sys.executable, "-c", "\n".join([example, between, one_call])], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert out.returncode == 0, out.stderr[-500:]
    first, second = out.stdout.strip().splitlines()
    assert first == promised and second.startswith(f"V(east) = {float(promised.split()[1]):.2f} "), out.stdout


def test_nothing_of_a_machine_in_the_tree():
    "No absolute path of a machine, no host of a package registry."
    config = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    hosts = set(re.findall(r"https?://(?:[^@/\s']*@)?([\w.-]+)", config)) - {"example.org"}
    places = ["/wo" + "rk/", "/ro" + "ot/", r"/home/\w+/", "/opt/py" + "pi", "file:" + "///", r"[A-Z]:\\\\Users", r"/tmp/[\w.-]+/", "site-pack" + "ages"]
    pattern = re.compile("|".join(places + [re.escape(h) for h in sorted(hosts)]))
    found = [f"{p.relative_to(ROOT)}: {m.group(0)}" for p in tracked() if p != Path(__file__).resolve() and p.suffix != ".ini"
             for text in [text_of(p)] if text for m in [pattern.search(text)] if m]
    assert not found, found


def test_tree_is_small():
    sizes = {p: p.stat().st_size for p in tracked()}
    assets = sum(s for p, s in sizes.items() if p.is_relative_to(ROOT / "assets"))
    cells = {}
    for p, size in sizes.items():
        if p.is_relative_to(ROOT / "assets"): cells[p.relative_to(ROOT / "assets").parts[0]] = cells.get(p.relative_to(ROOT / "assets").parts[0], 0) + size
    assert max(cells.values()) <= 25 * 2**20 and assets <= 100 * 2**20, {c: f"{s / 2**20:.1f} MB" for c, s in cells.items()}
    assert sum(sizes.values()) - assets < 25 * 2**20


def test_no_third_party_data_in_the_tree():
    "No tracked file equals a third-party one, and no long line of theirs stands in a text file."
    data = shared_data()
    if data is None:
        pytest.skip("no third-party data beside the project")
    theirs = [p for p in data.rglob("*") if p.is_file() and 200 < p.stat().st_size < 2**24]
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in theirs}
    ours = tracked()
    assert not [p.name for p in ours if hashlib.sha256(p.read_bytes()).hexdigest() in digests]
    phrases = {string[:60] for p in theirs for string in re.findall(r'"((?:[^"\\]|\\.){60,400})"', text_of(p) or "")}
    texts = (t for p in ours for t in [text_of(p)] if t)
    copied = {t[i:i + 60] for t in texts for i in range(len(t) - 59) if t[i:i + 60] in phrases}
    assert not copied, f"{len(copied)} phrases of third-party data, such as {sorted(copied)[:2]}"


def test_importing_the_package_is_light():
    code = "import time, sys; t = time.perf_counter(); import adwm; print(time.perf_counter() - t, *[m for m in ('torch', 'transformers', 'pandas', 'scipy', 'matplotlib', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == [] and float(out[0]) < 2
    for module in {"core", "episodes", "metrics", "rows"} & set(MODULES):
        code = f"import sys, adwm.{module}; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
