"""The discrete cosine transform of grids."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.layers.dct import dct2, dct_matrix, inverse_dct2


@settings(max_examples=25)
@given(height=st.integers(1, 24), width=st.integers(1, 24), seed=st.integers(0, 99))
def test_the_inverse_undoes_the_transform(height: int, width: int, seed: int) -> None:
    x = torch.randn(2, height, width, 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(inverse_dct2(dct2(x)), x, rtol=1e-4, atol=1e-4)


def test_it_is_scipys_but_for_the_constant_frequency_which_is_the_mean() -> None:
    fft = pytest.importorskip("scipy.fft")
    x = torch.randn(2, 5, 7, 3, generator=torch.Generator().manual_seed(0))
    found, expected = dct2(x), torch.from_numpy(fft.dctn(x.numpy(), axes=(1, 2), norm="ortho"))
    torch.testing.assert_close(found[:, 0, 0], x.mean((1, 2)))
    torch.testing.assert_close(found[:, 0, 0] * math.sqrt(35), expected[:, 0, 0])
    found[:, 0, 0] = expected[:, 0, 0] = 0
    torch.testing.assert_close(found, expected)


def test_rows_are_orthonormal() -> None:
    matrix = dct_matrix(12)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(12), rtol=0, atol=1e-5)


def test_half_precision_goes_in_and_out_and_autocast_is_left_aside() -> None:
    x = torch.rand(1, 16, 16, 2)
    assert dct2(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dct2(x), dct2(x.double()).float(), rtol=1e-4, atol=1e-4)


def test_it_is_computed_in_float32_whatever_the_default_is() -> None:
    x = torch.randn(1, 4, 4, 2)
    expected = dct2(x)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(dct2(x), expected)
        torch.testing.assert_close(inverse_dct2(expected), x)
    finally:
        torch.set_default_dtype(torch.float32)
