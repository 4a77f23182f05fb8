"""Quantizers at a coarser rate than their latents, alone and as the levels of a residual quantizer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import MultiScaleConfig, ProjectedConfig, ResidualConfig, StridedConfig, VectorConfig

VECTOR = VectorConfig(codebook_size=9, dim=4)


def latents(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True])
def test_windows_are_averaged_and_codes_repeated(training: bool) -> None:
    quantizer = StridedConfig(VECTOR, stride=3).build().train(training)
    z = latents(2, 12).requires_grad_()
    quantized = quantizer(z)
    small = F.avg_pool1d(z.movedim(-1, 1), 3, 3).movedim(1, -1)
    inner = quantizer.inner(small)  # type: ignore[operator]
    assert torch.equal(quantized.indices, inner.indices)
    assert torch.equal(quantized.codes, inner.codes.repeat_interleave(3, 1))
    assert torch.equal(quantizer.indices_to_codes(quantized.indices), quantized.codes)
    torch.testing.assert_close(quantized.losses["commitment"], inner.losses["commitment"])
    (quantized.codes * torch.arange(12.0)[:, None]).sum().backward()
    expected = torch.arange(12.0).view(4, 3).mean(1).repeat_interleave(3)
    torch.testing.assert_close(z.grad, expected[None, :, None].expand(2, 12, 4))


def test_grids_are_averaged_along_both_axes() -> None:
    config = StridedConfig(VECTOR, stride=2)
    assert config.level_shapes((4, 6)) == ((2, 3),)
    quantizer = config.build().eval()
    z = latents(2, 4, 6)
    small = F.avg_pool2d(z.movedim(-1, 1), 2).movedim(1, -1)
    quantized = quantizer(z)
    assert torch.equal(quantized.indices, quantizer.inner(small).indices)  # type: ignore[operator]
    assert quantized.codes.shape == z.shape
    assert torch.equal(quantized.codes[:, ::2, ::2], quantized.codes[:, 1::2, 1::2])


def test_residual_levels_of_rising_rate() -> None:
    """SNAC's: each level looks at what is left over at its own rate."""
    level = ProjectedConfig(4, VectorConfig(codebook_size=9, dim=3, metric="cosine", unit_vectors=False))
    config = ResidualConfig(tuple(StridedConfig(level, stride) for stride in (4, 2, 1)), 3, gradient="through")
    assert config.scales
    assert config.prefix
    assert config.level_shapes((8,)) == ((2,), (4,), (8,))
    quantizer = config.build().eval()
    z = latents(2, 8)
    quantized = quantizer(z)
    residual = z
    for part, stride, indices in zip(quantizer.levels, (4, 2, 1), quantized.levels):  # type: ignore[arg-type]
        small = residual.view(2, 8 // stride, stride, 4).mean(2)
        projected = part.inner.project_in(small)
        codebook = part.inner.inner.codebook.weight
        assert torch.equal(indices, (projected @ F.normalize(codebook, dim=-1).T).argmax(-1))
        residual = residual - part.inner.project_out(codebook[indices]).repeat_interleave(stride, 1)
    torch.testing.assert_close(quantized.codes, z - residual)
    for k in (1, 2, 3):
        assert quantizer.indices_to_codes(*quantized.levels[:k]).shape == z.shape
        assert torch.equal(
            quantizer.prefix_to_codes((8,), *quantized.levels[:k]), quantizer.indices_to_codes(*quantized.levels[:k])
        )


def test_first_scales_at_a_coarser_rate() -> None:
    config = StridedConfig(MultiScaleConfig(VECTOR, ladder=(1, 2), num_convolutions=1), stride=2)
    assert config.level_shapes((6, 8)) == ((2, 2), (3, 4))
    quantizer = config.build().eval()
    quantized = quantizer(latents(2, 6, 8))
    assert torch.equal(quantizer.indices_to_codes(*quantized.levels), quantized.codes)
    assert quantizer.prefix_to_codes((6, 8), quantized.levels[0]).shape == (2, 6, 8, 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="a stride >= 1, got 0"):
        StridedConfig(VECTOR, stride=0)
    config = StridedConfig(VECTOR, stride=2)
    with pytest.raises(ValueError, match=r"expected positions in multiples of 2, got \(7,\)"):
        config.build()(latents(1, 7))
    with pytest.raises(ValueError, match="takes no mask"):
        config.build()(latents(1, 8), torch.ones(1, 8, dtype=torch.bool))
    assert not StridedConfig(VECTOR, stride=1).scales
