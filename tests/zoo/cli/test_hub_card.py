"""The card of a pushed model: what the hub reads, a picture that is there, a program that runs, tables, the licence."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from PIL import Image

import zoo
from zoo.cli.hub_card import write_card
from zoo.registry import registry


def card_of(model: zoo.Tokenizer, folder: Path) -> str:
    write_card(model, folder, "me/small")
    return (folder / "README.md").read_text()


def small_codec() -> zoo.Tokenizer:
    from audio.dac import DAC, DACConfig, residual_codebooks

    config = DACConfig(16000, 4, (2, 4, 5), 16, (5, 4, 2), residual_codebooks(16, 4, 32, 2))
    model = DAC(config).eval()
    model.card = registry.card("dac_16khz")
    return model


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_the_card_is_whole(kind: str, tmp_path: Path) -> None:
    model = zoo.create_model("compact_f8.photos", pretrained=True) if kind == "image" else small_codec()
    text = card_of(model, tmp_path)
    _, head, body = text.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "tokenizer-zoo"
    assert kind in about["tags"]
    assert about["license"] == ("apache-2.0" if kind == "image" else "mit")
    html = MarkdownIt("commonmark").enable("table").render(body)
    for title in ("Use", "Facts", "Licence", "Sources"):
        assert f"<h2>{title}</h2>" in html
    (picture,) = re.findall(r'<img src="([^"]+)"', html)
    pixels = np.asarray(Image.open(tmp_path / picture).convert("RGB"))
    assert pixels.shape[1] > 256
    assert pixels.std() > 20
    for table in re.findall("<table>.*?</table>", html, re.DOTALL):
        columns = table.count("<th>")
        assert all(row.count("<td>") == columns for row in re.findall("<tr>.*?</tr>", table, re.DOTALL)[1:])
    assert f"<td>{model.source.fingerprint}</td>" in html
    program = re.search("```python\n(.*?)```", body, re.DOTALL)[1]  # type: ignore[index]
    compile(program, "card", "exec")
    assert 'zoo.create_model("hf-hub:me/small")' in program


def test_licences_that_the_hub_does_not_know_are_told_in_words(tmp_path: Path) -> None:
    model = small_codec()
    assert model.card is not None
    model.card = dataclasses.replace(model.card, licence="research only | ask first", non_commercial=True)
    text = card_of(model, tmp_path)
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "other"
    assert "Research only | ask first. It forbids commercial use." in text


def test_a_model_without_a_card_is_refused(tmp_path: Path) -> None:
    model = small_codec()
    model.card = None
    with pytest.raises(ValueError, match="expected a model with a card"):
        write_card(model, tmp_path, "me/small")
    assert list(tmp_path.iterdir()) == []
