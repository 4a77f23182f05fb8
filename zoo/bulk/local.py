"""One machine: a thread reads, several decode, and the model encodes meanwhile."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from zoo.bulk.job import Folder, Job, Part, Progress, Summary, parts_of, quiet
from zoo.bulk.shards import shard_files
from zoo.bulk.work import Decoded, Encoder, decode
from zoo.media.sources import Skipped, Source
from zoo.memory import return_free_memory
from zoo.tokenizer import Tokenizer

_BETWEEN_RETURNS = 250  # items


def tokenize(
    model: Tokenizer,
    source: Source,
    job: Job,
    out: Path,
    *,
    workers: int = 2,
    on_progress: Progress = quiet,
) -> Summary:
    """Tokens of a whole source.

    Args:
        model: what `job.model` names, on its device.
        source: what `job.source` names.
        job: what is made.
        out: the folder; where it holds the same job begun, that goes on.
        workers: threads that decode.
        on_progress: is told how many items are done and how many there are, and who waits.

    Raises:
        ValueError: the folder holds another job, or no item can be read.
        MediaError: a shard cannot be written; the job goes on from there when it is called again.
    """
    parts, folder = parts_of(source, job.part_size), Folder(out, job, model.vocab_sizes)
    began = time.perf_counter()
    with folder.opened():
        todo, done, total = folder.left(parts)
        made_now, waited, encoder = 0, 0.0, Encoder(model, job)
        on_progress(done, total, None)
        with Decoding(todo, model, job, workers) as decoding:
            for part in todo:
                for item in decoding.items():
                    encoder.add(item)
                    done += 1
                    if done % _BETWEEN_RETURNS == 0:
                        return_free_memory()
                    on_progress(done, total, decoding.waited / (time.perf_counter() - began))
                made, skipped = encoder.end()
                files, ids = shard_files(part.name, made, job, model.vocab_sizes)
                folder.finish(part, files, [item.name for item in made], skipped, ids)
                made_now += len(made)
            waited = decoding.waited
        items, skipped_count, ids = folder.close(parts, source.skipped)
    seconds = time.perf_counter() - began
    return Summary(items, skipped_count, ids, len(parts), made_now, seconds, waited / max(seconds, 1e-9))


class Decoding:
    """Decoded items of parts, in order, some batches ahead of who takes them.

    Attributes:
        waited: seconds in which there was nothing to take.
    """

    def __init__(self, parts: Sequence[Part], model: Tokenizer, job: Job, workers: int) -> None:
        self._parts, self._spec, self._size = parts, model.spec, job.size
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="zoo-decode")
        self._queue: queue.Queue[Future[Decoded | Skipped] | Exception | None] = queue.Queue(
            2 * job.batch_size + max(1, workers)
        )
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, name="zoo-read", daemon=True)
        self.waited = 0.0

    def __enter__(self) -> Decoding:
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        while self._reader.is_alive():  # one that waits for room can end
            with contextlib.suppress(queue.Empty):
                self._queue.get(timeout=0.01)
        self._pool.shutdown(cancel_futures=True)

    def items(self) -> Iterator[Decoded | Skipped]:
        """Those of the next part."""
        while True:
            began = time.perf_counter()
            entry = self._queue.get()
            if isinstance(entry, Exception):
                raise entry
            item = entry.result() if entry is not None else None
            self.waited += time.perf_counter() - began
            if item is None:
                return
            yield item

    def _read(self) -> None:
        try:
            for part in self._parts:
                for record in part.records():
                    if self._stopped.is_set():
                        return
                    self._queue.put(self._pool.submit(decode, record, self._spec, self._size))
                self._queue.put(None)
        except Exception as error:  # whatever a source raises is raised where its items are taken
            self._queue.put(error)
