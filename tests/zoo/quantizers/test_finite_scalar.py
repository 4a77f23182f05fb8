"""Finite scalar quantisation: digits, bounds, noise, and vector-quantize-pytorch's FSQ."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import FiniteScalarConfig, NoiseDropoutConfig, Quantizer, from_vqp

LEVELS = st.lists(st.integers(2, 17), min_size=1, max_size=4).map(tuple)
BOUNDS = st.sampled_from([{}, {"symmetric": True}, {"squash": "clamp"}, {"symmetric": True, "squash": "clamp"}])


@given(LEVELS, st.booleans())
def test_index_is_the_number_of_its_digits_with_dimension_0_fastest(levels: tuple[int, ...], symmetric: bool) -> None:
    quantizer = FiniteScalarConfig(levels=levels, symmetric=symmetric).build()
    size = math.prod(levels)
    indices = torch.arange(size)[:: max(1, size // 100)]
    codes = quantizer.indices_to_codes(indices)
    for index, code in zip(indices.tolist(), codes):
        digits = []
        for level in levels:
            index, digit = divmod(index, level)
            digits.append(2 * digit / (level - 1) - 1 if symmetric else (digit - level // 2) / (level // 2))
        torch.testing.assert_close(code, torch.tensor(digits))
    assert float(codes.abs().max()) <= 1


@given(LEVELS, BOUNDS, st.integers(0, 100))
def test_every_code_can_be_reached_and_is_its_own_index(levels: tuple[int, ...], bound: dict, seed: int) -> None:
    quantizer = FiniteScalarConfig(levels=levels, **bound).build()
    sizes = torch.tensor(levels)
    generator = torch.Generator().manual_seed(seed)
    digits = torch.stack([torch.randint(0, int(size), (50,), generator=generator) for size in sizes], 1)
    if bound.get("symmetric"):
        squashed, shift = digits * 2 / (sizes - 1) - 1, torch.zeros(len(levels))
    else:
        half = (sizes - 1) * (1 + 1e-3) / 2
        shift = (sizes % 2 == 0) * 0.5 / half
        squashed = (digits - sizes // 2) / half + shift
    if bound.get("squash") != "clamp":
        squashed, shift = squashed.double().clamp(-0.9999, 0.9999).atanh(), shift.atanh()
    basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
    assert torch.equal(quantizer((squashed - shift).float()).indices, (digits * basis).sum(1))


@given(st.lists(st.integers(2, 900), min_size=1, max_size=3).map(tuple), BOUNDS)
def test_indices_stay_in_range_for_any_latent(levels: tuple[int, ...], bound: dict) -> None:
    quantizer = FiniteScalarConfig(levels=levels, **bound).build()
    values = [-math.inf, -1e30, -100.0, -5, 0, 5, 100, 1e30, math.inf]
    indices = quantizer(torch.tensor(values)[:, None].expand(-1, len(levels))).indices
    assert indices[0] == 0
    assert indices[-1] == math.prod(levels) - 1
    assert bool((indices.diff() >= 0).all())


def test_nan_gets_digit_0_and_shows_in_the_code() -> None:
    quantized = FiniteScalarConfig(levels=(4, 5)).build()(torch.tensor([[math.nan, 0.0], [0.0, 0.0]]))
    assert quantized.indices.tolist() == [8, 10]
    assert quantized.codes.isnan().tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5), (7, 2)])
def test_gradient_is_that_of_the_bound(levels: tuple[int, ...]) -> None:
    sizes = torch.tensor(levels)
    half, offset = (sizes - 1) * 1.001 / 2, (sizes % 2 == 0) * 0.5
    z, upstream = torch.randn(30, len(levels), requires_grad=True), torch.randn(30, len(levels))
    (slope,) = torch.autograd.grad((FiniteScalarConfig(levels=levels).build()(z).codes * upstream).sum(), z)
    expected = upstream * (1 - (z + (offset / half).atanh()).tanh() ** 2) * half / (sizes // 2)
    torch.testing.assert_close(slope, expected)
    quantizer = FiniteScalarConfig(levels=levels, symmetric=True).build()
    (slope,) = torch.autograd.grad((quantizer(z).codes * upstream).sum(), z)
    torch.testing.assert_close(slope, upstream * (1 - z.tanh() ** 2))


def test_without_a_margin_odd_levels_round_the_squashed_latent() -> None:
    """The scalar codec of SimpleSpeech: round(9 tanh(z)) / 9."""
    z = torch.randn(200, 3) * 2
    quantized = FiniteScalarConfig(levels=(19, 19, 19), margin=0.0).build()(z)
    torch.testing.assert_close(quantized.codes, (9 * z.tanh()).round() / 9)


@given(LEVELS, st.booleans(), st.floats(0.05, 1.0), st.integers(0, 100))
def test_noise_is_as_wide_as_a_level_around_the_bounded_latent(
    levels: tuple[int, ...], symmetric: bool, probability: float, seed: int
) -> None:
    config = FiniteScalarConfig(levels=levels, symmetric=symmetric)
    quantizer = config.replace(noise=NoiseDropoutConfig(probability)).build()
    assert isinstance(quantizer, Quantizer)
    torch.manual_seed(seed)
    z = torch.randn(400, len(levels))
    plain = config.build()(z)
    assert torch.equal(quantizer.eval()(z).codes, plain.codes)
    noisy = quantizer.train()(z)
    assert torch.equal(noisy.indices, plain.indices)
    sizes = torch.tensor(levels)
    step = 2 / (sizes - 1) if symmetric else 1 / (sizes // 2)
    bounded = quantizer.bound(z)  # type: ignore[operator]
    kept = noisy.codes == plain.codes
    assert abs(kept.double().mean() - (1 - probability)) < 5 * (0.25 / kept.numel()) ** 0.5 + 1e-9
    offset = ((noisy.codes - bounded) / step)[~kept]
    assert bool((offset.abs() <= 0.5 + 1e-5).all())
    if len(offset) > 100:
        assert offset.min() < -0.4
        assert offset.max() > 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, "levels of at least 2 values each"),
        ({"levels": (8, 1)}, "levels of at least 2 values each"),
        ({"levels": (1 << 16, 1 << 15)}, "fewer than 2"),
        ({"levels": (1200, 3)}, "margin"),  # the bound would reach beyond the last level
        ({"levels": (8, 3), "margin": 0.2}, "margin"),
        ({"levels": (8, 2), "margin": 0.0}, "margin > 0 with levels of 2"),
        ({"squash": "sigmoid"}, "squash tanh or clamp, got 'sigmoid'"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FiniteScalarConfig(**settings)


@pytest.mark.parametrize("settings", [{"probability": 0.0}, {"probability": 1.1}, {"around": "index"}])
def test_noise_that_cannot_work_is_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        NoiseDropoutConfig(**settings)


def test_more_levels_need_a_smaller_margin() -> None:
    quantizer = FiniteScalarConfig(levels=(1200, 1201), margin=1e-4).build()
    assert quantizer(torch.tensor([[-50.0, -50.0], [50.0, 50.0]])).indices.tolist() == [0, 1200 * 1201 - 1]


# -- vector-quantize-pytorch: the same but for rounding; it refuses levels of two without symmetry ---------------------


def clear_of_ties(z: Tensor, theirs: torch.nn.Module) -> Tensor:
    """Latents moved off those few whose rounding would hang on the last bit."""
    return torch.where((theirs(z)[0] - theirs(z + 1e-5)[0]).abs() > 1e-6, z + 2e-3, z)


@settings(max_examples=30)
@given(
    st.lists(st.integers(3, 9), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.5]),  # its noise ignores any other probability
    st.booleans(),
    st.booleans(),
    st.integers(0, 1000),
)
def test_it_agrees_with_vector_quantize_pytorch(
    levels: list[int], symmetric: bool, clamp: bool, noise: float, training: bool, rotated: bool, seed: int
) -> None:
    from vector_quantize_pytorch import FSQ

    torch.manual_seed(seed)
    theirs = FSQ(
        levels,
        preserve_symmetry=symmetric,
        bound_hard_clamp=clamp,
        noise_dropout=noise if symmetric else 0.0,
        orthogonal_rotation=rotated,
    ).train(training)
    ours = from_vqp(theirs)
    z = torch.randn(3, 20, len(levels), generator=torch.Generator().manual_seed(seed)) * 1.5
    z = clear_of_ties(z, theirs.eval())
    theirs.train(training)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    torch.manual_seed(seed)
    quantized = ours(x)
    torch.manual_seed(seed)
    codes, indices = theirs(y)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(ours.indices_to_codes(quantized.indices), theirs.indices_to_codes(indices))
    quantized.codes.square().sum().backward()
    codes.square().sum().backward()
    # at the end of the range noise is cut off or not by the rounding of their code, and the gradient with it
    inside = torch.ones_like(codes, dtype=torch.bool)
    if noise > 0 and rotated:
        inside &= ((codes @ theirs.orthogonal_rot).abs() < 1 - 1e-5).all(dim=-1, keepdim=True)
    elif noise > 0:
        inside = codes.abs() < 1 - 1e-5
    torch.testing.assert_close(x.grad[inside], y.grad[inside])  # type: ignore[index]


def test_projections_and_codebooks_of_vector_quantize_pytorch_are_taken_over() -> None:
    from vector_quantize_pytorch import FSQ

    theirs = FSQ([5, 4, 3], dim=10, num_codebooks=2, orthogonal_rotation=True)
    ours = from_vqp(theirs)
    z = torch.randn(3, 20, 10)
    quantized, (codes, indices) = ours(z), theirs(z)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes)


def test_what_has_no_counterpart_is_named() -> None:
    from vector_quantize_pytorch import FSQ

    with pytest.raises(ValueError, match="projection_has_bias"):
        from_vqp(FSQ([5, 5], dim=7, projection_has_bias=False))


def test_bound_of_the_bound() -> None:
    """X-codec2's formula: b(z) = tanh(z + s) h - o, the code round(b(b(z))) / 2, the gradient through both."""
    quantizer = FiniteScalarConfig(levels=(4, 4), bound_twice=True).build()
    z = torch.linspace(-4, 4, 101).view(-1, 1).expand(-1, 2).clone().requires_grad_()
    half, offset = 3 * 1.001 / 2, 0.5

    def bound(x: torch.Tensor) -> torch.Tensor:
        return (x + math.atanh(offset / half)).tanh() * half - offset

    quantized = quantizer(z)
    expected = bound(bound(z)).round() / 2
    torch.testing.assert_close(quantized.codes, expected)
    digits = expected * 2 + 2
    assert torch.equal(quantized.indices, (digits[:, 0] + 4 * digits[:, 1]).long())
    torch.testing.assert_close(quantizer.indices_to_codes(quantized.indices), expected)
    (slope,) = torch.autograd.grad(quantized.codes.sum(), z)
    (wanted,) = torch.autograd.grad((bound(bound(z)) / 2).sum(), z)
    torch.testing.assert_close(slope, wanted)
