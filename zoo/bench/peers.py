"""What several cases need of the contenders: their names, and how ours is kept to pure torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

ZOO = "zoo"  # as a user gets it, with the compiled kernel where there is one
PURE_TORCH = "zoo, pure torch"
GRAPH = "zoo, CUDA graph"  # the same kernels without Python between them
VQP = "vector-quantize-pytorch"


def has_faiss() -> bool:
    """Whether faiss is installed (it is no dependency)."""
    return importlib.util.find_spec("faiss") is not None


def vqp_quantizer(codes: Tensor, **settings: Any) -> nn.Module:
    """vector-quantize-pytorch's VectorQuantize with a codebook (K, D), on its device."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=codes.shape[1], codebook_size=len(codes), **settings).to(codes.device)
    with torch.no_grad():
        quantizer._codebook.embed.copy_(codes[None])
        quantizer._codebook.embed_avg.copy_(codes[None])
    return quantizer


def has_sklearn() -> bool:
    """Whether scikit-learn is installed (it comes with the extra `demo`)."""
    return importlib.util.find_spec("sklearn") is not None


def pure_torch(action: Callable[[], T]) -> Callable[[], T]:
    """The action without the compiled kernels."""

    def run() -> T:
        before = os.environ.get("ZOO_COMPILED")
        os.environ["ZOO_COMPILED"] = "0"
        try:
            return action()
        finally:
            if before is None:
                del os.environ["ZOO_COMPILED"]
            else:
                os.environ["ZOO_COMPILED"] = before

    return run


def cuda_graph(action: Callable[[], T]) -> Callable[[], T]:
    """The action captured as a CUDA graph, which is replayed; its results lie in the same memory each time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is compiled or allocated at first
            action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = action()

    def run() -> T:
        graph.replay()
        return results

    return run
