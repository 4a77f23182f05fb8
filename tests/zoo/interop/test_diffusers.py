"""diffusers' VQModel and AutoencoderKL become models of the zoo and back: same latents, tokens and images."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from zoo.interop import from_diffusers, to_diffusers
from zoo.interop.diffusers import KLArchitecture, MoVQArchitecture, VQArchitecture, diffusers_names
from zoo.quantizers import EmaCodebookConfig, VectorConfig
from zoo.registry import registry
from zoo.tokenizer import Tokenizer

SMALL: dict[str, Any] = {
    "widths": (4, 8), "blocks": 2, "attention": (False, True), "decoder_attention": (False, True),
    "middle_attention": True, "latent_channels": 6, "codebook_size": 20, "dim": 5, "norm_groups": 2,
}  # fmt: skip


def architecture(**changes: Any) -> VQArchitecture:
    return VQArchitecture(**{**SMALL, **changes})


def peer(shape: VQArchitecture, seed: int = 0) -> VQModel:
    torch.manual_seed(seed)
    model = VQModel(**shape.kwargs()).eval()
    nn.init.normal_(model.quantize.embedding.weight)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def images(side: int, value_range: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
    low, high = value_range
    x = torch.rand(2, 3, side, side + side // 2, generator=torch.Generator().manual_seed(0))
    return x * (high - low) + low


@torch.no_grad()
def assert_equal(ours: Tokenizer, theirs: VQModel, x: Tensor) -> None:
    """In float64, where processors that sum in other orders agree."""
    ours, theirs, x = ours.double(), theirs.double(), x.double()
    latents = theirs.encode(x).latents
    _, _, (_, _, indices) = theirs.quantize(latents)
    tokens = ours.encode(x)
    assert torch.equal(tokens.indices.flatten(), indices.flatten())
    shape = (*tokens.indices.shape, theirs.config.vq_embed_dim or theirs.config.latent_channels)
    expected = theirs.decode(indices, force_not_quantize=True, shape=shape).sample
    torch.testing.assert_close(ours.decode(tokens), expected, rtol=0, atol=1e-5)


# -- into the zoo --------------------------------------------------------------------------------------------------


@st.composite
def architectures(draw: st.DrawFn) -> VQArchitecture:
    """Those that some family holds."""
    count, blocks, middle = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    attention = tuple(draw(st.booleans()) and (middle or blocks > 1) for _ in range(count))
    free = (middle and blocks > 1) or not any(attention)
    widths = [4, *(draw(st.sampled_from([4, 6, 8] if free else [4, 8])) for _ in range(count - 1))]
    return architecture(
        widths=tuple(widths), blocks=blocks, attention=attention, decoder_attention=attention, middle_attention=middle
    )


@settings(max_examples=15)
@given(shape=architectures(), seed=st.integers(0, 9))
def test_a_vq_model_gives_the_same_tokens_and_images_in_the_zoo(shape: VQArchitecture, seed: int) -> None:
    theirs = peer(shape, seed)
    ours = from_diffusers(theirs)
    assert not ours.training
    assert_equal(ours, theirs, images(8 * ours.spec.multiple // 2))


@settings(max_examples=10)
@given(shape=architectures())
def test_there_and_back_is_the_same_model(shape: VQArchitecture) -> None:
    theirs = peer(shape)
    ours = from_diffusers(theirs)
    assert VQArchitecture.of(ours) == shape
    again = to_diffusers(ours)
    state = theirs.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "llamagen_vq"),
        ({"attention": (False, False), "decoder_attention": (False, False)}, "maskgit_vq"),
        ({"attention": (True, False), "decoder_attention": (True, False), "blocks": 1}, "taming_vqgan"),
        ({"widths": (4, 6), "attention": (True, True), "decoder_attention": (True, True)}, "maskgit_vq"),
    ],
)
def test_the_architecture_chooses_the_family(changes: dict[str, Any], family: str) -> None:
    assert registry.family_of(from_diffusers(peer(architecture(**changes)))).name == family


@pytest.mark.parametrize("family", ["llamagen_vq", "maskgit_vq", "taming_vqgan"])
def test_a_family_can_be_asked_for(family: str) -> None:
    theirs = peer(architecture())
    ours = from_diffusers(theirs, family=family)
    assert registry.family_of(ours).name == family
    assert_equal(ours, theirs, images(8))


def test_precision_is_kept() -> None:
    assert from_diffusers(peer(architecture()).to(torch.bfloat16)).dtype == torch.bfloat16
    assert to_diffusers(from_diffusers(peer(architecture())).to(torch.bfloat16)).dtype == torch.bfloat16


def test_a_converted_model_is_saved_and_loaded_like_any_other(tmp_path) -> None:
    ours = from_diffusers(peer(architecture()))
    zoo.save_model(ours, tmp_path)
    again = zoo.create_model(f"local-dir:{tmp_path}")
    assert again.encode(images(8)) == ours.encode(images(8))


# -- what does not fit ---------------------------------------------------------------------------------------------


def test_unequal_attention_is_refused_with_the_reason_of_each_family() -> None:
    theirs = peer(architecture(decoder_attention=(True, False)))
    with pytest.raises(
        ValueError, match=r"no family holds this VQModel: llamagen_vq: .*; maskgit_vq: .*; taming_vqgan: "
    ):
        from_diffusers(theirs)


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"norm_type": "spatial"}, "codes as wide as the latents"),
        ({"act_fn": "relu"}, "act_fn='silu'"),
        ({"in_channels": 1}, "out_channels=1"),
        ({"out_channels": 1}, "out_channels=3"),
    ],
)
def test_settings_without_a_counterpart_are_refused_by_name(kwargs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_diffusers(VQModel(**{**architecture(widths=(32, 32)).kwargs(), **kwargs}))


def test_other_blocks_are_refused_by_name() -> None:
    kwargs = {**architecture().kwargs(), "down_block_types": ("DownEncoderBlock2D", "DownBlock2D")}
    with pytest.raises(ValueError, match="DownBlock2D"):
        VQArchitecture.from_kwargs(kwargs)


def test_other_classes_and_families_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a VQModel or an AutoencoderKL of diffusers, got AutoencoderTiny"):
        from_diffusers(AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'compact'"):
        from_diffusers(peer(architecture()), family="compact")


PLAIN = {"channels": 32, "channel_multipliers": (1, 1), "blocks": 1}


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("compact", {}, "VQGAN's encoder"),
        ("maskgit_vq", {"channels": 32, "widths": (32,), "attention": (False,)}, "VQGAN's encoder"),
        ("llamagen_vq", {**PLAIN, "decoder_channel_multipliers": (1, 1), "quantizer": "fsq"}, "plain codebook"),
        ("llamagen_vq", {**PLAIN, "decoder_channel_multipliers": (1, 2)}, "one block more"),
        ("taming_vqgan", {**PLAIN, "channel_multipliers": (2, 2)}, "as wide as the first level"),
    ],
)
def test_models_that_are_no_vq_model_are_refused(name: str, changes: dict[str, Any], why: str) -> None:
    registry.family(name)
    with pytest.raises(ValueError, match=why):
        to_diffusers(zoo.create_model(name, **changes))


# -- norms of the kind "spatial" -----------------------------------------------------------------------------------

MODULATED: dict[str, Any] = {  # the group norms of the encoder alone have other groups than 32
    **SMALL, "widths": (32, 64), "latent_channels": 4, "dim": 4, "norm_groups": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"widths": (32, 32, 64), "attention": (False, True, False), "decoder_attention": (False, True, False)},
        {"attention": (False, False), "decoder_attention": (False, False), "blocks": 1, "channels": 1},
    ],
)
def test_a_vq_model_with_spatial_norms_is_the_same_in_the_zoo_and_back(changes: dict[str, Any]) -> None:
    shape = MoVQArchitecture(**{**MODULATED, **changes})
    theirs = peer(shape)
    assert theirs.config.norm_type == "spatial"
    ours = from_diffusers(theirs)
    assert registry.family_of(ours).name == "movq"
    assert MoVQArchitecture.of(ours) == shape
    state, again = theirs.state_dict(), to_diffusers(ours)
    assert again.config.norm_type == "spatial"
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    assert_equal(ours, theirs, images(16)[:, : shape.channels])


@pytest.mark.slow
def test_kandinskys_full_size_model_is_the_same_in_the_zoo_and_back() -> None:
    shape = MoVQArchitecture(
        widths=(128, 256, 256, 512), blocks=2, attention=(False, False, False, True), middle_attention=True,
        decoder_attention=(False, False, False, True), latent_channels=4, norm_groups=32, codebook_size=16384, dim=4,
    )  # fmt: skip
    theirs = peer(shape)
    ours = from_diffusers(theirs)
    config, published = ours.config, zoo.create_model("movq_f8_16384").config
    assert config.replace(resolution=256, attention_resolutions=(32,)) == published
    state = theirs.state_dict()
    assert all(torch.equal(state[name], value) for name, value in to_diffusers(ours).state_dict().items())
    assert_equal(ours, theirs, images(32))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"widths": (32, 48)}, "widths that these divide"),
        ({"dim": 5}, "codes as wide as the latents"),
        ({"decoder_norm_groups": 16}, "norms of 32 groups"),
    ],
)
def test_sizes_that_spatial_norms_cannot_have_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        MoVQArchitecture(**{**MODULATED, **changes})


def test_spatial_norms_without_attention_in_the_middle_are_refused() -> None:
    theirs = peer(MoVQArchitecture(**{**MODULATED, "middle_attention": False}))
    with pytest.raises(ValueError, match=r"no family holds this VQModel: movq: expected attention in the middle"):
        from_diffusers(theirs)


def test_a_model_whose_norms_diffusers_does_not_have_is_refused() -> None:
    small = {"channels": 32, "channel_multipliers": (1,), "blocks": 1}
    with pytest.raises(ValueError, match="norms of 32 groups"):
        to_diffusers(zoo.create_model("movq_f8_16384", **small, decoder_norm_groups=16))


# -- out of the zoo ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_model_of_the_zoo_gives_the_same_tokens_and_images_in_diffusers(metric: str) -> None:
    ours = zoo.create_model(
        "llamagen_vq_f16", channels=32, channel_multipliers=(1, 2), decoder_channel_multipliers=(1, 2), blocks=1,
        latent_channels=8, quantizer="vector", codebook_size=50, dim=4, metric=metric,
    )  # fmt: skip
    nn.init.normal_(ours.quantizer.codebook.weight)  # codes of a cosine search need not have length 1
    assert_equal(ours, to_diffusers(ours), images(16))


def test_the_running_averages_of_a_codebook_stay_behind() -> None:
    config = VectorConfig(codebook_size=20, dim=4, codebook=EmaCodebookConfig())
    ours = zoo.create_model(
        "taming_vqgan_f16_1024", channels=32, channel_multipliers=(1, 1), blocks=1, quantizer=config
    )
    assert any(name.startswith("quantizer.ema.") for name in ours.state_dict())
    assert_equal(ours, to_diffusers(ours), images(16))


def test_names_are_those_of_the_parameters() -> None:
    theirs = peer(architecture())
    ours = from_diffusers(theirs)
    names = diffusers_names(theirs)
    assert names.keys() == ours.state_dict().keys()
    assert sorted(names.values()) == sorted(theirs.state_dict())
    for name, value in ours.state_dict().items():
        assert torch.equal(value.flatten(), theirs.state_dict()[names[name]].flatten())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llamagen_vq_f16", "amused_vq_256"])
def test_published_sizes(name: str) -> None:
    ours = zoo.create_model(name, dtype=torch.float64)  # through as many layers float32 rounds by more than 1e-5
    theirs = to_diffusers(ours)
    assert_equal(ours, theirs, images(64, ours.spec.value_range).double())
    back = from_diffusers(theirs, family=registry.family_of(ours).name)
    assert torch.equal(
        back.encode(images(64).double().clamp(0, 1)).indices, ours.encode(images(64).double().clamp(0, 1)).indices
    )


# -- AutoencoderKL -------------------------------------------------------------------------------------------------


def variational_peer(shape: KLArchitecture, seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    model = AutoencoderKL(**shape.kwargs()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


KL: dict[str, Any] = {
    "widths": (4, 8), "blocks": 1, "attention": (False, True), "decoder_attention": (False, False),
    "middle_attention": True, "latent_channels": 3, "norm_groups": 2, "scale": 0.5,
}  # fmt: skip


@st.composite
def variational(draw: st.DrawFn) -> KLArchitecture:
    count = draw(st.integers(1, 3))
    return KLArchitecture(
        widths=(4, *(draw(st.sampled_from([4, 8])) for _ in range(count - 1))),
        blocks=draw(st.integers(1, 2)),
        attention=tuple(draw(st.booleans()) for _ in range(count)),
        decoder_attention=(False,) * count,
        middle_attention=True,
        latent_channels=draw(st.integers(1, 4)),
        norm_groups=draw(st.sampled_from([1, 2, 4])),
        scale=draw(st.sampled_from([0.18215, 0.5, 1.0])),
        shift=draw(st.sampled_from([0.0, 0.3, -0.1])),
        projections=draw(st.booleans()),
    )


def scaled(theirs: AutoencoderKL, latents: Tensor) -> Tensor:
    """As the pipelines of diffusers take latents."""
    return (latents - (theirs.config.shift_factor or 0)) * theirs.config.scaling_factor


def unscaled(theirs: AutoencoderKL, latents: Tensor) -> Tensor:
    return latents / theirs.config.scaling_factor + (theirs.config.shift_factor or 0)


@settings(max_examples=12)
@given(shape=variational(), seed=st.integers(0, 9))
def test_an_autoencoder_kl_gives_the_same_latents_and_images_in_the_zoo(shape: KLArchitecture, seed: int) -> None:
    theirs = variational_peer(shape, seed)
    ours = from_diffusers(theirs)
    x = images(8 * ours.spec.multiple // 2)
    with torch.no_grad():
        latents = scaled(theirs, theirs.encode(x).latent_dist.mean)
        torch.testing.assert_close(ours.latent(x).movedim(-1, 1), latents, rtol=0, atol=1e-5)
        tokens = ours.encode(x)
        codes = ours.codes(tokens).movedim(-1, 1)
        assert (codes - latents).abs().max() < 0.5 or latents.abs().max() > 4  # a bin's width inside the limit
        expected = theirs.decode(unscaled(theirs, codes)).sample
    torch.testing.assert_close(ours.decode(tokens), expected, rtol=0, atol=1e-5)


@settings(max_examples=8)
@given(shape=variational())
def test_an_autoencoder_kl_there_and_back_is_the_same(shape: KLArchitecture) -> None:
    theirs = variational_peer(shape)
    ours = from_diffusers(theirs)
    assert KLArchitecture.of(ours) == shape
    again = to_diffusers(ours)
    assert isinstance(again, AutoencoderKL)
    settings = ("scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv")
    assert all(again.config[name] == theirs.config[name] for name in settings)
    state = theirs.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"use_quant_conv": False}, "use_post_quant_conv=False"),
        ({"latents_mean": [0.1] * 3}, "latents_mean=None"),
        ({"mid_block_add_attention": False}, "tokenbridge: expected attention in the middle"),
        ({"up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}, "tokenbridge: .*none at the levels"),
    ],
)
def test_an_autoencoder_kl_without_a_counterpart_is_refused(kwargs: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_diffusers(AutoencoderKL(**{**KLArchitecture(**KL).kwargs(), **kwargs}))


def test_a_family_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'taming_vqgan'"):
        from_diffusers(variational_peer(KLArchitecture(**KL)), family="taming_vqgan")
    with pytest.raises(ValueError, match="'tokenbridge'"):
        from_diffusers(peer(architecture()), family="tokenbridge")


PUBLISHED: dict[str, dict[str, Any]] = {  # as their config.json states them, but for names of files
    "stable diffusion 1.5": {"latent_channels": 4, "sample_size": 512},
    "stable diffusion xl": {
        "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True,
        "latents_mean": None, "latents_std": None,
    },
    "stable diffusion 3": {
        "latent_channels": 16, "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True,
    },
    "flux": {
        "latent_channels": 16, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True,
        "mid_block_add_attention": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_autoencoders_become_tokenizers_and_come_back(name: str) -> None:
    kwargs = {
        "in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_num_groups": 4, "layers_per_block": 2,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [8, 16, 32, 32],  # of 128, 256, 512, 512
        **PUBLISHED[name],
    }  # fmt: skip
    torch.manual_seed(0)
    theirs, x = AutoencoderKL(**kwargs).double().eval(), images(32).double()
    ours = from_diffusers(theirs)
    tokens = ours.encode(x)
    assert tokens.levels[0].shape == (2, 4, 6)
    assert len(tokens.levels) == kwargs["latent_channels"]
    with torch.no_grad():
        latents = scaled(theirs, theirs.encode(x).latent_dist.mean)
        torch.testing.assert_close(ours.latent(x).movedim(-1, 1), latents, rtol=0, atol=1e-9)
        expected = theirs.decode(unscaled(theirs, ours.codes(tokens).double().movedim(-1, 1))).sample
    torch.testing.assert_close(ours.decode(tokens), expected, rtol=0, atol=1e-6)  # codes are of single precision
    state = theirs.state_dict()
    again = to_diffusers(ours).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.items())


@pytest.mark.slow
def test_an_autoencoder_kl_of_published_size() -> None:
    ours = zoo.create_model("tokenbridge_kl16_6bit", dtype=torch.float64)
    theirs, x = to_diffusers(ours), images(64).double()
    with torch.no_grad():
        expected = theirs.encode(x).latent_dist.mean * theirs.config.scaling_factor
        torch.testing.assert_close(ours.latent(x).movedim(-1, 1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["maskgit_vq", "taming_vqgan"])
def test_models_of_one_channel_go_there_and_back(family: str) -> None:
    theirs = peer(architecture(channels=1))
    ours = from_diffusers(theirs, family=family)
    assert ours.spec.channels == 1
    assert_equal(ours, theirs, images(8)[:, :1])
    assert VQArchitecture.of(ours) == architecture(channels=1)


def test_llamagen_holds_images_of_three_channels_alone() -> None:
    coarsest = {"attention": (False, True), "decoder_attention": (False, True)}
    with pytest.raises(ValueError, match="expected images of 3 channels, got 1"):
        from_diffusers(peer(architecture(channels=1, **coarsest)), family="llamagen_vq")
