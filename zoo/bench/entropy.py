"""The entropy terms of lookup-free quantisation (LFQ): their values and the gradient to the latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.bench import exact
from zoo.bench.peers import GRAPH, VQP, ZOO, cuda_graph
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.ops import binary_entropy

TEMPERATURE = 1.0
CLAMP = 1e-5  # of probabilities inside the logarithms in vector-quantize-pytorch
CLAMPED = "zoo, clamp 1e-5"
_TABLE = 1 << 27  # probabilities that the gate computes one by one; of more than that it uses the factorisation
_TOLERANCE = 1e-5  # of the largest magnitude, for zoo
_PEER_TOLERANCE = 1e-4  # its float32 gradient at 14 bits is off by 6e-5; the table tells the error of each


@dataclass(frozen=True)
class Entropy(Problem[Tensor]):
    """N latents of so many bits, from a normal distribution."""

    bits: int
    vectors: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.bits} bits, N={self.vectors}"

    def data(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.vectors, self.bits, generator=generator).to(self.device)

    def contenders(self) -> Sequence[Contender[Tensor]]:
        ours = [Contender(ZOO, _ours(0.0))]
        if self.device == "cuda":
            ours.append(Contender(GRAPH, lambda data: cuda_graph(_ours(0.0)(data))))
        if self.vectors << self.bits <= _TABLE:
            ours.append(Contender(CLAMPED, _ours(CLAMP)))
        return [*ours, Contender(VQP, _vqp, "vector_quantize_pytorch")]

    def gate(self, data: Tensor, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        known: dict[float, tuple[Tensor, Tensor, Tensor]] = {}
        verdicts = {}
        for name, got in outputs.items():
            floor = 0.0 if name in (ZOO, GRAPH) else CLAMP
            if floor not in known:
                small = self.vectors << self.bits <= _TABLE or floor > 0
                known[floor] = (
                    exact.binary_entropies(data, TEMPERATURE, floor)
                    if small
                    else exact.factorised_entropies(data, TEMPERATURE)
                )
            names = "sample entropy", "codebook entropy", "gradient"
            tolerance = _PEER_TOLERANCE if name == VQP else _TOLERANCE
            verdict = exact.judge_close(dict(zip(names, zip(got, known[floor]))), tolerance)
            clamped = ", with its clamp of 1e-5" if floor > 0 and verdict.passed else ""
            verdicts[name] = Verdict(verdict.passed, verdict.text + clamped)
        return verdicts

    def work(self) -> Work:
        # three products of the halves' tables, N x 2^(D / 2) each: the mean, and two for the gradient
        return Work(3 * 2.0 * self.vectors * 2**self.bits, 8.0 * self.vectors * self.bits)

    def goals(self) -> Sequence[Goal]:
        if self.vectors > 4096:
            return (Goal(ZOO, "memory", bound=1e9),)
        if self.bits > 14:
            return ()
        factor, graph = (50, [Goal(GRAPH, "time", VQP, 50)]) if self.device == "cuda" else (100, [])
        return (
            Goal(ZOO, "time", VQP, factor),
            *graph,
            Goal(CLAMPED, "time", VQP, factor),
            Goal(ZOO, "memory", VQP, 50),
        )

    def items(self) -> tuple[int, str]:
        return self.vectors, "vectors"


def problems(case: str, device: str, *, quick: bool) -> list[Entropy]:
    sizes = ((8, 64), (10, 64)) if quick else ((14, 4096), (18, 4096), (18, 65536))
    return [Entropy(bits, vectors, device) for bits, vectors in sizes]


def _ours(floor: float) -> Callable[[Tensor], Callable[[], tuple[Tensor, ...]]]:
    def build(data: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        z = data.clone().requires_grad_()

        def run() -> tuple[Tensor, ...]:
            sample, codebook = binary_entropy(z, TEMPERATURE, floor=floor)
            (gradient,) = torch.autograd.grad(sample - codebook, z)
            return sample.detach(), codebook.detach(), gradient

        return run

    return build


def _vqp(data: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    from vector_quantize_pytorch import LFQ

    bits = data.shape[1]
    quantizer = LFQ(codebook_size=2**bits, dim=bits, entropy_loss_weight=1.0, commitment_loss_weight=0.0)
    quantizer = quantizer.to(data.device).train()
    z = data[None].clone().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        result, terms = quantizer(z, inv_temperature=1 / TEMPERATURE, return_loss_breakdown=True)
        (gradient,) = torch.autograd.grad(result.entropy_aux_loss, z)
        return terms.per_sample_entropy.detach(), terms.batch_entropy.detach(), gradient[0]

    return run
