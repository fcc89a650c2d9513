"Preferences: pairs, the DPO loss against other formulas, training, reward models, best-of-n agents on disk."
import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from adwm.agents import LMAgent
from adwm.core import UserError
from adwm.envs import Corridor, World
from adwm.preference import (BestOfN, collect_pairs, dpo, dpo_loss, explore, learn_reward_model, load_agent, prefer,
                             reward_model_auc, reward_model_files, score_pairs, scored, train_reward_model, trajectory_log_probs, value_examples)
from adwm.rollouts import make_rows, rollout
from adwm.training import MaskedEpisode, Recipe, batches, build_model, demonstrate, save_checkpoint, texts_of, train_tokenizer

torch.set_num_threads(1)


def teacher(state):
    return "press" if state.obs == "room 2" else "go east"


@pytest.fixture(scope="module")
def world():
    c = Corridor(3)
    return World(c, [c.task(i) for i in range(60)], teacher)


@pytest.fixture(scope="module")
def tokenizer(world):
    return train_tokenizer(texts_of(demonstrate(world.simulator, world.tasks[:20], teacher, 0), world.simulator.domain), 300)


def fresh(world, tokenizer, seed=0):
    "An agent that has learned nothing."
    return LMAgent(build_model(Recipe("r", width=32, inner=64, layers=2, heads=2, kv_heads=1, seed=seed), tokenizer), tokenizer, world.simulator.domain, "novice")


@pytest.fixture(scope="module")
def pairs(world, tokenizer):
    return collect_pairs([world], fresh(world, tokenizer), 0, 240, 4, "own", 5)


def test_loss_is_log_two_at_the_start_and_follows_the_formula():
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    loss, margin = dpo_loss(x[:, 0], x[:, 1], x[:, 0], x[:, 1], 0.3)
    assert abs(loss.item() - math.log(2)) < 1e-6 and margin.abs().max() == 0
    w, l, rw, rl = (torch.tensor(v) for v in ([-10.0, -3.0], [-11.0, -2.0], [-10.5, -4.0], [-10.2, -2.5]))
    # as trl computes it: logits = (policy chosen - policy rejected) - (reference chosen - reference rejected); -log sigmoid(beta logits)
    logits = (w - l) - (rw - rl)
    assert torch.allclose(logits, torch.tensor([1.3, 0.5])), "by hand: (1 - -.3), (-1 - -1.5)"
    assert abs(dpo_loss(w, l, rw, rl, 0.1)[0].item() - np.mean([math.log(1 + math.exp(-0.13)), math.log(1 + math.exp(-0.05))])) < 1e-6


@pytest.mark.parametrize("margin", [-30.0, -1.0, 0.0, 2.0])
def test_gradient_is_beta_sigma_minus_beta_m(margin):
    w = torch.tensor([margin], requires_grad=True)
    l = torch.tensor([0.0], requires_grad=True)
    dpo_loss(w, l, torch.zeros(1), torch.zeros(1), 0.5)[0].backward()
    want = 0.5 / (1 + math.exp(0.5 * margin))
    assert abs(w.grad.item() + want) < 1e-6 and abs(l.grad.item() - want) < 1e-6


def test_pairs_are_of_one_task_and_ordered(world, pairs):
    assert len(pairs) > 10
    for p in pairs:
        assert p.better.episode.task == p.worse.episode.task and p.gap == p.better.episode.ret - p.worse.episode.ret >= 0.3
    assert len({p.better.episode.task.id for p in pairs}) == len(pairs)


def test_expert_pairs_hold_the_teacher(world, tokenizer):
    for p in collect_pairs([world], fresh(world, tokenizer), 0, 120, 2, "expert", 5):
        assert [t.action for t in p.better.episode.turns] == ["go east", "go east", "press"] and p.worse.episode.ret == 0
    with pytest.raises(UserError, match="own"): collect_pairs([world], None, 0, 4, against="mine")


def test_exploring_repeats(world, tokenizer):
    agent = fresh(world, tokenizer)
    a, b = (explore([world, world], agent, 3, 40, 4, 5) for _ in range(2))
    assert [[e.turns for e in es] for _, es in a] == [[e.turns for e in es] for _, es in b] and [len(es) for _, es in a] == [20, 20]
    assert a[0][1] != a[1][1], "two worlds, two sets of draws"


def test_trajectory_log_probs_are_the_agents(world, tokenizer, pairs):
    agent = fresh(world, tokenizer)
    some = [p.worse for p in pairs[:6]]
    got = trajectory_log_probs(agent, scored(agent, some)).numpy()
    assert np.allclose(got, [lp.sum() for lp in agent.log_probs([m.episode for m in some])], atol=1e-4)
    half = [MaskedEpisode(m.episode, tuple(i == 0 for i in range(len(m.keep)))) for m in some]
    got = trajectory_log_probs(agent, scored(agent, half)).numpy()
    assert np.allclose(got, [lp[0] for lp in agent.log_probs([m.episode for m in some])], atol=1e-4), "turns that are not kept do not count"


def test_dpo_learns_from_its_own_successes(world, tokenizer, pairs):
    agent = fresh(world, tokenizer)
    value = lambda: np.mean([e.ret for e in rollout(world.simulator, agent, make_rows(world.tasks, [0.0], 4), 9, 5)])
    before = value()
    curve = dpo(agent, pairs, 40_000, 0, beta=0.1, rate=3e-3, per_batch=1000)
    assert abs(curve[0]["loss"] - math.log(2)) < 0.1 and curve[-1]["loss"] < curve[0]["loss"] and curve[-1]["accuracy"] > 0.8
    assert value() > before + 0.15
    assert not any(p.requires_grad for p in agent.model.parameters())


def test_dpo_repeats_and_needs_pairs(world, tokenizer, pairs):
    runs = []
    for _ in range(2):
        agent = fresh(world, tokenizer)
        dpo(agent, pairs[:8], 4_000, 1, per_batch=800, sft=0.1)
        runs.append(agent.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].values(), runs[1].values()))
    with pytest.raises(UserError, match="no pair"): dpo(agent, [], 100, 0)


def test_the_loop_is_the_plain_one(world, tokenizer, pairs):
    "Bit for bit what a loop written out does: committed agents must come out again."
    agent, plain = (fresh(world, tokenizer) for _ in range(2))
    dpo(agent, pairs, 3_000, 1, per_batch=800, sft=.1)
    rows, seen = score_pairs(plain, pairs), 0
    parameters = list(plain.model.requires_grad_(True).parameters())
    opt = torch.optim.AdamW(parameters, betas=(.9, .95), weight_decay=0.)
    for group in batches(rows, 3_000, 800, 1):
        opt.param_groups[0]["lr"] = 5e-4 * min(seen / 3_000 / .1 + .02, 1) * (1 - seen / 3_000)
        better, worse = trajectory_log_probs(plain, [x.better for x in group] + [x.worse for x in group]).chunk(2)
        loss, _ = dpo_loss(better, worse, torch.tensor([x.ref_better for x in group]), torch.tensor([x.ref_worse for x in group]), .1)
        (loss - .1 * (better / torch.tensor([len(x.better.decisions) for x in group])).mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.)
        opt.step(); opt.zero_grad()
        seen += sum(len(x.ids) for x in group)
    assert all(torch.equal(a, b) for a, b in zip(agent.model.state_dict().values(), plain.model.state_dict().values()))


class Partial:
    "A reward model that counts: a `press` in the last room is best, else going east."
    def __init__(self, agent): self.agent, self.asked = agent, 0

    def last(self, rows, soft=None):
        self.asked += len(rows)
        said = [self.agent.vocab.text(r) for r in rows]
        return np.array([2.0 * ("room 2" in s.rsplit("<obs>", 2)[-1] and s.count("room 2") > 0 and "press" in s[-14:]) + ("east" in s[-12:]) for s in said])


@pytest.fixture(scope="module")
def trained(world, tokenizer):
    agent = fresh(world, tokenizer)
    own = [e for _, es in explore([world], agent, 5, 16, 4, 5) for e in es]
    return agent, own, *train_reward_model(agent, own, 60_000, 0, 3e-3, 500)


def test_a_reward_model_learns_outcomes(trained):
    agent, own, made, curve = trained
    assert {e.ret for e in own} == {0.0, 1.0} and curve[-1][1] < 0.75 * curve[0][1]
    rows = value_examples(agent, own)
    values, good = np.array([made.last([r.ids])[0] for r in rows]), np.array([r.value > 0.5 for r in rows])
    assert values[good].min() > values[~good].max()
    assert [list(r.ids[r.ends]) for r in rows[:3]] == [[agent.format.end] * len(e.turns) for e in own[:3]]
    assert np.allclose(values, made.last([r.ids for r in rows]), atol=1e-4), "padding changes nothing"
    soft = made.last([[-1, *rows[0].ids[1:]]], [made.body.get_input_embeddings().weight[rows[0].ids[0]]])
    assert np.allclose(soft, made.last([rows[0].ids]), atol=1e-5), "a soft token that equals the text is read as the text"
    assert reward_model_auc(made, rows)["last"] == 1.0 and reward_model_auc(made, rows[:0]) == {}


def test_best_of_n_is_better_and_has_no_log_prob(world, tokenizer):
    agent, rows = fresh(world, tokenizer), make_rows(world.tasks, [0.0], 2)
    value = lambda p: np.mean([e.ret for e in rollout(world.simulator, p, rows, 9, 5)])
    best = BestOfN(agent, Partial(agent), 6, "best")
    assert value(best) > value(agent) + 0.3 and best.reward_model.asked > 0
    assert best.has_log_prob is False and best.width == agent.width and best.name == "best" and best.domain is agent.domain
    with pytest.raises(UserError, match="cannot be estimated"): best.log_probs([])
    one = rollout(world.simulator, best, rows[:6], 9, 5, chunk=1)
    assert [e.turns for e in one] == [e.turns for e in rollout(world.simulator, best, rows[:6], 9, 5)], "batching changes nothing"
    assert value(BestOfN(agent, Partial(agent), 1)) == value(agent), "the best of one is the agent"
    greedy, same = copy.copy(best), copy.copy(agent)
    greedy.temperature = same.temperature = 0.0
    assert value(greedy) == value(same), "greedy proposals are all alike"
    with pytest.raises(AttributeError): best.nothing_of_the_kind


def test_best_of_n_on_disk(world, tokenizer, trained, tmp_path):
    agent, own, made, _ = trained
    save_checkpoint(agent.model, tokenizer, tmp_path / "prm")
    assert isinstance(load_agent(tmp_path / "prm", agent.domain), LMAgent)
    for name, data in reward_model_files(made, 3).items(): (tmp_path / "prm" / name).write_bytes(data)
    a, b = (load_agent(tmp_path / "prm", agent.domain, name="x") for _ in range(2))
    assert isinstance(a, BestOfN) and a.samples == 3 and a.name == "x"
    acts = lambda p: [e.turns for e in rollout(world.simulator, p, make_rows(world.tasks[:10]), 1, 5)]
    assert acts(a) == acts(b)
    for text, says in (("", "prm.json is not readable as JSON"), ('{"samples": 3, "samples": 9}', "prm.json .*stands twice"), (None, "prm.json is not readable")):
        (tmp_path / "prm" / "prm.json").unlink() if text is None else (tmp_path / "prm" / "prm.json").write_text(text)
        with pytest.raises(UserError, match=says): load_agent(tmp_path / "prm", agent.domain)
    (tmp_path / "prm" / "prm.json").write_text('{"samples": 3, "more": 1}')
    with pytest.raises(UserError, match="more"): load_agent(tmp_path / "prm", agent.domain)
    (tmp_path / "prm" / "prm.json").write_text('{"samples": 3}')
    for samples in (0, -1, 10**6):
        (tmp_path / "prm" / "prm.json").write_text(f'{{"samples": {samples}}}')
        with pytest.raises(UserError, match=f"samples is {samples}"): load_agent(tmp_path / "prm", agent.domain)
    (tmp_path / "prm" / "prm.json").write_text('{"samples": 3}')
    state = load((tmp_path / "prm" / "prm.safetensors").read_bytes())
    for spoiled, says in (({k: x * float("nan") for k, x in state.items()}, "finite"), ({k: x.to(torch.int8) for k, x in state.items()}, "int8"),
                          (dict(list(state.items())[1:]), "reward model")):
        (tmp_path / "prm" / "prm.safetensors").write_bytes(save(spoiled))
        with pytest.raises(UserError, match=says): load_agent(tmp_path / "prm", agent.domain)
    (tmp_path / "prm" / "prm.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="prm.safetensors cannot be read as the reward model"): load_agent(tmp_path / "prm", agent.domain)


@pytest.mark.parametrize("kind", ["dpo", "eto"])
def test_recipes_of_preferences(world, tokenizer, kind):
    parent = fresh(world, tokenizer)
    recipe = Recipe("child", kind=kind, parent="novice", episodes=120, tokens=5_000, batch_tokens=1000, rate=1e-3, horizon=5)
    before = {k: v.clone() for k, v in parent.model.state_dict().items()}
    model = fresh(world, tokenizer).model
    facts = prefer(recipe, [world], parent, model, tokenizer)
    assert facts["pairs"] > 5 and facts["better"] > facts["worse"] and json.dumps(facts)
    assert all(torch.equal(before[k], v) for k, v in parent.model.state_dict().items()), "the parent stays"
    assert any(not torch.equal(before[k], v) for k, v in model.state_dict().items()), "the child moves"


def test_recipe_of_a_reward_model(world, tokenizer):
    parent = fresh(world, tokenizer)
    facts = learn_reward_model(Recipe("child", kind="prm", parent="novice", episodes=160, tokens=20_000, batch_tokens=1000, rate=3e-3, horizon=5), [world], parent, parent.model, tokenizer)
    assert set(facts["files"]) == {"prm.safetensors", "prm.json"} and facts["explored"] == 160
    assert set(facts["held_out"]) <= {"first", "last"}


def test_chat_formats_are_refused():
    with pytest.raises(UserError, match="packed"): scored(SimpleNamespace(format=SimpleNamespace(incremental=False), name="chat"), [])
