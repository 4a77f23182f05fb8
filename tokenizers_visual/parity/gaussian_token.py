"""Checks of GaussianToken's Gaussians and their rendering, the parts that its fixture holds."""

from __future__ import annotations

from typing import Any

import torch

from tokenizers_visual.gaussian_token import GEOMETRY, safe_sigmoid
from zoo.ops.splat import splat
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


def case(fixture: Fixture, family: Family) -> Case:
    """The fixture's case."""
    return GaussianCase(fixture, family)


class GaussianCase(Case):
    """The anchor encoder, the last refinement, and the splatting."""

    absent = (
        "encoder.*", "lift.*", "map_layers.*", "anchors", "states", "stages.0.*", "stages.1.*", "stages.2.attention.*",
        "stages.2.feed_forward.*", "stages.2.norm*", "scales.mean", "quantizer.*", "to_latent.*", "from_codes.*",
        "decoder.*",
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
