"""Statistics and choices of the joined batch, in one process; two processes train in test_distributed.py."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.ops.joined_batch import joined_code_sums, joined_sample, joined_seed


@given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 99))
def test_a_sample_has_different_rows_of_the_batch(count: int, wanted: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(count, 3)
    sample = joined_sample(x, wanted)
    assert sample.shape == (min(count, wanted), 3)
    assert len(sample.unique(dim=0)) == len(sample)
    assert all(bool((x == row).all(1).any()) for row in sample)
    if wanted >= count:
        assert torch.equal(sample, x)


def test_every_row_is_drawn_as_often() -> None:
    x = torch.arange(5.0)[:, None]
    counts = torch.cat([joined_sample(x, 2) for _ in range(2000)]).flatten().long().bincount()
    torch.testing.assert_close(counts / 2000, torch.full((5,), 0.4), rtol=0, atol=0.05)


def test_rows_that_are_not_finite_are_never_drawn_and_do_not_count() -> None:
    x = torch.tensor([[1.0, 2], [math.nan, 0], [3, 4], [math.inf, 0], [5, 6]])
    assert torch.equal(joined_sample(x, 9), x[[0, 2, 4]])
    assert joined_sample(x[[1, 3]], 1).shape == (0, 2)
    sums, counts = joined_code_sums(x, torch.tensor([1, 0, 1, 0, 2]), 4)
    assert torch.equal(sums, torch.tensor([[0.0, 0], [4, 6], [5, 6], [0, 0]]))
    assert torch.equal(counts, torch.tensor([0.0, 2, 1, 0]))


def test_a_seed_is_drawn_from_the_global_generator() -> None:
    torch.manual_seed(3)
    first, second = joined_seed(torch.device("cpu")), joined_seed(torch.device("cpu"))
    assert first != second
    torch.manual_seed(3)
    assert joined_seed(torch.device("cpu")) == first
