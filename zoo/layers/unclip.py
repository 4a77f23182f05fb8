"""A diffusion model that makes images of CLIP's embeddings of them: unCLIP (arXiv 2204.06125) in a latent space.

Its networks are those of diffusers, in the sizes of Stable Diffusion 2.1's unCLIP by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.ddim import ddim, item_noise, trailing_times
from zoo.layers.positions import waves

_TRAIN_STEPS = 1000


@dataclass(frozen=True)
class UnCLIPConfig(Config):
    """Sizes of the networks, and how they are sampled."""

    embedding_width: int = 1024
    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of the UNet's levels; all but the last attend to the prompt
    blocks: int = 2
    heads: tuple[int, ...] = (5, 10, 20, 20)
    prompt_length: int = 77
    prompt_width: int = 1024
    latent_size: int = 96
    latent_channels: int = 4
    decoder_channels: tuple[int, ...] = (128, 256, 512, 512)  # of the autoencoder's levels
    decoder_blocks: int = 2
    latent_scale: float = 0.18215
    norm_groups: int = 32
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    first_beta: float = 0.00085  # the noise schedule is linear in the root
    last_beta: float = 0.012
    embedding_share: float = 1.0  # of the embedding in the variance of the least noised one, which is what is read
    steps: int = 20
    guidance_scale: float = 10.0

    def __post_init__(self) -> None:
        self.require(len(self.heads) == len(self.channels) > 1, "heads of every level, of at least 2", self.heads)
        self.require(len(self.decoder_channels) > 0, "at least one level", self.decoder_channels)
        self.require(1 <= self.steps <= _TRAIN_STEPS, f"1 to {_TRAIN_STEPS} steps", self.steps)
        known = self.prediction in ("v_prediction", "epsilon")
        self.require(known, "prediction v_prediction or epsilon", self.prediction)


class UnCLIP(nn.Module):
    """Embeddings (B, embedding_width) -> images (B, 3, H, W) in [0, 1], not clamped; its weights are frozen."""

    prompt: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: UnCLIPConfig) -> None:
        super().__init__()
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.config = config
        levels, stages = len(config.channels), len(config.decoder_channels)
        self.unet = UNet2DConditionModel(
            sample_size=config.latent_size,
            in_channels=config.latent_channels,
            out_channels=config.latent_channels,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            block_out_channels=config.channels,
            layers_per_block=config.blocks,
            attention_head_dim=config.heads,
            cross_attention_dim=config.prompt_width,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * config.embedding_width,
            use_linear_projection=True,
            norm_num_groups=config.norm_groups,
        )
        self.autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=config.decoder_channels,
            layers_per_block=config.decoder_blocks,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
        )
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
        unet, autoencoder, schedule = pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config
        if schedule.beta_schedule != "scaled_linear" or schedule.num_train_timesteps != _TRAIN_STEPS:
            found = f"{schedule.beta_schedule}, {schedule.num_train_timesteps}"
            raise ValueError(f"expected a scaled_linear schedule of {_TRAIN_STEPS} steps, got {found}")
        if prompt is None:
            with torch.no_grad():
                prompt = pipeline.encode_prompt("", pipeline.unet.device, 1, False)[0]
        heads = unet.attention_head_dim
        model = UnCLIP(
            UnCLIPConfig(
                embedding_width=pipeline.image_normalizer.mean.shape[1],
                channels=tuple(unet.block_out_channels),
                blocks=unet.layers_per_block,
                heads=(heads,) * len(unet.block_out_channels) if isinstance(heads, int) else tuple(heads),
                prompt_length=prompt.shape[1],
                prompt_width=prompt.shape[2],
                latent_size=unet.sample_size,
                latent_channels=unet.in_channels,
                decoder_channels=tuple(autoencoder.block_out_channels),
                decoder_blocks=autoencoder.layers_per_block,
                latent_scale=autoencoder.scaling_factor,
                norm_groups=unet.norm_num_groups,
                prediction=schedule.prediction_type,
                first_beta=schedule.beta_start,
                last_beta=schedule.beta_end,
                embedding_share=float(pipeline.image_noising_scheduler.alphas_cumprod[0]),
            )
        )
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
        config, count = self.config, len(embedding)
        steps = config.steps if steps is None else steps
        scale = config.guidance_scale if guidance_scale is None else guidance_scale
        shape = (count, config.latent_channels, config.latent_size, config.latent_size)
        noise = item_noise(shape, seed) if noise is None else noise
        if noise.shape != shape:
            raise ValueError(f"noise: expected {shape}, got {tuple(noise.shape)}")
        times = trailing_times(_TRAIN_STEPS, steps)
        betas = torch.linspace(config.first_beta**0.5, config.last_beta**0.5, _TRAIN_STEPS, device="cpu").square()
        given = self._condition(embedding)
        condition = given if scale == 1 else torch.cat([torch.zeros_like(given), given])

        def predict(x: Tensor, time: Tensor) -> Tensor:
            repeats = len(condition) // count
            x, time = x.repeat(repeats, 1, 1, 1).to(embedding.dtype), time.repeat(repeats)
            prompt = self.prompt.expand(len(x), -1, -1)
            found = self.unet(x, time, prompt, class_labels=condition, return_dict=False)[0]
            if scale == 1:
                return found
            without, towards = found.chunk(2)
            return without + scale * (towards - without)

        share, hop = (1 - betas).cumprod(0), _TRAIN_STEPS // steps
        latent = ddim(predict, noise.to(embedding), share, times, hop, config.prediction, clip=False)
        images = self.autoencoder.decode(latent.to(embedding.dtype) / config.latent_scale, return_dict=False)[0]
        return images / 2 + 0.5

    def _condition(self, embedding: Tensor) -> Tensor:
        """Embeddings at the least level of noise, without the noise, and that level: (B, 2 * embedding_width)."""
        normal = (embedding - self.mean) / self.deviation
        least = normal * self.config.embedding_share**0.5 * self.deviation + self.mean
        level = waves(least.new_zeros(len(least)), least.shape[1]).to(least.dtype)
        return torch.cat([least, level], 1)
