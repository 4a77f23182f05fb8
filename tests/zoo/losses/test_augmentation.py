"""Differentiable augmentation: what it changes and leaves, its gradients, and who sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.config import ConfigError
from zoo.losses import VQGANLoss, VQGANLossConfig
from zoo.losses.augmentation import augment
from zoo.losses.discriminators import BlurDiscriminatorConfig, DiscriminatorConfig, PatchGANConfig
from zoo.losses.style_discriminator import StyleDiscriminatorConfig

SMALL: dict[str, Any] = {
    "patchgan": (PatchGANConfig, {"hidden_channels": 4, "num_layers": 1}),
    "blur": (BlurDiscriminatorConfig, {"hidden_channels": 32, "num_stages": 1}),
    "style": (StyleDiscriminatorConfig, {"resolution": 16, "channel_base": 64, "channel_maximum": 8}),
}


def small(kind: str, **fields: Any) -> DiscriminatorConfig:
    config, sizes = SMALL[kind]
    return config(**sizes, **fields)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_a_share_of_the_images_is_changed() -> None:
    images = torch.rand(200, 3, 16, 16)
    assert torch.equal(augment(images, 0.0, 0.2), images)
    assert (augment(images, 1.0, 0.2) - images).flatten(1).abs().amax(1).min() > 0.01
    some = (augment(images, 0.5, 0.2) != images).flatten(1).any(1).float().mean()
    assert 0.35 < some < 0.65


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_move_by_whole_pixels_up_to_an_eighth_and_zeros_come_in(dtype: torch.dtype) -> None:
    height, width = 256, 64
    grey = torch.full((64, 3, height, width), 0.5, dtype=dtype)
    grey[:, :, 100, 30] = 64.0  # a point of no colour, brighter than all else
    moved = augment(grey, 1.0, 0.0)
    places = moved[:, 0].flatten(1).argmax(1)
    down, right = places // width - 100, places % width - 30
    assert down.abs().max() <= 32
    assert right.abs().max() <= 8
    assert min(len(down.unique()), len(right.unique())) > 10
    for image, dy, dx in zip(moved, down.tolist(), right.tolist()):
        assert (image == image.amax()).sum() == 3  # the point alone, whole, in each channel
        inside = torch.ones(height, width, dtype=torch.bool)
        inside[: max(dy, 0)] = inside[height + min(dy, 0) :] = False
        inside[:, : max(dx, 0)] = inside[:, width + min(dx, 0) :] = False
        assert (image[:, ~inside] == 0).all()
        inside[100 + dy, 30 + dx] = False
        assert len(image[:, inside].unique()) == 1  # what was one grey still is


def test_colours_keep_their_order_and_a_square_is_cut_out() -> None:
    images = torch.rand(50, 1, 3, 1, 1).squeeze(1).expand(-1, -1, 64, 64)
    whole, cut = augment(images, 1.0, 0.0), augment(images, 1.0, 0.5)
    colours = whole[:, :, 32, 32]
    assert ((colours[:, 0] < colours[:, 1]) == (images[:, 0, 0, 0] < images[:, 1, 0, 0])).all()
    assert (colours.mean(1) - images[:, :, 0, 0].mean(1)).abs().max() <= 0.5 + 1e-6
    empty = (whole == 0).all(1).float().mean().item(), (cut == 0).all(1).float().mean().item()
    assert 0.1 < empty[1] - empty[0] < 0.3  # half of each side, of which a part lies outside


def test_gradients_are_those_of_the_equations_twice() -> None:
    images = torch.rand(3, 2, 8, 8, dtype=torch.float64, requires_grad=True)

    def changed(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return augment(x, 1.0, 0.5).square()

    assert torch.autograd.gradcheck(changed, images)
    assert torch.autograd.gradgradcheck(changed, images)


@pytest.mark.parametrize("kind", SMALL)
def test_a_discriminator_sees_changed_images_in_training_alone(kind: str) -> None:
    images = torch.rand(4, 3, 16, 16)
    plain, network = small(kind).build(), small(kind, augmentation=1.0).build()
    assert not torch.equal(network(images), network(images))
    network.load_state_dict(plain.state_dict())
    assert torch.equal(plain.eval()(images), network.eval()(images))


def test_real_and_reconstructed_images_are_changed_apart() -> None:
    seen: list[torch.Tensor] = []
    discriminator = small("patchgan", augmentation=1.0, cutout=0.0).build()
    discriminator.main[0].register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))  # type: ignore[union-attr, index]
    images = torch.rand(4, 3, 16, 16)
    loss = VQGANLoss(VQGANLossConfig(discriminator_start=0, r1_weight=1.0), discriminator)
    loss.discriminator_loss(images, images, step=0).total.backward()
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])
    assert all(not torch.equal(given, images) for given in seen)


@pytest.mark.parametrize(("field", "value"), [("augmentation", 1.5), ("augmentation", -0.1), ("cutout", 1.0)])
@pytest.mark.parametrize("kind", SMALL)
def test_impossible_shares_are_refused(kind: str, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field} in .*got {value}"):
        small(kind, **{field: value})
