"""A folder of JPEG files to shards of tokens, beside a loop of Pillow, torchvision and the same model, and its two
halves: decoding alone and the model alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from zoo import media
from zoo.bench.data import Data, Pictures
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Goal, Verdict
from zoo.bulk import IdDataset, Job
from zoo.bulk import tokenize as tokenize_folder
from zoo.media.sources import open_source
from zoo.tokenizer import InputSpec, Tokenizer

MODEL = "compact_f8.photos"
LOOP, DECODING, ENCODING = "loop of Pillow and torchvision", "decoding alone", "the model alone"
_BATCH = 32


@dataclass(frozen=True)
class Shards(Pictures):
    """Read, decode, crop and encode every file, and write the ids."""

    @property
    def name(self) -> str:
        return f"{self.count} JPEG files of {self.width} x {self.height} to tokens at {self.side} px"

    @cached_property
    def _model(self) -> Tokenizer:
        model: Tokenizer = zoo.create_model(MODEL, pretrained=True, device=self.device)
        return model

    @property
    def _spec(self) -> InputSpec:
        return InputSpec("image", 3, self._model.spec.value_range, size=(self.side, self.side))

    def contenders(self) -> Sequence[Contender[Data]]:
        return (
            Contender(ZOO, self._shards),
            Contender(LOOP, self._loop, "torchvision"),
            Contender(DECODING, self._decoding),
            Contender(ENCODING, self._encoding),
        )

    def goals(self) -> Sequence[Goal]:
        return (
            Goal(ZOO, "time", LOOP, factor=2.0 if self.device == "cpu" else 3.0),
            Goal(ZOO, "time", ENCODING, factor=0.9),
        )

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """The ids are those of the model on what `zoo.media` reads."""
        verdicts = {}
        for name, found in outputs.items():
            if name in (DECODING, ENCODING):
                verdicts[name] = Verdict(len(found) == self.count, "half of the work, for comparison")
            else:
                equal = torch.equal(found, outputs[ENCODING])
                verdicts[name] = Verdict(equal, "all ids equal" if equal else "wrong: other ids")
        return verdicts

    def _shards(self, data: Data) -> Callable[[], Tensor]:
        source, runs = open_source(data.folder.name), itertools.count()
        job = Job(MODEL, self._model.source.fingerprint, data.folder.name, "ids", batch_size=_BATCH, size=self.side)

        def run() -> Tensor:
            out = Path(data.folder.name, f".out{next(runs)}")  # hidden: no part of the source
            tokenize_folder(self._model, source, job, out)
            rows = IdDataset(out)
            return torch.stack([rows[place] for place in range(len(rows))])

        return run

    def _loop(self, data: Data) -> Callable[[], Tensor]:
        from PIL import Image
        from torchvision.transforms import v2

        size = v2.Resize(self.side, v2.InterpolationMode.LANCZOS)
        transform = v2.Compose([size, v2.CenterCrop(self.side), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

        def read(file: Path) -> Tensor:
            with Image.open(file) as image:
                return (transform(image.convert("RGB")) * 2 - 1).as_subclass(Tensor)

        def run() -> Tensor:
            files = sorted(data.files)
            batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
            return torch.cat([self._ids(torch.stack([read(file) for file in batch])) for batch in batches])

        return run

    def _decoding(self, data: Data) -> Callable[[], list[Tensor]]:
        spec = self._spec
        return lambda: [media.load(file, spec) for file in sorted(data.files)]

    def _encoding(self, data: Data) -> Callable[[], Tensor]:
        images = media.load(sorted(data.files), self._spec)
        return lambda: torch.cat([self._ids(batch) for batch in images.split(_BATCH)])

    def _ids(self, batch: Tensor) -> Tensor:
        return self._model.encode(batch.to(self.device)).flatten().cpu()


def problems(case: str, device: str, *, quick: bool) -> list[Shards]:
    return [Shards(4, 96, 128, 64, device) if quick else Shards(128, 375, 500, 256, device)]
