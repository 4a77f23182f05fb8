"""Base of the tasks that learn through a diffusion pipeline, which stays as it is and is no part of checkpoints."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.diffusion import text_encoders
from trainers.tasks.scheduled import ScheduledTask


class PipelineTask(ScheduledTask):
    """A subclass writes `losses`, and sets `model`.

    Args:
        pipeline: a Stable Diffusion 1 or 2, as a hub repository or a folder of diffusers.
        text_space: what the token space of its text encoder is called; None: as the pipeline.
        optimizer: the arguments of `ScheduledTask`.
    """

    def __init__(self, pipeline: str, text_space: str | None = None, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.pipeline_name, self.text_space = pipeline, text_space or pipeline

    @cached_property
    def _parts(self) -> tuple[Any, TransformersPair, Any]:
        """Pipeline, text encoder and the scheduler of training, in a tuple: they are no part of the task's weights."""
        from diffusers import DDPMScheduler, DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(
            self.pipeline_name, safety_checker=None, requires_safety_checker=False
        )
        for part in (pipeline.unet, pipeline.vae):
            part.eval().requires_grad_(False)
        (pair,) = text_encoders(pipeline, [self.text_space])
        return pipeline, pair, DDPMScheduler.from_config(pipeline.scheduler.config)

    @property
    def pipeline(self) -> Any:
        """The frozen pipeline."""
        return self._parts[0]

    @property
    def pair(self) -> TransformersPair:
        """Its text encoder."""
        return self._parts[1]

    def ids_of(self, text: str) -> Tensor:
        """The ids (n,) of a text, without start, end and padding."""
        ids = self.pair.tokenize(text)[0]
        return ids[1 : int((ids == self.pair.end_id).int().argmax())]

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the U-Net takes them, drawn for images (B, 3, H, W) in [0, 1]."""
        vae = self.pipeline.vae
        return vae.encode(images * 2 - 1).latent_dist.sample() * vae.config.scaling_factor

    def decoded(self, latents: Tensor) -> Tensor:
        """The images (B, 3, H, W) of such latents, about in [-1, 1], float32; gradients flow back to the latents."""
        vae = self.pipeline.vae
        return vae.decode(latents / vae.config.scaling_factor).sample.float()

    def on_fit_start(self) -> None:
        self.pipeline.to(self.device)
        self.train()
