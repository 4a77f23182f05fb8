"""Reconstruction losses: the mean distance of each signal of a batch to its target."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def l1(reconstructions: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error per item: (B, ...) and (B, ...) of one shape -> (B,) in float32."""
    return (reconstructions.float() - targets.float()).abs().flatten(1).mean(1)


def l2(reconstructions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error per item: (B, ...) and (B, ...) of one shape -> (B,) in float32."""
    return (reconstructions.float() - targets.float()).square().flatten(1).mean(1)


def smooth_l1(reconstructions: Tensor, targets: Tensor) -> Tensor:
    """Mean per item of half the square of errors below 1, and of the absolute error less 1/2 beyond (Huber)."""
    return F.smooth_l1_loss(reconstructions.float(), targets.float(), reduction="none").flatten(1).mean(1)


RECONSTRUCTION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1, "l2": l2, "smooth_l1": smooth_l1}
