"""The shipped parity fixtures pass; and a fixture that differs in any one thing does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zoo import cards
from zoo.parity import CORE_FIXTURES, FixtureError, fixtures, print_table, run_fixture, run_fixtures, to_json

FOLDER = Path(__file__).parents[1] / "parity"
KNOWN = {name for manifest in cards.manifests() for name in manifest.fixtures} | set(CORE_FIXTURES)
SHIPPED = [
    folder.parent for folder in sorted(FOLDER.glob("*/meta.json")) if json.loads(folder.read_text())["family"] in KNOWN
]


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_fixture_passes(folder: Path) -> None:
    result = run_fixture(folder)
    assert result.passed, [(check.check, check.message) for check in result.checks if not check.passed]


def test_every_family_with_fixtures_has_one_that_ships() -> None:
    shipped = {json.loads((folder / "meta.json").read_text())["family"] for folder in SHIPPED}
    assert shipped >= KNOWN


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / "llamagen_vq__tiny_f16", tmp_path / "fixture"))


def _change(path: Path, name: str, change) -> None:
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path)


def test_a_changed_weight_fails(copied: Path) -> None:
    _change(copied / "weights.safetensors", "quant_conv.weight", lambda weight: weight * 1.01)
    result = run_fixture(copied)
    assert not result.passed
    assert any("latent" in check.message for check in result.checks)


def test_a_changed_expectation_fails(copied: Path) -> None:
    _change(copied / "arrays.safetensors", "grad_4", lambda gradient: gradient * 1.001)
    failed = [check for check in run_fixture(copied).checks if not check.passed]
    assert [check.check for check in failed] == ["train"]
    assert "grad.encoder.mid.1.q.weight" in failed[0].message


def test_one_changed_index_fails(copied: Path) -> None:
    def flip(indices: torch.Tensor) -> torch.Tensor:
        indices[0] = (indices[0] + 1) % 64
        return indices

    _change(copied / "arrays.safetensors", "indices", flip)
    encode = run_fixture(copied).checks[0]
    assert not encode.passed
    assert encode.indices_equal is False


def test_a_missing_key_is_named(copied: Path) -> None:
    tensors = load_file(copied / "weights.safetensors")
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, copied / "weights.safetensors")
    assert "decoder.conv_out" in run_fixture(copied).checks[0].message


def test_an_optional_check_is_told_and_does_not_decide(copied: Path) -> None:
    meta = json.loads((copied / "meta.json").read_text())
    meta["checks"].append({"check": "unheard_of", "inputs": {}, "settings": {}, "outputs": {}, "optional": True})
    (copied / "meta.json").write_text(json.dumps(meta))
    result = run_fixture(copied)
    assert result.passed
    assert not result.checks[-1].passed
    meta["checks"][-1]["optional"] = False
    (copied / "meta.json").write_text(json.dumps(meta))
    assert not run_fixture(copied).passed


def test_a_check_may_state_its_own_tolerance(copied: Path) -> None:
    _change(copied / "arrays.safetensors", "recon", lambda image: image * 1.001)
    assert not run_fixture(copied).passed
    meta = json.loads((copied / "meta.json").read_text())
    meta["checks"][1]["tolerance"] = {"float": 0.01}
    (copied / "meta.json").write_text(json.dumps(meta))
    assert run_fixture(copied).passed


def test_folders(tmp_path: Path, copied: Path) -> None:
    assert fixtures([tmp_path]) == [copied]
    with pytest.raises(FixtureError, match=r"meta\.json"):
        fixtures([tmp_path / "nothing"])
    (copied / "meta.json").write_text("{")
    assert not run_fixture(copied).passed
    unknown = json.loads((FOLDER / "llamagen_vq__tiny_f16" / "meta.json").read_text()) | {"family": "nobody"}
    (copied / "meta.json").write_text(json.dumps(unknown))
    assert "nobody" in run_fixture(copied).checks[0].message


def test_table_and_json(copied: Path) -> None:
    from rich.console import Console

    results = run_fixtures([copied])
    console = Console(record=True, width=160)
    print_table(results, console)
    assert "pass" in console.export_text()
    (entry,) = json.loads(json.dumps(to_json(results)))
    assert entry["passed"] is True
    assert entry["checks"][0]["indices_equal"] is True


@pytest.mark.parametrize("name", ["maskbit_lfq__discriminator", "titok__discriminator"])
def test_a_discriminator_without_blur_takes_means(name: str, tmp_path: Path) -> None:
    """The weights are the same; other logits show that the argument counts."""
    folder = Path(shutil.copytree(FOLDER / name, tmp_path / "fixture"))
    meta = json.loads((folder / "meta.json").read_text())
    meta["original"]["kwargs"]["blur_resample"] = False
    (folder / "meta.json").write_text(json.dumps(meta))
    weights = load_file(folder / "weights.safetensors")
    save_file({key: value for key, value in weights.items() if "kernel" not in key}, folder / "weights.safetensors")
    assert "relative error" in run_fixture(folder).checks[0].message
