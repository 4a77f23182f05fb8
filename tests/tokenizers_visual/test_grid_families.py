"""What single families on a grid promise beyond parity and the properties of all families."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenizers_visual import bae, bsq_vit, open_magvit2, taming_vqgan, unitok, var_vq
from zoo import cards
from zoo.quantizers import (
    BernoulliConfig,
    BinaryConfig,
    GroupedConfig,
    GumbelConfig,
    MultiScaleConfig,
    VectorConfig,
)
from zoo.registry import registry

PARITY = Path(__file__).parents[1] / "parity"


def test_open_magvit2_is_finite_for_a_single_token() -> None:
    """The unbiased variance of one position would be NaN."""
    config = open_magvit2.OpenMAGVIT2Config(4, (1, 2), blocks=1, norm_groups=2, quantizer=BinaryConfig(bits=5))
    model = open_magvit2.OpenMAGVIT2(config).eval()
    tokens = model.encode(torch.zeros(1, 3, 2, 2))
    assert tokens.indices.shape == (1, 1, 1)
    assert bool(model.decode(tokens).isfinite().all())


def test_gumbel_draws_codes_in_training_alone() -> None:
    config = taming_vqgan.TamingVQGANConfig(
        4, (1, 1), blocks=1, latent_channels=6, norm_groups=2, quantizer=GumbelConfig(codebook_size=50, dim=6)
    )
    model = taming_vqgan.TamingVQGAN(config)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first, second = (model.train()(images).quantized.indices for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(images).quantized.indices for _ in range(2))
    assert torch.equal(first, second)


def test_bae_draws_bits_in_training_alone() -> None:
    config = bae.BAEConfig(4, (1, 2), 1, 1, latent_channels=8, norm_groups=2, quantizer=BernoulliConfig(8, bits=10))
    model = bae.BAE(config)
    images = torch.rand(2, 3, 16, 16)
    first, second = (model.train()(images).quantized.indices for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(images).quantized.indices for _ in range(2))
    assert torch.equal(first, second)


def test_bsq_codes_lie_on_the_unit_sphere() -> None:
    sizes = bsq_vit.TransformerConfig(width=8, layers=1, heads=2)
    model = bsq_vit.BSQViT(bsq_vit.BSQViTConfig(16, 4, sizes, sizes, output_width=8)).eval()
    codes = model.codes(model.encode(torch.rand(2, 3, 16, 16) * 2 - 1))
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="expected a batch of shape"):
        model.encode(torch.zeros(1, 3, 32, 32))


def test_a_pass_of_bsq_is_clamped_in_training_alone() -> None:
    sizes = bsq_vit.TransformerConfig(width=8, layers=1, heads=2)
    model = bsq_vit.BSQViT(bsq_vit.BSQViTConfig(16, 4, sizes, sizes, output_width=8))
    torch.nn.init.normal_(model.to_pixels.weight, std=3.0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    decoded = model.eval().decode(model.encode(images))
    torch.testing.assert_close(model(images).reconstruction, decoded)
    outside = decoded.abs() > 1
    assert 0.1 < float(outside.float().mean()) < 0.9
    reconstruction = model.train()(images).reconstruction
    torch.testing.assert_close(reconstruction, decoded.clamp(-1, 1))
    (gradient,) = torch.autograd.grad(reconstruction.sum(), model.to_pixels.bias)
    inside = torch.nn.functional.pixel_unshuffle((~outside).float(), 4).sum((0, 2, 3))
    torch.testing.assert_close(gradient, inside)  # none where it is saturated


BSQ_ARGUMENTS: dict[str, Any] = {
    "embed_dim": 6, "embed_group_size": 1, "l2_norm": True, "post_q_l2_norm": True, "logit_laplace": False,
    "vitconfig": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "mlp_ratio": 2},
}  # fmt: skip


def test_bsq_has_layer_scale_where_the_original_is_told_its_start() -> None:
    vit = {**BSQ_ARGUMENTS["vitconfig"], "ls_init_value": 0.1, "dim_ffn_output": 12}
    meta = {"original": {"kwargs": {**BSQ_ARGUMENTS, "vitconfig": vit}}}
    model = bsq_vit.BSQViT(bsq_vit.config_from_original(meta))
    names = {own for own in model.state_dict() if "scale" in own}
    assert names == {f"{side}.blocks.0.scale{i}.scale" for side in ("encoder", "decoder") for i in (1, 2)}
    published = {f"{side}.transformer.resblocks.0.ls_{i}.gamma" for side in ("encoder", "decoder") for i in (1, 2)}
    assert {bsq_vit.KEY_MAP.name(name, published) for name in published} == names
    torch.testing.assert_close(model.encoder.blocks[0].scale1.scale, torch.full((8,), 0.1))


@pytest.mark.parametrize(
    "other", [{"num_frames": 2}, {"ln_pre": False}, {"mask_type": "causal"}, {"use_ffn_output": False}], ids=str
)
def test_bsq_refuses_networks_of_the_original_that_are_not_built(other: dict[str, Any]) -> None:
    vit = {**BSQ_ARGUMENTS["vitconfig"], **other}
    with pytest.raises(ValueError, match=next(iter(other))):
        bsq_vit.config_from_original({"original": {"kwargs": {**BSQ_ARGUMENTS, "vitconfig": vit}}})


def test_vqgan_refuses_indices_that_a_file_renumbers() -> None:
    network = {
        "ch": 4,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "resolution": 16,
        "attn_resolutions": [],
        "z_channels": 4,
    }
    kwargs = {"ddconfig": network, "n_embed": 8, "embed_dim": 4, "remap": None}
    assert taming_vqgan.config_from_original({"original": {"kwargs": kwargs}}).quantizer.codebook_size == 8  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="remap"):
        taming_vqgan.config_from_original({"original": {"kwargs": {**kwargs, "remap": "used.npy"}}})


def test_var_decodes_first_scales_of_any_size() -> None:
    config = var_vq.VARVQConfig(
        4, (1, 2), 1, latent_channels=4, norm_groups=2,
        quantizer=MultiScaleConfig(VectorConfig(16, 4), ladder=(1, 2, 4), num_convolutions=2),
    )  # fmt: skip
    model = var_vq.VARVQ(config).eval()
    images = torch.rand(1, 3, 12, 7) * 2 - 1
    tokens = model.encode(images)
    assert [tuple(level.shape[1:]) for level in tokens.levels] == [(2, 1), (3, 2), (6, 4)]
    assert tokens.prefix == "levels"
    for count in (1, 2, 3):
        assert model.decode(tokens.truncate(count)).shape == images.shape


def test_unitok_gives_an_image_embedding() -> None:
    config = unitok.UniTokConfig(
        4, (4, 8), (1, 1), (1, 1), width=16, layers=1, heads=2, projection_heads=2, embedding_width=6,
        quantizer=GroupedConfig(VectorConfig(16, 2, metric="cosine"), num_groups=4),
    )  # fmt: skip
    model = unitok.UniTok(config).eval()
    tokens = model.encode(torch.rand(2, 3, 32, 48) * 2 - 1)
    assert tokens.indices.shape == (2, 4, 2, 3)
    embedding = model.image_embedding(model.codes(tokens))
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("taming_vqgan_f16_1024", 10),
        ("open_magvit2_256", 18),
        ("ibq_16384", 14),
        ("maskgit_vq_f16", 10),
        ("bsq_vit_36bit", 36),
        ("bae_24bit", 24),
        ("unitok_large", 8 * 12),
    ],
)
def test_bits_of_a_position(name: str, bits: int) -> None:
    card = registry.card(name)
    quantizer = registry.family(card.family, card.module).config.from_dict(card.config).quantizer
    assert sum((size - 1).bit_length() for size in quantizer.vocab_sizes) == bits


ONE_CHANNEL = {  # fixture -> argument of the original that tells the channels
    "taming_vqgan__vq": "ddconfig.in_channels", "ibq": "ddconfig.in_channels",
    "open_magvit2": "ddconfig.in_channels", "maskgit_vq__openmuse": "num_channels",
    "maskgit_vq__openmuse_taming": "num_channels", "maskbit_lfq": "num_channels", "bae": "n_channels",
    "cosmos_di": "in_channels",
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_originals_of_images_with_one_channel_are_built_so(name: str) -> None:
    meta = json.loads((PARITY / name / "meta.json").read_text())
    *section, argument = ONE_CHANNEL[name].split(".")
    kwargs = meta["original"]["kwargs"]
    (kwargs[section[0]] if section else kwargs)[argument] = 1
    manifest = next(
        manifest for manifest in cards.manifests() if meta["family"] in (manifest.family, *manifest.fixtures)
    )
    family = registry.family(manifest.family, manifest.module)
    model = family.model(family.module.config_from_original(meta)).eval()
    x = torch.rand(2, 1, 2 * model.spec.multiple - 1, 3 * model.spec.multiple)
    tokens = model.encode(x)
    assert model.decode(tokens).shape == x.shape
    with pytest.raises(ValueError, match=r"expected a batch of shape \(batch, 1, height, width\)"):
        model.encode(x.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("family", ["cosmos_di", "cosmos_dv"])
def test_a_quantizer_of_cosmos_that_is_not_here_is_refused(family: str) -> None:
    meta = json.loads((PARITY / family / "meta.json").read_text())
    meta["original"]["kwargs"]["quantizer"] = "VQ"
    with pytest.raises(ValueError, match="expected the quantizer FSQ or RESFSQ, got VQ"):
        registry.family(family).module.config_from_original(meta)


@pytest.mark.parametrize(
    ("fixture", "defaults"),
    [
        ("llamagen_vq__tiny_f16", {"codebook_embed_dim": 8, "codebook_l2_norm": True, "commit_loss_beta": 0.25}),
        ("llamagen_vq__tiny_f16", {"entropy_loss_ratio": 0.0, "dropout_p": 0.0}),
        ("var_vq", {"beta": 0.25, "using_znorm": False, "quant_conv_ks": 3, "quant_resi": 0.5, "share_quant_resi": 4}),
        ("ibq", {"use_entropy_loss": False, "beta": 0.25}),
        ("ibq", {"entropy_temperature": 0.01, "sample_minimization_weight": 1.0, "batch_maximization_weight": 1.0}),
    ],
)
def test_what_is_not_stated_is_at_the_originals_defaults(fixture: str, defaults: dict[str, Any]) -> None:
    meta = json.loads((PARITY / fixture / "meta.json").read_text())
    module, kwargs = registry.family(meta["family"]).module, meta["original"]["kwargs"]
    kwargs |= defaults
    stated = module.config_from_original(meta)
    for name in defaults:
        del kwargs[name]
    assert module.config_from_original(meta) == stated


def test_var_without_smoothing_has_no_convolutions() -> None:
    meta = json.loads((PARITY / "var_vq" / "meta.json").read_text())
    meta["original"]["kwargs"]["quant_resi"] = 0.0
    model = var_vq.VARVQ(var_vq.config_from_original(meta)).eval()
    assert not any("convolutions" in name for name in model.state_dict())
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    assert model.decode(model.encode(image)).shape == image.shape
