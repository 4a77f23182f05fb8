"""Attention of many heads: the compiled kernel against its definition in float64 and torch, and without it."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from onlooker import Onlooker
from torch import Tensor

from zoo.ops import attention
from zoo.ops.attention import attend

needs_kernel = pytest.mark.skipif(not attention.available(), reason="no C++ compiler")
Parts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The queries that the kernel has been called with."""
    seen: list[torch.Size] = []
    run = attention._run

    def counted(
        q: Tensor, k: Tensor, v: Tensor, open_keys: int | None, scale: float | None, library: ctypes.CDLL | None
    ) -> Tensor:
        seen.append(q.shape)
        return run(q, k, v, open_keys, scale, library)

    monkeypatch.setattr(attention, "_run", counted)
    return seen


def made(batch: int, heads: int, queries: int, keys: int, width: int, seed: int = 0) -> Parts:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, count, width, generator=generator) for count in (queries, keys, keys))
    return q, k, v


def by_definition(q: Tensor, k: Tensor, v: Tensor, seen: int | None = None, scale: float | None = None) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if seen is not None:
        queries, keys = scores.shape[-2:]
        for query in range(queries):
            scores[..., query, max(seen, query + 1 + keys - queries) :] = -torch.inf
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    queries=st.integers(1, 130),
    keys=st.integers(40, 210),
    width=st.integers(1, 90),
    size=st.sampled_from([0.1, 1.0, 6.0]),
    seed=st.integers(0, 99),
)
def test_it_is_as_exact_as_torchs(
    batch: int, heads: int, queries: int, keys: int, width: int, size: float, seed: int
) -> None:
    q, k, v = made(batch, heads, queries, keys, width, seed)
    q = q * size
    exact = by_definition(q, k, v)
    with torch.no_grad():
        found = attend(q, k, v)
        plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= 4 * (plain - exact).abs().max() + 2e-6


@needs_kernel
@pytest.mark.parametrize("sizes", [(1, 1, 700, 2048, 8), (2, 3, 289, 289, 64), (1, 2, 1, 49, 64), (5, 1, 97, 1500, 16)])
def test_every_query_is_reached_by_the_kernel(
    sizes: tuple[int, int, int, int, int], threads: None, calls: list[torch.Size]
) -> None:
    q, k, v = made(*sizes)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v).double(), by_definition(q, k, v), rtol=1e-5, atol=2e-6)
        if sizes[2] <= sizes[3]:
            exact = by_definition(q, k, v, sizes[3] // 3)
            torch.testing.assert_close(attend(q, k, v, sizes[3] // 3).double(), exact, rtol=1e-5, atol=2e-6)
    assert set(calls) == {q.shape}


@given(
    queries=st.integers(1, 130),
    more=st.integers(0, 90),
    share=st.floats(0, 1),
    width=st.integers(1, 40),
    scale=st.floats(0.01, 2.0),
    seed=st.integers(0, 99),
)
def test_some_keys_are_seen_by_all_and_others_from_their_own_place_on(
    queries: int, more: int, share: float, width: int, scale: float, seed: int
) -> None:
    q, k, v = made(2, 2, queries, queries + more, width, seed)
    seen = round(share * (queries + more))
    exact = by_definition(q, k, v, seen, scale)
    torch.testing.assert_close(attend(q.double(), k.double(), v.double(), seen, scale=scale), exact)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, seen, scale=scale).double(), exact, rtol=1e-4, atol=2e-5)


def test_keys_that_all_see_are_a_number_that_there_is() -> None:
    q, k, v = made(1, 1, 50, 60, 8)
    for seen in (-1, 61):
        with pytest.raises(ValueError, match=rf"expected 0 to 60 keys .*, got {seen}, 50"):
            attend(q, k, v, seen)
    with pytest.raises(ValueError, match=r"expected 0 to 50 keys .*, got 3, 60"):
        attend(k, q, q, 3)


@needs_kernel
def test_heads_are_read_where_they_lie(calls: list[torch.Size]) -> None:
    q, k, v = torch.randn(2, 60, 3 * 4 * 24).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    q = q[:, :, 5:40]
    shared = v[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, shared).double(), by_definition(q, k, shared), rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(
            attend(q.mT.contiguous().mT, k, v).double(), by_definition(q, k, v), rtol=1e-5, atol=2e-6
        )
    assert len(calls) == 1


def test_what_is_no_number_reaches_the_queries_that_see_it_alone() -> None:
    q, k, v = made(2, 2, 50, 60, 16)
    q[0, 1, 7, 3] = float("nan")
    v[1, 0, 9, 2] = float("inf")
    with torch.no_grad():
        found = attend(q, k, v).unflatten(2, (2, 16))
    assert found[0, 7, 1].isnan().all()
    assert found[1, :, 0, 2].isinf().all()
    found[0, 7, 1], found[1, :, 0, 2] = 0, 0
    assert found.isfinite().all()
    k[0, 0, 3] = float("nan")
    with torch.no_grad():
        assert attend(q, k, v).unflatten(2, (2, 16))[0, :, 0].isnan().all()


def test_one_key_may_outweigh_all_others() -> None:
    q, k, v = made(1, 1, 50, 64, 16)
    k[0, 0, 63] = 1e3 * q[0, 0, 0]
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v)[0, 0], v[0, 0, 63])


@needs_kernel
def test_without_the_kernel_values_are_the_same(monkeypatch: pytest.MonkeyPatch, calls: list[torch.Size]) -> None:
    parts = made(2, 3, 50, 70, 24)
    with torch.no_grad():
        expected = attend(*parts)
        monkeypatch.setenv("ZOO_COMPILED", "0")
        torch.testing.assert_close(attend(*parts), expected, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


def test_gradients_masks_other_precisions_and_modes_are_torchs(calls: list[torch.Size]) -> None:
    q, k, v = (part.double().requires_grad_() for part in made(1, 2, 3, 50, 4))
    assert torch.autograd.gradcheck(attend, (q, k, v))
    mask = torch.rand(1, 1, 3, 50) > 0.5
    with torch.no_grad():
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        assert torch.equal(attend(q, k, v, mask), expected)
        halves = [part.bfloat16() for part in (q, k, v)]
        assert attend(*halves).dtype == torch.bfloat16
        assert attend(*(part[:0].float() for part in (q, k, v))).shape == (0, 3, 8)
    with torch.no_grad(), Onlooker() as onlooker:
        attend(q.float(), k.float(), v.float())
        with torch.device("meta"):
            attend(q.float(), k.float(), v.float())
    assert onlooker.seen.count(F.scaled_dot_product_attention) == 2
    assert calls == []


@needs_kernel
def test_a_default_device_changes_nothing(calls: list[torch.Size]) -> None:
    q, k, v = made(2, 3, 50, 70, 24)
    with torch.no_grad():
        expected = attend(q, k, v)
        with torch.device("meta"):
            assert torch.equal(attend(q, k, v), expected)
    assert len(calls) == 2
