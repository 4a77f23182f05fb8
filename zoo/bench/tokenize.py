"""A folder of JPEG files to shards of tokens, beside a loop of Pillow, torchvision and the same model, or of an
original's code and torch's DataLoader, and its two halves: decoding alone and the model alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import zoo
from zoo import media
from zoo.bench import against, half
from zoo.bench.against import ORIGINAL
from zoo.bench.data import Data, Pictures
from zoo.bench.originals import find
from zoo.bench.originals.adapter import Original
from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Goal, Verdict
from zoo.bulk import IdDataset, Job
from zoo.bulk import tokenize as tokenize_folder
from zoo.media.sources import open_source
from zoo.tokenizer import InputSpec, Tokenizer

MODEL = "compact_f8.photos"
LOOP, DECODING, ENCODING = "loop of Pillow and torchvision", "decoding alone", "the model alone"
_ROUNDED = f"{ZOO}, bfloat16"
_BATCH = 32
_WORKERS = 2


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

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Tensor]:
        """What torchvision makes of a picture for the model."""
        from torchvision.transforms import v2

        low, high = self._spec.value_range
        size = v2.Resize(self.side, v2.InterpolationMode.LANCZOS)
        steps = [size, v2.CenterCrop(self.side), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        transform = v2.Compose(steps)
        return lambda picture: (low + (high - low) * transform(picture)).as_subclass(Tensor)

    def _read(self, file: Path) -> Tensor:
        with Image.open(file) as picture:
            return self._transform(picture.convert("RGB"))

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
        return self._job(data, bfloat16=False)

    def _job(self, data: Data, *, bfloat16: bool) -> Callable[[], Tensor]:
        source, runs = open_source(data.folder.name), itertools.count()
        model = self._model.name
        job = Job(
            model, self._model.source.fingerprint, data.folder.name, "ids", batch_size=_BATCH, size=self.side,
            bfloat16=bfloat16,
        )  # fmt: skip

        def run() -> Tensor:
            # hidden: no part of the source
            out = Path(data.folder.name, f".{'rounded' if bfloat16 else 'out'}{next(runs)}")
            tokenize_folder(self._model, source, job, out)
            rows = IdDataset(out)
            return torch.stack([rows[place] for place in range(len(rows))])

        return run

    def _loop(self, data: Data) -> Callable[[], Tensor]:
        def run() -> Tensor:
            files = sorted(data.files)
            batches = [files[start : start + _BATCH] for start in range(0, len(files), _BATCH)]
            return torch.cat([self._ids(torch.stack([self._read(file) for file in batch])) for batch in batches])

        return run

    def _decoding(self, data: Data) -> Callable[[], list[Tensor]]:
        spec = self._spec
        return lambda: [media.load(file, spec) for file in sorted(data.files)]

    def _encoding(self, data: Data) -> Callable[[], Tensor]:
        images = media.load(sorted(data.files), self._spec)
        return lambda: torch.cat([self._ids(batch) for batch in images.split(_BATCH)])

    def _ids(self, batch: Tensor) -> Tensor:
        return self._model.encode(batch.to(self.device)).flatten().cpu()


@dataclass(frozen=True)
class ShardsAgainst(Shards):
    """The same with a model of an original, whose own code runs in a plain loop over torch's DataLoader."""

    adapter: str
    model: str
    checkout: Path = field(repr=False)

    @property
    def name(self) -> str:
        return f"{super().name}, {self.model.partition('.')[0]}"

    def sizes(self) -> dict[str, Any]:
        return {**super().sizes(), "checkout": find(self.adapter).repository}

    @cached_property
    def _pair(self) -> tuple[Tokenizer, Original]:
        return against.pair(self.adapter, self.checkout, self.model, self.device)

    @property
    def _model(self) -> Tokenizer:  # type: ignore[override]
        return self._pair[0]

    def contenders(self) -> Sequence[Contender[Data]]:
        found = [
            Contender(ZOO, self._shards),
            Contender(ORIGINAL, self._loop, "torchvision"),
            Contender(DECODING, self._decoding),
            Contender(ENCODING, self._encoding),
        ]
        if _ROUNDED in half.precisions(self.device):
            found.append(Contender(_ROUNDED, lambda data: self._job(data, bfloat16=True)))
        return found

    def goals(self) -> Sequence[Goal]:
        factor = 2.0 if self.device == "cpu" else 3.0
        names = [ZOO, *(name for name in half.precisions(self.device) if name == _ROUNDED)]
        return *(Goal(name, "time", ORIGINAL, factor) for name in names), super().goals()[1]

    def gate(self, data: Data, outputs: Mapping[str, Any]) -> dict[str, Verdict]:
        """The original's ids are those of our model on what `zoo.media` reads, but for near ties."""
        verdicts = super().gate(data, {name: found for name, found in outputs.items() if name != ORIGINAL})
        verdicts[ORIGINAL] = against.judge_indices(outputs[ORIGINAL], outputs[ENCODING])
        if _ROUNDED in outputs:
            verdicts[_ROUNDED] = half.judge_tokens(outputs[_ROUNDED], outputs[ENCODING])
        return verdicts

    def _loop(self, data: Data) -> Callable[[], Tensor]:
        pictures = _Files(sorted(data.files), self._read)
        original = self._pair[1]

        @torch.no_grad()
        def run() -> Tensor:
            loader = DataLoader(pictures, batch_size=_BATCH, num_workers=_WORKERS)
            return torch.cat([original.encode(batch.to(self.device)).flatten(1).cpu() for batch in loader])

        return run


@dataclass(frozen=True)
class _Files(Dataset[Tensor]):
    """Files as what a function reads."""

    files: Sequence[Path]
    read: Callable[[Path], Tensor]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> Tensor:
        return self.read(self.files[place])


def problems(case: str, device: str, *, quick: bool, originals: Mapping[str, Path] | None = None) -> list[Shards]:
    if not originals:
        return [Shards(4, 96, 128, 64, device) if quick else Shards(128, 375, 500, 256, device)]
    count = 2 if quick else 8 if device == "cpu" else 1024
    found = []
    for name, checkout in originals.items():
        setting = find(name).settings[0]
        found.append(ShardsAgainst(count, 375, 500, setting.size[0], device, name, setting.model, checkout))
    return list(found)
