"""Finite discrete tokens against the equations of their paper, and what temperature does to the mixtures."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.config import ConfigError
from zoo.ops import sparsemax
from zoo.quantizers import FiniteDiscreteConfig


@given(st.sampled_from(["sparsemax", "softmax"]), st.sampled_from([0.1, 1.0, 5.0]), st.integers(0, 1000))
def test_training_mixes_entries_and_evaluation_takes_the_heaviest(kind: str, temperature: float, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = FiniteDiscreteConfig(40, 9, kind, temperature).build().train()  # type: ignore[arg-type]
    z = torch.randn(2, 7, 9, requires_grad=True)
    table = quantizer.codebook.weight
    scores = z @ table.T / 9**0.5 / temperature
    weights = sparsemax(scores) if kind == "sparsemax" else scores.softmax(-1)
    quantized = quantizer(z)
    torch.testing.assert_close(quantized.codes, weights @ table)
    assert torch.equal(quantized.indices, scores.argmax(-1))
    torch.testing.assert_close(quantized.statistics["support"], (weights > 0).sum(-1).float().mean())
    upstream = torch.randn_like(z)
    expected = torch.autograd.grad((weights @ table * upstream).sum(), (z, table))
    torch.testing.assert_close(torch.autograd.grad((quantized.codes * upstream).sum(), (z, table)), expected)
    evaluated = quantizer.eval()(z)
    assert torch.equal(evaluated.indices, quantized.indices)
    assert torch.equal(evaluated.codes, table[quantized.indices])


def test_sparsemax_mixes_fewer_entries_the_colder_it_is() -> None:
    quantizer = FiniteDiscreteConfig(100, 16).build().train()
    z = torch.randn(4, 50, 16)
    supports = []
    for temperature in (100.0, 1.0, 0.1, 1e-4):
        quantizer.temperature = temperature
        quantized = quantizer(z)
        supports.append(float(quantized.statistics["support"]))
    assert supports == sorted(supports, reverse=True)
    assert supports[0] > 50
    assert supports[-1] == 1
    torch.testing.assert_close(quantized.codes, quantizer.codebook.weight[quantized.indices])


@pytest.mark.parametrize("settings", [{"assignment": "sigmoid"}, {"temperature": 0.0}, {"codebook_size": 0}])
def test_settings_that_cannot_work_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError):
        FiniteDiscreteConfig(**settings)
