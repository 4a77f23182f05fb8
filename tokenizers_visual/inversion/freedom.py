"""FreeDom: domain conversion without training; an image becomes words of a vocabulary, voted for by its neighbours.

Paper: arXiv 2412.03297. Original: NikosEfth/freedom (MIT).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.clip import ClipPair
from tokenizers_visual.inversion.projector import WordModel
from zoo.config import Config
from zoo.registry import register

Baseline = Literal["image", "text", "sum", "product"]
_CHUNK = 64  # queries that are compared with all images, and texts that are encoded, at once
_SMALL = 1e-5  # keeps the shares of queries without a positive finite


@dataclass(frozen=True)
class FreeDomConfig(Config):
    """How an image's words are found; the defaults are the published ones."""

    backbone: str = "openai/clip-vit-large-patch14"
    neighbours: int = 20  # images that vote for an image's words
    words_per_image: int = 7  # votes of each
    words: int = 7  # of the largest number of votes
    known: float = 0.98  # cosine from which on a query is taken to be in the memory itself

    def __post_init__(self) -> None:
        self.require(bool(self.backbone), "the name of a CLIP", self.backbone)
        self.require(min(self.neighbours, self.words_per_image, self.words) > 0, "positive counts", self.to_dict())


@dataclass(frozen=True)
class VotedWords:
    """The words of Q queries, as places in the vocabulary.

    Attributes:
        voters: (Q, neighbours, E), the features of the images that voted.
        votes: (Q, neighbours, words_per_image), the words nearest to each, best first.
        labels: (Q, m), the words of the most votes; -1 where there are no more.
        weights: (Q, m), votes over the most votes; 0 where there are no more.
    """

    voters: Tensor
    votes: Tensor
    labels: Tensor
    weights: Tensor

    def prompts(self, vocabulary: Sequence[str], domain: str | Sequence[str]) -> list[str]:
        """ "word domain" for each query and word, query by query; the domain alone, after a blank, for none.

        Args:
            vocabulary: the words.
            domain: of all queries, or of each.
        """
        domains = [domain] * len(self.labels) if isinstance(domain, str) else domain
        return [
            f"{vocabulary[label] if label >= 0 else ''} {text}"
            for text, row in zip(domains, self.labels.tolist(), strict=True)
            for label in row
        ]

    def fuse(self, text_features: Tensor) -> Tensor:
        """Features (Q m, E) of the prompts -> queries (Q, E), their weighted sum; not normalised."""
        return (self.weights[..., None] * text_features.unflatten(0, self.labels.shape)).sum(1)


@register("freedom")
class FreeDom(WordModel):
    """Image features (Q, E) -> words of a vocabulary. It has no weights; all features are normalised here."""

    config: FreeDomConfig

    def __init__(self, config: FreeDomConfig) -> None:
        super().__init__(config)

    @torch.no_grad()
    def invert(self, queries: Tensor, memory: Tensor, vocabulary: Tensor) -> VotedWords:
        """The words of image features.

        Where a query of the call is unlike all of the memory, each query votes too; so the words of one query depend
        on the others. The original gives it the queries of one domain at a time.

        Args:
            queries: (Q, E).
            memory: (M, E), of the images that may vote: those searched in.
            vocabulary: (N, E), of the words' texts, without a template.

        Raises:
            ValueError: fewer images or words than the config asks for, or features of unlike widths.
        """
        self._check(queries, memory, vocabulary)
        queries, memory, vocabulary = (F.normalize(part.float(), dim=-1) for part in (queries, memory, vocabulary))
        near = [(part @ memory.T).topk(self.config.neighbours) for part in queries.split(_CHUNK)]
        voters = memory[torch.cat([part.indices for part in near])]
        if min(part.values[:, 0].min() for part in near) < self.config.known:
            voters = torch.cat([queries[:, None], voters[:, :-1]], dim=1)
        votes = torch.cat(
            [(part @ vocabulary.T).topk(self.config.words_per_image).indices for part in voters.split(_CHUNK)]
        )
        counted = [Counter(row).most_common(self.config.words) for row in votes.flatten(1).tolist()]
        columns = max(map(len, counted))
        labels = votes.new_full((len(votes), columns), -1)
        weights = memory.new_zeros(len(votes), columns)
        for row, chosen in enumerate(counted):
            numbers = torch.tensor(chosen, device=labels.device)
            labels[row, : len(chosen)] = numbers[:, 0]
            weights[row, : len(chosen)] = numbers[:, 1] / numbers[0, 1]
        return VotedWords(voters, votes, labels, weights)

    @torch.no_grad()
    def compose(
        self,
        pair: ClipPair,
        queries: Tensor,
        memory: Tensor,
        vocabulary: tuple[Sequence[str], Tensor],
        domain: str | Sequence[str],
    ) -> Tensor:
        """Queries (Q, E) for images of the same thing in another domain; not normalised.

        Args:
            pair: the CLIP.
            queries, memory: see `invert`.
            vocabulary: words, and the features (N, E) of their texts.
            domain: what images all queries ask for, or each: "origami".

        Raises:
            ValueError: another CLIP, or what `invert` refuses.
        """
        words, features = vocabulary
        return self.directions(pair, self.invert(queries, memory, features), words, domain)

    @torch.no_grad()
    def directions(
        self, pair: ClipPair, voted: VotedWords, words: Sequence[str], domain: str | Sequence[str]
    ) -> Tensor:
        """What `compose` gives, of words that were voted for already."""
        self.check_backbone(pair)
        prompts = voted.prompts(words, domain)
        distinct = list(dict.fromkeys(prompts))
        chunks = [distinct[start : start + _CHUNK] for start in range(0, len(distinct), _CHUNK)]
        texts = F.normalize(torch.cat([pair.text_features(chunk) for chunk in chunks]).float(), dim=-1)
        places = {prompt: place for place, prompt in enumerate(distinct)}
        return voted.fuse(texts[[places[prompt] for prompt in prompts]].to(voted.weights.device))

    def _check(self, queries: Tensor, memory: Tensor, vocabulary: Tensor) -> None:
        shapes = [tuple(part.shape) for part in (queries, memory, vocabulary)]
        if any(len(shape) != 2 for shape in shapes) or len({shape[-1] for shape in shapes}) > 1 or not shapes[0][0]:
            raise ValueError(f"expected queries (Q, E), memory (M, E) and vocabulary (N, E), got {shapes}")
        config = self.config
        for name, count, least in (
            ("images in memory", shapes[1][0], config.neighbours),
            ("words in the vocabulary", shapes[2][0], config.words_per_image),
        ):
            if count < least:
                raise ValueError(f"expected at least {least} {name}, got {count}")


def baseline(method: Baseline, queries: Tensor, gallery: Tensor, domain: Tensor) -> Tensor:
    """Similarities (Q, M) of plain methods: the cosine of the image, of the domain's text, their sum or their product.

    Args:
        queries, gallery, domain: normalised features (Q, E), (M, E) and (1, E).
    """
    image, text = queries @ gallery.T, (domain @ gallery.T).expand(len(queries), -1)
    return {"image": image, "text": text, "sum": image + text, "product": image * text}[method]


def rank(similarity: Tensor) -> Tensor:
    """Similarities (Q, M) -> places in the gallery (Q, M), best first; of equals the first.

    Raises:
        ValueError: NaN, which has no place.
    """
    if similarity.isnan().any():
        raise ValueError("expected similarities, got NaN")
    return similarity.argsort(dim=-1, descending=True, stable=True)


def average_precision(positive: Tensor) -> Tensor:
    """Areas (Q,) under the curves of precision over recall, as the Oxford and Paris benchmarks have them.

    Args:
        positive: bool (Q, M), of the gallery from the best rank on.
    """
    ranks = torch.arange(positive.shape[1], device=positive.device, dtype=torch.float64)
    found = positive.cumsum(1).double()
    before = torch.where(ranks == 0, 1.0, (found - 1) / ranks.clamp_min(1))
    here = found / (ranks + 1)
    steps = (before + here) / 2 * positive
    return steps.sum(1) / (positive.sum(1) + _SMALL)


def retrieval_metrics(positive: Tensor, at: Sequence[int]) -> dict[str, float]:
    """In percent: `mAP`, and at each rank k recall `R@k` and precision `P@k`; see `average_precision`.

    Raises:
        ValueError: a rank below 1.
    """
    if min(at, default=1) < 1:
        raise ValueError(f"at: expected ranks of at least 1, got {tuple(at)}")
    count = positive.sum(1).double()
    metrics = {"mAP": average_precision(positive).mean().item()}
    for k in at:
        found = positive[:, :k].sum(1)
        metrics[f"R@{k}"] = (found / (count + _SMALL)).mean().item()
        metrics[f"P@{k}"] = (found / (count.clamp_max(k) + _SMALL)).mean().item()
    return {name: 100 * value for name, value in metrics.items()}


def config_from_original(meta: dict[str, Any]) -> FreeDomConfig:
    """The config of the original's arguments."""
    kwargs = meta["original"]["kwargs"]
    return FreeDomConfig(
        backbone=meta.get("clip") or FreeDomConfig.backbone,
        neighbours=kwargs.get("kappa", 20),
        words_per_image=kwargs.get("ni", 7),
        words=kwargs.get("miu", 7),
    )
