"""Tokenizers of maps of a CLIP's features: what they see, that the CLIP rests, that losses fall, and the recipes."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_open_clip import save_tiny_clip
from tiny_task import fit
from torch import Tensor

import zoo
from tokenizers_visual.inversion.backbones import load_pair
from trainers.tasks import FeatureMapTask
from zoo.cli.training import run
from zoo.losses import RECONSTRUCTION_LOSSES

SMALL: dict[str, Any] = {
    "in_channels": 24, "image_size": 32, "patch_size": 16, "encoder": {"width": 16, "layers": 1, "heads": 2},
    "decoder": {"kind": "transformer", "width": 16, "layers": 1, "heads": 2},
    "quantizer": {
        "kind": "vector", "codebook_size": 32, "dim": 8, "metric": "cosine", "unit_vectors": False,
        "codebook": {"kind": "directions"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def task(clip: str, **settings: Any) -> FeatureMapTask:
    torch.manual_seed(0)
    defaults = {
        "changes": SMALL, "quantizer_weights": {"commitment": 1.0}, "reconstruction": "smooth_l1",
        "learning_rate": 3e-3, "schedule": "constant",
    }  # fmt: skip
    return FeatureMapTask("four_m_clip_b16", clip, **{**defaults, **settings})


def images(batches: int = 1) -> Tensor:
    coarse = torch.rand(batches * 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (40, 40), mode="bilinear").unflatten(0, (batches, 4))


def test_each_feature_is_that_of_a_patch_as_the_class_token_would_be_projected(clip: str) -> None:
    x = images()[0]
    module, tower = task(clip), load_pair(clip).model.visual
    with torch.no_grad():
        kept: list[Tensor] = []
        hook = tower.transformer.register_forward_hook(lambda layer, given, out: kept.append(out))
        pooled = tower(module.clip_input.stretched(x))
        hook.remove()
        states = tower.ln_post(kept[0]) @ tower.proj
    torch.testing.assert_close(states[:, 0], pooled)
    maps = module.model_range(x)
    assert maps.shape == (4, 24, 2, 2)
    torch.testing.assert_close(maps, torch.stack([states[:, 1:3], states[:, 3:5]], 1).permute(0, 3, 1, 2))


def test_the_clip_rests_and_is_no_part_of_what_is_saved(clip: str) -> None:
    module = task(clip)
    before = {name: value.clone() for name, value in module.clip.network.state_dict().items()}
    fit(module, images(2))
    assert all(torch.equal(value, before[name]) for name, value in module.clip.network.state_dict().items())
    assert not any(name.startswith("clip.") for name in module.state_dict())


def test_the_loss_falls_and_features_come_back(clip: str) -> None:
    module, batches = task(clip), images(1)
    first = fit(module, batches.repeat(2, 1, 1, 1, 1), validation=batches).callback_metrics["val/cosine"]
    last = fit(module, batches.repeat(80, 1, 1, 1, 1), validation=batches).callback_metrics["val/cosine"]
    assert float(last) > max(0.9, float(first))


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"perceptual": "lpips"}, "perceptual"), ({"changes": {**SMALL, "in_channels": 12}}, "12 channels, got 24")],
)
def test_what_cannot_work_is_told(clip: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        task(clip, **settings).model_range(images()[0])


def test_smooth_absolute_errors_are_squares_near_zero() -> None:
    errors = torch.tensor([[0.0, 0.5, -1.0, 3.0]])
    found = RECONSTRUCTION_LOSSES["smooth_l1"](errors, torch.zeros(1, 4))
    torch.testing.assert_close(found, torch.tensor([(0.125 + 0.5 + 2.5) / 4]))


@pytest.mark.parametrize("name", ["four_m_features_photos", "four_m_features_described"])
def test_a_shipped_recipe_runs_two_steps(name: str, clip: str, noise_photos: Path, tmp_path: Path) -> None:
    run(
        "fit",
        [
            f"--config={name}", f"--model.init_args.clip={clip}", f"--model.init_args.changes={json.dumps(SMALL)}",
            f"--data.init_args.train={noise_photos}", f"--data.init_args.val={noise_photos}",
            "--data.init_args.size=32", "--data.init_args.batch_size=2", "--data.init_args.workers=0",
            "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
            "--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total")]
    assert len(rows) == 2
    assert all(math.isfinite(float(row["train/total"])) for row in rows)
    assert list((tmp_path / "version_0" / "reconstructions").glob("*.png"))
    model = zoo.create_model(f"local-dir:{tmp_path / 'version_0' / 'model'}")
    assert model.encode(torch.rand(1, 24, 3, 2)).indices.shape == (1, 3, 2)
