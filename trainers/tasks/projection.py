"""Training of projectors through a diffusion pipeline: their words for an image must help its U-Net to denoise it.

ViLex (arXiv 2412.06774), domain-agnostic E4T (arXiv 2307.06925), LaDI-VTON (arXiv 2305.13501) and PreciseControl
(arXiv 2408.05083). The pipeline stays as it is; so does the image encoder, unless it has a learning rate.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tokenizers_visual.inversion import domain_agnostic_e4t, precise_control, rtd
from tokenizers_visual.inversion.backbones import load_pair
from tokenizers_visual.inversion.cir_inputs import image_input
from tokenizers_visual.inversion.clip import PLACEHOLDER, ClipPair
from tokenizers_visual.inversion.diffusion import denoised, denoising, encode_prompt
from tokenizers_visual.inversion.domain_agnostic_e4t import DomainAgnosticE4T, vocabulary
from tokenizers_visual.inversion.dual_path import Adaptation, attention_widths, denoiser_width, dual_path
from tokenizers_visual.inversion.ladi_vton import LadiVton, try_on_prompt
from tokenizers_visual.inversion.precise_control import PreciseControl
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.vilex import ViLex, compose_prefixes, draw_lengths
from tokenizers_visual.inversion.words import PseudoWords
from trainers.data.rows import Garments, ImageRows
from trainers.tasks.inversion import clip_widths, keep_learned, learning_copy, token_width
from trainers.tasks.pipeline import PipelineTask
from trainers.tasks.scheduled import initial_weights
from zoo import checkpoint
from zoo.losses.identity import IdentityDistance, face_recogniser
from zoo.registry import registry


class ProjectionTask(PipelineTask):
    """Batches are images (B, 3, H, W) in [0, 1], as `ImageData` gives them; for LaDI-VTON `Garments`, and for
    PreciseControl `CodedImages`.

    loss = how badly the U-Net denoises the latents of an image, told a prompt with its words, and the weighted
    regularisers. E4T sees the noisy latents too, and the U-Net follows it on one of two paths; ViLex's prompts are
    words alone, of which the last ones are dropped at random; LaDI-VTON's name the garment, whose place in the person's
    image the U-Net paints; PreciseControl's must lead to the same person, by what one step of denoising makes of it.
    `ExportModel` writes an image encoder that learns as `image_encoder.safetensors` beside the model.

    Args:
        model: name of a projector in the zoo: vilex, domain_agnostic_e4t, ladi_vton or precise_control.
        pipeline: see `PipelineTask`; for LaDI-VTON one that paints in.
        init: "random", or "pretrained" for the published weights, or a file of weights.
        clip: name of the CLIP that reads the images (see `load_pair`); None: the one of the projector's config. With
            another one the config's `backbone` and `image_dim` become those of this one.
        changes: config fields to change; `word_dim` becomes that of the pipeline's text encoder, and E4T's
            `denoiser_dim` and `attention_widths` those of its U-Net.
        initial: what all images show, one token, which the words of E4T and PreciseControl are near to.
        templates: prompts with "$" for those two, of which each image gets one.
        encoder_rate: learning rate of the image encoder, as a share of the projector's; 0: it stays as it is.
        norm_weight: of E4T's squared norms of the words, or PreciseControl's norm of them before they are anchored.
        nearest_weight, nearest_count, nearest_temperature: of E4T's contrast with the nearest tokens, which needs
            batches of two or more.
        blend: of E4T's two paths, see `dual_path`.
        recogniser: file of a face recogniser (see `face_recogniser`) for PreciseControl's loss of identity; None:
            without it.
        identity_weight: of that loss.
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        model: str,
        pipeline: str,
        init: str = "random",
        clip: str | None = None,
        changes: dict[str, Any] | None = None,
        initial: str = "object",
        templates: tuple[str, ...] = ("a photo of $",),
        encoder_rate: float = 0.0,
        norm_weight: float = 0.0,
        nearest_weight: float = 0.0,
        nearest_count: int = 10,
        nearest_temperature: float = 1.0,
        blend: float = 0.5,
        recogniser: str | None = None,
        identity_weight: float = 1.0,
        **optimizer: Any,
    ) -> None:
        card = registry.card(model)
        kind = registry.family(card.family, card.module).model
        changes = dict(changes or {})
        reads = issubclass(kind, Projector)  # features of an image encoder
        space = clip or changes.get("backbone") or card.config["backbone"] if reads else pipeline
        super().__init__(pipeline, space, **optimizer)
        self.save_hyperparameters()
        self._require(
            issubclass(kind, ViLex | DomainAgnosticE4T | LadiVton | PreciseControl),
            "model", "vilex, domain_agnostic_e4t, ladi_vton or precise_control", model,
        )  # fmt: skip
        self._require(reads or encoder_rate == 0, "encoder_rate", f"0, since {model} reads no images", encoder_rate)
        self._require(all(text.count(PLACEHOLDER) == 1 for text in templates), "templates", "one $ in each", templates)
        self._require(nearest_temperature > 0, "nearest_temperature", "a positive value", nearest_temperature)
        self._require(0 <= blend <= 1, "blend", "0 to 1", blend)
        self.templates, self.encoder_rate, self.norm_weight = tuple(templates), encoder_rate, norm_weight
        self.nearest_weight, self.nearest_count = nearest_weight, nearest_count
        self.nearest_temperature, self.blend = nearest_temperature, blend
        table: Tensor = self.pair.embedding.weight.detach()  # type: ignore[assignment, operator]
        fields: dict[str, Any] = {"word_dim": table.shape[1]}
        if not reads:
            fields["backbone"] = pipeline
        elif clip is not None:
            fields = {**clip_widths(self._clips[0]), **fields}
            if issubclass(kind, Projector) and kind.features == "tokens":
                fields["image_dim"] = token_width(self._clips[0])
        if issubclass(kind, DomainAgnosticE4T):
            unet = self.pipeline.unet
            fields |= {"denoiser_dim": denoiser_width(unet), "attention_widths": attention_widths(unet)}
        self.model: Any = zoo.create_model(model, **initial_weights(init), **{**fields, **changes})
        if isinstance(self.model, DomainAgnosticE4T | PreciseControl):
            ids = self.ids_of(initial)
            self._require(len(ids) == 1, "initial", "one token", f"{initial} ({len(ids)} tokens)")
            self.register_buffer("general", table[ids[0]].clone(), persistent=False)
        if isinstance(self.model, DomainAgnosticE4T):
            self.model.class_word.copy_(self.general)
        faces = recogniser is None or isinstance(self.model, PreciseControl)
        self._require(faces, "recogniser", f"none, since {model} is not of faces", recogniser)
        self.identity = None if recogniser is None else IdentityDistance(face_recogniser(recogniser))
        self.identity_weight = identity_weight
        self.image_encoder: ClipPair | None = None
        self.strict_loading = False  # checkpoints hold what learns

    @cached_property
    def _clips(self) -> list[ClipPair]:
        """The CLIP that reads images, in a list, for it is no part of the task's own weights."""
        return [load_pair(self.text_space).float()]

    @property
    def clip(self) -> ClipPair:
        """What reads the images: the copy that learns, where there is one."""
        return self._clips[0] if self.image_encoder is None else self.image_encoder

    # -- the loss --------------------------------------------------------------------------------------------------

    def losses(self, batch: Tensor | ImageRows) -> dict[str, Tensor]:
        pipeline, _, scheduler = self._parts
        latents = self.latents(batch if isinstance(batch, Tensor) else batch.images)
        noise = torch.randn_like(latents)
        count = scheduler.config.num_train_timesteps
        times = torch.randint(count, (len(latents),), device=latents.device)
        paths: AbstractContextManager[None] = nullcontext()
        if isinstance(self.model, DomainAgnosticE4T):
            adaptation = self._adaptation(batch, scheduler.add_noise(latents, noise, times), times)
            losses, weights = self._held(adaptation.words.embeddings[:, 0])
            states = adaptation.soft
            paths = dual_path(pipeline.unet, lambda _latents, _times: adaptation, blend=self.blend)
        else:
            words, losses, weights = self._words(batch, times)
            states = self._states(batch, words)
        beside = self._masked(batch) if isinstance(batch, Garments) else None
        with paths:
            predicted, target = denoising(pipeline.unet, scheduler, latents, states, times, noise, beside)
        losses["denoising"] = total = F.mse_loss(predicted, target)
        if self.identity is not None:
            seen = self.decoded(denoised(scheduler, latents, times, predicted, target))
            losses["identity"] = self.identity(seen, batch.images * 2 - 1).mean()
            weights["identity"] = self.identity_weight
        for name, weight in weights.items():
            total = total + weight * losses[name]
        return {"total": total, **losses}

    def _words(self, batch: Any, times: Tensor) -> tuple[PseudoWords, dict[str, Tensor], dict[str, float]]:
        """The words of a batch, the regularisers of the model, and their weights."""
        if isinstance(self.model, PreciseControl):
            raw = self.model(batch.codes, times)
            words = PseudoWords(self.model.anchored(raw, self.general), self.text_space)
            return words, {"norm": precise_control.norm_loss(raw)}, {"norm": self.norm_weight}
        pictures = batch.garments if isinstance(batch, Garments) else batch
        return PseudoWords(self.model(self._features(pictures)), self.text_space), {}, {}

    def _adaptation(self, images: Any, noisy: Tensor, times: Tensor) -> Adaptation:
        """Of E4T: words and offsets for images, of which it sees the noisy latents too."""
        pipeline, pair, _ = self._parts
        return domain_agnostic_e4t.adapt(
            self.model, pair, pipeline.unet, self._prompts(len(images)), self._features(images), noisy, times
        )

    def _held(self, rows: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """E4T's regularisers of the words (B, D), and their weights."""
        losses = {"norm": domain_agnostic_e4t.norm_loss(rows)}
        if self.nearest_weight:
            losses["nearest"] = domain_agnostic_e4t.nearest_token_loss(
                rows, vocabulary(self.pair), count=self.nearest_count, temperature=self.nearest_temperature
            ).mean()
        weights = {"norm": self.norm_weight, "nearest": self.nearest_weight}
        return losses, {name: weights[name] for name in losses}

    def _features(self, pictures: Tensor) -> Tensor:
        clip = self.clip
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.image_encoder is not None):
            entered = image_input(clip).stretched(pictures)
            features = clip.image_features(entered) if self.model.features == "pooled" else clip.image_tokens(entered)
        return features.float()

    def _states(self, batch: Any, words: PseudoWords) -> Tensor:
        """The text encoder's states (B, L, D) of prompts with the words."""
        if isinstance(self.model, ViLex):
            lengths = draw_lengths(len(words), self.model.config.words)
            return compose_prefixes(self.pair, words, lengths).hidden
        if isinstance(batch, Garments):
            prompts = [try_on_prompt(category) for category in batch.categories]
        else:
            prompts = self._prompts(len(words))
        return encode_prompt([self.pair], [self.pair.embed(prompts, words)]).prompt

    def _prompts(self, count: int) -> list[str]:
        return [self.templates[place] for place in torch.randint(len(self.templates), (count,)).tolist()]

    def _masked(self, batch: Garments) -> Tensor:
        """What the U-Net takes beside the noisy latents: the mask, and latents of the person without the garment."""
        latents = self.latents(torch.where(batch.masks > 0, 0.5, batch.images))
        return torch.cat([F.interpolate(batch.masks, size=latents.shape[2:]), latents], dim=1)

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        if self.encoder_rate and self.image_encoder is None:
            self.image_encoder = learning_copy(self.clip, _image_encoder_names(self.clip))

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.image_encoder is not None:
            parameters = [parameter for parameter in self.image_encoder.parameters() if parameter.requires_grad]
            groups.append({"params": parameters, "lr": self.learning_rate * self.encoder_rate})
        return groups

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if isinstance(self.model, Projector):
            self._clips[0].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.image_encoder is not None:
            keep_learned(checkpoint, "image_encoder", _image_encoder_names(self.image_encoder))

    def export_beside(self, folder: Path) -> None:
        """Write an image encoder that learned into the folder of the exported model (see `ExportModel`)."""
        if self.image_encoder is not None:
            whole = self.image_encoder.model.state_dict()
            state = {name: whole[name] for name in _image_encoder_names(self.image_encoder)}
            about = {"backbone": self.image_encoder.backbone, "format": "pt"}
            checkpoint.save(folder / "image_encoder.safetensors", state, about)


def _image_encoder_names(clip: ClipPair) -> list[str]:
    """The names of the image encoder's weights, by those of its library."""
    texts = rtd.text_encoder_state(clip)
    return [name for name in clip.model.state_dict() if name not in texts and not name.startswith("logit_")]
