"""SEED's two stages: what learns, what from, that losses fall, runs that resume, and the recipes."""

from __future__ import annotations

import csv
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from test_contrastive_task import TEXTS, save_shard
from test_resume import Interrupt, assert_equal
from tiny_open_clip import save_tiny_clip
from tiny_task import trainer
from torch import Tensor
from torch.utils.data import DataLoader

import zoo
from tokenizers_visual.inversion.backbones import load_pair
from trainers.checkpoint_io import AtomicCheckpointIO
from trainers.data import ImageData
from trainers.data.rows import CaptionedImages
from trainers.tasks import QueryCodeTask, QueryTask
from zoo.cli.training import run

SMALL: dict[str, Any] = {
    "image_size": 28, "num_tokens": 4, "embedding_width": 24, "decoder_layers": 1, "decoder_heads": 2,
    "vision": {"width": 16, "layers": 1, "heads": 2, "hidden": 16, "patch_size": 14},
    "queries": {"width": 16, "layers": 2, "heads": 2, "hidden": 16},
    "quantizer": {"kind": "vector", "codebook_size": 16, "dim": 8},
}  # fmt: skip
TEXT = {"width": 16, "layers": 1, "heads": 2}
WEIGHTS = {"commitment": 5.0, "codebook": 1.25}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def query_task(**settings: Any) -> QueryTask:
    torch.manual_seed(0)
    return QueryTask("seed_tokenizer_2", changes=SMALL, text=TEXT, dim=8, **{"learning_rate": 3e-3, **settings})


def code_task(clip: str, **settings: Any) -> QueryCodeTask:
    torch.manual_seed(0)
    defaults = {"quantizer_weights": WEIGHTS, "learning_rate": 3e-3}
    return QueryCodeTask("seed_tokenizer_2", clip, SMALL, **{**defaults, **settings})


def images(count: int = 6) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (28, 28), mode="bilinear")


def moved(task: Any, batches: list[Any]) -> set[str]:
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    trainer(max_steps=len(batches)).fit(task, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    after = task.model.state_dict()
    return {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


def test_the_last_query_finds_the_caption_and_the_vision_rests() -> None:
    task, batch = query_task(), CaptionedImages(images(), TEXTS)
    start = float(task.losses(batch)["total"].detach())
    hidden = task.model.hidden(batch.images)
    logits = task.logit_scale.exp() * F.normalize(task.to_joint(hidden[:, -1]), dim=-1)
    logits = logits @ F.normalize(task.text_tower(batch.texts), dim=-1).T
    sides = [F.cross_entropy(each, torch.arange(6), label_smoothing=0.1) for each in (logits, logits.T)]
    assert start == pytest.approx(float(sum(sides).detach()) / 2, rel=1e-5)  # type: ignore[attr-defined]
    assert moved(task, [batch] * 100) == {"norm_vision", "queries"}
    assert float(task.losses(batch)["total"].detach()) < 0.6 * start
    task.logit_scale.data.fill_(10.0)
    moved(task, [batch])
    assert float(task.logit_scale.detach()) == pytest.approx(math.log(100))


def test_codes_learn_queries_and_embeddings_and_what_makes_the_queries_rests(clip: str) -> None:
    task = code_task(clip).train()
    start = {name: float(value.detach()) for name, value in task.losses(images()).items()}
    assert start["total"] == pytest.approx(
        0.5 * start["embedding"] + 2 * start["recall"] + 5 * start["commitment"] + 1.25 * start["codebook"]
    )
    pair = load_pair(clip)
    with torch.no_grad():
        wanted = pair.image_features(task.clip_input.stretched(images()))
        codes = task.model.quantizer(task.model.latent(images())).codes
        assert start["embedding"] == pytest.approx(float(F.mse_loss(task.model.embedding_of(codes), wanted)), rel=1e-4)
    learned = moved(task, [images()] * 100)
    assert learned == {"to_latent", "quantizer", "from_codes", "code_positions", "blocks", "reduce", "to_embedding"}
    end = {name: float(value.detach()) for name, value in task.losses(images()).items()}
    assert end["total"] < 0.7 * start["total"]
    assert end["recall"] < start["recall"]
    assert not any(name.startswith("clip") for name in task.state_dict())


def test_what_does_not_fit_is_refused(clip: str) -> None:
    with pytest.raises(ValueError, match="expected one of the family seed_tokenizer, got compact_f8"):
        QueryTask("compact_f8")
    with pytest.raises(ValueError, match="expected batches of images with captions"):
        query_task().losses(images())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"smoothing: expected a value in \[0, 1\), got 1"):
        query_task(smoothing=1)
    with pytest.raises(ValueError, match=r"the losses of this quantizer are .*, got \['entropy'\]"):
        code_task(clip, quantizer_weights={"entropy": 1.0}).losses(images())
    with pytest.raises(ValueError, match="clip: expected embeddings of 8, got 24"):
        QueryCodeTask("seed_tokenizer_2", clip, {**SMALL, "embedding_width": 8}).losses(images())
    with pytest.raises(ValueError, match=r"expected one with .*to_embedding, got seed_tokenizer_1 without reduce"):
        QueryCodeTask("seed_tokenizer_1", clip, SMALL)


@pytest.mark.parametrize("stage", ["queries", "codes"])
def test_a_resumed_run_ends_in_the_same_state(stage: str, clip: str, noise_photos: Path, tmp_path: Path) -> None:
    def fitted(out: Path, stop: int | None = None, resume: Path | None = None) -> dict[str, Any]:
        task: Any = query_task() if stage == "queries" else code_task(clip)
        data: lightning.LightningDataModule = ImageData(str(noise_photos), size=28, batch_size=2, scale=(0.7, 1.0))
        if stage == "queries":
            data = ImageData(str(save_shard(tmp_path / "photos.tar")), captions="txt", size=28, batch_size=2)
        saves = ModelCheckpoint(out, "{step}", every_n_train_steps=1, save_top_k=-1)
        loop = trainer(
            max_steps=4, max_epochs=-1, enable_checkpointing=True, plugins=[AtomicCheckpointIO()],
            default_root_dir=out, callbacks=[Interrupt(stop), saves],
        )  # fmt: skip
        torch.manual_seed(3 if resume is None else 99)
        with pytest.raises(InterruptedError) if stop is not None else nullcontext():
            loop.fit(task, data, ckpt_path=resume, weights_only=True)
        return torch.load(out / f"step={stop or 4}.ckpt", weights_only=True)

    whole = fitted(tmp_path / "whole")
    fitted(tmp_path / "first", stop=2)
    resumed = fitted(tmp_path / "second", resume=tmp_path / "first" / "step=2.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch"):
        assert_equal(resumed[key], whole[key], key)


@pytest.mark.parametrize(
    "name",
    [
        "seed_tokenizer_photos", "seed_tokenizer_published", "seed_tokenizer_queries_captions",
        "seed_tokenizer_queries_described",
    ],
)  # fmt: skip
def test_a_shipped_recipe_runs_two_steps(name: str, clip: str, noise_photos: Path, tmp_path: Path) -> None:
    own = [f"--model.init_args.clip={clip}", f"--data.init_args.train={noise_photos}"]
    if "queries" in name:
        shard = save_shard(tmp_path / "photos.tar")
        own = [f"--model.init_args.text={json.dumps(TEXT)}", f"--data.init_args.train={shard}"]
    run(
        "fit",
        [
            f"--config={name}", *own, f"--model.init_args.changes={json.dumps(SMALL)}", "--data.init_args.size=28",
            "--data.init_args.batch_size=2", "--data.init_args.workers=0", "--trainer.max_steps=2",
            "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/total")]
    assert len(rows) == 2
    assert all(math.isfinite(float(row["train/total"])) for row in rows)
    model = zoo.create_model(f"local-dir:{tmp_path / 'version_0' / 'model'}")
    assert model.encode(torch.rand(1, 3, 28, 28)).indices.shape == (1, 4)
