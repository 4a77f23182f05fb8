"""Real files into the batch that a model takes, and a model's output back into files, by the modality of its spec."""

from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor

from zoo.media import audio, image
from zoo.media.storage import MediaError

__all__ = ["MediaError", "load", "save"]

_MODALITIES: dict[str, ModuleType] = {"image": image, "audio": audio}


class MediaSpec(Protocol):
    """What the dispatch asks of a model's spec; the module of the modality asks for more."""

    @property
    def modality(self) -> str: ...


def load(source: Any, spec: MediaSpec, *, sample_rate: int | None = None) -> Tensor:
    """Read one or several real signals into a batch that `encode` takes.

    Args:
        source: a path, the bytes of a file, a PIL image, an array or tensor, or a list of those;
            see `zoo.media.image.load` and `zoo.media.audio.load` for shapes and ranges.
        spec: the model's spec.
        sample_rate: in Hz, of audio arrays and tensors where it is another than the model's.

    Returns:
        Float32 (B, C, ...) in `spec.value_range`.

    Raises:
        MediaError: what is missing, damaged or not understood, by name and reason.
    """
    if sample_rate is None:
        return _module(spec).load(source, spec)
    if spec.modality != "audio":
        raise MediaError(f"expected no sample rate with signals of {spec.modality}, got {sample_rate}")
    return audio.load(source, spec, sample_rate=sample_rate)  # type: ignore[arg-type]


def save(tensor: Tensor, path: str | Path, spec: MediaSpec) -> list[Path]:
    """Write a batch in `spec.value_range` to files whose format the suffix states.

    Args:
        tensor: (B, C, ...) as `decode` returns it.
        path: the file; a batch of several becomes `name_0.png`, `name_1.png`, ...
        spec: the model's spec.

    Returns:
        The files written, in order.

    Raises:
        MediaError: an unknown suffix, a wrong shape, values that are not finite, a place that cannot be written.
    """
    return _module(spec).save(tensor, path, spec)


def _module(spec: MediaSpec) -> Any:
    if spec.modality not in _MODALITIES:
        raise MediaError(f"expected a modality among {sorted(_MODALITIES)}, got {spec.modality!r}")
    return _MODALITIES[spec.modality]
