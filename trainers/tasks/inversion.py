"""Training of projectors into a frozen CLIP's token space: LinCIR, Pic2Word, SEARLE's distillation, and RTD after them.

A projector learns; the CLIP has no gradients, stays in evaluation mode, and is no part of checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

import zoo
from tokenizers_visual.inversion import lincir, pic2word, rtd, searle
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_base import Metrics
from tokenizers_visual.inversion.cir_benchmarks import mean_of_parts, query_features
from tokenizers_visual.inversion.cir_inputs import ImageInput, image_input
from tokenizers_visual.inversion.clip import PLACEHOLDER, ClipPair
from tokenizers_visual.inversion.projector import Projector, PseudoWords
from tokenizers_visual.inversion.retrieval import preprocessing
from trainers.data.captions import Captions, CaptionTriplets
from trainers.data.features import ImageFeatures, InvertedImages
from trainers.data.retrieval import RetrievalPart
from trainers.random_state import random_state, set_random_state
from zoo.ops.collective import sum_over_ranks, world_size
from zoo.registry import registry

Schedule = Literal["constant", "cosine"]


class InversionTask(lightning.LightningModule):
    """Base of the tasks: a subclass writes `losses`.

    The Trainer's precision, clipping, accumulation and strategies work as usual. Where the data module has a benchmark
    (`val`), validation measures composed retrieval with the words of `averaged`: `val/R@1` and so on.

    Args:
        model: name of a projector in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        clip: name of the CLIP (see `load_pair`); None: the one of the projector's config. With another one the config's
            `backbone`, `image_dim` and `word_dim` become those of this one.
        clip_precision: of the CLIP's weights.
        learning_rate: at the end of the warm-up.
        betas, eps, weight_decay: of AdamW.
        decay_biases: whether biases decay too.
        warmup_steps: linear rise of the learning rate.
        schedule: of the learning rate after the warm-up: "constant", or "cosine" to 0 at the last step.
        ema_decay: keeps a running average of the projector's weights, which export uses; None for none.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        clip: str | None = None,
        clip_precision: Literal["float32", "float16", "bfloat16"] = "float32",
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        decay_biases: bool = True,
        warmup_steps: int = 0,
        schedule: Schedule = "constant",
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self._require(schedule in ("constant", "cosine"), "schedule", "constant or cosine", schedule)
        self._require(ema_decay is None or 0 <= ema_decay < 1, "ema_decay", "a value in [0, 1), or None", ema_decay)
        self.clip, self.clip_dtype = clip, getattr(torch, clip_precision)
        self.learning_rate, self.betas, self.eps = learning_rate, tuple(betas), eps
        self.weight_decay, self.decay_biases = weight_decay, decay_biases
        self.warmup_steps, self.schedule = warmup_steps, schedule
        arguments: dict[str, Any] = {"pretrained": init == "pretrained"}
        if init not in ("random", "pretrained"):
            self._require(Path(init).is_file(), "init", "random, pretrained or a file", init)
            arguments = {"checkpoint": init}
        layout = registry.card(model).layout
        self._require(layout == "words", "model", "a projector (`zoo list --layout words`)", model)
        changes = dict(changes or {})
        if clip is not None:
            changes = {**_widths(self.pair), **changes}
        self.model: Projector = zoo.create_model(model, **arguments, **changes)
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=_RisingAverage(ema_decay))
            self.ema.requires_grad_(False).eval()

    @cached_property
    def _pairs(self) -> list[ClipPair]:
        """The CLIP, in a list, for it is no part of the task's own weights; loaded where it is first needed."""
        pair = load_pair(self.clip if self.clip is not None else self.model.config.backbone)
        return [pair.to(self.clip_dtype)]

    @property
    def pair(self) -> ClipPair:
        """The frozen CLIP."""
        return self._pairs[0]

    @property
    def text_pair(self) -> ClipPair:
        """The CLIP that encodes prompts in retrieval."""
        return self.pair

    @property
    def family(self) -> str:
        """The projector's."""
        return registry.family_of(self.model).name

    @property
    def preprocess(self) -> ImageInput:
        """How images go into it."""
        return preprocessing(self.family, image_input(self.pair))

    @property
    def averaged(self) -> Projector:
        """The projector that export takes: the running average where there is one."""
        return self.model if self.ema is None else self.ema.module  # type: ignore[return-value]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The losses of a batch by name; `total` is the one that is minimised."""
        raise NotImplementedError

    def words(self, features: Tensor) -> PseudoWords:
        """The projector's words of features, with gradients."""
        return PseudoWords(self.model(features.to(self.model.dtype)), self.pair.backbone)

    # -- validation by composed retrieval --------------------------------------------------------------------------

    @torch.no_grad()
    def queries(self, part: RetrievalPart) -> Tensor:
        """Composed features (Q, E) of a benchmark's queries by `averaged`, on the CPU; the processes share the work."""
        benchmark, rank, world = part.benchmark, self.global_rank, world_size()
        queries = torch.zeros(len(part), part.features.shape[1], device=self.device)
        own = dataclasses.replace(benchmark, queries=benchmark.queries[rank::world])
        if own.queries:
            references = part.features[[query.reference for query in own.queries]]
            words = self.averaged.project(references.to(self.device))
            queries[rank::world] = query_features(own, self.text_pair, part.features, words).to(self.device)
        sum_over_ranks(queries)
        return queries.cpu()

    def on_validation_start(self) -> None:
        self.pair.to(self.device)
        self._metrics: dict[str, Metrics] = {}  # by the benchmark's parts

    def validation_step(self, batch: RetrievalPart, batch_index: int) -> None:
        self._metrics[batch.benchmark.part] = batch.benchmark.metrics(self.queries(batch), batch.features) or {}

    def on_validation_epoch_end(self) -> None:
        """Log each metric of the benchmark as `val/NAME`; of several parts their mean, and `val/PART/NAME`."""
        values = {f"val/{name}": value for name, value in mean_of_parts(list(self._metrics.values())).items()}
        if len(self._metrics) > 1:
            for part, metrics in self._metrics.items():
                values |= {f"val/{part}/{name}": value for name, value in metrics.items()}
        self.log_dict(values, sync_dist=True)  # all processes have the same

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        losses = self.losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()}, batch_size=len(batch))
        self.log("loss", losses["total"].detach(), prog_bar=True, logger=False, batch_size=len(batch))
        return losses["total"]

    def setup(self, stage: str) -> None:
        self.model.check_backbone(self.pair)

    def on_fit_start(self) -> None:
        self.pair.to(self.device)
        self.train()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        if self.ema is not None and not self.trainer.fit_loop._should_accumulate():
            self.ema.update_parameters(self.model)

    def train(self, mode: bool = True) -> InversionTask:
        super().train(mode)
        if getattr(self, "ema", None) is not None:
            self.ema.eval()  # type: ignore[union-attr]
        return self

    def trained(self) -> nn.Module:
        """What the optimizer changes."""
        return self.model

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[dict[str, Any]]]:
        parameters = [parameter for parameter in self.trained().parameters() if parameter.requires_grad]
        plain = [] if self.decay_biases else [p for p in parameters if p.ndim < 2]
        decayed = [p for p in parameters if self.decay_biases or p.ndim >= 2]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}] if plain else [{"params": decayed}]
        optimizer = torch.optim.AdamW(
            groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        last = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, lambda step: self.rate(step, last))
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def rate(self, step: int, last: int) -> float:
        """Share of the learning rate in a step, of `last` steps in all."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup_steps) / max(1, last - self.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random_state"] = random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None and self.trainer.training and "random_state" in checkpoint:
            set_random_state(checkpoint["random_state"], self.trainer.strategy.root_device)

    @staticmethod
    def _require(holds: bool, name: str, expected: str, got: object) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {got!r}")


class LinCIRTask(InversionTask):
    """LinCIR (arXiv 2312.01998): a caption whose keywords are masked is rebuilt by the word of the caption itself.

    Batches are `Captions`: images are not needed.

    Args:
        noise_scale: largest scale of the noise that makes text features spread as those of images do.
    """

    def __init__(self, *args: Any, noise_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._require(noise_scale >= 0, "noise_scale", "a value of at least 0", noise_scale)
        self.noise_scale = noise_scale

    def losses(self, batch: Captions) -> dict[str, Tensor]:
        texts = [self.shortened(text) for text in batch.texts]
        masked = [
            lincir.mask_keywords(text, found, random.Random(seed))
            for text, found, seed in zip(texts, batch.keywords, batch.seeds)
        ]
        with torch.no_grad():
            features = self.pair.text_features(texts).float()
        scale = self.noise_scale * torch.rand(len(features), device=features.device)
        words = self.words(lincir.noised(features, scale, torch.randn_like(features)))
        loss = lincir.self_masking_loss(self.pair.compose(masked, words), features)
        return {"total": loss}

    def shortened(self, text: str) -> str:
        """The text, without the last words of one that is too long for the CLIP."""
        words = text.split(" ")
        while len(words) > 1:
            try:
                self.pair.tokenize(" ".join(words))
                break
            except ValueError:
                words.pop()
        return " ".join(words)


class Pic2WordTask(InversionTask):
    """Pic2Word (arXiv 2302.03084): "a photo of [word]" finds its own image among those of the batch, and the other way.

    Batches are `ImageFeatures`. In a distributed run the images of all processes are compared.
    """

    def losses(self, batch: ImageFeatures) -> dict[str, Tensor]:
        texts = self.pair.compose(pic2word.TRAINING_PROMPT, self.words(batch.features))
        images = batch.features
        if world_size() > 1:
            texts, images = torch.cat(all_gather(texts)), torch.cat(all_gather(images))
        losses = pic2word.contrastive_losses(images, texts.float(), self.pair.logit_scale.float())
        return {"total": (losses["image"] + losses["text"]) / 2, **losses}


class DistillationTask(InversionTask):
    """SEARLE (arXiv 2303.15247): the projector gives at once what optimisation finds for an image in many steps.

    Batches are `InvertedImages`.

    Args:
        distillation_weight: of the likeness to the words found by optimisation.
        phrase_weight: of the regularisation by phrases.
        temperature: of the distillation.
    """

    def __init__(
        self,
        *args: Any,
        distillation_weight: float = 1.0,
        phrase_weight: float = 0.75,
        temperature: float = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._require(temperature > 0, "temperature", "a positive value", temperature)
        self.distillation_weight, self.phrase_weight, self.temperature = distillation_weight, phrase_weight, temperature

    def losses(self, batch: InvertedImages) -> dict[str, Tensor]:
        words = self.words(batch.features)
        with torch.no_grad():
            plain = self.pair.text_features(batch.plain)
        phrases = self.pair.compose(batch.phrases, words, fill="first")
        distillation = searle.distillation_loss(batch.words, words.embeddings[:, 0], self.temperature)
        phrase = searle.cosine_loss(phrases.float(), plain.float())
        total = self.distillation_weight * distillation + self.phrase_weight * phrase
        return {"total": total, "distillation": distillation, "phrase": phrase}


class RTDTask(InversionTask):
    """RTD (arXiv 2406.09188): a copy of the text encoder is fine-tuned beside a projector that stays as it is.

    Batches are `CaptionTriplets`. `ExportModel` writes the copy as `text_encoder.safetensors` beside the projector,
    without which it is worth nothing.

    Args:
        noise_scale: largest scale of the noise on the features that the projector gets.
        temperature: of the contrastive loss.
    """

    def __init__(
        self, *args: Any, noise_scale: float = rtd.NOISE_FACTOR, temperature: float = rtd.TEMPERATURE, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._require(temperature > 0, "temperature", "a positive value", temperature)
        self._require(self.ema is None, "ema_decay", "None, since the projector stays as it is", "a value")
        self.noise_scale, self.temperature = noise_scale, temperature
        self.strict_loading = False  # checkpoints hold the text encoder alone
        self.model.requires_grad_(False).eval()
        self.text_encoder: ClipPair | None = None

    def configure_model(self) -> None:
        if self.text_encoder is None:
            self.text_encoder = copy.deepcopy(self.pair).float()
            trained = rtd.text_encoder_state(self.text_encoder)
            for name, parameter in self.text_encoder.model.named_parameters():
                parameter.requires_grad_(name in trained)

    def trained(self) -> nn.Module:
        return self.text_encoder  # type: ignore[return-value]

    @property
    def text_pair(self) -> ClipPair:
        return self.text_encoder  # type: ignore[return-value]

    def train(self, mode: bool = True) -> InversionTask:
        super().train(mode)
        self.model.eval()
        return self

    def losses(self, batch: CaptionTriplets) -> dict[str, Tensor]:
        count = len(batch)
        composed = [f"a photo of {PLACEHOLDER} that {change.replace(PLACEHOLDER, '')}" for change in batch.changes]
        triplets = rtd.Triplets(batch.references, batch.targets, composed)
        device, width = self.device, self.model.config.image_dim
        scale = self.noise_scale * torch.rand(count, device=device)
        noise = torch.randn(count, width, device=device)
        step = rtd.step(self.pair, self.text_encoder, self.model, triplets, scale, noise)  # type: ignore[arg-type]
        return {"total": step.loss(self.temperature)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        kept = {f"text_encoder.model.{name}" for name in rtd.text_encoder_state(self.text_encoder)}  # type: ignore[arg-type]
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("text_encoder.") or k in kept}

    def export_beside(self, folder: Path) -> None:
        """Write the text encoder into the folder of the exported projector (see `ExportModel`)."""
        rtd.save_text_encoder(self.text_encoder, folder / "text_encoder.safetensors")  # type: ignore[arg-type]


class _RisingAverage:
    """The running average's update, as AveragedModel calls it, with a decay that rises to its value."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        torch._foreach_lerp_(averages, values, 1 - lincir.ema_decay(int(updates), self.decay))


@torch.no_grad()
def _widths(pair: ClipPair) -> dict[str, Any]:
    """The fields of a projector's config that its CLIP decides."""
    ids = torch.full((1, pair.context_length), pair.pad_id)
    ids[0, 0] = pair.pad_id if pair.end_id is None else pair.end_id
    image_dim, word_dim = pair.text_features(ids).shape[-1], pair.token_embeddings(ids).shape[-1]
    return {"backbone": pair.backbone, "image_dim": image_dim, "word_dim": word_dim}
