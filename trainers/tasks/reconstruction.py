"""Reconstruction: a tokenizer learns to give back its images, by pixel, perceptual, quantizer and adversarial losses.

Two players: the generator is the tokenizer, the discriminator tells its images from real ones (arXiv 2012.09841). A
step is one update of the generator; schedules, logs, `max_steps` and `global_step` count nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

import zoo
from trainers.random_state import random_state, set_random_state
from trainers.tasks.anatomy import decoder_anatomy
from zoo import checkpoint
from zoo.layers.recompute import RecomputeActivations
from zoo.losses import AdversaryConfig, DiscriminatorConfig, PatchGANConfig, VQGANLoss, VQGANLossConfig
from zoo.losses.perceptual import perceptual_distance
from zoo.metrics.image import psnr
from zoo.ops.collective import sum_over_ranks, world_size
from zoo.quantizers import Quantized
from zoo.quantizers.latent_perturbation import PerturbationConfig, check_perturbation, perturb

ALONE = ("16-mixed", "16-true", "transformer-engine-float16")  # these need a loss scaler, which knows one optimizer


@dataclass(frozen=True)
class AdversaryTrainingConfig(AdversaryConfig):
    """The discriminator, its weights and its optimizer; with the terms and the schedule of `AdversaryConfig`.

    Published tokenizers come without their discriminator. To fine-tune one, let a fresh discriminator learn before it
    counts: `discriminator_warmup` raises its weight slowly, and the adaptive weight bounds its influence.
    """

    discriminator: DiscriminatorConfig = PatchGANConfig()
    discriminator_weights: str | None = None  # a file of its weights; None starts it afresh
    learning_rate: float | None = None  # None in this and the next two: the generator's
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.discriminator_weights
        self.require(given is None or Path(given).is_file(), "discriminator_weights to be a file", given)


class ReconstructionTask(lightning.LightningModule):
    """Trains any tokenizer of the zoo on images.

    generator loss = `reconstruction_weight` * pixel loss + `perceptual_weight` * perceptual distance + each loss of the
    quantizer times its entry of `quantizer_weights` (a loss without an entry is not used) + the adversarial term.

    Images come in [0, 1]; the losses see them in the model's own range. The Trainer's `gradient_clip_val` (for each
    player), `accumulate_grad_batches`, `max_steps`, `precision` (bf16 or 32 bits) and `strategy` (also plain "ddp")
    work as usual. In a distributed run a step equals that of one process on the joined batch.

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        trainable: "all", or "decoder" to leave encoder and quantizer, and so all tokens, as they are.
        reconstruction: "l1" or "l2".
        reconstruction_weight: of that loss.
        perceptual: name of a perceptual distance (see `zoo.losses.perceptual_distance`), or several with their weights;
            None for none.
        perceptual_weight: of all of them.
        perceptual_files: local weight files of their networks.
        quantizer_weights: weights of the quantizer's losses by name.
        entropy_annealing: (factor, steps): the entropy loss starts at 1 + factor times its weight and comes down to it
            linearly over these steps.
        adversary: fields of `AdversaryTrainingConfig`; None for no discriminator.
        learning_rate: at the end of the warm-up.
        betas, weight_decay: of AdamW.
        warmup_steps: linear rise of the learning rate.
        schedule: of the learning rate after the warm-up: "cosine" to `final_rate` at the last step, "constant", or
            "step" (a tenth at each of `milestones`).
        final_rate: share of the learning rate at the end of "cosine".
        milestones: steps of "step".
        ema_decay: keeps a running average of the weights, which validation and export use; None for none. The decay
            rises to this value as (1 + n) / (10 + n) over the first n updates.
        perturbation: fields of `PerturbationConfig`, latent perturbation; None for none.
        recompute: keep less for the backward pass, see `zoo.layers.recompute`.
        compile: run the model under `torch.compile`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected. Nothing has been read but named weight files.
    """

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        trainable: Literal["all", "decoder"] = "all",
        reconstruction: Literal["l1", "l2"] = "l1",
        reconstruction_weight: float = 1.0,
        perceptual: str | dict[str, float] | None = None,
        perceptual_weight: float = 1.0,
        perceptual_files: dict[str, str] | None = None,
        quantizer_weights: dict[str, float] | None = None,
        entropy_annealing: tuple[float, int] = (0.0, 0),
        adversary: dict[str, Any] | None = None,
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        schedule: Literal["cosine", "constant", "step"] = "cosine",
        final_rate: float = 0.0,
        milestones: tuple[int, ...] = (),
        ema_decay: float | None = None,
        perturbation: dict[str, Any] | None = None,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.ema: AveragedModel | None = None
        self.sharded = False
        _require(trainable in ("all", "decoder"), "trainable", "all or decoder", trainable)
        _require(schedule in ("cosine", "constant", "step"), "schedule", "cosine, constant or step", schedule)
        _require(ema_decay is None or 0 <= ema_decay < 1, "ema_decay", "a value in [0, 1), or None", ema_decay)
        _require(
            not (recompute and compile), "recompute", "False with compile, which decides itself what to keep", recompute
        )
        self.learning_rate, self.betas, self.weight_decay = learning_rate, tuple(betas), weight_decay
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.final_rate, self.milestones = final_rate, milestones
        self.tokens_stay = trainable == "decoder"
        self.recompute, self.compile_model = recompute, compile
        self.quantizer_weights = dict(quantizer_weights or {})
        self.adversary = None if adversary is None else AdversaryTrainingConfig.from_dict(adversary)
        self.perturbation = None if perturbation is None else PerturbationConfig.from_dict(perturbation)
        loss_config = VQGANLossConfig(
            reconstruction=reconstruction,
            reconstruction_weight=reconstruction_weight,
            perceptual_weight=perceptual_weight,
            entropy_annealing_factor=entropy_annealing[0],
            entropy_annealing_steps=entropy_annealing[1],
            **{f.name: getattr(self.adversary or AdversaryConfig(), f.name) for f in fields(AdversaryConfig)},
        )

        arguments: dict[str, Any] = {"pretrained": init == "pretrained"}
        if init not in ("random", "pretrained"):
            _require(Path(init).is_file(), "init", "random, pretrained or a file", init)
            arguments = {"checkpoint": init}
        self.model = zoo.create_model(model, **arguments, **(changes or {}))
        self.model.to(memory_format=torch.channels_last)  # 1.1 to 1.5 times the speed of convolutions
        self._check_quantizer()
        self.last_layer_weight: list[nn.Parameter] = []  # in a list, for it is registered in the model already
        if self.tokens_stay or loss_config.adaptive_weight:
            decoder, last = decoder_anatomy(self.model)
            self.last_layer_weight.append(last)
            if self.tokens_stay:
                self.model.requires_grad_(False)
                for parameter in decoder:
                    parameter.requires_grad_(True)

        discriminator = None
        if self.adversary is not None:
            discriminator = self.adversary.discriminator.build()
            if self.adversary.discriminator_weights is not None:
                checkpoint.load_into(discriminator, checkpoint.read(Path(self.adversary.discriminator_weights)))
        terms = {perceptual: 1.0} if isinstance(perceptual, str) else perceptual
        distance = perceptual_distance(terms, perceptual_files) if terms else None
        self.loss = VQGANLoss(loss_config, discriminator, distance, image_range=self.model.spec.value_range)

        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=_RunningAverage(ema_decay))
            self.ema.requires_grad_(False).eval()
        if self.perturbation is not None:
            self.model.quantizer.register_forward_hook(self._perturb)
        # DistributedDataParallel reduces the model's gradients alone; those of the discriminator are averaged here, so
        # that it may rest in some steps. The names are read by torch's wrapper.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name in [*dict(self.named_parameters()), *dict(self.named_buffers())]
            if name.startswith(("loss.", "ema."))
        ]

    def _check_quantizer(self) -> None:
        """Raise a ValueError for the weight of a loss that the quantizer lacks, or a perturbation it cannot take."""
        with torch.random.fork_rng(devices=[]):
            quantizer = self.model.quantizer.config.build().train()
            known = sorted(quantizer(torch.rand(2, 4, 4, quantizer.config.dim)).losses)
        if unknown := sorted(set(self.quantizer_weights) - set(known)):
            raise ValueError(f"quantizer_weights: the losses of this quantizer are {known}, got {unknown}")
        if self.perturbation is not None:
            check_perturbation(quantizer)

    # -- training --------------------------------------------------------------------------------------------------

    def training_step(self, images: Tensor, batch_index: int) -> Tensor:
        step, last_of_step = self.global_step, not self.trainer.fit_loop._should_accumulate()
        share = 1 / self.trainer.accumulate_grad_batches
        images = self.model_range(images)

        # the tokenizer gives the images back, and tries to make the discriminator take them for real
        with RecomputeActivations() if self.recompute else nullcontext():
            output = self.model(images)
        with _frozen(self.loss.discriminator):
            generator, losses = self.generator_loss(images, output, step)
        with nullcontext() if last_of_step else self._without_reduction():
            self.manual_backward(generator * share)

        # the discriminator tells the same reconstructions from the images
        fake, active = output.reconstruction.detach(), self.loss.factor(step) > 0
        if active:
            discriminator = self.loss.discriminator_loss(images, fake, step=step)
            (discriminator.total * share).backward()
            values = dict(discriminator.values)
            losses |= {
                "discriminator": discriminator.total.detach(),
                "discriminator_adversarial": values.pop("adversarial"),
            }
            losses |= values

        if last_of_step:
            self.update_weights(active)
        self._log_step(losses, output.quantized)
        return losses["total"]

    def generator_loss(self, images: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss, and all losses by name, unweighted and detached, `total` being the weighted sum.

        Args:
            images: (B, C, H, W) in the model's range.
            output: of the model.
            step: updates of the generator made so far.
        """
        found = output.quantized.losses
        weighted = {name: weight * found[name] for name, weight in self.quantizer_weights.items() if name in found}
        quantizer_loss = sum(weighted.values(), start=output.latent.new_zeros((), dtype=torch.float32))
        # a parameter of the quantizer that no loss reaches has gradient 0, in every process
        idle = [p.sum() for p in self.model.quantizer.parameters() if p.requires_grad and not self.sharded]
        generator = self.loss.generator_loss(
            images,
            output.reconstruction,
            quantizer_loss + 0 * sum(idle, start=quantizer_loss.new_zeros(())),
            step=step,
            entropy_loss=weighted.get("entropy"),
            last_layer_weight=self.last_layer_weight[0] if self.last_layer_weight else None,
        )
        values = {name: value for name, value in generator.values.items() if name != "quantizer"}
        quantizer = {name: value.detach() for name, value in found.items()}
        return generator.total, {"total": generator.total.detach(), **values, **quantizer}

    def update_weights(self, discriminator_active: bool) -> None:
        """One update of the generator, its running average and, where it is active, the discriminator."""
        generator, *others = _as_list(self.optimizers())
        schedules = _as_list(self.lr_schedulers())
        self.clip_gradients(generator, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
        generator.step()  # Lightning counts the steps of its wrapped optimizers ...
        generator.zero_grad()
        schedules[0].step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        if discriminator_active:
            _average_gradients(self.loss.discriminator)
            discriminator = others[0].optimizer  # ... so the discriminator steps by the plain one inside
            self.clip_gradients(discriminator, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
            discriminator.step()
            discriminator.zero_grad()
            schedules[1].step()

    def _without_reduction(self) -> Any:
        """A context in which gradients of this process are not yet averaged over all."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if hasattr(strategy, "block_backward_sync") else nullcontext()

    def _perturb(self, quantizer: nn.Module, arguments: tuple[Tensor, ...], quantized: Quantized) -> Quantized:
        if not self.model.training or self.perturbation is None:
            return quantized
        return perturb(self.model.quantizer, arguments[0], quantized, self.perturbation, self.global_step)

    def _log_step(self, losses: dict[str, Tensor], quantized: Quantized) -> None:
        values = torch.stack([value.detach().float() for value in (*losses.values(), *quantized.statistics.values())])
        sum_over_ranks(values)
        values = values / world_size()
        for name, value in zip((*losses, *quantized.statistics), values):
            self.log(f"train/{name}", value, prog_bar=name == "perplexity")
        self.log("loss", values[0], prog_bar=True, logger=False)

    # -- validation ------------------------------------------------------------------------------------------------

    @property
    def averaged(self) -> zoo.Tokenizer:
        """The model that validation and export take: the running average where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    def forward(self, images: Tensor) -> zoo.Output:
        """One pass of `averaged` on images in [0, 1]."""
        return self.averaged(self.model_range(images))

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        output = self(images)
        _, losses = self.generator_loss(self.model_range(images), output, self.global_step)
        self.log_dict({f"val/{k}": v for k, v in losses.items()}, batch_size=len(images), sync_dist=True)
        quality = psnr(self.unit(output.reconstruction).clamp(0, 1), images.float()).mean()
        self.log("val/psnr", quality, batch_size=len(images), prog_bar=True, sync_dist=True)
        return output

    def model_range(self, images: Tensor) -> Tensor:
        """From [0, 1] to the model's range, with the channels innermost in memory."""
        low, high = self.model.spec.value_range
        return (images * (high - low) + low).contiguous(memory_format=torch.channels_last)

    def unit(self, x: Tensor) -> Tensor:
        """From the model's range to [0, 1], in float32 and not clamped."""
        low, high = self.model.spec.value_range
        return (x.float() - low) / (high - low)

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    # Lightning refuses gradient_clip_val and accumulate_grad_batches to manual optimisation. The steps of this task
    # obey both, so it turns manual only after Lightning's check, which lies between the next two hooks.

    def configure_callbacks(self) -> list[lightning.Callback]:
        self.automatic_optimization = True
        return []

    def setup(self, stage: str) -> None:
        self.automatic_optimization = False
        if stage == "fit" and self.trainer.precision in ALONE:
            raise ValueError(f"precision: expected 32 bits or bf16, got {self.trainer.precision}")
        if stage == "fit" and self.compile_model:
            self.model.compile()

    def configure_model(self) -> None:
        """Under FSDP2 (`ModelParallelStrategy`) shards the tokenizer and its average; the discriminator is small."""
        mesh = self.device_mesh
        if mesh is None or self.sharded:
            return
        if mesh["tensor_parallel"].size() > 1:
            raise ValueError(
                "strategy: expected tensor_parallel_size 1, and data_parallel_size the number of processes"
            )
        if self.loss.config.adaptive_weight:
            raise ValueError("adaptive_weight: expected False where weights are sharded; DDP takes it")
        from torch.distributed.fsdp import fully_shard

        for module in (self.model, None if self.ema is None else self.ema.module):
            if module is not None:
                _take_from_first(module, self.trainer.strategy.root_device)
                fully_shard(module.to(memory_format=torch.contiguous_format), mesh=mesh["data_parallel"])
        self.sharded = True

    def on_fit_start(self) -> None:
        self.train()
        for module in (self.loss, None if self.sharded else self.ema):
            if module is not None:  # what DistributedDataParallel leaves alone
                _take_from_first(module, self.device)

    def train(self, mode: bool = True) -> ReconstructionTask:
        """Training mode, in which what is frozen stays in evaluation mode: it must not draw or count anything."""
        super().train(mode)
        if self.ema is not None:
            self.ema.eval()
        if self.tokens_stay:
            self.model.quantizer.eval()
            for module in self.model.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizers = [
            torch.optim.AdamW(parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay)
        ]
        starts = [0]
        if self.adversary is not None:
            chosen = self.adversary
            optimizers.append(
                torch.optim.AdamW(
                    self.loss.discriminator.parameters(),  # type: ignore[union-attr]
                    lr=self.learning_rate if chosen.learning_rate is None else chosen.learning_rate,
                    betas=chosen.betas or self.betas,
                    weight_decay=self.weight_decay if chosen.weight_decay is None else chosen.weight_decay,
                )
            )
            starts.append(chosen.discriminator_start)
        last = int(self.trainer.estimated_stepping_batches)
        schedules = [
            LambdaLR(optimizer, lambda step, start=start: self.rate(start + step, last))
            for optimizer, start in zip(optimizers, starts)
        ]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def rate(self, step: int, last: int) -> float:
        """Share of the learning rate in a step, of `last` steps in all."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "step":
            return 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, last - self.warmup_steps)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.training and "random_state" in checkpoint:
            set_random_state(checkpoint["random_state"], self.trainer.strategy.root_device)


class _RunningAverage:
    """The average's update, as AveragedModel calls it, with a decay that rises to its value."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        count = int(updates)
        torch._foreach_lerp_(averages, values, 1 - min(self.decay, (1 + count) / (10 + count)))


@contextmanager
def _frozen(module: nn.Module | None) -> Iterator[None]:
    """No gradients for the parameters of a module in the block."""
    parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@torch.no_grad()
def _take_from_first(module: nn.Module, device: torch.device) -> None:
    """Parameters and buffers become those of the first process; `device` is that of this process."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            value = tensor.to(device)
            torch.distributed.broadcast(value, src=0)
            tensor.copy_(value)


def _average_gradients(module: nn.Module | None) -> None:
    """Gradients over all processes: their mean, as one message."""
    if module is None or world_size() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    sum_over_ranks(flat)
    for gradient, part in zip(gradients, (flat / world_size()).split([g.numel() for g in gradients])):
        gradient.copy_(part.view_as(gradient))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
