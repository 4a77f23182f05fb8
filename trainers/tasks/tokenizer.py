"""What the training of every tokenizer shares: two players' steps, schedules, the running average, distributed runs.

Two players: the generator is the tokenizer, the discriminator tells its signals from real ones (arXiv 1406.2661). A
step is one update of the generator; schedules, logs, `max_steps` and `global_step` count nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import lightning.pytorch as lightning
import torch
import torch.distributed
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

import zoo
from trainers.random_state import random_state, set_random_state
from trainers.tasks.anatomy import decoder_anatomy
from trainers.tasks.scheduled import initial_weights
from zoo.config import Config
from zoo.layers.recompute import RecomputeActivations
from zoo.losses import LossTerms
from zoo.ops.collective import from_all_ranks, sum_over_ranks, world_size
from zoo.quantizers import Quantized
from zoo.quantizers.latent_perturbation import PerturbationConfig, check_perturbation, perturb

ALONE = ("16-mixed", "16-true", "transformer-engine-float16")  # these need a loss scaler, which knows one optimizer


@dataclass(frozen=True)
class DiscriminatorTrainingConfig(Config):
    """How discriminators learn, whatever they judge; None stands for what the generator has."""

    discriminator_start: int = 0  # the step from which they learn
    discriminator_weights: str | None = None  # a file of their weights; None starts them afresh
    learning_rate: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    warmup_steps: int | None = None
    gradient_clip_val: float | None = None  # None: the Trainer's; 0 for none
    own_clock: bool = False  # warm-up, schedule and Adam's count begin at discriminator_start, not with the generator's
    discriminator_first: bool = False  # they move first in a step, and judge as they then are

    def require_training(self) -> None:
        """Raise a ConfigError for weights that lie nowhere, and for negative numbers."""
        given, clip, rise = self.discriminator_weights, self.gradient_clip_val, self.warmup_steps
        self.require(given is None or Path(given).is_file(), "discriminator_weights to be a file", given)
        self.require(clip is None or clip >= 0, "a gradient_clip_val >= 0, or None", clip)
        self.require(rise is None or rise >= 0, "warmup_steps >= 0", rise)


class TwoPlayerLoss(Protocol):
    """The loss module of a task; `discriminator` is None without an adversary."""

    discriminator: nn.Module | None

    def factor(self, step: int) -> float: ...

    def discriminator_loss(self, real: Tensor, fake: Tensor, *, step: int) -> LossTerms: ...


class TokenizerTask(lightning.LightningModule):
    """Base of the tasks: a subclass sets `loss` (see `TwoPlayerLoss`) and writes `generator_loss` and `model_range`.

    The Trainer's `gradient_clip_val` (for each player that states none), `accumulate_grad_batches`, `max_steps`,
    `precision` (bf16 or 32 bits) and `strategy` (also plain "ddp") work as usual. In a distributed run a step equals
    that of one process on the joined batch. The arguments are those of the tasks, which state them; `adversary` is what
    the discriminator's optimizer takes.

    Raises:
        ValueError: a setting that cannot work; tells what was expected. Nothing has been read but named weight files.
    """

    loss: Any
    shown: tuple[str, ...] = ()  # means of the validation that the progress bar shows
    decays_biases = True  # and other parameters of one axis
    discriminator_first = False  # moves first in a step and judges as it then is; of accumulated batches it moves last

    def __init__(
        self,
        *,
        model: str,
        changes: dict[str, Any] | None,
        init: str,
        trainable: Literal["all", "decoder"],
        quantizer_weights: dict[str, float] | None,
        adversary: DiscriminatorTrainingConfig | None,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        warmup_steps: int,
        schedule: Literal["cosine", "constant", "linear", "exponential", "step"],
        final_rate: float,
        milestones: tuple[int, ...],
        ema_decay: float | None,
        perturbation: dict[str, Any] | None,
        recompute: bool,
        compile: bool,
        ema_interval: int = 1,
        epsilon: float = 1e-8,
        first_rate: float = 0.0,
        final_step: int | None = None,
    ) -> None:
        super().__init__()
        self.ema: AveragedModel | None = None
        self.sharded = False
        _require(trainable in ("all", "decoder"), "trainable", "all or decoder", trainable)
        known = ("cosine", "constant", "linear", "exponential", "step")
        _require(schedule in known, "schedule", f"{', '.join(known[:-1])} or {known[-1]}", schedule)
        _require(ema_decay is None or 0 <= ema_decay < 1, "ema_decay", "a value in [0, 1), or None", ema_decay)
        _require(ema_interval >= 1, "ema_interval", "a value >= 1", ema_interval)
        _require(epsilon > 0, "epsilon", "a value > 0", epsilon)
        _require(0 <= first_rate < 1, "first_rate", "a share in [0, 1)", first_rate)
        after_rise = final_step is None or final_step > warmup_steps
        _require(after_rise, "final_step", f"a step after the {warmup_steps} of the warm-up, or None", final_step)
        _require(schedule != "exponential" or final_rate > 0, "final_rate", "a value > 0 for exponential", final_rate)
        _require(
            not (recompute and compile), "recompute", "False with compile, which decides itself what to keep", recompute
        )
        self.learning_rate, self.betas, self.weight_decay = learning_rate, tuple(betas), weight_decay
        self.epsilon, self.ema_interval = epsilon, ema_interval
        self.warmup_steps, self.first_rate, self.schedule = warmup_steps, first_rate, schedule
        self.final_rate, self.final_step, self.milestones = final_rate, final_step, milestones
        self.tokens_stay = trainable == "decoder"
        self.recompute, self.compile_model = recompute, compile
        self.quantizer_weights = dict(quantizer_weights or {})
        self.adversary = adversary
        self.perturbation = None if perturbation is None else PerturbationConfig.from_dict(perturbation)

        self.model = zoo.create_model(model, **initial_weights(init), **(changes or {}))
        if self.model.spec.modality == "image":
            self.model.to(memory_format=torch.channels_last)  # 1.1 to 1.5 times the speed of convolutions
        self._check_quantizer()
        if self.tokens_stay:
            decoder, _ = decoder_anatomy(self.model)
            self.model.requires_grad_(False)
            for parameter in decoder:
                parameter.requires_grad_(True)
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=_RunningAverage(ema_decay))
            self.ema.requires_grad_(False).eval()
        if self.perturbation is not None:
            self.model.quantizer.register_forward_hook(self._perturb)

    def leave_loss_to_task(self) -> None:
        """To be called when all modules are set: DistributedDataParallel then reduces the model's gradients alone.

        Those of the discriminator are averaged here, so that it may rest in some steps. Buffers follow the joined batch
        in every process, and are not sent around before each pass: in validation, processes with fewer batches than
        others would leave these waiting for ever. The names are read by torch.
        """
        others = [name for name, _ in self.named_parameters() if name.startswith(("loss.", "ema."))]
        self._ddp_params_and_buffers_to_ignore = [*others, *dict(self.named_buffers())]

    def model_range(self, batch: Tensor) -> Tensor:
        """What the data module gives -> what the model takes."""
        raise NotImplementedError

    def example(self, batch: Any) -> tuple[Any, Any]:
        """What the model takes of a training batch, and what it is to give: the same, unless a subclass differs."""
        signal = self.model_range(batch)
        return signal, signal

    def generator_loss(self, signal: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss of giving `signal`, and all losses by name, detached, `total` being the weighted sum."""
        raise NotImplementedError

    def pictures(self, signal: Tensor) -> Tensor:
        """Signals (B, ...) of the model's range -> pictures (B, C, H, W) in [0, 1] of them, for logs."""
        raise NotImplementedError

    def quantizer_loss(self, output: zoo.Output) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the quantizer's losses, and each of them after its weight."""
        found = output.quantized.losses
        weighted = {name: weight * found[name] for name, weight in self.quantizer_weights.items() if name in found}
        total = sum(weighted.values(), start=output.latent.new_zeros((), dtype=torch.float32))
        # a parameter of the quantizer that no loss reaches has gradient 0, in every process
        idle = [p.sum() for p in self.model.quantizer.parameters() if p.requires_grad and not self.sharded]
        return total + 0 * sum(idle, start=total.new_zeros(())), weighted

    def _check_quantizer(self) -> None:
        """Raise a ValueError for the weight of a loss that the quantizer lacks, or a perturbation it cannot take."""
        shape: tuple[int, ...] = (4, 4)
        if self.model.layout == "sequence" and self.model.spec.size is not None:  # some quantizers take no other rows
            shape = self.model.positions(self.model.spec.size)
        with torch.random.fork_rng(devices=[]):
            quantizer = self.model.quantizer.config.build().train()
            self.quantizer_losses = frozenset(quantizer(torch.rand(2, *shape, quantizer.config.dim)).losses)
        known = sorted({*self.quantizer_losses, *self.model.own_losses})
        if unknown := sorted(set(self.quantizer_weights) - set(known)):
            raise ValueError(f"quantizer_weights: the losses of this quantizer are {known}, got {unknown}")
        if self.perturbation is not None:
            check_perturbation(quantizer)

    # -- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        step, last_of_step = self.global_step, not self.trainer.fit_loop._should_accumulate()
        share = 1 / self.trainer.accumulate_grad_batches
        signal, target = self.example(batch)

        # the tokenizer gives the signals back
        with RecomputeActivations() if self.recompute else nullcontext():
            output = self.reconstructed(signal)
        active = self.loss.factor(step) > 0
        moves_first = self.discriminator_first and share == 1
        told: dict[str, Tensor] = {}
        if active and moves_first:
            told = self._discriminator_backward(target, output, step, share)
            self.update_discriminator(step)

        # it tries to make the discriminator take them for real
        with _frozen(self.loss.discriminator):
            generator, losses = self.generator_loss(target, output, step)
        with nullcontext() if last_of_step else self._without_reduction(), self._types_of_forward():
            self.manual_backward(generator * share)
        if active and not moves_first:
            told = self._discriminator_backward(target, output, step, share)

        if last_of_step:
            self.update_generator()
            if active and not moves_first:
                self.update_discriminator(step)
        losses |= told
        self._log_step(losses, output.quantized)
        return losses["total"]

    def _discriminator_backward(self, signal: Tensor, output: zoo.Output, step: int, share: float) -> dict[str, Tensor]:
        """The discriminator tells the reconstructions from the signals; returns its losses by name, detached."""
        terms = self.loss.discriminator_loss(signal, output.reconstruction.detach(), step=step)
        with self._types_of_forward():
            (terms.total * share).backward()
        values = dict(terms.values)
        own = {"discriminator": terms.total.detach(), "discriminator_adversarial": values.pop("adversarial")}
        return {**own, **values}

    def _types_of_forward(self) -> Any:
        """A context for backward passes, whose types Lightning's autocast around the whole step would change."""
        return torch.autocast(self.device.type, enabled=False)

    def reconstructed(self, signal: Tensor) -> zoo.Output:
        """The model's pass of a training step."""
        return self.model(signal)

    def update_generator(self) -> None:
        """One update of the generator and its running average."""
        optimizer = _as_list(self.optimizers())[0]
        self.clip_gradients(optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm)
        optimizer.step()  # Lightning counts the steps of its wrapped optimizers ...
        optimizer.zero_grad()
        _as_list(self.lr_schedulers())[0].step()
        if self.ema is not None and self.global_step % self.ema_interval == 0:
            self.ema.update_parameters(self.model)

    def update_discriminator(self, step: int) -> None:
        """One update of the discriminator, in the step that follows `step` updates of the generator."""
        chosen, trainer = self.adversary, self.trainer
        assert chosen is not None
        _average_gradients(self.loss.discriminator)
        optimizer = _as_list(self.optimizers())[1].optimizer  # ... so the discriminator steps by the plain one inside
        if not chosen.own_clock:
            _count_rest(optimizer, step)
        clip = trainer.gradient_clip_val if chosen.gradient_clip_val is None else chosen.gradient_clip_val
        # not `self.clip_gradients`, which takes the Trainer's value alone
        algorithm = trainer.gradient_clip_algorithm or GradClipAlgorithmType.NORM
        trainer.precision_plugin.clip_gradients(optimizer, clip or 0.0, algorithm)
        optimizer.step()
        optimizer.zero_grad()
        _as_list(self.lr_schedulers())[1].step()

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

    # -- validation --------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def log_validation(self, values: dict[str, Tensor], count: int) -> None:
        """Take the means of a batch of `count` signals into those of the validation, which all processes share.

        (Lightning's own means over processes are wrong where these have unequal shares of the data.)
        """
        for name, value in values.items():
            pair = torch.stack([value.detach().float() * count, value.new_tensor(count, dtype=torch.float32)])
            self._sums[name] = self._sums.get(name, 0) + pair

    def on_validation_epoch_end(self) -> None:
        sums: dict[str, Tensor] = {}
        own = {name: pair.cpu() for name, pair in self._sums.items()}
        for share in from_all_ranks(own):  # that of a process without a batch is empty
            for name, pair in share.items():
                sums[name] = sums.get(name, 0) + pair
        for name, (total, count) in sums.items():
            self.log(f"val/{name}", float(total / count), prog_bar=name in self.shown)

    @property
    def averaged(self) -> zoo.Tokenizer:
        """The model that validation and export take: the running average where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

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
        from torch.distributed.fsdp import fully_shard

        # codebooks that the quantizer moves itself stay whole
        moved = {name for name, value in self.model.quantizer.named_parameters() if not value.requires_grad}
        for module in (self.model, None if self.ema is None else self.ema.module):
            if module is not None:
                _take_from_first([*module.parameters(), *module.buffers()], self.trainer.strategy.root_device)
                module.to(memory_format=torch.contiguous_format)
                whole = {value for name, value in module.quantizer.named_parameters() if name in moved}
                fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True, ignored_params=whole)
        self.sharded = True

    def on_fit_start(self) -> None:
        self.train()
        for module in (self.loss, None if self.sharded else self.ema):
            if module is not None:  # what DistributedDataParallel leaves alone
                _take_from_first([*module.parameters(), *module.buffers()], self.device)
        if not self.sharded:
            _take_from_first(self.model.buffers(), self.device)

    def train(self, mode: bool = True) -> Self:
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

    def generator_parameters(self) -> list[nn.Parameter]:
        """What the generator's optimizer moves."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def generator_groups(self) -> list[dict[str, Any]]:
        """Those parameters as the groups of that optimizer."""
        parameters = self.generator_parameters()
        if self.decays_biases:
            return [{"params": parameters}]
        return [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
        optimizers = [
            torch.optim.AdamW(
                self.generator_groups(),
                lr=self.learning_rate,
                betas=self.betas,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
            )
        ]
        last = int(self.trainer.estimated_stepping_batches)
        spans = [(0, last)]  # of the schedule: its step at the optimizer's first update, and its end
        if self.adversary is not None:
            chosen = self.adversary
            optimizers.append(
                torch.optim.AdamW(
                    self.loss.discriminator.parameters(),  # type: ignore[union-attr]
                    lr=self.learning_rate if chosen.learning_rate is None else chosen.learning_rate,
                    betas=chosen.betas or self.betas,
                    eps=self.epsilon,
                    weight_decay=self.weight_decay if chosen.weight_decay is None else chosen.weight_decay,
                )
            )
            start = chosen.discriminator_start
            spans.append((0, last - start) if chosen.own_clock else (start, last))
        warmups = [self.warmup_steps, None if self.adversary is None else self.adversary.warmup_steps]
        schedules = [
            LambdaLR(optimizer, lambda step, start=start, end=end, rise=rise: self.rate(start + step, end, rise))
            for optimizer, (start, end), rise in zip(optimizers, spans, warmups)
        ]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]

    def rate(self, step: int, last: int, warmup_steps: int | None = None) -> float:
        """Share of the learning rate in a step, of `last` steps in all; None: the generator's warm-up."""
        warmup_steps = self.warmup_steps if warmup_steps is None else warmup_steps
        if step < warmup_steps and self.first_rate > 0:
            return self.first_rate + (1 - self.first_rate) * (step / warmup_steps) ** 2
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.schedule == "step":
            return 0.1 ** sum(step >= milestone for milestone in self.milestones)
        if self.schedule == "constant":
            return 1.0
        last = last if self.final_step is None else self.final_step
        done = (step - warmup_steps) / max(1, last - warmup_steps)
        if self.schedule == "linear":
            return 1 - (1 - self.final_rate) * min(1.0, done)
        if self.schedule == "exponential":
            return self.final_rate ** min(1.0, done)
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
        share = 1 - min(self.decay, (1 + count) / (10 + count))
        for sharded in (False, True):  # one call does not take both
            pairs = [pair for pair in zip(averages, values) if isinstance(pair[0], DTensor) == sharded]
            if pairs:
                torch._foreach_lerp_(*map(list, zip(*pairs)), share)


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
def _take_from_first(tensors: Iterable[Tensor], device: torch.device) -> None:
    """They become those of the first process; `device` is that of this process."""
    if world_size() > 1:
        for tensor in tensors:
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


def _count_rest(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Lets Adam begin as after steps whose gradients were 0.

    VQGAN's and LlamaGen's optimizers count those steps of a discriminator that has not started yet.
    """
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        if not optimizer.state[parameter]:
            averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **averages}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _require(holds: bool, name: str, expected: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
