"""What tokenizers of video promise: causality in time, padding of frames, and an image as a video of one frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizers_visual.cosmos_dv import CosmosDV, CosmosDVConfig
from zoo.config import ConfigError
from zoo.quantizers import FiniteScalarConfig
from zoo.tokenizer import InputSpec


def build(stride: int = 4, frame_stride: int = 4) -> CosmosDV:
    torch.manual_seed(0)
    config = CosmosDVConfig(
        stride, frame_stride, patch_size=2, channels=4, channel_multipliers=(1, 1, 2), blocks=1, latent_channels=6,
        resolution=16, attention_resolutions=(4,), quantizer=FiniteScalarConfig(levels=(5, 4, 3)),
    )  # fmt: skip
    return CosmosDV(config).eval()


def video(frames: int, height: int = 8, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 3), st.integers(0, 3))
def test_tokens_and_frames_depend_on_no_later_ones(known: int, later: int) -> None:
    model, x = build(), video(1 + 4 * (known + later))
    tokens = model.encode(x)
    alone = model.encode(x[:, :, : 1 + 4 * known])
    assert torch.equal(alone.indices, tokens.indices[:, : 1 + known])
    decoded = model.decode(tokens)[:, :, : 1 + 4 * known]
    torch.testing.assert_close(model.decode(alone), decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (2, 2), (5, 2), (6, 3), (9, 3)])
def test_frames_are_padded_after_the_first(frames: int, expected: int) -> None:
    model, x = build(), video(frames, 7, 9)
    tokens = model.encode(x)
    assert tokens.indices.shape == (1, expected, 2, 3)
    assert model.decode(tokens).shape == x.shape
    still = torch.cat([x, x[:, :, -1:].expand(-1, -1, (1 - frames) % 4, -1, -1)], dim=2)
    assert torch.equal(model.encode(still).indices, tokens.indices)


@pytest.mark.parametrize(("stride", "frame_stride"), [(2, 2), (4, 2), (4, 4), (8, 2), (8, 4)])
def test_published_pairs_of_strides_keep_the_size(stride: int, frame_stride: int) -> None:
    model = build(stride, frame_stride)
    x = video(1 + frame_stride, stride, 2 * stride)
    tokens = model.encode(x)
    assert tokens.indices.shape == (1, 2, 1, 2)
    assert model.decode(tokens).shape == x.shape


def test_integers_alone_give_a_video_of_their_grid() -> None:
    model = build()
    tokens = model.tokens(torch.zeros(2, 3, 1, 2, dtype=torch.int64))
    assert tokens.extent is not None
    assert tokens.extent.sizes == ((9, 4, 8),) * 2
    assert model.decode(tokens).shape == (2, 3, 9, 4, 8)
    with pytest.raises(ValueError, match="expected indices of shape"):
        model.tokens(torch.zeros(2, 3, 1, dtype=torch.int64))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.integers(1, 8))
def test_positions_and_sizes_undo_each_other(frames: int, side: int, multiple: int, frame_multiple: int) -> None:
    spec = InputSpec("video", 3, (-1.0, 1.0), multiple=multiple, frame_multiple=frame_multiple)
    size = (frames, side, side)
    grown = tuple(a + b for a, b in zip(size, spec.padding(size)))
    assert all(0 <= more < most for more, most in zip(spec.padding(size), (frame_multiple, multiple, multiple)))
    assert spec.padding(grown) == (0, 0, 0)
    assert spec.size_of(spec.positions(grown)) == grown


def test_an_image_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected a batch of shape \(batch, 3, frames, height, width\), got \(1, 3, 8, 8"
    ):
        build().encode(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 12}, "stride to be a power of two"),
        ({"stride": 32}, "a stride of patch_size 4 times at most 2"),
        ({"frame_stride": 16}, "a frame_stride of patch_size 4 times at most 2"),
        ({"stride": 4}, "a frame_stride of patch_size 4 times at most 2"),
        ({"channel_multipliers": ()}, "at least one level"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CosmosDVConfig(**fields)
