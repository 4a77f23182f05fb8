"""A training step of a vector quantizer whose codebook follows the running means of its latents (EMA)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.bench import exact
from zoo.bench.peers import PURE_TORCH, VQP, ZOO, pure_torch, vqp_quantizer
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.quantizers import EmaCodebookConfig, VectorConfig

DECAY, SMOOTHING = 0.99, 1e-5
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Data:
    z: Tensor  # (N, D)
    codes: Tensor  # (K, D)
    upstream: Tensor  # (N, D), gradient of the rest of the model to the codes


class Step(NamedTuple):
    """What a step gives."""

    indices: Tensor
    commitment: Tensor
    gradient: Tensor
    codebook: Tensor  # after the step


@dataclass(frozen=True)
class EmaStep(Problem[Data]):
    """N latents of width D, K codes: forward pass, update of the codebook, gradient of codes and commitment to z."""

    codes: int
    dim: int
    vectors: int
    device: str

    @property
    def name(self) -> str:
        return f"K={self.codes} D={self.dim} N={self.vectors}"

    def data(self) -> Data:
        generator = torch.Generator().manual_seed(0)
        sizes = (self.vectors, self.dim), (self.codes, self.dim), (self.vectors, self.dim)
        return Data(*(torch.randn(size, generator=generator).to(self.device) for size in sizes))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, _ours),
            Contender(PURE_TORCH, lambda data: pure_torch(_ours(data))),
            Contender(VQP, _vqp, "vector_quantize_pytorch"),
        )

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Indices exactly; loss, gradient and codebook in float64 from the contender's own indices."""
        verdicts = {}
        for name, step in outputs.items():
            indices = exact.judge_indices(data.z, data.codes, step.indices)
            verdicts[name] = indices
            if not indices.passed:
                continue
            z, codes = data.z.double(), data.codes.double()
            chosen = codes[step.indices]
            counts = torch.bincount(step.indices, minlength=self.codes).double()
            sums = torch.zeros_like(codes).index_add_(0, step.indices, z)
            counts, sums = torch.lerp(torch.ones_like(counts), counts, 1 - DECAY), torch.lerp(codes, sums, 1 - DECAY)
            smoothed = (counts + SMOOTHING) / (counts.sum() + self.codes * SMOOTHING) * counts.sum()
            expected = {
                "commitment loss": (step.commitment, (z - chosen).square().mean()),
                "gradient": (step.gradient, data.upstream.double() + 2 * (z - chosen) / z.numel()),
                "codebook": (step.codebook, sums / smoothed[:, None]),
            }
            rest = exact.judge_close(expected, _TOLERANCE)
            verdicts[name] = Verdict(rest.passed, f"indices {indices.text}, the rest {rest.text}")
        return verdicts

    def work(self) -> Work:
        flops = 2.0 * self.vectors * self.codes * self.dim
        return Work(flops, 4.0 * self.dim * (4 * self.vectors + 4 * self.codes))

    def goals(self) -> Sequence[Goal]:
        return (Goal(ZOO, "time", VQP, 20 if self.device == "cpu" else 3),)

    def items(self) -> tuple[int, str]:
        return self.vectors, "vectors"


def problems(case: str, device: str, *, quick: bool) -> list[EmaStep]:
    return [EmaStep(128, 8, 256, device) if quick else EmaStep(8192, 32, 16384, device)]


def _ours(data: Data) -> Callable[[], Step]:
    codes, dim = data.codes.shape
    config = VectorConfig(codebook_size=codes, dim=dim, codebook=EmaCodebookConfig(decay=DECAY, smoothing=SMOOTHING))
    quantizer = config.build().to(data.z.device).train()
    quantizer.codebook.weight.data.copy_(data.codes)
    quantizer.ema.total.copy_(data.codes)
    z = data.z[None].clone().requires_grad_()

    def run() -> Step:
        out = quantizer(z)
        loss = (out.codes * data.upstream).sum() + out.losses["commitment"]
        (gradient,) = torch.autograd.grad(loss, z)
        return Step(out.indices[0], out.losses["commitment"].detach(), gradient[0], quantizer.codebook.weight.detach())

    return run


def _vqp(data: Data) -> Callable[[], Step]:
    quantizer = vqp_quantizer(data.codes, decay=DECAY, eps=SMOOTHING, rotation_trick=False).train()
    z = data.z[None].clone().requires_grad_()

    def run() -> Step:
        codes, indices, commitment = quantizer(z)
        (gradient,) = torch.autograd.grad((codes * data.upstream).sum() + commitment.sum(), z)
        return Step(indices[0], commitment.detach().squeeze(), gradient[0], quantizer.codebook.detach())

    return run
