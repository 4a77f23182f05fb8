"""Convolutions over the edges of a graph: GCN (arXiv 1609.02907) and GraphSAGE with mean aggregation (1706.02216)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mean_by_group(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """Means (count, D) of the rows of x (N, D) by their group (N,) in [0, count); zero of a group without rows."""
    sums = x.new_zeros(count, x.shape[1]).index_add(0, groups, x)
    return sums / sizes_of_groups(groups, count).to(x.dtype).clamp_min(1)[:, None]


def sizes_of_groups(groups: Tensor, count: int) -> Tensor:
    """(count,) int64: how many of the groups (N,) are 0, 1, ..."""
    return torch.bincount(groups, minlength=count)


class GraphConv(nn.Module):
    """GCN: a node takes the sum over its incoming edges of the source / sqrt(edges out of the source * edges into it).

    Nodes (N, in_channels) and edges (2, E), from the first row to the second -> (N, out_channels). A node sees itself
    only through an edge of its own; one without incoming edges becomes the bias.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        leaving, entering = (sizes_of_groups(ends, len(x)).clamp_min(1).rsqrt().to(x.dtype) for ends in edges)
        messages = x[source] * leaving[source, None]
        sums = torch.zeros_like(x).index_add(0, target, messages)
        return self.linear(sums * entering[:, None])


class SAGEConv(nn.Module):
    """GraphSAGE: the mean of the projected sources of a node's incoming edges, and the node itself; unit length.

    Nodes (N, in_channels) and edges (2, E), from the first row to the second -> (N, out_channels).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(in_channels, in_channels)
        self.from_neighbours = nn.Linear(in_channels, out_channels)
        self.from_self = nn.Linear(in_channels, out_channels, bias=False)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        means = mean_by_group(F.relu(self.project(x))[source], target, len(x))
        return F.normalize(self.from_neighbours(means) + self.from_self(x), dim=-1)
