"""Many machines: the same stages as operators of Ray Data; the shards are those of one machine, byte for byte.

A part travels as one row: tasks read and decode it, actors that hold the model encode it, tasks write it. All machines
must see the folder of the job. Ray repeats what a killed worker had begun; a part that was written twice is the same.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zoo.bulk.job import Folder, Job, Part, Progress, Summary, parts_of, quiet
from zoo.bulk.shards import shard_files
from zoo.bulk.work import Encoder, decode
from zoo.media.sources import Source
from zoo.tokenizer import InputSpec, Tokenizer


def tokenize(
    model: Tokenizer,
    source: Source,
    job: Job,
    out: Path,
    *,
    workers: int = 1,
    on_progress: Progress = quiet,
) -> Summary:
    """As `zoo.bulk.tokenize`, on the Ray cluster of this process (one is started here where there is none).

    Args:
        model, source, job, out, on_progress: as there.
        workers: actors that hold the model, each with a GPU where the model is on one, else with one core.

    Raises:
        ImportError: Ray is not installed.
        ValueError, MediaError: as `zoo.bulk.tokenize`.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"{error}; many machines need it: pip install 'tokenizer-zoo[ray]'") from error

    parts, folder = parts_of(source, job.part_size), Folder(out.absolute(), job, model.vocab_sizes)
    began = time.perf_counter()
    with folder.opened():
        todo, done, total = folder.left(parts)
        on_progress(done, total, None)
        made_now = 0
        if todo:
            gpu = next(model.parameters()).device.type == "cuda"
            actor: Any = _Encode
            rows = (
                ray.data.from_items([{"part": pickle.dumps(part)} for part in todo], override_num_blocks=len(todo))
                .map(_Decode(model.spec, job))
                .map(
                    actor,
                    fn_constructor_args=(job, torch.get_num_threads()),
                    compute=ray.data.ActorPoolStrategy(size=max(1, workers)),
                    num_gpus=1 if gpu else 0,
                )
                .map(_Write(folder, model.vocab_sizes))
            )
            for row in rows.iter_rows():
                made_now += row["made"]
                done += row["made"] + row["skipped"]
                on_progress(done, total, None)
        items, skipped, ids = folder.close(parts, source.skipped)
    return Summary(items, skipped, ids, len(parts), made_now, time.perf_counter() - began, None)


class _Decode:
    """First operator: a pickled part -> its decoded items."""

    def __init__(self, spec: InputSpec, job: Job) -> None:
        self.spec, self.size = spec, job.size

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part: Part = pickle.loads(row["part"])
        items = [decode(record, self.spec, self.size) for record in part.records()]
        return {"part": row["part"], "items": pickle.dumps(items)}


class _Encode:
    """Second operator, an actor: decoded items -> tokens."""

    def __init__(self, job: Job, threads: int) -> None:
        from zoo.registry import create_model

        torch.set_num_threads(threads)  # sums in the order of the driver
        model = create_model(job.model, pretrained=True, device="cuda" if torch.cuda.is_available() else "cpu")
        if (found := model.source.fingerprint) != job.fingerprint:
            raise ValueError(f"{job.model}: expected the weights {job.fingerprint}, got {found} on this machine")
        self.encoder = Encoder(model, job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        for item in pickle.loads(row["items"]):
            self.encoder.add(item)
        return {"part": row["part"], "made": pickle.dumps(self.encoder.end())}


class _Write:
    """Last operator: tokens -> the shard and its receipt."""

    def __init__(self, folder: Folder, vocab_sizes: Sequence[int]) -> None:
        self.folder, self.vocab_sizes = folder, tuple(vocab_sizes)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part: Part = pickle.loads(row["part"])
        made, skipped = pickle.loads(row["made"])
        files, ids = shard_files(part.name, made, self.folder.job, self.vocab_sizes)
        self.folder.finish(part, files, [item.name for item in made], skipped, ids)
        return {"made": len(made), "skipped": len(skipped)}
