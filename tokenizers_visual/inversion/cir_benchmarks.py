"""The benchmarks of composed image retrieval: their annotation files, protocols, metrics and submission files.

CIRR (arXiv 2108.04024), FashionIQ (CVPR 2021), CIRCO (arXiv 2303.15247), GeneCIS (CVPR 2023), and domain conversion as
Pic2Word (arXiv 2302.03084) and FreeDom (arXiv 2412.03297) evaluate it.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from tokenizers_visual.inversion import cir_metrics, freedom
from tokenizers_visual.inversion.cir_inputs import ImageInput, picture
from tokenizers_visual.inversion.cir_metrics import rank, rank_members
from tokenizers_visual.inversion.clip import PLACEHOLDER

logger = logging.getLogger("zoo")

Metrics = dict[str, float]
SUBMITTED = 50  # images that the servers of CIRR and CIRCO want of each query
_DILATION = 0.7  # of GeneCIS's boxes
_FASHION_CATEGORIES = ("dress", "shirt", "toptee")
_GENECIS_TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
_IMAGENET_DOMAINS = {0: "cartoon", 1: "origami", 2: "toy", 3: "sculpture"}  # label = class + 1000 domain; others: real
# domains whose name in the files is not what a query says
_DOMAIN_TEXTS = {"real": "photo", "dim": "dimlight", "New": "Today", "Old": "Archive"}


@dataclass(frozen=True)
class Picture:
    """An image of a benchmark, by its path below the folder of images; with a box (left, top, width, height) a part."""

    folder: Path
    file: str
    box: tuple[float, float, float, float] | None = None
    stamp: ClassVar[str] = ""  # images of a benchmark do not change

    @property
    def name(self) -> str:
        return self.file if self.box is None else f"{self.file}#{','.join(f'{value:g}' for value in self.box)}"

    def load(self, preprocess: ImageInput) -> Tensor:
        """(3, size, size); a MediaError where it cannot be read."""
        path = self.folder / self.file
        if self.box is None:
            return preprocess(path)
        whole = picture(path)
        return preprocess(square(whole.crop(dilated(self.box, whole.size))))


def dilated(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """GeneCIS's crop (left, top, right, bottom) of a box in an image of a size (width, height)."""
    (x, y, wide, high), (width, height) = box, size
    left, top = max(0.0, x - _DILATION * wide), max(0.0, y - _DILATION * high)
    right, bottom = (
        min(end, start + (1 + _DILATION) * side) for start, side, end in ((left, wide, width), (top, high, height))
    )
    return int(left), int(top), int(right), int(bottom)


def square(image: Image.Image) -> Image.Image:
    """The image in the middle of a black square."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


@dataclass(frozen=True)
class Query:
    """One question: an image and what should be different.

    Attributes:
        id: what the benchmark calls it.
        reference: place among the benchmark's pictures.
        prompts: texts with "$" for the image; the features of several are averaged.
    """

    id: str
    reference: int
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """Queries over one set of pictures; a benchmark of several parts (FashionIQ's categories) is a list of these.

    Attributes:
        part: its name among the parts.
        pictures: all images that need features.
        gallery: places of the images that are searched.
    """

    part: str
    pictures: tuple[Picture, ...]
    gallery: tuple[int, ...]
    queries: tuple[Query, ...]

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics | None:
        """In percent; None where the ground truth is hidden.

        Args:
            queries: (Q, E) composed features.
            features: (P, E) of all pictures.
        """
        raise NotImplementedError

    def submission(self, queries: Tensor, features: Tensor) -> dict[str, Any]:
        """File names with what a benchmark's server wants in them; of those without a server nothing."""
        return {}

    def ranked(
        self, queries: Tensor, features: Tensor, *, top: int | None = None, exclude: Tensor | None = None
    ) -> Tensor:
        """Places in the gallery (Q, K), the best first; `exclude` counts in the gallery too."""
        return rank(queries, features[list(self.gallery)], top=top, exclude=exclude)


# -- CIRR ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cirr(Benchmark):
    """The reference image is left out of all rankings; `R_subset@k` ranks the other members of its group of six."""

    references: tuple[int, ...] = ()  # in the gallery
    targets: tuple[int, ...] | None = None
    members: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        entries = _json(annotations, f"cap.rc2.{split}.json")
        files = {name: os.path.normpath(file) for name, file in _json(annotations, f"split.rc2.{split}.json").items()}
        places = {name: place for place, name in enumerate(files)}
        queries = tuple(
            Query(str(entry["pairid"]), places[entry["reference"]], (prompt.format(caption=entry["caption"]),))
            for entry in entries
        )
        known = all("target_hard" in entry for entry in entries)
        return [
            Cirr(
                f"CIRR {split}",
                tuple(Picture(images, file) for file in files.values()),
                tuple(range(len(files))),
                queries,
                references=tuple(query.reference for query in queries),
                targets=tuple(places[entry["target_hard"]] for entry in entries) if known else None,
                members=tuple(tuple(places[name] for name in entry["img_set"]["members"]) for entry in entries),
            )
        ]

    def _rankings(self, queries: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        exclude = torch.tensor(self.references)
        members = rank_members(queries, features[list(self.gallery)], torch.tensor(self.members), exclude)
        return self.ranked(queries, features, top=SUBMITTED, exclude=exclude), members

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics | None:
        if self.targets is None:
            return None
        values = cir_metrics.cirr(*self._rankings(queries, features), torch.tensor(self.targets))
        return values | {"mean of R@5 and R_subset@1": (values["R@5"] + values["R_subset@1"]) / 2}

    def submission(self, queries: Tensor, features: Tensor) -> dict[str, Any]:
        if self.targets is not None:
            return {}
        names = [Path(self.pictures[place].file).stem for place in self.gallery]
        contents = {}
        for metric, ranking, count in zip(
            ("recall", "recall_subset"), self._rankings(queries, features), (SUBMITTED, 3)
        ):
            rows = {
                query.id: [names[place] for place in row[:count]] for query, row in zip(self.queries, ranking.tolist())
            }
            contents[f"cirr_{metric}.json"] = {"version": "rc2", "metric": metric, **rows}
        return contents


# -- FashionIQ -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FashionIQ(Benchmark):
    """One category: all images of its split are searched, the reference among them."""

    targets: tuple[int, ...] = ()  # in the gallery

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        if split == "test":
            raise ValueError("FashionIQ: expected the split val or train, whose targets are known, got test")
        parts: list[Benchmark] = []
        for category in _FASHION_CATEGORIES:
            names = _json(annotations, f"split.{category}.{split}.json")
            if len(set(names)) < len(names):
                raise ValueError(f"FashionIQ {category}: expected each image once in the split, got one twice")
            places = {name: place for place, name in enumerate(names)}
            entries = _json(annotations, f"cap.{category}.{split}.json")
            parts.append(
                FashionIQ(
                    category,
                    tuple(Picture(images, _with_suffix(images, name)) for name in names),
                    tuple(range(len(names))),
                    tuple(
                        Query(str(number), places[entry["candidate"]], fashion_prompts(entry["captions"], prompt))
                        for number, entry in enumerate(entries)
                    ),
                    targets=tuple(places[entry["target"]] for entry in entries),
                )
            )
        return parts

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics:
        ranked = self.ranked(queries, features, top=max(cir_metrics.FASHIONIQ_RANKS))
        return cir_metrics.recall(ranked, torch.tensor(self.targets), cir_metrics.FASHIONIQ_RANKS)


def fashion_prompts(captions: Sequence[str], prompt: str) -> tuple[str, ...]:
    """FashionIQ's two captions in both orders; Pic2Word, known by its prompt, asks once, the second caption first."""
    if prompt == PROMPTS["pic2word"]["fashioniq"]:
        return (prompt.format(caption=f"{captions[1]} and {captions[0]}"),)
    first, second = (caption.strip(".?, ") for caption in captions)
    return tuple(prompt.format(caption=f"{one} and {other}") for one, other in ((first, second), (second, first)))


# -- CIRCO ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Circo(Benchmark):
    """All images of COCO 2017 unlabeled are searched, the reference among them, which is no ground truth."""

    truths: tuple[tuple[int, ...], ...] | None = None  # in the gallery, the target first
    aspects: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        entries = _json(annotations, f"{split}.json")
        if [entry["id"] for entry in entries] != list(range(len(entries))):
            raise ValueError(f"CIRCO {split}: expected the ids 0 to {len(entries) - 1} in order")
        try:
            listed = _json(annotations, "image_info_unlabeled2017.json")["images"]
            files = {entry["id"]: entry["file_name"] for entry in listed}
        except FileNotFoundError:  # the list of COCO is large; the folder of images tells the same
            files = {int(path.stem): path.name for path in sorted(images.glob("*.jpg")) if path.stem.isdigit()}
        places = {name: place for place, name in enumerate(files)}
        named = {entry["reference_img_id"] for entry in entries}
        named |= {truth for entry in entries for truth in entry.get("gt_img_ids", ())}
        if missing := sorted(named - set(places)):
            raise ValueError(
                f"CIRCO {split}: expected the images of COCO 2017 unlabeled in {images}, or their list "
                f"image_info_unlabeled2017.json in {annotations}; {len(missing)} are missing, the first {missing[0]}"
            )
        known = all("gt_img_ids" in entry for entry in entries)
        return [
            Circo(
                f"CIRCO {split}",
                tuple(Picture(images, file) for file in files.values()),
                tuple(range(len(files))),
                tuple(
                    Query(
                        str(entry["id"]),
                        places[entry["reference_img_id"]],
                        (prompt.format(caption=entry["relative_caption"]),),
                    )
                    for entry in entries
                ),
                truths=tuple(tuple(places[truth] for truth in entry["gt_img_ids"]) for entry in entries)
                if known
                else None,
                aspects=tuple(tuple(entry.get("semantic_aspects", ())) for entry in entries),
            )
        ]

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics | None:
        if self.truths is None:
            return None
        return circo_metrics(self.ranked(queries, features, top=SUBMITTED), self.truths, self.aspects)

    def submission(self, queries: Tensor, features: Tensor) -> dict[str, Any]:
        if self.truths is not None:
            return {}
        ids = [int(Path(self.pictures[place].file).stem) for place in self.gallery]
        ranking = self.ranked(queries, features, top=SUBMITTED).tolist()
        rows = {query.id: [ids[place] for place in row] for query, row in zip(self.queries, ranking)}
        return {"circo.json": rows}


def circo_metrics(ranked: Tensor, truths: Sequence[Sequence[int]], aspects: Sequence[Sequence[str]]) -> Metrics:
    """`mAP@k`, `R@k` of the target, and `mAP@10` of the queries of each semantic aspect.

    Args:
        ranked: (Q, K) images, the best first.
        truths: those of each query, the target first.
        aspects: of each query.
    """
    longest = max(len(row) for row in truths)
    table = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in truths])
    values = cir_metrics.circo(ranked, table)
    for aspect in dict.fromkeys(name for row in aspects for name in row):
        chosen = torch.tensor([place for place, row in enumerate(aspects) if aspect in row])
        mean = cir_metrics.mean_average_precision(ranked[chosen], table[chosen], [10])["mAP@10"]
        values[f"mAP@10 {aspect}"] = mean
    return values


# -- GeneCIS -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneCIS(Benchmark):
    """One task: each query has candidates of its own, of which the target is the first."""

    candidates: tuple[tuple[int, ...], ...] = ()  # places among the pictures

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        parts: list[Benchmark] = []
        for task in _GENECIS_TASKS:
            try:
                entries = _json(annotations, f"{task}.json")
            except FileNotFoundError:
                continue
            places: dict[Picture, int] = {}
            rows = [
                [
                    places.setdefault(_genecis_picture(images, one), len(places))
                    for one in (entry["reference"], entry["target"], *entry["gallery"])
                ]
                for entry in entries
            ]
            parts.append(
                GeneCIS(
                    task,
                    tuple(places),
                    (),
                    tuple(
                        Query(str(number), row[0], (prompt.format(caption=entry["condition"]),))
                        for number, (entry, row) in enumerate(zip(entries, rows))
                    ),
                    candidates=tuple(tuple(row[1:]) for row in rows),
                )
            )
        if not parts:
            raise FileNotFoundError(
                f"{annotations}: expected {', '.join(f'{task}.json' for task in _GENECIS_TASKS)}, got none"
            )
        return parts

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics:
        unit = torch.nn.functional.normalize
        galleries = unit(features.float(), dim=-1)[torch.tensor(self.candidates)]
        return cir_metrics.genecis(unit(queries.float(), dim=-1), galleries)


def _genecis_picture(images: Path, entry: dict[str, Any]) -> Picture:
    """An image of COCO val2017, or a box of one of Visual Genome."""
    if "val_image_id" in entry:
        return Picture(images, f"{int(entry['val_image_id']):012d}.jpg")
    x, y, width, height = (float(value) for value in entry["instance_bbox"])
    return Picture(images, f"{entry['image_id']}.jpg", (x, y, width, height))


# -- domain conversion ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DomainConversion(Benchmark):
    """One pair of domains: images of the query's class in the domain that its text names, among all images.

    A query without such an image counts as one that found none.
    """

    positives: tuple[tuple[int, ...], ...] = ()  # of each query, in the gallery
    ranks: tuple[int, ...] = (10, 50)

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        """`split` names the set where the folder holds several: imagenet-r (Pic2Word's setting), imagenet-r-all
        (FreeDom's), labels, or what FreeDom's lists begin with: nico, ltll, minidn.
        """
        queries, gallery, ranks = _domain_rows(annotations, split)
        sources, targets = (list(dict.fromkeys(row[1] for row in rows)) for rows in (queries, gallery))
        pairs = [(source, target) for source in sources for target in targets if source != target]
        return DomainConversion._parts(images, queries, gallery, pairs, prompt, ranks)

    @staticmethod
    def _parts(
        images: Path,
        queries: Sequence[tuple[str, str, Any]],
        gallery: Sequence[tuple[str, str, Any]],
        pairs: Sequence[tuple[str, str]],
        prompt: str,
        ranks: tuple[int, ...],
    ) -> list[Benchmark]:
        places = {file: place for place, file in enumerate(dict.fromkeys(row[0] for row in [*gallery, *queries]))}
        pictures = tuple(Picture(images, file) for file in places)
        of_pair: dict[tuple[str, Any], list[int]] = {}
        for place, (_, domain, kind) in enumerate(gallery):
            of_pair.setdefault((domain, kind), []).append(place)
        parts: list[Benchmark] = []
        for source, target in pairs:
            asked = [row for row in queries if row[1] == source]
            text = prompt.format(domain=domain_text(target))
            parts.append(
                DomainConversion(
                    f"{source} to {target}",
                    pictures,
                    tuple(places[file] for file, _, _ in gallery),
                    tuple(Query(file, places[file], (text,)) for file, _, _ in asked),
                    positives=tuple(tuple(of_pair.get((target, kind), ())) for _, _, kind in asked),
                    ranks=ranks,
                )
            )
        if not parts:
            raise ValueError("domain conversion: expected images of at least two domains, got fewer")
        return parts

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics:
        ranked = self.ranked(queries, features)
        relevant = torch.zeros(ranked.shape, dtype=torch.bool)
        for row, found in enumerate(self.positives):
            relevant[row] = torch.isin(ranked[row], torch.tensor(found, dtype=torch.int64))
        return freedom.retrieval_metrics(relevant, self.ranks)


def domain_text(domain: str) -> str:
    """How a query names a domain of the annotation files."""
    return _DOMAIN_TEXTS.get(domain, domain.replace("_", " "))


Row = tuple[str, str, str]  # file, domain, class


def _domain_rows(folder: Path, split: str) -> tuple[list[Row], list[Row], tuple[int, ...]]:
    """Queries, gallery, and the ranks of the set's tables."""
    found = {path.name.partition("_files.csv")[0] for path in folder.rglob("*_files.csv*")}
    lists = {name.rpartition("_")[0] for name in found}
    labels, imagenet = sorted(folder.rglob("labels.csv")), _labels(folder, "imgnet_targets.txt")
    sets = [*(["labels"] if labels else []), *(["imagenet-r"] if imagenet else []), *sorted(lists)]
    if split == "val" and len(sets) == 1:
        split = sets[0]
    if split not in (*sets, "imagenet-r-all" if imagenet else None):
        raise ValueError(f"{folder}: expected the split to be one of the sets there ({', '.join(sets)}), got {split!r}")
    if split == "labels":
        with labels[0].open(newline="") as file:
            rows = list(csv.DictReader(file))
        queries, gallery = (
            [(row["file"], row["domain"], row["class"]) for row in rows if row["role"] == role]
            for role in ("query", "index")
        )
        return queries, gallery, (10, 50)
    if split.startswith("imagenet-r"):
        gallery = [(file, _IMAGENET_DOMAINS.get(label // 1000, "real"), str(label % 1000)) for file, label in imagenet]
        real = [(file, "real", str(label)) for file, label in _labels(folder, "imgnet_real_query.txt")]
        return (gallery if split.endswith("-all") else real), gallery, (10, 50)
    kinds = ("full", "full") if f"{split}_full" in found else ("query", "database")
    queries, gallery = (_rows(folder, f"{split}_{kind}_files.csv") for kind in kinds)
    return queries, gallery, (5, 10) if kinds[0] == "full" else (50, 100)


def _rows(folder: Path, name: str) -> list[Row]:
    """FreeDom's lists: "path domain class" in each line."""
    rows = [tuple(line.split()) for line in _lines(folder, name)]
    if rows and len(rows[-1]) < 3:  # copies of these lists are cut off in places
        logger.warning("%s: its last line is cut off and left out: %s", name, " ".join(rows.pop()))
    if not rows or any(len(row) != 3 for row in rows):
        wrong = next((" ".join(row) for row in rows if len(row) != 3), "no such file, or no line")
        raise ValueError(f"{folder}: expected lines of path, domain and class in {name}, got {wrong}")
    return rows  # type: ignore[return-value]


def _lines(folder: Path, name: str) -> list[str]:
    """The lines of a list somewhere below the folder; none where it is missing."""
    found = sorted([*folder.rglob(name), *folder.rglob(f"{name}.gz")])
    return [line for line in _text(found[0]).split("\n") if line.strip()] if found else []


def _labels(folder: Path, name: str) -> list[tuple[str, int]]:
    rows = [line.split() for line in _lines(folder, name)]
    return [(row[0], int(row[1])) for row in rows]


# -- all of them ---------------------------------------------------------------------------------------------------

_THAT, _COMMA = f"a photo of {PLACEHOLDER} that {{caption}}", f"a photo of {PLACEHOLDER} , {{caption}}"
_DOMAIN = f"a {{domain}} of {PLACEHOLDER}"
# GeneCIS's prompt of these methods is not known; its conditions are words, not sentences
_WITH = f"a photo of {PLACEHOLDER} with {{caption}}"
PROMPTS: dict[str, dict[str, str]] = {
    "": {"cirr": _THAT, "fashioniq": _THAT, "circo": _THAT, "genecis": _WITH, "domains": _DOMAIN},
    "pic2word": {"cirr": _COMMA, "fashioniq": _COMMA, "circo": _COMMA, "genecis": _WITH, "domains": _DOMAIN},
}  # by the projector's family; "" for all others
_READERS: dict[str, Callable[[Path, Path, str, str], list[Benchmark]]] = {
    "cirr": Cirr.read,
    "fashioniq": FashionIQ.read,
    "circo": Circo.read,
    "genecis": GeneCIS.read,
    "domains": DomainConversion.read,
}
BENCHMARKS = tuple(_READERS)


def read_benchmark(
    name: str, annotations: Path, images: Path, split: str = "val", *, family: str = "", prompt: str | None = None
) -> list[Benchmark]:
    """The parts of a benchmark, read from its own annotation files, plain or gzipped.

    Args:
        name: one of `BENCHMARKS`.
        annotations, images: folders; the images are needed only where a list of them is missing.
        split: "val", or what the file names call it.
        family: of the projector, which has its own way to ask.
        prompt: another way to ask, with "$" and `{caption}`, or `{domain}` for domain conversion.

    Raises:
        ValueError: no such benchmark, or a prompt without its fields.
        FileNotFoundError: annotation files are missing; names them.
    """
    if name not in _READERS:
        raise ValueError(f"expected a benchmark among {', '.join(_READERS)}, got {name!r}")
    if not annotations.is_dir():
        raise FileNotFoundError(f"expected a folder of annotation files, got {annotations}")
    template = prompt or PROMPTS.get(family, PROMPTS[""])[name]
    wanted = "{domain}" if name == "domains" else "{caption}"
    if PLACEHOLDER not in template or wanted not in template:
        raise ValueError(f"expected a prompt with {PLACEHOLDER} and {wanted}, got {template!r}")
    return _READERS[name](annotations, images, split, template)


def mean_of_parts(parts: Sequence[Metrics]) -> Metrics:
    """The plain mean over the parts of a benchmark, of the metrics that all of them have."""
    return {
        name: sum(part[name] for part in parts) / len(parts) for name in parts[0] if all(name in part for part in parts)
    }


def _json(folder: Path, name: str) -> Any:
    """The content of a JSON file somewhere below the folder, plain or gzipped."""
    found = sorted([*folder.rglob(name), *folder.rglob(f"{name}.gz")])
    if not found:
        raise FileNotFoundError(f"{folder}: expected {name} or {name}.gz in it, got neither")
    try:
        return json.loads(_text(found[0]))
    except (json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{found[0]}: expected JSON: {error}") from error


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def _with_suffix(images: Path, name: str) -> str:
    """FashionIQ's files are .jpg in some copies and .png in others."""
    return f"{name}.png" if (images / f"{name}.png").is_file() else f"{name}.jpg"
