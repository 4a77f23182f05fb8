"""Residual quantizers of vector-quantize-pytorch, taken over by `from_vqp`: the same outputs, losses and gradients.

Theirs lets each level pass the decoder's gradient, so that the latent gets it as often as there are levels; and a
learnable codebook has one loss that pulls both sides.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vector_quantize_pytorch import (
    GroupedResidualFSQ,
    GroupedResidualLFQ,
    GroupedResidualVQ,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
)

from zoo.quantizers import Quantizer, from_vqp

few = settings(max_examples=12)
LEARNED = {"learnable_codebook": True, "ema_update": False, "rotation_trick": False}


def agree(theirs: nn.Module, z: Tensor, groups: int = 1) -> tuple[Quantizer, Tensor | None, Any]:
    """Compares codes, indices and the gradient of the codes; returns ours, their loss per level, and our output."""
    ours = from_vqp(theirs)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized = ours(x)
    codes, indices, *losses = theirs(y)
    stacked = torch.stack(quantized.levels, -1)
    expected = indices if groups == 1 else indices.movedim(0, -1).flatten(-2)  # (g, b, n, q) -> level by level
    assert torch.equal(stacked, expected.long())
    torch.testing.assert_close(quantized.codes, codes)
    if ours.training:
        upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(9))
        (quantized.codes * upstream).sum().backward(retain_graph=True)
        (codes * upstream).sum().backward(retain_graph=True)
        torch.testing.assert_close(x.grad, y.grad)
        x.grad = y.grad = None
    return ours, losses[0] if losses else None, (quantized, x, y)


def latents(dim: int, seed: int) -> Tensor:
    return torch.randn(2, 17, dim, generator=torch.Generator().manual_seed(seed))


@few
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    cosine=st.booleans(),
    sizes=st.booleans(),
    projected=st.booleans(),
    training=st.booleans(),
    fraction=st.sampled_from([0.0, 1.0]),
)
def test_residual_vectors_with_running_codebooks(
    seed: int, count: int, cosine: bool, sizes: bool, projected: bool, training: bool, fraction: float
) -> None:
    torch.manual_seed(seed)
    theirs = ResidualVQ(
        dim=6, num_quantizers=count, codebook_size=tuple(range(5, 5 + count)) if sizes else 7, decay=0.8,
        use_cosine_sim=cosine, rotation_trick=False, codebook_dim=4 if projected else None, quant_grad_frac=fraction,
    ).train(training)  # fmt: skip
    z = latents(6, seed)
    ours, losses, (quantized, x, y) = agree(theirs, z)
    if not training:
        return
    assert losses is not None
    torch.testing.assert_close(quantized.losses["commitment"], losses.mean())
    quantized.losses["commitment"].backward()
    losses.mean().backward()
    torch.testing.assert_close(x.grad, y.grad)
    levels = (ours.inner if projected else ours).levels  # type: ignore[union-attr]
    for own, layer in zip(levels, theirs.layers):  # type: ignore[arg-type]
        torch.testing.assert_close(own.codes(), layer._codebook.embed[0])
        torch.testing.assert_close(own.ema.count, layer._codebook.cluster_size[0])


@few
@given(seed=st.integers(0, 999), count=st.integers(1, 4), shared=st.booleans())
def test_residual_vectors_with_learned_codebooks(seed: int, count: int, shared: bool) -> None:
    torch.manual_seed(seed)
    theirs = ResidualVQ(dim=6, num_quantizers=count, codebook_size=7, shared_codebook=shared, **LEARNED).train()
    ours, losses, (quantized, x, y) = agree(theirs, latents(6, seed))
    assert losses is not None
    torch.testing.assert_close(quantized.losses["codebook"], losses.mean())
    (quantized.losses["commitment"] + quantized.losses["codebook"]).backward()
    losses.mean().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for own, layer in zip(ours.levels, theirs.layers):  # type: ignore[arg-type]
        torch.testing.assert_close(own.codebook.weight.grad, layer._codebook.embed.grad[0])


@few
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 3),
    groups=st.integers(1, 3),
    projected=st.booleans(),
    training=st.booleans(),
)
def test_groups_of_residual_vectors(seed: int, count: int, groups: int, projected: bool, training: bool) -> None:
    torch.manual_seed(seed)
    theirs = GroupedResidualVQ(
        dim=4 * groups, groups=groups, num_quantizers=count, codebook_size=7, codebook_dim=3 if projected else None,
        **LEARNED,
    ).train(training)  # fmt: skip
    ours = from_vqp(theirs)
    z = latents(4 * groups, seed)
    quantized, (codes, indices, losses) = ours(z), theirs(z)
    assert torch.equal(torch.stack(quantized.levels, -1), indices.movedim(0, -1).flatten(-2))
    torch.testing.assert_close(quantized.codes, codes)
    if training:
        torch.testing.assert_close(quantized.losses["codebook"], losses.mean())


@few
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    levels=st.lists(st.integers(2, 6), min_size=1, max_size=4),
    clamp=st.sampled_from([True, False, 1.5]),
    projected=st.booleans(),
    training=st.booleans(),
)
def test_residual_finite_scalars(
    seed: int, count: int, levels: list[int], clamp: Any, projected: bool, training: bool
) -> None:
    torch.manual_seed(seed)
    options = {} if clamp is True else {"bound_hard_clamp": False, "soft_clamp_input_value": clamp or None}
    dim = len(levels) + projected
    theirs = ResidualFSQ(dim=dim, levels=levels, num_quantizers=count, **options).train(training)
    agree(theirs, latents(dim, seed))


@few
@given(
    seed=st.integers(0, 999),
    count=st.integers(1, 4),
    bits=st.integers(1, 5),
    clamp=st.sampled_from([None, 1.5]),
    training=st.booleans(),
)
def test_residual_signs(seed: int, count: int, bits: int, clamp: float | None, training: bool) -> None:
    torch.manual_seed(seed)
    theirs = ResidualLFQ(
        dim=bits, num_quantizers=count, codebook_size=2**bits, soft_clamp_input_value=clamp, entropy_loss_weight=0.0,
        commitment_loss_weight=1.0,
    ).train(training)  # fmt: skip
    _, losses, (quantized, x, y) = agree(theirs, latents(bits, seed))
    if training:
        assert losses is not None
        torch.testing.assert_close(quantized.losses["commitment"], losses.mean())
        quantized.losses["commitment"].backward()
        losses.mean().backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_residual_signs_have_their_entropies() -> None:
    theirs = ResidualLFQ(dim=4, num_quantizers=3, codebook_size=16, entropy_loss_weight=1.0).train()
    _, losses, (quantized, _, _) = agree(theirs, latents(4, 0))
    torch.testing.assert_close(quantized.losses["entropy"], losses.mean())  # type: ignore[union-attr]


@pytest.mark.parametrize("training", [False, True])
def test_residual_sim_vq(training: bool) -> None:
    torch.manual_seed(0)
    theirs = ResidualSimVQ(dim=5, num_quantizers=3, codebook_size=9).train(training)
    _, losses, (quantized, _, _) = agree(theirs, latents(5, 0))
    # theirs adds a quarter of the commitment
    expected = quantized.losses["codebook"] + 0.25 * quantized.losses["commitment"]
    torch.testing.assert_close(expected, losses.mean())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("theirs", "width"),
    [
        (lambda: GroupedResidualFSQ(dim=6, groups=2, levels=[5, 4, 3], num_quantizers=3), 6),
        (lambda: GroupedResidualLFQ(dim=6, groups=2, codebook_size=8, num_quantizers=3), 6),
    ],
)
def test_groups_of_residual_scalars(theirs: Any, width: int) -> None:
    for training in (False, True):
        agree(theirs().train(training), latents(width, 1), groups=2)


def test_quantizer_dropout_is_taken_over() -> None:
    options = {"num_quantizers": 8, "codebook_size": 5, "quantize_dropout": True, "quantize_dropout_cutoff_index": 2}
    for theirs in (
        ResidualVQ(dim=4, quantize_dropout_multiple_of=4, **options),  # type: ignore[arg-type]
        GroupedResidualVQ(dim=4, groups=2, quantize_dropout_multiple_of=4, **options),
    ):
        config = from_vqp(theirs).config
        assert config.dropout.minimum == 3  # type: ignore[attr-defined]
        assert config.dropout.multiple_of == 4  # type: ignore[attr-defined]
        for _ in range(5):
            indices = theirs.train()(latents(4, 0))[1].flatten(0, -2)
            assert int((indices[0] >= 0).sum()) in (4, 8)
        ours = from_vqp(theirs)
        levels = len(ours(latents(4, 0)).levels)
        assert levels in ((4, 8) if isinstance(theirs, ResidualVQ) else (8, 16))


@pytest.mark.parametrize(
    "options", [{"beam_size": 2}, {"diveq": True}, {"quant_grad_frac": 0.5}, {"implicit_neural_codebook": True}]
)
def test_options_without_a_counterpart_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"cannot take over the option.* {next(iter(options))}"):
        from_vqp(ResidualVQ(dim=4, num_quantizers=2, codebook_size=5, **options))


def test_dropout_around_projections_of_each_group_is_refused() -> None:
    theirs = GroupedResidualVQ(
        dim=4, groups=2, codebook_dim=3, num_quantizers=2, codebook_size=5, quantize_dropout=True
    )
    with pytest.raises(ValueError, match=r"dropout"):
        from_vqp(theirs)
