"""Bits to integers and back: how the binary quantizers number their codes."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.config import Config
from zoo.quantizers.base import QuantizerConfig

MAXIMUM_INDEX_BITS = 62  # of one index: the vocabulary's size, too, must fit int64


class BitsConfig(QuantizerConfig):
    """Base of the configs of quantizers of bits: `bits` of a code, dealt to `subtokens` indices."""

    bits: int
    subtokens: int

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (2 ** (self.bits // self.subtokens),) * self.subtokens


def require_bits(config: Config, bits: int, subtokens: int) -> None:
    """Raise a ConfigError unless `bits` can be dealt in equal parts to `subtokens` indices."""
    config.require(subtokens >= 1, "at least 1 subtoken", subtokens)
    most = MAXIMUM_INDEX_BITS * subtokens
    per_index = f" ({MAXIMUM_INDEX_BITS} for each of the {subtokens} subtokens)" if subtokens > 1 else ""
    config.require(1 <= bits <= most, f"1 to {most} bits{per_index}", bits)
    config.require(bits % subtokens == 0, f"bits that {subtokens} subtokens divide evenly", bits)


def bits_to_indices(ones: Tensor, subtokens: int, most_significant_first: bool) -> tuple[Tensor, ...]:
    """Bits (..., D), 0 or 1 -> `subtokens` int64 indices (...), one for each run of D / subtokens consecutive bits.

    The first bit of a run is the most or the least significant one of its index.
    """
    runs = ones.long().unflatten(-1, (subtokens, -1))
    return (runs << _places(runs.shape[-1], most_significant_first, ones.device)).sum(-1).unbind(-1)


def indices_to_bits(levels: tuple[Tensor, ...], bits: int, most_significant_first: bool) -> Tensor:
    """The inverse of `bits_to_indices`: indices (...) -> `bits` bits (..., bits), int64."""
    indices = torch.stack(levels, dim=-1)
    places = _places(bits // len(levels), most_significant_first, indices.device)
    return (indices[..., None] >> places & 1).flatten(-2)


def _places(bits: int, most_significant_first: bool, device: torch.device) -> Tensor:
    places = torch.arange(bits, device=device)
    return places.flip(0) if most_significant_first else places
