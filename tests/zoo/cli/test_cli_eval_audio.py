"""`zoo eval` and `zoo stab` of models of audio: the numbers are those of encode and decode, with their protocol."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import zoo
from zoo.metrics.audio import si_sdr

RATE = 16_000


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved codec of two codebooks with random weights."""
    torch.manual_seed(0)
    level = {"kind": "vector", "codebook_size": 16, "dim": 6}
    model = zoo.create_model(
        "dac_16khz", channels=2, strides=(4, 5), decoder_channels=8, decoder_strides=(5, 4), quantizer="residual",
        num_levels=2, level=level,
    )  # fmt: skip
    return zoo.save_model(model, tmp_path_factory.mktemp("models") / "codec").parent


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, seconds in (("a", 4.5), ("b", 0.5), ("c", 0.5)):
        soundfile.write(folder / f"{name}.wav", generator.uniform(-0.5, 0.5, int(RATE * seconds)), RATE)
    return folder


def numbers(content: dict) -> dict[str, float]:
    return {entry["name"]: entry["value"] for entry in content["metrics"]}


def test_the_numbers_are_those_of_encode_and_decode(run: Callable, codec: Path, clips: Path) -> None:
    content = json.loads(run("eval", codec, clips, "--json", "-").stdout)
    model = zoo.create_model(f"local-dir:{codec}")
    ratios, bits, seconds = [], 0, 0.0
    for path in sorted(clips.iterdir()):
        x = zoo.media.load(path, model.spec)
        tokens = model.encode(x)
        row = next(row for row in content["files"] if row["name"] == path.name)
        decoded, shift = model.decode(tokens).clamp(-1, 1)[0], row["shift"]
        length = x.shape[-1] - abs(shift)
        late, early = max(0, shift), max(0, -shift)
        ratios.append(si_sdr(decoded[:, late : late + length], x[0, :, early : early + length], RATE))
        assert row["values"]["si_sdr"] == pytest.approx(ratios[-1], abs=1e-4)
        bits, seconds = bits + tokens.bits[0], seconds + x.shape[-1] / RATE
    found = numbers(content)
    assert found["si_sdr"] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert found["bitrate"] == pytest.approx(bits / seconds)
    assert {"mel_distance", "stft_distance", "usage_0", "usage_1"} <= set(found)
    for entry in content["metrics"]:
        assert entry["protocol"]["metric"]
        assert entry["protocol"]["count"] == 3
        assert "3, 5.5 s" in entry["protocol"]["recordings"]


def test_a_bitrate_chooses_codebooks(run: Callable, codec: Path, clips: Path) -> None:
    model = zoo.create_model(f"local-dir:{codec}")
    content = json.loads(run("eval", codec, clips, "--bitrate", model.bitrates[0], "--json", "-").stdout)
    found = numbers(content)
    assert found["bitrate"] == pytest.approx(model.bitrates[0], rel=0.01)
    assert "usage" in found
    assert "fit into" in content["metrics"][0]["protocol"]["model"]


def test_what_cannot_be_read_is_told_and_left_out(run: Callable, codec: Path, clips: Path, tmp_path: Path) -> None:
    (clips / "broken.wav").write_bytes(b"RIFF")
    result = run("eval", codec, clips, "--metrics", "snr", "--json", tmp_path / "numbers.json")
    assert "broken.wav" in result.stderr
    assert "snr" in result.stdout
    content = json.loads((tmp_path / "numbers.json").read_text())
    assert list(content["skipped"]) == ["broken.wav"]
    assert "1 left out" in content["metrics"][0]["protocol"]["recordings"]
    assert "no recording" in run("eval", codec, clips / "broken.wav", expect=1).stderr


def test_senseless_options_are_refused(run: Callable, codec: Path, tiny: Path, clips: Path) -> None:
    assert "expected some of" in run("eval", codec, clips, "--metrics", "psnr", expect=1).stderr
    assert "expected no --crop" in run("eval", codec, clips, "--crop", 8, expect=1).stderr
    assert "expected no --bitrate" in run("eval", tiny, clips, "--bitrate", 8, expect=1).stderr
    assert "expected at least" in run("eval", codec, clips, "--bitrate", 8, expect=1).stderr


def test_stab_measures_each_codebook_or_whole_frames(run: Callable, codec: Path, clips: Path, tmp_path: Path) -> None:
    groups = tmp_path / "groups.csv"
    groups.write_text("file,group\nb.wav,one\nclips/c.wav,one\na.wav,two\n")
    options = ("--groups", groups, "--perturbations", "noise_10,speed_0.9", "--merges", 3, "--json", "-")
    found = numbers(content := json.loads(run("stab", codec, clips, *options).stdout))
    for level in (0, 1):
        assert found[f"tokens_per_second_{level}"] == pytest.approx(RATE / 20)
        assert found[f"bits_per_second_{level}"] == pytest.approx(RATE / 20 * 4)
        for name in ("utilisation", "huffman_efficiency", "robustness_noise_10", "context_agreement"):
            assert 0 <= found[f"{name}_{level}"] <= 1
        assert found[f"bpe_compression_{level}"] >= 1
        assert f"invariance_within_{level}" in found
    assert "not comparable with the paper" in content["metrics"][0]["protocol"]["style"]
    assert content["files"] == ["a.wav", "b.wav", "c.wav"]
    joint = numbers(json.loads(run("stab", codec, clips, *options, "--joint").stdout))
    assert joint["bits_per_second"] == pytest.approx(RATE / 20 * 8)


def test_stab_agrees_with_the_tokens(run: Callable, codec: Path, clips: Path) -> None:
    options = ("--perturbations", "", "--merges", 0, "--num-codebooks", 1, "--json", "-")
    found = numbers(json.loads(run("stab", codec, clips, *options).stdout))
    model = zoo.create_model(f"local-dir:{codec}")
    used = set()
    for path in clips.iterdir():
        used |= set(model.encode(zoo.media.load(path, model.spec), num_codebooks=1).indices.flatten().tolist())
    assert found["utilisation"] == len(used) / 16
    assert "robustness_noise_20" not in found


def test_stab_refuses_images_and_unknown_changes(run: Callable, codec: Path, tiny: Path, clips: Path) -> None:
    assert "measures models of audio" in run("stab", tiny, clips, expect=1).stderr
    assert "expected a perturbation such as" in run("stab", codec, clips, "--perturbations", "echo", expect=1).stderr
