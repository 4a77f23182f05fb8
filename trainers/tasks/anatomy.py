"""Which parameters of a tokenizer decode, found by following a gradient, so that no family has to say it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import zoo
from zoo.quantizers import Quantized


def decoder_anatomy(model: zoo.Tokenizer) -> tuple[list[nn.Parameter], nn.Parameter]:
    """The parameters between the codes and the reconstruction, and the weight of the last layer among them.

    The model runs once, in evaluation mode, on a black signal of few tokens.

    Raises:
        ValueError: a model whose reconstruction depends on no parameter.
    """
    axes = {"image": (2, 2), "video": (1, 2, 2), "audio": (2,)}[model.spec.modality]
    sides = model.spec.size or model.spec.size_of(axes)
    device = next(model.parameters()).device
    signal = torch.zeros(1, model.spec.channels, *sides, device=device, dtype=model.dtype)
    training = model.training

    def cut(module: nn.Module, arguments: tuple[Tensor, ...], quantized: Quantized) -> Quantized:
        return replace(quantized, codes=quantized.codes.detach().requires_grad_())

    hook = model.quantizer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            reconstruction = model.eval()(signal).reconstruction
    finally:
        hook.remove()
        model.train(training)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(reconstruction.sum(), parameters, allow_unused=True, retain_graph=True)
    decoder = [parameter for parameter, gradient in zip(parameters, gradients) if gradient is not None]
    nodes, seen = [reconstruction.grad_fn], set()
    while nodes:  # breadth first, from the reconstruction back
        node = nodes.pop(0)
        weight = getattr(node, "variable", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            return decoder, weight
        for before, _ in getattr(node, "next_functions", ()):
            if before is not None and before not in seen:
                seen.add(before)
                nodes.append(before)
    raise ValueError(f"{model.name}: expected a reconstruction that depends on parameters")
