"""SimVQ and VQBridge: codebooks that are computed from parameters; and quantizers between projections."""

import pytest
import torch
import torch.nn.functional as F

from zoo.config import ConfigError
from zoo.quantizers import (
    FiniteScalarConfig,
    MultiScaleConfig,
    ProjectedConfig,
    ResidualConfig,
    SimVQConfig,
    VectorConfig,
    VQBridgeConfig,
)

IMPLICIT = {
    "sim_vq": SimVQConfig(codebook_size=24, dim=5, frozen_dim=3, bias=True),
    "sim_vq_cosine": SimVQConfig(codebook_size=24, dim=5, metric="cosine"),
    "vq_bridge": VQBridgeConfig(codebook_size=24, dim=5, run=4, width=8, depth=2, heads=2),
    "vq_bridge_cosine": VQBridgeConfig(codebook_size=24, dim=5, run=3, width=8, heads=1, metric="cosine"),
}
implicit = pytest.mark.parametrize("config", IMPLICIT.values(), ids=IMPLICIT)


@implicit
def test_codes_are_the_nearest_rows_of_the_computed_table(config) -> None:
    quantizer, z = config.build(), torch.randn(30, 5)
    table = quantizer.codes()
    x = F.normalize(z, dim=-1) if config.metric == "cosine" else z
    quantized = quantizer(z)
    assert torch.equal(quantized.indices, torch.cdist(x, table).argmin(1))
    assert torch.equal(quantized.codes, table[quantized.indices])
    error = F.mse_loss(x, table[quantized.indices])
    torch.testing.assert_close(quantized.losses["codebook"], error)
    torch.testing.assert_close(quantized.losses["commitment"], error)


@implicit
def test_a_step_on_one_code_moves_all(config) -> None:
    quantizer = config.build()
    before = quantizer.codes().detach()
    quantizer(torch.randn(1, 5)).losses["codebook"].backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            if parameter.grad is not None:
                parameter -= 0.3 * parameter.grad
    assert int((quantizer.codes() != before).any(1).sum()) == 24


@implicit
def test_the_plain_quantizer_of_the_same_codes(config) -> None:
    quantizer, z = config.build().eval(), torch.randn(30, 5)
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    plain = quantizer.to_vector()
    assert not plain.training
    got, expected = plain(z), quantizer(z)
    assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.codes, expected.codes)


def test_sim_vq_keeps_its_vectors_and_learns_its_map() -> None:
    quantizer = SimVQConfig(codebook_size=24, dim=5).build()
    assert {name for name, p in quantizer.named_parameters() if p.requires_grad} == {"transform.weight"}


def test_every_code_of_a_bridge_depends_on_all_vectors() -> None:
    quantizer = VQBridgeConfig(codebook_size=24, dim=5, run=4, width=8, heads=2).build()
    (slope,) = torch.autograd.grad(quantizer.codes()[0, 0], quantizer.codebook.weight)  # type: ignore
    assert int((slope != 0).any(1).sum()) == 24


@pytest.mark.parametrize(
    "settings", [{"codebook_size": 25, "run": 4}, {"width": 10, "heads": 4}, {"depth": 0}], ids=lambda s: next(iter(s))
)
def test_bridges_that_cannot_work_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        VQBridgeConfig(**settings)


@pytest.mark.parametrize(
    "inner", [VectorConfig(20, 4), FiniteScalarConfig(levels=(5, 5)), ResidualConfig(VectorConfig(8, 3), num_levels=2)]
)
@pytest.mark.parametrize("layer_norm", [False, True])
def test_projected_is_the_inner_quantizer_between_linear_maps(inner, layer_norm: bool) -> None:
    config = ProjectedConfig(dim=7, inner=inner, layer_norm=layer_norm)
    quantizer, z = config.build(), torch.randn(2, 9, 7)
    assert config.vocab_sizes == inner.vocab_sizes
    assert config.prefix == inner.prefix
    projected = quantizer.project_in(z)  # type: ignore[operator]
    if layer_norm:
        projected = F.layer_norm(projected, (inner.dim,))
    expected, got = quantizer.inner(projected), quantizer(z)  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(got.levels, expected.levels))
    torch.testing.assert_close(got.codes, quantizer.project_out(expected.codes))  # type: ignore[operator]
    assert got.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        torch.testing.assert_close(got.losses[name], loss)


def test_projected_scales_keep_their_grids_and_prefixes() -> None:
    config = ProjectedConfig(dim=6, inner=MultiScaleConfig(VectorConfig(9, 4), ladder=(1, 2, 4)))
    quantizer, z = config.build().eval(), torch.randn(2, 4, 4, 6)
    levels = quantizer(z).levels
    assert [tuple(level.shape[1:]) for level in levels] == list(config.level_shapes((4, 4)))
    first = quantizer.prefix_to_codes((4, 4), *levels[:2])
    expected = quantizer.project_out(quantizer.inner.prefix_to_codes((4, 4), *levels[:2]))  # type: ignore
    torch.testing.assert_close(first, expected)
