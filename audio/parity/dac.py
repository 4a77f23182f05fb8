"""Checks of DAC's fixtures that go beyond the tokenizer: its dropout, its files, its discriminators and losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio import dac_file
from audio.dac import DAC
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers import Residual
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Any:
    """The case that fits the original's class."""
    return DACCase(fixture, family)


class DACCase(Case):
    """The original's output is not continued with zeros where an odd stride leaves it short."""

    model: DAC

    def padded(self, audio: Tensor) -> Tensor:
        return F.pad(audio, (0, -audio.shape[-1] % self.model.spec.multiple))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        count = settings.get("num_codebooks")
        indices = self.model.encode(inputs["audio"], num_codebooks=count).indices
        with torch.no_grad():
            latent = self.model.latent(self.padded(inputs["audio"]))
            codes = self.model.quantizer.indices_to_codes(*indices.unbind(1))
        outputs = {"indices": indices, "latent": channels_first(latent), "quantized": channels_first(codes)}
        return {**outputs, "projected": self.projected(latent)}

    def projected(self, latent: Tensor) -> Tensor:
        """What each level looks up: (B, levels * codebook_dim, frames)."""
        parts, residual = [], latent
        with torch.no_grad():
            for level in self.levels():
                parts.append(channels_first(level.project_in(residual)))
                residual = residual - level.quantize(residual).codes
        return torch.cat(parts, dim=1)

    def levels(self) -> list[Any]:
        quantizer = self.model.quantizer
        if not isinstance(quantizer, Residual):
            raise ValueError(f"expected a residual quantizer, got {type(quantizer).__name__}")
        return list(quantizer.levels)

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*inputs["indices"].unbind(1))
            return {"audio": self.model.decoder(channels_first(codes))}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        indices = self.model.encode(inputs["audio"], num_codebooks=settings.get("num_codebooks")).indices
        return {"audio": self.decode({"indices": indices}, settings)["audio"][..., : inputs["audio"].shape[-1]]}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent = inputs["latent"].movedim(1, -1)
        with torch.no_grad():
            quantized = self.model.quantizer(latent)
        return {
            "projected": self.projected(latent),
            "quantized": channels_first(quantized.codes),
            "indices": torch.stack(quantized.levels, dim=1),
        }

    def compress(self, inputs: Named, settings: dict[str, Any]) -> Named:
        file = dac_file.compress(
            self.model,
            inputs["audio"][0],
            settings["sample_rate"],
            window=settings["win_duration"],
            num_codebooks=settings["num_codebooks"],
            target_db=settings["normalize_db"],
        )
        return {
            "indices": file.codes,
            "input_db": torch.tensor([file.input_db]),
            "chunk_length": torch.tensor(file.chunk_length),
            "delay": torch.tensor(dac_file.delay(self.model)),
        }

    def decompress(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"audio": dac_file.decompress(self.model, self.file(inputs, settings))[None]}

    def container(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Bytes of a pickle may differ; the content may not, of the original's file and of ours."""
        file = self.file(inputs, settings)
        theirs = self.fixture.arrays["file_bytes"].numpy().tobytes()
        same = all(_same(dac_file.DACFile.from_bytes(data), file) for data in (theirs, file.to_bytes()))
        return {"bytes": torch.frombuffer(bytearray(theirs if same else file.to_bytes()), dtype=torch.uint8)}

    def file(self, inputs: Named, settings: dict[str, Any]) -> dac_file.DACFile:
        return dac_file.DACFile(
            codes=inputs["indices"],
            input_db=float(inputs["input_db"]),
            original_length=settings["original_length"],
            sample_rate=settings["sample_rate"],
            chunk_length=int(inputs["chunk_length"]),
            padding=settings["padding"],
        )

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio, count = inputs["audio"], len(self.model.vocab_sizes)
        self.model.train()
        latent = self.model.latent(self.padded(audio))
        latent.retain_grad()
        shortened = int(len(audio) * settings["quantizer_dropout"])
        counts = torch.full((len(audio),), count)
        counts[:shortened] = inputs["dropout_levels"][:shortened]
        self.model.quantizer.draw_items = lambda items: counts  # type: ignore[operator, assignment]
        quantized = self.model.quantizer(latent)
        signal = self.model.decoder(quantized.codes.movedim(-1, 1))[..., : audio.shape[-1]]
        losses = {"loss.l1": (signal - audio[..., : signal.shape[-1]]).abs().mean(), **self.original_losses(quantized)}
        total = sum((weight * losses[f"loss.{name}"] for name, weight in settings["weights"].items()), torch.zeros(()))
        total.backward()
        return {
            "audio": signal,
            "indices": torch.stack(quantized.levels, dim=1),
            "quantized": channels_first(quantized.codes),
            "grad.latent": channels_first(gradient(latent)),
            **losses,
            **self.gradients(),
        }


def _same(one: dac_file.DACFile, other: dac_file.DACFile) -> bool:
    names = ("input_db", "original_length", "sample_rate", "chunk_length", "padding")
    return torch.equal(one.codes, other.codes) and all(getattr(one, name) == getattr(other, name) for name in names)
