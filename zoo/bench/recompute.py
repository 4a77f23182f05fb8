"""A training step of LlamaGen's f16 tokenizer with and without recomputation of norms and activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.bench import exact, vqmodel
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Goal, Problem, Verdict, Work
from zoo.bench.train_step import CODEBOOK_WEIGHT, WATCHED, Data, Step, step
from zoo.bench.vqmodel import Shape
from zoo.layers.recompute import RecomputeActivations

RECOMPUTED, KEPT = ZOO, f"{ZOO} without recomputation"
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # the same sums, which a GPU may add up in another order


@dataclass(frozen=True)
class Recompute(Problem[Data]):
    """Forward pass, mean squared error and the quantizer's losses, backward pass, and AdamW on all parameters.

    AdamW holds its two moments already, from a small step before.
    """

    shape: Shape
    batch: int
    side: int
    dtype: str  # "float32", or "bfloat16" for autocast
    device: str

    @property
    def name(self) -> str:
        return f"llamagen_vq, {self.batch} x {self.side} px, {self.dtype}"

    def data(self) -> Data:
        return Data(vqmodel.ours(self.shape, self.device), vqmodel.images(self.batch, self.side, self.device))

    def contenders(self) -> Sequence[Contender[Data]]:
        return Contender(RECOMPUTED, self._action(RecomputeActivations)), Contender(KEPT, self._action(nullcontext))

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Loss and gradients are those of the step that keeps all."""
        expected: Step = outputs[KEPT]
        verdicts = {}
        for name, found in outputs.items():
            pairs = {f"gradient of {key}": (found.gradients[key], expected.gradients[key]) for key in WATCHED}
            pairs["loss"] = (found.loss, expected.loss)
            verdicts[name] = exact.judge_close(pairs, _TOLERANCE[self.dtype])
        return verdicts

    def work(self) -> Work:
        return Work(self.batch * vqmodel.flops(self.shape, self.side, "train"))

    def goals(self) -> Sequence[Goal]:
        return (
            Goal(RECOMPUTED, "memory", peer=KEPT, factor=2.0),
            Goal(RECOMPUTED, "time", peer=KEPT, factor=1 / 1.15),
        )

    def items(self) -> tuple[int, str]:
        return self.batch, "images"

    def _action(self, context: Callable[[], Any]) -> Callable[[Data], Callable[[], Step]]:
        def build(data: Data) -> Callable[[], Step]:
            model = vqmodel.ours(self.shape, self.device).to(memory_format=torch.channels_last).train()
            batch = [vqmodel.images(1, 32, self.device)]
            mixed = self.dtype == "bfloat16"

            def loss() -> Tensor:
                (images,) = batch
                with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=mixed):
                    with context():
                        out = model(images)
                    losses = out.quantized.losses
                    quantizer = losses["commitment"] + CODEBOOK_WEIGHT * losses["codebook"]
                    return F.mse_loss(out.reconstruction.float(), images) + quantizer

            parameters = dict(model.named_parameters())
            run = step(loss, parameters.values(), {name: parameters[name] for name in WATCHED})
            run()
            batch[:] = [data.images.to(memory_format=torch.channels_last)]
            return run

        return build


def problems(case: str, device: str, *, quick: bool) -> list[Recompute]:
    if quick:
        return [Recompute(vqmodel.SMALL_EUCLIDEAN, 1, 32, "float32", device)]
    shape = Shape(metric="euclidean")
    if device == "cpu":
        return [Recompute(shape, 1, 256, "float32", device)]
    return [Recompute(shape, 8, 256, dtype, device) for dtype in ("float32", "bfloat16")]
