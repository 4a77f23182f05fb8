"""Checks of bigcodec's fixtures that go beyond the tokenizer: the projected latent, training, discriminators."""

from __future__ import annotations

import re
from typing import Any

import torch

from audio.parity.discriminators import weight_normed_names
from zoo.config import require_arguments
from zoo.losses.audio_discriminators import discriminator_loss, generator_loss, summed_feature_loss
from zoo.losses.magnitude_discriminators import MagnitudeDiscriminatorConfig, MagnitudeDiscriminators
from zoo.losses.mel import LogMelLoss, LogMelLossConfig, MelConfig
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.quantizers.base import linear
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case | DiscriminatorCase:
    """The case that fits the original's class."""
    if "mpd" in fixture.meta["original"]["kwargs"]:
        return DiscriminatorCase(fixture)
    return BigCodecCase(fixture, family)


class DiscriminatorCase:
    """The discriminators of training; their losses are sums over all of them."""

    def __init__(self, fixture: Fixture) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        config = _config(kwargs["mpd"], kwargs["mstft"])
        self.network = MagnitudeDiscriminators(config)
        self.periods = len(config.periods)
        layers = len(config.strides) + 2
        changes = {"output_conv": "conv_post", f"layer_{layers}.": "conv_post."}
        changes |= {f"layer_{layer}.": f"convs.{layer}." for layer in range(layers)}
        state = {}
        for key, own in weight_normed_names(fixture.weights, changes).items():
            part, _, name = own.partition(".")
            name = re.sub(r"(convs\.\d+)\.0\.", r"\1.", name)
            if part == "spec_discriminator":
                name = re.sub(r"model\.disc_(\d+)\.model", lambda m: f"discriminators.{self.periods + int(m[1])}", name)
            state[name] = fixture.weights[key]
        self.network.load_state_dict(state)

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        outputs: Named = {}
        with torch.no_grad():
            for i, judgement in enumerate(self.network(inputs["audio"])):
                name = f"mpd.{i}" if i < self.periods else f"spec.{i - self.periods}"
                outputs |= {f"{name}.feature.{j}": feature for j, feature in enumerate(judgement.features)}
                outputs[f"{name}.logits"] = judgement.logits
        return outputs

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        generated = inputs["generated"].requires_grad_()
        real, fake = self.network(inputs["real"]), self.network(generated)
        adversarial = len(fake) * generator_loss(fake, "least_squares")
        matching = summed_feature_loss(real, fake)
        (slope,) = torch.autograd.grad(adversarial + matching, generated)
        return {
            "loss.disc": len(fake) * discriminator_loss(real, fake, "least_squares"),
            "loss.adv": adversarial,
            "loss.feature_matching": matching,
            "grad.generated": slope,
        }


_PERIOD_DEFAULTS = {
    "periods": [2, 3, 5, 7, 11], "channels": 32, "channel_increasing_factor": 4, "max_downsample_channels": 1024,
    "downsample_scales": [3, 3, 3, 3, 1], "kernel_sizes": [5, 3], "in_channels": 1, "out_channels": 1,
    "nonlinear_activation": "LeakyReLU", "nonlinear_activation_params": {"negative_slope": 0.1},
    "use_weight_norm": True,
}  # fmt: skip
_SPECTRUM_DEFAULTS = {
    "stft_params": {
        "fft_sizes": [1024, 2048, 512], "hop_sizes": [120, 240, 50], "win_lengths": [600, 1200, 240],
        "window": "hann_window",
    },
    "channels": 32, "max_downsample_channels": 512, "downsample_scales": [2, 2, 2], "kernel_sizes": [7, 3],
    "in_channels": 1, "out_channels": 1, "use_weight_norm": True,
}  # fmt: skip


def _config(periods: dict[str, Any], spectra: dict[str, Any]) -> MagnitudeDiscriminatorConfig:
    """What is not stated is as the original's classes have it; what is not here is refused by name."""
    periods, spectra = {**_PERIOD_DEFAULTS, **periods}, {**_SPECTRUM_DEFAULTS, **spectra}
    transforms, scales = spectra["stft_params"], periods["downsample_scales"]
    fixed = {
        "kernel_sizes": [5, 3], "downsample_scales": [*[3] * (len(scales) - 1), 1], "in_channels": 1,
        "out_channels": 1, "nonlinear_activation": "LeakyReLU",
        "nonlinear_activation_params": {"negative_slope": 0.1}, "use_weight_norm": True,
    }  # fmt: skip
    of = "BigCodec's discriminators"
    require_arguments(periods, fixed, of)
    require_arguments(spectra, {"in_channels": 1, "out_channels": 1, "use_weight_norm": True}, of)
    require_arguments(transforms, {"window": "hann_window"}, of)
    grown = (periods["channels"] * periods["channel_increasing_factor"] ** i for i in range(len(scales)))
    first, last = spectra["kernel_sizes"]
    return MagnitudeDiscriminatorConfig(
        periods=tuple(periods["periods"]),
        period_channels=tuple(min(width, periods["max_downsample_channels"]) for width in grown),
        n_ffts=tuple(transforms["fft_sizes"]),
        hop_lengths=tuple(transforms["hop_sizes"]),
        window_lengths=tuple(transforms["win_lengths"]),
        channels=spectra["channels"],
        most_channels=spectra["max_downsample_channels"],
        strides=tuple(spectra["downsample_scales"]),
        kernel_size=first,
        last_kernel_size=last,
    )


class BigCodecCase(Case):
    """Indices are (codebooks, B, frames), audio has whole frames."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(inputs["audio"]))
        indices = self.model.encode(inputs["audio"]).indices
        return {"indices": indices.transpose(0, 1), "latent": channels_first(latent)}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        latent, quantizer = inputs["latent"].movedim(1, -1), self.model.quantizer
        with torch.no_grad():
            quantized = quantizer(latent)
            first: Any = quantizer.get_submodule("levels.0")
            return {
                "indices": torch.stack(quantized.levels),
                "quantized": channels_first(quantized.codes),
                "projected": linear(first.project_in, latent),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"audio": self.model.reconstruct(self.model.quantizer.indices_to_codes(*inputs["indices"]))}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            latent = self.model.latent(self.model.pad(inputs["audio"]))
            return {"audio": self.model.reconstruct(self.model.quantizer(latent).codes)}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        target = self.model.train().pad(inputs["audio"])
        latent = self.model.latent(target)
        latent.retain_grad()
        quantized = self.model.quantizer(latent)
        audio = self.model.reconstruct(quantized.codes)
        losses = {"loss.mel": mel_loss(settings["mel_loss"])(audio, target), **self.original_losses(quantized)}
        weighted = [settings[f"{name}_weight"] * losses[f"loss.{name}"] for name in ("mel", "vq")]
        losses["loss.total"] = torch.stack(weighted).sum()
        losses["loss.total"].backward()
        return {**losses, "audio": audio, "grad.latent": channels_first(gradient(latent)), **self.gradients()}


def mel_loss(settings: dict[str, Any]) -> LogMelLoss:
    """The multi-resolution mel loss of BigCodec and X-codec2, by a fixture's arguments."""
    resolutions = tuple(
        MelConfig(settings["sample_rate"], window, window // 4, n_mels, scale="slaney", area_norm=True)
        for window, n_mels in zip(settings["window_lengths"], settings["n_mels"])
    )
    return LogMelLoss(LogMelLossConfig(resolutions, base="10"))
