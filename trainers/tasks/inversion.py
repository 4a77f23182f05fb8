"""Training of projectors into a frozen CLIP's token space: LinCIR, Pic2Word, SEARLE's distillation, ISA, and RTD.

A projector learns; the CLIP has no gradients, stays in evaluation mode, and is no part of checkpoints.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import zoo
from tokenizers_visual.inversion import isa, lincir, pic2word, rtd, searle
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_base import Metrics
from tokenizers_visual.inversion.cir_benchmarks import mean_of_parts, query_features
from tokenizers_visual.inversion.cir_inputs import ImageInput, image_input
from tokenizers_visual.inversion.clip import PLACEHOLDER, ClipPair
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.retrieval import preprocessing
from tokenizers_visual.inversion.words import PseudoWords
from trainers.data.captions import Captions, CaptionTriplets
from trainers.data.features import ImageFeatures, InvertedImages
from trainers.data.retrieval import RetrievalPart
from trainers.tasks.scheduled import ScheduledTask, initial_weights
from zoo import checkpoint
from zoo.ops.collective import joined_over_ranks, sum_over_ranks, world_size
from zoo.registry import registry


class InversionTask(ScheduledTask):
    """Base of the tasks: a subclass writes `losses`.

    Where the data module has a benchmark (`val`), validation measures composed retrieval with the words of `averaged`:
    `val/R@1` and so on.

    Args:
        model: name of a projector in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        clip: name of the CLIP (see `load_pair`); None: the one of the projector's config. With another one the config's
            `backbone`, `image_dim` and `word_dim` become those of this one.
        clip_precision: of the CLIP's weights.
        ema_decay: keeps a running average of the projector's weights, which export uses; None for none.
        optimizer: the arguments of `ScheduledTask`.

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
        ema_decay: float | None = None,
        **optimizer: Any,
    ) -> None:
        super().__init__(**optimizer)
        self.save_hyperparameters()
        self._require(ema_decay is None or 0 <= ema_decay < 1, "ema_decay", "a value in [0, 1), or None", ema_decay)
        self.clip, self.clip_dtype = clip, getattr(torch, clip_precision)
        arguments = initial_weights(init)
        layout = registry.card(model).layout
        self._require(layout == "words", "model", "a projector (`zoo list --layout words`)", model)
        changes = dict(changes or {})
        if clip is not None:
            changes = {**self._fields(model, changes), **changes}
        self.model: Projector = zoo.create_model(model, **arguments, **changes)
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=_RisingAverage(ema_decay))
            self.ema.requires_grad_(False).eval()

    def _fields(self, model: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The fields of the projector's config that the CLIP decides, whatever of the others is changed."""
        return clip_widths(self.pair)

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

    def setup(self, stage: str) -> None:
        self.model.check_backbone(self.pair)

    def on_fit_start(self) -> None:
        self.pair.to(self.device)
        self.train()

    def after_step(self) -> None:
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def train(self, mode: bool = True) -> InversionTask:
        super().train(mode)
        if getattr(self, "ema", None) is not None:
            self.ema.eval()  # type: ignore[union-attr]
        return self


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
        texts, images = joined_over_ranks(texts), joined_over_ranks(batch.features)
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


class ISATask(InversionTask):
    """ISA (arXiv 2403.01431): a light encoder and the projector on its map learn from images alone.

    Batches are images (B, 3, S, S) in [0, 1], as `ImageData` gives them. The sentence of an image leads to the CLIP's
    own feature of it, among those of the batch (of all processes, in a distributed run), and each word to patches. The
    paper's settings and the form of its local loss were not at hand. `ExportModel` writes the light encoder as
    `encoder.safetensors` beside the projector. There is no validation by composed retrieval.

    Args:
        encoder_weights: of the light encoder: "random", or "pretrained" (see `light_encoder`).
        local_weight: of the words' likeness to patches; the CLIP must project its class token. 0: left out.
        temperature: of the words' attention to patches.
    """

    def __init__(
        self,
        *args: Any,
        encoder_weights: Literal["random", "pretrained"] = "pretrained",
        local_weight: float = 1.0,
        temperature: float = 0.07,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._require(isinstance(self.model, isa.ISA), "model", "an ISA", type(self.model).__name__)
        self._require(self.ema is None, "ema_decay", "None, since the light encoder has no running average", "a value")
        self._require(temperature > 0, "temperature", "a positive value", temperature)
        self.local_weight, self.temperature = local_weight, temperature
        config: isa.ISAConfig = self.model.config  # type: ignore[assignment]
        self.encoder: Any = None
        if config.encoder:
            self.encoder = isa.light_encoder(config, pretrained=encoder_weights == "pretrained")
            _freeze_behind_map(self.encoder)

    def _fields(self, model: str, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields(model, changes)
        if {**registry.card(model).config, **changes}.get("encoder"):  # whose map the projector reads
            del fields["image_dim"]
        else:
            fields["image_dim"] = token_width(self.pair)
        return fields

    def trained(self) -> nn.Module:
        return self.model if self.encoder is None else nn.ModuleList([self.model, self.encoder])

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        pair = self.pair
        with torch.no_grad():
            pictures = image_input(pair).stretched(batch).to(self.clip_dtype)
            images = pair.image_features(pictures).float()
            patches = pair.image_tokens(pictures) if self.local_weight or self.encoder is None else batch
        if self.encoder is None:
            features = patches.float()
        else:
            features = isa.feature_map(self.encoder, isa.encoder_input(self.encoder, batch.shape[-1]).stretched(batch))
        words = self.words(features)
        ids, embeddings = pair.embed(PLACEHOLDER, words)
        output = pair.encode_text(ids, embeddings)
        sentences, images = joined_over_ranks(output.features.float()), joined_over_ranks(images)
        losses = {"global": isa.global_distillation_loss(sentences, images, pair.logit_scale.float())}
        total = losses["global"]
        if self.local_weight:
            places = pair.joint_tokens(patches[:, 1:]).float()  # without the class token
            own = (ids == pair.placeholder_id)[..., None]
            states = pair.joint_hidden(output.hidden).masked_select(own).view(len(words), -1, places.shape[-1]).float()
            losses["local"] = isa.local_alignment_loss(states, places, self.temperature)
            total = total + self.local_weight * losses["local"]
        return {"total": total, **losses}

    def export_beside(self, folder: Path) -> None:
        """Write the light encoder into the folder of the exported projector (see `ExportModel`)."""
        if self.encoder is not None:
            checkpoint.save(folder / "encoder.safetensors", self.encoder.state_dict(), {"format": "pt"})


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
            self.text_encoder = learning_copy(self.pair, rtd.text_encoder_state(self.pair))

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
        keep_learned(checkpoint, "text_encoder", rtd.text_encoder_state(self.text_encoder))  # type: ignore[arg-type]

    def export_beside(self, folder: Path) -> None:
        """Write the text encoder into the folder of the exported projector (see `ExportModel`)."""
        rtd.save_text_encoder(self.text_encoder, folder / "text_encoder.safetensors")  # type: ignore[arg-type]


def learning_copy(pair: ClipPair, names: Collection[str]) -> ClipPair:
    """A copy of a CLIP in float32, of whose weights those of these names learn."""
    learning = copy.deepcopy(pair).float()
    for name, parameter in learning.model.named_parameters():
        parameter.requires_grad_(name in names)
    return learning


def keep_learned(checkpoint: dict[str, Any], place: str, names: Collection[str]) -> None:
    """Leave out of a checkpoint what does not learn of the copy that is the task's attribute of that name."""
    kept = {f"{place}.model.{name}" for name in names}
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith(f"{place}.") or k in kept}


class _RisingAverage:
    """The running average's update, as AveragedModel calls it, with a decay that rises to its value."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def __call__(self, averages: list[Tensor], values: list[Tensor], updates: Tensor) -> None:
        torch._foreach_lerp_(averages, values, 1 - lincir.ema_decay(int(updates), self.decay))


def _freeze_behind_map(encoder: nn.Module) -> None:
    """No gradients for the layers of a light encoder that its map does not need."""
    training, parameters = encoder.training, list(encoder.parameters())
    places = isa.feature_map(encoder.eval(), torch.zeros(1, 3, 64, 64))
    for parameter, gradient in zip(parameters, torch.autograd.grad(places.sum(), parameters, allow_unused=True)):
        parameter.requires_grad_(gradient is not None)
    encoder.train(training)


@torch.no_grad()
def clip_widths(pair: ClipPair) -> dict[str, Any]:
    """The fields of a projector's config that its CLIP decides, of a projector of pooled features."""
    ids = torch.full((1, pair.context_length), pair.pad_id)
    ids[0, 0] = pair.pad_id if pair.end_id is None else pair.end_id
    image_dim, word_dim = pair.text_features(ids).shape[-1], pair.token_embeddings(ids).shape[-1]
    return {"backbone": pair.backbone, "image_dim": image_dim, "word_dim": word_dim}


@torch.no_grad()
def token_width(pair: ClipPair) -> int:
    """The width of the hidden states that a CLIP's image encoder gives."""
    size = image_input(pair).size
    return pair.image_tokens(torch.zeros(1, 3, size, size, dtype=next(pair.parameters()).dtype)).shape[-1]
