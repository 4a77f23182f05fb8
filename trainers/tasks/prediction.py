"""Rows of tokens that predict the latents of a tokenizer on a grid, before, or instead of, pixels.

TiTok's first stage (arXiv 2406.07550; with dropped tails One-D-Piece, arXiv 2501.10064), ALIT's roll-outs (arXiv
2411.02393) and KARL's two passes with halting (arXiv 2507.07995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tokenizers_visual.alit import ALIT, Rollout
from tokenizers_visual.karl import ERRORS, KARL, halting_loss, nearest_errors
from tokenizers_visual.titok import TiTok
from trainers.tasks.adaptive import TailDropConfig
from trainers.tasks.reconstruction import ReconstructionTask
from zoo.losses.frozen import Frozen


class ProxyTask(ReconstructionTask):
    """First stage of TiTok and One-D-Piece: the rows predict the codes of a frozen tokenizer on a grid, the proxy.

    loss = cross entropy of the proxy's codes + each loss of the quantizer times its entry of `quantizer_weights`.

    The model's codebook and decoder of the proxy's codes are the teacher's, and rest. The second stage is
    `ReconstructionTask` (or `AdaptiveTask`) with `trainable: decoder`, and `init` the file that this one exports.

    Args:
        model: name of the model in the zoo; one with a proxy.
        teacher: name of the proxy in the zoo, with a grid of one level.
        teacher_init: "pretrained", "random", or a file of weights.
        teacher_changes: config fields of the teacher to change.
        tail_drop: fields of `TailDropConfig`, of models whose prefixes decode; None for none.
        settings: arguments of `ReconstructionTask`; those of images and adversary do not matter.

    Raises:
        ValueError: a model without a proxy, a teacher that does not fit, or a setting that cannot work.
    """

    model: TiTok  # type: ignore[assignment]
    decays_biases = False

    def __init__(
        self,
        model: str,
        teacher: str = "maskgit_vq_f16.titok",
        teacher_init: str = "pretrained",
        teacher_changes: dict[str, Any] | None = None,
        tail_drop: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(model=model, **settings)
        if not isinstance(self.model, TiTok) or self.model.config.proxy is None:
            raise ValueError(f"model: expected one of two stages, with a proxy, got {model}")
        if tail_drop is not None and self.model.prefix != "positions":
            raise ValueError(f"tail_drop: expected None, since the first tokens of {model} do not decode alone")
        self.tail_drop = None if tail_drop is None else TailDropConfig.from_dict(tail_drop)
        weights: dict[str, Any] = {"pretrained": teacher_init == "pretrained"}
        if teacher_init not in ("pretrained", "random"):
            weights = {"checkpoint": teacher_init}
        proxy: Any = zoo.create_model(teacher, **weights, **(teacher_changes or {}))
        grid, side = self.model.decoder.grid, self.model.config.image_size
        wanted = ((self.model.config.proxy.codebook_size,), (grid, grid))
        got = (proxy.vocab_sizes, proxy.positions((side, side)))
        if got != wanted:
            raise ValueError(
                f"teacher: expected a grid of {wanted[1]} codes out of {wanted[0]}, got {got[1]}, {got[0]}"
            )
        try:
            self.model.pixel_decoder.load_state_dict(proxy.decoder.state_dict())
        except RuntimeError as error:
            raise ValueError(f"teacher: expected a decoder of the sizes in {model}'s config, got another") from error
        with torch.no_grad():
            self.model.proxy_codebook.weight.copy_(proxy.quantizer.codebook.weight)
        for module in (self.model.pixel_decoder, self.model.proxy_codebook):
            module.requires_grad_(False)
        self.teacher = Frozen(proxy)

    def reconstructed(self, signal: Tensor) -> zoo.Output:
        """With the logits (B, K, h, w) of the proxy's codes in place of a reconstruction."""
        lengths = None
        if self.tail_drop is not None and self.model.training:
            drawn = self.tail_drop.draw(len(signal), self.model.config.num_tokens, self.global_step)
            lengths = drawn.to(signal.device)
        latent = self.model.latent(signal)
        quantized = self.model.quantizer(latent)
        return zoo.Output(self.model.proxy_logits(quantized.codes.to(latent.dtype), lengths), latent, quantized)

    def generator_loss(self, signal: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """`output` as `reconstructed` gives it."""
        proxy: Any = self.teacher.network
        low, high = self.model.spec.value_range
        least, largest = proxy.spec.value_range
        with torch.no_grad():
            images = (signal - low) / (high - low) * (largest - least) + least
            codes = proxy.quantizer(proxy.latent(images)).levels[0]
        logits = output.reconstruction.float()
        quantizer_loss, _ = self.quantizer_loss(output)
        cross_entropy = F.cross_entropy(logits, codes)
        total = cross_entropy + quantizer_loss
        known = (logits.argmax(1) == codes).float().mean()
        losses = {"total": total, "proxy": cross_entropy, "proxy_accuracy": known, **output.quantized.losses}
        return total, {name: value.detach() for name, value in losses.items()}

    def validation_step(self, images: Tensor, batch_index: int) -> zoo.Output:
        signal = self.model_range(images)
        _, losses = self.generator_loss(signal, self.reconstructed(signal), self.global_step)
        self.log_validation(losses, len(images))
        return self(images)


@dataclass(frozen=True)
class _RolledOut(zoo.Output):
    """What distillation needs of all roll-outs."""

    rollouts: tuple[Rollout, ...]
    base_latent: Tensor


class RollOutTask(ReconstructionTask):
    """ALIT. Distillation: every roll-out predicts the latents of the base, which rests.

    loss = for each roll-out its weight * cross entropy of the base's codes + squared distance of the mean code (of a
    variational base, weight * squared distance of the latent) + the quantizer's losses times `quantizer_weights`.

    Fine-tuning (`rollout_weights` None): all of the model learns by the losses of `ReconstructionTask`, from one
    roll-out a step, in turn; one discriminator serves all of them.

    Args:
        model: name of the model in the zoo.
        rollout_weights: of the predictions of the roll-outs, the last one for all further ones; None: fine-tuning.
        settings: arguments of `ReconstructionTask`; those of images and adversary matter for fine-tuning alone.

    Raises:
        ValueError: a model without roll-outs, or a setting that cannot work.
    """

    model: ALIT  # type: ignore[assignment]
    decays_biases = False

    def __init__(
        self,
        model: str,
        rollout_weights: tuple[float, ...] | None = (2.5, 2.0, 1.5, 1.25, 1.0),
        **settings: Any,
    ) -> None:
        super().__init__(model=model, **settings)
        if not isinstance(self.model, ALIT):
            raise ValueError(f"model: expected one that rolls out, got {model}")
        if rollout_weights is not None and not rollout_weights:
            raise ValueError("rollout_weights: expected at least one weight, or None, got none")
        self.rollout_weights = rollout_weights
        if rollout_weights is not None:
            self.model.base.requires_grad_(False)

    def reconstructed(self, signal: Tensor) -> zoo.Output:
        count = self.model.config.rollouts
        if self.rollout_weights is None:
            *_, last = self.model.roll_out(signal, self.global_step % count + 1)
            return zoo.Output(self.model.reconstruct(last.codes), last.latent, last.quantized)
        rollouts = tuple(self.model.roll_out(signal, predict=True))
        with torch.no_grad():
            base_latent = self.model.base.latent(signal)
        return _RolledOut(signal, rollouts[-1].latent, rollouts[-1].quantized, rollouts, base_latent)

    def generator_loss(self, signal: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(output, _RolledOut):
            return super().generator_loss(signal, output, step)
        weights = self.rollout_weights or ()
        terms: dict[str, list[Tensor]] = {"total": []}
        for place, rollout in enumerate(output.rollouts):
            weight = weights[min(place, len(weights) - 1)]
            found = self.model.base.prediction_losses(_given(rollout.prediction), output.base_latent)
            quantizer_loss, _ = self.quantizer_loss(zoo.Output(signal, rollout.latent, rollout.quantized))
            terms["total"].append(_weighted(found, weight) + quantizer_loss)
            for name, value in {**found, **rollout.quantized.losses}.items():
                terms.setdefault(name, []).append(value.detach())
        total = torch.stack(terms.pop("total")).sum()
        return total, {
            "total": total.detach(), **{name: torch.stack(values).mean() for name, values in terms.items()}
        }  # fmt: skip


@dataclass(frozen=True)
class _TwoPasses(zoo.Output):
    """What the second pass gave, and what the loss needs beside it."""

    first: zoo.Output
    terms: dict[str, Tensor]


class HaltingTask(ReconstructionTask):
    """KARL. A first pass with few tokens tells which error they reach; a second one, with as many as the model makes
    and asked for that error, learns to halt those that the first did without.

    loss = for both passes prediction of the base's latents (`stage` "distillation", in which the base rests), or the
    losses of `ReconstructionTask` ("finetuning"), and the quantizer's losses times `quantizer_weights`; and the cross
    entropies of halting: no token of the first pass, and of the second those beyond the first one's number.

    The first pass is asked for an error of at most `wanted_error`; errors that were reached are asked for less and less
    often. Unlike the published code the second pass masks each item by its own halted tokens.

    Args:
        model: name of the model in the zoo.
        stage: "distillation" or "finetuning".
        first_counts: numbers of tokens of the first pass, of which each step draws one; those that the model has no
            queries for are left out.
        wanted_error: the largest mean absolute error that the first pass is asked for at the start.
        settings: arguments of `ReconstructionTask`; those of images and adversary matter for fine-tuning alone.

    Raises:
        ValueError: a model that does not halt, or a setting that cannot work.
    """

    model: KARL  # type: ignore[assignment]
    decays_biases = False
    wanted: Tensor

    def __init__(
        self,
        model: str,
        stage: Literal["distillation", "finetuning"] = "distillation",
        first_counts: tuple[int, ...] = tuple(range(16, 369, 16)),
        wanted_error: float = 0.04,
        **settings: Any,
    ) -> None:
        super().__init__(model=model, **settings)
        if not isinstance(self.model, KARL):
            raise ValueError(f"model: expected one that halts tokens, got {model}")
        if stage not in ("distillation", "finetuning"):
            raise ValueError(f"stage: expected distillation or finetuning, got {stage!r}")
        most = self.model.config.most_tokens
        self.first_counts = [count for count in first_counts if 1 <= count <= most]
        if not self.first_counts:
            raise ValueError(f"first_counts: expected a number from 1 to {most}, got {list(first_counts)}")
        if wanted_error < ERRORS[0]:
            raise ValueError(f"wanted_error: expected at least {ERRORS[0]}, got {wanted_error}")
        self.distils = stage == "distillation"
        if self.distils:
            self.model.base.requires_grad_(False)
        share = (torch.tensor(ERRORS) <= wanted_error + 1e-9).float()
        self.register_buffer("wanted", share / share.sum())  # how often each of `ERRORS` is asked for

    def reconstructed(self, signal: Tensor) -> zoo.Output:
        model, batch = self.model, len(signal)
        budget = model.config.num_tokens
        count = self.first_counts[int(torch.randint(len(self.first_counts), ()))]
        asked = torch.multinomial(self.wanted.cpu(), batch, replacement=True).to(signal.device)
        with torch.no_grad():
            base_latent = model.base.latent(signal)
        terms: dict[str, Tensor] = {}

        row = model.row(signal, [count] * batch, asked)
        first = self._passed("first", signal, row.latent, None, base_latent, terms, decode=True)
        terms["first_active"] = halting_loss(row.halting, 0.0)
        missed = (first.reconstruction.detach() - signal).abs().mean((1, 2, 3))

        row = model.row(signal, [budget] * batch, nearest_errors(missed))
        kept = ~model.halted(row)
        second = self._passed(
            "second", signal, row.latent, model.kept_mask(kept), base_latent, terms, decode=not self.distils
        )
        needed = min(budget, count)
        terms["second_active"] = halting_loss(row.halting[:, :needed], 0.0)
        terms["second_halted"] = halting_loss(row.halting[:, needed:], 1.0)
        with torch.no_grad():
            reached = torch.tensor(ERRORS, device=signal.device) >= missed.min()
            share = torch.where(reached, 0.99 * self.wanted, self.wanted)
            self.wanted.copy_(share / share.sum())
        return _TwoPasses(second.reconstruction, second.latent, second.quantized, first, terms)

    def _passed(
        self,
        name: str,
        signal: Tensor,
        latent: Tensor,
        mask: Tensor | None,
        base_latent: Tensor,
        terms: dict[str, Tensor],
        *,
        decode: bool,
    ) -> zoo.Output:
        """The output of one pass; in distillation the losses of its prediction are added to `terms`."""
        model = self.model
        quantized = model.quantizer(latent)
        codes = latent if model.config.continuous else quantized.codes.to(latent.dtype)
        prediction = model.predict(codes, mask=mask)
        if self.distils:
            found = model.base.prediction_losses(prediction, base_latent)
            terms |= {f"{name}_{key}": value for key, value in found.items()}
        with torch.set_grad_enabled(not self.distils):
            image = model.base.decode(model.base.latent_of(prediction)) if decode else signal
        return zoo.Output(image, latent, quantized)

    def generator_loss(self, signal: Tensor, output: zoo.Output, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if not isinstance(output, _TwoPasses):
            return super().generator_loss(signal, output, step)
        total = torch.stack(list(output.terms.values())).sum()
        losses: dict[str, Tensor] = {}
        for name, passed in (("first_", output.first), ("", output)):
            if self.distils:
                quantizer_loss, _ = self.quantizer_loss(passed)
                values = dict(passed.quantized.losses)
            else:
                quantizer_loss, values = super().generator_loss(signal, passed, step)
            total = total + quantizer_loss
            losses |= {f"{name}{key}": value.detach() for key, value in values.items() if key != "total"}
        terms = {key: value.detach() for key, value in output.terms.items()}
        return total, {"total": total.detach(), **terms, **losses}


def _weighted(found: dict[str, Tensor], weight: float) -> Tensor:
    """The weight counts for the codes' indices, or for latents where there are none."""
    return weight * found["nll"] + found["code"] if "nll" in found else weight * found["code"]


def _given(prediction: Tensor | None) -> Tensor:
    if prediction is None:
        raise ValueError("expected a prediction of every roll-out, got None")
    return prediction
