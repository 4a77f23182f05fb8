"""CIRR, FashionIQ, CIRCO and GeneCIS: annotation files, protocols and submission files.

Papers: arXiv 2108.04024, CVPR 2021, arXiv 2303.15247, CVPR 2023.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion import cir_metrics
from tokenizers_visual.inversion.cir_base import PROMPTS, Benchmark, Metrics, Picture, Query, read_json
from tokenizers_visual.inversion.cir_metrics import rank_members

SUBMITTED = 50  # images that the servers of CIRR and CIRCO want of each query
_FASHION_CATEGORIES = ("dress", "shirt", "toptee")
_GENECIS_TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")

# -- CIRR ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cirr(Benchmark):
    """The reference image is left out of all rankings; `R_subset@k` ranks the other members of its group of six."""

    protocol = "gallery: all images of the split without the query's reference; R_subset: the five others of its group"
    references: tuple[int, ...] = ()  # in the gallery
    targets: tuple[int, ...] | None = None
    members: tuple[tuple[int, ...], ...] = ()

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        entries = read_json(annotations, f"cap.rc2.{split}.json")
        files = {
            name: os.path.normpath(file) for name, file in read_json(annotations, f"split.rc2.{split}.json").items()
        }
        places = {name: place for place, name in enumerate(files)}
        queries = tuple(
            Query(str(entry["pairid"]), places[entry["reference"]], entry["caption"], (_ask(prompt, entry["caption"]),))
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

    @property
    def hidden(self) -> bool:
        return self.targets is None

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

    protocol = "gallery: all images of the category's split, reference included"
    targets: tuple[int, ...] = ()  # in the gallery

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        """`split` with "-union" behind it ("val-union") is that of some supervised papers: see `FashionIQUnion`."""
        split, union = split.removesuffix("-union"), split.endswith("-union")
        if split == "test":
            raise ValueError("FashionIQ: expected the split val or train, whose targets are known, got test")
        parts: list[Benchmark] = []
        for category in _FASHION_CATEGORIES:
            names = read_json(annotations, f"split.{category}.{split}.json")
            if len(set(names)) < len(names):
                raise ValueError(f"FashionIQ {category}: expected each image once in the split, got one twice")
            entries = read_json(annotations, f"cap.{category}.{split}.json")
            if union:
                named = {entry[role] for entry in entries for role in ("candidate", "target")}
                names = [name for name in names if name in named]
            places = {name: place for place, name in enumerate(names)}
            parts.append(
                (FashionIQUnion if union else FashionIQ)(
                    category,
                    tuple(Picture(images, _with_suffix(images, name)) for name in names),
                    tuple(range(len(names))),
                    tuple(
                        Query(
                            str(number),
                            places[entry["candidate"]],
                            " and ".join(entry["captions"]),
                            fashion_prompts(entry["captions"], prompt),
                        )
                        for number, entry in enumerate(entries)
                    ),
                    targets=tuple(places[entry["target"]] for entry in entries),
                )
            )
        return parts

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics:
        ranked = self.ranked(queries, features, top=max(cir_metrics.FASHIONIQ_RANKS))
        return cir_metrics.fashioniq(ranked, torch.tensor(self.targets))


class FashionIQUnion(FashionIQ):
    """As `FashionIQ`, with a smaller gallery, whose numbers are higher and do not compare with the others."""

    protocol = "gallery: the images of the category's split that a query starts from or asks for"


def fashion_prompts(captions: Sequence[str], prompt: str) -> tuple[str, ...]:
    """FashionIQ's two captions in both orders; Pic2Word, known by its prompt, asks once, the second caption first."""
    if prompt == PROMPTS["pic2word"]["fashioniq"]:
        return (_ask(prompt, f"{captions[1]} and {captions[0]}"),)
    first, second = (caption.strip(".?, ") for caption in captions)
    return tuple(_ask(prompt, f"{one} and {other}") for one, other in ((first, second), (second, first)))


# -- CIRCO ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Circo(Benchmark):
    """All images of COCO 2017 unlabeled are searched, the reference among them, which is no ground truth."""

    protocol = (
        "gallery: COCO 2017 unlabeled, reference included; AP over the smaller of k and the number of ground truths"
    )
    truths: tuple[tuple[int, ...], ...] | None = None  # in the gallery, the target first
    aspects: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        entries = read_json(annotations, f"{split}.json")
        if [entry["id"] for entry in entries] != list(range(len(entries))):
            raise ValueError(f"CIRCO {split}: expected the ids 0 to {len(entries) - 1} in order")
        try:
            listed = read_json(annotations, "image_info_unlabeled2017.json")["images"]
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
                        entry["relative_caption"],
                        (_ask(prompt, entry["relative_caption"]),),
                    )
                    for entry in entries
                ),
                truths=tuple(tuple(places[truth] for truth in entry["gt_img_ids"]) for entry in entries)
                if known
                else None,
                aspects=tuple(tuple(entry.get("semantic_aspects", ())) for entry in entries),
            )
        ]

    @property
    def hidden(self) -> bool:
        return self.truths is None

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

    protocol = "gallery: the query's own candidates"
    candidates: tuple[tuple[int, ...], ...] = ()  # places among the pictures

    @staticmethod
    def read(annotations: Path, images: Path, split: str, prompt: str) -> list[Benchmark]:
        parts: list[Benchmark] = []
        for task in _GENECIS_TASKS:
            try:
                entries = read_json(annotations, f"{task}.json")
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
                        Query(str(number), row[0], entry["condition"], (_ask(prompt, entry["condition"]),))
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
        queries, features = (F.normalize(part.float(), dim=-1) for part in (queries, features))
        total: Metrics = {}
        for count in sorted({len(row) for row in self.candidates}):  # the same for all of a task as published
            chosen = [place for place, row in enumerate(self.candidates) if len(row) == count]
            galleries = features[torch.tensor([self.candidates[place] for place in chosen])]
            for name, value in cir_metrics.genecis(queries[chosen], galleries).items():
                total[name] = total.get(name, 0.0) + value * len(chosen) / len(self.candidates)
        return total


def _genecis_picture(images: Path, entry: dict[str, Any]) -> Picture:
    """An image of COCO val2017, or a box of one of Visual Genome."""
    if "val_image_id" in entry:
        return Picture(images, f"{int(entry['val_image_id']):012d}.jpg")
    x, y, width, height = (float(value) for value in entry["instance_bbox"])
    return Picture(images, f"{entry['image_id']}.jpg", (x, y, width, height))


def _with_suffix(images: Path, name: str) -> str:
    """FashionIQ's files are .jpg in some copies and .png in others."""
    return f"{name}.png" if (images / f"{name}.png").is_file() else f"{name}.jpg"


def _ask(prompt: str, caption: str) -> str:
    return prompt.replace("{caption}", caption)  # not `format`: braces are the caption's own
