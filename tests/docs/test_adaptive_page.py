"""The program of docs/adaptive.md runs as written; its families and recipes exist."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.recipes import CONFIGS
from zoo import cards

TEXT = (Path(__file__).parents[2] / "docs" / "adaptive.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for name, pixels in zip(("one", "two"), coarse):
        Image.fromarray(pixels).resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for program in PROGRAMS:
        exec(program, scope)
    assert capsys.readouterr().out == "tensor([ 8, 64]) (224, 1792)\n"
    assert scope["coarse"].shape == (2, 3, 128, 128)  # type: ignore[attr-defined]


def test_families_and_recipes_of_the_page_exist() -> None:
    families = {
        name for line in TEXT.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line[:60])
    }
    known = {manifest.family for manifest in cards.manifests()} | {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {"spectral", "one_d_piece", "flextok", "alit", "karl", "titok", "tatitok", "instella_t2i"} <= families
    assert families <= known | {card.name for card in cards.all_cards()}
