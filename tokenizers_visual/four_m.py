"""4M's tokenizers: a vision transformer as encoder; as decoder another one, or a diffusion model of the pixels (DiVAE).

Papers: arXiv 2312.06647, 2406.09406. Original: apple/ml-4m (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.ddim import Prediction, Schedule, ddim, denoising, item_noise, signal_share, trailing_times
from zoo.layers.positions import sine_grid
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.layers.unet import UNet
from zoo.quantizers import DirectionCodebookConfig, EmaCodebookConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Output, Tokenizer
from zoo.tokens import Tokens


@dataclass(frozen=True)
class TransformerConfig(Config):
    """A transformer over the patches. `final_mlp`: one more MLP with tanh at its end."""

    kind = "transformer"
    width: int = 768
    layers: int = 12
    heads: int = 12
    final_mlp: bool = True
    convolutions: bool = False  # two ConvNeXt blocks over the pixels; of the decoder

    def __post_init__(self) -> None:
        self.require(self.width % self.heads == 0, "a width that the heads divide", (self.width, self.heads))


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """A UNet over patches of the noisy image, conditioned on the codes, and its noise schedule."""

    kind = "diffusion"
    patch_size: int = 4
    channels: int = 256
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 3
    attention: tuple[int, ...] = (4, 8)  # downsampling factors of the levels with attention
    norm_groups: int = 32
    prediction: Prediction = "sample"
    schedule: Schedule = "linear"
    train_steps: int = 1000
    zero_terminal_snr: bool = True
    clip: bool = True  # predicted images to [-1, 1] while sampling
    steps: int = 50  # of sampling, unless decode is told another number

    def __post_init__(self) -> None:
        defined = self.prediction != "epsilon" or not self.zero_terminal_snr
        self.require(defined, "a prediction of sample or v_prediction with zero_terminal_snr", self.prediction)
        self.require(1 <= self.steps <= self.train_steps, f"1 to {self.train_steps} steps", self.steps)


@dataclass(frozen=True)
class FourMConfig(Config):
    """Sizes of the network; the defaults are those of the published tokenizer of RGB images."""

    in_channels: int = 3
    classes: int | None = None  # of maps of class ids, which then come in as embeddings of `in_channels`
    value_range: tuple[float, float] = (-1.0, 1.0)  # of a map of class ids its least and largest
    image_size: int = 224  # of the stored positions, which other sizes interpolate
    patch_size: int = 16
    patches: bool = True  # the encoder cuts patches itself; else it takes a map of features, one for each patch
    encoder: TransformerConfig = TransformerConfig()
    decoder: TransformerConfig | DiffusionConfig = DiffusionConfig()
    unit_latents: bool = False  # latents are normalised before the quantizer
    quantizer: QuantizerConfig = VectorConfig(
        codebook_size=16384, dim=32, metric="cosine", unit_vectors=False, codebook=DirectionCodebookConfig()
    )

    def __post_init__(self) -> None:
        self.require(self.image_size % self.patch_size == 0, "an image_size of whole patches", self.image_size)
        self.require(not self.encoder.convolutions, "convolutions in the decoder alone", self.encoder)
        if self.classes is not None:
            ids = (0.0, self.classes - 1.0)
            self.require(
                self.value_range == ids, f"a value_range of {ids} for {self.classes} classes", self.value_range
            )
            plain = self.patches and isinstance(self.decoder, TransformerConfig)
            self.require(plain, "patches and a transformer as decoder for classes", self.decoder)


@register("four_m")
class FourM(Tokenizer):
    """Images (B, C, H, W), or maps of features, -> a grid of tokens (B, H / patch, W / patch).

    Maps of class ids are (B, 1, H, W); decoding gives the most likely ids, a pass for training the logits
    (B, classes, H, W).

    A diffusion decoder starts from noise: `decode` takes `noise` (of the padded images' shape), or a `seed` (0 if
    none is given; a list has one for each item), and the number of `steps`. In training a pass then gives the loss
    `diffusion`, the squared error of what the decoder predicts at random times, and the images that this stands for.
    """

    def __init__(self, config: FourMConfig) -> None:
        stride = config.patch_size if config.patches else 1
        given, made = (1, config.classes) if config.classes else (config.in_channels, config.in_channels)
        spec = InputSpec("image", channels=given, value_range=config.value_range, multiple=stride)
        super().__init__(config, spec, config.quantizer)
        self.class_embedding = nn.Embedding(config.classes, config.in_channels) if config.classes else None
        grid, width, dim = config.image_size // config.patch_size, config.encoder.width, config.quantizer.dim
        self.unit_latents = config.unit_latents
        self.from_pixels = nn.Conv2d(config.in_channels, width, stride, stride=stride)
        self.encoder = _Transformer(config.encoder, grid)
        self.to_latent = nn.Conv2d(width, dim, 1)
        self.from_codes: nn.Module = nn.Identity()
        self.decoder: nn.Module
        if isinstance(config.decoder, DiffusionConfig):
            self.decoder = _DiffusionDecoder(config.decoder, config.in_channels, dim, stride)
            self.decode_options = frozenset({"steps", "seed", "noise"})
            self.own_losses = frozenset({"diffusion"})
        else:
            self.from_codes = nn.Conv2d(dim, config.decoder.width, 1)
            self.decoder = _PixelDecoder(config.decoder, grid, made, stride)

    def latent(self, x: Tensor) -> Tensor:
        if self.class_embedding is not None:
            x = self.class_embedding(x[:, 0].round().long()).movedim(-1, 1)
        z = self.to_latent(self.encoder(self.from_pixels(x))).movedim(1, -1)
        return F.normalize(z, dim=-1) if self.unit_latents else z

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.movedim(-1, 1)))

    def forward(self, x: Tensor) -> Output:
        if not (self.training and isinstance(self.decoder, _DiffusionDecoder)):
            return super().forward(x)
        self.spec.check_shape(x)
        padded = self.pad(x)
        latent = self.latent(padded)
        quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype).movedim(-1, 1)
        quantized.losses["diffusion"], signal = self.decoder.loss(padded, codes)
        return Output(signal[..., : x.shape[2], : x.shape[3]], latent, quantized)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        if not isinstance(self.decoder, _DiffusionDecoder):
            return super().noise_shape(codes)
        return self.decoder.noise_shape(codes.movedim(-1, 1))

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        signal = self.decoder(self.from_codes(codes.movedim(-1, 1)), **options)
        return signal if self.class_embedding is None else signal.argmax(1, keepdim=True).to(signal.dtype)


class _Transformer(nn.Module):
    """(B, width, h, w) -> the same, with stored positions of a square grid that others interpolate."""

    positions: Tensor

    def __init__(self, config: TransformerConfig, grid: int) -> None:
        super().__init__()
        width = config.width
        self.register_buffer("positions", sine_grid(width, grid))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, config.heads, MLP(width, 4 * width), eps=1e-6) for _ in range(config.layers))
        )
        self.final_norm = nn.LayerNorm(width, eps=1e-6) if config.final_mlp else None
        self.final_mlp = MLP(width, 4 * width, nn.Tanh) if config.final_mlp else None

    def forward(self, x: Tensor) -> Tensor:
        positions = self.positions
        if positions.shape[2:] != x.shape[2:]:
            positions = F.interpolate(positions.float(), x.shape[2:], mode="bicubic").to(x.dtype)
        hidden = self.blocks((x + positions).flatten(2).transpose(1, 2))
        if self.final_norm is not None and self.final_mlp is not None:
            hidden = hidden + self.final_mlp(self.final_norm(hidden))
        return hidden.transpose(1, 2).unflatten(2, x.shape[2:])


class _ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, norm and MLP over the channels, scaled; plus the input (arXiv 2201.03545)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MLP(channels, 4 * channels)
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.scale * self.mlp(self.norm(self.conv(x).movedim(1, -1)))
        return x + h.movedim(-1, 1)


class _PixelDecoder(nn.Module):
    """(B, width, h, w) -> (B, out_channels, h * patch, w * patch)."""

    def __init__(self, config: TransformerConfig, grid: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.transformer = _Transformer(config, grid)
        self.to_pixels = nn.Linear(config.width, out_channels * patch_size**2)
        blocks = 2 if config.convolutions else 0
        self.convolutions = nn.Sequential(*(_ConvNeXtBlock(out_channels) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.to_pixels(self.transformer(x).movedim(1, -1)).movedim(-1, 1)
        return self.convolutions(F.pixel_shuffle(patches, self.patch_size))


class _DiffusionDecoder(nn.Module):
    """Codes (B, D, h, w) -> images (B, C, h * stride, w * stride), sampled by DDIM (arXiv 2010.02502)."""

    def __init__(self, config: DiffusionConfig, channels: int, code_channels: int, stride: int) -> None:
        super().__init__()
        self.config, self.channels, self.stride = config, channels, stride
        pixels = channels * config.patch_size**2
        self.unet = UNet(
            pixels + code_channels,
            pixels,
            config.channels,
            config.multipliers,
            config.blocks,
            config.attention,
            config.norm_groups,
        )

    def predict(self, noised: Tensor, times: Tensor, codes: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the network makes of noisy images (B, C, H, W) at times (B,); mask (B, h, w): codes to leave out."""
        if mask is not None:
            codes = codes * (mask == 0)[:, None]
        patches = F.pixel_unshuffle(noised, self.config.patch_size)
        condition = F.interpolate(codes, patches.shape[2:], mode="nearest")
        return F.pixel_shuffle(self.unet(torch.cat([patches, condition], 1), times), self.config.patch_size)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        return (codes.shape[0], self.channels, *(side * self.stride for side in codes.shape[2:]))

    def share(self) -> Tensor:
        """(train_steps,): see `signal_share`."""
        config = self.config
        return signal_share(config.schedule, config.train_steps, zero_terminal_snr=config.zero_terminal_snr)

    def loss(self, images: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """See `denoising`, at random times and of images (B, C, H, W) with their codes (B, D, h, w)."""
        config, noise = self.config, torch.randn_like(images)
        time = torch.randint(0, config.train_steps, (len(images),), device=images.device)
        return denoising(lambda x, t: self.predict(x, t, codes), images, noise, time, self.share(), config.prediction)

    def times(self, steps: int | None = None) -> list[int]:
        """The times that sampling visits, falling."""
        return trailing_times(self.config.train_steps, self.config.steps if steps is None else steps)

    def forward(
        self,
        codes: Tensor,
        steps: int | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        config, times = self.config, self.times(steps)
        noise = item_noise(self.noise_shape(codes), seed, noise)
        hop = config.train_steps // (config.steps if steps is None else steps)
        return ddim(
            lambda x, time: self.predict(x, time, codes),
            noise.to(codes),
            self.share(),
            times,
            hop,
            config.prediction,
            clip=config.clip,
        )


def config_from_original(meta: dict[str, Any]) -> FourMConfig:
    """The config of the original's constructor arguments, as a fixture states them, with the sizes of its models."""
    kwargs, original = meta["original"]["kwargs"], meta["original"]["class"]
    if kwargs.get("num_codebooks", 1) != 1:
        raise ValueError(f"expected one codebook, as published, got {kwargs['num_codebooks']}")
    cosine = kwargs["norm_codes"]
    decay, revive = kwargs.get("ema_decay", 0.99), kwargs.get("threshold_ema_dead_code", 0.0)
    quantizer = VectorConfig(
        codebook_size=kwargs["codebook_size"],
        dim=kwargs["latent_dim"],
        metric="cosine" if cosine else "euclidean",
        unit_vectors=not cosine,
        codebook=DirectionCodebookConfig(decay, revive) if cosine else EmaCodebookConfig(decay, 1e-5, revive),
    )
    encoder = _transformer_from(kwargs, kwargs["enc_type"])
    diffusion, classes = original == "DiVAE", kwargs.get("n_labels")
    decoder = _diffusion_from(kwargs) if diffusion else _transformer_from(kwargs, kwargs["dec_type"], decoder=True)
    return FourMConfig(
        in_channels=kwargs["n_channels"],
        classes=classes,
        # features have no bounds of their own
        value_range=(-1.0, 1.0) if diffusion else (0.0, classes - 1.0) if classes else (-100.0, 100.0),
        image_size=kwargs["image_size"],
        patch_size=kwargs["patch_size"],
        patches=kwargs.get("patch_proj", True),
        encoder=encoder,
        decoder=decoder,
        unit_latents=kwargs.get("norm_latents", False),
        quantizer=quantizer,
    )


def _transformer_from(kwargs: dict[str, Any], name: str, decoder: bool = False) -> TransformerConfig:
    """The sizes behind the original's names `vit_s_enc`, `vit_b_dec` ..., or those that a fixture states."""
    key = name.rpartition("_")[0]
    known = {"vit_s": (512, 8, 8), "vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}
    sizes = kwargs.get(key)
    width, layers, heads = (sizes["dim_tokens"], sizes["depth"], sizes["num_heads"]) if sizes else known[key]
    return TransformerConfig(width, layers, heads, kwargs["post_mlp"], decoder and kwargs.get("out_conv", False))


def _diffusion_from(kwargs: dict[str, Any]) -> DiffusionConfig:
    if kwargs.get("thresholding"):
        raise ValueError("expected no thresholding, as published")
    sizes = kwargs.get(kwargs["dec_type"], {})
    published = DiffusionConfig()
    return DiffusionConfig(
        patch_size=sizes.get("patch_size", published.patch_size),
        channels=sizes.get("model_channels", published.channels),
        multipliers=tuple(sizes.get("channel_mult", published.multipliers)),
        blocks=sizes.get("num_res_blocks", published.blocks),
        attention=tuple(sizes.get("attention_resolutions", published.attention)),
        norm_groups=sizes.get("norm_groups", published.norm_groups),
        prediction=kwargs["prediction_type"],
        schedule=kwargs["beta_schedule"],
        train_steps=kwargs["num_train_timesteps"],
        zero_terminal_snr=kwargs["zero_terminal_snr"],
        clip=kwargs["clip_sample"],
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original's only loss of the quantizer."""
    weight = meta["original"]["kwargs"].get("commitment_weight", 1.0)
    return {"loss.commit": weight * quantized.losses["commitment"]}


def _transformer(side: str, own: str) -> dict[str, str | None]:
    return {
        f"{side}.pos_emb": f"{own}.positions",
        f"{side}.blocks.{{}}.attn.*": f"{own}.blocks.{{}}.attention.*",
        f"{side}.blocks.{{}}.*": f"{own}.blocks.{{}}.*",
        f"{side}.norm_mlp.*": f"{own}.final_norm.*",
        f"{side}.post_mlp.*": f"{own}.final_mlp.*",
    }


def _residual_block(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.in_layers.0.*": f"{own}.norm1.*",
        f"{published}.in_layers.2.*": f"{own}.conv1.*",
        f"{published}.emb_layers.1.*": f"{own}.time.*",
        f"{published}.out_layers.0.*": f"{own}.norm2.*",
        f"{published}.out_layers.3.*": f"{own}.conv2.*",
        f"{published}.skip_connection.*": f"{own}.shortcut.*",
    }


KEY_MAP = KeyMap(
    {
        "cls_emb.*": "class_embedding.*",
        "encoder.proj.*": "from_pixels.*",
        **_transformer("encoder", "encoder"),
        "quant_proj.*": "to_latent.*",
        "quantize._codebook.embed": "quantizer.codebook.weight",
        "quantize._codebook.cluster_size": "quantizer.ema.count",
        "quantize._codebook.embed_avg": "quantizer.ema.total",
        "quantize._codebook.initted": None,  # whether the original's k-means start was done
        "post_quant_proj.*": "from_codes.*",
        **_transformer("decoder", "decoder.transformer"),
        "decoder.out_proj.*": "decoder.to_pixels.*",
        "decoder.out_conv.{}.dwconv.*": "decoder.convolutions.{}.conv.*",
        "decoder.out_conv.{}.norm.*": "decoder.convolutions.{}.norm.*",
        "decoder.out_conv.{}.pwconv1.*": "decoder.convolutions.{}.mlp.fc1.*",
        "decoder.out_conv.{}.pwconv2.*": "decoder.convolutions.{}.mlp.fc2.*",
        "decoder.out_conv.{}.gamma": "decoder.convolutions.{}.scale",
        "decoder.time_embed.{}.*": "decoder.unet.time.{}.*",
        "decoder.input_blocks.{}.{}.*": "decoder.unet.down.{}.{}.*",
        "decoder.input_blocks.{}.{}.op.*": "decoder.unet.down.{}.{}.*",
        **_residual_block("decoder.input_blocks.{}.{}", "decoder.unet.down.{}.{}"),
        "decoder.middle_block.{}.*": "decoder.unet.middle.{}.*",
        **_residual_block("decoder.middle_block.{}", "decoder.unet.middle.{}"),
        "decoder.output_blocks.{}.{}.*": "decoder.unet.up.{}.{}.*",
        **_residual_block("decoder.output_blocks.{}.{}", "decoder.unet.up.{}.{}"),
        "decoder.out.{}.*": "decoder.unet.out.{}.*",
    },
    # the UNet's attentions are stored as convolutions over one axis
    transforms={
        "decoder.unet.*.qkv.weight": lambda weight: weight[..., None],
        "decoder.unet.*.proj_out.weight": lambda weight: weight[..., None],
    },
)
