"The one record: round trip, checks, splits."
import gzip, json
from dataclasses import replace

import pytest

from adwm.core import UserError
from adwm.episodes import TERMINAL, describe, read_episodes, split_by_task, to_line, write_episodes
from tests_helpers import corridor_episodes


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_round_trip_and_same_bytes(tmp_path, name):
    es = corridor_episodes(20)
    p = write_episodes(tmp_path / name, es)
    assert read_episodes(p, "corridor") == es
    assert write_episodes(tmp_path / ("b" + name), es).read_bytes() == p.read_bytes()


def spoil(line, edit):
    d = json.loads(line); edit(d); return json.dumps(d)


@pytest.mark.parametrize("edit, says", [
    (lambda d: d.pop("policy"), "field 'policy' is missing"),
    (lambda d: d.update(turns=[]), "'turns' is empty"),
    (lambda d: d.update(seed="x"), "field 'seed'"),
    (lambda d: d["turns"][0].update(reward=float("nan")), "'reward' is nan"),
    (lambda d: d["turns"][0].pop("choices"), "'choices' is missing"),
    (lambda d: d["task"].pop("text"), "field 'text' is missing"),
    (lambda d: d.update(last_obs="Your score 0.7", terminated=True), "may print the score")])
def test_reader_names_file_line_and_field(tmp_path, edit, says):
    es = corridor_episodes(3)
    path = tmp_path / "bad.jsonl"
    path.write_text(to_line(es[0]) + "\n" + spoil(to_line(es[1]), edit) + "\n")
    with pytest.raises(UserError) as err: read_episodes(path)
    assert "line 2" in str(err.value) and says in str(err.value) and "bad.jsonl" in str(err.value)


def test_reader_refuses_other_files(tmp_path):
    with pytest.raises(UserError, match="no file of episodes"): read_episodes(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match="no episode"): read_episodes(tmp_path / "empty.jsonl")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b"{}" * 500)[:20])
    with pytest.raises(UserError): read_episodes(tmp_path / "torn.jsonl.gz")
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
