"""Health of the adversary: tells when one player has stopped to teach the other."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as lightning

from zoo.losses.codec import CodecAdversaryConfig

logger = logging.getLogger("zoo")
# the discriminator's loss while it gives 0 for every image
CHANCE = {
    "hinge": 1.0,
    "vanilla": math.log(2),
    "non_saturating": 2 * math.log(2),
    "non_saturating_image": 2 * math.log(2),
}


class DiscriminatorHealth(lightning.Callback):
    """Warns when, over `patience` log steps, the discriminator's loss or the adaptive weight stands still at a bound.

    The numbers themselves are logged by the task: `train/logits_real`, `train/logits_fake`, `train/adversarial_weight`,
    `train/discriminator`.

    Args:
        patience: log steps (`log_every_n_steps` of the Trainer) that a state must last.
    """

    def __init__(self, patience: int = 20) -> None:
        self.patience = patience
        self._lasted = {"won": 0, "lost": 0, "bound": 0}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        config = getattr(module, "adversary", None)
        metrics = trainer.callback_metrics
        if config is None or trainer.global_step % trainer.log_every_n_steps or "train/logits_real" not in metrics:
            return
        chance = config.chance if isinstance(config, CodecAdversaryConfig) else CHANCE[config.discriminator_objective]
        loss = float(metrics["train/discriminator_adversarial"])
        real, fake = (float(metrics[f"train/logits_{kind}"]) for kind in ("real", "fake"))
        logits = f"mean logits {real:.2f} (real), {fake:.2f} (reconstructed)"
        self._watch(
            "won", loss < 0.05 * chance,
            f"the discriminator wins: its loss is {loss:.3g}, at chance it would be {chance:.3g}; {logits}. Try a "
            "later discriminator_start, a lower learning rate for it, a larger lecam_weight, or an r1_weight",
        )  # fmt: skip
        self._watch(
            "lost", loss > 0.98 * chance,
            f"the discriminator does not tell originals from reconstructions: its loss is {loss:.3g}, chance is "
            f"{chance:.3g}; {logits}. The generator learns nothing from it now. Try a higher learning rate for it, or "
            "more channels",
        )  # fmt: skip
        if not getattr(config, "adaptive_weight", False):
            return
        bound = config.discriminator_factor * config.discriminator_weight * config.adaptive_weight_maximum
        self._watch(
            "bound", float(metrics["train/adversarial_weight"]) >= bound,
            f"the adaptive weight is at its bound {bound:.3g}: the generator gets next to no gradient from the "
            "discriminator",
        )  # fmt: skip

    def _watch(self, state: str, holds: bool, message: str) -> None:
        self._lasted[state] = self._lasted[state] + 1 if holds else 0
        if self._lasted[state] and self._lasted[state] % self.patience == 0:
            logger.warning("%s (for %d log steps)", message, self._lasted[state])
