"""Schedules, DDIM and DDPM against closed formulas in float64 and against the definitions."""

import math

import pytest
import torch

from dit import DiT, DiTConfig, Sampler
from dit.diffusion import Diffusion, discretized_gaussian_log_likelihood, linear_betas, normal_kl, respaced_timesteps
from dit.sampler import ddim_step, ddpm_step, guide
from seerkit.sampling.seeds import SampleGenerators


def test_linear_schedule():
    betas = linear_betas()
    assert betas.dtype == torch.float64
    assert (betas[0].item(), betas[-1].item()) == (1e-4, 0.02)
    torch.testing.assert_close(betas.diff(), torch.full((999,), 0.0199 / 999, dtype=torch.float64))


def test_respacing_has_both_ends_and_pythons_rounding():
    """sample.py's "50": not DDIM's range(0, 1000, 20)."""
    steps = respaced_timesteps(50)
    assert steps[:8] == [0, 20, 41, 61, 82, 102, 122, 143]
    assert steps[-3:] == [958, 979, 999]
    assert len(steps) == 50
    assert respaced_timesteps(1000) == list(range(1000))
    assert respaced_timesteps(1) == [0]
    assert respaced_timesteps(250)[:4] == [0, 4, 8, 12]


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_counts_are_named(num_steps):
    with pytest.raises(ValueError, match=f"number of sampling steps {num_steps} must lie between 1 and 1000"):
        respaced_timesteps(num_steps)


def test_respaced_process_keeps_the_noise_levels():
    full, short = Diffusion.respaced(), Diffusion.respaced(50)
    torch.testing.assert_close(short.alphas_bar, full.alphas_bar[short.timesteps], rtol=1e-12, atol=0)


def test_ddim_step_by_the_closed_formula():
    """On x = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) ε with the true ε, every step lands on the same x0 and ε at the next level."""
    diffusion = Diffusion.respaced(50)
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(2, 1, 4, 4, generator=g, dtype=torch.float64) for _ in range(2))
    alphas_bar = torch.cumprod(1 - linear_betas(), 0)[respaced_timesteps(50)]
    x = alphas_bar[-1].sqrt() * x0 + (1 - alphas_bar[-1]).sqrt() * eps
    for i in range(49, -1, -1):
        x = ddim_step(diffusion, x, torch.full((2,), i), eps)
        level = alphas_bar[i - 1] if i else torch.tensor(1.0, dtype=torch.float64)
        torch.testing.assert_close(x, level.sqrt() * x0 + (1 - level).sqrt() * eps, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(x, x0, rtol=1e-10, atol=1e-10)


def test_posterior_is_bayes_rule():
    """q(x_{i-1} | x_i, x0) from the product of the two Gaussians that define the process."""
    diffusion = Diffusion.respaced(50)
    alphas_bar = torch.cumprod(1 - linear_betas(), 0)[respaced_timesteps(50)]
    g = torch.Generator().manual_seed(1)
    x0, xi = (torch.randn(3, 1, 2, 2, generator=g, dtype=torch.float64) for _ in range(2))
    for i in (1, 7, 49):
        alpha = alphas_bar[i] / alphas_bar[i - 1]
        prior_mean, prior_variance = alphas_bar[i - 1].sqrt() * x0, 1 - alphas_bar[i - 1]
        precision = 1 / prior_variance + alpha / (1 - alpha)
        mean = (prior_mean / prior_variance + alpha.sqrt() * xi / (1 - alpha)) / precision
        index = torch.full((3,), i)
        torch.testing.assert_close(diffusion.posterior_mean(x0, xi, index), mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(diffusion.log_variance_min[i].exp(), 1 / precision, rtol=1e-10, atol=0)


def test_learned_variance_lies_between_its_bounds():
    diffusion, i = Diffusion.respaced(50), torch.tensor([10, 10, 10])
    v = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    low, middle, high = diffusion.log_variance(v, i).flatten()
    assert low == diffusion.log_variance_min[10]
    assert high == pytest.approx(math.log(diffusion.betas[10]))
    assert middle == pytest.approx(((low + high) / 2).item())


def test_ddpm_step_adds_the_learned_noise_and_none_at_the_end():
    diffusion = Diffusion.respaced(50)
    g = torch.Generator().manual_seed(2)
    x, eps, noise = (torch.randn(1, 1, 3, 3, generator=g, dtype=torch.float64) for _ in range(3))
    log_variance = torch.full_like(x, -1.3)
    quiet = [ddpm_step(diffusion, x, torch.tensor([i]), eps, log_variance, torch.zeros_like(x)) for i in (0, 20)]
    torch.testing.assert_close(
        ddpm_step(diffusion, x, torch.tensor([20]), eps, log_variance, noise), quiet[1] + math.exp(-0.65) * noise
    )
    assert torch.equal(ddpm_step(diffusion, x, torch.tensor([0]), eps, log_variance, noise), quiet[0])
    torch.testing.assert_close(quiet[0], diffusion.predict_x0(x, torch.tensor([0]), eps))


def test_guidance_leaves_channels_past_the_third_conditional():
    output = torch.randn(4, 8, 2, 2)
    conditional, unconditional = output.chunk(2)
    guided = guide(output, 4.0, 3)
    torch.testing.assert_close(guided[:, :3], unconditional[:, :3] + 4 * (conditional - unconditional)[:, :3])
    assert torch.equal(guided[:, 3:], conditional[:, 3:])
    assert torch.equal(guide(output, 1.0, 8), unconditional + (conditional - unconditional))


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_sampler_is_the_official_loop(solver):
    """A whole guided run in float64 against the formulas, written out from α and β alone."""
    config = DiTConfig(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    model = DiT(config)
    g = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=g) * 0.3
    model = model.double().eval().requires_grad_(False)
    y, steps, scale = torch.tensor([2, 0]), 10, 3.0
    noise = SampleGenerators(5, [0, 1])
    start = noise.randn(4, 4, 4, dtype=torch.float64)
    result, _ = Sampler(model, steps, solver=solver, guidance_scale=scale).run(start, y, generators=noise)

    again = SampleGenerators(5, [0, 1])
    x = again.randn(4, 4, 4, dtype=torch.float64)
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    times = [round(i * 999 / (steps - 1)) for i in range(steps)]
    for i in reversed(range(steps)):
        a, previous = alphas_bar[times[i]], alphas_bar[times[i - 1]] if i else torch.tensor(1.0, dtype=torch.float64)
        conditional, unconditional = (
            model(x, torch.full((2,), times[i]), labels) for labels in (y, torch.full((2,), 3))
        )
        eps = conditional[:, :4].clone()
        eps[:, :3] = unconditional[:, :3] + scale * (conditional - unconditional)[:, :3]
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        if solver == "ddim":
            x = previous.sqrt() * x0 + (1 - previous).sqrt() * eps
            continue
        beta = 1 - a / previous
        mean = previous.sqrt() * beta / (1 - a) * x0 + (a / previous).sqrt() * (1 - previous) / (1 - a) * x
        first = alphas_bar[times[0]]
        smallest = (
            beta * (1 - previous) / (1 - a)
            if i
            else (1 - alphas_bar[times[1]] / first) * (1 - first) / (1 - alphas_bar[times[1]])
        )
        fraction = (conditional[:, 4:] + 1) / 2
        log_variance = fraction * beta.log() + (1 - fraction) * smallest.log()
        drawn = again.randn(4, 4, 4, dtype=torch.float64)
        x = mean + (0.5 * log_variance).exp() * drawn * (i > 0)
    torch.testing.assert_close(result, x, rtol=1e-9, atol=1e-9)


def test_loss_terms():
    """KL of Gaussians by its formula, bins that sum to one, and a perfect prediction that costs nothing but the variance."""
    mean, log_variance = torch.tensor(0.3, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    assert normal_kl(mean, log_variance, mean, log_variance) == 0
    p, q = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-0.1, 1.2)
    expected = torch.distributions.kl_divergence(p, q)
    found = normal_kl(p.mean, 2 * p.stddev.log(), q.mean, 2 * q.stddev.log())
    torch.testing.assert_close(found, expected)
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    probabilities = discretized_gaussian_log_likelihood(levels, levels * 0 + 0.2, levels * 0 - 3.0).exp()
    assert probabilities.sum() == pytest.approx(1, abs=1e-6)

    diffusion, g = Diffusion.respaced(), torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(5, 1, 4, 4, generator=g).clamp(-1, 1) for _ in range(2))
    i = torch.tensor([0, 1, 50, 500, 999])
    simple, vlb = diffusion.training_loss(torch.cat([noise, torch.full_like(noise, -1.0)], 1), x0, noise, i)
    assert simple.abs().max() == 0
    assert vlb[1:].abs().max() < 1e-3, "the true noise and the lower variance are the true posterior"
    worse, _ = diffusion.training_loss(torch.zeros(5, 2, 4, 4), x0, noise, i)
    torch.testing.assert_close(worse, noise.square().flatten(1).mean(1))


def test_variance_is_trained_without_moving_the_noise():
    diffusion, g = Diffusion.respaced(), torch.Generator().manual_seed(5)
    x0, noise = (torch.randn(2, 1, 4, 4, generator=g) for _ in range(2))
    output = torch.randn(2, 2, 4, 4, generator=g, requires_grad=True)
    _, vlb = diffusion.training_loss(output, x0, noise, torch.tensor([10, 700]))
    vlb.sum().backward()
    assert output.grad[:, :1].abs().max() == 0
    assert output.grad[:, 1:].abs().max() > 0
