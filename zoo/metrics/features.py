"""Networks whose features compare sets of images: Inception as torch-fidelity has it, and EfficientNet-Lite0 and Lite2.

A feature is a vector per image; which network gave it is part of the name of every number made of it.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import hub
from zoo.losses.efficientnet_lite import EFFICIENTNET_LITE_WEIGHTS, efficientnet_lite

INCEPTION_WEIGHTS = hub.WeightSource(
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    sha256="6726825d",
)


@dataclass(frozen=True)
class Features:
    """What a network says of a batch: pooled features (B, D), and logits (B, C) for the Inception score."""

    pooled: Tensor
    logits: Tensor


class FeatureNetwork(nn.Module):
    """A frozen network with the text that states what it is.

    Attributes:
        name: short, a part of the metrics' names.
        dim: D of the pooled features.
        classes: C of the logits.
        protocol: network, weights and resizing, in a sentence that can stand beside a number.
    """

    name: str
    dim: int
    classes: int
    protocol: str

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Keep eval mode whatever `mode` says."""
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """Features of uint8 images (B, 3, H, W).

        Raises:
            ValueError: another type or shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        with torch.no_grad():
            return self.features(images)

    def features(self, images: Tensor) -> Features:
        raise NotImplementedError


class InceptionFeatures(FeatureNetwork):
    """The Inception network of the FID literature (2015-12-05), in torch-fidelity's port of it: 2048 features.

    Args:
        weights: a file in torch-fidelity's layout; None resolves its published one.

    Raises:
        ImportError: torch-fidelity is not installed.
        ValueError: a file that holds more than weights.
        zoo.hub.HubError: weights that cannot be had.
    """

    name = "inception"
    dim = 2048
    classes = 1008

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                f"{error}; FID and Inception score need torch-fidelity: pip install torch-fidelity"
            ) from error
        path = hub.resolve(hub.WeightSource(path=str(weights)) if weights else INCEPTION_WEIGHTS, name="Inception")
        digest = sha256(path)
        published = digest.startswith(str(INCEPTION_WEIGHTS.sha256))
        try:  # torch-fidelity itself would run whatever is in there
            torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: expected weights and nothing that runs code: {error}") from error
        self.network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
        origin = "as published by torch-fidelity" if published else "NOT those that torch-fidelity publishes"
        self.protocol = (
            f"Inception 2015-12-05 in torch-fidelity, weights sha256 {digest} ({origin}), images as uint8, resized to "
            "299 x 299 as TensorFlow 1 does (bilinear, not antialiased)"
        )
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Features:
        pooled, logits = self.network(images)
        return Features(pooled, logits)


class LiteFeatures(FeatureNetwork):
    """EfficientNet-Lite, ImageNet weights of a Python package: 1280 features.

    Args:
        variant: the size of the network; Lite2 is for models that Lite0 has trained.
        weights: a file in that package's layout; None takes the installed package's.

    Raises:
        zoo.hub.HubError: weights that cannot be had.
    """

    dim = 1280
    classes = 1000

    def __init__(self, variant: Literal["lite0", "lite2"], weights: Path | None = None) -> None:
        super().__init__()
        self.name, title = variant, f"EfficientNet-{variant.capitalize()}"
        path = weights or hub.resolve(EFFICIENTNET_LITE_WEIGHTS[variant], name=title)
        network: Any = efficientnet_lite(variant, weights=path)
        self.network = network.to(memory_format=torch.channels_last)
        self.protocol = (
            f"{title}, weights sha256 {sha256(path)}, images as uint8, resized to 224 x 224 (bicubic, "
            "antialiased), features after the last pooling; not comparable with an Inception number"
        )
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> Features:
        sides = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        maps = self.network.forward_features(((sides - 127) / 128).contiguous(memory_format=torch.channels_last))
        pooled = self.network.forward_head(maps, pre_logits=True)
        return Features(pooled, self.network.classifier(pooled))


FEATURE_NETWORKS: dict[str, Callable[[Path | None], FeatureNetwork]] = {
    "inception": InceptionFeatures,
    "lite0": partial(LiteFeatures, "lite0"),
    "lite2": partial(LiteFeatures, "lite2"),
}


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
