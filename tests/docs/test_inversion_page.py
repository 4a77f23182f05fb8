"""The programs of docs/inversion.md run as written, in turn; its table is up to date, and its names exist."""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import clip_tokenizer, stable_diffusion

from zoo import cards

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "inversion.md").read_text()
COMMANDS = re.findall(r"^\$ zoo (.*)$", TEXT, flags=re.MULTILINE)
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stable_diffusion(clip_tokenizer()).save_pretrained(tmp_path / "stable-diffusion")
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/1.png", "photos/2.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for program in PROGRAMS:
        exec(program, scope)
    refused, read = capsys.readouterr().out.splitlines()
    assert refused == "expected '$' (id 259) in each prompt, got none in 0"
    assert len(re.findall("'[^']*'|\"[^\"]*\"", read)) == 5
    assert scope["both"].shape == (1, 512)
    assert scope["words"].embeddings.shape == (1, 2, 16)
    assert scope["image"].size == (8, 8)
    assert scope["order"].shape == (2, 8)
    assert scope["learned"].rows.grad.abs().sum() > 0
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "zoo", *shlex.split(command)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "found.png").width > 150


def test_the_table_names_every_maker_of_words_and_is_up_to_date() -> None:
    table = TEXT.partition("<!-- inversion: made")[2].partition("<!-- end of inversion -->")[0]
    named = set(re.findall(r"^\| `(\w+)` \| `", table, flags=re.MULTILINE))
    assert named == {card.name for card in cards.all_cards() if card.layout == "words"}
    generated = runpy.run_path(str(ROOT / "docs" / "generate.py"))["generated"]
    assert generated(TEXT) == TEXT


def test_modules_of_the_page_exist() -> None:
    table = TEXT.partition("| module in `tokenizers_visual.inversion` |")[2]
    names = re.findall(r"^\| `(\w+)` \| [a-z]", table, flags=re.MULTILINE)
    assert len(names) >= 8
    for name in names:
        assert importlib.import_module(f"tokenizers_visual.inversion.{name}").__doc__
