"The whole path in the smoke profile: through papermill, resumed, without the real environment, without the truth."
import dataclasses, json, os, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from adwm.core import UserError, root
from adwm.config import load_config

ASSETS = root() / "assets" / "webshop-iter1"
pytestmark = pytest.mark.skipif(not (ASSETS / "manifest.json").is_file(), reason="the cell's agents, pool and truth are not in this checkout")


def smoke(cache, **changes):
    return dataclasses.replace(load_config(profile="smoke"), cache=str(cache), workers=1, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from adwm.evaluation import evaluate
    return evaluate(smoke(tmp_path_factory.mktemp("cache")))


def test_rows_have_the_schema_and_both_settings(run):
    from adwm.rows import ROW
    assert list(run.rows.columns) == ROW
    assert {"paper", "ours", "baseline", "floor"} <= set(run.rows["setting"])
    told = run.rows[(run.rows["setting"] != "floor") & run.rows["status"].eq("estimated")]
    assert len(told) and (told["lower"] <= told["value"] + 1e-9).all() and (told["value"] <= told["upper"] + 1e-9).all()
    assert told["truth"].notna().all() and (told["n_truth"] > 0).all()


def test_same_seeds_same_bytes_from_an_empty_cache(run, tmp_path):
    from adwm.evaluation import evaluate
    again = evaluate(smoke(tmp_path / "other"))
    assert again.rows.to_csv(index=False) == run.rows.to_csv(index=False)


def test_classical_estimators_are_rows_with_a_status(run):
    rows = run.rows[run.rows["setting"] == "classical"]
    every = {"IS", "PDIS", "WIS", "step-WIS (hold)", "step-WIS (zero)", "DM (paper)", "DM", "FQE", "FQE (paper's filter)", "FQE (mixed at evaluation)", "DR", "WDR", "MAGIC",
             "IS, fitted behavior", "WIS, fitted behavior", "DR, fitted behavior", "WDR, fitted behavior", "checkpoint replay"}
    every |= {f"{name}, mixture of loggers" for name in ("IS", "PDIS", "WIS", "step-WIS (hold)", "DR", "WDR", "MAGIC")}
    assert set(rows["estimator"]) == every and set(rows["metric"]) == {"reward"} and (rows["n_rollouts"] == run.config.classical.pool).all()
    together = rows[rows["seed"] == "all"]
    policies = len(run.config.collect.targets) * len(run.config.imagine.epsilons) + 1
    assert not together.duplicated(["estimator", "policy", "epsilon"]).any() and len(together) == policies * len(every)
    kind = rows["status"].str.split(": ").str[0]
    assert set(kind) <= {"estimated", "unreliable", "cannot be estimated"} and (rows["status"].str.contains(": ") == (kind != "estimated")).all()
    for column in ("value", "lower", "upper"): assert (np.isfinite(rows[column]) == (kind != "cannot be estimated")).all()
    assert rows["truth"].notna().all() and (together[together["epsilon"] == 1]["policy"] == "shared").all()
    flat = together[together["estimator"] == "DM (paper)"]["value"]
    assert np.allclose(flat, np.mean([e.ret for e in logged(run)])), "no policy in it"


def logged(run):
    return run.classical_logs()


def test_classical_tables(run):
    line, seeds, curves, told = run.paper_line(), run.per_seed(), run.curve_table(), run.diagnostics()
    assert ("classical", "WIS") in line.index and ("ours", "ADWM") in line.index and line.loc[("floor", "-eps"), "rho over eps"] > 0.9
    assert ("classical", "FQE") in seeds.index and ("classical", "WIS") not in seeds.index
    assert list(curves.columns) == [*run.config.imagine.epsilons, 1.0] and curves.index[0] == ("truth", "measured")
    assert told["coverage"].between(0, 1).all() and (told["ess"] <= run.config.classical.pool).all() and ("shared", 1.0) in told.index
    assert (told["ess, mixture"] <= run.config.classical.pool).all() and {"mean_weight", "mean_weight_se", "mean_weight, mixture"} <= set(told.columns)
    assert run.classical_figure() is not None and "rho_apart eps=0" in run.summary()


def test_the_mixture_asks_every_logger_as_it_logged(run):
    "Each logger's own log-probabilities, asked again, are those that were logged; the mixture is never below its share of them."
    from adwm.stages import loggers, mixture_of, probe_stage
    from adwm.weights import logger_log_probs, read_probe
    pool, mixture = run.classical_logs(), mixture_of(run.bench)
    probes = {a: read_probe(probe_stage(run.bench, a) / "probe.json.gz") for a in (*loggers(run.config), "reference")}
    asked = logger_log_probs(pool, probes, tolerance=1e-3)
    for i, e in enumerate(pool):
        own = asked[e.policy, e.epsilon][i]
        assert np.allclose(own, [t.logp for t in e.turns], atol=1e-3) and len(mixture[i]) == len(e.turns)
        share = np.mean([(x.policy, x.epsilon) == (e.policy, e.epsilon) for x in pool])
        assert mixture[i].sum() >= np.log(share) + own.sum() - 1e-9 and mixture[i].sum() <= 1e-9


def test_classical_stage_resumes_from_the_probes(run, tmp_path):
    from adwm.stages import cache_folder, classical_stage, probe_stage
    bench, folder = run.bench, cache_folder(run.config)
    agent = run.config.collect.targets[0]
    done, probe = classical_stage(bench, agent), probe_stage(bench, agent)
    before, stamp = (done / "estimates.json").read_bytes(), probe.stat().st_mtime_ns
    assert done.parent == folder
    shutil.rmtree(done)
    assert classical_stage(bench, agent) == done and (done / "estimates.json").read_bytes() == before
    assert probe.stat().st_mtime_ns == stamp, "the probe was not asked for again"


def test_second_run_comes_from_the_cache(run):
    from adwm.evaluation import evaluate
    again = evaluate(run.config)
    assert sum(v for k, v in again.seconds.items() if k != "rows") < 5
    assert again.rows.equals(run.rows)


def test_no_real_environment_while_imagining(run, tmp_path, monkeypatch):
    import adwm.shop as s
    import adwm.webshop as w
    from adwm.evaluation import evaluate
    def refuse(*a, **k): raise AssertionError("the real environment was made during an evaluation")
    for name in ("Shop", "build_shop", "generated_shop", "read_shop"): monkeypatch.setattr(s, name, refuse)
    for name in ("Shop", "WebShopSimulator", "generated_shop", "read_shop"): monkeypatch.setattr(w, name, refuse)
    assert evaluate(smoke(tmp_path / "blind")).rows.equals(run.rows)


def test_estimates_do_not_see_the_truth(run, tmp_path, monkeypatch):
    import adwm.evaluation as ev, adwm.results as results
    from adwm.stages import workbench
    monkeypatch.setattr(results, "read_truth_frame", lambda *a: (_ for _ in ()).throw(RuntimeError("truth")))
    config = smoke(tmp_path / "cache")
    with pytest.raises(RuntimeError, match="truth"): ev.evaluate(config)
    for i, part in enumerate(config.estimators):
        mine = results.estimate_rows(config, part, results.imagined(workbench(config), i), "estimated")
        theirs = run.rows[(run.rows["setting"] == part.setting) & (run.rows["estimator"] == part.name)]
        pd.testing.assert_series_equal(mine["value"].reset_index(drop=True), theirs["value"].reset_index(drop=True), check_exact=False) if theirs["value"].notna().all() else None


def test_methods_cannot_reach_the_truth():
    for name in ("schedule", "guidance", "world_model", "fitting", "adapter", "retrieval", "readouts", "imagination", "selfchecks", "weights", "fitted", "probes"):
        path = root() / "adwm" / f"{name}.py"
        if not path.exists(): continue
        text = path.read_text()
        assert "truth.csv" not in text and "read_truth" not in text and "collection" not in text.replace("collections", ""), name


def test_changed_assets_are_refused(tmp_path):
    from adwm.collection import check_manifest
    shutil.copytree(ASSETS, tmp_path / "assets")
    check_manifest(tmp_path / "assets")
    with open(tmp_path / "assets" / "pool.jsonl.gz", "ab") as f: f.write(b"x")
    with pytest.raises(UserError, match="differs from its manifest; remake it with"): check_manifest(tmp_path / "assets")
    (tmp_path / "assets" / "pool.jsonl.gz").unlink()
    with pytest.raises(UserError, match="is missing; remake it with"): check_manifest(tmp_path / "assets")


def test_terminal_pages_print_no_score():
    from adwm.episodes import TERMINAL, read_episodes
    pool = read_episodes(ASSETS / "pool.jsonl.gz", "webshop")
    assert all(e.last_obs == TERMINAL for e in pool if e.terminated)
    assert not any("Your score" in page or "Thank you for shopping" in page for e in pool for page in e.pages)
    assert not any(e.task.text in page for e in pool for page in e.pages), "pages must not carry an instruction"


def test_tables_and_figures_are_drawn(run, tmp_path):
    folder = run.save(tmp_path / "out")
    rows = pd.read_csv(folder / "rows.csv")
    assert len(rows) == len(run.rows) and (folder / "timings.csv").is_file()
    for name in ("estimates.png", "curves.png"): assert (folder / name).stat().st_size > 10_000
    assert "TASK" in run.transcript(run.best_agent()) and len(run.setup()) and len(run.gate_table())


@pytest.mark.parametrize("classical", [True, False])
def test_a_run_whose_estimates_are_all_refused_finishes_and_saves(run, tmp_path, monkeypatch, classical):
    from adwm import results
    from adwm.stages import workbench
    monkeypatch.setattr(results, "status_of", lambda part, report: "refused: the readout knows nothing")
    config = run.config if classical else dataclasses.replace(run.config, classical=None)
    bare = results.Evaluation(workbench(config), {})
    mine = bare.rows[bare.rows["setting"].isin(["ours", "paper", "baseline"])]
    assert len(mine) and mine["value"].isna().all()
    assert any("knows nothing" in t.get_text() for a in bare.figure().axes for t in a.texts) and bare.epsilon_figure("nearest neighbour") is None
    assert len(bare.per_seed()) == (len(run.per_seed()) if classical else 0) or bare.per_seed()["rho over eps"].isna().all().all()
    assert bare.aims()["reached"].iloc[0] == "no: refused: the readout knows nothing" and len(bare.paper_line()) and "TASK" in bare.transcript(bare.best_agent(), k=1)
    folder = bare.save(tmp_path / "out")
    assert len(pd.read_csv(folder / "rows.csv")) == len(bare.rows) and (folder / "estimates.png").is_file() and (folder / "summary.csv").is_file()


def test_the_spread_of_trainings_needs_fits_that_differ_in_their_seed_alone(run):
    from adwm.results import Evaluation
    from types import SimpleNamespace
    part, fit = run.config.estimators[0], run.config.fits["ours"]
    parts = tuple(dataclasses.replace(part, name=f"fit {i}", fit=f"f{i}") for i in range(3))
    def cell(**changes):
        fits = {f"f{i}": dataclasses.replace(fit, seed=i, **(changes if i == 2 else {})) for i in range(3)}
        index = pd.MultiIndex.from_product([["a", "b"], [0.0]], names=["policy", "epsilon"])
        table = lambda setting, name: pd.DataFrame(dict(value=.5 + .1 * int(name[-1]), lower=.4, upper=.6, truth=.5), index=index)
        return Evaluation.trainings(SimpleNamespace(config=SimpleNamespace(estimators=parts, fits=fits, level=.9), table=table))
    line = cell().loc[(part.setting, "fit 0")]
    assert line["fits"] == 3 and np.isclose(line["sd of a training"], .1) and np.isclose(line["MAE"], .1) and np.isclose(line["highest"], .2)
    assert cell(train={"joint": 5}).loc[(part.setting, "fit 0"), "fits"] == 2, "another budget is another model"
    assert "differ in their seed alone" in run.trainings().iloc[0, 0]


def test_a_target_in_the_pool_is_refused_not_dropped(run):
    from adwm.stages import check_pool
    pool = run.data.pool
    check_pool(run.config, pool)
    with pytest.raises(UserError, match="would be judged by it"): check_pool(run.config, [dataclasses.replace(pool[0], policy="c-iter0"), *pool[1:]])


def test_post_training_is_held_against_plain_imitation(run):
    from types import SimpleNamespace
    from adwm.results import Evaluation
    from adwm.training import Recipe
    recipes = (Recipe("sft"), Recipe("plain", kind="more", parent="sft"), Recipe("better", kind="leap", parent="sft"), Recipe("other", kind="leap", parent="better"))
    truth = pd.DataFrame([(p, e, f"t{i}", i % 2 * 0.2 + (0.5 if p == "better" else 0.1)) for p in ("plain", "better", "other") for e in (0.0, 0.5) for i in range(10)],
                         columns=["policy", "epsilon", "task_id", "reward"])
    found = Evaluation.post_training(SimpleNamespace(config=SimpleNamespace(collect=SimpleNamespace(recipes=recipes), level=0.9), truth={"pool": truth}))
    assert list(found.index) == ["better"] and found.loc["better", "control"] == "plain", "an agent without a control of its own is not compared"
    assert np.allclose(found.loc["better", ["gain", "lower", "upper"]].astype(float), 0.4), "paired over tasks: a constant gain has no width"
    assert "no post-trained agent" in run.post_training().iloc[0, 0]


def test_without_an_engine_the_imagined_episodes_stand_alone(run, monkeypatch):
    from adwm import results
    def missing(*_): raise UserError("Java is missing: install it")
    monkeypatch.setattr(results.Evaluation, "real_episodes", missing)
    told = run.transcript(run.best_agent(), k=2)
    assert told.startswith("Imagined episodes alone: Java is missing") and told.count("TASK") == 2


def test_the_table_of_aims_answers_or_says_why_not(run):
    aims = run.aims()
    assert list(aims.columns) == ["value", "wanted", "reached"] and aims.index.is_unique
    assert aims["reached"].str.match("yes$|no$|tied$|n/a: ").all()
    said = aims["reached"].str.startswith("n/a")
    assert aims.loc["MAE, tasks the pool never saw", "reached"] == "n/a: nothing was estimated on fresh tasks"
    assert said[aims.index.str.endswith("0.05 apart")].all() and not said.all(), "three agents are too few to ask"
    assert sum(a.startswith("MAE against") for a in aims.index) == 4, "pool mean, x (1 - eps), eps only, paper; -eps is a ranking alone"
    line = run.lines("ours", "ADWM")
    assert np.isclose(aims["value"].iloc[0], (line["value"] - line["truth"]).abs().mean())


def test_the_slide_compares_on_the_policies_that_all_judged(run):
    from adwm.plots import common_errors
    found = common_errors(run.together())
    known = dict(run.rows.query("seed == 'all' and metric == 'reward'").groupby(["setting", "estimator"])["value"].apply(lambda v: v.notna().sum()))
    common = found.errors[found.errors["common"]]
    assert ("ours", "ADWM") in common.index and (common["policies"] == len(found.policies)).all()
    assert all(found.errors.loc[k, "policies"] <= known[k] for k in found.errors.index)
    assert run.noise_floor(policies=found.policies)["mae"].value > 0 and "mae" in run.noise_floor_table().index


def test_checks_show_the_lines_that_judge(run):
    shown, every = run.checks(), run.checks(every=True)
    assert (shown["verdict"] != "-").all() and len(shown) < len(every) and (every["verdict"] == "-").sum() == len(every) - len(shown)


def test_differences_say_whether_they_tell_apart(run):
    from adwm.results import Difference, conclusions
    same = run.paired("ours/ADWM", "ours/ADWM")
    assert same.difference == 0 and same.verdict == "not told apart"
    apart = Difference("a", "b", 3, -.1, -.2, -.05)
    assert apart.verdict == "better" and apart._replace(lower=.05, upper=.2).verdict == "worse"
    assert "a has a smaller error than b: -0.100 [-0.200, -0.050] on 3 policies" in conclusions({"Parts": [apart, same]})
    assert "1 of 2 are told apart" in conclusions({"Parts": [apart, same]}) and conclusions({"None": []}) == ""
    assert all(d.second == "paper/ADWM" and d.first != d.second for d in run.against("paper/ADWM")) and run.against("ours/no such") == []
    with pytest.raises(UserError, match="the valid ones are"): run.paired("ours/ADWM", "ours/no such")


def test_rivals_are_met_on_the_policies_that_both_estimated(run):
    from adwm.results import rival_aims
    mine = run.lines("ours", "ADWM")
    weak = mine.assign(value=mine["truth"] + 1)[mine["epsilon"] == 0]
    found = {a.aim: a for a in rival_aims(run.config, mine, {"weak": weak})}
    against = found[f"MAE against weak, {len(weak)} policies"]
    assert against.wanted == "< 1" and against.reached == "yes"
    ranks = found["Spearman at eps=0 against the best rival"]
    assert "(weak)" in ranks.wanted and ranks.reached in ("no", "tied"), "who is wrong by a constant orders perfectly"
    assert found["Spearman at eps=0.25 against the best rival"].reached.startswith("n/a")


def test_the_pool_stands_beside_the_papers(run):
    table = run.pool_table()
    whole = table.loc[("here", "all", "")]
    assert whole["trajectories"] == len(run.data.pool) and np.isclose(whole["reward"], run.pool_value())
    assert table.loc[("here", "any target", ""), "trajectories"] == 0
    assert np.isclose(table.loc["here"].drop(["all", "any target"])["share"].sum(), 1)
    assert table.iloc[-1]["trajectories"] == 640 and table.index[-1][0] == "paper, Table 3"


def test_tables_without_content_say_why(run):
    from adwm.results import Evaluation
    from adwm.stages import workbench
    some = tuple(e for e in run.config.estimators if e.setting == "ours")
    bare = Evaluation(workbench(dataclasses.replace(run.config, classical=None, paper=None, estimators=some)), {})
    for table in (bare.diagnostics(), bare.adapter_table(), bare.paired_differences(), bare.summary(fresh=True)): assert list(table.columns) == ["nothing"] and len(table) == 1
    assert bare.classical_figure() is None and len(bare.losses().axes) == 2 and len(bare.paper_line()) and len(bare.per_seed()) and len(bare.curve_table())
    assert bare.table("paper").empty and bare.pool_table().index[-1][1] == "any target" and len(bare.aims())


@pytest.mark.parametrize("given, code, says", [(["-p", "env", "chess"], 1, "valid ones are"), (["-p", "profile", "huge"], 1, "valid ones are")])
def test_papermill_fails_in_one_sentence(tmp_path, given, code, says):
    done = subprocess.run([sys.executable, "-m", "papermill", str(root() / "nbs" / "eval.ipynb"), str(tmp_path / "x.ipynb"), *given], capture_output=True, text=True, cwd=root())
    assert done.returncode == code and says in done.stderr


def test_papermill_smoke_without_output_path(tmp_path):
    done = subprocess.run([sys.executable, "-m", "papermill", str(root() / "nbs" / "eval.ipynb"), "-p", "env", "webshop", "-p", "profile", "smoke"],
                          capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    nb = json.loads(done.stdout)
    assert not [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"] if o["output_type"] == "error"]


def test_a_row_is_what_the_estimator_says_by_itself(run):
    "The look-up of a table and the one that a reader calls are one object: value, interval and every imagined return agree."
    import adwm
    from adwm.config import EstimatorPart
    from adwm.evaluation import evaluate
    agent = run.config.collect.targets[0]
    line = EstimatorPart("look-up", "ours", "neighbour", agents=(agent,), epsilons=(0.0,))
    table = evaluate(dataclasses.replace(run.config, estimators=(line,), classical=None))
    row = table.rows[lambda r: (r["estimator"] == "look-up") & (r["policy"] == agent) & (r["seed"] == "all") & (r["metric"] == "reward")].iloc[0]
    said = table.bench.fitted(0).judge(table.bench.agent(agent))
    assert np.allclose((said.value, *said.interval), (row["value"], row["lower"], row["upper"]), rtol=0, atol=1e-12)
    alone = adwm.estimate(run.data.pool, table.bench.agent(agent), table.bench.estimator(0), domain=table.bench.domain, seeds=run.config.imagine.seeds, horizon=run.config.horizon)
    assert abs(alone.value - said.value) < .02 and alone.per_task.keys() == said.per_task.keys()


MINE = """
from dataclasses import dataclass
from adwm.estimation import LookUp, PolicyValue
from adwm.retrieval import NearestNeighbour

@dataclass(frozen=True)
class Best:
    name: str = "best"
    share: float = 0.1
    def fit(self, logs, domain, how): return Fitted(self, sorted(e.ret for e in logs)[-max(1, int(self.share * len(logs))):])

class Fitted:
    def __init__(self, it, best): self.it, self.value = it, sum(best) / len(best)
    def judge(self, agent, epsilon=0.0): return PolicyValue(agent.name, self.it.name, self.value, epsilon=epsilon)
"""


def test_anybodys_estimator_is_a_line_of_the_tables(run, tmp_path, monkeypatch):
    "By import path, with options, beside the others, without a change of the package; and any of the package's by its name."
    from adwm.config import EstimatorPart, checked
    from adwm.evaluation import evaluate
    (tmp_path / "mine_best.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = (*run.config.estimators, EstimatorPart("best half", "baseline", "mine_best:Best", options={"share": 0.5}), EstimatorPart("the pool's mean", "baseline", "pool mean"))
    config = dataclasses.replace(run.config, estimators=lines, classical=None)
    found = evaluate(config)
    own = found.rows[found.rows["estimator"] == "best half"]
    best = sorted(e.ret for e in run.data.pool)[-(len(run.data.pool) // 2):]
    assert len(own) == len(config.collect.targets) * len(config.imagine.epsilons) + 1 and np.allclose(own["value"], np.mean(best)) and own["truth"].notna().all()
    assert np.allclose(found.rows[found.rows["estimator"] == "the pool's mean"]["value"], run.pool_value())
    assert ("baseline", "best half") in found.summary().index and found.rows[found.rows["setting"] == "ours"].equals(run.rows[run.rows["setting"] == "ours"])
    values = dataclasses.asdict(config)
    for change, says in ((dict(kind="mine_best:Worst"), "cannot be imported"), (dict(kind="adwn"), "the valid ones are"), (dict(options={"part": 1}), "cannot be made with part"), (dict(tasks=3), "tasks means nothing")):
        wrong = [*values["estimators"][:-2], values["estimators"][-2] | change]
        with pytest.raises(UserError, match=says): checked(values | {"estimators": wrong}, "params")
