"""Graph convolutions are their definitions, written with dense matrices."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo.layers.graph_conv import GraphConv, SAGEConv, mean_by_group


def random_graph(nodes: int, edges: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges, and the matrix whose entry (i, j) counts the edges from j to i."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(nodes, (2, edges), generator=generator)
    counts = torch.zeros(nodes, nodes)
    for source, target in ends.T.tolist():
        counts[target, source] += 1
    return torch.randn(nodes, 5, generator=generator), ends, counts


graphs = st.builds(random_graph, st.integers(1, 6), st.integers(0, 12), st.integers(0, 99))


@given(graphs)
def test_gcn_is_a_matrix_product(case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, edges, counts = case
    conv = GraphConv(5, 3)
    entering, leaving = (counts.sum(axis).clamp_min(1).rsqrt() for axis in (1, 0))
    expected = conv.linear(entering[:, None] * (counts @ (leaving[:, None] * x)))
    torch.testing.assert_close(conv(x, edges), expected)


@given(graphs)
def test_graph_sage_is_a_matrix_product(case: tuple[Tensor, Tensor, Tensor]) -> None:
    x, edges, counts = case
    conv = SAGEConv(5, 3)
    means = counts @ conv.project(x).relu() / counts.sum(1, keepdim=True).clamp_min(1)
    expected = F.normalize(conv.from_neighbours(means) + conv.from_self(x), dim=-1)
    torch.testing.assert_close(conv(x, edges), expected)


@given(graphs, st.randoms())
def test_the_order_of_edges_and_the_names_of_nodes_do_not_matter(case: tuple[Tensor, Tensor, Tensor], rng) -> None:
    x, edges, _ = case
    names = list(range(len(x)))
    rng.shuffle(names)
    place = torch.tensor(names)
    for conv in (GraphConv(5, 3), SAGEConv(5, 3)):
        renamed = torch.empty_like(x)
        renamed[place] = x
        got = conv(renamed, place[edges].flip(1))
        torch.testing.assert_close(got[place], conv(x, edges))


def test_means_by_group() -> None:
    x = torch.tensor([[1.0], [2.0], [6.0]])
    assert mean_by_group(x, torch.tensor([2, 0, 2]), 4).flatten().tolist() == [2.0, 0.0, 3.5, 0.0]
