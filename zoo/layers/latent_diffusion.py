"""The parts of a latent diffusion model (arXiv 2112.10752) that a tokenizer's decoder takes over, by diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.config import Config

TRAIN_STEPS = 1000
SIZES = 6  # that SDXL is told: height and width of the original, the crop's place, height and width of the image


@dataclass(frozen=True)
class LatentDiffusionConfig(Config):
    """Sizes of the networks and their noise; the defaults are those of Stable Diffusion 2.1."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)  # of the UNet's levels
    transformers: tuple[int, ...] = ()  # layers that attend to the prompt, by level; (): one in all levels but the last
    blocks: int = 2
    heads: tuple[int, ...] = (5, 10, 20, 20)
    prompt_length: int = 77
    prompt_width: int = 1024
    pooled_width: int = 0  # of a text as a whole, told beside the prompt with six sizes in pixels (SDXL); 0: neither is
    size_width: int = 256  # of the waves that each of these sizes becomes
    latent_size: int = 96
    latent_channels: int = 4
    decoder_channels: tuple[int, ...] = (128, 256, 512, 512)  # of the autoencoder's levels
    decoder_blocks: int = 2
    latent_scale: float = 0.18215
    norm_groups: int = 32
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    first_beta: float = 0.00085  # the noise schedule is linear in the root
    last_beta: float = 0.012

    def __post_init__(self) -> None:
        self.require(len(self.heads) == len(self.channels) > 1, "heads of every level, of at least 2", self.heads)
        self.require(len(self.decoder_channels) > 0, "at least one level", self.decoder_channels)
        counts = self.transformers
        self.require(len(counts) in (0, len(self.channels)), "transformers of every level, or none stated", counts)
        known = self.prediction in ("v_prediction", "epsilon")
        self.require(known, "prediction v_prediction or epsilon", self.prediction)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.latent_channels, self.latent_size, self.latent_size)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the latents stand for."""
        return self.latent_size * 2 ** (len(self.decoder_channels) - 1)

    def unet(self, **further: Any) -> nn.Module:
        """diffusers' UNet, with further arguments of its own."""
        from diffusers import UNet2DConditionModel

        layers = self.transformers or (1,) * (len(self.channels) - 1) + (0,)
        if self.pooled_width:
            further |= {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": self.size_width,
                "projection_class_embeddings_input_dim": self.pooled_width + SIZES * self.size_width,
            }
        return UNet2DConditionModel(
            sample_size=self.latent_size,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            down_block_types=["CrossAttnDownBlock2D" if count else "DownBlock2D" for count in layers],
            up_block_types=["CrossAttnUpBlock2D" if count else "UpBlock2D" for count in reversed(layers)],
            transformer_layers_per_block=[count or 1 for count in layers],  # the last one's are the middle's
            block_out_channels=self.channels,
            layers_per_block=self.blocks,
            attention_head_dim=self.heads,
            cross_attention_dim=self.prompt_width,
            use_linear_projection=True,
            norm_num_groups=self.norm_groups,
            **further,
        )

    def autoencoder(self) -> nn.Module:
        """diffusers' autoencoder of the latents."""
        from diffusers import AutoencoderKL

        stages = len(self.decoder_channels)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * stages,
            up_block_types=("UpDecoderBlock2D",) * stages,
            block_out_channels=self.decoder_channels,
            layers_per_block=self.decoder_blocks,
            latent_channels=self.latent_channels,
            norm_num_groups=self.norm_groups,
        )

    def share(self) -> Tensor:
        """(1000,) on the CPU: the share of the clean latent left in the variance at each time ("alpha bar")."""
        roots = self.first_beta**0.5, self.last_beta**0.5
        betas = torch.linspace(*roots, TRAIN_STEPS, dtype=torch.float32, device="cpu").square()
        return (1 - betas).cumprod(0)


def fields_of(unet: Any, autoencoder: Any, schedule: Any, prompt: Tensor) -> dict[str, Any]:
    """The fields of a `LatentDiffusionConfig` for parts of a pipeline of diffusers, as their configs state them.

    Args:
        unet, autoencoder, schedule: `pipeline.unet.config`, `pipeline.vae.config`, `pipeline.scheduler.config`.
        prompt: (1, length, width) states of the empty prompt.

    Raises:
        ValueError: another schedule than one that is linear in the root.
    """
    if schedule.beta_schedule != "scaled_linear" or schedule.num_train_timesteps != TRAIN_STEPS:
        found = f"{schedule.beta_schedule}, {schedule.num_train_timesteps}"
        raise ValueError(f"expected a scaled_linear schedule of {TRAIN_STEPS} steps, got {found}")
    heads, counts = unet.attention_head_dim, unet.transformer_layers_per_block
    attends = [kind.startswith("CrossAttn") for kind in unet.down_block_types]
    counts = (counts,) * len(attends) if isinstance(counts, int) else counts
    layers = tuple(count if attending else 0 for count, attending in zip(counts, attends))
    told: dict[str, Any] = {}
    if unet.addition_embed_type == "text_time":
        width = unet.addition_time_embed_dim
        told = {"pooled_width": unet.projection_class_embeddings_input_dim - SIZES * width, "size_width": width}
    return {
        **told,
        "channels": tuple(unet.block_out_channels),
        "transformers": () if layers == (1,) * (len(layers) - 1) + (0,) else layers,
        "blocks": unet.layers_per_block,
        "heads": (heads,) * len(unet.block_out_channels) if isinstance(heads, int) else tuple(heads),
        "prompt_length": prompt.shape[1],
        "prompt_width": prompt.shape[2],
        "latent_size": unet.sample_size,
        "latent_channels": unet.in_channels,
        "decoder_channels": tuple(autoencoder.block_out_channels),
        "decoder_blocks": autoencoder.layers_per_block,
        "latent_scale": autoencoder.scaling_factor,
        "norm_groups": unet.norm_num_groups,
        "prediction": schedule.prediction_type,
        "first_beta": schedule.beta_start,
        "last_beta": schedule.beta_end,
    }
