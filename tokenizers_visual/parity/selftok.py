"""Checks of Selftok's fixtures: the encoder with its quantizer and the schedule of tokens, and the decoders."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.selftok import Flow, flow_from_original
from zoo.checkpoint import load_into
from zoo.layers.diffusion_transformer import flow_times
from zoo.parity import Case, Fixture, Named, gradient, gradients
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> EncoderCase | DecoderCase:
    """The case that fits the original's class."""
    match fixture.meta["original"]["class"]:
        case "MMDiT":
            return DecoderCase(fixture, family)
        case "ImageTokenizer":
            return RendererCase(fixture, family)
    return EncoderCase(fixture, family)


class EncoderCase(Case):
    """Latents and codes are (B, tokens, D); the latent of a quantize check is what is projected to the codes."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        signal = inputs["latent_image"]
        with torch.no_grad():
            features = model.encoder(signal)
            indices = model.encode(signal).indices
            states = model.condition(model.quantizer.indices_to_codes(indices))
        if "num_tokens_index" in inputs:
            states = states * _until(inputs["num_tokens_index"][: len(states)], states.shape[1])[..., None]
        latent = F.normalize(model.latent(signal), dim=-1)
        return {"indices": indices, "latent": latent, "features": features, "hidden_states": states}

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            return {"hidden_states": model.condition(model.codes(model.tokens(inputs["indices"])))}

    def token_schedule(self, inputs: Named, settings: dict[str, Any]) -> Named:
        kwargs = {"stages": settings["stages"], "kps": settings["k_per_stage"]}
        kwargs |= {"head": 2, "depth": 1, "pm": 4, "steps": 1}  # sizes that the schedule does not depend on
        return {"k_index": flow_from_original({"original": {"kwargs": kwargs}}).last_seen(inputs["timesteps"])}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        model.train(settings["mode"] == "train")
        features = inputs["latent"].requires_grad_()
        quantized = model.quantizer(model.to_latent(features))
        losses = self.original_losses(quantized)
        ((quantized.codes * inputs["cotangent"]).sum() + losses["loss.total"]).backward()
        quantizer = model.quantizer
        return {
            "indices": quantized.indices,
            "quantized": quantized.codes,
            **losses,
            "entropy.codebook": quantized.statistics["position_entropy"],
            "entropy.per_sample": quantized.statistics["sample_entropy"],
            "grad.latent": gradient(features),
            "grad.project_in.weight": gradient(model.to_latent.weight),
            "buffer._codebook.embed": quantizer.inner.codes(),
            "buffer._codebook.embed_avg": quantizer.inner.ema.total,
            "buffer._codebook.cluster_size": quantizer.inner.ema.count,
            "buffer._codebook.timestep_p_over_c": quantizer.frequencies,
        }


class RendererCase(EncoderCase):
    """A whole model with a renderer, which is compared in float64."""

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        states = super().decode(inputs, settings)
        self.model.double()
        return {**states, "latent_image": self.model.decode(self.model.tokens(inputs["indices"]))}

    def render(self, inputs: Named, settings: dict[str, Any]) -> Named:
        renderer: Any = self.model.double().decoder
        found: Named = {}
        for i, block in enumerate(renderer.blocks):
            names = (f"block.context.{i}", f"block.image.{i}")
            block.register_forward_hook(lambda _, given, made, names=names: found.update(zip(names, made)))
        context = inputs["hidden_states"].requires_grad_()
        found["latent_image"] = renderer(context)
        (found["latent_image"] * inputs["cotangent"]).sum().backward()
        found["grad.hidden_states"] = gradient(context)
        return {**found, **gradients(self.model, self.key_map, self.fixture.weights)}


def _until(last: Tensor, count: int) -> Tensor:
    """(B, count): which tokens are no later than the last."""
    return torch.arange(count) <= last[:, None]


class DecoderCase:
    """The decoder alone; the fixture's hidden states are its context."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        kwargs = fixture.meta["original"]["kwargs"]
        self.fixture, self.key_map = fixture, family.module.key_map_from_original(fixture.meta)
        self.model = torch.nn.ModuleDict(
            {"decoder": Flow(flow_from_original(fixture.meta), kwargs["ch"], kwargs["ctx"], kwargs["K"])}
        )
        load_into(self.model, self.key_map(fixture.weights))
        self.decoder: Any = self.model["decoder"]

    def denoise(self, inputs: Named, settings: dict[str, Any]) -> Named:
        self.decoder.context_sees_image = settings["context_see_xt"]
        seen = self.decoder.seen(inputs["t"])
        context = inputs["hidden_states"] * seen[..., None]
        with torch.no_grad():
            return {"velocity": self.decoder(inputs["x_t"], inputs["t"], context, seen), "mask": seen.long()}

    def sample(self, inputs: Named, settings: dict[str, Any]) -> Named:
        times = torch.tensor(flow_times(settings["steps"]))
        with torch.no_grad():
            latent = self.decoder.sample(inputs["noise"], inputs["hidden_states"], settings["steps"])
        return {"latent": latent, "times": times, "k_index": self.decoder.seen(times).sum(1) - 1}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        signal, noise, times = (inputs[name] for name in ("latent", "noise", "t"))
        _, velocity = self.decoder.flow(signal, noise, times, inputs["hidden_states"], self.decoder.seen(times))
        loss = F.mse_loss(velocity, noise - signal)
        loss.backward()
        return {"loss.flow": loss, **gradients(self.model, self.key_map, self.fixture.weights)}
