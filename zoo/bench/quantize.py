"""The nearest code of each vector: the lookup of every vector quantizer, at the codebook sizes of published models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.bench import exact
from zoo.bench.peers import GRAPH, PURE_TORCH, VQP, ZOO, cuda_graph, has_faiss, pure_torch, vqp_quantizer
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.ops import nearest_code

# times faster than vector-quantize-pytorch, by width: (on the CPU, on the CPU in pure torch, on a GPU)
_FACTORS = {8: (80, 8, 20), 32: (45, 8, 10), 256: (8, 3, 4)}


@dataclass(frozen=True)
class Data:
    x: Tensor  # (N, D)
    codes: Tensor  # (K, D)


@dataclass(frozen=True)
class Quantize(Problem[Data]):
    """N vectors of width D against K codes, all from a normal distribution."""

    codes: int
    dim: int
    vectors: int
    device: str

    @property
    def name(self) -> str:
        return f"K={self.codes} D={self.dim} N={self.vectors}"

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        sizes = (self.vectors, self.dim), (self.codes, self.dim)
        return Data(*(torch.randn(size, generator=generator).to(self.device) for size in sizes))

    def contenders(self) -> Sequence[Contender[Data]]:
        found = [Contender(ZOO, _ours)]
        if self.device == "cuda":
            found.append(Contender(GRAPH, lambda data: cuda_graph(_ours(data))))
        found.append(Contender(PURE_TORCH, _pure_torch))
        found.append(Contender(VQP, _vqp, "vector_quantize_pytorch"))
        found.append(Contender("torch.cdist", _cdist, "torch"))
        if self.device == "cpu" and has_faiss():
            found.append(Contender("faiss", _faiss, "faiss"))
        return found

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        return {name: exact.judge_indices(data.x, data.codes, indices) for name, indices in outputs.items()}

    def work(self) -> Work:
        flops = 2.0 * self.vectors * self.codes * self.dim
        return Work(flops, 4.0 * (self.vectors + self.codes) * self.dim + 8.0 * self.vectors)

    def goals(self) -> Sequence[Goal]:
        fast, plain, gpu = _FACTORS[self.dim]
        if self.device == "cuda":
            return (
                Goal(ZOO, "time", VQP, gpu),
                Goal(GRAPH, "time", VQP, gpu),
                Goal(ZOO, "time", "torch.cdist"),
                Goal(ZOO, "limit", bound=50),
                Goal(GRAPH, "limit", bound=50),
                Goal(ZOO, "memory", bound=4.0 * self.vectors * self.codes / 16),  # far from a table of N x K
            )
        return (
            Goal(ZOO, "time", VQP, fast),
            Goal(PURE_TORCH, "time", VQP, plain),
            Goal(ZOO, "time", "faiss"),
            Goal(ZOO, "time", "torch.cdist"),
            Goal(ZOO, "memory", bound=16e6),
            Goal(PURE_TORCH, "memory", bound=16e6),
        )

    def items(self) -> tuple[int, str]:
        return self.vectors, "vectors"


def problems(case: str, device: str, *, quick: bool) -> list[Quantize]:
    codes, vectors, dims = (512, 256, (8, 32)) if quick else (16384, 4096, (8, 32, 256))
    return [Quantize(codes, dim, vectors, device) for dim in dims]


def _ours(data: Data) -> Callable[[], Tensor]:
    return lambda: nearest_code(data.x, data.codes)


def _pure_torch(data: Data) -> Callable[[], Tensor]:
    return pure_torch(_ours(data))


def _cdist(data: Data) -> Callable[[], Tensor]:
    return lambda: torch.cdist(data.x, data.codes).argmin(dim=1)


def _vqp(data: Data) -> Callable[[], Tensor]:
    quantizer = vqp_quantizer(data.codes).eval()

    @torch.no_grad()
    def run() -> Tensor:
        return quantizer(data.x[None])[1][0]

    return run


def _faiss(data: Data) -> Callable[[], Any]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(data.codes.shape[1])
    index.add(data.codes.numpy())
    return lambda: index.search(data.x.numpy(), 1)[1][:, 0]
