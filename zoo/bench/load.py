"""A model of published size from a file of weights, into memory and ready to encode."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.bench import vqmodel
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Problem, Verdict, Work
from zoo.bench.vqmodel import DIFFUSERS, DIFFUSERS_MODULE, Shape
from zoo.interop.diffusers import to_diffusers
from zoo.tokenizer import Tokenizer

_READ = "safetensors, the tensors alone"


@dataclass(frozen=True)
class Data:
    model: Tokenizer
    folder: tempfile.TemporaryDirectory  # holds `zoo` and `diffusers`, each as its library saves a model


@dataclass(frozen=True)
class Load(Problem[Data]):
    """The same weights, saved and read again by each library; files lie in the system's cache."""

    shape: Shape
    device: str

    @property
    def name(self) -> str:
        return f"llamagen_vq, {self.shape.channels} channels"

    def data(self) -> Data:
        folder = tempfile.TemporaryDirectory(prefix="zoo-bench-")
        model = vqmodel.ours(self.shape)
        zoo.save_model(model, Path(folder.name, "zoo"))
        to_diffusers(model).save_pretrained(Path(folder.name, "diffusers"))
        return Data(model, folder)

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._ours),
            Contender(DIFFUSERS, self._theirs, DIFFUSERS_MODULE),
            Contender(_READ, self._read, "safetensors"),
        )

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """Every parameter is that of the saved model, to the bit."""
        verdicts = {}
        for name, got in outputs.items():
            saved = to_diffusers(data.model) if name == DIFFUSERS else data.model
            expected = saved.state_dict()
            equal = got.keys() == expected.keys() and all(
                torch.equal(got[key].cpu().flatten(), value.flatten()) for key, value in expected.items()
            )
            verdicts[name] = Verdict(equal, "equal to the bit" if equal else "wrong: other weights than were saved")
        return verdicts

    def work(self) -> Work:
        return Work(bytes=8.0 * self._parameters())

    def items(self) -> tuple[int, str]:
        return self._parameters(), "parameters"

    def _parameters(self) -> int:
        return sum(parameter.numel() for parameter in vqmodel.ours(self.shape).parameters())

    def _ours(self, data: Data) -> Callable[[], dict[str, Tensor]]:
        return lambda: zoo.create_model(f"local-dir:{data.folder.name}/zoo", device=self.device).state_dict()

    def _theirs(self, data: Data) -> Callable[[], dict[str, Tensor]]:
        from diffusers import VQModel

        folder, lean = (
            f"{data.folder.name}/diffusers",
            find_spec("accelerate") is not None,
        )  # the default, without a warning
        return lambda: VQModel.from_pretrained(folder, low_cpu_mem_usage=lean).to(self.device).state_dict()

    def _read(self, data: Data) -> Callable[[], dict[str, Tensor]]:
        from safetensors.torch import load_file

        return lambda: load_file(Path(data.folder.name, "zoo", "model.safetensors"), device=self.device)


def problems(case: str, device: str, *, quick: bool) -> list[Load]:
    return [Load(vqmodel.SMALL if quick else Shape(), device)]
