"""What RobustTok and ImageFolder promise beyond parity and the properties of all families; TokenBridge's bins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tokenizers_visual.robust_tok import (
    RobustTok,
    RobustTokConfig,
    SemanticTeacher,
    config_from_original,
    key_map_from_original,
    semantic_loss,
)
from tokenizers_visual.tokenbridge import TokenBridge, TokenBridgeConfig
from zoo.config import ConfigError
from zoo.layers.query_transformer import TransformerSizes
from zoo.quantizers import DimensionWiseConfig, GroupedConfig, MultiScaleConfig, VectorConfig

PARITY = Path(__file__).parents[1] / "parity"

SIZES = TransformerSizes(width=8, layers=1, heads=2)
SCALES = MultiScaleConfig(VectorConfig(16, 4, "cosine", unit_vectors=False), ladder=(1, 1, 3), num_convolutions=2)


def image_folder() -> RobustTok:
    """Two branches, and latents on a grid other than that of the patches."""
    torch.manual_seed(0)
    config = RobustTokConfig(16, 4, 3, branches=2, encoder=SIZES, decoder=SIZES, quantizer=GroupedConfig(SCALES, 2))
    return RobustTok(config).eval()


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_image_folder_gives_each_scale_of_each_branch_a_grid() -> None:
    model, x = image_folder(), images(2)
    tokens = model.encode(x)
    assert [tuple(level.shape[1:]) for level in tokens.levels] == [(1, 1)] * 4 + [(3, 3)] * 2
    assert tokens.vocab_sizes == (16,) * 6
    for count in range(1, 7):
        assert model.decode(tokens.truncate(count)).shape == x.shape


def test_each_branch_makes_its_own_part_of_the_latents() -> None:
    model, x = image_folder(), images(1)
    with torch.no_grad():
        before = model.latent(x)
        model.encoder.queries[9:] += torch.randn(9, 8)
        after = model.latent(x)
    changed = (after - before).abs().amax((0, 1, 2))
    assert changed.shape == (8,)
    assert float(changed[4:].min()) > 100 * float(changed[:4].max())  # the other branch sees it by attention alone


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a batch of shape \(batch, 3, 16, 16\)"):
        image_folder().encode(images(1, 20))


def test_the_semantic_loss_is_least_where_images_pair_with_themselves() -> None:
    model = image_folder()
    features = torch.randn(3, 8)
    teacher = model.to_latent(features)
    codes = torch.zeros(3, 3, 3, 8)
    codes[..., 4:] = teacher[:, None, None]
    logits = teacher @ teacher.T
    target = torch.arange(3)
    torch.testing.assert_close(semantic_loss(model, features, codes), F.cross_entropy(logits, target))
    codes[..., :4] = torch.randn(4)  # of the first branch nothing is asked
    torch.testing.assert_close(semantic_loss(model, features, codes), F.cross_entropy(logits, target))
    scaled = codes * 50
    assert semantic_loss(model, features, scaled.roll(1, 0)) > semantic_loss(model, features, scaled)


def test_the_teacher_sees_normalised_images() -> None:
    teacher = SemanticTeacher(8, 4, SIZES).eval()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 8, 8) * 2 - 1
    expected = teacher.run(teacher.with_class(teacher.patches.bias.expand(1, 4, -1)))[:, 0]
    torch.testing.assert_close(teacher(mean), expected, rtol=1e-4, atol=1e-5)


def test_a_file_of_signs_fits() -> None:
    meta = json.loads((PARITY / "robust_tok__msbr" / "meta.json").read_text())
    model = RobustTok(config_from_original(meta))
    published = load_file(PARITY / "robust_tok__msbr" / "weights.safetensors")
    published["detail_model.cls_token"] = torch.zeros(1, 1, 4)
    assert set(key_map_from_original(meta)(published)) == set(model.state_dict())
    for field, value in (("scale", 0.5), ("codebook_size", 32)):
        changed = {**meta["original"]["kwargs"], field: value}
        with pytest.raises(ValueError, match=r"expected 2\^6 signs of scale 1"):
            config_from_original({"original": {**meta["original"], "kwargs": changed}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 250}, "a multiple of the patches of 16, got 250"),
        ({"branches": 3}, "latents that 3 branches divide, got 64"),
        ({"latent_side": 0}, "sizes >= 1"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RobustTokConfig(**fields)


def test_tokenbridge_codes_are_close_to_the_scaled_latents() -> None:
    torch.manual_seed(0)
    config = TokenBridgeConfig(4, (1, 2), 1, (False, True), norm_groups=2, quantizer=DimensionWiseConfig(dim=3, bits=8))
    model = TokenBridge(config).eval()
    x = images(2)
    tokens = model.encode(x)
    assert tokens.indices.shape == (2, 3, 8, 8)
    latent = model.latent(x).detach()
    inside = latent.abs() < 2
    assert float((model.codes(tokens) - latent).abs()[inside].max()) < 0.05
    with torch.no_grad():
        assert (model.decode(tokens) - model.reconstruct(latent)).abs().max() < 0.5


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize(("ladder", "shared"), [([4], None), ([1, 2, 4], 4), ([1, 2, 4], 1), ([1, 2, 4], 0)])
def test_checkpoints_of_any_quantizer_fit(branches: int, ladder: list[int], shared: int | None) -> None:
    meta = json.loads((PARITY / "robust_tok" / "meta.json").read_text())
    meta["original"]["kwargs"] |= {"product_quant": branches, "v_patch_nums": ladder}
    if shared is not None:
        meta["original"]["kwargs"]["share_quant_resi"] = shared
    model = RobustTok(config_from_original(meta))
    published = load_file(PARITY / "robust_tok" / "weights.safetensors")
    published = {key: value for key, value in published.items() if not key.startswith("quantize.")}
    dim, size = (meta["original"]["kwargs"][name] for name in ("codebook_embed_dim", "codebook_size"))
    for name in [f"quantizes.{i}" for i in range(branches)] if branches > 1 else ["quantize"]:
        published |= {f"{name}.embedding.weight": torch.rand(size, dim), f"{name}.ema_vocab_hit_SV": torch.zeros(size)}
        phis = {None: [], 4: [f"qresi_ls.{i}" for i in range(4)], 1: ["qresi"], 0: [str(i) for i in range(3)]}[shared]
        published |= {f"{name}.quant_resi.{phi}.weight": torch.rand(dim, dim, 3, 3) for phi in phis}
        published |= {f"{name}.quant_resi.{phi}.bias": torch.rand(dim) for phi in phis}
    own = key_map_from_original(meta)(published)
    assert set(own) == set(model.state_dict())
    quantizer = {key: value for key, value in own.items() if key.startswith("quantizer.")}
    assert {key: value.shape for key, value in model.state_dict().items() if key in quantizer} == {
        key: value.shape for key, value in quantizer.items()
    }
