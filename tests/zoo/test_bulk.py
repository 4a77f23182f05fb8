"""Data sets to shards of tokens: what is in them, what is skipped, and what survives a kill."""

import dataclasses
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.data import DataLoader

import zoo
from zoo import media
from zoo.bulk import IdDataset, Job, TokenDataset, TokenStream, tokenize
from zoo.bulk.job import FORMS
from zoo.media.sources import open_source
from zoo.media.storage import MediaError
from zoo.tokens import Tokens

MODEL = "compact_f8.photos"


@pytest.fixture(scope="module")
def model():
    return zoo.create_model(MODEL, pretrained=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """23 pictures of two sizes, one cut short, and a text."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    pictures = load_sample_images().images
    for number in range(23):
        picture = pictures[number % 2]
        height, width = (48, 64) if number % 3 else (40, 40)
        top, left = generator.integers(0, 300, 2)
        Image.fromarray(picture[top : top + height, left : left + width]).save(folder / f"{number:02d}.png")
    (folder / "09_broken.png").write_bytes((folder / "09.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("not a picture")
    return folder


def job_of(model, source, **settings) -> Job:
    defaults = {"part_size": 7, "batch_size": 4}
    return Job(MODEL, model.source.fingerprint, str(source), **{**defaults, **settings})


def shards(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_items_are_those_of_encode(model, photos, tmp_path, form):
    summary = tokenize(model, open_source(str(photos)), job_of(model, photos, form=form), tmp_path / "out")
    assert (summary.items, summary.skipped, summary.parts) == (23, 2, 4)
    found = TokenDataset(tmp_path / "out")
    assert len(found) == 23
    for item, path in zip(found, sorted(photos.glob("??.png"))):
        assert item.name == str(path)
        assert item.tokens == model.encode(media.load(path, model.spec))
    assert len({item.key for item in found}) == 23
    assert found[-1] == found[22]
    with pytest.raises(IndexError, match="23"):
        found[23]


def test_any_reader_takes_the_whole_folder(model, photos, tmp_path):
    import datasets
    import pandas as pd

    whole = tmp_path / "photos"  # those that can be read: beside shards there is nothing else then
    whole.mkdir()
    for path in photos.glob("??.png"):
        shutil.copy(path, whole)
    wanted = [model.encode(media.load(path, model.spec)) for path in sorted(whole.iterdir())]
    for form in ("parquet", "webdataset"):
        tokenize(model, open_source(str(whole)), job_of(model, whole, form=form), tmp_path / form)
        assert not (tmp_path / form / "skipped.jsonl").exists()
        rows = datasets.load_dataset(str(tmp_path / form), split="train", cache_dir=str(tmp_path / "cache"))
        assert [Tokens.unpack(row) for row in rows["ztok"]] == wanted
    table = pd.read_parquet(tmp_path / "parquet")
    assert [list(ids) for ids in table.ids] == [tokens.flatten()[0].tolist() for tokens in wanted]


def test_ids_are_one_stream(model, photos, tmp_path):
    tokenize(model, open_source(str(photos)), job_of(model, photos, form="ids"), tmp_path / "out")
    wanted = [model.encode(media.load(path, model.spec)).flatten()[0] for path in sorted(photos.glob("??.png"))]
    items = IdDataset(tmp_path / "out")
    assert len(items) == 23
    assert all(torch.equal(items[place], row) for place, row in enumerate(wanted))
    stream = torch.cat(wanted)
    for length in (1, 100, 333, len(stream)):
        rows = IdDataset(tmp_path / "out", length)
        assert len(rows) == len(stream) // length
        places = sorted({0, len(rows) // 2, len(rows) - 1})
        assert all(torch.equal(rows[at], stream[at * length : (at + 1) * length]) for at in places)
    assert rows.vocab_size == model.vocab_sizes[0]
    with pytest.raises(ValueError, match=f"1 to {len(stream)}"):
        IdDataset(tmp_path / "out", len(stream) + 1)
    batches = list(DataLoader(IdDataset(tmp_path / "out", 50), batch_size=4, num_workers=1))
    assert torch.equal(torch.cat(batches).flatten(), stream[: len(stream) // 50 * 50])
    with pytest.raises(ValueError, match="expected the form webdataset or parquet, got ids"):
        TokenDataset(tmp_path / "out")


def test_what_cannot_be_read_is_listed(model, photos, tmp_path):
    tokenize(model, open_source(str(photos)), job_of(model, photos), tmp_path / "out")
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [Path(item["name"]).name for item in listed] == ["notes.txt", "09_broken.png"]
    assert "suffix" in listed[0]["reason"]
    assert listed[1]["reason"]


def test_a_crop_gives_equal_sizes(model, photos, tmp_path):
    tokenize(model, open_source(str(photos)), job_of(model, photos, size=32), tmp_path / "out")
    for item, path in zip(TokenDataset(tmp_path / "out"), sorted(photos.glob("??.png"))):
        spec = dataclasses.replace(model.spec, size=(32, 32))
        assert item.tokens.levels[0].shape == (1, 4, 4)
        assert item.tokens == model.encode(media.load(path, spec))


def test_members_and_columns_are_kept(model, photos, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    files = sorted(photos.glob("??.png"))[:5]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, file in enumerate(files):
            for name, data in ((f"{number}.png", file.read_bytes()), (f"{number}.txt", f"caption {number}".encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    table = {"picture": [file.read_bytes() for file in files], "caption": [f"caption {n}" for n in range(5)]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet", row_group_size=2)
    source = str(tmp_path / "a.tar")
    kept = job_of(model, source, keep=("txt",))
    tokenize(model, open_source(source, keep=("txt",)), kept, tmp_path / "tar")
    assert [item.kept["txt"] for item in TokenDataset(tmp_path / "tar")] == [f"caption {n}".encode() for n in range(5)]
    source = str(tmp_path / "a.parquet")
    job = job_of(model, source, keep=("caption",), form="parquet")
    summary = tokenize(model, open_source(source, keep=("caption",)), job, tmp_path / "parquet")
    assert summary.parts == 3
    assert [item.kept["caption"] for item in TokenDataset(tmp_path / "parquet")] == table["caption"]
    with pytest.raises(MediaError, match="columns to keep among picture, caption, got title"):
        tokenize(model, open_source(source, keep=("title",)), job, tmp_path / "none")
    with pytest.raises(ValueError, match="nothing to keep"):
        open_source(str(photos), keep=("txt",))


@pytest.mark.parametrize(
    ("form", "own"), [("webdataset", ("json", "ztok")), ("parquet", ("key", "name", "ids", "ztok"))]
)
def test_what_is_kept_never_takes_the_place_of_what_a_shard_tells_itself(model, photos, form, own):
    for name in own:
        with pytest.raises(ValueError, match=rf"keep: expected other names than {', '.join(own)}.*, got {name}"):
            job_of(model, photos, form=form, keep=("txt", name))
    other = "parquet" if form == "webdataset" else "webdataset"
    free = set(own) - {"ztok"}
    assert job_of(model, photos, form=other, keep=tuple(free)).keep


def test_recordings(tmp_path):
    import soundfile

    codec = tiny.build("encodec")
    for number, samples in enumerate((4000, 5000, 4000)):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, samples)
        soundfile.write(tmp_path / f"{number}.wav", noise, codec.spec.sample_rate)
    job = Job(codec.name, codec.source.fingerprint, str(tmp_path), num_codebooks=2)
    tokenize(codec, open_source(str(tmp_path), modality="audio"), job, tmp_path / "out")
    for number, item in enumerate(TokenDataset(tmp_path / "out")):
        batch = media.load(tmp_path / f"{number}.wav", codec.spec)
        assert item.tokens == codec.encode(batch, num_codebooks=2)
        assert len(item.tokens.levels) == 2


def test_the_stream_is_a_function_of_seed_and_epoch(model, photos, tmp_path):
    tokenize(model, open_source(str(photos)), job_of(model, photos), tmp_path / "out")

    def names(stream) -> list[str]:
        return [item.name for item in stream]

    in_order = names(TokenStream(tmp_path / "out", shuffle=False))
    assert in_order == [str(path) for path in sorted(photos.glob("??.png"))]
    stream = TokenStream(tmp_path / "out", seed=3)
    first, second = names(stream), names(stream)
    assert sorted(first) == sorted(second) == in_order
    assert first != in_order
    assert first != second
    assert names(TokenStream(tmp_path / "out", seed=3)) == first
    assert names(TokenStream(tmp_path / "out", seed=4)) != first
    of_ranks = [names(TokenStream(tmp_path / "out", seed=3, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(name for rank in of_ranks for name in rank) == in_order
    loader = DataLoader(TokenStream(tmp_path / "out", seed=3), batch_size=None, num_workers=2)
    assert sorted(names(loader)) == in_order
    for taken in (0, 1, 6, 7, 22, 23):
        stream = TokenStream(tmp_path / "out", seed=3)
        begun = iter(stream)
        before = [next(begun).name for _ in range(taken)]
        other = TokenStream(tmp_path / "out", seed=3)
        other.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert before + names(other) == first
        assert names(other) == second
    with pytest.raises(ValueError, match="a shard for each of 9 processes, got 4"):
        TokenStream(tmp_path / "out", world_size=9)


@pytest.mark.parametrize(
    ("workers", "batch_size", "drop_last"), [(0, None, False), (2, None, False), (3, 2, False), (2, 3, True)]
)
def test_a_loader_with_workers_is_resumed_exactly(model, photos, tmp_path, workers, batch_size, drop_last):
    """Behind the place of the stop comes what a loader that was never stopped gives there, in its order."""
    tokenize(model, open_source(str(photos)), job_of(model, photos), tmp_path / "out")

    def batches(stream) -> list[list[str]]:
        collate = None if batch_size is None else list
        loader = DataLoader(stream, batch_size, num_workers=workers, drop_last=drop_last, collate_fn=collate)
        return [[item.name for item in (batch if batch_size else [batch])] for batch in loader]

    whole, stream = [], TokenStream(tmp_path / "out", seed=5)
    for epoch in range(2):
        stream.set_epoch(epoch)
        whole.append(batches(stream))
    assert whole[0] != whole[1]
    for taken in (0, 1, 2, len(whole[1]) // 2, len(whole[1]) - 1, len(whole[1])):
        other = TokenStream(tmp_path / "out", seed=5)
        other.resume(1, taken, batch_size=batch_size, num_workers=workers, drop_last=drop_last)
        assert batches(other) == whole[1][taken:]
    other.set_epoch(0)
    assert batches(other) == whole[0]
    other.resume(0, 1, num_workers=7)
    with pytest.raises(ValueError, match="num_workers: expected 7"):
        batches(other)


# -- exactly once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_job_ends_with_the_same_bytes(model, photos, tmp_path, form):
    tokenize(model, open_source(str(photos)), job_of(model, photos, form=form), tmp_path / "whole")
    command = [sys.executable, "-m", "zoo", "tokenize", str(photos), "--out", str(tmp_path / "killed")]
    command += ["--shard-size", "7", "--batch-size", "4", "--format", form]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    running = subprocess.Popen(command, env=environment)
    limit = time.monotonic() + 120
    while not (tmp_path / "killed" / ".job" / "part-000000.json").exists():
        assert running.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    (tmp_path / "killed" / ".half.tmp").write_bytes(b"what the kill left")
    subprocess.run(command, env=environment, check=True)
    assert shards(tmp_path / "killed") == shards(tmp_path / "whole")
    untouched = (tmp_path / "killed" / ".job" / "part-000000.json").stat().st_mtime_ns
    subprocess.run(command, env=environment, check=True)
    assert (tmp_path / "killed" / ".job" / "part-000000.json").stat().st_mtime_ns == untouched


def test_a_lost_shard_is_made_again(model, photos, tmp_path):
    job = job_of(model, photos)
    tokenize(model, open_source(str(photos)), job, tmp_path / "out")
    before = shards(tmp_path / "out")
    (tmp_path / "out" / "part-000002.tar").write_bytes(b"cut short")
    summary = tokenize(model, open_source(str(photos)), job, tmp_path / "out")
    assert summary.made == 7
    assert shards(tmp_path / "out") == before


def test_a_full_disk_leaves_nothing_half_written(photos, tmp_path):
    """A limit on the size of files stands for the disk: the third shard does not fit."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    command = [
        sys.executable,
        "-m",
        "zoo",
        "tokenize",
        str(photos),
        "--out",
        str(tmp_path / "out"),
        "--shard-size",
        "7",
    ]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert left == {".job", "job.json", "lock"}
    with pytest.raises(ValueError, match="has not ended"):
        TokenDataset(tmp_path / "out")
    assert subprocess.run(command).returncode == 0
    assert len(TokenDataset(tmp_path / "out")) == 23


def test_another_job_or_process_is_refused(model, photos, tmp_path):
    job, source = job_of(model, photos), open_source(str(photos))
    tokenize(model, source, job, tmp_path / "out")
    before = shards(tmp_path / "out")
    with pytest.raises(ValueError, match="batch_size: expected 4, got 5"):
        tokenize(model, source, dataclasses.replace(job, batch_size=5), tmp_path / "out")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"letter\.txt"):
        tokenize(model, source, job, tmp_path / "home")
    from filelock import FileLock

    with FileLock(tmp_path / "out" / ".job" / "lock"), pytest.raises(ValueError, match="another process"):
        tokenize(model, source, job, tmp_path / "out")
    assert shards(tmp_path / "out") == before


def test_bad_settings(model, photos, tmp_path):
    for settings, message in (
        ({"form": "csv"}, "form: expected one of"),
        ({"part_size": 0}, "part_size: expected 1 or more, got 0"),
        ({"keep": ("txt",), "form": "ids"}, "nothing beside ids"),
        ({"order": "row"}, "order: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            job_of(model, photos, **settings)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no item of .* can be read, the first being .*a\.png"):
        tokenize(model, open_source(str(tmp_path / "in")), job_of(model, tmp_path / "in"), tmp_path / "out")
    job = dataclasses.replace(job_of(model, photos), num_codebooks=3)
    with pytest.raises(ValueError, match="does not take num_codebooks"):
        tokenize(model, open_source(str(photos)), job, tmp_path / "other")


def test_what_the_model_refuses_is_listed(tmp_path):
    """An item that the model does not take leaves the others of its batch alone."""

    class Picky(type(tiny.build("compact"))):
        def latent(self, x):
            if bool((x == self.spec.value_range[1]).all(dim=(1, 2, 3)).any()):
                raise ValueError("too white")
            return super().latent(x)

    model = tiny.build("compact")
    model.__class__ = Picky
    for number in range(5):
        colour = (255, 255, 255) if number == 2 else (10 * number, 20, 30)
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{number}.png")
    job = Job(model.name, model.source.fingerprint, str(tmp_path), batch_size=4)
    summary = tokenize(model, open_source(str(tmp_path)), job, tmp_path / "out")
    assert (summary.items, summary.skipped) == (4, 1)
    assert [Path(item.name).stem for item in TokenDataset(tmp_path / "out")] == ["0", "1", "3", "4"]
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"name": str(tmp_path / "2.png"), "reason": "too white"}


@pytest.mark.slow
def test_memory_is_flat_over_twenty_thousand_items(tmp_path):
    """The peak of a process that makes 20,000 items is that of one that makes 4,000, up to the lists of names."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    peaks = []
    for count in (4_000, 20_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            picture.save(folder / f"{number:05d}.png")
        code = (
            "import resource, sys; from zoo.cli import app\n"
            "try: app(['tokenize', *sys.argv[1:]])\n"
            "except SystemExit: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        command = [sys.executable, "-c", code, str(folder), "--out", str(tmp_path / f"out{count}"), "--format", "ids"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]) / 1024)
        assert len(IdDataset(tmp_path / f"out{count}")) == count
    assert peaks[1] < peaks[0] + 32
