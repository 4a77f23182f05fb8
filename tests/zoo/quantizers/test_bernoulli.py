"""Bits drawn with the probabilities of a projection: the binary auto-encoder's quantizer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import Bernoulli, BernoulliConfig


def built(**settings: object) -> Bernoulli:
    torch.manual_seed(0)
    quantizer = BernoulliConfig(dim=7, bits=6, **settings).build()  # type: ignore[arg-type]
    assert isinstance(quantizer, Bernoulli)
    return quantizer


def probabilities(quantizer: Bernoulli, z: Tensor) -> Tensor:
    return quantizer.projection(z).sigmoid()


def test_evaluation_takes_the_likelier_bits_and_adds_their_embeddings() -> None:
    quantizer, z = built().eval(), torch.randn(50, 7)
    bits = probabilities(quantizer, z) > 0.5
    quantized = quantizer(z)
    assert quantized.indices.tolist() == [int("".join(str(int(bit)) for bit in row), 2) for row in bits]
    torch.testing.assert_close(quantized.codes, bits.float() @ quantizer.embedding)


def test_training_draws_bits_with_their_probabilities_unless_told_not_to() -> None:
    quantizer, z = built().train(), torch.randn(1, 7)
    drawn = quantizer(z.expand(4000, 7)).indices
    frequency = (drawn[:, None] >> torch.arange(5, -1, -1) & 1).double().mean(0)
    torch.testing.assert_close(frequency, probabilities(quantizer, z)[0].double(), rtol=0, atol=0.04)
    fixed = built(stochastic=False).train()
    assert torch.equal(fixed(z).indices, fixed.eval()(z).indices)


def test_noise_decides_the_bits_and_the_gradient_passes_to_the_probabilities() -> None:
    quantizer, z, upstream = built(), torch.randn(20, 7, requires_grad=True), torch.randn(20, 7)
    noise = torch.rand(20, 6)
    quantized = quantizer.quantize(z, noise)
    p = probabilities(quantizer, z)
    bits = (noise < p).float()
    torch.testing.assert_close(quantized.codes, bits @ quantizer.embedding)
    slopes = torch.autograd.grad((quantized.codes * upstream).sum(), (z, quantizer.embedding), retain_graph=True)
    (expected,) = torch.autograd.grad((p @ quantizer.embedding.detach() * upstream).sum(), z)
    torch.testing.assert_close(slopes[0], expected)
    torch.testing.assert_close(slopes[1], bits.T @ upstream)


def test_uncertainty_is_the_published_double_sigmoid() -> None:
    quantizer, z = built(), torch.randn(20, 7)
    s = probabilities(quantizer, z).sigmoid()
    torch.testing.assert_close(quantizer(z).losses["uncertainty"], (s * (1 - s)).mean())


def test_uncertainty_can_be_that_of_the_probabilities() -> None:
    quantizer, z = built(uncertainty_of="probability"), torch.randn(20, 7)
    p = probabilities(quantizer, z)
    torch.testing.assert_close(quantizer(z).losses["uncertainty"], (p * (1 - p)).mean())


def test_a_temperature_changes_the_draws_and_not_their_gradient() -> None:
    z, noise = torch.randn(200, 7, requires_grad=True), torch.rand(200, 6)
    plain, cold = built().train(), built(temperature=0.1).train()
    logits = cold.projection(z)
    drawn = cold.quantize(z, noise)
    expected = built().eval().indices_to_codes(plain.quantize_probabilities((logits / 0.1).sigmoid(), noise).indices)
    torch.testing.assert_close(drawn.codes, expected)
    slopes = [torch.autograd.grad(q.quantize(z, noise).codes.sum(), z)[0] for q in (plain, cold)]
    torch.testing.assert_close(*slopes)
    assert not torch.equal(plain.quantize(z, noise).indices, drawn.indices)
    assert torch.equal(plain.eval()(z).indices, cold.eval()(z).indices)


def test_subtokens_are_levels_with_the_first_bit_most_significant() -> None:
    z = torch.randn(20, 7)
    joint, (first, second) = built().eval()(z).indices, built(subtokens=2).eval()(z).levels
    assert torch.equal(first * 8 + second, joint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dim": 0}, "dim >= 1"), ({"bits": 0}, "1 to 62 bits, got 0"), ({"temperature": 0.0}, "a temperature > 0")],
)
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BernoulliConfig(**settings)
