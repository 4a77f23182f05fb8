"""Image features of a frozen CLIP as training batches: computed once, kept on disk; and with them words found by OTI.

A projector sees nothing else of an image, so that its training takes seconds where the features are there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import PLACEHOLDER, ClipPair
from tokenizers_visual.inversion.retrieval import FeatureStore, ImageFile, encode_images
from tokenizers_visual.inversion.searle import InversionConfig, Sentences, invert
from trainers.data.captions import OrderedData, read_lines
from zoo.config import Config
from zoo.media.image import files

logger = logging.getLogger("zoo")

OTI_CONCEPTS, OTI_STEPS = 15, 350  # as published
CONCEPTS = 150  # of an image, in the distillation


@dataclass(frozen=True)
class WordSettings(Config):
    """What words found by optimisation depend on, beside the CLIP and the images."""

    inversion: InversionConfig
    preprocess: ImageInput
    steps: int
    seed: int
    phrases: str  # their digest


@dataclass(frozen=True)
class ImageFeatures:
    """Features (B, E) of images, as the CLIP gives them."""

    features: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, *args: Any, **kwargs: Any) -> ImageFeatures:
        return ImageFeatures(self.features.to(*args, **kwargs))


@dataclass(frozen=True)
class InvertedImages:
    """A batch for SEARLE's distillation.

    Attributes:
        features: (B, E) of images.
        words: (B, D), found by optimisation.
        phrases: sentences about a concept of each image, with "$" in its place.
        plain: the same sentences with the concept.
    """

    features: Tensor
    words: Tensor
    phrases: tuple[str, ...]
    plain: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.features)

    def to(self, *args: Any, **kwargs: Any) -> InvertedImages:
        return InvertedImages(
            self.features.to(*args, **kwargs), self.words.to(*args, **kwargs), self.phrases, self.plain
        )


Batch = TypeVar("Batch", bound="ImageFeatures | InvertedImages")


class FeatureData(OrderedData[Batch]):
    """Base of the data modules over image features of the CLIP that the task trains for.

    Args:
        train: folder of images, or a glob pattern.
        features: file that keeps their features; it is filled before training starts, and by a later run from where it
            was interrupted. Images that cannot be read are named in the log and left out.
        batch_size, workers, seed, val: see `OrderedData`.

    Raises:
        MediaError: no images there.
    """

    def __init__(
        self,
        train: str,
        features: str,
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        val: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, workers=workers, seed=seed, val=val)
        self.save_hyperparameters()
        self.items = [ImageFile(path.resolve()) for path in files(train)]
        self.file = Path(features)
        self.features = torch.zeros(0)

    def prepare_data(self) -> None:
        """In one process: features of all images into their file."""
        super().prepare_data()
        pair, preprocess = self._task_parts()
        store = FeatureStore(self.file, pair.backbone, preprocess)
        encode_images(store, self.items, pair, preprocess)
        skipped = store.skipped(self.items)
        for name, reason in list(skipped.items())[:20]:
            logger.warning("skipped %s: %s", name, reason)
        if skipped:
            logger.warning("%d of %d images cannot be read and are left out", len(skipped), len(self.items))
        store.close()

    def setup(self, stage: str) -> None:
        """In every process: read them."""
        super().setup(stage)
        self._read_features()

    def _read_features(self) -> None:
        pair, preprocess = self._task_parts()
        store = FeatureStore(self.file, pair.backbone, preprocess)
        skipped = store.skipped(self.items)
        self.names = [item.name for item in self.items if item.name not in skipped]
        if not self.names:
            raise ValueError(f"expected readable images, got none of {len(self.items)}: {next(iter(skipped.values()))}")
        self.features = store.read(self.names)
        store.close()

    def count(self) -> int:
        return len(self.features)

    def _task_parts(self) -> tuple[ClipPair, ImageInput]:
        task = self.task()
        return task.pair, task.preprocess


class ImageFeatureData(FeatureData[ImageFeatures]):
    """Batches of `ImageFeatures`; the arguments are those of `FeatureData`."""

    def batch(self, places: Sequence[int], epoch: int) -> ImageFeatures:
        return ImageFeatures(self.features[list(places)])


class InvertedImageData(FeatureData[InvertedImages]):
    """Batches of `InvertedImages`: the words are found by optimisation-based textual inversion before training starts.

    Phrases are sentences about concepts. Published: written by GPT-Neo 2.7B; real captions that name the concept do.

    Args:
        train, features: see `FeatureData`.
        words: file that keeps the words, filled as that of the features.
        concepts: text file with one concept a line.
        phrases: JSON file {concept: [phrases that contain it]}; or a text file of captions, of which those that hold a
            concept as a word of its own are taken.
        steps: of the optimisation of a word.
        inversion: fields of `InversionConfig`.
        inversion_batch: images whose words are found together.
        batch_size, workers, seed, val: see `OrderedData`.

    Raises:
        ValueError: no concept with a phrase.
    """

    def __init__(
        self,
        train: str,
        features: str,
        words: str,
        concepts: str,
        phrases: str,
        steps: int = OTI_STEPS,
        inversion: dict[str, Any] | None = None,
        inversion_batch: int = 32,
        batch_size: int = 256,
        workers: int = 0,
        seed: int = 0,
        val: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(train, features, batch_size=batch_size, workers=workers, seed=seed, val=val)
        self.save_hyperparameters()
        self.words_file, self.steps, self.inversion_batch = Path(words), steps, inversion_batch
        self.inversion = InversionConfig.from_dict(inversion or {})
        self.phrases = read_phrases(read_lines(concepts), phrases)
        self.words = torch.zeros(0)
        self.near = torch.zeros(0, dtype=torch.int64)  # concepts of each image, the nearest first

    def prepare_data(self) -> None:
        super().prepare_data()
        self._read_features()
        pair, _ = self._task_parts()
        self._find_concepts(pair)
        store = self._word_store()
        places = {name: place for place, name in enumerate(self.names)}
        kept = [item for item in self.items if item.name in places]
        missing = store.missing(kept)
        for start in range(0, len(missing), self.inversion_batch):
            chunk = missing[start : start + self.inversion_batch]
            chosen = [places[item.name] for item in chunk]
            features = self.features[chosen].to(next(pair.parameters()))
            found = invert(pair, features, self._sentences(chosen), self.inversion, seed=self.seed + chosen[0])
            store.write(zip(chunk, found.embeddings[:, 0]))
            logger.info("words of %d of %d images are found", len(kept) - len(missing) + start + len(chunk), len(kept))
        store.close()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        pair, _ = self._task_parts()
        self._find_concepts(pair)
        store = self._word_store()
        self.words = store.read(self.names)
        store.close()

    def batch(self, places: Sequence[int], epoch: int) -> InvertedImages:
        draws = [random.Random(self.item_seed(epoch, place)) for place in places]
        pairs = [self._phrase(place, CONCEPTS, draw) for place, draw in zip(places, draws)]
        phrases = tuple(plain.replace(concept, f" {PLACEHOLDER} ") for concept, plain in pairs)
        chosen = list(places)
        return InvertedImages(self.features[chosen], self.words[chosen], phrases, tuple(plain for _, plain in pairs))

    def _word_store(self) -> FeatureStore:
        pair, preprocess = self._task_parts()
        texts = hashlib.sha256(json.dumps(self.phrases).encode()).hexdigest()[:16]
        settings = WordSettings(self.inversion, preprocess, self.steps, self.seed, texts)
        return FeatureStore(self.words_file, pair.backbone, settings)

    def _sentences(self, places: Sequence[int]) -> Iterator[Sentences]:
        """Those of each step of the optimisation."""
        import open_clip

        draw = random.Random(f"{self.seed} {places[0]}")
        for _ in range(self.steps):
            templates = [draw.choice(open_clip.SIMPLE_IMAGENET_TEMPLATES)(f" {PLACEHOLDER} ") for _ in places]
            pairs = [self._phrase(place, OTI_CONCEPTS, draw) for place in places]
            marked = [plain.replace(concept, f" {PLACEHOLDER} ", 1) for concept, plain in pairs]
            yield Sentences(templates, marked, [plain for _, plain in pairs])

    def _phrase(self, place: int, concepts: int, draw: random.Random) -> tuple[str, str]:
        """A concept among the nearest to an image, and one of all their phrases."""
        names = list(self.phrases)
        chosen = [names[number] for number in self.near[place, :concepts].tolist()]
        counts = [len(self.phrases[name]) for name in chosen]
        (name,) = draw.choices(chosen, counts)
        return name, draw.choice(self.phrases[name])

    @torch.no_grad()
    def _find_concepts(self, pair: ClipPair) -> None:
        """The concepts of each image, by the mean direction of each concept in the general sentences."""
        import open_clip

        if len(self.near) == len(self.features):
            return
        directions = []
        for name in self.phrases:
            texts = pair.text_features([template(f" {name} ") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES])
            directions.append(F.normalize(F.normalize(texts.float(), dim=-1).mean(0), dim=-1).cpu())
        likeness = F.normalize(self.features, dim=-1) @ torch.stack(directions).T
        self.near = likeness.topk(min(CONCEPTS, likeness.shape[1])).indices


def read_phrases(concepts: Iterable[str], place: str) -> dict[str, list[str]]:
    """Phrases of each concept that has some, in lower case; see `InvertedImageData`.

    Raises:
        ValueError: none.
    """
    names = list(dict.fromkeys(concept.strip().lower() for concept in concepts))
    if place.removesuffix(".gz").endswith(".json"):
        given = {name.lower(): texts for name, texts in json.loads("\n".join(read_lines(place))).items()}
        found = {name: [text.lower() for text in given.get(name, ())] for name in names}
        found = {name: texts for name, texts in found.items() if all(name in text for text in texts)}
    else:
        captions = [line.lower() for line in read_lines(place)]
        spaced = [f" {''.join(c if c.isalnum() else ' ' for c in text)} " for text in captions]
        found = {
            name: [text for text, parted in zip(captions, spaced) if f" {name} " in parted and name in text]
            for name in names
        }
    if not any(found.values()):
        raise ValueError(f"{place}: expected phrases that hold one of {len(names)} concepts, got none")
    return {name: texts for name, texts in found.items() if texts}
