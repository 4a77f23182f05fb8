"""RobustTok, and XQ-GAN and ImageFolder before it: vision transformers with learned queries around VQ, of one codebook
or of two that code ever finer grids, which signs may stand for, too (binary spherical quantisation), trained with
perturbed latents (`zoo.quantizers.latent_perturbation`).

Papers: RobustTok, arXiv 2503.08354; RobusTok, arXiv 2509.12474; ImageFolder, arXiv 2410.01756; XQ-GAN, arXiv
2412.01762; DINOv2, whose transformers these are, arXiv 2304.07193. Originals: qiuk2/RobusTok (no licence stated),
lxa9867/ImageFolder (Adobe Research License).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import checkpoint, hub
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.constants import HasConstants, per_channel
from zoo.layers.query_transformer import TransformerSizes
from zoo.layers.transformer import MLP, TransformerBlock
from zoo.ops.collective import joined_over_ranks
from zoo.quantizers import (
    BinaryConfig,
    BinaryEntropyConfig,
    GroupedConfig,
    LevelDropoutConfig,
    MultiScaleConfig,
    Quantized,
    QuantizerConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class RobustTokConfig(Config):
    """Sizes of the network; the defaults are those of the published RobustTok."""

    image_size: int = 256  # pixels a side
    patch_size: int = 16
    latent_side: int = 16  # the latents are a grid of as many rows and columns
    branches: int = 1  # groups of queries, each of which gives its own part of the channels of the latents
    encoder: TransformerSizes = TransformerSizes()
    decoder: TransformerSizes = TransformerSizes()
    quantizer: QuantizerConfig = VectorConfig(codebook_size=4096, dim=64, metric="cosine")

    def __post_init__(self) -> None:
        self.require(min(self.patch_size, self.latent_side, self.branches) >= 1, "sizes >= 1", self)
        self.require(
            self.image_size % self.patch_size == 0, f"a multiple of the patches of {self.patch_size}", self.image_size
        )
        self.require(
            self.quantizer.dim % self.branches == 0, f"latents that {self.branches} branches divide", self.quantizer.dim
        )

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.image_size // self.patch_size


@register("robust_tok")
class RobustTok(Tokenizer):
    """Images (B, 3, S, S) in [-1, 1] of the configured size -> a grid of tokens (B, s, s), s = `latent_side`; or, with
    a quantizer of several scales (ImageFolder), ever finer grids up to that one.
    """

    config: RobustTokConfig

    def __init__(self, config: RobustTokConfig) -> None:
        size, dim = config.image_size, config.quantizer.dim
        spec = InputSpec("image", channels=3, value_range=(-1.0, 1.0), size=(size, size), multiple=config.patch_size)
        super().__init__(config, spec, config.quantizer)
        self.encoder = _Encoder(config)
        self.to_latent = nn.Linear(config.encoder.width, dim // config.branches)
        self.from_codes = nn.Linear(dim, config.decoder.width)
        self.decoder = _Decoder(config)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.latent_side,) * 2

    def latent(self, x: Tensor) -> Tensor:
        branches = self.to_latent(self.encoder(x)).chunk(self.config.branches, dim=1)
        return torch.cat(branches, dim=-1).unflatten(1, (self.config.latent_side,) * 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes.flatten(1, 2)))


class _Transformer(nn.Module):
    """Pre-norm blocks with layer scale after a class token and a grid with learned positions, as DINOv2 has them."""

    def __init__(self, grid: int, sizes: TransformerSizes) -> None:
        super().__init__()
        width = sizes.width
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.grid = grid
        self.positions = nn.Parameter(torch.randn(1 + grid**2, width) * 0.02)  # of the class token, then of the grid
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(width, sizes.heads, MLP(width, 4 * width), eps=1e-6, layer_scale=1e-5)
                for _ in range(sizes.layers)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def with_class(self, cells: Tensor) -> Tensor:
        """(B, N, width) of a square grid -> (B, 1 + N, width): after the class token, both with their positions."""
        head = (self.class_token + self.positions[0]).expand(cells.shape[0], 1, -1).to(cells.dtype)
        return torch.cat([head, cells + self.positions_of(round(cells.shape[1] ** 0.5))], dim=1)

    def positions_of(self, side: int) -> Tensor:
        """(side^2, width): the positions of a grid of another size, which spans the same image."""
        table = self.positions[1:]
        if side == self.grid:
            return table
        table = table.unflatten(0, (self.grid, self.grid)).movedim(-1, 0)[None]
        return F.interpolate(table, size=(side, side), mode="bicubic", antialias=True)[0].flatten(1).T

    def run(self, x: Tensor) -> Tensor:
        """(B, N, width) -> the same."""
        return self.norm(self.blocks(x))


class _ImageTransformer(_Transformer):
    """A transformer whose grid are the patches of an image (B, 3, S, S)."""

    def __init__(self, grid: int, patch_size: int, sizes: TransformerSizes) -> None:
        super().__init__(grid, sizes)
        self.patches = nn.Conv2d(3, sizes.width, patch_size, stride=patch_size)

    def embed(self, x: Tensor) -> Tensor:
        """Images -> (B, 1 + grid^2, width)."""
        return self.with_class(self.patches(x).flatten(2).transpose(1, 2))


class _Encoder(_ImageTransformer):
    """Images (B, 3, S, S) -> (B, branches * side^2, width), the queries of one branch after those of the other."""

    def __init__(self, config: RobustTokConfig) -> None:
        super().__init__(config.grid, config.patch_size, config.encoder)
        self.side, self.branches, width = config.latent_side, config.branches, config.encoder.width
        self.queries = nn.Parameter(torch.randn(self.branches * self.side**2, width) * 1e-6)
        self.kinds = nn.Embedding(1 + self.branches, width)  # of the image, and of the queries of each branch

    def forward(self, x: Tensor) -> Tensor:
        image = self.embed(x) + self.kinds.weight[0]
        queries = self.queries.unflatten(0, (self.branches, -1)) + self.positions_of(self.side)
        queries = (queries + self.kinds.weight[1:, None]).flatten(0, 1).expand(x.shape[0], -1, -1)
        return self.run(torch.cat([image, queries.to(image.dtype)], dim=1))[:, image.shape[1] :]


class _Decoder(_Transformer):
    """Latents (B, side^2, width) -> images (B, 3, S, S): a grid of one mask token reads them."""

    def __init__(self, config: RobustTokConfig) -> None:
        super().__init__(config.grid, config.decoder)
        self.patch_size = config.patch_size
        self.mask_token = nn.Parameter(torch.randn(config.decoder.width) * 0.02)
        self.kinds = nn.Embedding(2, config.decoder.width)  # of the image and of the latents
        self.to_pixels = nn.Linear(config.decoder.width, 3 * config.patch_size**2)

    def forward(self, latents: Tensor) -> Tensor:
        cells = self.grid**2
        image = self.with_class(self.mask_token.expand(latents.shape[0], cells, -1).to(latents.dtype))
        sequence = torch.cat([image + self.kinds.weight[0], self.with_class(latents) + self.kinds.weight[1]], dim=1)
        pixels = self.to_pixels(self.run(sequence)[:, 1 : 1 + cells])
        pixels = pixels.unflatten(-1, (self.patch_size, self.patch_size, 3)).unflatten(1, (self.grid, self.grid))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, 3, rows, r, columns, c)


class SemanticTeacher(_ImageTransformer, HasConstants):
    """DINOv2, which the latents learn from: images (B, 3, S, S) in [-1, 1] -> the class token's features (B, width)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, image_size: int, patch_size: int, sizes: TransformerSizes) -> None:
        super().__init__(image_size // patch_size, patch_size, sizes)
        self.register_constant("mean", per_channel, (0.485, 0.456, 0.406))
        self.register_constant("deviation", per_channel, (0.229, 0.224, 0.225))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.embed(((x + 1) / 2 - self.mean) / self.deviation))[:, 0]


def semantic_teacher(config: RobustTokConfig, weights: Path | None = None) -> SemanticTeacher:
    """The frozen DINOv2 of a model's training, of the encoder's sizes, its patches and positions resampled to fit.

    Args:
        config: of the model.
        weights: a file in timm's layout; None resolves the published ones of DINOv2 ViT-B/14.

    Raises:
        CheckpointError: weights of other sizes than the encoder's.
        zoo.hub.HubError: weights that cannot be had.
    """
    from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

    source = hub.WeightSource(repo="timm/vit_base_patch14_dinov2.lvd142m", file="model.safetensors")
    state = checkpoint.read(weights or hub.resolve(source, name="DINOv2 ViT-B/14"))
    sizes = config.encoder
    with torch.device("meta"):  # tells timm which sizes to resample to
        network = VisionTransformer(
            config.image_size, config.patch_size, num_classes=0, embed_dim=sizes.width, depth=0, num_heads=sizes.heads
        )
    resampled = checkpoint_filter_fn(state, network, antialias=True)
    teacher = SemanticTeacher(config.image_size, config.patch_size, sizes)
    checkpoint.load_into(teacher, TEACHER_KEY_MAP({f"semantic_model.{key}": value for key, value in resampled.items()}))
    return teacher.requires_grad_(False).eval()


def semantic_loss(
    model: RobustTok, features: Tensor, codes: Tensor, *, scale: float = 1.0, cosines: bool = False
) -> Tensor:
    """Contrastive loss in both directions (as in CLIP) between images as teacher and codes show them, over the batches
    of all processes.

    Args:
        features: (B, width) of the teacher, which pass through the model's own `to_latent`.
        codes: (B, s, s, D), of which the mean over the positions and the last branch's channels are taken. Perturbed
            where the decoder's are.
        scale: of the logits.
        cosines: compare directions alone, instead of by inner products.
    """
    teacher = model.to_latent(features)
    student = codes.mean((1, 2))[:, -teacher.shape[1] :]
    rows = [joined_over_ranks(part).float() for part in (teacher, student)]
    if cosines:
        rows = [F.normalize(part, dim=-1) for part in rows]
    logits = scale * rows[0] @ rows[1].T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


_VIT_SIZES = {"small": TransformerSizes(384, 12, 6), "base": TransformerSizes(768, 12, 12)}


def transformer_from_original(stated: dict[str, Any], side: str) -> TransformerSizes:
    """The sizes behind a timm name; those of a fixture's own transformers stand beside it."""
    if "vit" in stated:
        vit = stated["vit"]
        return TransformerSizes(vit["embed_dim"], vit["depth"], vit["num_heads"])
    return _VIT_SIZES[original_arguments({"original": stated})[f"{side}_model"].split("_")[1]]


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "enc_type": "cnn", "dec_type": "cnn", "abs_pos_embed": False, "codebook_size": 16384, "codebook_embed_dim": 8,
    "codebook_l2_norm": True, "commit_loss_beta": 0.25, "entropy_loss_ratio": 0.0,
    "v_patch_nums": [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], "share_quant_resi": 4, "product_quant": 1,
    "codebook_drop": 0.0, "start_drop": 1, "sem_loss_weight": 0.1, "sem_loss_scale": 1.0, "clip_norm": False,
    "lfq": False, "scale": 1.0, "soft_entropy": True,
    "encoder_model": "vit_small_patch14_dinov2.lvd142m", "decoder_model": "vit_small_patch14_dinov2.lvd142m",
}  # fmt: skip


def original_arguments(meta: dict[str, Any]) -> dict[str, Any]:
    """The original's constructor arguments, with those that are not stated."""
    return {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}


def config_from_original(meta: dict[str, Any]) -> RobustTokConfig:
    """The config of the original's constructor arguments.

    Raises:
        ValueError: networks other than transformers, learned positions of the queries, or signs that shrink with the
            scales.
    """
    stated = meta["original"]
    kwargs = original_arguments(meta)
    found = (kwargs["enc_type"], kwargs["dec_type"], kwargs["abs_pos_embed"])
    if found != ("dinov2", "dinov2", True):
        raise ValueError(f"expected dinov2 on both sides with absolute positions, got {found}")
    vit, branches, ladder = stated.get("vit", {}), kwargs["product_quant"], tuple(kwargs["v_patch_nums"])
    quantizer = _branch(kwargs, ladder)
    return RobustTokConfig(
        image_size=vit.get("img_size", 256),
        patch_size=vit.get("patch_size", 16),
        latent_side=ladder[-1],
        branches=branches,
        encoder=transformer_from_original(stated, "encoder"),
        decoder=transformer_from_original(stated, "decoder"),
        quantizer=quantizer if branches == 1 else GroupedConfig(quantizer, branches),
    )


def _branch(kwargs: dict[str, Any], ladder: tuple[int, ...]) -> QuantizerConfig:
    """The quantizer of one branch; a codebook of several scales takes unit vectors, whatever is stated."""
    size, dim, unit = kwargs["codebook_size"], kwargs["codebook_embed_dim"], kwargs["codebook_l2_norm"]
    if len(ladder) == 1:
        return VectorConfig(size, dim, "cosine" if unit else "euclidean")
    convolutions, dropout = kwargs["share_quant_resi"], _dropout(kwargs)
    if not kwargs["lfq"]:
        return MultiScaleConfig(
            VectorConfig(size, dim, "cosine", unit_vectors=False), ladder, convolutions, dropout=dropout
        )
    if size != 2**dim or kwargs["scale"] != 1.0:
        raise ValueError(f"expected 2^{dim} signs of scale 1, got {size} of {kwargs['scale']}")
    signs = BinaryConfig(dim, entropy=None, scale=dim**-0.5 if unit else 1.0)
    soft = kwargs["soft_entropy"]
    entropy = BinaryEntropyConfig(1.0, group_bits=1) if soft else BinaryEntropyConfig(0.01, shift=1e-5)
    return MultiScaleConfig(signs, ladder, convolutions, dropout=dropout, unit_latents=unit, entropy=entropy)


def _dropout(kwargs: dict[str, Any]) -> LevelDropoutConfig | None:
    share = kwargs["codebook_drop"]
    return LevelDropoutConfig(kwargs["start_drop"], share=share, per_item=True) if share > 0 else None


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the commitment by beta, and sums it over scales, where it averages the codebook term.

    Of signs it averages both, and of several scales beta is always 0.25.
    """
    kwargs, losses = original_arguments(meta), quantized.losses
    scales = len(kwargs["v_patch_nums"])
    if kwargs["lfq"] and scales > 1:
        weights = {"codebook": 1.0, "commitment": 0.25, "entropy": kwargs["entropy_loss_ratio"]}
        names = {"codebook": "loss.vq", "commitment": "loss.commit", "entropy": "loss.entropy"}
        return {names[name]: weight * losses[name] for name, weight in weights.items() if name in losses}
    beta = kwargs["commit_loss_beta"] if scales == 1 else 0.25
    return {"loss.vq": losses["codebook"], "loss.commit": beta * scales * losses["commitment"]}


def _transformer(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.cls_token": f"{own}class_token",
        f"{published}.pos_embed": f"{own}positions",
        f"{published}.patch_embed.proj.*": f"{own}patches.*",
        f"{published}.blocks.{{}}.*": f"{own}blocks.{{}}.*",
        f"{published}.blocks.{{}}.attn.*": f"{own}blocks.{{}}.attention.*",
        f"{published}.blocks.{{}}.ls{{}}.gamma": f"{own}blocks.{{}}.scale{{}}.scale",
        f"{published}.norm.*": f"{own}norm.*",
    }


def _quantizer(published: str, own: str, codebook: str) -> dict[str, str | None]:
    return {
        f"{published}.embedding.weight": f"{own}.{codebook}.weight",
        f"{published}.quant_resi.qresi_ls.{{}}.*": f"{own}.convolutions.{{}}.*",
        f"{published}.quant_resi.qresi.*": f"{own}.convolutions.0.*",  # one for all scales
        f"{published}.quant_resi.{{}}.*": f"{own}.convolutions.{{}}.*",  # one for each scale
        f"{published}.ema_vocab_hit_SV": None,  # how often the original's training used each code
        f"{published}.scaler": None,  # what signs stand for at each scale
    }


def _key_map(codebook: str) -> KeyMap:
    return KeyMap(
        {
            "encoder.latent_tokens": "encoder.queries",
            "encoder.lvl1LC": None,  # which kind each position is of
            "encoder.lvl_embed.*": "encoder.kinds.*",
            **_transformer("encoder.model", "encoder."),
            "quant_conv.*": "to_latent.*",
            **_quantizer("quantize", "quantizer", codebook),
            **_quantizer("quantizes.{}", "quantizer.groups.{}", codebook),
            "post_quant_conv.*": "from_codes.*",
            "decoder.mask_token": "decoder.mask_token",
            "decoder.lvl1LC": None,
            "decoder.lvl_embed.*": "decoder.kinds.*",
            **_transformer("decoder.model", "decoder."),
            "decoder.to_pixel.model.*": "decoder.to_pixels.*",
            "semantic_model.*": None,  # the teacher of the original's training
            "detail_model.*": None,  # another one
            "sem_linear.*": None,  # no term of its loss reads it
        },
        transforms={
            "encoder.queries": lambda queries: queries[0],
            "*_token": torch.flatten,
            "*positions": lambda positions: positions[0],
            "to_latent.weight": lambda weight: weight.flatten(1),  # 1x1 convolutions
            "from_codes.weight": lambda weight: weight.flatten(1),
        },
    )


KEY_MAP = _key_map("codebook")
KEY_MAP_OF_SCALES = _key_map("level.codebook")


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture or a published listing: quantizers of several scales hold their codebook deeper."""
    return KEY_MAP if len(meta["original"]["kwargs"]["v_patch_nums"]) == 1 else KEY_MAP_OF_SCALES


TEACHER_KEY_MAP = KeyMap(
    {**_transformer("semantic_model", ""), "*": None},
    transforms={"class_token": torch.flatten, "positions": lambda positions: positions[0]},
)
