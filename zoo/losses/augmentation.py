"""What a discriminator sees, changed at random in a way that gradients pass: DiffAugment, arXiv 2006.10738."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(images: Tensor, probability: float, cutout: float) -> Tensor:
    """Shifted colours, a move of up to an eighth, and a square cut out, each image with a probability; differentiable.

    Args:
        images: (B, C, H, W); brightness moves by up to a half.
        probability: of each image to be changed.
        cutout: side of the square as a share of the image's; 0 for none.

    Returns:
        (B, C, H, W).
    """
    batch, _, height, width = images.shape

    def draw() -> Tensor:
        return torch.rand(batch, 1, 1, 1, device=images.device, dtype=images.dtype)

    changed = images + draw() - 0.5  # brightness
    mean = changed.mean(1, keepdim=True)
    changed = (changed - mean) * (2 * draw()) + mean  # saturation
    mean = changed.mean((1, 2, 3), keepdim=True)
    changed = _move((changed - mean) * (draw() + 0.5) + mean)  # contrast, then place
    rows = torch.arange(height, device=images.device)[:, None] / height
    columns = torch.arange(width, device=images.device)[None] / width
    inside = ((rows - draw()).abs() < cutout / 2) & ((columns - draw()).abs() < cutout / 2)
    changed = changed.masked_fill(inside, 0)
    return torch.where(draw() < probability, changed, images)


def _move(images: Tensor) -> Tensor:
    """Each image by whole pixels, up to an eighth of a side; zeros come in."""
    batch, _, height, width = images.shape
    items = torch.arange(batch, device=images.device)[:, None, None]

    def places(length: int) -> Tensor:
        limit = round(length / 8)
        moves = torch.randint(-limit, limit + 1, (batch, 1), device=images.device)
        return torch.arange(length, device=images.device) + moves

    rows, columns = places(height)[:, :, None], places(width)[:, None, :]
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    moved = images.movedim(1, -1)[items, rows.clamp(0, height - 1), columns.clamp(0, width - 1)]
    return moved.movedim(-1, 1).masked_fill(outside[:, None], 0)
