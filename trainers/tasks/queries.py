"""SEED's two stages: queries that find the captions of what they read, then codes that stand for the queries.

SEED, arXiv 2307.08041 and 2310.01218.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_inputs import image_input
from tokenizers_visual.seed_tokenizer import SeedTokenizer
from trainers.data.rows import CaptionedImages
from trainers.tasks.contrastive import FIRST_SCALE, LARGEST_SCALE, TextTower, TextTowerConfig, caption_contrast
from trainers.tasks.scheduled import ScheduledTask, initial_weights
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.losses.frozen import Frozen


class QueryModelTask(ScheduledTask):
    """Base of both stages: of a tokenizer of the family `seed_tokenizer`, `learning` learns, and the rest is frozen.

    Args:
        model: name of the model in the zoo.
        changes: config fields to change, as keywords of `zoo.create_model`.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a model of another family, or a setting that cannot work.
    """

    learning: tuple[str, ...]

    def __init__(self, model: str, changes: dict[str, Any] | None, init: str, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.save_hyperparameters()
        created = zoo.create_model(model, **initial_weights(init), **(changes or {}))
        if not isinstance(created, SeedTokenizer):
            raise ValueError(f"model: expected one of the family seed_tokenizer, got {model}")
        if lacking := [name for name in self.learning if not hasattr(created, name)]:
            raise ValueError(f"model: expected one with {', '.join(self.learning)}, got {model} without {lacking[0]}")
        self.model: SeedTokenizer = created.requires_grad_(False)
        for name in self.learning:
            getattr(self.model, name).requires_grad_(True)

    def trained(self) -> nn.Module:
        return self


class QueryTask(QueryModelTask):
    """The first stage, on `CaptionedImages`: the last query, which has seen the others, finds the caption, as in CLIP.

    The loss is the cross entropy of finding, by cosines, each image's own caption and each caption's own image among
    those of all processes. A text encoder from scratch, in place of BLIP-2's, and the scale of the cosines learn with
    the queries; neither is part of the model.

    Args:
        model, changes, init, optimizer: as for `QueryModelTask`.
        text: fields of `TextTowerConfig`.
        dim: of the space that images and captions meet in.
        smoothing: of the labels.
    """

    learning = ("norm_vision", "queries")

    def __init__(
        self,
        model: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        text: dict[str, Any] | None = None,
        dim: int = 256,
        smoothing: float = 0.1,
        **optimizer: Any,
    ) -> None:
        super().__init__(model, changes, init, **optimizer)
        self._require(0 <= smoothing < 1, "smoothing", "a value in [0, 1)", smoothing)
        self.smoothing = smoothing
        self.to_joint = nn.Linear(self.model.config.queries.width, dim)
        self.text_tower = TextTower(TextTowerConfig.from_dict(text or {}), dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def losses(self, batch: CaptionedImages) -> dict[str, Tensor]:
        if not isinstance(batch, CaptionedImages):
            raise ValueError("expected batches of images with captions, as ImageData gives them with `captions`")
        images = self.to_joint(self.model.hidden(batch.images)[:, -1])
        captions = self.text_tower(batch.texts)
        return {"total": caption_contrast(images, captions, self.logit_scale, smoothing=self.smoothing)}

    def after_step(self) -> None:
        with torch.no_grad():
            self.logit_scale.clamp_(0, math.log(LARGEST_SCALE))


class QueryCodeTask(QueryModelTask):
    """The second stage, on images: codes give back what the frozen queries said, and CLIP's embedding of the image.

    loss = each loss of the quantizer times its entry of `quantizer_weights` + `embedding_weight` * squared error of the
    embedding + `recall_weight` * (1 - cosine of what each query said and what its code, by blocks of this task's own,
    recalls of it).

    Args:
        model, changes, init, optimizer: as for `QueryModelTask`.
        clip: name of the CLIP whose embeddings of images are learned (see `load_pair`).
        quantizer_weights: weights of the quantizer's losses by name.
        embedding_weight, recall_weight: of the other terms.
    """

    learning = ("to_latent", "quantizer", "from_codes", "code_positions", "blocks", "reduce", "to_embedding")

    def __init__(
        self,
        model: str,
        clip: str,
        changes: dict[str, Any] | None = None,
        init: str = "random",
        quantizer_weights: dict[str, float] | None = None,
        embedding_weight: float = 0.5,
        recall_weight: float = 2.0,
        **optimizer: Any,
    ) -> None:
        super().__init__(model, changes, init, **optimizer)
        self.quantizer_weights = dict(quantizer_weights or {})
        self.embedding_weight, self.recall_weight = embedding_weight, recall_weight
        pair = load_pair(clip)
        self.clip, self.clip_input = Frozen(pair), image_input(pair)
        config, width = self.model.config, self.model.config.queries.width
        self.recall_positions = nn.Parameter(torch.zeros(1, config.num_tokens, width))
        self.recall = nn.Sequential(
            *(
                TransformerBlock(width, config.decoder_heads, MLP(width, 4 * width), eps=1e-6)
                for _ in range(config.decoder_layers)
            )
        )

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        model = self.model
        with torch.no_grad():
            said = model.hidden(batch)
            embedding = self.clip.network.image_features(self.clip_input.stretched(batch))  # type: ignore[operator]
        if embedding.shape[1] != model.config.embedding_width:
            raise ValueError(f"clip: expected embeddings of {model.config.embedding_width}, got {embedding.shape[1]}")
        quantized = model.quantizer(model.to_latent(said))
        if unknown := sorted(set(self.quantizer_weights) - set(quantized.losses)):
            known = sorted(quantized.losses)
            raise ValueError(f"quantizer_weights: the losses of this quantizer are {known}, got {unknown}")
        codes = quantized.codes.to(said.dtype)
        recalled = self.recall(model.from_codes(codes) + self.recall_positions)
        losses = {
            "embedding": F.mse_loss(model.embedding_of(codes).float(), embedding.float()),
            "recall": (1 - F.cosine_similarity(recalled.float(), said.float(), dim=-1)).mean(),
        }
        total = self.embedding_weight * losses["embedding"] + self.recall_weight * losses["recall"]
        for name, weight in self.quantizer_weights.items():
            losses[name] = quantized.losses[name]
            total = total + weight * losses[name]
        return {"total": total, **losses}
