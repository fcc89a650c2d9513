"The shop and its environment: parity with recorded episodes, protocol, reward, domain, simulator, expert, loader."
import gzip
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adwm.catalogue import generate_catalogue, write_catalogue
from adwm.core import UserError, key_rng, shared_data
from adwm.episodes import TERMINAL, Task, Turn
from adwm.shop import (SEP, Search, Shop, build_shop, generated_shop, lexicon_nouns, normalize_color, read_shop, reward, rich_text, sample_goals,
                       spacy_nouns, token_set_ratio, type_reward)
from adwm.webshop import (WebShopDomain, WebShopSimulator, cell_tasks, clicked_options, expert, instruction_words, purchase_features, read_page,
                          read_purchase, read_request, training_worlds, world)
from tests_helpers import finish, random_walk as walk
from tests_mutations import quick, spoiled

BUTTONS = ("back to search", "< prev", "next >")


@pytest.fixture(scope="module")
def data():
    path = shared_data("webshop")
    if path is None: pytest.skip("the recorded WebShop data is not on this machine")
    return path


@pytest.fixture(scope="module")
def recorded(data):
    return [json.loads(line) for line in gzip.open(data / "golden_traj_textmode.jsonl.gz")]


@pytest.fixture(scope="module")
def original(data):
    nouns = json.loads((data / "golden_nouns.json").read_text())
    return read_shop(data, nouns=nouns.__getitem__)


@pytest.fixture(scope="module")
def shop(): return generated_shop(3, 300)


@pytest.fixture(scope="module")
def sim(shop): return WebShopSimulator(shop, sample_goals(shop, 60, "eval", 1))


def result_lists(episodes):
    "query -> {page: (total, identifiers)} as recorded."
    lists, query = {}, None
    for e in episodes:
        for s in e["steps"]:
            if s.get("action", "").startswith("search["): query = s["action"][7:-1].lower()
            if m := re.search(r"Page (\d+) \(Total results: (\d+)\)", s["obs"]):
                lists.setdefault(query, {})[int(m[1])] = (int(m[2]), [c.upper() for c in s["avail"]["clickables"] if c not in BUTTONS])
    return lists


def injected(lists):
    "A search that returns the recorded lists, blank where no page was recorded."
    def search(query):
        pages = lists[query]
        hits = [""] * next(iter(pages.values()))[0]
        for page, (_, asins) in pages.items(): hits[10 * page - 10:10 * page - 10 + len(asins)] = asins
        return tuple(hits)
    return search


# ---- parity with the original

def test_goals_and_prices_agree_with_the_original(original, data):
    golden = json.loads(gzip.decompress((data / "golden_goals_seed0.json.gz").read_bytes()))
    assert len(original.goals) == len(golden) == 6910
    for a, b in zip(original.goals, golden):
        assert (a.asin, a.text, a.price_upper, a.title, a.query, a.category, a.product_category) == tuple(
            b[k] for k in ("asin", "instruction_text", "price_upper", "name", "query", "category", "product_category"))
        assert list(a.attributes) == b["attributes"] and dict(a.options) == b["goal_options"] and a.weight == b["weight"]
    assert original.prices == json.loads((data / "golden_product_prices_seed0.json").read_text())


def test_884_recorded_turns(original, recorded):
    shop = read_shop(shared_data("webshop"), nouns=original.nouns)
    shop.search = injected(result_lists(recorded))
    agree = 0
    for e in recorded:
        v = shop.open(shop.goals[e["goal_idx"]])
        for s in e["steps"]:
            r, done = 0., False
            if "action" in s: v, r, done = shop.step(v, s["action"])
            page = done or shop.observation(v) == s["obs"]
            listed = list(shop.clickables(v)) == s["avail"]["clickables"] and (v.kind == "index") == s["avail"]["has_search_bar"]
            agree += page and listed and r == s.get("reward", 0) and done == s.get("done", False)
    assert agree == sum(len(e["steps"]) for e in recorded) == 884


def test_reward_parts_agree(original, recorded):
    for e in recorded:
        bought = original.by_asin[e["asin"]]
        r, parts = reward(bought, original.goals[e["goal_idx"]], original.prices[e["asin"]], e["options"], original.nouns)
        assert r == e["reward"]
        assert all(parts[k] == v for k, v in e["info"].items() if k in parts)


def test_our_search_finds_what_lucene_found(original, recorded):
    first = {q: pages[1] for q, pages in result_lists(recorded).items() if 1 in pages}
    overlap = [len(set(asins) & set(original.search(q)[:10])) / max(len(asins), 1) for q, (_, asins) in first.items()]
    totals = [len(original.search(q)) == total for q, (total, _) in first.items()]
    assert len(first) > 50 and np.mean(overlap) >= .95 and all(totals)


def test_human_goals(data):
    shop = read_shop(data, human=True)
    assert len(shop.goals) >= 10 and all(g.attributes and g.price_upper > 0 for g in shop.goals)
    g = next(g for g in shop.goals if g.options)
    assert g.options[0][0] == "" and expert(shop, g, shop.open(g)).startswith("search[")
    values = dict(zip("ab", (v for _, v in g.options)))
    assert reward(shop.by_asin[g.asin], g, 0., values, lambda t: ("x",))[1]["r_option"] == 1.


def test_pages_of_the_original_come_apart(original):
    names = frozenset(n for p in original.products for n in p.options)
    assert names <= WebShopDomain().names
    for p in original.products:
        page = read_page(original.page(original.open(original.goals[0])._replace(kind="item", asin=p.asin)))
        if p.title.strip(): assert page.title == p.title.strip() and dict(page.groups) == p.options


# ---- protocol

def test_invalid_actions_change_nothing(shop):
    v = shop.open(shop.goals[0])
    for action in ("", "hello", "click[search]", "click[buy now]", "click[]", "buy[now]", "search[]", "click[red", "[x]"):
        assert shop.step(v, action) == (v, 0., False)
    v = shop.step(v, f"search[{shop.goals[0].query}]")[0]
    for action in ("click[buy now]", "click[< prev]", "click[b000000000]", "click[description]"): assert shop.step(v, action) == (v, 0., False)


def test_argument_case_and_search_everywhere(shop):
    g = shop.goals[0]
    v = shop.step(shop.open(g), f"search[{g.query.upper()}]")[0]
    assert v.hits == shop.search(g.query)
    item = shop.step(v, f"click[{v.hits[0]}]")[0]
    assert item.kind == "item" and shop.step(item, "click[BACK TO SEARCH]")[0] == shop.open(g)
    assert shop.step(item, "search[soap]")[0].kind == "results"


def test_paging_past_the_end(shop):
    g = shop.goals[0]
    v = shop.step(shop.open(g), f"search[{g.query}]")[0]
    for _ in range(7): v = shop.step(v, "click[next >]")[0]
    assert v.number == 8 and shop.clickables(v) == BUTTONS and read_page(shop.page(v)).lines == ()
    for _ in range(9): v = shop.step(v, "click[< prev]")[0]
    assert v.number == 1 and "< prev" not in shop.clickables(v)


def test_options_kept_and_cleared(shop):
    g = next(g for g in shop.goals if len(g.options) >= 2)
    v = shop.step(shop.open(g)._replace(kind="results", hits=(g.asin,)), f"click[{g.asin}]")[0]
    for _, value in g.options: v = shop.step(v, f"click[{value}]")[0]
    assert dict(v.options) == dict(g.options)
    for tab in ("description", "features", "reviews"):
        sub = shop.step(v, f"click[{tab}]")[0]
        assert shop.clickables(sub) == BUTTONS[:2] and shop.step(sub, "click[< prev]")[0] == v
    other = next(x for x in shop.by_asin[g.asin].options[g.options[0][0]] if x != g.options[0][1])
    assert dict(shop.step(v, f"click[{other}]")[0].options)[g.options[0][0]] == other
    assert shop.step(v, "click[< prev]")[0].options == () and shop.step(v, "search[x]")[0].options == ()
    end, r, done = shop.step(v, "click[buy now]")
    assert done and r == 1. and shop.clickables(end) == () and shop.page(end) == TERMINAL


def test_rich_text_marks_what_was_clicked(shop):
    g = next(g for g in shop.goals if g.options)
    v = shop.step(shop.open(g)._replace(kind="results", hits=(g.asin,)), f"click[{g.asin}]")[0]
    value = g.options[0][1]
    assert f"[button] {value} [button_]" in rich_text(shop, v)
    w = shop.step(v, f"click[{value}]")[0]
    assert rich_text(shop, w).startswith(f"You have clicked {value}.") and f"[clicked button] {value} [clicked button_]" in rich_text(shop, w)
    back = rich_text(shop, shop.step(v, "click[< prev]")[0])
    assert f"[clicked button] {g.asin} [clicked button_]" in back and "[button] Next > [button_]" in back


def test_attributes_tab_is_optional(shop):
    more = Shop(shop.products, shop.prices, shop.goals, "x", search=shop.search, show_attributes=True)
    g = shop.goals[0]
    v = more.open(g)._replace(kind="item", asin=g.asin)
    assert "attributes" in more.clickables(v)
    assert all(a in more.page(more.step(v, "click[attributes]")[0]) for a in shop.by_asin[g.asin].attributes)


# ---- reward

@pytest.mark.parametrize("a,b,percent", [("large", "x-large", 100), ("red", "red", 100), ("", "red", 0), ("a b", "b a", 100), ("waterproof", "windproof", 63), ("6pack", "12pack", 73)])
def test_token_set_ratio(a, b, percent): assert token_set_ratio(a, b) == percent == token_set_ratio(b, a)


def test_colours(): assert normalize_color("b16-black") == "black" and normalize_color("checkered") == "red" and normalize_color("xyz") == "xyz"


def test_every_type_level_occurs(shop):
    rng = key_rng(0, "levels")
    pairs = rng.integers(len(shop.products), size=3000), rng.integers(len(shop.goals), size=3000)
    found = Counter(type_reward(shop.products[i], shop.goals[j], lexicon_nouns)["r_type"] for i, j in zip(*pairs))
    assert set(found) == {0., .1, .5, 1.}


def test_option_and_price_traps(shop):
    g = next(g for g in shop.goals if dict(g.options).get("size") == "x-large")
    p, right = shop.by_asin[g.asin], dict(g.options)
    assert reward(p, g, 1., right)[0] == 1.
    assert reward(p, g, 1., {**right, "size": "large"})[0] == 1., "large is a part of x-large"
    assert reward(p, g, 1., {**right, "size": "small"})[0] < 1. and reward(p, g, g.price_upper + 1, right)[0] < 1.
    h = next(g for g in shop.goals if dict(g.options).get("size") == "large")
    assert reward(shop.by_asin[h.asin], h, 1., {**dict(h.options), "size": "x-large"})[0] < 1.


def test_a_missing_tagger_is_one_sentence():
    with pytest.raises(UserError, match="spaCy"): spacy_nouns("no-such-model")


# ---- domain

def test_words_and_templates_go_both_ways(sim):
    seen = Counter()
    for task in sim.tasks()[:40]:
        for state, action, u in walk(sim, task, 5):
            d, obs = sim.domain, state.obs
            assert abs(u.probs.sum() - 1) < 1e-12 and math.isfinite(u.log_prob(action)) and u.log_prob("click[never]") == -math.inf
            assert d.parse(d.verbalize(action, obs), obs, state.choices) == action
            kind, argument = d.template(action, obs)
            seen[kind] += 1
            assert d.unresolve(kind, argument, obs, state.choices) == action or kind in ("item", "option")
            if kind == "item": assert d.template(d.unresolve(kind, argument, obs), obs) == (kind, argument)
            assert d.free_search(obs) == (d.page_type(obs) == "index")
            if not action.startswith("search"): assert d.verbalize(action, obs) in d.menu(obs, state.choices)
            assert d.render(obs) == d.render(obs).lower() and "instruction" not in obs.lower()
    assert {"search", "item", "option", "buy", "back", "prev", "next", "description"} <= set(seen) and "other" not in seen


def test_unresolve_on_other_pages(shop):
    d, g = WebShopDomain(), shop.goals[0]
    results = shop.page(shop.step(shop.open(g), f"search[{g.query}]")[0])
    item = shop.page(shop.open(g)._replace(kind="item", asin=g.asin))
    assert d.unresolve("buy", "", results) is None and d.unresolve("item", "x", item) is None and d.unresolve("option", "color: red", results) is None
    assert d.unresolve("buy", "", item) == "click[buy now]" and d.unresolve("search", "red", item) == "search[red]"
    group, values = read_page(item).groups[0]
    assert d.unresolve("option", f"{group}: nothing", item) in [f"click[{v}]" for v in values]
    assert d.page_type(TERMINAL) == "end" and d.unresolve("buy", "", TERMINAL) is None


def test_list_pages_come_apart_and_together(shop):
    d, g = WebShopDomain(), shop.goals[0]
    v, turns = shop.open(g), ()
    for action in (f"search[{g.query}]", "click[next >]", "click[< prev]"):
        named = d.listed(action, shop.page(v), turns)
        turns += (Turn(shop.page(v), action, 0.),)
        v = shop.step(v, action)[0]
        page = shop.page(v)
        assert named == (g.query, v.number) and d.compose([text for text, _ in d.lines(page)], v.number, page) == (page, shop.choices(v))
        for text, argument in d.lines(page): assert d.template(f"click[{text.split(SEP)[0].lower()}]", page) == ("item", argument)
    item, other = (shop.page(shop.open(g)._replace(kind="item", asin=p.asin)) for p in shop.products[:2])
    assert d.listed("click[buy now]", item) is None and d.lines(item) == ()
    wanted = f"{read_page(other).title} {read_page(other).price}"
    adapted = read_page(d.adapt(item, wanted))
    assert f"{adapted.title} {adapted.price}" == wanted and adapted.groups == read_page(item).groups and d.adapt("x", wanted) == "x"


def test_search_is_the_formula_over_lucenes_words():
    texts = ["red soap red", "The red towels", "soap", "a towel's s s"]
    find, documents = Search(texts, list("abcd"), 3), [["red", "soap", "red"], ["red", "towel"], ["soap"], ["towel", "", ""]]
    def score(query, d):
        length, total = len(documents[d]), 0.
        for w in query.split():
            n, f = sum(w in x for x in documents), documents[d].count(w)
            total += math.log(1 + (4 - n + .5) / (n + .5)) * f / (f + .9 * (1 - .4 + .4 * length / (9 / 4)))
        return total
    for query in ("red", "soap", "towel", "soap red", "towel soap", "soap soap towel"):
        scores = {"abcd"[d]: score(query, d) for d in range(4)}
        assert list(find(query)) == sorted((x for x in scores if scores[x]), key=lambda x: -scores[x])[:3], query
    assert find("the s") == () and find("Towels'") == find("towel")
    twins = Search(["red soap"] * 5, list("edcba"), 3)
    assert twins("soap") == ("e", "d", "c"), "equal scores stay in the order of the documents"
    with pytest.raises(UserError, match="no words to search"): Search(["the", ""], list("ab"))


def test_reference_merges_equal_queries():
    task = Task("t", "red red red", "WebShop [SEP] Search", ("search[]",))
    u = WebShopDomain().reference(task, task.obs, task.choices)
    assert len(u.actions) == 3 and abs(math.exp(u.log_prob("search[red]")) - 3 / 6) < 1e-12 and abs(math.exp(u.log_prob("search[red red]")) - 2 / 6) < 1e-12


def test_hidden_options_follow_the_visit(sim):
    for task in sim.tasks()[:40]:
        for state, action, _ in walk(sim, task, 9, 30): assert clicked_options(state.turns, sim.domain) == dict(state.extra.options)


def test_features_use_text_alone(sim):
    goal = sim.goals[sim.tasks()[0].id]
    state = sim.reset(sim.tasks()[:1], [()])[0]
    while (action := expert(sim.shop, goal, state)) != "click[buy now]": state = sim.step([state], [action], [()])[0].state
    full = sim.domain.features(state.task.text, state.turns, action, state.obs)
    none = sim.domain.features(state.task.text, state.turns[:2], action, state.obs)
    assert np.isfinite(full).all() and full.shape == none.shape and (full != none).any()
    assert sim.domain.features("unreadable", (), "x", TERMINAL).shape == full.shape
    named = purchase_features(read_purchase(sim.domain, state.task.text, state.turns, state.obs), len(state.turns), action)
    assert len(named) == 18 and full.tolist() == [*named.values()] and named["share of options met"] == named["bought"] == 1.
    phrases, options, bound = read_request(goal.text)
    assert dict(options) == dict(goal.options) and bound == goal.price_upper


def test_instruction_words(): assert instruction_words("Find me red, soft soap with size: 4oz, and price lower than 30.00 dollars")[-3:] == ("price", "under", "$30")


# ---- simulator and expert

def test_splits_share_no_product(shop):
    a, b = sample_goals(shop, 500, "agents"), sample_goals(shop, 500, "eval")
    assert not {g.asin for g in a} & {g.asin for g in b} and len({g.id for g in a}) == 500
    assert sample_goals(shop, 30, "eval") == b[:30], "a longer list begins with the shorter"
    with pytest.raises(UserError, match="split"): sample_goals(shop, 3, "train")


def test_batching_does_not_matter(sim):
    tasks = sim.tasks()[:8]
    alone = [sim.reset([t], [()])[0] for t in tasks]
    for _ in range(6):
        actions = [expert(sim.shop, sim.goals[s.task.id], s) for s in alone]
        together = sim.step(alone, actions, [()] * 8)
        for s, a, o in zip(alone, actions, together): assert sim.step([s], [a], [()])[0] == o
        alone = [o.state for o in together]


def test_records_keep_the_instruction_apart(sim):
    for task in sim.tasks()[:20]:
        for state, _, _ in walk(sim, task, 2): assert task.text not in state.obs and "score" not in state.obs.lower()


def test_expert_finishes_from_anywhere(sim):
    rewards = []
    for task in sim.tasks():
        *_, (state, _, _) = walk(sim, task, 4, 7)
        out = finish(sim, state, lambda s: expert(sim.shop, sim.goals[s.task.id], s), 14)
        assert out.terminated
        rewards.append(out.reward)
    assert np.mean(rewards) >= .98


@pytest.mark.parametrize("seed", [0, 1])
def test_difficulty(seed):
    sim, tasks, teacher = world("eval", 120, shop_seed=seed)
    def mean(choose): return np.mean([finish(sim, sim.reset([t], [()])[0], choose, 12).reward for t in tasks])   # only the last action pays
    def first(s): return {"index": f"search[{sim.goals[s.task.id].query}]", "results": (*s.choices, "", "")[2]}.get(sim.domain.page_type(s.obs), "click[buy now]")
    uniform = mean(lambda s: sim.domain.reference(s.task, s.obs, s.choices).sample(key_rng(1, s.task.id, len(s.turns))))
    assert .02 <= uniform <= .13 and .3 <= mean(first) <= .55 and mean(teacher) >= .98


def test_foreign_task_is_one_sentence(sim):
    with pytest.raises(UserError, match="not a goal"): sim.reset([Task("x", "", "", ())], [()])


# ---- files

def test_written_catalogue_is_the_same_shop(tmp_path):
    c = generate_catalogue(6, 50)
    a, b = read_shop(write_catalogue(c, tmp_path), seed=6), generated_shop(6, 50)
    assert a.goals == b.goals and a.prices == b.prices and "WebShop files" in a.origin and "generated" in b.origin
    assert len(world("eval", 4, data=str(tmp_path))[1]) == 4


def spoil(name, content):
    def change(folder): (folder / name).write_text(content)
    return change


def put(name, *path_and_value):
    "Set one value inside a file; `...` removes it."
    *path, key, value = path_and_value
    def change(folder):
        whole = inner = json.loads((folder / name).read_text())
        if key == "entry": path.append(next(iter(whole)))
        for p in path if key != "entry" else path[:-1]: inner = inner[p]
        where = path[-1] if key == "entry" else key
        if value is ...: del inner[where]
        else: inner[where] = value
        (folder / name).write_text(json.dumps(whole))
    return change


def product(field, value): return put("items_shuffle.json", 1, field, value)
def entry(value): return put("items_ins_v2.json", "entry", value)


FIELDS = "asin name full_description small_description customization_options category product_category query".split()


@pytest.mark.parametrize("change,says", [
    (lambda f: (f / "items_shuffle.json").unlink(), "lacks the products"),
    (lambda f: (f / "items_ins_v2.json").unlink(), "lacks the attributes"),
    (spoil("items_shuffle.json", "[{"), "not readable as JSON"),
    (spoil("items_shuffle.json", "{}"), "must be a list"),
    (spoil("items_shuffle.json", "[]"), "no products"),
    (spoil("items_shuffle.json", "[3]"), "product 0 of .* has 3"),
    *((product(f, ...), f"product 1 of .*items_shuffle.json lacks the field '{f}'") for f in FIELDS),
    *((product(f, v), f"product 1 of .* as '{f}") for f in FIELDS for v in (3, True, [3]) if (f, v) != ("small_description", [])),
    *((product(f, None), f"product 1 of .* has None as '{f}") for f in FIELDS if f != "customization_options"),
    *((product("pricing", v), "product 1 of .* as 'pricing'") for v in (19.99, ["$3"], "free", "$", "$-3.00", "$1.2.3", "$" + "9" * 400)),
    (product("pricing", math.nan), "NaN is not a number"),
    (product("asin", "b01"), "as 'asin'"),
    (product("customization_options", []), "as 'customization_options'"),
    (product("customization_options", {"Color": []}), "as 'customization_options.Color'"),
    (product("customization_options", {"Color": "red"}), "as 'customization_options.Color'"),
    (product("customization_options", {"Color": [{}]}), r"lacks the field 'customization_options.Color\[0\].value'"),
    (product("customization_options", {"Color": [{"value": 3}]}), r"has 3 as 'customization_options.Color\[0\].value'"),
    (product("customization_options", {"Color": [{"value": ""}]}), "at least 1 character"),
    (spoil("items_ins_v2.json", "[]"), "items_ins_v2.json has .*valid dictionary"),
    (spoil("items_ins_v2.json", "{}"), "no instruction in .*items_ins_v2.json asks for a product"),
    (spoil("items_ins_v2.json", '{"B0": {}, "B0": {}}'), "'B0' stands twice"),
    (entry("red soap"), "items_ins_v2.json has 'red soap' as"),
    *((entry({"instruction": "Find me red soap", "instruction_attributes": v}), "instruction") for v in (None, [], "red", [3], [""])),
    (entry({"instruction": "Find me red soap"}), "needs instruction_attributes"),
    (entry({"instruction": 3, "instruction_attributes": ["red"]}), "has 3 as '.*instruction'"),
    (entry({"instruction": "", "instruction_attributes": ["red"]}), "at least 1 character"),
    (entry({"attributes": None}), "has None as '.*attributes'"), (entry({"attributes": ["red", 1]}), r"has 1 as '.*attributes\[1\]'")])
def test_bad_files(tmp_path, change, says):
    write_catalogue(generate_catalogue(0, 5), tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=says) as error: read_shop(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("written,says", [([], "valid dictionary"), ({"B0": {}}, "valid list"), ({"B0": [{}]}, r"lacks the field 'B0\[0\].instruction'"), ({}, "no instruction in .*items_human_ins.json"),
                                          ({"B0": [{"instruction": "x", "instruction_attributes": ["x"], "instruction_options": None}]}, "has None as")])
def test_bad_human_instructions(tmp_path, written, says):
    write_catalogue(generate_catalogue(0, 5), tmp_path)
    (tmp_path / "items_human_ins.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=says): read_shop(tmp_path, human=True)


def test_what_the_original_leaves_out_or_writes_oddly_still_loads(tmp_path):
    "Repeated and overlong identifiers, options that are no object, one text for bullets, products without a price."
    c = generate_catalogue(0, 8)
    raw = [dict(p) for p in c.products]
    raw[0]["customization_options"], raw[1]["customization_options"], raw[2]["small_description"], raw[3]["pricing"], raw[4]["asin"] = "", {"Color": None}, "one text", None, "nan"
    del raw[5]["pricing"]
    (tmp_path / "items_shuffle.json").write_text(json.dumps(raw + raw[:2])); (tmp_path / "items_ins_v2.json").write_text(json.dumps(c.instructions))
    shop = read_shop(tmp_path)
    assert [p.asin for p in shop.products] == [r["asin"] for i, r in enumerate(raw) if i != 4] and shop.products[0].options == {} and shop.products[2].bullets == ("one text",)
    assert [shop.prices[raw[i]["asin"]] for i in (3, 5)] == [100, 100]


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return write_catalogue(generate_catalogue(0, 3), tmp_path_factory.mktemp("shop"))


@quick
@given(files=st.tuples(st.sampled_from((0, 1)), st.data()))
def test_a_spoiled_catalogue_loads_or_is_one_sentence(folder, files):
    which, data = files
    c = generate_catalogue(0, 3)
    both = [list(c.products), c.instructions]
    both[which] = data.draw(spoiled(both[which]))
    for name, value in zip(("items_shuffle.json", "items_ins_v2.json"), both): (folder / name).write_text(json.dumps(value))
    try: shop = read_shop(folder)
    except UserError as error: assert "\n" not in str(error)
    else:
        for goal in shop.goals[:3]: finish(sim := WebShopSimulator(shop, [goal]), sim.reset(sim.tasks(), [()])[0], lambda s: expert(shop, goal, s), 8)


@pytest.mark.parametrize("world,says", [({"slipp": .2}, "no parameter 'slipp' .did you mean 'slip'"), ({"data": "x"}, "no parameter 'data'; the valid ones are"), ({"slip": 1.5}, "slip must be below 1, not 1.5"), ({"slip": -.1}, "slip must be at least 0, not -0.1"), ({"slip": math.nan}, "slip must be a finite number"),
                                        ({"slip": "0.2"}, "slip must be a number, not '0.2'"), ({"slip": True}, "slip must be a number, not True"), ({"shops": 0}, "shops must be at least 1, not 0"), ({"goals": -1}, "goals must be at least 1, not -1"), ({"goals": 2.5}, "goals must be a whole number, not 2.5")])
def test_the_world_of_a_cell_takes_only_what_it_knows(world, says):
    for make in (lambda **w: cell_tasks(0, 3, 2, **w), lambda **w: training_worlds(0, **w)):
        with pytest.raises(UserError, match=says): make(**world)


def test_one_world_for_cell_and_training():
    there, (sim, tasks) = training_worlds(0, slip=.2, shops=1, goals=3), cell_tasks(0, 3, 2, slip=.2, shops=1, goals=3)
    assert sim.slip == .2 and len(tasks["fresh"]) == 2 and isinstance(there[0].simulator, WebShopSimulator) and len(there[0].tasks) == 3


def test_missing_folder_and_goals(tmp_path):
    with pytest.raises(UserError, match="does not exist"): read_shop(tmp_path / "none")
    c = generate_catalogue(0, 5)
    with pytest.raises(UserError, match="no goals"): sample_goals(build_shop(list(c.products), {}, 0, "x"), 3)
    with pytest.raises(UserError, match="lacks the human"): read_shop(write_catalogue(c, tmp_path), human=True)
    with pytest.raises(UserError, match="at least 1"): read_shop(tmp_path, limit=0)
    with pytest.raises(UserError, match="at least 1"): sample_goals(generated_shop(0, 5), 0)
