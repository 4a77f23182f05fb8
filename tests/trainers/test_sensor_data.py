"""Segments of recordings of sensors as batches: devices side by side, order, files that are no recordings, a cache."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dipoles import folder, recording

from trainers.data import SensorData
from trainers.data.loading import BatchLoader, IndexedBatches, Split
from trainers.data.sensors import SensorSignals
from zoo.media import MediaError, sensors

DEVICES = ((6, 0), (4, 0), (0, 5), (2, 3), (4, 0))  # electrodes and magnetometers of each file
COUNTS = {4: 8, 5: 8, 6: 4}  # segments of 1 s, by sensors


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("recordings"), DEVICES)


def data(place: Path, **settings: Any) -> SensorData:
    return SensorData(str(place), **{"seconds": 1.0, "batch_size": 2, **settings})


def keys(batches: Any) -> list[tuple[float, ...]]:
    """What tells a segment from all others."""
    return [tuple(item[:, :3].flatten().tolist()) for batch in batches for item in batch.signals]


def test_a_batch_has_segments_of_as_many_sensors(place: Path) -> None:
    batches = list(data(place).train_dataloader())
    assert all(batch.shape == (2, batch.shape[1], 256) for batch in batches)
    for batch in batches:
        assert batch.places.shape == (2, batch.shape[1], 6)
        assert batch.types.shape == batch.shape[:2]
        assert batch.signals.dtype == batch.places.dtype == torch.float32
        assert batch.types.dtype == batch.seeds.dtype == torch.int64
    counts = [batch.shape[1] for batch in batches for _ in batch.signals]
    assert {count: counts.count(count) for count in counts} == COUNTS
    assert counts != sorted(counts)  # those of all devices are mixed
    assert len(set(keys(batches))) == sum(COUNTS.values())
    assert len({int(seed) for batch in batches for seed in batch.seeds}) == sum(COUNTS.values())


def test_signals_are_prepared_as_the_model_takes_them(place: Path) -> None:
    for batch in data(place, batch_size=4).train_dataloader():
        for signals, types, places in zip(batch.signals, batch.types, batch.places):
            for kind in types.unique():
                chosen = signals[types == kind]
                torch.testing.assert_close(chosen.mean(0), torch.zeros(256), rtol=0, atol=1e-5)
                assert 0.5 < float(chosen.std(correction=0)) < 1.001  # 1e-5 V are added to the deviation of EEG
            eeg = places[types == 0]
            assert not eeg[:, 3:].any()
            if len(eeg):
                torch.testing.assert_close(eeg[:, :3].square().sum(1).mean(), torch.tensor(1 / 3))


def test_the_rate_the_band_and_the_tail(tmp_path: Path) -> None:
    time = np.arange(round(3.7 * 500)) / 500
    hum, tone = np.sin(2 * np.pi * 50 * time), np.sin(2 * np.pi * 10 * time)
    made = recording(0, eeg=2)
    written = sensors.Recording(
        1e-4 * np.stack([tone + 3 * hum + 20, -tone + 3 * hum]), 500.0, *(getattr(made, name) for name in
        ("positions", "directions", "types")),
    )  # fmt: skip
    sensors.save(written, tmp_path / "a.npz")
    module = data(tmp_path, batch_size=8)
    (batch,) = module.train_dataloader()
    assert batch.shape == (3, 2, 256)  # of 3.7 s
    for signals in batch.signals:
        spectrum = torch.fft.rfft(signals, dim=1).abs()
        assert spectrum.argmax(1).tolist() == [10, 10]
        assert float(spectrum[:, 50].max()) < 0.05 * float(spectrum[:, 10].min())


def test_a_short_recording_ends_in_zeros(tmp_path: Path) -> None:
    sensors.save(recording(0, seconds=0.5), tmp_path / "a.npz")
    (batch,) = data(tmp_path).train_dataloader()
    assert batch.shape == (1, 6, 256)
    assert batch.signals[..., :128].any(-1).all()
    assert not batch.signals[..., 128:].any()


def test_order_and_draws_are_a_function_of_the_seed_and_not_of_the_workers(place: Path) -> None:
    def epoch(**settings: Any) -> list[SensorSignals]:
        return list(data(place, **settings).train_dataloader())

    one, same, other, workers = epoch(seed=1), epoch(seed=1), epoch(seed=2), epoch(seed=1, workers=2)
    for again in (same, workers):
        for a, b in zip(one, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    assert keys(one) != keys(other)
    assert sorted(keys(one)) == sorted(keys(other))


def test_the_next_epoch_has_another_order_and_other_draws(place: Path) -> None:
    loader = data(place).train_dataloader()
    first, second = list(loader), list(loader)
    assert keys(first) != keys(second)
    assert not {int(s) for batch in first for s in batch.seeds} & {int(s) for batch in second for s in batch.seeds}


def test_validation_is_the_same_every_time_and_whole(place: Path) -> None:
    loader = data(place, val=str(place), batch_size=3).val_dataloader()
    first, second = list(loader), list(loader)
    assert [batch.shape[:2] for batch in first] == [(3, 4), (3, 4), (2, 4), (3, 5), (3, 5), (2, 5), (3, 6), (1, 6)]
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_segments_and_have_equal_devices_in_a_step(place: Path, world: int) -> None:
    source = data(place).train_source.prepared()

    def batches(rank: int, train: bool) -> list[list[int]]:
        split = Split(rank, world, batch_size=2)
        return IndexedBatches(source, lambda *_: None, split, train=train, workers=0).batches(0)  # type: ignore[arg-type]

    every = [batches(rank, train=True) for rank in range(world)]
    assert len({len(own) for own in every}) == 1
    for step in zip(*every):
        groups = {next(g for g in source.groups if i in g) for part in step for i in part}
        assert len(groups) == 1
        assert all(step)
        assert len({len(part) for part in step}) == 1
    dealt = [i for own in every for part in own for i in part]
    if min(len(group) for group in source.groups) >= world:
        assert len(dealt) == len(set(dealt))
    evaluated = [i for rank in range(world) for part in batches(rank, train=False) for i in part]
    assert sorted(evaluated) == list(range(len(source)))


def test_a_loader_goes_on_from_any_batch(place: Path) -> None:
    module = data(place)
    whole = [keys([batch]) for batch in module.train_dataloader()] + [keys([b]) for b in module.train_loader]  # type: ignore[union-attr]
    for count in (0, 3, len(whole) // 2, len(whole) // 2 + 2):
        loader = data(place).train_dataloader()
        drawn = iter(loader)
        for number in range(count):
            if number == len(loader):
                assert next(drawn, None) is None
                drawn = iter(loader)
            next(drawn)
        again: BatchLoader = data(place).train_dataloader()
        again.seek(loader.position())
        rest = [keys([batch]) for batch in again]
        assert rest == whole[count:][: len(rest)]
        assert rest


def test_files_that_are_no_recordings_are_counted_named_and_skipped(tmp_path: Path, caplog: Any) -> None:
    folder(tmp_path, ((4, 0),))
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "0.npz").read_bytes()[:500])
    sensors.save(recording(1, eeg=1), tmp_path / "one.npz")
    sensors.save(recording(2, eeg=3), tmp_path / "whole.npz")
    np.savez(tmp_path / "other.npz", codes=np.zeros(3))
    (tmp_path / "notes.txt").write_text("nothing to read")
    module = data(tmp_path)
    batches = list(module.train_dataloader())
    assert {batch.shape[1] for batch in batches} == {3, 4}
    assert {Path(name).name for name in module.skipped} == {"damaged.npz", "one.npz", "other.npz"}
    assert any("one.npz" in name and "at least 2 sensors, got 1" in why for name, why in module.skipped.items())
    assert "3 files skipped" in caplog.text


def test_a_place_without_any_recording_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no recording of sensors at"):
        data(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(MediaError, match=r"no recording of 2 can be read, the first being .*a\.npz: expected"):
        data(tmp_path).train_dataloader()


def test_prepared_recordings_are_kept_in_a_folder(place: Path, tmp_path: Path) -> None:
    plain = list(data(place).train_dataloader())
    for _ in range(2):
        kept = data(place, cache=str(tmp_path / "cache"))
        for a, b in zip(plain, kept.train_dataloader(), strict=True):
            assert torch.equal(a.signals, b.signals)
            assert torch.equal(a.places, b.places)
    source = kept.train_source.prepared()
    assert all(isinstance(made.signals, np.memmap) for _, made in source.recordings)
    assert len(list((tmp_path / "cache").iterdir())) == 2 * len(DEVICES)
    list(data(place, cache=str(tmp_path / "cache"), band=(0.5, 40.0)).train_dataloader())
    assert len(list((tmp_path / "cache").iterdir())) == 4 * len(DEVICES)  # another band is another preparation
    assert pickle.loads(pickle.dumps(plain[0])).signals.equal(plain[0].signals)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"seconds": 0.0}, "samples of a segment: expected at least 1, got 0"),
        ({"band": (40.0, 0.1)}, "band: expected a lowest frequency >= 0 and a higher one"),
    ],
)
def test_settings_that_cannot_work_are_told(place: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(place, **settings)
