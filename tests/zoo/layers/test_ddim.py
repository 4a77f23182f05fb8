"""Noise schedules and sampling against diffusers' DDIMScheduler, noise by item, and what variances learn from."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from zoo.layers.ddim import ddim, denoising, item_noise, noised, signal_share, trailing_times, variance_bound


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
@pytest.mark.parametrize("clip", [False, True])
def test_equals_diffusers(schedule: str, zero_terminal_snr: bool, prediction: str, clip: bool) -> None:
    if prediction == "epsilon" and zero_terminal_snr:
        pytest.skip("undefined at the last time, where no signal is left")
    theirs = DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule=schedule,
        prediction_type=prediction,
        clip_sample=clip,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    share = signal_share(schedule, 1000, zero_terminal_snr=zero_terminal_snr)
    # diffusers goes by way of betas, which costs it digits where little signal is left
    torch.testing.assert_close(share, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    theirs.set_timesteps(10)
    assert trailing_times(1000, 10) == theirs.timesteps.tolist()
    weight = torch.tensor([[0.5, -0.3], [0.2, 0.4]])

    def network(x: Tensor, times: Tensor) -> Tensor:
        return x @ weight + times[:, None] / 1000

    noise = torch.randn(3, 2)
    expected = noise
    for time in theirs.timesteps:
        expected = theirs.step(network(expected, time.expand(3)), int(time), expected).prev_sample
    got = ddim(network, noise, share, trailing_times(1000, 10), 100, prediction, clip=clip)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_times_fall_from_the_last_one() -> None:
    assert trailing_times(1000, 1) == [999]
    assert trailing_times(6, 3) == [5, 3, 1]
    with pytest.raises(ValueError, match="expected 1 to 6, got 7"):
        trailing_times(6, 7)


def test_noise_of_an_item_does_not_depend_on_the_others() -> None:
    noise = item_noise((3, 4, 5), [7, 8, 7])
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(item_noise((1, 4, 5), 8)[0], noise[1])
    assert torch.equal(item_noise((2, 4, 5), None), item_noise((2, 4, 5), 0))
    with pytest.raises(ValueError, match="expected 2, one for each item, got 1"):
        item_noise((2, 4, 5), [1])


def steps_down(time: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean, noise and noisy signals of one time."""
    torch.manual_seed(time)
    clean, noise = torch.randn(2, 3, 4, 4).clamp(-1, 1), torch.randn(2, 3, 4, 4)
    return clean, noise, noised(clean, noise, torch.tensor([time, time]), signal_share("linear", 1000))


@pytest.mark.parametrize("time", [1, 37, 999])
def test_the_bound_of_a_step_is_its_divergence_from_the_posterior(time: int) -> None:
    clean, _, noisy = steps_down(time)
    predicted, spread = torch.randn(2, 2, 3, 4, 4)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    share = (1 - betas).cumprod(0)
    beta, now, before = betas[time], share[time], share[time - 1]

    def mean(signal: Tensor) -> Tensor:  # arXiv 2006.11239, equation 7
        return (before.sqrt() * beta * signal + (1 - beta).sqrt() * (1 - before) * noisy) / (1 - now)

    smallest = beta * (1 - before) / (1 - now)
    guess = mean((noisy.double() - (1 - now).sqrt() * predicted) / now.sqrt())
    variance = torch.exp((spread + 1) / 2 * beta.log() + (1 - spread) / 2 * smallest.log())
    posterior = torch.distributions.Normal(mean(clean.double()), smallest.sqrt())
    step = torch.distributions.Normal(guess, variance.sqrt())
    expected = torch.distributions.kl_divergence(posterior, step).mean() / math.log(2)
    found = variance_bound(clean, noisy, predicted, spread, torch.tensor([time, time]), 1000)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


def test_the_posterior_itself_costs_nothing_and_only_the_spread_learns() -> None:
    clean, noise, noisy = steps_down(500)
    time = torch.tensor([500, 500])
    cost = variance_bound(clean, noisy, noise, -torch.ones_like(clean), time, 1000)
    torch.testing.assert_close(cost, torch.tensor(0.0), rtol=0, atol=1e-6)
    predicted, spread = noise.clone().requires_grad_(), torch.zeros_like(clean, requires_grad=True)
    variance_bound(clean, noisy, predicted, spread, time, 1000).backward()
    assert predicted.grad is None
    assert spread.grad is not None
    assert bool((spread.grad > 0).all())  # the noise is known, so less variance would do


def test_at_time_0_the_bins_of_the_signal_share_one_probability() -> None:
    values = torch.arange(256) / 127.5 - 1
    noisy, predicted = torch.full((256, 1), 0.2), torch.full((256, 1), 0.4)
    time = torch.zeros(256, dtype=torch.int64)
    for spread in (-1.0, 1.0):
        costs = [
            variance_bound(value.view(1, 1), noisy[:1], predicted[:1], torch.full((1, 1), spread), time[:1], 1000)
            for value in values
        ]
        total = torch.stack(costs).mul(-math.log(2)).exp().sum()
        torch.testing.assert_close(total, torch.tensor(1.0), rtol=0, atol=1e-4)


def test_the_signal_of_a_right_prediction_is_the_clean_one() -> None:
    clean, noise, noisy = steps_down(300)
    time, share = torch.tensor([300, 300]), signal_share("linear", 1000)
    seen: list[Tensor] = []
    loss, signal = denoising(lambda x, _: (seen.append(x), noise)[1], clean, noise, time, share, "epsilon")
    assert torch.equal(seen[0], noisy)
    assert float(loss) == 0
    torch.testing.assert_close(signal, clean, rtol=0, atol=1e-4)
