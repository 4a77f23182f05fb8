"""Every kind of task goes on bit for bit after a stop, what it draws and keeps for itself included."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_adaptive_recipes import SMALL, TEACHER, TITOK
from test_alignment_task import task as alignment_task
from test_codec_task import ADVERSARY as SOUND_ADVERSARY
from test_codec_task import task as codec_task
from test_contrastive_task import save_shard
from test_contrastive_task import task as contrastive_task
from test_generative_decoders import four_m, latent_task, layton
from test_resume import Interrupt, Losses, assert_equal
from test_semantic_task import features_task
from test_semantic_task import task as semantic_task
from tiny_task import ADVERSARY, trainer

from trainers.checkpoint_io import AtomicCheckpointIO
from trainers.data import AudioFolderData, ImageData, VideoData
from trainers.tasks import AdaptiveTask, HaltingTask, ProxyTask, ReconstructionTask, RollOutTask

STOP, END = 2, 4
WEIGHTS = {"codebook": 1.0, "commitment": 0.25}
PLAYERS: dict[str, Any] = {"adversary": {**ADVERSARY, "discriminator_start": 1}, "ema_decay": 0.9}
_STEPS = {"kind": "finite_scalar", "levels": [256], "margin": 0.0, "symmetric": True, "squash": "clamp"}
_CODES = {"kind": "vector", "codebook_size": 16, "dim": 4, "codebook": {"kind": "ema", "start": "kmeans"}}
GAUSSIANS: dict[str, Any] = {
    "resolution": 32, "channels": 8, "channel_multipliers": [1, 2], "blocks": 1, "norm_groups": 4, "width": 16,
    "gaussians": 24, "features": 4, "map_layers": 1, "stages": 1, "stage_layers": 1, "heads": 2, "points": 2,
    "quantizer": {"kind": "grouped", "num_groups": 6, "group": [_CODES, *[_STEPS] * 5]},
}  # fmt: skip
ELASTIC: dict[str, Any] = {
    "resolution": 32, "blocks": 2, "block_frames": 1, "patch_size": 8, "least_tokens": 2, "width": 16, "hidden": 16,
    "layers": 1, "heads": 2,
}  # fmt: skip
COSMOS: dict[str, Any] = {
    "channels": 16, "channel_multipliers": [1, 2], "blocks": 1, "latent_channels": 8, "attention_resolutions": [],
    "quantizer": {"kind": "finite_scalar", "levels": [8, 5, 5]},
}  # fmt: skip
TASKS: dict[str, Callable[[Path], lightning.LightningModule]] = {
    "adaptive": lambda _: AdaptiveTask("spectral_f16", changes=SMALL["spectral"], **PLAYERS),
    "roll out": lambda _: RollOutTask("alit_small_vqgan_quantised", None, changes=SMALL["alit"], ema_decay=0.9),
    "halting": lambda _: HaltingTask("karl_small_vqgan_quantised", changes=SMALL["karl"], first_counts=(2, 4)),
    "proxy": lambda _: ProxyTask(
        "titok_l32", teacher_init="random", teacher_changes=TEACHER, changes=TITOK, quantizer_weights=WEIGHTS
    ),
    "semantic": lambda dinov2: semantic_task(dinov2, perturbation={"share": 0.5, "neighbours": 5}, **PLAYERS),
    "contrastive": lambda _: contrastive_task(**PLAYERS),
    "diffusion": lambda _: four_m(ema_decay=0.9),
    "flow": lambda _: latent_task(ema_decay=0.9),
    "painting": lambda _: layton("image"),
    "control": lambda _: layton("noise", ema_decay=0.9),
    "alignment": lambda dinov2: alignment_task(dinov2, stochastic_depth=0.3, ema_decay=0.9),
    "features": lambda dinov2: features_task(dinov2, ema_decay=0.9),
    "gaussians": lambda _: ReconstructionTask(
        "gaussian_token_256_1024", GAUSSIANS, quantizer_weights={"commitment": 1.0}
    ),
    "video": lambda _: ReconstructionTask("elastictok_200m", ELASTIC, ema_decay=0.9),
    "video frames": lambda _: ReconstructionTask("cosmos_dv4x8x8", {**COSMOS, "dropout": 0.1}, ema_decay=0.9),
    "codec": lambda _: codec_task(adversary={**SOUND_ADVERSARY, "discriminator_start": 1}, ema_decay=0.9),
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", 0.1 * generator.normal(size=4000), 16000)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_a_resumed_run_ends_in_the_same_state(
    name: str, noise_photos: Path, sounds: Path, small_dinov2: Path, tmp_path: Path
) -> None:
    def run(out: Path, stop: int | None = None, resume: Path | None = None) -> tuple[dict[str, Any], list[Any]]:
        torch.manual_seed(7)
        module = TASKS[name](small_dinov2)
        data: lightning.LightningDataModule = ImageData(str(noise_photos), size=32, batch_size=2, scale=(0.7, 1.0))
        if name == "contrastive":
            shard = save_shard(tmp_path / "photos.tar")
            data = ImageData(str(shard), captions="txt", size=32, batch_size=2, scale=(0.7, 1.0))
        if name.startswith("video"):
            frames = {"video": 2, "video frames": 5}[name]
            data = VideoData(str(noise_photos), frames=frames, size=32, batch_size=1, scale=(0.7, 1.0))
        if name == "codec":
            data = AudioFolderData(str(sounds), sample_rate=16000, seconds=0.064, batch_size=2, gain=(-6.0, 0.0))
        losses = Losses()
        loop = trainer(
            max_steps=END, max_epochs=-1, enable_checkpointing=True, plugins=[AtomicCheckpointIO()],
            default_root_dir=out,
            callbacks=[losses, Interrupt(stop), ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)],
        )  # fmt: skip
        torch.manual_seed(3 if resume is None else 99)
        with pytest.raises(InterruptedError) if stop is not None else nullcontext():
            loop.fit(module, data, ckpt_path=resume, weights_only=True)
        return torch.load(out / f"step={stop or END}.ckpt", weights_only=True), losses.steps

    whole, losses = run(tmp_path / "whole")
    run(tmp_path / "first", stop=STOP)
    resumed, further = run(tmp_path / "second", resume=tmp_path / "first" / f"step={STOP}.ckpt")
    assert further == losses[-len(further) :]
    assert len(further) == END - STOP
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch"):
        assert_equal(resumed[key], whole[key], key)
