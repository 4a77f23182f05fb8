"""Attention for streams: its window and rotary positions against their definitions, in pieces as in one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from zoo.layers import inference
from zoo.layers.in_place import unobserved
from zoo.layers.packed import Linear
from zoo.layers.transformer import (
    MLP,
    AttentionState,
    CausalAttention,
    CausalTransformer,
    GatedMLP,
    RMSNorm,
    TransformerBlock,
    add_stochastic_depth,
    rotate,
    through,
    windowed_attention,
)


def by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    """One softmax a query, over the keys in its window."""
    earlier = k.shape[2] - q.shape[2]
    results = []
    for i in range(q.shape[2]):
        seen = slice(max(0, earlier + i - window + 1), earlier + i + 1)
        scores = torch.einsum("bhc,bhnc->bhn", q[:, :, i], k[:, :, seen]) / q.shape[-1] ** 0.5
        results.append(torch.einsum("bhn,bhnc->bhc", scores.softmax(-1), v[:, :, seen]))
    return torch.stack(results, dim=2)


@given(count=st.integers(1, 40), earlier=st.integers(0, 20), window=st.integers(1, 9), seed=st.integers(0, 999))
def test_windowed_attention_is_its_definition(count: int, earlier: int, window: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 3, count, 4, generator=generator)
    k, v = torch.randn(2, 2, 3, count + earlier, 4, generator=generator)
    torch.testing.assert_close(windowed_attention(q, k, v, window), by_definition(q, k, v, window))


def test_rotation_turns_pairs_of_neighbours_and_makes_scores_relative() -> None:
    x = torch.zeros(1, 1, 3, 4)
    x[..., 0] = 1.0
    x[..., 2] = 1.0
    turned = rotate(x, 5, base=100.0)[0, 0]
    for n in range(3):
        fast, slow = torch.tensor(5.0 + n), torch.tensor((5.0 + n) / 10)
        expected = torch.stack([fast.cos(), fast.sin(), slow.cos(), slow.sin()])
        torch.testing.assert_close(turned[n], expected)
    swapped = [0, 2, 1, 3]
    torch.testing.assert_close(rotate(x[..., swapped], 5, 100.0, "halves")[..., swapped], rotate(x, 5, 100.0))
    q, k = torch.randn(2, 1, 1, 6, 8)
    scores = rotate(q, 0) @ rotate(k, 0).transpose(-1, -2)
    torch.testing.assert_close(rotate(q, 9) @ rotate(k, 9).transpose(-1, -2), scores, rtol=1e-4, atol=1e-5)


@given(chunks=st.lists(st.integers(1, 12), min_size=1, max_size=6), window=st.integers(1, 8))
def test_a_stream_gives_what_the_whole_gives_and_keeps_no_more_than_the_window(chunks: list[int], window: int) -> None:
    torch.manual_seed(0)
    attention = CausalAttention(8, 2, window)
    block = TransformerBlock(8, attention, MLP(8, 16, bias=False), layer_scale=0.5)
    x = torch.randn(2, sum(chunks), 8)
    state = AttentionState()
    with torch.no_grad():
        streamed = torch.cat([block(part, state) for part in x.split(chunks, dim=1)], dim=1)
        torch.testing.assert_close(streamed, block(x), rtol=1e-5, atol=1e-5)
    assert state.position == x.shape[1]
    assert state.keys is not None
    assert state.keys.shape[2] <= max(0, window - 1)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("activation", [torch.nn.GELU, torch.nn.SiLU])
@pytest.mark.parametrize("inference", [False, True])
def test_kept_positions_are_those_of_all(
    wide: bool, layer_scale: float | None, activation: type[torch.nn.Module], inference: bool
) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, MLP(16, 32, activation), layer_scale=layer_scale)
    x = torch.randn(3, 9, 16)
    mask = (torch.rand(3, 1, 9 if wide else 1, 9) < 0.7) | torch.eye(9, dtype=torch.bool)[:1]
    untouched = x.clone()
    with torch.set_grad_enabled(not inference):
        whole = block(x, mask=mask)
        torch.testing.assert_close(block(x, mask=mask, kept=slice(2, 6)), whole[:, 2:6], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(block(x, kept=slice(-3, None)), block(x)[:, -3:], rtol=1e-5, atol=1e-6)
    assert torch.equal(x, untouched)


def test_a_block_is_its_definition() -> None:
    torch.manual_seed(0)
    block = TransformerBlock(16, 4, MLP(16, 32)).double()
    x = torch.randn(2, 7, 16, dtype=torch.float64)
    after = x + block.attention(block.norm1(x))
    hidden = F.gelu(block.mlp.fc1(block.norm2(after)))
    expected = after + block.mlp.fc2(hidden)
    torch.testing.assert_close(block(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(block.float()(x.float()), expected.float(), rtol=1e-5, atol=1e-5)


def test_root_mean_square_norm_is_the_same_where_no_gradient_is_asked_for() -> None:
    norm = RMSNorm(24, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    for x in (torch.randn(2, 5, 24), torch.randn(2, 24, 5).transpose(1, 2) * 1e-3, torch.zeros(1, 24)):
        with torch.no_grad():
            found = norm(x)
        torch.testing.assert_close(found, norm(x).detach(), rtol=1e-5, atol=1e-6)


def test_no_later_position_and_none_before_the_window_is_seen() -> None:
    torch.manual_seed(0)
    attention = CausalAttention(8, 2, 4)
    x = torch.randn(1, 30, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(attention(x)[0, 20].sum(), x)
    seen = slope[0].abs().sum(-1).nonzero()[:, 0]
    assert seen.tolist() == [17, 18, 19, 20]


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm, RMSNorm])
def test_block_is_its_formula(norm: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, MLP(8, 16, torch.nn.SiLU), norm=norm, eps=1e-6, layer_scale=0.25)
    x = torch.randn(2, 5, 8)
    middle = x + 0.25 * block.attention(block.norm1(x))
    expected = middle + 0.25 * block.mlp.fc2(F.silu(block.mlp.fc1(block.norm2(middle))))
    torch.testing.assert_close(block(x), expected)


@given(chunks=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_a_transformer_streams(chunks: list[int]) -> None:
    torch.manual_seed(0)
    transformer = CausalTransformer(8, 2, 2, 16, 5, base=100.0, layer_scale=0.5)
    x = torch.randn(1, 8, sum(chunks))
    stream = transformer.stream()
    with torch.no_grad():
        streamed = torch.cat([stream.step(part) for part in x.split(chunks, dim=2)], dim=2)
        torch.testing.assert_close(streamed, transformer(x) if x.shape[2] else x, rtol=1e-5, atol=1e-5)


def test_stochastic_depth_rises_over_a_stack_and_drops_whole_items_in_training() -> None:
    torch.manual_seed(0)
    stack = torch.nn.Sequential(*(TransformerBlock(8, 2, MLP(8, 8)) for _ in range(5)))
    add_stochastic_depth(torch.nn.ModuleDict({"inner": stack}), 0.4)
    assert [block.drop_rate for block in stack] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block, x = stack[-1], torch.randn(1, 3, 8).expand(4000, -1, -1)
    with torch.no_grad():
        whole = block.eval()(x)
        found = block.train()(x)
    kinds = found.flatten(1).unique(dim=0)
    assert len(kinds) == 4  # either branch or none, or both
    share = (found == x).all(2).all(1).float().mean()
    assert share == pytest.approx(0.16, abs=0.03)  # neither: 0.4 squared
    attended = x + block.attention(block.norm1(x)) / 0.6
    both = attended + block.mlp(block.norm2(attended)) / 0.6
    assert any(torch.allclose(kind, both[0].detach().flatten(), atol=1e-5) for kind in kinds)
    rested = x + block.attention(block.norm1(x))
    torch.testing.assert_close(whole, (rested + block.mlp(block.norm2(rested))).detach())


def test_stochastic_depth_is_refused_where_it_cannot_be() -> None:
    blocks = torch.nn.Sequential(TransformerBlock(8, 2, MLP(8, 8)), TransformerBlock(8, 2, MLP(8, 8)))
    with pytest.raises(ValueError, match=r"stochastic_depth: expected a value in \[0, 1\), got 1.0"):
        add_stochastic_depth(blocks, 1.0)
    with pytest.raises(ValueError, match="expected a model with transformer blocks, got none"):
        add_stochastic_depth(torch.nn.Sequential(torch.nn.Linear(2, 2)), 0.1)


class Adapted(torch.nn.Module):
    """A linear map and what an adapter adds to it, called as adapters of other libraries call it."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer, self.change = layer, torch.nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        return self.layer(x, *arguments, **options) + self.change(x)


@pytest.mark.parametrize("kind", [MLP, GatedMLP])
@pytest.mark.parametrize("inference", [False, True])
def test_what_an_adapter_or_a_hook_changes_comes_before_the_activation(
    kind: type[MLP] | type[GatedMLP], inference: bool
) -> None:
    plain, x = kind(6, 10, bias=True), torch.randn(3, 4, 6)
    hidden = plain.fc1(x) + 1
    activated = F.silu(hidden) * plain.fc3(x) if isinstance(plain, GatedMLP) else F.gelu(hidden)
    expected = plain.fc2(activated).detach()
    with torch.inference_mode(inference):
        plain(x)
        handle = plain.fc1.register_forward_hook(lambda layer, given, found: found + 1)
        torch.testing.assert_close(plain(x), expected)
        handle.remove()
        plain.fc1 = Adapted(plain.fc1)
        torch.nn.init.zeros_(plain.fc1.change.weight)
        torch.nn.init.ones_(plain.fc1.change.bias)
        torch.testing.assert_close(plain(x), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp_is_its_definition(bias: bool) -> None:
    mlp, x = GatedMLP(17, 41, bias=bias), torch.randn(2, 5, 17)
    expected = mlp.fc2(F.silu(mlp.fc1(x)) * mlp.fc3(x))
    torch.testing.assert_close(mlp(x), expected)
    kept = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected)
        mlp.fc3.weight.mul_(2)  # a packed copy follows its weight
        torch.testing.assert_close(mlp(x), mlp.fc2(F.silu(mlp.fc1(x)) * mlp.fc3(x)))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("mlp", [MLP, GatedMLP])
@pytest.mark.parametrize("mask", ["none", "shared", "of each item"])
def test_a_stack_in_slices_gives_what_it_gives_in_one(
    mlp: type[torch.nn.Module], mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(TransformerBlock(16, 2, mlp(16, 64)) for _ in range(3)).requires_grad_(False)
    x = torch.randn(5, 9, 16)
    seen = {"none": None, "shared": torch.rand(9, 9) > 0.3, "of each item": torch.rand(5, 1, 1, 9) > 0.3}[mask]
    if seen is not None:
        seen[..., 0] = True
    kept, before = slice(2, 6), x.clone()
    expected = x
    for block in blocks:
        expected = block(expected, mask=seen)
    monkeypatch.setattr(inference, "_AT_HAND", 2 * 4 * 9 * 16)
    lengths: list[int] = []
    with torch.no_grad():
        torch.testing.assert_close(through(blocks, x, mask=seen, kept=kept), expected[:, kept])
        with unobserved(blocks.modules()):
            torch.testing.assert_close(through(blocks, x, mask=seen, kept=kept), expected[:, kept])
        blocks[1].mlp.register_forward_hook(lambda layer, given, found: lengths.append(len(found)))
        with unobserved(blocks.modules()):
            torch.testing.assert_close(through(blocks, x, mask=seen, kept=kept), expected[:, kept])
    assert lengths == [5]
    assert torch.equal(x, before)


def test_slices_are_as_few_as_memory_allows_and_no_batch_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "_AT_HAND", 100)
    lengths: list[int] = []

    def doubled(x: torch.Tensor, other: torch.Tensor | None) -> torch.Tensor:
        lengths.append(len(x))
        return 2 * x

    for count, largest, expected in ((5, 40, [3, 2]), (3, 1000, [1, 1, 1]), (4, 25, [4])):
        x = torch.randn(count, 3)
        with torch.no_grad(), unobserved(()):
            assert torch.equal(inference.in_slices(doubled, x, largest), 2 * x)
        assert lengths == expected
        lengths.clear()
        inference.in_slices(doubled, x, largest)  # gradients may be asked for
        assert lengths == [count]
        lengths.clear()
