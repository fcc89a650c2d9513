"The world model's modules: sizes, masks, actions, files."
import json

import pytest
import torch

from adwm.core import UserError
from adwm.envs import Domain
from adwm.episodes import TERMINAL, Episode, Task, Turn
from adwm.world_model import (Acts, ActionSpace, ModelConfig, encode_actions, fit_actions, hash_words, load_model, new_model, parameter_table, save_model, twin_mask)

torch.set_num_threads(1)
TINY = dict(buckets=512, page_words=10, width=16, context=32, hidden=32, heads=2, history=6)


def log(actions):
    turns = tuple(Turn("page", a, 0.) for a in actions)
    return Episode("e", Task("t", "task", "page"), "b", 0., 0, 0, turns, TERMINAL, True, False)


def tiny(**changes):
    return new_model(ModelConfig.small(5, **{**TINY, **changes}), 0).eval()


def acts(index):
    index = torch.as_tensor(index)
    return Acts(index, torch.zeros(*index.shape, 16, dtype=torch.long))


def test_table_4_to_the_digit():
    sizes = {r["module"]: r["parameters"] for r in parameter_table(new_model(ModelConfig.paper(), 0))}
    assert sizes == {"encoder": 5053248, "history": 814016, "score": 526912, "bc": 169941, "reward": 115457, "end": 49665, "inverse": 43989, "act": 856}
    assert sum(sizes.values()) + 608768 == 7382852     # with the projector, which lives with the adapter: 7.383 M


def test_hash_does_not_depend_on_the_process():
    assert hash_words("red scarf", 32768, 3).tolist() == [21590, 3585, 0]
    assert hash_words("", 100, 2).tolist() == [0, 0]
    assert hash_words("a b c", 100, 2).shape == (2,)


def test_unknown_is_not_null():
    space = fit_actions([log(["click a", "click a", "click b"])], Domain(), "vocab", limit=1)
    assert space.names == ("click a",) and space.size == 2
    index = encode_actions(space, ["click a", "click b", "never"], ["page"]*3, Domain()).index
    assert index.tolist() == [0, 1, 1]
    model = new_model(ModelConfig.small(space.size, **TINY), 0)
    assert model.act.num_embeddings == 3 and not torch.equal(model.null, model.act.weight[1])


def test_vocabulary_keeps_the_most_frequent():
    space = fit_actions([log([f"go {i}" for i in range(300)] + ["go 299"]*3)], Domain())
    assert len(space.names) == 256 and space.names[0] == "go 299"


def test_structured_actions_share_words_with_pages():
    space = fit_actions([log(["click red", "search red scarf"])], Domain(), "structured", buckets=512)
    code = encode_actions(space, ["search blue scarf", "jump"], ["page"]*2, Domain())
    assert space.names[code.index[0]] == "search" and code.index[1] == len(space.names)
    assert code.words[0, :2].tolist() == hash_words("blue scarf", 512, 2).tolist()


def test_kind_of_actions_is_checked():
    with pytest.raises(UserError, match="vocab or structured"): fit_actions([log(["a"])], Domain(), "words")


def test_mask_of_real_and_null_pairs():
    allowed = ~twin_mask(3)
    assert allowed[:3, 3:].sum() == 0                                # nobody looks at null pairs of others
    assert torch.equal(allowed[3:, 3:], torch.eye(3, dtype=torch.bool))
    assert torch.equal(allowed[3:, :3], torch.ones(3, 3, dtype=torch.bool).tril(-1))


def test_null_context_is_the_context_of_a_null_action():
    model = tiny()
    z = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, c_null = model.contexts(z[:, 0], z[:, 1:], acts([[1, 2, 3]]))
        c, _ = model.contexts(z[:, 0], z[:, 1:], acts([[1, 2, model.cfg.n_actions]]))
    assert torch.allclose(c_null[:, 2], c[:, 2], atol=1e-5)


def test_long_pasts_are_cut_and_short_ones_are_not():
    model = tiny()
    z = torch.randn(2, 10, 64, generator=torch.Generator().manual_seed(0))
    index = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        c, _ = model.contexts(z[:, 0], z[:, 1:], acts(index))
        last, _ = model.contexts(z[:, 0], z[:, 5:], acts(index[:, 4:]))
        early, _ = model.contexts(z[:, 0], z[:, 1:4], acts(index[:, :3]))
    assert c.shape == (2, 9, 32)
    assert torch.allclose(c[:, -1], last[:, -1], atol=1e-5) and torch.allclose(c[:, :3], early, atol=1e-5)


def test_encoder_ignores_padding_and_neighbours():
    model = tiny()
    one, two = (torch.from_numpy(hash_words(t, 512, 10)) for t in ("red scarf", "a much longer page about red scarves"))
    with torch.no_grad(): together, alone = model.encoder(torch.stack([one, two])), model.encoder(one[None])
    assert torch.allclose(together[0], alone[0], atol=1e-5)
    assert torch.allclose(together.mean(1), torch.zeros(2), atol=1e-5) and torch.allclose(together.norm(dim=1), torch.full((2,), 8.), atol=1e-2)


def test_empty_page_is_finite():
    with torch.no_grad(): z = tiny().encoder(torch.zeros(2, 10, dtype=torch.long))
    assert torch.isfinite(z).all()


def test_structured_condition_and_its_null():
    model = tiny(structured=True, act=8)
    c, a = torch.zeros(3, 32), Acts(torch.tensor([0, 1, 1]), torch.tensor([[3, 4], [3, 4], [5, 0]]))
    with torch.no_grad(): given, none = model.condition(c, torch.ones(3, 64), a), model.condition(c, torch.ones(3, 64), None)
    assert given.shape == none.shape == (3, 32 + 64 + 8 + 16)
    assert not torch.allclose(given[1], given[2]) and (none[:, 104:] == 0).all()
    assert torch.equal(tiny().condition(c, torch.ones(3, 64), a), c)


def test_score_net_starts_at_zero_and_both_predictions_give_noise():
    for kind in ("eps", "z0"):
        model = tiny(prediction=kind)
        zk, k = torch.randn(2, 64), torch.tensor([0, 49])
        with torch.no_grad():
            assert (model.score(zk, k, torch.zeros(2, 32)) == 0).all()
            eps = model.noise_fn(torch.zeros(2, 32))(zk, k)
        assert torch.allclose(eps[1], zk[1] if kind == "z0" else torch.zeros(64), atol=1e-3)


def test_unknown_prediction_is_refused():
    with pytest.raises(UserError, match="prediction"): tiny(prediction="score")


def test_files(tmp_path):
    model, space = tiny(), ActionSpace("vocab", ("a", "b", "c", "d"))
    save_model(tmp_path, model, space, {"x": 1})
    again, space2, notes = load_model(tmp_path, model.cfg)
    assert space2 == space and notes == {"x": 1}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    whole = (tmp_path / "model.json").read_text(); record = json.loads(whole)
    for part, change, says in (("actions", dict(kind="x"), "actions: kind cannot be 'x'"), ("actions", dict(names=["a", "a"]), "stands twice"), ("actions", dict(names=["a"]), "built for 5 actions, and the file lists 2"), ("config", dict(heads=3), "multiple of heads"), ("config", dict(widht=3), "did you mean 'width'")):
        (tmp_path / "model.json").write_text(json.dumps({**record, part: {**record[part], **change}}))
        with pytest.raises(UserError, match=f"{tmp_path}/model.json: .*{says}"): load_model(tmp_path)
    (tmp_path / "model.json").write_text(whole)
    with pytest.raises(UserError, match="hidden is 32, not 256"): load_model(tmp_path, ModelConfig.small(5, **{**TINY, "hidden": 256}))
    record = json.loads((tmp_path/"model.json").read_text()); record["config"]["d_z"] = 32
    (tmp_path/"model.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="do not fit"): load_model(tmp_path)
    (tmp_path/"model.json").write_text("{")
    with pytest.raises(UserError, match="no world model"): load_model(tmp_path)
    with pytest.raises(UserError, match="no world model"): load_model(tmp_path/"missing")


def test_new_model_leaves_the_global_generator_alone():
    torch.manual_seed(3); a = torch.rand(1)
    torch.manual_seed(3); tiny(); b = torch.rand(1)
    assert torch.equal(a, b)
