"""Checks of KARL's fixtures: rows with halted tokens, and the two passes of the stage of distillation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenizers_visual.karl import ERRORS, halting_loss, nearest_errors
from tokenizers_visual.parity.alit import base_noise, base_outputs, prediction_losses
from zoo.parity import Case, Fixture, Named
from zoo.registry import Family

WANTED = 0.04  # the largest error that the first pass is asked for at the start of training


def case(fixture: Fixture, family: Family) -> Case:
    """The case of every fixture of the family."""
    return KARLCase(fixture, family)


class KARLCase(Case):
    """Rows hold their halted tokens too; latents and codes are (B, n, D), maps of the base flat."""

    def encode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, noise = inputs["image"], base_noise(inputs)
        with torch.no_grad():
            errors = nearest_errors(torch.full((len(image),), settings["epsilon"]))
            row = model.row(image, [settings["num_tokens"]] * len(image), errors, noise=noise)
            halted = row.halting.sigmoid() > settings["halt_threshold"]
            return {
                "latent": row.latent,
                "embedding": row.embedding,
                "halt_probability": row.halting.sigmoid(),
                "halted": halted,
                "num_active_tokens": (~halted).sum(1),
                "indices": model.quantizer(row.latent).indices,
                **base_outputs(model, image, noise),
            }

    def decode(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        kept = inputs["halted"] == 0
        with torch.no_grad():
            codes = inputs["latent"] if "latent" in inputs else model.quantizer.indices_to_codes(inputs["indices"])
            prediction = model.predict(codes, mask=model.kept_mask(kept)).flatten(1, 2)
            return {"image": model.reconstruct(codes, kept=kept), "logits": prediction, "code": prediction}

    def train(self, inputs: Named, settings: dict[str, Any]) -> Named:
        model: Any = self.model
        image, noise = inputs["image"], base_noise(inputs)
        first_count, budget = settings["first_pass_tokens"], settings["budget"]
        model.train()
        model.base.requires_grad_(False)
        base = base_outputs(model, image, noise)
        losses: Named = {}

        row = model.row(image, [first_count] * len(image), inputs["target_bins"], noise=noise)
        prediction = self._predict("first", row.latent, None, base, losses)
        losses["loss.first.active"] = halting_loss(row.halting, 0.0)
        with torch.no_grad():
            reconstruction = model.base.decode(model.base.latent_of(prediction))
            missed = (reconstruction - image).abs().mean((1, 2, 3))
        errors = nearest_errors(missed)

        second = model.row(image, [budget] * len(image), errors, noise=noise)
        kept = second.halting.sigmoid() <= model.config.halting_threshold
        prediction = self._predict("second", second.latent, self._mixed_mask(kept), base, losses)
        surplus = max(0, budget - first_count)
        losses["loss.second.active"] = halting_loss(second.halting[:, : budget - surplus], 0.0)
        if surplus > 0:
            losses["loss.second.halt"] = halting_loss(second.halting[:, budget - surplus :], 1.0)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        renamed = {key.replace("quantizer", "quantiser"): loss for key, loss in losses.items()}
        return {
            **losses,
            **renamed,
            "loss.total": total,
            "first.image": reconstruction,
            "first.l1": missed,
            "second.bins": errors,
            "second.halt_probability": second.halting.sigmoid(),
            "second.logits": prediction.flatten(1, 2),
            "state.target_probability": _wanted_afterwards(missed),
            **self.gradients(),
        }

    def _predict(self, part: str, latent: Tensor, mask: Tensor | None, base: Named, losses: Named) -> Tensor:
        """The prediction of one pass, whose losses are added."""
        model: Any = self.model
        quantized = model.quantizer(latent)
        prediction = model.predict(latent if model.config.continuous else quantized.codes, mask=mask)
        losses |= {f"loss.{part}.{name}": term for name, term in prediction_losses(model, prediction, base).items()}
        if not model.config.continuous:
            losses[f"loss.{part}.quantizer"] = self.original_losses(quantized)["loss.quantizer"]
        return prediction

    def _mixed_mask(self, kept: Tensor) -> Tensor:
        """The masks as the original deals them out: head h of item b gets that of item (b heads + h) mod B."""
        model: Any = self.model
        heads, count = model.config.decoder.heads, len(kept)
        items = torch.arange(count * heads).view(count, heads) % count
        return model.kept_mask(kept)[:, 0][items]


def _wanted_afterwards(missed: Tensor) -> Tensor:
    """The probabilities of `ERRORS` in the next first pass: those of errors that were reached are rarer."""
    known = torch.tensor(ERRORS)
    share = (known <= WANTED + 1e-9).float()
    share = share / share.sum()
    share = torch.where(known >= missed.min(), 0.99 * share, share)
    return share / share.sum()
