"""Statistics of tokens against their definitions, and on languages whose laws are known."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.metrics import language
from zoo.metrics.language import TokenCounter, TokenStatistics, zipf_exponent


def count(levels: list[Tensor], vocab_size: int, positions: tuple[int, int] = (4, 4)) -> TokenStatistics:
    counter = TokenCounter(vocab_size, positions)
    for level in levels:
        counter.update(level)
    return counter.compute()


def bits(values: Counter) -> float:
    total = sum(values.values())
    return -sum(n / total * math.log2(n / total) for n in values.values())


@st.composite
def levels(draw: st.DrawFn) -> list[Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    side = st.integers(1, 6)
    return [
        torch.randint(draw(st.integers(1, 5)), (draw(st.integers(1, 3)), draw(side), draw(side)), generator=generator)
        for _ in range(draw(st.integers(1, 3)))
    ]


@given(levels())
def test_every_number_is_its_definition(batches: list[Tensor]) -> None:
    found = count(batches, 5)
    items = [item.tolist() for batch in batches for item in batch]
    codes = Counter(code for item in items for row in item for code in row)
    assert found.items == len(items)
    assert found.tokens == sum(codes.values())
    assert found.used == len(codes)
    assert found.counts.tolist() == [codes[code] for code in range(5)]
    assert found.entropy == pytest.approx(bits(codes), abs=1e-9)
    right = Counter((row[j], row[j + 1]) for item in items for row in item for j in range(len(row) - 1))
    below = Counter(
        (item[i][j], item[i + 1][j]) for item in items for i in range(len(item) - 1) for j in range(len(item[0]))
    )
    assert found.conditional_entropy.keys() == {name for name, pairs in (("right", right), ("below", below)) if pairs}
    for name, pairs in (("right", right), ("below", below)):
        if pairs:
            first: Counter = Counter()
            for (code, _), n in pairs.items():
                first[code] += n
            assert found.different_pairs[name] == len(pairs)
            assert found.conditional_entropy[name] == pytest.approx(bits(pairs) - bits(first), abs=1e-9)
    seen: set[int] = set()
    tokens, curve = 0, {}
    for number, item in enumerate(items, start=1):
        seen |= {code for row in item for code in row}
        tokens += sum(len(row) for row in item)
        curve[number] = (tokens, len(seen))
    wanted = [2**k for k in range(9) if 2**k <= len(items)]
    assert found.innovation == tuple(dict.fromkeys([*(curve[n] for n in wanted), curve[len(items)]]))


@given(levels())
def test_the_map_is_the_entropy_of_each_place(batches: list[Tensor]) -> None:
    found = count(batches, 5, (2, 3)).usage
    assert found.shape == (2, 3)
    places: dict[tuple[int, int], Counter] = {}
    for batch in batches:
        height, width = batch.shape[1:]
        for item in batch.tolist():
            for i, row in enumerate(item):
                for j, code in enumerate(row):
                    places.setdefault((i * 2 // height, j * 3 // width), Counter())[code] += 1
    for i in range(2):
        for j in range(3):
            if (i, j) in places:
                assert float(found[i, j]) == pytest.approx(bits(places[i, j]), abs=1e-9)
            else:
                assert math.isnan(float(found[i, j]))


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(7, (6, 4, 5))
    whole = count([codes], 7)
    monkeypatch.setattr(language, "_KEPT", 30)
    parts = count(list(codes.split(1)), 7)
    assert torch.equal(parts.usage.nan_to_num(-1), whole.usage.nan_to_num(-1))
    assert parts.innovation == whole.innovation
    assert parts.conditional_entropy == pytest.approx(whole.conditional_entropy)


def test_sequences_have_a_next_and_one_row() -> None:
    found = count([torch.tensor([[0, 1, 0, 1, 0, 1]])], 2, (4, 3))
    assert found.conditional_entropy == {"next": pytest.approx(0.0)}
    assert found.entropy == pytest.approx(1.0)
    assert found.usage.shape == (1, 3)


@given(st.sampled_from([0.0, 0.5, 1.0, 1.7]), st.integers(2, 400))
def test_the_exponent_of_zipfs_law_is_found(exponent: float, codes: int) -> None:
    ranks = torch.arange(1, codes + 1, dtype=torch.float64)
    counts = (1e12 * ranks**-exponent).long()
    assert zipf_exponent(counts[torch.randperm(codes)]) == pytest.approx(exponent, abs=1e-3)


def test_one_code_has_no_exponent() -> None:
    assert zipf_exponent(torch.tensor([0, 9, 0])) is None
    assert count([torch.zeros(1, 2, 2, dtype=torch.int64)], 3).heaps_exponent is None


def test_innovation_of_all_new_and_of_nothing_new() -> None:
    assert count([torch.arange(64).view(8, 2, 4)], 64).heaps_exponent == pytest.approx(1.0)
    assert count([torch.arange(8).view(1, 2, 4).expand(8, -1, -1)], 64).heaps_exponent == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("level", "why"),
    [
        (torch.zeros(3, dtype=torch.int64), r"\(B, H, W\)"),
        (torch.zeros(1, 2, 2), "int64"),
        (torch.full((1, 2, 2), 3), r"codes in \[0, 3\)"),
    ],
)
def test_wrong_tokens_are_refused(level: Tensor, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        TokenCounter(3).update(level)


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        TokenCounter(3).compute()
