"""docs/add_a_family.md, followed to the letter in a copy of the project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "add_a_family.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL))
CODE, MANIFEST = "tokenizers_visual/taming_vqgan.py", "weights/manifest/taming_vqgan.yaml"
COMMANDS = re.findall(r"^\$ (.*)$", TEXT, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("zoo", "tokenizers_visual", "audio", "trainers", "weights", "tests", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name, **({"ignore": shutil.ignore_patterns("__pycache__")} if source.is_dir() else {}))
    for name, content in FILES.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(content)
    return folder


def run(project: Path, command: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_adds_one_file_and_one_manifest() -> None:
    assert sorted(FILES) == [CODE, MANIFEST]


def test_the_page_shows_the_family_of_the_zoo() -> None:
    shown, real = (
        {**yaml.safe_load(text), "models": yaml.safe_load(text)["models"][:1]}
        for text in (FILES[MANIFEST], (ROOT / MANIFEST).read_text())
    )
    assert shown == real
    assert FILES[CODE] == (ROOT / CODE).read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_command(project: Path, command: str) -> None:
    program, *arguments = shlex.split(command)
    started = {"zoo": [sys.executable, "-m", "zoo"], "python": [sys.executable]}[program]
    output = run(project, [*started, *arguments])
    if "pytest" in command:
        assert re.search(r"\d+ passed|\.{3,}", output)
    else:
        assert "taming" in output


def test_python(project: Path) -> None:
    (code,) = re.findall(r"^```python\n(import torch\nimport zoo\n.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    expected = re.search(r"# (torch\.Size\(.*\))", code)
    assert expected is not None
    assert expected.group(1) in run(project, [sys.executable, "-c", code])
