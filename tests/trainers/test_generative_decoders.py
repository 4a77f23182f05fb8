"""Tokenizers whose decoder makes signals of noise: their losses fall, tokens tell the decoder something, parts rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from safetensors.torch import save_file
from test_adaptive_recipes import BASE
from test_adaptive_recipes import SMALL as PREFIXES
from tiny_task import loader, trainer
from torch import Tensor

from tokenizers_visual import selftok
from trainers.tasks import AdaptiveTask, LatentTask, ReconstructionTask
from zoo.config import ConfigError

VECTOR = {"kind": "vector", "codebook_size": 32, "dim": 4, "metric": "cosine"}
AUTOENCODER = {**BASE, "dim": 4, "attention": [False, False], "scale": 1.5, "shift": 0.1, "projections": False}
SELFTOK: dict[str, Any] = {
    "channels": 4, "latent_size": 16, "positions": 8, "num_tokens": 8, "width": 16, "heads": 2, "query_width": 16,
    "query_heads": 2, "layers": 1,
    "decoder": {
        "head_width": 16, "layers": 2, "positions": 8, "stage_ends": [500, 1000], "stage_tokens": [5, 3], "steps": 2,
        "null_probability": 0.1,
    },
    "quantizer": {
        "kind": "position_diversity", "positions": 8, "groups": 2,
        "inner": {"codebook_size": 32, "dim": 8, "metric": "cosine", "codebook": {"kind": "ema"}},
    },
}  # fmt: skip
FOUR_M: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "encoder": {"width": 16, "layers": 1, "heads": 2},
    "decoder": {
        "kind": "diffusion", "channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [2], "norm_groups": 4,
        "steps": 2,
    },
    "quantizer": {**VECTOR, "unit_vectors": False, "codebook": {"kind": "directions"}},
}  # fmt: skip
LAYTON: dict[str, Any] = {
    "small_side": 16,
    "tokenizer": {
        "channels": 8, "channel_multipliers": [1, 1], "decoder_channel_multipliers": [1, 1], "blocks": 1,
        "latent_channels": 8, "norm_groups": 4,
    },
    "diffusion": {
        "channels": [8, 16], "blocks": 1, "heads": [2, 4], "prompt_length": 2, "prompt_width": 8, "latent_size": 16,
        "decoder_channels": [8, 8], "decoder_blocks": 1, "latent_scale": 1.0, "norm_groups": 4, "prediction": "epsilon",
    },
    "quantizer": VECTOR,
}  # fmt: skip


def four_m(**settings: Any) -> ReconstructionTask:
    weights = {"commitment": 1.0, "diffusion": 1.0}
    return ReconstructionTask("four_m_rgb", FOUR_M, reconstruction_weight=0, quantizer_weights=weights, **settings)


def semanticist(**settings: Any) -> AdaptiveTask:
    return AdaptiveTask(
        "semanticist_l", changes=PREFIXES["semanticist"], reported=(), reconstruction_weight=0,
        quantizer_weights={"diffusion": 1.0}, **settings,
    )  # fmt: skip


def latent_task(**settings: Any) -> LatentTask:
    weights = {"commitment": 1.0, "diversity": 1.0, "flow": 1.0}
    return LatentTask(
        "selftok_512", AUTOENCODER, changes=SELFTOK, reconstruction_weight=0, quantizer_weights=weights, **settings
    )


def renderer(**settings: Any) -> LatentTask:
    changes = {**SELFTOK, "decoder": {"kind": "renderer", "head_width": 16, "layers": 2}}
    weights = {"commitment": 1.0, "diversity": 1.0}
    return LatentTask("selftok_512_renderer", AUTOENCODER, changes=changes, quantizer_weights=weights, **settings)


def layton(stage: str = "noise", **settings: Any) -> ReconstructionTask:
    weights = {"diffusion": 1.0} if stage == "noise" else {}
    weight = float(stage == "image")
    changes = {**LAYTON, "stage": stage}
    return ReconstructionTask(
        "layton_1024", changes, reconstruction_weight=weight, quantizer_weights=weights, **settings
    )


LEARNERS: dict[str, tuple[Any, str, float]] = {  # the task, its loss, and to which share of its start it falls
    "four_m": (four_m, "diffusion", 0.7),
    "semanticist": (semanticist, "diffusion", 0.8),
    "selftok": (latent_task, "flow", 0.8),
    "selftok renderer": (renderer, "reconstruction", 0.9),
    "layton": (layton, "diffusion", 0.9),
    "layton images": (lambda **settings: layton("image", **settings), "reconstruction", 0.97),
}


def images(batches: int = 1, size: int = 4) -> Tensor:
    """Smooth random images in [0, 1]."""
    coarse = torch.rand(batches * size, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").unflatten(0, (batches, size))


class Losses(lightning.Callback):
    """One loss of each step."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, list[float]()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics[f"train/{self.name}"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_100_steps_lower_the_loss(name: str) -> None:
    build, loss, share = LEARNERS[name]
    torch.manual_seed(0)
    losses = Losses(loss)
    batch = images(size=8).expand(100, -1, -1, -1, -1)
    trainer(max_steps=100, callbacks=[losses]).fit(build(learning_rate=5e-3), loader(batch))
    assert sum(losses.values[-20:]) < share * sum(losses.values[:20])


def test_semanticist_sees_no_tokens_in_some_items_before_tails_are_dropped() -> None:
    task = semanticist(tail_drop={"start": 10, "blank": 0.25})
    before, after = task.tail_drop.draw(400, 8, 0), task.tail_drop.draw(400, 8, 10)
    assert set(before.tolist()) == {0, 8}
    assert 60 < int((before == 0).sum()) < 140
    assert set(after.tolist()) == set(range(1, 9))
    with pytest.raises(ValueError, match="blank: expected 0 with a model without guidance"):
        AdaptiveTask("one_d_piece_l256", tail_drop={"blank": 0.1}, changes={**PREFIXES["one_d_piece"], "proxy": None})
    with pytest.raises(ConfigError, match=r"a blank in \[0, 1\]"):
        semanticist(tail_drop={"blank": 2.0})


def test_the_velocity_of_selftok_is_trained_without_tokens_in_some_items() -> None:
    torch.manual_seed(0)
    model = latent_task().model.train()
    seen: list[Tensor] = []
    flow = model.decoder.flow  # type: ignore[union-attr]
    model.decoder.flow = lambda *given: (seen.append(given[-1]), flow(*given))[1]  # type: ignore[union-attr]
    for _ in range(20):
        model(torch.randn(8, 4, 16, 16))
    counts = torch.cat(seen).sum(1)
    assert 4 < int((counts == 0).sum()) < 40
    assert int(counts.max()) == 8
    with pytest.raises(ConfigError, match="a context that sees the image"):
        selftok.FlowConfig(null_probability=0.1, context_sees_image=False)


def test_latents_are_those_of_diffusers_and_images_come_back_from_them(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    autoencoder = AutoencoderKL(**kinds, **sizes, use_quant_conv=False, use_post_quant_conv=False).eval()
    save_file(autoencoder.state_dict(), tmp_path / "vae.safetensors")
    fields = {**AUTOENCODER, "scale": 1.5305, "shift": 0.0609}
    task = LatentTask("selftok_512", fields, str(tmp_path / "vae.safetensors"), changes=SELFTOK)
    photos = images()[0]
    with torch.no_grad():
        latents = selftok.autoencoder_latents(autoencoder, 2 * photos - 1)
        torch.testing.assert_close(task.model_range(photos), latents, rtol=1e-4, atol=1e-4)
        back = selftok.autoencoder_images(autoencoder, latents) / 2 + 0.5
        torch.testing.assert_close(task.unit(latents), back, rtol=1e-4, atol=1e-4)
    assert not any("autoencoder" in name for name in task.state_dict())


def test_autoencoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="expected one of an autoencoder's latents, such as selftok_512, got four_m_rgb"
    ):
        LatentTask("four_m_rgb", AUTOENCODER, changes=FOUR_M)
    with pytest.raises(ValueError, match="autoencoder: expected a dim of 4, got 8"):
        LatentTask("selftok_512", {**AUTOENCODER, "dim": 8}, changes=SELFTOK)
    with pytest.raises(ValueError, match="autoencoder_weights: expected a file, got"):
        LatentTask("selftok_512", AUTOENCODER, str(tmp_path / "none"), changes=SELFTOK)
    with pytest.raises(ValueError, match="perceptual: expected None for latents, got lite0"):
        LatentTask("selftok_512", AUTOENCODER, changes=SELFTOK, perceptual="lite0")


def test_of_layton_the_control_alone_learns() -> None:
    for stage in ("noise", "image"):
        task = layton(stage, learning_rate=1e-2)
        before = {name: value.clone() for name, value in task.model.state_dict().items()}
        trainer(max_steps=3).fit(task, loader(images(3)))
        after = task.model.state_dict()
        moved = {name.partition(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
        assert moved == {"control"}


@pytest.mark.parametrize("name", ["four_m", "selftok", "semanticist"])
def test_validation_decodes_and_its_pictures_are_images(name: str) -> None:
    task = LEARNERS[name][0](ema_decay=0.9)
    run = trainer(max_steps=1)
    run.fit(task, loader(images()), loader(images()))
    assert 0 < float(run.callback_metrics["val/psnr"]) < 60
    assert task.pictures(task.model_range(images()[0])).shape == (4, 3, 32, 32)
