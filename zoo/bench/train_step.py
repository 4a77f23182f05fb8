"""A training step of LlamaGen's tokenizer, against diffusers with the same weights and loss.

The codebook is Euclidean, because diffusers has no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.bench import exact, vqmodel
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Problem, Verdict, Work
from zoo.bench.vqmodel import DIFFUSERS, DIFFUSERS_MODULE, Shape
from zoo.interop.diffusers import diffusers_names, to_diffusers
from zoo.tokenizer import Tokenizer

CODEBOOK_WEIGHT = 0.25  # the weights of diffusers' quantizer: commitment 1, codebook 0.25
_TOLERANCE = 1e-3  # of gradients that have passed through both networks in float32
WATCHED = ("encoder.conv_in.weight", "to_latent.weight", "quantizer.codebook.weight", "decoder.conv_out.weight")


class Data(NamedTuple):
    model: Tokenizer
    images: Tensor


class Step(NamedTuple):
    """The loss, and the gradients of a few parameters from one end of the model to the other."""

    loss: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class TrainStep(Problem[Data]):
    """Forward pass, mean squared error and the quantizer's losses, backward pass, and AdamW on all parameters."""

    shape: Shape
    batch: int
    side: int
    device: str

    @property
    def name(self) -> str:
        return f"llamagen_vq, {self.batch} x {self.side} px"

    def data(self) -> Data:
        return Data(vqmodel.ours(self.shape, self.device), vqmodel.images(self.batch, self.side, self.device))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._ours(torch.contiguous_format)),
            Contender(f"{ZOO}, channels last", self._ours(torch.channels_last)),
            Contender(DIFFUSERS, self._theirs(torch.contiguous_format), DIFFUSERS_MODULE),
            Contender(
                f"{DIFFUSERS}, channels last",
                self._theirs(torch.channels_last),
                DIFFUSERS_MODULE,
            ),
        )

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """diffusers' first step is what is expected."""
        expected: Step = outputs[DIFFUSERS]
        verdicts = {}
        for name, found in outputs.items():
            pairs = {f"gradient of {key}": (found.gradients[key], expected.gradients[key]) for key in WATCHED}
            verdicts[name] = exact.judge_close({"loss": (found.loss, expected.loss), **pairs}, _TOLERANCE)
        return verdicts

    def work(self) -> Work:
        return Work(self.batch * vqmodel.flops(self.shape, self.side, "train"))

    def items(self) -> tuple[int, str]:
        return self.batch, "images"

    def _ours(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Step]]:
        def build(data: Data) -> Callable[[], Step]:
            model = vqmodel.ours(self.shape, self.device).to(memory_format=layout).train()
            images = data.images.to(memory_format=layout)

            def loss() -> Tensor:
                out = model(images)
                losses = out.quantized.losses
                quantizer = losses["commitment"] + CODEBOOK_WEIGHT * losses["codebook"]
                return F.mse_loss(out.reconstruction, images) + quantizer

            parameters = dict(model.named_parameters())
            return step(loss, parameters.values(), {name: parameters[name] for name in WATCHED})

        return build

    def _theirs(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Step]]:
        def build(data: Data) -> Callable[[], Step]:
            model = to_diffusers(data.model).to(memory_format=layout).train()
            images = data.images.to(memory_format=layout)

            def loss() -> Tensor:
                out = model(images)
                return F.mse_loss(out.sample, images) + out.commit_loss.mean()

            parameters = dict(model.named_parameters())
            names = diffusers_names(model)
            watched = {name: parameters[names[name]] for name in WATCHED}
            return step(loss, parameters.values(), watched)

        return build


def problems(case: str, device: str, *, quick: bool) -> list[TrainStep]:
    if quick:
        return [TrainStep(vqmodel.SMALL_EUCLIDEAN, 1, 32, device)]
    return [TrainStep(Shape(metric="euclidean"), 1 if device == "cpu" else 8, 128 if device == "cpu" else 256, device)]


def step(
    loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], watched: dict[str, nn.Parameter]
) -> Callable[[], Step]:
    """The action of a training step: backward pass and AdamW; it returns the loss and the gradients of `watched`."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    def run() -> Step:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        gradients = {name: parameter.grad for name, parameter in watched.items() if parameter.grad is not None}
        optimizer.step()
        return Step(value.detach(), gradients)

    return run
