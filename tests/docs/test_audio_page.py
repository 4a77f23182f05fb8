"""The programs of docs/audio.md run as written, one after the other."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from zoo import cards
from zoo.cli.training import run

TEXT = (Path(__file__).parents[2] / "docs" / "audio.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    t = np.arange(44100) / 44100
    soundfile.write(tmp_path / "speech.flac", np.stack([np.sin(2 * np.pi * 220 * t) / 2] * 2, 1), 44100)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for program in PROGRAMS:
        exec(program, scope)
    shown = capsys.readouterr().out.splitlines()
    shapes = [f"torch.Size([{shape}])" for shape in ("1, 8, 75", "2, 1, 20000", "1, 4, 640")]
    assert shown == [shapes[0], "tensor([63, 29])", *shapes[1:]]
    assert soundfile.info(tmp_path / "again.wav").frames == 24000
    (command,) = re.findall(r"^\$ zoo fit (--config brainomni_here .*)$", TEXT, flags=re.MULTILINE)
    few = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--data.workers=0")
    run("fit", [*command.split(), *few])
    assert (tmp_path / "runs" / "version_0" / "model" / "model.safetensors").is_file()


def test_models_of_the_table_exist() -> None:
    names = {name for line in TEXT.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line[:60])}
    assert len(names) >= 8
    assert names <= {card.name for card in cards.all_cards()}
