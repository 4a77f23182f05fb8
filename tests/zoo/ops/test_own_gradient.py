"""Every function with a gradient of its own under autograd and the transforms of torch.func."""

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap

import zoo.quantizers  # noqa: F401  (their functions are among the subclasses)
from zoo.layers.recompute import RecomputeActivations
from zoo.ops.binary_entropy import binary_entropy
from zoo.ops.nearest_code import nearest_code
from zoo.ops.own_gradient import OwnGradient
from zoo.ops.soft_entropy import soft_entropy
from zoo.ops.sparsemax import sparsemax
from zoo.quantizers import BinaryMapperConfig, IndexBackpropagationConfig, RotationConfig, VectorConfig
from zoo.quantizers.base import QuantizerConfig

CODES = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.linspace(-1, 1, 6)


def entropies(both: tuple[Tensor, Tensor]) -> Tensor:
    return both[0] - 2 * both[1]


def quantized(config: QuantizerConfig) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    quantizer = config.build().eval()
    return lambda z: (quantizer(z).codes.square() * WEIGHTS).sum()


def convolved(z: Tensor) -> Tensor:
    with RecomputeActivations():
        return F.conv2d(F.silu(z[None, None]), CODES[None, None, :3, :3]).square().sum()


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "_BinaryEntropy": lambda z: entropies(binary_entropy(z, 1.5)),
    "_BinaryEntropy, floor": lambda z: entropies(binary_entropy(z, 1.5, floor=1e-2, group_bits=3)),
    "_BinaryEntropy, one of two": lambda z: binary_entropy(z, 1.5)[1],
    "_SoftEntropy": lambda z: entropies(soft_entropy(z, CODES, 0.7)),
    "_SoftEntropy, clamp": lambda z: entropies(soft_entropy(z, CODES, 0.7, clamp=1e-2)),
    "_SoftEntropy, one of two": lambda z: soft_entropy(z, CODES, 0.7)[0],
    "_Sparsemax": lambda z: (sparsemax(z).square() * WEIGHTS).sum(),
    "_IndexBackpropagation": quantized(IndexBackpropagationConfig(codebook_size=7, dim=6)),
    "_Rotation": quantized(VectorConfig(codebook_size=7, dim=6, gradient=RotationConfig())),
    "_Lookup": quantized(BinaryMapperConfig(dim=6, bits=3)),
    "_Convolution": convolved,
}
every = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def latents(*sizes: int) -> Tensor:
    return torch.randn(*sizes, 6, generator=torch.Generator().manual_seed(0))


def slope(function: Callable[[Tensor], Tensor], z: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient by plain autograd."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z), z, create_graph=create_graph)[0]


def test_all_are_here() -> None:
    found = {kind.__name__ for kind in OwnGradient.__subclasses__()} - {"_Slopes"}
    assert found == {name.split(",")[0] for name in FUNCTIONS}
    others = {kind.__module__ for kind in torch.autograd.Function.__subclasses__() if kind is not OwnGradient}
    assert not [module for module in others if module.split(".")[0] == "zoo"]


@every
def test_the_gradient_of_torch_func_is_that_of_autograd(function: Callable[[Tensor], Tensor]) -> None:
    z = latents(5)
    assert torch.equal(grad(function)(z), slope(function, z))


@every
def test_gradients_of_items_are_those_of_each_alone(function: Callable[[Tensor], Tensor]) -> None:
    z = latents(3, 5)
    if function is convolved:
        pytest.skip("its context works on whole batches")
    torch.testing.assert_close(vmap(grad(function))(z), torch.stack([slope(function, item) for item in z]))
    torch.testing.assert_close(
        vmap(grad(function), in_dims=1)(z.transpose(0, 1)), torch.stack([slope(function, item) for item in z])
    )


def test_a_search_under_a_transform_goes_through_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which alone unwraps its tensors; on CUDA a search otherwise goes by itself."""
    monkeypatch.setattr(Tensor, "is_cuda", True)
    seen: list[Tensor] = []

    def found(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
        seen.append(x)
        return torch.zeros(len(x), dtype=torch.int64)

    monkeypatch.setattr(sys.modules["zoo.ops.nearest_code"], "_found", found)  # its package has a function of its name
    nearest_code(latents(5), CODES)
    grad(lambda z: z.sum() + nearest_code(z, CODES).sum())(latents(5))
    vmap(lambda z: nearest_code(z, CODES))(latents(3, 5))
    assert len(seen) == 5
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in seen)


def test_a_jacobian_has_the_slopes_of_every_result() -> None:
    z = latents(4)

    def row(at: int) -> Tensor:
        return slope(lambda z: sparsemax(z).flatten()[at], z)

    rows = torch.stack([row(at) for at in range(z.numel())])
    torch.testing.assert_close(jacrev(lambda z: sparsemax(z).flatten())(z), rows)


@every
def test_a_gradient_of_the_gradient_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    """Also where another term has one, whose second derivative alone would be wrong."""
    z = latents(5).requires_grad_()
    for scale in (1.0, z.detach().mean().requires_grad_()):
        (first,) = torch.autograd.grad(function(z) * scale + z.square().sum(), z, create_graph=True)
        with pytest.raises(RuntimeError, match="is differentiable once: expected no gradient of its gradient"):
            first.square().sum().backward()
    with pytest.raises(RuntimeError, match="is differentiable once: expected no gradient of its gradient"):
        grad(lambda z: grad(lambda z: function(z) + z.square().sum())(z).square().sum())(z.detach())
