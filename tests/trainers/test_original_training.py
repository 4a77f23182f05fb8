"""Originals' own training code, step by step: from the same weights and signals come the same losses and moves.

The JSON files in `original` tell how it was run, and hold what came out.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_task import loader, trainer

import trainers
from audio import dac
from audio.parity.discriminators import weight_normed_names
from tokenizers_visual import ibq, llamagen_vq, open_magvit2, titok
from trainers.recipes import find_recipe
from zoo import checkpoint

ORIGINAL = Path(__file__).parent / "original"
PARITY = Path(__file__).parents[1] / "parity"
ARRAYS = {"ibq": "open_magvit2"}  # images and discriminator are those of another run
NO_GRADIENT = (".k.bias", ".qkv.bias")  # softmax cancels the biases of keys: their gradient is rounding alone


class Losses(lightning.Callback):
    """The losses of each step, before which what is drawn at random starts from the step's number."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, batch_index: int) -> None:
        torch.manual_seed(batch_index)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.rows.append({key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.double().clone() for name, value in module.state_dict().items()}


def check_training(
    original: str,
    run: str,
    definitions: Any,
    start: Path,
    model: str,
    recipe: str,
    folder: Path,
    *,
    adversary: dict[str, Any],
    **settings: Any,
) -> None:
    """Train by a published recipe, changed as the original's run was, and compare."""
    published = yaml.safe_load(find_recipe(f"{definitions.__name__.rpartition('.')[2]}_{recipe}").read_text())
    expected = json.loads((ORIGINAL / f"{original}.json").read_text())["runs"][run]
    arrays = load_file(ORIGINAL / f"{ARRAYS.get(original, original)}.safetensors")
    images = arrays.pop("images").float() / 255
    save_file(arrays, folder / "discriminator.safetensors")
    given = published["model"]["init_args"]["adversary"]
    discriminator = {**given["discriminator"], **adversary.pop("discriminator")}
    weights = {"discriminator_weights": str(folder / "discriminator.safetensors"), "discriminator_start": 2}
    module: Any = trainers.create_task(
        model,
        recipe,
        changes=definitions.config_from_original(json.loads((start / "meta.json").read_text())).to_dict(),
        perceptual=None,
        adversary={**given, "discriminator": discriminator, **weights, **adversary},
        learning_rate=1e-3,
        **settings,
    )
    raw = {key: value for key, value in load_file(start / "weights.safetensors").items() if "_ema." not in key}
    checkpoint.load_into(module.model, definitions.KEY_MAP(raw))
    players = {"model": module.model, "discriminator": module.loss.discriminator, "average": module.ema.module}
    before = {name: state(player) for name, player in players.items()} | {"average": state(module.model)}
    seen = Losses()
    clip = published["trainer"].get("gradient_clip_val")
    trainer(max_epochs=1, gradient_clip_val=clip, callbacks=[seen]).fit(module, loader(images))

    check_losses(expected, seen)
    for name, lengths in expected["moves"].items():
        wanted = {key: torch.tensor(length) for key, length in lengths.items()}
        check_moves(before[name], players[name], wanted if name == "discriminator" else definitions.KEY_MAP(wanted))


def check_losses(expected: dict[str, Any], seen: Losses) -> None:
    for name, values in expected["losses"].items():
        found = [row.get(name) for row in seen.rows]
        assert [value is None for value in found] == [value is None for value in values], name
        steps = [(a, b) for a, b in zip(found, values, strict=True) if b is not None]
        assert [a for a, _ in steps] == pytest.approx([b for _, b in steps], rel=1e-4, abs=1e-5), name


def check_moves(
    before: dict[str, torch.Tensor], player: torch.nn.Module, wanted: dict[str, torch.Tensor], rel: float = 1e-3
) -> None:
    moves = {key: float((value - before[key]).norm()) for key, value in state(player).items()}
    for key, length in wanted.items():
        if not key.endswith(NO_GRADIENT):
            assert moves[key] == pytest.approx(float(length), rel=rel), key


@pytest.mark.parametrize("run", ["fixed", "adaptive"])
def test_llamagen_trains_as_the_original_does(run: str, tmp_path: Path) -> None:
    check_training(
        "llamagen_vq", run, llamagen_vq, PARITY / "llamagen_vq__tiny_f8", "llamagen_vq_f16", "published", tmp_path,
        adversary={"discriminator": {"hidden_channels": 4}, "adaptive_weight": run == "adaptive"},
        quantizer_weights={"codebook": 1.0, "commitment": 0.25, "entropy": 0.02},
    )  # fmt: skip


def test_titok_trains_its_decoder_as_the_original_does(tmp_path: Path) -> None:
    check_training(
        "titok", "second stage", titok, PARITY / "titok", "titok_l32", "decoder_published", tmp_path,
        adversary={
            "discriminator": {"hidden_channels": 32, "num_stages": 1}, "discriminator_weight": 0.5, "lecam_weight": 0.05
        },
        warmup_steps=0,
    )  # fmt: skip


@pytest.mark.parametrize(("definitions", "model"), [(open_magvit2, "open_magvit2_256"), (ibq, "ibq_16384")])
def test_open_magvit2_and_ibq_train_as_the_originals_do(definitions: Any, model: str, tmp_path: Path) -> None:
    name = definitions.__name__.rpartition(".")[2]
    check_training(
        name, "published", definitions, PARITY / name, model, "published", tmp_path,
        adversary={"discriminator": {"hidden_channels": 4}, "discriminator_start": 0},
        milestones=[3],
    )  # fmt: skip


def test_robust_toks_adversary_trains_as_the_original_does(tmp_path: Path) -> None:
    start = PARITY / "llamagen_vq__tiny_f8"  # the network of the original's run, too
    arrays = load_file(ORIGINAL / "open_magvit2.safetensors")
    images = arrays.pop("images").float() / 255
    save_file(arrays, tmp_path / "discriminator.safetensors")
    given = yaml.safe_load(find_recipe("robust_tok_published").read_text())["model"]["init_args"]["adversary"]
    module: Any = trainers.create_task(
        "llamagen_vq_f16",
        "published",
        changes=llamagen_vq.config_from_original(json.loads((start / "meta.json").read_text())).to_dict(),
        perceptual=None,
        adversary={
            **given,
            "discriminator": {"kind": "patchgan", "hidden_channels": 4, "num_layers": 3},
            "discriminator_weights": str(tmp_path / "discriminator.safetensors"),
            "discriminator_start": 2,
            "own_clock": False,  # nothing to warm up, and Adam counts all steps
            "warmup_steps": 0,
            "learning_rate": 2e-3,
            "lecam_weight": 0.05,
        },
        learning_rate=1e-3,
    )
    checkpoint.load_into(module.model, llamagen_vq.KEY_MAP(load_file(start / "weights.safetensors")))
    expected = json.loads((ORIGINAL / "robust_tok.json").read_text())["runs"]["adversary"]
    before, seen = state(module.model), Losses()
    trainer(max_epochs=1, callbacks=[seen]).fit(module, loader(images))

    check_losses(expected, seen)
    wanted = {key: torch.tensor(length) for key, length in expected["moves"]["model"].items()}
    check_moves(before, module.model, wanted)


@pytest.mark.parametrize(("run", "clips"), [("published", (1000.0, 10.0)), ("clipped", (500.0, 5.0))])
def test_dac_trains_as_the_original_does(run: str, clips: tuple[float, float], tmp_path: Path) -> None:
    published = yaml.safe_load(find_recipe("dac_published").read_text())
    adversary = published["model"]["init_args"]["adversary"]
    assert (published["trainer"]["gradient_clip_val"], adversary["gradient_clip_val"]) == (1000, 10)
    meta = json.loads((PARITY / "dac" / "meta.json").read_text())
    meta["original"]["kwargs"] |= {"sample_rate": 44100, "quantizer_dropout": 1.0}
    narrow = {"periods": [2, 3, 5], "period_channels": [2, 2, 8, 16, 16], "windows": [64, 128], "band_channels": 2}
    weights = load_file(PARITY / "dac__losses" / "weights.safetensors")
    plain = {key: re.sub(r"\.0\.(weight|bias)", r".\1", f"0.{key}") for key in weights}  # no sequences around layers
    names = {key: weight_normed_names([own], {})[own] for key, own in plain.items()}
    save_file({names[key]: value for key, value in weights.items()}, tmp_path / "discriminator.safetensors")
    module: Any = trainers.create_task(
        "dac_44khz",
        "published",
        changes=dac.config_from_original(meta).to_dict(),
        quantizer_weights={"commitment": 4 * 0.25, "codebook": 4 * 1.0},
        adversary={
            **adversary,
            "discriminators": [{**adversary["discriminators"][0], **narrow}],
            "discriminator_weights": str(tmp_path / "discriminator.safetensors"),
            "gradient_clip_val": clips[1],
        },
        final_rate=0.9**8,
    )
    checkpoint.load_into(module.model, dac.KEY_MAP(load_file(PARITY / "dac" / "weights.safetensors")))
    expected = json.loads((ORIGINAL / "dac.json").read_text())["runs"][run]
    players = {"model": module.model, "discriminator": module.loss.discriminator}
    before = {name: state(player) for name, player in players.items()}
    seen, signals = Losses(), load_file(ORIGINAL / "dac.safetensors")["clips"].float() / 32768
    trainer(max_epochs=1, gradient_clip_val=clips[0], callbacks=[seen]).fit(module, loader(signals))

    check_losses(expected, seen)
    wanted = {name: {k: torch.tensor(v) for k, v in found.items()} for name, found in expected["moves"].items()}
    rounding = 3e-3  # the original's own runs in float32 and float64 are up to 1.3e-3 apart
    check_moves(before["model"], module.model, dac.KEY_MAP(wanted["model"]), rounding)
    own = {names[key]: length for key, length in wanted["discriminator"].items()}
    check_moves(before["discriminator"], module.loss.discriminator, own, rounding)
