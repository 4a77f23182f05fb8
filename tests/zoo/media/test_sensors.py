"""Recordings of sensors: files, sample rates, filters, what MNE reads, and files that are no recordings."""

from pathlib import Path

import numpy as np
import pytest

from zoo.media import MediaError, sensors
from zoo.media.sensors import Recording

RATE = 256.0


def recording(signals: np.ndarray, rate: float = RATE, **changes: np.ndarray) -> Recording:
    count = len(signals)
    arrays = {
        "positions": np.arange(3.0 * count).reshape(count, 3), "directions": np.zeros((count, 3)),
        "types": np.zeros(count, np.int64),
    }  # fmt: skip
    return Recording(signals, rate, **{**arrays, **changes})


def waves(*frequencies: float, seconds: float = 8.0, rate: float = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([np.sin(2 * np.pi * frequency * time) for frequency in frequencies])


def test_a_recording_comes_back_from_its_file(tmp_path: Path) -> None:
    written = recording(waves(3, 5).astype(np.float32), types=np.array([0, 2]))
    sensors.save(written, tmp_path / "a.npz")
    found = sensors.load(tmp_path / "a.npz")
    assert found.sample_rate == RATE
    for name in ("signals", "positions", "directions", "types"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    assert sensors.files(tmp_path) == [tmp_path / "a.npz"]


def test_sensors_without_types_are_electrodes(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", signals=waves(3, 5), sample_rate=100, positions=np.eye(3)[:2])
    found = sensors.load(tmp_path / "a.npz")
    assert not found.types.any()
    assert not found.directions.any()


def test_another_rate_keeps_frequencies_and_length() -> None:
    found = recording(waves(10, 40, rate=1000), rate=1000).resampled(RATE)
    assert found.signals.shape == (2, 8 * 256)
    inner = slice(256, -256)
    np.testing.assert_allclose(found.signals[:, inner], waves(10, 40)[:, inner], atol=1e-4)
    assert found.resampled(RATE) is found


@pytest.mark.parametrize(
    ("frequency", "gain"), [(0.5, 1.0), (10.0, 1.0), (49.0, 1.0), (49.5, 0.5), (50.0, 0.0), (60.0, 0.0), (95.0, 1.0),
                            (108.0, 0.5), (120.0, 0.0)]
)  # fmt: skip
def test_a_filter_takes_the_band_without_mains(frequency: float, gain: float) -> None:
    signal = waves(frequency, seconds=80)  # far from the ends, which ring for some periods of the lowest frequency
    found = recording(signal).filtered(0.1, 96.0, (50.0, 60.0)).signals
    inner = slice(30 * 256, -30 * 256)
    np.testing.assert_allclose(found[:, inner], gain * signal[:, inner], atol=0.01)


def test_a_filter_takes_away_offset_and_drift() -> None:
    drift = 100 + np.linspace(0, 5, 40 * 256)[None]
    found = recording(drift + waves(10, seconds=40)).filtered(0.1, 96.0).signals
    np.testing.assert_allclose(found[:, 2560:-2560], waves(10, seconds=40)[:, 2560:-2560], atol=0.2)
    assert abs(found.mean()) < 0.05


def test_a_filter_of_a_low_rate_goes_to_its_half() -> None:
    signal = waves(10, rate=100)
    np.testing.assert_allclose(recording(signal, 100.0).filtered(0.0, 96.0).signals, signal, atol=1e-9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"signals": None}, "expected the arrays signals, sample_rate, positions, got none named signals"),
        ({"signals": np.zeros(5)}, r"expected signals \(sensors, samples\), got \(5,\)"),
        ({"signals": np.zeros((2, 5), np.int16)}, "expected signals that are floats, got int16"),
        ({"signals": np.full((2, 5), np.nan)}, r"expected finite samples, got NaN or infinity in the sensors \[0, 1\]"),
        ({"sample_rate": 0}, "expected a sample_rate > 0, got 0"),
        ({"sample_rate": np.ones(2)}, "expected one sample_rate, got 2"),
        ({"positions": np.zeros((3, 3))}, r"expected positions \(2, 3\) for 2 sensors, got \(3, 3\)"),
        ({"positions": np.full((2, 3), np.inf)}, "expected positions that are finite"),
        ({"directions": np.zeros(2)}, "expected directions"),
        ({"types": np.array([0, 3])}, r"expected types 0 to 2 \(eeg, magnetometer, gradiometer\), got \[3\]"),
    ],
)
def test_wrong_arrays_are_told(tmp_path: Path, arrays: dict[str, np.ndarray | None], message: str) -> None:
    whole = {"signals": np.zeros((2, 5)), "sample_rate": 100, "positions": np.zeros((2, 3)), **arrays}
    np.savez(tmp_path / "a.npz", **{key: value for key, value in whole.items() if value is not None})
    with pytest.raises(MediaError, match=rf"cannot read .*a\.npz: {message}"):
        sensors.load(tmp_path / "a.npz")


def test_files_that_are_no_recordings_are_told(tmp_path: Path) -> None:
    sensors.save(recording(waves(3, 5)), tmp_path / "whole.npz")
    content = (tmp_path / "whole.npz").read_bytes()
    for name, data in (("empty", b""), ("text", b"no recording"), ("half", content[: len(content) // 2])):
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(MediaError, match=rf"cannot read .*{name}\.npz: expected"):
            sensors.load(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "objects.npz", signals=np.array([{}]), sample_rate=1, positions=np.zeros((1, 3)))
    with pytest.raises(MediaError, match=r"cannot read .*objects\.npz"):
        sensors.load(tmp_path / "objects.npz")
    with pytest.raises(MediaError, match=r"cannot read .*none\.npz: .*No such file"):
        sensors.load(tmp_path / "none.npz")
    with pytest.raises(MediaError, match="no recording of sensors"):
        sensors.files(tmp_path / "elsewhere")
    with pytest.raises(MediaError, match=r"expected a name that ends in \.npz"):
        sensors.save(recording(waves(3)), tmp_path / "a.fif")


def test_files_of_mne_without_it_say_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mne", None)
    with pytest.raises(ImportError, match=r"pip install 'tokenizer-zoo\[eeg\]'"):
        sensors.load(tmp_path / "a.fif")


def test_what_mne_reads(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    info = mne.create_info(["Fp1", "Fp2", "Cz", "ECG", "bad", "M1"], 200.0, ["eeg"] * 3 + ["ecg", "eeg", "mag"])
    info["bads"] = ["bad"]
    raw = mne.io.RawArray(1e-5 * np.random.default_rng(0).normal(size=(6, 400)), info, verbose="error")
    raw.set_montage("standard_1020", on_missing="ignore", verbose="error")
    coil = raw.info["chs"][5]
    coil["loc"][:] = 0
    coil["loc"][:3], coil["loc"][9:12] = (0.0, 0.1, 0.1), (0.0, 0.0, 1.0)
    raw.save(tmp_path / "a_raw.fif", verbose="error")
    found = sensors.load(tmp_path / "a_raw.fif")
    assert found.sample_rate == 200
    assert found.types.tolist() == [0, 0, 0, 1]
    np.testing.assert_allclose(found.signals, raw.get_data()[[0, 1, 2, 5]], rtol=1e-6)
    np.testing.assert_allclose(found.directions, [[0, 0, 0]] * 3 + [[0, 0, 1]])
    np.testing.assert_allclose(found.positions[2], raw.info["chs"][2]["loc"][:3])
    assert found.positions[0, 0] < 0 < found.positions[1, 0]  # left and right


def test_a_montage_tells_where_electrodes_are(tmp_path: Path) -> None:
    mne = pytest.importorskip("mne")
    info = mne.create_info(["Fp1", "OZ", "EMG"], 200.0, "eeg")
    mne.io.RawArray(np.zeros((3, 400)), info, verbose="error").save(tmp_path / "a_raw.fif", verbose="error")
    with pytest.raises(MediaError, match="expected positions of sensors, got none of Fp1, OZ, EMG"):
        sensors.load(tmp_path / "a_raw.fif")
    found = sensors.load(tmp_path / "a_raw.fif", "standard_1020")
    assert found.signals.shape == (2, 400)  # no electrode of that montage is called EMG
    (tmp_path / "b_raw.fif").write_bytes(b"no recording")
    with pytest.raises(MediaError, match=r"cannot read .*b_raw\.fif"):
        sensors.load(tmp_path / "b_raw.fif")
