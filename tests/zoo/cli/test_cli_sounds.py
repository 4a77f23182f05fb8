"""The verbs on recordings: `zoo roundtrip`, `compare` and `demo`, and how Opus is measured beside a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import zoo
from zoo.cli.common import DEFAULT_MODEL, DEFAULT_SPEECH_MODEL, default_model
from zoo.cli.samples import synthetic_voice
from zoo.cli.sounds import FINEST, STEP, codec2_at_least, default_metrics, hear, opus, opus_at_least
from zoo.media.spectrogram import spectrogram_picture

SMALL = {
    "encoder_widths": (8, 8),
    "encoder_blocks": (1, 1),
    "decoder_widths": (8, 8),
    "decoder_blocks": (1, 1),
    "envelope_bands": 0,
    "quantizer": {"kind": "residual", "level": {"kind": "vector", "codebook_size": 16, "dim": 4}, "num_levels": 3},
}


@pytest.fixture(scope="session")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec with random weights; 200 bits per second a codebook."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "codec"
    config = zoo.create_model(DEFAULT_SPEECH_MODEL, pretrained=False).config
    model = zoo.create_model(DEFAULT_SPEECH_MODEL, pretrained=False)
    model = type(model)(config.replace(**SMALL))
    model.name = DEFAULT_SPEECH_MODEL
    zoo.save_model(model, folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, synthetic_voice(16000, "ai"), 16000)
    return path


def test_roundtrip_writes_the_sound_and_both_spectrograms(
    run: Callable, codec: Path, clip: Path, tmp_path: Path
) -> None:
    (line,) = run("roundtrip", clip, "--model", codec, "--out", tmp_path / "out", "--json").stdout.splitlines()
    record = json.loads(line)
    sound, rate = soundfile.read(record["sound"])
    assert (len(sound), rate) == (16000, 16000)
    assert Path(record["sound"]).name == f"clip_{DEFAULT_SPEECH_MODEL}.wav"
    with Image.open(record["picture"]) as picture:
        assert picture.width > 2 * 100  # two spectrograms of a column each 10 ms
        assert picture.height > 256
    assert record["tokens"] == 3 * 50
    assert record["bits"] == record["tokens"] * 4
    assert record["bits_per_second"] == 600
    assert set(default_metrics()) <= set(record)
    model = zoo.create_model(f"local-dir:{codec}")
    heard = hear(model, clip)
    assert record["si_sdr"] == pytest.approx(heard.quality["si_sdr"], abs=1e-6)
    np.testing.assert_allclose(sound, heard.sound[0].numpy(), atol=1.01 / 32768)


def test_a_bit_rate_chooses_codebooks(run: Callable, codec: Path, clip: Path, tmp_path: Path) -> None:
    options = ("--model", codec, "--out", tmp_path, "--bitrate", 450, "--json")
    assert json.loads(run("roundtrip", clip, *options).stdout)["bits_per_second"] == 400
    assert "at least 200 bits" in run("roundtrip", clip, *options[:-2], 100, expect=1).stderr


def test_options_of_the_other_kind_are_told(
    run: Callable, codec: Path, tiny: Path, clip: Path, photo: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path)
    assert "has no tiles" in run("roundtrip", clip, "--model", codec, "--tile", 64, *out, expect=1).stderr
    assert "no model of recordings" in run("roundtrip", photo, "--model", tiny, "--bitrate", 9, *out, expect=1).stderr
    assert "--bitrates" in run("compare", tiny, photo, "--bitrates", "9", expect=1).stderr
    assert "--plot" in run("compare", codec, clip, "--plot", tmp_path / "a.png", expect=1).stderr


def test_the_default_model_is_that_of_the_files(clip: Path, photo: Path, tmp_path: Path) -> None:
    sounds, images = tmp_path / "sounds", tmp_path / "images"
    for folder, file in ((sounds, clip), (images, photo)):
        folder.mkdir()
        file.rename(folder / file.name)
    assert default_model([str(sounds)]) == default_model([str(sounds / "*.wav")]) == DEFAULT_SPEECH_MODEL
    assert default_model([str(sounds / "clip.wav"), "other.flac"]) == DEFAULT_SPEECH_MODEL
    for others in ([str(images)], [str(images / photo.name)], [str(sounds), str(images)], [str(tmp_path / "none")]):
        assert default_model(others) == DEFAULT_MODEL


def test_compare_puts_opus_at_no_fewer_bits_beside_each_rate(
    run: Callable, codec: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "numbers.json"
    shown = run("compare", codec, clip, "--bitrates", "200,600", "--json", out, "--markdown").stdout.splitlines()
    content = json.loads(out.read_text())
    names = [row["name"] for row in content["rows"]]
    assert names == [
        f"{DEFAULT_SPEECH_MODEL} at 0.2 kbit/s", "Opus beside it",
        f"{DEFAULT_SPEECH_MODEL} at 0.6 kbit/s", "Opus beside it",
    ]  # fmt: skip
    assert [row["bits_per_second"] for row in content["rows"][::2]] == [200, 600]
    assert content["rows"][1]["bits_per_second"] > 600
    assert content["rows"][1]["quality"]["si_sdr"] > content["rows"][0]["quality"]["si_sdr"]
    assert sum(line.startswith("|") for line in shown) == 2 + 4
    assert any(line.startswith("- Opus: ") for line in shown)
    rows = run("compare", codec, clip, "--codecs", "none", "--json", out)
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == [DEFAULT_SPEECH_MODEL]
    assert "Opus" not in rows.stdout


def test_opus_gets_the_fewest_bits_that_are_enough() -> None:
    voice = torch.from_numpy(synthetic_voice(16000, "ae"))[None]
    least = opus(voice, 16000, 1.0)
    assert opus_at_least(voice, 16000, 1).bits == least.bits
    wanted = least.bits + 1500
    found = opus_at_least(voice, 16000, wanted)
    assert found.bits >= wanted
    assert found.setting is not None
    assert opus(voice, 16000, found.setting + STEP).bits < wanted
    assert found.sound.shape == voice.shape
    assert FINEST < found.setting < 1
    with pytest.raises(ValueError, match="a sample rate of"):
        opus(voice, 22050, 1.0)


@pytest.mark.skipif(shutil.which("c2enc") is None, reason="needs the programs of Codec2")
def test_codec2_has_the_next_rate_and_comes_in_time() -> None:
    voice = torch.from_numpy(synthetic_voice(16000, "aeiou"))[None]
    assert [codec2_at_least(voice, 16000, round(2.5 * rate)).bits for rate in (500, 1500, 6000)] == [3000, 4000, 8000]
    sound = codec2_at_least(voice, 16000, 8000).sound
    assert sound.shape == voice.shape
    energies = [signal.square().unfold(-1, 800, 800).sum(-1)[0].sqrt() for signal in (sound, voice)]
    assert float(torch.corrcoef(torch.stack(energies))[0, 1]) > 0.8


def test_demo_has_a_voice_to_hear(run: Callable, codec: Path, tmp_path: Path) -> None:
    run("demo", "--model", codec, "--out", tmp_path / "demo")
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<audio") == 2
    assert "media-src data:" in page
    sound, _ = soundfile.read(tmp_path / "demo" / f"voice_{DEFAULT_SPEECH_MODEL}.wav")
    assert len(sound) == 40000


def test_a_spectrogram_shows_where_the_energy_is() -> None:
    tone = torch.sin(2 * torch.pi * 2000 * torch.arange(16000) / 16000)[None]
    picture = spectrogram_picture(tone, 16000)
    assert picture.shape[::2] == (256, 3)
    assert picture.shape[1] in (100, 101, 102)
    brightness = picture.astype(int).sum(-1)[:, 50]
    assert brightness.argmax() == pytest.approx(255 - 2000 / 8000 * 256, abs=1)
    darker = spectrogram_picture(tone * 0.1, 16000, loudest=float(20 * np.log10(128)))
    assert darker.astype(int).sum() < picture.astype(int).sum()


def test_the_voice_is_the_same_everywhere_and_within_range() -> None:
    one, again = synthetic_voice(16000), synthetic_voice(16000)
    assert np.array_equal(one, again)
    assert one.shape == (40000,)
    assert 0.45 < np.abs(one).max() <= 0.5
