"""PseudoWords: vectors that stand among the token embeddings of a CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo import checkpoint


@dataclass(frozen=True)
class PseudoWords:
    """Words that no vocabulary holds, as a text encoder takes them: before positions are added.

    Attributes:
        embeddings: (B, n, D), n words for each of B items, D the width of the token embeddings.
        backbone: the CLIP whose token space they lie in (see `ClipPair.backbone`).

    Raises:
        ValueError: embeddings of another shape, or not of a floating point type.
    """

    embeddings: Tensor
    backbone: str

    def __post_init__(self) -> None:
        shape = tuple(self.embeddings.shape)
        if len(shape) != 3 or shape[1] == 0 or not self.embeddings.is_floating_point():
            raise ValueError(f"expected floating point words (B, n, D), got {shape} of {self.embeddings.dtype}")

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, items: int | slice | Sequence[int]) -> PseudoWords:
        """The words of some items; those of one item are a batch of one."""
        chosen = [items] if isinstance(items, int) else items
        return PseudoWords(self.embeddings[chosen], self.backbone)

    def to(self, *args: Any, **kwargs: Any) -> PseudoWords:
        """On another device or in another precision, as `Tensor.to`."""
        return PseudoWords(self.embeddings.to(*args, **kwargs), self.backbone)

    def truncate(self, count: int) -> PseudoWords:
        """The first words of each item; of projectors that order them, the coarsest.

        Raises:
            ValueError: none, or more than there are.
        """
        if not 1 <= count <= self.embeddings.shape[1]:
            raise ValueError(f"expected to keep 1 to {self.embeddings.shape[1]} words, got {count}")
        return PseudoWords(self.embeddings[:, :count], self.backbone)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that tells the CLIP as well, whole or not at all."""
        checkpoint.save(Path(path), {"words": self.embeddings}, {"backbone": self.backbone, "format": "pt"})

    @staticmethod
    def load(path: str | Path) -> PseudoWords:
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file that is none, or that `save` did not write.
        """
        state, about = checkpoint.read(Path(path)), checkpoint.metadata(Path(path))
        if set(state) != {"words"} or "backbone" not in about:
            raise checkpoint.CheckpointError(f"{path}: expected a file of PseudoWords.save, got {', '.join(state)}")
        return PseudoWords(state["words"], about["backbone"])
