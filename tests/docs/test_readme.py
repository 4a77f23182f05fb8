"""Every command and program of README.md runs as written, and its generated parts are up to date."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\$ (.*)$", TEXT, flags=re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a photo, a voice, a folder of photos, and the fixtures that the repository holds."""
    import soundfile
    from skimage.io import imsave
    from sklearn.datasets import load_sample_images

    from zoo.cli.samples import synthetic_voice

    folder = tmp_path_factory.mktemp("user")
    china, flower = load_sample_images().images
    imsave(folder / "photo.jpg", china[:203, :310])
    soundfile.write(folder / "speech.wav", synthetic_voice(16000), 16000)
    (folder / "photos").mkdir()
    for i in range(16):
        imsave(folder / "photos" / f"{i}.png", flower[i * 10 : i * 10 + 160, i * 20 : i * 20 + 180])
    fixtures = ROOT / "tests" / "parity" / "llamagen_vq__tiny_f16"
    shutil.copytree(fixtures, folder / "tests" / "parity" / fixtures.name)
    return folder


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("zoo ")])
def test_zoo_command(folder: Path, command: str) -> None:
    run([sys.executable, "-m", "zoo", *shlex.split(command)[1:]], folder)


def test_make_commands() -> None:
    assert [command for command in COMMANDS if not command.startswith("zoo ")] == ["make demo", "make test"]
    # the environment that runs this test stands in for the one that `make install` makes
    environment = {**os.environ, "VENV": sys.prefix, "MAKEFLAGS": f"--assume-old={sys.prefix}/.installed"}
    done = subprocess.run(["make", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = (ROOT / "demo" / "report.html").read_text()
    assert report.count("data:image/") >= 4
    planned = subprocess.run(
        ["make", "--dry-run", "test"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "-m pytest" in planned.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(folder: Path, program: str) -> None:
    run([sys.executable, "-c", program], folder)


def test_generated_parts_are_up_to_date() -> None:
    run([sys.executable, "docs/generate.py", "--check"], ROOT)


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target
