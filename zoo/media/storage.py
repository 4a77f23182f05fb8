"""What reading and writing signals share: the one error, and files that are whole or not there."""

import contextlib
import os
import secrets
from pathlib import Path


class MediaError(ValueError):
    """A file or signal that cannot be read, understood or written; the message names it and says why."""


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
