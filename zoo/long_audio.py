"""Recordings of any length in bounded memory: piece by piece, with the tokens and samples of the whole.

Causal codecs go on as streams. Networks of convolutions get as much of the recording before and after each piece as
their outputs see, which `zoo.reach` finds in the network or the model's `reach` tells; those that see all of it are
refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from zoo.options import codebooks
from zoo.reach import Reach, reach_of
from zoo.streaming import CodecStream
from zoo.tokenizer import Tokenizer
from zoo.tokens import Extent, Tokens

_SEPARATE = 64  # pieces of tokens that are kept apart


@torch.no_grad()
def encode_pieces(
    model: Tokenizer, pieces: Iterable[Tensor], *, num_codebooks: int | None = None, seconds: float = 10.0
) -> Tokens:
    """`encode` of a recording that comes in pieces, such as `zoo.media.audio.blocks` gives.

    The tokens are those of `encode`, up to rounding: a latent on the very border of two codes may take the other where
    the device sums in another order for another length.

    Args:
        model: a codec whose tokens see a bounded part of the recording, or the past alone.
        pieces: (1, C, n) in `model.spec.value_range`, of any lengths n >= 1.
        num_codebooks: as of `encode`.
        seconds: how much is encoded at a time, without the margins.

    Raises:
        ValueError: a model that sees the whole recording, pieces that `spec` does not allow, or none.
    """
    model._require("encoder")
    count = codebooks(num_codebooks, len(model.vocab_sizes))
    coder = _encoder(model, count, seconds)
    found: list[list[Tensor]] = []
    samples = 0
    for piece in pieces:
        model.spec.check(piece)
        if len(piece) != 1:
            raise ValueError(f"expected pieces (1, {model.spec.channels}, n), got {tuple(piece.shape)}")
        samples += piece.shape[-1]
        found += coder.step(piece.to(model.device, model.dtype))
        if len(found) >= _SEPARATE:  # thousands of small tensors would take more memory than what they hold
            found = [_joined(found)]
    if samples == 0:
        raise ValueError("expected at least one piece, got none")
    found += coder.end()
    levels = tuple(_joined(found))
    extent = Extent(((samples,),), model.spec.sample_rate)
    return Tokens(levels, model.vocab_sizes[: len(levels)], model.layout, None, model.source, extent, model.prefix)


def _joined(found: list[list[Tensor]]) -> list[Tensor]:
    """Pieces of all levels -> each level as one."""
    return [torch.cat(parts, dim=1) for parts in zip(*found)]


@torch.no_grad()
def decode_pieces(model: Tokenizer, tokens: Tokens, *, seconds: float = 10.0) -> Iterator[Tensor]:
    """`decode` of one recording, piece by piece.

    Args:
        model: as of `encode_pieces`.
        tokens: of this model, of one recording.
        seconds: how much is decoded at a time, without the margins.

    Yields:
        (1, C, n), in all the samples of `decode`, up to rounding.

    Raises:
        ValueError: a model that sees the whole recording, or several recordings.
    """
    model._require("decoder")
    model._check_tokens(tokens)
    if len(tokens) != 1 or tokens.extent is None:
        raise ValueError(f"expected tokens of one recording with its length, got {len(tokens)}")
    left = tokens.extent.sizes[0][0]
    for signal in _decoded(model, tokens, seconds):
        signal = signal[..., :left]
        left -= signal.shape[-1]
        if signal.shape[-1]:
            yield signal


def can_be_cut(model: Tokenizer, part: Literal["encoder", "decoder"] = "encoder") -> str | None:
    """None, or why `encode_pieces` (or `decode_pieces`, of the decoder) refuses the model."""
    try:
        if part == "encoder":
            _encoder(model, 1, 1.0)
        elif not model.spec.causal:
            _reach(model, part)
    except ValueError as error:
        return str(error)
    return None


class _Stream:
    """A causal codec as `encode_pieces` needs it."""

    def __init__(self, stream: CodecStream) -> None:
        self.stream = stream.__enter__()

    def step(self, x: Tensor) -> list[list[Tensor]]:
        return [list(self.stream.encode(x).unbind(1))]

    def end(self) -> list[list[Tensor]]:
        model = self.stream.model
        nothing = torch.zeros(1, model.spec.channels, 0, device=model.device)
        return [list(self.stream.encode(nothing, last=True).unbind(1))]


class _Windows:
    """A network of convolutions as `encode_pieces` needs it: each chunk with the margins that its tokens see."""

    def __init__(self, model: Tokenizer, count: int, seconds: float) -> None:
        self.model, self.count = model, count
        self.reach = _reach(model, "encoder")
        hop, multiple = int(self.reach.scale), model.spec.multiple
        self.hop, rate = hop, model.spec.sample_rate or 1
        self.chunk = max(1, round(seconds * rate / multiple)) * (multiple // hop)  # positions at a time
        self.kept = torch.zeros(1, model.spec.channels, 0)
        self.first = 0  # sample at which `kept` begins, a multiple
        self.done = 0  # positions that are encoded

    def step(self, x: Tensor) -> list[list[Tensor]]:
        self.kept = torch.cat([self.kept.to(x), x], dim=-1)
        found = []
        while self._needed(self.done + self.chunk) <= self.first + self.kept.shape[-1]:
            found.append(self._encode(self.done + self.chunk, None))
        return found

    def end(self) -> list[list[Tensor]]:
        if self.kept.shape[-1]:
            self.kept = self.model.pad(self.kept)
        total = (self.first + self.kept.shape[-1]) // self.hop
        found = []
        while self.done < total:
            found.append(self._encode(min(total, self.done + self.chunk), total))
        return found

    def _needed(self, stop: int) -> int:
        """The end of the samples that positions before `stop` see, in whole multiples."""
        _, end = self.reach.inputs(self.done, stop, 1 << 62)
        multiple = self.model.spec.multiple
        return -(-end // multiple) * multiple

    def _encode(self, stop: int, total: int | None) -> list[Tensor]:
        """Positions from `done` to `stop`; `total` where the recording ends."""
        multiple = self.model.spec.multiple
        first, _ = self.reach.inputs(self.done, stop, 1 << 62)
        first = first // multiple * multiple
        end = self._needed(stop)
        if total is not None:
            end = min(end, total * self.hop)
        part = self.kept[..., first - self.first : end - self.first]
        start = self.done - first // self.hop
        with self.model._evaluating():
            latent = self.model.latent(part)[:, start : start + stop - self.done]
            levels = self.model.quantizer.first_levels(latent, self.count)
        self.done = stop
        before, _ = self.reach.inputs(stop, stop + 1, 1 << 62)
        keep = before // multiple * multiple
        self.kept, self.first = self.kept[..., max(0, keep - self.first) :], max(keep, self.first)
        return list(levels)


def _encoder(model: Tokenizer, count: int, seconds: float) -> _Stream | _Windows:
    if model.spec.modality != "audio" or model.layout not in ("frames", "scales"):
        raise ValueError(f"expected a codec of audio, got {model.name}")
    if model.spec.causal:
        return _Stream(_stream(model, count))
    return _Windows(model, count, seconds)


def _stream(model: Tokenizer, count: int | None) -> CodecStream:
    streaming = getattr(model, "streaming", None)
    if streaming is None:
        raise ValueError(f"expected a causal model that streams, got {model.name}")
    return streaming(count)


def _decoded(model: Tokenizer, tokens: Tokens, seconds: float) -> Iterator[Tensor]:
    rate = model.spec.sample_rate or 1
    if model.spec.causal:
        step = max(1, round(seconds * rate / model.spec.multiple))
        positions = tokens.levels[0].shape[1]
        with _stream(model, len(tokens.levels)) as stream:
            for start in range(0, positions, step):
                part = torch.stack([level[:, start : start + step] for level in tokens.levels], dim=1)
                yield stream.decode(part, last=start + step >= positions)
        return
    if tokens.layout != "frames":
        raise ValueError(f"expected frames of one rate, got {tokens.layout}: decode {model.name} at once")
    reach = _reach(model, "decoder")
    hop = int(1 / reach.scale)
    positions = tokens.levels[0].shape[1]
    step = max(1, round(seconds * rate / hop))
    for start in range(0, positions, step):
        stop = min(start + step, positions)
        first, end = reach.inputs(start * hop, stop * hop, positions)
        part = [level[:, first:end] for level in tokens.levels]
        with model._evaluating():
            codes = model.quantizer.indices_to_codes(*(level.to(model.device) for level in part)).to(model.dtype)
            signal = model.reconstruct(codes)
        yield signal[..., (start - first) * hop : (stop - first) * hop]


def _reach(model: Tokenizer, part: str) -> Reach:
    """What a token sees of the recording, or a sample of the tokens."""
    if hasattr(model, "reach"):  # of transforms that are no convolutions the model tells it
        return model.reach(part)
    own = "encode_levels" if part == "encoder" else "decode_codes"
    if model.spec.size is not None or getattr(type(model), own) is not getattr(Tokenizer, own):
        raise ValueError(f"{model.name} cannot be cut into pieces with exact seams: its {part} does more than convolve")
    with torch.inference_mode(False), torch.device("meta"):  # as large, but without numbers
        outline = type(model)(model.config).eval()  # type: ignore[call-arg]
        positions = outline.positions((4 * model.spec.multiple,))[0]
        shape = (
            (1, model.spec.channels, 4 * model.spec.multiple)
            if part == "encoder"
            else (1, positions, model.quantizer.config.dim)
        )
        example = torch.empty(shape)
    try:
        (reach,) = reach_of(
            outline.latent if part == "encoder" else outline.reconstruct, example, (2,) if part == "encoder" else (1,)
        )
    except (ValueError, OSError) as error:
        raise ValueError(f"{model.name} cannot be cut into pieces with exact seams: {error}") from error
    hop = Fraction(4 * model.spec.multiple, positions)
    if reach.scale != (hop if part == "encoder" else 1 / hop):
        raise ValueError(f"expected a position for {hop} samples, got {reach}")
    return reach
