"HotpotQA: answers, ReAct protocol, generated worlds, loader, domain, simulator, expert."
import json
import math

import numpy as np
import pytest
from hypothesis import given

from adwm.core import UserError, key_rng, shared_data
from adwm.episodes import TERMINAL, Task
from adwm.hotpotqa import (START, Encyclopedia, HotpotDomain, HotpotSimulator, Question, Reading, act, cell_tasks, domain, exact, expert, f1, generate_world, normalize_title, plain,
                           read_world, training_worlds, world, write_world)
from tests_helpers import finish, random_walk as walk
from tests_mutations import quick, spoiled


@pytest.fixture(scope="module")
def made(): return generate_world(2, 300, 200)


@pytest.fixture(scope="module")
def sim(made): return HotpotSimulator(made, made.questions[:80])


@pytest.mark.parametrize("given,right,score", [("The Sel", "sel!", 1.), ("yes", "no", 0.), ("yes", "yes", 1.), ("no way", "no", 0.), ("", "x", 0.), ("x b c", "c d", .4), ("x x", "x", 2 / 3), ("noanswer", "Sel", 0.)])
def test_f1(given, right, score): assert f1(given, right) == pytest.approx(score) and exact(given, right) == (score == 1.)


def test_f1_against_a_direct_formula():
    rng = key_rng(0, "f1")
    for _ in range(200):
        a, b = ([str(w) for w in rng.choice(list("bcdefg"), int(rng.integers(1, 6)))] for _ in range(2))
        same, rest = 0, list(b)
        for w in a:
            if w in rest: rest.remove(w); same += 1
        p, r = same / len(a), same / len(b)
        assert f1(" ".join(a), " ".join(b)) == pytest.approx(2 * p * r / (p + r) if same else 0.)


def test_recorded_answers_score_as_recorded():
    path = shared_data("logs", "reflexion_hotpotqa_100.jsonl.gz")
    if path is None: pytest.skip("the recorded HotpotQA episodes are not on this machine")
    import gzip
    rows = [json.loads(line) for line in gzip.open(path)]
    judged = [(r["answer"], r["key"], s["observation"]) for r in rows for s in r["steps"][-1:] if s["observation"].startswith("Answer is ") and r["answer"]]
    assert len(judged) > 50
    assert np.mean([exact(a, k) == ("INCORRECT" not in o) for a, k, o in judged]) > .97


def test_protocol_strings():
    w = Encyclopedia({"Sel": tuple(f"Sel {i}." for i in range(8)), "Sel (band)": ("A band.",), "Dunra": ("No.",)}, [], "x")
    r = Reading(Question("q", "?", "no", "bridge", ("Sel",)))
    def do(action):
        nonlocal r
        r, printed, reward = act(w, r, action)
        return printed
    assert do("Lookup[sel]") == "No more results."
    assert do("Search[sel]") == "Sel 0. Sel 1. Sel 2. Sel 3. Sel 4."
    assert do("lookup[SEL 6]") == "(Result 1 / 1) Sel 6." and do("Lookup[sel 6]") == "No more results." and do("Lookup[sel 6]") == "No more results."
    assert do("Lookup[sel]") == "(Result 1 / 8) Sel 0." and do("Think[hm]") == "Nice thought." and do("Lookup[Sel]") == "(Result 2 / 8) Sel 1."
    miss = do("Search[Sell the band]")
    assert miss == "Could not find Sell the band. Similar: ['Sel (band)']." and r.title == "Sel", "a miss keeps the page"
    assert do("Lookup[sel]") == "(Result 3 / 8) Sel 2.", "and the counter"
    do("Search[sel]")
    assert do("Lookup[sel]") == "(Result 1 / 8) Sel 0.", "a successful search resets it"
    for bad in ("", "Search", "Jump[x]", "Search[x", "say hello"): assert do(bad) == f"Invalid action: {bad}"
    assert do("Finish[no]") == "Episode finished, reward = 1.0" and r.done and do("Search[sel]").startswith("Invalid action")
    assert do("Lookup[]") != ""


@pytest.mark.parametrize("seed", range(100))
def test_generated_worlds_are_always_solvable(seed):
    w = generate_world(seed, 12, 40)
    sim = HotpotSimulator(w, w.questions)
    for task in sim.tasks():
        out = finish(sim, sim.reset([task], [()])[0], lambda s: expert(w, sim.questions[s.task.id], s), 8)
        assert out.terminated and out.reward == 1. and out.info["em"] and out.state.obs == TERMINAL


def test_world_has_every_kind_and_ambiguous_titles(made):
    assert made.questions == generate_world(2, 300, 200).questions and made.pages == generate_world(2, 300, 200).pages
    assert {q.answer for q in made.questions} >= {"yes", "no"} and {q.kind for q in made.questions} == {"bridge", "comparison"}
    bare = [t.rsplit(" (", 1)[0] for t in made.pages if " (" in t]
    shared = {b for b in bare if bare.count(b) > 1}
    assert len(shared) > 20 and all(made.find(b) is None and len(made.similar(b)) > 1 for b in list(shared)[:20])
    assert any(i >= 5 for q in made.questions for _, i in q.facts), "some facts need a lookup"
    assert len(generate_world(0).pages) > 2000


def test_answers_stand_in_the_supporting_sentences(made):
    for q in made.questions:
        told = " ".join(made.pages[t][i] for t, i in q.facts)
        assert q.answer in told or q.kind == "comparison"


def test_reference_is_exact_and_from_text(sim):
    kinds = set()
    for task in sim.tasks()[:40]:
        for state, action, u in walk(sim, task, 1):
            assert abs(u.probs.sum() - 1) < 1e-12 and math.isfinite(u.log_prob(action)) and u.log_prob("Think[x]") == -math.inf
            assert set(u.actions) == set(state.choices)
            kinds.add(sim.domain.page_type(state.obs))
            again = HotpotDomain().reference(Task("other", task.text, "", ()), state.obs, ())
            assert again.actions == u.actions and (again.probs == u.probs).all()
    assert {"start", "page", "similar", "empty"} <= kinds


def test_words_go_both_ways(sim):
    d, free = sim.domain, HotpotDomain(free=True)
    for task in sim.tasks()[:30]:
        for state, action, _ in walk(sim, task, 3):
            kind, argument = d.template(action, state.obs)
            assert d.unresolve(kind, argument, state.obs) == action and d.vocabulary_name(action) == kind.split()[0] in ("search", "finish", "lookup")
            assert d.parse(d.verbalize(action, state.obs), state.obs, state.choices) == action and not d.free_search(state.obs)
            assert len(set(d.menu(state.obs, state.choices))) == len(state.choices), "every action has its own words"
            heard = free.parse(free.verbalize(action, state.obs), state.obs)
            a, b = act(sim.world, state.extra, action), act(sim.world, state.extra, heard)
            assert a[0].title == b[0].title and a[2] == b[2] or "-" in argument
            assert d.render(state.obs) == d.render(state.obs).lower() and free.free_search(state.obs) and free.menu(state.obs, state.choices) == ()
    assert free.parse("do hello", "") == "do hello" and d.parse("hello", "") == "hello" and d.page_type("Invalid action: do hello") == "invalid" and d.template("hm", "") == ("other", "hm")


def test_what_can_be_said_depends_on_the_question(sim):
    d, (a, b) = sim.domain, sim.tasks()[:2]
    state = sim.step(sim.reset([a], [()]), ["Search[nothing of the kind]"], [()])[0].state
    assert d.choices(a, state.obs, ()) == state.choices and d.choices(a, TERMINAL, ("x",)) == ()
    assert any(plain(c) in plain(b.text) for c in [x[7:-1] for x in d.choices(b, state.obs, state.choices) if x.startswith("Search[")])
    assert d.choices(b, state.obs, ()) != state.choices


def test_the_expert_does_only_what_a_pupil_can_say():
    simulator, tasks = cell_tasks(3, 60, 20, questions=300, people=150)

    def choose(state):
        action = expert(simulator.world, simulator.questions[state.task.id], state)
        assert action in state.choices
        return action
    assert all(finish(simulator, simulator.reset([task], [()])[0], choose, 8).reward == 1. for task in tasks["pool"])


def test_cells_and_training_share_nothing():
    simulator, tasks = cell_tasks(0, 30, 20, questions=200, people=120, worlds=2)
    again = cell_tasks(0, 30, 20, questions=200, people=120)[1]
    assert tasks == again and (len(tasks["pool"]), len(tasks["fresh"])) == (30, 20) and not {t.id for t in tasks["pool"]} & {t.id for t in tasks["fresh"]}
    there = training_worlds(0, worlds=2, training=50, people=120, questions=200)
    assert [len(w.tasks) for w in there] == [50, 50] and not {t.text for w in there for t in w.tasks} & {t.text for ts in tasks.values() for t in ts}
    assert there[0].simulator.world.pages != there[1].simulator.world.pages
    for w in there:
        state = w.simulator.reset(w.tasks[:1], [()])[0]
        assert w.teacher(state) in state.choices
    with pytest.raises(UserError, match="for evaluation"): cell_tasks(0, 90, 20, questions=200)


def test_official_questions_can_be_a_cell(tmp_path):
    path = write_world(generate_world(5, 40, 60), tmp_path / "w.json.gz")
    simulator, tasks = cell_tasks(0, 10, 10, data=str(path))
    (there,) = training_worlds(0, data=str(path))
    assert len(there.tasks) == 20 and not {t.id for t in there.tasks} & {t.id for ts in tasks.values() for t in ts}


def test_hidden_names_the_open_page(sim):
    for task in sim.tasks()[:40]:
        for state, _, _ in walk(sim, task, 4):
            if sim.domain.page_type(state.obs) != "similar": assert sim.domain.hidden(state.turns).split(" | ")[0] == normalize_title(state.extra.title) or not state.extra.title


def test_features_have_one_shape(sim):
    shapes = {sim.domain.features(task.text, state.turns, action, state.obs).shape for task in sim.tasks()[:20] for state, action, _ in walk(sim, task, 6)}
    assert len(shapes) == 1 and np.isfinite(sim.domain.features("?", (), "nonsense", TERMINAL)).all()


def test_expert_recovers_from_anywhere(sim):
    for task in sim.tasks()[:40]:
        *_, (state, _, _) = walk(sim, task, 8, 4)
        out = finish(sim, state, lambda s: expert(sim.world, sim.questions[s.task.id], s), 8)
        assert out.terminated and out.reward == 1.


def test_records_hide_the_end(sim):
    task = sim.tasks()[0]
    out = sim.step(sim.reset([task], [()]), [f"Finish[{sim.questions[task.id].answer}]"], [()])[0]
    assert out.terminated and out.state.obs == TERMINAL and out.state.choices == () and task.obs == START
    with pytest.raises(UserError, match="not a question"): sim.reset([Task("x", "", "", ())], [()])


def test_official_file():
    path = shared_data("hotpotqa", "questions.json.gz")
    if path is None: pytest.skip("the official HotpotQA questions are not on this machine")
    w = read_world(path)
    assert len(w.questions) == 200 and len(w.pages) > 1500 and "0 dropped" in w.origin
    sim = HotpotSimulator(w, w.questions)
    total = [finish(sim, sim.reset([task], [()])[0], lambda s: expert(w, sim.questions[s.task.id], s), 12).reward for task in sim.tasks()]
    assert np.mean(total) > .95


def test_write_and_read(tmp_path, made):
    small = generate_world(3, 20, 50)
    for name in ("w.json", "w.json.gz"):
        again = read_world(write_world(small, tmp_path / name))
        assert again.questions == small.questions and again.pages == small.pages
    rows = json.loads((tmp_path / "w.json").read_text())
    rows[3]["supporting_facts"] = [["Nowhere", 0]]
    (tmp_path / "w.json").write_text(json.dumps(rows))
    assert "1 dropped" in read_world(tmp_path / "w.json").origin
    assert len(world("eval", 5, data=str(tmp_path / "w.json.gz"))[1]) == 5


def rows_of(n=3): return json.loads(json.dumps([dict(_id=f"q{i}", question="Who was born first, Sel or Dunra?", answer="Sel", type="comparison", supporting_facts=[["Sel", 0], ["Dunra", 0]],
                                                      context=[["Sel", ["Sel was a poet."]], ["Dunra", ["Dunra was a poet."]]]) for i in range(n)]))


def field(name, value):
    rows = rows_of()
    if value is ...: del rows[1][name]
    else: rows[1][name] = value
    return json.dumps(rows)


@pytest.mark.parametrize("content,says", [
    ("[", "not readable"), ("{}", "must be a list of questions"), ("[]", "no questions"), ("[1]", "question 0 of .* has 1"), ('[{"_id": "1"}]', "lacks the field 'question'"),
    *((field(f, ...), f"question 1 of .* lacks the field '{f}'") for f in rows_of()[0]),
    *((field(f, v), f"question 1 of .* as '{f}") for f in rows_of()[0] for v in (None, 3, {}, "")),
    *((field(f, " "), "must not be blank") for f in ("question", "answer")), (field("_id", "q0"), "questions 0 and 1 of .* have one id, 'q0'"), (field("type", "polar"), "'polar' as 'type'"), (field("answer", ["Sel"]), "as 'answer'"), (field("answer", math.nan), "NaN is not a number"),
    *((field("supporting_facts", v), "'supporting_facts") for v in ([], [3], [["Sel"]], [["Sel", "0"]], [["Sel", -1]], [["Sel", 0.5]], [["Sel", True]], [[3, 0]], [["Sel", 0, 1]])),
    *((field("context", v), "'context") for v in ([3], [["Sel"]], [["Sel", "Sel was a poet."]], [["Sel", [3]]], [[None, ["x"]]], [["", ["x"]]])),
    (json.dumps([{**r, "supporting_facts": [["Nowhere", 0]]} for r in rows_of()]), "no question of .* has its supporting pages")])
def test_bad_files(tmp_path, content, says):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=says) as error: read_world(tmp_path / "x.json")
    assert "\n" not in str(error.value)


@quick
@given(rows=spoiled(rows_of()))
def test_a_spoiled_file_loads_or_is_one_sentence(path, rows):
    path.write_text(json.dumps(rows))
    try: w = read_world(path)
    except UserError as error: assert "\n" not in str(error)
    else:
        sim = HotpotSimulator(w, w.questions)
        for task in sim.tasks(): finish(sim, sim.reset([task], [()])[0], lambda s: expert(w, sim.questions[s.task.id], s), 6)


@pytest.fixture(scope="module")
def path(tmp_path_factory): return tmp_path_factory.mktemp("world") / "x.json"


@pytest.mark.parametrize("world,says", [({"question": 3}, "did you mean 'questions'"), ({"questions": 0}, "questions must be at least 1"), ({"people": 29}, "people must be at least 30"), ({"worlds": 0}, "worlds must be at least 1"), ({"training": -1}, "training must be at least 1"),
                                        ({"data": 3}, "data must be"), ({"data": "/nowhere.json"}, "does not exist"), ({"people": "900"}, "people must be a whole number")])
def test_the_world_of_a_cell_takes_only_what_it_knows(world, says):
    for make in (lambda **w: cell_tasks(0, 3, 2, **w), lambda **w: training_worlds(0, **w)):
        with pytest.raises(UserError, match=says): make(**world)


def test_more_questions_than_people_give_is_one_sentence():
    with pytest.raises(UserError, match="30 people give no more than about .* different questions, 9999 were asked for"): generate_world(0, 9999, 30)


def test_bad_requests(tmp_path):
    with pytest.raises(UserError, match="does not exist"): read_world(tmp_path / "none.json")
    (tmp_path / "x.json.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="not readable"): read_world(tmp_path / "x.json.gz")
    with pytest.raises(UserError, match="at least"): generate_world(0, 0)
    with pytest.raises(UserError, match="split"): world("train", 3)
    with pytest.raises(UserError, match="at least 1"): world("eval", 0, questions=20)
    with pytest.raises(UserError, match="at least 1"): read_world(write_world(generate_world(5, 4, 60), tmp_path / "w.json"), limit=0)
    with pytest.raises(UserError, match="tasks were asked"): world("eval", 99, questions=20)
    with pytest.raises(UserError, match="no pages"): Encyclopedia({}, [], "nothing")


def test_splits_share_no_question():
    a, b = world("agents", 60, questions=120)[1], world("eval", 60, questions=120)[1]
    assert not {t.id for t in a} & {t.id for t in b} and domain().name == "hotpotqa"


def test_what_was_read_settles_the_question():
    from adwm.hotpotqa import answer_features, derived, read_answer, stated
    simulator, tasks = cell_tasks(4, 80, 20, questions=300, people=150)
    for task in tasks["pool"]:
        state = simulator.reset([task], [()])[0]
        right = simulator.questions[task.id].answer
        for turn in range(8):
            action = expert(simulator.world, simulator.questions[task.id], state)
            told = derived(task.text, stated(state.turns, state.obs, simulator.domain))
            assert told == (right if action.startswith("Finish") else ""), "settled exactly when the expert answers"
            if action.startswith("Finish"): break
            state = simulator.step([state], [action], [()])[0].state
        x = simulator.domain.features(task.text, state.turns, action, state.obs)
        assert x[-2:].tolist() == [1.0, 1.0]
        known = stated(state.turns, state.obs, simulator.domain)
        named = answer_features(read_answer(simulator.domain, task.text, state.turns, action, state.obs), task.text, known, len(state.turns))
        assert len(named) == 22 and named["settled"] and x.tolist() == [*map(float, named.values())]


def test_unseen_titles_take_a_logged_page():
    d = HotpotDomain()
    assert d.adapt("Sel (x) is odd.", "Tor") == "Sel (x) is odd."
    assert d.adapt("Toran Vel was a poet. Toran Vel was born in Dunra.", "Lek Sorn") == "Lek Sorn was a poet. Lek Sorn was born in Dunra."
    assert d.adapt("Sel is a jazz band. It is from Dunra.", "Tor (band)") == "Tor is a jazz band. It is from Dunra."
    assert d.adapt("Could not find Sel. Similar: ['Sel (film)'].", "Tor") == "Could not find Tor. Similar: ['Tor (film)']."
    assert d.adapt("No more results.", "x") == "No more results." and d.adapt("(Result 1 / 1) Sel is long.", "born") == "(Result 1 / 1) Sel is long."
    assert [d.template(f"Search[{x}]", "")[0] for x in ("Sel", "Toran Vel", "Sel (film)", "a b c")] == ["search one", "search two", "search film", "search many"]


def test_cells_share_one_folder_and_judge_no_logger():
    from adwm.config import load_config
    for name in ("hotpotqa-dpo", "hotpotqa-prm", "hotpotqa-cross"):
        for profile in ("default", "smoke", "full"):
            c = load_config("hotpotqa", name, profile)
            assert c.assets == "hotpotqa" and not set(c.collect.targets) & set(c.collect.behaviors)
            assert {r.name: r for r in c.collect.recipes} == {r.name: r for r in load_config("hotpotqa").collect.recipes}
