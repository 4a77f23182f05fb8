"""Semantic distillation: its formulas, and the shapes that broadcasting would hide."""

import math

import pytest
import torch
from torch.nn import functional as F

from zoo.losses.distillation import SemanticDistillation, along_features, along_time, combined
from zoo.quantizers import EmaCodebookConfig, ResidualConfig, VectorConfig
from zoo.quantizers.composite import prefix_codes


def test_along_time_compares_the_course_of_each_feature() -> None:
    student, teacher = torch.randn(2, 2, 7, 3, generator=torch.Generator().manual_seed(0))
    terms = [
        -math.log(1 / (1 + math.exp(-float(F.cosine_similarity(student[b, :5, f], teacher[b, :5, f], dim=0)))))
        for b in range(2)
        for f in range(3)
    ]
    assert float(along_time(student[:, :5], teacher)) == pytest.approx(sum(terms) / 6, rel=1e-5)
    assert float(along_time(student, student * 3)) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-5)
    assert float(along_time(student, -student)) == pytest.approx(math.log(1 + math.e), rel=1e-5)


def test_along_features_compares_frames() -> None:
    student, teacher = torch.randn(2, 2, 4, 3, generator=torch.Generator().manual_seed(1))
    cosine = F.cosine_similarity(student, teacher, dim=-1)
    expected = (student - teacher).abs().mean() + 0.5 * F.softplus(-cosine).mean()
    torch.testing.assert_close(along_features(student, teacher, 0.5), expected)


def test_an_axis_too_many_is_refused() -> None:
    student = torch.randn(2, 7, 3)
    for teacher in (torch.randn(2, 1, 7, 3), torch.randn(1, 7, 3), torch.randn(2, 7, 4)):
        with pytest.raises(ValueError, match="expected student and teacher"):
            along_time(student, teacher)


def test_several_teachers() -> None:
    losses = [torch.tensor(1.0), torch.tensor(3.0)]
    assert float(combined(losses)) == 2.0
    assert float(combined(losses, [0.5, 2.0])) == 6.5
    with pytest.raises(ValueError, match="expected 2 weights, got 1"):
        combined(losses, [1.0])


def test_the_first_codebook_learns_from_the_teacher_through_the_latent() -> None:
    torch.manual_seed(0)
    level = VectorConfig(16, 4, codebook=EmaCodebookConfig())
    quantizer = ResidualConfig(level, num_levels=3, gradient="through").build().train()
    with torch.no_grad():
        for q in range(3):
            quantizer.level(q).codebook.weight.normal_()
    latent = torch.randn(2, 6, 4, requires_grad=True)
    codes = prefix_codes(quantizer, latent, 1)
    assert all(module.training for module in quantizer.modules())
    quantized = quantizer.eval()(latent)
    torch.testing.assert_close(codes, quantizer.level(0).indices_to_codes(quantized.levels[0]))
    distillation = SemanticDistillation(4, 5)
    distillation(codes, torch.randn(2, 6, 5)).backward()
    assert latent.grad is not None
    assert bool(latent.grad.any())
    assert isinstance(SemanticDistillation(4, 4).projection, torch.nn.Identity)
