"""Checks of DAC's fixtures that go beyond the tokenizer: its dropout, its files, its discriminators and losses."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio import dac_file
from audio.dac import DAC
from audio.parity.discriminators import judgements, named_gradients, weight_normed_names
from zoo import checkpoint
from zoo.losses.audio_discriminators import (
    WaveDiscriminatorConfig,
    discriminator_loss,
    generator_loss,
    summed_feature_loss,
)
from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.losses.spectral import STFTDistance, si_sdr
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers import Residual
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Any:
    """The case that fits the original's class."""
    discriminators = fixture.meta["original"]["class"] == "Discriminator"
    return DiscriminatorCase(fixture, family) if discriminators else DACCase(fixture, family)


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


class DiscriminatorCase:
    """The discriminators and the losses alone. The fixture states by what it divides their channels."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        if kwargs.get("rates"):
            raise ValueError("expected no discriminators of rates: the published recipe has none")
        divisor, defaults = kwargs.get("channel_divisor", 1), WaveDiscriminatorConfig()
        self.network = WaveDiscriminatorConfig(
            periods=tuple(kwargs["periods"]),
            period_channels=tuple(max(2, channels // divisor) for channels in defaults.period_channels),
            windows=tuple(kwargs["fft_sizes"]),
            bands=tuple(map(tuple, kwargs["bands"])),
            band_channels=max(2, defaults.band_channels // divisor),
        ).build()
        sequences = {re.search(r"[0-9]\.0\.(weight|bias)", key) for key in fixture.weights}
        self.names = weight_normed_names(
            fixture.weights, {f".0.{found[1]}": f".{found[1]}" for found in sequences if found}
        )  # each convolution stands in a sequence of its own
        checkpoint.load_into(self.network, {own: fixture.weights[key] for key, own in self.names.items()})

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return judgements(self.network(inputs["audio"]))

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        kind, real, fake = settings["loss"], inputs["real"], inputs["fake"].requires_grad_()
        if kind == "gan":
            return self.adversarial(real, fake)
        if kind == "mel":
            loss = self.mel(real, fake, settings)
        elif kind == "stft":
            loss = STFTDistance(tuple(settings["window_lengths"]), settings.get("pow", 2.0))(fake, real)
        elif kind == "waveform_l1":
            kind, loss = "waveform", F.l1_loss(fake, real)
        else:
            loss = -si_sdr(fake, real).mean()
        (slope,) = torch.autograd.grad(loss, fake)
        return {f"loss.{kind}": loss, "grad.fake": slope}

    def mel(self, real: Tensor, fake: Tensor, settings: dict[str, Any]) -> Tensor:
        resolutions = tuple(
            MelConfig(settings["sample_rate"], window, window // 4, bands, low, high, scale="slaney", area_norm=True)
            for window, bands, low, high in zip(
                settings["window_lengths"], settings["n_mels"], settings["mel_fmin"], settings["mel_fmax"]
            )
        )
        logarithmic = LogMelLoss(LogMelLossConfig(resolutions, floor=settings["clamp_eps"], base="10"))
        loss = settings["pow"] * logarithmic(fake, real)
        for spectrogram in logarithmic.spectrograms:
            loss = loss + settings["mag_weight"] * F.l1_loss(spectrogram(fake), spectrogram(real))
        return loss

    def adversarial(self, real: Tensor, fake: Tensor) -> Named:
        """The original adds up its discriminators."""
        judged_real, count = self.network(real), len(self.network.discriminators)
        loss = count * discriminator_loss(judged_real, self.network(fake.detach()), "least_squares")
        loss.backward()
        outputs = {"loss.disc": loss, **named_gradients(self.network, self.names)}
        judged = self.network(fake)
        outputs["loss.adv"] = count * generator_loss(judged, "least_squares")
        outputs["loss.feat"] = summed_feature_loss(judged_real, judged)
        for name in ("adv", "feat"):
            (outputs[f"grad.fake.{name}"],) = torch.autograd.grad(outputs[f"loss.{name}"], fake, retain_graph=True)
        return outputs
