"""The entropies of binary codes against their definition in float64."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from entropy_definitions import assert_same_value_and_gradient, binary_definition, sign_vectors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import binary_entropy, mean_assignment
from zoo.ops.bit_tables import joint_probabilities, sum_by_bit

TOLERANCE = 3e-6


@settings(max_examples=150)
@given(
    st.integers(1, 10), st.integers(1, 20), st.sampled_from([0.05, 0.5, 3.0]),
    st.sampled_from([0.0, 1e-5, 1e-2, 0.3]), st.sampled_from([0.0, 1e-5]), st.integers(0, 1000),
)  # fmt: skip
def test_it_is_its_definition(d: int, n: int, temperature: float, floor: float, shift: float, seed: int) -> None:
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.5
    assert_same_value_and_gradient(
        lambda z: binary_entropy(z, temperature, floor=floor, shift=shift),
        lambda z: binary_definition(z, temperature, floor, shift),
        z,
        tolerance=TOLERANCE,
    )


@settings(max_examples=60)
@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.sampled_from([0.0, 1e-3]), st.integers(0, 1000)
)  # fmt: skip
def test_groups_add_their_entropies(group_bits: int, groups: int, n: int, floor: float, seed: int) -> None:
    z = torch.randn(n, group_bits * groups, generator=torch.Generator().manual_seed(seed)) * 0.5
    assert_same_value_and_gradient(
        lambda z: binary_entropy(z, 0.5, floor=floor, group_bits=group_bits),
        lambda z: binary_definition(z, 0.5, floor, group_bits=group_bits),
        z,
        tolerance=TOLERANCE,
    )


def test_groups_bound_the_joint_codebook_entropy_and_leave_the_sample_entropy() -> None:
    z = torch.randn(300, 8)
    joint, grouped = binary_entropy(z, 0.5), binary_entropy(z, 0.5, group_bits=2)
    torch.testing.assert_close(joint[0], grouped[0])
    assert joint[1] < grouped[1]


@pytest.mark.parametrize("floor", [0.0, 1e-5])
@pytest.mark.parametrize("scale", [1.0, 1e3, math.inf])
def test_certain_bits_give_finite_entropies_and_gradients(floor: float, scale: float) -> None:
    """At the temperature of the published trainings nearly every bit is certain: entropies near 0, gradients finite."""
    z = (torch.randn(50, 8) * scale).requires_grad_()
    sample, codebook = binary_entropy(z, 0.01, floor=floor)
    expected = binary_definition(z.detach().double().clamp(-1e3, 1e3), 0.01, floor)
    torch.testing.assert_close(sample, expected[0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(codebook, expected[1], rtol=1e-5, atol=1e-7)
    (slope,) = torch.autograd.grad(sample - codebook, z)
    assert bool(slope.isfinite().all())


def test_gradients_of_nearly_certain_bits_keep_their_relative_precision() -> None:
    z = torch.linspace(-0.1, 0.1, 60).view(10, 6)
    slopes = []
    for x, entropy in ((z, binary_entropy), (z.double(), lambda z, t: binary_definition(z, t, 0.0))):
        x = x.clone().requires_grad_()
        sample, codebook = entropy(x, 0.02)  # log odds to +-20, whose slopes go down to 1e-7
        slopes.append(torch.autograd.grad(sample - codebook, x)[0].double())
    torch.testing.assert_close(slopes[0], slopes[1], rtol=2e-4, atol=0)


@pytest.mark.parametrize("chunk", [1, 8, 100, 1 << 22])
@pytest.mark.parametrize("floor", [0.0, 1e-3])
@pytest.mark.parametrize(("d", "group_bits"), [(1, None), (5, None), (8, None), (6, 3), (6, 1)])
def test_chunks_do_not_show(
    monkeypatch: pytest.MonkeyPatch, chunk: int, floor: float, d: int, group_bits: int | None
) -> None:
    monkeypatch.setattr(import_module("zoo.ops.binary_entropy"), "_CHUNK", chunk)
    assert_same_value_and_gradient(
        lambda z: binary_entropy(z, 0.5, floor=floor, group_bits=group_bits),
        lambda z: binary_definition(z, 0.5, floor, group_bits=group_bits),
        torch.randn(13, d),
        tolerance=TOLERANCE,
    )


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_no_latents_have_no_entropy(floor: float) -> None:
    z = torch.randn(0, 5, requires_grad=True)
    sample, codebook = binary_entropy(z, 0.5, floor=floor)
    assert sample.item() == codebook.item() == 0
    assert torch.autograd.grad(sample + codebook, z)[0].shape == (0, 5)


def test_many_bits_at_once() -> None:
    """2^18 codes: of latents near 0 the bits are fair coins, and independent latents use the codes evenly."""
    sample, codebook = binary_entropy(torch.randn(64, 18) * 1e-4, 1.0)
    torch.testing.assert_close(sample.item(), 18 * math.log(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(codebook.item(), 18 * math.log(2), rtol=1e-6, atol=0)
    z = torch.randn(64, 18)
    sample, codebook = binary_entropy(z, 0.01)
    clamped = binary_entropy(z, 0.01, floor=1e-5)
    torch.testing.assert_close(sample, clamped[0], rtol=1e-2, atol=0)
    assert sample > clamped[0]
    assert math.log(32) < codebook < math.log(64) + sample


def test_half_precision_and_strides() -> None:
    z = torch.randn(6, 40).to(torch.bfloat16)
    expected = binary_entropy(z.float().T.contiguous(), 0.5)
    assert torch.equal(torch.stack(binary_entropy(z.T, 0.5)), torch.stack(expected))


def test_autocast_does_not_reach_it() -> None:
    z = torch.randn(300, 8, requires_grad=True)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            sample, codebook = binary_entropy(z, 0.5)
            (slope,) = torch.autograd.grad(sample - codebook, z)
        results.append((sample, codebook, slope))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_gradients_in_double_precision() -> None:
    z = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    for floor, group_bits in ((0.0, None), (1e-2, None), (0.0, 2)):
        assert torch.autograd.gradcheck(lambda z: binary_entropy(z, 0.7, floor=floor, group_bits=group_bits), z)  # noqa: B023


@pytest.mark.parametrize("d", [1, 2, 3, 6, 7])
def test_mean_assignment_counts_bits_from_the_least_significant(d: int) -> None:
    certain = sign_vectors(d, torch.float32) * 100
    for index in (0, 1, 2**d - 1):
        assert mean_assignment(certain[index, None])[0].argmax() == index
    logits = torch.randn(5, d)
    expected = (logits @ sign_vectors(d, torch.float32).T / 2).softmax(-1).mean(0, keepdim=True)
    torch.testing.assert_close(mean_assignment(logits), expected)


def test_mean_assignment_of_groups() -> None:
    logits = torch.randn(9, 6)
    expected = torch.cat([mean_assignment(part) for part in logits.split(2, dim=1)])
    torch.testing.assert_close(mean_assignment(logits, 2), expected)


@given(st.integers(0, 9), st.integers(0, 1000))
def test_tables_of_bits(bits: int, seed: int) -> None:
    one = torch.rand(2, bits, 3, generator=torch.Generator().manual_seed(seed))
    table = joint_probabilities(one, 1 - one)
    values = torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1
    for group, token in ((0, 0), (1, 2)):
        p = one[group, :, token]
        expected = torch.where(values > 0, p, 1 - p).prod(dim=1)
        torch.testing.assert_close(table[group, :, token], expected)
    is_one, is_zero = sum_by_bit(table)
    torch.testing.assert_close(is_one, one)
    torch.testing.assert_close(is_zero, 1 - one)


@pytest.mark.parametrize(
    ("z", "settings", "message"),
    [
        (torch.ones(3), {}, r"expected latents \(N, D\)"),
        (torch.ones(2, 0), {}, r"expected latents \(N, D\) with D > 0"),
        (torch.ones(2, 25), {}, "expected groups of 1 to 24 bits, got 25"),
        (torch.ones(2, 6), {"group_bits": 0}, "expected groups of 1 to 24 bits, got 0"),
        (torch.ones(2, 6), {"group_bits": 4}, "expected a divisor of the 6 bits, got 4"),
        (torch.ones(2, 3), {"temperature": 0.0}, "expected a temperature > 0, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(z: Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_entropy(z, **{"temperature": 1.0, **settings})
