"""The CLIP of a name, as the configs of projectors state it."""

from __future__ import annotations

from pathlib import Path

from tokenizers_visual.inversion.clip import ClipPair, OpenClipPair, TransformersPair
from tokenizers_visual.inversion.conse import CONSE, ConsePair


def load_pair(name: str) -> ClipPair:
    """The CLIP that a projector's config names as its `backbone`.

    Args:
        name: a repository of the hub or a folder in transformers' layout; `open_clip:ARCHITECTURE/WEIGHTS`, the weights
            being "None" for random ones and for `local-dir:FOLDER`; or `CONSE` or `CONSE:STYLES`, which are none.

    Raises:
        ValueError: no such model.
        ImportError: packages that are not installed.
    """
    if name == CONSE or name.startswith(f"{CONSE}:"):
        return ConsePair.load(name.partition(":")[2] or None)
    try:
        if name.startswith("open_clip:"):
            architecture, _, weights = name.removeprefix("open_clip:").rpartition("/")
            return OpenClipPair.load(architecture, None if weights in ("", "None") else weights)
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError("no such folder")
        return TransformersPair.load(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"expected the name of a CLIP, got {name}: {error}") from error
