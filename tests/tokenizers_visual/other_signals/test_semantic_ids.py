"""Semantic ids: similar items share prefixes, levels refine, and what a ranking model makes of them."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenizers_visual.other_signals import semantic_ids
from tokenizers_visual.other_signals.semantic_ids import SemanticIds, SemanticIdsConfig, residual_codes_of_items

GROUPS, OF_EACH = 4, 12


def catalogue(seed: int = 0) -> Tensor:
    """Items in groups, far from each other."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(8, GROUPS, generator=generator))[0].T * 6
    return centres.repeat_interleave(OF_EACH, 0) + 0.3 * torch.randn(GROUPS * OF_EACH, 8, generator=generator)


def trained() -> SemanticIds:
    torch.manual_seed(0)
    quantizer = residual_codes_of_items(GROUPS, 6, 3)
    model = SemanticIds(SemanticIdsConfig(width=8, hidden=(16,), quantizer=quantizer)).train()
    optimizer, items = torch.optim.Adam(model.parameters(), 1e-2), catalogue()
    for _ in range(150):
        output = model(items)
        loss = (output.reconstruction - items).square().mean() + 0.25 * output.quantized.losses["commitment"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def model() -> SemanticIds:
    return trained()


def test_similar_items_share_the_first_code_and_longer_prefixes_tell_them_apart(model: SemanticIds) -> None:
    items = catalogue()
    ids = model.encode([items]).indices[0].T
    first = ids[:, 0].view(GROUPS, OF_EACH)
    assert bool((first == first[:, :1]).all())
    assert len(first[:, 0].unique()) == GROUPS
    counts = semantic_ids.prefix_counts(ids)
    assert counts == sorted(counts)
    assert counts[0] == GROUPS < counts[-1]


def test_new_items_get_the_ids_of_those_they_are_like(model: SemanticIds) -> None:
    known, new = (model.encode([catalogue(0) + shift]).indices[0, 0] for shift in (0.0, 0.05))
    assert float((known == new).float().mean()) > 0.9


def test_embeddings_come_back(model: SemanticIds) -> None:
    items = catalogue()
    (decoded,) = model.decode(model.encode([items]))
    assert float((decoded - items).square().mean()) < 0.25 * float(items.var())


def test_the_ids_of_an_item_take_88_bits_in_the_published_size() -> None:
    vocab_sizes = SemanticIdsConfig().quantizer.vocab_sizes
    assert sum((size - 1).bit_length() for size in vocab_sizes) == 88


@given(st.integers(1, 4), st.integers(2, 5), st.sampled_from([1, 2, 4]))
def test_ngrams_are_a_row_for_each_group_of_codes(items: int, vocabulary: int, size: int) -> None:
    ids = torch.tensor(list(itertools.islice(itertools.product(range(vocabulary), repeat=4), items * 7)))
    rows = semantic_ids.ngrams(ids, size, vocabulary)
    assert rows.shape == (len(ids), 4 // size)
    assert int(rows.max()) < 4 // size * vocabulary**size
    seen: dict[tuple[int, ...], int] = {}
    for codes, found in zip(ids.tolist(), rows.tolist()):
        for group, row in enumerate(found):
            key = (group, *codes[group * size : (group + 1) * size])
            assert seen.setdefault(key, row) == row
    assert len(set(seen.values())) == len(seen)


def test_ngrams_that_do_not_fit_are_refused() -> None:
    ids = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected a divisor of 8 levels, got 3"):
        semantic_ids.ngrams(ids, 3, 2048)
    with pytest.raises(ValueError, match="fewer than 2"):
        semantic_ids.ngrams(ids, 8, 2048)


def test_collisions_count_the_items_that_share_an_id() -> None:
    ids = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 1], [0, 1]])
    assert semantic_ids.collisions(ids) == 3
    assert semantic_ids.prefix_counts(ids) == [2, 3]
