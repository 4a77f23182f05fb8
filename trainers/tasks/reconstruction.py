"""Reconstruction: a tokenizer learns to give back its images, by pixel, perceptual, quantizer and adversarial losses.

With a discriminator that tells its images from real ones (arXiv 2012.09841).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import zoo
from trainers.data.rows import ImagePairs
from trainers.tasks.anatomy import decoder_anatomy
from trainers.tasks.tokenizer import DiscriminatorTrainingConfig, TokenizerTask
from zoo import checkpoint
from zoo.layers.transformer import add_stochastic_depth
from zoo.losses import AdversaryConfig, DiscriminatorConfig, PatchGANConfig, VQGANLoss, VQGANLossConfig
from zoo.losses.perceptual import perceptual_distance
from zoo.losses.vqgan import frame_by_frame
from zoo.metrics.image import psnr


@dataclass(frozen=True)
class AdversaryTrainingConfig(AdversaryConfig, DiscriminatorTrainingConfig):
    """The discriminator and how it learns, with the terms and the schedule of `AdversaryConfig`.

    Published tokenizers come without their discriminator. To fine-tune one, let a fresh discriminator learn before it
    counts: `discriminator_warmup` raises its weight slowly, and the adaptive weight bounds its influence.
    """

    discriminator: DiscriminatorConfig = PatchGANConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_training()
        wanted = "a consistency_weight of 0 with a discriminator that does not augment its images"
        self.require(
            self.discriminator.augmentation > 0 or self.consistency_weight == 0, wanted, self.consistency_weight
        )


class ReconstructionTask(TokenizerTask):
    """Trains any tokenizer of the zoo on images or videos, of which losses and metrics see each frame by itself.

    generator loss = `reconstruction_weight` * pixel loss + `perceptual_weight` * perceptual distance + each loss of the
    quantizer times its entry of `quantizer_weights` (a loss without an entry is not used) + the adversarial term.

    Images come in [0, 1]; the losses see them in the model's own range. Of `ImagePairs` the model sees the images, and
    losses and discriminator the targets.

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        trainable: "all", or "decoder" to leave encoder and quantizer, and so all tokens, as they are.
        reconstruction: "l1", "l2" or "smooth_l1".
        reconstruction_weight: of that loss.
        l1_weight: of a mean absolute error beside it.
        perceptual: name of a perceptual distance (see `zoo.losses.perceptual_distance`), or several with their weights;
            None for none.
        perceptual_weight: of all of them.
        perceptual_files: local weight files of their networks.
        quantizer_weights: weights of the quantizer's losses by name.
        entropy_annealing: (factor, steps): the entropy loss starts at 1 + factor times its weight and comes down to it
            linearly over these steps.
        annealed: names of the quantizer's losses that this holds for.
        temperature_annealing: (first, last, steps): the temperature of a Gumbel-softmax falls from the first to the
            last value as half a cosine over these steps; None leaves it as the quantizer has it.
        adversary: fields of `AdversaryTrainingConfig`; None for no discriminator.
        learning_rate: at the end of the warm-up.
        betas, weight_decay: of AdamW.
        warmup_steps: linear rise of the learning rate.
        schedule: of the learning rate after the warm-up: "cosine" to `final_rate` at the last step, "constant", or
            "linear" or "exponential" to it, or "step" (a tenth at each of `milestones`).
        final_rate: share of the learning rate at the end of "cosine", "linear" and "exponential".
        milestones: steps of "step".
        ema_decay: keeps a running average of the weights, which validation and export use; None for none. The decay
            rises to this value as (1 + n) / (10 + n) over the first n updates.
        ema_interval: steps between two updates of the average.
        perturbation: fields of `PerturbationConfig`, latent perturbation; None for none.
        stochastic_depth: how often the branches of the last block of a stack rest, see
            `zoo.layers.transformer.add_stochastic_depth`.
        recompute: keep less for the backward pass, see `zoo.layers.recompute`.
        compile: run the model under `torch.compile`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected. Nothing has been read but named weight files.
    """

    shown = ("psnr",)

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        trainable: Literal["all", "decoder"] = "all",
        reconstruction: Literal["l1", "l2", "smooth_l1"] = "l1",
        reconstruction_weight: float = 1.0,
        l1_weight: float = 0.0,
        perceptual: str | dict[str, float] | None = None,
        perceptual_weight: float = 1.0,
        perceptual_files: dict[str, str] | None = None,
        quantizer_weights: dict[str, float] | None = None,
        entropy_annealing: tuple[float, int] = (0.0, 0),
        annealed: tuple[str, ...] = ("entropy",),
        temperature_annealing: tuple[float, float, int] | None = None,
        adversary: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant", "linear", "exponential", "step"] = "cosine",
        final_rate: float = 0.0,
        milestones: tuple[int, ...] = (),
        ema_decay: float | None = None,
        ema_interval: int = 1,
        perturbation: dict[str, Any] | None = None,
        stochastic_depth: float = 0.0,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        opponent = None if adversary is None else AdversaryTrainingConfig.from_dict(adversary)
        loss_config = VQGANLossConfig(
            reconstruction=reconstruction,
            reconstruction_weight=reconstruction_weight,
            l1_weight=l1_weight,
            perceptual_weight=perceptual_weight,
            entropy_annealing_factor=entropy_annealing[0],
            entropy_annealing_steps=entropy_annealing[1],
            **{f.name: getattr(opponent or AdversaryConfig(), f.name) for f in fields(AdversaryConfig)},
        )
        super().__init__(
            model=model, changes=changes, init=init, trainable=trainable, quantizer_weights=quantizer_weights,
            adversary=opponent, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay,
            warmup_steps=warmup_steps, schedule=schedule, final_rate=final_rate, milestones=milestones,
            ema_decay=ema_decay, ema_interval=ema_interval, perturbation=perturbation, recompute=recompute,
            compile=compile,
        )  # fmt: skip
        self.save_hyperparameters()
        if stochastic_depth != 0:
            add_stochastic_depth(self.model, stochastic_depth)
        self.annealed = tuple(annealed)
        if spare := sorted(set(self.annealed) - {"entropy", *self.quantizer_weights}):
            raise ValueError(f"annealed: expected names of {sorted(self.quantizer_weights)}, got {spare}")
        self.temperature_annealing = temperature_annealing
        if temperature_annealing is not None:
            self._check_temperature(*temperature_annealing)
        self.last_layer_weight: list[nn.Parameter] = []  # in a list, for it is registered in the model already
        if loss_config.adaptive_weight:
            self.last_layer_weight.append(decoder_anatomy(self.model)[1])
        discriminator = None
        if opponent is not None:
            discriminator = opponent.discriminator.build()
            if opponent.discriminator_weights is not None:
                checkpoint.load_into(discriminator, checkpoint.read(Path(opponent.discriminator_weights)))
        terms = {perceptual: 1.0} if isinstance(perceptual, str) else perceptual
        distance = perceptual_distance(terms, perceptual_files) if terms else None
        self.loss = VQGANLoss(loss_config, discriminator, distance, image_range=self.model.spec.value_range)
        self.discriminator_first = opponent is not None and opponent.discriminator_first
        self.leave_loss_to_task()

    def _check_temperature(self, first: float, last: float, steps: int) -> None:
        if not isinstance(getattr(self.model.quantizer, "temperature", None), float):
            kind = self.model.quantizer.config.kind
            raise ValueError(
                f"temperature_annealing: expected a quantizer with a temperature, such as gumbel, got {kind}"
            )
        if min(first, last) <= 0 or steps < 1:
            got = (first, last, steps)
            raise ValueError(f"temperature_annealing: expected temperatures > 0 and at least 1 step, got {got}")

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        if self.temperature_annealing is not None:
            first, last, steps = self.temperature_annealing
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, self.global_step / steps)))
            self.model.quantizer.temperature = last + (first - last) * share

    def generator_loss(self, images: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and all losses by name, unweighted and detached, `total` being the weighted sum.

        Args:
            images: (B, C, H, W) in the model's range.
            output: of the model.
            step: updates of the generator made so far.
        """
        quantizer_loss, weighted = self.quantizer_loss(output)
        annealed = [weighted[name] for name in self.annealed if name in weighted]
        generator = self.loss.generator_loss(
            images,
            output.reconstruction,
            quantizer_loss,
            step=step,
            entropy_loss=sum(annealed) if annealed else None,
            last_layer_weight=self.last_layer_weight[0] if self.last_layer_weight else None,
        )
        values = {name: value for name, value in generator.values.items() if name != "quantizer"}
        quantizer = {name: value.detach() for name, value in output.quantized.losses.items()}
        return generator.total, {"total": generator.total.detach(), **values, **quantizer}

    def configure_model(self) -> None:
        if self.device_mesh is not None and not self.sharded and self.loss.config.adaptive_weight:
            raise ValueError("adaptive_weight: expected False where weights are sharded; DDP takes it")
        super().configure_model()

    # -- validation ------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> zoo.Output:
        """One pass of `averaged` on images in [0, 1]."""
        return self.averaged(self.model_range(images))

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        output = self(images)
        _, losses = self.generator_loss(self.model_range(images), output, self.global_step)
        reconstruction = self.unit(output.reconstruction).clamp(0, 1)
        quality = psnr(frame_by_frame(reconstruction), frame_by_frame(images.float())).mean()
        self.log_validation({**losses, "psnr": quality}, len(images))
        return output

    def example(self, batch: Tensor | ImagePairs) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, ImagePairs):
            return super().example(batch)
        return self.model_range(batch.images), self.model_range(batch.targets)

    def model_range(self, images: Tensor) -> Tensor:
        """From [0, 1] to the model's range, of images with the channels innermost in memory."""
        low, high = self.model.spec.value_range
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        return (images * (high - low) + low).contiguous(memory_format=layout)

    def pictures(self, images: Tensor) -> Tensor:
        """Images of the model's range in [0, 1], for logs; videos as strips of their frames (B, 3, H, T W)."""
        unit = self.unit(images)
        return unit.transpose(2, 3).flatten(3) if unit.ndim == 5 else unit

    def unit(self, x: Tensor) -> Tensor:
        """From the model's range to [0, 1], in float32 and not clamped."""
        low, high = self.model.spec.value_range
        return (x.float() - low) / (high - low)
