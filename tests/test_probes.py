"""Probes of language models: one packed pass against asking the agent action by action."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from adwm.core import UserError, key_rng, root
from adwm.probes import language_probe, menu_paths, prefix_of, probe_of, state_at

ASSETS = root() / "assets" / "webshop-iter1"
pytestmark = pytest.mark.skipif(not (ASSETS / "manifest.json").is_file(), reason="the cell's agents and pool are not in this checkout")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def asked():
    from adwm.agents import LMAgent
    from adwm.episodes import read_episodes
    from adwm.webshop import domain
    agent = LMAgent.from_pretrained(ASSETS / "agents" / "b-early", domain())
    pool = read_episodes(ASSETS / "pool.jsonl.gz", "webshop")[300:312]
    return agent, pool, language_probe(agent, pool, m=4)


def test_logged_actions_have_the_agents_own_log_probabilities(asked):
    agent, pool, probe = asked
    probe.check(pool)
    for mine, theirs in zip(probe.logp, agent.log_probs(pool)): assert np.allclose(mine, theirs, atol=2e-4)


def test_menus_are_exact(asked):
    agent, pool, probe = asked
    seen = 0
    for e, acts, weights in list(zip(pool, probe.actions, probe.weights))[:4]:
        for t in range(len(e.turns)):
            menu = list(dict.fromkeys(a for a, _, _ in menu_paths(agent, state_at(e, t))))
            if not menu: continue
            cut = [replace(e, turns=(*e.turns[:t], replace(e.turns[t], action=a))) for a in menu]
            full = {a: float(np.exp(x[-1])) for a, x in zip(menu, agent.log_probs(cut))}
            kept = dict(zip(acts[t], weights[t]))
            share = sum(full[a] for a in kept)
            assert abs(sum(full.values()) - 1) < 1e-3 and abs(sum(kept.values()) - 1) < 1e-12
            assert max(abs(kept[a] - full[a] / share) for a in kept) < 1e-4 and all(p < 1.1e-3 for a, p in full.items() if a not in kept)
            seen += 1
    assert seen > 10


def test_free_text_is_what_a_session_says(asked):
    agent, pool, probe = asked
    for e, acts, weights in list(zip(pool, probe.actions, probe.weights))[:8]:
        state = state_at(e, 0)
        session = agent.session([e.task])
        said = [session.act([0], [state], [key_rng(0, "probe", *prefix_of(state), j)])[0] for j in range(4)]
        assert dict(zip(acts[0], weights[0])) == {a: said.count(a) / 4 for a in said}


def test_batches_do_not_matter(asked):
    agent, pool, probe = asked
    again = language_probe(agent, pool[:5], m=4, budget=1500)
    assert again.actions == probe.actions[:5]
    assert all(np.allclose(x, y, atol=1e-5) for r, q in zip(again.weights, probe.weights) for x, y in zip(r, q))
    with pytest.raises(UserError): language_probe(agent, pool[:1], least=0)


QUIZ = root() / "assets" / "hotpotqa"


@pytest.mark.skipif(not (QUIZ / "manifest.json").is_file(), reason="the HotpotQA agents and pool are not in this checkout")
@pytest.mark.parametrize("name", ["a-prm", "b-first"])
def test_the_best_of_several_proposals_is_asked_and_a_plain_agent_is_read(name):
    from adwm.episodes import read_episodes
    from adwm.hotpotqa import domain
    from adwm.preference import load_agent
    agent, pool = load_agent(QUIZ / "agents" / name, domain(), 1.0, name), read_episodes(QUIZ / "pool.jsonl.gz", "hotpotqa")[:4]
    probe = probe_of(agent, pool, m=2)
    probe.check(pool)
    if name == "a-prm":
        with pytest.raises(UserError, match="no log-probability"): language_probe(agent, pool)
        assert probe.logp is None and all(len(a) == 2 for row in probe.actions for a in row)
    else:
        for mine, theirs in zip(probe.logp, agent.log_probs(pool)): assert np.allclose(mine, theirs, atol=2e-4)


def test_an_action_that_cannot_be_said_is_impossible(asked):
    agent, pool, probe = asked
    e = replace(pool[0], turns=(replace(pool[0].turns[0], action="click[nowhere]"), *pool[0].turns[1:]))
    found = language_probe(agent, [e], m=2)
    assert np.isneginf(found.logp[0][0]) and np.isfinite(found.logp[0][1:]).all()
