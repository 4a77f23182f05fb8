"""Domain conversion: from an image and the name of a domain to images of the same class in that domain.

Settings of Pic2Word (arXiv 2302.03084) and FreeDom (arXiv 2412.03297).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokenizers_visual.inversion import freedom
from tokenizers_visual.inversion.cir_base import Benchmark, Metrics, Picture, Query, read_lines

logger = logging.getLogger("zoo")

_IMAGENET_DOMAINS = {0: "cartoon", 1: "origami", 2: "toy", 3: "sculpture"}  # label = class + 1000 domain; others: real
# domains whose name in the files is not what a query says
_DOMAIN_TEXTS = {"real": "photo", "dim": "dimlight", "New": "Today", "Old": "Archive"}
Row = tuple[str, str, str]  # file, domain, class
_CHUNK = 500  # queries whose whole rankings are in memory at once


@dataclass(frozen=True)
class DomainConversion(Benchmark):
    """One pair of domains: images of the query's class in the domain that its text names, among all images.

    A query without such an image counts as one that found none.
    """

    protocol = "gallery: the images of all domains; mAP by trapezoids; shares of all positives of a query"
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
        queries: Sequence[Row],
        gallery: Sequence[Row],
        pairs: Sequence[tuple[str, str]],
        prompt: str,
        ranks: tuple[int, ...],
    ) -> list[Benchmark]:
        places = {file: place for place, file in enumerate(dict.fromkeys(row[0] for row in [*gallery, *queries]))}
        pictures = tuple(Picture(images, file) for file in places)
        of_pair: dict[tuple[str, str], list[int]] = {}
        for place, (_, domain, kind) in enumerate(gallery):
            of_pair.setdefault((domain, kind), []).append(place)
        parts: list[Benchmark] = []
        for source, target in pairs:
            asked = [row for row in queries if row[1] == source]
            text = domain_text(target)
            parts.append(
                DomainConversion(
                    f"{source} to {target}",
                    pictures,
                    tuple(places[file] for file, _, _ in gallery),
                    tuple(Query(file, places[file], text, (prompt.replace("{domain}", text),)) for file, _, _ in asked),
                    positives=tuple(tuple(of_pair.get((target, kind), ())) for _, _, kind in asked),
                    ranks=ranks,
                )
            )
        if not parts:
            raise ValueError("domain conversion: expected images of at least two domains, got fewer")
        return parts

    def metrics(self, queries: Tensor, features: Tensor) -> Metrics:
        total: Metrics = {}
        for start in range(0, len(queries), _CHUNK):
            ranked = self.ranked(queries[start : start + _CHUNK], features)
            relevant = torch.zeros_like(ranked, dtype=torch.bool)
            for row, found in enumerate(self.positives[start : start + _CHUNK]):
                relevant[row] = torch.isin(ranked[row], torch.tensor(found, dtype=torch.int64))
            for name, value in freedom.retrieval_metrics(relevant, self.ranks).items():
                total[name] = total.get(name, 0.0) + value * len(ranked) / len(queries)
        return total


def domain_text(domain: str) -> str:
    """How a query names a domain of the annotation files."""
    return _DOMAIN_TEXTS.get(domain, domain.replace("_", " "))


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
            table = list(csv.DictReader(file))
        queries, gallery = (
            [(row["file"], row["domain"], row["class"]) for row in table if row["role"] == role]
            for role in ("query", "index")
        )
        return queries, gallery, (10, 50)
    if split.startswith("imagenet-r"):
        gallery = [(file, _IMAGENET_DOMAINS.get(label // 1000, "real"), str(label % 1000)) for file, label in imagenet]
        real = [(file, "real", str(label)) for file, label in _labels(folder, "imgnet_real_query.txt")]
        return (gallery if split.endswith("-all") else real), gallery, (10, 50)
    if f"{split}_full" in found:  # all images ask, and all are searched
        rows = _rows(folder, f"{split}_full_files.csv")
        return rows, rows, (5, 10)
    return _rows(folder, f"{split}_query_files.csv"), _rows(folder, f"{split}_database_files.csv"), (50, 100)


def _rows(folder: Path, name: str) -> list[Row]:
    """FreeDom's lists: "path domain class" in each line."""
    rows = [tuple(line.split()) for line in read_lines(folder, name)]
    if rows and len(rows[-1]) < 3:  # copies of these lists are cut off in places
        logger.warning("%s: its last line is cut off and left out: %s", name, " ".join(rows.pop()))
    if not rows or any(len(row) != 3 for row in rows):
        wrong = next((" ".join(row) for row in rows if len(row) != 3), "no such file, or no line")
        raise ValueError(f"{folder}: expected lines of path, domain and class in {name}, got {wrong}")
    return rows  # type: ignore[return-value]


def _labels(folder: Path, name: str) -> list[tuple[str, int]]:
    rows = [line.split() for line in read_lines(folder, name)]
    return [(row[0], int(row[1])) for row in rows]
