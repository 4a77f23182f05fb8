"""Checks of the fixtures of composed retrieval without a network: inputs of CLIP, and metrics of the benchmarks."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from tokenizers_visual.inversion import cir_inputs, cir_metrics
from zoo.parity import Fixture, Named
from zoo.registry import Family


class InputsCase:
    """Token ids of texts, and pixels of images."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def tokenize(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"token_ids": cir_inputs.tokenize(**settings)}

    def preprocess(self, inputs: Named, settings: dict[str, Any]) -> Named:
        padded = {"targetpad": True, "clip": False}[settings["kind"]]
        ratio = settings.get("ratio", cir_inputs.TARGET_RATIO) if padded else None
        preprocess = cir_inputs.ImageInput(settings["size"], pad_ratio=ratio)
        image = Image.fromarray(inputs["image"].to(torch.uint8).numpy())
        return {"padded_size": torch.tensor(preprocess.padded(image).size), "pixels": preprocess(image)}


class MetricsCase:
    """Rankings of random features, in the order in which the fixture lists a benchmark's numbers."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def metrics(self, inputs: Named, settings: dict[str, Any]) -> Named:
        values = getattr(self, f"_{settings['benchmark'].lower()}")(inputs, bool(settings.get("exclude_reference")))
        return {"metrics": torch.tensor(list(values.values()))}

    def _cirr(self, inputs: Named, exclude: bool) -> dict[str, float]:
        queries, index, reference = inputs["queries"], inputs["index"], inputs["reference"]
        ranked = cir_metrics.rank(queries, index, exclude=reference if exclude else None)
        members = cir_metrics.rank_members(queries, index, inputs["group"], reference)
        return cir_metrics.cirr(ranked, members, inputs["target"])

    def _fashioniq(self, inputs: Named, exclude: bool) -> dict[str, float]:
        ranked = cir_metrics.rank(
            inputs["queries"], inputs["index"], exclude=inputs.get("reference") if exclude else None
        )
        return cir_metrics.fashioniq(ranked, inputs["target"])

    def _circo(self, inputs: Named, exclude: bool) -> dict[str, float]:
        ranked = cir_metrics.rank(
            inputs["queries"], inputs["index"], exclude=inputs.get("reference") if exclude else None
        )
        return cir_metrics.circo(ranked, inputs["ground_truths"])

    def _genecis(self, inputs: Named, exclude: bool) -> dict[str, float]:
        values = cir_metrics.genecis(inputs["queries"], inputs["galleries"])
        return {name: value / 100 for name, value in values.items()}  # the fixture states fractions

    def average_captions(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"features": cir_metrics.average_captions(inputs["first"], inputs["second"])}
