"""Captions as training batches, for projectors that learn from texts alone; their order can be resumed anywhere."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from tokenizers_visual.inversion.lincir import clean_caption, keywords
from trainers.data.retrieval import RetrievalConfig, RetrievalParts, RetrievalValidation

T = TypeVar("T")


class TextBatch:
    """A batch without tensors, which is where it is wherever it is sent."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        return self


@dataclass(frozen=True)
class Captions(TextBatch):
    """A batch of texts for LinCIR.

    Attributes:
        texts: cleaned captions.
        keywords: those of each.
        seeds: of each, for what is random in its masking.
    """

    texts: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class CaptionTriplets(TextBatch):
    """A batch of texts for RTD: captions of reference and target images, and what leads from one to the other."""

    references: tuple[str, ...]
    targets: tuple[str, ...]
    changes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.references)


class OrderedData(lightning.LightningDataModule, Generic[T]):
    """Base of data modules over items that can be had in any order.

    An epoch is a permutation of all items, a function of seed and epoch, of which what does not fill a batch on every
    process is left out. Where a run goes on follows from the batches that its trainer has done, so that a resumed run
    goes on with the batch that came next.

    Args:
        batch_size: per process.
        workers: loading processes; 0 loads in the main process.
        seed: of the order.
        val: fields of `RetrievalConfig`, the benchmark of composed retrieval that the run is validated on; None for
            none.
    """

    def __init__(self, *, batch_size: int, workers: int, seed: int, val: dict[str, Any] | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.val = None if val is None else RetrievalConfig.from_dict(val)
        self.parts = RetrievalParts()

    def count(self) -> int:
        """How many items there are."""
        raise NotImplementedError

    def batch(self, places: Sequence[int], epoch: int) -> T:
        """The batch of some items; what is random in it is a function of seed, epoch and place."""
        raise NotImplementedError

    def item_seed(self, epoch: int, place: int) -> int:
        """For what is random of one item in one epoch."""
        return int(np.random.SeedSequence((self.seed, epoch, place)).generate_state(1, np.uint64)[0] >> 1)

    def prepare_data(self) -> None:
        """In one process: features of the images that the run is validated on into their file."""
        if self.val is not None:
            self._validation(self.val).prepare()

    def setup(self, stage: str) -> None:
        """In every process: read them."""
        if self.val is not None:
            self.parts = self._validation(self.val).load()

    def train_dataloader(self) -> Batches[T]:
        return Batches(self)

    def val_dataloader(self) -> RetrievalParts:
        """The parts of the benchmark; none without `val`."""
        return self.parts

    def task(self) -> Any:
        """The task that is trained.

        Raises:
            ValueError: there is none, or one without a CLIP.
        """
        task: Any = self.trainer.lightning_module if self.trainer is not None else None
        if task is None or not hasattr(task, "pair"):
            raise ValueError("expected a trainer with a task that has a CLIP (see trainers.tasks.InversionTask)")
        task.pair.to(self.trainer.strategy.root_device)  # type: ignore[union-attr]
        return task

    def _validation(self, config: RetrievalConfig) -> RetrievalValidation:
        task = self.task()
        return RetrievalValidation(config, task.family, task.pair, task.preprocess)


class Batches(Generic[T]):
    """What a trainer iterates over; each `iter` is the rest of the epoch that the trainer is in, or the next one.

    Raises:
        ValueError: fewer items than one batch on each process takes.
    """

    def __init__(self, data: OrderedData[T]) -> None:
        self.data = data
        self._given = 0  # without a trainer it counts itself
        if len(self) == 0:
            raise ValueError(
                f"expected at least {data.batch_size * self._world()} items for a batch, got {data.count()}"
            )

    def __len__(self) -> int:
        return self.data.count() // (self.data.batch_size * self._world())

    def __iter__(self) -> Iterator[T]:
        epoch, done = divmod(self._done(), len(self))
        size, data = self.data.batch_size, self.data
        rank = data.trainer.global_rank if data.trainer is not None else 0
        order = np.random.default_rng((data.seed, epoch)).permutation(data.count())[rank :: self._world()].tolist()
        places = [order[number * size : (number + 1) * size] for number in range(done, len(self))]
        loader = DataLoader(
            _Made(data.batch, epoch),
            sampler=places,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=data.workers,
            generator=torch.Generator(),  # else it would draw from the run's own
        )
        for batch in loader:
            self._given += 1
            yield batch

    def _world(self) -> int:
        return self.data.trainer.world_size if self.data.trainer is not None else 1

    def _done(self) -> int:
        trainer = self.data.trainer
        return self._given if trainer is None else trainer.fit_loop.epoch_loop.batch_progress.total.processed


@dataclass(frozen=True)
class _Made(torch.utils.data.Dataset):
    """What the loading processes run: places -> a batch."""

    batch: Callable[[Sequence[int], int], Any]
    epoch: int

    def __getitem__(self, places: Sequence[int]) -> Any:
        return self.batch(places, self.epoch)


# -- captions ------------------------------------------------------------------------------------------------------


class CaptionData(OrderedData[Captions]):
    """Batches of `Captions`.

    Args:
        train: one or more places of captions: a file with one a line (`.txt`), or with a JSON object a line (`.jsonl`:
            `caption`, and `keywords` where they are known), either also gzipped; or `hf:NAME?split=train&column=text`
            for a data set of the hub.
        tagger: pipeline of spaCy that finds the keywords of those that come without; en_core_web_sm as published.
        batch_size, workers, seed, val: see `OrderedData`.

    Raises:
        ValueError: no captions, or captions without keywords and no tagger.
        ImportError: spaCy or its pipeline is not installed; says how to.
    """

    def __init__(
        self,
        train: str | list[str],
        tagger: str | None = "en_core_web_sm",
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
        val: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed, val=val)
        self.save_hyperparameters()
        self.captions = [row for place in ([train] if isinstance(train, str) else train) for row in _captions(place)]
        if not self.captions:
            raise ValueError(f"expected captions in {train}, got none")
        self.tagger = None if tagger is None else KeywordTagger(tagger)
        self._known: dict[int, tuple[str, ...]] = {}
        if self.tagger is None and any(given is None for _, given in self.captions):
            raise ValueError(f"expected keywords beside each caption of {train}, or a tagger that finds them")

    def count(self) -> int:
        return len(self.captions)

    def batch(self, places: Sequence[int], epoch: int) -> Captions:
        texts = [clean_caption(self.captions[place][0]) for place in places]
        self._tag(places, texts)
        return Captions(
            tuple(texts),
            tuple(self._known[place] for place in places),
            tuple(self.item_seed(epoch, place) for place in places),
        )

    def _tag(self, places: Sequence[int], texts: Sequence[str]) -> None:
        """Find the keywords of those that were not seen yet."""
        fresh = []
        for place, text in zip(places, texts):
            given = self.captions[place][1]
            if given is not None:
                self._known[place] = tuple(clean_caption(word) for word in given)
            elif place not in self._known:
                fresh.append((place, text))
        if fresh and self.tagger is not None:
            self._known |= zip([place for place, _ in fresh], self.tagger([text for _, text in fresh]))


class KeywordTagger:
    """Captions -> their keywords, by a pipeline of spaCy, which is opened where it is first used.

    Raises:
        ImportError: spaCy or the pipeline is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._pipeline: Any = None

    def __call__(self, captions: Sequence[str]) -> list[tuple[str, ...]]:
        if self._pipeline is None:
            self._pipeline = self._open()
        documents = self._pipeline.pipe(captions)
        return [tuple(keywords((token.text, token.pos_) for token in document)) for document in documents]

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_pipeline": None}  # a loading process opens its own

    def _open(self) -> Any:
        try:
            import spacy

            return spacy.load(self.name, disable=["parser", "ner", "lemmatizer"])
        except (ImportError, OSError) as error:
            raise ImportError(
                f"{error}; keywords need it: pip install 'tokenizer-zoo[text]' and python -m spacy download {self.name}"
            ) from error


def _captions(place: str) -> list[tuple[str, list[str] | None]]:
    """Captions with their keywords, where those are known."""
    if place.startswith("hf:"):
        return [(text, None) for text in _hub_column(place.removeprefix("hf:"))]
    lines = read_lines(place)
    if not place.removesuffix(".gz").endswith(".jsonl"):
        return [(line, None) for line in lines]
    rows = [json.loads(line) for line in lines]
    return [(row["caption"], row.get("keywords")) for row in rows]


def _hub_column(text: str) -> Sequence[str]:
    from urllib.parse import parse_qs

    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{error}; this data needs it: pip install 'tokenizer-zoo[data]'") from error
    name, _, query = text.partition("?")
    options = {key: values[-1] for key, values in parse_qs(query).items()}
    if unknown := sorted(set(options) - {"split", "column"}):
        raise ValueError(f"hf:{text}: expected split and column, got {', '.join(unknown)}")
    return datasets.load_dataset(name, split=options.get("split", "train"))[options.get("column", "text")]


def read_lines(place: str) -> list[str]:
    """The lines of a file, plain or gzipped, that hold anything."""
    path = Path(place)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a file of texts in UTF-8, got {place}: {error}") from error
    return [line for line in text.split("\n") if line.strip()]


# -- triplets ------------------------------------------------------------------------------------------------------


class TripletData(OrderedData[CaptionTriplets]):
    """Batches of `CaptionTriplets`.

    Args:
        train: file with a JSON list of objects with `reference_caption`, `target_caption` and `conditioning_caption`,
            or with such an object a line (`.jsonl`), either also gzipped.
        batch_size, workers, seed, val: see `OrderedData`.

    Raises:
        ValueError: another file.
    """

    def __init__(
        self,
        train: str,
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        val: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed, val=val)
        self.save_hyperparameters()
        lines = read_lines(train)
        names = ("reference_caption", "target_caption", "conditioning_caption")
        try:
            rows = (
                map(json.loads, lines) if train.removesuffix(".gz").endswith(".jsonl") else json.loads("\n".join(lines))
            )
            self.triplets = [tuple(row[name] for name in names) for row in rows]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{train}: expected JSON objects with {', '.join(names)}: {error!r}") from error

    def count(self) -> int:
        return len(self.triplets)

    def batch(self, places: Sequence[int], epoch: int) -> CaptionTriplets:
        references, targets, changes = zip(*(self.triplets[place] for place in places))
        return CaptionTriplets(tuple(map(clean_caption, references)), tuple(map(clean_caption, targets)), changes)
