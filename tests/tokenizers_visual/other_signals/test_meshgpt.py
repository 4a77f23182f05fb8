"""MeshGPT: edges between faces, tokens of shared vertices, meshes from tokens, and the blurred loss."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as vqp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenizers_visual.other_signals import meshgpt
from tokenizers_visual.other_signals.meshgpt import KEY_MAP, FaceReconstruction, Mesh, MeshGPT, MeshGPTConfig
from zoo.checkpoint import load_into
from zoo.quantizers import Quantizer

PARITY = Path(__file__).parents[2] / "parity" / "meshgpt"
META = json.loads((PARITY / "meta.json").read_text())


@pytest.fixture(scope="module")
def model() -> MeshGPT:
    built = MeshGPT(meshgpt.config_from_original(META))
    load_into(built, KEY_MAP(load_file(PARITY / "weights.safetensors")))
    return built.eval()


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    corners = draw(st.sampled_from([3, 4]))
    vertices = draw(st.integers(corners, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    faces = torch.randint(vertices, (draw(st.integers(1, 7)), corners), generator=generator)
    return Mesh(torch.rand(vertices, 3, generator=generator) * 2 - 1, faces)


@given(meshes())
def test_faces_that_share_two_vertices_have_an_edge(mesh: Mesh) -> None:
    faces = mesh.faces.tolist()
    expected = [
        (i, j)
        for i, face in enumerate(faces)
        for j, other in enumerate(faces)
        if sum(vertex in other for vertex in face) >= 2
    ]
    assert [tuple(pair) for pair in mesh.face_edges().T.tolist()] == expected


@given(st.lists(st.floats(-1.5, 1.5), min_size=1), st.integers(2, 200))
def test_bins_come_back_to_themselves_and_values_to_within_half_a_bin(values: list[float], count: int) -> None:
    x = torch.tensor(values)
    bins = meshgpt.to_bins(x, count, (-1.0, 1.0))
    assert int(bins.min()) >= 0
    assert int(bins.max()) < count
    centres = meshgpt.from_bins(bins, count, (-1.0, 1.0))
    assert torch.equal(meshgpt.to_bins(centres, count, (-1.0, 1.0)), bins)
    assert float((centres - x.clamp(-1, 1)).abs().max()) <= 1 / count + 1e-5


def square() -> Mesh:
    vertices = torch.tensor([[-0.5, -0.5, 0.0], [0.5, -0.5, 0.1], [0.5, 0.5, 0.2], [-0.5, 0.5, 0.3]])
    return Mesh(vertices, torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_a_vertex_has_the_same_tokens_in_all_its_faces(model: MeshGPT) -> None:
    levels = model.encode([square()]).indices[0].view(2, 2, 3)  # levels, faces, corners
    assert torch.equal(levels[:, 0, 0], levels[:, 1, 0])
    assert torch.equal(levels[:, 0, 2], levels[:, 1, 1])


def test_vertices_that_no_face_uses_change_nothing(model: MeshGPT) -> None:
    mesh = square()
    more = Mesh(torch.cat([torch.zeros(2, 3), mesh.vertices, torch.ones(1, 3)]), mesh.faces + 2)
    assert model.encode([more]) == model.encode([mesh])


def test_a_mesh_comes_back_from_corners_that_are_certain() -> None:
    mesh, count = square(), 64
    bins = meshgpt.to_bins(mesh.vertices[mesh.faces].flatten(1), count, (-1.0, 1.0))
    rebuilt = FaceReconstruction(10.0 * F.one_hot(bins, count), (-1.0, 1.0)).mesh()
    assert len(rebuilt.vertices) == 4  # each once
    assert float((rebuilt.vertices[rebuilt.faces] - mesh.vertices[mesh.faces]).abs().max()) <= 1 / count
    assert torch.equal(rebuilt.face_edges(), mesh.face_edges())


def test_the_loss_is_least_for_the_blurred_target() -> None:
    mesh = square()
    config = MeshGPTConfig(coordinate_bins=16)
    bins = meshgpt.to_bins(mesh.vertices[mesh.faces].flatten(1), 16, (-1.0, 1.0))
    side = math.exp(-1 / (2 * 0.4**2))
    target = torch.zeros(2, 9, 16)
    for shift, weight in ((-1, side), (0, 1.0), (1, side)):
        target += F.one_hot(bins + shift, 16) * weight / (1 + 2 * side)
    at_target = meshgpt.coordinate_loss(target.clamp_min(1e-30).log(), mesh, config)
    entropy = -(target * target.clamp_min(1e-30).log()).sum(-1).mean()
    torch.testing.assert_close(at_target, entropy)
    logits = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    expected = -(target * logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(meshgpt.coordinate_loss(logits, mesh, config), expected)
    assert float(expected) > float(entropy)


@pytest.mark.parametrize("kwargs", [{"use_residual_lfq": False, "codebook_size": 16}, {"quads": True}])
def test_the_variants_of_the_original_train(kwargs: dict[str, object]) -> None:
    torch.manual_seed(0)
    stated = {**META["original"]["kwargs"], **kwargs}
    model = MeshGPT(meshgpt.config_from_original({"original": {"kwargs": stated}})).train()
    vertices = torch.rand(12, 3) * 2 - 1
    mesh = Mesh(vertices, torch.arange(12).view(-1, model.config.corners))
    output = model(mesh)
    (meshgpt.coordinate_loss(output.reconstruction.logits, mesh, model.config) + output.quantized.losses["commitment"]
     ).backward()  # fmt: skip
    assert model.coordinate_embedding.weight.grad is not None
    assert bool(model.coordinate_embedding.weight.grad.any())
    assert model.encode([mesh]).vocab_sizes == (model.vocab_sizes[0],) * 2


def quantizer_of(module: nn.Module, **kwargs: object) -> Quantizer:
    """The model's quantizer with the weights of one of vector-quantize-pytorch."""
    stated = {**META["original"]["kwargs"], **kwargs}
    quantizer = meshgpt.config_from_original({"original": {"kwargs": stated}}).quantizer.build()
    mapped = KEY_MAP({f"quantizer.{key}": value for key, value in module.state_dict().items()})
    load_into(quantizer, {key.removeprefix("quantizer."): value for key, value in mapped.items()})
    return quantizer


@pytest.mark.parametrize("dim", [12, 6])  # with 6 there is nothing to project
def test_signs_are_those_of_vector_quantize_pytorch_in_value_loss_and_gradient(dim: int) -> None:
    torch.manual_seed(0)
    theirs = vqp.ResidualLFQ(
        dim=dim, num_quantizers=2, codebook_size=64, commitment_loss_weight=1.0, entropy_loss_weight=0.0,
        soft_clamp_input_value=10.0, quantize_dropout=False,
    ).train()  # fmt: skip
    ours = quantizer_of(theirs, dim_codebook=dim, codebook_size=64).train()
    x, y = (3 * torch.randn(1, 50, dim, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    x.requires_grad_()
    y.requires_grad_()
    codes, indices, losses = theirs(x)
    found = ours(y)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.codes, codes)
    torch.testing.assert_close(2 * found.losses["commitment"], losses.sum())
    upstream = torch.randn(codes.shape)
    for output, loss in ((codes, losses.sum()), (found.codes, 2 * found.losses["commitment"])):
        ((output * upstream).sum() + loss).backward()
    torch.testing.assert_close(y.grad, x.grad)


def test_the_shared_codebook_is_that_of_vector_quantize_pytorch() -> None:
    torch.manual_seed(0)
    theirs = vqp.ResidualVQ(dim=12, num_quantizers=2, codebook_size=16, shared_codebook=True, kmeans_init=True)
    theirs.train()(torch.randn(1, 200, 12))
    ours = quantizer_of(theirs, use_residual_lfq=False, codebook_size=16).eval()
    x = torch.randn(1, 50, 12)
    codes, indices, _ = theirs.eval()(x)
    found = ours(x)
    assert torch.equal(found.indices, indices)
    torch.testing.assert_close(found.codes, codes)


def test_attention_is_refused() -> None:
    kwargs = {**META["original"]["kwargs"], "attn_decoder_depth": 2}
    with pytest.raises(ValueError, match=r"expected attention depths of 0, got \[0, 2\]"):
        meshgpt.config_from_original({"original": {"kwargs": kwargs}})


def test_default_sizes_are_the_originals() -> None:
    with torch.device("meta"):
        model = MeshGPT(MeshGPTConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_862_670


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (torch.zeros(4, 2), torch.zeros(1, 3, dtype=torch.int64), "vertices: expected"),
        (torch.zeros(4, 3), torch.zeros(1, 5, dtype=torch.int64), "faces: expected int64"),
        (torch.zeros(4, 3), torch.zeros(0, 3, dtype=torch.int64), "faces: expected int64"),
        (torch.zeros(4, 3), torch.tensor([[0, 1, 4]]), r"expected vertices in \[0, 4\), got 0 to 4"),
        (torch.zeros(4, 3), torch.tensor([[0, 1, -1]]), r"got -1 to 1"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices: Tensor, faces: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mesh(vertices, faces)


def test_coordinates_beyond_the_range_are_refused(model: MeshGPT) -> None:
    mesh = square()
    with pytest.raises(ValueError, match=r"expected coordinates in \[-1.0, 1.0\], got -1.5 to 1.5"):
        model.encode([Mesh(mesh.vertices * 3, mesh.faces)])
    spoilt = mesh.vertices.clone()
    spoilt[0, 0] = float("nan")
    with pytest.raises(ValueError, match="got nan"):
        model.encode([Mesh(spoilt, mesh.faces)])
