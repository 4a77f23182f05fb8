"""Training of offsets in the modulation of a frozen FLUX, by which the words of a caption lead to what one image shows.

TokenVerse (arXiv 2501.12224), after the paper; there is no public code.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo
from tokenizers_visual.inversion.tokenverse import draw_times, flow, flux_blocks, modulated, token_places
from trainers.data.rows import ConceptImages
from trainers.tasks.scheduled import ScheduledTask

JOINED = "A picture divided into two parts. The left part is {}. The right part is {}."  # as in the paper's figure 4


class TokenVerseTask(ScheduledTask):
    """Batches are images with captions, as `ConceptData` gives them.

    loss = how badly the transformer denoises an image, told its caption, each token of which is modulated by itself.
    Up to `coarse_steps` times are noisy and an offset serves all blocks; then they are less so, and each block has its
    own beside it. Where pictures without the concepts come along, a share of the images is joined with one of them, and
    the offsets must change nothing of what the transformer predicts in its half.

    Args:
        model: name of a TokenVerse in the zoo.
        pipeline: a FLUX, as a hub repository or a folder of diffusers.
        changes: config fields to change; all but `hidden_dim` become those of the pipeline.
        coarse_steps: of the first stage.
        focus: the share of the times that are noisy in the first stage, and less noisy in the second.
        isolation_weight, isolation_share: of the loss of joined images, and how many images have it.
        optimizer: the arguments of `ScheduledTask`.

    Raises:
        ValueError: a setting that cannot work; tells what was expected.
    """

    def __init__(
        self,
        pipeline: str,
        model: str = "tokenverse",
        changes: dict[str, Any] | None = None,
        coarse_steps: int = 800,
        focus: float = 0.92,
        isolation_weight: float = 1.0,
        isolation_share: float = 0.5,
        **optimizer: Any,
    ) -> None:
        super().__init__(**optimizer)
        self.save_hyperparameters()
        for name, value in (("focus", focus), ("isolation_share", isolation_share)):
            self._require(0 <= value <= 1, name, "0 to 1", value)
        self.pipeline_name, self.coarse_steps, self.focus = pipeline, coarse_steps, focus
        self.isolation_weight, self.isolation_share = isolation_weight, isolation_share
        transformer = self.pipeline.transformer
        fields = {
            "backbone": pipeline,
            "text_dim": transformer.config.joint_attention_dim,
            "width": transformer.inner_dim,
            "blocks": len(flux_blocks(transformer)),
        }
        self.model: Any = zoo.create_model(model, **{**fields, **(changes or {})})
        self.strict_loading = False  # checkpoints hold what learns

    @cached_property
    def _pipelines(self) -> list[Any]:
        """The frozen pipeline, in a list, for it is no part of the task's own weights."""
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(self.pipeline_name)
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.eval().requires_grad_(False)
        return [pipeline]

    @property
    def pipeline(self) -> Any:
        """The frozen pipeline."""
        return self._pipelines[0]

    @property
    def stage(self) -> int:
        """1 while the offsets of all blocks are one, then 2."""
        return 1 if self.global_step < self.coarse_steps else 2

    # -- the loss --------------------------------------------------------------------------------------------------

    def losses(self, batch: ConceptImages) -> dict[str, Tensor]:
        """The losses of a batch by name; `total` is the one that is minimised."""
        parts: dict[str, list[Tensor]] = {"denoising": []}
        for item, text in enumerate(batch.texts):
            image = batch.images[item : item + 1]
            parts["denoising"].append(F.mse_loss(*self._flow(self._drawn(image), text, text)))
            if batch.others is not None and float(torch.rand(())) < self.isolation_share:
                joined = torch.cat([image, batch.others[item : item + 1]], dim=3)
                loss = self._isolation(joined, text, JOINED.format(text, batch.other_texts[item]))
                parts.setdefault("isolation", []).append(loss)
        losses = {name: torch.stack(values).sum() / len(batch) for name, values in parts.items()}
        total = losses["denoising"] + self.isolation_weight * losses.get("isolation", 0.0)
        return {"total": total, **losses}

    def _isolation(self, joined: Tensor, text: str, both: str) -> Tensor:
        """How far the offsets of the left half's words change what is predicted in the right half."""
        drawn = self._drawn(joined)
        moved, _ = self._flow(drawn, both, text)
        with torch.no_grad():
            plain, _ = self._flow(drawn, both, None)
        half = moved.shape[2] // 2
        return F.mse_loss(moved[:, :, half:], plain[:, :, half:])

    def _drawn(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, times and noise of a step."""
        latents = self.latents(image)
        times = draw_times(len(latents), noisy=self.stage == 1, focus=self.focus).to(latents)
        return latents, times, torch.randn_like(latents)

    def _flow(self, drawn: tuple[Tensor, Tensor, Tensor], prompt: str, moved: str | None) -> tuple[Tensor, Tensor]:
        """What is predicted, and what should be, with the tokens of a part of the prompt moved, or of none."""
        pipeline, (latents, times, noise) = self.pipeline, drawn
        with torch.no_grad():
            text = pipeline.encode_prompt(prompt, prompt, device=self.device)
        paths: Any = nullcontext()
        if moved is not None:
            places = token_places(pipeline.tokenizer_2, prompt, moved)
            paths = modulated(pipeline.transformer, self.model(text[0][0, places].float(), stage=self.stage), places)
        with paths:
            return flow(pipeline.transformer, latents, text, times, noise)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the transformer takes them, drawn for images (B, 3, H, W) in [0, 1]."""
        vae = self.pipeline.vae
        drawn = vae.encode(images * 2 - 1).latent_dist.sample()
        return (drawn - vae.config.shift_factor) * vae.config.scaling_factor

    # -- Lightning's hooks -----------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.pipeline.to(self.device)
        self.train()
