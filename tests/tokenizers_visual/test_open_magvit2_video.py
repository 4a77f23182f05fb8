"""open_magvit2_video: which levels halve the frames, any number of frames, and what tokens depend on."""

import pytest
import torch

from tokenizers_visual.open_magvit2_video import OpenMAGVIT2Video, OpenMAGVIT2VideoConfig
from zoo.quantizers import BinaryConfig


def small(channel_multipliers: tuple[int, ...]) -> OpenMAGVIT2Video:
    torch.manual_seed(0)
    config = OpenMAGVIT2VideoConfig(
        channels=4, channel_multipliers=channel_multipliers, blocks=1, norm_groups=2, quantizer=BinaryConfig(bits=5)
    )
    return OpenMAGVIT2Video(config).eval()


@pytest.mark.parametrize(
    ("channel_multipliers", "frames", "side"),
    [((1, 2, 2, 4), 4, 8), ((1, 1, 2), 1, 4), ((2, 2, 1), 4, 4), ((3,), 1, 1)],
)
def test_frames_halve_after_levels_that_widen(channel_multipliers: tuple[int, ...], frames: int, side: int) -> None:
    model = small(channel_multipliers)
    assert (model.spec.frame_multiple, model.spec.multiple) == (frames, side)
    tokens = model.encode(torch.rand(1, 3, 1 + 2 * frames, side, 2 * side) * 2 - 1)
    assert tokens.indices.shape == (1, 3, 1, 2)
    assert model.decode(tokens).shape == (1, 3, 1 + 2 * frames, side, 2 * side)


@pytest.mark.parametrize("frames", [1, 2, 5, 6])
def test_any_number_of_frames_comes_back(frames: int) -> None:
    model = small((1, 2, 2, 4))
    x = torch.rand(1, 3, frames, 9, 16) * 2 - 1
    tokens = model.encode(x)
    assert tokens.indices.shape == (1, 1 + -(-(frames - 1) // 4), 2, 2)
    assert model.decode(tokens).shape == x.shape


def test_norms_see_all_frames_so_that_it_is_not_causal() -> None:
    model = small((1, 2))
    x = torch.rand(1, 3, 5, 8, 8) * 2 - 1
    later = x.clone()
    later[:, :, 1:] *= 0.1
    assert not model.spec.causal
    first, other = (model.latent(video)[:, 0] for video in (x, later))
    assert not torch.allclose(first, other, atol=1e-3)
