"""One url -> one whole file: resumed after cuts, and absent or complete at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_ATTEMPTS = 4  # in a row that bring nothing new


def download(url: str, path: Path, *, progress: bool, check: Callable[[Path], None]) -> None:
    """Downloads beside `path`, lets `check` look at the whole file, and only then moves it there.

    A cut connection is taken up where it broke if the server still has the same file, else from the start.

    Args:
        url: http(s) address.
        path: in an existing folder that no other process is downloading into.
        progress: show huggingface_hub's progress bar where there is a terminal.
        check: raises if the file is not the right one.

    Raises:
        huggingface_hub.errors.HTTPError, OSError: no connection, an HTTP status that is an error, a cut for good.
    """
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session, hf_raise_for_status, tqdm

    partial = path.with_name(f"{path.name}.incomplete")
    etag, furthest, failures = "", 0, 0
    bar = tqdm(desc=path.name[-40:], unit="B", unit_scale=True, disable=None if progress else True)
    try:
        with bar, partial.open("wb") as file:
            while True:
                headers = {"Accept-Encoding": "identity"}
                start = file.tell() if etag.startswith('"') else 0  # only a strong etag says that the bytes are equal
                if start:
                    headers |= {"Range": f"bytes={start}-", "If-Range": etag}
                timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
                try:
                    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                        hf_raise_for_status(response)
                        etag = response.headers.get("ETag", "")
                        bar.n = file.seek(start if response.status_code == 206 else 0)
                        file.truncate()
                        length = response.headers.get("Content-Length")
                        bar.total = bar.n + int(length) if length else None
                        for chunk in response.iter_bytes():
                            bar.update(file.write(chunk))
                    break
                except errors.HfHubHTTPError:
                    raise
                except errors.HTTPError:
                    failures = 0 if file.tell() > furthest else failures + 1
                    furthest = max(furthest, file.tell())
                    if failures == _ATTEMPTS or not furthest:
                        raise
                    time.sleep(failures / 2)
            if bar.total is not None and file.tell() != bar.total:
                raise OSError(f"expected {bar.total} bytes, got {file.tell()}")
        check(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
