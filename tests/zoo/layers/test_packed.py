"""Packed weights: values of torch's, copies that follow their weights and go with them."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from zoo.layers import packed
from zoo.layers.channels_inside import WaveConv1d
from zoo.layers.packed import Linear


@given(rows=st.integers(1, 70), width=st.integers(1, 40), out=st.integers(1, 40), bias=st.booleans())
def test_linear_map_is_that_of_torch(rows: int, width: int, out: int, bias: bool) -> None:
    layer, x = Linear(width, out, bias=bias), torch.randn(2, rows, width)
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.bfloat16 not in packed._TYPES, reason="no CPU that multiplies bfloat16")
@given(
    rows=st.integers(1, 70), width=st.integers(1, 300), out=st.integers(1, 40), bias=st.booleans(),
    gelu=st.sampled_from([None, "none", "tanh"]),
)  # fmt: skip
def test_linear_map_in_bfloat16_is_rounded_once(
    rows: int, width: int, out: int, bias: bool, gelu: packed.GELU | None
) -> None:
    layer, x = Linear(width, out, bias=bias).bfloat16(), torch.randn(2, rows, width).bfloat16()
    with torch.no_grad():
        y, exact = layer(x, gelu=gelu), copy.deepcopy(layer).double()(x.double())
        exact = exact if gelu is None else F.gelu(exact, approximate=gelu)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "tanh"])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_gelu_of_a_linear_map_is_that_of_torch(
    kind: packed.GELU, inference: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_WIDE", wide)
    layer, x = Linear(24, 48), 4 * torch.randn(2, 33, 24)
    with torch.set_grad_enabled(not inference):
        y = layer(x, gelu=kind)
    assert y.requires_grad is not inference
    expected = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()), approximate=kind)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
def test_gated_maps_are_those_of_torch(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_WIDE", wide)
    gate, value, x = Linear(24, 48), Linear(24, 48, bias=False), 4 * torch.randn(2, 33, 24)
    with torch.no_grad():
        expected = F.silu(F.linear(x, gate.weight, gate.bias)) * F.linear(x, value.weight)
        torch.testing.assert_close(packed.silu_gated(x, gate, value), expected, rtol=1e-5, atol=1e-5)


def test_gradients_pass() -> None:
    layer, x = Linear(3, 4), torch.randn(2, 3, requires_grad=True)
    y = layer(x)
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("make", [lambda: Linear(64, 48), lambda: WaveConv1d(64, 48, 3)], ids=["linear", "conv"])
def test_every_change_of_a_weight_counts(make: object) -> None:
    layer = make().eval()  # type: ignore[operator]
    x = torch.randn(1, 64, 64)
    with torch.no_grad():
        layer.bias.zero_()
        first = layer(x)
        for change in (
            lambda: layer.weight.mul_(2),
            lambda: layer.weight.data.mul_(2),  # torch keeps no count of this one
            lambda: setattr(layer.weight, "data", layer.weight.data * 2),
            lambda: layer.load_state_dict({key: value * 2 for key, value in layer.state_dict().items()}),
        ):
            change()
            first = first * 2
            torch.testing.assert_close(layer(x), first, rtol=1e-5, atol=1e-5)


def test_copies_go_with_their_owner() -> None:
    gc.collect()
    before = len(packed._kept)
    conv = WaveConv1d(3, 4, 5)
    with torch.no_grad():
        conv(torch.randn(1, 3, 9))
        assert len(packed._kept) == before + 1
        again = copy.deepcopy(conv)
        again(torch.randn(1, 3, 9))
    assert len(packed._kept) == before + 2
    del conv, again
    gc.collect()
    assert len(packed._kept) == before


def test_state_and_type_are_those_of_a_linear_layer() -> None:
    layer = Linear(3, 4)
    with torch.no_grad():
        layer(torch.randn(1, 3))
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    assert isinstance(layer, torch.nn.Linear)


def test_other_precisions_and_autocast_run_as_before() -> None:
    layer, x = Linear(3, 4), torch.randn(5, 3)
    with torch.no_grad():
        double = copy.deepcopy(layer).double()
        assert torch.equal(double(x.double()), F.linear(x.double(), double.weight, double.bias))
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
