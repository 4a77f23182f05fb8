"""A diffusion model that makes images of CLIP's embeddings of them: unCLIP (arXiv 2204.06125) in a latent space.

Its networks are those of diffusers, in the sizes of Stable Diffusion 2.1's unCLIP by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.layers.ddim import ddim, item_noise, trailing_times
from zoo.layers.latent_diffusion import TRAIN_STEPS, LatentDiffusionConfig, fields_of
from zoo.layers.positions import waves


@dataclass(frozen=True)
class UnCLIPConfig(LatentDiffusionConfig):
    """Sizes of the networks, and how they are sampled."""

    embedding_width: int = 1024
    embedding_share: float = 1.0  # of the embedding in the variance of the least noised one, which is what is read
    steps: int = 20
    guidance_scale: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(1 <= self.steps <= TRAIN_STEPS, f"1 to {TRAIN_STEPS} steps", self.steps)


class UnCLIP(nn.Module):
    """Embeddings (B, embedding_width) -> images (B, 3, H, W) in [0, 1], not clamped; its weights are frozen."""

    prompt: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: UnCLIPConfig) -> None:
        super().__init__()
        self.config = config
        width = 2 * config.embedding_width
        self.unet = config.unet(class_embed_type="projection", projection_class_embeddings_input_dim=width)
        self.autoencoder = config.autoencoder()
        self.register_buffer("prompt", torch.zeros(1, config.prompt_length, config.prompt_width))  # the empty one
        self.register_buffer("mean", torch.zeros(1, config.embedding_width))
        self.register_buffer("deviation", torch.ones(1, config.embedding_width))
        self.requires_grad_(False)

    @staticmethod
    def of(pipeline: Any, prompt: Tensor | None = None) -> UnCLIP:
        """With copies of the weights of a pipeline of diffusers.

        Args:
            pipeline: a StableUnCLIPImg2ImgPipeline.
            prompt: (1, length, width), states of the empty prompt; None: of the pipeline's text encoder.

        Raises:
            ValueError: another schedule than one that is linear in the root.
        """
        if prompt is None:
            with torch.no_grad():
                prompt = pipeline.encode_prompt("", pipeline.unet.device, 1, False)[0]
        config = UnCLIPConfig(
            **fields_of(pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config, prompt),
            embedding_width=pipeline.image_normalizer.mean.shape[1],
            embedding_share=float(pipeline.image_noising_scheduler.alphas_cumprod[0]),
        )
        model = UnCLIP(config)
        model.unet.load_state_dict(pipeline.unet.state_dict())
        model.autoencoder.load_state_dict(pipeline.vae.state_dict())
        model.prompt.copy_(prompt)
        model.mean.copy_(pipeline.image_normalizer.mean.detach())
        model.deviation.copy_(pipeline.image_normalizer.std.detach())
        return model.eval()

    def forward(
        self,
        embedding: Tensor,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Args:
            embedding: (B, embedding_width).
            steps, guidance_scale: None takes the config's.
            seed: of the noise: one for all items (None: 0), or a list with one for each.
            noise: (B, latent_channels, latent_size, latent_size) instead.

        Raises:
            ValueError: noise of another shape, or steps out of range.
        """
        config, count = self.config, embedding.shape[0]
        steps = config.steps if steps is None else steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        shape = (count, *config.latent_shape)
        noise = item_noise(shape, seed, noise)
        times = trailing_times(TRAIN_STEPS, steps)
        given = self._condition(embedding)
        condition = given if scale == 1 else torch.cat([torch.zeros_like(given), given])

        def predict(x: Tensor, time: Tensor) -> Tensor:
            repeats = 1 if scale == 1 else 2
            x, time = x.repeat(repeats, 1, 1, 1).to(embedding.dtype), time.repeat(repeats)
            prompt = self.prompt.expand(x.shape[0], -1, -1)
            found = self.unet(x, time, prompt, class_labels=condition, return_dict=False)[0]
            if scale == 1:
                return found
            without, towards = found.unflatten(0, (2, -1))
            return without + scale * (towards - without)

        hop = TRAIN_STEPS // steps
        latent = ddim(predict, noise.to(embedding), config.share(), times, hop, config.prediction, clip=False)
        images = self.autoencoder.decode(latent.to(embedding.dtype) / config.latent_scale, return_dict=False)[0]
        return images / 2 + 0.5

    def _condition(self, embedding: Tensor) -> Tensor:
        """Embeddings at the least level of noise, without the noise, and that level: (B, 2 * embedding_width)."""
        normal = (embedding - self.mean) / self.deviation
        least = normal * self.config.embedding_share**0.5 * self.deviation + self.mean
        level = waves(least.new_zeros(least.shape[0]), least.shape[1]).to(least.dtype)
        return torch.cat([least, level], 1)
