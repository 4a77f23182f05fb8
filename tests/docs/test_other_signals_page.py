"""The programs of docs/other_signals.md run as written, one after the other, and its models exist."""

import re
from pathlib import Path

import pytest

from zoo import cards

TEXT = (Path(__file__).parents[2] / "docs" / "other_signals.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_programs_run(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    for program in PROGRAMS:
        exec(program, scope)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["torch.Size([1, 4])", "torch.Size([4, 4])"]
    assert shown[2] == "torch.Size([2, 2, 12]) tensor([12,  3])"
    assert re.fullmatch(r"torch\.Size\(\[1, 3\]\)", shown[3])
    assert "text='a red dot'" in shown[5]


def test_models_of_the_table_exist() -> None:
    names = set(re.findall(r"^\| `(\w+)`", TEXT, flags=re.MULTILINE))
    assert {"vqgraph", "meshgpt"} <= names
    assert names <= {card.name for card in cards.all_cards()}
