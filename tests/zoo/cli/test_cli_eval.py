"""`zoo eval`: the numbers of a model over a data set, of whatever kind, with their protocol."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_pictures import picture
from PIL import Image

import zoo
from zoo.media.image import evaluation_crop


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    for seed, size in enumerate([(40, 48), (40, 48), (56, 40)]):
        picture(*size, seed=seed).save(path / f"{seed}.png")
    return path


def numbers(content: dict) -> dict[str, float]:
    return {entry["name"]: entry["value"] for entry in content["metrics"]}


def evaluated(run: Callable, *arguments: object) -> dict:
    return json.loads(run("eval", *arguments, "--json", "-").stdout)


def test_the_numbers_are_those_of_encode_and_decode(run: Callable, tiny: Path, folder: Path) -> None:
    content = evaluated(run, tiny, folder, "--crop", 32)
    model = zoo.create_model(f"local-dir:{tiny}")
    errors = []
    for path in sorted(folder.iterdir()):
        pixels = torch.from_numpy(evaluation_crop(np.asarray(Image.open(path)), (32, 32))).permute(2, 0, 1)[None]
        low, high = model.spec.value_range
        signal = model.decode(model.encode(pixels / 255 * (high - low) + low))
        got = ((signal - low) / (high - low) * 255 + 0.5).floor().clamp(0, 255)
        errors.append(10 * np.log10(255**2 / float((got - pixels).double().square().mean())))
    assert numbers(content)["psnr"] == pytest.approx(np.mean(errors), abs=1e-4)
    tokens = model.encode(torch.zeros(1, 3, 32, 32))
    assert numbers(content)["bits_per_pixel"] == tokens.bits[0] / 32**2
    data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    for entry in content["metrics"]:
        protocol = entry["protocol"]
        assert hashlib.sha256(data).hexdigest() in protocol["sha256"]
        assert protocol["crop"].startswith("lanczos-centre: ")
        assert "32 x 32" in protocol["crop"]
        assert protocol["count"] == 3
        assert model.source.fingerprint in protocol["model"]
        assert "float32" in protocol["dtype"]
        assert protocol["metric"]


def test_images_of_any_size_are_measured_at_it(run: Callable, tiny: Path, folder: Path) -> None:
    content = evaluated(run, tiny, folder)
    protocol = content["metrics"][0]["protocol"]
    assert protocol["sizes"] == "48 x 40 (2), 40 x 56 (1)"
    assert protocol["crop"].startswith("none")


def test_folder_shards_and_parquet_give_the_same_numbers_and_hash(run: Callable, tiny: Path, folder: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    paths = sorted(folder.iterdir())
    with tarfile.open(folder.parent / "shard.tar", "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    parquet.write_table(pa.table({"image": rows}), folder.parent / "images.parquet")
    results = [
        evaluated(run, tiny, place, "--crop", 32, "--batch-size", size)
        for place, size in ((folder, 8), (folder.parent / "shard.tar", 2), (folder.parent / "images.parquet", 1))
    ]
    for other in results[1:]:
        assert numbers(other) == pytest.approx(numbers(results[0]), rel=1e-5)
        assert other["metrics"][0]["protocol"]["sha256"] == results[0]["metrics"][0]["protocol"]["sha256"]


def test_a_table_with_its_protocol(run: Callable, tiny: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    shown = run("eval", tiny, folder, "--metrics", "psnr,codebook", "--limit", 2, "--json", out).stdout
    assert {"psnr", "usage", "perplexity", "entropy_bits", "dead"} == set(numbers(json.loads(out.read_text())))
    assert json.loads(out.read_text())["metrics"][0]["protocol"]["count"] == 2
    for text in ("psnr", "perplexity", "sha256", "weights", "images: 2", "8-bit RGB"):
        assert text in shown


def test_weights_of_a_checkpoint_file(run: Callable, tiny: Path, folder: Path) -> None:
    arguments = [folder, "--crop", 32, "--metrics", "psnr"]
    saved = evaluated(run, tiny, *arguments)
    model = zoo.create_model(f"local-dir:{tiny}")
    published = zoo.create_model("compact_f8.photos", pretrained=False)
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.mul_(0.5)
    file = zoo.save_model(published, folder.parent / "halved")
    loaded = evaluated(run, "compact_f8.photos", *arguments, "--checkpoint", file)
    assert numbers(loaded) != numbers(saved)
    assert published.source.fingerprint in loaded["metrics"][0]["protocol"]["model"]
    assert model.source.fingerprint in saved["metrics"][0]["protocol"]["model"]


def test_what_cannot_be_read_is_named_counted_and_skipped(run: Callable, tiny: Path, folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (folder / "notes.txt").write_text("text")
    result = run("eval", tiny, folder, "--metrics", "psnr", "--json", "-")
    content = json.loads(result.stdout)
    assert {Path(name).name for name in content["skipped"]} == {"broken.jpg", "notes.txt"}
    assert content["metrics"][0]["protocol"]["images"] == "3; 2 files skipped"
    assert "broken.jpg" in result.stderr
    assert "notes.txt" in result.stderr


def test_nothing_that_can_be_read_is_an_error(run: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    assert "broken.jpg" in run("eval", tiny, tmp_path, expect=1).stderr
    assert "no images at" in run("eval", tiny, tmp_path / "nowhere", expect=1).stderr


def test_wrong_options_are_told(run: Callable, tiny: Path, folder: Path) -> None:
    assert "lpips_alex" in run("eval", tiny, folder, "--metrics", "lpips", expect=1).stderr
    assert "NETWORK=FILE" in run("eval", tiny, folder, "--weights", "inception", expect=1).stderr
    assert "ms_ssim: expected images" in run("eval", tiny, folder, "--metrics", "ms_ssim", expect=1).stderr
