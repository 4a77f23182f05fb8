"""vector-quantize-pytorch as an oracle: a module of theirs, taken over, gives and learns the same.

What theirs has otherwise, and how these tests meet it: it weighs and sums its losses (its breakdown is compared); with
a learnable codebook one loss pulls both sides (our two are added); it draws revived codes and k-means starts by its own
random numbers (compared by what must hold, not by value); the diversity of codes is the mean over positions of that
over items (compared on one position); its affine statistics move in evaluation too (compared in training); and it takes
gradients of distances with the codebook as its running update leaves it (compared where the codebook stays).
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from vector_quantize_pytorch import SimVQ, VectorQuantize

from zoo.quantizers import Grouped, Projected, Quantizer, Vector, from_vqp

# -- VectorQuantize ----------------------------------------------------------------------------------------------------


def vectors(quantizer: Quantizer) -> list[Vector]:
    """The codebooks of a quantizer that was taken over, in the order of heads."""
    if isinstance(quantizer, Projected):
        return vectors(quantizer.inner)
    return [*quantizer.groups] if isinstance(quantizer, Grouped) else [quantizer]  # type: ignore[list-item]


def spread(module: VectorQuantize, scale: float = 1.0) -> VectorQuantize:
    """The module with a codebook spread as normal latents are, so that many codes are used."""
    codebook = module._codebook
    with torch.no_grad():
        weight = torch.randn_like(codebook.embed) * scale
        codebook.embed.copy_(F.normalize(weight, dim=-1) if codebook.use_cosine_sim else weight)
        codebook.embed_avg.copy_(codebook.embed)
    return module


def assert_same_state(quantizer: Quantizer, module: VectorQuantize) -> None:
    theirs = module._codebook
    for head, vector in enumerate(vectors(quantizer)):
        ours = F.normalize(vector.codebook.weight, dim=-1) if theirs.use_cosine_sim else vector.codebook.weight
        torch.testing.assert_close(ours, theirs.embed[head], rtol=1e-4, atol=1e-5)
        if vector.ema is not None:
            torch.testing.assert_close(vector.ema.count, theirs.cluster_size[head])
            if theirs.ema_update:
                torch.testing.assert_close(vector.ema.total, theirs.embed_avg[head], rtol=1e-4, atol=1e-5)


@st.composite
def options(draw: st.DrawFn) -> dict:
    """Settings that go together."""
    cosine = draw(st.booleans())
    learned = not cosine and draw(st.booleans())
    codebook = {"learnable_codebook": True, "ema_update": False} if learned else {"ema_update": draw(st.booleans())}
    heads = draw(st.sampled_from([1, 1, 2, 4]))
    frozen = draw(st.sampled_from([False, False, True]))
    moves = codebook["ema_update"] and not frozen
    chosen = {
        "dim": draw(st.sampled_from([4, 8])),
        "codebook_size": draw(st.sampled_from([1, 7, 40])),
        "codebook_dim": draw(st.sampled_from([None, 3, 5])),
        "heads": heads,
        "separate_codebook_per_head": heads > 1 and draw(st.booleans()),
        "decay": draw(st.sampled_from([0.5, 0.8, 0.99])),
        "eps": draw(st.sampled_from([1e-5, 1e-2])),
        "use_cosine_sim": cosine,
        "rotation_trick": draw(st.booleans()),
        "commitment_use_cross_entropy_loss": heads == 1 and not moves and draw(st.booleans()),
        "layernorm_after_project_in": draw(st.booleans()),
        "freeze_codebook": frozen,
        **codebook,
    }
    if learned and not chosen["separate_codebook_per_head"] and draw(st.booleans()):
        chosen["orthogonal_reg_weight"] = 1.0
        chosen["orthogonal_reg_active_codes_only"] = draw(st.booleans())
    return chosen


@settings(max_examples=40)
@given(options(), st.integers(0, 1000))
def test_steps_of_training_agree(chosen: dict, seed: int) -> None:
    torch.manual_seed(seed)
    theirs = spread(VectorQuantize(**chosen))
    ours = from_vqp(theirs)
    learned, frozen = theirs.learnable_codebook, chosen["freeze_codebook"]
    assert_same_state(ours, theirs)
    z = torch.randn(3, 20, chosen["dim"])
    for training in (True, True, False):
        ours.train(training), theirs.train(training)
        x, y, upstream = z.clone().requires_grad_(), z.clone().requires_grad_(), torch.randn_like(z)
        quantized = ours(x)
        codes, indices, _, losses = theirs(y, return_loss_breakdown=True)
        assert torch.equal(quantized.indices, indices)
        torch.testing.assert_close(quantized.codes, codes, rtol=1e-4, atol=1e-5)
        if training:
            name = "cross_entropy" if chosen["commitment_use_cross_entropy_loss"] else "commitment"
            torch.testing.assert_close(quantized.losses[name], losses.commitment, rtol=1e-4, atol=1e-5)
            own, other = quantized.losses[name], losses.commitment
            if learned and not frozen and name == "commitment":
                own = own + quantized.losses["codebook"]
            if "orthogonal_reg_weight" in chosen and not frozen:
                orthogonality = quantized.losses["orthogonality"]
                torch.testing.assert_close(orthogonality, losses.orthogonal_reg, rtol=1e-4, atol=1e-5)
                own, other = own + orthogonality, other + losses.orthogonal_reg
            ours.zero_grad(), theirs.zero_grad()
            ((quantized.codes * upstream).sum() + own).backward()
            ((codes * upstream).sum() + other).backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
            if learned and not frozen:
                for head, vector in enumerate(vectors(ours)):
                    of_theirs = theirs._codebook.embed.grad[head]
                    torch.testing.assert_close(vector.codebook.weight.grad, of_theirs, rtol=1e-3, atol=1e-4)
            if isinstance(ours, Projected):
                for a, b in ((ours.project_in, theirs.project_in), (ours.project_out, theirs.project_out)):
                    other_linear = b[0] if isinstance(b, nn.Sequential) else b
                    torch.testing.assert_close(a.weight.grad, other_linear.weight.grad, rtol=1e-3, atol=1e-4)
        assert_same_state(ours, theirs)
        z = z + 0.3


@pytest.mark.parametrize("cosine", [False, True])
def test_diversity_agrees_on_one_position(cosine: bool) -> None:
    diversity = {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 5.0}
    theirs = spread(VectorQuantize(4, 12, use_cosine_sim=cosine, freeze_codebook=True, **diversity))
    ours, z = from_vqp(theirs), torch.randn(40, 1, 4)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized, (*_, losses) = ours(x), theirs(y, return_loss_breakdown=True)
    torch.testing.assert_close(quantized.losses["entropy"], losses.codebook_diversity, rtol=1e-4, atol=1e-5)
    slope, wanted = (
        torch.autograd.grad(loss, of)[0]
        for loss, of in ((quantized.losses["entropy"], x), (losses.codebook_diversity, y))
    )
    torch.testing.assert_close(slope, wanted, rtol=1e-3, atol=1e-5)


def test_directional_reparametrisation_agrees_without_noise() -> None:
    theirs = VectorQuantize(
        5, 12, directional_reparam=True, directional_reparam_variance=0.0, threshold_ema_dead_code=1e-9
    )
    spread(theirs)
    ours, z, upstream = from_vqp(theirs), torch.randn(2, 20, 5), torch.randn(2, 20, 5)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    first, second = ours(x).codes, theirs(y)[0]
    torch.testing.assert_close(first, second)
    (first * upstream).sum().backward(), (second * upstream).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(vectors(ours)[0].codebook.weight.grad, theirs._codebook.embed.grad[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_in_place_steps_agree(momentum: float) -> None:
    optimizer = partial(torch.optim.SGD, lr=3.0, momentum=momentum)
    theirs = VectorQuantize(
        4, 12, learnable_codebook=True, ema_update=False, in_place_codebook_optimizer=optimizer, rotation_trick=False
    )
    spread(theirs)
    ours, z = from_vqp(theirs), torch.randn(2, 30, 4)
    for step in range(4):
        if step == 2:  # in the midst of training, with a momentum
            ours = from_vqp(theirs)
        quantized, (codes, indices, _) = ours(z + 0.1 * step), theirs(z + 0.1 * step)
        assert torch.equal(quantized.indices, indices)
        torch.testing.assert_close(quantized.codes, codes)
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("learnable", [False, True])
def test_affine_codes_agree(learnable: bool) -> None:
    theirs = VectorQuantize(
        4, 12, affine_param=True, learnable_codebook=learnable, ema_update=not learnable, rotation_trick=False
    )
    spread(theirs)
    ours, z = from_vqp(theirs), torch.randn(2, 30, 4) * 3 + 2
    for step in range(4):
        if step == 2:
            ours = from_vqp(theirs)
        quantized, (codes, indices, _) = ours(z + step), theirs(z + step)
        assert torch.equal(quantized.indices, indices)
        torch.testing.assert_close(quantized.codes, codes, rtol=1e-4, atol=1e-5)
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
def test_revival_agrees_in_what_is_not_random(learnable: bool, cosine: bool) -> None:
    if learnable and cosine:
        return
    theirs = VectorQuantize(
        4, 12, decay=0.5, threshold_ema_dead_code=2, learnable_codebook=learnable, ema_update=not learnable,
        use_cosine_sim=cosine,
    )  # fmt: skip
    spread(theirs)
    ours, z = from_vqp(theirs), torch.randn(2, 30, 4)
    quantized, (codes, indices, _) = ours(z), theirs(z)
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.codes, codes)
    (vector,) = vectors(ours)
    assert vector.ema is not None
    torch.testing.assert_close(vector.ema.count, theirs._codebook.cluster_size[0])
    unit = F.normalize(z, dim=-1).flatten(0, 1) if cosine else z.flatten(0, 1)
    revived = 0.5 + 0.5 * indices.flatten().bincount(minlength=12) < 2
    assert bool(revived.any())
    for mine, other, of_latent in zip(vector.codes().detach(), theirs._codebook.embed[0].detach(), revived):
        if of_latent:
            assert float((unit - mine).norm(dim=1).min()) < 1e-6
            assert float((unit - other).norm(dim=1).min()) < 1e-6
        else:
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("cosine", [False, True])
def test_sampling_agrees_in_its_frequencies(cosine: bool) -> None:
    theirs = VectorQuantize(
        3, 5, stochastic_sample_codes=True, sample_codebook_temp=0.7, use_cosine_sim=cosine, freeze_codebook=True
    )
    spread(theirs)
    ours, z = from_vqp(theirs), torch.randn(3).expand(1, 20000, 3)
    first, second = ours(z).indices, theirs(z)[1]
    counts = torch.stack([part.flatten().bincount(minlength=5) for part in (first, second)]) / 20000
    torch.testing.assert_close(counts[0], counts[1], rtol=0, atol=0.02)


def test_a_module_before_its_kmeans_start_starts_here() -> None:
    theirs = VectorQuantize(3, 4, kmeans_init=True, kmeans_iters=7)
    ours = from_vqp(theirs)
    (vector,) = vectors(ours)
    assert vector.config.codebook.start == "kmeans"
    assert vector.config.codebook.kmeans_iterations == 7
    z = torch.randn(2, 30, 3)
    theirs(z)
    assert vectors(from_vqp(theirs))[0].config.codebook.start == "random"
    ours(z)
    assert bool(vector.codebook.started)


@pytest.mark.parametrize(
    ("chosen", "option"),
    [
        ({"sync_update_v": 0.1, "learnable_codebook": True, "ema_update": False}, "sync_update_v"),
        ({"manual_ema_update": True}, "manual_ema_update"),
        ({"straight_through": True, "rotation_trick": False}, "straight_through"),
        ({"threshold_ema_dead_code": 1, "ema_update": False}, "threshold_ema_dead_code"),
        ({"orthogonal_reg_weight": 1.0}, "ema_update together with orthogonal_reg_weight"),
        ({"vq_bridge": nn.Linear(4, 4)}, "vq_bridge"),
        ({"route_gradients_to_input": False}, "route_gradients_to_input"),
        (
            {
                "learnable_codebook": True, "ema_update": False,
                "in_place_codebook_optimizer": partial(torch.optim.Adam, lr=1e-3),
            },
            "in_place_codebook_optimizer",
        ),
        (
            {
                "learnable_codebook": True, "ema_update": False, "affine_param": True,
                "in_place_codebook_optimizer": partial(torch.optim.SGD, lr=1e-3),
            },
            "affine_param",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_options_without_a_counterpart_are_refused_by_name(chosen: dict, option: str) -> None:
    with pytest.raises(ValueError, match=f"VectorQuantize: cannot take over the option .*{option}"):
        from_vqp(VectorQuantize(4, 8, **chosen))


def test_other_modules_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a module of vector-quantize-pytorch among .*VectorQuantize.*Linear"):
        from_vqp(nn.Linear(2, 2))


def test_mode_and_dtype_follow_the_module() -> None:
    assert not from_vqp(VectorQuantize(4, 8).eval()).training
    assert from_vqp(VectorQuantize(4, 8).train()).training


def test_image_layouts_are_channels_last_here() -> None:
    theirs = spread(VectorQuantize(4, 8, accept_image_fmap=True)).eval()
    z = torch.randn(2, 4, 3, 5)
    codes, indices, _ = theirs(z)
    quantized = from_vqp(theirs)(z.movedim(1, -1))
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.codes.movedim(-1, 1), codes)


def test_masks_agree() -> None:
    theirs = spread(VectorQuantize(4, 12, decay=0.7, rotation_trick=False))
    ours, z = from_vqp(theirs), torch.randn(3, 6, 4)
    lengths = torch.tensor([6, 1, 4])
    mask = torch.arange(6) < lengths[:, None]
    quantized, (codes, indices, loss) = ours(z, mask), theirs(z, lens=lengths)
    assert torch.equal(quantized.indices[mask], indices[mask])
    torch.testing.assert_close(quantized.codes, codes)
    torch.testing.assert_close(quantized.losses["commitment"], loss.squeeze())
    assert_same_state(ours, theirs)


# -- SimVQ -------------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([1, 30]), st.sampled_from([1, 5]), st.sampled_from([None, 3, 7]), st.booleans(), st.integers(0, 99)
)
def test_sim_vq_agrees(size: int, dim: int, frozen: int | None, rotation: bool, seed: int) -> None:
    torch.manual_seed(seed)
    theirs = SimVQ(dim, size, rotation_trick=rotation, frozen_codebook_dim=frozen, channel_first=True)
    ours, z, upstream = from_vqp(theirs), torch.randn(2, dim, 15), torch.randn(2, dim, 15)
    x, y = z.clone().requires_grad_(), z.clone().requires_grad_()
    quantized, (codes, indices, loss) = ours(x.movedim(1, -1)), theirs(y)
    assert torch.equal(quantized.indices, indices)
    torch.testing.assert_close(quantized.codes.movedim(-1, 1), codes, rtol=1e-4, atol=1e-5)
    own = quantized.losses["codebook"] + 0.25 * quantized.losses["commitment"]
    torch.testing.assert_close(own, loss)
    ((quantized.codes.movedim(-1, 1) * upstream).sum() + own).backward()
    ((codes * upstream).sum() + loss).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-4)
    weight: Tensor = ours.transform.weight  # type: ignore[union-attr, assignment]
    torch.testing.assert_close(weight.grad, theirs.code_transform.weight.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.indices_to_codes(indices).movedim(-1, 1), theirs.indices_to_codes(indices))


def test_sim_vq_with_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="codebook_transform"):
        from_vqp(SimVQ(4, 8, codebook_transform=nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
