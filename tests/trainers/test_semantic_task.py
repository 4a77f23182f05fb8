"""Codes that learn from a frozen teacher: its weights, who gets its gradients, and when it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from tiny_task import NETWORK, loader, trainer

import zoo
from tokenizers_visual.robust_tok import semantic_teacher
from trainers.tasks import SemanticTask

SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "latent_side": 4, "encoder": {"width": 128, "layers": 4, "heads": 4},
    "decoder": {"width": 32, "layers": 1, "heads": 2},
    "quantizer": {"kind": "vector", "codebook_size": 32, "dim": 8, "metric": "cosine"},
}  # fmt: skip


def task(file: Path, **settings: Any) -> SemanticTask:
    torch.manual_seed(0)
    defaults = {"quantizer_weights": {"codebook": 1.0, "commitment": 0.25}, "learning_rate": 1e-3}
    return SemanticTask("robust_tok.main", teacher_weights=str(file), changes=SMALL, **{**defaults, **settings})


def features_task(file: Path, **settings: Any) -> SemanticTask:
    """Of MingTok."""
    narrow = {"width": 16, "layers": 1, "heads": 2}
    changes = {
        "image_size": 32, "patch_size": 16, "pixel_patch_size": 8, "encoder": narrow, "pixels": narrow,
        "semantic": {"width": 128, "layers": 4, "heads": 4}, "latent_mean": 0.0, "latent_scale": 1.0,
    }  # fmt: skip
    torch.manual_seed(0)
    return SemanticTask("mingtok_vision", 1.0, str(file), changes=changes, **{"learning_rate": 1e-3, **settings})


def images(batches: int = 1) -> torch.Tensor:
    return torch.rand(batches, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_teacher_is_dinov2_resampled_to_the_patches_of_the_model(small_dinov2: Path) -> None:
    config = zoo.create_model("robust_tok.main", **SMALL).config
    network = VisionTransformer(32, 8, num_classes=0, embed_dim=128, depth=4, num_heads=4, init_values=0.1).eval()
    network.load_state_dict(checkpoint_filter_fn(load_file(small_dinov2), network, antialias=True))
    x = images()[0]
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network((x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
        found = semantic_teacher(config, small_dinov2)(2 * x - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std(0).mean()) > 1e-3  # it tells the images apart


def test_the_semantic_term_reaches_the_codes_and_stays_out_of_validation(small_dinov2: Path) -> None:
    module = task(small_dinov2, semantic_weight=0.5).train()
    signal = module.model_range(images()[0])
    output = module.reconstructed(signal)
    total, losses = module.generator_loss(signal, output, 0)
    rest = total.detach() - 0.5 * losses["semantic"]
    assert losses["total"] == total.detach()
    (to_codes,) = torch.autograd.grad(total - rest, output.quantized.codes, retain_graph=True)
    (to_latent,) = torch.autograd.grad(total, module.model.to_latent.weight)
    assert to_codes.abs().sum() > 0
    assert to_latent.abs().sum() > 0
    module.eval()
    _, losses = module.generator_loss(signal, output, 0)
    assert "semantic" not in losses
    torch.testing.assert_close(losses["total"], rest)


def test_the_teacher_rests_and_codes_learn_from_it(small_dinov2: Path) -> None:
    module = task(small_dinov2, semantic_weight=1.0, learning_rate=1e-2)
    before = {name: value.clone() for name, value in module.teacher.network.state_dict().items()}
    batch = images()

    def semantic() -> float:
        torch.manual_seed(1)
        signal = module.train().model_range(batch[0])
        return float(module.generator_loss(signal, module.reconstructed(signal), 0)[1]["semantic"])

    start = semantic()
    trainer(max_steps=60).fit(module, loader(batch.expand(60, -1, -1, -1, -1)))
    assert semantic() < 0.9 * start
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.network.state_dict().items())
    assert not any("teacher" in name for name in module.state_dict())


def test_features_of_mingtok_follow_a_teacher_that_sees_as_many_patches(small_dinov2: Path) -> None:
    module = features_task(small_dinov2)
    signal = module.model_range(images()[0])
    network = VisionTransformer(28, 14, num_classes=0, embed_dim=128, depth=4, num_heads=4, init_values=0.1).eval()
    network.load_state_dict(checkpoint_filter_fn(load_file(small_dinov2), network, antialias=True))
    with torch.no_grad():
        small = torch.nn.functional.interpolate(signal, (28, 28), mode="bicubic", antialias=True)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        patches = network.forward_features(((small + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))[:, 1:]
        torch.testing.assert_close(module.teacher(signal).flatten(1, 2), patches, atol=1e-4, rtol=1e-4)

    def losses() -> dict[str, float]:
        found = module.train().generator_loss(signal, module.reconstructed(signal), 0)[1]
        return {name: float(value) for name, value in found.items()}

    start = losses()
    assert start["total"] == pytest.approx(start["reconstruction"] + start["semantic"], rel=1e-5)
    trainer(max_steps=60).fit(module, loader(images().expand(60, -1, -1, -1, -1)))
    end = losses()
    assert end["semantic"] < 0.7 * start["semantic"]
    assert end["reconstruction"] < start["reconstruction"]


def test_models_and_files_that_do_not_fit_are_refused(small_dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one with a semantic teacher, .* got compact_f8"):
        SemanticTask("compact_f8", teacher_weights=str(small_dinov2), changes=NETWORK)
    with pytest.raises(ValueError, match="teacher_weights: expected a file, got"):
        task(tmp_path / "none.safetensors")
    with pytest.raises(zoo.checkpoint.CheckpointError):
        SemanticTask(
            "robust_tok.main", teacher_weights=str(small_dinov2), changes={**SMALL, "encoder": SMALL["decoder"]}
        )
