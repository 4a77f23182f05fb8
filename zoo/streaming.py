"""Streaming: a causal codec on one signal (or batch) in pieces of any size, equal to the whole signal at once."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from zoo.layers.streaming import Stream
from zoo.options import codebooks
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens


class CodecStream:
    """`with model.streaming() as stream:`; encoding and decoding go on independently of each other.

    The state is bounded. Joined along time, the pieces are what `encode` and `decode` give of the whole signal.
    """

    def __init__(
        self, model: Tokenizer, encoder: Callable[[], Stream], decoder: Callable[[], Stream], num_codebooks: int | None
    ) -> None:
        self.model, self.num_codebooks = model, codebooks(num_codebooks, len(model.vocab_sizes))
        self._encoder, self._decoder = encoder, decoder
        self._open: dict[str, Stream] = {}
        self._ended: set[str] = set()
        self._counts: dict[tuple[str, str], int] = {}  # what holds from the first piece on

    def __enter__(self) -> Self:
        self._open = {"encode": self._encoder(), "decode": self._decoder()}
        self._ended, self._counts = set(), {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = {}

    @torch.no_grad()
    def encode(self, x: Tensor, *, last: bool = False) -> Tensor:
        """The next samples.

        Args:
            x: (B, C, T) in the spec's range, T >= 0; B the same in every call.
            last: whether the signal ends here.

        Returns:
            int64 indices (B, Q, frames) of the frames that are final by now, 0 or more.

        Raises:
            ValueError: as `Tokenizer.encode`; another batch size than before; a stream that has ended or is not open.
        """
        nothing = isinstance(x, Tensor) and x.ndim > 0 and x.shape[-1] == 0
        self.model.spec.check(x.new_zeros(*x.shape[:-1], 1) if nothing else x)
        stream = self._stream("encode", last, items=len(x))
        with self.model._evaluating():
            latent = stream.step(x.to(self.model.dtype), last).movedim(1, -1)
            levels = self.model.quantizer.first_levels(latent, self.num_codebooks)
        return torch.stack(levels, dim=1)

    @torch.no_grad()
    def decode(self, indices: Tensor, *, last: bool = False) -> Tensor:
        """The next frames.

        Args:
            indices: int64 (B, Q, frames), frames >= 0; B and Q the same in every call.
            last: whether the signal ends here.

        Returns:
            Samples (B, C, T) that are final by now, T >= 0: in all as many as `decode` gives of tokens without extent.

        Raises:
            ValueError: indices of another shape or outside the vocabulary; another batch size or number of codebooks
                than before; a stream that has ended or is not open.
        """
        levels = self._levels(indices)
        stream = self._stream("decode", last, items=len(indices), codebooks=len(levels))
        with self.model._evaluating():
            codes = self.model.quantizer.indices_to_codes(*levels).to(self.model.dtype)
            return stream.step(codes.movedim(-1, 1), last)

    def _levels(self, indices: Tensor) -> tuple[Tensor, ...]:
        sizes = self.model.vocab_sizes
        wanted = f"expected int64 indices (batch, 1 to {len(sizes)}, frames)"
        if not isinstance(indices, Tensor):
            raise ValueError(f"{wanted}, got {type(indices).__name__}")
        if indices.ndim != 3 or not 1 <= indices.shape[1] <= len(sizes) or indices.dtype != torch.int64:
            raise ValueError(f"{wanted}, got {indices.dtype} {tuple(indices.shape)}")
        levels = indices.unbind(1)
        return Tokens(levels, sizes[: len(levels)], "frames").levels

    def _stream(self, kind: str, last: bool, **counts: int) -> Stream:
        if not self._open:
            raise ValueError("expected an open stream: `with model.streaming() as stream:`")
        if kind in self._ended:
            raise ValueError(f"expected nothing more to {kind}: the last piece has come")
        for name, count in counts.items():
            before = self._counts.get((kind, name), count)
            if count != before:
                wanted = f"a batch of {before}" if name == "items" else f"{before} {name}"
                raise ValueError(f"expected {wanted} to {kind}, as before, got {count}")
        self._counts |= {(kind, name): count for name, count in counts.items()}
        if last:
            self._ended.add(kind)
        return self._open[kind]
