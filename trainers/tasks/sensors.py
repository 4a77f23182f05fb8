"""EEG and MEG: a tokenizer learns to give back all sensors from some of them, with noise.

BrainOmni, arXiv 2505.18185.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import zoo
from audio.brainomni import BrainOmni
from trainers.data.sensors import SensorSignals
from trainers.tasks.tokenizer import TokenizerTask
from zoo.losses.sensor_windows import WindowLoss, WindowLossConfig, correlations, normalized, spectra


class SensorTask(TokenizerTask):
    """Trains BrainTokenizer on segments of recordings, `SensorSignals`.

    In a pass some sensors of each segment, drawn anew, are hidden from the encoder, and the others get noise; all are
    given back, each window of 2 s at mean 0 and deviation 1. Validation does the same, with the same draws every time,
    and also measures plain passes (`val/pcc` and others; `val/pcc_eeg` of segments of EEG alone, `val/pcc_meg` of the
    others), as published.

    loss = the terms of `WindowLossConfig` + each loss of the quantizer times its entry of `quantizer_weights`.

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        hidden: share of the sensors that the encoder does not see; at least one is hidden.
        noise: its deviation, in that of the signals.
        loss: fields of `WindowLossConfig`.
        quantizer_weights: weights of the quantizer's losses by name.
        learning_rate: at the end of the warm-up.
        quantizer_rate: that of the quantizer's own parameters, which do not decay; nor do norms and the embedding of
            the type of a sensor.
        betas, epsilon, weight_decay: of AdamW.
        warmup: share of the steps in which the rate rises from `first_rate` as the logarithm of the step; a cosine
            follows down to `final_rate`.
        first_rate, final_rate: shares of the learning rate.
        ema_decay: keeps a running average of the weights, see `CodecTask`; None for none.
        recompute: keep less for the backward pass, see `zoo.layers.recompute`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected. Nothing has been read but named weight files.
    """

    model: BrainOmni  # type: ignore[assignment]
    shown = ("pcc",)

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        hidden: float = 0.25,
        noise: float = 0.1,
        loss: dict[str, Any] | None = None,
        quantizer_weights: dict[str, float] | None = None,
        learning_rate: float = 2e-4,
        quantizer_rate: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        epsilon: float = 1e-5,
        weight_decay: float = 1e-2,
        warmup: float = 0.1,
        first_rate: float = 0.1,
        final_rate: float = 0.05,
        ema_decay: float | None = None,
        recompute: bool = False,
    ) -> None:
        for name, value in (("hidden", hidden), ("warmup", warmup)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {value}")
        if noise < 0:
            raise ValueError(f"noise: expected a deviation >= 0, got {noise}")
        terms = WindowLossConfig.from_dict(loss or {})
        super().__init__(
            model=model, changes=changes, init=init, trainable="all", quantizer_weights=quantizer_weights,
            adversary=None, learning_rate=learning_rate, betas=betas, weight_decay=weight_decay, warmup_steps=0,
            schedule="cosine", final_rate=final_rate, milestones=(), ema_decay=ema_decay, perturbation=None,
            recompute=recompute, compile=False, epsilon=epsilon, first_rate=first_rate,
        )  # fmt: skip
        self.save_hyperparameters()
        if not isinstance(self.model, BrainOmni):
            raise ValueError(f"model: expected one of sensors with places, such as braintokenizer, got {model}")
        self.hidden, self.noise = hidden, noise
        self.quantizer_rate, self.warmup = quantizer_rate, warmup
        self.loss = WindowLoss(terms)
        self.leave_loss_to_task()

    def model_range(self, batch: SensorSignals) -> SensorSignals:  # type: ignore[override]
        """The whole windows of segments."""
        samples, window = batch.signals.shape[-1], self.model.config.window
        if samples < window:
            raise ValueError(f"expected segments of at least {window} samples, got {samples}")
        return replace(batch, signals=batch.signals[..., : samples // window * window])

    def reconstructed(self, batch: SensorSignals) -> zoo.Output:  # type: ignore[override]
        """A pass with hidden sensors and noise."""
        return self._pass(self.model, self.partly(batch), batch)

    def partly(self, batch: SensorSignals) -> SensorSignals:
        """What the encoder sees of a batch: a function of its seeds, so that a step does not depend on the processes.

        Raises:
            ValueError: a single sensor, of which nothing would be left.
        """
        count = batch.signals.shape[1]
        if count < 2:
            raise ValueError(f"expected segments of at least 2 sensors, got {count}")
        seen, noisy = [], []
        for signals, seed in zip(batch.signals, batch.seeds.tolist()):
            draws = torch.Generator(signals.device).manual_seed(seed)
            order = torch.randperm(count, generator=draws, device=signals.device)
            seen.append(order[max(int(self.hidden * count), 1) :])
            chosen = signals[seen[-1]]
            noise = torch.randn(chosen.shape, generator=draws, device=signals.device, dtype=signals.dtype)
            noisy.append(chosen + self.noise * noise)
        kept = torch.stack(seen)
        places = batch.places.gather(1, kept[..., None].expand(-1, -1, batch.places.shape[-1]))
        return replace(batch, signals=torch.stack(noisy), places=places, types=batch.types.gather(1, kept))

    def generator_loss(  # type: ignore[override]
        self, batch: SensorSignals, output: zoo.Output, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and all losses by name, unweighted and detached, `total` being the weighted sum."""
        quantizer_loss, _ = self.quantizer_loss(output)
        windows, values = self.loss(self.windows(output.reconstruction), normalized(self.windows(batch.signals)))
        total = windows + quantizer_loss
        losses = {"total": total, **values, **output.quantized.losses}
        return total, {name: value.detach() for name, value in losses.items()}

    def windows(self, signals: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, windows, window), float32."""
        return signals.float().unflatten(-1, (-1, self.model.config.window))

    def _pass(self, model: Any, seen: SensorSignals, given_back: SensorSignals) -> zoo.Output:
        latent = model.latent(seen.signals, seen.places, seen.types)
        quantized = model.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)
        return zoo.Output(model.reconstruct(codes, given_back.places, given_back.types), latent, quantized)

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def generator_groups(self) -> list[dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {
            "decaying": {"params": []},
            "plain": {"params": [], "weight_decay": 0.0},
            "quantizer": {"params": [], "weight_decay": 0.0, "lr": self.quantizer_rate},
        }
        embedding = self.model.sensor_embedding.sensor_type.weight
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = "norm" in name or parameter is embedding
            kind = "plain" if plain else "quantizer" if name.startswith("quantizer.") else "decaying"
            groups[kind]["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]

    def rate(self, step: int, last: int, warmup_steps: int | None = None) -> float:
        rise = int(self.warmup * last)
        if step < rise:
            return self.first_rate + (1 - self.first_rate) * math.log(step + 1) / math.log(max(2, rise))
        return super().rate(step + 1, last, rise)  # a step ahead: the last step is at the final rate

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            raise ValueError("strategy: expected one that keeps weights whole, such as ddp, with signals of sensors")
        super().configure_model()

    # -- validation --------------------------------------------------------------------------------------------------

    def forward(self, batch: SensorSignals) -> zoo.Output:
        """A plain pass of `averaged` over whole windows."""
        whole = self.model_range(batch)
        return self._pass(self.averaged, whole, whole)

    def validation_step(self, batch: SensorSignals, batch_index: int) -> zoo.Output:
        whole = self.model_range(batch)
        partial = self._pass(self.averaged, self.partly(whole), whole)
        _, losses = self.generator_loss(whole, partial, self.global_step)
        output = self(batch)
        measures = measured(self.windows(output.reconstruction), normalized(self.windows(whole.signals)))
        self.log_validation({**losses, **{name: value.mean() for name, value in measures.items()}}, len(batch))
        eeg = (whole.types == 0).all(1)
        for suffix, chosen in (("eeg", eeg), ("meg", ~eeg)):
            if count := int(chosen.sum()):
                parts = {f"{name}_{suffix}": value[chosen].mean() for name, value in measures.items()}
                self.log_validation(parts, count)
        return output

    def pictures(self, signals: SensorSignals | Tensor) -> Tensor:
        """The first window of each (B, 1, sensors, window), from 3 deviations below its mean to 3 above it; few sensors
        have several rows each.
        """
        values = signals.signals if isinstance(signals, SensorSignals) else signals
        shown = normalized(self.windows(values))[:, None, :, 0]
        return (shown / 6 + 0.5).clamp(0, 1).repeat_interleave(max(1, 128 // shown.shape[2]), dim=2)


def measured(reconstruction: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Of each item of windows (B, ..., window) the published measures (B,): mean absolute and squared error, mean
    absolute error of amplitudes and of phases, and the mean of Pearson's coefficients.
    """
    one, other = spectra(reconstruction), spectra(target)
    values = {
        "mae": (reconstruction - target).abs(),
        "mse": (reconstruction - target).square(),
        "amplitude_mae": (one.abs() - other.abs()).abs(),
        "phase_mae": (one.angle() - other.angle()).abs(),
        "pcc": correlations(reconstruction, target),
    }
    return {name: value.flatten(1).mean(1) for name, value in values.items()}
