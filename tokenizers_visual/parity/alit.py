"""Checks of ALIT's fixtures: roll-outs with given halting, the choice of a length, and the stage of distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenizers_visual.alit import code_probability
from zoo.layers.base_autoencoder import CodebookBase
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family

ROLLOUT_WEIGHTS = (2.5, 2.0, 1.5, 1.25, 1.0, 1.0, 1.0, 1.0)  # of the predictions in the stage of distillation


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return ALITCase(fixture, family)


class ALITCase(Case):
    """Latents and codes are (B, n, D), maps of the base flat."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, noise = inputs["image"], base_noise(inputs)
        with torch.no_grad():
            rolled = list(
                model.roll_out(
                    image, settings.get("rollouts"), uniforms=inputs.get("uniforms"), noise=noise, predict=True
                )
            )
            if "threshold" in settings:
                errors = torch.stack([(model.reconstruct(r.codes) - image).abs().mean() for r in rolled])
                within = [i for i, error in enumerate(errors.tolist()) if error < settings["threshold"]]
                chosen = within[0] if within else int(errors.min(0).indices)
                return {"num_tokens": torch.tensor([rolled[chosen].codes.shape[1]]), "l1_per_rollout": errors}
            last = rolled[-1]
            outputs = {"latent": last.latent, "embedding": last.embedding, **base_outputs(model, image, noise)}
            if not model.config.continuous:
                outputs["indices"] = last.quantized.indices
            if last.halted is not None:
                outputs["dropped"] = last.halted.flatten(1)
                outputs["gt_probability"] = code_probability(last.prediction.flatten(1, 2), outputs["base_indices"])
        return outputs

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        with torch.no_grad():
            if "latent" in inputs:
                codes, image = inputs["latent"], model.reconstruct(inputs["latent"])
            else:
                tokens = model.tokens(inputs["indices"])
                codes, image = model.codes(tokens), model.decode(tokens)
            prediction = model.predict(codes).flatten(1, 2)
        return {"image": image, "logits": prediction, "code": prediction}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, noise = inputs["image"], base_noise(inputs)
        model.train()
        model.base.requires_grad_(False)
        base = base_outputs(model, image, noise)
        total = torch.zeros(())
        losses: Named = {}
        rolled = model.roll_out(image, uniforms=inputs.get("uniforms"), noise=noise, predict=True)
        for i, (rollout, weight) in enumerate(zip(rolled, ROLLOUT_WEIGHTS)):
            terms = prediction_losses(model, rollout.prediction, base)
            if "nll" in terms:
                total = total + weight * terms["nll"] + terms["code"]
            else:
                total = total + weight * terms["code"]
            losses |= {f"loss.{name}_{i}": term for name, term in terms.items()}
            if not model.config.continuous:
                losses[f"loss.quantizer_{i}"] = self.original_losses(rollout.quantized)["loss.quantizer"]
                total = total + losses[f"loss.quantizer_{i}"]
        total.backward()
        renamed = {key.replace("quantizer_", "quantiser_"): loss for key, loss in losses.items()}
        return {**losses, **renamed, "loss.total": total, **self.gradients()}


def base_noise(inputs: Named) -> Tensor | None:
    """The noise of a variational base, channels last."""
    return inputs["vae_noise"].movedim(1, -1) if "vae_noise" in inputs else None


def base_outputs(model: Any, image: Tensor, noise: Tensor | None) -> Named:
    """The base's latents and, of a codebook, indices."""
    with torch.no_grad():
        latent = model.base.latent(image, noise)
        outputs = {"base_latent": latent.movedim(-1, 1)}
        if isinstance(model.base, CodebookBase):
            outputs["base_indices"] = model.base.indices(latent).flatten(1)
    return outputs


def prediction_losses(model: Any, prediction: Tensor, base: Named) -> Named:
    """Of predictions (B, h, w, predicted), with what `base_outputs` gave."""
    return model.base.prediction_losses(prediction, base["base_latent"].movedim(1, -1))
