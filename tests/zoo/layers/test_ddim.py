"""Noise schedules and sampling against diffusers' DDIMScheduler, and noise by item."""

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from zoo.layers.ddim import ddim, item_noise, signal_share, trailing_times


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
