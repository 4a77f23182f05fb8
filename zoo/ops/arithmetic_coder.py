"""Arithmetic coding of symbols by their probabilities, with integer ranges (Rissanen and Langdon, 1979).

Bit for bit as EnCodec's files have it (arXiv 2210.13438, appendix A): 24 bits of range, bits packed lowest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TOTAL_BITS = 24
_TOTAL = 1 << TOTAL_BITS
_ROUND_OFF = 1e-8  # probabilities are cut to multiples of it, against the noise of the last bit
_LEAST = 2  # width of the range of a symbol of no probability


def quantized_cdf(probabilities: Tensor) -> Tensor:
    """Integer cumulative ranges (..., K) of distributions (..., K); each symbol has a range, of 2 or more.

    Raises:
        ValueError: more symbols than ranges.
    """
    symbols = probabilities.shape[-1]
    if _LEAST * symbols > _TOTAL:
        raise ValueError(f"expected at most {_TOTAL // _LEAST} symbols, got {symbols}")
    share = (probabilities.detach().float() / _ROUND_OFF).floor() * _ROUND_OFF
    ranges = (((1 - _LEAST * symbols / _TOTAL) * _TOTAL) * share).floor().long() + _LEAST
    widest = ranges.argmax(-1, keepdim=True)  # where float32 rounds up to more than there is, it gives the surplus back
    surplus = (ranges.sum(-1, keepdim=True) - _TOTAL).clamp_min(0)
    return ranges.scatter_add(-1, widest, -surplus).cumsum(-1)


class ArithmeticEncoder:
    """Symbols in, one after the other; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._low = self._high = 0
        self._max_bit = -1
        self._bits = _BitWriter()

    def push(self, symbol: int, cdf: Sequence[int]) -> None:
        """Code a symbol.

        Args:
            symbol: 0 to K - 1.
            cdf: K cumulative ranges of `quantized_cdf`.
        """
        while self._high - self._low + 1 < _TOTAL:
            self._low, self._high = 2 * self._low, 2 * self._high + 1
            self._max_bit += 1
        start, end = _narrowed(cdf, symbol, self._high - self._low + 1)
        self._low, self._high = self._low + start, self._low + end
        while self._max_bit >= 0 and self._low >> self._max_bit == self._high >> self._max_bit:
            bit = self._low >> self._max_bit
            self._bits.push(bit)
            self._low -= bit << self._max_bit
            self._high -= bit << self._max_bit
            self._max_bit -= 1

    def finish(self) -> bytes:
        """The bytes of all symbols, padded with zeros to a whole one."""
        while self._max_bit >= 0:
            self._bits.push((self._low >> self._max_bit) & 1)
            self._max_bit -= 1
        return self._bits.finish()


class ArithmeticDecoder:
    """The symbols of an encoder's bytes, given the same ranges in the same order."""

    def __init__(self, data: bytes) -> None:
        self._low = self._high = self._current = 0
        self._max_bit = -1
        self._data, self._read = data, 0

    @property
    def bytes_read(self) -> int:
        """How many bytes the symbols so far have taken; after the last symbol all of them."""
        return -(-self._read // 8)

    def pull(self, cdf: Sequence[int]) -> int:
        """The next symbol.

        Raises:
            ValueError: bytes that end too early, or were not coded with these ranges.
        """
        while self._high - self._low + 1 < _TOTAL:
            self._low, self._high = 2 * self._low, 2 * self._high + 1
            self._current = 2 * self._current + self._bit()
            self._max_bit += 1
        width, place = self._high - self._low + 1, self._current - self._low
        first, last = 0, len(cdf) - 1
        while first < last:  # the symbol whose range holds the place
            middle = (first + last) // 2
            if _narrowed(cdf, middle, width)[1] < place:
                first = middle + 1
            else:
                last = middle
        start, end = _narrowed(cdf, first, width)
        if not start <= place <= end:
            raise ValueError("expected arithmetic code of these probabilities, got other bits")
        self._low, self._high = self._low + start, self._low + end
        while self._max_bit >= 0 and self._low >> self._max_bit == self._high >> self._max_bit:
            bit = (self._low >> self._max_bit) << self._max_bit
            self._low, self._high, self._current = self._low - bit, self._high - bit, self._current - bit
            self._max_bit -= 1
        return first

    def _bit(self) -> int:
        if self._read >= 8 * len(self._data):
            raise ValueError(f"expected more arithmetic code, got {len(self._data)} bytes")
        bit = (self._data[self._read // 8] >> (self._read % 8)) & 1
        self._read += 1
        return bit


def _narrowed(cdf: Sequence[int], symbol: int, width: int) -> tuple[int, int]:
    """First and last place of a symbol in a range of `width` places; in float64, as the format has it."""
    before = cdf[symbol - 1] if symbol > 0 else 0
    share = width / _TOTAL
    return math.ceil(before * share), math.floor((cdf[symbol] - 1) * share)


class _BitWriter:
    """Bits to bytes, lowest bit first."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._count = 0

    def push(self, bit: int) -> None:
        if self._count % 8 == 0:
            self._out.append(0)
        self._out[-1] |= bit << (self._count % 8)
        self._count += 1

    def finish(self) -> bytes:
        return bytes(self._out)


def pack_bits(values: Tensor, width: int) -> bytes:
    """Integers (N,) of `width` bits each, lowest bit first, padded with zeros to a whole byte."""
    bits = (values.cpu()[:, None] >> torch.arange(width, device="cpu")) & 1
    bits = torch.nn.functional.pad(bits.flatten(), (0, -bits.numel() % 8)).view(-1, 8)
    return bytes((bits << torch.arange(8, device="cpu")).sum(1).tolist())


def unpack_bits(data: bytes, width: int, count: int) -> Tensor:
    """int64 (count,) of `pack_bits`.

    Raises:
        ValueError: not as many bytes as that takes.
    """
    if len(data) != -(-count * width // 8):
        raise ValueError(f"expected {-(-count * width // 8)} bytes for {count} values, got {len(data)}")
    packed = torch.tensor(list(data), dtype=torch.int64, device="cpu")
    bits = ((packed[:, None] >> torch.arange(8, device="cpu")) & 1).flatten()[: count * width]
    return (bits.view(count, width) << torch.arange(width, device="cpu")).sum(1)
