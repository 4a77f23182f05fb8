"""The programs of docs/inversion.md run as written, in turn; its table is up to date, and its names exist."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pipeline import clip_tokenizer, stable_diffusion

from zoo import cards

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "inversion.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stable_diffusion(clip_tokenizer()).save_pretrained(tmp_path / "stable-diffusion")
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


def test_the_table_names_every_maker_of_words_and_is_up_to_date() -> None:
    named = set(re.findall(r"^\| `(\w+)` \| `", TEXT, flags=re.MULTILINE))
    assert named == {card.name for card in cards.all_cards() if card.layout == "words"}
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_modules_of_the_page_exist() -> None:
    names = re.findall(r"^\| `(\w+)` \| [a-z]", TEXT, flags=re.MULTILINE)
    assert len(names) >= 9
    for name in names:
        assert importlib.import_module(f"tokenizers_visual.inversion.{name}").__doc__
