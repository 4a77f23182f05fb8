"""Every shipped recipe of codecs is parsed and runs two steps, small; its settings are those of the task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

import trainers
from trainers.recipes import CONFIGS
from zoo.cli.training import run
from zoo.registry import registry

PARITY = Path(__file__).parents[1] / "parity"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "tasks.CodecTask" in path.read_text())
SMALL_SPECTRAL = {
    "n_fft": 64, "hop_length": 16, "encoder_widths": [8, 8], "encoder_blocks": [1, 1], "decoder_widths": [8, 8],
    "decoder_blocks": [1, 1],
}  # fmt: skip
NARROW: dict[str, dict[str, Any]] = {  # sizes of discriminators
    "stft": {"filters": 2},
    "wave": {"period_channels": [2, 2], "band_channels": 2},
    "magnitude": {"period_channels": [2, 2], "channels": 2, "most_channels": 2},
    "scale": {"channels": [16] * 7},
    "period": {"channels": [2, 2]},
    "frequency": {"hop_lengths": [16], "channels": [32]},
    "spectrum": {"channels": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for i in range(4):
        soundfile.write(folder / f"{i}.wav", 0.1 * generator.normal(size=8000), 16000)
    return folder


def settings_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def narrow(jury: dict[str, Any]) -> dict[str, Any]:
    return {**jury, "discriminators": [{**part, **NARROW[part["kind"]]} for part in jury["discriminators"]]}


def small(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe's arguments with the network of the family's fixture, the levels that it drops, and narrow players."""
    arguments = dict(recipe["model"]["init_args"])
    card = registry.card(arguments["model"])
    family = registry.family(card.family, card.module)
    changes = arguments.get("changes") or {}
    if card.family == "spectral_codec":
        arguments["changes"] = {**changes, **SMALL_SPECTRAL}
    else:
        meta = json.loads((PARITY / card.family / "meta.json").read_text())
        arguments["changes"] = family.module.config_from_original(meta).to_dict()
        dropout = (changes.get("quantizer") or {}).get("dropout")
        if dropout is not None:
            arguments["changes"]["quantizer"]["dropout"] = dropout
    adversary = arguments["adversary"]
    if adversary is not None:
        others = [narrow(jury) for jury in adversary.get("others", [])]
        arguments["adversary"] = {**narrow(adversary), "others": others, "discriminator_start": 1}
    if "distillation" in arguments:  # every teacher of the recipe is there, but with features that need no download
        arguments["distillation"] = {
            **{key: value for key, value in arguments["distillation"].items() if key != "cache"},
            "teachers": [
                {"kind": "speech", "features": {"kind": "mel", "width": 8}, "level": teacher["level"]}
                for teacher in arguments["distillation"]["teachers"]
            ],
        }
    return arguments


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_runs_two_steps(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = settings_of(name)
    arguments = small(recipe)
    recipe["model"]["init_args"] = arguments
    recipe["data"]["init_args"] |= {
        "train": str(folder), "val": str(folder), "seconds": 0.25, "batch_size": 2, "passes": 2, "workers": 0,
    }  # fmt: skip
    recipe["trainer"] |= {
        "accelerator": "cpu", "max_steps": 2, "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    run("fit", [f"--config={file}", f"--out={tmp_path}"])
    with (tmp_path / "version_0" / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("train/total")]
    assert len(rows) == 2
    players = 1 if arguments["adversary"] is None else 2
    assert ("train/discriminator" in rows[0]) == (players == 2)
    if players == 2:
        assert not rows[0]["train/discriminator"]  # before its start it does not run
        assert float(rows[1]["train/discriminator"]) > 0
        assert float(rows[1]["train/features"]) > 0
    assert all(np.isfinite(float(row["train/total"])) for row in rows)
    assert ("train/distillation" in rows[0]) == ("distillation" in arguments)
    assert ("train/semantic" in rows[0]) == ("semantic_weight" in arguments)
    saved = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert len(saved["optimizer_states"]) == players
    assert any(key.startswith("ema.module.") for key in saved["state_dict"]) == ("ema_decay" in arguments)
    assert (tmp_path / "version_0" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_makes_the_task_of_its_model(name: str) -> None:
    recipe = settings_of(name)
    arguments = small(recipe)
    family = registry.card(arguments["model"]).family
    changed = {key: arguments[key] for key in ("changes", "adversary", "distillation") if key in arguments}
    task = trainers.create_task(arguments["model"], name.removeprefix(f"{family}_"), **changed)
    original = recipe["model"]["init_args"]
    assert task.learning_rate == original["learning_rate"]
    assert task.loss.weights["mel"] == original["loss"]["mel_weight"]
    assert (task.loss.balancer is not None) == original["loss"]["balanced"]
    rate = recipe["data"]["init_args"]["sample_rate"]
    assert rate == registry.card(original["model"]).config.get("sample_rate", rate)


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_keeps_its_sample_rate(name: str) -> None:
    """Of data, model and every spectrogram, at the sizes that it states."""
    recipe = settings_of(name)
    arguments = recipe["model"]["init_args"]
    card = registry.card(arguments["model"])
    config = registry.family(card.family, card.module).config.from_dict(card.config)
    rates = {config.sample_rate, recipe["data"]["init_args"]["sample_rate"]}  # type: ignore[attr-defined]
    mel = arguments["loss"].get("mel")
    if mel is not None:
        rates |= {part["sample_rate"] for part in mel.get("resolutions", [mel])}
    assert len(rates) == 1
