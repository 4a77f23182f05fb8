"""The first codebooks alone: the same indices as those of all, of every kind of quantizer with meaningful prefixes."""

import pytest
import torch

from zoo.quantizers import (
    BinaryConfig,
    FiniteScalarConfig,
    LevelDropoutConfig,
    ProjectedConfig,
    QuantizerConfig,
    ResidualConfig,
    StridedConfig,
    SummedConfig,
    VectorConfig,
)

VECTOR = VectorConfig(codebook_size=9, dim=4)
CONFIGS: dict[str, QuantizerConfig] = {
    "vectors": ResidualConfig(VECTOR, num_levels=4),
    "beam": ResidualConfig(VECTOR, num_levels=4, beam=3),
    "shared": ResidualConfig(VECTOR, num_levels=4, shared=True),
    "dropout": ResidualConfig(VECTOR, num_levels=4, dropout=LevelDropoutConfig()),
    "projected": ResidualConfig(ProjectedConfig(6, VECTOR), num_levels=3, gradient="through"),
    "scalars": ResidualConfig(FiniteScalarConfig(levels=(3, 3, 5)), num_levels=3),
    "signs": ResidualConfig(BinaryConfig(bits=4), num_levels=3),
    "soft_clamp": ResidualConfig(FiniteScalarConfig(levels=(3, 3)), num_levels=3, soft_clamp=1.5),
    "rates": ResidualConfig(tuple(StridedConfig(VECTOR, stride) for stride in (4, 2, 1)), num_levels=3),
    "summed": SummedConfig((VECTOR, ResidualConfig(VECTOR, num_levels=3))),
    "summed_inside": SummedConfig(
        (ProjectedConfig(6, VECTOR), ProjectedConfig(6, ResidualConfig(VECTOR, num_levels=3)))
    ),
    "normed": ProjectedConfig(6, ResidualConfig(VECTOR, num_levels=3), layer_norm=True),
    "inside": ProjectedConfig(6, ResidualConfig(VECTOR, num_levels=3)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_first_levels(name: str) -> None:
    config = CONFIGS[name]
    torch.manual_seed(0)
    quantizer = config.build().eval()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.normal_()
    z = torch.randn(2, 8, config.dim)
    levels = quantizer(z).levels
    for count in range(1, len(config.vocab_sizes) + 1):
        found = quantizer.first_levels(z, count)
        assert len(found) == count
        assert all(torch.equal(one, other) for one, other in zip(found, levels))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.first_levels(z, 1)[0], levels[0])
