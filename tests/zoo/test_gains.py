"""Gains of an extent: loudness beside the tokens survives files, batches and choosing, and counts as bits."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.tokens import Extent, Tokens

finite = st.floats(0, 4, width=32)


def tokens(gains: tuple[tuple[float, ...], ...] | None, count: int) -> Tokens:
    levels = tuple(torch.arange(count * 3).view(count, 3) % 7 for _ in range(2))
    return Tokens(levels, (8, 8), "frames", extent=Extent(((100,),) * count, 16000, gains), prefix="levels")


@settings(max_examples=40)
@given(gains=st.lists(st.lists(finite, max_size=5).map(tuple), min_size=1, max_size=4).map(tuple))
def test_gains_survive_files_batches_and_choosing(
    gains: tuple[tuple[float, ...], ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    batch = tokens(gains, len(gains))
    assert Tokens.unpack(batch.pack()) == batch
    path: Path = tmp_path_factory.getbasetemp() / "tokens.safetensors"
    batch.save(path)
    assert Tokens.load(path) == batch
    assert Tokens.cat([batch[i] for i in range(len(batch))]) == batch
    assert batch[[-1]].extent.gains == (gains[-1],)  # type: ignore[union-attr]
    assert batch.bits == tuple(3 * 2 * 3 + 32 * len(item) for item in gains)
    assert batch.truncate(1).extent == batch.extent


def test_files_without_gains_are_as_before() -> None:
    batch = tokens(None, 2)
    data = batch.pack()
    assert Tokens.unpack(data) == batch
    assert len(data) < len(tokens(((1.0,), (2.0,)), 2).pack())


def test_gains_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="expected gains of 2 items, got 1"):
        tokens(((1.0,),), 2)
    with pytest.raises(ValueError, match="expected finite gains"):
        tokens(((1.0,), (float("nan"),)), 2)
    with pytest.raises(ValueError, match="expected gains in all batches or in none"):
        Tokens.cat([tokens(None, 1), tokens(((1.0,),), 1)])
    data = tokens(((1.0,), (2.0,)), 2).pack()
    for end in range(len(data)):
        with pytest.raises(ValueError):
            Tokens.unpack(data[:end])
