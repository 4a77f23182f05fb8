"""Recordings as training batches: segments, augmentation, order, and files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from trainers.data import AudioFolderData
from trainers.data.audio import Recordings, Segments
from zoo.media import MediaError
from zoo.media.sources import Record
from zoo.metrics.loudness import loudness
from zoo.tokenizer import InputSpec

RATE = 8000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, seconds in enumerate((0.5, 0.8, 0.2)):
        time = np.arange(int(seconds * RATE)) / RATE
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * time), RATE)
    return tmp_path


def data(folder: Path, **settings: object) -> AudioFolderData:
    return AudioFolderData(str(folder), **{"sample_rate": RATE, "seconds": 0.4, "batch_size": 2, **settings})  # type: ignore[arg-type]


def test_batches_are_segments_and_short_recordings_end_in_zeros(folder: Path) -> None:
    batches = list(data(folder, passes=4).train_dataloader())
    assert len(batches) == 6
    assert all(batch.shape == (2, 1, 3200) and batch.dtype == torch.float32 for batch in batches)
    ends = [bool((segment[0, 1600:] == 0).all()) for batch in batches for segment in batch]
    assert sum(ends) == 4  # the short recording, once a pass


def test_several_places_are_dealt_in_equal_shares(folder: Path) -> None:
    """One long file of noise beside three of tones: half of the segments are noise."""
    (folder / "noise").mkdir()
    noise = folder / "noise" / "long.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).normal(size=4 * RATE), RATE)
    tones = str(folder / "[0-9].wav")
    module = AudioFolderData([tones, str(noise)], sample_rate=RATE, seconds=0.1, batch_size=2, passes=2)
    segments = torch.cat(list(module.train_dataloader()))
    assert len(segments) == 12  # 3 of either place in each of 2 passes
    spread = torch.fft.rfft(segments[:, 0]).abs().square()
    noisy = (spread.amax(1) / spread.sum(1)) < 0.3
    assert int(noisy.sum()) == 6
    records = module.train_source.decoded().signals  # type: ignore[union-attr]
    assert len({id(record) for record in records}) == 4  # in memory once
    assert len({segment.numpy().tobytes() for segment in segments[noisy]}) == 6
    with pytest.raises(ValueError, match="at least one place"):
        AudioFolderData([])


def test_order_and_augmentation_are_a_function_of_the_seed(folder: Path) -> None:
    random = {"gain": (-6.0, 6.0), "invert": True, "reverse": 0.5, "tilt": 3.0, "mix": 0.5, "speeds": (0.9, 1.0)}
    one, same, other = (torch.cat(list(data(folder, **random, seed=seed).train_dataloader())) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.abs().max()) <= 1


def test_a_speed_changes_pitch_and_length(folder: Path) -> None:
    module = data(folder, speeds=(1.0, 2.0), passes=1)
    module.train_dataloader()
    plain, fast = (module.train_source.read(index).data for index in (1, 4))
    assert len(fast) == pytest.approx(len(plain) / 2, abs=1)
    peaks = [np.abs(np.fft.rfft(signal[:, 0])).argmax() / len(signal) * RATE for signal in (plain, fast)]
    assert peaks == pytest.approx([400, 800], abs=3)


def test_other_rates_are_resampled(folder: Path) -> None:
    (batch,) = data(folder, sample_rate=16000, batch_size=3).train_dataloader()
    assert batch.shape == (3, 1, 6400)


def test_validation_takes_the_middle_of_every_recording_unchanged(folder: Path) -> None:
    module = data(folder, val=str(folder), gain=(-20.0, -10.0), batch_size=8)
    (batch,) = module.val_dataloader()
    longest, _ = soundfile.read(folder / "1.wav", dtype="float32")
    assert torch.equal(batch[1, 0], torch.from_numpy(longest[1600:4800]))


def test_augmentation_does_what_it_says() -> None:
    signal = np.random.default_rng(0).normal(size=(64, 1)).astype(np.float32) * 0.1
    record = Record("x", signal)

    class One:
        period = 1

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Record:
            return record

    def segment(key: int, **settings: object) -> np.ndarray:
        return Segments(64, One(), **settings)(record, (0, 0, key)).numpy().T  # type: ignore[arg-type]

    np.testing.assert_allclose(segment(0, gain=(6.0, 6.0)), signal * 10 ** (6 / 20), rtol=1e-5)
    np.testing.assert_array_equal(segment(0, reverse=1.0), signal[::-1])
    signs = {float(np.sign(segment(key, invert=True)[0, 0] / signal[0, 0])) for key in range(20)}
    assert signs == {-1.0, 1.0}
    tilted = segment(0, tilt=6.0)
    assert np.linalg.norm(tilted) == pytest.approx(np.linalg.norm(signal), rel=0.05)
    ratio = np.log2(np.abs(np.fft.rfft(tilted[:, 0]) / np.fft.rfft(signal[:, 0])))[1:-1]
    slope = np.diff(ratio) / np.diff(np.log2(np.arange(1, 32)))
    assert slope == pytest.approx(np.full(30, slope[0]), rel=1e-2)
    assert abs(slope[0]) <= 6 / (20 * np.log10(2)) + 1e-3
    mixed = segment(0, mix=1.0)
    assert (mixed / signal).std() < 1e-3  # its only recording at another level
    assert 1.1 - 1e-3 <= (mixed / signal).mean() <= 2 + 1e-3


def test_an_unreadable_file_is_skipped_and_told(folder: Path) -> None:
    (folder / "3.wav").write_bytes(b"no sound")
    module = data(folder, batch_size=4)
    (batch,) = module.train_dataloader()
    assert batch.shape[0] == 4  # another stands in for it
    assert [Path(name).name for name in module.skipped] == ["3.wav"]


def test_places_and_settings_that_cannot_work_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        data(tmp_path / "none")
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        data(folder, batch_size=0)
    with pytest.raises(ValueError, match="speeds"):
        data(folder, speeds=())
    for peak in ((-1.0, -6.0), (-6.0, 1.0)):
        with pytest.raises(ValueError, match="peak: expected"):
            data(folder, peak=peak)
    for path in folder.glob("*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(MediaError, match="no recording of 3 can be read"):
        data(folder).train_dataloader()


def test_a_peak_is_that_of_the_whole_recording(tmp_path: Path) -> None:
    signal = np.full(3200, 0.1)
    signal[1600] = -0.2
    soundfile.write(tmp_path / "0.wav", signal, RATE, subtype="FLOAT")
    module = data(tmp_path, peak=(-6.0, -6.0), seconds=0.05, passes=40)
    peaks = [float(segment.abs().max()) for batch in module.train_dataloader() for segment in batch]
    assert len(peaks) == 40
    full = 10 ** (-6 / 20)
    assert {round(peak, 5) for peak in peaks} == {round(full, 5), round(full / 2, 5)}
    drawn = data(tmp_path, peak=(-6.0, -1.0), seconds=0.4, batch_size=1, passes=20).train_dataloader()
    levels = [20 * np.log10(float(batch.abs().max())) for batch in drawn]
    assert -6.001 < min(levels) < -5
    assert -2 < max(levels) < -0.999


def test_fixed_segments_come_again_in_every_pass_and_epoch(folder: Path) -> None:
    module = data(folder, fixed=True, gain=(-6.0, 6.0), passes=2, batch_size=6)
    loader = module.train_dataloader()
    (first,), (second,) = list(loader), list(loader)
    segments = {tuple(segment.flatten().tolist()) for batch in (first, second) for segment in batch}
    assert len(segments) == 3
    moving = data(folder, gain=(-6.0, 6.0), passes=2, batch_size=6).train_dataloader()
    assert len({tuple(segment.flatten().tolist()) for batch in (next(iter(moving)),) for segment in batch}) == 6


def test_segments_are_brought_to_a_loudness_and_at_most_full_scale(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 2 * RATE))
    soundfile.write(tmp_path / "faint.wav", 1e-3 * noise[0], RATE, subtype="FLOAT")
    clicks = np.where(np.arange(2 * RATE) % 1000 == 0, 0.9, 1e-4 * noise[1])  # little loudness for their peaks
    soundfile.write(tmp_path / "clicks.wav", clicks, RATE, subtype="FLOAT")
    module = data(tmp_path, loudness=-16.0, seconds=0.5, batch_size=1, passes=3)
    levels, peaks = [], []
    for batch in module.train_dataloader():
        levels.append(float(loudness(batch, RATE)))
        peaks.append(float(batch.abs().max()))
    loud = [level for level, peak in zip(levels, peaks) if peak < 1]
    assert loud == pytest.approx([-16.0] * 3, abs=0.01)
    assert [peak for peak in peaks if peak >= 1] == pytest.approx([1.0] * 3)
    with pytest.raises(ValueError, match=r"loudness: expected at most 0 LUFS, got 3\.0"):
        data(tmp_path, loudness=3.0)


def test_all_phases_are_shifted_by_one_angle(tmp_path: Path) -> None:
    time = np.arange(800) / RATE
    parts = [0.2 * np.sin(2 * np.pi * frequency * time + start) for frequency, start in ((200, 0.3), (430, 1.1))]
    record = Record("x", sum(parts)[:, None].astype(np.float32))
    soundfile.write(tmp_path / "x.wav", np.zeros(800), RATE)
    others = Recordings(str(tmp_path), InputSpec("audio", 1, (-1.0, 1.0), sample_rate=RATE))
    angles = []
    for key in range(40):
        found = Segments(800, others, shift_phase=True)(record, (0, 0, key)).numpy()[0]
        spectra = [np.fft.rfft(signal) for signal in (found, np.asarray(record.data)[:, 0])]
        turned = spectra[0] / spectra[1]
        place = [20, 43]  # of the two sines
        assert np.abs(turned[place]) == pytest.approx(1.0, abs=1e-4)
        assert np.angle(turned[20]) == pytest.approx(np.angle(turned[43]), abs=1e-3)
        angles.append(float(np.angle(turned[20])))
    assert min(angles) < -2
    assert max(angles) > 2


def test_short_recordings_are_repeated_if_asked_for(folder: Path) -> None:
    module = data(folder, val=str(folder), repeat=True, batch_size=3)
    short, _ = soundfile.read(folder / "2.wav", dtype="float32")
    whole = np.tile(short, 2)
    assert len(whole) == 3200
    for loader in (module.train_dataloader(), module.val_dataloader()):
        (batch,) = loader
        assert sum(np.array_equal(segment[0], whole) for segment in batch.numpy()) == 1
