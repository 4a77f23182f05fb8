"""SITTA: a linear map in closed form from image features of CLIP to the token space of a language model.

Paper: "SITTA: A Semantic Image-Text Alignment for Image Captioning" (2023). Original:
ml-jku/semantic-image-text-alignment (MIT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from zoo.checkpoint import KeyMap
from zoo.registry import register

Method = Literal["linear", "ridge", "procrustes", "robust_procrustes"]


@dataclass(frozen=True)
class SittaConfig(ProjectorConfig):
    """Widths of the map, and the language model that it leads to; the defaults are those of a published file."""

    backbone: str = "open_clip:RN50x64/openai"
    image_dim: int = 1024
    word_dim: int = 768
    language_model: str = "google/flan-t5-base"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(bool(self.language_model), "the name of a language model", self.language_model)


@register("sitta")
class Sitta(Projector):
    """Image features (B, E), not normalised -> one word each (B, 1, D) near to tokens of a language model.

    `mean` and `deviation` (E,), of the features of many images, stand beside the map: published files hold the map
    alone, and until `set_statistics` features go in as they come.
    """

    config: SittaConfig

    def __init__(self, config: SittaConfig) -> None:
        super().__init__(config)
        self.map = nn.Parameter(torch.randn(config.image_dim, config.word_dim) * config.image_dim**-0.5)
        self.register_buffer("mean", torch.zeros(config.image_dim))
        self.register_buffer("deviation", torch.ones(config.image_dim))

    @property
    def token_space(self) -> str:
        return self.config.language_model

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Set what image features (E,) are standardised by: rows 0 and 1 of the original's `coco_stats.npy`.

        Raises:
            ValueError: of another width, or a deviation that is not positive.
        """
        if mean.shape != self.mean.shape or deviation.shape != self.mean.shape or not (deviation > 0).all():
            shapes = f"{tuple(mean.shape)} and {tuple(deviation.shape)}"
            raise ValueError(f"expected a mean and positive deviations ({self.config.image_dim},), got {shapes}")
        self.mean.copy_(mean)  # type: ignore[operator]
        self.deviation.copy_(deviation)  # type: ignore[operator]

    def forward(self, image_features: Tensor) -> Tensor:
        return ((image_features - self.mean) / self.deviation @ self.map)[:, None]


# -- fitting -------------------------------------------------------------------------------------------------------


def standardise(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D) with mean 0 and deviation 1 in each column, the mean and the deviation (of the population)."""
    mean, deviation = rows.mean(0), rows.std(0, correction=0)
    return (rows - mean) / deviation, mean, deviation


def image_token_pairs(image_features: Tensor, image_of_token: Tensor) -> Tensor:
    """The source's rows (N, E) of N tokens of captions: features standardised over images (I, E), not over tokens.

    Args:
        image_of_token: (N,), which image each token describes.
    """
    return standardise(image_features)[0][image_of_token]


def fit(
    source: Tensor,
    target: Tensor,
    method: Method = "linear",
    *,
    penalty: float = 1.0,
    iterations: int = 5,
    eps: float = 1e-3,
) -> Tensor:
    """The map W (S, T) for which source W is near to target, both standardised; computed in float64 on the CPU.

    Args:
        source, target: (N, S) and (N, T), pairs of rows.
        method: "linear": least squares; "ridge": with a penalty on W; "procrustes": W keeps lengths as far as its
            shape allows; "robust_procrustes": the same with distant pairs weighing less.
        penalty: of "ridge", times the sum of squares of W.
        iterations, eps: of "robust_procrustes", see `robust_weights`.

    Raises:
        ValueError: not as many rows in one as in the other.
    """
    if len(source) != len(target):
        raise ValueError(f"expected pairs of rows, got {len(source)} and {len(target)}")
    x, y = source.double().cpu(), target.double().cpu()
    if method == "linear":
        solved = torch.linalg.lstsq(x, y, driver="gelsd").solution
    elif method == "ridge":
        solved = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
    else:
        solved = _procrustes(x, y)
        for _ in range(iterations if method == "robust_procrustes" else 0):
            roots = robust_weights(x, y, solved, eps=eps).sqrt()[:, None]
            solved = _procrustes(roots * x, roots * y)
    return solved.to(source)


def robust_weights(source: Tensor, target: Tensor, mapped_by: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Weights (N,) of pairs, the inverse of their distance under a map and at most 1."""
    weights = 1 / ((target - source @ mapped_by).norm(dim=1) + eps)
    return weights / weights.max()


def _procrustes(x: Tensor, y: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    return left @ right


# -- words of a language model -------------------------------------------------------------------------------------


def nearest_tokens(words: Tensor, table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines (B, V) of words (B, D) and a language model's embeddings (V, D), and the ids (B, count) of the best."""
    cosines = F.normalize(words, dim=-1) @ F.normalize(table, dim=-1).T
    return cosines, cosines.topk(count).indices


def distinct_words(ids: list[int], decode: Callable[[list[int]], str], count: int = 8) -> list[str]:
    """The first `count` different texts of tokens, the best first, without blanks around and in lower case.

    The original takes the ids of the nearest 50.
    """
    texts = [decode([token]).strip().lower() for token in ids]
    return list(dict.fromkeys(filter(None, texts)))[:count]


def config_from_original(meta: dict[str, Any]) -> SittaConfig:
    """The config of a published map: its name tells the language model."""
    kwargs = meta["original"]["kwargs"]
    return SittaConfig(image_dim=kwargs["source_dim"], word_dim=kwargs["target_dim"])


def _without_statistics(state: dict[str, Tensor]) -> dict[str, Tensor]:
    width = state["map"].shape[:1]
    return {"mean": state["map"].new_zeros(width), "deviation": state["map"].new_ones(width), **state}


KEY_MAP = KeyMap({"array": "map"}, finish=_without_statistics)
