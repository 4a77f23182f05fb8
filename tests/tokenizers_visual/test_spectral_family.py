"""The tokenizer of spatial frequencies: what its prefixes mean, at any size."""

from __future__ import annotations

import pytest
import torch

import zoo
from tokenizers_visual.spectral import Spectral, SpectralConfig, frequency_features, frequency_order
from zoo.config import ConfigError
from zoo.quantizers import FiniteScalarConfig

CONFIG = SpectralConfig(2, (8, 8), (1, 1), (1, 1), latent_channels=6, hidden=8, quantizer=FiniteScalarConfig((5, 4)))
CPU = torch.device("cpu")


def build(seed: int = 0) -> Spectral:
    torch.manual_seed(seed)
    return Spectral(CONFIG).eval()


def images(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4), (6, 2)])
def test_tokens_go_from_the_lowest_frequency_to_the_highest(height: int, width: int) -> None:
    order = frequency_order(height, width, CPU)
    assert order[0] == 0
    assert sorted(order.tolist()) == list(range(height * width))
    radius = frequency_features(height, width, CPU)[..., 2].flatten()[order]
    assert bool((radius.diff() >= 0).all())


def test_the_features_of_a_frequency_do_not_depend_on_the_size_of_the_grid() -> None:
    small, large = frequency_features(4, 6, CPU), frequency_features(8, 12, CPU)
    torch.testing.assert_close(small, large[::2, ::2])


def test_one_token_tells_one_colour_and_all_of_them_everything() -> None:
    """The grid that the decoder sees is constant with one token, and that of `dct2` with all."""
    model = build()
    seen: list[torch.Tensor] = []
    model.conv_in.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    tokens = model.encode(images(1, 24, 16))
    for count in (1, 2, 24):
        model.decode(tokens.truncate(count))
    spread = [grid.std((2, 3)).mean().item() for grid in seen]
    assert spread[0] < 1e-6 < spread[1] < spread[2]


def test_images_of_any_size_and_of_different_lengths() -> None:
    model = build()
    x = images(2, 21, 13)  # of 6 x 4 cells
    tokens = model.encode(x, num_tokens=[24, 3])
    assert tokens.lengths is not None
    assert tokens.lengths.tolist() == [24, 3]
    assert tokens.bits == (24 * 5, 3 * 5)
    together = model.decode(tokens)
    assert together.shape == x.shape
    for i, count in enumerate((24, 3)):
        torch.testing.assert_close(together[i : i + 1], model.decode(model.encode(x[i : i + 1], num_tokens=count)))
    assert model.encode(x).truncate(3) == model.encode(x, num_tokens=3)
    with torch.no_grad():
        trained = model(x, torch.tensor([24, 3])).reconstruction
    torch.testing.assert_close(trained, together)


def test_wrong_numbers_and_sizes_are_told() -> None:
    model = build()
    x = images(2, 16, 16)
    with pytest.raises(ValueError, match="expected an integer from 1 to 16, got 17"):
        model.encode(x, num_tokens=17)
    tokens = model.encode(x)
    with pytest.raises(ValueError, match=r"expected tokens of images of one size \(extent\), got None"):
        model.decode(zoo.Tokens(tokens.levels, tokens.vocab_sizes, "sequence", prefix="positions"))
    one_size = model.encode(images(1, 8, 8))
    with pytest.raises(
        ValueError, match=r"expected tokens of images of one size \(extent\), got \[\(8, 8\), \(16, 16\)\]"
    ):
        model.decode(zoo.Tokens.cat([one_size, tokens[:1]]))
    with pytest.raises(ValueError, match="expected size, or a square number, got 3"):
        model.reconstruct(torch.zeros(1, 3, 2))
    with pytest.raises(ConfigError, match="as many levels"):
        SpectralConfig(channels=(8,))
