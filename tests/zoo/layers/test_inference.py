"""Inference takes faster ways than training: the results are the same, and nobody's tensors change."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from zoo.layers.in_place import added, silu, unobserved
from zoo.layers.inference import channels_last, conv_of_doubled, norm_silu
from zoo.layers.maskgit import MaskGITBlock, MaskGITDecoder
from zoo.layers.packed import Linear, linear
from zoo.layers.resnet import ResBlock, Upsample
from zoo.layers.vqgan import Decoder, Encoder, levels


def plainly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


@given(
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 2),
    channels=st.integers(1, 6),
    outputs=st.integers(1, 5),
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_a_convolution_of_a_doubled_map_is_the_same_with_joined_taps(
    seed: int, batch: int, channels: int, outputs: int, size: tuple[int, int], bias: bool, last: bool
) -> None:
    torch.manual_seed(seed)
    x, weight = torch.randn(batch, channels, *size), torch.randn(outputs, channels, 3, 3)
    shift = torch.randn(outputs) if bias else None
    x = x.to(memory_format=torch.channels_last) if last else x
    with torch.no_grad():
        found = conv_of_doubled(x, weight, shift)
    torch.testing.assert_close(found, plainly(x, weight, shift), atol=1e-4, rtol=1e-5)


def test_joined_taps_follow_the_weight() -> None:
    layer, x = Upsample(4), torch.randn(1, 4, 3, 5)
    for change in (lambda w: w.mul_(2), lambda w: w.copy_(torch.randn_like(w))):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plainly(x, layer.conv.weight, layer.conv.bias), atol=1e-5, rtol=1e-5)
            change(layer.conv.weight)
    layer.conv.weight = nn.Parameter(torch.randn(4, 4, 3, 3))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plainly(x, layer.conv.weight, layer.conv.bias), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        twin = copy.deepcopy(layer)
        torch.testing.assert_close(twin(x), plainly(x, twin.conv.weight, twin.conv.bias), atol=1e-5, rtol=1e-5)


def test_training_is_bit_for_bit_the_plain_convolution() -> None:
    layer, x = Upsample(4), torch.randn(2, 4, 6, 5, requires_grad=True)
    found, expected = layer(x), plainly(x, layer.conv.weight, layer.conv.bias)
    assert torch.equal(found, expected)
    parameters = [x, *layer.parameters()]
    gradients = torch.autograd.grad(found.square().sum(), parameters)
    assert all(map(torch.equal, gradients, torch.autograd.grad(expected.square().sum(), parameters)))


@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(1,), (3,), (64,), (65,), (2, 40), (8, 8), (2, 3, 30), (0,), (0, 70)]),
    width=st.integers(1, 40),
    outputs=st.integers(1, 40),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_a_linear_map_is_the_same_in_inference(
    seed: int, shape: tuple[int, ...], width: int, outputs: int, bias: bool, strided: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(*shape, 2 * width)[..., ::2] if strided else torch.randn(*shape, width)
    weight, shift = torch.randn(outputs, width), torch.randn(outputs) if bias else None
    with torch.no_grad():
        found = linear(x, weight, shift)
    assert found.shape == (*shape, outputs)
    torch.testing.assert_close(found, F.linear(x, weight, shift), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_of_numbers_stay_what_they_are(dtype: torch.dtype) -> None:
    x, layer = torch.randn(80, 6, dtype=dtype), Linear(6, 4).to(dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
        up, maps = Upsample(3).to(dtype), torch.randn(1, 3, 4, 4, dtype=dtype)
        found = up(maps)
    assert found.dtype == dtype
    expected = plainly(maps.double(), up.conv.weight.double(), up.conv.bias.double())
    torch.testing.assert_close(found.double(), expected, atol=3e-2 if dtype == torch.bfloat16 else 1e-10, rtol=3e-2)


def overwritten() -> bool:
    x = torch.randn(5)
    kept, expected = x.clone(), F.silu(x)
    assert torch.equal(silu(x), expected)
    y, more = x.clone(), torch.randn(5)
    assert torch.equal(added(y, more), x + more)
    assert torch.equal(y, x) == torch.equal(x, kept)
    return not torch.equal(x, kept)


def test_results_lie_in_place_only_where_neither_gradients_nor_hooks_need_what_was_there() -> None:
    network = nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU())
    assert not overwritten()
    with unobserved(network.modules()):
        assert not overwritten()
    with torch.no_grad():
        assert not overwritten()
        with unobserved(network.modules()):
            assert overwritten()
            with ThreadPoolExecutor(1) as others:
                assert not others.submit(torch.no_grad()(overwritten)).result()
            for register in (network[0].register_forward_hook, network[1].register_forward_pre_hook):
                hook = register(lambda *_: None)
                with unobserved(network.modules()):
                    assert not overwritten()
                hook.remove()
            assert overwritten()
        with register_module_forward_hook(lambda *_: None), unobserved(network.modules()):
            assert not overwritten()
        assert not overwritten()


@pytest.mark.parametrize(
    "block",
    [ResBlock(8, 8, 4), ResBlock(8, 4, 4), ResBlock(8, 8, 4, dims=1), MaskGITBlock(8, 8, 4), MaskGITBlock(8, 4, 4)],
    ids=["same", "narrower", "time", "maskgit", "maskgit narrower"],
)
def test_blocks_leave_their_input_alone_and_give_what_training_gives(block: nn.Module) -> None:
    x = torch.randn(2, 8, 6) if isinstance(block.conv1, nn.Conv1d) else torch.randn(2, 8, 6, 5)
    kept = x.clone()
    with torch.no_grad(), unobserved(block.modules()):
        found = block(x)
        again = block(x)
    assert torch.equal(x, kept)
    assert torch.equal(found, again)
    torch.testing.assert_close(found, block(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("block", [ResBlock(16, 16, 4), MaskGITBlock(16, 16, 4)], ids=["resnet", "maskgit"])
def test_blocks_of_large_maps_leave_their_input_alone_and_give_what_training_gives(block: nn.Module) -> None:
    x = torch.randn(2, 16, 200, 180).to(memory_format=torch.channels_last)
    kept = x.clone()
    with torch.no_grad(), unobserved(block.modules()):
        found = block(x)
    assert torch.equal(x, kept)
    torch.testing.assert_close(found, block(x), atol=1e-5, rtol=1e-5)


def test_a_norm_that_is_more_than_its_weights_is_called() -> None:
    x = torch.randn(1, 16, 200, 180).to(memory_format=torch.channels_last)
    norm = nn.GroupNorm(4, 16)
    with torch.no_grad():
        expected = F.silu(norm(x) + 1)
        norm.register_forward_hook(lambda norm, given, found: found + 1)
        torch.testing.assert_close(norm_silu(norm, x), expected)
        bare = nn.GroupNorm(4, 16, affine=False)
        torch.testing.assert_close(norm_silu(bare, x), F.silu(bare(x)))


def network(kind: str) -> nn.Module:
    if kind == "encoder":
        return Encoder(3, 8, levels([8, 16], 1, [False, True]), 6, groups=4)
    return Decoder(3, levels([16, 8], 1, [True, False]), 3, groups=4) if kind == "decoder" else MaskGITDecoder(
        3, [16, 8], 1, 4
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["encoder", "decoder", "maskgit decoder"])
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_give_in_inference_what_they_give_in_training(kind: str, frozen: bool) -> None:
    torch.manual_seed(0)
    model, x = network(kind).eval().requires_grad_(not frozen), torch.rand(2, 3, 8, 12)
    expected = model(x)
    with torch.no_grad():
        found = model(x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    if kind != "encoder":
        assert found.is_contiguous()  # images as users expect them in memory


def test_layouts_change_only_in_inference() -> None:
    x = torch.rand(1, 3, 4, 4)
    assert channels_last(x) is x
    with torch.no_grad():
        assert channels_last(x).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(channels_last(x), x)


def test_compiled_graphs_take_the_usual_way() -> None:
    layer, x = Upsample(2), torch.randn(1, 2, 3, 3)
    seen: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad():
        compiled = torch.compile(layer, backend=note, fullgraph=True)
        torch.testing.assert_close(compiled(x), layer(x), atol=1e-5, rtol=1e-5)
    assert any("interpolate" in name for name in seen)
    assert not any("transpose" in name for name in seen)
