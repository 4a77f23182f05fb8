"""Phi, the network of SEARLE (arXiv 2303.15247), which LinCIR (arXiv 2312.01998) trains in another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from torch import nn

from tokenizers_visual.inversion.projector import BACKBONE_OF_WIDTH, ProjectorConfig


@dataclass(frozen=True)
class PhiConfig(ProjectorConfig):
    """Sizes of phi; the defaults are those published for a ViT-L/14."""

    hidden_dim: int = 3072
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.hidden_dim > 0, "a positive hidden_dim", self.hidden_dim)
        self.require(0 <= self.dropout < 1, "dropout in [0, 1)", self.dropout)

    @classmethod
    def from_original(cls, meta: dict[str, Any]) -> Self:
        """The config of the original's constructor arguments."""
        kwargs = meta["original"]["kwargs"]
        return cls(
            backbone=meta.get("clip") or BACKBONE_OF_WIDTH[kwargs["input_dim"]],
            image_dim=kwargs["input_dim"],
            word_dim=kwargs["output_dim"],
            hidden_dim=kwargs["hidden_dim"],
            dropout=kwargs["dropout"],
        )


def projection_mlp(in_dim: int, hidden_dim: int, out_dim: int, dropout: float) -> nn.Sequential:
    """Three linear layers with GELU and dropout between them: (B, in_dim) -> (B, out_dim)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, out_dim),
    )
