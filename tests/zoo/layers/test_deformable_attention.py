"""Deformable attention reads a map where its queries point."""

import math

import pytest
import torch
from torch import Tensor, nn

from zoo.layers.deformable_attention import DeformableAttention


def bilinear(channel: Tensor, x: float, y: float) -> float:
    """Of a map (H, W) whose pixel (i, j) lies at (j + 0.5, i + 0.5); zero beyond it."""
    total = 0.0
    for i in (math.floor(y - 0.5), math.floor(y - 0.5) + 1):
        for j in (math.floor(x - 0.5), math.floor(x - 0.5) + 1):
            if 0 <= i < channel.shape[0] and 0 <= j < channel.shape[1]:
                total += float(channel[i, j]) * (1 - abs(x - 0.5 - j)) * (1 - abs(y - 0.5 - i))
    return total


def test_it_is_its_definition() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(width=4, heads=2, points=3)
    layer.constant_offset.copy_(torch.tensor([[0.7, -0.4]]))
    for part in (layer.offsets, layer.weights):
        nn.init.normal_(part.weight, std=0.5)
    query, places, features = torch.randn(2, 5, 4), torch.rand(2, 5, 2), torch.randn(2, 4, 3, 6)
    with torch.no_grad():
        values = layer.value(features.movedim(1, -1))  # (B, H, W, D)
        offsets = layer.offsets(query).view(2, 5, 2, 3, 2)
        offsets = torch.cat([layer.constant_offset.expand(2, 5, 2, 1, 2), offsets], dim=3)
        weights = layer.weights(query).view(2, 5, 2, 4).softmax(-1)
        read = torch.zeros(2, 5, 4)
        for b in range(2):
            for n in range(5):
                for d in range(4):
                    head = d // 2
                    for p in range(4):
                        dx, dy = offsets[b, n, head, p].tolist()
                        x, y = float(places[b, n, 0]) * 6 + dx, float(places[b, n, 1]) * 3 + dy
                        read[b, n, d] += weights[b, n, head, p] * bilinear(values[b, :, :, d], x, y)
        expected = layer.project(read)
        torch.testing.assert_close(layer(query, places, features), expected, rtol=1e-4, atol=1e-5)


def test_at_first_heads_look_into_directions_of_their_own_whatever_the_query() -> None:
    layer = DeformableAttention(width=8, heads=4, points=2)
    first, second = (layer.offsets(torch.randn(1, 8)).view(4, 2, 2) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first[:, 1], 2 * first[:, 0])
    assert len({tuple(direction.round(decimals=3).tolist()) for direction in first[:, 0]}) == 4


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a width that 3 heads divide, got 8"):
        DeformableAttention(8, 3, 1)
