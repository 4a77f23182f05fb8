"""Checks of var_vq's fixtures that go beyond the tokenizer: other ladders, first scales alone, VAR's inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.parity import Case, Fixture, Named, channels_first
from zoo.registry import Family
from zoo.tokens import Tokens


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return VARCase(fixture, family)


class VARCase(Case):
    """Images are those of the ladder's size; the original clamps reconstructions, but not in training."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        if "v_patch_nums" in settings:
            self.change_quantizer(ladder=tuple(settings["v_patch_nums"]))
        outputs = super().encode(inputs, settings)
        tokens = self.model.encode(inputs["image"])
        for count in range(1, len(tokens.levels) + 1):
            outputs[f"quantized.scale{count}"] = channels_first(self.model.codes(tokens.truncate(count)))
        return outputs

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"image": self.model.decode(self._tokens(inputs["indices"])).clamp(-1, 1)}

    def reconstruct(self, inputs: Named, settings: dict[str, Any]) -> Named:
        tokens = self.model.encode(inputs["image"])
        return {"image": self.model.decode(tokens.truncate(settings.get("scales", len(tokens.levels)))).clamp(-1, 1)}

    def var_input(self, inputs: Named, settings: dict[str, Any]) -> Named:
        quantizer: Any = self.model.quantizer
        with torch.no_grad():
            return {"features": quantizer.next_scale_inputs(*self._tokens(inputs["indices"]).levels)}

    def quantize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        inputs["upstream"] = inputs.pop("cotangent")
        settings = {"training": settings["mode"] == "train", "grad_of": "sum(quantized*upstream) + vq"}
        outputs = super().quantize(inputs, settings)
        outputs["grad.embedding.weight"] = outputs["grad.quantize.embedding.weight"]
        return outputs

    def _tokens(self, indices: Tensor) -> Tokens:
        config: Any = self.model.quantizer.config
        side = config.ladder[-1] * self.model.spec.multiple
        return self.model.tokens(indices, extent=(side, side))
