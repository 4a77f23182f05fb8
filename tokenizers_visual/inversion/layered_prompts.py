"""Prompts that differ from layer to layer of a U-Net and from step to step, in a pipeline of diffusers as it is.

NeTI's words (arXiv 2305.15391) need it: one fixed prompt embedding would lose what they know of time and layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.neti import Conditioning


@contextmanager
def layered_prompts(unet: nn.Module, prompts_at: Callable[[float], Sequence[Conditioning]]) -> Iterator[None]:
    """For the block, the cross-attention layers of a U-Net take keys and values of their own.

    with layered_prompts(pipeline.unet, lambda time: model.layer_prompts(encoder, "a photo of $", time)):
        image = pipeline(prompt_embeds=any_prompt, negative_prompt="").images[0]

    Args:
        unet: `UNet2DConditionModel`, whose layers are counted in the order of their calls.
        prompts_at: a time of diffusion -> each layer's prompts, (B, L, D). They replace the last B items that the
            pipeline gives; those before, which guidance leads away from, stay.

    Raises:
        ValueError: while it runs: not as many prompts as the U-Net has cross-attention layers.
    """
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    prompts: Sequence[Conditioning] = ()
    layer = -1

    def start(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        nonlocal prompts, layer
        prompts, layer = prompts_at(float(options["timestep"] if "timestep" in options else inputs[1])), -1
        if len(prompts) != len(attentions):
            raise ValueError(f"expected prompts for {len(attentions)} cross-attention layers, got {len(prompts)}")

    def keys(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal layer
        layer += 1
        return (_last_replaced(inputs[0], prompts[layer].keys.hidden),)

    def values(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (_last_replaced(inputs[0], prompts[layer].values.hidden),)

    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(start, with_kwargs=True).remove)
        for attention in attentions:
            stack.callback(attention.to_k.register_forward_pre_hook(keys).remove)  # type: ignore[operator, union-attr]
            stack.callback(attention.to_v.register_forward_pre_hook(values).remove)  # type: ignore[operator, union-attr]
        yield


def _last_replaced(states: Tensor, prompts: Tensor) -> Tensor:
    return torch.cat([states[: len(states) - len(prompts)], prompts.to(states)])
