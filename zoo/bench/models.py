"""Encoding and decoding with LlamaGen's tokenizer at its published size, against diffusers with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.bench import exact, half, vqmodel
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Problem, Verdict, Work
from zoo.bench.vqmodel import DIFFUSERS, DIFFUSERS_MODULE, Shape
from zoo.interop.diffusers import to_diffusers
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

_LAST = ", channels last"
_TOLERANCE = 1e-4
_ROUNDING = 1e-5  # relative, of latents that float32 networks compute


class Data(NamedTuple):
    model: Tokenizer
    images: Tensor
    tokens: Tokens


@dataclass(frozen=True)
class _Model(Problem[Data]):
    """A batch of square images."""

    shape: Shape
    batch: int
    side: int
    device: str

    @property
    def name(self) -> str:
        return f"llamagen_vq, {self.batch} x {self.side} px"

    def data(self) -> Data:
        model = vqmodel.ours(self.shape, self.device)
        images = vqmodel.images(self.batch, self.side, self.device)
        indices = torch.randint(
            self.shape.codes, (self.batch, *self._grid()), generator=torch.Generator().manual_seed(0)
        )
        return Data(model, images, model.tokens(indices.to(self.device)))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._ours(torch.contiguous_format)),
            Contender(ZOO + _LAST, self._ours(torch.channels_last)),
            Contender(DIFFUSERS, self._theirs(torch.contiguous_format), DIFFUSERS_MODULE),
            Contender(DIFFUSERS + _LAST, self._theirs(torch.channels_last), DIFFUSERS_MODULE),
            *half.contenders(self.device, self._rounded),
        )

    def _rounded(self, dtype: torch.dtype) -> Callable[[Data], Callable[[], Any]]:
        build = self._ours(torch.contiguous_format)
        return lambda data: build(data._replace(model=half.rounded(data.model, dtype)))

    def items(self) -> tuple[int, str]:
        return self.batch, "images"

    def _ours(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        raise NotImplementedError

    def _theirs(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        raise NotImplementedError

    def _grid(self) -> tuple[int, int]:
        side = self.side // 2 ** (len(self.shape.multipliers) - 1)
        return side, side


@dataclass(frozen=True)
class Encode(_Model):
    """Images to indices."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """diffusers' latents decide which code is the nearest, but where two are as near as the latents agree."""
        latents = outputs[DIFFUSERS][1].movedim(1, -1).flatten(0, -2)
        codes = data.model.quantizer.codebook.weight.detach()
        verdicts = {}
        for name, output in outputs.items():
            indices, latent = output
            if name in half.precisions(self.device):
                verdicts[name] = half.judge_tokens(indices.flatten(), outputs[DIFFUSERS][0].flatten())
                continue
            wrong, ties = exact.count_differences(latents, codes, indices.flatten(), _ROUNDING)
            verdicts[name] = exact.verdict(wrong, ties, len(latents))
            if latent is not None and verdicts[name].passed:
                close = exact.judge_close({"latents": (latent, outputs[DIFFUSERS][1])}, _TOLERANCE)
                verdicts[name] = close if not close.passed else verdicts[name]
        return verdicts

    def work(self) -> Work:
        return Work(self.batch * vqmodel.flops(self.shape, self.side, "encode"))

    def _ours(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        def build(data: Data) -> Callable[[], Any]:
            model, images = _copy(data.model, layout), data.images.to(memory_format=layout)
            return lambda: (model.encode(images).indices, None)

        return build

    def _theirs(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        def build(data: Data) -> Callable[[], Any]:
            model = to_diffusers(data.model).to(memory_format=layout)
            images = data.images.to(memory_format=layout)

            @torch.no_grad()
            def run() -> tuple[Tensor, Tensor]:
                latents = model.encode(images).latents
                return model.quantize(latents)[2][2], latents

            return run

        return build


@dataclass(frozen=True)
class Decode(_Model):
    """Indices to images."""

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """diffusers' images are what is expected."""
        expected, rounded = outputs[DIFFUSERS], half.precisions(self.device)
        return {
            name: half.judge_signals(got, expected)
            if name in rounded
            else exact.judge_close({"images": (got, expected)}, _TOLERANCE)
            for name, got in outputs.items()
        }

    def work(self) -> Work:
        return Work(self.batch * vqmodel.flops(self.shape, self.side, "decode"))

    def _ours(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        def build(data: Data) -> Callable[[], Any]:
            model = _copy(data.model, layout)
            return lambda: model.decode(data.tokens)

        return build

    def _theirs(self, layout: torch.memory_format) -> Callable[[Data], Callable[[], Any]]:
        def build(data: Data) -> Callable[[], Any]:
            model = to_diffusers(data.model).to(memory_format=layout)
            indices, shape = data.tokens.indices, (self.batch, *self._grid(), self.shape.dim)

            @torch.no_grad()
            def run() -> Tensor:
                return model.decode(indices, force_not_quantize=True, shape=shape).sample

            return run

        return build


def problems(case: str, device: str, *, quick: bool) -> list[_Model]:
    kind = Encode if case == "encode" else Decode
    if quick:
        return [kind(vqmodel.SMALL, 1, 32, device)]
    return [kind(Shape(), 1 if device == "cpu" else 16, 256, device)]


def _copy(model: Tokenizer, layout: torch.memory_format) -> Tokenizer:
    """The model itself in the usual layout; else a copy, whose weights lie in the layout."""
    import copy

    return model if layout == torch.contiguous_format else copy.deepcopy(model).to(memory_format=layout)
