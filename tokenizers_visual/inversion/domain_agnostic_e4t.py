"""Domain-agnostic E4T: an image to a word and to offsets of the denoiser's weights, from what CLIP and denoiser see.

Words are held near to real tokens, and away from each other, by a contrastive loss; the denoiser follows them on one
path of `dual_path`. Paper: arXiv 2307.06925, after E4T (arXiv 2302.12228), of which mkshing/e4t-diffusion is an open
implementation: the denoiser's features and the scale of the words are as there. The paper has no public code; the loss
has the form that is written down here and has not been compared with the authors', and sizes are chosen here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.clip import TransformersPair
from tokenizers_visual.inversion.diffusion import encode_prompt
from tokenizers_visual.inversion.dual_path import (
    Adaptation,
    Offset,
    WeightOffsets,
    denoiser_features,
    projection_sizes,
)
from tokenizers_visual.inversion.projector import Projector, ProjectorConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.ops.precision import full_precision
from zoo.registry import register

Likeness = Literal["dot", "cosine"]


@dataclass(frozen=True)
class DomainAgnosticConfig(ProjectorConfig):
    """Sizes of the embedding head and of the hypernetwork."""

    denoiser_dim: int = 0  # width of the denoiser's features beside the image's (see `denoiser_width`); 0: none
    hidden_dim: int = 768
    scale: float = 0.1  # of what is added to the word of the class
    attention_widths: tuple[int, ...] = ()  # of the denoiser's blocks whose weights are moved; none: a word alone
    rank: int = 1  # of the offsets
    offset_dim: int = 64  # width of the hypernetwork

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.denoiser_dim >= 0, "a denoiser_dim of 0 or more", self.denoiser_dim)
        sizes = (self.hidden_dim, self.rank, self.offset_dim, *self.attention_widths)
        self.require(min(sizes) > 0, "positive hidden_dim, rank, offset_dim and attention_widths", sizes)


@register("domain_agnostic_e4t")
class DomainAgnosticE4T(Projector):
    """Image features (B, E) -> one word each (B, 1, D): the word of the image's class, moved a little.

    `class_word` (D,) is zero until it is set to a token embedding ("face").
    """

    config: DomainAgnosticConfig

    def __init__(self, config: DomainAgnosticConfig) -> None:
        super().__init__(config)
        self.register_buffer("class_word", torch.zeros(config.word_dim))
        features = config.image_dim + config.denoiser_dim
        self.head = nn.Sequential(
            nn.Linear(features, config.hidden_dim), nn.LeakyReLU(), nn.Linear(config.hidden_dim, config.word_dim)
        )
        sizes = projection_sizes(config.attention_widths, config.word_dim)
        self.hypernetwork = WeightOffsets(features, config.offset_dim, sizes, config.rank) if sizes else None

    def forward(self, image_features: Tensor, denoiser_features: Tensor | None = None) -> Tensor:
        """Words (B, 1, D).

        Args:
            image_features: (B, E).
            denoiser_features: (B, F), of `dual_path.denoiser_features`.

        Raises:
            ValueError: no denoiser's features where the words depend on them, or others.
        """
        features = self._features(image_features, denoiser_features)
        return (self.class_word + self.config.scale * self.head(features))[:, None]

    def offsets(self, image_features: Tensor, denoiser_features: Tensor | None = None) -> list[Offset]:
        """The offsets of the denoiser's weights, of arguments as above; none in a model of words alone."""
        features = self._features(image_features, denoiser_features)
        return [] if self.hypernetwork is None else self.hypernetwork(features)

    def _features(self, image_features: Tensor, denoiser_features: Tensor | None) -> Tensor:
        width = self.config.denoiser_dim
        got = 0 if denoiser_features is None else denoiser_features.shape[-1]
        if got != width:
            raise ValueError(f"{self.name}: expected {width} features of a denoiser beside the image's, got {got}")
        return image_features if denoiser_features is None else torch.cat([image_features, denoiser_features], dim=-1)


def adapt(
    model: DomainAgnosticE4T,
    pair: TransformersPair,
    unet: nn.Module,
    prompts: Sequence[str],
    image_features: Tensor,
    latents: Tensor,
    times: Tensor,
) -> Adaptation:
    """How a pipeline is led to the concepts of B images in a step of diffusion, for `dual_path`.

    Args:
        pair, unet: of the pipeline.
        prompts: B texts with "$".
        image_features: (B, E), of the model's CLIP.
        latents: (B, C, H, W), noisy; of more items the last B count.
        times: (B,) of diffusion, or one for all.
    """
    count, seen = len(image_features), None
    if model.config.denoiser_dim:
        ids = pair.tokenize([""] * count)
        empty = encode_prompt([pair], [(ids, pair.token_embeddings(ids))]).prompt
        seen = denoiser_features(unet, latents[-count:], times, empty).to(image_features)
    words = PseudoWords(model(image_features, seen), pair.backbone)
    table = vocabulary(pair)
    nearest = table[nearest_tokens(words.embeddings[:, 0].detach(), table, 1)]
    soft, hard = (
        encode_prompt([pair], [pair.embed(list(prompts), given)]).prompt
        for given in (words, PseudoWords(nearest.to(words.embeddings), pair.backbone))
    )
    return Adaptation(words, soft, hard, model.offsets(image_features, seen))


def vocabulary(pair: TransformersPair) -> Tensor:
    """The token embeddings (V, D) of a text encoder without start, end and padding."""
    table: Tensor = pair.embedding.weight.detach()  # type: ignore[assignment, operator]
    kept = torch.ones(len(table), dtype=torch.bool, device=table.device)
    kept[[token for token in (pair.start_id, pair.end_id, pair.pad_id) if token is not None]] = False
    return table[kept]


# -- losses --------------------------------------------------------------------------------------------------------


def nearest_tokens(words: Tensor, table: Tensor, count: int) -> Tensor:
    """Ids (B, count) of the tokens of a table (V, D) that have the largest cosine with words (B, D), best first.

    Raises:
        ValueError: more tokens than the table has.
    """
    if not 1 <= count <= len(table):
        raise ValueError(f"expected 1 to {len(table)} tokens, got {count}")
    return (F.normalize(words.float(), dim=-1) @ F.normalize(table.float(), dim=-1).T).topk(count).indices


def nearest_token_loss(
    words: Tensor, table: Tensor, *, count: int, temperature: float, likeness: Likeness = "dot"
) -> Tensor:
    """Contrastive loss of words (B, D), an item each: its nearest tokens against the words of the other items.

    -log(P / (P + N)), where P sums exp(likeness / temperature) over the tokens and N over the other words; 0 for a
    single item. Tokens are nearest by cosine, whatever the likeness. In float32.

    Args:
        words: (B, D); gradients flow through them, as words and as each other's negatives.
        table: (V, D), constant; leave start, end and padding out.
        count: tokens of each item.
        temperature: of the likeness.
        likeness: dot product, or cosine.

    Returns:
        (B,); its mean is the loss.
    """
    with full_precision(words):
        words, table = words.float(), table.detach().float()
        tokens = table[nearest_tokens(words.detach(), table, count)]  # (B, count, D)
        if likeness == "cosine":
            words, tokens = F.normalize(words, dim=-1), F.normalize(tokens, dim=-1)
        near = (tokens @ words[..., None])[..., 0] / temperature
        others = words @ words.T / temperature
        others = others.masked_fill(torch.eye(len(words), dtype=torch.bool, device=words.device), -torch.inf)
        return torch.cat([near, others], dim=1).logsumexp(1) - near.logsumexp(1)


def norm_loss(words: Tensor) -> Tensor:
    """The squared norms of words (B, D), summed over the batch."""
    return words.float().square().sum()
