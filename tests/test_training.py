"""Small agents from scratch: vocabulary, masked episodes, curriculum, recipes, checkpoints."""
import numpy as np
import pytest
import torch

from adwm.agents import LMAgent, PackedFormat, Vocabulary
from adwm.core import UserError, from_dict, key_int
from adwm.envs import World
from adwm.recipes import chains, make_agent, make_agents
from adwm.training import (Recipe, batches, build_model, correct, demonstrate, encode, imitation_loss, texts_of, train,
                           train_tokenizer)
from adwm.rollouts import make_rows, roll_chunk
from tests_helpers import small_shop

torch.set_num_threads(1)


def make_world(n=80, shop_seed=3):
    simulator, teacher = small_shop(shop_seed, 60, n, "agents")
    return World(simulator, simulator.tasks(), teacher)


def make_worlds(): return [make_world(40, 3), make_world(40, 4)]


@pytest.fixture(scope="module")
def world(): return make_world()


@pytest.fixture(scope="module")
def masked(world): return demonstrate(world.simulator, world.tasks, world.teacher, 0)


@pytest.fixture(scope="module")
def tokenizer(world, masked): return train_tokenizer(texts_of(masked, world.simulator.domain), 800)


TINY = dict(width=32, layers=2, heads=2, kv_heads=1, inner=64, episodes=60, elided_batch=1024, batch_tokens=1024)


def test_every_text_survives_the_vocabulary(world, masked, tokenizer):
    vocab = Vocabulary(tokenizer)
    for text in {*texts_of(masked, world.simulator.domain), "unseen \u00e9t\u00e9 $1,234 x~y"}:
        assert vocab.text(vocab.ids(text)) == " ".join(text.split())


def test_copied_words_have_the_same_tokens_everywhere(world, masked, tokenizer):
    vocab, domain = Vocabulary(tokenizer), world.simulator.domain
    e = masked[0].episode
    task = vocab.ids(domain.render_task(e.task.text))
    query = vocab.ids(domain.verbalize(e.turns[0].action, e.turns[0].obs).removeprefix("search"))
    assert set(query) <= set(task)


def test_the_teacher_is_good_and_noise_is_not_imitated(masked):
    clean = [m for m in masked if all(m.keep)]
    assert np.mean([m.episode.ret for m in clean]) > .95
    assert .2 < len(clean) / len(masked) < .9
    noisy = [m for m in masked if not all(m.keep)]
    assert .05 < np.mean([not k for m in noisy for k in m.keep]) < .45


def test_only_kept_actions_are_targets(world, masked, tokenizer):
    vocab = Vocabulary(tokenizer); fmt = PackedFormat(vocab)
    for m in masked[:20]:
        x = encode(m, vocab, world.simulator.domain)
        want = [vocab.text([*vocab.ids(world.simulator.domain.verbalize(t.action, t.obs))]) for t, k in zip(m.episode.turns, m.keep) if k]
        ids = x.ids[x.target]
        got = [vocab.text(part[:-1]) for part in np.split(ids, np.flatnonzero(ids == fmt.end) + 1)[:-1]]
        assert got == want and not (x.target & x.context).any()


def test_training_and_acting_read_the_same_tokens(world, masked, tokenizer):
    domain = world.simulator.domain
    agent = LMAgent(build_model(Recipe("x", **TINY), tokenizer), tokenizer, domain)
    for m in masked[:20]:
        assert agent.sequences(m.episode.turns, m.episode.task)[0][0].ids == encode(m, Vocabulary(tokenizer), domain).ids.tolist()


def test_an_elided_page_leaves_its_tags(world, masked, tokenizer):
    vocab = Vocabulary(tokenizer)
    short, whole = (encode(masked[0], vocab, world.simulator.domain, e) for e in (True, False))
    assert len(short.ids) < len(whole.ids) and (short.ids[short.target] == whole.ids[whole.target]).all()


def test_budget_and_order(masked, world, tokenizer):
    examples = [encode(m, Vocabulary(tokenizer), world.simulator.domain) for m in masked]
    a = [[len(x.ids) for x in g] for g in batches(examples, 30_000, 2_000, 0)]
    assert a == [[len(x.ids) for x in g] for g in batches(examples, 30_000, 2_000, 0)] != [[len(x.ids) for x in g] for g in batches(examples, 30_000, 2_000, 1)]
    assert 30_000 <= sum(map(sum, a)) < 36_000


def test_training_lowers_the_loss_and_repeats_itself(masked, world, tokenizer):
    examples = [encode(m, Vocabulary(tokenizer), world.simulator.domain, True) for m in masked]
    runs = []
    for _ in range(2):
        model = build_model(Recipe("x", **TINY), tokenizer)
        runs.append((train(model, examples, 40_000, 0, per_batch=1024), model))
    (curve, a), (again, b) = runs
    assert curve[-1][1] < .8 * curve[0][1] and curve == again
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))


def test_the_loop_is_the_plain_one(masked, world, tokenizer):
    "Bit for bit what a loop written out does: committed agents must come out again."
    examples, tokens = [encode(m, Vocabulary(tokenizer), world.simulator.domain, True) for m in masked], 5_000
    model, plain = (build_model(Recipe("x", **TINY), tokenizer) for _ in range(2))
    curve = train(model, examples, tokens, 0, rate=2e-3, per_batch=1024)
    opt, coin, seen, want = torch.optim.AdamW(plain.parameters(), betas=(.9, .95), weight_decay=.05), torch.Generator().manual_seed(key_int(0, "context")), 0, []
    for group in batches(examples, tokens, 1024, 0):
        opt.param_groups[0]["lr"] = 2e-3 * min(seen / tokens / .05 + .02, 1) * (1 - seen / tokens)
        loss = imitation_loss(plain, group, coin)
        loss["loss"].backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.)
        opt.step(); opt.zero_grad()
        seen += sum(len(x.ids) for x in group); want.append((seen, float(loss["action"])))
    assert 5 <= len(want) == len(curve) and curve == want
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters()))


def test_a_correction_is_on_policy_and_labelled(world, tokenizer):
    agent = LMAgent(build_model(Recipe("x", **TINY), tokenizer), tokenizer, world.simulator.domain)
    masked = correct(world.simulator, world.tasks[:30], world.teacher, agent, 0)
    assert .1 < np.mean([not k for m in masked for k in m.keep]) < .95, "an untrained agent errs"
    assert np.mean([m.keep[-1] for m in masked]) > .6, "the teacher finishes"
    repeat = correct(world.simulator, world.tasks[:30], world.teacher, agent, 0)
    assert masked == repeat


def test_a_series_is_made_resumed_and_refused(tmp_path, world):
    recipes = [Recipe("a0", elided_tokens=4000, tokens=6000, **TINY), Recipe("a1", kind="leap", parent="a0", tokens=5000, **TINY)]
    paths = make_agents(recipes, make_worlds, tmp_path, vocabulary=700, processes=1)
    before = [(p / "model.safetensors").read_bytes() for p in paths]
    stamp = [(p / "model.safetensors").stat().st_mtime_ns for p in paths]
    make_agents(recipes, make_worlds, tmp_path, vocabulary=700, processes=1)
    assert [(p / "model.safetensors").stat().st_mtime_ns for p in paths] == stamp, "finished agents are kept"
    import shutil; shutil.rmtree(paths[1])
    make_agents(recipes, make_worlds, tmp_path, vocabulary=700, processes=1)
    assert [(p / "model.safetensors").read_bytes() for p in paths] == before, "what is made again is the same"
    agent = LMAgent.from_pretrained(paths[1], world.simulator.domain)
    assert len(roll_chunk(world.simulator, agent, make_rows(world.tasks[:4]), 0, 4)) == 4
    with pytest.raises(UserError, match="make it first"): make_agent(Recipe("b", kind="leap", parent="none"), [world], tmp_path)
    with pytest.raises(UserError, match="valid ones are demos"): make_agent(Recipe("b", kind="dream"), [world], tmp_path)
    with pytest.raises(UserError, match="does not stand before it"): chains([Recipe("b", kind="leap", parent="none")])
    with pytest.raises(UserError, match="stands twice"): chains([Recipe("b"), Recipe("b")])
    with pytest.raises(UserError, match="valid ones"): from_dict(Recipe, {"name": "b", "widht": 3})


@pytest.fixture(scope="module")
def one(tmp_path_factory, world, tokenizer):
    "(recipe, undisturbed files) of one small agent; how long it took is nobody's business."
    recipe = Recipe("a0", tokens=2000, episodes=20, **{k: v for k, v in TINY.items() if k != "episodes"})
    return recipe, files_of(make_agent(recipe, [world], tmp_path_factory.mktemp("whole"), tokenizer))


def files_of(path): return {p.name: p.read_bytes() for p in path.iterdir() if p.name != "timing.json"}


def older(path, files):
    "What a kill between weights and recipe left."
    path.mkdir()
    for name in files.keys() - {"recipe.json"}: (path / name).write_bytes(files[name])


def emptied(path, files): older(path, files); (path / "recipe.json").write_text("")
def torn(path, files): older(path, files); (path / "recipe.json").write_bytes(files["recipe.json"][:40])


def halfway(path, files):
    "What a kill while writing leaves."
    part = path.with_name(path.name + ".part"); part.mkdir()
    (part / "model.safetensors").write_bytes(files["model.safetensors"][:1000]); (part / "prm.json").write_text('{"samples": 4}')


@pytest.mark.parametrize("leave", [older, emptied, torn, halfway])
def test_an_agent_left_by_a_kill_is_made_again(tmp_path, world, tokenizer, one, leave):
    recipe, whole = one
    leave(tmp_path / "a0", whole)
    assert files_of(make_agent(recipe, [world], tmp_path, tokenizer)) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["a0"]
    stamp = (tmp_path / "a0" / "recipe.json").stat().st_mtime_ns
    assert (make_agent(recipe, [world], tmp_path, tokenizer) / "recipe.json").stat().st_mtime_ns == stamp, "a finished one is kept"


def test_a_folder_without_its_recipe_never_appears(tmp_path, world, tokenizer, one, monkeypatch):
    from adwm import training
    write = training.atomic_write
    def killed(path, data):
        if path.name == "recipe.json": raise KeyboardInterrupt
        return write(path, data)
    monkeypatch.setattr(training, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt): make_agent(one[0], [world], tmp_path, tokenizer)
    assert not (tmp_path / "a0").exists()
    monkeypatch.undo()
    assert files_of(make_agent(one[0], [world], tmp_path, tokenizer)) == one[1]


def test_a_checkpoint_is_small():
    from adwm.core import root
    for path in (root() / "assets").glob("*/agents/*/model.safetensors"): assert path.stat().st_size < 2_000_000
