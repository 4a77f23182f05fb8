"""Byte-pair encoding of token grids: lossless, frequent pairs first, and the files it writes."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo import bpe
from zoo.bpe import Merge, Merges


@st.composite
def grids(draw: st.DrawFn, codes: int = 4) -> Tensor:
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    few = draw(st.integers(1, codes))
    return torch.randint(few, shape, generator=generator)


@st.composite
def encodings(draw: st.DrawFn, codes: int = 4) -> Merges:
    """Merges that no training chose: any pair whose shapes make a rectangle."""
    merges: list[Merge] = []
    for _ in range(draw(st.integers(0, 12))):
        shapes = Merges(codes, tuple(merges)).shapes
        direction = draw(st.sampled_from(["right", "below"]))
        first = draw(st.integers(0, len(shapes) - 1))
        border = 0 if direction == "right" else 1
        fitting = [token for token, shape in enumerate(shapes) if shape[border] == shapes[first][border]]
        merges.append(Merge(first, draw(st.sampled_from(fitting)), direction))
    return Merges(codes, tuple(merges))


def slowly(merges: Merges, grid: list[list[int]]) -> list[int]:
    """What `apply` is, written down cell by cell."""
    height, width = len(grid), len(grid[0])
    cells: dict[tuple[int, int], int] = {(i, j): grid[i][j] for i in range(height) for j in range(width)}
    for token, merge in enumerate(merges.merges, start=merges.vocab_size):
        rows, columns = merges.shapes[merge.first]
        for i in range(height):
            for j in range(width):
                other = (i, j + columns) if merge.direction == "right" else (i + rows, j)
                if cells.get((i, j)) == merge.first and cells.get(other) == merge.second:
                    cells[i, j] = token
                    del cells[other]
    return [cells[place] for place in sorted(cells)]


@given(grids(), encodings())
def test_any_merges_are_undone_exactly(codes: Tensor, merges: Merges) -> None:
    for grid, tokens in zip(codes, bpe.apply(merges, codes)):
        assert torch.equal(bpe.undo(merges, tokens, tuple(grid.shape)), grid)


@given(grids(), encodings())
def test_apply_is_its_definition(codes: Tensor, merges: Merges) -> None:
    assert [tokens.tolist() for tokens in bpe.apply(merges, codes)] == [slowly(merges, g) for g in codes.tolist()]


@given(grids(), st.integers(0, 12))
def test_trained_merges_are_undone_exactly_and_each_shortens(codes: Tensor, count: int) -> None:
    merges = bpe.train(codes, 4, count)
    assert len(merges.merges) <= count
    lengths = []
    for used in range(len(merges.merges) + 1):
        encoded = bpe.apply(Merges(4, merges.merges[:used]), codes)
        lengths.append(sum(len(tokens) for tokens in encoded))
    assert all(after < before for before, after in pairwise(lengths))
    for grid, tokens in zip(codes, bpe.apply(merges, codes)):
        assert torch.equal(bpe.undo(merges, tokens, tuple(grid.shape)), grid)


@given(grids())
def test_the_first_merge_is_the_most_frequent_pair(codes: Tensor) -> None:
    counts: Counter[tuple[str, int, int]] = Counter()
    for grid in codes.tolist():
        for i, row in enumerate(grid):
            for j, code in enumerate(row):
                if j + 1 < len(row):
                    counts["right", code, row[j + 1]] += 1
                if i + 1 < len(grid):
                    counts["below", code, grid[i + 1][j]] += 1
    merges = bpe.train(codes, 4, 1, least=1).merges
    if not counts:
        assert merges == ()
        return
    order = {"right": 0, "below": 1}
    pair = min(counts, key=lambda key: (-counts[key], order[key[0]], key[1:]))
    assert merges == (Merge(pair[1], pair[2], pair[0]),)


def test_repeated_patterns_become_one_token() -> None:
    """A grid of equal 2 x 2 blocks is one token a block after three merges."""
    codes = torch.tensor([[0, 1], [2, 3]]).repeat(4, 4)[None]
    merges = bpe.train(codes, 4, 3)
    assert merges.merges == (Merge(0, 1, "right"), Merge(2, 3, "right"), Merge(4, 5, "below"))
    assert merges.pattern(6).tolist() == [[0, 1], [2, 3]]
    assert [tokens.tolist() for tokens in bpe.apply(merges, codes)] == [[6] * 16]


def test_overlapping_pairs_are_taken_from_the_left_and_from_the_top() -> None:
    right, below = Merges(1, (Merge(0, 0, "right"),)), Merges(1, (Merge(0, 0, "below"),))
    codes = torch.zeros(1, 5, 1, dtype=torch.int64)
    assert bpe.apply(right, codes.transpose(1, 2))[0].tolist() == [1, 1, 0]
    assert bpe.apply(below, codes)[0].tolist() == [1, 1, 0]


def test_rectangles_merge_along_a_common_border_alone() -> None:
    codes = torch.tensor([[[0, 0, 1], [2, 2, 1]]])
    merges = Merges(3, (Merge(0, 0, "right"), Merge(2, 2, "right"), Merge(3, 4, "below"), Merge(1, 1, "below")))
    whole = Merges(3, (*merges.merges, Merge(5, 6, "right")))
    assert bpe.apply(merges, codes)[0].tolist() == [5, 6]
    assert bpe.apply(whole, codes)[0].tolist() == [7]
    assert whole.shapes[-1] == (2, 3)


def test_training_takes_grids_of_several_sizes() -> None:
    batches = [torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(1, 5, 2, dtype=torch.int64)]
    merges = bpe.train(batches, 1, 1)
    assert merges.merges == (Merge(0, 0, "below"),)  # 2 * 3 * 3 + 5 = 23 to the right, 2 * 2 * 4 + 4 * 2 = 24 below


def test_training_ends_where_no_pair_is_frequent_enough() -> None:
    codes = torch.arange(12).view(1, 3, 4)
    assert bpe.train(codes, 12, 5).merges == ()
    assert len(bpe.train(codes, 12, 5, least=1).merges) == 5


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        ([0, 0, 0], "expected tokens for 4 codes, got tokens for 3"),
        ([0, 0, 0, 0, 0], "does not fit"),
        ([0, 2, 0], "does not fit"),  # a pair over the right edge
        ([0, 0, 3], "does not fit"),  # a column over the lower edge
        ([4], r"expected tokens in \[0, 4\)"),
        ([-1], r"expected tokens in \[0, 4\)"),
    ],
)
def test_sequences_that_make_no_grid_are_refused(tokens: list[int], why: str) -> None:
    merges = Merges(2, (Merge(0, 1, "right"), Merge(0, 1, "below")))
    with pytest.raises(ValueError, match=why):
        bpe.undo(merges, torch.tensor(tokens), (2, 2))


@pytest.mark.parametrize(
    ("merge", "why"),
    [
        (Merge(0, 2, "right"), r"tokens in \[0, 2\)"),
        (Merge(-1, 0, "right"), r"tokens in \[0, 2\)"),
        (Merge(0, 1, "left"), "'right' or 'below'"),  # type: ignore[arg-type]
    ],
)
def test_impossible_merges_are_refused(merge: Merge, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Merges(2, (merge,))


def test_shapes_that_make_no_rectangle_are_refused() -> None:
    with pytest.raises(ValueError, match="rectangle"):
        Merges(1, (Merge(0, 0, "below"), Merge(0, 1, "right")))


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), r"\(B, H, W\)"),
        (torch.zeros(1, 3, 3), "int64"),
        (torch.full((1, 2, 2), 4), r"codes in \[0, 4\)"),
        (torch.full((1, 2, 2), -1), r"codes in \[0, 4\)"),
    ],
)
def test_wrong_grids_are_refused(codes: Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bpe.train(codes, 4, 1)
    with pytest.raises(ValueError, match=why):
        bpe.apply(Merges(4, ()), codes)


def test_grids_are_left_as_they_are() -> None:
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)
    bpe.apply(bpe.train(codes, 1, 3), codes)
    assert not codes.any()


@given(encodings())
def test_a_saved_encoding_is_loaded_as_it_was(tmp_path: Path, merges: Merges) -> None:
    bpe.save(merges, tmp_path / "merges.json")
    assert bpe.load(tmp_path / "merges.json") == merges
    assert [path.name for path in tmp_path.iterdir()] == ["merges.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "vocab_size": 1, "merges": []}',
        '{"format": 1, "vocab_size": 1, "merges": [[0, 9, "right"]]}',
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: expected a file of zoo\.bpe\.save"):
        bpe.load(tmp_path / "other.json")


# -- as Being-VL released it; what it computed is in tests/parity/token_bpe_image ----------------------------------


def test_diagonal_neighbours_count_in_the_first_flat_merge() -> None:
    codes = torch.tensor([[[1, 0], [3, 2]], [[1, 4], [0, 2]], [[1, 5], [4, 2]]])
    assert bpe.train_flat(codes, 6, 1) == ((1, 2),)  # three diagonals, and no other pair that often


@given(grids(), st.integers(0, 6))
def test_flat_tokens_stand_for_as_many_codes_as_the_grid_has(codes: Tensor, count: int) -> None:
    pairs = bpe.train_flat(codes, 4, count)
    weights = [1] * 4
    for first, second in pairs:
        assert first < second
        weights.append(weights[first] + weights[second])
    found = bpe.apply_flat(pairs, 4, codes)
    assert len(found) == len(codes)
    for grid, tokens in zip(codes, found):
        assert sum(weights[token] for token in tokens.tolist()) == grid.numel()


@given(grids(), st.integers(0, 6))
def test_flat_merges_of_sequences_are_those_of_grids_of_one_row(codes: Tensor, count: int) -> None:
    rows = codes.flatten(1)
    pairs = bpe.train_flat(rows, 4, count)
    assert pairs == bpe.train_flat(rows[:, None], 4, count)
    for ours, theirs in zip(bpe.apply_flat(pairs, 4, rows), bpe.apply_flat(pairs, 4, rows[:, None]), strict=True):
        assert torch.equal(ours, theirs)


def test_flat_merges_of_sequences_are_of_neighbours_alone() -> None:
    rows = torch.tensor([[0, 1, 2, 0, 1], [2, 0, 1, 3, 3]])
    pairs = bpe.train_flat(rows, 4, 2)
    assert pairs[0] == (0, 1)
    assert [tokens.tolist() for tokens in bpe.apply_flat(pairs[:1], 4, rows)] == [[4, 2, 4], [2, 4, 3, 3]]
    assert pairs[1] == (2, 4)
    with pytest.raises(ValueError, match=r"grids \(B, H, W\) or sequences \(B, N\), got torch.int64 \(5,\)"):
        bpe.train_flat(rows[0], 4, 1)
