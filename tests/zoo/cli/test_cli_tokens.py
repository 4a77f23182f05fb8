"""`zoo tokens` on real files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_pictures import picture
from PIL import Image

import zoo
from zoo import bpe, media
from zoo.metrics.language import TokenCounter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures, one of another size, and a file that is none."""
    (tmp_path / "in").mkdir()
    for number, size in enumerate([(64, 80), (64, 80), (64, 80), (40, 48)]):
        picture(*size, seed=number).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "in"


def test_the_numbers_are_those_of_the_tokens(run: Callable, tiny: Path, folder: Path) -> None:
    result = run("tokens", folder, "--model", tiny, "--json")
    record = json.loads(result.stdout)
    assert "broken.png" in result.stderr
    model = zoo.create_model(f"local-dir:{tiny}")
    counter = TokenCounter(*model.vocab_sizes)
    for number in range(4):
        counter.update(model.encode(media.load(folder / f"{number}.png", model.spec)).indices)
    expected = counter.compute()
    (level,) = record["levels"]
    assert record["images"] == 4
    assert level["tokens"] == expected.tokens == 3 * 80 + 30
    assert level["used"] == expected.used == len(level["histogram"])
    assert level["entropy"] == pytest.approx(expected.entropy)
    assert level["conditional_entropy"] == pytest.approx(expected.conditional_entropy)
    assert level["zipf_exponent"] == pytest.approx(expected.zipf_exponent)
    assert level["innovation"][-1] == {"tokens": expected.tokens, "codes": expected.used}
    counts = [one["count"] for one in level["histogram"]]
    assert counts == sorted(counts, reverse=True)
    assert all(int(expected.counts[one["code"]]) == one["count"] for one in level["histogram"])
    assert np.array(level["usage"], dtype=float) == pytest.approx(expected.usage.numpy(), nan_ok=True)


def test_the_table_tells_the_same(run: Callable, tiny: Path, folder: Path) -> None:
    level = json.loads(run("tokens", folder, "--model", tiny, "--json").stdout)["levels"][0]
    result = run("tokens", folder, "--model", tiny)
    text = result.stdout
    assert "lower bounds" in result.stderr
    for expected in (f"{level['used']} of 64,000", f"{level['entropy']:.3f}", f"{level['zipf_exponent']:.3f}"):
        assert expected in text


def test_the_map_of_usage_is_a_picture(run: Callable, tiny: Path, folder: Path, tmp_path: Path) -> None:
    record = json.loads(run("tokens", folder, "--model", tiny, "--out", tmp_path / "out", "--json").stdout)
    (file,) = record["pictures"]
    pixels = np.asarray(Image.open(file))
    usage = np.array(record["levels"][0]["usage"], dtype=float)
    side = pixels.shape[0] // usage.shape[0]
    centres = pixels[side // 2 :: side, side // 2 :: side]
    assert centres.shape == (*usage.shape, 3)
    assert (centres[np.isnan(usage)] == (0, 0, 255)).all()
    assert (centres[usage == np.nanmax(usage)] == 255).all()


def test_merges_are_learnt_and_written(run: Callable, tiny: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ("tokens", folder, "--model", tiny, "--merges", 5, "--out", tmp_path / "out")
    record = json.loads(run(*arguments, "--json").stdout)
    merges = bpe.load(record["merges"]["file"])
    assert len(merges.merges) == record["merges"]["count"] <= 5
    model = zoo.create_model(f"local-dir:{tiny}")
    grids = [model.encode(media.load(folder / f"{number}.png", model.spec)).indices for number in range(4)]
    assert bpe.train(grids, 64000, 5) == merges
    sequences = [bpe.apply(merges, grid)[0] for grid in grids]
    assert sum(map(len, sequences)) == record["merges"]["tokens"] <= record["levels"][0]["tokens"]
    assert all(torch.equal(bpe.undo(merges, s, tuple(g.shape[1:])), g[0]) for s, g in zip(sequences, grids))
    assert f"become {record['merges']['tokens']}" in run(*arguments).stdout


def test_limit_takes_the_first_images(run: Callable, tiny: Path, folder: Path) -> None:
    assert json.loads(run("tokens", folder, "--model", tiny, "--limit", 2, "--json").stdout)["images"] == 2


def test_data_without_images_is_an_error(run: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "no image of" in run("tokens", tmp_path / "broken.png", "--model", tiny, expect=1).stderr
