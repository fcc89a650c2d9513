"Guidance against closed forms."
import numpy as np
import pytest
import torch
from adwm.core import UserError
from adwm.guidance import Guide, cfg, continuation_grad, gamma_schedule, guided_eps
from adwm.schedule import cosine_schedule, denoise, eps_to_score, eps_to_z0, mixture_eps, sampled_moments
from adwm.tabular import random_policy, random_process
from adwm.theory import greedy_continuation, log_policy

torch.set_num_threads(1)
D = torch.float64
FINE = cosine_schedule(1000)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def gauss(mean, var, schedule=FINE):
    return mixture_eps(torch.tensor([[mean]]), torch.tensor([var]), torch.ones(1), schedule)


@pytest.mark.parametrize("beta,sampler,mean,var", [
    (0., "ddpm", 0., 1.), (1., "ddpm", 1., .25), (1., "ddim", 1., .25), (2., "ddpm", 1.250, .109), (2., "ddim", 1.380, .062)])
def test_cfg_on_gaussians(beta, sampler, mean, var):
    "The law for beta = 2 is 1.143 / .143; the samplers give something else."
    u, c = gauss(0., 1.), gauss(1., .25)
    got = sampled_moments(lambda zk, k: cfg(u(zk, k), c(zk, k), beta), FINE, sampler=sampler)
    assert np.allclose(got, (mean, var), atol=9e-3)


def loglik(z0): return -(z0[:, 0] - 2).square()/2


def by_hand(scale):
    def guide(zk, k, eps_fn):
        g, eps = continuation_grad(loglik, zk, k, eps_fn, FINE, "stopped")
        return guided_eps(eps, g*scale(FINE.at(k, zk)), 1., FINE.at(k, zk))
    return guide


@pytest.mark.parametrize("guide,mean", [
    (Guide(loglik, FINE, torch.ones(1000)), 1.26), (by_hand(lambda a: 1/a), 2.00),
    (Guide(loglik, FINE, torch.ones(1000), "stopped"), 1.26), (Guide(loglik, FINE, gamma_schedule(FINE)), .79)],
    ids=["full", "stopped", "stopped x abar", "full x abar"])
def test_continuation_on_a_gaussian(guide, mean):
    "The law has mean 1.00."
    assert abs(sampled_moments(gauss(0., 1.), FINE, guide=guide)[0] - mean) < .01


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_exact_guidance_gives_the_law(sampler):
    def guide(zk, k, eps_fn):
        abar = FINE.at(k, zk)
        return guided_eps(eps_fn(zk, k), abar.sqrt()*(2 - abar.sqrt()*zk)/(2 - abar), 1., abar)
    assert np.allclose(sampled_moments(gauss(0., 1.), FINE, sampler=sampler, guide=guide), (1., .5), atol=5e-3)


def test_exact_guidance_of_a_mixture_gives_the_law():
    "Tilting a 2-d mixture by class weights is a mixture; the guide is the gradient of the exact log class probability."
    s, mu, v = cosine_schedule(100), torch.tensor([[-1.5, 0.], [.6, 1.3], [1.3, -.4]]), torch.full((3,), .1)
    prior, tilt = torch.tensor([.4, .3, .3]), torch.tensor([.2, 1., 3.])
    law = prior*tilt/(prior*tilt).sum()
    u, target = mixture_eps(mu, v, prior, s), mixture_eps(mu, v, law, s)

    def guide(zk, k, eps_fn):
        g = eps_to_score(target(zk, k), k, s) - eps_to_score(u(zk, k), k, s)
        return guided_eps(eps_fn(zk, k), g, 1., s.at(k, zk))
    z = denoise(u, s, draw(3000, 2), draw(100, 3000, 2, seed=1), 100, "ddpm", guide)
    share = torch.bincount(torch.cdist(z.float(), mu).argmin(-1), minlength=3)/3000
    assert (share - law).abs().max() < .03


def test_linear_likelihood_is_exact():
    guide = Guide(lambda z0: .8*z0[:, 0], FINE, torch.ones(1000))
    assert np.allclose(sampled_moments(gauss(0., 1.), FINE, guide=guide), (.8, 1.), atol=1e-2)


@pytest.mark.parametrize("jacobian", ["full", "stopped"])
def test_gradient_is_the_chain_rule(jacobian):
    s = cosine_schedule(50)
    net = lambda zk, k: torch.tanh(zk@torch.tensor([[.3, 1.], [-.5, .2]], dtype=D)) + .01*k[:, None]
    f = lambda z0: (z0.sin()*torch.tensor([1., 2.], dtype=D)).sum(-1)
    zk, k = draw(4, 2), torch.tensor([0, 10, 30, 49])
    g, eps = continuation_grad(f, zk, k, net, s, jacobian)
    assert torch.allclose(eps, net(zk, k)) and not g.requires_grad
    for i in range(4):
        abar, at = float(s.abar[k[i]]), (k[i:i+1],)
        z0 = eps_to_z0(net(zk[i:i+1], *at), zk[i:i+1], *at, s).requires_grad_()
        outer, = torch.autograd.grad(f(z0).sum(), z0)
        jac = torch.autograd.functional.jacobian(lambda x: eps_to_z0(net(x[None], *at), x[None], *at, s)[0], zk[i])
        want = outer[0]@jac if jacobian == "full" else outer[0]*abar**.5
        assert torch.allclose(g[i], want, rtol=1e-8)


def test_gradient_under_no_grad_and_without_touching_parameters():
    s, net = cosine_schedule(50), torch.nn.Linear(2, 2).double()
    with torch.no_grad():
        g, _ = continuation_grad(lambda z: z.sum(-1), draw(3, 2), torch.tensor([1, 2, 3]), lambda zk, k: net(zk), s)
    assert g.shape == (3, 2) and net.weight.grad is None


def test_rows_do_not_mix():
    s, f = cosine_schedule(50), lambda z0: z0.square().sum(-1)
    net = lambda zk, k: torch.tanh(zk)
    zk, k = draw(5, 3), torch.arange(5)
    whole, _ = continuation_grad(f, zk, k, net, s)
    one, _ = continuation_grad(f, zk[2:3], k[2:3], net, s)
    assert torch.allclose(whole[2:3], one)


def test_gamma_rises_and_starts_late():
    s = cosine_schedule(50)
    g = gamma_schedule(s, 3., power=1., start=.3)
    assert (g[15:] == 0).all() and (g[:15].diff() < 0).all() and torch.allclose(g[:15], 3*s.abar[:15])
    assert torch.equal(gamma_schedule(s, 2., power=0.), torch.full((50,), 2., dtype=D))


def test_policy_is_asked_only_where_gamma_is_positive():
    s, asked = cosine_schedule(50), []
    guide = Guide(lambda z0: (asked.append(len(z0)), z0.sum(-1))[1], s, gamma_schedule(s, start=.2))
    denoise(lambda zk, k: .5*zk, s, draw(7, 2), None, 10, guide=guide)
    assert asked == [7, 7]


def test_max_shift():
    s = cosine_schedule(50)
    guide = Guide(lambda z0: 1e4*z0.sum(-1), s, torch.ones(50), max_shift=.25)
    zk, k, net = draw(6, 3), torch.full((6,), 20), lambda zk, k: .1*zk
    shift = guide(zk, k, net) - net(zk, k)
    assert torch.allclose(shift.norm(dim=-1), torch.full((6,), .25, dtype=D))


def test_unknown_jacobian():
    with pytest.raises(UserError): continuation_grad(loglik, draw(1, 1), torch.zeros(1, dtype=torch.long), None, FINE, "bare")


def greedy_walk(process, policy, t, row):
    "exp of the log probabilities along one walk: the likeliest action, the likeliest page, to the end."
    logp = 0.
    while True:
        action = max(range(process.n_actions), key=lambda a: policy[t][row, a])
        page = max(range(process.n_obs + 1), key=lambda o: process.step[t][row, action, o])
        logp += np.log(policy[t][row, action])
        if page == process.n_obs: return np.exp(logp)
        t, row = t + 1, process.child[t][row, action, page]


@pytest.mark.parametrize("kind", [dict(), dict(vary_actions=True, vary_length=True), dict(n_obs=3, n_actions=4, horizon=3)])
def test_greedy_continuation_follows_the_likeliest_walk(kind):
    for seed in range(5):
        p = random_process(seed, **kind)
        policy = random_policy(p, seed + 1, 2.)
        for t, psi in enumerate(greedy_continuation(p, policy, log_policy(policy))):
            assert np.allclose(psi, [greedy_walk(p, policy, t, n) for n in range(len(psi))], rtol=1e-12)
