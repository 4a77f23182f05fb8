"""What the quantizers that are built of others have in common."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.quantizers import (
    FiniteScalarConfig,
    GroupedConfig,
    ImplicitNeuralConfig,
    MultiScaleConfig,
    ProjectedConfig,
    QuantizerConfig,
    ResidualConfig,
    StridedConfig,
    SummedConfig,
    VectorConfig,
)
from zoo.quantizers.composite import evaluating, mean_by_name

VECTOR = VectorConfig(codebook_size=11, dim=4)
COMPILED: dict[str, QuantizerConfig] = {
    "residual": ResidualConfig(VECTOR, num_levels=3),
    "residual_beam": ResidualConfig(VECTOR, num_levels=3, beam=3),
    "residual_projected": ResidualConfig(ProjectedConfig(4, VECTOR), num_levels=3, gradient="through"),
    "residual_finite_scalar": ResidualConfig(FiniteScalarConfig(levels=(5, 3, 3, 2)), num_levels=3, soft_clamp=1.5),
    "grouped": GroupedConfig(VectorConfig(11, 2), num_groups=2),
    "multi_scale": MultiScaleConfig(VECTOR, (1, 2, 4), num_convolutions=2),
    "strided": StridedConfig(VECTOR, stride=2),
    "summed": SummedConfig((VECTOR, VECTOR)),
    "implicit_neural": ImplicitNeuralConfig(codebook_size=7, dim=4, num_levels=3, blocks=1, hidden=8),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", COMPILED.values(), ids=COMPILED)
def test_evaluation_compiles_to_one_graph(config: QuantizerConfig) -> None:
    quantizer = config.build().eval()
    z = torch.randn(2, 4, 4, 4)

    def codes_and_indices(z: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        quantized = quantizer(z)
        return quantizer.indices_to_codes(*quantized.levels), quantized.levels

    torch.compiler.reset()
    with torch.no_grad():
        codes, levels = torch.compile(codes_and_indices, fullgraph=True, backend="eager")(z)
        expected = quantizer(z)
    assert all(torch.equal(a, b) for a, b in zip(levels, expected.levels, strict=True))
    torch.testing.assert_close(codes, expected.codes)


def test_means_are_over_the_parts_that_have_a_name() -> None:
    parts = [{"a": torch.tensor(1.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(5.0)}]
    assert mean_by_name(parts) == {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}
    assert mean_by_name([]) == {}


def test_evaluating_restores_the_modes_even_after_an_error() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1).eval())
    with evaluating(module):
        assert not any(part.training for part in module.modules())
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="invalid for input"), evaluating(module):
        torch.zeros(2).view(3)
    assert [part.training for part in module.modules()] == [True, True, False]
    assert torch.is_grad_enabled()
