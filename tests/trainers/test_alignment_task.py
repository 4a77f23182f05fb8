"""Features of a diffusion decoder that follow a frozen teacher: which ones, who learns, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from test_adaptive_recipes import SMALL
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from tiny_task import NETWORK, loader, trainer
from torch import Tensor

import zoo
from trainers.tasks import AlignmentTask

TEACHER = {"width": 128, "layers": 4, "heads": 4}


def task(file: Path, **settings: Any) -> AlignmentTask:
    torch.manual_seed(0)
    changes = {
        **SMALL["semanticist"], "encoder": {"width": 16, "layers": 2, "heads": 2},
        "decoder": {"width": 16, "layers": 3, "heads": 2},
    }  # fmt: skip
    defaults: dict[str, Any] = {
        "layer": 2, "projector_width": 32, "reported": (), "reconstruction_weight": 0,
        "quantizer_weights": {"diffusion": 1.0, "variational": 1.0}, "learning_rate": 3e-3,
    }  # fmt: skip
    return AlignmentTask(
        "semanticist_l", teacher=TEACHER, teacher_weights=str(file), changes=changes, **{**defaults, **settings}
    )


def images(count: int = 4) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (32, 32), mode="bilinear")


def losses(module: AlignmentTask) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return module.generator_loss(images(), module.reconstructed(images()), 0)[1]


def test_the_projected_output_of_a_block_is_compared_with_the_teacher_at_224_px(small_dinov2: Path) -> None:
    module = task(small_dinov2, alignment_weight=0.5).train()
    seen: list[Tensor] = []
    module.model.decoder.blocks[1].register_forward_hook(lambda block, given, output: seen.append(output))
    found = losses(module)
    network = VisionTransformer(224, 14, num_classes=0, embed_dim=128, depth=4, num_heads=4, init_values=0.1).eval()
    network.load_state_dict(checkpoint_filter_fn(load_file(small_dinov2), network, antialias=True))
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        x = F.interpolate(images(), 224, mode="bicubic")
        wanted = network.forward_features((x - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))[:, 1:]
        own = module.projector(seen[0][:, :64]).mT.unflatten(2, (8, 8))  # 16 x 16 latents in patches of 2
        own = F.interpolate(own, (16, 16), mode="bicubic").flatten(2).mT
    expected = 1 - F.cosine_similarity(own, wanted, dim=-1).mean()
    torch.testing.assert_close(found["alignment"], expected, atol=1e-4, rtol=1e-4)
    rest = found["diffusion"] + found["variational"]
    torch.testing.assert_close(found["total"], rest + 0.5 * found["alignment"])


def test_decoder_and_projector_learn_and_the_teacher_rests(small_dinov2: Path) -> None:
    module = task(small_dinov2, ema_decay=0.9)
    before = {name: value.clone() for name, value in module.teacher.network.state_dict().items()}
    start = losses(module.train())["alignment"]
    run = trainer(max_steps=40)
    run.fit(module, loader(images().expand(40, -1, -1, -1, -1)), loader(images()[None]))
    assert losses(module.train())["alignment"] < 0.7 * start
    assert all(torch.equal(value, before[name]) for name, value in module.teacher.network.state_dict().items())
    assert not any("teacher" in name for name in module.state_dict())
    assert not any("projector" in name for name in module.averaged.state_dict())
    assert "train/alignment" in run.callback_metrics
    assert "val/alignment" not in run.callback_metrics
    decayed, plain = run.optimizers[0].param_groups
    assert {parameter.ndim for parameter in plain["params"]} == {1}
    count = sum(len(group["params"]) for group in (decayed, plain))
    assert count == len([p for p in module.model.parameters() if p.requires_grad]) + 6


def test_models_and_settings_that_do_not_fit_are_refused(small_dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one with an alignment teacher, such as semanticist_l"):
        AlignmentTask("spectral_f16", teacher_weights=str(small_dinov2), changes=SMALL["spectral"])
    with pytest.raises(ValueError, match="expected one whose first tokens decode alone, got compact_f8"):
        AlignmentTask("compact_f8", changes=NETWORK)
    with pytest.raises(ValueError, match="layer: expected 1 to 3, got 8"):
        task(small_dinov2, layer=8)
    with pytest.raises(ValueError, match="teacher_weights: expected a file, got"):
        task(tmp_path / "none")
    with pytest.raises(zoo.checkpoint.CheckpointError):
        AlignmentTask(
            "semanticist_l", layer=1, teacher={"width": 64, "layers": 2, "heads": 2}, teacher_weights=str(small_dinov2),
            changes=SMALL["semanticist"],
        )  # fmt: skip
