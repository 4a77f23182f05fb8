"""A tiny saved model, photos, and the command line as a function, for the tests of the verbs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_pictures import picture
from typer.testing import CliRunner

import zoo
from zoo.cli import app

TINY: dict[str, Any] = {"fine_channels": 8, "channels": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}


def save_tiny(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    zoo.save_model(zoo.create_model("compact_f8.photos", pretrained=False, **TINY), folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved model with random weights: the name of the default model, a width of 8."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    return save_tiny(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo of 200 x 184 pixels, JPEG."""
    path = tmp_path / "photo.jpg"
    picture(184, 200).save(path, quality=95)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """`run("list", "--json")` -> result with exit_code, stdout, stderr; away from the hub and the user's caches."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "zoo_cache"))
    monkeypatch.delenv("ZOO_DEBUG", raising=False)
    monkeypatch.delenv("ZOO_ACCEPT_LICENCE", raising=False)

    def invoke(*arguments: object, expect: int = 0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == expect, result.stdout + result.stderr
        return result

    return invoke
