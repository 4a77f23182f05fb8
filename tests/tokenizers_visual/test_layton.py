"""Layton: what its papers state of the parts, and its published file."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_published import PARITY
from torch import Tensor

import zoo
from tokenizers_visual import layton
from tokenizers_visual.layton import Layton, LaytonConfig, control_of
from tokenizers_visual.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from zoo.config import ConfigError
from zoo.layers.latent_diffusion import LatentDiffusionConfig
from zoo.quantizers import VectorConfig

CODEBOOK = VectorConfig(codebook_size=9, dim=3, metric="cosine")
TOKENIZER = LlamaGenVQConfig(
    channels=4, channel_multipliers=(1, 1), decoder_channel_multipliers=(1, 1), blocks=1, latent_channels=4,
    norm_groups=2, quantizer=CODEBOOK,
)  # fmt: skip
DIFFUSION = LatentDiffusionConfig(
    channels=(4, 8), blocks=1, heads=(1, 2), prompt_length=2, prompt_width=4, latent_size=8, decoder_channels=(4, 4),
    decoder_blocks=1, norm_groups=2, prediction="epsilon",
)  # fmt: skip
CONFIG = LaytonConfig(
    small_side=8, tokenizer=TOKENIZER, diffusion=DIFFUSION, code_channels=(3, 4), times=(999, 400), quantizer=CODEBOOK
)


def build(trained: bool = False) -> Layton:
    """A model as it starts; or with a control that has learned something."""
    torch.manual_seed(0)
    model = Layton(CONFIG).eval()
    if trained:
        with torch.no_grad():
            for parameter in model.control.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_large_photo_takes_as_many_tokens_as_its_small_copy() -> None:
    with torch.device("meta"):
        model = Layton(LaytonConfig())
    assert model.spec.size == (1024, 1024)
    assert model.token_shapes((1024, 1024)) == ((16, 16),)
    assert build().encode(images()).indices.shape == (2, 4, 4)


def test_tokens_are_those_of_llamagens_tokenizer_for_the_small_copy() -> None:
    torch.manual_seed(1)
    tokenizer = LlamaGenVQ(TOKENIZER).eval()
    model = build()
    for name in ("encoder", "to_latent", "quantizer"):
        getattr(model, name).load_state_dict(getattr(tokenizer, name).state_dict())
    small = torch.nn.functional.interpolate(images(), (8, 8), mode="bicubic", antialias=True).clamp(-1, 1)
    assert torch.equal(model.encode(images()).indices, tokenizer.encode(small).indices)


def test_before_training_the_output_is_that_of_the_frozen_diffusion_model() -> None:
    model = build()
    noisy, time = torch.randn(2, 4, 8, 8), torch.tensor([10, 900])
    with torch.no_grad():
        plain = model.unet(noisy, time, torch.zeros(2, 2, 4), return_dict=False)[0]
        for codes in (torch.zeros(2, 4, 4, 3), torch.randn(2, 4, 4, 3)):
            torch.testing.assert_close(model.predict(noisy, time, codes), plain, rtol=0, atol=0)
        codes = torch.randn(2, 4, 4, 3)
        assert not torch.allclose(build(trained=True).predict(noisy, time, codes), plain)


def test_gradients_are_in_the_copies_alone() -> None:
    model = build(trained=True).train()
    loss, _ = model.denoise(images(), torch.randn(2, 4, 4, 3), torch.randn(2, 4, 8, 8), torch.tensor([3, 700]))
    loss.backward()
    for name, parameter in model.named_parameters():
        reads_text = ".attn2." in name or ("transformer_blocks" in name and ".norm2." in name)
        learns = name.startswith("control.") and (not reads_text or name.endswith(".attn2.to_out.0.bias"))
        assert (parameter.grad is not None) == learns, name
        assert not learns or bool(parameter.grad.any()), name


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_noise_is_zero_for_a_model_that_knows_it(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layton(CONFIG.replace(diffusion=DIFFUSION.replace(prediction=prediction))).eval()
    noise, time = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    share = model.config.diffusion.share()[time].view(-1, 1, 1, 1)
    clean = model.autoencoder.encode(images()).latent_dist.mode() * 0.18215

    def perfect(noisy: Tensor, time: Tensor, codes: Tensor) -> Tensor:
        found = (noisy - share.sqrt() * clean) / (1 - share).sqrt()
        return found if prediction == "epsilon" else share.sqrt() * found - (1 - share).sqrt() * clean

    monkeypatch.setattr(model, "predict", perfect)
    loss, predicted = model.denoise(images(), torch.randn(2, 4, 4, 3), noise, time)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-8)
    torch.testing.assert_close(predicted, clean, rtol=1e-3, atol=1e-3)


def test_of_two_steps_only_the_second_has_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(trained=True)
    enabled: list[bool] = []
    predict = model.predict

    def watched(noisy: Tensor, time: Tensor, codes: Tensor) -> Tensor:
        enabled.append(torch.is_grad_enabled())
        return predict(noisy, time, codes)

    monkeypatch.setattr(model, "predict", watched)
    codes = torch.randn(1, 4, 4, 3)
    model.paint(codes, steps=2).mean().backward()
    assert enabled == [False, True]
    with torch.no_grad():
        model.paint(codes, steps=2)
    assert enabled[2:] == [False, False]


def test_decoding_takes_steps_seeds_and_noise() -> None:
    model = build(trained=True)
    tokens = model.encode(images())
    one, two = model.decode(tokens, steps=1), model.decode(tokens, steps=2)
    assert one.shape == two.shape == (2, 3, 16, 16)
    assert not torch.allclose(one, two)
    torch.testing.assert_close(model.decode(tokens), two)  # of the config
    mixed = model.decode(tokens, seed=[0, 1])
    torch.testing.assert_close(mixed[0], two[0])
    torch.testing.assert_close(mixed[1], model.decode(tokens, seed=1)[1])
    noise = torch.randn(2, 2, 4, 8, 8)
    torch.testing.assert_close(model.decode(tokens, noise=noise)[:1], model.decode(tokens[:1], noise=noise[:1]))
    other = torch.cat([noise[:, :1], torch.randn(2, 1, 4, 8, 8)], 1)
    assert torch.equal(model.decode(tokens, steps=1, noise=other), model.decode(tokens, steps=1, noise=noise))
    assert not torch.allclose(model.decode(tokens, noise=other), model.decode(tokens, noise=noise))
    with pytest.raises(ValueError, match=r"noise: expected \(2, 2, 4, 8, 8\), got \(2, 4, 8, 8\)"):
        model.decode(tokens, noise=torch.zeros(2, 4, 8, 8))
    for steps in (0, 3):
        with pytest.raises(ValueError, match=f"steps: expected 1 to 2, got {steps}"):
            model.decode(tokens, steps=steps)


def test_published_parts_are_taken_over_and_the_control_starts_from_them() -> None:
    torch.manual_seed(2)
    tokenizer = LlamaGenVQ(TOKENIZER).eval()
    schedule = SimpleNamespace(
        beta_schedule="scaled_linear", num_train_timesteps=1000, prediction_type="v_prediction", beta_start=0.001,
        beta_end=0.01,
    )  # fmt: skip
    pipeline = SimpleNamespace(
        unet=DIFFUSION.unet(), vae=DIFFUSION.autoencoder(), scheduler=SimpleNamespace(config=schedule)
    )
    model = build(trained=True).with_parts(tokenizer, pipeline)
    assert model.config.diffusion == DIFFUSION.replace(prediction="v_prediction", first_beta=0.001, last_beta=0.01)
    for own, given in ((model.unet, pipeline.unet), (model.autoencoder, pipeline.vae)):
        assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), given.state_dict().values()))
    copied = control_of(pipeline.unet, model.config).state_dict()
    assert torch.equal(model.control.state_dict()["conv_in.weight"], copied["conv_in.weight"])
    schedule.beta_schedule = "linear"
    with pytest.raises(ValueError, match="expected a scaled_linear schedule"):
        build().with_parts(tokenizer, pipeline)


def test_parts_of_stable_diffusion_xl_are_taken_over_with_their_sizes() -> None:
    meta = json.loads((PARITY / "layton" / "meta.json").read_text())
    config = layton.config_from_original(meta)
    schedule = SimpleNamespace(
        beta_schedule="scaled_linear", num_train_timesteps=1000, prediction_type="epsilon", beta_start=0.00085,
        beta_end=0.012,
    )  # fmt: skip
    pipeline = SimpleNamespace(
        unet=config.diffusion.unet(), vae=config.diffusion.autoencoder(), scheduler=SimpleNamespace(config=schedule)
    )
    pipeline.vae.register_to_config(scaling_factor=config.diffusion.latent_scale)
    model = Layton(config).with_parts(LlamaGenVQ(config.tokenizer), pipeline)
    assert model.config == config
    assert config.diffusion.transformers == (0, 1, 2)
    assert model.decode(model.encode(torch.zeros(1, 3, 64, 64))).shape == (1, 3, 64, 64)


def test_configs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a small_side that is a multiple of 2"):
        CONFIG.replace(small_side=7)
    with pytest.raises(ConfigError, match="a small_side of at most 16 pixels"):
        CONFIG.replace(small_side=32)
    for times in ((), (400, 999), (1000,), (400, 400)):
        with pytest.raises(ConfigError, match=r"falling times in \[0, 1000\)"):
            CONFIG.replace(times=times)
    with pytest.raises(ConfigError, match="transformers of every level, or none stated"):
        CONFIG.replace(diffusion=DIFFUSION.replace(transformers=(1,)))
    assert "layton_1024.256" in zoo.list_models("layton*")


@pytest.mark.parametrize("container", ["model", "state_dict"])
def test_a_file_of_the_published_layout_loads_with_its_adaptation_joined(tmp_path: Path, container: str) -> None:
    meta = json.loads((PARITY / "layton" / "meta.json").read_text())
    state = zoo.checkpoint.read(PARITY / "layton" / "weights.safetensors")
    state["quantize.codebook_used"] = torch.zeros(65536)
    torch.save({container: state, "epoch": 3}, tmp_path / "LaCTok-T.pth")
    config = layton.config_from_original(meta).to_dict()
    model = zoo.create_model("layton_1024", checkpoint=tmp_path / "LaCTok-T.pth", **config)
    own = model.state_dict()
    place = "decoder.unet.base_model.model.mid_block.resnets.0.conv1"
    down, up = (state[f"{place}.lora_{side}.default.weight"] for side in "AB")
    expected = state[f"{place}.base_layer.weight"] + 4 * torch.einsum("orxy,rikl->oikl", up, down)  # 8 over rank 2
    torch.testing.assert_close(own["unet.mid_block.resnets.0.conv1.weight"], expected)
    assert torch.equal(own["control.conv_in.weight"], state["decoder.controlnet.conv_in.weight"])
