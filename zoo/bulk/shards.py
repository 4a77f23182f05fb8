"""The forms of a shard: WebDataset tar files, Parquet, and plain streams of ids."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.bulk.job import Job
from zoo.bulk.work import Made
from zoo.tokens import PAD

TOKENS = "ztok"


def shard_files(name: str, made: Sequence[Made], job: Job, vocab_sizes: Sequence[int]) -> tuple[dict[str, bytes], int]:
    """The files of a part, by name, and how many ids its items have. The same items give the same bytes."""
    rows = [_ids(item, job) for item in made]
    count = sum(map(len, rows))
    if job.form == "webdataset":
        return {f"{name}.tar": _tar(name, made)}, count
    if job.form == "parquet":
        return {f"{name}.parquet": _parquet(name, made, rows, job)}, count
    kind = id_type(vocab_sizes)
    stream = np.concatenate([np.zeros(0, np.int64), *rows]).astype(kind)
    starts = np.cumsum([0, *map(len, rows)], dtype="<i8")
    index = io.BytesIO()
    np.save(index, starts)
    return {f"{name}.bin": stream.tobytes(), f"{name}.npy": index.getvalue()}, count


def id_type(vocab_sizes: Sequence[int]) -> np.dtype[Any]:
    """The least type that holds every id of the joint vocabulary.

    Raises:
        ValueError: none does.
    """
    size = sum(vocab_sizes)
    if size > 1 << 32:
        raise ValueError(f"ids: expected a joint vocabulary of at most 2^32 codes, got {size}; choose another form")
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


def key_of(name: str, position: int) -> str:
    """The key of an item: its part and its place in it."""
    return f"{name.removeprefix('part-')}-{position:06d}"


def _ids(item: Made, job: Job) -> np.ndarray:
    ids: np.ndarray = item.tokens.flatten(job.order)[0].numpy()
    return ids[ids != PAD]


def _tar(name: str, made: Sequence[Made]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for position, item in enumerate(made):
            about = json.dumps({"name": item.name}).encode()
            members = {TOKENS: item.tokens.pack(), "json": about, **{k: _plain(v) for k, v in item.kept.items()}}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key_of(name, position)}.{suffix}")
                member.size = len(data)  # no time, owner or mode of this run: the same items give the same bytes
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _parquet(name: str, made: Sequence[Made], rows: Sequence[np.ndarray], job: Job) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "key": pa.array([key_of(name, position) for position in range(len(made))], pa.string()),
        "name": pa.array([item.name for item in made], pa.string()),
        "ids": pa.array(rows, pa.list_(pa.int64())),
        TOKENS: pa.array([item.tokens.pack() for item in made], pa.binary()),
        **{field: pa.array([item.kept.get(field) for item in made]) for field in job.keep},
    }
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out, compression="zstd")
    return out.getvalue()
