"""Cards: the manifests of the package, and what a manifest may not be."""

import json
import re
from pathlib import Path

import pytest

from zoo import cards
from zoo.cards import CardError, read_manifest, select

MANIFESTS = cards.manifests()
CARDS = cards.all_cards()

GOOD = """
family: toy
module: tokenizers_visual.toy
modality: image
layout: grid
licence: MIT
models:
  - {name: toy_a, tag: one, quantizer: vector, config: {}, aliases: [toya]}
  - name: toy_b
    tag: two
    quantizer: binary
    config: {width: 3}
    container: [ema, state_dict]
    source: {repo: someone/toy, file: toy.pt}
    metrics: [{name: rFID, value: 1.5, protocol: ImageNet}]
"""


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.full_name)
def test_every_card_says_what_a_user_needs(card: cards.ModelCard) -> None:
    assert re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", card.full_name)
    assert card.modality in ("image", "video", "audio", "graph", "mesh", "features", "mixed", "embeddings")
    assert card.layout in ("grid", "sequence", "frames", "scales", "words")
    assert card.paper
    assert card.licence
    if card.source is not None and card.source.path is None:
        assert card.source.repo or card.source.url
        assert card.code
    for metric in card.metrics:
        assert metric.protocol, metric
    json.dumps(card.to_dict())


def test_names_are_unique() -> None:
    names = [card.full_name for card in CARDS] + [alias for card in CARDS for alias in card.aliases]
    assert len(names) == len(set(names))


def test_a_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(GOOD)
    manifest = read_manifest(tmp_path / "toy.yaml")
    first, second = manifest.cards
    assert manifest.fixtures == ("toy",)
    assert (first.full_name, first.family, first.licence, first.source) == ("toy_a.one", "toy", "MIT", None)
    assert second.container == ("ema", "state_dict")
    assert second.source is not None
    assert (second.source.repo, second.source.file) == ("someone/toy", "toy.pt")
    assert second.metrics[0].value == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("family: toy\n", ""), "expected a manifest with family, module and models"),
        (lambda text: text.replace("licence:", "license:"), "unknown fields license; known are .*licence"),
        (lambda text: text.replace("tag: one", "flag: one"), "toy_a: .*flag"),
        (lambda text: text.replace("file: toy.pt", "fill: toy.pt"), "toy_b: .*fill"),
        (lambda text: text.replace("tag: one", "tag: one, sizes: guess"), "toy_a: expected sizes .*, got 'guess'"),
        (lambda text: text.replace(", protocol: ImageNet", ""), "toy_b: .*protocol"),
        (lambda text: text.replace("modality: image\n", ""), "toy_a: .*modality"),
        (lambda text: "a: [", "expected a manifest"),
        (lambda text: "- a\n- b\n", "expected a manifest"),
        (lambda text: "", "expected a manifest"),
    ],
)
def test_a_manifest_that_does_not_fit_names_file_and_entry(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(change(GOOD))
    with pytest.raises(CardError, match=f"(?s)toy.yaml: .*{message}|toy.yaml: {message}"):
        read_manifest(path)


def test_selection(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(GOOD)
    known = read_manifest(tmp_path / "toy.yaml").cards

    def names(*pattern: str, **filters: object) -> list[str]:
        return [card.full_name for card in select(known, *pattern, **filters)]  # type: ignore[arg-type]

    assert names() == ["toy_a.one", "toy_b.two"]
    assert names("*_b*") == ["toy_b.two"]
    assert names("toya") == ["toy_a.one"]
    assert names("toy") == names()  # the family
    assert names(quantizer="binary") == ["toy_b.two"]
    assert names(pretrained=True) == ["toy_b.two"]
    assert names(pretrained=False) == ["toy_a.one"]
    assert names(licence="mit", modality="image", layout="grid") == names()
    assert names(layout="frames") == names("nothing*") == []
