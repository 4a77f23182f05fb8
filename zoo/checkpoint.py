"""Checkpoints: reading published files without running code in them, loading tensors strictly, writing safetensors.

The names of a published file become own names by a `KeyMap` (`zoo/key_map.py`).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import uuid
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo.key_map import WEIGHT_NORMS, CheckpointError, KeyMap, by_module, weight_norm

__all__ = ["WEIGHT_NORMS", "CheckpointError", "KeyMap", "load_into", "metadata", "read", "save", "weight_norm"]

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

_MAPS = [bytes([first]) for first in (*range(0x81, 0x90), 0xDE, 0xDF)]  # how msgpack begins one that is not empty
_IN_FOLDERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


Container = str | Sequence[str | None] | Mapping[str, str] | None


def read(path: Path, *, container: Container = None) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint file onto the CPU; no code in the file is run.

    The format is told by the content: safetensors, a `*.index.json` of safetensors shards beside it, a torch pickle
    (zipped or legacy), a TorchScript archive, whose keys are the attribute paths of its parameters and buffers, an
    `.npy` file, which is one tensor with the key `array`, or a tree that flax wrote with msgpack, whose keys are paths.

    Args:
        path: the file, or a folder that transformers' `save_pretrained` wrote.
        container: key under which the state dict lies, dotted where nested ("model", "trainer.unitok"); of several
            names the first that holds tensors (None among them: the file itself); of a mapping all, joined, with each
            one's prefix before its keys. None: the file is the state dict.

    Returns:
        The published names and their tensors (zipped pickles are memory-mapped); whatever else lies there is left out.

    Raises:
        CheckpointError: unreadable, truncated or unknown file; a pickle that needs code; no tensors at `container`.
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in _IN_FOLDERS if (path / name).is_file()), path)
    content = _content(path)
    if container is None and path.suffix == ".safetensors" and content == {}:
        return {}  # of a model without weights
    names: list[str | None] = [container] if container is None or isinstance(container, str) else list(container)
    parts = [_tensors(content if name is None else _nested(content, name)) for name in names]
    if isinstance(container, Mapping) and all(parts):
        return {prefix + key: value for prefix, part in zip(container.values(), parts) for key, value in part.items()}
    if not isinstance(container, Mapping) and any(parts):
        return next(part for part in parts if part)
    wanted = "at the top level" if container is None else f"under {' or '.join(map(repr, names))}"
    counts = sorted(_containers(content), key=lambda entry: -entry[1])[:10]
    found = (
        ", ".join(f"{name} ({count} tensors)" for name, count in counts) or f"none, it is a {type(content).__name__}"
    )
    raise CheckpointError(f"{path}: expected tensors {wanted}, got none. Containers in this file: {found}")


def _content(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, got {'a folder' if path.is_dir() else 'nothing'}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if path.name.endswith(".index.json"):
            return _shards(path)
        zipped = head.startswith(b"PK\x03\x04")
        if zipped and (script := _script_tensors(path)) is not None:
            return script
        if zipped or head.startswith(b"\x80"):
            with torch.serialization.safe_globals([Namespace]):  # inert, and training scripts save their arguments
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if head.endswith(b"{"):
            return load_file(path)
        if head.startswith(b"\x93NUMPY"):
            return {"array": torch.from_numpy(np.load(path, allow_pickle=False))}
        if head[:1] in _MAPS:
            return dict(_flax_tensors(path))
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        if refused := re.search(r"GLOBAL [\w.]+|Unsupported [^\n]+", str(error)):
            raise CheckpointError(
                f"{path} ({size} bytes): refused, because its pickle holds more than tensors ({refused[0]}) and "
                "unpickling that could run code on this machine. If you trust its author, open it once in an isolated "
                "environment, save its state dict as safetensors, and load that file"
            ) from error
        # torch's own text may advise to read the file unsafely
        detail = type(error).__name__ if "weights_only" in str(error) else str(error)[:300]
        raise CheckpointError(
            f"{path} ({size} bytes) cannot be read; it is truncated or corrupt, fetch it again: {detail}"
        ) from error
    raise CheckpointError(
        f"{path} ({size} bytes): expected safetensors, a torch pickle, TorchScript, .npy or a tree of flax, "
        + (f"got a file that begins with {head!r}" if size else "got an empty file")
    )


def _flax_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The arrays of a tree that `flax.serialization.to_bytes` wrote, by their paths."""
    try:
        import msgpack
    except ImportError as error:
        raise ImportError(f"{error}; {path} needs it: pip install 'tokenizer-zoo[flax]'") from error

    def array(code: int, data: bytes) -> Tensor:
        if code != 1:
            raise CheckpointError(f"{path}: expected arrays, got an extension of code {code}")
        shape, kind, values = msgpack.unpackb(data)
        return torch.from_numpy(np.frombuffer(values, np.dtype(kind)).reshape(shape).copy())

    def walk(node: Any, place: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(node, Tensor):
            yield place, node
        for name, child in node.items() if isinstance(node, dict) else ():
            yield from walk(child, f"{place}.{name}" if place else str(name))

    yield from walk(msgpack.unpackb(path.read_bytes(), ext_hook=array), "")


def _script_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript archive; None for another torch file."""
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in members:
            raise CheckpointError(f"{path}: a zip of {archive.namelist()[:5]}, not a checkpoint; unpack it first")
        if "constants.pkl" not in members:
            return None
        return dict(_ScriptReader(archive, members["data.pkl"].removesuffix("data.pkl")).tensors())


def _shards(path: Path) -> dict[str, Tensor]:
    weight_map: dict[str, str] = json.loads(path.read_text())["weight_map"]
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise CheckpointError(f"{path}: expected the shard {shard!r} in the same folder, got nothing")
        tensors.update(load_file(path.parent / shard))
    if lost := weight_map.keys() - tensors.keys():
        raise CheckpointError(f"{path}: {len(lost)} tensors are not in their shards:\n{by_module(sorted(lost))}")
    return tensors


class _ScriptObject:
    """Stands for any object of a TorchScript archive: it keeps the attributes and does nothing."""

    type_name = ""
    attributes: Mapping[str, Any] = {}

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _ScriptReader(pickle.Unpickler):
    """Reads the tensors of a TorchScript archive; nothing that the file names is looked up, imported or compiled
    (torch.jit.load would run the `__setstate__` methods in it).
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: storage.as_strided(size, stride, offset)
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(name, (_ScriptObject,), {"type_name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Tensor:
        data = self.archive.read(f"{self.root}data/{pid[2]}")
        return torch.frombuffer(bytearray(data), dtype=pid[1]) if data else torch.empty(0, dtype=pid[1])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        registered: dict[str, set[str]] = {}  # parameters and buffers by class; other tensor attributes are no weights
        for member in self.archive.namelist():
            if member.startswith(f"{self.root}code/") and member.endswith(".py"):
                module = member.removeprefix(f"{self.root}code/").removesuffix(".py").replace("/", ".")
                for text in re.split(r"^class ", self.archive.read(member).decode(), flags=re.MULTILINE)[1:]:
                    lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*)\]$", text, flags=re.MULTILINE)
                    registered[f"{module}.{text.partition('(')[0]}"] = set(re.findall(r'"([^"]+)"', " ".join(lists)))

        def walk(node: _ScriptObject, path: str) -> Iterator[tuple[str, Tensor]]:
            for name, value in node.attributes.items():
                if isinstance(value, Tensor) and name in registered.get(node.type_name, ()):
                    yield path + name, value
                elif isinstance(value, _ScriptObject):
                    yield from walk(value, f"{path}{name}.")

        yield from walk(self.load(), "")


def _tensors(content: Any) -> dict[str, Tensor]:
    entries = content.items() if isinstance(content, Mapping) else ()
    return {str(key): value.detach() for key, value in entries if isinstance(value, Tensor)}


def _nested(content: Any, name: str) -> Any:
    if not isinstance(content, Mapping) or name in content:
        return content[name] if isinstance(content, Mapping) else None
    head, _, rest = name.partition(".")
    return _nested(content.get(head), rest) if rest else None


def _containers(content: Any, path: str = "", depth: int = 3) -> Iterator[tuple[str, int]]:
    if tensors := _tensors(content):
        yield path or "top level", len(tensors)
    if isinstance(content, Mapping) and depth:
        for key, value in content.items():
            yield from _containers(value, f"{path}.{key}".removeprefix("."), depth - 1)


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, absent: Sequence[str] = ()) -> None:
    """Loads own-named tensors into a module, all or nothing; values are cast to each parameter's dtype.

    Args:
        module: takes the values in place, on its device.
        state: own name -> tensor, with the shapes of `module.state_dict()`.
        absent: globs of names that the state may lack; these keep their values.

    Raises:
        CheckpointError: missing, unexpected or mis-shaped names, grouped by module; values that are not finite.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not any(fnmatchcase(key, glob) for glob in absent)]
    problems = {
        "missing (the model has them, the file does not)": missing,
        "unexpected (the file has them, the model does not)": [key for key in state if key not in expected],
        "mis-shaped": [
            f"{key}: expected {tuple(expected[key].shape)}, got {tuple(value.shape)}"
            for key, value in state.items()
            if key in expected and value.shape != expected[key].shape
        ],
        "without data on one side only (meta device)": [
            key for key, value in state.items() if key in expected and value.is_meta != expected[key].is_meta
        ],
        "not finite (the file is corrupt)": [key for key, value in state.items() if not _finite(value)],
    }
    if report := [f"  {len(keys)} {kind}:\n{by_module(keys)}" for kind, keys in problems.items() if keys]:
        raise CheckpointError(f"the checkpoint does not fit {type(module).__name__}:\n" + "\n".join(report))
    module.load_state_dict(state, strict=False)


def _finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    return bool(torch.isfinite(value.float() if value.itemsize == 1 else value).all())


def save(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors; under `path` lies the old file or the whole new one, never a part.

    Args:
        path: its folder must exist.
        state: name -> tensor; tensors that share memory are stored once each.
        metadata: strings for the file's header.
    """
    path = Path(path)
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        tensors[name] = value.detach().cpu().contiguous()
        storage = tensors[name].untyped_storage().data_ptr()
        if storage in seen:
            tensors[name] = tensors[name].clone()
        seen.add(storage)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        save_file(tensors, temporary, metadata=dict(metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file.

    Raises:
        CheckpointError: not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:
        raise CheckpointError(f"{path}: expected a safetensors file: {error}") from error
