"""The binary mapper against vector-quantize-pytorch's one-hot vectors times a table."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.quantizers import BinaryMapper, BinaryMapperConfig


def built(bits: int, **settings: float) -> BinaryMapper:
    torch.manual_seed(0)
    quantizer = BinaryMapperConfig(dim=5, bits=bits, **settings).build()
    assert isinstance(quantizer, BinaryMapper)
    return quantizer


@settings(max_examples=40)
@given(st.integers(1, 7), st.sampled_from([0.0, math.log(2), 3.0]), st.booleans(), st.integers(0, 1000))
def test_it_agrees_with_vector_quantize_pytorch(bits: int, free_nats: float, training: bool, seed: int) -> None:
    from vector_quantize_pytorch import BinaryMapper as Peer

    ours = built(bits, free_nats=free_nats).train(training)
    theirs = Peer(bits=bits, kl_loss_threshold=free_nats, deterministic_on_eval=True).train(training)
    z = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(seed)) * 3
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    torch.manual_seed(seed)
    quantized = ours(x)
    torch.manual_seed(seed)
    one_hot, indices, kl = theirs(ours.projection(y), return_indices=True)
    codes = one_hot @ ours.codebook.weight
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.codes, codes)
    upstream = torch.randn(codes.shape, generator=torch.Generator().manual_seed(seed + 1))
    if training:
        torch.testing.assert_close(quantized.losses["kl"], kl)
        inputs = (ours.codebook.weight, ours.projection.weight)
        slopes = torch.autograd.grad((quantized.codes * upstream).sum() + quantized.losses["kl"], (x, *inputs))
        expected = torch.autograd.grad((codes * upstream).sum() + kl, (y, *inputs))
        for a, b in zip(slopes, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    else:
        assert quantized.losses == {}


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes = []
    for chunk in (1, 100, 1 << 21):
        monkeypatch.setattr(import_module("zoo.quantizers.binary_mapper"), "_CHUNK", chunk)
        quantizer = built(4)
        quantizer(torch.linspace(-1, 1, 65).view(13, 5)).codes.square().sum().backward()
        slopes.append(quantizer.projection.weight.grad)
    torch.testing.assert_close(slopes[0], slopes[2])
    torch.testing.assert_close(slopes[1], slopes[2])


@pytest.mark.parametrize(("settings", "message"), [({"bits": 25}, "1 to 24 bits"), ({"free_nats": -1.0}, "free_nats")])
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BinaryMapperConfig(**settings)
