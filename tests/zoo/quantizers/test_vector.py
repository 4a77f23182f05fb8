"""Vector quantisation: its losses, codebooks, further losses and sampling, each against its definition."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.config import ConfigError
from zoo.quantizers import (
    AffineConfig,
    CrossEntropyConfig,
    EmaCodebookConfig,
    FrozenCodebookConfig,
    GradientCodebookConfig,
    InPlaceCodebookConfig,
    OrthogonalityConfig,
    SamplingConfig,
    SoftEntropyConfig,
    StraightThroughConfig,
    VectorConfig,
)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_vector_losses_pull_each_side_alone(metric: str) -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric=metric).build()  # type: ignore[arg-type]
    z = torch.randn(3, 5, 4, requires_grad=True)
    quantized = quantizer(z)
    unit = F.normalize(z, dim=-1) if metric == "cosine" else z
    expected = F.mse_loss(unit, quantized.codes)
    torch.testing.assert_close(quantized.losses["commitment"], expected)
    torch.testing.assert_close(quantized.losses["codebook"], expected)
    weight = quantizer.codebook.weight  # type: ignore[union-attr]
    of_commitment = torch.autograd.grad(quantized.losses["commitment"], (z, weight), allow_unused=True)
    of_codebook = torch.autograd.grad(quantized.losses["codebook"], (z, weight), allow_unused=True)
    assert of_commitment[0] is not None
    assert of_commitment[1] is None
    assert of_codebook[0] is None
    assert of_codebook[1] is not None


def test_cosine_gradient_passes_through_the_normalisation() -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric="cosine").build()
    z, upstream = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    (slope,) = torch.autograd.grad((quantizer(z).codes * upstream).sum(), z)
    (expected,) = torch.autograd.grad((F.normalize(z, dim=-1) * upstream).sum(), z)
    torch.testing.assert_close(slope, expected)


def test_cosine_codes_are_unit_vectors_whatever_the_weights() -> None:
    quantizer = VectorConfig(codebook_size=20, dim=4, metric="cosine").build()
    with torch.no_grad():
        quantizer.codebook.weight.mul_(torch.linspace(0.1, 9, 20)[:, None])  # type: ignore[union-attr]
    quantized = quantizer(torch.randn(50, 4))
    torch.testing.assert_close(quantized.codes.norm(dim=-1), torch.ones(50))


def test_entropy_loss_has_its_sign_and_gamma() -> None:
    z = torch.randn(30, 4)
    for gamma in (0.0, 2.5):
        quantizer = VectorConfig(8, 4, entropy=SoftEntropyConfig(temperature=0.7, gamma=gamma)).build()
        quantized = quantizer(z)
        sample, codebook = (quantized.statistics[f"{name}_entropy"] for name in ("sample", "codebook"))
        torch.testing.assert_close(quantized.losses["entropy"].detach(), sample - gamma * codebook)
        assert 0 <= sample <= codebook <= math.log(8)


def ema(decay: float = 0.9, **settings) -> nn.Module:
    torch.manual_seed(3)
    return VectorConfig(codebook_size=12, dim=4, codebook=EmaCodebookConfig(decay=decay, **settings)).build()


def test_ema_update_is_its_definition() -> None:
    quantizer, z = ema(), torch.randn(100, 4)
    count, total = torch.ones(12), quantizer.codebook.weight.clone()
    for step in range(3):
        indices = quantizer(z + step).indices
        hot = F.one_hot(indices, 12).float()
        count, total = 0.9 * count + 0.1 * hot.sum(0), 0.9 * total + 0.1 * hot.T @ (z + step)
        smoothed = (count + 1e-5) / (count.sum() + 12e-5) * count.sum()
        torch.testing.assert_close(quantizer.codebook.weight, total / smoothed[:, None])
    assert not quantizer.codebook.weight.requires_grad
    assert "codebook" not in quantizer(z).losses


def test_ema_moves_only_in_training_and_nothing_without_tokens() -> None:
    quantizer = ema()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(9, 4))
    quantizer.train()(torch.randn(0, 4))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_dead_codes_are_put_on_latents_with_a_fresh_count() -> None:
    quantizer = ema(decay=0.5, revive_below=0.9)
    z = torch.randn(40, 4) * 0.1 + 5  # far from all codes, so that at most a few are used
    used = quantizer(z).indices.unique()
    dead = [k for k in range(12) if k not in used.tolist()]
    assert len(dead) >= 8
    assert torch.equal(quantizer.ema.count[dead], torch.ones(len(dead)))
    revived = quantizer.codebook.weight[dead]
    assert torch.equal(quantizer.ema.total[dead], revived)
    assert all(bool((z == code).all(1).any()) for code in revived)
    assert len(revived.unique(dim=0)) == len(dead)
    again = quantizer(z).indices.unique()
    assert len(again) > len(used)


def test_a_code_is_not_revived_while_its_count_holds() -> None:
    quantizer = ema(decay=0.99, revive_below=0.9)
    before = quantizer.codebook.weight.clone()
    used = quantizer(torch.randn(5, 4) + 5).indices.unique().tolist()
    unused = [k for k in range(12) if k not in used]
    torch.testing.assert_close(quantizer.codebook.weight[unused], before[unused], rtol=1e-3, atol=1e-3)


def test_entropy_gradient_is_of_the_codebook_before_its_update() -> None:
    """The running codebook moves in place while the graph of the entropy still needs it."""
    z = torch.randn(30, 4)
    slopes = []
    for decay in (0.5, 1 - 1e-9):
        torch.manual_seed(3)
        quantizer = VectorConfig(12, 4, codebook=EmaCodebookConfig(decay=decay), entropy=SoftEntropyConfig(0.5)).build()
        x = z.clone().requires_grad_()
        slopes.append(torch.autograd.grad(quantizer(x).losses["entropy"], x)[0])
    torch.testing.assert_close(slopes[0], slopes[1])


def test_latents_that_are_not_finite_do_not_reach_the_codebook() -> None:
    z = torch.randn(60, 4)
    spoiled = torch.cat([z, torch.full((3, 4), math.nan), torch.tensor([[math.inf, 0, 0, 0]])])
    first, second = ema(revive_below=0.95, start="kmeans"), ema(revive_below=0.95, start="kmeans")
    for latents in (z, z + 1, z + 2):
        torch.manual_seed(4)
        first(latents)
        torch.manual_seed(4)
        second(spoiled + (latents - z)[0])
    for ours, theirs in zip(first.state_dict().values(), second.state_dict().values()):
        torch.testing.assert_close(ours, theirs)


# -- start -------------------------------------------------------------------------------------------------------------

CODEBOOKS = [
    GradientCodebookConfig(start="kmeans"),
    EmaCodebookConfig(start="kmeans"),
    InPlaceCodebookConfig(learning_rate=1e-9, start="kmeans"),
    FrozenCodebookConfig(start="kmeans"),
]


@pytest.mark.parametrize("codebook", CODEBOOKS, ids=lambda config: config.kind)
@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_kmeans_start_finds_the_clusters_of_the_first_training_batch(codebook, metric: str) -> None:
    if codebook.kind == "in_place" and metric == "cosine":
        return
    centres = F.normalize(torch.randn(6, 5), dim=-1) if metric == "dot" else 10 * torch.eye(6, 5) - 3
    z = (centres[:, None] + 0.01 * torch.randn(6, 30, 5)).flatten(0, 1)
    quantizer = VectorConfig(6, 5, metric, codebook).build()  # type: ignore[arg-type]
    quantizer.eval()(z)
    assert not bool(quantizer.codebook.started)  # type: ignore[union-attr]
    quantizer.train()(z[:0])
    assert not bool(quantizer.codebook.started)  # type: ignore[union-attr]
    for _ in range(20):  # k-means may start badly
        again = VectorConfig(6, 5, metric, codebook).build()  # type: ignore[arg-type]
        again(z)
        found = again.codes().detach()  # type: ignore[operator]
        wanted = F.normalize(centres, dim=-1) if metric == "cosine" else centres
        if float(torch.cdist(wanted, found).min(dim=1).values.max()) < 0.1:
            break
    else:
        pytest.fail("no run found the clusters")
    if codebook.kind == "ema":
        torch.testing.assert_close(again.ema.count, torch.full((6,), 30.0))  # type: ignore[union-attr]
    state = {key: value.clone() for key, value in again.state_dict().items()}
    loaded = VectorConfig(6, 5, metric, codebook).build()  # type: ignore[arg-type]
    loaded.load_state_dict(state)
    loaded(z + 100)  # a start happens once
    if codebook.kind in ("gradient", "frozen"):
        assert torch.equal(loaded.codebook.weight, state["codebook.weight"])  # type: ignore[union-attr]


def test_kmeans_start_with_fewer_latents_than_codes() -> None:
    quantizer = ema(start="kmeans")
    z = torch.randn(5, 4)
    quantized = quantizer(z)
    torch.testing.assert_close(quantized.codes, z)
    assert bool((quantizer.ema.count > 0).all())
    assert bool((quantizer.codebook.weight.norm(dim=1) > 0.1).all())  # codes without a latent do not fall to 0


# -- gradient codebook -------------------------------------------------------------------------------------------------


def test_dead_codes_of_a_gradient_codebook_are_put_on_latents() -> None:
    quantizer = VectorConfig(12, 4, codebook=GradientCodebookConfig(revive_below=0.9, decay=0.5)).build()
    z = torch.randn(40, 4) * 0.1 + 5
    before = quantizer.codebook.weight.detach().clone()  # type: ignore[union-attr]
    quantized = quantizer(z)
    (quantized.losses["codebook"] + quantized.losses["commitment"]).backward()
    used = quantized.indices.unique().tolist()
    weight = quantizer.codebook.weight.detach()  # type: ignore[union-attr]
    for k in range(12):
        if k in used:
            assert torch.equal(weight[k], before[k])
        else:
            assert bool((z == weight[k]).all(1).any())
    hot = F.one_hot(quantized.indices, 12).float().sum(0)
    expected = torch.where(0.5 + 0.5 * hot < 0.9, 1.0, 0.5 + 0.5 * hot)
    torch.testing.assert_close(quantizer.ema.count, expected)  # type: ignore[union-attr]


def test_fewer_latents_than_dead_codes_revive_as_many_each_once() -> None:
    quantizer = ema(decay=0.1, revive_below=0.9)
    z = torch.randn(3, 4) + 50
    quantizer(z)
    on_latents = [(quantizer.codebook.weight == latent).all(1).sum().item() for latent in z]
    assert on_latents == [1, 1, 1]


# -- in place, frozen, affine ------------------------------------------------------------------------------------------


def test_in_place_steps_are_gradient_descent_with_momentum_before_use() -> None:
    config = VectorConfig(12, 4, codebook=InPlaceCodebookConfig(learning_rate=5.0, momentum=0.8))
    quantizer, z = config.build(), torch.randn(90, 4)
    weight = nn.Parameter(quantizer.codebook.weight.clone())  # type: ignore[union-attr, operator]
    optimizer = torch.optim.SGD([weight], lr=5.0, momentum=0.8)
    for step in range(3):
        latents = z + 0.1 * step
        optimizer.zero_grad()
        F.mse_loss(weight[torch.cdist(latents, weight).argmin(1)], latents).backward()
        optimizer.step()
        quantized = quantizer(latents)
        torch.testing.assert_close(quantizer.codebook.weight, weight.detach())  # type: ignore[union-attr]
        assert torch.equal(quantized.indices, torch.cdist(latents, weight).argmin(1))
        assert "codebook" not in quantized.losses


def test_a_frozen_codebook_stays() -> None:
    quantizer = VectorConfig(12, 4, codebook=FrozenCodebookConfig()).build()
    before = quantizer.codebook.weight.clone()  # type: ignore[union-attr, operator]
    quantized = quantizer(torch.randn(20, 4))
    assert torch.equal(quantizer.codebook.weight, before)  # type: ignore[union-attr]
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    assert "codebook" not in quantized.losses


def test_affine_codes_have_the_running_moments_of_the_latents() -> None:
    quantizer = VectorConfig(40, 3, affine=AffineConfig(latent_decay=0.5, codebook_decay=0.5)).build()
    z = torch.randn(500, 3) * torch.tensor([0.1, 1, 10]) + torch.tensor([5.0, 0, -5])
    quantizer(z)
    codes = quantizer.codes()  # type: ignore[operator]
    torch.testing.assert_close(codes.mean(0), z.mean(0))
    torch.testing.assert_close(codes.var(0, correction=0), z.var(0, correction=0))
    quantizer(z + 4)
    torch.testing.assert_close(quantizer.codes().mean(0), z.mean(0) + 2)  # type: ignore[operator]
    quantizer.eval()(z + 100)
    torch.testing.assert_close(quantizer.codes().mean(0), z.mean(0) + 2)  # type: ignore[operator]


def test_an_affine_running_codebook_moves_to_the_means_of_its_latents() -> None:
    config = VectorConfig(4, 2, codebook=EmaCodebookConfig(decay=0.01), affine=AffineConfig(0.0, 0.0))
    quantizer, z = config.build(), torch.randn(400, 2) * 3 + 7
    indices = quantizer(z).indices
    affine = quantizer.affine
    means = torch.stack([z[indices == k].mean(0) for k in range(4)])
    torch.testing.assert_close(affine.codes(quantizer.codebook.weight), means, rtol=0.02, atol=0.05)  # type: ignore


# -- further losses, sampling ------------------------------------------------------------------------------------------


@given(st.sampled_from(["all", "active"]), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_orthogonality_is_its_definition(codes: str, size: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = VectorConfig(size, dim, orthogonality=OrthogonalityConfig(codes)).build()  # type: ignore[arg-type]
    quantized = quantizer(torch.randn(5, dim))
    weight = quantizer.codebook.weight  # type: ignore[union-attr]
    chosen = weight[quantized.indices.unique()] if codes == "active" else weight
    unit = chosen / chosen.norm(dim=1, keepdim=True)  # type: ignore[operator, union-attr]
    expected = (unit @ unit.T - torch.eye(len(unit))).square().sum() / len(unit) ** 2
    torch.testing.assert_close(quantized.losses["orthogonality"], expected)
    slope, wanted = (torch.autograd.grad(loss, weight)[0] for loss in (quantized.losses["orthogonality"], expected))
    torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-5)


def test_orthogonality_of_a_sample_of_codes() -> None:
    quantizer = VectorConfig(30, 4, orthogonality=OrthogonalityConfig(maximum=2)).build()
    values = {round(quantizer(torch.randn(5, 4)).losses["orthogonality"].item(), 6) for _ in range(10)}
    weight = F.normalize(quantizer.codebook.weight.detach(), dim=-1)  # type: ignore[union-attr]
    possible = {round(2 * float(a @ b) ** 2 / 4, 6) for i, a in enumerate(weight) for b in weight[:i]}
    assert len(values) > 3
    assert values <= possible | {value + 1e-6 for value in possible} | {value - 1e-6 for value in possible}


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_cross_entropy_is_that_of_the_chosen_code(metric: str) -> None:
    config = VectorConfig(12, 4, metric, cross_entropy=CrossEntropyConfig(temperature=0.3))  # type: ignore[arg-type]
    quantizer, z = config.build(), torch.randn(20, 4, requires_grad=True)
    quantized = quantizer(z)
    weight = quantizer.codebook.weight  # type: ignore[union-attr]
    x, codes = (F.normalize(v, dim=-1) if metric == "cosine" else v for v in (z, weight))  # type: ignore[arg-type]
    scores = x @ codes.T if metric == "dot" else -(x[:, None] - codes[None]).square().sum(-1)
    expected = F.cross_entropy(scores / 0.3, quantized.indices)
    torch.testing.assert_close(quantized.losses["cross_entropy"], expected)
    slopes = torch.autograd.grad(quantized.losses["cross_entropy"], (z, weight))
    for slope, wanted in zip(slopes, torch.autograd.grad(expected, (z, weight))):
        torch.testing.assert_close(slope, wanted, rtol=1e-4, atol=1e-6)


def test_further_losses_are_of_training_alone() -> None:
    config = VectorConfig(
        12, 4, entropy=SoftEntropyConfig(), cross_entropy=CrossEntropyConfig(), orthogonality=OrthogonalityConfig()
    )
    assert config.build().eval()(torch.randn(5, 4)).losses.keys() == {"commitment", "codebook"}


def test_diversity_is_the_entropy_term_without_samples() -> None:
    quantizer = VectorConfig(8, 4, entropy=SoftEntropyConfig(temperature=0.7, sample_weight=0.0)).build()
    quantized = quantizer(torch.randn(30, 4))
    expected = -quantized.statistics["codebook_entropy"]
    torch.testing.assert_close(quantized.losses["entropy"].detach(), expected)


def test_sampling_draws_from_the_soft_assignment_in_training_alone() -> None:
    quantizer = VectorConfig(5, 3, sampling=SamplingConfig(temperature=0.8)).build()
    with torch.no_grad():
        quantizer.codebook.weight.normal_()  # type: ignore[union-attr, operator]
    z = torch.randn(3)
    indices = quantizer(z.expand(20000, 3)).indices
    wanted = (-(z - quantizer.codebook.weight).square().sum(-1) / 0.8).softmax(0)  # type: ignore[operator]
    torch.testing.assert_close(indices.bincount(minlength=5) / 20000, wanted.detach(), rtol=0, atol=0.015)
    quantizer.eval()
    assert quantizer(z.expand(100, 3)).indices.unique().tolist() == [int(wanted.argmax())]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codebook_size": 0}, "a size and dim >= 1"),
        ({"codebook": EmaCodebookConfig(), "orthogonality": OrthogonalityConfig()}, "a gradient codebook.*got 'ema'"),
        ({"codebook": EmaCodebookConfig(), "gradient": StraightThroughConfig(0.5)}, "synchronous update, got 'ema'"),
        ({"codebook": InPlaceCodebookConfig(), "metric": "cosine"}, "another metric than cosine"),
        ({"codebook": InPlaceCodebookConfig(), "affine": AffineConfig()}, "no affine reparametrisation"),
        ({"affine": AffineConfig(), "metric": "cosine"}, "another metric than cosine"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VectorConfig(**settings)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (GradientCodebookConfig, {"kmeans_iterations": 0}, "at least 1 iteration"),
        (GradientCodebookConfig, {"revive_below": -1.0}, "revive_below >= 0"),
        (GradientCodebookConfig, {"decay": 1.0}, "a decay in"),
        (EmaCodebookConfig, {"decay": 0.0}, "a decay in"),
        (EmaCodebookConfig, {"smoothing": -1.0}, "smoothing >= 0"),
        (InPlaceCodebookConfig, {"learning_rate": 0.0}, "a learning_rate > 0"),
        (InPlaceCodebookConfig, {"momentum": 1.0}, "a momentum in"),
        (FrozenCodebookConfig, {"kmeans_iterations": 0}, "at least 1 iteration"),
        (AffineConfig, {"latent_decay": 1.0}, "decays in"),
        (SamplingConfig, {"temperature": 0.0}, "a temperature > 0"),
        (SoftEntropyConfig, {"sample_weight": -1.0}, "sample_weight >= 0"),
        (OrthogonalityConfig, {"maximum": 0}, "a maximum >= 1"),
        (StraightThroughConfig, {"synchronous": 1.5}, "a synchronous share"),
    ],
)
def test_options_that_cannot_work_are_refused(config: type, settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**settings)


# -- cost --------------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.size = max(self.size, value.untyped_storage().nbytes() // value.element_size())
        return result


@pytest.mark.parametrize(
    "settings",
    [
        {"codebook": EmaCodebookConfig(revive_below=1.0, start="kmeans"), "entropy": SoftEntropyConfig(0.5)},
        {"codebook": GradientCodebookConfig(revive_below=1.0), "cross_entropy": CrossEntropyConfig()},
        {"orthogonality": OrthogonalityConfig(), "sampling": SamplingConfig()},
        {"codebook": InPlaceCodebookConfig()},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_a_training_step_has_no_table_of_latents_by_codes(monkeypatch: pytest.MonkeyPatch, settings: dict) -> None:
    monkeypatch.setattr(import_module("zoo.ops.soft_assignment"), "_CHUNK", 1 << 14)
    quantizer, z = VectorConfig(1024, 4, **settings).build(), torch.randn(1024, 4, requires_grad=True)
    with LargestTensor() as largest:
        quantized = quantizer(z)
        (quantized.codes.sum() + sum(quantized.losses.values(), torch.zeros(()))).backward()
    assert 4096 <= largest.size <= 1 << 16


def test_without_smoothing_a_code_is_its_sum_over_its_count() -> None:
    """Mimi's rule: running sums over running counts, of which the least is 1e-5."""
    torch.manual_seed(0)
    quantizer = VectorConfig(5, 3, codebook=EmaCodebookConfig(smoothing=0.0)).build().train()
    with torch.no_grad():
        quantizer.ema.count.copy_(torch.tensor([3.0, 2.0, 1.0, 1e-9, 0.5]))
        quantizer.ema.total.normal_()
        quantizer.codebook.weight.copy_(quantizer.ema.total / quantizer.ema.count.clamp_min(1e-5)[:, None])
    z = torch.randn(20, 3)
    counts, total = quantizer.ema.count.clone(), quantizer.ema.total.clone()
    chosen = F.one_hot(quantizer(z[None]).indices[0], 5).float()
    counts, total = 0.99 * counts + 0.01 * chosen.sum(0), 0.99 * total + 0.01 * chosen.T @ z
    torch.testing.assert_close(quantizer.codebook.weight.data, total / counts.clamp_min(1e-5)[:, None])
