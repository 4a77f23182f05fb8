"""Soft assignment against its definition by a full table of distances."""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.ops import sample_codes, soft_cross_entropy, soft_entropy

SCORES = ["squared_distance", "distance", "dot"]


def scores(z: Tensor, codes: Tensor, score: str) -> Tensor:
    if score == "dot":
        return z @ codes.T
    squares = (z[:, None] - codes[None]).square().sum(-1)
    return -squares if score == "squared_distance" else -squares.sqrt()


@given(
    st.sampled_from(SCORES), st.integers(1, 30), st.integers(1, 9), st.integers(0, 20),
    st.sampled_from([0.3, 1.0, 7.0]), st.integers(0, 999),
)  # fmt: skip
def test_cross_entropy_and_gradients_are_their_definition(
    score: str, k: int, d: int, n: int, temperature: float, seed: int
) -> None:
    torch.manual_seed(seed)
    z, codes = torch.randn(n, d, requires_grad=True), torch.randn(k, d, requires_grad=True)
    indices = torch.randint(k, (n,))
    loss = soft_cross_entropy(z, codes, indices, temperature, score)  # type: ignore[arg-type]
    if n == 0:
        assert loss.item() == 0
        return
    x, table = z.detach().double().requires_grad_(), codes.detach().double().requires_grad_()
    expected = F.cross_entropy(scores(x, table, score) / temperature, indices)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, (x, table))
    for slope, want in zip(torch.autograd.grad(loss, (z, codes)), wanted):
        torch.testing.assert_close(slope.double(), want, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("score", SCORES)
def test_entropies_are_of_the_same_assignment(score: str) -> None:
    z, codes = torch.randn(30, 4), torch.randn(12, 4)
    probability = (scores(z.double(), codes.double(), score) / 0.5).softmax(-1)
    sample, codebook = soft_entropy(z, codes, 0.5, score=score)  # type: ignore[arg-type]
    torch.testing.assert_close(sample.double(), torch.special.entr(probability).sum(-1).mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(codebook.double(), torch.special.entr(probability.mean(0)).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("chunk", [1, 70, 1 << 22])
def test_chunks_of_the_cross_entropy_do_not_show(monkeypatch: pytest.MonkeyPatch, score: str, chunk: int) -> None:
    z, codes, indices = torch.randn(13, 4), torch.randn(35, 4), torch.randint(35, (13,))
    expected = F.cross_entropy(scores(z, codes, score), indices)
    monkeypatch.setattr(import_module("zoo.ops.soft_assignment"), "_CHUNK", chunk)
    torch.testing.assert_close(soft_cross_entropy(z, codes, indices, 1.0, score), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("score", SCORES)
def test_samples_have_the_probabilities_of_the_assignment(score: str) -> None:
    z, codes = torch.randn(4), torch.randn(6, 4)
    drawn = sample_codes(z.expand(20000, 4), codes, 0.9, score)  # type: ignore[arg-type]
    wanted = (scores(z[None], codes, score)[0] / 0.9).softmax(0)
    torch.testing.assert_close(drawn.bincount(minlength=6) / 20000, wanted, rtol=0, atol=0.015)
    assert sample_codes(z[None][:0], codes, 0.9).shape == (0,)


def test_a_latent_on_its_code_has_finite_slopes() -> None:
    codes = torch.randn(5, 3)
    z = codes.clone().requires_grad_()
    soft_cross_entropy(z, codes, torch.arange(5), 1.0, "distance").backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(0, 3), torch.zeros(2).long(), 1.0), "with K > 0"),
        ((torch.ones(2, 3), torch.ones(4, 2), torch.zeros(2).long(), 1.0), r"got \(2, 3\) and \(4, 2\)"),
        ((torch.ones(2, 3), torch.ones(4, 3), torch.zeros(3).long(), 1.0), r"expected indices \(2,\), got \(3,\)"),
        ((torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long(), 0.0), "a temperature > 0"),
        ((torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long(), 1.0, "l1"), "score: expected one of"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_cross_entropy(*arguments)
