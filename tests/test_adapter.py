"Adapters and continuation guidance with a tiny random language model."
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adwm.adapter import (Adapter, AdapterConfig, Continuation, adapter_report, agreement, greedy_actions, load_adapter, mean_soft_loss,
                          deciding, prefix, retrieval_accuracy, save_adapter, text_means, train_adapter)
from adwm.agents import LMAgent, chosen_tokens
from adwm.core import UserError, from_dict, key_rng
from adwm.envs import Corridor, State
from adwm.policies import ScriptedPolicy
from adwm.rollouts import make_rows, rollout
from adwm.schedule import cosine_schedule, denoise
from adwm.training import Recipe, build_model, train_tokenizer

torch.set_num_threads(1)
N, D = 10, 6


@pytest.fixture(scope="module")
def episodes():
    world = Corridor(N)
    east = ScriptedPolicy("east", lambda s: "press" if s.obs == f"room {N - 1}" else "go east")
    return rollout(world, east, make_rows([world.task(i) for i in range(12)], [.4]), 0, 14, env="corridor")


@pytest.fixture(scope="module")
def agent():
    texts = ["press the lamp in the last room", *[f"room {i}" for i in range(N)], *Corridor.choices]
    tokenizer = train_tokenizer(texts*3, 320)
    model = build_model(Recipe("tiny", width=32, inner=64, heads=2, kv_heads=1, layers=2), tokenizer)
    g = torch.Generator().manual_seed(1)
    for p in model.parameters(): p.data.add_(torch.randn(p.shape, generator=g)*.15)
    return LMAgent(model, tokenizer, Corridor().domain)


@pytest.fixture(scope="module")
def latents():
    rng = key_rng(0, "latents")
    return {f"room {i}": torch.from_numpy(rng.standard_normal(D)).float() for i in range(N)}


@pytest.fixture(scope="module")
def kl(agent, latents, episodes): return train_adapter(agent, latents, episodes, AdapterConfig(updates=60, warm=20, size=128, lr=3e-3))


@pytest.fixture(scope="module")
def states(episodes, latents):
    "Rows at different turns: text, soft page, soft past."
    out = []
    for i, e in enumerate(episodes[:6]):
        t = min(i, len(e.turns) - 1)
        out.append(State(e.task, e.turns[t].obs, e.turns[t].choices, e.turns[:t]))
        if i % 3 == 2: out[-1].extra = torch.stack([latents[x.obs] for x in e.turns[:t + 1]])
    return out, [e.turns[min(i, len(e.turns) - 1)].action for i, e in enumerate(episodes[:6])]


def test_sizes_of_table_4():
    count = lambda a: sum(p.numel() for p in a.parameters())
    assert count(Adapter(64, 2048)) == count(Adapter(64, 128)) == 608_768
    assert Adapter(64, 128).n_soft == 16 and Adapter(64, 96).n_soft == 21 and Adapter(64, 2048).n_soft == 1
    with pytest.raises(UserError): Adapter(64, 4096)


def test_paper_loss_finds_its_pages(agent, latents, episodes):
    adapter, curves = train_adapter(agent, latents, episodes, AdapterConfig.paper(updates=250, size=128))
    found = retrieval_accuracy(agent, adapter, latents, list(latents))
    assert found["top1"] > .8 and found["chance"] == 1/8 and found["n"] == N
    mse = [c["value"] for c in curves if c["loss"] == "mse"]
    assert mse[-1] < .2*mse[0] and {c["phase"] for c in curves} == {"paper"}


@pytest.mark.parametrize("w_nce,w_mse", [(0., 1.), (1., 0.)])
def test_each_part_of_the_loss_alone(agent, latents, episodes, w_nce, w_mse):
    "Ablation H.3: pure MSE does not collapse here; pure InfoNCE is right up to scale."
    adapter, _ = train_adapter(agent, latents, episodes, AdapterConfig.paper(updates=250, size=128, w_nce=w_nce, w_mse=w_mse))
    assert retrieval_accuracy(agent, adapter, latents, list(latents))["top1"] > .6


def test_loss_by_hand():
    q, e, cfg = torch.eye(3), torch.eye(3)*2, AdapterConfig(temperature=.5)
    parts = mean_soft_loss(q, e, torch.tensor(.5), cfg)
    assert np.isclose(float(parts["nce"]), np.log(1 + 2*np.exp(-2))) and np.isclose(float(parts["mse"]), 1/3/.5)


def test_kl_falls_and_agreement_rises(agent, latents, episodes, kl):
    adapter, curves = kl
    values = [c["value"] for c in curves if c["loss"] == "kl"]
    assert np.mean(values[-10:]) < .5*np.mean(values[:5])
    report = adapter_report(agent, adapter, latents, episodes, episodes)
    fresh = Adapter(D, agent.width, 128)
    worse = adapter_report(agent, fresh.eval(), latents, episodes, episodes)
    assert report["action"] >= worse["action"] and report["verb"] >= report["action"] and 0 <= report["blind_action"] <= 1


def test_agent_is_left_alone(agent, latents, episodes):
    before = [p.clone() for p in agent.model.parameters()]
    state = torch.get_rng_state()
    a, _ = train_adapter(agent, latents, episodes, AdapterConfig(updates=3, warm=3, size=64))
    b, _ = train_adapter(agent, latents, episodes, AdapterConfig(updates=3, warm=3, size=64))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(x, y) and y.grad is None for x, y in zip(before, agent.model.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    c, _ = train_adapter(agent, latents, episodes, AdapterConfig(updates=3, warm=3, size=64), seed=1)
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


def test_text_sequences_score_like_the_agent(agent, episodes):
    want = agent.log_probs(episodes[:4])
    for e, logp in zip(episodes[:4], want):
        seqs = deciding(agent, e)
        got = agent.decision_logits(seqs).gather(1, chosen_tokens(seqs)[:, None]).sum()
        assert np.isclose(float(got), logp.sum(), atol=1e-4)


def test_soft_sequence_of_one_turn_is_the_agents(agent, latents, episodes, kl):
    e, adapter = episodes[0], kl[0]
    first = type(e)(**{**{f: getattr(e, f) for f in e.__dataclass_fields__}, "turns": e.turns[:1]})
    soft = adapter(latents[e.turns[0].obs][None])
    seqs = deciding(agent, first, adapter.n_soft)
    got = agent.decision_logits(seqs, soft).gather(1, chosen_tokens(seqs[:1])[:, None]).sum()
    want = agent.soft_log_prob([State(e.task, e.turns[0].obs, e.turns[0].choices)], [e.turns[0].action], soft)
    assert torch.allclose(got, want[0], atol=1e-5)


def test_text_and_soft_decisions_line_up(agent, episodes):
    for e in episodes:
        a, b = (chosen_tokens(deciding(agent, e, n)).tolist() for n in (None, 4))
        assert a == b


def test_greedy_actions_on_text_is_one_state_at_a_time(agent, episodes):
    got, want = greedy_actions(agent, episodes[:3]), []
    cold = LMAgent(agent.model, agent.vocab.tokenizer, agent.domain, temperature=0.)
    for e in episodes[:3]:
        for t, turn in enumerate(e.turns):
            want.append((cold.session([e.task]).act([0], [State(e.task, turn.obs, turn.choices, e.turns[:t])], [None])[0], turn.obs))
    assert got == want and agent.temperature == 1.


def test_agreement_counts():
    d, page = Corridor().domain, "room 0"
    one, two = [("go east", page), ("press", page), ("go east", page)], [("go west", page), ("press", page), ("press", page)]
    assert agreement(d, one, two) == dict(verb=2/3, action=1/3, n=3) and agreement(d, one, one)["action"] == 1


def test_kept_and_read_back(tmp_path, agent, kl):
    save_adapter(tmp_path/"a", *kl)
    again = load_adapter(tmp_path/"a", agent)
    z = torch.randn(3, D)
    assert torch.equal(again(z), kl[0](z)) and again.n_soft == 4
    with pytest.raises(UserError): load_adapter(tmp_path/"nowhere")
    state = load_file(tmp_path/"a"/"adapter.safetensors")
    for change, says in ((lambda x: x*float("nan"), "finite"), (lambda x: x.to(torch.int8), "int8")):
        save_file({k: change(x) for k, x in state.items()}, tmp_path/"a"/"adapter.safetensors")
        with pytest.raises(UserError, match=says): load_adapter(tmp_path/"a")
    (tmp_path/"a"/"adapter.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError): load_adapter(tmp_path/"a")
    save_adapter(tmp_path/"b", Adapter(D, 16, 64))
    with pytest.raises(UserError, match="width"): load_adapter(tmp_path/"b", agent)


@pytest.mark.parametrize("call", [
    lambda a, l, e: AdapterConfig(loss="mse"), lambda a, l, e: from_dict(AdapterConfig, dict(temprature=1), "params"),
    lambda a, l, e: train_adapter(a, l, []), lambda a, l, e: train_adapter(a, {"room 0": l["room 0"]}, e),
    lambda a, l, e: retrieval_accuracy(a, Adapter(D, 32, 64), l, list(l)[:3]), lambda a, l, e: Continuation(a, Adapter(D, 32, 64), cosine_schedule(5), turns=2)])
def test_wrong_input_is_one_sentence(agent, latents, episodes, call):
    with pytest.raises(UserError) as err: call(agent, latents, episodes)
    assert "\n" not in str(err.value)


def plain(agent, adapter, state, action, z, memory, turns=1, follow=None, cap=12):
    "The continuation without cache, batch or padding: the whole sequence again for every token."
    before, after, soft = prefix(agent, adapter, state, action, memory)
    embed = lambda ids: agent.embed(torch.tensor(ids, dtype=torch.long))
    x, n = embed([max(i, 0) for i in before]).clone(), iter(soft)
    for j, i in enumerate(before):
        if i < 0: x[j] = next(n)
    x, total, z = torch.cat([x, adapter(z[None])[0], embed(after)]), 0., z
    for turn in range(turns):
        words = []
        for _ in range(cap):
            logp, token = agent.model(inputs_embeds=x[None]).logits[0, -1].log_softmax(-1).max(-1)
            total, x = total + logp, torch.cat([x, embed([int(token)])])
            if int(token) == agent.format.end: break
            words.append(int(token))
        if turn + 1 < turns:
            z = follow(z[None], [agent.vocab.text(words)])[0]
            x = torch.cat([x, embed([agent.format.obs]), adapter(z[None])[0], embed([agent.format.act])])
    return total


@pytest.mark.parametrize("memory", [None, 1, 2])
def test_continuation_is_the_plain_one(agent, kl, states, memory):
    c = Continuation(agent, kl[0], cosine_schedule(20), memory=memory)
    z = torch.randn(6, D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    fast = c(*states).log_prob_fn(z)
    slow = torch.stack([plain(agent, kl[0], s, a, x, memory) for s, a, x in zip(*states, z)])
    assert torch.allclose(fast, slow, atol=1e-4)
    assert torch.allclose(*(torch.autograd.grad(v.sum(), z)[0] for v in (fast, slow)), atol=1e-4)


def test_continuation_over_two_turns(agent, kl, states):
    follow = lambda z, words: .5*z + torch.tensor([[float(len(w))] for w in words])
    c = Continuation(agent, kl[0], cosine_schedule(20), turns=2, follow=follow)
    z = torch.randn(6, D, generator=torch.Generator().manual_seed(0))
    slow = torch.stack([plain(agent, kl[0], s, a, x, 3, 2, follow) for s, a, x in zip(*states, z)])
    assert torch.allclose(c(*states).log_prob_fn(z), slow, atol=1e-4)


def test_chunks_do_not_matter_and_histories_are_not_changed(agent, kl, states):
    z, k, net = torch.randn(6, D), torch.full((6,), 2), lambda zk, k: .1*zk
    whole = Continuation(agent, kl[0], cosine_schedule(20))(*states)
    parts = Continuation(agent, kl[0], cosine_schedule(20), chunk=2)(*states)
    first = whole(z, k, net)
    assert torch.allclose(first, parts(z, k, net), atol=1e-5) and torch.equal(first, whole(z, k, net))
    assert not torch.allclose(first, net(z, k))


def test_denoise_with_continuation(agent, kl, states):
    s, z, net = cosine_schedule(20), torch.randn(6, D), lambda zk, k: .3*zk
    free = denoise(net, s, z, None, 5)
    make = lambda **kw: Continuation(agent, kl[0], s, **{**dict(start=.5, max_shift=None), **kw})
    with torch.no_grad():  # the simulator calls it like this
        pushed = denoise(net, s, z, None, 5, guide=make(scale=.5)(*states))
        assert torch.equal(free, denoise(net, s, z, None, 5, guide=make(scale=0.)(*states)))
    assert pushed.isfinite().all() and not torch.allclose(free, pushed)
    gain = make()(*states).log_prob_fn
    assert (gain(pushed).sum() > gain(free).sum()).item()


def test_text_means_are_means(agent):
    assert torch.allclose(text_means(agent, ["room 3"])[0], agent.embed_page("room 3").mean(0))
