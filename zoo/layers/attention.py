"""Self-attention over the positions of a feature map, as convolutional autoencoders have it at their coarsest level."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.resnet import CONVOLUTIONS


class SpatialAttention(nn.Module):
    """One head over all H x W positions, queries, keys, values and output by 1x1 convolutions; residual.

    (B, C, H, W), or (B, C, T) with `dims=1`, -> the same. Its cost grows with the square of the number of positions.
    `fused`: queries, keys and values come from one convolution `qkv`, as some published weights have it, instead of
    `q`, `k` and `v`. `groups` and `eps` are the group norm's.
    """

    sees_every_position: ClassVar[bool] = True  # `zoo.tiling` runs it on whole maps

    def __init__(
        self, channels: int, groups: int = 32, *, fused: bool = False, eps: float = 1e-6, dims: Literal[1, 2] = 2
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[dims]
        self.norm = nn.GroupNorm(groups, channels, eps=eps)
        self.fused = fused
        if fused:
            self.qkv = conv(channels, 3 * channels, 1)
        else:
            self.q = conv(channels, channels, 1)
            self.k = conv(channels, channels, 1)
            self.v = conv(channels, channels, 1)
        self.proj_out = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        parts = self.qkv(h).chunk(3, dim=1) if self.fused else (self.q(h), self.k(h), self.v(h))
        return x + self.proj_out(attended(*parts))


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values (B, C, ...) that each position takes from all, by one head; queries, keys and values of the same shape."""
    # rows of channels, without which PyTorch would hold the weights of all pairs of positions at once
    rows = (part.flatten(2).transpose(1, 2).contiguous()[:, None] for part in (q, k, v))
    mixed = F.scaled_dot_product_attention(*rows)  # (B, 1, H * W, C)
    return mixed[:, 0].transpose(1, 2).reshape(v.shape)
