"""The commands and programs of docs/bulk.md run as written, in turn."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "bulk.md").read_text()
COMMANDS = re.findall(r"^\$ zoo (.*)$", TEXT, flags=re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_commands_and_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (140, 150, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.jpg")
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *shlex.split(command)], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "3 items" in done.stdout
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for program in PROGRAMS:
        exec(program, scope)
    assert capsys.readouterr().out.splitlines() == [
        "3 torch.Size([1, 16, 16])",
        "64000 torch.Size([256])",
        "3",
    ]
