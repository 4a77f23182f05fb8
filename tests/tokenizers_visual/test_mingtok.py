"""MingTok: features that no later token changes, and pixels that come from features alone."""

import pytest
import torch
from torch import Tensor

from tokenizers_visual.mingtok import MingTok, MingTokConfig
from zoo.config import ConfigError
from zoo.layers.query_transformer import TransformerSizes
from zoo.quantizers import DimensionWiseConfig

SIZES = TransformerSizes(width=16, layers=2, heads=2)
CONFIG = MingTokConfig(
    image_size=24, patch_size=8, pixel_patch_size=2, encoder=SIZES, semantic=SIZES, pixels=SIZES,
    quantizer=DimensionWiseConfig(dim=4, bits=5, limit=3.0, deviations=3.0),
)  # fmt: skip


def build(**changes: object) -> MingTok:
    torch.manual_seed(0)
    return MingTok(CONFIG.replace(**changes)).eval()


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_an_image_of_512_pixels_takes_256_tokens() -> None:
    with torch.device("meta"):
        model = MingTok(MingTokConfig())
    assert model.token_shapes((512, 512))[0] == (16, 16)
    assert len(model.vocab_sizes) == 32
    assert sum(parameter.numel() for parameter in model.parameters()) == 697_719_584  # of the original's


def test_latents_are_a_projection_and_means_of_groups_of_channels() -> None:
    model, x = build(latent_mean=0.0, latent_scale=1.0), images()
    encoder, seen = model.encoder, list[Tensor]()
    encoder.norm.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    with torch.no_grad():
        latent = model.latent(x).flatten(1, 2)
        projected = encoder.to_latent(torch.nn.functional.gelu(encoder.norm(seen[0])))
    torch.testing.assert_close(latent - projected, seen[0].unflatten(-1, (4, 4)).mean(-1), rtol=1e-4, atol=1e-5)


def test_numbers_that_the_widths_do_not_divide_are_spread_as_evenly_as_can_be() -> None:
    model = build(quantizer=DimensionWiseConfig(dim=3, bits=5, limit=3.0, deviations=3.0))
    with torch.no_grad():
        model.from_codes.weight.zero_()
        model.from_codes.bias.zero_()
        model.semantic[0].register_forward_hook(lambda module, given, output: seen.append(given[0]))
        seen: list[Tensor] = []
        model.features(torch.arange(3.0).expand(1, 3, 3, 3))
    scale, mean = model.config.latent_scale, model.config.latent_mean
    numbers = ((seen[0][0, 0] - mean) / scale).round().int().tolist()
    assert numbers == [0] * 6 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("place", [1, 4, 8])
def test_the_features_of_a_token_depend_on_no_later_token(place: int) -> None:
    model, codes = build(), torch.randn(1, 3, 3, 4)
    changed = codes.clone().view(1, 9, 4)
    changed[:, place] += torch.randn(4)
    with torch.no_grad():
        before, after = (model.features(x.view(1, 3, 3, 4)).flatten(1, 2) for x in (codes, changed))
    torch.testing.assert_close(after[:, :place], before[:, :place])
    assert all(not torch.allclose(after[:, i], before[:, i]) for i in range(place, 9))


def test_pixels_come_from_features_and_every_pixel_from_all_of_them() -> None:
    model = build()
    tokens = model.encode(images())
    with torch.no_grad():
        features = model.features(model.codes(tokens))
        torch.testing.assert_close(model.paint(features), model.decode(tokens))
        features[:, 2, 2] += torch.randn(16)
        assert not torch.allclose(model.paint(features)[..., 0, 0], model.decode(tokens)[..., 0, 0])


def test_the_parts_of_a_patch_lie_in_it() -> None:
    model = build()
    with torch.no_grad():
        for block in model.pixels:  # without attention a pixel shows where its feature lies
            block.attention.proj.weight.zero_()
            block.attention.proj.bias.zero_()
        features = torch.randn(1, 3, 3, 16)
        before = model.paint(features)
        features[:, 1, 2] += torch.randn(16)
        moved = (model.paint(features) != before).any(1)[0]
    assert bool(moved[8:16, 16:24].any())
    moved[8:16, 16:24] = False
    assert not moved.any()


def test_the_scale_of_latents_is_undone_before_they_are_read() -> None:
    plain, scaled = build(latent_mean=0.0, latent_scale=1.0), build(latent_mean=0.3, latent_scale=2.0)
    with torch.no_grad():
        latent = plain.latent(images())
        torch.testing.assert_close(scaled.latent(images()), (latent - 0.3) / 2)
        torch.testing.assert_close(scaled.features(scaled.latent(images())), plain.features(latent))


def test_configs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a pixel_patch_size that divides 8, got 3"):
        CONFIG.replace(pixel_patch_size=3)
    with pytest.raises(ConfigError, match="a multiple of 8 px, got 20"):
        CONFIG.replace(image_size=20)
