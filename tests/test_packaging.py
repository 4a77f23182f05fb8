"""The built wheel, the installed program beside files of the same names, and errors of shadowed packages."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as an installer does it, apart from the repository."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def test_wheel_holds_the_five_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"zoo", "tokenizers_visual", "audio", "trainers", "weights"}
    shipped = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("weights/**/*") if path.is_file()}
    shipped |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("trainers/configs/*.yaml")}
    shipped |= {"zoo/py.typed", "zoo/ops/csrc/nearest_code.cpp", "zoo/ops/csrc/trial_nearest_code.py"}
    shipped |= {"zoo/ops/csrc/activations.cpp", "zoo/ops/csrc/trial_activations.py"}
    shipped |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("zoo/ops/csrc/*.*")}
    assert {name for name in shipped if "__pycache__" not in name} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any("tests/" in name or name.endswith((".pyc", ".ckpt")) for name in names)


def test_entry_point_is_named(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "zoo = zoo.cli:main" in archive.read(name).decode()


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder of a user with modules that bear the names of our packages."""
    for name in ("audio.py", "trainers.py", "weights.py", "tokenizers_visual.py"):
        (tmp_path / name).write_text("raise SystemExit('the module of the user was imported')\n")
    return tmp_path


def start(installed: Path, folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{installed}" if path else str(installed)}
    program = "import sys; from zoo.cli import main; sys.exit(main())"
    if not path:  # what the installed script does: its own folder, not the current one, stands first in sys.path
        program = "import sys; sys.path.remove('') if '' in sys.path else None; " + program
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_installed_program_works_beside_files_of_the_same_names(installed: Path, crowded: Path) -> None:
    listed = start(installed, crowded, "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "llamagen_vq_f16" in listed.stdout
    from sklearn.datasets import load_sample_image

    from zoo import media

    media.image.side_by_side([load_sample_image("china.jpg")[:64, :96]], ["photo"]).save(crowded / "photo.png")
    done = start(installed, crowded, "roundtrip", "photo.png", "--json")
    assert done.returncode == 0, done.stderr


def test_python_m_zoo_works_there_too(installed: Path, crowded: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "zoo", "doctor"]
    done = subprocess.run(command, cwd=crowded, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_error_of_a_shadowed_package_says_so(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizers_visual.py").write_text("")
    code = "import zoo; zoo.create_model('llamagen_vq_f16')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{installed}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the name 'tokenizers_visual' is taken by")
    assert str(tmp_path / "tokenizers_visual.py") in last
    assert str(installed / "tokenizers_visual") in last
