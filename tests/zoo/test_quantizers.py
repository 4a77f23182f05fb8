"""What all quantizers have in common, over configs of every kind."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import (
    QUANTIZERS,
    AffineConfig,
    BernoulliConfig,
    BinaryConfig,
    BinaryEntropyConfig,
    BinaryMapperConfig,
    CrossEntropyConfig,
    DimensionWiseConfig,
    DiVeQConfig,
    EmaCodebookConfig,
    FiniteDiscreteConfig,
    FiniteScalarConfig,
    FiniteScalarPerturbationConfig,
    FrozenCodebookConfig,
    GradientCodebookConfig,
    GroupedConfig,
    GumbelConfig,
    ImplicitNeuralConfig,
    IndexBackpropagationConfig,
    InPlaceCodebookConfig,
    LatentConfig,
    MemoryConfig,
    MultiScaleConfig,
    NoiseDropoutConfig,
    OrthogonalityConfig,
    ProjectedConfig,
    Quantizer,
    QuantizerConfig,
    RandomProjectionConfig,
    ResidualConfig,
    RotatedConfig,
    RotationConfig,
    SamplingConfig,
    SimVQConfig,
    SoftEntropyConfig,
    SphericalBinaryConfig,
    StraightThroughConfig,
    SummedConfig,
    VectorConfig,
    VQBridgeConfig,
    bits_per_code,
)
from zoo.quantizers.base import usage_statistics

CONFIGS: dict[str, QuantizerConfig] = {
    "vector": VectorConfig(codebook_size=37, dim=6),
    "vector_cosine": VectorConfig(codebook_size=37, dim=6, metric="cosine"),
    "vector_dot": VectorConfig(codebook_size=5, dim=3, metric="dot"),
    "vector_entropy": VectorConfig(codebook_size=37, dim=6, entropy=SoftEntropyConfig(temperature=0.5)),
    "vector_ema": VectorConfig(codebook_size=37, dim=6, codebook=EmaCodebookConfig(revive_below=0.5)),
    "vector_ema_cosine": VectorConfig(codebook_size=37, dim=6, metric="cosine", codebook=EmaCodebookConfig()),
    "vector_ema_entropy": VectorConfig(16, 6, "euclidean", EmaCodebookConfig(), SoftEntropyConfig(temperature=0.5)),
    "vector_of_one_code": VectorConfig(codebook_size=1, dim=2),
    "vector_rotation": VectorConfig(codebook_size=37, dim=6, gradient=RotationConfig()),
    "vector_diveq": VectorConfig(codebook_size=37, dim=6, gradient=DiVeQConfig()),
    "vector_synchronous": VectorConfig(codebook_size=37, dim=6, gradient=StraightThroughConfig(synchronous=0.5)),
    "vector_kmeans": VectorConfig(codebook_size=9, dim=6, codebook=GradientCodebookConfig(0.5, start="kmeans")),
    "vector_ema_kmeans": VectorConfig(9, 6, "cosine", EmaCodebookConfig(revive_below=0.5, start="kmeans")),
    "vector_in_place": VectorConfig(codebook_size=37, dim=6, codebook=InPlaceCodebookConfig(momentum=0.9)),
    "vector_frozen": VectorConfig(codebook_size=37, dim=6, codebook=FrozenCodebookConfig()),
    "vector_affine": VectorConfig(codebook_size=37, dim=6, affine=AffineConfig()),
    "vector_ema_affine": VectorConfig(37, 6, codebook=EmaCodebookConfig(revive_below=0.5), affine=AffineConfig()),
    "vector_sampling": VectorConfig(codebook_size=37, dim=6, sampling=SamplingConfig()),
    "vector_losses": VectorConfig(
        37, 6, cross_entropy=CrossEntropyConfig(), orthogonality=OrthogonalityConfig("active", maximum=3)
    ),
    "sim_vq": SimVQConfig(codebook_size=37, dim=6, frozen_dim=4, bias=True),
    "sim_vq_cosine": SimVQConfig(codebook_size=37, dim=6, metric="cosine", gradient=RotationConfig()),
    "vq_bridge": VQBridgeConfig(codebook_size=36, dim=6, run=4, width=16, heads=2),
    "index_backpropagation": IndexBackpropagationConfig(37, 6, SoftEntropyConfig(temperature=0.5)),
    "gumbel": GumbelConfig(codebook_size=37, dim=6, temperature=0.7),
    "memory": MemoryConfig(codebook_size=37, dim=6, temperature=0.7),
    "finite_discrete": FiniteDiscreteConfig(codebook_size=37, dim=6),
    "finite_discrete_softmax": FiniteDiscreteConfig(37, 6, "softmax", temperature=0.3),
    "rotated": RotatedConfig(FiniteScalarConfig(levels=(4, 5, 3))),
    "rotated_residual": RotatedConfig(ResidualConfig(VectorConfig(11, 4), num_levels=3)),
    "projected": ProjectedConfig(dim=10, inner=VectorConfig(codebook_size=37, dim=6, metric="cosine"), layer_norm=True),
    "projected_residual": ProjectedConfig(dim=10, inner=ResidualConfig(VectorConfig(11, 4), num_levels=2)),
    "finite_scalar": FiniteScalarConfig(levels=(4, 5, 3)),
    "finite_scalar_of_two": FiniteScalarConfig(levels=(2, 2)),
    "binary": BinaryConfig(bits=6),
    "binary_floor": BinaryConfig(bits=5, entropy=BinaryEntropyConfig(temperature=0.5, floor=1e-5)),
    "binary_wide": BinaryConfig(bits=40, entropy=None),
    "binary_groups": BinaryConfig(12, BinaryEntropyConfig(group_bits=4), scale=0.5, soft_clamp=2.0, subtokens=2),
    "finite_scalar_symmetric": FiniteScalarConfig(levels=(4, 5, 2), symmetric=True),
    "finite_scalar_clamp": FiniteScalarConfig(levels=(4, 5, 3), squash="clamp"),
    "finite_scalar_noise": FiniteScalarConfig(levels=(4, 5, 3), noise=NoiseDropoutConfig()),
    "finite_scalar_perturbation": FiniteScalarPerturbationConfig(levels=(4, 5, 3)),
    "finite_scalar_perturbation_rounded": FiniteScalarPerturbationConfig((4, 5), quantize_rate=1.0, inverse=True),
    "spherical_binary": SphericalBinaryConfig(bits=6),
    "spherical_binary_groups": SphericalBinaryConfig(36, BinaryEntropyConfig(1.0, group_bits=1), "code", subtokens=4),
    "bernoulli": BernoulliConfig(dim=7, bits=10),
    "bernoulli_subtokens": BernoulliConfig(dim=7, bits=10, stochastic=False, subtokens=2),
    "binary_mapper": BinaryMapperConfig(dim=6, bits=5),
    "latent": LatentConfig(levels=(4, 5, 1)),
    "random_projection": RandomProjectionConfig(dim=9, codebook_size=30, codebook_dim=4),
    "random_projections": RandomProjectionConfig(9, 30, 4, num_codebooks=3, normalise=False),
    "dimension_wise": DimensionWiseConfig(dim=3, bits=4),
    "residual": ResidualConfig(level=VectorConfig(codebook_size=11, dim=4), num_levels=3),
    "residual_through": ResidualConfig(VectorConfig(11, 4, "cosine"), num_levels=3, gradient="through"),
    "residual_ema": ResidualConfig(VectorConfig(11, 4, codebook=EmaCodebookConfig()), num_levels=2),
    "residual_shared": ResidualConfig(VectorConfig(11, 4, codebook=EmaCodebookConfig()), num_levels=2, shared=True),
    "residual_beam": ResidualConfig(level=VectorConfig(codebook_size=11, dim=4), num_levels=3, beam=4),
    "residual_finite_scalar": ResidualConfig(FiniteScalarConfig(levels=(5, 3)), num_levels=2),
    "residual_binary": ResidualConfig(BinaryConfig(bits=4), num_levels=3, gradient="per_level"),
    "residual_mixed": ResidualConfig((VectorConfig(11, 4), BinaryConfig(bits=4)), num_levels=2),
    "grouped": GroupedConfig(group=VectorConfig(codebook_size=11, dim=4), num_groups=2),
    "grouped_shared": GroupedConfig(VectorConfig(11, 4, codebook=EmaCodebookConfig()), num_groups=3, shared=True),
    "grouped_mixed": GroupedConfig((VectorConfig(11, 4), FiniteScalarConfig(levels=(4, 3))), num_groups=2),
    "grouped_residual": GroupedConfig(ResidualConfig(VectorConfig(11, 4), num_levels=2), num_groups=2),
    "residual_grouped": ResidualConfig(GroupedConfig(VectorConfig(11, 2), num_groups=2), num_levels=2),
    "residual_projected": ResidualConfig(
        ProjectedConfig(6, VectorConfig(11, 4, "cosine", unit_vectors=False)), num_levels=3, gradient="through"
    ),
    "implicit_neural": ImplicitNeuralConfig(codebook_size=7, dim=4, num_levels=3, blocks=1, hidden=8),
    "summed": SummedConfig((VectorConfig(11, 4), ResidualConfig(VectorConfig(9, 4), num_levels=2))),
    "summed_projected": SummedConfig((ProjectedConfig(6, VectorConfig(11, 4)), ProjectedConfig(6, VectorConfig(9, 3)))),
    "multi_scale": MultiScaleConfig(VectorConfig(11, 4), ladder=(1, 2, 4), num_convolutions=2),
    "multi_scale_ema": MultiScaleConfig(VectorConfig(11, 4, codebook=EmaCodebookConfig()), (1, 3), num_convolutions=0),
}
CONFIGS |= {kind: config() for kind, config in QUANTIZERS.items() if config not in map(type, CONFIGS.values())}
# in training: codes that move before they are used; and codes that then move again, are mixed, or get noise
MOVED_BEFORE_USE = {CONFIGS[name] for name in ("vector_in_place", "vector_affine")}
BESIDE_CODES = {
    CONFIGS[name] for name in ("vector_ema_affine", "vector_diveq", "finite_scalar_noise", "finite_scalar_perturbation")
} | {CONFIGS[name] for name in ("finite_discrete", "finite_discrete_softmax")}
every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def built(config: QuantizerConfig) -> Quantizer:
    torch.manual_seed(1)
    return config.build()


def latents(config: QuantizerConfig, *shape: int, seed: int = 0) -> Tensor:
    shape = shape + (1,) * (3 - len(shape)) if shape and config.scales else shape  # their positions are a grid
    return torch.randn(*(shape or (2, 3, 4)), config.dim, generator=torch.Generator().manual_seed(seed))


# -- what all have in common -------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("training", [False, True])
def test_shapes_alone_are_computed_on_the_meta_device(config: QuantizerConfig, training: bool) -> None:
    """What counters of operations run."""
    expected = built(config).train(training)(latents(config))
    with torch.device("meta"):
        quantizer = config.build().train(training)
        quantized = quantizer(latents(config).to("meta").requires_grad_())
        if training and quantized.codes.requires_grad:
            sum((loss.sum() for loss in quantized.losses.values()), quantized.codes.sum()).backward()
    assert quantizer(latents(config).to("meta")).codes.is_meta  # a batch after the first
    assert quantized.codes.shape == expected.codes.shape
    assert quantized.codes.is_meta
    for found, wanted in ((quantized.losses, expected.losses), (quantized.statistics, expected.statistics)):
        assert {name: value.shape for name, value in found.items()} == {k: v.shape for k, v in wanted.items()}
    assert [(level.shape, level.dtype) for level in quantized.levels] == [
        (level.shape, level.dtype) for level in expected.levels
    ]


@every
@pytest.mark.parametrize("training", [False, True])
def test_codes_are_exactly_those_of_the_indices(config: QuantizerConfig, training: bool) -> None:
    quantizer = built(config).train(training)
    quantizer(latents(config))  # the first batch may start a codebook
    expected = quantizer if config in MOVED_BEFORE_USE else copy.deepcopy(quantizer)
    quantized = quantizer(latents(config) * 3)
    assert len(quantized.levels) == len(config.vocab_sizes)
    for level, size, shape in zip(quantized.levels, config.vocab_sizes, config.level_shapes((3, 4))):
        assert level.shape == (2, *shape)
        assert level.dtype == torch.int64
        assert 0 <= int(level.min()) <= int(level.max()) < size
    assert quantized.codes.shape == (2, 3, 4, config.dim)
    assert quantized.codes.dtype == torch.float32
    if not (training and config in BESIDE_CODES):
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
def test_gradients_of_torch_func_are_those_of_autograd(config: QuantizerConfig) -> None:
    """Of parameters, and of buffers that training moves, as arguments: the purely functional way."""
    quantizer, z = built(config).train(), latents(config)
    quantizer(z)  # the first batch may start a codebook
    learning = {name: value for name, value in quantizer.named_parameters() if value.requires_grad}
    state = {name: value.detach().clone() for name, value in quantizer.state_dict().items()}

    def loss(learning: dict[str, Tensor], z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(3)
        moved = {name: value.clone() for name, value in state.items()} | learning
        quantized = torch.func.functional_call(quantizer, moved, (z,))
        weights = torch.linspace(0, 1, config.dim)
        return (quantized.codes * weights).sum() + sum(value.sum() for value in quantized.losses.values()), moved

    z = z.requires_grad_()
    total, moved = loss(learning, z)
    wanted = torch.autograd.grad(total, [z, *learning.values()], materialize_grads=True) if total.requires_grad else []
    slopes, also_moved = torch.func.grad(loss, argnums=(1, 0), has_aux=True)(
        {name: value.detach() for name, value in learning.items()}, z.detach()
    )
    for slope, expected in zip((slopes[0], *slopes[1].values()), wanted):
        torch.testing.assert_close(slope, expected)
    assert all(torch.equal(also_moved[name], value) for name, value in moved.items())


@every
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*")
@pytest.mark.parametrize("training", [False, True])
def test_linear_maps_of_eight_bits_quantize(config: QuantizerConfig, training: bool) -> None:
    quantizer = built(config).eval()
    narrow = torch.ao.quantization.quantize_dynamic(quantizer, {torch.nn.Linear}, dtype=torch.qint8).train(training)
    quantized = narrow(latents(config))
    assert quantized.codes.isfinite().all()
    assert narrow.indices_to_codes(*quantized.levels).shape == quantized.codes.shape


@every
def test_torch_func_quantizes_items_one_by_one(config: QuantizerConfig) -> None:
    quantizer, z = built(config).eval(), latents(config)
    found = torch.func.vmap(lambda item: quantizer(item[None]).levels)(z)
    assert all(torch.equal(level[:, 0], expected) for level, expected in zip(found, quantizer(z).levels))


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
def test_the_default_dtype_of_others_changes_nothing(config: QuantizerConfig, training: bool) -> None:
    z, first, second = latents(config), built(config).train(training), built(config).train(training)
    torch.manual_seed(5)
    expected = first(z)
    again = first.eval().indices_to_codes(*expected.levels)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(5)
        got = second(z)
        codes = second.eval().indices_to_codes(*got.levels)
    finally:
        torch.set_default_dtype(before)
    assert got.codes.dtype == codes.dtype == torch.float32
    torch.testing.assert_close((got.codes, codes), (expected.codes, again))
    torch.testing.assert_close(
        (got.levels, got.losses, got.statistics), (expected.levels, expected.losses, expected.statistics)
    )


@every
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (1, 1), (1,)])
def test_no_token_and_one_token(config: QuantizerConfig, training: bool, shape: tuple[int, ...]) -> None:
    quantizer = built(config).train(training)
    z = latents(config, *shape).requires_grad_()
    for _ in range(2):
        quantized = quantizer(z)
        assert quantized.codes.shape == z.shape
        shapes = config.level_shapes(tuple(z.shape[1:-1]))
        assert [tuple(level.shape[1:]) for level in quantized.levels] == list(shapes)
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
def test_a_pickled_module_is_the_same(config: QuantizerConfig) -> None:
    """As processes that are spawned get it."""
    quantizer = built(config).eval()
    z = latents(config)
    again = pickle.loads(pickle.dumps(quantizer))
    assert all(torch.equal(a, b) for a, b in zip(again(z).levels, quantizer(z).levels, strict=True))


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
        z = latents(config, 4, 3)
        with pytest.raises(ValueError, match="takes no mask"):
            built(config)(z, torch.ones(z.shape[:-1], dtype=torch.bool))
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


@every
@pytest.mark.parametrize("gradient", ["straight_through", "through", "per_level"])
def test_it_serves_as_the_levels_of_a_residual_quantizer(
    config: QuantizerConfig, gradient: Literal["straight_through", "through", "per_level"]
) -> None:
    try:
        residual = ResidualConfig(config, num_levels=2, gradient=gradient)
    except ConfigError:
        assert gradient == "straight_through"  # which some parameters could not learn through
        return
    quantizer, z = built(residual), latents(residual).requires_grad_()
    quantized = quantizer.train()(z)
    (quantized.codes.square().sum() + sum(quantized.losses.values(), torch.zeros(()))).backward()
    assert z.grad is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in quantizer.parameters() if p.requires_grad)
    quantized = quantizer.eval()(z)
    assert torch.equal(quantized.codes, quantizer.indices_to_codes(*quantized.levels))


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


def test_codes_of_a_huge_vocabulary_are_counted() -> None:
    indices = torch.tensor([[1 << 40, 5, 1 << 40, 7]])
    found, small = usage_statistics((indices,), (1 << 41,)), usage_statistics((indices % 11,), (11,))
    assert found["perplexity"].item() == pytest.approx(math.exp(1.5 * math.log(2)))
    assert torch.equal(found["dead_codes"], torch.tensor(float((1 << 41) - 3)))
    assert torch.equal(found["perplexity"], small["perplexity"])
    empty = usage_statistics((indices[:, :0],), (1 << 41,))
    assert empty["usage"].item() == 0


@pytest.mark.parametrize(("size", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (1 << 18, 18), ((1 << 60) + 1, 61)])
def test_bits_per_code(size: int, bits: int) -> None:
    assert bits_per_code(size) == bits


@given(st.integers(1, 1 << 62))
def test_bits_per_code_hold_every_index(size: int) -> None:
    bits = bits_per_code(size)
    assert 2**bits >= size
    assert bits == 0 or 2 ** (bits - 1) < size
