"""Gumbel-softmax quantisation against its definition by a full table of logits."""

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.config import ConfigError
from zoo.quantizers import GumbelConfig


def gumbel_noise(*shape: int) -> Tensor:
    return -torch.empty(shape).exponential_().log()


@pytest.mark.parametrize("chunk", [1, 50, 1 << 22])
def test_a_given_noise_gives_the_gumbel_softmax_and_its_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(import_module("zoo.ops.soft_assignment"), "_CHUNK", chunk)
    quantizer = GumbelConfig(codebook_size=9, dim=4, temperature=0.7).build()
    parameters = list(quantizer.parameters())
    z, noise, upstream = torch.randn(2, 6, 4, requires_grad=True), gumbel_noise(2, 6, 9), torch.randn(2, 6, 4)
    quantized = quantizer.quantize(z, noise)  # type: ignore[call-arg]
    total = (quantized.codes * upstream).sum() + quantized.losses["kl"]

    logits = quantizer.logits(z)  # type: ignore[operator]
    soft = ((logits + noise) / 0.7).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), 9).float()
    codes = (hard - soft.detach() + soft) @ quantizer.codebook.weight  # type: ignore[operator]
    probability = logits.softmax(-1)
    kl = (probability * (probability * 9 + 1e-10).log()).sum(-1).mean()
    assert torch.equal(quantized.indices, soft.argmax(-1))
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(quantized.losses["kl"], kl)
    torch.testing.assert_close(quantizer.divergence(z), kl)  # type: ignore[operator]
    wanted = torch.autograd.grad((codes * upstream).sum() + kl, [z, *parameters])
    for slope, want in zip(torch.autograd.grad(total, [z, *parameters]), wanted):
        torch.testing.assert_close(slope, want, rtol=1e-4, atol=1e-5)


def test_training_samples_and_its_gradient_is_of_the_noise_that_was_drawn() -> None:
    quantizer = GumbelConfig(codebook_size=5, dim=3).build()
    z = torch.randn(3, requires_grad=True)
    torch.manual_seed(2)
    quantized = quantizer(z.expand(20000, 3))
    wanted = quantizer.logits(z).softmax(0)  # type: ignore[operator]
    shares = quantized.indices.bincount(minlength=5) / 20000
    torch.testing.assert_close(shares, wanted.detach(), rtol=0, atol=0.015)
    torch.manual_seed(2)
    noise = gumbel_noise(20000, 5)
    again = quantizer.quantize(z.expand(20000, 3), noise)  # type: ignore[call-arg]
    assert torch.equal(again.indices, quantized.indices)
    (slope,), (want,) = (torch.autograd.grad(part.codes.square().sum(), z) for part in (quantized, again))
    torch.testing.assert_close(slope, want)


def test_evaluation_takes_the_most_likely_code_and_has_no_loss() -> None:
    quantizer = GumbelConfig(codebook_size=30, dim=8).build().eval()
    z = torch.randn(50, 8)
    quantized = quantizer(z)
    assert torch.equal(quantized.indices, quantizer.logits(z).argmax(-1))  # type: ignore[operator]
    assert quantized.losses == {}
    noise = gumbel_noise(50, 30)
    sampled = quantizer.quantize(z, noise)  # type: ignore[call-arg]
    assert torch.equal(sampled.indices, (quantizer.logits(z) + noise).argmax(-1))  # type: ignore[operator]


def test_a_low_temperature_makes_the_gradient_that_of_the_chosen_code_alone() -> None:
    quantizer = GumbelConfig(codebook_size=6, dim=3).build()
    z, noise = torch.randn(10, 3, requires_grad=True), gumbel_noise(10, 6)
    quantizer.temperature = 1e-4  # type: ignore[assignment]
    quantizer.quantize(z, noise).codes.sum().backward()  # type: ignore[call-arg]
    torch.testing.assert_close(z.grad, torch.zeros(10, 3))


def test_kl_is_between_0_and_log_k() -> None:
    quantizer = GumbelConfig(codebook_size=6, dim=3).build()
    with torch.no_grad():
        for parameter in quantizer.logits.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    torch.testing.assert_close(quantizer(torch.randn(10, 3)).losses["kl"], torch.tensor(0.0), atol=1e-6, rtol=0)
    with torch.no_grad():
        quantizer.logits.bias[2] = 1e4  # type: ignore[union-attr, index]
    torch.testing.assert_close(quantizer(torch.randn(10, 3)).losses["kl"], torch.tensor(math.log(6)))


@pytest.mark.parametrize("settings", [{"codebook_size": 0}, {"temperature": 0.0}])
def test_configs_that_cannot_work_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        GumbelConfig(**settings)
