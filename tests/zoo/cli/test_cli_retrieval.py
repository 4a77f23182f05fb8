"""`zoo retrieve` and `zoo eval-cir`: what is found, what is kept between runs, and what is told when it cannot work."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_pictures import picture
from PIL import Image
from tiny_open_clip import save_tiny_clip

import zoo
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_benchmarks import read_benchmark
from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.rtd import save_text_encoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def projector(clip: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = zoo.create_model("lincir_vit_l14", backbone=clip, image_dim=24, word_dim=16, hidden_dim=8)
    folder = tmp_path_factory.mktemp("models") / "lincir"
    zoo.save_model(model, folder)
    return folder


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    folder = tmp_path / "gallery"
    (folder / "inner").mkdir(parents=True)
    for seed in range(6):
        picture(40, 48, seed).save(folder / ("inner" if seed % 2 else ".") / f"{seed}.png")
    return folder


# -- retrieve ------------------------------------------------------------------------------------------------------


def test_it_finds_what_the_composed_direction_is_nearest_to(
    run: Callable, gallery: Path, projector: Path, clip: str, tmp_path: Path
) -> None:
    query = tmp_path / "query.png"
    picture(40, 40, 99).save(query)
    asked = ("retrieve", "--gallery", gallery, "--query", query, "--text", "is red", "--projector", projector)
    result = json.loads(run(*asked, "--top", 3, "--json", "--device", "cpu").stdout)
    assert result["prompt"] == "a photo of $ that is red"
    assert (result["clip"], result["gallery"]["pictures"]) == (clip, 6)
    pair, model, preprocess = load_pair(clip), zoo.create_model(f"local-dir:{projector}"), ImageInput(32)
    files = sorted(gallery.rglob("*.png"))
    features = torch.stack([pair.image_features(preprocess(file)[None])[0] for file in files])
    words = model.project(pair.image_features(preprocess(query)[None]))
    cosines = torch.nn.functional.cosine_similarity(pair.compose(result["prompt"], words), features)
    order = cosines.argsort(descending=True)[:3].tolist()
    assert [Path(row["file"]).name for row in result["results"]] == [files[place].name for place in order]
    assert [row["score"] for row in result["results"]] == pytest.approx(cosines[order].tolist(), abs=1e-5)


def test_the_index_is_kept_and_the_query_is_no_result(
    run: Callable, gallery: Path, projector: Path, tmp_path: Path
) -> None:
    asked = [
        "retrieve",
        "--gallery",
        gallery,
        "--query",
        gallery / "0.png",
        "--projector",
        projector,
        "--device",
        "cpu",
    ]
    out = run(*asked, "--text", "a sketch of $", "--out", tmp_path / "sheet.png").stdout
    assert "a sketch of $" in out
    assert str(gallery / "0.png") not in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 5 * 40
    (index,) = (tmp_path / "zoo_cache" / "features").glob("*.sqlite")
    stamp = index.stat().st_mtime_ns
    result = json.loads(run(*asked, "--text", "is red", "--json").stdout)
    assert index.stat().st_mtime_ns == stamp
    assert len(result["results"]) == 5
    (gallery / "2.png").unlink()
    picture(40, 40, 50).save(gallery / "new.png")
    names = {Path(row["file"]).name for row in json.loads(run(*asked, "--text", "is red", "--json").stdout)["results"]}
    assert names == {"1.png", "3.png", "4.png", "5.png", "new.png"}


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
def test_faiss_searches_a_large_gallery_and_exact_does_not(
    run: Callable, gallery: Path, projector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenizers_visual.inversion.retrieval.LARGE", 3)
    index = tmp_path / "index.sqlite"
    asked = ("retrieve", "--gallery", gallery, "--query", gallery / "0.png", "--text", "is red",
             "--projector", projector, "--index", index, "--device", "cpu", "--json")  # fmt: skip
    exact = json.loads(run(*asked, "--exact").stdout)["results"]
    assert not list(tmp_path.glob("*.faiss"))
    found = json.loads(run(*asked).stdout)["results"]
    assert len(list(tmp_path.glob("*.faiss"))) == 1
    assert [row["file"] for row in found] == [row["file"] for row in exact]


def test_unreadable_pictures_are_counted_and_left_out(run: Callable, gallery: Path, projector: Path) -> None:
    (gallery / "broken.png").write_bytes(b"no picture")
    (gallery / "cut.png").write_bytes((gallery / "0.png").read_bytes()[:200])
    asked = (
        "retrieve",
        "--gallery",
        gallery,
        "--query",
        gallery / "0.png",
        "--text",
        "is red",
        "--projector",
        projector,
    )
    result = run(*asked, "--device", "cpu")
    assert "2 of 8 pictures cannot be read" in result.stderr
    assert "broken.png" in result.stderr
    assert {Path(name).name for name in json.loads(run(*asked, "--json").stdout)["gallery"]["skipped"]} == {
        "broken.png", "cut.png",
    }  # fmt: skip


def test_what_cannot_work_is_told_and_nothing_is_lost(
    run: Callable, gallery: Path, projector: Path, tmp_path: Path, tiny: Path
) -> None:
    def refused(expected: str, **changes: Any) -> None:
        options = {"gallery": gallery, "query": gallery / "0.png", "text": "is red", "projector": projector, **changes}
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        assert expected in run("retrieve", *arguments, "--device", "cpu", expect=1).stderr.replace("\n", " ")

    (tmp_path / "empty").mkdir()
    refused("no images at", gallery=tmp_path / "empty")
    refused("expected a folder of pictures", gallery=tmp_path / "none")
    refused("expected a picture", query=tmp_path / "none.png")
    refused("expected a projector, got a", projector=tiny)
    refused("at most 77 tokens", text="word " * 90)
    refused("ends in .png", out=tmp_path / "sheet.jpg")
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "x.png").write_bytes(b"no picture")
    refused("expected a gallery of at least one readable picture", gallery=tmp_path / "unreadable")
    index = tmp_path / "index.sqlite"
    run("retrieve", "--gallery", gallery, "--query", gallery / "0.png", "--text", "is red", "--projector", projector,
        "--index", index, "--device", "cpu")  # fmt: skip
    kept = index.read_bytes()
    other = save_tiny_clip(tmp_path / "other_clip")
    zoo.save_model(
        zoo.create_model("lincir_vit_l14", backbone=other, image_dim=24, word_dim=16, hidden_dim=8), tmp_path / "other"
    )
    refused("choose another file", projector=tmp_path / "other", index=index)
    assert index.read_bytes() == kept


def test_a_text_encoder_of_rtd_answers_otherwise(
    run: Callable, gallery: Path, projector: Path, clip: str, tmp_path: Path
) -> None:
    pair = load_pair(clip)
    with torch.no_grad():
        pair.model.text_projection.copy_(pair.model.text_projection.flip(0))  # type: ignore[union-attr, operator]
    save_text_encoder(pair, tmp_path / "text_encoder.safetensors")
    asked = ("retrieve", "--gallery", gallery, "--query", gallery / "0.png", "--text", "is red",
             "--projector", projector, "--json", "--device", "cpu")  # fmt: skip
    plain = json.loads(run(*asked).stdout)["results"]
    trained = json.loads(run(*asked, "--text-encoder", tmp_path / "text_encoder.safetensors").stdout)["results"]
    assert {row["file"] for row in plain} == {row["file"] for row in trained}
    assert [row["score"] for row in plain] != pytest.approx([row["score"] for row in trained])


@pytest.fixture(scope="module")
def freedom(clip: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """FreeDom for small galleries, and a vocabulary."""
    folder = tmp_path_factory.mktemp("freedom")
    model = zoo.create_model("freedom_vit_l14", backbone=clip, neighbours=2, words_per_image=2, words=3)
    zoo.save_model(model, folder / "model")
    (folder / "words.csv").write_text('dog,/m/1\n"a red, old car",/m/2\ncat,/m/3\nhouse,/m/4\n')
    return folder / "model", folder / "words.csv"


def test_freedom_asks_by_the_words_that_the_gallery_votes_for(
    run: Callable, gallery: Path, clip: str, freedom: tuple[Path, Path]
) -> None:
    model, vocabulary = freedom
    asked = ("retrieve", "--gallery", gallery, "--query", gallery / "0.png", "--text", "sketch", "--device", "cpu")
    result = json.loads(run(*asked, "--projector", model, "--vocabulary", vocabulary, "--json").stdout)
    pair, preprocess, words = load_pair(clip), ImageInput(32), ["dog", "a red, old car", "cat", "house"]
    files = sorted(gallery.rglob("*.png"))
    features = torch.stack([pair.image_features(preprocess(file)[None])[0] for file in files])
    method = zoo.create_model("freedom_vit_l14", backbone=clip, neighbours=2, words_per_image=2, words=3)
    given = (features[[files.index(gallery / "0.png")]], features, (words, pair.text_features(words)))
    direction = method.compose(pair, *given, "sketch")
    cosines = torch.nn.functional.cosine_similarity(direction, features)
    order = [place for place in cosines.argsort(descending=True).tolist() if files[place].name != "0.png"]
    assert [Path(row["file"]).name for row in result["results"]] == [files[place].name for place in order]
    assert [row["score"] for row in result["results"]] == pytest.approx(cosines[order].tolist(), abs=1e-5)
    labels = method.invert(given[0], features, given[2][1]).labels[0].tolist()
    assert result["prompt"] == ", ".join(words[label] for label in labels if label >= 0) + ": sketch"
    told = run(*asked, "--projector", model, expect=1).stderr
    assert "--vocabulary: expected a file of words" in told
    assert "expected at least 20 images in memory, got 6" in run(
        *asked, "--projector", saved_freedom(clip, model.parent / "published"), "--vocabulary", vocabulary, expect=1
    ).stderr.replace("\n", " ")


def saved_freedom(clip: str, folder: Path) -> Path:
    zoo.save_model(zoo.create_model("freedom_vit_l14", backbone=clip, words_per_image=2), folder)
    return folder


# -- eval-cir ------------------------------------------------------------------------------------------------------


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Two classes in two domains: a query and an index image of each."""
    folder, rows = tmp_path / "domains", ["file,class,domain,role"]
    folder.mkdir()
    for number, (kind, domain, role) in enumerate(
        (kind, domain, role) for kind in ("dog", "cat") for domain in ("photo", "sketch") for role in ("query", "index")
    ):
        picture(32, 32, number).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{kind},{domain},{role}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def test_domain_conversion_of_all_methods_from_kept_features(
    run: Callable, domains: Path, projector: Path, clip: str, tmp_path: Path
) -> None:
    asked = ("eval-cir", "domains", domains, "--images", domains, "--projector", projector, "--device", "cpu",
             "--features", tmp_path / "f.sqlite", "--methods", "composed,image,text,sum")  # fmt: skip
    first = json.loads(run(*asked, "--json").stdout)
    assert set(first["metrics"]) == {"composed", "image", "text", "sum"}
    assert set(first["metrics"]["composed"]) == {"photo to sketch", "sketch to photo", "mean"}
    assert (first["prompt"], first["clip"]) == ("a sketch of $", clip)
    mean = first["metrics"]["image"]["mean"]["mAP"]
    assert mean == pytest.approx(
        sum(first["metrics"]["image"][part]["mAP"] for part in ("photo to sketch", "sketch to photo")) / 2
    )
    for image in domains.glob("*.png"):
        image.unlink()
    assert json.loads(run(*asked, "--json").stdout)["metrics"] == first["metrics"]
    table = run(*asked).stdout
    assert "photo to sketch" in table
    assert "trapezoids" in table


def test_freedom_is_a_method_beside_the_others(
    run: Callable, domains: Path, projector: Path, clip: str, freedom: tuple[Path, Path], tmp_path: Path
) -> None:
    model, vocabulary = freedom
    asked = ("eval-cir", "domains", domains, "--images", domains, "--device", "cpu", "--json",
             "--features", tmp_path / "f.sqlite", "--vocabulary", vocabulary)  # fmt: skip
    found = json.loads(run(*asked, "--projector", model).stdout)["metrics"]
    assert set(found) == {"composed"}
    pair, preprocess, words = load_pair(clip), ImageInput(32), ["dog", "a red, old car", "cat", "house"]
    (part, _) = read_benchmark("domains", domains, domains)
    features = torch.stack(
        [pair.image_features(preprocess(domains / picture.file)[None])[0] for picture in part.pictures]
    )
    method = zoo.create_model("freedom_vit_l14", backbone=clip, neighbours=2, words_per_image=2, words=3)
    queries = features[[query.reference for query in part.queries]]
    memory = features[list(part.gallery)]
    direction = method.compose(pair, queries, memory, (words, pair.text_features(words)), "sketch")
    expected = part.metrics(torch.nn.functional.normalize(direction, dim=-1), features)
    assert found["composed"]["photo to sketch"] == pytest.approx(expected)
    both = json.loads(run(*asked, "--projector", model, "--methods", "freedom,image,sum").stdout)["metrics"]
    assert both["freedom"] == found["composed"]
    assert set(both) == {"freedom", "image", "sum"}
    (kept,) = (tmp_path / "zoo_cache" / "features").glob("*.sqlite")  # the words' features
    stamp = kept.stat().st_mtime_ns
    run(*asked, "--projector", model)
    assert kept.stat().st_mtime_ns == stamp
    # of the published settings four images are too few
    told = run(*asked, "--clip", clip, "--methods", "freedom", expect=1).stderr.replace("\n", " ")
    assert "expected at least 20 images in memory, got 4" in told
    told = run("eval-cir", "domains", domains, "--images", domains, "--clip", clip, "--methods", "freedom", expect=1)
    assert "--vocabulary: expected a file of words" in told.stderr


def cirr(folder: Path, split: str) -> Path:
    names = [f"dev-{i}" for i in range(6)]
    entry = {"pairid": 3, "reference": "dev-0", "caption": "is red", "img_set": {"members": names}}
    entry |= {"target_hard": "dev-1"} if split == "val" else {}
    (folder / f"cap.rc2.{split}.json").write_text(json.dumps([entry]))
    (folder / f"split.rc2.{split}.json").write_text(json.dumps({name: f"./{name}.png" for name in names}))
    for seed, name in enumerate(names):
        picture(32, 32, seed).save(folder / f"{name}.png")
    return folder


def test_a_hidden_split_becomes_files_for_the_server(run: Callable, projector: Path, tmp_path: Path) -> None:
    folder = cirr(tmp_path, "test1")
    asked = (
        "eval-cir",
        "cirr",
        folder,
        "--images",
        folder,
        "--projector",
        projector,
        "--split",
        "test1",
        "--device",
        "cpu",
    )
    assert "expected --submission" in run(*asked, expect=1).stderr.replace("\n", " ")
    run(*asked, "--submission", tmp_path / "out")
    whole = json.loads((tmp_path / "out" / "cirr_recall.json").read_text())
    assert set(whole) == {"version", "metric", "3"}
    assert sorted(whole["3"]) == [f"dev-{i}" for i in range(1, 6)]
    assert len(json.loads((tmp_path / "out" / "cirr_recall_subset.json").read_text())["3"]) == 3


def test_missing_images_are_counted_and_the_others_kept(run: Callable, projector: Path, tmp_path: Path) -> None:
    folder = cirr(tmp_path, "val")
    (folder / "dev-4.png").rename(folder / "away.png")
    asked = ("eval-cir", "cirr", folder, "--images", folder, "--projector", projector, "--device", "cpu", "--json")
    told = run(*asked, expect=1).stderr.replace("\n", " ")
    assert "expected all 6 images of the benchmark, and 1 cannot be read" in told
    assert "dev-4.png" in told
    (folder / "away.png").rename(folder / "dev-4.png")
    metrics = json.loads(run(*asked).stdout)["metrics"]["composed"]["CIRR val"]
    assert metrics["R@5"] == 100  # five images are left beside the reference


def test_wrong_arguments_are_told(run: Callable, domains: Path, projector: Path) -> None:
    def refused(expected: str, *arguments: object) -> None:
        assert expected in run("eval-cir", *arguments, "--images", domains, expect=1).stderr.replace("\n", " ")

    refused("--methods: expected some of composed", "domains", domains, "--methods", "magic")
    refused("--projector: expected the name of a projector", "domains", domains)
    refused("expected --projector, or --clip", "domains", domains, "--methods", "image")
    refused("expected a benchmark among", "coco", domains, "--projector", projector)
    refused("expected a folder of annotation files", "cirr", domains / "none", "--projector", projector)
