"""Reconstruction: a tokenizer learns to give back its images, by pixel, perceptual and quantizer losses."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from torch import Tensor

import zoo
from zoo.losses.perceptual import FeatureDistance, lite_distance, lpips
from zoo.losses.reconstruction import RECONSTRUCTION_LOSSES
from zoo.metrics.image import psnr

PERCEPTUAL = {
    "lite0": lambda: lite_distance("lite0"),
    "lpips": lambda: lpips("vgg"),
}


class ReconstructionTask(lightning.LightningModule):
    """Trains any tokenizer of the zoo on images.

    loss = sum of `reconstruction_weight` * pixel loss, `perceptual_weight` * perceptual distance, and each loss of the
    quantizer times its entry of `quantizer_weights` (a loss without an entry is not used).

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        reconstruction: "l1" or "l2" on values scaled to [-1, 1].
        reconstruction_weight: of that loss.
        perceptual: frozen network behind the perceptual distance; None for none.
        perceptual_weight: of the perceptual distance.
        quantizer_weights: weights of the quantizer's losses by name.
        learning_rate: at the end of the warm-up.
        betas, weight_decay: of AdamW.
        warmup_steps: linear rise of the learning rate.
        schedule: of the learning rate after the warm-up: "cosine" to zero at the last step, or "constant".
    """

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        reconstruction: Literal["l1", "l2"] = "l1",
        reconstruction_weight: float = 1.0,
        perceptual: Literal["lite0", "lpips"] | None = None,
        perceptual_weight: float = 1.0,
        quantizer_weights: dict[str, float] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        changes = changes or {}
        if init in ("random", "pretrained"):
            self.model = zoo.create_model(model, pretrained=init == "pretrained", **changes)
        else:
            self.model = zoo.create_model(model, checkpoint=init, **changes)
        self.model.to(memory_format=torch.channels_last)  # 1.1 to 1.5 times the speed of convolutions
        self.pixel_loss = RECONSTRUCTION_LOSSES[reconstruction]
        self.reconstruction_weight = reconstruction_weight
        self.perceptual_weight = perceptual_weight
        self.quantizer_weights = dict(quantizer_weights or {})
        quantizer = self.model.quantizer.config.build().train()
        known = sorted(quantizer(torch.zeros(1, 2, 2, quantizer.config.dim)).losses)
        if unknown := sorted(set(self.quantizer_weights) - set(known)):
            raise ValueError(f"quantizer_weights: the losses of this quantizer are {known}, got {unknown}")
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.warmup_steps, self.schedule = warmup_steps, schedule
        # outside the module tree: a frozen network is no part of the checkpoint
        self._perceptual: list[FeatureDistance] = [PERCEPTUAL[perceptual]()] if perceptual else []

    def forward(self, images: Tensor) -> zoo.Output:
        """One pass of the model on images in [0, 1]."""
        low, high = self.model.spec.value_range
        return self.model((images * (high - low) + low).contiguous(memory_format=torch.channels_last))

    def training_step(self, images: Tensor, batch_index: int) -> Tensor:
        output = self(images)
        losses = self.losses(images, output)
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        self.log("loss", losses["total"], prog_bar=True, logger=False)
        for name, value in output.quantized.statistics.items():
            self.log(f"train/{name}", value, prog_bar=name == "perplexity")
        return losses["total"]

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        output = self(images)
        losses = self.losses(images, output)
        self.log_dict({f"val/{k}": v for k, v in losses.items()}, batch_size=len(images), sync_dist=True)
        quality = psnr(self.unit(output.reconstruction).clamp(0, 1), images.float()).mean()
        self.log("val/psnr", quality, batch_size=len(images), prog_bar=True, sync_dist=True)
        return output

    def losses(self, images: Tensor, output: zoo.Output) -> dict[str, Tensor]:
        """The unweighted losses by name, and `total`, their weighted sum; images are in [0, 1]."""
        original, reconstruction = images.float() * 2 - 1, self.unit(output.reconstruction) * 2 - 1
        losses = {"reconstruction": self.pixel_loss(reconstruction, original).mean()}
        total = self.reconstruction_weight * losses["reconstruction"]
        if self._perceptual:
            distance = self._perceptual[0].to(images.device)
            losses["perceptual"] = distance(reconstruction, original).mean()
            total = total + self.perceptual_weight * losses["perceptual"]
        for name, value in output.quantized.losses.items():
            losses[name] = value
            if name in self.quantizer_weights:
                total = total + self.quantizer_weights[name] * value
        return {"total": total, **losses}

    def unit(self, x: Tensor) -> Tensor:
        """From the model's range to [0, 1], in float32 and not clamped."""
        low, high = self.model.spec.value_range
        return (x.float() - low) / (high - low)

    def on_fit_start(self) -> None:
        self.model.train()

    def configure_optimizers(self) -> dict[str, Any]:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)

        def rate(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if self.schedule == "constant":
                return 1.0
            done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
