"""The benchmarks of composed image retrieval by name, and a projector's numbers on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizers_visual.inversion.cir_base import PROMPTS, Benchmark, Metrics
from tokenizers_visual.inversion.cir_datasets import Circo, Cirr, FashionIQ, GeneCIS
from tokenizers_visual.inversion.cir_domains import DomainConversion
from tokenizers_visual.inversion.cir_inputs import ImageInput
from tokenizers_visual.inversion.clip import PLACEHOLDER, ClipPair
from tokenizers_visual.inversion.freedom import FreeDom
from tokenizers_visual.inversion.retrieval import FeatureStore, encode_images
from tokenizers_visual.inversion.words import PseudoWords

_READERS: dict[str, Callable[[Path, Path, str, str], list[Benchmark]]] = {
    "cirr": Cirr.read,
    "fashioniq": FashionIQ.read,
    "circo": Circo.read,
    "genecis": GeneCIS.read,
    "domains": DomainConversion.read,
}
BENCHMARKS = tuple(_READERS)


def read_benchmark(
    name: str, annotations: Path, images: Path, split: str = "val", *, family: str = "", prompt: str | None = None
) -> list[Benchmark]:
    """The parts of a benchmark, read from its own annotation files, plain or gzipped.

    Args:
        name: one of `BENCHMARKS`.
        annotations, images: folders; the images are needed only where a list of them is missing.
        split: "val", or what the file names call it.
        family: of the projector, which has its own way to ask.
        prompt: another way to ask, with "$" and `{caption}`, or `{domain}` for domain conversion.

    Raises:
        ValueError: no such benchmark, or a prompt without its fields.
        FileNotFoundError: annotation files are missing; names them.
    """
    if name not in _READERS:
        raise ValueError(f"expected a benchmark among {', '.join(_READERS)}, got {name!r}")
    if not annotations.is_dir():
        raise FileNotFoundError(f"expected a folder of annotation files, got {annotations}")
    template = prompt or PROMPTS.get(family, PROMPTS[""])[name]
    wanted = "{domain}" if name == "domains" else "{caption}"
    if PLACEHOLDER not in template or wanted not in template:
        raise ValueError(f"expected a prompt with {PLACEHOLDER} and {wanted}, got {template!r}")
    return _READERS[name](annotations, images, split, template)


def encode_pictures(
    parts: Sequence[Benchmark],
    store: FeatureStore,
    pair: ClipPair,
    preprocess: ImageInput,
    *,
    batch_size: int = 32,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Put the features of all pictures of a benchmark into a store; the arguments are those of `encode_images`.

    Raises:
        ValueError: pictures that are missing or cannot be read; the features of the others are kept.
    """
    pictures = list({picture.name: picture for part in parts for picture in part.pictures}.values())
    encode_images(store, pictures, pair, preprocess, batch_size=batch_size, advance=advance)
    if skipped := store.skipped(pictures):
        name, reason = next(iter(skipped.items()))
        raise ValueError(
            f"expected all {len(pictures)} images of the benchmark, and {len(skipped)} cannot be read, the first being "
            f"{name}: {reason}; they were looked for in {pictures[0].folder}, and the features of the others are kept "
            f"in {store.file}"
        )


def mean_of_parts(parts: Sequence[Metrics]) -> Metrics:
    """The plain mean over the parts of a benchmark, of the metrics that all of them have."""
    return {
        name: sum(part[name] for part in parts) / len(parts) for name in parts[0] if all(name in part for part in parts)
    }


# -- queries -------------------------------------------------------------------------------------------------------

Method = Literal["composed", "image", "text", "sum"]
METHODS: tuple[str, ...] = ("composed", "freedom", "image", "text", "sum")
_TEXTS = 64  # prompts in one pass


@torch.no_grad()
def query_features(
    benchmark: Benchmark, pair: ClipPair, features: Tensor, words: PseudoWords | None, method: Method = "composed"
) -> Tensor:
    """Features (Q, E) of a benchmark's queries, on the unit sphere.

    Args:
        pair: whose text encoder it is.
        features: (P, E) of all pictures.
        words: of each query's reference image; of no use but to "composed".
        method: "composed" prompts with words; or what they are measured against: the reference "image", the query's
            "text" alone, or the "sum" of the two directions.

    Raises:
        ValueError: a prompt that is too long; names the query.
    """
    images = F.normalize(features[[query.reference for query in benchmark.queries]].float(), dim=-1)
    if method == "image":
        return images
    if method == "composed":
        if words is None or len(words) != len(benchmark.queries):
            raise ValueError(
                f"expected words of {len(benchmark.queries)} queries, got {None if words is None else len(words)}"
            )
        orders = range(max(len(query.prompts) for query in benchmark.queries))
        texts = torch.stack(
            [_encoded(pair, [query.prompts[order] for query in benchmark.queries], words) for order in orders]
        )
        return F.normalize(texts.mean(0), dim=-1)
    texts = _encoded(pair, [query.text for query in benchmark.queries], None)
    return texts if method == "text" else F.normalize(images + texts, dim=-1)


def freedom_features(
    benchmark: Benchmark, pair: ClipPair, features: Tensor, model: FreeDom, vocabulary: tuple[Sequence[str], Tensor]
) -> Tensor:
    """Features (Q, E) of a benchmark's queries by FreeDom, on the unit sphere; a query's text takes the domain's place.

    All queries of the part are one call, and its gallery is the memory (all pictures, where each query has its own).

    Args:
        pair: the CLIP.
        features: (P, E) of all pictures.
        model: of the CLIP.
        vocabulary: words, and the features (N, E) of their texts.

    Raises:
        ValueError: another CLIP, or fewer pictures or words than the model's config asks for.
    """
    memory = features[list(benchmark.gallery)] if benchmark.gallery else features
    references = features[[query.reference for query in benchmark.queries]]
    texts = [query.text for query in benchmark.queries]
    return F.normalize(model.compose(pair, references, memory, vocabulary, texts), dim=-1)


def _encoded(pair: ClipPair, prompts: Sequence[str], words: PseudoWords | None) -> Tensor:
    """Directions (Q, E) of prompts; equal ones without words are encoded once."""
    if words is None:
        distinct = list(dict.fromkeys(prompts))
        parts = [pair.text_features(distinct[start : start + _TEXTS]) for start in range(0, len(distinct), _TEXTS)]
        places = {prompt: place for place, prompt in enumerate(distinct)}
        return F.normalize(torch.cat(parts).float().cpu(), dim=-1)[[places[prompt] for prompt in prompts]]
    device = next(pair.parameters()).device
    parts = []
    for start in range(0, len(prompts), _TEXTS):
        chosen = slice(start, start + _TEXTS)
        # a "$" of a caption itself is a word as any other
        parts.append(pair.compose(prompts[chosen], words[chosen].to(device), fill="first"))
    return F.normalize(torch.cat(parts).float().cpu(), dim=-1)
