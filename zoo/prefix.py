"""PrefixTokenizer: base of the tokenizers whose rows of tokens are ordered, so that the first of them decode alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.adaptive import cut, token_counts
from zoo.tokenizer import Output, Tokenizer
from zoo.tokens import Tokens


class PrefixTokenizer(Tokenizer):
    """Signals to 1 to N tokens, any prefix of which is a coarser version of the same signal.

    `encode(x, num_tokens=k)` gives the first k tokens, k an integer for all items or a list of one for each. A family
    writes `latent` of all tokens, and `reconstruct` of the first `lengths` of each item.
    """

    layout = "sequence"
    prefix = "positions"
    encode_options = frozenset({"num_tokens"})

    def reconstruct(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Code vectors (B, k, D) -> signals; of each item only the first `lengths` (B,), where items differ."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Output:
        """One pass for training: `Output` with a reconstruction of the size of `x`.

        Args:
            x: a batch as `spec` states.
            lengths: (B,) how many of its first tokens the reconstruction of each item sees; None: all, or in training
                what the model itself draws.

        Raises:
            ValueError: a shape or dtype that `spec` does not allow (values are not checked).
        """
        self.spec.check_shape(x)
        latent = self.latent(self.pad(x))
        quantized = self.quantizer(latent)
        signal = self.reconstruct(quantized.codes.to(latent.dtype), lengths)
        return Output(signal[(..., *(slice(side) for side in x.shape[2:]))], latent, quantized)

    def encode_levels(
        self, x: Tensor, *, num_tokens: int | list[int] | None = None, **options: Any
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        if num_tokens is None:
            return super().encode_levels(x, **options)
        counts = token_counts(num_tokens, len(x), self.numbers_of_tokens(tuple(x.shape[2:])))
        levels, _ = super().encode_levels(x, **options)
        return cut(levels, counts)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self.reconstruct(codes, tokens.lengths, **options)
