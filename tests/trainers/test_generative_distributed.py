"""Two processes (gloo) step as one on the joined batch where models draw noise, times and lengths, and with teachers.

Each process draws for itself in a real run; here its numbers are its share of those of the joined batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from test_alignment_task import task as alignment_task
from test_contrastive_task import TEXTS
from test_distributed import assert_same_steps, both, in_process, recorded
from test_generative_decoders import four_m, latent_task, layton
from test_query_tasks import code_task, query_task
from test_resume_tasks import COSMOS, ELASTIC
from test_semantic_task import features_task
from tiny_open_clip import save_tiny_clip
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from trainers.data.rows import CaptionedImages
from trainers.tasks import ReconstructionTask

JOINED, STEPS = 6, 3
AVERAGED: dict[str, Any] = {"learning_rate": 1e-3, "ema_decay": 0.9}
PLAIN: dict[str, Any] = {"learning_rate": 1e-3, "eps": 1e-4}  # biases of keys have rounding errors of 0 as gradients
TASKS: dict[str, Callable[[Path, str], lightning.LightningModule]] = {
    "four_m": lambda dinov2, clip: four_m(**AVERAGED),
    "semanticist": lambda dinov2, clip: alignment_task(dinov2, tail_drop={"start": 1, "blank": 0.5}, **AVERAGED),
    "selftok": lambda dinov2, clip: latent_task(**AVERAGED),
    "layton": lambda dinov2, clip: layton("noise", **AVERAGED),
    "layton images": lambda dinov2, clip: layton("image", **AVERAGED),
    "cosmos_dv": lambda dinov2, clip: ReconstructionTask("cosmos_dv4x8x8", COSMOS, **AVERAGED),
    "elastictok": lambda dinov2, clip: ReconstructionTask("elastictok_200m", ELASTIC, **AVERAGED),
    "mingtok": lambda dinov2, clip: features_task(dinov2, **AVERAGED),
    "seed queries": lambda dinov2, clip: query_task(**PLAIN),
    "seed codes": lambda dinov2, clip: code_task(clip, **PLAIN),
}
SIDES = {"seed queries": 28, "seed codes": 28}  # pixels; of the others 32
FRAMES = {"cosmos_dv": 5, "elastictok": 2}
DOUBLE = ("cosmos_dv",)  # biases of its keys have rounding errors of 0 as gradients
QUICK = ("semanticist", "elastictok", "mingtok")  # the others take a minute together
_DRAWS = {torch.rand, torch.randn, torch.randint, torch.rand_like, torch.randn_like}


class JoinedDraws(TorchFunctionMode):
    """Of what is drawn for the items of a batch of `share`, the numbers are a process's rows of the joined batch's."""

    def __init__(self, share: int, rank: int) -> None:
        super().__init__()
        self.share, self.rank = share, rank

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _DRAWS:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        if func in (torch.rand_like, torch.randn_like):
            like = args[0]
            func = torch.rand if func is torch.rand_like else torch.randn
            bounds, shape, kwargs = (), list(like.shape), {"dtype": like.dtype, "device": like.device, **kwargs}
        else:
            bounds, sizes = (args[:2], args[2:]) if func is torch.randint else ((), args)
            shape = list(sizes[0] if not isinstance(sizes[0], int) else sizes)
        if self.share not in shape:
            return func(*bounds, shape, **kwargs)
        axis = shape.index(self.share)
        shape[axis] = JOINED
        return func(*bounds, shape, **kwargs).narrow(axis, self.rank * self.share, self.share)


class Seeds(lightning.Callback):
    """Each step draws from a seed of its own, in all processes the same."""

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


def joined_batches(name: str) -> list[Tensor]:
    """Smooth images (6, 3, S, S) or videos (6, 3, T, S, S) in [0, 1]."""
    side, frames = SIDES.get(name, 32), FRAMES.get(name, 1)
    coarse = torch.rand(STEPS * JOINED * frames, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    images = images.unflatten(0, (STEPS, JOINED, frames)).transpose(2, 3)
    return list(images if name in FRAMES else images.squeeze(3))


def train(name: str, world_size: int, rank: int, dinov2: Path, clip: str) -> dict[str, Any]:
    torch.manual_seed(0)
    task, share = TASKS[name](dinov2, clip), JOINED // world_size
    rows = slice(rank * share, (rank + 1) * share)
    batches: Any = [batch[rows] for batch in joined_batches(name)]
    if name == "seed queries":
        batches = [CaptionedImages(batch, TEXTS[rows]) for batch in batches]
    with JoinedDraws(share, rank):
        return recorded(
            task, DataLoader(batches, batch_size=None), devices=world_size, callbacks=[Seeds()],
            strategy="ddp" if world_size > 1 else "auto", precision="64-true" if name in DOUBLE else "32-true",
        )  # fmt: skip


def _process(rank: int, port: int, folder: str, names: list[str], dinov2: Path, clip: str) -> None:
    with in_process(rank, port, folder):
        for number, name in enumerate(names):
            torch.save(train(name, 2, rank, dinov2, clip), f"{folder}/{number}_{rank}.pt")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_dinov2: Path, clip: str
) -> dict[str, list[Any]]:
    """What each of two processes found in every case."""
    mine = [item for item in request.session.items if item.module.__name__ == __name__]  # type: ignore[attr-defined]
    names = [item.callspec.params["name"] for item in mine]  # type: ignore[attr-defined]
    return both(_process, tmp_path_factory.mktemp("processes"), names, small_dinov2, clip)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TASKS]
)
def test_two_processes_step_as_one_on_the_joined_batch(
    results: dict[str, list[Any]], small_dinov2: Path, clip: str, name: str
) -> None:
    expected = train(name, 1, 0, small_dinov2, clip)
    assert_same_steps(results[name], expected, of_losses=not name.startswith("seed"))  # these log their own batch's
