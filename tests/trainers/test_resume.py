"""A run that stopped goes on as if it had not: bit for bit, from any batch, also after a kill during a save."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tiny_task import ADVERSARY, VECTOR, task, trainer

from trainers.checkpoint_io import AtomicCheckpointIO
from trainers.data import ImageData
from trainers.random_state import random_state, set_random_state

END = 8
SETTINGS: dict[str, Any] = {
    "adversary": {**ADVERSARY, "discriminator_start": 2, "lecam_weight": 0.1},
    "ema_decay": 0.9,
    "warmup_steps": 2,
    "perturbation": {"share": 0.5, "neighbours": 5},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(10):
        pixels = generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


class Losses(lightning.Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.steps.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")})


class Interrupt(lightning.Callback):
    """Ends the run by an error before the batch that follows a step."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def run(pictures: Path, out: Path, *, stop: int | None = None, resume: Path | None = None, every: int = 1) -> Any:
    """Trains to step `END`, saving every step; gives the last saved state and the losses of its steps."""
    torch.manual_seed(7)
    data = ImageData(str(pictures), val=str(pictures), size=16, batch_size=2, scale=(0.7, 1.0))
    losses = Losses()
    module = task({**VECTOR, "codebook": {"kind": "ema", "revive_below": 0.9}}, **SETTINGS)
    loop = trainer(
        max_steps=END, max_epochs=-1, limit_val_batches=1, enable_checkpointing=True, plugins=[AtomicCheckpointIO()],
        accumulate_grad_batches=every, default_root_dir=out,
        callbacks=[losses, Interrupt(stop), ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)],
    )  # fmt: skip
    torch.manual_seed(3 if resume is None else 99)  # a new process is in another random state
    with pytest.raises(InterruptedError) if stop is not None else nullcontext():
        loop.fit(module, data, ckpt_path=resume, weights_only=True)
    return torch.load(out / f"step={stop or END}.ckpt", weights_only=True), losses.steps


def assert_equal(actual: Any, expected: Any, where: str = "") -> None:
    assert type(actual) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert set(actual) == set(expected), where
        for key in expected:
            assert_equal(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), where
        for i, (a, b) in enumerate(zip(actual, expected)):
            assert_equal(a, b, f"{where}[{i}]")
    else:
        assert actual == expected, where


# an epoch has 5 batches: in the middle of the first, at its end, in the second, and before the discriminator starts
@pytest.mark.parametrize(("stop", "every"), [(1, 1), (3, 1), (5, 1), (6, 1), (2, 2)])
def test_a_resumed_run_ends_in_the_same_state(pictures: Path, tmp_path: Path, stop: int, every: int) -> None:
    whole, losses = run(pictures, tmp_path / "whole", every=every)
    run(pictures, tmp_path / "first", stop=stop, every=every)
    resumed, further = run(pictures, tmp_path / "second", resume=tmp_path / "first" / f"step={stop}.ckpt", every=every)
    assert further == losses[-len(further) :]
    assert len(further) < len(losses)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch"):
        assert_equal(resumed[key], whole[key], key)


def test_a_stop_changes_the_end_if_the_random_state_is_lost(pictures: Path, tmp_path: Path) -> None:
    """The states above are not equal by chance: without the random generators' state they differ."""
    whole, _ = run(pictures, tmp_path / "whole")
    state, _ = run(pictures, tmp_path / "first", stop=3)
    del state["random_state"]
    torch.save(state, tmp_path / "lost.ckpt")
    resumed, _ = run(pictures, tmp_path / "second", resume=tmp_path / "lost.ckpt")
    assert any(not torch.equal(resumed["state_dict"][key], value) for key, value in whole["state_dict"].items())


def test_random_generators_go_on() -> None:
    import random

    cpu = torch.device("cpu")
    state = random_state(cpu)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    expected = draw()
    draw()
    set_random_state(state, cpu)
    assert draw() == expected


def test_the_random_state_of_other_processes_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    cpu = torch.device("cpu")
    before = torch.get_rng_state()
    set_random_state(random_state(cpu) * 3, cpu)
    assert "3 processes" in caplog.text
    assert torch.equal(torch.get_rng_state(), before)


def _save_for_ever(path: Path, saved: Any) -> None:
    torch.set_num_threads(1)  # a forked process has not the threads of its parent's pool
    writer, value = AtomicCheckpointIO(), 0
    while True:
        writer.save_checkpoint({"value": value, "tensor": torch.full((400_000,), float(value))}, path)
        saved.value = value = value + 1


@pytest.mark.parametrize("wait", [0.0, 0.0013, 0.0031, 0.0057])
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_good_checkpoint(tmp_path: Path, wait: float) -> None:
    path, context = tmp_path / "last.ckpt", multiprocessing.get_context("fork")
    saved = context.Value("i", 0)
    process = context.Process(target=_save_for_ever, args=(path, saved))
    process.start()
    while saved.value < 3:
        time.sleep(0.001)
    time.sleep(wait)
    process.kill()
    process.join()
    content = torch.load(path, weights_only=True)
    assert content["value"] >= saved.value - 1
    assert (content["tensor"] == content["value"]).all()
    assert {file.name for file in tmp_path.iterdir()} <= {"last.ckpt", "last.ckpt.partial"}


def test_a_save_that_fails_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            raise RuntimeError("cannot be saved")

    writer, path = AtomicCheckpointIO(), tmp_path / "folder" / "last.ckpt"
    writer.save_checkpoint({"value": 1}, path)
    with pytest.raises(RuntimeError, match="cannot be saved"):
        writer.save_checkpoint({"tensor": torch.zeros(1000), "value": Broken()}, path)
    assert torch.load(path, weights_only=True) == {"value": 1}
