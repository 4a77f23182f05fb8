"""The composed VQGAN loss: parity with the originals' losses and gradients, schedules, and what it does in training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.losses.discriminators import BlurDiscriminator, BlurDiscriminatorConfig, PatchGAN, PatchGANConfig
from zoo.losses.perceptual import FeatureDistance
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.losses.vqgan import VQGANLoss, VQGANLossConfig

PARITY = Path(__file__).parents[2] / "parity"
TAMING = VQGANLossConfig(
    reconstruction="l1",
    reconstruction_weight=1.0,
    entropy_annealing_factor=0.0,
    discriminator_weight=0.8,
    discriminator_start=100,
    adaptive_weight=True,
    lecam_weight=0.0,
)
OPEN_MAGVIT2 = VQGANLossConfig(
    reconstruction="l1",
    reconstruction_weight=1.0,
    entropy_annealing_factor=3.0,
    generator_objective="non_saturating_image",
    discriminator_weight=0.1,
    discriminator_start=100,
    lecam_weight=0.05,
    lecam_convention="logits",
)


def small_loss(config: VQGANLossConfig, **arguments: Any) -> VQGANLoss:
    return VQGANLoss(config, PatchGAN(PatchGANConfig(hidden_channels=4, num_layers=1)), **arguments)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    """Largest error at most 1e-4 of the largest magnitude: the fixtures' tolerance."""
    torch.testing.assert_close(
        actual.detach().flatten(), expected.flatten(), rtol=0, atol=1e-4 * expected.abs().max().item()
    )


@pytest.mark.parametrize(
    ("fixture", "config", "step"),
    [
        ("maskbit_lfq__loss", VQGANLossConfig(discriminator_start=500), 800),
        ("taming_vqgan__loss", TAMING, 150),
        ("open_magvit2__loss", OPEN_MAGVIT2, 150),
    ],
)
def test_losses_and_gradients_equal_the_original(fixture: str, config: VQGANLossConfig, step: int) -> None:
    folder = PARITY / fixture
    arrays = load_file(folder / "arrays.safetensors")
    checks = {
        check["settings"]["player"]: check
        for check in json.loads((folder / "meta.json").read_text())["checks"]
        if check["check"] == "loss"
    }

    def loss() -> VQGANLoss:
        discriminator: nn.Module = PatchGAN(PatchGANConfig(hidden_channels=8, num_layers=2))
        if folder.name == "maskbit_lfq__loss":
            discriminator = BlurDiscriminator(BlurDiscriminatorConfig(hidden_channels=32, num_stages=2))
        module = VQGANLoss(config, discriminator, image_range=(0.0, 1.0))
        means = checks["discriminator"]["settings"].get("lecam_ema_before", (0.0, 0.0))
        state = {"lecam.ema_real_logits_mean": means[0], "lecam.ema_fake_logits_mean": means[1]}
        state = {name: torch.tensor([value]) for name, value in state.items()}
        for name, tensor in load_file(folder / "weights.safetensors").items():
            state[f"lecam.{name}" if name.startswith("ema") else name] = tensor
        module.load_state_dict(state)
        return module

    if folder.name == "open_magvit2__loss":
        entropy = 0.1 * arrays["codebook_loss"]
        quantizer = entropy + 0.25 * arrays["commitment"]
    else:
        entropy = arrays.get("entropy_loss")
        quantizer = arrays["quantizer_loss"] if "quantizer_loss" in arrays else arrays["codebook_loss"]
    weight = arrays["last_weight"].clone().requires_grad_()
    reconstructions = F.conv2d(arrays["features"], weight, padding=1)

    generator = loss().generator_loss(
        arrays["image"], reconstructions, quantizer, step=step, entropy_loss=entropy, last_layer_weight=weight
    )
    generator.total.backward()
    discriminating = loss()
    discriminator = discriminating.discriminator_loss(arrays["image"], reconstructions, step=step)
    discriminator.total.backward()
    actual = {
        "loss.generator": generator.total,
        "loss.rec": generator.terms["reconstruction"],
        "loss.nll": generator.terms["reconstruction"],
        "loss.quantizer": generator.terms["quantizer"],
        "loss.gan_weighted": generator.terms["adversarial"],
        "statistic.d_weight": generator.terms["adversarial_weight"],
        "grad.last_weight": weight.grad,
        "loss.discriminator": discriminator.total,
        "loss.adversarial": discriminator.terms["adversarial"],
        "state.ema_real": discriminating.lecam.ema_real_logits_mean,
        "state.ema_fake": discriminating.lecam.ema_fake_logits_mean,
        **{f"grad.{name}": parameter.grad for name, parameter in discriminating.named_parameters()},
    }
    compared = 0
    for check in checks.values():
        for name, array in check["outputs"].items():
            if name in actual:
                assert_near(actual[name], arrays[array])
                compared += 1
    assert compared >= 7


def test_discriminator_is_left_out_of_the_generator_before_the_start_step() -> None:
    class Unreachable(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("the discriminator ran")

    loss = VQGANLoss(VQGANLossConfig(discriminator_start=10), Unreachable())
    images, reconstructions = torch.rand(2, 2, 3, 16, 16)
    terms = loss.generator_loss(images, reconstructions, torch.zeros(()), step=9).terms
    assert "adversarial" not in terms
    with pytest.raises(RuntimeError, match="discriminator ran"):
        loss.generator_loss(images, reconstructions, torch.zeros(()), step=10)


def test_the_discriminator_may_learn_before_the_generator_minds_it() -> None:
    loss = small_loss(VQGANLossConfig(discriminator_start=0, generator_start=5))
    images = torch.rand(2, 3, 16, 16)
    before, after = (loss.generator_loss(images, images / 2, torch.zeros(()), step=step) for step in (4, 5))
    assert "adversarial" not in before.terms
    assert float(after.terms["adversarial"]) != 0
    assert float(loss.discriminator_loss(images, images / 2, step=0).total.detach()) > 0


def test_before_the_start_step_only_lecam_reaches_the_discriminator() -> None:
    loss = small_loss(VQGANLossConfig(discriminator_start=10))
    loss.lecam.ema_real_logits_mean.fill_(1.0)
    images, reconstructions = torch.rand(2, 2, 3, 16, 16)
    result = loss.discriminator_loss(images, reconstructions, step=9)
    assert result.terms["adversarial"] == 0
    torch.testing.assert_close(result.total, result.terms["lecam"])
    assert result.total > 0


@pytest.mark.parametrize(("step", "multiple"), [(0, 3.0), (500, 2.5), (2000, 1.0), (9000, 1.0)])
def test_entropy_weight_comes_down_linearly(step: int, multiple: float) -> None:
    loss = small_loss(VQGANLossConfig(discriminator_start=10**9))
    images = torch.rand(1, 3, 16, 16)
    entropy = torch.tensor(-0.2)
    terms = loss.generator_loss(images, images, 0.5 + entropy, step=step, entropy_loss=entropy).terms
    torch.testing.assert_close(terms["quantizer"], 0.5 + multiple * entropy)


def test_perceptual_term_means_the_same_for_images_of_either_range() -> None:
    class Colours(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images.square()]

    config = VQGANLossConfig(discriminator_start=10**9)
    perceptual = FeatureDistance(Colours(), shift=[0.0] * 3, scale=[1.0] * 3)
    images, reconstructions = torch.rand(2, 2, 3, 32, 32)
    zero = torch.zeros(())
    signed = small_loss(config, perceptual=perceptual).generator_loss(
        images * 2 - 1, reconstructions * 2 - 1, zero, step=0
    )
    unsigned = small_loss(config, perceptual=perceptual, image_range=(0.0, 1.0)).generator_loss(
        images, reconstructions, zero, step=0
    )
    expected = config.perceptual_weight * perceptual(reconstructions * 2 - 1, images * 2 - 1).mean()
    torch.testing.assert_close(signed.terms["perceptual"], expected)
    torch.testing.assert_close(unsigned.terms["perceptual"], expected)


@pytest.mark.parametrize("config", [VQGANLossConfig(discriminator_start=0), TAMING, OPEN_MAGVIT2])
def test_total_is_the_sum_of_its_terms(config: VQGANLossConfig) -> None:
    loss = small_loss(config)
    weight = torch.rand(3, 3, 1, 1, requires_grad=True)
    images = torch.rand(2, 3, 16, 16)
    reconstructions = F.conv2d(images, weight)
    generator = loss.generator_loss(images, reconstructions, torch.ones(()), step=200, last_layer_weight=weight)
    discriminator = loss.discriminator_loss(images, reconstructions, step=200)
    statistics = {"adversarial_weight", "logits_real", "logits_fake"}
    for result in (generator, discriminator):
        torch.testing.assert_close(
            result.total.detach(), sum(value for name, value in result.terms.items() if name not in statistics)
        )


def test_adaptive_weight_asks_for_the_last_layer() -> None:
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="last_layer_weight"):
        small_loss(TAMING).generator_loss(images, images, torch.zeros(()), step=100)


@pytest.mark.parametrize(
    "change", [{"reconstruction": "l3"}, {"generator_objective": "wasserstein"}, {"lecam_convention": "other"}]
)
def test_unknown_kinds_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(change.values()))):
        VQGANLossConfig(**change)


def test_discriminator_learns_to_tell_blurred_images_and_the_generator_to_fool_it() -> None:
    torch.manual_seed(0)
    config = VQGANLossConfig(reconstruction_weight=0.0, discriminator_start=0, discriminator_weight=1.0)
    loss = small_loss(config)
    images = torch.rand(8, 3, 32, 32)
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2)
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=0.01)
    history = []
    for _ in range(20):
        result = loss.discriminator_loss(images, blurred, step=0)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        history.append(result.total.item())
    assert history[-1] < 0.5 * history[0]
    fooling = blurred.clone().requires_grad_()
    before = loss.generator_loss(images, fooling, torch.zeros(()), step=0).total
    (gradient,) = torch.autograd.grad(before, fooling)
    after = loss.generator_loss(images, blurred - 0.1 * gradient.sign(), torch.zeros(()), step=0).total
    assert after < before


def test_reconstruction_losses_give_one_mean_per_item() -> None:
    signals, targets = torch.zeros(2, 1, 4), torch.stack([torch.full((1, 4), 2.0), torch.full((1, 4), -3.0)])
    assert RECONSTRUCTION_LOSSES["l1"](signals, targets).tolist() == [2.0, 3.0]
    assert RECONSTRUCTION_LOSSES["l2"](signals.bfloat16(), targets).tolist() == [4.0, 9.0]


class Shaken(nn.Module):
    """A discriminator that moves the brightness of each image before it looks, as one that augments does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * (images + torch.rand(len(images), 1, 1, 1)).mean((1, 2, 3))


def test_consistency_is_how_far_logits_move_under_another_draw() -> None:
    config = VQGANLossConfig(discriminator_start=0, lecam_weight=0.0, consistency_weight=4.0)
    loss = VQGANLoss(config, Shaken())
    images, reconstructions = torch.rand(2, 3, 3, 8, 8)
    torch.manual_seed(1)
    real, fake = torch.rand(3, 1, 1, 1), torch.rand(3, 1, 1, 1)
    moved = ((torch.rand(3, 1, 1, 1) - real) ** 2).mean() + ((torch.rand(3, 1, 1, 1) - fake) ** 2).mean()
    torch.manual_seed(1)
    terms = loss.discriminator_loss(images, reconstructions, step=0)
    torch.testing.assert_close(terms.values["consistency"], moved)
    torch.testing.assert_close(terms.total.detach(), terms.values["adversarial"] + 4 * moved)
    (slope,) = torch.autograd.grad(terms.total, loss.discriminator.parameters())
    assert slope.abs() > 0
    plain = VQGANLoss(VQGANLossConfig(discriminator_start=0, lecam_weight=0.0), Shaken())
    assert "consistency" not in plain.discriminator_loss(images, reconstructions, step=0).values
