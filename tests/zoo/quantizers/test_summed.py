"""Quantizers side by side on one latent."""

from __future__ import annotations

import pytest
import torch

from zoo.config import ConfigError
from zoo.quantizers import LevelDropoutConfig, ProjectedConfig, ResidualConfig, Summed, SummedConfig, VectorConfig

FIRST, REST = VectorConfig(codebook_size=9, dim=4), ResidualConfig(VectorConfig(7, 4), num_levels=3)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_each_part_gets_the_latent_and_codes_are_added(projected: bool, training: bool) -> None:
    parts = tuple(ProjectedConfig(6, part) if projected else part for part in (FIRST, REST))
    config = SummedConfig(parts)
    assert config.vocab_sizes == (9, 7, 7, 7)
    assert config.prefix
    quantizer = config.build().train(training)
    assert isinstance(quantizer, Summed)
    z = torch.randn(2, 5, config.dim, requires_grad=True)
    quantized = quantizer(z)
    first, rest = (part(z) for part in quantizer.parts)
    assert [level.tolist() for level in quantized.levels] == [level.tolist() for level in first.levels + rest.levels]
    assert torch.equal(quantized.codes, first.codes + rest.codes)
    # every level counts alike
    expected = (first.losses["commitment"] + 3 * rest.losses["commitment"]) / 4
    torch.testing.assert_close(quantized.losses["commitment"], expected)
    slopes = [torch.autograd.grad(codes.sum(), z, retain_graph=True)[0] for codes in (quantized.codes, first.codes)]
    torch.testing.assert_close(slopes[0], slopes[1] + torch.autograd.grad(rest.codes.sum(), z)[0])
    for k in range(1, 5):
        of_rest = quantizer.parts[1].indices_to_codes(*quantized.levels[1:k]) if k > 1 else 0  # type: ignore[operator]
        total = first.codes + of_rest
        torch.testing.assert_close(quantizer.indices_to_codes(*quantized.levels[:k]), total)
    with pytest.raises(ValueError, match="expected 1 to 4 levels, got 5"):
        quantizer.indices_to_codes(*quantized.levels, quantized.levels[0])


def test_dropout_is_for_the_last_part() -> None:
    dropping = ResidualConfig(VectorConfig(7, 4), num_levels=3, dropout=LevelDropoutConfig())
    seen = {len(SummedConfig((FIRST, dropping)).build().train()(torch.randn(2, 4)).levels) for _ in range(30)}
    assert seen == {2, 3, 4}
    with pytest.raises(ConfigError, match="dropout of levels in the last part alone"):
        SummedConfig((dropping, FIRST))


def test_configs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one part"):
        SummedConfig(())
    with pytest.raises(ConfigError, match=r"parts of one width, got \[4, 6\]"):
        SummedConfig((FIRST, ProjectedConfig(6, FIRST)))
