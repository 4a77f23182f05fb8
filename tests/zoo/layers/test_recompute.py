"""Recomputed activations: the same results and gradients in less than half the memory, at nearly the same speed."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.layers.recompute import RecomputeActivations


class Held:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(run: Callable[[], Tensor], module: nn.Module) -> tuple[int, Tensor]:
    """Bytes that wait for the backward pass of what `run` gives, the parameters left out; and what it gives."""
    held: weakref.WeakSet[Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Held:
        held.add(item := Held(tensor))
        return item

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda item: item.tensor):
        result = run()
    storages = {item.tensor.untyped_storage().data_ptr(): item.tensor.untyped_storage().nbytes() for item in held}
    for parameter in module.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values()), result


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor | None]:
    module.zero_grad()
    loss.backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_llamagen_step_keeps_at_most_half(dtype: torch.dtype) -> None:
    model = zoo.create_model("llamagen_vq_f16", channels=32, latent_channels=32, norm_groups=8).train()
    images = torch.rand(1, 3, 64, 64) * 2 - 1

    def step(recompute: bool) -> tuple[int, Tensor]:
        def run() -> Tensor:
            with RecomputeActivations() if recompute else nullcontext():
                output = model(images)
            return output.reconstruction.float().square().mean() + output.quantized.losses["commitment"]

        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return kept_bytes(run, model)

    (plain, loss), (less, recomputed) = step(False), step(True)
    assert less <= plain / 2
    assert torch.equal(loss, recomputed)
    expected = gradients(model, loss)
    assert all(a is b or torch.equal(a, b) for a, b in zip(gradients(model, recomputed), expected, strict=True))  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_llamagen_step_takes_hardly_longer() -> None:
    model = zoo.create_model("llamagen_vq_f16").train()
    images = torch.rand(1, 3, 64, 64) * 2 - 1

    def seconds(recompute: bool) -> float:
        start = time.process_time()
        with RecomputeActivations() if recompute else nullcontext():
            output = model(images)
        output.reconstruction.square().mean().backward()
        return time.process_time() - start

    times = [(seconds(False), seconds(True)) for _ in range(5)]
    assert min(recomputed for _, recomputed in times) <= 1.15 * min(plain for plain, _ in times)


class Pattern(nn.Module):
    """One norm, activation and convolution."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.same = nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


PATTERNS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "strided": lambda m, x: m.conv(F.silu(m.norm(x))),
    "by name": lambda m, x: m.same(F.leaky_relu(m.norm(x), negative_slope=0.2)),
    "without norm": lambda m, x: m.conv(F.gelu(x * 2, approximate="tanh")),
    "used twice": lambda m, x: m.conv(h := F.silu(m.norm(x))) + m.conv(h) + h[..., ::2, ::2],
    "norm alone": lambda m, x: m.conv(m.norm(x)),
    "dropout": lambda m, x: m.conv(F.dropout(F.silu(m.norm(x)), 0.0, training=True)),
    "in place": lambda m, x: m.conv(F.relu(m.norm(x), inplace=True)),
    "two activations": lambda m, x: m.conv(F.relu(F.silu(m.norm(x)))),
    "enlarged": lambda m, x: m.conv(F.interpolate(x * 2, scale_factor=2.0, mode="nearest")),
    "enlarged activation": lambda m, x: m.conv(F.interpolate(F.silu(m.norm(x)), scale_factor=2.0, mode="bilinear")),
    "without affine": lambda m, x: m.conv(F.silu(F.group_norm(x, 2))),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_results_and_gradients_are_the_same(name: str) -> None:
    module, x = Pattern(PATTERNS[name]), torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = module(x)
    with RecomputeActivations():
        actual = module(x)
    assert torch.equal(actual, expected)
    used = [x, *module.parameters()]
    wanted = torch.autograd.grad(expected.square().sum(), used, allow_unused=True)
    found = torch.autograd.grad(actual.square().sum(), used, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_frozen_layers_pass_the_gradient_on() -> None:
    module, x = Pattern(PATTERNS["strided"]).requires_grad_(False), torch.randn(2, 4, 6, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    with RecomputeActivations():
        (actual,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(actual, expected)


def test_dropout_that_drops_is_left_alone() -> None:
    module, x = Pattern(lambda m, x: m.conv(F.dropout(F.silu(m.norm(x)), 0.5))), torch.randn(2, 4, 6, 6)
    torch.manual_seed(3)
    expected = module(x)
    torch.manual_seed(3)
    with RecomputeActivations():
        assert torch.equal(module(x), expected)
