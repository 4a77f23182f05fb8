"""Validation on two processes (gloo) gives what one gives, where these have unequal shares of the data."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import torch.multiprocessing
from tiny_open_clip import save_tiny_clip
from tiny_task import batches as tiny_batches
from tiny_task import task as tiny_task

from tokenizers_visual.inversion.cir_base import Picture, Query
from tokenizers_visual.inversion.cir_datasets import Cirr
from trainers.callbacks import CodebookUsage
from trainers.data.retrieval import RetrievalPart, RetrievalParts
from trainers.tasks import LinCIRTask, ProxyTask

SIZES = {"width": 16, "layers": 1, "heads": 2}
VECTOR = {"kind": "vector", "codebook_size": 32, "dim": 4, "metric": "cosine"}
BASE = {"dim": 8, "channels": 8, "channel_multipliers": [1, 1], "blocks": 1, "norm_groups": 4}
TITOK = {
    "image_size": 32, "patch_size": 2, "num_tokens": 8, "encoder": SIZES, "decoder": SIZES, "quantizer": VECTOR,
    "proxy": {"codebook_size": 16, **BASE},
}  # fmt: skip
TEACHER = {
    "channels": 8, "widths": [8, 8], "blocks": 1, "norm_groups": 4, "attention": [False, False],
    "quantizer": {"kind": "vector", "codebook_size": 16, "dim": 8},
}  # fmt: skip
SHARES = {"one": [[2, 2, 2]], "two": [[1, 3], [2]], "first without": [[], [2, 4]]}  # batches of each process: sizes


class Given:
    """Batches of images, of one process; as of shards, their number is not known before."""

    def __init__(self, batches: list[torch.Tensor]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def validated(task: lightning.LightningModule, batches: Any, world: int, **settings: Any) -> dict[str, float]:
    trainer = lightning.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, **settings,
    )  # fmt: skip
    (values,) = trainer.validate(task, batches, verbose=False)
    return {name: float(value) for name, value in values.items()}


def dealt(images: torch.Tensor, shares: str, rank: int) -> Given:
    sizes = [size for share in SHARES[shares] for size in share]
    start = sum(len(share) for share in SHARES[shares][:rank])
    return Given(list(images.split(sizes)[start : start + len(SHARES[shares][rank])]))


def reconstruction(shares: str, rank: int) -> dict[str, float]:
    images = tiny_batches(6, size=1).flatten(0, 1)
    return validated(tiny_task(), dealt(images, shares, rank), len(SHARES[shares]), callbacks=[CodebookUsage()])


def prediction(shares: str, rank: int) -> dict[str, float]:
    torch.manual_seed(0)
    task = ProxyTask(
        "titok_l32", teacher_init="random", teacher_changes=TEACHER, changes=TITOK,
        quantizer_weights={"codebook": 1.0, "commitment": 0.25},
    )  # fmt: skip
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images *= torch.linspace(0.1, 1, 6)[:, None, None, None]  # so that their losses differ
    return validated(task, dealt(images, shares, rank), len(SHARES[shares]))


SHARED = (reconstruction, prediction)


def retrieval(world: int, clip: str) -> dict[str, float]:
    """Five queries for two processes."""
    torch.manual_seed(0)
    task = LinCIRTask("lincir_vit_l14", changes={"hidden_dim": 8, "dropout": 0.0}, clip=clip)
    texts = ("is red", "has a dog", "sleeps", "is a car on a street", "with two cats")
    queries = tuple(Query(str(i), i, text, (f"a photo of $ that {text}",)) for i, text in enumerate(texts))
    part = Cirr(
        "CIRR", tuple(Picture(Path(), f"{i}.png") for i in range(12)), tuple(range(12)), queries,
        references=tuple(range(5)), targets=(6, 7, 8, 9, 5), members=((0, 1, 2, 3, 4, 6),) * 5,
    )  # fmt: skip
    features = torch.randn(12, 24, generator=torch.Generator().manual_seed(2))
    return validated(task, RetrievalParts((RetrievalPart(part, features),)), world)


def process(rank: int, port: int, folder: str, clip: str) -> None:
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
        values = {f"{of.__name__} {shares}": of(shares, rank) for of in SHARED for shares in list(SHARES)[1:]}
        torch.save({**values, "retrieval": retrieval(2, clip)}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def results(clip: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(process, (port, str(folder), clip), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shares", list(SHARES)[1:])
@pytest.mark.parametrize("of", SHARED)
def test_batches_count_by_their_size(
    of: Callable[[str, int], dict[str, float]], shares: str, results: list[dict[str, dict[str, float]]]
) -> None:
    expected = of("one", 0)
    assert {"val/total", "val/psnr" if of is reconstruction else "val/proxy_accuracy"} < set(expected)
    assert ("val/usage" in expected) == (of is reconstruction)
    for found in results:
        assert found[f"{of.__name__} {shares}"] == pytest.approx(expected, rel=1e-5)


def test_retrieval_shares_the_queries(results: list[dict[str, dict[str, float]]], clip: str) -> None:
    expected = retrieval(1, clip)
    assert 0 < expected["val/R@5"] < 100  # neither is trivial
    for found in results:
        assert found["retrieval"] == pytest.approx(expected)
