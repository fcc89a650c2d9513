"The generated catalogue: schema, seeds, difficulty ingredients."
import json

import pytest

from adwm.catalogue import ADJECTIVES, AISLES, FILLERS, FORMS, GROUPS, MATERIALS, USES, generate_catalogue, write_catalogue
from adwm.core import UserError, shared_data


def test_same_schema_as_the_original():
    path = shared_data("webshop", "items_shuffle_1000.json")
    if path is None: pytest.skip("the original's product file is not on this machine")
    original = json.loads(path.read_text())[0]
    for product in generate_catalogue(0, 40).products:
        assert set(product) == set(original) - {"model"}
        for field in ("name", "full_description", "pricing", "asin", "category", "query", "product_category"):
            assert isinstance(product[field], str) and product[field]
        assert isinstance(product["small_description"], list) and product["images"]
        assert all(v["value"] for values in product["customization_options"].values() for v in values)


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_a_seed_decides_everything(seed):
    a, b = generate_catalogue(seed, 120), generate_catalogue(seed, 120)
    assert a == b
    c = generate_catalogue(seed + 100, 120)
    assert not {p["asin"] for p in a.products} & {p["asin"] for p in c.products}
    assert {p["name"] for p in a.products} != {p["name"] for p in c.products}


def test_identifiers_are_unique_and_every_product_has_an_instruction():
    c = generate_catalogue(2)
    asins = [p["asin"] for p in c.products]
    assert len(set(asins)) == len(asins) == 560 == len(c.instructions)
    assert all(len(a) == 10 for a in asins)
    for p in c.products:
        entry = c.instructions[p["asin"]]
        assert set(entry["instruction_attributes"]) <= set(entry["attributes"]) and len(entry["instruction_attributes"]) in (2, 3)
        assert p["query"] in entry["instruction"] and all(a in entry["instruction"] for a in entry["instruction_attributes"])


def test_vocabulary_is_closed_and_small():
    lists = [*AISLES, *AISLES.values(), *ADJECTIVES.values(), *MATERIALS.values(), USES, FORMS, FILLERS]
    known = set(" ".join(lists).split()) | {w for g in GROUPS.values() for name, v in g.items() for w in (name + " " + v).split()}
    c = generate_catalogue(3)
    brands = {p["name"].split()[0] for p in c.products}
    assert {w for p in c.products for w in p["name"].split()[1:]} <= known
    assert len(known | brands) < 600


def test_traps_exist():
    c = generate_catalogue(0)
    assert .05 < sum(" to " in p["pricing"] for p in c.products) / 560 < .25, "price ranges"
    sizes = [[v["value"] for v in p["customization_options"].get("Size", [])] for p in c.products]
    assert sum("Large" in s and "X-large" in s for s in sizes) > 20, "look-alike sizes"
    longer = [p for p in c.products if len(p["name"].split()) > 11]
    assert 20 < len(longer) < 120, "stuffed titles"


def test_files_and_bad_input(tmp_path):
    c = generate_catalogue(4, 7)
    folder = write_catalogue(c, tmp_path / "shop")
    assert json.loads((folder / "items_shuffle.json").read_text()) == list(c.products)
    assert json.loads((folder / "items_ins_v2.json").read_text()) == c.instructions
    with pytest.raises(UserError, match="at least 1"): generate_catalogue(0, 0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write .*items_shuffle.json"): write_catalogue(c, tmp_path / "file")
