"""The multi-scale residual quantizer: its ladder, its definition, its losses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import (
    BinaryConfig,
    BinaryEntropyConfig,
    EmaCodebookConfig,
    FiniteScalarConfig,
    GroupedConfig,
    LevelDropoutConfig,
    MultiScale,
    MultiScaleConfig,
    ProjectedConfig,
    SoftEntropyConfig,
    VectorConfig,
)

LEVEL = VectorConfig(codebook_size=13, dim=4)


def built(level: Any = LEVEL, ladder: tuple[int, ...] = (1, 2, 3, 6), seed: int = 0, **fields: Any) -> MultiScale:
    torch.manual_seed(seed)
    quantizer = MultiScaleConfig(level, ladder, **{"num_convolutions": 2, **fields}).build()
    assert isinstance(quantizer, MultiScale)
    if hasattr(quantizer.level, "codebook"):
        quantizer.level.codebook.weight.data.normal_()  # type: ignore[union-attr]
    return quantizer


def latents(*shape: int, dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


# -- ladder ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8).map(sorted).map(tuple))
def test_the_ladders_own_grid_has_the_ladders_scales(ladder: tuple[int, ...]) -> None:
    config = MultiScaleConfig(LEVEL, ladder)
    assert config.level_shapes((ladder[-1], ladder[-1])) == tuple((side, side) for side in ladder)
    assert config.vocab_sizes == (13,) * len(ladder)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=8).map(sorted).map(tuple),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_other_grids_are_scaled_alike(ladder: tuple[int, ...], height: int, width: int) -> None:
    shapes = MultiScaleConfig(LEVEL, ladder).level_shapes((height, width))
    assert shapes[-1] == (height, width)
    for side, (h, w) in zip(ladder, shapes):
        for whole, part in ((height, h), (width, w)):
            assert 1 <= part <= whole
            assert part == 1 or abs(part - whole * side / ladder[-1]) <= 0.5
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(shapes))


def test_halves_are_rounded_up() -> None:
    assert MultiScaleConfig(LEVEL, (1, 2, 4)).level_shapes((2, 10)) == ((1, 3), (1, 5), (2, 10))


def test_published_token_counts() -> None:
    small = MultiScaleConfig()
    large = MultiScaleConfig(ladder=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32))
    for config, side, tokens in ((small, 16, 680), (large, 32, 2240)):
        assert sum(h * w for h, w in config.level_shapes((side, side))) == tokens


@pytest.mark.parametrize("positions", [(4,), (4, 4, 4), ()])
def test_positions_that_are_no_grid_are_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected latents on a grid"):
        MultiScaleConfig().level_shapes(positions)


@pytest.mark.parametrize(
    ("scales", "count", "expected"),
    [
        (10, 4, (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)),  # the published model; ties at scales 2 and 7 fall as in float64
        (5, 4, (0, 1, 2, 2, 3)),
        (4, 3, (0, 0, 1, 2)),
        (4, 1, (0, 0, 0, 0)),
        (3, 0, (0, 1, 2)),
        (1, 4, (0,)),
    ],
)
def test_scales_take_the_convolution_nearest_to_their_place(scales: int, count: int, expected: tuple) -> None:
    config = MultiScaleConfig(LEVEL, tuple(range(1, scales + 1)), num_convolutions=count)
    assert config.convolution_of_scale() == expected


# -- definition --------------------------------------------------------------------------------------------------------


def reference(quantizer: MultiScale, z: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Indices and cumulative sums (B, D, H, W) by the paper's algorithm."""
    (height, width), config = z.shape[1:3], quantizer.config
    f, total, indices, sums = z.movedim(-1, 1), torch.zeros(()), [], []
    codebook = quantizer.level.codebook.weight  # type: ignore[union-attr]
    for s, (h, w) in enumerate(config.level_shapes((height, width))):
        small = F.interpolate(f - total, size=(h, w), mode="area").detach()
        index = (small.movedim(1, -1)[..., None, :] - codebook).square().sum(-1).argmin(-1)
        codes = F.interpolate(codebook[index].movedim(-1, 1), size=(height, width), mode="bicubic")
        total = total + (1 - config.residual_ratio) * codes
        if config.residual_ratio > 0:
            convolution = quantizer.convolutions[quantizer.convolution_of_scale[s]]
            total = total + config.residual_ratio * convolution(codes)  # type: ignore[attr-defined]
        indices.append(index)
        sums.append(total)
    return indices, sums


@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    convolutions=st.integers(0, 4),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
    training=st.booleans(),
)
def test_it_is_the_papers_algorithm(
    seed: int, height: int, width: int, convolutions: int, ratio: float, training: bool
) -> None:
    quantizer = built(num_convolutions=convolutions, residual_ratio=ratio, seed=seed).train(training)
    z = latents(2, height, width, seed=seed).requires_grad_()
    quantized = quantizer(z)
    indices, sums = reference(quantizer, z)
    assert all(torch.equal(a, b) for a, b in zip(quantized.levels, indices, strict=True))
    torch.testing.assert_close(quantized.codes.movedim(-1, 1), sums[-1])
    f = z.movedim(-1, 1)
    expected = {
        "commitment": torch.stack([F.mse_loss(f, total.detach()) for total in sums]).mean(),
        "codebook": torch.stack([F.mse_loss(total, f.detach()) for total in sums]).mean(),
    }
    assert quantized.losses.keys() == expected.keys()
    weights = [z, quantizer.level.codebook.weight, *(c.weight for c in quantizer.convolutions)]  # type: ignore[union-attr]
    for name, loss in expected.items():
        torch.testing.assert_close(quantized.losses[name], loss)
        slopes = (
            torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
            for value in (quantized.losses[name], loss)
        )
        for ours, theirs in zip(*slopes):
            torch.testing.assert_close(ours, theirs)


def test_the_decoders_gradient_reaches_the_latent_unchanged() -> None:
    quantizer = built()
    z, upstream = latents(2, 6, 6).requires_grad_(), latents(2, 6, 6, seed=1)
    (quantizer(z).codes * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_first_scales_and_the_inputs_of_the_next() -> None:
    quantizer = built().eval()
    z = latents(2, 6, 6)
    levels = quantizer(z).levels
    _, sums = reference(quantizer, z)
    for k, total in enumerate(sums, start=1):
        torch.testing.assert_close(quantizer.indices_to_codes(*levels[:k]).movedim(-1, 1), total)
    inputs = [F.interpolate(total, size=side, mode="area") for total, side in zip(sums, (2, 3, 6))]
    expected = torch.cat([x.flatten(2) for x in inputs], dim=2).movedim(1, 2)
    torch.testing.assert_close(quantizer.next_scale_inputs(*levels), expected)


def test_first_scales_of_another_grid_need_its_positions() -> None:
    quantizer = built().eval()
    z = latents(2, 12, 4)
    levels = quantizer(z).levels
    _, sums = reference(quantizer, z)
    for k, total in enumerate(sums, start=1):
        torch.testing.assert_close(quantizer.prefix_to_codes((12, 4), *levels[:k]).movedim(-1, 1), total)
    torch.testing.assert_close(quantizer.indices_to_codes(*levels).movedim(-1, 1), sums[-1])
    for call in (lambda: quantizer.indices_to_codes(*levels[:3]), lambda: quantizer.prefix_to_codes((12, 5), *levels)):
        with pytest.raises(ValueError, match="expected indices of the grids"):
            call()


# -- other quantizers at the scales ------------------------------------------------------------------------------------


def test_a_running_codebook_moves_once_by_the_residuals_of_all_scales() -> None:
    level = VectorConfig(13, 4, codebook=EmaCodebookConfig(decay=0.8))
    quantizer, single = built(level).train(), level.build().train()
    single.load_state_dict(quantizer.level.state_dict())
    before = quantizer.level.codebook.weight.clone()  # type: ignore[union-attr, operator]
    z = latents(2, 6, 6)
    indices, sums = reference(quantizer, z)
    quantized = quantizer(z)
    assert all(torch.equal(a, b) for a, b in zip(quantized.levels, indices))
    residuals = [z, *(z - total.movedim(1, -1) for total in sums[:-1])]
    small = [
        F.interpolate(residual.movedim(-1, 1), size=side, mode="area").movedim(1, -1).flatten(0, 2)
        for residual, side in zip(residuals, (1, 2, 3, 6))
    ]
    single(torch.cat(small))
    assert not torch.equal(quantizer.level.codebook.weight, before)  # type: ignore[union-attr, arg-type]
    for key, value in single.state_dict().items():
        torch.testing.assert_close(quantizer.level.state_dict()[key], value)


def test_further_losses_of_the_level_are_kept_in_training() -> None:
    quantizer = built(VectorConfig(13, 4, entropy=SoftEntropyConfig(temperature=0.5))).train()
    assert quantizer(latents(2, 6, 6)).losses.keys() == {"commitment", "codebook", "entropy"}
    assert "sample_entropy" in quantizer(latents(2, 6, 6)).statistics
    assert quantizer.eval()(latents(2, 6, 6)).losses.keys() == {"commitment", "codebook"}


def test_finite_scalars_at_each_scale() -> None:
    quantizer = built(FiniteScalarConfig(levels=(5, 3)))
    quantized = quantizer(latents(2, 6, 6, dim=2))
    assert quantizer.config.vocab_sizes == (15,) * 4
    assert torch.equal(quantized.codes, quantizer.indices_to_codes(*quantized.levels))
    quantized.losses["codebook"].backward()
    assert all(bool(convolution.weight.grad.any()) for convolution in quantizer.convolutions)  # type: ignore[union-attr]


def signs(bits: int = 4, **fields: Any) -> MultiScale:
    """Signs on the unit sphere at each scale, as XQ-GAN has them."""
    level = BinaryConfig(bits, entropy=None, scale=bits**-0.5)
    return built(level, unit_latents=True, **{"entropy": BinaryEntropyConfig(1.0, group_bits=1), **fields})


def test_the_entropy_of_a_level_reaches_the_latents() -> None:
    quantizer = built(BinaryConfig(4, entropy=BinaryEntropyConfig(1.0))).train()
    z = latents(2, 6, 6).requires_grad_()
    (slope,) = torch.autograd.grad(quantizer(z).losses["entropy"], z)
    assert bool(slope.any())


def test_signs_code_what_the_unit_latents_leave_over() -> None:
    quantizer, z = signs().eval(), latents(2, 6, 6)
    quantized, again = quantizer(z), quantizer(5 * z)
    assert all(torch.equal(a, b) for a, b in zip(quantized.levels, again.levels))  # of their lengths nothing is asked
    unit = F.normalize(z, dim=-1)
    rest = F.adaptive_avg_pool2d(unit.movedim(-1, 1), 1).movedim(1, -1)
    torch.testing.assert_close(quantizer.level.indices_to_codes(quantized.levels[0]), rest.sign() / 2)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(quantized.losses["commitment"] * 4, sum_of_errors(quantizer, unit, quantized.levels))


def sum_of_errors(quantizer: MultiScale, z: Tensor, levels: tuple[Tensor, ...]) -> Tensor:
    sums = [quantizer.prefix_to_codes((6, 6), *levels[:count]) for count in range(1, len(levels) + 1)]
    return torch.stack([F.mse_loss(total, z) for total in sums]).sum()


def test_the_entropy_of_the_scales_is_of_what_is_left_over_at_the_whole_grid() -> None:
    quantizer, z, counts = signs().train(), latents(3, 6, 6), torch.tensor([2, 4, 4])
    losses, expected = quantizer.quantize(z, counts).losses, []
    levels = quantizer.eval()(z).levels
    for s in range(4):
        before = quantizer.prefix_to_codes((6, 6), *levels[:s]) if s else 0
        rest = (F.normalize(z, dim=-1) - before)[counts > s].flatten(0, -2)
        p = (4 * rest / 2).sigmoid()
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        mean = p.mean(0)
        expected.append(entropy.sum(-1).mean() - (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum())
    torch.testing.assert_close(losses["entropy"].float(), torch.stack(expected).mean())


# -- dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_leaves_the_later_scales_of_the_first_items_out() -> None:
    quantizer = built(dropout=LevelDropoutConfig(minimum=2, share=0.5, per_item=True)).train()
    z = latents(6, 6, 6)
    counts = quantizer.draw_items(6)
    assert set(counts[3:].tolist()) == {4}
    assert all(2 <= count <= 4 for count in counts[:3].tolist())
    counts = torch.tensor([2, 3, 1, 4, 4, 4])
    quantized, whole = quantizer.quantize(z, counts), quantizer.eval()(z)
    assert all(torch.equal(a, b) for a, b in zip(quantized.levels, whole.levels))
    for i, count in enumerate(counts.tolist()):
        expected = quantizer.prefix_to_codes((6, 6), *(level[i : i + 1] for level in whole.levels[:count]))
        torch.testing.assert_close(quantized.codes[i : i + 1], expected)
    errors = []
    for s in range(4):
        items = [i for i in range(6) if counts[i] > s]
        codes = quantizer.prefix_to_codes((6, 6), *(level[items] for level in whole.levels[: s + 1]))
        errors.append(F.mse_loss(codes, z[items]))
    torch.testing.assert_close(quantized.losses["commitment"], torch.stack(errors).mean())
    torch.testing.assert_close(quantized.losses["codebook"], torch.stack(errors).mean())


def test_scales_that_no_item_uses_add_nothing_to_the_losses() -> None:
    quantizer = built().train()
    z = latents(2, 6, 6)
    losses = quantizer.quantize(z, torch.tensor([1, 1])).losses
    (first,) = quantizer.eval()(z).levels[:1]
    expected = F.mse_loss(quantizer.prefix_to_codes((6, 6), first), z) / 4
    torch.testing.assert_close(losses["commitment"], expected)


def test_evaluation_drops_nothing() -> None:
    dropping = built(dropout=LevelDropoutConfig(per_item=True)).eval()
    z = latents(4, 6, 6)
    assert torch.equal(dropping(z).codes, built().eval()(z).codes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ladder": ()}, "none smaller than the one before"),
        ({"ladder": (0, 2)}, "none smaller than the one before"),
        ({"ladder": (1, 3, 2)}, "none smaller than the one before"),
        ({"dropout": LevelDropoutConfig()}, "dropout per item"),
        ({"ladder": (1, 3), "dropout": LevelDropoutConfig(minimum=3, per_item=True)}, "least number of 1 to 2 scales"),
        ({"level": GroupedConfig(num_groups=2)}, "a quantizer of one level, got 'grouped'"),
        ({"level": ProjectedConfig()}, "plain straight-through gradient .*, got 'projected'"),
        ({"num_convolutions": -1}, "num_convolutions >= 0, got -1"),
        ({"residual_ratio": 1.5}, r"a residual_ratio in \[0, 1\], got 1.5"),
        ({"entropy": BinaryEntropyConfig()}, "an entropy of the scales only with binary levels that have none"),
        ({"level": BinaryConfig(4), "entropy": BinaryEntropyConfig()}, "only with binary levels that have none"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiScaleConfig(**fields)
