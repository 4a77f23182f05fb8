"""`zoo encode`, `decode` and `roundtrip` on real files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_pictures import picture
from PIL import Image

import zoo
from zoo import media
from zoo.tokens import Tokens


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float64)


@pytest.mark.parametrize("suffix", ["ztok", "safetensors"])
def test_encoded_files_decode_to_what_the_model_gives(run: Callable, tiny: Path, photo: Path, suffix: str) -> None:
    line = run("encode", photo, "--model", tiny, "--format", suffix).stdout
    file = photo.with_suffix(f".{suffix}")
    model = zoo.create_model(f"local-dir:{tiny}")
    tokens = Tokens.load(file)
    assert tokens == model.encode(media.load(photo, model.spec))
    assert f"{23 * 25} tokens, {file.stat().st_size} bytes" in line
    run("decode", file, "--model", tiny)
    media.save(model.decode(tokens), photo.parent / "expected.png", model.spec)
    assert np.array_equal(read(photo.parent / "photo_decoded.png"), read(photo.parent / "expected.png"))


def test_the_model_named_in_the_tokens_is_the_default(run: Callable, tmp_path: Path, photo: Path) -> None:
    model = zoo.create_model("compact_f8.photos", pretrained=False)
    tokens = model.encode(media.load(photo, model.spec))
    tokens.save(tmp_path / "mine.ztok")
    stderr = run("decode", tmp_path / "mine.ztok", expect=1).stderr
    assert "compact_f8.photos" in stderr  # found by that name: without weights, or with weights that are not mine


def test_tokens_of_other_weights_are_refused(run: Callable, tiny: Path, other: Path, photo: Path) -> None:
    run("encode", photo, "--model", tiny)
    stderr = run("decode", photo.with_suffix(".ztok"), "--model", other, expect=1).stderr
    assert stderr.count("error: expected tokens of") == 1
    assert not photo.with_name("photo_decoded.png").exists()


def test_tokens_of_an_unknown_model_say_what_to_do(run: Callable, tiny: Path, photo: Path) -> None:
    import dataclasses

    run("encode", photo, "--model", tiny)
    file = photo.with_suffix(".ztok")
    tokens = Tokens.load(file)
    dataclasses.replace(tokens, source=zoo.tokens.Source("somebody", "0" * 16)).save(file)
    assert "--model" in run("decode", file, expect=1).stderr
    dataclasses.replace(tokens, source=None).save(file)
    assert "--model" in run("decode", file, expect=1).stderr
    run("decode", file, "--model", tiny)


def test_folders_keep_their_levels(run: Callable, tiny: Path, tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/deep/y.webp"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(40, 48).save(tmp_path / "in" / name)
    run("encode", tmp_path / "in", "--model", tiny, "--out", tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.ztok")}
    assert found == {"a/x.ztok", "b/x.ztok", "b/deep/y.ztok"}
    run("decode", tmp_path / "out", "--model", tiny, "--out", tmp_path / "back", "--format", "webp")
    assert Image.open(tmp_path / "back" / "b" / "deep" / "y_decoded.webp").size == (48, 40)
    run("encode", tmp_path / "in" / "*" / "x.png", "--model", tiny, "--out", tmp_path / "glob", expect=1)
    assert not (tmp_path / "glob").exists()


def test_two_results_of_one_name_are_refused_before_work(run: Callable, tiny: Path, tmp_path: Path) -> None:
    for name in ("x.png", "x.webp"):
        picture(40, 48).save(tmp_path / name)
    stderr = run("encode", tmp_path / "x.png", tmp_path / "x.webp", "--model", tiny, expect=1).stderr
    assert "x.png" in stderr
    assert "x.webp" in stderr
    assert not list(tmp_path.glob("*.ztok"))


def test_a_corrupt_image_is_named_and_the_others_are_done(run: Callable, tiny: Path, photo: Path) -> None:
    folder = photo.parent / "in"
    folder.mkdir()
    for name in ("a.jpg", "c.jpg"):
        (folder / name).write_bytes(photo.read_bytes())
    (folder / "b.jpg").write_bytes(photo.read_bytes()[:300])
    for verb in ("encode", "roundtrip"):
        out = photo.parent / verb
        result = run(verb, folder, "--model", tiny, "--out", out, expect=1)
        assert "b.jpg" in result.stderr
        assert "1 of 3 failed" in result.stderr
        assert sorted(path.name[0] for path in out.iterdir()) == ["a", "c"]


def test_no_files_and_no_device_are_clear(run: Callable, tiny: Path, photo: Path, tmp_path: Path) -> None:
    assert "no images at" in run("roundtrip", tmp_path / "nothing.jpg", "--model", tiny, expect=1).stderr
    assert "no token files at" in run("decode", tmp_path / "nothing.ztok", expect=1).stderr
    assert "--device" in run("encode", photo, "--model", tiny, "--device", "warp", expect=1).stderr
    assert "no images at" in run("compare", tiny, tmp_path / "nothing", expect=1).stderr


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 90 degrees clockwise to view
    picture(64, 96).save(path, exif=exif)


MODES: dict[str, tuple[str, Callable[[Path], None], tuple[int, int]]] = {
    "grey": ("png", lambda path: picture(64, 96).convert("L").save(path), (96, 64)),
    "bilevel": ("png", lambda path: picture(64, 96).convert("1").save(path), (96, 64)),
    "palette": ("gif", lambda path: picture(64, 96).convert("P").save(path), (96, 64)),
    "alpha": ("png", lambda path: picture(64, 96).convert("RGBA").save(path), (96, 64)),
    "grey with alpha": ("png", lambda path: picture(64, 96).convert("LA").save(path), (96, 64)),
    "CMYK": ("jpg", lambda path: picture(64, 96).convert("CMYK").save(path), (96, 64)),
    "16 bit": (
        "png",
        lambda path: Image.fromarray(np.linspace(0, 65535, 6144, dtype=np.uint16).reshape(64, 96)).save(path),
        (96, 64),
    ),
    "rotated": ("jpg", rotated, (64, 96)),
    "odd size": ("webp", lambda path: picture(37, 101).save(path), (101, 37)),
    "one pixel": ("png", lambda path: picture(1, 1).save(path), (1, 1)),
}


@pytest.mark.parametrize("kind", MODES)
def test_pictures_of_every_mode_and_size_go_round(run: Callable, tiny: Path, tmp_path: Path, kind: str) -> None:
    suffix, write, (width, height) = MODES[kind]
    path = tmp_path / f"photo.{suffix}"
    write(path)
    out = tmp_path / "out"
    (line,) = run("roundtrip", path, "--model", tiny, "--out", out, "--json").stdout.splitlines()
    record = json.loads(line)
    assert (record["width"], record["height"]) == (width, height)
    assert record["tokens"] == -(-width // 8) * -(-height // 8)
    assert record["bits"] == 16 * record["tokens"]
    assert record["bytes"] >= record["bits"] / 8
    assert record["bits_per_pixel"] == pytest.approx(8 * record["bytes"] / (width * height))
    assert ("ms_ssim" in record) == (min(width, height) >= 176)
    assert Path(record["picture"]) == out / "photo_compact_f8.photos.png"
    sheet = Image.open(record["picture"])
    assert sheet.width > 2 * width
    assert sheet.height > height


def test_roundtrip_numbers_are_those_of_the_pictures(run: Callable, tiny: Path, photo: Path) -> None:
    (line,) = run("roundtrip", photo, "--model", tiny, "--out", photo.parent, "--json").stdout.splitlines()
    record = json.loads(line)
    run("encode", photo, "--model", tiny)
    run("decode", photo.with_suffix(".ztok"), "--model", tiny)
    assert record["bytes"] == photo.with_suffix(".ztok").stat().st_size
    error = np.square(read(photo) - read(photo.with_name("photo_decoded.png"))).mean()
    assert record["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert 0 < record["ms_ssim"] < 1
    assert record["encode_seconds"] > 0
    assert record["device"]
    shown = run("roundtrip", photo, "--model", tiny, "--out", photo.parent).stdout
    assert f"psnr {record['psnr']:.2f} dB" in shown
    assert f"bytes {record['bytes']:,}" in shown


def test_json_has_one_line_per_picture_and_nothing_else(run: Callable, tiny: Path, tmp_path: Path) -> None:
    for name in "abc":
        picture(32, 32).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = run("roundtrip", tmp_path, "--model", tiny, "--out", tmp_path / "out", "--json", expect=1)
    assert [Path(json.loads(line)["file"]).stem for line in result.stdout.splitlines()] == ["a", "b", "c"]


def test_equal_pictures_give_valid_json(capsys: pytest.CaptureFixture) -> None:
    from zoo.cli.common import print_json
    from zoo.cli.measure import quality

    flat = np.zeros((32, 32, 3), np.uint8)
    print_json(quality(flat, flat))
    assert json.loads(capsys.readouterr().out) == {"psnr": None}


def test_the_model_named_by_its_file_is_the_same(run: Callable, tiny: Path, photo: Path) -> None:
    lines = [
        json.loads(run("roundtrip", photo, "--model", name, "--out", photo.parent, "--json").stdout)
        for name in (tiny, tiny / "model.safetensors", f"local-dir:{tiny}")
    ]
    assert len({line["fingerprint"] for line in lines}) == 1
    assert len({line["psnr"] for line in lines}) == 1
    assert torch.tensor(lines[0]["psnr"]).isfinite()


def test_tiles_give_the_same_files(run: Callable, tiny: Path, photo: Path, tmp_path: Path) -> None:
    run("encode", photo, "--model", tiny, "--out", tmp_path / "whole")
    run("encode", photo, "--model", tiny, "--out", tmp_path / "tiled", "--tile", 64)
    files = [tmp_path / folder / "photo.ztok" for folder in ("whole", "tiled")]
    assert files[0].read_bytes() == files[1].read_bytes()
    run("decode", files[0], "--model", tiny)
    run("decode", files[1], "--model", tiny, "--tile", 64)
    whole, tiled = (read(file.with_name("photo_decoded.png")) for file in files)
    assert abs(whole - tiled).max() <= 1  # where rounding differs
    results = [
        json.loads(run("roundtrip", photo, "--model", tiny, "--out", tmp_path, "--json", *tile).stdout)
        for tile in ((), ("--tile", 64))
    ]
    assert results[0]["bits"] == results[1]["bits"]
    assert results[0]["psnr"] == pytest.approx(results[1]["psnr"], abs=1e-3)


def test_tiles_of_a_wrong_size_are_refused(run: Callable, tiny: Path, photo: Path) -> None:
    assert "multiple of 8 pixels" in run("encode", photo, "--model", tiny, "--tile", 60, expect=1).stderr
