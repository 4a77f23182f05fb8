"""Token metrics in the manner of STAB: known values, and what holds of all sequences."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.metrics import stab

tokens = st.lists(st.integers(0, 3), max_size=9)
corpora = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=4)


def plain_distance(one: list[int], other: list[int]) -> int:
    """By the recursion of its definition."""
    if not one or not other:
        return len(one) + len(other)
    change = plain_distance(one[:-1], other[:-1]) + (one[-1] != other[-1])
    return min(change, plain_distance(one[:-1], other) + 1, plain_distance(one, other[:-1]) + 1)


@given(one=st.lists(st.integers(0, 2), max_size=5), other=st.lists(st.integers(0, 2), max_size=5))
def test_edit_distance_is_that_of_the_definition(one: list[int], other: list[int]) -> None:
    assert stab.edit_distance(one, other) == plain_distance(one, other)


@given(one=tokens, other=tokens, third=tokens)
def test_edit_distance_is_a_metric(one: list[int], other: list[int], third: list[int]) -> None:
    assert (stab.edit_distance(one, other) == 0) == (one == other)
    assert stab.edit_distance(one, other) == stab.edit_distance(other, one)
    assert stab.edit_distance(one, third) <= stab.edit_distance(one, other) + stab.edit_distance(other, third)


def test_similarity_ignores_repetitions_unless_told() -> None:
    assert stab.similarity([1, 1, 2, 3], [1, 2, 2, 3]) == 1
    assert stab.similarity([1, 1, 2, 3], [1, 2, 2, 3], runs=True) == 0.75
    assert stab.similarity([], []) == 1
    assert stab.similarity([1], []) == 0


@given(corpus=corpora)
def test_huffman_lies_within_a_bit_of_the_entropy(corpus: list[list[int]]) -> None:
    found = stab.statistics(corpus, 8)
    counts = Counter(token for sequence in corpus for token in sequence)
    if len(counts) == 1:
        assert found.huffman_bits == 1
        assert found.entropy_bits == 0
    else:
        assert found.entropy_bits <= found.huffman_bits + 1e-9 < found.entropy_bits + 1 + 1e-9
    assert 0 <= found.normalised_entropy <= 1
    assert found.utilisation == len(counts) / 8
    assert found.perplexity == pytest.approx(2**found.entropy_bits)


def test_uniform_tokens_cannot_be_compressed() -> None:
    found = stab.statistics([list(range(8))], 8)
    assert (found.entropy_bits, found.huffman_bits, found.huffman_compression) == (3, 3, 1)


@given(corpus=corpora, merges=st.integers(0, 6))
def test_pair_encoding_loses_nothing(corpus: list[list[int]], merges: int) -> None:
    found = stab.pair_encoding(corpus, 6, merges)
    spelt = {token: [token] for token in range(6)}
    for new, (first, second) in enumerate(found.merges, start=6):
        spelt[new] = spelt[first] + spelt[second]
    assert [[token for part in sequence for token in spelt[part]] for sequence in found.sequences] == corpus
    assert len(found.merges) <= merges
    before, after = sum(map(len, corpus)), sum(map(len, found.sequences))
    assert found.compression == before / after


def test_pairs_are_counted_where_they_overlap_and_ties_go_to_the_smallest() -> None:
    found = stab.pair_encoding([[3, 3, 3], [1, 2], [1, 2]], 4, 1)
    assert found.merges == [(1, 2)]
    assert found.sequences == [[3, 3, 3], [4], [4]]
    assert stab.pair_encoding([[3, 3, 3]], 4, 5).sequences == [[4, 3]]


def test_a_tokenizer_of_one_token_is_invariant_within_and_across() -> None:
    found = stab.invariance([[1, 1], [1], [1, 1, 1]], ["a", "a", "b"])
    assert (found.within, found.across) == (1, 1)
    told_apart = stab.invariance([[1, 2], [1, 2], [3, 4]], ["a", "a", "b"])
    assert (told_apart.within, told_apart.across) == (1, 0)
    with pytest.raises(ValueError, match="expected two sequences of one group"):
        stab.invariance([[1], [2]], ["a", "b"])


@given(clips=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=4))
def test_equal_clips_are_robust(clips: list[list[int]]) -> None:
    found = stab.robustness(clips, clips)
    assert (found.similarity, found.edit_rate, found.edit_rate_runs) == (1, 0, 0)
    parts = [clip[len(clip) // 2 :] for clip in clips]
    assert stab.context_agreement(clips, parts, [len(clip) // 2 for clip in clips]) == 1


def test_context_agreement_counts_frames() -> None:
    assert stab.context_agreement([[7, 7, 1, 2]], [[7, 2]], [1]) == 0.5
    with pytest.raises(ValueError, match="expected a part within 2 tokens, got 1 to 3"):
        stab.context_agreement([[1, 2]], [[2, 2]], [1])


def test_senseless_corpora_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one token"):
        stab.statistics([[]], 4)
    with pytest.raises(ValueError, match="expected tokens from 0 to 3, got 0 to 4"):
        stab.statistics([[0, 4]], 4)
    with pytest.raises(ValueError, match="as many clean as perturbed clips, got 1 and 2"):
        stab.robustness([[1]], [[1], [2]])
    with pytest.raises(ValueError, match="expected at least one token"):
        stab.context_agreement([], [], [])
    assert math.isclose(stab.statistics([[0]], 1).normalised_entropy, 0)
