"""Discriminators: shapes, names of the weights, start values, and the blur."""

import pytest
import torch

from zoo.losses.discriminators import (
    BlurDiscriminator,
    BlurDiscriminatorConfig,
    BlurDownsample,
    PatchGAN,
    PatchGANConfig,
)


def test_patch_gan_judges_30_by_30_patches_of_256_pixels_and_has_the_published_names_and_size() -> None:
    discriminator = PatchGAN(PatchGANConfig())
    assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    shapes = {name: tuple(parameter.shape) for name, parameter in discriminator.named_parameters()}
    assert shapes["main.0.weight"] == (64, 3, 4, 4)
    assert shapes["main.8.weight"] == (512, 256, 4, 4)
    assert shapes["main.9.weight"] == (512,)
    assert shapes["main.11.weight"] == (1, 512, 4, 4)
    assert "main.0.bias" in shapes
    assert "main.2.bias" not in shapes
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 2_765_633


def test_patch_gan_logit_sees_a_patch_of_70_pixels() -> None:
    # In eval mode, since the statistics of batch norm connect all patches.
    discriminator = PatchGAN(PatchGANConfig(hidden_channels=4)).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits[0, 0, 7, 7], images)
    rows = gradient.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_blur_discriminator_has_16_by_16_logits_at_any_size_and_the_published_names() -> None:
    discriminator = BlurDiscriminator(BlurDiscriminatorConfig(hidden_channels=32, num_stages=2))
    assert discriminator(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 16, 16)
    assert discriminator(torch.zeros(1, 3, 75, 90)).shape == (1, 1, 16, 16)
    shapes = {name: tuple(tensor.shape) for name, tensor in discriminator.state_dict().items() if "bias" not in name}
    assert shapes == {
        "block_in.0.weight": (32, 3, 5, 5),
        "blocks.0.0.weight": (32, 32, 3, 3),
        "blocks.0.1.kernel": (1, 1, 4, 4),
        "blocks.0.2.weight": (32,),
        "blocks.1.0.weight": (64, 32, 3, 3),
        "blocks.1.1.kernel": (1, 1, 4, 4),
        "blocks.1.2.weight": (64,),
        "to_logits.0.weight": (64, 64, 1, 1),
        "to_logits.2.weight": (1, 64, 5, 5),
    }


@pytest.mark.parametrize("discriminator", [PatchGAN(PatchGANConfig()), BlurDiscriminator(BlurDiscriminatorConfig())])
def test_convolutions_start_with_a_standard_deviation_of_002(discriminator: torch.nn.Module) -> None:
    weights = [module.weight for module in discriminator.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(abs(weight.std().item() - 0.02) < 0.002 for weight in weights if weight.numel() > 1000)
    scales = [module.weight for module in discriminator.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(abs(scale.mean().item() - 1) < 0.02 and 0.01 < scale.std().item() < 0.03 for scale in scales)


@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_blur_keeps_a_plane_and_halves_its_sides_rounding_up(kernel_size: int) -> None:
    blurred = BlurDownsample(kernel_size)(torch.full((1, 2, 15, 16), 0.7))
    assert blurred.shape == (1, 2, 8, 8)
    torch.testing.assert_close(blurred[..., 1:-1, 1:-1], torch.full((1, 2, 6, 6), 0.7))


def test_blur_removes_what_would_alias() -> None:
    checkerboard = (torch.arange(16).view(1, 16) + torch.arange(16).view(16, 1)).remainder(2).float()[
        None, None
    ] * 2 - 1
    for kernel_size in (3, 4, 5):
        assert BlurDownsample(kernel_size)(checkerboard)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_without_blur_stages_average() -> None:
    discriminator = BlurDiscriminator(BlurDiscriminatorConfig(hidden_channels=32, num_stages=1, blur_kernel_size=None))
    assert not any("kernel" in name for name in discriminator.state_dict())
    assert discriminator(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 16, 16)


@pytest.mark.parametrize("change", [{"hidden_channels": 48}, {"num_stages": 0}, {"blur_kernel_size": 6}])
def test_impossible_sizes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        BlurDiscriminatorConfig(**change)
    with pytest.raises(ValueError, match="num_layers"):
        PatchGANConfig(num_layers=0)
