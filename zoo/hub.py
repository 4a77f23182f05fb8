"""Where weights come from: a hub repository, a url, a local file or an installed package -> a verified local file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class HubError(RuntimeError):
    """Weights that cannot be had; the message says what was wanted and what to do."""


class OfflineError(HubError):
    """Not on this machine, and the hub is out of reach."""


class NotFoundError(HubError):
    """No such repository, revision, file or package."""


class AccessError(HubError):
    """The hub refuses: a login or an acceptance on its page is needed."""


class IntegrityError(HubError):
    """A file of the wrong size or hash; it has been removed from the cache."""


class LicenceError(HubError):
    """Non-commercial weights whose licence has not been accepted."""


@dataclass(frozen=True)
class WeightSource:
    """Where a weight file lies. Exactly one of repo, url, path and package is given.

    Args:
        repo: hub repository, `owner/name`, which holds `file` at `revision` (branch, tag or commit; None: main).
        url: http(s) address of the file.
        path: local file.
        package: import name of an installed package which carries `file`.
        sha256: hash of the whole file, lower-case hex, or its first digits, at least 8, which many file names end in.
        size: bytes.
    """

    repo: str | None = None
    file: str | None = None
    revision: str | None = None
    url: str | None = None
    path: str | None = None
    package: str | None = None
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in ("repo", "url", "path", "package") if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(
                f"a weight source: expected exactly one of repo, url, path, package, got {given or 'none'}"
            )
        if given[0] in ("repo", "package") and not self.file:
            raise ValueError(f"a weight source with {given[0]} also needs the file in it")
        if self.url and urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"a weight source: expected an http(s) url, got {self.url!r}")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{8,64}", self.sha256):
            raise ValueError(f"a weight source: expected 8 to 64 lower-case hex digits as sha256, got {self.sha256!r}")

    def __str__(self) -> str:
        size = f" ({self.size / 1e6:.1f} MB)" if self.size else ""
        if self.repo:
            return f"{self.file} of the hub repository {self.repo} at revision {self.revision or 'main'}{size}"
        return (self.url or self.path or f"{self.file} of the python package {self.package}") + size


def resolve(source: WeightSource, *, name: str = "", progress: bool = True) -> Path:
    """Finds or downloads the file, and verifies its size and hash where the source states them.

    Args:
        source: where the file lies.
        name: model for which it is wanted, for messages.
        progress: show a bar on the terminal while downloading.

    Returns:
        The local file; hub files stay in huggingface_hub's cache, those of urls in `cache_folder()`.

    Raises:
        OfflineError, NotFoundError, AccessError: it cannot be had.
        IntegrityError: it is not the file that the source states.
        HubError: anything else, such as a connection cut for good.
    """
    label = f"{name}: " if name else ""
    if source.repo:
        path = _from_hub(source, label, progress)
    elif source.url:
        return _from_url(source, label, progress)
    elif source.package:
        path = _from_package(source, label)
    else:
        path = Path(source.path or "").expanduser()
        if not path.is_file():
            raise NotFoundError(f"{label}expected the file {path}, got {'a folder' if path.is_dir() else 'nothing'}")
    if difference := _difference(path, source):
        if not source.repo:
            raise IntegrityError(f"{label}{path} is not the file that was meant: {difference}")
        _remove_from_cache(path)
        raise IntegrityError(f"{label}{source}: {difference}; it has been removed from the cache, try again")
    return path


def is_here(source: WeightSource) -> bool:
    """Whether the file is on this machine, so that `resolve` would need no network; its hash is not looked at."""
    if source.repo:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(source.repo, str(source.file), revision=source.revision), str)
    if source.package:
        return importlib.util.find_spec(source.package.partition(".")[0]) is not None
    if source.url:
        return _path_of_url(source.url).is_file()
    return Path(source.path or "").expanduser().is_file()


def push(folder: str | Path, repo: str, *, private: bool = False) -> str:
    """Uploads a saved model to the hub; the repository is made where it is missing.

    Args:
        folder: what `zoo.save_model` wrote: weights, config and the card as README.md, with its pictures.
        repo: owner/name; the token is that of `hf auth login` or HF_TOKEN.
        private: of a repository that is made.

    Returns:
        The address of the commit; `create_model("hf-hub:owner/name")` loads the model from then on.

    Raises:
        AccessError: no token, or one that may not write there.
        HubError: anything else, such as a hub out of reach.
        ValueError: a folder without a model, or a name that is no owner/name.
    """
    folder = Path(folder)
    if not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder}: expected a folder of save_model, with model.safetensors")
    if repo.count("/") != 1:
        raise ValueError(f"expected a hub repository owner/name, got {repo!r}")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    files = ["model.safetensors", "config.json", "README.md", "*.png"]
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=files, commit_message="Upload model"
        )
    except OfflineModeIsEnabled as error:
        raise OfflineError(f"{repo}: the hub is switched off by HF_HUB_OFFLINE") from error
    except LocalTokenNotFoundError as error:
        raise AccessError(f"{repo}: a token is needed: `hf auth login`, or HF_TOKEN") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise AccessError(f"{repo}: the hub refuses ({status}): a token that may write there is needed") from error
        raise HubError(f"{repo}: {error}") from error
    except OSError as error:
        raise HubError(f"{repo}: the hub is out of reach: {error}") from error
    return str(commit.commit_url)


def cache_folder() -> Path:
    """Folder for files of urls and for accepted licences: $ZOO_CACHE, or `zoo` in huggingface_hub's home."""
    if folder := os.environ.get("ZOO_CACHE"):
        return Path(folder).expanduser()
    from huggingface_hub import constants

    return Path(constants.HF_HOME).expanduser() / "zoo"


def _difference(path: Path, source: WeightSource) -> str:
    """What is wrong with the file, or an empty string."""
    if not path.is_file():
        return "not there"
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        return f"expected {source.size} bytes, got {size}"
    if source.sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(source.sha256):
            return f"expected sha256 {source.sha256}, got {digest}"
    return ""


def _from_hub(source: WeightSource, label: str, progress: bool) -> Path:
    from huggingface_hub import constants, errors, hf_hub_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silence = not progress and not are_progress_bars_disabled()
    try:
        if silence:
            disable_progress_bars()
        return Path(hf_hub_download(str(source.repo), str(source.file), revision=source.revision))
    except errors.HFValidationError as error:
        raise NotFoundError(f"{label}expected a repository name, owner/name, got {source.repo!r}") from error
    except errors.HfHubHTTPError as error:
        raise _refusal(error, source, label) from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refusal(error.__cause__, source, label) from error
        reason = "HF_HUB_OFFLINE is set"
        if not constants.HF_HUB_OFFLINE:
            reason = f"{constants.ENDPOINT} is out of reach ({error.__cause__ or error})"
        raise OfflineError(
            f"{label}{reason}, and the file is not on this machine.\n  wanted: {source}\n"
            f"  looked in: {constants.HF_HUB_CACHE}\n"
            f"  by hand: where there is a network, run `hf download {source.repo} {source.file} --revision "
            f"{source.revision or 'main'}`, bring the file here and give it as checkpoint=FILE, or bring the "
            "repository's folder of that cache into the one above"
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise HubError(f"{label}{source}: the download broke off, no file was stored: {error!r}; try again") from error
    finally:
        if silence:
            enable_progress_bars()


def _path_of_url(url: str) -> Path:
    folder = cache_folder() / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16]
    return folder / (unquote(Path(urlsplit(url).path).name) or "file")


def _from_url(source: WeightSource, label: str, progress: bool) -> Path:
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import WeakFileLock

    from zoo.download import download

    def check(partial: Path) -> None:
        if difference := _difference(partial, source):
            raise IntegrityError(f"{label}{source}: {difference}; nothing was kept")

    url, path = str(source.url), _path_of_url(str(source.url))
    if not (difference := _difference(path, source)):
        return path
    by_hand = f"  wanted: {source}\n  looked for: {path} ({difference})\n  by hand: give the file as checkpoint=FILE"
    if constants.HF_HUB_OFFLINE:
        raise OfflineError(f"{label}HF_HUB_OFFLINE is set, and the file is not on this machine.\n{by_hand}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(path.parent / ".lock"):
            if _difference(path, source):  # no other process was faster
                download(url, path, progress=progress, check=check)
    except errors.HfHubHTTPError as error:
        raise _refusal(error, source, label) from error
    except (errors.HTTPError, OSError) as error:
        raise HubError(f"{label}the download broke off, no file was stored: {error!r}; try again\n{by_hand}") from error
    return path


def _refusal(error: Any, source: WeightSource, label: str) -> HubError:
    """What a huggingface_hub HTTP error means for the user."""
    from huggingface_hub import constants, errors

    status = error.response.status_code
    reasons = {
        errors.GatedRepoError: "the repository is gated",  # a subclass of RepositoryNotFoundError
        errors.RepositoryNotFoundError: "there is no such repository, or it is private",
        errors.RevisionNotFoundError: "there is no such revision",
        errors.RemoteEntryNotFoundError: "there is no such file",
    }
    reason = next((text for kind, text in reasons.items() if isinstance(error, kind)), "the server refuses or fails")
    message = f"{label}{source}: expected the file, got HTTP {status}: {reason}"
    if status in (401, 403):
        page = f"{constants.ENDPOINT}/{source.repo}" if source.repo else source.url
        message += (
            f". Open {page} in a browser and accept its terms if it has any; then log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may read it"
        )
    unknown = isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError)
    if unknown or status in (404, 410):
        return NotFoundError(message)
    return AccessError(message) if status in (401, 403) else HubError(f"{message}; try later")


def _remove_from_cache(path: Path) -> None:
    """Removes a snapshot link and the blob that it leads to, so that the next download starts afresh."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser().resolve()
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    if path.resolve().is_relative_to(cache):  # a link by hand to a file elsewhere: that file is the user's
        path.unlink(missing_ok=True)


# -- packages and licences -----------------------------------------------------------------------------------------


def _from_package(source: WeightSource, label: str) -> Path:
    try:
        spec = importlib.util.find_spec(str(source.package))
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        distribution = str(source.package).partition(".")[0].replace("_", "-")
        raise NotFoundError(f"{label}{source} is not installed; run `pip install {distribution}`")
    folders = list(spec.submodule_search_locations or [])
    for folder in folders:
        if (path := Path(folder, str(source.file))).is_file():
            return path
    raise NotFoundError(f"{label}expected {source}, got nothing of that name in {folders}")


def require_licence(name: str, licence: str, *, non_commercial: bool, accept: bool) -> None:
    """Shows a model's licence on stderr once, and asks for an explicit acceptance of non-commercial ones.

    What was shown and accepted is kept in `cache_folder()` (where that cannot be written, it is shown every time).

    Args:
        name: the model.
        licence: of its weights; a licence that changed is shown, and asked for, again.
        non_commercial: it forbids commercial use.
        accept: the user accepts it; so does the environment variable ZOO_ACCEPT_LICENCE=1.

    Raises:
        LicenceError: non-commercial and not accepted, now or earlier.
    """
    record = cache_folder() / "licences.json"
    try:
        known = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    entry: Any = known.get(name)
    shown = isinstance(entry, dict) and entry.get("licence") == licence
    accepted = accept or os.environ.get("ZOO_ACCEPT_LICENCE") == "1" or (shown and entry.get("accepted") is True)
    if not shown:
        print(f"{name}: licence of the weights: {licence}", file=sys.stderr)
    known[name] = {"licence": licence, "accepted": non_commercial and accepted}
    if known[name] != entry:
        temporary = record.with_name(f".{record.name}.{uuid.uuid4().hex}")
        with suppress(OSError):
            record.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(temporary, record)
    if non_commercial and not accepted:
        raise LicenceError(
            f"{name}: the licence of its weights forbids commercial use: {licence}. If you accept it, say so once by "
            "accept_licence=True, by `zoo download NAME --accept-licence`, or by ZOO_ACCEPT_LICENCE=1"
        )
