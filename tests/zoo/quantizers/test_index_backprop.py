"""Index back-propagation against its definition by a full table of soft one-hot vectors."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import IndexBackpropagationConfig, SoftEntropyConfig


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40), st.integers(0, 1000))
def test_codes_losses_and_gradients_are_those_of_the_soft_one_hot(size: int, dim: int, count: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = IndexBackpropagationConfig(size, dim, SoftEntropyConfig(temperature=0.5, shift=1e-5))
    quantizer, z = config.build(), torch.randn(count, dim, requires_grad=True)
    weight = quantizer.codebook.weight  # type: ignore[union-attr]
    upstream, weights = torch.randn(count, dim), {"index": 1.0, "commitment": 0.7, "codebook": 0.3, "entropy": 0.2}
    quantized = quantizer(z)
    total = (quantized.codes * upstream).sum()
    total = total + sum(weights[name] * loss for name, loss in quantized.losses.items())
    slopes = torch.autograd.grad(total, (z, weight))  # type: ignore[arg-type]

    x, table = z.detach().double().requires_grad_(), weight.detach().double().requires_grad_()  # type: ignore
    logits = x @ table.T
    probability = logits.softmax(-1)
    hard = F.one_hot(logits.argmax(-1), size).double()
    codes, chosen = (hard - probability.detach() + probability) @ table, hard @ table
    soft = (logits / 0.5).softmax(-1)
    sample = -(soft * soft.clamp_min(1e-300).log()).sum(-1).mean()
    mean = soft.mean(0)
    losses = {
        "index": F.mse_loss(codes, x),
        "commitment": F.mse_loss(x, chosen.detach()),
        "codebook": F.mse_loss(chosen, x.detach()),
        "entropy": sample + (mean * (mean + 1e-5).log()).sum(),
    }
    assert torch.equal(quantized.indices, logits.argmax(-1))
    assert quantized.losses.keys() == losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(quantized.losses[name].double(), loss, rtol=1e-4, atol=1e-5)
    expected = (codes * upstream).sum() + sum(weights[name] * loss for name, loss in losses.items())
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, (x, table))):
        torch.testing.assert_close(slope.double(), wanted, rtol=1e-3, atol=1e-4)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, z = IndexBackpropagationConfig(13, 5).build(), torch.randn(21, 5)
    slopes = []
    for chunk in (1, 40, 1 << 22):
        monkeypatch.setattr(import_module("zoo.ops.soft_assignment"), "_CHUNK", chunk)
        x = z.clone().requires_grad_()
        loss = quantizer(x).codes.square().sum()
        slopes.append(torch.autograd.grad(loss, (x, quantizer.codebook.weight)))  # type: ignore
    for other in slopes[1:]:
        for a, b in zip(slopes[0], other):
            torch.testing.assert_close(a, b)


def test_every_code_gets_a_gradient() -> None:
    quantizer = IndexBackpropagationConfig(50, 6).build()
    quantizer(torch.randn(4, 6)).codes.square().sum().backward()
    assert int((quantizer.codebook.weight.grad != 0).any(1).sum()) == 50  # type: ignore


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="a size and dim >= 1"):
        IndexBackpropagationConfig(codebook_size=0)
