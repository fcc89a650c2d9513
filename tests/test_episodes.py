"The one record: round trip, checks, splits."
import gzip, json
from dataclasses import asdict, replace

import pytest

from adwm.core import UserError, root
from adwm.envs import Corridor
from adwm.episodes import TERMINAL, describe, read_episodes, read_tasks, split_by_task, to_line, write_episodes
from tests_helpers import corridor_episodes


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_round_trip_and_same_bytes(tmp_path, name):
    es = corridor_episodes(20)
    p = write_episodes(tmp_path / name, es)
    assert read_episodes(p, "corridor") == es
    assert write_episodes(tmp_path / ("b" + name), es).read_bytes() == p.read_bytes()


def spoil(line, edit):
    d = json.loads(line); edit(d); return json.dumps(d)


def turn(**values): return lambda d: d["turns"][0].update(values)


@pytest.mark.parametrize("edit, says", [
    (lambda d: d.pop("policy"), "field 'policy' is missing"),
    (lambda d: d.update(policy=" "), "'policy' is ' ', and must be text that is not blank"),
    (lambda d: d.update(turns=[]), "'turns' is []"),
    (lambda d: d.update(turns=[7]), "turn 0: expected an object"),
    (lambda d: d.update(seed="x"), "field 'seed'"),
    (lambda d: d.update(seed=True), "field 'seed'"),
    (lambda d: d.update(index=-1), "field 'index'"),
    (lambda d: d.update(note=1), "'note' is unknown"),
    (lambda d: d["task"].update(note=1), "field 'task': the field 'note' is unknown"),
    (lambda d: (d["turns"][0].pop("logp"), turn(lopg=-1.)(d)), "turn 0: the field 'lopg' is unknown"),
    (lambda d: d["task"].pop("text"), "field 'text' is missing"),
    (lambda d: d["task"].update(obs=TERMINAL), "field 'obs' is '<end>'"),
    (lambda d: d["turns"][0].pop("choices"), "'choices' is missing"),
    *[(turn(reward=x), "turn 0: the field 'reward'") for x in (float("nan"), float("inf"), 1e308, 10**400, "1", None, True)],
    *[(turn(logp=x), "turn 0: the field 'logp'") for x in (float("nan"), -float("inf"), 1e-5, 3, "a", False)],
    *[(lambda d, x=x: d.update(epsilon=x), "field 'epsilon'") for x in (float("nan"), 7, -.1, "0", None, True)],
    *[(turn(choices=x), "turn 0: the field 'choices'") for x in ([1, 2], None, [None], ["go", ""], "go")],
    *[(turn(action=x), "turn 0: the field 'action'") for x in ("", " \n", 3, None)],
    (turn(obs=TERMINAL), "turn 0: the field 'obs' is '<end>'"),
    (turn(obs="a\ud83d"), "half of a surrogate pair"),
    (lambda d: d.update(terminated=True, truncated=True), "are both True"),
    (lambda d: d.update(terminated=False, truncated=False), "are both False"),
    (lambda d: d.update(last_obs=TERMINAL, terminated=False, truncated=True), "did not end there"),
    (lambda d: d.update(last_obs="Your score 0.7", terminated=True, truncated=False), "may print the score")])
def test_reader_names_file_line_and_field(tmp_path, edit, says):
    es = corridor_episodes(3)
    path = tmp_path / "bad.jsonl"
    path.write_text(to_line(es[0]) + "\n" + spoil(to_line(es[1]), edit) + "\n")
    with pytest.raises(UserError) as err: read_episodes(path)
    assert "bad.jsonl, line 2" in str(err.value) and says in str(err.value) and "\n" not in str(err.value)


def test_what_logs_may_hold(tmp_path):
    "Whole numbers as rewards, rounding above 0, no log-probability, actions that no list holds."
    e, = corridor_episodes(1)
    d = json.loads(to_line(e)); d["turns"][0].update(reward=1, logp=1e-7, action="sing"); d["turns"][1].pop("logp")
    (tmp_path / "a.jsonl").write_text(json.dumps(d))
    got, = read_episodes(tmp_path / "a.jsonl")
    assert [type(t.reward) for t in got.turns[:2]] == [float] * 2 and got.turns[0].logp == 1e-7 and got.turns[1].logp is None
    assert describe([got])[0]["unlisted"] == 1 / len(got.turns)


@pytest.mark.parametrize("second, says", [
    (lambda e: to_line(e), "stands on line 1 already"),
    (lambda e: to_line(replace(e, last_obs=TERMINAL, terminated=True, truncated=False)), "stands on line 1 already"),
    (lambda e: to_line(replace(e, index=1, task=replace(e.task, text="another"))), "another text than on an earlier line"),
    (lambda e: to_line(replace(e, index=1, task=replace(e.task, obs="another"), turns=(replace(e.turns[0], obs="another"), *e.turns[1:]))), "another obs than on an earlier line"),
    (lambda e: to_line(replace(e, index=1, turns=(replace(e.turns[0], obs="another"), *e.turns[1:]))), "the field 'obs' of turn 0 differs"),
    (lambda e: to_line(replace(e, index=1, turns=(replace(e.turns[0], choices=("another",)), *e.turns[1:]))), "the field 'choices' of turn 0 differs"),
    (lambda e: to_line(e).replace('"seed":0', '"seed":0,"seed":1'), "the field 'seed' stands twice"),
    (lambda e: "", "the line is empty"),
    (lambda e: "\ufeff" + to_line(e), "BOM"),
    (lambda e: "[" * 100_000, "not a line of JSON"),
    (lambda e: to_line(e).replace('"seed":0', '"seed":' + "9" * 5000), "not a line of JSON")])
def test_lines_of_one_file_agree(tmp_path, second, says):
    e = corridor_episodes(1)[0]
    (tmp_path / "a.jsonl").write_text(to_line(e) + "\n" + second(e) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: .*" + says): read_episodes(tmp_path / "a.jsonl")


def test_every_committed_pool_loads():
    pools = sorted(root().glob("assets/*/pool.jsonl.gz"))
    if not pools: pytest.skip("the pools are not in this checkout")
    assert all(len(read_episodes(p)) >= 500 and len(read_tasks(p.with_name("fresh.jsonl"))) > 10 for p in pools)


@pytest.mark.parametrize("edit, says", [
    (lambda d: d.pop("obs"), "field 'obs' is missing"), (lambda d: d.update(choices=[1]), "field 'choices'"), (lambda d: d.update(id=3), "field 'id'"),
    (lambda d: d.update(text=None), "field 'text'"), (lambda d: d.update(goal="x"), "'goal' is unknown"), (lambda d: None, "stands on line 1 already")])
def test_tasks_are_held_against_the_same_rules(tmp_path, edit, says):
    task = asdict(Corridor().task())
    path = tmp_path / "tasks.jsonl"; path.write_text(json.dumps(task) + "\n")
    assert read_tasks(path) == [Corridor().task()]
    other = dict(task); edit(other)
    path.write_text(json.dumps(task) + "\n" + json.dumps(other) + "\n")
    with pytest.raises(UserError, match=f"line 2: .*{says}"): read_tasks(path)
    path.write_text("")
    with pytest.raises(UserError, match="holds no task"): read_tasks(path)


def test_reader_refuses_other_files(tmp_path):
    with pytest.raises(UserError, match="no file of episodes"): read_episodes(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no episode"): read_episodes(tmp_path / "empty.jsonl")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}" * 500)[:20])
    with pytest.raises(UserError, match="cannot be read"): read_episodes(tmp_path / "torn.jsonl.gz")
    good = bytearray(write_episodes(tmp_path / "b.jsonl.gz", corridor_episodes(50)).read_bytes())
    good[60:70] = b"\xff" * 10; (tmp_path / "b.jsonl.gz").write_bytes(good)
    with pytest.raises(UserError, match="cannot be read"): read_episodes(tmp_path / "b.jsonl.gz")
    p = write_episodes(tmp_path / "a.jsonl", corridor_episodes(2))
    with pytest.raises(UserError, match="'corridor', where 'webshop' is needed"): read_episodes(p, "webshop")


def test_split_keeps_tasks_apart():
    es = [replace(e, index=k) for e in corridor_episodes(11) for k in range(3)]
    folds = split_by_task(es, 4, seed=1)
    tested = [e.task.id for _, te in folds for e in te]
    assert sorted(tested) == sorted(e.task.id for e in es)
    assert all(not {e.task.id for e in tr} & {e.task.id for e in te} for tr, te in folds)
    with pytest.raises(UserError, match="cannot be split"): split_by_task(es[:3], 5)


def test_terminal_pages_are_constant_and_described():
    es = corridor_episodes(30)
    assert all((e.last_obs == TERMINAL) == e.terminated and e.terminated != e.truncated for e in es)
    row, = describe(es)
    assert row["episodes"] == 30 and row["mean_return"] == sum(e.ret for e in es) / 30
