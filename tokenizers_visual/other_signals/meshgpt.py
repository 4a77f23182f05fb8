"""MeshGPT's autoencoder: a triangle mesh to two tokens for each corner of each face, equal where faces share a vertex.

Paper: arXiv 2311.15475. Original: lucidrains/meshgpt-pytorch (MIT), checked by tests/parity/meshgpt. Its default, which
is also this file's, quantises by signs in two levels instead of the paper's residual codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.graph_conv import SAGEConv, mean_by_group
from zoo.quantizers import (
    BinaryConfig,
    EmaCodebookConfig,
    ProjectedConfig,
    Quantized,
    QuantizerConfig,
    ResidualConfig,
    RotationConfig,
    SamplingConfig,
    VectorConfig,
)
from zoo.registry import register
from zoo.structured import StructuredOutput, StructuredTokenizer

_COSINE_MARGIN = 1e-5  # from 1 and -1, where the slope of the angle is infinite


@dataclass(frozen=True)
class Mesh:
    """Vertices and the faces that they span. MeshGPT's faces are sorted, by lowest vertex in the order z, y, x.

    Attributes:
        vertices: (V, 3) floating point, in [-1, 1] for the tokenizer.
        faces: (F, 3) int64 indices of vertices, or (F, 4) of quadrangles; F >= 1.

    Raises:
        ValueError: another shape or type, or a face of a vertex that does not exist.
    """

    vertices: Tensor
    faces: Tensor

    def __post_init__(self) -> None:
        vertices, faces = self.vertices, self.faces
        if vertices.ndim != 2 or vertices.shape[1] != 3 or not vertices.is_floating_point():
            raise ValueError(f"vertices: expected floating point (V, 3), got {vertices.dtype} {tuple(vertices.shape)}")
        if faces.ndim != 2 or faces.shape[1] not in (3, 4) or len(faces) == 0 or faces.dtype != torch.int64:
            raise ValueError(f"faces: expected int64 (F, 3) or (F, 4), got {faces.dtype} {tuple(faces.shape)}")
        if not 0 <= int(faces.min()) <= int(faces.max()) < len(vertices):
            raise ValueError(
                f"faces: expected vertices in [0, {len(vertices)}), got {int(faces.min())} to {int(faces.max())}"
            )

    def face_edges(self) -> Tensor:
        """(2, E) int64 pairs of faces that share two vertices or more, each in both orders and each with itself."""
        count, vertices = len(self.faces), self.faces.flatten()
        faces = torch.arange(count, device=vertices.device).repeat_interleave(self.faces.shape[1])
        by_vertex = (vertices * count + faces).unique()  # a face counts once at each of its vertices
        around = torch.bincount(by_vertex // count, minlength=len(self.vertices))  # faces at a vertex
        first = around.cumsum(0) - around
        repeats = around[vertices]
        steps = torch.arange(int(repeats.sum()), device=vertices.device)
        steps = steps - (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
        other = by_vertex[first[vertices].repeat_interleave(repeats) + steps] % count
        pairs, shared = (faces.repeat_interleave(repeats) * count + other).unique(return_counts=True)
        pairs = pairs[shared >= 2]
        return torch.stack([pairs // count, pairs % count])


@dataclass(frozen=True)
class FaceReconstruction:
    """What tokens tell of a mesh.

    Attributes:
        logits: (F, corners * 3, bins) of the coordinates.
        value_range: of the coordinates.
    """

    logits: Tensor
    value_range: tuple[float, float]

    @property
    def bins(self) -> Tensor:
        """(F, corners, 3) int64: the likeliest bin of each coordinate."""
        return self.logits.argmax(-1).unflatten(1, (-1, 3))

    @property
    def corners(self) -> Tensor:
        """(F, corners, 3): the centres of the bins."""
        return from_bins(self.bins, self.logits.shape[-1], self.value_range)

    def mesh(self) -> Mesh:
        """The mesh whose vertices are the corners that differ."""
        bins = self.bins
        vertices, faces = bins.flatten(0, 1).unique(dim=0, return_inverse=True)
        return Mesh(from_bins(vertices, self.logits.shape[-1], self.value_range), faces.view(bins.shape[:2]))


def to_bins(x: Tensor, count: int, value_range: tuple[float, float]) -> Tensor:
    """int64 in [0, count): the bin of each value, those beyond the range in the outer ones."""
    low, high = value_range
    return ((x - low) / (high - low) * count - 0.5).round().long().clamp(0, count - 1)


def from_bins(bins: Tensor, count: int, value_range: tuple[float, float]) -> Tensor:
    """The centres of bins."""
    low, high = value_range
    return (bins + 0.5) / count * (high - low) + low


def binary_levels(bits: int, num_levels: int, dim: int) -> QuantizerConfig:
    """Signs of `bits` dimensions, projected if there are more; each level has half the scale of the one before."""
    levels = tuple(
        BinaryConfig(bits=bits, scale=2.0**-level, soft_clamp=10 * 2.0**-level, most_significant_first=True)
        for level in range(num_levels)
    )
    inner = ResidualConfig(level=levels, num_levels=num_levels, gradient="per_level")
    return inner if bits == dim else ProjectedConfig(dim=dim, inner=inner)


def shared_codebook(size: int, num_levels: int, dim: int) -> ResidualConfig:
    """The paper's quantizer: one codebook for all levels, from k-means, whose codes are drawn in training."""
    level = VectorConfig(
        codebook_size=size,
        dim=dim,
        codebook=EmaCodebookConfig(decay=0.8, start="kmeans", revive_below=2),
        gradient=RotationConfig(),
        sampling=SamplingConfig(temperature=0.1, squared=False),
    )
    return ResidualConfig(level=level, num_levels=num_levels, shared=True, gradient="per_level")


@dataclass(frozen=True)
class MeshGPTConfig(Config):
    """Sizes of the network; the defaults are the original's."""

    corners: int = 3  # of a face
    coordinate_bins: int = 128
    coordinate_channels: int = 64
    angle_bins: int = 128
    angle_channels: int = 16
    area_bins: int = 128
    area_channels: int = 16
    normal_bins: int = 128
    normal_channels: int = 64
    encoder_widths: tuple[int, ...] = (64, 128, 256, 256, 576)
    decoder_kernel: int = 7
    decoder_widths: tuple[int, ...] = (128,) * 4 + (192,) * 4 + (256,) * 6 + (384,) * 3
    value_range: tuple[float, float] = (-1.0, 1.0)
    quantizer: QuantizerConfig = binary_levels(bits=14, num_levels=2, dim=192)

    def __post_init__(self) -> None:
        self.require(self.corners in (3, 4), "3 or 4 corners", self.corners)
        sizes = (self.coordinate_bins, self.angle_bins, self.area_bins, self.normal_bins)
        self.require(min(sizes) >= 2, "at least 2 bins", sizes)
        widths = (*self.encoder_widths, *self.decoder_widths)
        self.require(bool(self.encoder_widths) and bool(self.decoder_widths) and min(widths) > 0, "widths > 0", widths)
        self.require(self.decoder_kernel % 2 == 1, "an odd decoder_kernel", self.decoder_kernel)
        self.require(self.value_range[0] < self.value_range[1], "a range from low to high", self.value_range)


@register("meshgpt")
class MeshGPT(StructuredTokenizer):
    """Meshes of F faces to tokens (F * corners), the corners of a face one after the other.

    A latent is of a vertex, the mean of what its faces say of it, and quantised once; its tokens then stand in each of
    its faces. `latent` and the quantizer's losses are of the vertices that faces use, in ascending order.
    """

    modality = "mesh"
    config: MeshGPTConfig  # type: ignore[assignment]

    def __init__(self, config: MeshGPTConfig) -> None:
        super().__init__(config, config.quantizer)
        dim, corners = config.quantizer.dim, config.corners
        self.coordinate_embedding = nn.Embedding(config.coordinate_bins, config.coordinate_channels)
        self.angle_embedding = nn.Embedding(config.angle_bins, config.angle_channels)
        self.area_embedding = nn.Embedding(config.area_bins, config.area_channels)
        self.normal_embedding = nn.Embedding(config.normal_bins, config.normal_channels)
        described = 3 * corners * config.coordinate_channels + corners * config.angle_channels
        self.project_in = nn.Linear(described + config.area_channels + 3 * config.normal_channels, dim)
        widths = config.encoder_widths
        self.first_conv = SAGEConv(dim, widths[0])
        self.first_norm = nn.LayerNorm(widths[0])
        self.convs = nn.ModuleList(SAGEConv(*pair) for pair in pairwise(widths))
        self.to_corners = nn.Linear(widths[-1], corners * dim)
        self.decoder = Decoder(corners * dim, config.decoder_widths, config.decoder_kernel)
        self.to_logits = nn.Linear(config.decoder_widths[-1], corners * 3 * config.coordinate_bins)

    def check(self, signal: Any) -> None:
        if not isinstance(signal, Mesh):
            raise ValueError(f"expected a Mesh, got {type(signal).__name__}")
        if signal.faces.shape[1] != self.config.corners:
            raise ValueError(f"expected faces of {self.config.corners} vertices, got {signal.faces.shape[1]}")
        low, high = self.config.value_range
        least, largest = (bound.item() for bound in signal.vertices.aminmax())
        if not low <= least <= largest <= high:
            raise ValueError(f"expected coordinates in [{low}, {high}], got {least:.4g} to {largest:.4g}")

    def face_features(self, mesh: Mesh) -> Tensor:
        """Faces as the encoder sees them (F, encoder_widths[-1])."""
        x, edges = self.project_in(self._embedded(mesh)), mesh.face_edges()
        x = self.first_norm(F.silu(self.first_conv(x, edges)))
        for conv in self.convs:
            x = conv(x, edges)
        return x

    def latent(self, signal: Mesh) -> Tensor:
        per_corner = self.to_corners(self.face_features(signal)).view(-1, self.quantizer.config.dim)
        vertices, corners = _used(signal)
        return mean_by_group(per_corner, corners, len(vertices))

    def encode_levels(self, signal: Mesh) -> tuple[Tensor, ...]:
        corners = _used(signal)[1]
        return tuple(level[corners] for level in super().encode_levels(signal))

    def reconstruct(self, codes: Tensor) -> FaceReconstruction:
        per_face = codes.reshape(-1, self.config.corners * codes.shape[-1])
        logits = self.to_logits(self.decoder(per_face.T[None])[0].T)
        return FaceReconstruction(logits.unflatten(-1, (-1, self.config.coordinate_bins)), self.config.value_range)

    def forward(self, signal: Mesh) -> StructuredOutput:
        latent = self.latent(signal)
        quantized = self.quantizer(latent)
        codes = quantized.codes.to(latent.dtype)[_used(signal)[1]]
        return StructuredOutput(self.reconstruct(codes), latent, quantized)

    def _embedded(self, mesh: Mesh) -> Tensor:
        """(F, channels): coordinates, angles, area and normal of each face, each by the embedding of its bin."""
        config, corners = self.config, mesh.vertices[mesh.faces]
        low, high = config.value_range
        before = corners.roll(1, dims=1)
        cosines = (F.normalize(corners, dim=-1) * F.normalize(before, dim=-1)).sum(-1)
        angles = cosines.clamp(_COSINE_MARGIN - 1, 1 - _COSINE_MARGIN).acos()  # between positions, not sides
        sides = corners - before
        cross = torch.linalg.cross(sides[:, 0], sides[:, 1])
        area = 0.5 * cross.norm(dim=-1, keepdim=True)
        binned = (
            (self.coordinate_embedding, corners.flatten(1), config.coordinate_bins, config.value_range),
            (self.angle_embedding, angles, config.angle_bins, (0.0, math.pi)),
            (self.area_embedding, area, config.area_bins, (0.0, (high - low) ** 2)),
            (self.normal_embedding, F.normalize(cross, dim=-1), config.normal_bins, config.value_range),
        )
        return torch.cat([embed(to_bins(x, count, bounds)).flatten(1) for embed, x, count, bounds in binned], dim=-1)


def _used(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """The vertices of the faces, ascending, and of each corner (F * corners,) the place among them."""
    return mesh.faces.flatten().unique(return_inverse=True)


class PixelNorm(nn.Module):
    """Channels (B, C, N) to the length sqrt(C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1, eps=1e-4) * x.shape[1] ** 0.5


class Block(nn.Module):
    """Twice convolution, PixelNorm, SiLU; then channels are weighed by their mean over faces; plus the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv1d(out_channels, out_channels, 3, padding=1)
        self.norm = PixelNorm()
        squeezed = max(out_channels // 4, 16)
        self.excite = nn.Sequential(
            nn.Linear(out_channels, squeezed), nn.SiLU(), nn.Linear(squeezed, out_channels), nn.Sigmoid()
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.conv1(x)))
        h = F.silu(self.norm(self.conv2(h)))
        return self.shortcut(x) + h * self.excite(h.mean(dim=-1))[..., None]


class Decoder(nn.Module):
    """Convolutions along the sequence of faces: (B, in_channels, F) -> (B, widths[-1], F)."""

    def __init__(self, in_channels: int, widths: Sequence[int], kernel: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv1d(in_channels, widths[0], kernel, padding=kernel // 2)
        self.norm_in = nn.LayerNorm(widths[0])
        self.blocks = nn.Sequential(*(Block(*pair) for pair in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_in(F.silu(self.conv_in(x)).mT).mT
        return self.blocks(x)


def coordinate_loss(logits: Tensor, mesh: Mesh, config: MeshGPTConfig, blur: float = 0.4) -> Tensor:
    """Cross entropy of a mesh's coordinates, whose bins are blurred by a Gaussian; mean over coordinates.

    The original trains with it, 0.1 times the losses of every level of the quantizer added.

    Args:
        logits: (F, corners * 3, bins) of the reconstruction.
        mesh: the mesh that was encoded.
        config: of the model.
        blur: standard deviation in bins.
    """
    wanted = to_bins(mesh.vertices[mesh.faces].flatten(1), config.coordinate_bins, config.value_range)
    reach = math.ceil(blur * 5) // 2
    places = torch.arange(-reach, reach + 1, device=logits.device, dtype=logits.dtype)
    kernel = (-places.square() / (2 * blur**2)).exp()
    target = F.one_hot(wanted, config.coordinate_bins).to(logits.dtype).flatten(0, 1)[:, None]
    target = F.conv1d(target, (kernel / kernel.sum())[None, None], padding=reach).view_as(logits)
    return -(target * logits.log_softmax(-1)).sum(-1).mean()


# -- the original --------------------------------------------------------------------------------------------------


def config_from_original(meta: dict[str, Any]) -> MeshGPTConfig:
    """The config of the original's constructor arguments; those that are left out have the original's defaults.

    Raises:
        ValueError: attention in the encoder or decoder, which is not there by default.
    """
    kwargs = meta["original"]["kwargs"]
    attention = [kwargs.get(name, 0) for name in ("attn_encoder_depth", "attn_decoder_depth")]
    if any(attention):
        raise ValueError(f"expected attention depths of 0, got {attention}")
    dim, levels = kwargs.get("dim_codebook", 192), kwargs.get("num_quantizers", 2)
    size, signs = kwargs.get("codebook_size", 16384), kwargs.get("use_residual_lfq", True)
    quantizer = binary_levels(size.bit_length() - 1, levels, dim) if signs else shared_codebook(size, levels, dim)
    names = {
        "num_discrete_coors": "coordinate_bins",
        "dim_coor_embed": "coordinate_channels",
        "num_discrete_angle": "angle_bins",
        "dim_angle_embed": "angle_channels",
        "num_discrete_area": "area_bins",
        "dim_area_embed": "area_channels",
        "num_discrete_normals": "normal_bins",
        "dim_normal_embed": "normal_channels",
        "encoder_dims_through_depth": "encoder_widths",
        "init_decoder_conv_kernel": "decoder_kernel",
        "decoder_dims_through_depth": "decoder_widths",
        "coor_continuous_range": "value_range",
    }
    stated = {own: kwargs[name] for name, own in names.items() if name in kwargs}
    return MeshGPTConfig(corners=4 if kwargs.get("quads") else 3, quantizer=quantizer).replace(**stated)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original weighs the sum over levels, of which ours are the mean."""
    kwargs = meta["original"]["kwargs"]
    scale = kwargs.get("commit_loss_weight", 0.1) * kwargs.get("num_quantizers", 2)
    return {"loss.commit": scale * quantized.losses["commitment"]}


KEY_MAP = KeyMap(
    {
        "coor_embed.weight": "coordinate_embedding.weight",
        "angle_embed.weight": "angle_embedding.weight",
        "area_embed.weight": "area_embedding.weight",
        "normal_embed.weight": "normal_embedding.weight",
        "project_in.*": "project_in.*",
        "init_sage_conv.lin.*": "first_conv.project.*",
        "init_sage_conv.lin_l.*": "first_conv.from_neighbours.*",
        "init_sage_conv.lin_r.*": "first_conv.from_self.*",
        "init_encoder_act_and_norm.1.*": "first_norm.*",
        "encoders.{}.lin.*": "convs.{}.project.*",
        "encoders.{}.lin_l.*": "convs.{}.from_neighbours.*",
        "encoders.{}.lin_r.*": "convs.{}.from_self.*",
        "project_dim_codebook.*": "to_corners.*",
        "quantizer.project_in.*": "quantizer.project_in.*",
        "quantizer.project_out.*": "quantizer.project_out.*",
        "quantizer.layers.{}.mask": None,  # the values of the bits
        "quantizer.layers.0._codebook.embed": "quantizer.levels.0.codebook.weight",
        "quantizer.layers.0._codebook.embed_avg": "quantizer.levels.0.ema.total",
        "quantizer.layers.0._codebook.cluster_size": "quantizer.levels.0.ema.count",
        "quantizer.layers.0._codebook.initted": "quantizer.levels.0.codebook.started",
        "quantizer.layers.{}._codebook.*": None,  # the same codebook again
        "init_decoder_conv.0.*": "decoder.conv_in.*",
        "init_decoder_conv.3.*": "decoder.norm_in.*",
        "decoders.{}.block{j}.proj.*": "decoder.blocks.{}.conv{j}.*",
        "decoders.{}.excite.net.*": "decoder.blocks.{}.excite.*",
        "decoders.{}.residual_conv.*": "decoder.blocks.{}.shortcut.*",
        "to_coor_logits.0.*": "to_logits.*",
    },
    transforms={
        "quantizer.levels.0.codebook.started": lambda started: started.reshape(()).bool(),
        "quantizer.levels.0.*": lambda tensor: tensor[0],  # of one head
    },
)
