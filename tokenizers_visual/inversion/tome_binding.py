"""ToMe: the words of a thing and of its attributes become one token, so that no attribute goes to another thing.

Paper: arXiv 2411.07132. Original: hutaiHang/ToMe (no licence stated), for SDXL. Of its refinement while sampling, the
loss that keeps a thing's attention together is here; gradient steps belong to the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Binding:
    """Positions in the prompt (1 is the first word) of a thing's words, and of those that describe it."""

    things: tuple[int, ...]
    attributes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        places = (*self.things, *self.attributes)
        if not self.things or len(set(places)) != len(places) or min(places) < 0:
            raise ValueError(f"expected different positions, one of a thing among them, got {self}")


def bind(
    embeddings: Tensor, bindings: Sequence[Binding], *, thing_weight: float = 1.1, attribute_weight: float = 1.2
) -> Tensor:
    """Outputs of a text encoder (..., N, D) whose bound words are summed into the first of each thing, the others 0.

    Raises:
        ValueError: positions beyond the N of the prompt, or of two bindings.
    """
    places = [place for binding in bindings for place in (*binding.things, *binding.attributes)]
    if len(set(places)) != len(places) or max(places, default=0) >= embeddings.shape[-2]:
        raise ValueError(f"expected different positions below {embeddings.shape[-2]}, got {places}")
    bound = embeddings.clone()
    bound[..., places, :] = 0
    for binding in bindings:
        thing = embeddings[..., list(binding.things), :].sum(-2)
        attributes = embeddings[..., list(binding.attributes), :].sum(-2)
        bound[..., binding.things[0], :] = thing_weight * thing + attribute_weight * attributes
    return bound


def with_plain_ending(embeddings: Tensor, plain: Tensor, words: int) -> Tensor:
    """The embeddings (..., N, D) of a prompt of so many `words`, followed by those of a prompt without attributes.

    What stands after the last word sums up the whole prompt, attributes of all things mixed.

    Raises:
        ValueError: tensors of two shapes, or as many words as positions.
    """
    if embeddings.shape != plain.shape:
        raise ValueError(f"expected embeddings of one shape, got {tuple(embeddings.shape)} and {tuple(plain.shape)}")
    if not 0 <= words < embeddings.shape[-2] - 1:
        raise ValueError(f"expected at most {embeddings.shape[-2] - 2} words, got {words}")
    return torch.cat([embeddings[..., : words + 1, :], plain[..., words + 1 :, :]], dim=-2)


def attention_entropy(attention: Tensor, places: Sequence[int], *, temperature: float = 0.5) -> Tensor:
    """How scattered over the image the attention to bound words is; less is better.

    Args:
        attention: of the places of the image to the words between the first and the last (height, width, words).
        places: of the bound words among these.
        temperature: of the softmax over the words.

    Returns:
        Twice the sum of the entropies, in nats, as in the original.

    Raises:
        ValueError: attention of another shape.
    """
    if attention.ndim != 3:
        raise ValueError(f"expected attention (height, width, words), got {tuple(attention.shape)}")
    chosen = (attention / temperature).softmax(-1)[..., list(places)].flatten(0, 1)  # (places of the image, words)
    low, high = chosen.aminmax(dim=0)
    shares = (chosen - low) / (high - low)
    shares = shares / shares.sum(0)
    return -2 * (shares * (shares + 1e-5).log()).sum()
