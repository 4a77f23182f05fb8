"""The commands and the program of docs/export.md run as written, where their weights are here; its table is whole."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo.cli.export import Format

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "export.md").read_text()
COMMANDS = re.findall(r"^\$ zoo (.*)$", TEXT, flags=re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_commands_and_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    here = [command for command in COMMANDS if "compact_f8" in command]
    assert len(here) >= 2
    for command in here:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *shlex.split(command)], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "programs").iterdir()} == {"encode.pt2", "decode.pt2"}
    monkeypatch.chdir(tmp_path)
    for program in PROGRAMS:
        exec(program, {})
    assert capsys.readouterr().out.splitlines() == ["tensor(True)"]
    assert zoo.create_model("local-dir:saved").name == "compact_f8.photos"


def test_the_table_has_every_format() -> None:
    found = set(re.findall(r"^\| `([a-z-]+)` \|", TEXT, flags=re.MULTILINE)) - {"--format"}
    assert found == {form.value for form in Format}


def test_the_families_with_noise_are_those_of_the_page() -> None:
    """Each is named in the sentence about noise."""
    named = {
        "flextok": "FlexTok",
        "four_m": "4M",
        "layton": "LaytonTok",
        "seed_tokenizer": "SEED",
        "selftok": "Selftok",
        "semanticist": "Semanticist",
        "snac": "SNAC",
    }
    sentence = TEXT.split("**Noise.**")[1].split("take it as their last input")[0]
    sources = [*(ROOT / "tokenizers_visual").glob("*.py"), *(ROOT / "audio").glob("*.py")]
    noisy = {path.stem for path in sources if "def noise_shape" in path.read_text()}
    assert noisy == set(named)
    assert all(name in sentence for name in named.values())
