"""Semantic distillation of a codec's codes towards the features of a teacher, a speech model or a language model.

SpeechTokenizer, arXiv 2308.16692 (along time, equation 3 with its sign corrected, and along features); DM-Codec, arXiv
2410.15017 (several teachers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticDistillation(nn.Module):
    """Codes (B, T, D) of one codebook level and the teacher's features (B, T', F) -> a scalar, float32.

    The codes are mapped to the teacher's width by `projection`, or as they are where the widths agree; both are cut to
    the shorter length.

    Args:
        dim: D.
        features: F.
    """

    def __init__(self, dim: int, features: int) -> None:
        super().__init__()
        self.projection = nn.Identity() if dim == features else nn.Linear(dim, features)

    def forward(self, codes: Tensor, teacher: Tensor) -> Tensor:
        return along_time(self.projection(codes), teacher)


def along_time(student: Tensor, teacher: Tensor) -> Tensor:
    """-log sigmoid of the cosine, along time, of each feature's two courses; mean over items and features.

    Args:
        student: (B, T, F).
        teacher: (B, T', F); both are cut to the shorter length.

    Raises:
        ValueError: shapes other than these, which broadcasting would hide.
    """
    student, teacher = _cut(student, teacher)
    return -F.logsigmoid(F.cosine_similarity(student, teacher, dim=1)).mean()


def along_features(student: Tensor, teacher: Tensor, similarity_weight: float = 1.0) -> Tensor:
    """Mean absolute difference plus `similarity_weight` times -log sigmoid of each frame's cosine; as `along_time`."""
    student, teacher = _cut(student, teacher)
    similarity = F.cosine_similarity(student, teacher, dim=2)
    return F.l1_loss(student, teacher) - similarity_weight * F.logsigmoid(similarity).mean()


def _cut(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[::2] != teacher.shape[::2]:
        raise ValueError(
            f"expected student and teacher (B, T, F) of the same B and F, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    length = min(student.shape[1], teacher.shape[1])
    return student[:, :length].float(), teacher[:, :length].float()


def combined(losses: list[Tensor], weights: list[float] | None = None) -> Tensor:
    """The distillation losses of several teachers: their mean, or their sum with weights.

    Raises:
        ValueError: a number of weights other than that of the losses.
    """
    if weights is not None and len(weights) != len(losses):
        raise ValueError(f"expected {len(losses)} weights, got {len(weights)}")
    stacked = torch.stack(losses)
    return stacked.mean() if weights is None else (stacked * stacked.new_tensor(weights)).sum()
