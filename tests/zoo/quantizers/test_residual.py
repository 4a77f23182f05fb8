"""The residual quantizer: its definition, its three gradients, dropout, search, and vector-quantize-pytorch."""

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
from zoo.ops.beam_codes import beam_codes
from zoo.quantizers import (
    BinaryConfig,
    EmaCodebookConfig,
    FiniteScalarConfig,
    GroupedConfig,
    IndexBackpropagationConfig,
    LevelDropoutConfig,
    ProjectedConfig,
    Residual,
    ResidualConfig,
    RotationConfig,
    SoftEntropyConfig,
    VectorConfig,
)

VECTOR = VectorConfig(codebook_size=9, dim=4)
EMA = VectorConfig(9, 4, codebook=EmaCodebookConfig(decay=0.8))


def built(*args: Any, seed: int = 0, **fields: Any) -> Residual:
    """A residual quantizer whose vector codebooks are normal, halved from level to level."""
    torch.manual_seed(seed)
    quantizer = ResidualConfig(*args, **fields).build()
    for q, level in enumerate(quantizer.levels):  # type: ignore[union-attr, arg-type]
        if hasattr(level, "codebook"):
            level.codebook.weight.data.normal_().mul_(0.5**q)
    return quantizer  # type: ignore[return-value]


def latents(*shape: int, dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dim, generator=torch.Generator().manual_seed(seed))


# -- definition --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@given(seed=st.integers(0, 1000), count=st.integers(1, 5))
def test_each_level_takes_the_nearest_code_of_what_is_left(training: bool, seed: int, count: int) -> None:
    quantizer = built(VECTOR, num_levels=count, seed=seed).train(training)
    z = latents(2, 7, seed=seed)
    quantized = quantizer(z)
    residual, errors = z, []
    for level, indices in zip(quantizer.levels, quantized.levels, strict=True):
        codebook = level.codebook.weight.detach()
        expected = (residual[..., None, :] - codebook).square().sum(-1).argmin(-1)
        assert torch.equal(indices, expected)
        errors.append(F.mse_loss(codebook[indices], residual))
        residual = residual - codebook[indices]
    torch.testing.assert_close(quantized.codes, z - residual)
    for name in ("commitment", "codebook"):
        torch.testing.assert_close(quantized.losses[name], torch.stack(errors).mean())


def test_the_first_levels_are_a_coarser_code() -> None:
    quantizer = built(VECTOR, num_levels=4).eval()
    assert quantizer.config.prefix
    z = latents(3, 50)
    levels = quantizer(z).levels
    sums = [quantizer.indices_to_codes(*levels[:k]) for k in range(1, 5)]
    for k, total in enumerate(sums, start=1):
        expected = sum(quantizer.levels[q].codebook.weight[levels[q]] for q in range(k))
        torch.testing.assert_close(total, expected)
    errors = [F.mse_loss(total, z).item() for total in sums]
    assert errors == sorted(errors, reverse=True)
    for wrong in ((), (*levels, levels[0])):
        with pytest.raises(ValueError, match="expected 1 to 4 levels, got"):
            quantizer.indices_to_codes(*wrong)


def test_groups_at_each_level_are_groups_of_levels() -> None:
    inside = ResidualConfig(GroupedConfig(VectorConfig(5, 2), num_groups=2), num_levels=3)
    outside = GroupedConfig(ResidualConfig(VectorConfig(5, 2), num_levels=3), num_groups=2)
    assert inside.vocab_sizes == outside.vocab_sizes == (5,) * 6
    assert inside.prefix
    assert outside.prefix
    first, second = inside.build().eval(), outside.build().eval()
    for q, g in itertools.product(range(3), range(2)):
        second.groups[g].levels[q].load_state_dict(first.levels[q].groups[g].state_dict())  # type: ignore[union-attr, index]
    z = latents(3, 4)
    levels = first(z).levels
    assert all(torch.equal(a, b) for a, b in zip(levels, second(z).levels))
    for k in range(1, 7):
        torch.testing.assert_close(first.indices_to_codes(*levels[:k]), second.indices_to_codes(*levels[:k]))


def test_levels_of_several_codebooks_that_do_not_add_up_have_no_prefix() -> None:
    config = ResidualConfig(BinaryConfig(bits=4, subtokens=2), num_levels=2)
    assert not config.prefix
    assert config.vocab_sizes == (4,) * 4
    quantizer = config.build().eval()
    levels = quantizer(latents(3)).levels
    with pytest.raises(ValueError, match="expected 4 levels, got 2"):
        quantizer.indices_to_codes(*levels[:2])


def test_different_levels() -> None:
    config = ResidualConfig((VectorConfig(9, 4), VectorConfig(5, 4), BinaryConfig(bits=4)), num_levels=3)
    assert config.vocab_sizes == (9, 5, 16)
    assert config.level_shapes((3, 2)) == ((3, 2),) * 3
    assert [type(level).__name__ for level in config.build().levels] == ["Vector", "Vector", "Binary"]  # type: ignore[union-attr]


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient", "factor"), [("straight_through", 1), ("through", 1), ("per_level", 3)])
def test_the_decoders_gradient_reaches_the_latent(gradient: str, factor: int) -> None:
    quantizer = built(VECTOR, num_levels=3, gradient=gradient)
    z, upstream = latents(2, 5).requires_grad_(), latents(2, 5, seed=1)
    (quantizer(z).codes * upstream).sum().backward()
    torch.testing.assert_close(z.grad, factor * upstream)
    assert all(parameter.grad is None for parameter in quantizer.parameters())


@pytest.mark.parametrize("gradient", ["straight_through", "through", "per_level"])
def test_losses_of_deeper_levels_reach_the_latent_unless_gradients_go_through(gradient: str) -> None:
    quantizer = built(VECTOR, num_levels=3, gradient=gradient)
    z = latents(2, 5).requires_grad_()
    quantizer(z).losses["commitment"].backward()
    residual, slopes = z.detach(), []
    for level in quantizer.levels:
        codes = level(residual).codes.detach()
        slopes.append(2 * (residual - codes) / residual.numel())
        residual = residual - codes
    expected = slopes[0] if gradient == "through" else sum(slopes)
    torch.testing.assert_close(z.grad, expected / 3)


# -- scaled levels -----------------------------------------------------------------------------------------------------


def test_each_finite_scalar_level_splits_the_cells_of_the_one_before() -> None:
    level = FiniteScalarConfig(levels=(5, 3), symmetric=True, squash="clamp")
    quantizer = built(level, num_levels=3)
    z = latents(400, dim=2).clamp(-1, 1)
    levels = quantizer(z).levels
    for k, width in enumerate(torch.tensor([[5.0, 3], [25, 9], [125, 27]]), start=1):
        # a code of k levels is the nearest of a grid, up to the outer cells' narrower reach
        error = (quantizer.indices_to_codes(*levels[:k]) - z).abs().amax(0)
        step = 2 / (torch.tensor([5.0, 3]) - 1) * torch.tensor([5.0, 3]) / width
        assert bool((error <= step / 2 + 1e-6).all())


@pytest.mark.parametrize(
    ("level", "refinement", "expected"),
    [
        (FiniteScalarConfig(levels=(5, 3)), None, (25.0, 9.0)),
        (BinaryConfig(bits=2), None, (4.0, 4.0)),
        (VectorConfig(9, 2), None, None),
        (VectorConfig(9, 2), 3.0, (9.0, 9.0)),
        (FiniteScalarConfig(levels=(5, 3)), (2.0, 1.0), (4.0, 1.0)),
        (FiniteScalarConfig(levels=(5, 3)), 1.0, None),
        ((BinaryConfig(bits=2), BinaryConfig(bits=2, scale=0.5), BinaryConfig(bits=2, scale=0.25)), None, None),
    ],
)
def test_refinement_suits_the_levels_unless_given(level: Any, refinement: Any, expected: Any) -> None:
    config = ResidualConfig(level, num_levels=3, refinement=refinement)
    assert config.refinement_of(2) == expected
    assert config.refinement_of(0) is None


def test_finite_scalars_of_a_softly_clamped_latent_reach_it_everywhere() -> None:
    """The stated recipe: bounds of L / (L - 1), within which the cells of a first level meet those of the next."""
    level = FiniteScalarConfig(levels=(5, 4), symmetric=True, squash="clamp")
    quantizer = built(level, num_levels=4, soft_clamp=(5 / 4, 4 / 3))
    z, bound = latents(500, dim=2) * 4, torch.tensor([5 / 4, 4 / 3])
    error = (quantizer(z).codes - (z / bound).tanh() * bound).abs().amax(0)
    finest = 1 / (torch.tensor([5.0, 4]) - 1) / torch.tensor([5.0, 4]) ** 3
    assert bool((error <= finest + 1e-5).all())


def test_refinement_divides_the_codes_and_multiplies_the_residual() -> None:
    quantizer = built(VECTOR, num_levels=2, refinement=(2.0, 4, 1, 1))
    z, scale = latents(30), torch.tensor([2.0, 4, 1, 1])
    quantized = quantizer(z)
    first = quantizer.levels[0](z)
    second = quantizer.levels[1]((z - first.codes) * scale)
    assert torch.equal(quantized.indices, torch.stack([first.indices, second.indices], -1))
    torch.testing.assert_close(quantized.codes, first.codes + second.codes / scale)
    torch.testing.assert_close(
        quantized.losses["commitment"], (first.losses["commitment"] + second.losses["commitment"]) / 2
    )


def test_the_soft_clamp_bounds_the_latent() -> None:
    plain, clamped = (built(VECTOR, num_levels=2, soft_clamp=bound) for bound in (None, (1.0, 2, 3, 4)))
    z, bound = latents(20) * 5, torch.tensor([1.0, 2, 3, 4])
    x = z.clone().requires_grad_()
    quantized = clamped(x)
    assert torch.equal(quantized.indices, plain((z / bound).tanh() * bound).indices)
    quantized.codes.sum().backward()
    torch.testing.assert_close(x.grad, 1 - (z / bound).tanh() ** 2)


# -- shared codebook ---------------------------------------------------------------------------------------------------


def test_a_shared_running_codebook_moves_once_by_the_residuals_of_all_levels() -> None:
    quantizer = built(EMA, num_levels=3, shared=True).train()
    assert len(quantizer.levels) == 1
    codebook = quantizer.levels[0].codebook.weight.clone()
    z, single = latents(2, 30), EMA.build().train()
    for name in ("codebook.weight", "ema.total"):
        single.get_parameter(name) if name.startswith("code") else single.get_buffer(name)
        (single.codebook.weight.data if name.startswith("code") else single.ema.total).copy_(codebook)  # type: ignore[union-attr]
    quantizer.levels[0].ema.total.copy_(codebook)
    quantized = quantizer(z)
    residuals = [z]
    for indices in quantized.levels:
        assert torch.equal(
            indices, (residuals[-1][..., None, :] - codebook).square().sum(-1).argmin(-1)
        )  # the codebook from before the step, at all levels
        residuals.append(residuals[-1] - codebook[indices])
    joined = single(torch.cat([residual.flatten(0, 1) for residual in residuals[:-1]]))
    torch.testing.assert_close(quantizer.levels[0].codebook.weight, single.codebook.weight)  # type: ignore[union-attr]
    torch.testing.assert_close(quantized.losses["commitment"], joined.losses["commitment"])
    torch.testing.assert_close(quantized.codes, z - residuals[-1])


def test_a_shared_codebook_gives_in_training_what_it_gives_in_evaluation() -> None:
    quantizer = built(VECTOR, num_levels=3, shared=True)
    z = latents(2, 30)
    trained, evaluated = quantizer.train()(z), quantizer.eval()(z)
    assert torch.equal(trained.codes, evaluated.codes)
    assert torch.equal(trained.indices, evaluated.indices)
    for name, loss in evaluated.losses.items():
        torch.testing.assert_close(trained.losses[name], loss)


# -- quantizer dropout -------------------------------------------------------------------------------------------------


@given(most=st.integers(1, 12), minimum=st.integers(1, 12), multiple=st.integers(1, 5), seed=st.integers(0, 99))
def test_drawn_numbers_of_levels_are_those_allowed(most: int, minimum: int, multiple: int, seed: int) -> None:
    minimum = min(minimum, most)
    for per_item in (False, True):
        dropout = LevelDropoutConfig(minimum=minimum, multiple_of=multiple, per_item=per_item)
        quantizer = ResidualConfig(VectorConfig(2, 1), num_levels=most, dropout=dropout).build()
        torch.manual_seed(seed)
        allowed = {min(most, -(-number // multiple) * multiple) for number in range(minimum, most + 1)}
        assert isinstance(quantizer, Residual)
        single = torch.tensor([dropout.draw_batch(most, torch.device("cpu"))])
        drawn = quantizer.draw_items(300) if per_item else single
        assert set(drawn.tolist()) <= allowed
        if per_item:
            assert set(drawn.tolist()) == allowed  # 300 draws of at most 12 numbers miss one with a chance below 1e-9


@pytest.mark.parametrize("per_item", [False, True])
def test_the_share_of_shortened_items_or_batches(per_item: bool) -> None:
    dropout = LevelDropoutConfig(minimum=1, share=0.5, per_item=per_item)
    quantizer = built(VECTOR, num_levels=50, dropout=dropout)
    if per_item:
        drawn = quantizer.draw_items(200)
        assert int((drawn[:100] < 50).sum()) > 80
        assert bool((drawn[100:] == 50).all())
    else:
        drawn = torch.tensor([dropout.draw_batch(50, torch.device("cpu")) for _ in range(200)])
        assert 60 < int((drawn < 50).sum()) < 140


@pytest.mark.parametrize("shared", [False, True])
def test_a_dropped_batch_uses_the_first_levels_alone(shared: bool) -> None:
    quantizer = built(EMA, num_levels=3, shared=shared, dropout=LevelDropoutConfig())
    z, seen = latents(2, 20), set()
    whole = quantizer.eval()(z)
    for seed in range(20):
        quantizer = built(EMA, num_levels=3, shared=shared, dropout=LevelDropoutConfig()).train()
        before = [level.codebook.weight.clone() for level in quantizer.levels]
        torch.manual_seed(seed)
        quantized = quantizer(z)
        count = len(quantized.levels)
        seen.add(count)
        assert all(torch.equal(a, b) for a, b in zip(quantized.levels, whole.levels))
        moved = [not torch.equal(a, level.codebook.weight) for a, level in zip(before, quantizer.levels)]
        assert moved == ([True] if shared else [q < count for q in range(3)])
        residual, errors = z, []
        for q in range(count):
            codes = before[0 if shared else q][quantized.levels[q]]
            errors.append(F.mse_loss(residual, codes))
            residual = residual - codes
        torch.testing.assert_close(quantized.codes, z - residual)
        torch.testing.assert_close(quantized.losses["commitment"], torch.stack(errors).mean())
    assert seen == {1, 2, 3}


def test_evaluation_drops_no_level() -> None:
    for per_item in (False, True):
        quantizer = built(VECTOR, num_levels=3, dropout=LevelDropoutConfig(per_item=per_item)).eval()
        assert all(len(quantizer(latents(2)).levels) == 3 for _ in range(10))


@pytest.mark.parametrize("gradient", ["straight_through", "through", "per_level"])
def test_items_are_dropped_one_by_one(gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dropout = LevelDropoutConfig(per_item=True)
    quantizer = built(VECTOR, num_levels=3, gradient=gradient, dropout=dropout).train()
    counts = torch.tensor([2, 3, 1, 3, 1])
    monkeypatch.setattr(quantizer, "draw_items", lambda items: counts[:items])
    z = latents(5, 6).requires_grad_()
    quantized = quantizer(z)
    whole = quantizer.eval()(z.detach())
    assert torch.equal(quantized.indices, whole.indices)  # of all levels, for all items
    for b, count in enumerate(counts.tolist()):
        alone = quantizer.indices_to_codes(*(level[b : b + 1] for level in whole.levels[:count]))
        torch.testing.assert_close(quantized.codes[b : b + 1], alone)
    residual, expected = z.detach(), []
    for q, level in enumerate(quantizer.levels):
        codes = level.indices_to_codes(whole.levels[q]).detach()
        per_item = (residual - codes).square().mean((1, 2))
        expected.append((per_item * (counts > q)).mean())
        residual = residual - codes
    torch.testing.assert_close(quantized.losses["commitment"], torch.stack(expected).mean())
    quantized.losses["codebook"].backward(retain_graph=True)
    used = [bool(level.codebook.weight.grad.any()) for level in quantizer.levels]
    assert used == [True, True, True]
    (quantized.codes.sum(dim=(1, 2)) * torch.arange(5)).sum().backward()
    factor = counts if gradient == "per_level" else torch.ones(5)
    torch.testing.assert_close(z.grad, (torch.arange(5.0) * factor)[:, None, None].expand_as(z))


def test_dropout_per_item_needs_whole_items() -> None:
    quantizer = built(VECTOR, num_levels=3, dropout=LevelDropoutConfig(per_item=True))
    mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="dropout per item takes no mask"):
        quantizer.train()(latents(2, 5), mask)
    assert torch.equal(quantizer.eval()(latents(2, 5), mask).indices, quantizer(latents(2, 5)).indices)


def test_a_level_that_no_item_uses_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = built(EMA, num_levels=2, dropout=LevelDropoutConfig(per_item=True)).train()
    monkeypatch.setattr(quantizer, "draw_items", lambda items: torch.ones(items, dtype=torch.int64))
    before = [{k: v.clone() for k, v in level.state_dict().items()} for level in quantizer.levels]
    quantized = quantizer(latents(3, 4))
    assert all(bool(value.isfinite()) for value in (*quantized.losses.values(), *quantized.statistics.values()))
    changed = [
        any(not torch.equal(level.state_dict()[key], value) for key, value in state.items())
        for level, state in zip(quantizer.levels, before)
    ]
    assert changed == [True, False]


# -- factorised levels -------------------------------------------------------------------------------------------------


def test_a_cosine_search_among_raw_vectors() -> None:
    """DAC's lookup: latents and codes are normalised to be compared, and nowhere else."""
    config = VectorConfig(codebook_size=9, dim=4, metric="cosine", unit_vectors=False)
    torch.manual_seed(0)
    quantizer = config.build()
    weight = torch.randn(9, 4) * torch.rand(9, 1) * 5
    quantizer.codebook.weight.data.copy_(weight)  # type: ignore[union-attr, operator]
    z = latents(30)
    quantized = quantizer(z)
    assert torch.equal(quantized.indices, (z @ F.normalize(weight, dim=-1).T).argmax(-1))
    assert torch.equal(quantized.codes, weight[quantized.indices])
    torch.testing.assert_close(quantized.losses["commitment"], F.mse_loss(weight[quantized.indices], z))
    for fields in ({"metric": "euclidean"}, {"entropy": SoftEntropyConfig()}):
        with pytest.raises(ConfigError, match="unit_vectors=False"):
            VectorConfig(**{"metric": "cosine", "unit_vectors": False, **fields})  # type: ignore[arg-type]


# -- beam search -------------------------------------------------------------------------------------------------------


def with_codebooks(codebooks: Tensor, beam: int) -> Residual:
    count, size, dim = codebooks.shape
    quantizer = ResidualConfig(VectorConfig(size, dim), num_levels=count, beam=beam).build().eval()
    assert isinstance(quantizer, Residual)
    for level, codebook in zip(quantizer.levels, codebooks):
        level.codebook.weight.data.copy_(codebook)
    return quantizer


@given(seed=st.integers(0, 10_000), beam=st.integers(2, 9), count=st.integers(1, 4), size=st.integers(1, 8))
def test_a_beam_is_never_worse_than_greedy(seed: int, beam: int, count: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebooks, z = (torch.randn(*shape, generator=generator) for shape in ((count, size, 3), (20, 3)))
    greedy, wide = (with_codebooks(codebooks, b)(z) for b in (1, beam))
    errors = [(quantized.codes - z).double().square().sum(-1) for quantized in (greedy, wide)]
    assert bool((errors[1] <= errors[0] + 1e-6).all())


@given(seed=st.integers(0, 10_000))
def test_a_beam_of_all_combinations_finds_the_best(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebooks, z = (torch.randn(*shape, generator=generator) for shape in ((3, 4, 2), (10, 2)))
    quantized = with_codebooks(codebooks, 64)(z)
    combinations = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = sum(codebooks[q][combinations[:, q]] for q in range(3))
    best = (z[:, None] - sums).square().sum(-1).amin(1)
    torch.testing.assert_close((quantized.codes - z).square().sum(-1), best, rtol=1e-4, atol=1e-5)


def test_a_beam_sees_past_a_greedy_mistake() -> None:
    codebooks = torch.tensor([[[0.0], [1.0]], [[0.0], [-0.4]]])
    z = torch.tensor([[0.6], [0.9], [float("nan")]])  # 0.6 is nearest 1 - 0.4; of single codes nearest 1
    codebooks[0, 1] = 1.0
    assert with_codebooks(codebooks, 1)(z).indices[:2].tolist() == [[1, 1], [1, 0]]
    deceiving = torch.tensor([[[0.0], [1.0]], [[0.0], [0.45]]])
    assert with_codebooks(deceiving, 1)(torch.tensor([[0.51]])).indices.tolist() == [[1, 0]]
    assert with_codebooks(deceiving, 2)(torch.tensor([[0.51]])).indices.tolist() == [[0, 1]]
    assert with_codebooks(deceiving, 2)(z).indices[2].tolist() == [0, 0]


def test_a_beam_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a beam of at least 1, got 0"):
        beam_codes(torch.randn(3, 2), torch.randn(2, 5, 2), 0)


def test_training_is_greedy() -> None:
    quantizers = [built(VECTOR, num_levels=3, beam=beam).train() for beam in (1, 8)]
    z = latents(200)
    first, second = (quantizer(z).indices for quantizer in quantizers)
    assert torch.equal(first, second)
    assert not torch.equal(quantizers[1].eval()(z).indices, second)


# -- configs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_levels": 0}, "num_levels >= 1, got 0"),
        ({"level": (VECTOR, VECTOR), "num_levels": 3}, "one for each of the 3 levels, got 2"),
        ({"level": (VECTOR, VectorConfig(9, 5)), "num_levels": 2}, r"levels of one width, got \[4, 5\]"),
        ({"refinement": 0.0}, "a refinement > 0"),
        ({"refinement": (2.0, 2.0)}, r"4 values, got \(2.0, 2.0\)"),
        ({"soft_clamp": -1.0}, "a soft_clamp > 0"),
        ({"level": (VECTOR, VECTOR), "num_levels": 2, "shared": True}, "one level config when the levels share it"),
        ({"shared": True, "gradient": "through"}, "a gradient other than 'through'"),
        ({"dropout": LevelDropoutConfig(minimum=9)}, "1 to 8 levels, got 9"),
        ({"level": ResidualConfig(VECTOR, dropout=LevelDropoutConfig())}, "levels without dropout of their own"),
        ({"dropout": LevelDropoutConfig(per_item=True), "shared": True}, "dropout of whole batches when shared"),
        ({"level": BinaryConfig(4, subtokens=2), "dropout": LevelDropoutConfig()}, "levels whose prefixes make sense"),
        ({"level": ProjectedConfig(8, VECTOR)}, "levels that bring their own, got 'straight_through'"),
        ({"level": GroupedConfig(VectorConfig(9, 4, gradient=RotationConfig()))}, "levels that bring their own"),
        ({"level": IndexBackpropagationConfig()}, "levels that bring their own"),
        ({"beam": 0}, "a beam >= 1, got 0"),
        ({"level": BinaryConfig(bits=4), "beam": 2}, "Euclidean vectors for a beam > 1"),
        ({"level": VectorConfig(9, 4, metric="cosine"), "beam": 2}, "Euclidean vectors for a beam > 1"),
        ({"refinement": 2.0, "beam": 2}, "Euclidean vectors for a beam > 1"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResidualConfig(**{"level": VECTOR, **fields})


@pytest.mark.parametrize("fields", [{"minimum": 0}, {"multiple_of": 0}, {"share": 0.0}, {"share": 1.5}])
def test_dropouts_that_cannot_work_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LevelDropoutConfig(**fields)


def test_configs_survive_plain_values() -> None:
    config = ResidualConfig(
        (VECTOR, BinaryConfig(bits=4)), 2, refinement=(1.0, 2, 3, 4), dropout=LevelDropoutConfig(multiple_of=2)
    )
    assert ResidualConfig.from_dict(config.to_dict()) == config
    assert ResidualConfig().replace(level={"kind": "binary", "bits": 3}, num_levels=2).vocab_sizes == (8, 8)
