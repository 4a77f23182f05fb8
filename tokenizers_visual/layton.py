"""Layton (LacTok): LlamaGen's tokens of a small copy of a photo steer a latent diffusion model that paints it large.

Papers: arXiv 2503.08377 and its version at CVPR 2026. Neither code nor weights were found. Not told are the diffusion
model, how tokens enter it and the kernel of the downsampling; here they enter as in ControlNet (arXiv 2302.05543).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from zoo.config import Config
from zoo.layers.ddim import ddim, denoising, item_noise, trailing_times
from zoo.layers.latent_diffusion import TRAIN_STEPS, LatentDiffusionConfig, fields_of
from zoo.ops.precision import full_precision
from zoo.quantizers import QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class LaytonConfig(Config):
    """Sizes of the networks, and how images are sampled; the defaults paint 1024 pixels of 256 tokens."""

    small_side: int = 256  # pixels of the copy that is encoded
    tokenizer: LlamaGenVQConfig = LlamaGenVQConfig()  # whose encoder is taken; its own quantizer is not
    diffusion: LatentDiffusionConfig = LatentDiffusionConfig(latent_size=128, prediction="epsilon")
    steps: int = 2
    stage: Literal["noise", "image"] = "noise"  # of training: it learns of predicted noise, then of painted images
    quantizer: QuantizerConfig = VectorConfig(codebook_size=16384, dim=8, metric="cosine")

    def __post_init__(self) -> None:
        stride = 2 ** (len(self.tokenizer.channel_multipliers) - 1)
        self.require(self.small_side % stride == 0, f"a small_side that is a multiple of {stride}", self.small_side)
        large = self.diffusion.image_size
        self.require(self.small_side <= large, f"a small_side of at most {large} pixels", self.small_side)
        self.require(1 <= self.steps <= TRAIN_STEPS, f"1 to {TRAIN_STEPS} steps", self.steps)
        self.require(self.stage in ("noise", "image"), "stage noise or image", self.stage)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.small_side // 2 ** (len(self.tokenizer.channel_multipliers) - 1)


@register("layton")
class Layton(Tokenizer):
    """Images (B, 3, S, S) in [-1, 1], S the side that the diffusion model paints -> a grid of tokens (B, g, g).

    Encoder, quantizer and diffusion model are frozen; `control`, a copy of the latter's first half, learns. As long as
    it has not, tokens change nothing. `decode` takes `steps`, and `noise` of the latents or a `seed` (0 if none is
    given; a list has one for each item). Weights of the parts come by `with_parts`. In training a pass of the stage
    "noise" gives the loss `diffusion`, the squared error of what is predicted at random times, and the images that this
    stands for, without gradient; one of the stage "image" gives images painted from random noise.
    """

    decode_options = frozenset({"steps", "seed", "noise"})
    own_losses = frozenset({"diffusion"})
    config: LaytonConfig  # type: ignore[assignment]
    prompt: Tensor

    def __init__(self, config: LaytonConfig) -> None:
        side, diffusion = config.diffusion.image_size, config.diffusion
        super().__init__(config, InputSpec("image", 3, (-1.0, 1.0), (side, side)), config.quantizer)
        tokenizer = LlamaGenVQ(config.tokenizer.replace(quantizer=config.quantizer))
        self.encoder, self.to_latent = tokenizer.encoder, tokenizer.to_latent
        self.unet: Any = diffusion.unet()
        self.autoencoder: Any = diffusion.autoencoder()
        self.register_buffer("prompt", torch.randn(1, diffusion.prompt_length, diffusion.prompt_width))  # for the empty
        self.requires_grad_(False)
        self.control = control_of(self.unet, config)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.grid,) * 2

    def latent(self, x: Tensor) -> Tensor:
        side = (self.config.small_side,) * 2
        with full_precision(x):
            small = F.interpolate(x.float(), side, mode="bicubic", antialias=True).clamp(-1, 1).to(x.dtype)
        return self.to_latent(self.encoder(small)).movedim(1, -1)

    def predict(self, noisy: Tensor, time: Tensor, codes: Tensor) -> Tensor:
        """What the diffusion model says of noisy latents (B, C, s, s) at times (B,), given codes (B, g, g, D)."""
        prompt = self.prompt.expand(noisy.shape[0], -1, -1)
        down, middle = self.control(noisy, time, prompt, codes.movedim(-1, 1), return_dict=False)
        return self.unet(
            noisy, time, prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle,
            return_dict=False,
        )[0]  # fmt: skip

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.paint(codes)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self.paint(codes, **options)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        return (codes.shape[0], *self.config.diffusion.latent_shape)

    def paint(
        self,
        codes: Tensor,
        steps: int | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, g, g, D) to images; the gradient is that of the last step alone, as the second stage trains.

        Raises:
            ValueError: noise of another shape, or steps out of range.
        """
        config = self.config.diffusion
        times = trailing_times(TRAIN_STEPS, steps := self.config.steps if steps is None else steps)
        noise = item_noise(self.noise_shape(codes), seed, noise)

        def predict(x: Tensor, time: Tensor) -> Tensor:
            last = torch.is_grad_enabled() and int(time[0]) == times[-1]
            with torch.set_grad_enabled(last):
                return self.predict(x.to(codes.dtype), time, codes)

        share, hop = config.share(), TRAIN_STEPS // steps
        return self._image_of(
            ddim(predict, noise.to(codes), share, times, hop, config.prediction, clip=False).to(codes)
        )

    def _image_of(self, latent: Tensor) -> Tensor:
        return self.autoencoder.decode(latent / self.config.diffusion.latent_scale, return_dict=False)[0]

    def forward(self, x: Tensor) -> Output:
        if not self.training:
            return super().forward(x)
        self.spec.check_shape(x)
        with torch.no_grad():
            latent = self.latent(x)
            quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)
        noise = torch.randn(self.noise_shape(codes), device=x.device)
        if self.config.stage == "image":
            return Output(self.paint(codes, noise=noise), latent, quantized)
        time = torch.randint(0, TRAIN_STEPS, (len(x),), device=x.device)
        quantized.losses["diffusion"], predicted = self.denoise(x, codes, noise, time)
        with torch.no_grad():
            return Output(self._image_of(predicted.to(codes)), latent, quantized)

    def denoise(self, x: Tensor, codes: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """See `denoising`: of images (B, 3, S, S) with codes (B, g, g, D), at times (B,) int64 in [0, 1000)."""
        config = self.config.diffusion
        with torch.no_grad():
            clean = self.autoencoder.encode(x).latent_dist.mode() * config.latent_scale
        return denoising(
            lambda noisy, time: self.predict(noisy, time, codes),
            clean, noise.to(clean), time, config.share(), config.prediction,
        )  # fmt: skip

    def with_parts(self, tokenizer: LlamaGenVQ, pipeline: Any, prompt: Tensor | None = None) -> Layton:
        """This model with copies of published parts, and a control that starts from them.

        Args:
            tokenizer: one of `llamagen_vq`.
            pipeline: a StableDiffusionPipeline of diffusers.
            prompt: (1, length, width), states of the empty prompt; None: of the pipeline's text encoder.

        Raises:
            ValueError: another noise schedule than one that is linear in the root.
        """
        if prompt is None:
            with torch.no_grad():
                prompt = pipeline.encode_prompt("", pipeline.unet.device, 1, False)[0]
        fields = fields_of(pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config, prompt)
        size = self.config.diffusion.latent_size
        quantizer: Any = tokenizer.config.quantizer  # type: ignore[attr-defined]
        model = Layton(
            self.config.replace(
                tokenizer=tokenizer.config,
                quantizer=quantizer,
                diffusion=LatentDiffusionConfig(**{**fields, "latent_size": size}),
            )
        )
        for name in ("encoder", "to_latent", "quantizer"):
            getattr(model, name).load_state_dict(getattr(tokenizer, name).state_dict())
        model.unet.load_state_dict(pipeline.unet.state_dict())
        model.autoencoder.load_state_dict(pipeline.vae.state_dict())
        model.prompt.copy_(prompt)
        model.control = control_of(model.unet, model.config)
        return model.eval()


class CodeEmbedding(nn.Module):
    """Codes (B, D, g, g) to the latents' size and the UNet's first width; its last convolution starts at zero."""

    def __init__(self, dim: int, width: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.conv1, self.conv2 = nn.Conv2d(dim, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        grown = F.interpolate(F.silu(self.conv1(codes)), (self.size, self.size), mode="nearest")
        return self.conv2(grown)


def control_of(unet: Any, config: LaytonConfig) -> Any:
    """diffusers' ControlNet that starts as a copy of a UNet's first half and reads codes in place of an image."""
    from diffusers import ControlNetModel

    control = ControlNetModel.from_unet(unet)
    width, size = config.diffusion.channels[0], config.diffusion.latent_size
    control.controlnet_cond_embedding = CodeEmbedding(config.quantizer.dim, width, size)
    return control.requires_grad_(True)
