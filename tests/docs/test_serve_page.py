"""docs/serve.md: its commands are options of `zoo serve`, and its request and program run against a real server."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer
from PIL import Image
from serving import ROOT, Server, serving

from zoo.cli import app
from zoo.serve.trial import Limits

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

TEXT = (ROOT / "docs" / "serve.md").read_text()
COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", TEXT, flags=re.MULTILINE)]
SERVE = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]


def test_the_page_has_the_commands_that_are_tested_here() -> None:
    assert [command[0] for command in COMMANDS] == ["pip", "zoo", "zoo", "curl"]
    assert COMMANDS[0] == ["pip", "install", "tokenizer-zoo[serve]"]
    assert "\nserve = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "zoo"], ids=" ".join)
def test_a_command_parses(command: list[str]) -> None:
    context = SERVE.make_context("zoo serve", command[2:])
    assert context.params["host"] == "127.0.0.1"


def test_the_table_states_the_limits_that_are_set() -> None:
    defaults = SERVE.make_context("zoo serve", []).params
    limits = Limits()
    for option, value, text in (
        ("timeout", limits.request_seconds, "120 s"),
        ("max_megabytes", 16, "16 MB"),
        ("max_pixels", limits.pixels, "4,000,000"),
        ("max_seconds", limits.clip_seconds, "30 s"),
        ("queue", limits.places, "48"),
    ):
        assert defaults[option] == value
        assert f"`--{option.replace('_', '-')}`, {text}" in TEXT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    with serving(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_request_and_the_program_run(server: Server, tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").resize((160, 128)).save(tmp_path / "photo.jpg")
    curl = [word.replace("http://127.0.0.1:8000", server.url) for word in COMMANDS[-1]]
    subprocess.run(curl, cwd=tmp_path, check=True, capture_output=True)
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "64 1792 [128, 160]\n", done.stderr
    assert Image.open(tmp_path / "reconstruction.png").size == (160, 128)
    decode = [sys.executable, "-m", "zoo", "decode", "photo.ztok"]
    subprocess.run(decode, cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert len(list(tmp_path.glob("photo*.png"))) == 1


def test_the_address_with_a_sample_is_that_of_the_page(server: Server) -> None:
    address = re.search(r"`http://127.0.0.1:8000(/\?model=(\S+)&sample)`", TEXT)
    assert address is not None
    assert "Tokenizer zoo" in httpx.get(server.url + address[1]).text
    assert address[2] in {model["name"] for model in httpx.get(f"{server.url}/api/models").json()["models"]}


def test_pictures_exist() -> None:
    assert (ROOT / "docs" / "images" / "serve.webp").is_file()
