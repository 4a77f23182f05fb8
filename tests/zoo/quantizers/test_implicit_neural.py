"""Implicit neural codebooks: the paper's equations, and that the networks help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.ops.nearest_own_code import nearest_own_code
from zoo.quantizers import ImplicitNeural, ImplicitNeuralConfig


def built(seed: int = 0, **fields: Any) -> ImplicitNeural:
    torch.manual_seed(seed)
    quantizer = ImplicitNeuralConfig(**{"codebook_size": 7, "dim": 3, "num_levels": 3, "hidden": 5, **fields}).build()
    assert isinstance(quantizer, ImplicitNeural)
    for parameter in quantizer.parameters():
        parameter.data.normal_().mul_(0.7)
    return quantizer


def codebook(quantizer: ImplicitNeural, q: int, total: Tensor) -> Tensor:
    """The codes (K, D) of level q for one sum (D,), by the paper's equations."""
    codes = quantizer.codebooks[q]
    if q == 0:
        return codes
    network = quantizer.networks[q - 1]
    codes = codes + network.concatenated(torch.cat([codes, total.expand_as(codes)], -1))  # type: ignore[operator]
    for widen, narrow in zip(network.widen, network.narrow):  # type: ignore[arg-type]
        codes = codes + narrow(widen(codes).relu())
    return codes


@given(seed=st.integers(0, 500), count=st.integers(1, 4), blocks=st.integers(0, 3))
def test_it_is_the_papers_equations(seed: int, count: int, blocks: int) -> None:
    quantizer = built(seed, num_levels=count, blocks=blocks)
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
    quantized = quantizer(z)
    totals, errors = torch.zeros(2, 4, 3), []
    for q in range(count):
        for place in [(b, n) for b in range(2) for n in range(4)]:
            codes = codebook(quantizer, q, totals[place]).detach()
            nearest = (codes + totals[place] - z[place]).square().sum(-1).argmin()
            assert quantized.levels[q][place] == nearest
            totals[place] += codes[nearest]
        errors.append(F.mse_loss(totals, z))
        torch.testing.assert_close(quantizer.indices_to_codes(*quantized.levels[: q + 1]), totals)
    torch.testing.assert_close(quantized.codes, totals)
    for name in ("commitment", "codebook"):
        torch.testing.assert_close(quantized.losses[name], torch.stack(errors).mean())


def test_each_loss_pulls_its_side() -> None:
    quantizer = built()
    z = torch.randn(10, 3, requires_grad=True)
    losses = quantizer(z).losses
    parameters = list(quantizer.parameters())
    of_commitment = torch.autograd.grad(losses["commitment"], (z, *parameters), allow_unused=True)
    of_codebook = torch.autograd.grad(losses["codebook"], (z, *parameters), allow_unused=True)
    assert of_commitment[0] is not None
    assert all(slope is None for slope in of_commitment[1:])
    assert of_codebook[0] is None
    assert all(bool(slope.any()) for slope in of_codebook[1:])


def test_fresh_networks_leave_the_codes_as_they_are() -> None:
    quantizer = ImplicitNeuralConfig(codebook_size=7, dim=3, num_levels=2, hidden=5).build()
    indices = torch.arange(7)
    codes = quantizer.indices_to_codes(indices, indices)
    assert torch.equal(codes, quantizer.codebooks[0] + quantizer.codebooks[1])  # type: ignore[index]


def test_networks_fit_what_fixed_codebooks_cannot() -> None:
    """Points on a line whose second level must run along it or across it, depending on the first."""
    generator = torch.Generator().manual_seed(0)
    side, step = torch.randint(0, 2, (2, 512), generator=generator) * 2.0 - 1
    z = torch.stack([4 * side, torch.zeros(512)], 1)
    z = z + torch.where(side[:, None] > 0, torch.stack([step, 0 * step], 1), torch.stack([0 * step, step], 1))
    errors = {}
    for blocks in (0, 2):
        torch.manual_seed(0)
        config = ImplicitNeuralConfig(codebook_size=2, dim=2, num_levels=2, blocks=blocks, hidden=16)
        quantizer = config.build()
        with torch.no_grad():
            quantizer.codebooks[0].copy_(torch.tensor([[4.0, 0], [-4, 0]]))  # type: ignore[index]
            quantizer.codebooks[1].copy_(torch.tensor([[0.5, 0.5], [-0.5, -0.5]]))  # type: ignore[index]
        optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            quantizer(z).losses["codebook"].backward()
            optimizer.step()
        errors[blocks] = F.mse_loss(quantizer.eval()(z).codes, z).item()
    assert errors[2] < 0.01
    assert errors[2] < errors[0] / 3


@given(st.integers(0, 999), st.integers(0, 6), st.integers(1, 9), st.integers(1, 5))
def test_the_nearest_of_own_codes(seed: int, count: int, size: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator)
    codes = torch.randint(-2, 3, (count, size, dim), generator=generator).float()  # with ties
    expected = [
        min(range(size), key=lambda k: ((c[k] - v).double().square().sum().item(), k)) for v, c in zip(x, codes)
    ]
    assert nearest_own_code(x, codes).tolist() == expected


@pytest.mark.parametrize("shapes", [((3, 2), (3, 0, 2)), ((3, 2), (2, 4, 2)), ((3, 2), (3, 4, 1)), ((3,), (3, 4, 1))])
def test_shapes_that_do_not_fit_are_refused(shapes: tuple) -> None:
    with pytest.raises(ValueError, match=r"expected \(N, D\) and \(N, K, D\)"):
        nearest_own_code(*map(torch.zeros, shapes))


@pytest.mark.parametrize("fields", [{"codebook_size": 0}, {"dim": 0}, {"num_levels": 0}, {"hidden": 0}, {"blocks": -1}])
def test_configs_that_cannot_work_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        ImplicitNeuralConfig(**fields)
