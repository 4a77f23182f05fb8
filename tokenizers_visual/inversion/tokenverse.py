"""TokenVerse: concepts as offsets of single text tokens in the modulation of a diffusion transformer.

Paper: "TokenVerse: Versatile Multi-concept Personalization in Token Modulation Space", arXiv 2501.12224. There is no
public code; widths, which the paper does not tell, are chosen here. The words stay ordinary: their modulation is what
changes. FLUX of diffusers modulates all tokens of a text alike; `modulated` gives each its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import WordModel
from zoo.config import Config
from zoo.registry import register


@dataclass(frozen=True)
class TokenVerseConfig(Config):
    """Sizes of the network that gives offsets; the widths are those of FLUX.1."""

    backbone: str = "black-forest-labs/FLUX.1-dev"
    text_dim: int = 4096  # of the text encoder's states
    width: int = 3072  # of the modulation vector
    hidden_dim: int = 1024
    blocks: int = 57  # of the transformer, each with an offset of its own in the second stage; 0: one for all

    def __post_init__(self) -> None:
        self.require(bool(self.backbone), "the name of a diffusion transformer", self.backbone)
        sizes = (self.text_dim, self.width, self.hidden_dim)
        self.require(min(sizes) > 0 and self.blocks >= 0, "positive widths and no fewer than 0 blocks", self.to_dict())


@register("tokenverse")
class TokenVerse(WordModel):
    """Text states of words (n, text_dim) -> offsets (n, width), or of each block (blocks, n, width).

    It starts with offsets of zero, under which the transformer is as it was.
    """

    config: TokenVerseConfig

    def __init__(self, config: TokenVerseConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Sequential(nn.Linear(config.text_dim, config.hidden_dim), nn.GELU())
        self.shared = _zero(nn.Linear(config.hidden_dim, config.width))
        self.of_blocks = nn.ModuleList(_zero(nn.Linear(config.hidden_dim, config.width)) for _ in range(config.blocks))

    def forward(self, words: Tensor, *, stage: int = 1) -> Tensor:
        """Offsets of words (n, text_dim).

        Args:
            stage: 1: one for all blocks (n, width); 2: for each its own beside it (blocks, n, width).

        Raises:
            ValueError: another stage, or the second of a model without blocks.
        """
        if stage not in (1, 2) or (stage == 2 and not self.of_blocks):
            raise ValueError(f"expected stage 1, or 2 of a model with blocks, got {stage}")
        hidden = self.hidden(words)
        shared = self.shared(hidden)
        return shared if stage == 1 else torch.stack([shared + block(hidden) for block in self.of_blocks])


def modulate_tokens(modulation: Tensor, tokens: int, offsets: Tensor, places: Sequence[int]) -> Tensor:
    """The modulation of each text token (B, tokens, width): that of the prompt (B, width), moved at some.

    Args:
        modulation: (B, width), which image tokens keep as it is.
        tokens: length of the text.
        offsets: (n, width) of n concepts, of one block; they may come from different images.
        places: of the n concepts' words in the text; a place may come more than once.

    Raises:
        ValueError: not as many places as offsets, or one outside the text.
    """
    if len(places) != len(offsets) or not all(0 <= place < tokens for place in places):
        raise ValueError(f"expected {len(offsets)} places in 0..{tokens - 1}, got {list(places)}")
    moved = modulation.new_zeros(tokens, modulation.shape[-1])
    moved = moved.index_add(0, torch.tensor(list(places), device=modulation.device), offsets.to(modulation))
    return modulation[:, None] + moved


# -- FLUX of diffusers ---------------------------------------------------------------------------------------------


@contextmanager
def modulated(transformer: Any, offsets: Tensor, places: Sequence[int]) -> Iterator[None]:
    """For the block, text tokens at some places are modulated by themselves in each block of a FLUX.

    with modulated(pipeline.transformer, offsets, token_places(pipeline.tokenizer_2, "a doll in a boat", "doll")):
        image = pipeline("a doll in a boat").images[0]

    Args:
        transformer: `FluxTransformer2DModel`; its weights are not touched.
        offsets: (n, width), or (blocks, n, width) of blocks of two streams and then of one; gradients flow to them.
        places: of the n tokens in the text (see `modulate_tokens`).

    Raises:
        ValueError: offsets of another number of blocks; while it runs: see `modulate_tokens`.
    """
    blocks = flux_blocks(transformer)
    if offsets.ndim == 3 and len(offsets) != len(blocks):
        raise ValueError(f"expected offsets of {len(blocks)} blocks, got {len(offsets)}")
    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            own = offsets if offsets.ndim == 2 else offsets[number]
            hook = _two_streams if hasattr(block, "norm1_context") else _one_stream
            hook(block, own, places, stack)
        yield


def flux_blocks(transformer: Any) -> list[Any]:
    """The blocks of a FLUX in the order of their calls: 19 of two streams and 38 of one in FLUX.1."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def _modulation(norm: Any, vector: Tensor, length: int, offsets: Tensor, places: Sequence[int]) -> Tensor:
    """What a block's `norm` makes of the modulation vector (B, width), for each token: (B, length, parts * width)."""
    head = min(length, max(places, default=-1) + 1)  # behind it all tokens are alike
    own = norm.linear(norm.silu(modulate_tokens(vector, head, offsets, places)))
    alike = norm.linear(norm.silu(vector))[:, None]
    return torch.cat([own, alike.expand(-1, length - head, -1)], dim=1)


def _two_streams(block: Any, offsets: Tensor, places: Sequence[int], stack: ExitStack) -> None:
    """The text has norms, gates and an MLP of its own: the block's own gates are set to one, its shifts to zero."""
    parts: dict[str, Tensor] = {}

    def enter(norm: Any, inputs: tuple[Tensor, ...], options: dict[str, Tensor], _output: Any) -> tuple[Tensor, ...]:
        text, vector = inputs[0], options["emb"]
        tokens = _modulation(norm, vector, text.shape[1], offsets, places).chunk(6, dim=-1)
        parts.update(zip(("gate", "mlp_shift", "mlp_scale", "mlp_gate"), tokens[2:]))
        one, zero = torch.ones_like(vector), torch.zeros_like(vector)
        return norm.norm(text) * (1 + tokens[1]) + tokens[0], one, zero, zero, one

    def attended(_module: Any, _inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[0], parts["gate"] * output[1], *output[2:]

    def shifted(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return output * (1 + parts["mlp_scale"]) + parts["mlp_shift"]

    def left(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return parts["mlp_gate"] * output

    stack.callback(block.norm1_context.register_forward_hook(enter, with_kwargs=True).remove)
    stack.callback(block.attn.register_forward_hook(attended).remove)
    stack.callback(block.norm2_context.register_forward_hook(shifted).remove)
    stack.callback(block.ff_context.register_forward_hook(left).remove)


def _one_stream(block: Any, offsets: Tensor, places: Sequence[int], stack: ExitStack) -> None:
    """The text stands before the image, in one sequence with one gate."""
    gates: list[Tensor] = []

    def enter(norm: Any, inputs: tuple[Tensor, ...], options: dict[str, Tensor], _output: Any) -> tuple[Tensor, Tensor]:
        hidden, vector = inputs[0], options["emb"]
        shift, scale, gate = _modulation(norm, vector, hidden.shape[1], offsets, places).chunk(3, dim=-1)
        gates.append(gate)
        return norm.norm(hidden) * (1 + scale) + shift, torch.ones_like(vector)

    def left(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        return gates.pop() * output

    stack.callback(block.norm.register_forward_hook(enter, with_kwargs=True).remove)
    stack.callback(block.proj_out.register_forward_hook(left).remove)


def token_places(tokenizer: Any, text: str, part: str | None = None) -> list[int]:
    """The places of the tokens of a text, or of a part of it where that stands first.

    Args:
        tokenizer: `pipeline.tokenizer_2`.

    Raises:
        ValueError: a part that does not stand in the text.
    """
    start = 0 if part is None else text.find(part)
    if start < 0 or part == "":
        raise ValueError(f"expected a part of {text!r}, got {part!r}")
    end = len(text) if part is None else start + len(part)
    spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return [place for place, (first, last) in enumerate(spans) if first < end and last > start and last > first]


def flow(
    transformer: Any, latents: Tensor, text: tuple[Tensor, Tensor, Tensor], times: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """What a FLUX predicts of noisy latents, and what it should: (B, h/2, w/2, 4C), the velocity of each patch.

    Args:
        transformer: `FluxTransformer2DModel`; one that is told a guidance scale gets 1.
        latents, noise: (B, C, h, w), of even sides.
        text: `pipeline.encode_prompt(...)`: states (B, L, T), pooled (B, P), ids (L, 3).
        times: (B,) in 0..1, the share of the noise.
    """
    share = times.to(latents)[:, None, None, None]
    noisy, target = (_patches(part) for part in (torch.lerp(latents, noise, share), noise - latents))
    height, width = noisy.shape[1:3]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(latents)
    states, pooled, text_ids = text
    predicted = transformer(
        hidden_states=noisy.flatten(1, 2), encoder_hidden_states=states, pooled_projections=pooled, img_ids=ids,
        timestep=times.to(latents), txt_ids=text_ids,
        guidance=torch.ones_like(times, dtype=latents.dtype) if transformer.config.guidance_embeds else None,
    ).sample  # fmt: skip
    return predicted.unflatten(1, (height, width)).float(), target.float()


def _patches(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> patches of 2 x 2 (B, h/2, w/2, 4C), channel by channel."""
    return latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3)


def draw_times(count: int, *, noisy: bool, focus: float = 0.92) -> Tensor:
    """Times (count,) in 0..1: the share `focus` of them in the noisiest fifth, or else in the rest; evenly there."""
    first = (torch.rand(count) < focus) == noisy
    return torch.where(first, 0.8 + 0.2 * torch.rand(count), 0.8 * torch.rand(count))


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
