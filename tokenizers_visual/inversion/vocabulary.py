"""Pseudo-words read back: the tokens of the vocabulary that lie next to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.projector import PseudoWords


@dataclass(frozen=True)
class NearWord:
    """A token of the vocabulary: its text ("" of a CLIP without tokenizer), its id, and its cosine with a word."""

    text: str
    id: int
    cosine: float


@torch.no_grad()
def nearest_words(pair: ClipPair, words: PseudoWords, count: int = 5) -> list[list[list[NearWord]]]:
    """For each item and each of its words the nearest tokens, the best first; start and end of text are none.

    Raises:
        ValueError: words of another CLIP, or more tokens than the vocabulary has.
    """
    pair.check_words(words)
    table: Tensor = pair.embedding.weight.float()  # type: ignore[assignment, operator]
    if not 1 <= count <= len(table) - 2:
        raise ValueError(f"expected 1 to {len(table) - 2} tokens, got {count}")
    cosines = F.normalize(words.embeddings.to(table), dim=-1) @ F.normalize(table, dim=-1).T
    cosines[..., [pair.start_id, pair.end_id]] = -torch.inf
    best = cosines.topk(count)

    def read(ids: list[int], values: list[float]) -> list[NearWord]:
        texts = ["" if pair.decode is None else pair.decode([token]).strip() for token in ids]
        return [NearWord(*word) for word in zip(texts, ids, values)]

    return [[read(*word) for word in zip(*item)] for item in zip(best.indices.tolist(), best.values.tolist())]
