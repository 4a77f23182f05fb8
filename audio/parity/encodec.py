"""Checks of EnCodec's fixtures that go beyond the tokenizer: segments and their gains, files, balanced losses."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio import ecdc, encodec, encodec_entropy
from audio.encodec import Encodec, EncodecConfig, residual_codebooks
from audio.encodec_entropy import CodeModel
from audio.parity.discriminators import judgements, named_gradients, weight_normed_names
from zoo import checkpoint
from zoo.config import require_arguments
from zoo.losses.audio_discriminators import (
    STFTDiscriminatorConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
)
from zoo.losses.balancer import Balancer, BalancerConfig
from zoo.losses.mel import MelConfig, MelSpectrogram
from zoo.losses.spectral import MultiScaleMelLoss, MultiScaleMelLossConfig, framed_si_sdr
from zoo.ops.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder, quantized_cdf
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers.composite import evaluating
from zoo.registry import Family, registry


def case(fixture: Fixture, family: Family) -> Any:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    kinds: dict[str, Any] = {
        "LMModel": FileCase,
        "MultiScaleSTFTDiscriminator": DiscriminatorCase,
        "Balancer, MultiScaleMelSpectrogramLoss, SISNR": LossCase,
        "ResidualVectorQuantization": QuantizerCase,
    }
    return kinds.get(original, EncodecCase)(fixture, family)


class EncodecCase(Case):
    """Indices are (B, codebooks, frames), of segments one array each (`indices.0`, ...), or as transformers has them:
    (segments, B, codebooks, frames), the last segment continued with zeros.
    """

    model: Encodec

    def count(self, settings: dict[str, Any]) -> int:
        """Codebooks of a bandwidth in kbit/s, as the original rounds; without one all."""
        if not settings.get("bandwidth"):
            return settings.get("num_codebooks", len(self.model.vocab_sizes))
        config, size = self.model.config, self.model.vocab_sizes[0]
        frame_rate = math.ceil(config.sample_rate / config.seanet.hop_length)
        count = int(1000 * settings["bandwidth"] / (math.log2(size) * frame_rate))
        return min(max(1, count), len(self.model.vocab_sizes))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        audio = inputs["audio"]
        tokens = self.model.encode(audio, num_codebooks=self.count(settings))
        with torch.no_grad():
            latent = channels_first(self.model.latent(audio))
        frames = self.model.config.frames(audio.shape[-1])
        parts = tokens.indices.split(frames, dim=-1)
        outputs = {"indices": tokens.indices, "latent": latent}
        if "transformers" in self.meta["original"]["class"]:
            longest = max(frames)
            padded = [F.pad(part, (0, longest - part.shape[-1])) for part in parts]
            outputs["indices"] = torch.stack(padded)
        for i, (part, of_part) in enumerate(zip(parts, latent.split(frames, dim=-1))):
            outputs |= {f"indices.{i}": part, f"latent.{i}": of_part}
        if tokens.extent is not None and tokens.extent.gains is not None:
            for i, gain in enumerate(torch.tensor(tokens.extent.gains).unbind(1)):
                outputs[f"scale.{i}"] = gain[:, None]
        return outputs

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if "indices" not in inputs:
            parts = [inputs[f"indices.{i}"] for i in range(sum(name.startswith("indices") for name in inputs))]
        elif inputs["indices"].ndim == 4:
            parts = list(inputs["indices"])
            parts[-1] = parts[-1][..., : parts[-1].shape[-1] - settings.get("last_frame_pad_length", 0)]
        else:
            parts = [inputs["indices"]]
        scales = [inputs[f"scale.{i}"] for i in range(len(parts)) if f"scale.{i}" in inputs]
        with torch.no_grad():
            codes = self.model.quantizer.indices_to_codes(*torch.cat(parts, dim=-1).unbind(1))
            return {"audio": self.model.reconstruct(codes, gains=torch.cat(scales, dim=1) if scales else None)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"audio": self.model.decode(self.model.encode(inputs["audio"], num_codebooks=self.count(settings)))}

    def stream_encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        chunks = inputs["audio"].split(settings["chunks"], dim=-1)
        with self.model.streaming(self.count(settings)) as stream:
            parts = [stream.encode(chunk, last=chunk is chunks[-1]) for chunk in chunks]
        return {"indices": torch.cat(parts, dim=-1)}

    def stream_decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        chunks = inputs["indices"].split(settings["chunks"], dim=-1)
        with self.model.streaming() as stream:
            parts = [stream.decode(chunk, last=chunk is chunks[-1]) for chunk in chunks]
        return {"audio": torch.cat(parts, dim=-1)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.train().quantizer
        used = range(self.count(settings))  # the codebooks of the bandwidth
        quantizer.quantize = partial(quantizer._quantize_levels, used=used)
        output = self.model(inputs["audio"])
        output.latent.retain_grad()
        l1 = (output.reconstruction - inputs["audio"]).abs().mean()
        losses = {"loss.l1": l1, **self.original_losses(output.quantized)}
        sum(losses.values(), torch.zeros(())).backward()
        state = {f"state.{key}": value for key, value in self.published_codebooks().items()}
        last = f"quantizer.vq.layers.{len(self.model.vocab_sizes) - 1}._codebook.embed"
        return {
            "audio": output.reconstruction,
            "grad.latent": channels_first(gradient(output.latent)),
            "state.last.embed": state[f"state.{last}"],
            **losses,
            **state,
            **self.gradients(),
        }

    def published_codebooks(self) -> Named:
        """The codebooks as they are now, under their published names."""
        own = self.model.state_dict()
        named = {key: self.key_map.name(key, self.fixture.weights) for key in self.fixture.weights}
        return {key: own[name] for key, name in named.items() if name and name.startswith("quantizer.")}


class FileCase:
    """Files, arithmetic coding, and the language model that it codes by."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.code_model = CodeModel(encodec_entropy.config_from_original(fixture.meta["original"]["kwargs"])).eval()
        checkpoint.load_into(self.code_model, encodec_entropy.KEY_MAP(fixture.weights))
        self.expected = fixture.arrays

    def container(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """Writing, and reading what was written."""
        names = sorted(name for name in inputs if name.startswith("indices"))
        segments = [inputs[name] for name in names]
        scales = tuple(float(inputs[name]) for name in sorted(inputs) if name.startswith("scale"))
        code_model = self.code_model if settings["lm"] else None
        size = code_model.config.codebook_size if code_model else 1024
        data = ecdc.write(settings["model"], segments, settings["audio_length"], scales or None, size, code_model)
        about, start = ecdc.read_header(data)
        config = EncodecConfig.from_dict(registry.card(settings["model"]).config)
        parts, gains = ecdc.read_segments(data[start:], about, config, size, code_model)
        if not all(torch.equal(part, segment) for part, segment in zip(parts, segments, strict=True)):
            raise ValueError("expected to read the codes that were written, got others")
        if tuple(gains or ()) != scales:
            raise ValueError(f"expected to read the scales {scales}, got {gains}")
        return {"bytes": torch.tensor(list(data), dtype=torch.uint8)}

    def arithmetic_code(self, inputs: Named, settings: dict[str, Any]) -> Named:
        cdfs = quantized_cdf(inputs["pdfs"])
        encoder = ArithmeticEncoder()
        for symbol, cdf in zip(inputs["symbols"].tolist(), cdfs.tolist()):
            encoder.push(symbol, cdf)
        data = encoder.finish()
        decoder = ArithmeticDecoder(data)
        if [decoder.pull(cdf) for cdf in cdfs.tolist()] != inputs["symbols"].tolist():
            raise ValueError("expected to read the symbols that were written, got others")
        return {"bytes": torch.tensor(list(data), dtype=torch.uint8), "cdf.0": cdfs[0]}

    def language_model(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"probabilities": self.code_model(inputs["indices"])}


class DiscriminatorCase:
    """The discriminators on spectra, and the losses on them."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        defaults = STFTDiscriminatorConfig()
        fixed = {"out_channels": 1, "filters_scale": 1, "stride": [1, 2], "normalized": True, "norm": "weight_norm",
                 "activation": "LeakyReLU", "sep_channels": False}  # fmt: skip
        require_arguments(kwargs, fixed, "EnCodec's discriminators")
        self.network = STFTDiscriminatorConfig(
            channels=kwargs.get("in_channels", 1),
            filters=kwargs["filters"],
            n_ffts=tuple(kwargs.get("n_ffts", (1024, 2048, 512))),
            hop_lengths=tuple(kwargs.get("hop_lengths", (256, 512, 128))),
            window_lengths=tuple(kwargs.get("win_lengths", (1024, 2048, 512))),
            kernel_size=tuple(kwargs.get("kernel_size", defaults.kernel_size)),
            dilations=tuple(kwargs.get("dilations", defaults.dilations)),
            slope=kwargs.get("activation_params", {}).get("negative_slope", 0.2),  # the class's own; the recipe has 0.3
        ).build()
        self.names = weight_normed_names(fixture.weights, {".conv.": "."})
        state = {own: fixture.weights[key] for key, own in self.names.items() if "spec_transform" not in key}
        checkpoint.load_into(self.network, state)

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return judgements(self.network(inputs["audio"]))

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        real, fake = inputs["real"], inputs["fake"].requires_grad_()
        loss = discriminator_loss(self.network(real), self.network(fake.detach()), settings["adversarial"])
        loss.backward()
        outputs = {"loss.disc": loss, **named_gradients(self.network, self.names)}
        judged, judged_real = self.network(fake), self.network(real)
        outputs["loss.adv"] = generator_loss(judged, settings["adversarial"])
        outputs["loss.feat"] = feature_loss(judged_real, judged)
        for name in ("adv", "feat"):
            (outputs[f"grad.fake.{name}"],) = torch.autograd.grad(outputs[f"loss.{name}"], fake, retain_graph=True)
        return outputs


class LossCase:
    """The losses alone, and the balancer over several steps."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def mel(self, settings: dict[str, Any]) -> MultiScaleMelLoss:
        exponents = range(settings["range_start"], settings["range_end"])
        return MultiScaleMelLoss(
            MultiScaleMelLossConfig(
                settings["sample_rate"], tuple(2**i for i in exponents), settings["n_mels"], settings["f_min"],
                settings["f_max"], settings["alphas"], settings["normalized"], settings["floor_level"],
            )
        )  # fmt: skip

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        real, fake, rate = inputs["real"], inputs["fake"].requires_grad_(), settings["sample_rate"]
        if settings["loss"] == "msspec":
            loss = self.mel(settings)(fake, real)
        elif settings["loss"] == "sisnr":
            frame = int(settings["segment"] * rate)
            loss = -framed_si_sdr(fake, real, frame, int(frame * (1 - settings["overlap"])))
        else:
            spectrogram = MelSpectrogram(
                MelConfig(
                    rate, settings["n_fft"], settings["hop_length"], settings["n_mels"], settings["f_min"],
                    settings["f_max"], power=2, padding="filled", window_norm=settings["normalized"],
                )
            )  # fmt: skip
            mels = [spectrogram(signal) for signal in (fake, real)]
            if settings["log"]:
                mels = [(settings["floor_level"] + mel).log10() for mel in mels]
            loss = F.l1_loss(*mels)
        (slope,) = torch.autograd.grad(loss, fake)
        return {f"loss.{settings['loss']}": loss, "grad.fake": slope}

    def balancer(self, inputs: Named, settings: dict[str, Any]) -> Named:
        weights = settings["weights"]
        balancer = Balancer(
            BalancerConfig(
                tuple(weights), tuple(map(float, weights.values())), settings["total_norm"], settings["ema_decay"],
                settings["per_batch_item"],
            )
        )  # fmt: skip
        mel = self.mel({**settings["msspec"], "sample_rate": settings["sample_rate"]})
        outputs: Named = {}
        for step in range(sum(name.startswith("fake") for name in inputs)):
            fake, real = inputs[f"fake.{step}"].requires_grad_(), inputs["real"]
            losses = {"l1": F.l1_loss(fake, real), "mse": F.mse_loss(fake, real), "msspec": mel(fake, real)}
            balanced = balancer({name: losses[name] for name in weights}, fake)
            outputs |= {f"grad.{step}": balanced.gradient, f"effective.{step}": balanced.effective}
            outputs |= {f"loss.{name}.{step}": loss for name, loss in losses.items()}
        return outputs


class QuantizerCase:
    """The residual quantizer alone, as audiocraft has repaired it: the losses of every level reach the latent."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        config = residual_codebooks(
            kwargs["codebook_size"], kwargs["dim"], kwargs["num_quantizers"], kwargs["decay"],
            kwargs["threshold_ema_dead_code"],
        )  # fmt: skip
        self.quantizer = config.replace(gradient="straight_through").build()
        self.key_map = encodec.KEY_MAP
        self.weights = {f"quantizer.vq.{key}": value for key, value in fixture.weights.items()}
        own = self.key_map(self.weights)
        checkpoint.load_into(self.quantizer, {key.removeprefix("quantizer."): value for key, value in own.items()})

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent = inputs["latent"].movedim(1, -1).requires_grad_()
        self.quantizer.train(settings["train"])
        losses = self.level_losses(latent)
        quantized = self.quantizer(latent)
        outputs = {"indices": torch.stack(quantized.levels), "quantized": channels_first(quantized.codes)}
        if settings["train"]:
            cotangent = inputs["cotangent"].movedim(1, -1)
            (by_output,) = torch.autograd.grad((quantized.codes * cotangent).sum(), latent, retain_graph=True)
            (by_loss,) = torch.autograd.grad(quantized.losses["commitment"], latent)
            state = {f"quantizer.{key}": value for key, value in self.quantizer.state_dict().items()}
            named = {key: self.key_map.name(key, self.weights) for key in self.weights}
            outputs |= {
                "loss.commit_per_level": losses,
                "grad.latent.output": channels_first(by_output),
                "grad.latent.commit": channels_first(by_loss),
                **{f"state.{key.removeprefix('quantizer.vq.')}": state[own] for key, own in named.items() if own},
            }
        return outputs

    def level_losses(self, latent: Tensor) -> Tensor:
        """The commitment of each level, with the codebooks as they are before the pass."""
        residual, losses = latent.detach(), []
        with torch.no_grad():
            for level in self.quantizer.levels:  # type: ignore[union-attr]
                with evaluating(level):
                    codes = level.quantize(residual).codes
                losses.append((residual - codes).square().mean())
                residual = residual - codes
        return torch.stack(losses)
