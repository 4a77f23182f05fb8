"""VQGraph: the loss of edges without their matrix, soft tokens for an MLP, and what a code may stand for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenizers_visual.other_signals import vqgraph
from tokenizers_visual.other_signals.vqgraph import Graph, NodeReconstruction, VQGraph, VQGraphConfig
from zoo.quantizers import DirectionCodebookConfig, FiniteScalarConfig, VectorConfig

CODEBOOK = VectorConfig(
    codebook_size=9, dim=6, metric="cosine", codebook=DirectionCodebookConfig(decay=0.8), unit_vectors=False
)
CONFIG = VQGraphConfig(features=6, hidden=5, classes=3, quantizer=CODEBOOK)


def ring(count: int) -> Graph:
    """A ring of nodes, edges both ways."""
    here = torch.arange(count)
    there = here.roll(-1)
    edges = torch.cat([torch.stack([here, there]), torch.stack([there, here])], dim=1)
    return Graph(torch.randn(count, 6, generator=torch.Generator().manual_seed(0)), edges)


def dense_edge_loss(embedding: Tensor, edges: Tensor) -> Tensor:
    adjacency = torch.zeros(len(embedding), len(embedding), dtype=embedding.dtype)
    adjacency[edges[0], edges[1]] = 1
    scores = NodeReconstruction(embedding, embedding).edge_scores()
    return F.mse_loss(scores, adjacency).sqrt()


@given(st.integers(2, 12), st.integers(0, 40), st.integers(0, 99))
def test_the_loss_of_edges_is_that_of_the_whole_matrix_and_so_is_its_gradient(n: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_()
    edges = torch.randint(n, (2, count), generator=generator)
    loss, expected = vqgraph.edge_loss(embedding, edges), dense_edge_loss(embedding, edges)
    torch.testing.assert_close(loss, expected)
    slopes = [torch.autograd.grad(value, embedding)[0] for value in (loss, expected)]
    torch.testing.assert_close(*slopes)


def test_the_search_for_the_extremes_goes_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, edges = torch.randn(30, 4), torch.randint(30, (2, 50))
    whole = vqgraph.edge_loss(embedding, edges)
    monkeypatch.setattr(vqgraph, "_BLOCK", 64)
    torch.testing.assert_close(vqgraph.edge_loss(embedding, edges), whole)


def test_embeddings_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="inner products differ"):
        vqgraph.edge_loss(torch.ones(4, 3), torch.zeros(2, 1, dtype=torch.int64))


def test_soft_tokens_are_taught_by_their_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, latent, codes = (torch.randn(n, 6, generator=generator) for n in (7, 7, 9))
    cosines = F.cosine_similarity(latent[:, None], codes[None], dim=-1)
    taught, learnt = (cosines / 0.5).softmax(-1), (-torch.cdist(student, codes) / 0.5).softmax(-1)
    expected = (taught * (taught / learnt).log()).sum(-1).mean() * 0.25
    torch.testing.assert_close(vqgraph.soft_token_loss(student, cosines, codes, 0.5), expected)


def test_similarities_are_cosines_and_their_largest_is_the_token() -> None:
    torch.manual_seed(0)
    model, graph = VQGraph(CONFIG).eval(), ring(8)
    with torch.no_grad():
        similarities = model.similarities(model.latent(graph))
    assert similarities.shape == (8, 9)
    assert torch.equal(similarities.argmax(-1), model.encode([graph]).indices[0])
    fsq = VQGraph(CONFIG.replace(quantizer=FiniteScalarConfig(levels=(3, 3))))
    with pytest.raises(ValueError, match="expected a quantizer with a codebook, got finite_scalar"):
        fsq.similarities(torch.zeros(1, 2))


def test_nodes_with_the_same_neighbourhood_get_the_same_token() -> None:
    torch.manual_seed(0)
    model = VQGraph(CONFIG).eval()
    graph = ring(8)
    halves = Graph(graph.features[:4].repeat(2, 1), graph.edges)  # nodes i and i + 4 see the same
    indices = model.encode([halves]).indices[0]
    assert torch.equal(indices[:4], indices[4:])


def test_training_learns_classes_and_edges() -> None:
    torch.manual_seed(0)
    model, graph = VQGraph(CONFIG).train(), ring(12)
    labels, known = torch.arange(12) % 3, torch.arange(12) < 9
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def losses() -> dict[str, Tensor]:
        return vqgraph.losses(model(graph), graph, model.hidden(graph), labels, known)

    first = losses()
    assert set(first) == {"classification", "features", "edges", "commitment"}
    for _ in range(60):
        optimizer.zero_grad()
        found = losses()
        total = found["classification"] + found["features"] + found["edges"] + 0.25 * found["commitment"]
        total.backward()
        optimizer.step()
    last = losses()
    assert all(float(last[name].detach()) < float(first[name].detach()) for name in ("classification", "edges"))


@pytest.mark.parametrize(
    ("features", "edges", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 0, dtype=torch.int64), "features: expected"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), "edges: expected int64"),
        (torch.zeros(3, 2), torch.zeros(2, 2), "edges: expected int64"),
        (torch.zeros(3, 2), torch.tensor([[0], [3]]), r"expected nodes in \[0, 3\), got 0 to 3"),
    ],
)
def test_what_is_no_graph_is_refused(features: Tensor, edges: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph(features, edges)
