"""Patching: lossless in both directions, of images and of video."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.layers.haar import Patch, Patching, Unpatch, VideoPatch, VideoUnpatch, haar, video_haar

METHODS: tuple[Patching, ...] = ("haar", "rearrange")


@given(st.sampled_from(METHODS), st.sampled_from((1, 2, 4)), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_patching_is_lossless(method: Patching, size: int, rows: int, columns: int, later: int) -> None:
    image = torch.randn(2, 3, rows * size, columns * size)
    patches = Patch(size, method)(image)
    assert patches.shape == (2, 3 * size**2, rows, columns)
    torch.testing.assert_close(Unpatch(size, method)(patches), image)
    video = torch.randn(2, 3, 1 + later * size, rows * size, columns * size)
    patches = VideoPatch(size, method)(video)
    assert patches.shape == (2, 3 * size**3, 1 + later, rows, columns)
    torch.testing.assert_close(VideoUnpatch(size, method)(patches), video)


def test_bands_are_named_by_their_filters() -> None:
    """A change along one axis alone shows in the band whose letter of that axis is H."""
    ramp = torch.tensor([1.0, -1.0])
    for axis, band in ((2, 0b100), (3, 0b010), (4, 0b001)):
        x = ramp.view([2 if dim == axis else 1 for dim in range(5)]).expand(1, 1, 2, 2, 2)
        assert video_haar(x).flatten().tolist() == [float(i == band) for i in range(8)]
    for axis, band in ((2, 0b01), (3, 0b10)):  # of images the first letter is the filter along the width
        x = ramp.view([2 if dim == axis else 1 for dim in range(4)]).expand(1, 1, 2, 2)
        assert haar(x).flatten().tolist() == [float(i == band) for i in range(4)]


def test_the_first_bands_are_means_of_all_channels() -> None:
    x = torch.randn(2, 3, 4, 4, 6)
    expected = torch.nn.functional.avg_pool3d(x, 2)
    torch.testing.assert_close(video_haar(x)[:, :3], expected)


@pytest.mark.parametrize("method", METHODS)
def test_later_frames_do_not_reach_the_first_patch(method: Patching) -> None:
    video = torch.randn(1, 3, 5, 4, 4)
    patch = VideoPatch(4, method)
    torch.testing.assert_close(patch(video)[:, :, :1], patch(video[:, :, :1]))
