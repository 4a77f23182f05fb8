"""A real `zoo serve` in a process of its own, on a free port, in folders that are empty at its start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Server:
    """A running server: its address, process id, and the folder that holds all places it might write to."""

    url: str
    pid: int
    places: Path

    def written(self) -> list[str]:
        """Files below those places."""
        return [str(path) for path in self.places.rglob("*") if path.is_file()]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """`zoo serve --port 0` with further options, ended at the end of the block.

    The zoo's cache is that of all tests: operations are compiled into it by whoever is first.
    """
    places = folder / "places"
    variables = {"HOME": "home", "TMPDIR": "temporary", "HF_HOME": "hub", "XDG_CACHE_HOME": "xdg"}
    for name in [*variables.values(), "work"]:
        (places / name).mkdir(parents=True)
    environment = {**os.environ, **{variable: str(places / name) for variable, name in variables.items()}}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = folder / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo", "serve", "--port", "0", *options],
            cwd=places / "work", env=environment, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        line = process.stdout.readline()  # type: ignore[union-attr]
        address = re.search(r"http://\S+", line)
        assert address is not None, f"{line}{log.read_text()}"
        yield Server(address[0], process.pid, places)
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]
