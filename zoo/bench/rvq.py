"""Residual vector quantisation as audio codecs do it: eight levels of 1,024 codes on frames of width 128."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.bench import exact
from zoo.bench.peers import GRAPH, PURE_TORCH, VQP, ZOO, cuda_graph, pure_torch
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.ops import residual_codes


@dataclass(frozen=True)
class Data:
    x: Tensor  # (N, D)
    codebooks: Tensor  # (Q, K, D)


@dataclass(frozen=True)
class Residual(Problem[Data]):
    """N frames of width D through Q codebooks of K codes, whose scale falls from level to level."""

    levels: int
    codes: int
    dim: int
    frames: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.levels} x {self.codes} x {self.dim}, {self.frames} frames"

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.frames, self.dim, generator=generator)
        codebooks = torch.randn(self.levels, self.codes, self.dim, generator=generator)
        codebooks *= 0.5 * 0.9 ** torch.arange(self.levels)[:, None, None]
        return Data(x.to(self.device), codebooks.to(self.device))

    def contenders(self) -> Sequence[Contender[Data]]:
        found = [Contender(ZOO, _ours)]
        if self.device == "cuda":
            found.append(Contender(GRAPH, lambda data: cuda_graph(_ours(data))))
        found.append(Contender(PURE_TORCH, _pure_torch))
        found.append(Contender(VQP, _vqp, "vector_quantize_pytorch"))
        return [*found, Contender("addmm and argmax", _plain, "torch")]

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Each level is judged on what the contender's own choices leave over: a near tie changes all that follows."""
        verdicts = {}
        for name, indices in outputs.items():
            if indices.shape != (self.frames, self.levels):
                verdicts[name] = Verdict(False, f"wrong: indices of shape {tuple(indices.shape)}")
                continue
            residual, wrong, ties = data.x.double(), 0, 0
            for codes, chosen in zip(data.codebooks.double(), indices.unbind(1)):
                more_wrong, more_ties = exact.count_differences(residual, codes, chosen)
                wrong, ties = wrong + more_wrong, ties + more_ties
                residual = residual - codes[chosen.clamp(0, self.codes - 1)]
            verdicts[name] = exact.verdict(wrong, ties, indices.numel())
        return verdicts

    def work(self) -> Work:
        flops = 2.0 * self.levels * self.frames * self.codes * self.dim
        read = 4.0 * (self.frames + self.levels * self.codes) * self.dim
        return Work(flops, read + 8.0 * self.frames * self.levels)

    def goals(self) -> Sequence[Goal]:
        if self.device == "cuda":
            return Goal(ZOO, "time", VQP, 4), Goal(GRAPH, "time", VQP, 4)
        return (Goal(ZOO, "time", VQP, 8),)

    def items(self) -> tuple[int, str]:
        return self.frames, "frames"


def problems(case: str, device: str, *, quick: bool) -> list[Residual]:
    if quick:
        return [Residual(3, 64, 16, 50, device)]
    return [Residual(8, 1024, 128, frames, device) for frames in (750, 6000)]


def _ours(data: Data) -> Callable[[], Tensor]:
    return lambda: residual_codes(data.x, data.codebooks)


def _pure_torch(data: Data) -> Callable[[], Tensor]:
    return pure_torch(_ours(data))


def _plain(data: Data) -> Callable[[], Tensor]:
    biases = data.codebooks.square().sum(-1) / -2

    def run() -> Tensor:
        residual, levels = data.x, []
        for codes, bias in zip(data.codebooks, biases):
            levels.append(torch.addmm(bias, residual, codes.T).argmax(dim=1))
            residual = residual - codes[levels[-1]]
        return torch.stack(levels, dim=1)

    return run


def _vqp(data: Data) -> Callable[[], Tensor]:
    from vector_quantize_pytorch import ResidualVQ

    levels, count, dim = data.codebooks.shape
    quantizer = ResidualVQ(dim=dim, codebook_size=count, num_quantizers=levels).to(data.x.device).eval()
    with torch.no_grad():
        for layer, codes in zip(quantizer.layers, data.codebooks):
            layer._codebook.embed.copy_(codes[None])

    @torch.no_grad()
    def run() -> Tensor:
        return quantizer(data.x[None])[1][0]

    return run
