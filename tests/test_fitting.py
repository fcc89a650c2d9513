"Corpus, relations, losses and the two phases of training."
import json
from dataclasses import replace

import pytest
import torch

from adwm.core import UserError, key_rng
from adwm.envs import Domain
from adwm.episodes import TERMINAL, Episode, Task, Turn
from adwm.fitting import (EMA, SETTINGS, FitConfig, Memo, Recorder, TrainedModel, bag_of_words, balanced_bce, cosine_rates, diversity_loss, dsm_loss, fit,
                          make_corpus, optimise, page_types, pointers, relation_logits, relation_loss, relation_names, setting_config, text_loss)
from adwm.world_model import Acts, ModelConfig, fit_actions, new_model

torch.set_num_threads(1)
TINY = dict(buckets=256, page_words=8, width=16, context=32, hidden=48, heads=2, history_layers=1, K=20)
BRIEF = FitConfig(joint=6, cached=8, batch=6, rows=32, every=2)


class Rooms(Domain):
    "Pages 'kind: text'."
    def page_type(self, obs): return "end" if obs == TERMINAL else obs.split(":")[0]


def pool(n=24):
    out = []
    for i in range(n):
        rng = key_rng(0, "rooms", i)
        name = f"{rng.choice(['red', 'blue', 'green'])} {rng.choice(['cup', 'hat'])}"
        turns = [Turn("hall: doors", f"open {name}", 0.), Turn(f"room: a {name}", "back", 0.), Turn("hall: doors", f"open {name}", 0.), Turn(f"room: a {name}", "look", 0.)]
        last = f"room: a {name}"
        if i % 3: turns, last = turns + [Turn(last, "take", float("red" in name))], TERMINAL
        out.append(Episode("rooms", Task(f"t{i}", f"take a {name}", "hall: doors"), "b", 0., 0, i, tuple(turns), last, last == TERMINAL, last != TERMINAL))
    return out


def corpus_of(episodes, setting="ours"):
    types = page_types(episodes, Rooms())
    space = fit_actions(episodes, Rooms(), SETTINGS[setting]["actions"], buckets=256)
    cfg = setting_config(setting, space, types, **TINY)
    return make_corpus(episodes, Rooms(), space, cfg, types), space, cfg, types


def test_pointers():
    memo, types = Memo(Rooms()), ("hall", "room")
    names = relation_names(types)
    assert names == ("same", "again", "copy hall", "copy room", "new")
    pages, actions = ["hall: a", "room: x", "hall: a"], ["open x", "back", "open x"]
    found = dict(zip(names, pointers(pages, actions, types, memo)))
    assert found == {"same": "hall: a", "again": "room: x", "copy hall": None, "copy room": "room: x", "new": None}
    # an action without argument is the same only on the same page
    found = dict(zip(names, pointers(["room: x", "hall: a", "room: y"], ["back", "open y", "back"], types, memo)))
    assert found["again"] is None and found["copy hall"] == "hall: a" and found["copy room"] == "room: x"


def test_corpus():
    c, space, cfg, types = corpus_of(pool())
    assert types == ("hall", "room") and c.words.shape == (len(c.texts), 8)
    assert c.end.sum() == 16 and c.valid.sum() == 8*4 + 16*5
    assert c.match[c.valid].any(-1).all()
    assert (c.match[0, :4].float() == torch.tensor([[0, 0, 0, 0, 1.], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 0]])).all()
    assert set(c.togo[c.valid].tolist()) <= {0., 1.} and c.togo[~c.valid].sum() == 0
    assert all("take" not in t or ":" not in t for t in c.texts)


def test_rewards_are_clipped_sums_to_go():
    e = pool(2)[1]
    e = replace(e, turns=tuple(replace(t, reward=.4) for t in e.turns))
    c, *_ = corpus_of([e, e])
    assert torch.allclose(c.togo[0], torch.tensor([1., 1., 1., .8, .4]))


def test_relation_head_masks_and_pools():
    _, space, cfg, types = corpus_of(pool())
    model, R = new_model(cfg, 0), 5
    option = torch.tensor([[3, 7, -1, 7, -1]])
    with torch.no_grad(): logp = relation_logits(model, torch.zeros(1, 64), torch.zeros(1, 32), Acts(torch.zeros(1, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long)), option)
    assert torch.isinf(logp[0, 2]) and torch.isfinite(logp[0, 4]) and torch.allclose(logp.exp().sum(), torch.tensor(1.))
    match = torch.tensor([[False, True, False, True, False]])
    assert torch.allclose(relation_loss(logp, match), -(logp[0, 1].exp() + logp[0, 3].exp()).log())


def test_balanced_bce_weighs_classes_equally():
    target = torch.tensor([1.] + [0.]*9)
    loss = balanced_bce(torch.zeros(10), target)
    assert torch.allclose(loss, torch.tensor(2.).log())
    assert torch.isfinite(balanced_bce(torch.zeros(4), torch.zeros(4)))


def test_diversity():
    full = torch.ones(3, 2, dtype=torch.bool)
    same, apart = torch.ones(3, 2, 4), torch.eye(4)[:3, None].expand(3, 2, 4)
    assert diversity_loss(same, full) > diversity_loss(apart, full)
    assert diversity_loss(same[:1], full[:1]) == 0


def test_text_loss_prefers_the_right_words():
    words = torch.tensor([[1, 2, 3, 0], [1, 2, 4, 0]])
    bucket, weight = bag_of_words(words, 8)
    assert torch.allclose(weight.sum(1), torch.ones(2)) and weight[0, 2] > weight[0, 0]
    logit = torch.full((2, 8), -5.); logit[0, 3] = logit[1, 4] = 5.
    assert text_loss(logit, bucket, weight) < text_loss(logit.flip(0), bucket, weight)


@pytest.mark.parametrize("kind", ["eps", "z0"])
def test_diffusion_loss_of_a_perfect_network(kind):
    model = new_model(ModelConfig.small(3, **{**TINY, "prediction": kind}), 0)
    z0, gen = torch.full((64, 64), .7), torch.Generator().manual_seed(0)
    start = dsm_loss(model, z0, torch.zeros(64, 32), gen).item()
    if kind == "z0":
        with torch.no_grad(): model.score.out.bias.fill_(.7)
        assert dsm_loss(model, z0, torch.zeros(64, 32), gen) < 1e-10
    else: assert abs(start - 1) < .1            # a network that says 0 leaves the noise's variance


def test_average_forgets_the_start():
    p = torch.nn.Parameter(torch.zeros(1)); mean = EMA([p], .9)
    with torch.no_grad(): p.fill_(1.)
    for _ in range(100): mean.update()
    mean.copy_back(); assert p > .99


def test_a_diverging_loss_is_named():
    p = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="'x' became nan at update 1 of the test phase"):
        optimise(lambda n: dict(x=p.sum()*float("nan")), [p], [(.1, 0), (.1, 1)], after=Recorder("test", 2, 1))


def test_the_loop_is_the_plain_loop():
    rates, data = cosine_rates(.1, 7, .05), torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))
    def plain(adam, p):
        for rate, x in zip(rates, data):
            adam.param_groups[0]["lr"] = rate
            adam.zero_grad(); ((x@p).square().mean() + .5*p.abs().sum()).backward()
            torch.nn.utils.clip_grad_norm_([p], .3); adam.step()
        return p
    def ours(**how):
        p, frozen, seen = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3), requires_grad=False), []
        parts = lambda x: dict(fit=(x@p).square().mean(), small=p.abs().sum(), watched=p.sum())
        optimise(parts, [p, frozen], zip(rates, data), dict(fit=1., small=.5), clip=.3, after=lambda n, part: seen.append((n, *part)), **how)
        assert p.grad is None and seen[-1] == (7, "fit", "small", "watched") and torch.equal(frozen, torch.ones(3))
        return p
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    assert torch.equal(ours(), plain(torch.optim.Adam([p]), p)), "without decay it is Adam"
    assert torch.equal(ours(decay=.1, betas=(.9, .95)), plain(torch.optim.AdamW([q], betas=(.9, .95), weight_decay=.1), q))
    assert not torch.equal(ours(ema=.5), p)


@pytest.mark.parametrize("updates", [0, 1, 2, 300])
def test_cosine_rates_are_torchs(updates):
    opt = torch.optim.Adam([torch.zeros(1)], lr=2e-3)
    theirs, seen = torch.optim.lr_scheduler.CosineAnnealingLR(opt, max(1, updates), .05*2e-3), []
    for _ in range(updates): seen.append(opt.param_groups[0]["lr"]); opt.step(); theirs.step()
    assert cosine_rates(2e-3, updates, .05) == seen


@pytest.mark.parametrize("setting", ["paper", "ours"])
def test_fit_runs_both_phases_with_the_same_updates(setting):
    f = fit(pool(), Rooms(), setting, 0, BRIEF, **TINY)
    last = {phase: max(r["update"] for r in f.curves if r["phase"] == phase) for phase in ("joint", "cached")}
    assert last == {"joint": 6, "cached": 8}
    names = {r["loss"] for r in f.curves if r["phase"] == "joint"}
    assert {"dsm", "inverse", "bc", "div", "reward", "end"} <= names and ({"relation", "text"} <= names) == (setting == "ours")
    assert f.model.cfg.prediction == ("eps" if setting == "paper" else "z0") and f.model.cfg.structured == (setting == "ours")


def test_phase_two_leaves_the_encoder_alone():
    one, two = (fit(pool(), Rooms(), "ours", 0, replace(BRIEF, cached=n), **TINY).model for n in (0, 8))
    same = lambda a, b: all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert same(one.encoder, two.encoder) and same(one.history, two.history) and same(one.reward, two.reward)
    assert not same(one.score, two.score) and not same(one.relation, two.relation)


def test_the_seed_decides_everything():
    a, b, c = (fit(pool(), Rooms(), "ours", s, BRIEF, **TINY).model.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not all(torch.equal(a[k], c[k]) for k in a)


def test_training_learns_relation_and_end():
    f = fit(pool(60), Rooms(), "ours", 0, FitConfig(joint=60, cached=150, batch=12, rows=64, every=10, lr=2e-3), **TINY)
    last = {r["loss"]: r["value"] for r in f.curves if r["phase"] == "cached"}
    assert last["relation"] < .1 and last["end"] < .1 and last["dsm"] < .5


def test_paper_size_is_the_papers():
    _, space, *_ = corpus_of(pool(), "paper")
    cfg = setting_config("paper", space, ("hall",), "paper")
    assert replace(cfg, n_actions=213) == ModelConfig.paper()


def test_save_and_load(tmp_path):
    f = fit(pool(), Rooms(), "ours", 0, BRIEF, **TINY)
    f.save(tmp_path); g = TrainedModel.load(tmp_path, f.model.cfg)
    assert (g.types, g.setting, g.space, g.curves) == (f.types, f.setting, f.space, f.curves)
    with pytest.raises(UserError, match="another configuration"): TrainedModel.load(tmp_path, replace(f.model.cfg, d_z=32))
    record = json.loads((tmp_path/"model.json").read_text())
    for bad in (record | dict(notes=[]), record | dict(notes=dict(types=1, setting="ours")), {k: v for k, v in record.items() if k != "notes"}, [1]):
        (tmp_path/"model.json").write_text(json.dumps(bad))
        with pytest.raises(UserError): TrainedModel.load(tmp_path)
    next(f.model.parameters()).data.view(-1)[0] = float("nan"); f.save(tmp_path)
    with pytest.raises(UserError, match="finite"): TrainedModel.load(tmp_path)


def test_refusals():
    with pytest.raises(UserError, match="at least two"): fit(pool(1), Rooms())
    with pytest.raises(UserError, match="setting"): fit(pool(), Rooms(), "theirs")
    with pytest.raises(UserError, match="size"): setting_config("ours", fit_actions(pool(), Rooms()), (), "large")
