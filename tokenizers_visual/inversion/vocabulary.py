"""Vocabularies: pseudo-words read back as the tokens next to them, and lists of words with their text features."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.retrieval import FeatureStore
from tokenizers_visual.inversion.words import PseudoWords
from zoo.config import Config

_BATCH = 64  # words that are encoded at once


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
    cosines[..., [frame for frame in (pair.start_id, pair.end_id) if frame is not None]] = -torch.inf
    best = cosines.topk(count)

    def read(ids: list[int], values: list[float]) -> list[NearWord]:
        texts = ["" if pair.decode is None else pair.decode([token]).strip() for token in ids]
        return [NearWord(*word) for word in zip(texts, ids, values)]

    return [[read(*word) for word in zip(*item)] for item in zip(best.indices.tolist(), best.values.tolist())]


# -- lists of words ------------------------------------------------------------------------------------------------


def read_words(path: Path) -> list[str]:
    """The first column of a CSV file without header, or the lines of a text file, plain or gzipped, as they are.

    Raises:
        ValueError: another file, or one without words.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a file of words in UTF-8, got {path}: {error}") from error
    if path.name.removesuffix(".gz").endswith(".csv"):
        words = [row[0] for row in csv.reader(io.StringIO(text)) if row]
    else:
        words = text.splitlines()
    if not (words := [word for word in words if word.strip()]):
        raise ValueError(f"{path}: expected words, one a line or in the first column, got none")
    return words


@dataclass(frozen=True)
class WordTexts(Config):
    """What the features of words depend on beside the CLIP: the text that stands for one."""

    template: str = "{word}"


@dataclass(frozen=True)
class _Word:
    name: str
    stamp: ClassVar[str] = "word"


@torch.no_grad()
def word_features(pair: ClipPair, words: Sequence[str], file: Path) -> Tensor:
    """Text features (N, E) of words without a template, not normalised; those that `file` lacks are put into it."""
    store = FeatureStore(file, pair.backbone, WordTexts())
    missing = store.missing([_Word(word) for word in dict.fromkeys(words)])
    for start in range(0, len(missing), _BATCH):
        chunk = missing[start : start + _BATCH]
        store.write(zip(chunk, pair.text_features([word.name for word in chunk]).float().cpu()))
    features = store.read(words)
    store.close()
    return features
