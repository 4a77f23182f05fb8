"""Fits the style head of the pair EfficientNet-Lite0 + MiniLM: `python -m trainers.conse_styles LABELS.csv OUT`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import torch

from tokenizers_visual.inversion.cir_domains import domain_text
from tokenizers_visual.inversion.conse import ConsePair, StyleHead


@torch.no_grad()
def fit_styles(labels: Path, out: Path, role: str = "query") -> StyleHead:
    """Fit the head to the domains of the images of one role, and write it. Their classes are not used.

    Args:
        labels: CSV with the columns file, domain and role; the files lie beside it.
        out: the file to write.
        role: of the images that are used.

    Raises:
        ValueError: no image of that role.
    """
    with labels.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["role"] == role]
    if not rows:
        raise ValueError(f"{labels}: expected images of the role {role}, got none")
    pair = ConsePair.load()
    pooled = [pair.pooled_features(pair.image_input(labels.parent / row["file"])[None]) for row in rows]
    with torch.enable_grad():
        head = StyleHead.fit(torch.cat(pooled), [domain_text(row["domain"]) for row in rows])
    head.save(out)
    return head


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python -m trainers.conse_styles LABELS.csv OUT.safetensors")
    print(", ".join(fit_styles(Path(sys.argv[1]), Path(sys.argv[2])).styles))
