"""Checks of methods that name an image by entries of a dictionary or by words of a language model."""

from __future__ import annotations

from typing import Any

from tokenizers_visual.inversion import sitta
from zoo import checkpoint
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family


class FDTCase(Case):
    """FDT: features of images, what the dictionary says of them and of words, and the loss between the two."""

    def image_features(self, inputs: Named, settings: dict[str, Any]) -> Named:
        patches, projected = self.model.image_features(inputs["image"])
        return {"patch_features": patches, "projected": projected}

    def ground(self, inputs: Named, settings: dict[str, Any]) -> Named:
        image = settings["modality"] == "image"
        result = self.model.ground(inputs["features"], settings["modality"], inputs.get("pad_mask"))
        scores = result.scores * self.model.config.dim**0.5 if image else result.scores  # stated before scaling
        return {"token_scores": scores, "weights": result.weights, "fdt": result.features}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        images = self.model.ground(self.model.image_features(inputs["image"])[0], "image").features
        texts = self.model.ground(inputs["features"], "text", inputs.get("pad_mask")).features
        losses = self.model.losses(images, texts)
        total = (losses["image"] + losses["text"]) / 2
        total.backward()
        logits = self.model.logits(images, texts)
        return {
            "logits_per_image": logits,
            "logits_per_text": logits.T,
            "loss.contrastive": total,
            **self.gradients(),
        }


class SittaCase:
    """SITTA: pairs and their standardisation, the four maps, and the tokens that a mapped image is near to."""

    def __init__(self, fixture: Fixture, family: Family) -> None:
        pass

    def standardise(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {name: sitta.standardise(value)[0] for name, value in inputs.items()}

    def fit(self, inputs: Named, settings: dict[str, Any]) -> Named:
        fitted = sitta.fit(
            inputs["source"],
            inputs["target"],
            settings["method"].removesuffix("_reg"),
            penalty=settings.get("alpha", 1.0),
            iterations=settings.get("iterations", 5),
            eps=settings.get("eps", 1e-3),
        )
        return {"map": fitted}

    def project(self, inputs: Named, settings: dict[str, Any]) -> Named:
        config = sitta.SittaConfig(image_dim=len(inputs["map"]), word_dim=inputs["map"].shape[1])
        model = sitta.Sitta(config)
        checkpoint.load_into(model, sitta.KEY_MAP({"array": inputs["map"]}))
        model.set_statistics(inputs["mean"], inputs["std"])
        return {"mapped": model.project(inputs["image_features"]).embeddings}

    def invert_discrete(self, inputs: Named, settings: dict[str, Any]) -> Named:
        cosines, tokens = sitta.nearest_tokens(inputs["mapped"], inputs["vocabulary"], settings["k"])
        return {"similarity": cosines, "tokens": tokens}

    def pairs(self, inputs: Named, settings: dict[str, Any]) -> Named:
        return {"source": sitta.image_token_pairs(inputs["images"], inputs["index"])}

    def robust_weights(self, inputs: Named, settings: dict[str, Any]) -> Named:
        weights = sitta.robust_weights(inputs["source"], inputs["target"], inputs["map"], eps=settings["eps"])
        return {"weights": weights}
