"""`zoo sweep`: models over numbers of tokens on the same pixels as the codecs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_pictures import picture
from PIL import Image

import zoo
from zoo.cli.compare import CURVE


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved model of adaptive length with random weights."""
    torch.manual_seed(0)
    changes = {"channels": (8, 8, 8), "encoder_blocks": (0, 0, 0), "decoder_blocks": (0, 0, 0), "hidden": 8}
    folder = tmp_path_factory.mktemp("models") / "adaptive"
    zoo.save_model(zoo.create_model("spectral_f16.photos", pretrained=False, latent_channels=4, **changes), folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    for seed, size in enumerate([(64, 96), (48, 64)]):
        picture(*size, seed=seed).save(path / f"{seed}.png")
    return path


def test_rows_rise_from_one_token_to_all_and_codecs_follow(run: Callable, adaptive: Path, folder: Path) -> None:
    out, plot = folder.parent / "numbers.json", folder.parent / "curves.svg"
    shown = run(
        "sweep", adaptive, folder, "--perceptual", "none", "--json", out, "--plot", plot, "--out", folder.parent / "s"
    ).stdout  # fmt: skip
    content = json.loads(out.read_text())
    names = [row["name"] for row in content["rows"]]
    model = [f"spectral_f16.photos, {words}" for words in ("1 token", "2 tokens", "4 tokens", "8 tokens", "all tokens")]
    assert names == [*model, *["JPEG"] * len(CURVE), *["WebP"] * len(CURVE)]  # 24 and 12 tokens are all
    rates = [row["bits_per_pixel"] for row in content["rows"][:5]]
    assert rates == sorted(set(rates))
    for image in content["images"]:
        bytes_of = [result["file_bytes"] for result in image["results"]]
        width, height = Image.open(image["file"]).size
        cells = width * height // 256
        assert bytes_of[4] - bytes_of[3] == -(-28 * cells // 8) - 28  # 28 bits a token
        assert image["results"][0]["bits_per_pixel"] == 8 * bytes_of[0] / (width * height)
    assert "at the quality settings 0, 2" in content["protocol"]["webp"]
    assert plot.read_text().count("spectral_f16.photos") >= 1
    assert sorted(path.name for path in (folder.parent / "s").iterdir()) == ["0_swept.png", "1_swept.png"]
    assert "MS-SSIM" not in shown


def test_several_models_and_stated_numbers(run: Callable, adaptive: Path, tiny: Path, folder: Path) -> None:
    out = folder.parent / "numbers.json"
    run(
        "sweep", adaptive, tiny, folder, "--tokens", "3,all", "--codecs", "none", "--perceptual", "none", "--json", out,
        "--out", folder.parent / "s",
    )  # fmt: skip
    names = [row["name"] for row in json.loads(out.read_text())["rows"]]
    assert names == [
        "spectral_f16.photos, 3 tokens", "spectral_f16.photos, all tokens", "compact_f8.photos, all tokens"
    ]  # fmt: skip
    assert len(list((folder.parent / "s").iterdir())) == 4


def test_the_table_as_markdown(run: Callable, adaptive: Path, folder: Path) -> None:
    shown = run(
        "sweep", adaptive, folder, "--tokens", "1", "--codecs", "jpeg", "--perceptual", "none", "--markdown", "--size",
        32,
    ).stdout.splitlines()  # fmt: skip
    assert len([line for line in shown if line.startswith("|")]) == 2 + 1 + len(CURVE)
    assert any(line.startswith("- sizes: 32 x 32 (2)") for line in shown)


def test_wrong_arguments_are_told(run: Callable, adaptive: Path, folder: Path) -> None:
    for given in ("0", "12", "one", "2.5", "1,,2"):
        assert "(1 to 11), got" in run("sweep", adaptive, folder, "--tokens", given, expect=1).stderr
    assert "at least one model" in run("sweep", folder, expect=1).stderr
    assert "--plot: expected a file that ends in" in run("sweep", adaptive, folder, "--plot", "x.gif", expect=1).stderr
    assert "jpeg, webp" in run("sweep", adaptive, folder, "--codecs", "bpg", expect=1).stderr


# -- lengths of encoded files ------------------------------------------------------------------------------------------


def test_encode_takes_a_number_of_tokens_or_a_quality(run: Callable, adaptive: Path, folder: Path) -> None:
    photo = folder / "1.png"  # of 3 x 4 cells
    assert ": 5 tokens," in run("encode", photo, "--model", adaptive, "--num-tokens", 5).stdout
    assert zoo.Tokens.load(photo.with_suffix(".ztok")).indices.shape == (1, 5)
    assert ": 1 tokens," in run("encode", photo, "--model", adaptive, "--psnr", 1).stdout
    assert ": 12 tokens," in run("encode", photo, "--model", adaptive, "--psnr", 90).stdout
    run("decode", photo.with_suffix(".ztok"), "--model", adaptive, "--out", folder / "out")


def test_lengths_that_the_model_does_not_have_are_refused(
    run: Callable, adaptive: Path, tiny: Path, folder: Path
) -> None:
    photo = folder / "1.png"
    assert "from 1 to 12, got 13" in run("encode", photo, "--model", adaptive, "--num-tokens", 13, expect=1).stderr
    assert "does not take num_tokens" in run("encode", photo, "--model", tiny, "--num-tokens", 3, expect=1).stderr
    both = run("encode", photo, "--model", adaptive, "--num-tokens", 3, "--psnr", 20, expect=1).stderr
    assert "expected num_tokens or quality, got both" in both
    assert "got both" in run("encode", photo, "--model", adaptive, "--num-tokens", 3, "--tile", 16, expect=1).stderr
