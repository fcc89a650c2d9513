"Schedule and samplers against exact answers and against the diffusers library."
import math

import pytest
import torch
from adwm.core import UserError
from adwm.schedule import (cosine_schedule, denoise, eps_to_score, eps_to_z0, loss_weight, mixture_eps, noise_model, reverse_step, sampled_moments, snr,
                           visited_steps)

torch.set_num_threads(1)
D = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def gauss(mean, var, schedule):
    return mixture_eps(torch.tensor([[mean]]), torch.tensor([var]), torch.ones(1), schedule)


@pytest.mark.parametrize("K", [1, 2, 10, 50, 1000])
def test_schedule_is_a_schedule(K):
    s = cosine_schedule(K)
    assert s.K == K and s.abar.dtype == D and (s.abar > 0).all() and (s.abar < 1).all()
    alpha = s.abar/torch.cat([torch.ones(1, dtype=D), s.abar[:-1]])
    assert (alpha < 1).all() and alpha.min() >= .001 - 1e-12


@pytest.mark.parametrize("K", [50, 1000])
def test_schedule_equals_diffusers(K):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=K, beta_schedule="squaredcos_cap_v2")
    assert torch.allclose(theirs.alphas_cumprod.double(), cosine_schedule(K).abar, rtol=1e-3, atol=1e-6)  # theirs is float32


def with_our_schedule(scheduler, schedule):
    "The diffusers scheduler in double precision."
    abar = schedule.abar
    alphas = abar/torch.cat([torch.ones(1, dtype=D), abar[:-1]])
    scheduler.alphas_cumprod, scheduler.alphas, scheduler.betas = abar, alphas, 1 - alphas
    scheduler.one = scheduler.final_alpha_cumprod = torch.ones((), dtype=D)
    return scheduler


@pytest.mark.parametrize("K,steps", [(50, 50), (50, 10), (50, 5), (1000, 20)])
@pytest.mark.parametrize("clip", [None, .7])
def test_ddim_equals_diffusers(K, steps, clip):
    diffusers = pytest.importorskip("diffusers")
    s = cosine_schedule(K)
    eps_fn = lambda zk, k: torch.tanh(zk*1.3 - .2) + k[:, None]/K
    sched = with_our_schedule(diffusers.DDIMScheduler(num_train_timesteps=K, timestep_spacing="trailing", set_alpha_to_one=True,
                              clip_sample=clip is not None, clip_sample_range=clip or 1.), s)
    sched.set_timesteps(steps)
    assert sched.timesteps.tolist() == visited_steps(K, steps)
    z = start = draw(6, 4)
    for k in sched.timesteps:
        eps = eps_fn(z, k.expand(6))
        z = sched.step(eps, int(k), z, eta=0., use_clipped_model_output=True).prev_sample
    ours = denoise(eps_fn, s, start, None, steps, "ddim", z0_max=clip)
    assert torch.allclose(ours, z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("K,steps", [(50, 50), (50, 10), (1000, 20)])
def test_ddpm_equals_diffusers(K, steps):
    diffusers = pytest.importorskip("diffusers")
    s = cosine_schedule(K)
    sched = with_our_schedule(diffusers.DDPMScheduler(num_train_timesteps=K, timestep_spacing="trailing", clip_sample=False,
                              variance_type="fixed_small"), s)
    sched.set_timesteps(steps)
    z = draw(6, 4)
    for i, k in enumerate(sched.timesteps.tolist()):
        eps, k_next = torch.tanh(z) + k/K, (visited_steps(K, steps) + [-1])[i + 1]
        theirs = sched.step(eps, k, z, generator=torch.Generator().manual_seed(k)).prev_sample
        noise = torch.randn(6, 4, dtype=D, generator=torch.Generator().manual_seed(k)) if k_next >= 0 else None
        ours = reverse_step(z, eps, torch.full((6,), k), torch.full((6,), k_next), noise, s)
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10)
        z = ours


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction", ["eps", "z0"])
def test_both_predictions_sample_the_same(sampler, prediction):
    s = cosine_schedule(50)
    exact = gauss(.5, .25, s)
    net = exact if prediction == "eps" else lambda zk, k: eps_to_z0(exact(zk, k), zk, k, s)
    z, noise = draw(5, 1), draw(8, 5, 1, seed=1)
    got = denoise(noise_model(net, s, prediction), s, z, noise, 8, sampler)
    assert torch.allclose(got, denoise(exact, s, z, noise, 8, sampler), atol=1e-9)


def test_moments_match_a_large_sample():
    s = cosine_schedule(50)
    eps_fn = gauss(.5, .25, s)
    z = denoise(eps_fn, s, draw(20000, 1), draw(50, 20000, 1, seed=1), 50, "ddpm")
    mean, var = sampled_moments(eps_fn, s)
    assert abs(float(z.mean()) - mean) < .012 and abs(float(z.var()) - var) < .008


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_converge_to_the_data(sampler):
    errors = [abs(sampled_moments(gauss(.5, .25, s), s, sampler=sampler)[1] - .25) for s in map(cosine_schedule, (20, 100, 500))]
    assert errors == sorted(errors, reverse=True) and errors[-1] < .005


def test_last_step_adds_no_noise():
    s = cosine_schedule(50)
    noise = draw(50, 4, 2, seed=3)
    loud = noise.clone(); loud[-1] = 1e9
    eps_fn = mixture_eps(torch.tensor([[1., -1.], [-1., 1.]]), torch.tensor([.1, .2]), torch.tensor([.5, .5]), s)
    a, b = (denoise(eps_fn, s, draw(4, 2), n, 50, "ddpm") for n in (noise, loud))
    assert torch.equal(a, b)
    assert torch.equal(a, denoise(eps_fn, s, draw(4, 2), noise[:-1], 50, "ddpm"))


def test_mixture_score_is_the_gradient_of_the_density():
    s = cosine_schedule(50)
    mu, v, w = draw(3, 2), torch.tensor([.1, .3, .5], dtype=D), torch.tensor([.2, .3, .5], dtype=D)
    for step in (0, 20, 49):
        a, z = float(s.abar[step]), draw(7, 2, seed=4).requires_grad_()
        total = a*v + 1 - a
        logp = (w.log() - torch.cdist(z, a**.5*mu).square()/2/total - total.log()).logsumexp(-1).sum()
        k = torch.full((7,), step)
        assert torch.allclose(eps_to_score(mixture_eps(mu, v, w, s)(z, k), k, s), torch.autograd.grad(logp, z)[0], atol=1e-9)


def test_batching_does_not_matter():
    s = cosine_schedule(50)
    eps_fn = mixture_eps(draw(3, 2), torch.full((3,), .1), torch.ones(3)/3, s)
    z, noise = draw(6, 2), draw(10, 6, 2, seed=1)
    whole = denoise(eps_fn, s, z, noise, 10, "ddpm")
    parts = [denoise(eps_fn, s, z[i:i+2], noise[:, i:i+2], 10, "ddpm") for i in (0, 2, 4)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-12)


def test_float32_keeps_its_type():
    s = cosine_schedule(50)
    z = draw(3, 2).float()
    out = denoise(lambda zk, k: .1*zk, s, z, draw(5, 3, 2), 5, "ddpm")
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_weights_are_one_objective():
    s = cosine_schedule(50)
    assert torch.equal(loss_weight(s, "eps", math.inf), torch.ones(50, dtype=D))
    assert torch.allclose(loss_weight(s, "eps", 5.)*snr(s), loss_weight(s, "z0", 5.)) and loss_weight(s, "z0").max() == 5


@pytest.mark.parametrize("K,steps", [(50, 7), (50, 8), (10, 3), (1000, 999)])
def test_visited_steps(K, steps):
    ks = visited_steps(K, steps)
    assert len(set(ks)) == steps and ks[0] == K - 1 and ks == sorted(ks, reverse=True) and ks[-1] >= 0


@pytest.mark.parametrize("call", [
    lambda s: cosine_schedule(0), lambda s: visited_steps(50, 51), lambda s: noise_model(None, s, "v"), lambda s: loss_weight(s, "v"),
    lambda s: denoise(None, s, draw(1, 1), None, 5, "euler"), lambda s: denoise(None, s, draw(1, 1), None, 5, "ddpm"),
    lambda s: denoise(None, s, draw(1, 1), draw(2, 1, 1), 5, "ddpm")])
def test_wrong_input_is_one_sentence(call):
    with pytest.raises(UserError) as e: call(cosine_schedule(50))
    assert "\n" not in str(e.value)
