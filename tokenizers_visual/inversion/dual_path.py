"""Dual path: each attention of a frozen U-Net runs twice and is blended, once led by a predicted word with weights that
are moved for it, once by a real word with the weights as they are.

Domain-agnostic E4T (arXiv 2307.06925), which has no public code: that the offsets are of low rank and the blend is
linear is the paper's, the rank, the widths of the network that predicts them and the share of the blend are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.hooks import outputs_of
from tokenizers_visual.inversion.words import PseudoWords

Offset = tuple[Tensor, Tensor]  # of one projection's weight: down (B, r, in), up (B, out, r); their product is added


@dataclass(frozen=True)
class Adaptation:
    """What leads a U-Net to the concepts of B images.

    Attributes:
        words: the predicted ones, (B, 1, D).
        soft, hard: (B, L, D), text states of prompts with those words, and with the real words nearest to them.
        offsets: of the weights of `attention_projections`, in their order; none: they stay.
    """

    words: PseudoWords
    soft: Tensor
    hard: Tensor
    offsets: Sequence[Offset]


class WeightOffsets(nn.Module):
    """Hypernetwork: features (B, F) -> offsets of low rank for each projection's weight, which start at zero.

    Args:
        features: F.
        hidden_dim: width of the layer between.
        sizes: (in, out) of each projection (see `projection_sizes`).
        rank: of the offsets.
    """

    def __init__(self, features: int, hidden_dim: int, sizes: Sequence[tuple[int, int]], rank: int) -> None:
        super().__init__()
        self.sizes, self.rank = tuple(sizes), rank
        self.hidden = nn.Sequential(nn.Linear(features, hidden_dim), nn.LeakyReLU())
        self.down = nn.Linear(hidden_dim, rank * sum(size for size, _ in sizes))
        self.up = nn.Linear(hidden_dim, rank * sum(size for _, size in sizes))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> list[Offset]:
        hidden = self.hidden(features)
        downs = self.down(hidden).split([self.rank * size for size, _ in self.sizes], dim=-1)
        ups = self.up(hidden).split([self.rank * size for _, size in self.sizes], dim=-1)
        return [
            (down.unflatten(-1, (self.rank, size)) / size**0.5, up.unflatten(-1, (-1, self.rank)))
            for down, up, (size, _) in zip(downs, ups, self.sizes)
        ]


# -- the U-Net -----------------------------------------------------------------------------------------------------


def _attentions(unet: nn.Module) -> list[Any]:
    return [module for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))]


def attention_projections(unet: nn.Module) -> list[nn.Linear]:
    """Queries, keys, values and outputs of each self- and cross-attention of a U-Net, as it names them."""
    return [part for layer in _attentions(unet) for part in (layer.to_q, layer.to_k, layer.to_v, layer.to_out[0])]


def attention_widths(unet: nn.Module) -> tuple[int, ...]:
    """The widths of a U-Net's transformer blocks, as it names them: 16 in Stable Diffusion 1."""
    return tuple(layer.to_q.in_features for layer in _attentions(unet)[::2])


def projection_sizes(widths: Sequence[int], text_dim: int) -> list[tuple[int, int]]:
    """(in, out) of `attention_projections` for blocks of some widths, which read texts of `text_dim`."""
    return [
        size
        for width in widths
        for read in (width, text_dim)
        for size in ((width, width), (read, width), (read, width), (width, width))
    ]


def _encoder(unet: Any) -> list[nn.Module]:
    return [unet.conv_in, *unet.down_blocks, *([] if unet.mid_block is None else [unet.mid_block])]


def denoiser_width(unet: Any) -> int:
    """How many numbers `denoiser_features` has: 10,880 in Stable Diffusion 1 and 2."""
    down = [layer for block in unet.down_blocks for layer in (*block.resnets, *(block.downsamplers or ()))]
    middle = [] if unet.mid_block is None else [unet.mid_block.resnets[-1]]
    return sum(layer.out_channels for layer in (unet.conv_in, *down, *middle))


@torch.no_grad()
def denoiser_features(unet: Any, latents: Tensor, times: Tensor, states: Tensor) -> Tensor:
    """What a U-Net's encoder sees in noisy latents (B, C, H, W): the means over positions of all that it hands on.

    Args:
        times: (B,) of diffusion, or one for all.
        states: (B, L, D), text states of the empty prompt.

    Returns:
        (B, `denoiser_width`).
    """
    with ExitStack() as stack:
        outputs: list[list[Any]] = [stack.enter_context(outputs_of(part)) for part in _encoder(unet)]
        unet(latents, times, encoder_hidden_states=states)
    maps = [part for (given,) in outputs for part in (given[1] if isinstance(given, tuple) else (given,))]
    return torch.cat([part.float().mean(dim=(2, 3)) for part in maps], dim=1)


@contextmanager
def dual_path(
    unet: nn.Module, adaptation_at: Callable[[Tensor, Tensor], Adaptation], *, blend: float = 0.5
) -> Iterator[None]:
    """For the block, a U-Net's attentions run on both paths.

    with dual_path(pipeline.unet, lambda latents, time: adapt(model, encoder, pipeline.unet, ...)):
        image = pipeline(prompt_embeds=any_prompt, negative_prompt="").images[0]

    Args:
        unet: `UNet2DConditionModel`; its weights are not touched.
        adaptation_at: noisy latents and time, as the U-Net is called -> the adaptation of its last B items, whose text
            states take the place of theirs. Those before, which guidance leads away from, stay. It may call the U-Net.
        blend: the share of the path of the predicted words, 0..1.

    Raises:
        ValueError: another share; while it runs: offsets for another U-Net.
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"blend: expected 0 to 1, got {blend}")
    projections = attention_projections(unet)
    shapes = [tuple(projection.weight.shape) for projection in projections]
    current: Adaptation | None = None  # None: as it is
    asking = False

    def start(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nonlocal current, asking
        if asking:
            return None
        asking, current = True, None
        try:
            current = adaptation_at(inputs[0], options["timestep"] if "timestep" in options else inputs[1])
        finally:
            asking = False
        given = [(up.shape[1], down.shape[2]) for down, up in current.offsets]
        if given and given != shapes:
            raise ValueError(f"expected offsets of the {len(shapes)} projections of this U-Net, got those of another")
        states = options["encoder_hidden_states"]
        options["encoder_hidden_states"] = torch.cat([states[: -len(current.soft)], current.soft.to(states)])
        return inputs, options

    def stop(*_: Any) -> None:
        nonlocal current
        if not asking:
            current = None

    def moved(place: int, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if current is None or not current.offsets:
            return None
        down, up = (part.to(output) for part in current.offsets[place])
        kept = len(output) - len(down)
        return torch.cat([output[:kept], output[kept:] + inputs[0][kept:] @ down.mT @ up.mT])

    def blended(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any], output: Tensor) -> Any:
        nonlocal current
        if current is None:
            return None
        adaptation, current = current, None
        kept = len(output) - len(adaptation.hard)
        if options.get("encoder_hidden_states") is not None:
            options = {**options, "encoder_hidden_states": adaptation.hard.to(output)}
        plain = module(inputs[0][kept:], **options)
        current = adaptation
        return torch.cat([output[:kept], torch.lerp(plain, output[kept:], blend)])

    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(start, with_kwargs=True).remove)
        stack.callback(unet.register_forward_hook(stop).remove)
        for place, projection in enumerate(projections):
            hook = partial(moved, place)
            stack.callback(projection.register_forward_hook(hook).remove)
        for attention in _attentions(unet):
            stack.callback(attention.register_forward_hook(blended, with_kwargs=True).remove)
        yield
