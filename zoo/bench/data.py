"""JPEG files to square images as tensors: what feeds a model, and binds it where the model is faster.

Beside it a training step of the zoo's own small model, on the device: its rate over that of one core is the number of
loading processes that it needs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import zoo
from zoo import media
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Problem, Verdict, Work
from zoo.tokenizer import InputSpec

MODEL = "compact_f8"
TRAINED = f"{MODEL}: training step"
_BATCH = 8  # images of a step


@dataclass(frozen=True)
class Data:
    folder: tempfile.TemporaryDirectory
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Pictures(Problem[Data]):
    """Decode, resize (Lanczos) until the short side fits, crop the centre; one process, no workers."""

    count: int
    height: int
    width: int
    side: int
    device: str

    @property
    def name(self) -> str:
        return f"{self.count} JPEG files of {self.width} x {self.height} to {self.side} px"

    def data(self) -> Data:
        folder = tempfile.TemporaryDirectory(prefix="zoo-bench-")
        files = []
        for number in range(self.count):
            buffer = BytesIO()
            Image.fromarray(_picture(self.height, self.width, number)).save(buffer, "JPEG", quality=90)
            files.append(Path(folder.name, f"{number}.jpg"))
            files[-1].write_bytes(buffer.getvalue())
        return Data(folder, tuple(files))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._ours),
            Contender("Pillow and torchvision", self._torchvision, "torchvision"),
            Contender("Pillow alone: decode", self._decode, "PIL"),
            Contender(TRAINED, self._train),
        )

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """The 8-bit levels of all pixels are those of torchvision's Resize and CenterCrop."""
        expected = (outputs["Pillow and torchvision"] * 255).round()
        verdicts = {"Pillow alone: decode": Verdict(True, "part of the work, for comparison")}
        learns = bool(outputs[TRAINED].isfinite())
        verdicts[TRAINED] = Verdict(learns, "what is fed" if learns else "wrong: the loss is not finite")
        for name in (ZOO, "Pillow and torchvision"):
            equal = torch.equal((outputs[name] * 255).round(), expected)
            verdicts[name] = Verdict(equal, "all pixels equal" if equal else "wrong: other pixels")
        return verdicts

    def work(self) -> Work:
        return Work(bytes=3.0 * self.count * (self.height * self.width + 4 * self.side**2))

    def items(self) -> tuple[int, str]:
        return self.count, "images"

    def _ours(self, data: Data) -> Callable[[], Tensor]:
        spec = InputSpec("image", channels=3, value_range=(0.0, 1.0), size=(self.side, self.side))
        return lambda: media.load(list(data.files), spec)

    def _torchvision(self, data: Data) -> Callable[[], Tensor]:
        from torchvision.transforms import v2

        transform = v2.Compose(
            [
                v2.Resize(self.side, v2.InterpolationMode.LANCZOS),
                v2.CenterCrop(self.side),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )

        def read(file: Path) -> Tensor:
            with Image.open(file) as image:
                return transform(image.convert("RGB"))

        return lambda: torch.stack([read(file) for file in data.files]).as_subclass(Tensor)

    def _train(self, data: Data) -> Callable[[], Tensor]:
        model = zoo.create_model(MODEL).to(self.device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.count, 3, self.side, self.side, generator=generator).to(self.device) * 2 - 1

        def steps() -> Tensor:
            losses = []
            for batch in images.split(_BATCH):
                optimizer.zero_grad()
                loss = F.mse_loss(model(batch).reconstruction, batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            return torch.stack(losses).mean()

        return steps

    def _decode(self, data: Data) -> Callable[[], Any]:
        def read(file: Path) -> Any:
            with Image.open(file) as image:
                return np.asarray(image.convert("RGB"))

        return lambda: [read(file) for file in data.files]


def problems(case: str, device: str, *, quick: bool) -> list[Pictures]:
    return [Pictures(3, 96, 128, 64, device) if quick else Pictures(32, 375, 500, 256, device)]


def _picture(height: int, width: int, number: int) -> np.ndarray:
    """Waves with some noise, uint8 (height, width, 3): about the bytes of a photo."""
    y, x = np.mgrid[0:height, 0:width] / 32
    waves = [np.sin(x + y + number), np.sin(1.7 * x - 0.6 * y + 1), np.cos(0.4 * x * y / (1 + y))]
    noise = np.random.default_rng(number).normal(0, 0.1, (height, width, 3))
    return ((np.stack(waves, axis=-1) + noise + 1) * 127.5).clip(0, 255).astype(np.uint8)
