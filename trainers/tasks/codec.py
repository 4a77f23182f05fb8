"""Codecs: a tokenizer learns to give back sounds, by waveform, spectra, discriminators and the quantizer's losses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from trainers.tasks.distillation import Distillation, DistillationConfig
from trainers.tasks.tokenizer import DiscriminatorTrainingConfig, TokenizerTask
from zoo import checkpoint
from zoo.losses.codec import CodecAdversaryConfig, CodecLoss, CodecLossConfig
from zoo.losses.mel import MelConfig, MelSpectrogram
from zoo.losses.spectral import si_sdr


@dataclass(frozen=True)
class CodecAdversaryTrainingConfig(CodecAdversaryConfig, DiscriminatorTrainingConfig):
    """The discriminators, their terms, and how they learn."""

    discriminator_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_training()


class CodecTask(TokenizerTask):
    """Trains any audio tokenizer of the zoo on sounds.

    generator loss = the terms of `CodecLossConfig` and `CodecAdversaryConfig` + each loss of the quantizer times its
    entry of `quantizer_weights` (a loss without an entry is not used).

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        trainable: "all", or "decoder" to leave encoder and quantizer, and so all tokens, as they are.
        loss: fields of `CodecLossConfig`.
        quantizer_weights: weights of the quantizer's losses by name.
        distillation: fields of `DistillationConfig`, whose loss comes on top; None for none.
        semantic_weight: of the mean squared difference between the features of the model's own speech model and what a
            head, which learns with the codec, tells from the codes; for models with a `semantic_head` (X-Codec).
        adversary: fields of `CodecAdversaryTrainingConfig`; None for no discriminators.
        learning_rate: at the end of the warm-up.
        betas, epsilon, weight_decay: of AdamW.
        warmup_steps: linear rise of the learning rate.
        first_rate: share of the learning rate in the first step, from which it then rises with the square of the step;
            0 for the linear rise.
        schedule: of the learning rate after the warm-up: "cosine" to `final_rate` at `final_step`, "constant",
            "linear" or "exponential" to it, or "step" (a tenth at each of `milestones`).
        final_rate: share of the learning rate at the end of "cosine", "linear" and "exponential".
        final_step: the step that reaches it, after which it stays; None for the last.
        milestones: steps of "step".
        ema_decay: keeps a running average of the weights, which validation and export use; None for none. The decay
            rises to this value as (1 + n) / (10 + n) over the first n updates.
        perturbation: fields of `PerturbationConfig`, latent perturbation; None for none.
        recompute: keep less for the backward pass, see `zoo.layers.recompute`.
        compile: run the model under `torch.compile`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected. Nothing has been read but named weight files.
    """

    shown = ("si_sdr",)

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        trainable: Literal["all", "decoder"] = "all",
        loss: dict[str, Any] | None = None,
        quantizer_weights: dict[str, float] | None = None,
        distillation: dict[str, Any] | None = None,
        semantic_weight: float = 0.0,
        adversary: dict[str, Any] | None = None,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.8, 0.99),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        first_rate: float = 0.0,
        schedule: Literal["cosine", "constant", "linear", "exponential", "step"] = "cosine",
        final_rate: float = 0.0,
        final_step: int | None = None,
        milestones: tuple[int, ...] = (),
        ema_decay: float | None = None,
        perturbation: dict[str, Any] | None = None,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        opponent = None if adversary is None else CodecAdversaryTrainingConfig.from_dict(adversary)
        loss_config = CodecLossConfig.from_dict(loss or {})
        lessons = None if distillation is None else DistillationConfig.from_dict(distillation)
        super().__init__(
            model=model, changes=changes, init=init, trainable=trainable, quantizer_weights=quantizer_weights,
            adversary=opponent, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay,
            warmup_steps=warmup_steps, schedule=schedule, final_rate=final_rate, milestones=milestones,
            ema_decay=ema_decay, perturbation=perturbation, recompute=recompute, compile=compile, epsilon=epsilon,
            first_rate=first_rate, final_step=final_step,
        )  # fmt: skip
        self.save_hyperparameters()
        rate = self.model.spec.sample_rate
        if rate is None:
            raise ValueError(f"model: expected one of sounds, got {model}")
        self.loss = CodecLoss(loss_config, opponent, rate)
        self.discriminator_first = opponent is not None and opponent.discriminator_first
        if opponent is not None and opponent.discriminator_weights is not None:
            checkpoint.load_into(self.loss.discriminator, checkpoint.read(Path(opponent.discriminator_weights)))
        self.distillation = None if lessons is None else Distillation(lessons, self.model.quantizer.config.dim, rate)
        self.semantic_weight, self.semantic_head = semantic_weight, None
        if semantic_weight > 0:
            if not hasattr(self.model, "semantic_head"):
                raise ValueError(f"semantic_weight: expected a model with a semantic_head, got {model}")
            self.semantic_head = self.model.semantic_head()
        self.picture = MelSpectrogram(MelConfig(rate, 1024, 256, 80))
        self.leave_loss_to_task()

    def generator_loss(self, signal: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and all losses by name, unweighted and detached, `total` being the weighted sum.

        Args:
            signal: (B, C, T) in the model's range.
            output: of the model.
            step: updates of the generator made so far.
        """
        quantizer_loss, _ = self.quantizer_loss(output)
        taught: dict[str, Tensor] = {}
        if self.distillation is not None:
            loss = self.distillation(signal, output, self.model.quantizer)
            quantizer_loss = quantizer_loss + self.distillation.config.weight * loss
            taught["distillation"] = loss.detach()
        if self.semantic_head is not None:
            features = self.model.features(self.model.pad(signal))
            loss = F.mse_loss(self.semantic_head(output.quantized.codes).float(), features.float())
            quantizer_loss = quantizer_loss + self.semantic_weight * loss
            taught["semantic"] = loss.detach()
        generator = self.loss.generator_loss(signal, output.reconstruction, quantizer_loss, step=step)
        values = {name: value for name, value in generator.values.items() if name != "quantizer"}
        quantizer = {name: value.detach() for name, value in output.quantized.losses.items()}
        return generator.total, {"total": generator.total.detach(), **values, **taught, **quantizer}

    def generator_parameters(self) -> list[nn.Parameter]:
        taught = [part for part in (self.distillation, self.semantic_head) if part is not None]
        return [*super().generator_parameters(), *(weight for part in taught for weight in part.parameters())]

    # -- validation ------------------------------------------------------------------------------------------------

    def forward(self, signals: Tensor) -> zoo.Output:
        """One pass of `averaged` on signals."""
        return self.averaged(signals)

    def validation_step(self, signals: Tensor, batch_index: int) -> zoo.Output:
        output = self(signals)
        _, losses = self.generator_loss(signals, output, self.global_step)
        quality = si_sdr(output.reconstruction, signals).mean()
        self.log_validation({**losses, "si_sdr": quality}, len(signals))
        return output

    def model_range(self, batch: Tensor) -> Tensor:
        return batch

    def pictures(self, signals: Tensor) -> Tensor:
        """Spectrograms (B, 1, mels, frames), 80 dB below the loudest point to it as 0 to 1, high above low."""
        level = 20 * self.picture(signals).mean(1, keepdim=True).clamp_min(1e-10).log10()
        return ((level - level.amax((1, 2, 3), keepdim=True)) / 80 + 1).clamp(0, 1).flip(2)
