"""The CLIPs of fixtures, in both libraries, and the checks of a CLIP itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenizers_visual.inversion import long_clip, pic2word
from tokenizers_visual.inversion.clip import ClipPair, OpenClipPair, TransformersPair
from zoo import checkpoint
from zoo.checkpoint import KeyMap
from zoo.parity import Fixture, FixtureError, Named, gradient
from zoo.registry import Family

PLACEHOLDER_ID = 259  # of "$" in CLIP's vocabulary


def companion(fixture: Fixture) -> Fixture:
    """The CLIP's fixture, which lies beside the one that names it."""
    folder = fixture.folder.parent / fixture.meta["clip"]
    if not (folder / "meta.json").is_file():
        raise FixtureError(f"expected the fixture {fixture.meta['clip']} in {folder.parent}, beside {fixture.name}")
    return Fixture.read(folder)


def open_clip_pair(clip: Fixture, placeholder_id: int) -> OpenClipPair:
    """The CLIP of a fixture, in open_clip."""
    import open_clip

    original = clip.meta["original"]
    model = open_clip.CLIP(**original["open_clip"])
    prefix = clip.meta["key_styles"]["transformers"]
    checkpoint.load_into(model, split(clip.weights, prefix)[1])
    return OpenClipPair(model, backbone=clip.name, placeholder_id=placeholder_id)


def transformers_pair(clip: Fixture, placeholder_id: int) -> TransformersPair:
    """The CLIP of a fixture, in transformers."""
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig(**clip.meta["original"]["transformers"]))
    prefix = clip.meta["key_styles"]["transformers"]
    checkpoint.load_into(model, split(clip.weights, prefix)[0])
    return TransformersPair(model, backbone=clip.name, placeholder_id=placeholder_id)


def text_encoder(weights: Named, config: dict[str, Any], backbone: str) -> TransformersPair:
    """A text encoder alone, under its published names; with a projection where the weights hold one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    projected = "text_projection.weight" in weights
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    ignored = {"text_model.embeddings.position_ids": None, "embeddings.position_ids": None}
    names = KeyMap({**ignored, "*": "*"}, prefix="" if projected else "text_model.")
    model = kind(
        CLIPTextConfig(**{"bos_token_id": 0, "eos_token_id": 2, **config})
    )  # the defaults of the fixtures' release
    checkpoint.load_into(model, names(weights))
    return TransformersPair(model, backbone=backbone, placeholder_id=PLACEHOLDER_ID)


def split(weights: Named, prefix: str) -> tuple[Named, Named]:
    """The weights under a prefix, without it, and the others."""
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return inside, {key: value for key, value in weights.items() if not key.startswith(prefix)}


class ClipCase:
    """A CLIP itself, in both libraries, which must agree with each other."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        self.pairs: list[ClipPair] = [pair(fixture, PLACEHOLDER_ID) for pair in (open_clip_pair, transformers_pair)]

    def image_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self._agreed(lambda pair: pair.image_features(inputs["image"]))}

    def token_embeddings(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"embeddings": self._agreed(lambda pair: pair.token_embeddings(inputs["token_ids"]))}

    def text_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self._agreed(lambda pair: pair.text_features(inputs["token_ids"]))}

    def logits(self, inputs: Named, settings: dict[str, Any]) -> Named:
        def logits(pair: ClipPair) -> Tensor:
            images, texts = pair.image_features(inputs["image"]), pair.text_features(inputs["token_ids"])
            return pic2word.image_text_logits(images, texts, pair.logit_scale)

        return {"logits_per_image": self._agreed(logits)}

    def _agreed(self, run: Callable[[ClipPair], Tensor]) -> Tensor:
        one, other = (run(pair) for pair in self.pairs)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
        return one


class LongClipCase:
    """Long-CLIP, its stretched positions and its losses."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        sizes = fixture.meta["original"]["kwargs"]
        self.pair = long_clip.long_clip_pair(
            fixture.weights,
            backbone="long_clip",
            placeholder_id=PLACEHOLDER_ID,
            image_head_width=sizes["vision_width"] // sizes.get("vision_heads", sizes["vision_width"] // 64),
            text_head_width=sizes["transformer_width"] // sizes["transformer_heads"],
        )

    def text_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        output = self.pair.encode_text(inputs["token_ids"])
        return {"features": output.features, "hidden[:24]": output.hidden[:, :24]}

    def image_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": self.pair.image_features(inputs["image"])}

    def stretch_positions(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"positions": long_clip.stretch_positions(inputs["positions"], **settings)}

    def principal_components(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": long_clip.principal_components(inputs["features"], settings["components"])}

    def loss(self, inputs: Named, settings: dict[str, Any]) -> Named:
        losses = long_clip.long_clip_losses(
            **{name: value.requires_grad_() for name, value in inputs.items()},
            scale=math.exp(settings["log_logit_scale"]),
            components=settings["components"],
            label_smoothing=settings["label_smoothing"],
        )
        (losses["long"] + losses["short"]).backward()
        slopes = {f"grad.{name}": gradient(value) for name, value in inputs.items()}
        return {"loss.long": losses["long"], "loss.short": losses["short"], **slopes}
