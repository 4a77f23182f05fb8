"""Codebook usage, perplexity and entropy over a whole epoch and all processes, and what dead codes may come from."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

import zoo
from zoo.metrics.distributions import CodebookUse
from zoo.metrics.image import codebook_statistics
from zoo.ops.collective import from_all_ranks

logger = logging.getLogger("zoo")


class CodebookUsage(lightning.Callback):
    """Counts every index of the validation epoch and logs the statistics of each level at its end.

    Logged: `val/usage`, `val/perplexity`, `val/entropy_bits`, `val/dead`; with several levels each with its number.
    Warns where a level uses less than a share of the codes that evenly used ones would show, and names likely causes.
    Codebooks above `maximum` codes are left out.

    Args:
        maximum: codes of a level.
        warn_below: that share.
    """

    def __init__(self, maximum: int = 1 << 20, warn_below: float = 0.5) -> None:
        self.maximum = maximum
        self.warn_below = warn_below
        self._use: CodebookUse | None = None
        self._output: zoo.Output | None = None

    def on_validation_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._use = self._output = None

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        if not isinstance(outputs, zoo.Output):  # of a task without tokens
            return
        self._output = outputs
        self._counter(module).update(outputs.quantized.levels)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if not any(from_all_ranks(self._output is not None)):
            return
        counts = self._counter(module).joined_counts()  # of a process without a batch: zeros
        for level, total in counts.items():
            suffix = f"_{level}" if len(counts) > 1 else ""
            for name, value in codebook_statistics(total).items():
                module.log(f"val/{name}{suffix}", float(value), prog_bar=name == "usage" and not suffix)
            if not trainer.sanity_checking and trainer.is_global_zero and self._output is not None:
                self._warn(module, level, total)

    def _counter(self, module: lightning.LightningModule) -> CodebookUse:
        if self._use is None:
            self._use = CodebookUse(module.model.vocab_sizes, self.maximum).to(module.device)
        return self._use

    def _warn(self, module: lightning.LightningModule, level: int, counts: Tensor) -> None:
        tokens, used, size = int(counts.sum()), int((counts > 0).sum()), len(counts)
        even = size * -math.expm1(-tokens / size)  # codes that as many tokens, evenly spread, would show
        if used < self.warn_below * even:
            causes = likely_causes(module, self._output)  # type: ignore[arg-type]
            logger.warning(
                "level %d: %d of %d codes are used by %d tokens (evenly used ones would show %d). Likely causes: %s",
                level, used, size, tokens, round(even), "; ".join(causes) or "none that is known",
            )  # fmt: skip


def likely_causes(module: Any, output: zoo.Output) -> list[str]:
    """Why codes may be dead, told from the task's settings and one output of its model; the likeliest first."""
    causes = []
    quantizer, weights = module.model.quantizer, module.quantizer_weights
    config = quantizer.config
    latent = output.latent.detach().float().flatten(0, -2)
    spread = float(latent.std(0).mean())
    if spread < 1e-2 * float(latent.abs().mean()):
        causes.append("the encoder gives nearly the same latent everywhere (collapse; is the learning rate too high?)")
    for name, meaning in (
        ("codebook", "no loss moves the codes"),
        ("commitment", "nothing keeps the latents near their codes"),
        ("entropy", "nothing rewards using all codes"),
    ):
        if name in module.quantizer_losses and not weights.get(name):
            causes.append(f"quantizer_weights has no `{name}`: {meaning}")
    codebook = getattr(config, "codebook", None)
    if hasattr(quantizer, "codebook") and codebook is not None and spread > 0:
        codes = quantizer.indices_to_codes(torch.arange(config.vocab_sizes[0], device=latent.device)[None])
        reach = float(codes.detach().std())
        if getattr(config, "metric", "euclidean") == "euclidean" and not 0.2 < reach / spread < 5:
            start = "; a k-means start sets the scale" if getattr(codebook, "start", "") == "random" else ""
            causes.append(f"codes spread by {reach:.2g}, latents by {spread:.2g}: most codes are out of reach{start}")
        if getattr(codebook, "revive_below", None) in (0, None):
            causes.append("dead codes are not revived (codebook.revive_below)")
    if module.learning_rate >= 1e-3 and module.warmup_steps == 0:
        causes.append(f"the learning rate {module.learning_rate:g} without a warm-up kills codes early")
    return causes
