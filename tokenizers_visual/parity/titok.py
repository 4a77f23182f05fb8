"""Checks of the TiTok families: rows of tokens, prefixes, both stages of training, posteriors, text, adversary."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.parity.adversarial import blur_discriminator
from zoo.checkpoint import load_into
from zoo.layers.posterior import Posterior
from zoo.losses.adversarial import LeCam, hinge_discriminator_loss, linear_generator_loss
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.parity import Case, Fixture, Named, channels_first, gradient
from zoo.registry import Family, registry


def case(fixture: Fixture, family: Family) -> Case | DiscriminatorCase:
    """The case that fits the original's class."""
    original = fixture.meta["original"]["class"]
    if original == "NLayerDiscriminator":
        return DiscriminatorCase(fixture)
    if original == "PretrainedTokenizer":
        return ProxyCase(fixture, registry.family("maskgit_vq", "tokenizers_visual.maskgit_vq"))
    return TiTokCase(fixture, family)


class TiTokCase(Case):
    """Indices are (B, 1, tokens), latents (B, D, 1, tokens)."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        meta = fixture.meta
        if (
            not any(key.startswith("pixel_decoder.") for key in fixture.weights)
            and "pixel_decoder" not in meta["original"]
        ):
            meta = {**meta, "original": {"pixel_decoder": _small_decoder(meta), **meta["original"]}}
        self.fixture, self.meta, self.definitions = fixture, fixture.meta, family.module
        self.model = family.model(self.definitions.config_from_original(meta)).eval()  # type: ignore[call-arg]
        self.key_map = self.definitions.key_map_from_original(meta)
        # of the first stage there is no decoder to pixels
        load_into(self.model, self.key_map(fixture.weights), absent=("proxy_codebook.*", "pixel_decoder.*"))

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            if model.config.variational:
                return _of_posterior(model.features(inputs["image"]), inputs["noise"])
            quantized = model.quantizer(model.latent(inputs["image"]))
            return {
                "indices": model.encode(inputs["image"], num_tokens=settings.get("num_tokens")).indices,
                "latent": channels_first(model.latent(inputs["image"])),
                "quantized": channels_first(quantized.codes),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        text = inputs.get("text_features")
        given = {} if text is None else {"text": text}
        with torch.no_grad():
            if "latent" in inputs:
                return {"image": model.reconstruct(inputs["latent"][:, :, 0].transpose(1, 2), **given)}
            tokens = model.tokens(inputs["indices"][:, 0])
            outputs = {"image": model.decode(tokens, **given)}
            if model.config.proxy is not None:
                outputs["logits"] = outputs["pixel_logits"] = model.proxy_logits(model.codes(tokens))
        return outputs

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, text = inputs["image"], inputs.get("text_features")
        given = {} if text is None else {"text": text}
        stated = self.meta["original"]["kwargs"]["config"]["losses"]
        model.train()
        losses: Named
        if model.config.variational:
            parameters = model.features(image)
            parameters.retain_grad()
            posterior = Posterior.of(parameters)
            codes = posterior.sample(inputs["noise"][:, :, 0].transpose(1, 2))
            losses = {"loss.kl": posterior.divergence().sum() / len(image)}
        else:
            parameters = model.latent(image)
            parameters.retain_grad()
            quantized = model.quantizer(parameters)
            codes, losses = quantized.codes, self.original_losses(quantized)
        codes = codes[:, : settings.get("kept_tokens")]
        model.eval()  # there is no dropout but that of the tail, which is given
        if "proxy_codes" in inputs:
            logits = model.proxy_logits(codes)
            losses["loss.reconstruction"] = F.cross_entropy(logits.flatten(2), inputs["proxy_codes"])
        else:
            pixel_loss = RECONSTRUCTION_LOSSES[stated.get("reconstruction_loss", "l2")]
            error = pixel_loss(model.reconstruct(codes, **given), image).mean()
            losses["loss.reconstruction"] = stated.get("reconstruction_weight", 1.0) * error
        reconstruction = losses["loss.reconstruction"]
        if settings["stage"] == 2:  # encoder and quantizer rest
            reconstruction.backward()
            return {**losses, **self.gradients()}
        if "loss.kl" in losses:
            losses["loss.total"] = reconstruction + settings["kl_weight_of_total"] * losses["loss.kl"]
            (reconstruction + settings["kl_weight_of_gradients"] * losses["loss.kl"]).backward()
        else:
            losses["loss.total"] = reconstruction + stated["quantizer_weight"] * losses["loss.quantizer"]
            losses["loss.total"].backward()
        state = self.model.state_dict()
        published = {
            f"state.{key}": state[own]
            for key in self.fixture.weights
            if (own := self.key_map.name(key, self.fixture.weights)) in state
        }
        return {**losses, **published, "grad.latent": channels_first(gradient(parameters)), **self.gradients()}


def _of_posterior(parameters: Tensor, noise: Tensor) -> Named:
    posterior = Posterior.of(parameters)
    parts = {
        "mean": posterior.mean,
        "logvar": posterior.log_variance,
        "sample": posterior.sample(noise[:, :, 0].transpose(1, 2)),
        "latent": parameters,
    }
    return {"kl": posterior.divergence().sum(-1), **{name: channels_first(part) for name, part in parts.items()}}


def _small_decoder(meta: dict[str, Any]) -> dict[str, Any]:
    """A decoder to pixels for the stride of a fixture that has none."""
    patch = meta["original"]["kwargs"]["config"]["model"]["vq_model"]["vit_dec_patch_size"]
    multipliers = [1] * patch.bit_length()
    return {"z_channels": 2, "hidden_channels": 2, "channel_mult": multipliers, "num_res_blocks": 1, "norm_groups": 1}


class ProxyCase(Case):
    """The MaskGIT VQGAN alone; the original clamps what it decodes."""

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = super().decode(inputs, settings)["image"]
        return {"image": image.clamp(0, 1) if settings["clamp"] else image}

    def original_losses(self, quantized: Any) -> Named:
        return {}


class DiscriminatorCase:
    """The discriminator alone, and the losses of both players."""

    def __init__(self, fixture: Fixture) -> None:
        defaults = {"hidden_channels": 128, "num_stages": 3, "blur_resample": True}
        self.network = blur_discriminator({**defaults, **fixture.meta["original"]["kwargs"]})
        self.network.load_state_dict(fixture.weights)

    def discriminator(self, inputs: Named, settings: dict[str, Any]) -> Named:
        with torch.no_grad():
            return {"logits": self.network(inputs["image"])}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        lecam = LeCam(settings["lecam_decay"])
        lecam.ema_real_logits_mean.copy_(inputs["ema_real"])
        lecam.ema_fake_logits_mean.copy_(inputs["ema_fake"])
        real, fake = self.network(inputs["image"]), self.network(inputs["reconstruction"])
        hinge, penalty = hinge_discriminator_loss(real, fake), lecam(real, fake)
        (hinge + penalty).backward()
        reconstruction = inputs["reconstruction"].requires_grad_()
        generator = linear_generator_loss(self.network(reconstruction))
        (slope,) = torch.autograd.grad(generator, reconstruction)
        return {
            "loss.hinge": hinge,
            "loss.lecam": penalty,
            "loss.generator": generator,
            "grad.reconstruction": slope,
            "state.ema_real": lecam.ema_real_logits_mean,
            "state.ema_fake": lecam.ema_fake_logits_mean,
            **{f"grad.{key}": p.grad for key, p in self.network.named_parameters() if p.grad is not None},
        }
