"""BaTex: a learned word that stays in the span of real words near to an initial one; only its coordinates are trained.

Paper: "Efficient Personalized Text-to-image Generation by Leveraging Textual Subspace". Original: studying910/BaTex
(no licence stated).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.projector import WordModel, WordsConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo.checkpoint import KeyMap
from zoo.registry import register

Measure = Literal["dot", "l2", "cosine", "random"]


@dataclass(frozen=True)
class BaTexConfig(WordsConfig):
    """The size of the basis, and how it is chosen; the defaults are those of the published script."""

    backbone: str = "runwayml/stable-diffusion-v1-5"
    size: int = 720  # real words that span the subspace
    measure: Measure = "dot"  # of likeness to the initial word

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.size > 0, "a basis of at least one word", self.size)


@register("batex")
class BaTex(WordModel):
    """One word (1, 1, D) = weight^T basis. It starts as the first word of its basis, and is zero before it has one."""

    config: BaTexConfig

    def __init__(self, config: BaTexConfig) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.zeros(config.size, 1))
        self.register_buffer("basis", torch.zeros(config.size, config.word_dim))
        self.register_buffer("ids", torch.zeros(config.size, dtype=torch.int64))
        with torch.no_grad():
            self.weight[0] = 1

    @classmethod
    def from_vocabulary(
        cls, config: BaTexConfig, table: Tensor, word: int, *, second: int | None = None, seed: int = 0
    ) -> Self:
        """A word at its start.

        Args:
            table: (V, D), the embeddings of real words.
            word, second, seed: see `choose_basis`.

        Raises:
            ValueError: a basis that cannot be chosen, or a table of another width.
        """
        if table.shape[-1] != config.word_dim:
            raise ValueError(f"expected a table (V, {config.word_dim}), got {tuple(table.shape)}")
        model = cls(config)
        ids = choose_basis(table, word, config.size, config.measure, second=second, seed=seed)
        with torch.no_grad():
            model.ids.copy_(ids)  # type: ignore[operator]
            model.basis.copy_(table[ids])  # type: ignore[operator]
        return model

    def forward(self) -> PseudoWords:
        return PseudoWords((self.weight.T @ self.basis)[None], self.config.backbone)  # type: ignore[operator]

    def regulariser(self) -> Tensor:
        """|1 - sum of the weights|, 0 for a word among real ones; the original weighs it by 0."""
        return (1 - self.weight.sum()).abs()


def choose_basis(
    table: Tensor, word: int, size: int, measure: Measure = "dot", *, second: int | None = None, seed: int = 0
) -> Tensor:
    """Ids (size,) of the words of a table (V, D) that are most like one of them, the most alike first.

    Args:
        word: id of the initial word. By dot product it need not be the first, nor among them.
        measure: "random": the word itself, then any others.
        second: id of a word that is the last of the basis, beside one fewer like the first.
        seed: of "random".

    Raises:
        ValueError: more words than the table has, a word outside it, or a second word that is there already or that
            the measure does not go with.
    """
    if not 0 <= word < len(table) or not 1 <= size <= len(table):
        raise ValueError(f"expected a word and a size within {len(table)} words, got {word} and {size}")
    if second is not None and measure not in ("dot", "cosine"):
        raise ValueError(f"expected a second word with measure 'dot' or 'cosine', got {measure!r}")
    near = size if second is None else size - 1
    if measure == "random":
        others = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed)).to(table.device)
        ids = torch.cat([others.new_tensor([word]), others[others != word]])[:near]
    else:
        ids = _likeness(table, table[word], measure).topk(near).indices
    if second is None:
        return ids
    if (ids == second).any():
        raise ValueError(f"expected a second word that is not in the basis, got {second}")
    return torch.cat([ids, ids.new_tensor([second])])


def _likeness(table: Tensor, word: Tensor, measure: Measure) -> Tensor:
    if measure == "l2":
        return -(table - word).norm(dim=-1)
    return table @ word if measure == "dot" else F.cosine_similarity(table, word[None], dim=-1)


def config_from_original(meta: dict[str, Any]) -> BaTexConfig:
    """The config of the original's arguments, with the width of the text encoder beside it."""
    encoder = meta["companions"]["clip_text"]["config"]
    return BaTexConfig(word_dim=encoder["hidden_size"], size=meta["original"]["kwargs"]["mask_k"])


KEY_MAP = KeyMap(
    {
        "weight_vector": "weight",
        "candidate_embedding_matrix": "basis",
        "vocab_ids": "ids",
        "*": None,  # the word itself, under its name in prompts
    }
)
