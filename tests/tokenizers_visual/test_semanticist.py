"""Semanticist: causal tokens of unit variance, prefixes of them, guidance, and what tokens tell a diffusion decoder."""

import pytest
import torch
from torch import Tensor

from tokenizers_visual.semanticist import Semanticist, SemanticistConfig
from zoo.config import ConfigError
from zoo.layers.base_autoencoder import VariationalBaseConfig
from zoo.layers.query_transformer import TransformerSizes
from zoo.quantizers import DimensionWiseConfig, VectorConfig

CONFIG = SemanticistConfig(
    image_size=16,
    num_tokens=5,
    patch_size=8,
    encoder=TransformerSizes(width=16, layers=2, heads=2),
    base=VariationalBaseConfig(
        dim=3, channels=4, channel_multipliers=(1, 1, 1), blocks=1, norm_groups=2, attention=(False,) * 3
    ),
    decoder=TransformerSizes(width=16, layers=1, heads=2),
    steps=2,
    quantizer=DimensionWiseConfig(dim=4, bits=5, limit=3.0, deviations=3.0),
)


def build() -> Semanticist:
    torch.manual_seed(0)
    model = Semanticist(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def images(count: int = 2, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_numbers_of_a_token_have_mean_0_and_variance_1() -> None:
    with torch.no_grad():
        z = build().latent(images())
    torch.testing.assert_close(z.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.var(-1), torch.ones(2, 5))


def test_a_token_sees_the_image_and_the_tokens_up_to_itself_and_the_image_sees_no_token() -> None:
    model, x = build(), images()
    with torch.no_grad():
        before = model.encoder(x)
        model.encoder.queries[:, 3] += torch.randn(16)
        after = model.encoder(x)
    assert torch.equal(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 4], before[:, 4])
    with torch.no_grad():
        model.encoder.patches.bias += torch.randn(16)
        assert not torch.allclose(model.encoder(x)[:, 0], before[:, 0])


def test_a_prefix_of_the_tokens_is_what_fewer_tokens_are() -> None:
    model, x = build(), images()
    tokens = model.encode(x)
    assert torch.equal(model.encode(x, num_tokens=2).indices, tokens.truncate(2).indices)
    with torch.no_grad():
        codes = model.codes(tokens)
        told = model.decoder.tokens(codes, torch.tensor([2, 5]))
        assert torch.equal(told[0, 2:], model.decoder.from_codes(model.decoder.null)[0, 2:])
        assert torch.equal(told[1], model.decoder.tokens(codes)[1])
        assert torch.equal(model.decoder.tokens(codes[:, :2])[0], told[0])


def test_guidance_goes_from_the_picture_without_tokens_through_that_with_them() -> None:
    model = build()
    tokens = model.encode(images(1))
    none, plain, far = (model.decode(tokens, guidance_scale=scale, steps=1) for scale in (0.0, 1.0, 3.0))
    latents = [model.sample(model.codes(tokens), guidance_scale=scale, steps=1).detach() for scale in (0.0, 1.0, 3.0)]
    torch.testing.assert_close(latents[2], latents[0] + 3 * (latents[1] - latents[0]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(none, plain)
    assert not torch.allclose(plain, far)
    empty = model.tokens(model.encode(images(1, seed=5)).indices, extent=(16, 16))
    torch.testing.assert_close(model.decode(empty, guidance_scale=0.0, steps=1), none)


def test_decoding_takes_steps_seeds_and_noise() -> None:
    model = build()
    tokens = model.encode(images())
    default = model.decode(tokens)
    torch.testing.assert_close(model.decode(tokens, steps=2, seed=0, guidance_scale=3.0), default)
    mixed = model.decode(tokens, seed=[0, 1])
    torch.testing.assert_close(mixed[0], default[0])
    assert not torch.allclose(mixed[1], default[1])
    with pytest.raises(ValueError, match=r"noise: expected \(2, 3, 4, 4\), got \(1, 3, 4, 4\)"):
        model.decode(tokens, noise=torch.zeros(1, 3, 4, 4))


def test_before_training_the_blocks_of_the_decoder_are_the_identity() -> None:
    torch.manual_seed(0)
    block = Semanticist(CONFIG).decoder.blocks[0]
    x = torch.randn(2, 3, 16)
    assert torch.equal(block(x, torch.randn(2, 16)), x)


def test_in_training_only_the_kept_tokens_learn_and_the_base_rests() -> None:
    model = build().train()
    model(images(), torch.tensor([2, 2])).quantized.losses["diffusion"].backward()
    assert model.encoder.queries.grad is not None
    assert model.decoder.null.grad is not None
    learned = model.encoder.queries.grad[0].abs().sum(-1) > 0
    assert learned.tolist() == [True, True, False, False, False]
    replaced = model.decoder.null.grad[0].abs().sum(-1) > 0
    assert replaced.tolist() == [False, False, True, True, True]
    assert all(parameter.grad is None for parameter in model.base.parameters())


def test_variances_learn_by_their_own_loss_and_decoding_does_not_use_them() -> None:
    model = build().train()
    losses = model(images(8)).quantized.losses
    layer = model.decoder.to_noise.weight
    of_noise = model.config.latent_patch**2 * 2 * 3
    parts = layer.new_zeros(of_noise).view(-1, 2, 3)  # (places of a patch, noise or spread, channels)
    slopes = {name: torch.autograd.grad(losses[name], layer, retain_graph=True)[0] for name in model.own_losses}
    moved = {name: slope.abs().sum(1).view_as(parts).sum((0, 2)) > 0 for name, slope in slopes.items()}
    assert moved["diffusion"].tolist() == [True, False]
    assert moved["variational"].tolist() == [False, True]
    assert torch.isfinite(losses["variational"])
    codes = torch.randn(2, 5, 4)
    with torch.no_grad():
        before = model.eval().sample(codes)
        layer.view(4, 2, 3, -1)[:, 1] += 1.0
        assert torch.equal(model.sample(codes), before)
        layer.view(4, 2, 3, -1)[:, 0] += 1.0
        assert not torch.allclose(model.sample(codes), before)


def test_the_loss_of_diffusion_falls() -> None:
    torch.manual_seed(0)
    model, x = Semanticist(CONFIG).train(), images(8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = model(x).quantized.losses["diffusion"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_configs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 8"):
        CONFIG.replace(image_size=20)
    with pytest.raises(ConfigError, match="at least 2 numbers"):
        CONFIG.replace(quantizer=VectorConfig(codebook_size=4, dim=1))
