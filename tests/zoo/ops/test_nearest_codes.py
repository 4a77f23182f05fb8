"""The several nearest codes against a full table of distances."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.ops import nearest_code, nearest_codes


@given(st.integers(0, 60), st.integers(1, 80), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_they_are_the_nearest_in_order(n: int, k: int, d: int, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, k))
    generator = torch.Generator().manual_seed(seed)
    x, codebook = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    indices = nearest_codes(x, codebook, count)
    distances = (x.double()[:, None] - codebook.double()).square().sum(-1)
    expected = distances.sort(dim=1)
    assert indices.shape == (n, count)
    torch.testing.assert_close(distances.gather(1, indices), expected.values[:, :count], rtol=1e-10, atol=1e-10)
    assert torch.equal(indices[:, 0], nearest_code(x, codebook))


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = torch.randn(50, 4, dtype=torch.float16), torch.randn(33, 4)
    expected = nearest_codes(x, codebook, 5)
    monkeypatch.setattr(import_module("zoo.ops.nearest_codes"), "_TILE", 100)
    assert torch.equal(nearest_codes(x, codebook, 5), expected)


@pytest.mark.parametrize("count", [0, 6])
def test_it_refuses_what_does_not_fit(count: int) -> None:
    with pytest.raises(ValueError, match=f"expected 1 to 5 codes, got {count}"):
        nearest_codes(torch.ones(2, 3), torch.ones(5, 3), count)
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(K, D\), got \(2, 3\) and \(5, 2\)"):
        nearest_codes(torch.ones(2, 3), torch.ones(5, 2), 1)
