"""Codes that learn from captions: the loss, who gets its gradients, its data, its recipes, and several processes."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import socket
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from test_distributed import Record, assert_near
from tiny_task import NETWORK, trainer
from torch.utils.data import DataLoader

from trainers.data import ImageData
from trainers.data.rows import CaptionedImages
from trainers.tasks import ContrastiveTask
from zoo.cli.training import run
from zoo.media import MediaError

SMALL: dict[str, Any] = {
    "stem_width": 8, "stage_widths": [8, 16], "stage_blocks": [1, 1], "decoder_stage_blocks": [1, 1], "width": 32,
    "layers": 1, "heads": 2, "projection_heads": 2, "embedding_width": 16,
    "quantizer": {
        "kind": "grouped", "group": {"kind": "vector", "codebook_size": 16, "dim": 8, "metric": "cosine"},
        "num_groups": 2,
    },
}  # fmt: skip
TEXT = {"width": 16, "layers": 1, "heads": 2}
TEXTS = ("a dog in the snow", "two red chairs", "people at a market", "an old tram", "the sea", "a bowl of soup")


def task(seed: int = 0, **settings: Any) -> ContrastiveTask:
    torch.manual_seed(seed)
    defaults = {"quantizer_weights": {"codebook": 1.0, "commitment": 0.25}, "learning_rate": 1e-3}
    return ContrastiveTask("unitok_large", changes=SMALL, text=TEXT, **{**defaults, **settings})


def captioned(count: int = 4, seed: int = 0) -> CaptionedImages:
    images = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    return CaptionedImages(
        torch.nn.functional.interpolate(images, (32, 32), mode="bilinear"),
        tuple(TEXTS[(seed + i) % len(TEXTS)] for i in range(count)),
    )


def pictures(height: int = 48, width: int = 56) -> list[bytes]:
    """Images of noise, a file for each of the texts."""
    generator, files = np.random.default_rng(0), []
    for _ in TEXTS:
        Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(
            file := io.BytesIO(), "PNG"
        )
        files.append(file.getvalue())
    return files


def save_shard(
    path: Path, captions: dict[int, bytes] | None = None, suffix: str = "txt", images: list[bytes] | None = None
) -> Path:
    """A shard of images with captions, the texts but for those given."""
    with tarfile.open(path, "w") as archive:
        for number, image in enumerate(images or pictures()):
            text = (captions or {}).get(number, TEXTS[number].encode())
            for name, data in ((f"{number}.png", image), (f"{number}.{suffix}", text)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


# -- loss --------------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_open_clip_and_reaches_codes_texts_and_scale() -> None:
    module = task(contrastive_weight=0.5).train()
    batch = captioned()
    signal = module.model_range(batch.images)
    output = module.reconstructed(signal)
    module._texts = batch.texts
    total, losses = module.generator_loss(signal, output, 0)
    model: Any = module.model
    images = model.image_embedding(output.quantized.codes)
    ids = open_clip.get_tokenizer("ViT-B-32")(list(batch.texts))
    texts = torch.nn.functional.normalize(module.text_tower.transformer(ids), dim=-1)
    expected = open_clip.ClipLoss()(images, texts, module.logit_scale.exp())
    torch.testing.assert_close(losses["contrastive"], expected.detach())
    rest = total.detach() - 0.5 * expected.detach()
    ends = [output.quantized.codes, module.logit_scale, module.text_tower.transformer.token_embedding.weight]
    ends += [model.feature_norm.weight, model.to_embedding.weight]
    assert all(bool(slope.any()) for slope in torch.autograd.grad(total, ends, retain_graph=True))
    module.eval()
    evaluated, losses = module.generator_loss(signal, output, 0)
    assert "contrastive" not in losses
    torch.testing.assert_close(evaluated.detach(), rest)


def test_images_learn_to_find_their_captions() -> None:
    module = task(contrastive_weight=1.0, learning_rate=3e-3, schedule="constant")
    batch = captioned()

    @torch.no_grad()
    def contrastive() -> float:
        signal = module.train().model_range(batch.images)
        return float(module.contrastive_loss(module.reconstructed(signal).quantized.codes, batch.texts))

    trainer(max_steps=50).fit(module, DataLoader([batch] * 50, batch_size=None))  # type: ignore[arg-type]
    assert contrastive() < 0.7 * math.log(4)  # chance is the logarithm


def test_the_scale_of_the_cosines_stays_in_its_bounds() -> None:
    for start, bound in ((10.0, math.log(100)), (-3.0, 0.0)):
        module = task()
        module.logit_scale.data.fill_(start)
        trainer(max_steps=1).fit(module, DataLoader([captioned()], batch_size=None))  # type: ignore[arg-type]
        assert float(module.logit_scale.detach()) == pytest.approx(bound)


def test_what_has_one_axis_does_not_decay() -> None:
    module = task()
    decaying, others = module.generator_groups()
    assert others["weight_decay"] == 0.0
    found = {id(parameter) for group in (decaying, others) for parameter in group["params"]}
    named = dict(module.named_parameters())
    assert found == {id(value) for value in named.values() if value.requires_grad}
    assert any(parameter is module.logit_scale for parameter in others["params"])
    assert all(parameter.ndim >= 2 for parameter in decaying["params"])


def test_models_settings_and_batches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one with an embedding of its images, .* got compact_f8"):
        ContrastiveTask("compact_f8", changes=NETWORK, text=TEXT)
    with pytest.raises(ValueError, match="trainable: expected all"):
        task(trainable="decoder")
    with pytest.raises(ValueError, match="a width that 3 heads divide"):
        ContrastiveTask("unitok_large", changes=SMALL, text={"width": 16, "heads": 3})
    with pytest.raises(ValueError, match="expected batches of images with captions"):
        task().training_step(captioned().images, 0)  # type: ignore[arg-type]


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_every_source_gives_the_same_pairs(tmp_path: Path, workers: int) -> None:
    import datasets
    from pyarrow import parquet, table

    squares = pictures(48, 48)
    save_shard(tmp_path / "text.tar", images=squares)
    values = {number: json.dumps({"caption": [text]}).encode() for number, text in enumerate(TEXTS)}
    save_shard(tmp_path / "json.tar", values, "json", squares)
    parquet.write_table(table({"image": squares, "text": list(TEXTS)}), tmp_path / "photos.parquet")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": square} for square in squares], "text": list(TEXTS)}
    datasets.Dataset.from_dict(rows, features).save_to_disk(str(tmp_path / "arrow"))

    def pairs(name: str, captions: str, cache: bool = False) -> set[tuple[float, str]]:
        data = ImageData(
            str(tmp_path / name), size=48, batch_size=2, workers=workers, transform=torch.nn.Identity(),
            captions=captions, cache=cache,
        )  # fmt: skip
        batches = list(data.train_dataloader())
        assert all(isinstance(batch, CaptionedImages) and len(batch) == len(batch.texts) == 2 for batch in batches)
        means = [
            (float(image.double().mean()), text) for batch in batches for image, text in zip(*vars(batch).values())
        ]
        return {(round(mean, 6), text) for mean, text in means}

    pixels = [np.asarray(Image.open(io.BytesIO(square))) for square in squares]
    expected = {(round(float(image.mean() / 255), 6), text) for image, text in zip(pixels, TEXTS)}
    places = {"text.tar": "txt", "json.tar": "json:caption", "photos.parquet": "text", "arrow": "text"}
    assert all(pairs(name, captions) == expected for name, captions in places.items())
    assert pairs("text.tar", "txt", cache=True) == expected


def test_images_without_captions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    captions = {1: b"", 3: b"\xff\xfe", 4: b"  a tram  "}
    data = ImageData(str(save_shard(tmp_path / "photos.tar", captions)), captions="txt", size=32, batch_size=4)
    (batch,) = data.train_dataloader()
    assert set(batch.texts) == {TEXTS[0], TEXTS[2], "a tram", TEXTS[5]}
    assert {Path(name).name.partition("::")[2] for name in data.skipped} == {"1.png", "3.png"}
    assert all("no caption txt" in reason for reason in data.skipped.values())
    none = ImageData(str(tmp_path / "photos.tar"), captions="json:caption", size=32)
    with pytest.raises(MediaError, match="no image of 6 can be read"):
        list(none.train_dataloader())


def test_one_of_several_captions_is_drawn(tmp_path: Path) -> None:
    values = {number: json.dumps([text, text.upper(), " "]).encode() for number, text in enumerate(TEXTS)}
    captions = {number: b'{"all": ' + value + b"}" for number, value in values.items()}
    shard = save_shard(tmp_path / "photos.tar", captions, "json")
    settings: dict[str, Any] = {"captions": "json:all", "size": 32, "batch_size": 6}
    loader = ImageData(str(shard), **settings).train_dataloader()
    drawn = [set(batch.texts) for _ in range(6) for batch in loader]
    assert {text for texts in drawn for text in texts} == {form for text in TEXTS for form in (text, text.upper())}
    again = ImageData(str(shard), **settings).train_dataloader()
    assert drawn == [set(batch.texts) for _ in range(6) for batch in again]


# -- recipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unitok_published", "unitok_photos"])
def test_a_recipe_runs_two_steps(name: str, noise_photos: Path, tmp_path: Path) -> None:
    adversary = {"discriminator": {"kind": "patchgan", "hidden_channels": 4, "num_layers": 1}}
    adversary |= {"discriminator_start": 1, "adaptive_weight": True}  # type: ignore[dict-item]
    run(
        "fit",
        [
            f"--config={name}", f"--data.train={save_shard(tmp_path / 'photos.tar')}", f"--data.val={noise_photos}",
            "--data.init_args.size=32", "--data.init_args.batch_size=3", "--data.init_args.workers=0",
            f"--model.init_args.changes={json.dumps(SMALL)}", "--model.init_args.perceptual=null",
            f"--model.init_args.text={json.dumps(TEXT)}", f"--model.init_args.adversary={json.dumps(adversary)}",
            "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.val_check_interval=2",
            "--trainer.check_val_every_n_epoch=null", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", f"--out={tmp_path}",
        ],
    )  # fmt: skip
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["train/total"]]
    assert len(steps) == 2
    assert all(math.isfinite(float(row["train/contrastive"])) for row in steps)
    assert [row["val/psnr"] for row in rows if row["val/psnr"]]
    saved = torch.load(tmp_path / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert {"logit_scale", "text_tower.transformer.positional_embedding"} <= saved["state_dict"].keys()


# -- several processes -------------------------------------------------------------------------------------------------


def trained(world_size: int, rank: int) -> dict[str, Any]:
    """Gradients, losses and last weights of three steps of a run that gives this process its part of each batch."""
    module = task(seed=0 if world_size == 1 else rank, weight_decay=0.01)  # other weights: the first one's count
    batches = []
    for number in range(3):
        batch = captioned(4, seed=number)
        mine = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
        batches.append(CaptionedImages(batch.images[mine], batch.texts[mine]))
    strategy, record = "ddp" if world_size > 1 else "auto", Record()
    loop = trainer(
        max_epochs=1, devices=world_size, strategy=strategy, use_distributed_sampler=False, callbacks=[record]
    )
    loop.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return {"gradients": record.gradients, "losses": record.losses, "state": module.state_dict()}


def work(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    torch.save(trained(2, rank), f"{out}/{rank}.pt")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
def test_two_processes_step_as_one_on_the_joined_batch(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(work, (port, str(tmp_path)), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    expected = trained(1, 0)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(first["gradients"]) == len(expected["gradients"]) == 3
    for step, (ours, theirs) in enumerate(zip(first["gradients"], expected["gradients"])):
        for gradient, wanted in zip(ours, theirs, strict=True):
            assert_near(gradient, wanted, f"gradient {step}")
    for ours, theirs in zip(first["losses"], expected["losses"], strict=True):
        assert ours["train/contrastive"] == pytest.approx(theirs["train/contrastive"], rel=1e-3)
    assert all(torch.equal(first["state"][name], value) for name, value in second["state"].items())
