"""Layton (LacTok): LlamaGen's tokens of a small copy of a photo steer a latent diffusion model that paints it large.

Papers: arXiv 2503.08377 and its version at CVPR 2026. Original: Alpha-X-95/LaCToK (no licence stated), which decodes
alone: the kernel of the downsampling is not told. Tokens enter as in ControlNet (arXiv 2302.05543).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual import llamagen_vq
from tokenizers_visual.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.ddim import consistent, denoising, item_noise
from zoo.layers.latent_diffusion import SIZES, TRAIN_STEPS, LatentDiffusionConfig, fields_of
from zoo.ops.precision import full_precision
from zoo.quantizers import QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Tokens

STABLE_DIFFUSION_XL = LatentDiffusionConfig(
    channels=(320, 640, 1280), transformers=(0, 2, 10), heads=(5, 10, 20), prompt_width=2048, pooled_width=1280,
    latent_size=128, latent_scale=0.13025, prediction="epsilon",
)  # fmt: skip


@dataclass(frozen=True)
class LaytonConfig(Config):
    """Sizes of the networks, and how images are sampled; the defaults are those of the published model."""

    small_side: int = 256  # pixels of the copy that is encoded
    tokenizer: LlamaGenVQConfig = LlamaGenVQConfig()  # whose encoder is taken; its own quantizer is not
    diffusion: LatentDiffusionConfig = STABLE_DIFFUSION_XL
    code_channels: tuple[int, ...] = (8, 32, 96, 256)  # of the convolutions between codes and control
    times: tuple[int, ...] = (999, 499, 124)  # of noise, falling: those of the steps of decoding
    control_scale: float = 0.8  # of what the control adds, outside of training
    stage: Literal["noise", "image"] = "noise"  # of training: it learns of predicted noise, then of painted images
    quantizer: QuantizerConfig = VectorConfig(codebook_size=16384, dim=8, metric="cosine")

    def __post_init__(self) -> None:
        stride = 2 ** (len(self.tokenizer.channel_multipliers) - 1)
        self.require(self.small_side % stride == 0, f"a small_side that is a multiple of {stride}", self.small_side)
        large = self.diffusion.image_size
        self.require(self.small_side <= large, f"a small_side of at most {large} pixels", self.small_side)
        falling = list(self.times) == sorted({time for time in self.times if 0 <= time < TRAIN_STEPS}, reverse=True)
        self.require(falling and len(self.times) > 0, f"falling times in [0, {TRAIN_STEPS})", self.times)
        self.require(len(self.code_channels) > 0, "at least one width", self.code_channels)
        self.require(self.stage in ("noise", "image"), "stage noise or image", self.stage)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.small_side // 2 ** (len(self.tokenizer.channel_multipliers) - 1)


@register("layton")
class Layton(Tokenizer):
    """Images (B, 3, S, S) in [-1, 1], S the side that the diffusion model paints -> a grid of tokens (B, g, g).

    Encoder, quantizer and diffusion model are frozen; `control`, a copy of the latter's first half, learns. As long as
    it has not, tokens change nothing. `decode` takes `steps`, the first of the config's times, and `noise` of the
    latents (B, times, C, s, s) or a `seed` (0 if none is given; a list has one for each item). The parts of an
    untrained model come by `with_parts`. In training a pass of the stage "noise" gives the loss `diffusion`, the
    squared error of what is predicted at random times, and the images that this stands for, without gradient; one of
    the stage "image" gives images painted from random noise.
    """

    decode_options = frozenset({"steps", "seed", "noise"})
    own_losses = frozenset({"diffusion"})
    config: LaytonConfig  # type: ignore[assignment]

    def __init__(self, config: LaytonConfig) -> None:
        side, diffusion = config.diffusion.image_size, config.diffusion
        super().__init__(config, InputSpec("image", 3, (-1.0, 1.0), (side, side)), config.quantizer)
        tokenizer = LlamaGenVQ(config.tokenizer.replace(quantizer=config.quantizer))
        self.encoder, self.to_latent = tokenizer.encoder, tokenizer.to_latent
        self.unet: Any = diffusion.unet()
        self.autoencoder: Any = diffusion.autoencoder()
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
        """What the diffusion model, told no text, says of noisy latents (B, C, s, s) at times (B,).

        Args:
            noisy, time: of one dtype with the model, and int64.
            codes: (B, g, g, D).
        """
        config = self.config.diffusion
        grown = F.interpolate(codes.movedim(-1, 1), noisy.shape[-2:], mode="nearest")
        prompt = noisy.new_zeros(noisy.shape[0], config.prompt_length, config.prompt_width)
        told: dict[str, Any] = {"encoder_hidden_states": prompt, "return_dict": False}
        if config.pooled_width:
            side = config.image_size
            sizes = noisy.new_tensor([side, side, 0, 0, side, side]).expand(noisy.shape[0], -1)
            pooled = noisy.new_zeros(noisy.shape[0], config.pooled_width)
            told["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
        scale = 1.0 if self.training else self.config.control_scale
        down, middle = self.control(noisy, time, controlnet_cond=grown, conditioning_scale=scale, **told)
        return self.unet(
            noisy, time, down_block_additional_residuals=down, mid_block_additional_residual=middle, **told
        )[0]

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.paint(codes)

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        return self.paint(codes, **options)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        return (codes.shape[0], len(self.config.times), *self.config.diffusion.latent_shape)

    def paint(self, codes: Tensor, **options: Any) -> Tensor:
        """Codes (B, g, g, D) to images, with the options of `sample`; the gradient is that of the last step alone, as
        the second stage trains.
        """
        return self._image_of(self.sample(codes, **options))

    def sample(
        self,
        codes: Tensor,
        steps: int | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, g, g, D) to the latents (B, C, s, s) of images.

        Raises:
            ValueError: noise of another shape, or steps out of range.
        """
        config, known = self.config.diffusion, self.config.times
        if steps is not None and not 1 <= steps <= len(known):
            raise ValueError(f"steps: expected 1 to {len(known)}, got {steps}")
        times = known[:steps]
        noise = item_noise(self.noise_shape(codes), seed, noise)
        learns = iter([False] * (len(times) - 1) + [torch.is_grad_enabled()])  # gradients go through the last step

        def predict(x: Tensor, time: Tensor) -> Tensor:
            with torch.set_grad_enabled(next(learns)):
                return self.predict(x.to(codes.dtype), time, codes)

        return consistent(predict, noise.to(codes), config.share(), times, config.prediction).to(codes)

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
        quantized.losses["diffusion"], predicted = self.denoise(x, codes, noise[:, 0], time)
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

    def with_parts(self, tokenizer: LlamaGenVQ, pipeline: Any) -> Layton:
        """This model with copies of published parts, and a control that starts from them.

        Args:
            tokenizer: one of `llamagen_vq`.
            pipeline: a StableDiffusionXLPipeline of diffusers, or a StableDiffusionPipeline.

        Raises:
            ValueError: another noise schedule than one that is linear in the root.
        """
        size, length = self.config.diffusion.latent_size, self.config.diffusion.prompt_length
        prompt = torch.zeros(1, length, pipeline.unet.config.cross_attention_dim)
        fields = fields_of(pipeline.unet.config, pipeline.vae.config, pipeline.scheduler.config, prompt)
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
        model.control = control_of(model.unet, model.config)
        return model.eval()


class CodeEmbedding(nn.Module):
    """Codes (B, D, s, s) to the UNet's first width; its last convolution starts at zero."""

    def __init__(self, dim: int, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(dim, channels[0], 3, padding=1)
        widths = [pair for a, b in pairwise(channels) for pair in ((a, a), (a, b))]
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in widths)
        self.conv_out = nn.Conv2d(channels[-1], width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, codes: Tensor) -> Tensor:
        x = F.silu(self.conv_in(codes))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


def control_of(unet: Any, config: LaytonConfig) -> Any:
    """diffusers' ControlNet that starts as a copy of a UNet's first half and reads codes in place of an image."""
    from diffusers import ControlNetModel
    from diffusers.models.attention import BasicTransformerBlock

    control = ControlNetModel.from_unet(unet)
    width = config.diffusion.channels[0]
    control.controlnet_cond_embedding = CodeEmbedding(config.quantizer.dim, config.code_channels, width)
    control.requires_grad_(True)
    for block in control.modules():
        if isinstance(block, BasicTransformerBlock):  # without a text, a bias is all that counts of what reads it
            for part in (block.norm2, block.attn2):
                part.requires_grad_(False)
            block.attn2.to_out[0].bias.requires_grad_(True)
    return control


def config_from_original(meta: dict[str, Any]) -> LaytonConfig:
    """The config of the original's arguments, as a fixture or a published listing states them.

    A fixture has narrowed parts beside `original.kwargs`: `encoder` (LlamaGen's arguments), `unet` and `vae`
    (diffusers'). Without them they are the published ones.
    """
    original = meta["original"]
    kwargs, unet, vae = original["kwargs"], original.get("unet"), original.get("vae")
    codes = {"codebook_size": kwargs["codebook_size"], "codebook_embed_dim": kwargs["latent_dim"]}
    arguments = dict(original.get("encoder") or {})
    if "ch_mult" in arguments:
        arguments |= dict.fromkeys(("encoder_ch_mult", "decoder_ch_mult"), arguments.pop("ch_mult"))
    tokenizer = llamagen_vq.config_from_original({"original": {"kwargs": {**arguments, **codes}}})
    config = LaytonConfig(tokenizer=tokenizer, quantizer=tokenizer.quantizer)
    if unet is None or vae is None:
        return config
    size_width = unet["addition_time_embed_dim"]
    diffusion = STABLE_DIFFUSION_XL.replace(
        channels=tuple(unet["block_out_channels"]),
        transformers=tuple(
            count if kind.startswith("CrossAttn") else 0
            for kind, count in zip(unet["down_block_types"], unet["transformer_layers_per_block"])
        ),
        blocks=unet["layers_per_block"],
        heads=tuple(unet["attention_head_dim"]),
        prompt_length=unet["prompt_length"],
        prompt_width=unet["cross_attention_dim"],
        pooled_width=unet["projection_class_embeddings_input_dim"] - SIZES * size_width,
        size_width=size_width,
        latent_size=unet["sample_size"],
        decoder_channels=tuple(vae["block_out_channels"]),
        decoder_blocks=vae["layers_per_block"],
        norm_groups=unet["norm_num_groups"],
    )
    channels = tuple(kwargs["conditioning_embedding_out_channels"])
    return config.replace(small_side=kwargs["small_side"], diffusion=diffusion, code_channels=channels)


original_losses = llamagen_vq.original_losses
_ADAPTED, _ALPHA = "decoder.unet.base_model.model.*", 8  # of peft's low-rank adaptation, by default


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's weights with their low-rank changes, which the original adds in each pass (LoRA, arXiv 2106.09685)."""
    for key in [key for key in state if key.endswith(".lora_A")]:
        place = key.removesuffix(".lora_A")
        down, up, weight = state.pop(key), state.pop(f"{place}.lora_B"), state[f"{place}.weight"]
        change = torch.einsum("or,r...->o...", up.flatten(1).float(), down.float()) * (_ALPHA / down.shape[0])
        state[f"{place}.weight"] = (weight.float() + change).to(weight.dtype)
    return state


KEY_MAP = KeyMap(
    {
        **{key: own for key, own in llamagen_vq.KEY_MAP.patterns.items() if not key.startswith("decoder.")},
        "post_quant_conv.*": None,  # of LlamaGen's decoder
        _ADAPTED: "unet.*",
        f"{_ADAPTED}.base_layer.*": "unet.*.*",
        f"{_ADAPTED}.lora_A.default.weight": "unet.*.lora_A",
        f"{_ADAPTED}.lora_B.default.weight": "unet.*.lora_B",
        "decoder.controlnet.*": "control.*",
        "vae.*": "autoencoder.*",
    },
    finish=_joined,
)
