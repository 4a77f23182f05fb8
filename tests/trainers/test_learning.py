"""Every quantizer learns: 200 steps on 256 small photos lower the loss, and no codebook dies."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from sklearn.datasets import load_sample_images
from tiny_task import fit, task
from torch import Tensor

from zoo.quantizers import QUANTIZERS

FACTOR = 0.5  # of the pixel loss of the first steps, which 200 steps reach
USED = 0.2  # share of each codebook's codes that the 256 photos use at least in the end
KEEP = {"codebook": 1.0, "commitment": 0.25}
CODES = {"kind": "vector", "codebook_size": 64, "dim": 6}
# fields that make a quantizer of about 6 bits a codebook, and the weights of its losses
LEARNERS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "vector": ({"codebook_size": 64, "dim": 6}, KEEP),
    "finite_scalar": ({"levels": (4, 4, 4)}, {}),
    "binary": ({"bits": 6}, {"commitment": 0.25, "entropy": 0.1}),
    "spherical_binary": ({"bits": 6}, {"commitment": 0.25, "entropy": 0.1}),
    "bernoulli": ({"bits": 6}, {}),
    "binary_mapper": ({"bits": 6}, {"kl": 0.01}),
    "finite_scalar_perturbation": ({"levels": (4, 4, 4)}, {}),
    "latent": ({"levels": (4, 4, 4)}, KEEP),
    "random_projection": ({"codebook_size": 64, "dim": 80}, {}),
    "dimension_wise": ({"dim": 4}, {}),
    "residual": ({"level": CODES, "num_levels": 2}, KEEP),
    "grouped": ({"group": CODES, "num_groups": 2}, KEEP),
    "multi_scale": ({"level": CODES, "ladder": [1, 2, 4]}, KEEP),
    "summed": ({"parts": [CODES, CODES]}, KEEP),
    "implicit_neural": ({"codebook_size": 64, "dim": 6, "num_levels": 2, "hidden": 16}, KEEP),
    "sim_vq": ({"codebook_size": 64, "dim": 6}, KEEP),
    "vq_bridge": ({"codebook_size": 64, "dim": 6, "run": 4, "width": 16, "heads": 2}, KEEP),
    "index_backpropagation": (
        {"codebook_size": 64, "dim": 32, "entropy": {}},
        {"index": 1.0, "commitment": 1.0, "codebook": 0.25, "entropy": 0.05},
    ),
    "gumbel": ({"codebook_size": 64, "dim": 6}, {"kl": 5e-4}),
    "memory": ({"codebook_size": 64, "dim": 6}, {"kl": 5e-4}),
    "rotated": ({"inner": {"kind": "finite_scalar", "levels": (4, 4, 4)}}, {}),
    "finite_discrete": ({"codebook_size": 64, "dim": 16}, {}),
    "projected": ({"inner": CODES, "dim": 16}, KEEP),
}
QUICK = ("vector", "finite_scalar", "binary", "index_backpropagation")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """(16, 16, 3, 32, 32): batches of patches of two photos, in [0, 1]."""
    images = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images])
    patches = images.permute(0, 3, 1, 2).unfold(2, 32, 26).unfold(3, 32, 38).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    chosen = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:256]
    return (patches[chosen].float() / 255).unflatten(0, (16, 16))


class Losses(lightning.Callback):
    """The pixel loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/reconstruction"]))


def learn(kind: str, photos: Tensor, steps: int, **settings: Any) -> tuple[float, list[float]]:
    """The last pixel losses as a share of the first, and the share of the codes that each codebook uses."""
    fields, weights = LEARNERS[kind]
    module = task(
        {"quantizer": {"kind": kind, **fields}, "fine_channels": 16, "channels": 32},
        quantizer_weights=weights, learning_rate=3e-3, warmup_steps=10,
    )  # fmt: skip
    losses = Losses()
    fit(module, photos, max_steps=steps, max_epochs=-1, callbacks=[losses], **settings)
    tokens = module.model.encode(photos.flatten(0, 1) * 2 - 1)
    levels = [torch.cat([level.flatten() for level in tokens.levels])] if kind == "multi_scale" else tokens.levels
    used = [len(level.unique()) / size for level, size in zip(levels, tokens.vocab_sizes)]  # its scales share the codes
    return sum(losses.values[-10:]) / sum(losses.values[:10]), used


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNERS)
def test_200_steps_halve_the_loss_and_no_codebook_dies(kind: str, photos: Tensor) -> None:
    share, used = learn(kind, photos, 200)
    assert share < FACTOR
    assert min(used) > USED


@pytest.mark.parametrize("kind", QUICK)
def test_40_steps_lower_the_loss(kind: str, photos: Tensor) -> None:
    share, used = learn(kind, photos, 40)
    assert share < 0.8
    assert min(used) > 0.1


@pytest.mark.parametrize("kind", LEARNERS)
def test_it_trains_in_bfloat16(kind: str, photos: Tensor) -> None:
    share, _ = learn(kind, photos[:, :2], 3, precision="bf16-mixed")
    assert 0 < share <= 1.5


def test_every_quantizer_is_among_them() -> None:
    assert set(LEARNERS) == {name for name, config in QUANTIZERS.items() if name == config.kind}
