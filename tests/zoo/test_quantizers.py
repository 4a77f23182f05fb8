"""Every quantizer: what all have in common, the definition of each, and vector-quantize-pytorch where it has the same."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.config import ConfigError
from zoo.quantizers import (
    QUANTIZERS,
    BinaryConfig,
    BinaryEntropyConfig,
    EmaCodebookConfig,
    FiniteScalarConfig,
    Quantizer,
    QuantizerConfig,
    SoftEntropyConfig,
    VectorConfig,
    bits_per_code,
)

CONFIGS: dict[str, QuantizerConfig] = {
    "vector": VectorConfig(codebook_size=37, dim=6),
    "vector_cosine": VectorConfig(codebook_size=37, dim=6, metric="cosine"),
    "vector_dot": VectorConfig(codebook_size=5, dim=3, metric="dot"),
    "vector_entropy": VectorConfig(codebook_size=37, dim=6, entropy=SoftEntropyConfig(temperature=0.5)),
    "vector_ema": VectorConfig(codebook_size=37, dim=6, codebook=EmaCodebookConfig(revive_below=0.5)),
    "vector_ema_cosine": VectorConfig(codebook_size=37, dim=6, metric="cosine", codebook=EmaCodebookConfig()),
    "vector_ema_entropy": VectorConfig(16, 6, "euclidean", EmaCodebookConfig(), SoftEntropyConfig(temperature=0.5)),
    "vector_of_one_code": VectorConfig(codebook_size=1, dim=2),
    "finite_scalar": FiniteScalarConfig(levels=(4, 5, 3)),
    "finite_scalar_of_two": FiniteScalarConfig(levels=(2, 2)),
    "binary": BinaryConfig(bits=6),
    "binary_floor": BinaryConfig(bits=5, entropy=BinaryEntropyConfig(temperature=0.5, floor=1e-5)),
    "binary_wide": BinaryConfig(bits=40, entropy=None),
}
CONFIGS |= {kind: config() for kind, config in QUANTIZERS.items() if config not in map(type, CONFIGS.values())}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def built(config: QuantizerConfig) -> Quantizer:
    torch.manual_seed(1)
    return config.build()


def latents(config: QuantizerConfig, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*(shape or (2, 3, 4)), config.dim, generator=torch.Generator().manual_seed(seed))


# -- what all have in common -------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("training", [False, True])
def test_codes_are_exactly_those_of_the_indices(config: QuantizerConfig, training: bool) -> None:
    quantizer = built(config).train(training)
    expected = built(config)  # an untouched copy: training moves a running codebook
    quantized = quantizer(latents(config) * 3)
    assert len(quantized.levels) == len(config.vocab_sizes)
    for level, size in zip(quantized.levels, config.vocab_sizes):
        assert level.shape == (2, 3, 4)
        assert level.dtype == torch.int64
        assert 0 <= int(level.min()) <= int(level.max()) < size
    assert quantized.codes.shape == (2, 3, 4, config.dim)
    assert quantized.codes.dtype == torch.float32
    assert torch.equal(quantized.codes, expected.indices_to_codes(*quantized.levels))


@every
def test_codes_of_all_indices_are_distinct(config: QuantizerConfig) -> None:
    if len(config.vocab_sizes) > 1:
        pytest.skip("sums of levels may coincide")
    (size,) = config.vocab_sizes
    indices = torch.arange(size) if size <= 1 << 16 else torch.randint(size, (1000,)).unique()
    codes = built(config).indices_to_codes(indices)
    assert codes.shape == (len(indices), config.dim)
    assert len(codes.unique(dim=0)) == len(indices)


@every
def test_an_item_alone_in_a_batch_and_twice_gives_the_same(config: QuantizerConfig) -> None:
    quantizer = built(config).eval()
    z = latents(config, 5, 7)
    together, again = quantizer(z), quantizer(z)
    for q, level in enumerate(together.levels):
        assert torch.equal(level, again.levels[q])
        assert torch.equal(level, torch.cat([quantizer(item[None]).levels[q] for item in z]))


@every
def test_evaluation_changes_nothing_and_gives_no_statistics(config: QuantizerConfig) -> None:
    quantizer = built(config).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantized = quantizer(latents(config))
    assert quantized.statistics == {}
    assert "entropy" not in quantized.losses
    assert before.keys() == quantizer.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@every
def test_training_gives_finite_losses_statistics_and_gradients(config: QuantizerConfig) -> None:
    quantizer = built(config).train()
    z = latents(config, 4, 9).requires_grad_()
    quantized = quantizer(z)
    for scalar in (*quantized.losses.values(), *quantized.statistics.values()):
        assert scalar.shape == ()
        assert bool(scalar.isfinite())
    assert not any(scalar.requires_grad for scalar in quantized.statistics.values())
    assert {"usage", "perplexity"} <= quantized.statistics.keys()
    (quantized.codes.square().sum() + sum(quantized.losses.values(), torch.zeros(()))).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
    for parameter in quantizer.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert bool(parameter.grad.isfinite().all())


@every
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_are_quantized_in_float32(
    config: QuantizerConfig, training: bool, dtype: torch.dtype
) -> None:
    z = latents(config).to(dtype)
    expected = built(config).train(training)(z.float())
    with torch.autocast("cpu", torch.bfloat16):
        got = built(config).train(training)(z)
    assert got.codes.dtype == torch.float32
    assert torch.equal(got.codes, expected.codes)
    assert all(torch.equal(a, b) for a, b in zip(got.levels, expected.levels))
    assert got.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        torch.testing.assert_close(got.losses[name], loss)


@every
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (1, 1), (1,)])
def test_no_token_and_one_token(config: QuantizerConfig, training: bool, shape: tuple[int, ...]) -> None:
    quantizer = built(config).train(training)
    z = latents(config, *shape).requires_grad_()
    for _ in range(2):
        quantized = quantizer(z)
        assert quantized.codes.shape == z.shape
        assert all(level.shape == shape for level in quantized.levels)
        assert all(bool(loss.isfinite()) for loss in (*quantized.losses.values(), *quantized.statistics.values()))
    (quantized.codes.sum() + sum(quantized.losses.values(), torch.zeros(()))).backward()
    assert all(bool(value.isfinite().all()) for value in quantizer.state_dict().values())
    assert all(bool(p.grad.isfinite().all()) for p in quantizer.parameters() if p.grad is not None)


@every
def test_latents_of_another_width_are_refused(config: QuantizerConfig) -> None:
    with pytest.raises(ValueError, match=rf"expected latents \(..., {config.dim}\), got \(2, {config.dim + 1}\)"):
        built(config)(torch.randn(2, config.dim + 1))


@every
def test_config_survives_json_and_builds_the_same_module(config: QuantizerConfig) -> None:
    import json

    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    first, second = built(config).state_dict(), built(again).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every
def test_moved_and_cast_modules_still_work(config: QuantizerConfig) -> None:
    """A model cast to half precision as a whole; integers that the quantizer computes with must stay exact."""
    quantizer = built(config).eval().to(torch.bfloat16)
    z = latents(config)
    quantized = quantizer(z)
    assert torch.equal(quantized.codes, quantizer.indices_to_codes(*quantized.levels))
    if not quantizer.state_dict():
        assert all(torch.equal(a, b) for a, b in zip(quantized.levels, built(config).eval()(z).levels))


@every
@pytest.mark.parametrize("training", [False, True])
def test_a_mask_gives_the_results_of_the_unpadded_latents(config: QuantizerConfig, training: bool) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True], [False, False, False]])
    if config.scales:
        with pytest.raises(ValueError, match="takes no mask"):
            built(config)(latents(config, 4, 3), mask)
        return
    padded, plain = latents(config, 4, 3).requires_grad_(), latents(config, 4, 3).requires_grad_()
    first, second = built(config).train(training), built(config).train(training)
    torch.manual_seed(5)
    got = first(padded, mask)
    torch.manual_seed(5)
    expected = second(plain[mask])
    assert torch.equal(got.codes[mask], expected.codes)
    assert not bool(got.codes[~mask].any())
    for ours, theirs in zip(got.levels, expected.levels):
        assert torch.equal(ours[mask], theirs)
        assert not bool(ours[~mask].any())
    for name, value in {**expected.losses, **expected.statistics}.items():
        torch.testing.assert_close({**got.losses, **got.statistics}[name], value)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    for quantized in (got, expected):
        (quantized.codes.square().sum() + sum(quantized.losses.values(), torch.zeros(()))).backward()
    torch.testing.assert_close(padded.grad, plain.grad)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    quantizer = BinaryConfig(bits=3, entropy=None).build()
    for mask in (torch.ones(2, 3, dtype=torch.bool), torch.ones(2, 4)):
        with pytest.raises(ValueError, match=r"mask: expected bool \(2, 4\)"):
            quantizer(torch.randn(2, 4, 3), mask)


def test_usage_and_perplexity() -> None:
    config = BinaryConfig(bits=2, entropy=None)
    z = torch.tensor([[1.0, -1], [1, -1], [-1, 1], [-1, 1]])
    statistics = config.build().train()(z).statistics
    assert statistics["usage"].item() == 0.5
    assert statistics["perplexity"].item() == pytest.approx(2.0)
    assert statistics["code_entropy"].item() == pytest.approx(math.log(2))
    assert statistics["dead_codes"].item() == 2


@pytest.mark.parametrize(("size", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 18, 18), ((1 << 60) + 1, 61)])
def test_bits_per_code(size: int, bits: int) -> None:
    assert bits_per_code(size) == bits


@given(st.integers(1, 1 << 62))
def test_bits_per_code_hold_every_index(size: int) -> None:
    bits = bits_per_code(size)
    assert 2**bits >= size
    assert bits == 0 or 2 ** (bits - 1) < size


# -- vector ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_vector_losses_pull_each_side_alone(metric: str) -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric=metric).build()  # type: ignore[arg-type]
    z = torch.randn(3, 5, 4, requires_grad=True)
    quantized = quantizer(z)
    unit = F.normalize(z, dim=-1) if metric == "cosine" else z
    expected = F.mse_loss(unit, quantized.codes)
    torch.testing.assert_close(quantized.losses["commitment"], expected)
    torch.testing.assert_close(quantized.losses["codebook"], expected)
    weight = quantizer.codebook.weight  # type: ignore[union-attr]
    of_commitment = torch.autograd.grad(quantized.losses["commitment"], (z, weight), allow_unused=True)
    of_codebook = torch.autograd.grad(quantized.losses["codebook"], (z, weight), allow_unused=True)
    assert of_commitment[0] is not None
    assert of_commitment[1] is None
    assert of_codebook[0] is None
    assert of_codebook[1] is not None


def test_straight_through_is_the_identity_to_the_latent_and_nothing_to_the_codebook() -> None:
    for config in (VectorConfig(codebook_size=20, dim=4), BinaryConfig(bits=4)):
        quantizer = config.build()
        z, upstream = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 4)
        (quantizer(z).codes * upstream).sum().backward()
        assert torch.equal(z.grad, upstream)  # type: ignore[arg-type]
        assert all(parameter.grad is None for parameter in quantizer.parameters())


def test_cosine_gradient_passes_through_the_normalisation() -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric="cosine").build()
    z, upstream = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    (slope,) = torch.autograd.grad((quantizer(z).codes * upstream).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * upstream).sum(), z)
    torch.testing.assert_close(slope, expected)


def test_cosine_codes_are_unit_vectors_whatever_the_weights() -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric="cosine").build()
    with torch.no_grad():
        quantizer.codebook.weight.mul_(torch.linspace(0.1, 9, 20)[:, None])  # type: ignore[union-attr]
    quantized = quantizer(torch.randn(50, 4))
    torch.testing.assert_close(quantized.codes.norm(dim=-1), torch.ones(50))


def test_entropy_loss_has_its_sign_and_gamma() -> None:
    z = torch.randn(30, 4)
    for gamma in (0.0, 2.5):
        quantizer = VectorConfig(8, 4, entropy=SoftEntropyConfig(temperature=0.7, gamma=gamma)).build()
        quantized = quantizer(z)
        sample, codebook = (quantized.statistics[f"{name}_entropy"] for name in ("sample", "codebook"))
        torch.testing.assert_close(quantized.losses["entropy"].detach(), sample - gamma * codebook)
        assert 0 <= sample <= codebook <= math.log(8)


def ema(decay: float = 0.9, **settings) -> nn.Module:
    torch.manual_seed(3)
    return VectorConfig(codebook_size=12, dim=4, codebook=EmaCodebookConfig(decay=decay, **settings)).build()


def test_ema_update_is_its_definition() -> None:
    quantizer, z = ema(), torch.randn(100, 4)
    count, total = torch.ones(12), quantizer.codebook.weight.clone()
    for step in range(3):
        indices = quantizer(z + step).indices
        hot = F.one_hot(indices, 12).float()
        count, total = 0.9 * count + 0.1 * hot.sum(0), 0.9 * total + 0.1 * hot.T @ (z + step)
        smoothed = (count + 1e-5) / (count.sum() + 12e-5) * count.sum()
        torch.testing.assert_close(quantizer.codebook.weight, total / smoothed[:, None])
    assert not quantizer.codebook.weight.requires_grad
    assert "codebook" not in quantizer(z).losses


def test_ema_moves_only_in_training_and_nothing_without_tokens() -> None:
    quantizer = ema()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(9, 4))
    quantizer.train()(torch.randn(0, 4))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_dead_codes_are_put_on_latents_with_a_fresh_count() -> None:
    quantizer = ema(decay=0.5, revive_below=0.9)
    z = torch.randn(40, 4) * 0.1 + 5  # far from all codes, so that at most a few are used
    used = quantizer(z).indices.unique()
    dead = [k for k in range(12) if k not in used.tolist()]
    assert len(dead) >= 8
    assert torch.equal(quantizer.ema.count[dead], torch.ones(len(dead)))
    for code in quantizer.codebook.weight[dead]:
        assert (z - code).norm(dim=1).min() < 1e-3  # up to the smoothing
    again = quantizer(z).indices.unique()
    assert len(again) > len(used)


def test_a_code_is_not_revived_while_its_count_holds() -> None:
    quantizer = ema(decay=0.99, revive_below=0.9)
    before = quantizer.codebook.weight.clone()
    used = quantizer(torch.randn(5, 4) + 5).indices.unique().tolist()
    unused = [k for k in range(12) if k not in used]
    torch.testing.assert_close(quantizer.codebook.weight[unused], before[unused], rtol=1e-3, atol=1e-3)


def test_entropy_gradient_is_of_the_codebook_before_its_update() -> None:
    """The running codebook moves in place while the graph of the entropy still needs it."""
    z = torch.randn(30, 4)
    slopes = []
    for decay in (0.5, 1 - 1e-9):
        torch.manual_seed(3)
        quantizer = VectorConfig(12, 4, codebook=EmaCodebookConfig(decay=decay), entropy=SoftEntropyConfig(0.5)).build()
        x = z.clone().requires_grad_()
        slopes.append(torch.autograd.grad(quantizer(x).losses["entropy"], x)[0])
    torch.testing.assert_close(slopes[0], slopes[1])


# -- finite scalar -----------------------------------------------------------------------------------------------------

LEVELS = st.lists(st.integers(2, 17), min_size=1, max_size=4).map(tuple)


@given(LEVELS)
def test_index_is_the_number_of_its_digits_with_dimension_0_fastest(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarConfig(levels=levels).build()
    size = math.prod(levels)
    indices = torch.arange(size)[:: max(1, size // 500)]
    codes = quantizer.indices_to_codes(indices)
    for index, code in zip(indices.tolist(), codes):
        digits = []
        for level in levels:
            index, digit = divmod(index, level)
            digits.append((digit - level // 2) / (level // 2))
        torch.testing.assert_close(code, torch.tensor(digits))
    assert float(codes.abs().max()) <= 1


@given(LEVELS, st.integers(0, 100))
def test_every_code_can_be_reached_and_is_its_own_index(levels: tuple[int, ...], seed: int) -> None:
    quantizer = FiniteScalarConfig(levels=levels).build()
    sizes = torch.tensor(levels)
    digits = torch.stack(
        [torch.randint(0, int(size), (50,), generator=torch.Generator().manual_seed(seed)) for size in sizes], 1
    )
    half = (sizes - 1) * (1 + 1e-3) / 2
    offset = (sizes % 2 == 0) * 0.5
    z = ((digits - sizes // 2 + offset) / half).double().clamp(-0.9999, 0.9999).atanh().float() - (
        offset / half
    ).atanh()
    quantized = quantizer(z)
    assert torch.equal(
        quantized.indices, (digits * torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])).sum(1)
    )


@given(st.lists(st.integers(2, 900), min_size=1, max_size=3).map(tuple))
def test_indices_stay_in_range_for_any_latent(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarConfig(levels=levels).build()
    z = torch.tensor([-1e30, -100.0, -5, 0, 5, 100, 1e30])[:, None].expand(-1, len(levels))
    indices = quantizer(z).indices
    assert indices[0] == 0
    assert indices[-1] == math.prod(levels) - 1
    assert bool((indices.diff() >= 0).all())


@pytest.mark.parametrize("levels", [(2,), (3,), (8, 5), (7, 2)])
def test_finite_scalar_gradient_is_that_of_the_bound(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarConfig(levels=levels).build()
    z, upstream = torch.randn(30, len(levels), requires_grad=True), torch.randn(30, len(levels))
    (slope,) = torch.autograd.grad((quantizer(z).codes * upstream).sum(), z)
    sizes = torch.tensor(levels)
    half, offset = (sizes - 1) * 1.001 / 2, (sizes % 2 == 0) * 0.5
    expected = upstream * (1 - (z + (offset / half).atanh()).tanh() ** 2) * half / (sizes // 2)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": ()}, "levels of at least 2 values each"),
        ({"levels": (8, 1)}, "levels of at least 2 values each"),
        ({"levels": (1 << 16, 1 << 15)}, "fewer than 2"),
        ({"levels": (1200, 3)}, "margin"),  # the bound would reach beyond the last level
        ({"levels": (8, 3), "margin": 0.2}, "margin"),
        ({"levels": (8, 3), "margin": 0.0}, "margin"),
    ],
)
def test_finite_scalar_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FiniteScalarConfig(**settings)


def test_more_levels_need_a_smaller_margin() -> None:
    quantizer = FiniteScalarConfig(levels=(1200, 1201), margin=1e-4).build()
    assert quantizer(torch.tensor([[-50.0, -50.0], [50.0, 50.0]])).indices.tolist() == [0, 1200 * 1201 - 1]


# -- binary ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 3, 18, 62])
def test_bits_are_the_signs_with_channel_0_least_significant(bits: int) -> None:
    quantizer = BinaryConfig(bits=bits, entropy=None).build()
    z = torch.randn(40, bits)
    z[0], z[1], z[2] = 1, -1, 0
    quantized = quantizer(z)
    assert quantized.indices.tolist() == [sum(2**d for d in range(bits) if row[d] > 0) for row in z]
    assert torch.equal(quantized.codes, torch.where(z > 0, 1.0, -1.0))
    assert quantized.indices[:3].tolist() == [2**bits - 1, 0, 0]


def test_binary_losses() -> None:
    z = torch.randn(20, 5, requires_grad=True)
    config = BinaryConfig(bits=5, entropy=BinaryEntropyConfig(temperature=0.5, gamma=0.3))
    quantized = config.build()(z)
    torch.testing.assert_close(quantized.losses["commitment"], F.mse_loss(z, z.sign()))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)))
    assignment = (2 * z @ signs.T / 0.5).softmax(-1)
    sample, codebook = (-(p * p.log()).sum(-1).mean() for p in (assignment, assignment.mean(0)))
    torch.testing.assert_close(quantized.losses["entropy"], sample - 0.3 * codebook)
    torch.testing.assert_close(quantized.statistics["sample_entropy"], sample)
    torch.testing.assert_close(quantized.statistics["codebook_entropy"], codebook)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "1 to 62 bits, got 0"),
        ({"bits": 63}, "1 to 62 bits, got 63"),
        ({"bits": 25}, "at most 24 bits with an entropy term.*entropy=None"),
    ],
)
def test_binary_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BinaryConfig(**settings)


# -- vector-quantize-pytorch -------------------------------------------------------------------------------------------
# The same mathematics, with these differences: it weighs and sums its losses; its gradient to the latent is a rotation
# unless told otherwise; it stores unit vectors for cosine similarity where we normalise on use; a revived code gets its
# vector at once and the threshold as its count; its LFQ counts channel 0 as the most significant bit and adds the
# entropies with a clamp of 1e-5, our `floor`; its FSQ refuses levels of two.


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_vector_agrees_with_vector_quantize_pytorch_for_steps_of_training(metric: str) -> None:
    from vector_quantize_pytorch import VectorQuantize

    config = VectorConfig(codebook_size=30, dim=8, metric=metric, codebook=EmaCodebookConfig(decay=0.8))  # type: ignore[arg-type]
    ours = config.build()
    theirs = VectorQuantize(8, 30, decay=0.8, eps=1e-5, use_cosine_sim=metric == "cosine", rotation_trick=False)
    weight = ours.codebook.weight.detach().clone()  # type: ignore[union-attr]
    theirs._codebook.embed.copy_(weight[None])
    theirs._codebook.embed_avg.copy_(weight[None])
    z = torch.randn(4, 50, 8)
    for training in (False, True, True, True, False):
        codes, indices, loss = theirs.train(training)(z)
        quantized = ours.train(training)(z)
        assert torch.equal(quantized.indices, indices)
        torch.testing.assert_close(quantized.codes, codes)
        if training:
            torch.testing.assert_close(quantized.losses["commitment"], loss.squeeze())
        torch.testing.assert_close(ours.codes(), theirs._codebook.embed[0])  # type: ignore[operator]
        torch.testing.assert_close(ours.ema.count, theirs._codebook.cluster_size[0])  # type: ignore[union-attr]
        z = z + 0.5


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_vector_gradients_agree_with_vector_quantize_pytorch(metric: str) -> None:
    from vector_quantize_pytorch import VectorQuantize

    ours = VectorConfig(codebook_size=30, dim=8, metric=metric).build()  # type: ignore[arg-type]
    learnable = metric == "euclidean"  # theirs learns no codebook by gradient with cosine similarity
    theirs = VectorQuantize(
        8, 30, use_cosine_sim=not learnable, rotation_trick=False, learnable_codebook=learnable, ema_update=False
    )
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook.weight[None])  # type: ignore[union-attr]
    z, upstream = torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized = ours(x)
    codes, _, loss = theirs(y)
    (quantized.codes * upstream).sum().add(quantized.losses["commitment"] + quantized.losses["codebook"]).backward()
    (codes * upstream).sum().add(loss.sum()).backward()  # with a learnable codebook one loss pulls both sides
    torch.testing.assert_close(x.grad, y.grad)
    if learnable:
        torch.testing.assert_close(ours.codebook.weight.grad, theirs._codebook.embed.grad[0])  # type: ignore[union-attr]


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (7, 4), (8, 8, 8, 5, 5, 5)])
def test_finite_scalar_agrees_with_vector_quantize_pytorch(levels: tuple[int, ...]) -> None:
    from vector_quantize_pytorch import FSQ

    ours, theirs = FiniteScalarConfig(levels=levels).build(), FSQ(list(levels))
    z = torch.randn(3, 40, len(levels)) * 2
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized, (codes, indices) = ours(x), theirs(y)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(ours.indices_to_codes(quantized.indices), theirs.indices_to_codes(indices))
    quantized.codes.square().sum().backward()
    codes.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_binary_agrees_with_vector_quantize_pytorch_on_reversed_channels() -> None:
    from vector_quantize_pytorch import LFQ

    config = BinaryConfig(bits=6, entropy=BinaryEntropyConfig(temperature=0.1, floor=1e-5))
    ours, theirs = config.build().train(), LFQ(dim=6).train()
    z = torch.randn(3, 40, 6)
    quantized = ours(z)
    (codes, indices, _), losses = theirs(z.flip(-1), inv_temperature=10.0, return_loss_breakdown=True)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes.flip(-1))
    torch.testing.assert_close(quantized.statistics["sample_entropy"], losses.per_sample_entropy)
    torch.testing.assert_close(quantized.statistics["codebook_entropy"], losses.batch_entropy)
