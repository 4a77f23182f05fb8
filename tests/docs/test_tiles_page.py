"""The program of docs/tiles.md runs as written, and its list of models is that of the tests."""

import re
from pathlib import Path

from zoo import tiling
from zoo.registry import registry

TEXT = (Path(__file__).parents[2] / "docs" / "tiles.md").read_text()


def test_program(capsys) -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    exec(program, {})
    assert "torch.Size([1, 3, 300, 400])" in capsys.readouterr().out


def test_what_the_page_names_exists() -> None:
    names = re.findall(r"`(\w+)`", TEXT.split("The models that are tiled:")[1])
    assert len(names) == 10
    assert set(names) <= set(registry.families())
    assert f"{tiling.HELD / 1e9:g} GB" in TEXT
