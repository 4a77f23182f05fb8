"""StructuredTokenizer: the contract of tokenizers whose signals are no arrays of one shape, such as graphs and meshes.

A batch is a list of signals, each of which becomes a sequence of as many tokens as it has parts. What `zoo.tokenizer`
asks of arrays (a value range, padding to a stride, tiles) has no meaning here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.config import Config
from zoo.model import Model
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig
from zoo.tokens import Tokens, integers, require_tokens


@dataclass(frozen=True)
class StructuredOutput:
    """What training needs of one signal: reconstruction, latent (N, D) before quantisation, what the quantizer gave."""

    reconstruction: Any
    latent: Tensor
    quantized: Quantized


class StructuredTokenizer(Model):
    """Signals of a class of their own to integers and back.

    A family names its `modality` and writes `check`, `latent` and `reconstruct`. One whose tokens are more than its
    quantised latents overrides `encode_levels` and `forward`.
    """

    modality: ClassVar[str]

    def __init__(self, config: Config, quantizer: QuantizerConfig) -> None:
        super().__init__(config)
        if quantizer.scales:
            raise ValueError(f"expected a quantizer of single positions, got {quantizer.kind}")
        self.quantizer: Quantizer = quantizer.build()

    # -- what a family writes --------------------------------------------------------------------------------------

    def check(self, signal: Any) -> None:
        """Raise a ValueError, with expected and got, unless the model takes the signal."""
        raise NotImplementedError

    def latent(self, signal: Any) -> Tensor:
        """Signal -> latent (N, D) before quantisation, a row for each of its parts."""
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Any:
        """Code vectors (N, D) of the tokens of a signal -> its reconstruction."""
        raise NotImplementedError

    def encode_levels(self, signal: Any) -> tuple[Tensor, ...]:
        """Checked signal -> index tensors (N,) of the levels."""
        return self.quantizer(self.latent(signal)).levels

    def described(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "layout": "sequence",
            "quantizer": self.quantizer.config.kind,
            "config": self.config.to_dict(),
        }

    # -- what users call -------------------------------------------------------------------------------------------

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.quantizer.config.vocab_sizes

    @torch.no_grad()
    def encode(self, signals: Sequence[Any]) -> Tokens:
        """Signals to tokens of layout `sequence`, with `lengths` where they have different numbers of parts.

        Deterministic: a signal alone, in any batch, and twice gives the same tokens.

        Raises:
            ValueError: no signals, or one that the model does not take.
        """
        if not isinstance(signals, list | tuple) or not signals:
            raise ValueError(f"expected a list of signals, got {signals!r:.80}")
        for signal in signals:
            self.check(signal)
        with self._evaluating():
            rows = [[level[None] for level in self.encode_levels(signal)] for signal in signals]
        return Tokens.cat([Tokens(tuple(row), self.vocab_sizes, "sequence", source=self.source) for row in rows])

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> list[Any]:
        """Tokens to a reconstruction of each signal.

        Raises:
            ValueError: tokens of another model.
        """
        codes = self.codes(tokens).to(self.dtype)
        lengths = [codes.shape[1]] * len(codes) if tokens.lengths is None else tokens.lengths.tolist()
        with self._evaluating():
            return [self.reconstruct(item[:length]) for item, length in zip(codes, lengths)]

    def forward(self, signal: Any) -> StructuredOutput:
        """One pass over one signal for training."""
        latent = self.latent(signal)
        quantized = self.quantizer(latent)
        return StructuredOutput(self.reconstruct(quantized.codes.to(latent.dtype)), latent, quantized)

    def codes(self, tokens: Tokens) -> Tensor:
        """The code vectors (B, N, D), float32; those beyond an item's length mean nothing.

        Raises:
            ValueError: tokens of another model.
        """
        require_tokens(tokens)
        tokens.require_from(self.source, "sequence", self.vocab_sizes)
        device = next(iter(self.state_dict().values())).device
        return self.quantizer.indices_to_codes(*(level.to(device) for level in tokens.levels))

    def tokens(self, indices: Tensor) -> Tokens:
        """Tokens of signals of one length from raw integers (B, N), or (B, Q, N) of several levels.

        Raises:
            ValueError: no integers, another shape, or an index outside its vocabulary.
        """
        indices, count = integers(indices), len(self.vocab_sizes)
        levels = indices.unbind(1) if indices.ndim == 3 else (indices,)
        if indices.ndim not in (2, 3) or len(levels) != count:
            wanted = "(B, N)" if count == 1 else f"(B, {count}, N)"
            raise ValueError(f"expected indices {wanted}, got {tuple(indices.shape)}")
        return Tokens(levels, self.vocab_sizes, "sequence", source=self.source)
