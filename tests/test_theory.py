"""The paper's identities on many enumerated processes, and the conditions under which its claims hold."""
import numpy as np
import pytest

from adwm.tabular import (joint, law, lengths, log_law, log_likelihood, normalise, random_policy, random_process, returns, tilt,
                          uniform_policy, value)
from adwm.theory import alternating_law, continuation, greedy_continuation, guided_step, log_policy, next_factor, total_variation

SHAPES = [dict(n_obs=2, n_actions=2, horizon=2), dict(n_obs=3, n_actions=3, horizon=3), dict(n_obs=2, n_actions=4, horizon=3), dict(n_obs=2, n_actions=2, horizon=5)]
KINDS = [dict(), dict(vary_actions=True), dict(vary_length=True), dict(vary_actions=True, vary_length=True)]
CASES = [(s, {**shape, **kind}) for s in range(4) for shape in SHAPES for kind in KINDS]
far = lambda a, b: max(np.abs(x - y).max() for x, y in zip(a, b))


def setup(seed, shape):
    p = random_process(seed, **shape)
    return p, random_policy(p, seed + 1), random_policy(p, seed + 2, 2.0)


@pytest.mark.parametrize("seed,shape", CASES)
def test_identities(seed, shape):
    p, b, e = setup(seed, shape)
    ratio = log_likelihood(p, e) - log_likelihood(p, b)
    assert np.abs(law(p, b) * np.exp(ratio) - law(p, e)).max() < 1e-12                                            # Eq. 1
    for lam in (0.0, 0.7, 1.0):
        guided, log_z = tilt(log_law(p, b), log_likelihood(p, e), lam)
        exact, psi = normalise(joint(p, guided)), continuation(p, b, log_policy(e, lam))
        assert far(normalise([s * f for s, f in zip(p.step, next_factor(p, psi))]), exact) < 1e-12                # Prop. 1
        assert far(guided_step(p, b, psi), exact) < 1e-12                                                         # Thm. 1
        assert abs(np.log(p.start @ psi[0]) - log_z) < 1e-12                                                      # Psi of nothing is the normaliser
        if lam == 0: assert np.abs(guided - law(p, b)).max() < 1e-12 and max(np.abs(x - 1).max() for x in psi) < 1e-12
    assert far(guided_step(p, b, psi, gamma=0), p.step) < 1e-12                                                   # no correction
    for d, l in zip(guided_step(p, b, psi, beta=0, gamma=0), p.legal): assert np.abs((d - d[:, :1])[l]).max() == 0  # deaf to the action


@pytest.mark.parametrize("seed,shape", CASES[::3])
def test_recovery(seed, shape):
    p, b, e = setup(seed, shape)
    exact, like = law(p, e), np.exp(log_likelihood(p, b))
    full, log_z = tilt(log_law(p, b), log_likelihood(p, e) - log_likelihood(p, b))
    assert np.abs(full - exact).max() < 1e-12 and abs(log_z) < 1e-12
    dropped, log_z = tilt(log_law(p, b), log_likelihood(p, e))
    assert np.abs(dropped - exact * like / (exact @ like)).max() < 1e-12 and abs(log_z - np.log(exact @ like)) < 1e-10
    uniform = uniform_policy(p)
    tv = total_variation(tilt(log_law(p, uniform), log_likelihood(p, e))[0], exact)
    constant = np.ptp(log_likelihood(p, uniform)) < 1e-12
    assert constant == (tv < 1e-12)
    fixed = not shape.get("vary_length") and len({int(n) for l in p.legal for n in l.sum(-1)}) == 1
    if fixed: assert constant
    if shape.get("vary_length"): assert not constant


def test_alternating_rollout_is_exact_without_guidance_and_biased_with_it():
    for seed in range(6):
        p, b, e = setup(seed, dict(vary_length=bool(seed % 2)))
        psi = continuation(p, b, log_policy(e))
        step = lambda g: normalise([s * f**g for s, f in zip(p.step, next_factor(p, psi))])
        tvs = [total_variation(alternating_law(p, e, step(g)), law(p, e)) for g in (0.0, 0.5, 1.0, 2.0)]
        assert tvs[0] < 1e-12 and (np.diff(tvs) > 0).all() and abs(alternating_law(p, e, step(2.0)).sum() - 1) < 1e-12
        ratio = [x - y for x, y in zip(log_policy(e), log_policy(b))]
        assert max(np.abs(x - 1).max() for x in continuation(p, b, ratio)) < 1e-12


def test_psi_with_the_wrong_actions_is_another_quantity():
    rows = []
    for seed in range(20):
        p = random_process(seed)
        b, e = random_policy(p, seed + 2000), random_policy(p, seed + 1000)
        score = log_policy(e)
        step = lambda psi: normalise([s * f for s, f in zip(p.step, next_factor(p, psi))])
        exact = step(continuation(p, b, score))
        rows.append([np.mean([total_variation(x, y).mean() for x, y in zip(s[:-1], exact[:-1])])
                     for s in (p.step, step(continuation(p, e, score)), step(greedy_continuation(p, e, score)))])
    none, target, greedy = np.mean(rows, 0)
    assert 0 < none < target and none < greedy


def test_value_bias_is_a_covariance():
    p, b, e = setup(3, dict(vary_actions=True, vary_length=True))
    exact, like, gain = law(p, e), np.exp(log_likelihood(p, b)), returns(p)
    dropped, _ = tilt(log_law(p, b), log_likelihood(p, e))
    cov = exact @ (like * gain) - (exact @ like) * (exact @ gain)
    assert abs(dropped @ gain - value(p, e) - cov / (exact @ like)) < 1e-12
    assert dropped @ lengths(p) < exact @ lengths(p)
