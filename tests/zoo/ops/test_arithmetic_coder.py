"""Arithmetic coding and bit packing: what goes in comes out, at nearly the entropy; damage is told."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.ops.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder, pack_bits, quantized_cdf, unpack_bits


def coded(symbols: list[int], cdfs: list[list[int]]) -> bytes:
    encoder = ArithmeticEncoder()
    for symbol, cdf in zip(symbols, cdfs):
        encoder.push(symbol, cdf)
    return encoder.finish()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 60), size=st.integers(2, 40), sharpness=st.floats(0, 12))
def test_symbols_come_back_from_all_bytes(seed: int, count: int, size: int, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    pdfs = (torch.randn(count, size, generator=generator) * sharpness).softmax(-1)
    symbols = torch.randint(size, (count,), generator=generator).tolist()
    cdfs = quantized_cdf(pdfs).tolist()
    data = coded(symbols, cdfs)
    decoder = ArithmeticDecoder(data)
    assert [decoder.pull(cdf) for cdf in cdfs] == symbols
    assert decoder.bytes_read == len(data)


def test_likely_symbols_cost_their_entropy() -> None:
    pdf = torch.tensor([0.9, 0.05, 0.03, 0.02])
    symbols = torch.multinomial(pdf, 4000, replacement=True, generator=torch.Generator().manual_seed(0)).tolist()
    bits = -sum(math.log2(pdf[symbol].item()) for symbol in symbols)
    size = 8 * len(coded(symbols, [quantized_cdf(pdf).tolist()] * 4000))
    assert bits < size < 1.01 * bits + 32


def test_ranges_grow_and_leave_none_out() -> None:
    cdf = quantized_cdf(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert (cdf.diff(dim=-1) >= 2).all()
    assert (cdf[:, 0] >= 2).all()
    assert (cdf[:, -1] <= 1 << 24).all()
    with pytest.raises(ValueError, match="expected at most"):
        quantized_cdf(torch.zeros(1).expand(1 << 24))


def test_missing_bytes_are_told() -> None:
    cdf = quantized_cdf(torch.full((16,), 1 / 16)).tolist()
    data = coded(list(range(16)) * 4, [cdf] * 64)
    decoder = ArithmeticDecoder(data[:-6])
    with pytest.raises(ValueError, match="expected more arithmetic code"):
        [decoder.pull(cdf) for _ in range(64)]


@given(width=st.integers(1, 20), values=st.lists(st.integers(0, 2**20 - 1), max_size=30))
def test_bits_are_packed_lowest_first(width: int, values: list[int]) -> None:
    values = [value % 2**width for value in values]
    data = pack_bits(torch.tensor(values, dtype=torch.int64), width)
    number = sum(value << (i * width) for i, value in enumerate(values))
    assert data == number.to_bytes(-(-len(values) * width // 8), "little")
    assert unpack_bits(data, width, len(values)).tolist() == values
    with pytest.raises(ValueError, match="bytes for"):
        unpack_bits(data + b"\0", width, len(values))
