"""GaussianToken: an image as a set of two-dimensional Gaussians, each a feature, a place, an angle and two widths.

Paper: arXiv 2501.15619. Original: ChrisDong-THU/GaussianToken (no licence stated). There the features alone are
quantised and the other five numbers stay floats; here these are integers too, of 16 bits by default, so that tokens
hold all that an image is decoded from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.gaussian_token_keys import KEY_MAP as KEY_MAP
from tokenizers_visual.gaussian_token_keys import key_map_from_original as key_map_from_original
from zoo.config import Config
from zoo.layers.deformable_attention import DeformableAttention
from zoo.layers.open_magvit2 import Decoder, Encoder
from zoo.layers.positions import periodic_grid
from zoo.ops.collective import sum_over_ranks, world_size
from zoo.ops.precision import full_precision
from zoo.ops.splat import splat
from zoo.quantizers import (
    EmaCodebookConfig,
    FiniteScalarConfig,
    GroupedConfig,
    QuantizerConfig,
    RotationConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

GEOMETRY = 5  # numbers of a Gaussian beside its feature: x, y, angle, and the widths along its own axes
_LOGIT_BOUND = 9.21024  # beyond which a sigmoid is taken as constant
_SLOWNESS = 0.99  # of the running mean width
_STEP = 1e-3  # of the largest width, at each training pass
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def gaussian_quantizer(codebook_size: int, features: int, bits: int = 16) -> GroupedConfig:
    """A codebook for the features, and 2^bits even steps for each number of the geometry."""
    codebook = EmaCodebookConfig(decay=0.8, start="kmeans", revive_below=2)
    steps = FiniteScalarConfig(levels=(2**bits,), margin=0.0, symmetric=True, squash="clamp")
    vectors = VectorConfig(codebook_size=codebook_size, dim=features, codebook=codebook, gradient=RotationConfig())
    return GroupedConfig(group=(vectors, *(steps,) * GEOMETRY), num_groups=1 + GEOMETRY)


@dataclass(frozen=True)
class GaussianTokenConfig(Config):
    """Sizes of the network; the defaults are those of the published ImageNet model."""

    resolution: int = 256
    channels: int = 128  # width of the first convolution, and of the levels by their multipliers
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)  # one per level; stride = 2 ** (levels - 1)
    blocks: int = 4  # residual blocks a level, and in the middle
    norm_groups: int = 32
    width: int = 64  # of the feature map and of the Gaussians' states
    gaussians: int = 256
    features: int = 8  # of a Gaussian, which its token tells
    map_layers: int = 2  # of attention over the feature map
    stages: int = 3  # in which Gaussians look at each other and the map, and are refined
    stage_layers: int = 2  # of attention in each
    heads: int = 4
    points: int = 4  # that each head looks at, beside the place of its query
    dropout: float = 0.1  # of attention
    scale_range: tuple[float, float] = (0.1, 4.0)  # widths in pixels of the feature map, at the start of training
    final_scale: float = 3.0  # to which the largest width falls in training
    quantizer: QuantizerConfig = gaussian_quantizer(1024, 8)

    def __post_init__(self) -> None:
        stride = 2 ** (len(self.channel_multipliers) - 1)
        self.require(self.resolution % stride == 0, f"a resolution that is a multiple of {stride}", self.resolution)
        self.require(self.width % self.heads == 0, f"a width that {self.heads} heads divide", self.width)
        self.require(self.width % 4 == 0, "a width that is a multiple of 4", self.width)
        self.require(min(self.gaussians, self.features, self.stages) >= 1, "gaussians, features, stages >= 1", self)
        low, high = self.scale_range
        self.require(0 < low < self.final_scale <= high, "0 < least < final_scale <= largest width", self.scale_range)


@dataclass(frozen=True)
class Gaussians:
    """means (B, N, 2) in [-1, 1], rotations (B, N) in [0, pi], scales (B, N, 2) in pixels, features (B, N, C)."""

    means: Tensor
    rotations: Tensor
    scales: Tensor
    features: Tensor


@register("gaussian_token")
class GaussianToken(Tokenizer):
    """Images (B, 3, resolution, resolution) in [-1, 1] to N Gaussians: a sequence of N places with six indices each."""

    layout = "sequence"
    config: GaussianTokenConfig  # type: ignore[assignment]
    states: Tensor

    def __init__(self, config: GaussianTokenConfig) -> None:
        spec = InputSpec("image", 3, (-1.0, 1.0), (config.resolution, config.resolution))
        super().__init__(config, spec, config.quantizer)
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        width, groups = config.width, config.norm_groups
        self.grid = config.resolution // 2 ** (len(widths) - 1)
        self.encoder = Encoder(3, [config.channels, *widths], config.blocks, width, groups)
        self.lift = nn.Sequential(xavier(nn.Conv2d(width, width, 1)), nn.GroupNorm(groups, width))
        nn.init.zeros_(self.lift[0].bias)
        self.register_constant("map_positions", periodic_grid, width, self.grid)
        self.map_layers = nn.ModuleList(MapLayer(config) for _ in range(config.map_layers))
        places = torch.rand(config.gaussians, 4).logit(eps=1e-4)
        self.anchors = nn.Parameter(
            torch.cat([places, torch.zeros(config.gaussians, 1), torch.randn(config.gaussians, width)], dim=1)
        )
        self.register_buffer("states", torch.zeros(config.gaussians, width))  # nor are the published ones trained
        self.anchor_encoder = AnchorEncoder(width)
        self.stages = nn.ModuleList(Stage(config) for _ in range(config.stages))
        self.to_features = head(width, config.features)
        self.scales = ScaleSchedule(config.scale_range, config.final_scale)
        dim, raw = config.quantizer.dim, config.features + GEOMETRY
        self.to_latent = nn.Identity() if dim == raw else nn.Linear(raw, dim)
        self.from_codes = nn.Identity() if dim == raw else nn.Linear(dim, raw)
        self.decoder = Decoder(config.features, widths, config.blocks, 3, groups)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return (self.config.gaussians,)

    def latent(self, x: Tensor) -> Tensor:
        """(B, N, D): of each Gaussian the feature, then the geometry as five numbers in [-1, 1]."""
        anchors = self.refined(x)
        geometry = 2 * safe_sigmoid(anchors[..., :GEOMETRY]) - 1
        return self.to_latent(torch.cat([self.to_features(anchors[..., GEOMETRY:]), geometry], dim=-1))

    def refined(self, x: Tensor) -> Tensor:
        """Images -> anchors (B, N, 5 + width): x, y, angle and widths as logits, and a state."""
        features = self.lift(self.encoder(x))
        with full_precision(features):  # places are finer than 16 bits can tell
            features = features.to(self.anchors.dtype)
            for layer in self.map_layers:
                features = layer(features, self.map_positions)
            anchors, states = (start.expand(x.shape[0], -1, -1) for start in (self.anchors, self.states))
            for stage in self.stages:
                states, anchors = stage(states, anchors, self.anchor_encoder(anchors), features)
            return anchors

    def gaussians(self, codes: Tensor) -> Gaussians:
        """Codes (B, N, D) -> what they stand for."""
        features, geometry = self.from_codes(codes).split([self.config.features, GEOMETRY], dim=-1)
        geometry = geometry.float().clamp(-1, 1)
        return Gaussians(
            geometry[..., :2], (geometry[..., 2] + 1) / 2 * math.pi, self.scales(geometry[..., 3:]), features
        )

    def reconstruct(self, codes: Tensor) -> Tensor:
        found = self.gaussians(codes)
        if self.training:
            self.scales.follow(found.scales)
        features = splat(found.means, found.rotations, found.scales, found.features, (self.grid, self.grid))
        return self.decoder(features.to(codes.dtype))


def safe_sigmoid(x: Tensor) -> Tensor:
    """The sigmoid of logits that are cut off, so that it never reaches 0 or 1."""
    return x.clamp(-_LOGIT_BOUND, _LOGIT_BOUND).sigmoid()


class ScaleSchedule(nn.Module):
    """Widths of Gaussians, whose upper bound falls while they are narrower than the middle of its range."""

    largest: Tensor
    mean: Tensor

    def __init__(self, scale_range: tuple[float, float], final: float) -> None:
        super().__init__()
        self.least, self.final = scale_range[0], final
        self.register_buffer("largest", torch.tensor(scale_range[1]))
        self.register_buffer("mean", torch.tensor(sum(scale_range) / 2))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers in [-1, 1] -> widths in pixels."""
        return self.least + (self.largest - self.least) * (x + 1) / 2

    @torch.no_grad()
    def follow(self, scales: Tensor) -> None:
        """One training pass with these widths, of all processes."""
        mean = scales.mean().to(self.mean.dtype)
        sum_over_ranks(mean)
        self.mean.lerp_(mean / world_size(), 1 - _SLOWNESS)
        distance = (self.mean - (self.largest + self.least) / 2).clamp_min(0.01)
        self.largest.copy_((self.largest - _STEP * distance).clamp_min(self.final))


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def xavier(layer: Layer) -> Layer:
    """A layer whose weight starts by Glorot's uniform rule."""
    nn.init.xavier_uniform_(layer.weight)
    return layer


def perceptron(*widths: int, norms: int) -> list[nn.Module]:
    """Linear layers and ReLU, with a LayerNorm after each `norms` of them."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers += [nn.Linear(before, after), nn.ReLU()]
        layers += [nn.LayerNorm(after)] if number % norms == 0 else []
    return layers


def head(width: int, out: int) -> nn.Sequential:
    """What a state tells: four layers, and a linear map whose outputs have learned factors."""
    return nn.Sequential(*perceptron(*(width,) * 5, norms=2), nn.Linear(width, out), Scale(out))


class AnchorEncoder(nn.Module):
    """Anchors (B, N, 5 + width) -> (B, N, width): place, angle, widths and state, each by itself, are added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place, self.angle, self.widths, self.state, self.output = (
            nn.Sequential(*perceptron(given, width, width, norms=1)) for given in (2, 1, 2, width, width)
        )

    def forward(self, anchors: Tensor) -> Tensor:
        place, angle, widths, state = anchors.tensor_split([2, 3, GEOMETRY], dim=-1)
        return self.output(self.place(place) + self.angle(angle) + self.widths(widths) + self.state(state))


class FeedForward(nn.Sequential):
    """Two linear maps with ReLU."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(
            xavier(nn.Linear(width, 4 * width)),
            nn.ReLU(),
            nn.Dropout(dropout),
            xavier(nn.Linear(4 * width, width)),
            nn.Dropout(dropout),
        )


class MapLayer(nn.Module):
    """The feature map (B, width, H, W) attends to itself around each of its places."""

    def __init__(self, config: GaussianTokenConfig) -> None:
        super().__init__()
        self.attention = DeformableAttention(config.width, config.heads, config.points)
        self.feed_forward = FeedForward(config.width, config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        height, width = features.shape[2:]
        sides = (torch.arange(side, device=features.device, dtype=torch.float32) for side in (height, width))
        rows, columns = ((side + 0.5) / len(side) for side in sides)
        places = torch.stack([columns.repeat(height), rows.repeat_interleave(width)], dim=-1)
        x, query = features.flatten(2).mT, (features + positions.to(features.dtype)).flatten(2).mT
        x = self.norm1(x + self.dropout(self.attention(query, places.expand(x.shape[0], -1, -1), features)))
        x = self.norm2(x + self.feed_forward(x))
        return x.mT.unflatten(2, (height, width))


class StageLayer(nn.Module):
    """Gaussians attend to each other, and to the map around their places."""

    def __init__(self, config: GaussianTokenConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attention = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True)
        xavier(self.self_attention.out_proj)
        self.attention = DeformableAttention(width, config.heads, config.points)
        self.feed_forward = FeedForward(width, config.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, embedded: Tensor, places: Tensor, features: Tensor) -> Tensor:
        query = x + embedded
        x = self.norm1(x + self.dropout(self.self_attention(query, query, x, need_weights=False)[0]))
        x = self.norm2(x + self.dropout(self.attention(x + embedded, places, features)))
        return self.norm3(x + self.feed_forward(x))


class Merge(nn.Module):
    """(B, N, 2 width) -> (B, N, width): two linear maps with ReLU, and one beside them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.hidden, self.output = nn.Linear(2 * width, 4 * width), nn.Linear(4 * width, width)
        self.beside = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.beside(x) + self.output(self.hidden(x).relu())


class Stage(nn.Module):
    """Gaussians look around, their states are joined with those before, and they change: places move, all else is told
    anew.
    """

    def __init__(self, config: GaussianTokenConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(StageLayer(config) for _ in range(config.stage_layers))
        self.dropout = nn.Dropout(config.dropout)
        self.merge = Merge(config.width)
        self.refine = head(config.width, GEOMETRY + config.width)

    def forward(self, states: Tensor, anchors: Tensor, embedded: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        seen, places = states, safe_sigmoid(anchors[..., :2])
        for layer in self.layers:
            seen = layer(seen, embedded, places, features)
        states = self.merge(torch.cat([self.dropout(seen), states], dim=-1))
        return states, self.refined(states, embedded, anchors)

    def refined(self, states: Tensor, embedded: Tensor, anchors: Tensor) -> Tensor:
        """The next anchors (B, N, 5 + width)."""
        changes = self.refine(states + embedded)
        return changes + F.pad(anchors[..., :2], (0, changes.shape[-1] - 2))


def config_from_original(meta: dict[str, Any]) -> GaussianTokenConfig:
    """The config of the original model's constructor arguments, or of its refinement module's, which tell the sizes of
    Gaussians alone.

    Raises:
        ValueError: a network of another kind than the published ones.
    """
    kwargs = meta["original"]["kwargs"]
    parts = kwargs.get("gs_embed_cfg")
    refine = parts["refine_cfg"] if parts else kwargs
    kind = (refine.get("include_opa", False), tuple(refine["refine_state"]), tuple(refine["xy_range"]))
    if kind != (False, (0, 1), (-1, 1)) or refine["dim_feature"] != refine["embed_dim"]:
        raise ValueError(f"expected no opacity, places in [-1, 1] alone refined, and states of one width, got {refine}")
    width, features = refine["embed_dim"], refine["z_channels"]
    config = GaussianTokenConfig(
        width=width,
        features=features,
        norm_groups=meta["original"].get("norm_num_groups", math.gcd(width, 32)),
        heads=math.gcd(width, 4),
        scale_range=tuple(refine["initial_scale_range"]),
        final_scale=refine["final_scale_range"][1],
        quantizer=gaussian_quantizer(1024, features),
    )
    return config.replace(**_network_from_original(kwargs)) if parts else config


def _network_from_original(kwargs: dict[str, Any]) -> dict[str, Any]:
    parts, convolutions = kwargs["gs_embed_cfg"], kwargs["img_encoder_cfg"]
    looking, over, merging = parts["attn_decoder_cfg"], parts["attn_encoder_cfg"], parts["ffn_cfg"]
    stages, rest = divmod(len(parts["operation_order"]), 3)
    attention = looking["decoder_layer_cfg"]
    found = {
        "operations": (list(parts["operation_order"]), parts["op_param_share"]),
        "attention": (attention, attention["n_levels"], attention["activation"], looking["residual_mode"]),
        "feed-forward": tuple(merging[name] for name in ("pre_norm", "out_norm", "num_fcs", "add_identity")),
        "dropouts": (looking["proj_drop"], merging["ffn_drop"]),
        "positions": parts["fm_lifter_cfg"]["pe_version"],
        "decoder": [kwargs["img_decoder_cfg"][name] for name in ("ch", "ch_mult", "num_res_blocks")],
    }
    expected = {
        "operations": (["cross_attn", "ffn", "refine"] * stages, False),
        "attention": (over["encoder_layer_cfg"], 1, "relu", "cat"),
        "feed-forward": (True, False, 2, True),
        "dropouts": (attention["dropout"], 0.0),
        "positions": "sine",
        "decoder": [convolutions[name] for name in ("ch", "ch_mult", "num_res_blocks")],
    }
    if wrong := {name: value for name, value in found.items() if value != expected[name]}:
        raise ValueError(f"expected { ({name: expected[name] for name in wrong}) }, got {wrong}")
    side, other = kwargs["fm_shape"]
    if rest or side != other:
        raise ValueError(f"expected a square feature map, got {kwargs['fm_shape']}")
    return {
        "resolution": side * 2 ** (len(convolutions["ch_mult"]) - 1),
        "channels": convolutions["ch"],
        "channel_multipliers": tuple(convolutions["ch_mult"]),
        "blocks": convolutions["num_res_blocks"],
        "gaussians": kwargs["num_gs"],
        "map_layers": over["num_layers"],
        "stages": stages,
        "stage_layers": looking["num_layers"],
        "heads": attention["num_heads"],
        "points": attention["n_points"],
        "dropout": attention["dropout"],
        "quantizer": gaussian_quantizer(kwargs["vq_cfg"]["codebook_size"], kwargs["z_channels"]),
    }
