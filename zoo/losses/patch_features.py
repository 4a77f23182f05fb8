"""Features of the patches of images by a frozen DINOv2, which other networks' features learn to follow.

DINOv2, arXiv 2304.07193; following it: REPA, arXiv 2410.06940.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from zoo import checkpoint, hub
from zoo.layers.constants import HasConstants, per_channel
from zoo.layers.query_transformer import TransformerSizes
from zoo.ops.precision import full_precision

PATCH = 14  # pixels


class PatchFeatures(HasConstants):
    """Images (B, 3, S, S) of a range -> features (B, g, g, width) of their patches, which are `grid` = g a side.

    Args:
        sizes: of the network.
        grid: patches a side; the network sees images of 14 g px.
        value_range: of the images.
        antialias: resize them so.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, sizes: TransformerSizes, grid: int, value_range: tuple[float, float], *, antialias: bool = True
    ) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        self.grid, self.value_range, self.antialias = grid, value_range, antialias
        self.network = VisionTransformer(
            PATCH * grid, PATCH, num_classes=0, embed_dim=sizes.width, depth=sizes.layers, num_heads=sizes.heads,
            init_values=1.0,
        )  # fmt: skip
        self.register_constant("mean", per_channel, (0.485, 0.456, 0.406))
        self.register_constant("deviation", per_channel, (0.229, 0.224, 0.225))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.value_range
        side = (PATCH * self.grid,) * 2
        with full_precision(x):
            small = F.interpolate(x.float(), side, mode="bicubic", antialias=self.antialias)
        features = self.network.forward_features(((small - low) / (high - low) - self.mean) / self.deviation)
        return features[:, 1:].unflatten(1, (self.grid, self.grid))


def dinov2_patches(
    name: str,
    sizes: TransformerSizes,
    grid: int,
    value_range: tuple[float, float],
    weights: Path | None = None,
    *,
    antialias: bool = True,
) -> PatchFeatures:
    """A DINOv2 as it was published, its positions resampled to the grid, frozen.

    Args:
        name: of timm.
        sizes, grid, value_range, antialias: as those of `PatchFeatures`.
        weights: a file in timm's layout; None resolves the published one of that name.

    Raises:
        CheckpointError: weights of other sizes.
        zoo.hub.HubError: weights that cannot be had.
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    source = hub.WeightSource(repo=f"timm/{name}", file="model.safetensors")
    state = checkpoint.read(weights or hub.resolve(source, name=name))
    teacher = PatchFeatures(sizes, grid, value_range, antialias=antialias)
    checkpoint.load_into(teacher.network, checkpoint_filter_fn(state, teacher.network, antialias=True))
    return teacher.requires_grad_(False).eval()
