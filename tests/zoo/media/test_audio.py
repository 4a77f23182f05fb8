"""Reading and writing real audio with zoo.media: formats, rates, channels, and files that are not what they seem."""

import struct
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import media
from zoo.media import MediaError, audio


@dataclass(frozen=True)
class Spec:
    modality: str = "audio"
    channels: int = 1
    value_range: tuple[float, float] = (-1.0, 1.0)
    sample_rate: int | None = 16000
    size: tuple[int, ...] | None = None
    multiple: int = 1


def tone(seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """(T, C) float32: a chord that fades, other in each channel."""
    t = np.arange(int(seconds * rate)) / rate
    waves = [0.4 * np.sin(2 * np.pi * 440 * (c + 1) * t) * np.exp(-t) for c in range(channels)]
    return np.stack(waves, 1).astype(np.float32)


def written(samples: np.ndarray, rate: int = 16000, kind: str = "WAV", coding: str | None = None) -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=coding)
    return buffer.getvalue()


# -- what comes out


def test_sixteen_bits_survive_wav_and_flac(tmp_path: Path) -> None:
    levels = np.arange(-32768, 32768, dtype=np.int16)
    batch = media.load(levels, Spec())
    assert batch.shape == (1, 1, 65536)
    assert (batch.min().item(), batch.max().item()) == (-1.0, 32767 / 32768)
    for suffix in (".wav", ".flac"):
        (path,) = media.save(batch, tmp_path / f"levels{suffix}", Spec())
        assert torch.equal(media.load(path, Spec()), batch)
        assert soundfile.info(path).samplerate == 16000


def test_one_recording_in_every_form_gives_one_batch(tmp_path: Path) -> None:
    samples = np.rint(tone() * 32768).astype(np.int16)[:, 0]
    path = tmp_path / "tone.wav"
    soundfile.write(path, samples, 16000)
    unit = samples / 32768
    wide = samples.astype(np.int32) << 16
    forms = [path, str(path), path.read_bytes(), samples, samples[:, None], unit, unit.astype(np.float32), wide]
    forms += [
        torch.from_numpy(samples),
        torch.from_numpy(unit)[None],
        torch.from_numpy(unit)[None, None],
        [path],
        (unit,),
    ]
    expected = media.load(path, Spec())
    assert expected.dtype == torch.float32
    assert expected.shape == (1, 1, 8000)
    for form in forms:
        assert torch.equal(media.load(form, Spec()), expected)
    assert media.load([path, samples], Spec()).shape == (2, 1, 8000)
    assert media.load(torch.from_numpy(unit).expand(3, 1, -1), Spec()).shape == (3, 1, 8000)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".ogg", 0.05), (".opus", 0.05), (".mp3", 0.05)])
def test_lossy_formats_give_the_recording_back_but_for_their_loss(
    suffix: str, tolerance: float, tmp_path: Path
) -> None:
    batch = torch.from_numpy(tone(1.0).T)[None]
    (path,) = media.save(batch, tmp_path / f"tone{suffix}", Spec())
    again = media.load(path, Spec())
    assert abs(again.shape[-1] - 16000) <= 2400  # mp3 pads
    shared = min(again.shape[-1], 16000)
    shifts = range(0, again.shape[-1] - shared + 1, 1)
    errors = [(again[..., s : s + shared] - batch[..., :shared]).square().mean().sqrt().item() for s in shifts]
    assert min(errors) < tolerance


def test_opus_gets_a_rate_that_it_has(tmp_path: Path) -> None:
    batch = torch.zeros(1, 1, 44100)
    (path,) = media.save(batch, tmp_path / "silence.opus", Spec(sample_rate=44100))
    assert soundfile.info(path).samplerate == 48000
    assert media.load(path, Spec(sample_rate=44100)).shape[-1] == 44100


def test_channels_are_mixed() -> None:
    stereo = tone(channels=2)
    mono = media.load(stereo, Spec())
    np.testing.assert_allclose(mono[0, 0].numpy(), stereo.mean(1), atol=1e-7)
    both = media.load(stereo, Spec(channels=2))
    np.testing.assert_array_equal(both[0].numpy(), stereo.T)
    assert torch.equal(media.load(tone(), Spec(channels=2)), media.load(tone(), Spec()).expand(1, 2, -1))
    with pytest.raises(MediaError, match="expected 1 or 2 channels, got 6"):
        media.load(tone(channels=6), Spec(channels=2))


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_rates_are_changed(rate: int) -> None:
    there = tone(0.5, rate)
    batch = media.load(there, Spec(), sample_rate=rate)
    assert batch.shape == (1, 1, 8000)
    middle = slice(400, -400)
    np.testing.assert_allclose(batch[0, 0, middle].numpy(), tone(0.5)[middle, 0], atol=1e-4)
    assert torch.equal(media.load(written(there, rate, coding="FLOAT"), Spec()), batch)
    np.testing.assert_array_equal(batch[0, 0].numpy(), soxr.resample(there, rate, 16000, "VHQ")[:, 0])


def test_overshoot_is_clipped_and_another_scale_refused() -> None:
    assert media.load(np.float32([0.5, 1.2, -1.5]), Spec())[0, 0].tolist() == [0.5, 1.0, -1.0]
    with pytest.raises(MediaError, match=r"expected float samples in \[-1, 1\], got -4096 to 32767"):
        media.load(np.float64([-4096, 32767]), Spec())


def test_another_range() -> None:
    spec = Spec(value_range=(0.0, 1.0))
    batch = media.load(np.int16([-32768, 0, 16384]), spec)
    assert batch[0, 0].tolist() == [0.0, 0.5, 0.75]


@settings(max_examples=12, deadline=None)
@given(frames=st.integers(1, 150_000), rate=st.sampled_from([8000, 16000, 44100]), piece=st.integers(1000, 70_000))
def test_blocks_join_to_the_whole(frames: int, rate: int, piece: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.wav"
    noise = np.random.default_rng(frames).uniform(-1, 1, (frames, 2)).astype(np.float32)
    soundfile.write(path, noise, rate, subtype="FLOAT")
    whole = media.load(path, Spec())
    parts = list(audio.blocks(path, Spec(), piece))
    assert all(part.shape[-1] == piece for part in parts[:-1])
    torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=0, atol=1e-6)


# -- what is refused


@pytest.mark.parametrize(("kind", "coding"), [("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS")])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(kind: str, coding: str | None, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000).astype(np.float32)
    whole = written(noise, 16000, kind, coding)
    assert media.load(whole, Spec()).shape == (1, 1, 48000)
    cut = whole[: int(len(whole) * share)]
    path = tmp_path / "cut.bin"
    path.write_bytes(cut)
    for source in (cut, path):
        with pytest.raises(MediaError, match=r"truncated|cannot read"):
            media.load(source, Spec())
    with pytest.raises(MediaError, match=r"truncated|cannot read"):
        list(audio.blocks(path, Spec(), 1000))


def test_a_wav_of_a_pipe_has_no_length_and_is_read() -> None:
    whole = bytearray(written(tone()))
    at = whole.index(b"data") + 4
    whole[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert media.load(bytes(whole), Spec()).shape == (1, 1, 8000)


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.write_bytes(b"")
    text.write_text("no audio")
    nothing = written(np.zeros((0, 1), np.float32))
    for source, message in [
        (tmp_path / "absent.wav", "no such file"),
        (tmp_path, "it is a folder"),
        (empty, "the file is empty"),
        (b"", "they are empty"),
        (text, "cannot read"),
        (nothing, "expected at least one sample, got 0"),
        (np.zeros(0, np.float32), "expected at least one sample"),
        (np.float32([0, np.nan]), "got nan"),
        (np.float32([0, np.inf]), "got 0 to inf"),
        (np.zeros(5, np.uint8), "expected int16, int32 or float samples, got uint8"),
        (np.zeros((2, 3, 4), np.float32), "expected an array"),
        (np.zeros((2, 8000), np.float32), "expected samples along time, got 8000 channels"),
        (torch.zeros(1, 2, 3, 4), "expected a tensor"),
        (7, "expected a path, bytes, array or tensor, got int"),
        ([], "expected at least one recording"),
        ([np.zeros(3, np.float32), np.zeros(4, np.float32)], "need equal lengths, got array 0 3, array 1 4"),
    ]:
        with pytest.raises(MediaError, match=message):
            media.load(source, Spec())


def test_bad_signals_are_not_written(tmp_path: Path) -> None:
    for signals, name, message in [
        (torch.zeros(1, 1, 5), "a.xyz", "expected a suffix among"),
        (torch.zeros(1, 2, 5), "a.wav", r"expected float signals \(B, 1, T\)"),
        (torch.zeros(1, 1, 0), "a.wav", "expected float signals"),
        (torch.zeros(1, 1, 5, dtype=torch.int16), "a.wav", "got torch.int16"),
        (torch.full((1, 1, 5), torch.nan), "a.wav", "got NaN"),
    ]:
        with pytest.raises(MediaError, match=message):
            media.save(signals, tmp_path / name, Spec())
    with pytest.raises(MediaError, match="cannot write"):
        media.save(torch.zeros(1, 1, 5), tmp_path / "a.mp3", Spec(sample_rate=12345))
    assert not list(tmp_path.iterdir())


def test_a_batch_becomes_numbered_files(tmp_path: Path) -> None:
    paths = media.save(torch.zeros(2, 1, 10), tmp_path / "new" / "a.flac", Spec())
    assert [path.name for path in paths] == ["a_0.flac", "a_1.flac"]
    assert audio.files(tmp_path) == paths
    assert audio.files(str(tmp_path / "new" / "*_1.flac")) == paths[1:]
    with pytest.raises(MediaError, match="no audio at"):
        audio.files(tmp_path / "*.mp3")


def test_a_sample_rate_is_of_audio_alone() -> None:
    with pytest.raises(MediaError, match="expected no sample rate"):
        media.load(np.zeros((4, 4), np.uint8), Spec(modality="image", channels=3), sample_rate=8000)
