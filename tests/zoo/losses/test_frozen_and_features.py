"""Frozen networks in losses, perceptual distances by name, and the discriminators of StyleGAN2 and on DINO features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.config import ConfigError
from zoo.losses import VQGANLoss, VQGANLossConfig, perceptual_distance, r1_penalty
from zoo.losses.dino_discriminator import DinoDiscriminatorConfig
from zoo.losses.discriminators import DiscriminatorConfig, JoinedBatchNorm2d, PatchGANConfig
from zoo.losses.frozen import Frozen, timm_network
from zoo.losses.style_discriminator import StyleDiscriminatorConfig

STYLE = StyleDiscriminatorConfig(resolution=16, channel_base=64, channel_maximum=8, group_size=2)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest DINO-like transformer, in a file."""
    import timm

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "vit.pt"
    torch.save(timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict(), file)
    return file


def dino(vit: Path, **fields: object) -> nn.Module:
    config = {"kind": "dino", "backbone": "vit_tiny_patch16_224", "weights": str(vit), "blocks": [0, 2], **fields}
    return DinoDiscriminatorConfig.from_dict(config).build()


# -- frozen networks -----------------------------------------------------------------------------------------------


def test_a_frozen_network_moves_but_is_no_part_of_the_state() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    holder = nn.Sequential(Frozen(network), nn.Conv2d(1, 1, 1)).train()
    assert set(holder.state_dict()) == {"1.weight", "1.bias"}
    assert len(list(holder.parameters())) == 2
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    holder.double()
    assert network[0].weight.dtype == torch.float64
    x = torch.rand(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(holder(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_the_perceptual_network_is_no_part_of_a_loss() -> None:
    loss = VQGANLoss(VQGANLossConfig(), PatchGANConfig(hidden_channels=4, num_layers=1).build(), nn.Conv2d(3, 3, 1))
    assert not any("perceptual" in name for name in loss.state_dict())


def test_networks_of_timm_are_told_apart_from_others(vit: Path) -> None:
    with pytest.raises(ValueError, match="nearest names: vit_tiny_patch16"):
        timm_network("vit_tiny_patch16_223")
    network = timm_network("vit_tiny_patch16_224", vit)
    assert network(torch.rand(1, 3, 224, 224)).shape == (1, 192)
    with pytest.raises(Exception, match=r"nothing\.pt"):
        timm_network("vit_tiny_patch16_224", "nothing.pt")


# -- perceptual distances by name ----------------------------------------------------------------------------------


def test_distances_add_up_by_their_weights(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    for name in ("resnet10t", "mobilenetv3_small_050"):
        torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / f"{name}.pt")
    files = {f"timm:{path.stem}": str(path) for path in tmp_path.iterdir()}
    images, targets = torch.rand(2, 2, 3, 64, 64).mul(2).sub(1).unbind()
    alone = [perceptual_distance({name: 1.0}, {name: file})(images, targets) for name, file in files.items()]
    weights = dict(zip(files, (0.3, 2.0)))
    both = perceptual_distance(weights, files)(images, targets)
    assert both.shape == (2,)
    torch.testing.assert_close(both, 0.3 * alone[0] + 2.0 * alone[1])
    assert perceptual_distance(weights, files)(images, images).abs().max() == 0


def test_unknown_distances_and_files_are_refused() -> None:
    for terms, files, told in (
        ({"vgg": 1.0}, {}, "lpips"),
        ({"lpips": 1.0}, {"lite0": "x"}, "lite0"),
        ({"lpips": 1.0}, {"lpips": "nowhere.pth"}, "nowhere.pth"),
    ):
        with pytest.raises(ValueError, match=told):
            perceptual_distance(terms, files)


# -- discriminators ------------------------------------------------------------------------------------------------


def test_the_style_discriminator_has_the_published_sizes() -> None:
    with torch.device("meta"):
        network = StyleDiscriminatorConfig().build()
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert state["b256.fromrgb.weight"] == (128, 3, 1, 1)
    assert state["b256.conv1.weight"] == (256, 128, 3, 3)
    assert state["b8.skip.weight"] == (512, 512, 1, 1)
    assert state["b4.conv.weight"] == (512, 513, 3, 3)
    assert state["b4.fc.weight"] == (512, 8192)
    assert network(torch.zeros(4, 3, 256, 256, device="meta")).shape == (4, 1)


def test_the_style_discriminator_sees_the_spread_of_its_group() -> None:
    network = STYLE.build()
    x = torch.rand(4, 3, 16, 16)
    mixed = network(torch.stack([x[0], x[1], x[2], x[3]]))
    alike = network(torch.stack([x[0], x[1], x[0], x[1]]))  # images 0 and 2 are a group
    assert not torch.allclose(mixed[0], alike[0])
    torch.testing.assert_close(alike[0], alike[2])


def test_the_style_discriminator_refuses_what_it_cannot_take() -> None:
    network = STYLE.build()
    with pytest.raises(ValueError, match="16"):
        network(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="multiple of 2"):
        network(torch.zeros(3, 3, 16, 16))
    for fields in ({"resolution": 48}, {"channel_base": 8}, {"group_size": 0}):
        with pytest.raises(ConfigError, match=r"resolution|sizes"):
            StyleDiscriminatorConfig.from_dict(fields)


def test_the_dino_discriminator_trains_its_heads_alone(vit: Path) -> None:
    network = dino(vit)
    images = torch.rand(2, 3, 48, 40, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 2, 14 * 14)
    assert {name.partition(".")[0] for name in network.state_dict()} == {"heads"}
    logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_heads_see_patches_with_their_class_token_and_norm_over_eight_images(vit: Path) -> None:
    torch.manual_seed(0)
    network = dino(vit, norm="batch", spectral_norm=False, kernel_size=3, blocks=[2]).double()
    images = torch.rand(16, 3, 224, 224, dtype=torch.float64) * 2 - 1
    head = network.heads[0]
    seen = []
    network.backbone.network.blocks[2].register_forward_hook(lambda module, given, tokens: seen.append(tokens))
    with torch.no_grad():
        logits = network(images)[:, 0]
        tokens = seen[0].transpose(1, 2)
        x = tokens[:, :, 1:] + tokens[:, :, :1]

        def block(x: Tensor, layers: nn.Sequential, kernel_size: int) -> Tensor:
            edge = kernel_size // 2
            around = torch.cat([x[..., x.shape[2] - edge :], x, x[..., :edge]], 2)
            x = F.conv1d(around, layers[0].weight, layers[0].bias)
            halves = [(half - half.mean((0, 2), keepdim=True)) / half.std((0, 2), correction=0, keepdim=True)
                      for half in x.split(8)]  # fmt: skip
            return F.leaky_relu(torch.cat(halves), 0.2)

        x = block(x, head.enter, 1)
        x = (x + block(x, head.mix, 3)) / 2**0.5
        expected = F.conv1d(x, head.to_logit.weight, head.to_logit.bias)[:, 0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert network(images[:3]).shape == (3, 1, 14 * 14)


def test_the_dino_discriminator_refuses_what_it_cannot_take(vit: Path) -> None:
    for fields, told in (
        ({"blocks": [12]}, "below 12"),
        ({"groups": 7}, "divide"),
        ({"kernel_size": 4}, "odd"),
        ({"augmentation": 2.0}, "augmentation"),
        ({"cutout": 1.0}, "cutout"),
        ({"norm": "layer"}, "norm"),
    ):
        with pytest.raises(ConfigError, match=told):
            dino(vit, **fields)


@pytest.mark.parametrize("kind", ["patchgan", "blur", "style"])
def test_any_discriminator_learns_to_tell_blurred_images(kind: str) -> None:
    fields = {
        "patchgan": {"hidden_channels": 4, "num_layers": 1},
        "blur": {"hidden_channels": 32, "num_stages": 1},
        "style": {"resolution": 16, "channel_base": 64, "channel_maximum": 8},
    }[kind]

    config = next(c for c in DiscriminatorConfig.__subclasses__() if c.kind == kind).from_dict(fields)
    torch.manual_seed(0)
    network, images = config.build(), torch.rand(8, 3, 16, 16)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1)
    loss = VQGANLoss(VQGANLossConfig(discriminator_start=0), network)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    history = []
    for _ in range(30):
        result = loss.discriminator_loss(images, blurred, step=0)
        optimizer.zero_grad()
        result.total.backward()
        optimizer.step()
        history.append(result.values["adversarial"].item())
    assert history[-1] < 0.6 * history[0]


def test_a_joined_batch_norm_alone_is_the_usual_one() -> None:
    x = torch.rand(3, 4, 5, 5)
    ours, theirs = JoinedBatchNorm2d(4), nn.BatchNorm2d(4)
    assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


# -- R1 ------------------------------------------------------------------------------------------------------------


def test_r1_of_a_linear_discriminator_is_half_its_squared_length() -> None:
    weight = torch.randn(12, requires_grad=True)
    real = torch.rand(5, 3, 2, 2, requires_grad=True)
    penalty = r1_penalty(real, real.flatten(1) @ weight)
    torch.testing.assert_close(penalty, 0.5 * weight.square().sum())
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, weight)


def test_r1_comes_at_its_interval_and_as_many_times_as_strong() -> None:
    config = VQGANLossConfig(discriminator_start=0, lecam_weight=0.0, r1_weight=10.0, r1_interval=4)
    loss = VQGANLoss(config, STYLE.build())
    images, fakes = torch.rand(2, 2, 3, 16, 16)
    terms = [loss.discriminator_loss(images, fakes, step=step) for step in range(5)]
    assert ["r1" in result.terms for result in terms] == [True, False, False, False, True]
    torch.testing.assert_close(terms[0].terms["r1"], 40 * terms[0].values["r1"])
    terms[0].total.backward()
    assert all(parameter.grad is not None for parameter in loss.discriminator.parameters())  # type: ignore[union-attr]


def test_evaluation_has_no_adversarial_term() -> None:
    loss = VQGANLoss(VQGANLossConfig(discriminator_start=0, adaptive_weight=True), STYLE.build()).eval()
    images: Tensor = torch.rand(2, 3, 16, 16)
    assert "adversarial" not in loss.generator_loss(images, images, torch.zeros(()), step=0).terms
    with pytest.raises(ValueError, match="discriminator"):
        VQGANLoss(VQGANLossConfig(), None).discriminator_loss(images, images, step=0)
