"""One-D-Piece: TiTok whose first tokens alone give a coarser image, since training drops the tail of the row.

Paper: arXiv 2501.10064. Original: turingmotors/One-D-Piece (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenizers_visual import titok
from tokenizers_visual.titok import TiTok, TiTokConfig
from zoo.prefix import PrefixTokenizer
from zoo.quantizers import Quantized
from zoo.registry import register


@dataclass(frozen=True)
class OneDPieceConfig(TiTokConfig):
    """Sizes of the network; the defaults are those of the published large model."""

    num_tokens: int = 256


@register("one_d_piece")
class OneDPiece(PrefixTokenizer, TiTok):
    """Images (B, 3, S, S) in [0, 1] of the configured size -> 1 to `num_tokens` tokens, any prefix of which decodes.

    In training the reconstruction is of a prefix, whose length is drawn uniformly for the whole batch if none is given.
    """

    def __init__(self, config: OneDPieceConfig) -> None:
        super().__init__(config)

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors (B, k, D) -> images; of each item only the first `lengths` (B,), where items differ."""
        if self.training and lengths is None:
            codes = codes[:, : int(torch.randint(1, codes.shape[1] + 1, ()))]
        return self._decoded(self.decoder(codes, lengths))


def config_from_original(meta: dict[str, Any]) -> OneDPieceConfig:
    """The config of the original's, as a fixture or a published listing states it."""
    return OneDPieceConfig(**titok.fields_from_original(meta))


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """As TiTok's; they are of all tokens, the dropped ones too."""
    return titok.original_losses(quantized, meta)


KEY_MAP = titok.KEY_MAP
key_map_from_original = titok.key_map_from_original
