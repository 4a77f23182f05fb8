"""Deformable attention: each query looks at a few places of a feature map that it chooses itself (arXiv 2010.04159)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Each of `heads` reads the map, bilinearly, at its query's place and at `points` places around it that the query
    chooses; zeros lie beyond the map.

    Queries (B, N, width), their places (B, N, 2) as x and y from 0 to 1 over the map, and the map (B, width, H, W)
    -> (B, N, width). Memory grows with N, not with N x H x W. The first point, which is GaussianToken's (arXiv
    2501.15619), lies `constant_offset` (1, 2) pixels from the query's place: none here, but not in published weights.
    """

    constant_offset: Tensor

    def __init__(self, width: int, heads: int, points: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"expected a width that {heads} heads divide, got {width}")
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.register_buffer("constant_offset", torch.zeros(1, 2))
        self.weights = nn.Linear(width, heads * (1 + points))
        self.value = nn.Linear(width, width)
        self.project = nn.Linear(width, width)
        for layer in (self.offsets, self.weights, self.value, self.project):
            nn.init.zeros_(layer.bias)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        for layer in (self.value, self.project):
            nn.init.xavier_uniform_(layer.weight)
        with torch.no_grad():  # each head at first looks into a direction of its own, its points ever farther
            angles = torch.arange(heads) * (2 * math.pi / heads)
            directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
            directions = directions / directions.abs().amax(-1, keepdim=True)
            self.offsets.bias.copy_((directions[:, None] * torch.arange(1, points + 1)[:, None]).flatten())

    def forward(self, query: Tensor, places: Tensor, features: Tensor) -> Tensor:
        batch, count, width = query.shape
        size = places.new_tensor(features.shape[:1:-1])  # W, H
        offsets = self.offsets(query).view(batch, count, self.heads, self.points, 2)
        constant = self.constant_offset.to(offsets.dtype).expand(batch, count, self.heads, 1, 2)
        weights = self.weights(query).view(batch, count, self.heads, 1 + self.points).softmax(-1)
        at = (places[:, :, None, None] + torch.cat([constant, offsets], dim=3) / size) * 2 - 1
        values = (
            self.value(features.movedim(1, -1)).movedim(-1, 1).reshape(-1, width // self.heads, *features.shape[2:])
        )
        read = F.grid_sample(values, at.transpose(1, 2).flatten(0, 1).to(values.dtype), align_corners=False)
        weighed = (read * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)  # (B * heads, D / heads, N)
        return self.project(weighed.view(batch, width, count).mT)
