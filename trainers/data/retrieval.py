"""Composed retrieval as validation: a benchmark's queries, and features of its images, computed once and kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tokenizers_visual.inversion.cir_base import Benchmark
from tokenizers_visual.inversion.cir_benchmarks import BENCHMARKS, encode_pictures, read_benchmark
from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.retrieval import FeatureStore
from zoo.config import Config

logger = logging.getLogger("zoo")


@dataclass(frozen=True)
class RetrievalConfig(Config):
    """What a projector is validated on.

    Attributes:
        annotations: folder of the benchmark's annotation files.
        images: folder of its images; of no use once all features are kept.
        features: file that keeps their features.
        benchmark: one of `BENCHMARKS`.
        split: one whose ground truth is known; of domain conversion the set's name.
        prompt: with "$" and {caption}, or {domain}; None: that of the projector's family.
    """

    annotations: str
    images: str
    features: str
    benchmark: str = "cirr"
    split: str = "val"
    prompt: str | None = None

    def __post_init__(self) -> None:
        self.require(self.benchmark in BENCHMARKS, f"a benchmark among {', '.join(BENCHMARKS)}", self.benchmark)


@dataclass(frozen=True)
class RetrievalPart:
    """One part of a benchmark, which is a batch of the validation: all processes get it, and share its queries.

    Attributes:
        benchmark: queries, gallery and ground truth.
        features: (P, E) of its pictures, on the CPU, where rankings are made.
    """

    benchmark: Benchmark
    features: Tensor

    def __len__(self) -> int:
        return len(self.benchmark.queries)

    def to(self, *args: Any, **kwargs: Any) -> RetrievalPart:
        return self


@dataclass(frozen=True)
class RetrievalParts:
    """What a trainer iterates over in validation; a list it would take for several loaders."""

    parts: tuple[RetrievalPart, ...] = ()

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[RetrievalPart]:
        return iter(self.parts)


class RetrievalValidation:
    """A benchmark with the features of its images.

    Args:
        config: which one, and where its files are.
        family: of the projector, which has its own way to ask.
        pair, preprocess: the CLIP, and how images go into it.

    Raises:
        FileNotFoundError: annotation files are missing; names them.
        ValueError: a split whose ground truth is hidden.
    """

    def __init__(self, config: RetrievalConfig, family: str, pair: ClipPair, preprocess: ImageInput) -> None:
        self.config, self.pair, self.preprocess = config, pair, preprocess
        self.benchmarks = read_benchmark(
            config.benchmark,
            Path(config.annotations),
            Path(config.images),
            config.split,
            family=family,
            prompt=config.prompt,
        )
        for part in self.benchmarks:
            if part.hidden:
                raise ValueError(
                    f"{part.part}: the ground truth is hidden; expected a split that tells it, such as val"
                )

    def prepare(self) -> None:
        """In one process: features of all images into their file.

        Raises:
            ValueError: images that are missing or cannot be read; the features of the others are kept.
        """
        store = self._store()
        encode_pictures(self.benchmarks, store, self.pair, self.preprocess)
        store.close()
        queries = sum(len(part.queries) for part in self.benchmarks)
        about = f"{self.config.benchmark} {self.config.split}, {queries} queries, {self.benchmarks[0].protocol}"
        logger.info("validation by composed retrieval: %s", about)

    def load(self) -> RetrievalParts:
        """In every process: the batches of the validation."""
        store = self._store()
        features = [store.read([picture.name for picture in part.pictures]) for part in self.benchmarks]
        store.close()
        return RetrievalParts(tuple(map(RetrievalPart, self.benchmarks, features)))

    def _store(self) -> FeatureStore:
        return FeatureStore(Path(self.config.features), self.pair.backbone, self.preprocess)
