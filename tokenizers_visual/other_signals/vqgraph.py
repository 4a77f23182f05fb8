"""VQGraph: every node of a graph becomes a code that stands for its neighbourhood, from which an MLP can then learn.

Paper: VQGraph, ICLR 2024 (OpenReview h6Tz85BqRI). Original: YangLing0818/VQGraph (no licence stated, no weights
published); its quantizer is checked by tests/parity/vqgraph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.graph_conv import GraphConv
from zoo.ops.soft_assignment import assignment_logits
from zoo.quantizers import (
    CodebookConfig,
    DirectionCodebookConfig,
    EmaCodebookConfig,
    Quantized,
    QuantizerConfig,
    Vector,
    VectorConfig,
)
from zoo.registry import register
from zoo.structured import StructuredOutput, StructuredTokenizer

_BLOCK = 1 << 20  # inner products of nodes held at a time


@dataclass(frozen=True)
class Graph:
    """Nodes with features, and directed edges; an undirected edge is two.

    Attributes:
        features: (N, F) floating point, N >= 1.
        edges: (2, E) int64, from the first row to the second.

    Raises:
        ValueError: another shape or type, or an edge of a node that does not exist.
    """

    features: Tensor
    edges: Tensor

    def __post_init__(self) -> None:
        features, edges = self.features, self.edges
        if features.ndim != 2 or 0 in features.shape or not features.is_floating_point():
            raise ValueError(
                f"features: expected floating point (nodes, F), got {features.dtype} {tuple(features.shape)}"
            )
        if edges.ndim != 2 or len(edges) != 2 or edges.dtype != torch.int64:
            raise ValueError(f"edges: expected int64 (2, E), got {edges.dtype} {tuple(edges.shape)}")
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < len(features):
            raise ValueError(
                f"edges: expected nodes in [0, {len(features)}), got {int(edges.min())} to {int(edges.max())}"
            )


@dataclass(frozen=True)
class NodeReconstruction:
    """What the codes of a graph's nodes tell of it.

    Attributes:
        features: (N, F) the nodes as their first graph convolution gave them.
        embedding: (N, F), whose inner products tell how likely an edge is (see `edge_scores`).
    """

    features: Tensor
    embedding: Tensor

    def edge_scores(self) -> Tensor:
        """(N, N) in [0, 1], symmetric: inner products of the embeddings, from their least to their largest."""
        products = self.embedding @ self.embedding.T
        low, high = products.aminmax()
        return (products - low) / (high - low)


@dataclass(frozen=True)
class VQGraphConfig(Config):
    """Sizes of the network; the defaults are those of the original for Cora."""

    features: int = 1433  # width of a node's features
    hidden: int = 128  # width of the second graph convolution
    classes: int = 7
    dropout: float = 0.0
    quantizer: QuantizerConfig = VectorConfig(
        codebook_size=5000,
        dim=1433,
        metric="cosine",
        codebook=DirectionCodebookConfig(decay=0.8),
        unit_vectors=False,
    )

    def __post_init__(self) -> None:
        sizes = (self.features, self.hidden, self.classes)
        self.require(min(sizes) >= 1, "features, hidden and classes >= 1", sizes)
        self.require(0 <= self.dropout < 1, "a dropout in [0, 1)", self.dropout)


@dataclass(frozen=True)
class VQGraphOutput(StructuredOutput):
    """As every output, and the nodes' logits (N, classes)."""

    logits: Tensor


@register("vqgraph")
class VQGraph(StructuredTokenizer):
    """Graphs to a token a node. With a quantizer of another width than the features' linear maps stand around it."""

    modality = "graph"
    config: VQGraphConfig  # type: ignore[assignment]

    def __init__(self, config: VQGraphConfig) -> None:
        super().__init__(config, config.quantizer)
        width, dim = config.features, config.quantizer.dim
        self.encoder = GraphConv(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.to_latent = nn.Identity() if dim == width else nn.Linear(width, dim)
        self.from_codes = nn.Identity() if dim == width else nn.Linear(dim, width)
        self.to_embedding = nn.Linear(width, width)
        self.to_features = nn.Linear(width, width)
        self.classifier_conv = GraphConv(width, config.hidden)
        self.classifier = nn.Linear(config.hidden, config.classes)

    def check(self, signal: Any) -> None:
        if not isinstance(signal, Graph):
            raise ValueError(f"expected a Graph, got {type(signal).__name__}")
        if signal.features.shape[1] != self.config.features:
            raise ValueError(f"expected {self.config.features} features of a node, got {signal.features.shape[1]}")
        if not bool(signal.features.isfinite().all()):
            raise ValueError("expected finite features, got NaN or infinity")

    def latent(self, signal: Graph) -> Tensor:
        return self.to_latent(self.hidden(signal))

    def hidden(self, graph: Graph) -> Tensor:
        """The nodes (N, F) after the first graph convolution, which codes have to tell again."""
        return self.dropout(F.relu(self.encoder(graph.features.to(self.dtype), graph.edges)))

    def reconstruct(self, codes: Tensor) -> NodeReconstruction:
        codes = self.from_codes(codes)
        return NodeReconstruction(self.to_features(codes), self.to_embedding(codes))

    def classify(self, embedding: Tensor, edges: Tensor) -> Tensor:
        """Embeddings (N, F) of a reconstruction and edges (2, E) -> logits (N, classes)."""
        return self.classifier(F.relu(self.classifier_conv(embedding, edges)))

    def forward(self, signal: Graph) -> VQGraphOutput:
        output = super().forward(signal)
        logits = self.classify(output.reconstruction.embedding, signal.edges)
        return VQGraphOutput(output.reconstruction, output.latent, output.quantized, logits)

    def similarities(self, latent: Tensor) -> Tensor:
        """Cosines (N, K) of latents (N, D) and all codes: what the MLP that is to learn from this model is taught.

        Of a quantizer with the Euclidean metric, the negative distances.

        Raises:
            ValueError: a model whose quantizer has no codebook.
        """
        latent, codes = latent.float(), codebook(self)
        if self.quantizer.metric == "euclidean":
            return assignment_logits(latent, codes, 1.0, "distance")
        return assignment_logits(F.normalize(latent, dim=-1), F.normalize(codes, dim=-1), 1.0, "dot")


def codebook(model: VQGraph) -> Tensor:
    """The codes (K, D) of a model.

    Raises:
        ValueError: its quantizer has none.
    """
    if not isinstance(model.quantizer, Vector):
        raise ValueError(f"expected a quantizer with a codebook, got {model.quantizer.config.kind}")
    return model.quantizer.codes()


# -- losses --------------------------------------------------------------------------------------------------------


def losses(output: VQGraphOutput, graph: Graph, target: Tensor, labels: Tensor, known: Tensor) -> dict[str, Tensor]:
    """The losses of training, unweighted; the original adds them with 1, 0.001, 0.03 and (commitment) 0.25.

    Args:
        output: of the model for the graph.
        target: (N, F), `hidden` of the graph.
        labels: (N,) int64 classes.
        known: (N,) bool, the nodes whose class is known.

    Returns:
        `classification`, `features`, `edges`, and those of the quantizer.
    """
    return {
        "classification": F.cross_entropy(output.logits[known], labels[known]),
        "features": F.mse_loss(output.reconstruction.features, target),
        "edges": edge_loss(output.reconstruction.embedding, graph.edges),
        **output.quantized.losses,
    }


def edge_loss(embedding: Tensor, edges: Tensor) -> Tensor:
    """Root mean square of the adjacency matrix less `NodeReconstruction.edge_scores`, without either matrix.

    The squares of all N^2 scores follow from sums over nodes and edges, in float64; only the least and the largest
    inner product are searched for, a block at a time, so memory does not grow with N^2.

    Args:
        embedding: (N, F).
        edges: (2, E) int64; an edge that stands twice counts once.

    Raises:
        ValueError: embeddings that are all alike, whose scores are not defined.
    """
    nodes, count = embedding.double(), len(embedding)
    source, target = edges.unique(dim=1)
    low, high = ((nodes[i] * nodes[j]).sum() for i, j in _extremes(embedding.detach()))
    span = high - low
    if not bool(span > 0):
        raise ValueError("expected embeddings whose inner products differ, got equal ones")
    squares, total = (nodes.T @ nodes).square().sum(), nodes.sum(0).square().sum()
    of_scores = (squares - 2 * low * total + (count * low).square()) / span.square()
    at_edges = ((nodes[source] * nodes[target]).sum() - len(source) * low) / span
    mean = (of_scores - 2 * at_edges + len(source)) / count**2
    return mean.clamp_min(0).sqrt().to(embedding.dtype)


def _extremes(embedding: Tensor) -> list[tuple[int, int]]:
    """The pairs of nodes with the least and the largest inner product."""
    found: list[tuple[float, int]] = [(float("inf"), 0), (-float("inf"), 0)]
    rows = max(1, _BLOCK // len(embedding))
    for start in range(0, len(embedding), rows):
        products = (embedding[start : start + rows] @ embedding.T).flatten()
        for which, (value, place) in enumerate((products.min(0), products.max(0))):
            nearer = value < found[0][0] if which == 0 else value > found[1][0]
            if bool(nearer):
                found[which] = float(value), start * len(embedding) + int(place)
    return [divmod(place, len(embedding)) for _, place in found]


def soft_token_loss(student: Tensor, similarities: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Divergence of an MLP's soft assignment from the teacher's, times temperature^2, mean over nodes.

    Teacher and student are compared with the codes in different ways, as in the original: by cosine and by distance.

    Args:
        student: (N, D) hidden features of the MLP, of the width of the codes.
        similarities: (N, K), those of the teacher.
        codes: (K, D), the teacher's `codebook`.
        temperature: T > 0.
    """
    logits = assignment_logits(student, codes, temperature, "distance")
    taught = (similarities / temperature).log_softmax(-1)
    divergence = F.kl_div(logits.log_softmax(-1), taught, reduction="batchmean", log_target=True)
    return divergence * temperature**2


# -- the original --------------------------------------------------------------------------------------------------


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "use_cosine_sim": False, "decay": 0.8, "threshold_ema_dead_code": 0, "commitment_weight": 1.0,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> VQGraphConfig:
    """The config of the original quantizer's constructor arguments.

    Raises:
        ValueError: several heads, or codes of another width than the latents.
    """
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    dim, size, decay, revive_below = (
        kwargs[name] for name in ("dim", "codebook_size", "decay", "threshold_ema_dead_code")
    )
    if kwargs.get("heads", 1) != 1 or (kwargs.get("codebook_dim") or dim) != dim:
        raise ValueError(f"expected one head of width {dim}, got {kwargs}")
    if kwargs["use_cosine_sim"]:
        codebook: CodebookConfig = DirectionCodebookConfig(decay=decay, revive_below=revive_below)
        quantizer = VectorConfig(size, dim, "cosine", codebook, unit_vectors=False)
    else:
        quantizer = VectorConfig(size, dim, codebook=EmaCodebookConfig(decay=decay, revive_below=revive_below))
    return VQGraphConfig(features=dim, hidden=dim, quantizer=quantizer)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original's quantizer weighs its loss itself."""
    weight = meta["original"]["kwargs"].get("commitment_weight", _ORIGINAL_DEFAULTS["commitment_weight"])
    return {"loss.commit": weight * quantized.losses["commitment"]}


KEY_MAP = KeyMap(
    {
        "_codebook.embed": "quantizer.codebook.weight",
        "_codebook.cluster_size": "quantizer.ema.count",
        "_codebook.embed_avg": "quantizer.ema.total",  # of the Euclidean metric
        "_codebook.initted": None,
    },
    transforms={
        "quantizer.codebook.weight": lambda weight: weight[0],  # of one head
        "quantizer.ema.count": lambda count: count[0],
        "quantizer.ema.total": lambda total: total[0],
    },
)
