"""Checks of GaussianToken's fixtures: the whole model, stage by stage, or its Gaussians and their rendering alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual.gaussian_token import GEOMETRY, Gaussians, safe_sigmoid
from zoo.ops.splat import splat
from zoo.parity import Case, Fixture, Named, weighted_sum
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The case that fits what the fixture holds."""
    return WholeCase(fixture, family) if fixture.meta["original"]["class"] == "GQGAN" else GaussianCase(fixture, family)


class GaussianCase(Case):
    """The anchor encoder, the last refinement, and the splatting."""

    absent = (
        "encoder.*", "lift.*", "map_layers.*", "anchors", "states", "stages.0.*", "stages.1.*", "stages.2.layers.*",
        "stages.2.merge.*", "quantizer.*", "to_latent.*", "from_codes.*", "decoder.*",
    )  # fmt: skip

    @torch.no_grad()
    def anchor_encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"anchor_embed": self.model.anchor_encoder(inputs["anchor"])}

    @torch.no_grad()
    def refine(self, inputs: Named, settings: dict[str, Any]) -> Named:
        stage = self.model.stages[-1]
        return {"anchor": stage.refined(inputs["instance_feature"], inputs["anchor_embed"], inputs["anchor"])}

    @torch.no_grad()
    def to_gaussian(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        model.scales.largest.fill_(settings["current_range_max"])
        geometry = 2 * safe_sigmoid(inputs["anchor"][..., :GEOMETRY]) - 1
        features = model.to_features(inputs["anchor"][..., GEOMETRY:])
        found = model.gaussians(torch.cat([features, geometry], dim=-1))
        return {
            "means": found.means, "scales": found.scales, "rotations": found.rotations, "features": found.features,
        }  # fmt: skip

    def render(self, inputs: Named, settings: dict[str, Any]) -> Named:
        size = settings["height"], settings["width"]
        rotations = inputs["rotations"].squeeze(-1)
        features = splat(inputs["means"], rotations, inputs["scales"], inputs["features"], size, tile=settings["block"])
        return {"feature_map": features}


class WholeCase(Case):
    """All of the path, in the model's precision. Features alone are rounded, as in the original; maps (B, H W, D) are
    flat.
    """

    @torch.no_grad()
    def gaussians(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        latent = model.latent(inputs["image"])
        found: Gaussians = model.gaussians(latent)
        return {
            "indices": model.quantizer(latent).levels[0],
            "features": found.features,
            "means": found.means,
            "rotations": found.rotations[..., None],
            "scales": found.scales,
        }

    @torch.no_grad()
    def convolve(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        return {"lifted": model.lift(model.encoder(inputs["image"])).flatten(2).mT}

    @torch.no_grad()
    def look_over(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        features = self._map(inputs["lifted"])
        for layer in model.map_layers:
            features = layer(features, model.map_positions)
        return {"memory": features.flatten(2).mT}

    @torch.no_grad()
    def stage(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        stage, features = model.stages[settings["stage"]], self._map(inputs["memory"])
        embedded = model.anchor_encoder(inputs["anchors"])
        seen = inputs["states"]
        for layer in stage.layers:
            seen = layer(seen, embedded, safe_sigmoid(inputs["anchors"][..., :2]), features)
        states, anchors = stage(inputs["states"], inputs["anchors"], embedded, features)
        return {"seen": torch.cat([seen, inputs["states"]], dim=-1), "states": states, "anchors": anchors}

    @torch.no_grad()
    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        quantized = self.model.quantizer.groups[0](inputs["features"])  # type: ignore[index]
        return {"indices": quantized.levels[0], "quantized": quantized.codes}

    @torch.no_grad()
    def paint(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        return {"image": self.model.decoder(inputs["painted"])}

    @torch.no_grad()
    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        features = model.quantizer.groups[0].indices_to_codes(inputs["indices"])
        low = model.scales.least
        widths = 2 * (inputs["scales"] - low) / (model.scales.largest - low) - 1
        angles = 2 * inputs["rotations"] / math.pi - 1
        codes = torch.cat([features, inputs["means"], angles, widths], dim=-1)
        found = model.gaussians(codes)
        size = (model.grid, model.grid)
        painted = splat(found.means, found.rotations, found.scales, found.features, size)
        return {"painted": painted, "image": model.reconstruct(codes)}

    @torch.no_grad()
    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs = self._typed(inputs)
        model: Any = self.model
        latent = model.latent(inputs["image"])
        features, geometry = latent.split([model.config.features, GEOMETRY], dim=-1)
        quantized = model.quantizer.groups[0](features).codes
        return {"image": model.reconstruct(torch.cat([quantized, geometry], dim=-1))}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        """In training mode, without dropout."""
        model: Any = self.model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
        image = self._typed(inputs)["image"]
        features, geometry = model.latent(image).split([model.config.features, GEOMETRY], dim=-1)
        quantized = model.quantizer.groups[0](features)
        found = model.reconstruct(torch.cat([quantized.codes, geometry], dim=-1))
        losses = {"loss.l1": (found - image).abs().mean(), "loss.commit": quantized.losses["commitment"]}
        losses["loss.total"] = weighted_sum(losses, settings["total"])
        losses["loss.total"].backward()
        return {"indices": quantized.levels[0], **losses, **self.gradients()}

    def _typed(self, inputs: Named) -> Named:
        model: Any = self.model
        kind = model.anchors.dtype
        return {name: value.to(kind) if value.is_floating_point() else value for name, value in inputs.items()}

    def _map(self, flat: Tensor) -> Tensor:
        grid: Any = self.model.grid
        return flat.mT.unflatten(2, (grid, grid))
