"""Two processes (gloo) step as one on the joined batch: losses, gradients of both players, all weights."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import torch.multiprocessing
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from trainers.tasks import ReconstructionTask
from zoo.quantizers import QUANTIZERS

NETWORK = {"patch_size": 2, "fine_channels": 8, "channels": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1]}
# smaller than the defaults, so that a step is quick; a name that is missing here takes its defaults
FIELDS: dict[str, dict[str, Any]] = {
    "vector": {"codebook_size": 30, "dim": 6},
    "vector ema": {"codebook_size": 30, "dim": 6, "codebook": {"kind": "ema"}},
    "vector cosine entropy": {"codebook_size": 30, "dim": 6, "metric": "cosine", "entropy": {"temperature": 0.1}},
    "binary": {"bits": 8, "entropy": {"temperature": 0.5}},
    "spherical_binary": {"bits": 8},
    "residual": {"level": {"kind": "vector", "codebook_size": 30, "dim": 6}, "num_levels": 3},
    "grouped": {"group": {"kind": "vector", "codebook_size": 30, "dim": 3}, "num_groups": 2},
    "summed": {"parts": [{"kind": "vector", "codebook_size": n, "dim": 6} for n in (30, 20)]},
    "implicit_neural": {"codebook_size": 30, "dim": 6, "num_levels": 3, "hidden": 8},
    "multi_scale": {"level": {"kind": "vector", "codebook_size": 30, "dim": 6}, "ladder": [1, 2, 4]},
    "sim_vq": {"codebook_size": 30, "dim": 6},
    "index_backpropagation": {"codebook_size": 30, "dim": 6},
    "vq_bridge": {"codebook_size": 36, "dim": 6, "run": 4, "width": 16, "heads": 2},
}
PATCHGAN = {"kind": "patchgan", "hidden_channels": 4, "num_layers": 2}
PLAYERS: dict[str, dict[str, Any]] = {
    "adversary": {"discriminator": PATCHGAN, "discriminator_start": 0, "lecam_weight": 0.1},
    "adaptive adversary": {
        "discriminator": PATCHGAN, "discriminator_start": 0, "adaptive_weight": True, "lecam_weight": 0.1,
        "lecam_convention": "logits", "generator_objective": "non_saturating_image",
    },
    "later adversary": {"discriminator": PATCHGAN, "discriminator_start": 1, "discriminator_warmup": 2},
    "adversary first": {"discriminator": PATCHGAN, "discriminator_start": 0, "discriminator_first": True},
    "penalised adversary": {"discriminator": PATCHGAN, "discriminator_start": 0, "r1_weight": 1.0, "r1_interval": 1},
}  # fmt: skip


def _is_random(name: str) -> bool:
    """Whether a quantizer draws in training; each process then draws for itself."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name.split()[0]].from_dict(FIELDS.get(name, {})).build().train()
    z = torch.randn(2, 4, 4, quantizer.config.dim)
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    codes = quantizer(z).codes
    quantizer.load_state_dict(state)
    return not torch.equal(codes, quantizer(z).codes)


KINDS = [name for name, config in QUANTIZERS.items() if name == config.kind]
TABLE = [name for name in dict.fromkeys([*KINDS, *FIELDS]) if name.split()[0] in KINDS and not _is_random(name)]
CASES: dict[str, dict[str, Any]] = {
    **{name: {"quantizer": name} for name in TABLE},
    **{name: {"quantizer": "vector", "adversary": players} for name, players in PLAYERS.items()},
    "accumulated": {"quantizer": "vector", "adversary": PLAYERS["adversary"], "accumulate": 2},
    "sharded": {"quantizer": "binary", "adversary": PLAYERS["adversary"], "sharded": True},
    "decoder": {"quantizer": "vector", "adversary": PLAYERS["adversary"], "trainable": "decoder"},
}

QUICK = ("vector", "binary", "adaptive adversary")  # the others take a minute together


class Record(lightning.Callback):
    """Losses of each step, and the gradients that each optimizer got."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.gradients: list[list[torch.Tensor]] = []

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self._keep)

    def _keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.gradients.append([_whole(p.grad).clone() for p in parameters if p.grad is not None])

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        local = ("usage", "perplexity", "code_entropy", "dead_codes")  # statistics of each process's own batch
        self.losses.append({k: float(v) for k, v in trainer.callback_metrics.items() if not k.endswith(local)})


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def train(name: str, world_size: int, rank: int) -> dict[str, Any]:
    case = dict(CASES[name])
    quantizer, accumulate, sharded = case.pop("quantizer"), case.pop("accumulate", 1), case.pop("sharded", False)
    kind = quantizer.split()[0]
    torch.manual_seed(1)
    build = QUANTIZERS[kind].from_dict(FIELDS.get(quantizer, {})).build().train()
    losses = build(torch.randn(2, 4, 4, build.config.dim)).losses
    torch.manual_seed(rank)  # the processes begin with other weights; the first one's count
    if world_size == 1:
        torch.manual_seed(0)
    task = ReconstructionTask(
        "compact_f8", {**NETWORK, "quantizer": kind, **FIELDS.get(quantizer, {})}, ema_decay=0.9, learning_rate=1e-3,
        quantizer_weights={loss: 0.3 for loss in losses if loss != "codebook"}, weight_decay=0.01, **case,
    )  # fmt: skip
    images = torch.rand(3 * accumulate, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    share = len(images[0]) // world_size
    images = images[:, rank * share : (rank + 1) * share]
    strategy: Any = "ddp" if world_size > 1 else "auto"
    if sharded and world_size > 1:
        strategy = ModelParallelStrategy(world_size, 1, save_distributed_checkpoint=False)
    return recorded(
        task, DataLoader(images, batch_size=None), devices=world_size, strategy=strategy, gradient_clip_val=0.5,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip


def recorded(task: lightning.LightningModule, batches: Any, **settings: Any) -> dict[str, Any]:
    """Trains on the batches once; gives what `Record` kept, and the state before and after."""
    record = Record()
    callbacks = [record, *settings.pop("callbacks", ())]
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, use_distributed_sampler=False, log_every_n_steps=1, **settings,
    )  # fmt: skip
    start = {name: value.clone() for name, value in task.state_dict().items()}
    trainer.fit(task, batches)
    state = {name: _whole(value) for name, value in task.state_dict().items()}
    return {
        "losses": record.losses, "gradients": record.gradients, "start": start, "state": state,
        "steps": trainer.global_step,
    }  # fmt: skip


def _process(rank: int, port: int, folder: str, names: list[str]) -> None:
    with in_process(rank, port, folder):
        for number, name in enumerate(names):
            torch.save(train(name, 2, rank), f"{folder}/{number}_{rank}.pt")


@contextlib.contextmanager
def in_process(rank: int, port: int, folder: str) -> Iterator[None]:
    """One of two processes, as torchrun starts them; it writes into a file."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    with (
        open(f"{folder}/{rank}.log", "w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def both(process: Callable[..., None], folder: Path, names: list[str], *arguments: Any) -> dict[str, list[Any]]:
    """What two processes find in every case: `process(rank, port, folder, names, *arguments)` saves it in files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        process, (port, str(folder), names, *arguments), nprocs=2, start_method="spawn"
    )  # type: ignore[no-untyped-call]
    return {
        name: [torch.load(folder / f"{number}_{rank}.pt", weights_only=True) for rank in range(2)]
        for number, name in enumerate(names)
    }


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each of two processes found in every case."""
    mine = [item for item in request.session.items if item.module.__name__ == __name__]  # type: ignore[attr-defined]
    names = [item.callspec.params["name"] for item in mine]  # type: ignore[attr-defined]
    return both(_process, tmp_path_factory.mktemp("processes"), names)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, message: str) -> None:
    scale = max(1e-3, expected.abs().max().item()) if expected.numel() else 1.0
    error = (actual.float() - expected.float()).abs().max().item() if expected.numel() else 0.0
    assert error <= 2e-4 * scale, f"{message}: error {error:.3g} of {scale:.3g}"


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_two_processes_step_as_one_on_the_joined_batch(results: dict[str, list[Any]], name: str) -> None:
    assert_same_steps(results[name], train(name, 1, 0), of_losses="accumulate" not in CASES[name])


def assert_same_steps(results: list[Any], expected: dict[str, Any], *, of_losses: bool = True) -> None:
    """Each process made the three steps that one makes on the joined batch."""
    assert expected["steps"] == 3
    for found in results:
        assert found["steps"] == 3
        assert len(found["losses"]) == len(expected["losses"])
        assert len(found["gradients"]) == len(expected["gradients"])
        for step, (ours, theirs) in enumerate(zip(found["gradients"], expected["gradients"])):
            assert len(ours) == len(theirs)
            for gradient, wanted in zip(ours, theirs):
                assert_near(gradient, wanted, f"gradient {step}")
        for key, value in expected["state"].items():  # Adam makes steps of gradients that are rounding errors of 0
            step = (value.float() - expected["start"][key].float()).norm()
            error = (found["state"][key].float() - value.float()).norm()
            assert error <= 0.01 * step + 1e-6, f"{key}: error {error:.3g} of a step of {step:.3g}"
        if of_losses:
            for ours, theirs in zip(found["losses"], expected["losses"]):
                for loss, value in theirs.items():
                    assert ours[loss] == pytest.approx(value, rel=1e-3, abs=1e-4), loss
    assert all(torch.equal(a, b) for a, b in zip(*(found["state"].values() for found in results)))
