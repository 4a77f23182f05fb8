"""Runs of several processes, started by torchrun or SLURM with the command of a single one."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from trainers.data.loading import Reader, ShardedBatches, Split
from zoo.cli.training import launched, run
from zoo.media.sources import Record, open_source

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "--config=compact_photos",
    "--model.init_args.changes={patch_size: 2, fine_channels: 8, channels: 8, encoder_blocks: [1, 1], "
    "decoder_blocks: [1, 1], quantizer: {kind: vector, codebook_size: 32, dim: 4, codebook: {kind: ema}}}",
    "--model.init_args.perceptual=null", "--model.init_args.quantizer_weights={commitment: 0.25}",
    "--data.init_args.size=16", "--data.init_args.batch_size=2", "--data.init_args.workers=0",
    "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 9, 0 and 2 images."""
    folder = tmp_path_factory.mktemp("shards")
    generator = np.random.default_rng(0)
    for number, count in enumerate((9, 0, 2)):
        with tarfile.open(folder / f"{number}.tar", "w") as archive:
            for index in range(count):
                Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(buffer := BytesIO(), "PNG")
                info = tarfile.TarInfo(f"{index}.png")
                info.size = len(buffer.getvalue())
                archive.addfile(info, BytesIO(buffer.getvalue()))
    return folder


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_share_the_images_of_validation_whatever_the_shards(shards: Path, world: int, workers: int) -> None:
    seen = []
    for rank in range(world):
        source = open_source(str(shards))
        split = Split(rank, world, 2)
        batches = ShardedBatches(
            source, Reader(16, None), split, train=False, workers=workers, buffer=4, epoch_images=None
        )
        mine = [
            image.numpy().tobytes()
            for worker in range(workers)
            for block, *_ in batches._blocks(0, worker, 0, 0)
            for item, key in block
            if isinstance(item, Record)
            for image in [Reader(16, None)(item, key)]
        ]
        assert abs(len(mine) - 11 / world) < 1
        seen += mine
    assert len(seen) == len(set(seen)) == 11


def values(folder: Path, name: str) -> list[float]:
    with (folder / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "zoo", "fit",
        *SETTINGS, *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_sharded_weights_are_exported_whole(shards: Path, tmp_path: Path) -> None:
    strategy = "--trainer.strategy"
    settings = [
        f"--data.init_args.train={shards}", f"--data.init_args.val={shards}", "--trainer.max_steps=2",
        "--model.init_args.ema_decay=0.9", f"{strategy}=lightning.pytorch.strategies.ModelParallelStrategy",
        f"{strategy}.data_parallel_size=2", f"{strategy}.tensor_parallel_size=1", f"--out={tmp_path}",
    ]  # fmt: skip
    done = torchrun(*settings, "--data.init_args.cache=true")
    assert done.returncode == 0, done.stderr[-3000:]
    model = zoo.create_model(f"local-dir:{tmp_path / 'version_0' / 'model'}")
    assert model.encode(torch.zeros(1, 3, 16, 16)).indices.shape == (1, 4, 4)
    refused = torchrun(*settings, "--data.init_args.epoch_images=8")
    assert refused.returncode != 0
    assert "as many batches in every process" in refused.stderr


@pytest.mark.slow
def test_torchrun_takes_the_command_of_one_process(shards: Path, tmp_path: Path) -> None:
    data = [f"--data.init_args.train={shards}", f"--data.init_args.val={shards}"]
    done = torchrun(*data, "--trainer.max_steps=4", "--data.init_args.epoch_images=8", f"--out={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2/2" in done.stderr  # one run of two processes, not two runs
    assert [folder.name for folder in (tmp_path / "two").iterdir()] == ["version_0"]
    assert len(values(tmp_path / "two", "train/total")) == 4
    checkpoint = tmp_path / "two" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 4
    # one process measures the same on the same images, of which the two have 6 and 5
    run("validate", [*SETTINGS, *data, f"--ckpt_path={checkpoint}", f"--out={tmp_path / 'one'}"])
    for name in ("val/psnr", "val/reconstruction", "val/perplexity", "val/usage"):
        assert values(tmp_path / "one", name)[-1] == pytest.approx(values(tmp_path / "two", name)[-1], rel=1e-5), name


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        (
            {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
            {"devices": 4, "num_nodes": 2},
        ),
        ({"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "0"}, {"devices": 2, "num_nodes": 3}),
        ({"SLURM_NTASKS": "6"}, {}),  # inside an allocation, but not started by srun
    ],
)
def test_the_launcher_tells_the_number_of_processes(environment: dict[str, str], expected: dict[str, int]) -> None:
    assert launched(environment) == expected


def test_unequal_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 processes on 2 nodes"):
        launched({"SLURM_NTASKS": "5", "SLURM_NNODES": "2", "SLURM_PROCID": "1"})
