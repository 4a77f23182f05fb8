"""Lloyd's algorithm, from the same start and for the same number of iterations: how codebooks are started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo import ops
from zoo.bench import exact
from zoo.bench.peers import PURE_TORCH, VQP, ZOO, has_faiss, has_sklearn, pure_torch
from zoo.bench.problem import Contender, Problem, Verdict, Work

_TOLERANCE = 1e-4  # of the mean squared distance: near ties part ways, and lead to other centres of equal worth


@dataclass(frozen=True)
class Data:
    x: Tensor  # (N, D)
    start: Tensor  # (K, D), vectors of x


@dataclass(frozen=True)
class KMeans(Problem[Data]):
    """N vectors from a normal distribution, K clusters that start on the first K vectors."""

    clusters: int
    dim: int
    vectors: int
    iterations: int
    device: str

    @property
    def name(self) -> str:
        return f"K={self.clusters} D={self.dim} N={self.vectors}, {self.iterations} iterations"

    def data(self) -> Data:
        x = torch.randn(self.vectors, self.dim, generator=torch.Generator().manual_seed(0)).to(self.device)
        return Data(x, x[: self.clusters].clone())

    def contenders(self) -> Sequence[Contender[Data]]:
        found = [Contender(ZOO, self._ours), Contender(PURE_TORCH, self._pure_torch)]
        found.append(Contender(VQP, self._vqp, "vector_quantize_pytorch"))
        if self.device == "cpu" and has_faiss():
            found.append(Contender("faiss", self._faiss, "faiss"))
        if self.device == "cpu" and has_sklearn():
            found.append(Contender("scikit-learn", self._sklearn, "sklearn.cluster"))
        return found

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """The mean squared distance to the nearest centre, against that of the algorithm in float64."""
        centres = data.start.double()
        for _ in range(self.iterations):
            indices = exact.nearest(data.x, centres)[0]
            sums = torch.zeros_like(centres).index_add_(0, indices, data.x.double())
            counts = torch.bincount(indices, minlength=self.clusters)[:, None]
            centres = torch.where(counts > 0, sums / counts, centres)
        expected = exact.nearest(data.x, centres)[1].mean()
        verdicts = {}
        for name, found in outputs.items():
            found = torch.as_tensor(found, device=data.x.device)
            if found.shape != centres.shape:
                verdicts[name] = Verdict(False, f"wrong: centres of shape {tuple(found.shape)}")
                continue
            got = exact.nearest(data.x, found)[1].mean()
            verdicts[name] = exact.judge_close({"mean squared distance": (got, expected)}, _TOLERANCE)
        return verdicts

    def work(self) -> Work:
        products = 2.0 * self.vectors * self.clusters * self.dim
        return Work(products * self.iterations, 4.0 * self.vectors * self.dim * self.iterations)

    def items(self) -> tuple[int, str]:
        return self.vectors * self.iterations, "vector iterations"

    def _ours(self, data: Data) -> Callable[[], Tensor]:
        return lambda: ops.kmeans(data.x, self.clusters, iterations=self.iterations, init=data.start)[0]

    def _pure_torch(self, data: Data) -> Callable[[], Tensor]:
        return pure_torch(self._ours(data))

    def _vqp(self, data: Data) -> Callable[[], Tensor]:
        from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

        def start(samples: Tensor, count: int) -> Tensor:
            return data.start[None]

        return lambda: kmeans(data.x[None], self.clusters, self.iterations, sample_fn=start)[0][0]

    def _faiss(self, data: Data) -> Callable[[], Any]:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        x, start = data.x.numpy(), data.start.numpy()

        def run() -> Any:
            algorithm = faiss.Kmeans(
                self.dim, self.clusters, niter=self.iterations, max_points_per_centroid=self.vectors, verbose=False
            )
            algorithm.train(x, init_centroids=start)
            return algorithm.centroids

        return run

    def _sklearn(self, data: Data) -> Callable[[], Any]:
        import warnings

        from sklearn.cluster import KMeans as Algorithm
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        x, start = data.x.numpy(), data.start.numpy()
        algorithm = Algorithm(self.clusters, init=start, n_init=1, max_iter=self.iterations, tol=0.0, algorithm="lloyd")

        threadpool_limits(torch.get_num_threads())

        def run() -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                return algorithm.fit(x).cluster_centers_

        return run


def problems(case: str, device: str, *, quick: bool) -> list[KMeans]:
    return [KMeans(32, 8, 2048, 3, device) if quick else KMeans(1024, 32, 32768, 10, device)]
