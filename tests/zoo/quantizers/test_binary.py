"""Lookup-free and spherical binary quantisation: bits, losses, and vector-quantize-pytorch's LFQ."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import BinaryConfig, BinaryEntropyConfig, QuantizerConfig, SphericalBinaryConfig, from_vqp
from zoo.quantizers.bit_indices import bits_to_indices, indices_to_bits


@pytest.mark.parametrize("bits", [1, 3, 18, 62])
def test_bits_are_the_signs_with_channel_0_least_significant(bits: int) -> None:
    quantizer = BinaryConfig(bits=bits, entropy=None).build()
    z = torch.randn(40, bits)
    z[0], z[1], z[2], z[3] = 1, -1, 0, torch.nan
    quantized = quantizer(z)
    assert quantized.indices.tolist() == [sum(2**d for d in range(bits) if row[d] > 0) for row in z]
    assert torch.equal(quantized.codes[:3], torch.where(z[:3] > 0, 1.0, -1.0))
    assert quantized.indices[:4].tolist() == [2**bits - 1, 0, 0, 0]
    assert bool(quantized.codes[3].isnan().all())


@given(st.integers(1, 62), st.integers(1, 4), st.booleans(), st.integers(0, 1000))
def test_indices_are_their_bits(per_index: int, subtokens: int, first: bool, seed: int) -> None:
    ones = torch.rand(5, per_index * subtokens, generator=torch.Generator().manual_seed(seed)) < 0.5
    levels = bits_to_indices(ones, subtokens, first)
    assert len(levels) == subtokens
    for level, run in zip(levels, ones.split(per_index, dim=1)):
        texts = ["".join(str(int(bit)) for bit in (row if first else row.flip(0))) for row in run]
        assert level.tolist() == [int(text, 2) for text in texts]
    assert torch.equal(indices_to_bits(levels, per_index * subtokens, first), ones.long())


def test_subtokens_are_levels() -> None:
    config = BinaryConfig(bits=18, entropy=None, subtokens=2)
    assert config.vocab_sizes == (512, 512)
    z = torch.randn(7, 18)
    joint = BinaryConfig(bits=18, entropy=None).build()(z).indices
    low, high = config.build()(z).levels
    assert torch.equal(low + 512 * high, joint)


def definition(z: Tensor, temperature: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=z.shape[-1]))) * scale
    assignment = (2 * z @ signs.T / temperature).softmax(-1)
    sample, codebook = (-(p * p.log()).sum(-1).mean() for p in (assignment, assignment.mean(0)))
    return sample, codebook


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_binary_losses(scale: float) -> None:
    z = torch.randn(20, 5, requires_grad=True)
    config = BinaryConfig(bits=5, entropy=BinaryEntropyConfig(temperature=0.5, gamma=0.3), scale=scale)
    quantized = config.build()(z)
    torch.testing.assert_close(quantized.losses["commitment"], F.mse_loss(z, z.sign() * scale))
    sample, codebook = definition(z, 0.5, scale)
    torch.testing.assert_close(quantized.losses["entropy"], sample - 0.3 * codebook)
    torch.testing.assert_close(quantized.statistics["sample_entropy"], sample)
    torch.testing.assert_close(quantized.statistics["codebook_entropy"], codebook)


def test_spherical_codes_losses_and_gradients() -> None:
    z, upstream = torch.randn(20, 5, requires_grad=True), torch.randn(20, 5)
    unit = F.normalize(z, dim=-1)
    for gradient, factor in (("sign", 5**-0.5), ("code", 1.0)):
        config = SphericalBinaryConfig(5, BinaryEntropyConfig(temperature=0.5, gamma=0.3), gradient)  # type: ignore[arg-type]
        quantized = config.build()(z)
        torch.testing.assert_close(quantized.codes, z.sign() * 5**-0.5)
        torch.testing.assert_close(quantized.losses["commitment"], F.mse_loss(unit, z.sign() * 5**-0.5))
        sample, codebook = definition(unit, 0.5, 5**-0.5)
        torch.testing.assert_close(quantized.losses["entropy"], sample - 0.3 * codebook)
        (slope,) = torch.autograd.grad((quantized.codes * upstream).sum(), z)
        (expected,) = torch.autograd.grad((unit * upstream).sum() * factor, z, retain_graph=True)
        torch.testing.assert_close(slope, expected)


def test_spherical_indices_have_channel_0_most_significant() -> None:
    z = torch.randn(40, 36)
    quantized = SphericalBinaryConfig(bits=36, entropy=None).build()(z)  # more bits than float32 adds exactly
    assert quantized.indices.tolist() == [sum(2 ** (35 - d) for d in range(36) if row[d] > 0) for row in z]


def test_unit_latents_skip_the_normalisation() -> None:
    quantizer = SphericalBinaryConfig(bits=6).build().train()
    unit = F.normalize(torch.randn(9, 6), dim=-1)
    first, second = quantizer.quantize(unit), quantizer.quantize_unit(unit)  # type: ignore[operator]
    assert torch.equal(first.indices, second.indices)
    torch.testing.assert_close(first.losses, second.losses)
    u = unit.clone().requires_grad_()
    (slope,) = torch.autograd.grad(quantizer.quantize_unit(u).codes.sum(), u)  # type: ignore[operator]
    torch.testing.assert_close(slope, torch.full_like(u, 6**-0.5))


@pytest.mark.parametrize("kind", [BinaryConfig, SphericalBinaryConfig])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 0}, "1 to 62 bits, got 0"),
        ({"bits": 63}, "1 to 62 bits, got 63"),
        ({"bits": 125, "subtokens": 2}, r"1 to 124 bits .62 for each of the 2 subtokens., got 125"),
        ({"bits": 15, "subtokens": 2}, "bits that 2 subtokens divide evenly, got 15"),
        ({"bits": 15, "subtokens": 0}, "at least 1 subtoken, got 0"),
        ({"bits": 25}, r"at most 24 bits with an entropy term.*entropy=None"),
        ({"bits": 30, "entropy": BinaryEntropyConfig(group_bits=4)}, "group_bits that divide the 30 bits, got 4"),
    ],
)
def test_configs_that_cannot_work_are_refused(kind: type[QuantizerConfig], settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"floor": 1.0}, {"shift": -1e-5}, {"group_bits": 0}, {"group_bits": 25}],
)
def test_entropy_terms_that_cannot_work_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(settings)))):
        BinaryEntropyConfig(**settings)


def test_a_soft_clamp_below_the_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"soft_clamp >= scale, got 0\.5"):
        BinaryConfig(soft_clamp=0.5)


# -- vector-quantize-pytorch: it weighs its losses, gives no commitment in evaluation, and clamps at 1e-5 --------------


@settings(max_examples=40)
@given(
    st.integers(1, 8), st.integers(1, 3), st.booleans(), st.sampled_from([0.25, 1.0]), st.sampled_from([None, 1.5]),
    st.sampled_from([0.0, 1.0, 2.0]), st.booleans(), st.booleans(), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_it_agrees_with_vector_quantize_pytorch(
    bits: int, codebooks: int, spherical: bool, scale: float, soft_clamp: float | None, gamma: float, training: bool,
    masked: bool, rotated: bool, seed: int,
) -> None:  # fmt: skip
    from vector_quantize_pytorch import LFQ

    if spherical:
        scale, soft_clamp = 1.0, None
    if rotated:
        soft_clamp = None  # theirs would come before the rotation
    torch.manual_seed(seed)
    theirs = LFQ(
        codebook_size=2**bits,
        num_codebooks=codebooks,
        spherical=spherical,
        codebook_scale=scale,
        soft_clamp_input_value=soft_clamp,
        orthogonal_rotation=rotated,
        diversity_gamma=gamma,
        entropy_loss_weight=0.5,
        commitment_loss_weight=0.25,
    ).train(training)
    ours = from_vqp(theirs)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, 20, bits * codebooks, generator=generator) * 0.2
    mask = torch.rand(3, 20, generator=generator) < 0.7 if masked else torch.ones(3, 20, dtype=torch.bool)
    mask[0, 0] = True
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized = ours(x, mask)
    codes, indices, loss = theirs(y[mask][None])  # given a mask, it takes no mean over tokens
    assert torch.equal(quantized.codes[~mask], torch.zeros_like(quantized.codes[~mask]))
    assert torch.equal(quantized.indices[mask], indices[0].long())
    torch.testing.assert_close(quantized.codes[mask], codes[0])
    torch.testing.assert_close(ours.indices_to_codes(*quantized.levels)[mask], theirs.indices_to_codes(indices)[0])
    if training:
        total = 0.5 * quantized.losses["entropy"] + 0.25 * quantized.losses["commitment"]
        torch.testing.assert_close(total, loss, rtol=1e-4, atol=1e-5)
        upstream = torch.randn(codes.shape, generator=generator)
        ((quantized.codes[mask] * upstream[0]).sum() + total).backward()
        ((codes * upstream).sum() + loss).backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)


def test_projections_of_vector_quantize_pytorch_are_taken_over() -> None:
    from vector_quantize_pytorch import LFQ

    theirs = LFQ(dim=10, codebook_size=16, num_codebooks=2).train()
    ours = from_vqp(theirs)
    z = torch.randn(3, 20, 10)
    quantized = ours(z)
    (codes, indices, _), losses = theirs(z, return_loss_breakdown=True)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(quantized.statistics["sample_entropy"], losses.per_sample_entropy, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(quantized.statistics["codebook_entropy"], losses.batch_entropy, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("straight_through_activation", torch.nn.Tanh()),
        ("experimental_softplus_entropy_loss", True),
        ("cosine_sim_project_in", True),
    ],
)
def test_what_has_no_counterpart_is_named(option: str, value: object) -> None:
    from vector_quantize_pytorch import LFQ

    with pytest.raises(ValueError, match=option):
        from_vqp(LFQ(dim=7, codebook_size=16, **{option: value}))  # type: ignore[arg-type]
