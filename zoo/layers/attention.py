"""Self-attention over the positions of a feature map, as convolutional autoencoders have it at their coarsest level."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """One head over all H x W positions, queries, keys, values and output by 1x1 convolutions; residual.

    (B, C, H, W) -> the same. Its cost grows with the square of H x W.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, 1, H * W, C)
        return x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(x.shape))
