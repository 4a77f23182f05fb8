"""Compiles a C++ file with the system's compiler at its first use, and keeps the library for the next process.

A library lies in the cache under a name that holds the hash of everything it was made from (sources, compiler, flags,
processor, version of this package) and the hash of its own bytes: one that is not whole is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from zoo.hub import cache_folder

_COMPILE_SECONDS = 120
_OTHER_SECONDS = 20
# nobody asks which exceptions floating-point numbers have met, for whose sake GCC would leave loops with choices scalar
_FLAGS = ("-O3", "-std=c++17", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")


_log = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """There is no library; the message says why."""


class Kernel:
    """The library of a C++ file, had at the first use and then kept.

    Args:
        source: the C++ file; `trial_<its name>.py` lies beside it (see `load`).
        check: see `load`.
        without: what torch does instead where there is no library, for the log: "codes are searched by torch".
    """

    def __init__(self, source: Path, check: Callable[[ctypes.CDLL], None], without: str) -> None:
        self.source = source
        self._check = check
        self._without = without
        self._lock = threading.Lock()
        self._tried = False
        self._library: ctypes.CDLL | None = None

    def library(self) -> ctypes.CDLL | None:
        """The library; None with `ZOO_COMPILED=0`, or where it cannot be had: the log says why, once."""
        if os.environ.get("ZOO_COMPILED") == "0":
            return None
        if not self._tried:
            with self._lock:
                if not self._tried:
                    try:
                        trial = self.source.with_name(f"trial_{self.source.stem}.py")
                        self._library = load(self.source, trial, self._check)
                    except BuildError as error:
                        _log.warning("%s, which is slower: %s", self._without, error)
                    self._tried = True
        return self._library


def load(source: Path, trial: Path, check: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    """The library of a C++ file: from the cache or, where there is none that serves, compiled.

    Any number of processes may do so at once: each compiles beside the cache and moves what is whole into it.

    Args:
        source: the C++ file; it may include headers (*.h) that lie beside it.
        trial: a Python file that is run with the path of a newly compiled library, in a process of its own, before the
            library is loaded here; it exits with 0 where the library can be used.
        check: called with a library that has been loaded; raises `BuildError` where it is not to be trusted. Such a
            library is deleted.

    Raises:
        BuildError: no compiler, one that fails or takes too long, or a library that does not work.
    """
    compiler = _compiler()
    native = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
    command = [*compiler, native, *_FLAGS]
    stem = f"{source.stem}-{_key(source, compiler, command)}"
    try:
        folder = cache_folder() / "compiled"
        for path in sorted(folder.glob(f"{stem}-*")):
            if _digest(path) == path.name.removeprefix(f"{stem}-"):
                with suppress(BuildError):
                    return _load(path, check)
            _delete(path)
        with tempfile.TemporaryDirectory(dir=_writable(folder), prefix=".building-", ignore_cleanup_errors=True) as new:
            library = Path(new) / source.stem
            _run([*command, "-o", str(library), str(source)], _COMPILE_SECONDS, "the C++ compiler")
            if not library.is_file():
                raise BuildError(f"the C++ compiler has written nothing ({shlex.join(command)})")
            _run([sys.executable, "-I", str(trial), str(library)], _OTHER_SECONDS, "the trial of the compiled library")
            # a cache that cannot be written leaves the library to this process alone
            path = (folder if library.parent.parent == folder else library.parent) / f"{stem}-{_digest(library)}"
            os.replace(library, path)
            return _load(path, check)
    except OSError as error:
        raise BuildError(f"the compiled library cannot be stored: {error}") from error


def _compiler() -> list[str]:
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if not shutil.which(chosen[0]):
            raise BuildError(f"CXX: expected a C++ compiler, got {chosen[0]!r}, which is not there")
        return chosen
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return [path]
    raise BuildError("expected a C++ compiler (c++, g++, clang++, or the one that CXX names), got none")


def _key(source: Path, compiler: Sequence[str], command: Sequence[str]) -> str:
    import zoo

    version = _run([*compiler, "--version"], _OTHER_SECONDS, "the C++ compiler")
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = (*texts, *command, version, _processor(), zoo.__version__)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _processor() -> str:
    """What tells apart processors that run different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        if sys.platform == "darwin":
            return _run(["sysctl", "-n", "machdep.cpu.brand_string"], _OTHER_SECONDS, "sysctl")
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "features", "model name", "cpu implementer", "cpu part", "isa")
    return "\n".join(sorted({line for line in lines if line.lower().startswith(wanted)}))


def _writable(folder: Path) -> Path | None:
    """The folder, or None where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def _load(path: Path, check: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
        check(library)
    except (OSError, AttributeError, BuildError) as error:
        _delete(path)
        raise BuildError(f"the compiled library does not work: {error}") from error
    return library


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _run(command: Sequence[str], seconds: float, what: str) -> str:
    """What the command prints."""
    with tempfile.TemporaryFile() as output:  # a pipe would stay open with the children of a killed command
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise BuildError(f"{what} does not start: {error}") from error
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            raise BuildError(f"{what} did not end within {seconds} s ({shlex.join(command)})") from None
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status != 0:
        lines = text.strip().splitlines() or ["it printed nothing"]
        raise BuildError(f"{what} failed with status {status}: {lines[0]} ({shlex.join(command)})")
    return text
