"""Several metrics over one pass of reconstructions, each number with the protocol by which it was measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.losses.efficientnet_lite import EFFICIENTNET_LITE_WEIGHTS
from zoo.losses.perceptual import LPIPS_HEADS, lpips
from zoo.metrics import Metric
from zoo.metrics.distributions import CodebookUse, FrechetDistance, InceptionScore, MeanOverImages
from zoo.metrics.features import FEATURE_NETWORKS, FeatureNetwork, sha256
from zoo.metrics.image import IMAGE_METRICS, ImageMetric, PerceptualMetric

_FRECHET = "Frechet distance of pooled features, covariances unbiased, in float64"
SET_METRICS = {
    "rfid": Metric("rfid", "", "lower", f"{_FRECHET}; reconstructions against these very originals"),
    "inception_score": Metric(
        "inception_score",
        "",
        "higher",
        "Inception score of the reconstructions: mean over 10 splits (image i in split i mod 10), biasless logits",
    ),
    "feature_fid_lite0": Metric("feature_fid_lite0", "", "lower", f"{_FRECHET}; reconstructions against originals"),
    "feature_fid_lite2": Metric("feature_fid_lite2", "", "lower", f"{_FRECHET}; reconstructions against originals"),
}
NETWORK_OF = {
    "rfid": "inception",
    "inception_score": "inception",
    "feature_fid_lite0": "lite0",
    "feature_fid_lite2": "lite2",
}
TOKEN_METRICS = {
    "bits_per_pixel": Metric(
        "bits_per_pixel", "bit", "lower", "indices packed at ceil(log2 K) bits each, no header, over the pixels; mean"
    ),
    "codebook": Metric("codebook", "", "higher", "counts of all indices of the set"),
}
_CODEBOOK: dict[str, tuple[str, Literal["higher", "lower"], str]] = {
    "usage": ("", "higher", "share of the codes that occur at all"),
    "perplexity": ("codes", "higher", "2 to the entropy of the code distribution"),
    "entropy_bits": ("bit", "higher", "entropy of the code distribution"),
    "dead": ("codes", "lower", "codes that never occur"),
}
DEFAULT_METRICS = ("psnr", "ssim", "bits_per_pixel", "codebook")
METRICS = (*IMAGE_METRICS, *SET_METRICS, *TOKEN_METRICS)


@dataclass(frozen=True)
class Measurement:
    """A number and what it needs to be compared with another.

    Attributes:
        metric: name, unit, direction, and how it is measured.
        value: the number.
        count: images that it is made of.
        weights: the metric's own network, with the hash of its weights; empty where there is none.
    """

    metric: Metric
    value: float
    count: int
    weights: str = ""

    @property
    def name(self) -> str:
        return self.metric.name


@dataclass
class _Function:
    metric: Metric
    function: ImageMetric
    weights: str
    mean: MeanOverImages = field(default_factory=MeanOverImages)


class Evaluation(nn.Module):
    """Collects reconstructions batch by batch; `compute` gives the numbers over all processes.

    Args:
        metrics: names in `METRICS`.
        vocab_sizes: codes of each level of the model.
        weights: local files of the metrics' networks by name: "inception", "lite0", "lite2", "lpips_alex", "lpips_vgg";
            what is not named is resolved as any weight.

    Raises:
        ValueError: an unknown name, or weights that no metric asks for.
        zoo.hub.HubError: weights that cannot be had.
    """

    def __init__(
        self, metrics: Sequence[str], vocab_sizes: Sequence[int], *, weights: Mapping[str, Path] | None = None
    ) -> None:
        super().__init__()
        weights = dict(weights or {})
        if unknown := [name for name in metrics if name not in METRICS]:
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(unknown)}")
        needed = {NETWORK_OF.get(name, name) for name in metrics} & {*FEATURE_NETWORKS, "lpips_alex", "lpips_vgg"}
        if unused := sorted(set(weights) - needed):
            takes = ", ".join(sorted(needed)) or "none"
            raise ValueError(f"weights: expected those of the metrics' networks ({takes}), got {', '.join(unused)}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.functions = {name: _function(name, weights.get(name)) for name in self.metrics if name in IMAGE_METRICS}
        self.means = nn.ModuleDict({name: function.mean for name, function in self.functions.items()})
        self.bits = MeanOverImages()
        self.codebook = CodebookUse(vocab_sizes)
        names = dict.fromkeys(NETWORK_OF[name] for name in self.metrics if name in NETWORK_OF)
        built: dict[str, FeatureNetwork] = {name: FEATURE_NETWORKS[name](weights.get(name)) for name in names}
        self.networks = nn.ModuleDict(built)
        self.sets = nn.ModuleDict()
        for name in self.metrics:
            if name in NETWORK_OF:
                network = built[NETWORK_OF[name]]
                scored = name == "inception_score"
                self.sets[name] = InceptionScore(network.classes) if scored else FrechetDistance(network.dim)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self.vocab_sizes = tuple(vocab_sizes)

    seen: Tensor

    @torch.no_grad()
    def update(
        self,
        originals: Tensor,
        reconstructions: Tensor,
        levels: Sequence[Tensor],
        bits: Sequence[int],
        positions: Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            originals, reconstructions: uint8 (B, 3, H, W).
            levels: indices of each level, (B, ...).
            bits: of each item's tokens.
            positions: (B,) of the images in the data set; None: they follow those before them.

        Raises:
            ValueError: another type or shape, or images too small for a metric.
        """
        if originals.dtype != torch.uint8 or originals.shape != reconstructions.shape or originals.ndim != 4:
            raise ValueError(
                f"expected two uint8 batches (B, 3, H, W), got {originals.dtype} {tuple(originals.shape)} and "
                f"{reconstructions.dtype} {tuple(reconstructions.shape)}"
            )
        device = self.seen.device
        originals, reconstructions = originals.to(device), reconstructions.to(device)
        if positions is None:
            positions = self.seen + torch.arange(len(originals), device=device)
        self.seen += len(originals)
        unit = [images.float() / 255 for images in (reconstructions, originals)]
        for name, function in self.functions.items():
            try:
                function.mean.update(function.function(*unit))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        pixels = originals.shape[2] * originals.shape[3]
        self.bits.update(torch.tensor([size / pixels for size in bits], dtype=torch.float64, device=device))
        self.codebook.update(levels)
        for name, network in self.networks.items():
            got, wanted = network(reconstructions), network(originals)
            for metric, collected in self.sets.items():
                if NETWORK_OF[metric] != name:
                    continue
                if isinstance(collected, InceptionScore):
                    collected.update(got.logits, positions)
                else:
                    collected.update(wanted.pooled, got.pooled)

    def compute(self) -> list[Measurement]:
        """The numbers, in the order in which the metrics were named; with several processes, called by all of them.

        Raises:
            ValueError: too few images for a metric.
        """
        count = int(self.bits.count)
        bits = self.bits.compute().item()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            total = self.bits.count.clone()
            torch.distributed.all_reduce(total)
            count = int(total)
        measurements: list[Measurement] = []
        for name in self.metrics:
            if name in self.functions:
                function = self.functions[name]
                value = function.mean.compute().item()
                measurements.append(Measurement(function.metric, value, count, function.weights))
            elif name in self.sets:
                network = self.networks[NETWORK_OF[name]]
                value = float(self.sets[name].compute())
                measurements.append(Measurement(SET_METRICS[name], value, count, str(network.protocol)))
            elif name == "bits_per_pixel":
                measurements.append(Measurement(TOKEN_METRICS[name], bits, count))
            else:
                measurements += codebook_measurements(self.codebook, self.vocab_sizes, count)
        return measurements


def codebook_measurements(use: CodebookUse, vocab_sizes: Sequence[int], count: int) -> list[Measurement]:
    """How a model's codebooks were used in `count` items, level by level."""
    measurements = []
    for level, statistics in use.compute().items():
        suffix = f"_{level}" if len(vocab_sizes) > 1 else ""
        for name, (unit, better, text) in _CODEBOOK.items():
            protocol = f"{text}; counts of all indices of the set, {vocab_sizes[level]} codes"
            metric = Metric(f"{name}{suffix}", unit, better, protocol)
            measurements.append(Measurement(metric, float(statistics[name]), count))
    return measurements


def _function(name: str, weights: Path | None) -> _Function:
    metric, function = IMAGE_METRICS[name]
    if not isinstance(function, PerceptualMetric):
        return _Function(metric, function, "")
    if name == "lite2_distance":
        return _Function(metric, function, f"EfficientNet-Lite2, sha256 {EFFICIENTNET_LITE_WEIGHTS['lite2'].sha256}")
    net: Literal["alex", "vgg"] = "alex" if name == "lpips_alex" else "vgg"
    heads = f"heads sha256 {LPIPS_HEADS[net].sha256}"
    if weights is None:
        return _Function(metric, function, f"backbone as torchvision publishes it (IMAGENET1K_V1), {heads}")
    built = PerceptualMetric(functools.partial(lpips, net, backbone=weights))
    return _Function(metric, built, f"backbone sha256 {sha256(weights)}, {heads}")
