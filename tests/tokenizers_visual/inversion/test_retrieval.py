"""Features of galleries are computed once, whatever interrupts, and the search finds what is nearest."""

import importlib.util
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_open_clip import save_tiny_clip

from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.conse import CONSE, available
from tokenizers_visual.inversion.retrieval import ApproximateSearch, FeatureStore, Gallery, ImageFile, encode_images
from tokenizers_visual.inversion.words import PseudoWords

SMALL = ImageInput(size=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def pair(clip: str) -> ClipPair:
    return load_pair(clip)


def pictures(folder: Path, count: int) -> list[ImageFile]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return [ImageFile(path) for path in sorted(folder.glob("*.png"))]


class Counting:
    """The pair, with a count of the pictures that it has encoded."""

    def __init__(self, pair: ClipPair) -> None:
        self.pair, self.count = pair, 0

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        self.count += len(images)
        return self.pair.image_features(images)

    def parameters(self) -> Any:
        return self.pair.parameters()


# -- the store -----------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_pair_and_computed_once(pair: ClipPair, clip: str, tmp_path: Path) -> None:
    items = pictures(tmp_path / "g", 5)
    store, counting = FeatureStore(tmp_path / "i.sqlite", clip, SMALL), Counting(pair)
    encode_images(store, items, counting, SMALL, batch_size=2)  # type: ignore[arg-type]
    expected = pair.image_features(torch.stack([SMALL(item.path) for item in items]))
    torch.testing.assert_close(store.read([item.name for item in items]), expected, rtol=1e-5, atol=1e-6)
    again = FeatureStore(tmp_path / "i.sqlite", clip, SMALL)
    encode_images(again, items, counting, SMALL, batch_size=2)  # type: ignore[arg-type]
    assert counting.count == 5
    names = [items[3].name, items[0].name, items[3].name]
    torch.testing.assert_close(again.read(names), expected[[3, 0, 3]], rtol=1e-5, atol=1e-6)


def test_changed_pictures_are_encoded_anew_and_the_unreadable_are_told(
    pair: ClipPair, clip: str, tmp_path: Path
) -> None:
    items = pictures(tmp_path / "g", 4)
    items[1].path.write_bytes(b"no picture")
    store, counting = FeatureStore(tmp_path / "i.sqlite", clip, SMALL), Counting(pair)
    done: list[int] = []
    encode_images(store, items, counting, SMALL, advance=done.append)  # type: ignore[arg-type]
    assert (counting.count, sum(done)) == (3, 4)
    assert list(store.skipped(items)) == [items[1].name]
    assert Gallery.of(store, items).names == tuple(items[i].name for i in (0, 2, 3))
    Image.new("RGB", (32, 32), "red").save(items[1].path)
    Image.new("RGB", (32, 32), "blue").save(items[2].path)
    encode_images(store, items, counting, SMALL)  # type: ignore[arg-type]
    assert counting.count == 5
    assert store.skipped(items) == {}


def test_another_clip_or_preprocessing_is_refused_and_nothing_is_lost(
    pair: ClipPair, clip: str, tmp_path: Path
) -> None:
    items = pictures(tmp_path / "g", 2)
    encode_images(FeatureStore(tmp_path / "i.sqlite", clip, SMALL), items, pair, SMALL)
    for backbone, preprocess in (("other", SMALL), (clip, SMALL.replace(pad_ratio=1.25))):
        with pytest.raises(ValueError, match="choose another file"):
            FeatureStore(tmp_path / "i.sqlite", backbone, preprocess)
    assert FeatureStore(tmp_path / "i.sqlite", clip, SMALL).missing(items) == []
    (tmp_path / "text.sqlite").write_text("this is a text, and not a database of any kind " * 50)
    with pytest.raises(ValueError, match="expected a store of features"):
        FeatureStore(tmp_path / "text.sqlite", clip, SMALL)
    with pytest.raises(ValueError, match="features of 1 pictures, got 0"):
        FeatureStore(tmp_path / "new.sqlite", clip, SMALL).read(["a"])


def test_a_store_from_before_a_setting_was_known_has_its_default(pair: ClipPair, clip: str, tmp_path: Path) -> None:
    file, items = tmp_path / "i.sqlite", pictures(tmp_path / "g", 2)
    encode_images(FeatureStore(file, clip, SMALL), items, pair, SMALL)
    early = {name: value for name, value in SMALL.to_dict().items() if name not in ("squash", "interpolation")}
    about = json.dumps({"format": 1, "backbone": clip, "settings": early}, sort_keys=True)
    with sqlite3.connect(file) as database:
        database.execute("UPDATE about SET content = ?", (about,))
    assert FeatureStore(file, clip, SMALL).missing(items) == []
    with pytest.raises(ValueError, match="choose another file"):
        FeatureStore(file, clip, SMALL.replace(squash=True))
    for other in (about.replace("pad_ratio", "of_another_version"), about.replace("settings", "rest"), "1", "not JSON"):
        with sqlite3.connect(file) as database:
            database.execute("UPDATE about SET content = ?", (other,))
        with pytest.raises(ValueError, match="choose another file"):
            FeatureStore(file, clip, SMALL)


def _encode_slowly(clip: str, folder: Path, file: Path) -> None:
    """In a process of its own: a tenth of a second for each picture."""
    torch.set_num_threads(1)
    items = [ImageFile(path) for path in sorted(folder.glob("*.png"))]
    encode_images(
        FeatureStore(file, clip, SMALL), items, load_pair(clip), SMALL, batch_size=1, advance=lambda _: time.sleep(0.1)
    )


def test_a_killed_run_goes_on_where_it_was(pair: ClipPair, clip: str, tmp_path: Path) -> None:
    items, file = pictures(tmp_path / "g", 60), tmp_path / "i.sqlite"
    process = multiprocessing.get_context("spawn").Process(target=_encode_slowly, args=(clip, tmp_path / "g", file))
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if file.is_file() and len(FeatureStore(file, clip, SMALL).missing(items)) < 55:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
    process.join()
    store = FeatureStore(file, clip, SMALL)
    left = len(store.missing(items))
    assert 0 < left < 55
    counting = Counting(pair)
    encode_images(store, items, counting, SMALL)  # type: ignore[arg-type]
    assert counting.count == left
    expected = pair.image_features(torch.stack([SMALL(item.path) for item in items]))
    torch.testing.assert_close(store.read([item.name for item in items]), expected, rtol=1e-4, atol=1e-5)


# -- the search ----------------------------------------------------------------------------------------------------


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_the_search_finds_the_nearest_in_order() -> None:
    gallery = Gallery(tuple("abcd"), torch.eye(4))
    scores, places = gallery.search(torch.tensor([[0.0, 3.0, 4.0, 0.0]]), top=2)
    assert places.tolist() == [[2, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.8, 0.6]]))
    assert gallery.search(torch.ones(1, 4), top=9)[1].shape == (1, 4)
    with pytest.raises(ValueError, match="at least one picture"):
        Gallery((), torch.zeros(0, 4))


def test_an_empty_gallery_says_why(clip: str, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "i.sqlite", clip, SMALL)
    with pytest.raises(ValueError, match="there are none"):
        Gallery.of(store, [])
    (tmp_path / "x.png").write_bytes(b"no picture")
    items = [ImageFile(tmp_path / "x.png")]
    encode_images(store, items, load_pair(clip), SMALL)
    with pytest.raises(ValueError, match=r"got none: cannot read .*x\.png"):
        Gallery.of(store, items)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
def test_faiss_finds_nearly_all_that_the_exact_search_finds(tmp_path: Path) -> None:
    centres = unit(60, 16)
    features = torch.nn.functional.normalize(centres.repeat(50, 1) + 0.3 * unit(3000, 16, seed=1), dim=-1)
    gallery = Gallery(tuple(map(str, range(3000))), features)
    search = ApproximateSearch(gallery, tmp_path / "i.sqlite")
    queries = unit(40, 16, seed=2)
    exact, found = gallery.search(queries, 10), search.search(queries, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(exact[1].tolist(), found[1].tolist())]
    assert sum(shared) / 400 > 0.8
    first = [a[0] == b[0] for a, b in zip(exact[1].tolist(), found[1].tolist())]
    assert sum(first) >= 36
    hits = found[0][:, 0] - (torch.nn.functional.normalize(queries, dim=-1) * features[found[1][:, 0]]).sum(-1)
    assert hits.abs().max() < 1e-5  # cosines are exact
    kept = list(tmp_path.glob("*.faiss"))
    assert len(kept) == 1
    again = ApproximateSearch(gallery, tmp_path / "i.sqlite")
    assert torch.equal(again.search(queries, 10)[1], found[1])
    assert list(tmp_path.glob("*.faiss")) == kept
    ApproximateSearch(Gallery(gallery.names[1:], features[1:]), tmp_path / "i.sqlite")
    assert len(list(tmp_path.glob("*.faiss"))) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_same_ten(clip: str, dtype: torch.dtype) -> None:
    """Of a gallery whose neighbours lie further apart than the rounding of the type."""
    found = []
    for precision in (torch.float32, dtype):
        pair = load_pair(clip).to(precision)
        words = PseudoWords(torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)).to(precision), clip)
        queries = pair.compose("a photo of $ that is red", words).float()
        found.append(Gallery(tuple(map(str, range(300))), unit(300, 24)).search(queries, 10)[1])
    assert [set(row) for row in found[0].tolist()] == [set(row) for row in found[1].tolist()]


# -- backbones -----------------------------------------------------------------------------------------------------


def test_a_name_loads_the_same_clip_again(pair: ClipPair, clip: str) -> None:
    assert pair.backbone == clip
    again = load_pair(pair.backbone)
    assert torch.equal(again.text_features("a dog"), pair.text_features("a dog"))


@pytest.mark.parametrize(
    "name", ["open_clip:ViT-nothing/openai", "/nowhere/at/all", "open_clip:local-dir:/nowhere/None"]
)
def test_an_unknown_clip_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a CLIP, got"):
        load_pair(name)


@pytest.mark.skipif(not available(), reason="the packages of its weights are not installed")
def test_the_pair_of_packages_has_the_meaning_of_words(tmp_path: Path) -> None:
    """EfficientNet-Lite0 and MiniLM: a word of the vocabulary gives the plain text, and a picture has a class."""
    pair = load_pair(CONSE)
    dog = PseudoWords(pair.token_embeddings(torch.tensor([pair._encode("dog")])), pair.backbone)  # type: ignore[misc]
    plain = pair.text_features(["a photo of a dog", "a photo of a puppy", "a photo of a car"])
    torch.testing.assert_close(pair.compose("a photo of a $", dog), plain[:1], rtol=1e-4, atol=1e-4)
    likeness = torch.nn.functional.cosine_similarity(plain[:1], plain[1:])
    assert likeness[0] > likeness[1] + 0.2
    with pytest.raises(ValueError, match="no image tokens"):
        pair.image_tokens(torch.zeros(1, 3, 224, 224))
