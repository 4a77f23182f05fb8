"""Splatting is its definition, pixel by pixel, in value and gradient, and keeps little for the backward pass."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops.splat import splat

Case = tuple[Tensor, Tensor, Tensor, Tensor]


def gaussians(count: int, seed: int, batch: int = 1, channels: int = 2) -> Case:
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(batch, count, 2, generator=generator) * 2.6 - 1.3
    rotations = torch.rand(batch, count, generator=generator) * math.pi
    scales = 0.15 + torch.rand(batch, count, 2, generator=generator) * 2.5
    return means, rotations, scales, torch.randn(batch, count, channels, generator=generator)


def weight(mean: Tensor, rotation: Tensor, scale: Tensor, size: tuple[int, int], i: int, j: int, tile: int) -> float:
    """Of one Gaussian at row i and column j, in float64."""
    cx, cy = (float(mean[0]) + 1) * size[1] / 2, (float(mean[1]) + 1) * size[0] / 2
    cosine, sine = math.cos(float(rotation)), math.sin(float(rotation))
    turn = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)
    covariance = turn @ torch.diag(scale.double().square()) @ turn.T
    determinant = float(covariance.det())
    if determinant == 0:
        return 0.0
    half = float(covariance.trace()) / 2
    radius = math.ceil(3 * math.sqrt(half + math.sqrt(max(0.1, half**2 - determinant))))
    for centre, place in ((cx, j), (cy, i)):
        if not max(0, int((centre - radius) / tile)) <= place // tile < int((centre + radius) / tile + 1):
            return 0.0
    offset = torch.tensor([cx - j, cy - i], dtype=torch.float64)
    exponent = 0.5 * float(offset @ covariance.inverse() @ offset)
    alpha = min(1.0, math.exp(-exponent))
    return alpha if exponent >= 0 and alpha >= 1 / 255 else 0.0


def slowly(case: Case, size: tuple[int, int], tile: int) -> Tensor:
    means, rotations, scales, features = case
    image = torch.zeros(len(means), features.shape[2], *size, dtype=torch.float64)
    for b in range(len(means)):
        for n in range(means.shape[1]):
            for i in range(size[0]):
                for j in range(size[1]):
                    alpha = weight(means[b, n], rotations[b, n], scales[b, n], size, i, j, tile)
                    image[b, :, i, j] += alpha * features[b, n].double()
    return image


@given(st.integers(1, 4), st.integers(0, 200), st.integers(3, 10), st.integers(3, 10), st.sampled_from([2, 4, 16]))
def test_every_pixel_is_its_definition(count: int, seed: int, height: int, width: int, tile: int) -> None:
    case = gaussians(count, seed)
    got, expected = splat(*case, (height, width), tile=tile), slowly(case, (height, width), tile)
    # a weight at the very edge of 1/255 may fall on either side of it in float32
    assert float((got - expected).abs().max()) < 1.1 / 255 * float(case[3].abs().max())
    assert ((got - expected).abs() > 1e-4).float().mean() < 0.02


def test_a_batch_is_its_items() -> None:
    case = gaussians(6, 0, batch=3)
    together = splat(*case, (20, 18), tile=8)
    for item in range(3):
        alone = splat(*(x[item : item + 1] for x in case), (20, 18), tile=8)
        torch.testing.assert_close(together[item : item + 1], alone)


def test_the_floor_under_the_root_lets_a_round_gaussian_reach_one_pixel_farther() -> None:
    """With deviation 1 the radius would be 3, and is 4: so the pixel at a distance of 3.2 is reached."""
    centre = 4.8
    mean = torch.tensor([[[2 * centre / 12 - 1, 0.0]]])
    image = splat(mean, torch.zeros(1, 1), torch.ones(1, 1, 2), torch.ones(1, 1, 1), (4, 12), tile=1)[0, 0, 2]
    assert float(image[8]) == pytest.approx(math.exp(-0.5 * 3.2**2), rel=1e-4)
    assert float(image[9]) == 0.0


def test_tile_culling_cuts_off_what_would_count() -> None:
    """A Gaussian whose centre lies left of the image: its tiles end at the radius, counted from its centre."""
    size = (16, 32)
    mean = torch.tensor([[[-1.0 + 2 * 10.0 / 32, 0.0]]])  # at column 10
    scale = torch.tensor([[[1.9, 1.9]]])
    arguments = (mean, torch.zeros(1, 1), scale, torch.ones(1, 1, 1))
    image = splat(*arguments, size, tile=16)[0, 0]
    # radius ceil(3 * sqrt(3.61 + 0.316)) = 6: the second tile would begin at 16 <= 10 + 6, so it is reached
    assert float(image[8, 16]) > 0
    moved = torch.tensor([[[-1.0 + 2 * 9.9 / 32, 0.0]]])
    image = splat(moved, *arguments[1:], size, tile=16)[0, 0]
    value = math.exp(-0.5 * ((9.9 - 16) / 1.9) ** 2)
    assert value > 1 / 255  # it would count, but 9.9 + 6 < 16
    assert float(image[8, 16]) == 0.0
    assert float(image[8, 15]) > 0


def test_a_gaussian_without_an_area_gives_nothing() -> None:
    arguments = (torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.tensor([[[0.0, 1.0]]]), torch.ones(1, 1, 1))
    assert not splat(*arguments, (4, 4)).any()


def test_gradients_are_those_of_the_whole_image_at_once() -> None:
    case = tuple(x.requires_grad_() for x in gaussians(5, 3, batch=2))
    upstream = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    means, rotations, scales, features = case
    (splat(*case, (12, 12), tile=4) * upstream).sum().backward()
    got = [x.grad.clone() for x in case if x.grad is not None]
    for x in case:
        x.grad = None
    cosine, sine = rotations.cos(), rotations.sin()
    turn = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)
    inverse = (turn @ torch.diag_embed(scales.square()) @ turn.mT).inverse()
    grid = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="xy"), -1)
    offsets = (means[:, :, None, None] + 1) * 6 - grid
    exponent = 0.5 * torch.einsum("bnhwi,bnij,bnhwj->bnhw", offsets, inverse, offsets)
    with torch.no_grad():
        one = torch.ones(2, 5, 1)
        kept = torch.cat([splat(means[:, n : n + 1], rotations[:, n : n + 1], scales[:, n : n + 1],
                                one[:, n : n + 1], (12, 12), tile=4) for n in range(5)], 1) > 0  # fmt: skip
    image = torch.einsum("bnhw,bnc->bchw", (-exponent).exp() * kept, features)
    (image * upstream).sum().backward()
    for x, expected in zip(got, case, strict=True):
        torch.testing.assert_close(x, expected.grad, rtol=1e-3, atol=1e-4)


def test_what_is_kept_for_the_backward_pass_does_not_grow_with_gaussians_times_pixels() -> None:
    case = tuple(x.requires_grad_() for x in gaussians(200, 0))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        splat(*case, (64, 64))
    assert sum(kept) < 200 * 64 * 64 / 10


def test_shapes_that_do_not_fit_are_refused() -> None:
    means, rotations, scales, features = gaussians(3, 0)
    with pytest.raises(ValueError, match="expected means"):
        splat(means, rotations[..., None], scales, features, (4, 4))
    with pytest.raises(ValueError, match=r"expected features \(1, 3, C\), got \(1, 2, 2\)"):
        splat(means, rotations, scales, features[:, :2], (4, 4))
