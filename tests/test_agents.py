"""Language-model agents: what they may say, how likely it is, and that batching changes nothing."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from adwm.agents import Cursor, LMAgent, draw
from adwm.core import UserError, key_rng
from adwm.envs import Corridor, Domain, State, advance
from adwm.episodes import TERMINAL, Episode, Task, Turn
from adwm.probes import language_probe
from adwm.rollouts import make_rows, roll_chunk
from adwm.training import Recipe, build_model, save_checkpoint, train_tokenizer

torch.set_num_threads(1)
ITEMS = tuple(f"click item {i}" for i in range(1, 13))


class Searchable(Domain):
    "The corridor's domain with a free search."
    def free_search(self, obs, choices=()): return obs == "room 0"
    def parse(self, text, obs, choices=()): return text


class Rooms(Corridor):
    "A corridor with twelve items to click, so that item 1 is a prefix of item 12."
    choices = ("go east", "go west", "press", *ITEMS)
    def __init__(self): super().__init__(3); self.domain = Searchable()


@pytest.fixture(scope="module")
def rooms(): return Rooms()


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["press the lamp in the last room now please", "room 0", "room 1", "room 2", "search the lamp room", "go east", "go west", "press", *ITEMS]
    return train_tokenizer(texts * 3, 330)


def shaken(model, seed=0):
    "Weights away from their initial values, so that logits differ."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters(): p.data.add_(torch.randn(p.shape, generator=g) * .05)
    return model


@pytest.fixture(scope="module")
def agent(rooms, tokenizer):
    return LMAgent(shaken(build_model(Recipe("tiny", width=32, inner=64, heads=2, kv_heads=1, layers=2), tokenizer)), tokenizer, rooms.domain)


def said(episodes): return [[t.action for t in e.turns] for e in episodes]


@torch.no_grad()
def plain_action(agent, state, rng):
    "One action without any cache."
    obs = [t.obs for t in state.turns] + [state.obs]
    pages = [agent.page_ids(o, obs[i - 1] if i else None) for i, o in enumerate(obs)]
    menu = agent.candidates(state.obs, state.choices)
    text = agent.format.prompt(agent.task_text(state.task), pages, [agent.action_ids(t.action, t.obs) for t in state.turns], menu)
    cursor = Cursor(agent.trie(state))
    while len(ok := agent.grammar.allowed(cursor)):
        logits = agent.model(input_ids=torch.tensor([text])).logits[0, -1].double().numpy()[ok]
        token = int(ok[draw(logits, agent.temperature, rng) if len(ok) > 1 else 0])
        cursor.push(token); text.append(token)
    return agent.domain.parse(agent.vocab.text(cursor.ids[:-1]), state.obs, state.choices)


class Plain:
    "The agent without cache or batch."
    def __init__(self, agent): self.agent, self.name = agent, agent.name
    def session(self, tasks): return self
    def observe(self, *args): pass
    def act(self, rows, states, rngs): return [plain_action(self.agent, s, r) for s, r in zip(states, rngs)]


def test_cached_batches_act_as_the_plain_loop(rooms, agent):
    rows = make_rows([rooms.task(i) for i in range(12)], [0., .4])
    assert said(roll_chunk(rooms, agent, rows, 3, 6)) == said(roll_chunk(rooms, Plain(agent), rows, 3, 6))


def test_batch_and_group_do_not_matter(rooms, agent):
    rows = make_rows([rooms.task(i) for i in range(40)], [0., .3])
    whole = said(roll_chunk(rooms, agent, rows, 5, 8))
    small = LMAgent(agent.model, agent.vocab.tokenizer, rooms.domain, group=7)
    assert said(roll_chunk(rooms, small, rows, 5, 8)) == whole
    assert said([roll_chunk(rooms, agent, [r], 5, 8)[0] for r in rows[::9]]) == whole[::9]


@pytest.mark.parametrize("make", [
    lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=2, n_positions=512, bos_token_id=None, eos_token_id=None)),
    lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)),
], ids=["gpt2", "qwen2"])
def test_any_causal_model_will_do(rooms, tokenizer, make):
    other = LMAgent(shaken(make(len(tokenizer))), tokenizer, rooms.domain)
    rows = make_rows([rooms.task(i) for i in range(6)], [0., .4])
    episodes = roll_chunk(rooms, other, rows, 3, 5)
    assert said(episodes) == said(roll_chunk(rooms, Plain(other), rows, 3, 5))
    for e, lp in zip(episodes, other.log_probs(episodes)):
        one = [other.soft_log_prob([State(e.task, t.obs, t.choices, e.turns[:i])], [t.action]).item() for i, t in enumerate(e.turns)]
        assert np.abs(lp - one).max() < 1e-4


def test_probabilities_of_a_menu_sum_to_one(rooms, agent):
    state = State(rooms.task(), "room 1", rooms.choices)
    logp = agent.soft_log_prob([state] * len(rooms.choices), list(rooms.choices))
    assert abs(logp.exp().sum().item() - 1) < 1e-5


def test_probabilities_with_free_text_sum_to_one(rooms, tokenizer, agent):
    short = LMAgent(agent.model, tokenizer, rooms.domain, cap=2)
    ends, state = [], State(rooms.task(), "room 0", rooms.choices)
    for first in short.grammar.starts:
        for token in short.grammar.after(first): ends.append((first,) if token == short.format.end else (first, int(token)))
    words = ["search " + short.vocab.text(ids) for ids in ends]
    assert len(set(words)) == len(words), "a string has one canonical cut only"
    some = [short.soft_log_prob([state] * len(words[i:i + 4000]), words[i:i + 4000]).exp().sum().item() for i in range(0, len(words), 4000)]
    closed = short.soft_log_prob([state] * len(rooms.choices), list(rooms.choices)).exp().sum().item()
    assert abs(sum(some) + closed - 1) < 1e-4


def test_what_is_said_is_cut_again_as_it_was_sampled(rooms, agent):
    for i in range(200):
        cursor, rng = Cursor(agent.grammar.trie((), True)), key_rng(i)
        while len(ok := agent.grammar.allowed(cursor)): cursor.push(int(rng.choice(ok)))
        assert (*agent.vocab.ids(agent.vocab.text(cursor.ids[:-1])), agent.format.end) == tuple(cursor.ids)


def test_log_probs_are_those_of_the_policy_that_acts(rooms, agent):
    "Frequencies of sampled first actions against exp(log_probs)."
    rows = make_rows([rooms.task(i) for i in range(1500)], [0.])
    state = State(rooms.task(), "room 1", rooms.choices)
    session = agent.session([r.task for r in rows])
    drawn = session.act(list(range(1500)), [State(r.task, "room 1", rooms.choices) for r in rows], [key_rng(1, i) for i in range(1500)])
    p = agent.soft_log_prob([state] * len(rooms.choices), list(rooms.choices)).exp().numpy()
    counts = np.array([drawn.count(a) for a in rooms.choices]) / 1500
    assert abs(counts - p).max() < 4 * np.sqrt(.25 / 1500)


@pytest.fixture(scope="module")
def bare(agent, tokenizer):
    "An agent of the generic domain on a page that lists nothing."
    task = Task("bare", "press the lamp in the last room", "room 0")
    return LMAgent(agent.model, tokenizer, Domain(), cap=2), State(task, task.obs, ())


def test_without_a_list_words_are_free_and_never_empty(rooms, bare):
    agent, state = bare
    drawn = agent.session([state.task] * 600).act(list(range(600)), [state] * 600, [key_rng(2, i) for i in range(600)])
    assert all(drawn) and len(set(drawn)) > 300
    assert drawn[:20] == [plain_action(agent, state, key_rng(2, i)) for i in range(20)]
    episodes = [Episode("bare", state.task, "a", 0., 0, i, (Turn(state.obs, a, 0., ()),), TERMINAL, True, False) for i, a in enumerate(drawn)]
    assert np.isfinite(np.concatenate(agent.log_probs(episodes))).all()


def test_without_a_list_frequencies_are_the_probabilities(bare):
    "Of first words: the sum over all second tokens, against what is drawn."
    agent, state = bare
    n, first = 4000, agent.grammar.starts[:3]
    drawn = agent.session([state.task] * n).act(list(range(n)), [state] * n, [key_rng(3, i) for i in range(n)])
    begins = np.array([agent.vocab.ids(a)[0] for a in drawn])
    for token in first:
        said = [agent.vocab.text([token] if t == agent.format.end else [token, int(t)]) for t in agent.grammar.after(token)]
        p = agent.soft_log_prob([state] * len(said), said).exp().sum().item()
        assert abs((begins == token).mean() - p) < 4 * np.sqrt(p / n) + 1e-3 and p > 0


def test_where_an_agent_cannot_speak_freely_it_refuses(bare, rooms, tokenizer):
    agent, state = bare
    class Closed(Domain): free_text = False
    with pytest.raises(UserError, match="lists no action.*log the page's choices"):
        LMAgent(agent.model, tokenizer, Closed()).session([state.task]).act([0], [state], [key_rng(0)])
    mute = LMAgent(agent.model, tokenizer, Domain()); mute.grammar.starts = []
    with pytest.raises(UserError, match="cannot write free text"): mute.session([state.task]).act([0], [state], [key_rng(0)])
    listed = State(state.task, "room 1", ("", *rooms.choices))
    assert all(mute.session([state.task]).act([0], [listed], [key_rng(i)])[0] in rooms.choices for i in range(30)), "an empty choice is never said"


def test_a_probe_lets_an_agent_speak_where_nothing_is_listed(bare):
    agent, state = bare
    e = Episode("bare", state.task, "a", 0., 0, 0, (Turn(state.obs, "press lamp", 0., ()),), TERMINAL, True, False)
    probe = language_probe(agent, [e], m=4)
    assert np.allclose(probe.logp[0], agent.log_probs([e])[0], atol=2e-4) and all(probe.actions[0][0])


def test_packed_scoring_equals_turn_by_turn(rooms, agent):
    episodes = roll_chunk(rooms, agent, make_rows([rooms.task(i) for i in range(10)], [.3]), 2, 6)
    for e, lp in zip(episodes, agent.log_probs(episodes, budget=300)):
        one = [agent.soft_log_prob([State(e.task, t.obs, t.choices, e.turns[:i])], [t.action]).item() for i, t in enumerate(e.turns)]
        assert np.abs(lp - one).max() < 1e-4


def test_what_cannot_be_said_has_probability_zero(rooms, agent):
    s = State(rooms.task(), "room 1", rooms.choices)
    e = roll_chunk(rooms, agent, make_rows([rooms.task()]), 0, 2)[0]
    from dataclasses import replace
    bad = replace(e, turns=(replace(e.turns[0], action="search " + "lamp " * 13),))
    assert agent.log_probs([bad])[0][0] == -np.inf
    with pytest.raises(UserError, match="cannot be said"): agent.soft_log_prob([s], ["fly away"])


def test_an_overridden_action_leaves_no_trace_in_the_cache(rooms, agent):
    task, session = rooms.task(), agent.session([rooms.task()])
    s = State(task, "room 0", rooms.choices)
    session.act([0], [s], [key_rng(0)])
    session.observe([0], [s], ["go east"])
    s = advance(s, "go east", 0., "room 1", rooms.choices)
    assert session.act([0], [s], [key_rng(1)]) == agent.session([task]).act([0], [s], [key_rng(1)])


def test_soft_tokens_that_equal_the_text_act_as_the_text(rooms, agent):
    turns = roll_chunk(rooms, agent, make_rows([rooms.task()]), 0, 2)[0].turns
    state = State(rooms.task(), "room 1", rooms.choices, turns)
    page = agent.embed_page("room 1")
    for seed in range(5):
        soft = State(state.task, "room 1", rooms.choices, turns, soft=page)
        assert agent.session([state.task]).act([0], [soft], [key_rng(seed)]) == agent.session([state.task]).act([0], [state], [key_rng(seed)])


def test_gradient_of_soft_tokens(rooms, agent):
    states = [State(rooms.task(), "room 1", rooms.choices)] * 2
    soft = torch.randn(2, 3, agent.width, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    logp = agent.soft_log_prob(states, ["click item 12", "go west"], soft)
    grad = torch.autograd.grad(logp.sum(), soft)[0]
    step = torch.randn(soft.shape, generator=torch.Generator().manual_seed(1)) * 1e-2
    with torch.no_grad():
        up, down = (agent.soft_log_prob(states, ["click item 12", "go west"], soft + s * step).sum() for s in (1, -1))
    assert abs((up - down).item() / 2 - (grad * step).sum().item()) < 2e-3 * max(1, abs((grad * step).sum().item()))
    assert all(p.grad is None for p in agent.model.parameters())


def test_a_soft_page_stays_soft_in_later_turns(rooms, agent):
    task = rooms.task(); session = agent.session([task])
    soft = torch.randn(4, agent.width, generator=torch.Generator().manual_seed(2))
    s = State(task, "room 1", rooms.choices, soft=soft)
    action = session.act([0], [s], [key_rng(0)])[0]
    before = list(session.held[0]); later = advance(s, action, 0., "room 2", rooms.choices)
    session.act([0], [later], [key_rng(1)])
    assert session.held[0][:len(before)] == before and min(before) < 0


def test_greedy_is_the_mode(rooms, agent):
    cold = LMAgent(agent.model, agent.vocab.tokenizer, rooms.domain, temperature=0)
    one = cold.session([rooms.task()]).act([0], [State(rooms.task(), "room 1", rooms.choices)], [None])
    assert cold.session([rooms.task()]).act([0], [State(rooms.task(), "room 1", rooms.choices)], [None]) == one


def test_a_chat_model_behind_the_leap_format(rooms, tokenizer, tmp_path):
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2))
    save_checkpoint(shaken(model), tokenizer, tmp_path / "chat")
    chat = LMAgent.from_pretrained(tmp_path / "chat", rooms.domain, format="leap")
    rows = make_rows([rooms.task(i) for i in range(4)], [0., .5])
    episodes = roll_chunk(rooms, chat, rows, 0, 3)
    assert said(episodes) == said(roll_chunk(rooms, Plain(chat), rows, 0, 3))
    assert all(t.action in rooms.choices or t.action.startswith("search") for e in episodes for t in e.turns)
    assert len(chat.log_probs(episodes)) == len(episodes)


@pytest.fixture()
def saved(tokenizer, tmp_path):
    return save_checkpoint(build_model(Recipe("x", width=32, inner=64, heads=2, kv_heads=1, layers=2), tokenizer), tokenizer, tmp_path / "agent")


def weights(change):
    "Spoil the stored tensors."
    def spoil(path):
        tensors = load_file(path / "model.safetensors"); change(tensors)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return spoil


def first(value):
    "Put a value into one weight."
    return weights(lambda t: t["model.norm.weight"].__setitem__(3, value))


def config(**changes):
    "Change fields of config.json."
    return lambda p: (p / "config.json").write_text(json.dumps(json.loads((p / "config.json").read_text()) | changes))


def swap(path):
    "Let two words of the vocabulary change places."
    d = json.loads((path / "tokenizer.json").read_text()); v = d["model"]["vocab"]
    a, b = list(v)[-1], list(v)[-7]
    v[a], v[b] = v[b], v[a]
    (path / "tokenizer.json").write_text(json.dumps(d))


def pickled(path):
    import pickle
    (path / "model.safetensors").write_bytes(pickle.dumps({"model.norm.weight": 1}))


@pytest.mark.parametrize("spoil, message", [
    (lambda p: (p / "config.json").unlink(), "no checkpoint"),
    (lambda p: (p / "config.json").write_text("{"), "cannot be loaded"),
    (lambda p: (p / "config.json").write_text("[]"), "cannot be loaded"),
    (lambda p: (p / "tokenizer.json").unlink(), "cannot be loaded"),
    (lambda p: (p / "model.safetensors").unlink(), "cannot be loaded"),
    (lambda p: (p / "model.safetensors").write_bytes(b"junk"), "cannot be loaded"),
    (lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:-100]), "cannot be loaded"),
    (pickled, "cannot be loaded"),
    (first(float("nan")), "not all finite"), (first(float("inf")), "not all finite"),
    (weights(lambda t: t.update({k: x.to(torch.int8) for k, x in t.items()})), "stored as I8"),
    (config(num_hidden_layers=3), "do not fit"), (config(num_hidden_layers=1), "do not fit"), (config(num_hidden_layers=-1), "cannot be loaded|do not fit"),
    (config(rms_norm_eps=float("nan")), "config.json: rms_norm_eps must be a finite number"),
    (config(hidden_size=64), "cannot be loaded|do not fit"), (config(vocab_size=10), "cannot be loaded|do not fit|different checkpoints"),
    (config(model_type="unheard-of"), "cannot be loaded"), (swap, "not in the order")])
def test_a_bad_checkpoint_is_one_sentence(rooms, saved, spoil, message):
    LMAgent.from_pretrained(saved, rooms.domain)
    spoil(saved)
    with pytest.raises(UserError, match=message) as err: LMAgent.from_pretrained(saved, rooms.domain)
    assert "\n" not in str(err.value) and str(saved) in str(err.value)


@pytest.mark.parametrize("model_type", ["llama", "unheard-of"])
def test_code_of_a_checkpoint_is_never_run_nor_asked_about(rooms, saved, tmp_path, monkeypatch, model_type):
    (saved / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config(model_type=model_type, auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]})(saved)
    monkeypatch.setattr("builtins.input", lambda *a: (tmp_path / "asked").write_text("") or "y")
    try: LMAgent.from_pretrained(saved, rooms.domain)
    except UserError as err: assert "\n" not in str(err)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "asked").exists()


def test_another_vocabulary_is_one_sentence(rooms, tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast
    from tokenizers import Tokenizer, models
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0, "b": 1}, [])), eos_token="a")
    save_checkpoint(build_model(Recipe("x", width=32, inner=64, heads=2, kv_heads=1, layers=2), tokenizer), plain, tmp_path / "agent")
    with pytest.raises(UserError, match="vocabulary lacks"): LMAgent.from_pretrained(tmp_path / "agent", rooms.domain)
    with pytest.raises(UserError, match="no agent format"): LMAgent.from_pretrained(tmp_path / "agent", rooms.domain, format="odd")


def test_a_checkpoint_survives_the_disk(rooms, agent, tmp_path):
    save_checkpoint(agent.model, agent.vocab.tokenizer, tmp_path / "agent")
    again = LMAgent.from_pretrained(tmp_path / "agent", rooms.domain)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "agent").config.model_type == "llama"
    for a, b in zip(agent.model.parameters(), again.model.parameters()): assert torch.equal(a.to(torch.bfloat16).float(), b)


def test_the_cache_holds_what_its_rows_have_read(rooms, agent):
    "Rows of different length cost their own columns, rounded up to blocks; what is cut off is given up."
    tasks = [rooms.task(i) for i in range(4)]
    session, states = agent.session(tasks), rooms.reset(tasks, [()] * 4)
    session.cache.block = 8
    for turn, rows in enumerate(([0, 1, 2, 3], [0, 1], [0], [0, 3])):
        actions = session.act(rows, [states[r] for r in rows], [key_rng(0, turn, r) for r in rows])
        for r, blocks in enumerate(session.cache.blocks): assert len(blocks) == -(-len(session.held[r]) // 8)
        for r, o in zip(rows, rooms.step([states[r] for r in rows], ["go west"] * len(rows), [()] * len(rows))): states[r] = o.state   # not what was said: the cache is cut back
    assert len(session.cache.blocks[0]) > len(session.cache.blocks[2]) and all(x.shape[1] == 8 for rows in session.cache.blocks for block in rows for x in block)
