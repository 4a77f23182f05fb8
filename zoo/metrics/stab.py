"""What its token sequences tell of a tokenizer of speech, in the manner of STAB: invariance, robustness, compression.

STAB: arXiv 2409.02384. Its formulas could not be had, so these are standard ones of the same quantities: numbers in the
style of STAB, not to be compared with those of the paper.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise

import numpy as np

Sequences = Sequence[Sequence[int]]


def collapse(tokens: Sequence[int]) -> list[int]:
    """The first of each run of equal tokens."""
    return [token for token, _ in groupby(tokens)]


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions, each at cost 1."""
    columns = np.asarray(other)
    steps = np.arange(len(other) + 1)
    row = steps.copy()
    for count, token in enumerate(one, start=1):
        better = np.minimum(row[1:] + 1, row[:-1] + (columns != token))  # deletion, substitution
        row = np.minimum.accumulate(np.concatenate([[count], better]) - steps) + steps  # insertions
    return int(row[-1])


def similarity(one: Sequence[int], other: Sequence[int], *, runs: bool = False) -> float:
    """1 - edit distance / longer length, in [0, 1], of sequences without repetitions, or with them (`runs`)."""
    if not runs:
        one, other = collapse(one), collapse(other)
    longer = max(len(one), len(other))
    return 1.0 if longer == 0 else 1 - edit_distance(one, other) / longer


@dataclass(frozen=True)
class Statistics:
    """Of all tokens of a corpus.

    Attributes:
        tokens: how many there are.
        utilisation: share of the vocabulary that occurs.
        entropy_bits: entropy of single tokens, in bits.
        normalised_entropy: of the most that the vocabulary allows.
        huffman_bits: mean length of a token in one Huffman code of the corpus, in bits.
        huffman_efficiency: entropy over that length.
        huffman_compression: log2 of the vocabulary over that length.
        dedup_ratio: share of the tokens that are left without repetitions.
    """

    tokens: int
    utilisation: float
    entropy_bits: float
    normalised_entropy: float
    huffman_bits: float
    huffman_efficiency: float
    huffman_compression: float
    dedup_ratio: float

    @property
    def perplexity(self) -> float:
        """2 to the entropy."""
        return 2**self.entropy_bits


def statistics(sequences: Sequences, vocabulary_size: int) -> Statistics:
    """Statistics of a corpus.

    Raises:
        ValueError: no tokens, or a token outside the vocabulary.
    """
    counts = Counter(token for sequence in sequences for token in sequence)
    if not counts:
        raise ValueError("expected at least one token, got none")
    if min(counts) < 0 or max(counts) >= vocabulary_size:
        raise ValueError(f"expected tokens from 0 to {vocabulary_size - 1}, got {min(counts)} to {max(counts)}")
    total = sum(counts.values())
    entropy = sum(count / total * math.log2(total / count) for count in counts.values())
    length, bits = huffman_bits(counts.values()) / total, math.log2(vocabulary_size)
    return Statistics(
        tokens=total,
        utilisation=len(counts) / vocabulary_size,
        entropy_bits=entropy,
        normalised_entropy=entropy / bits if bits else 0.0,
        huffman_bits=length,
        huffman_efficiency=entropy / length,
        huffman_compression=bits / length,
        dedup_ratio=sum(len(collapse(sequence)) for sequence in sequences) / total,
    )


def huffman_bits(counts: Iterable[int]) -> int:
    """Bits of a whole text in a Huffman code of its symbols' counts; a single symbol costs a bit each time."""
    heap = list(counts)
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


@dataclass(frozen=True)
class PairEncoding:
    """Byte-pair encoding of a corpus: the merged sequences, the pairs in order, and tokens before over tokens after."""

    sequences: list[list[int]]
    merges: list[tuple[int, int]]
    compression: float


def pair_encoding(sequences: Sequences, vocabulary_size: int, merges: int) -> PairEncoding:
    """Merge the most frequent pair of neighbours, of equals the smallest, again and again; merge k makes token V + k.

    Pairs are counted where they overlap too; merging ends early where no pair occurs twice.
    """
    merged = [list(sequence) for sequence in sequences]
    done: list[tuple[int, int]] = []
    for new in range(vocabulary_size, vocabulary_size + merges):
        pairs = Counter(pair for sequence in merged for pair in pairwise(sequence))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merged = [_replaced(sequence, best, new) for sequence in merged]
        done.append(best)
    before, after = (sum(map(len, corpus)) for corpus in (sequences, merged))
    return PairEncoding(merged, done, before / after if after else 1.0)


def _replaced(sequence: list[int], pair: tuple[int, int], new: int) -> list[int]:
    result, i = [], 0
    while i < len(sequence):
        found = i + 1 < len(sequence) and (sequence[i], sequence[i + 1]) == pair
        result.append(new if found else sequence[i])
        i += 2 if found else 1
    return result


@dataclass(frozen=True)
class Invariance:
    """Mean similarity of pairs with the same content, and of pairs with another; without runs and with them."""

    within: float
    across: float
    within_runs: float


def invariance(sequences: Sequences, groups: Sequence[int | str]) -> Invariance:
    """How alike the tokens of the same content are, by other speakers or in other languages.

    A tokenizer that always gives the same token has 1 everywhere: what counts is `within` less `across`.

    Args:
        sequences: of tokens.
        groups: of each sequence, what its content is.

    Raises:
        ValueError: no two sequences of one group.
    """
    pairs = list(combinations(range(len(sequences)), 2))
    same = [pair for pair in pairs if groups[pair[0]] == groups[pair[1]]]
    other = [pair for pair in pairs if groups[pair[0]] != groups[pair[1]]]
    if not same:
        raise ValueError("expected two sequences of one group at least, got none")

    def mean(chosen: list[tuple[int, int]], runs: bool) -> float:
        return sum(similarity(sequences[i], sequences[j], runs=runs) for i, j in chosen) / max(1, len(chosen))

    return Invariance(mean(same, False), mean(other, False), mean(same, True))


@dataclass(frozen=True)
class Robustness:
    """Of clean and perturbed clips: mean similarity, and edits a token of the clean ones, without runs and with."""

    similarity: float
    edit_rate: float
    edit_rate_runs: float
    distances: list[int]


def robustness(clean: Sequences, perturbed: Sequences) -> Robustness:
    """How much the tokens of clips change with their sound.

    Raises:
        ValueError: no clips, or unequal numbers of them.
    """
    if len(clean) != len(perturbed) or len(clean) == 0:
        raise ValueError(f"expected as many clean as perturbed clips, got {len(clean)} and {len(perturbed)}")
    collapsed = [(collapse(one), collapse(other)) for one, other in zip(clean, perturbed)]
    distances = [edit_distance(one, other) for one, other in collapsed]
    with_runs = sum(edit_distance(one, other) for one, other in zip(clean, perturbed))
    return Robustness(
        sum(similarity(one, other, runs=True) for one, other in collapsed) / len(collapsed),
        sum(distances) / max(1, sum(len(one) for one, _ in collapsed)),
        with_runs / max(1, sum(map(len, clean))),
        distances,
    )


def context_agreement(whole: Sequences, parts: Sequences, starts: Sequence[int]) -> float:
    """Share of the tokens of parts, encoded alone, that equal those of the same frames of the whole clips.

    Raises:
        ValueError: no tokens, or a part that reaches beyond its clip.
    """
    equal, total = 0, 0
    for clip, part, start in zip(whole, parts, starts, strict=True):
        if start < 0 or start + len(part) > len(clip):
            raise ValueError(f"expected a part within {len(clip)} tokens, got {start} to {start + len(part)}")
        equal += sum(one == other for one, other in zip(part, clip[start:]))
        total += len(part)
    if total == 0:
        raise ValueError("expected at least one token, got none")
    return equal / total
