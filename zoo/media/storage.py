"""What reading and writing signals share: the one error, finding files, and files that are whole or not there."""

import contextlib
import glob
import os
import secrets
from collections.abc import Sequence
from pathlib import Path


class MediaError(ValueError):
    """A file or signal that cannot be read, understood or written; the message names it and says why."""


def found_files(path: str | Path, suffixes: Sequence[str], what: str) -> list[Path]:
    """The files that a path means, sorted.

    Args:
        path: a file (taken as it is), a folder (all its levels, without hidden files and folders), or a glob pattern.
        suffixes: of the files that count, in lower case.
        what: they are called in the error.

    Raises:
        MediaError: there are none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        names = [found.relative_to(path) for found in path.rglob("*")]
        found = [path / name for name in names if not any(part.startswith(".") for part in name.parts)]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted(name for name in found if name.suffix.lower() in suffixes and name.is_file())
    if not files:
        raise MediaError(f"no {what} at {path}: expected a file, folder or pattern with {', '.join(suffixes)}")
    return files


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there, and make its folder.

    Raises:
        MediaError: the path and the system's reason.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise MediaError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
