"""Benchmarks: our operators and models against the libraries that do the same, equal results first, times after.

One file holds one case, or two that share their setting. `harness` times them, `memory` finds their peak memory,
`report` turns the records into tables. Nothing here imports torch before a case runs.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a case lies, and what it is about."""

    module: str  # in this package; its function `problems(case, device, quick)` lists what is measured
    about: str
    against: str | None = None  # the module whose `problems` compare with originals, checkouts by name


CASES: dict[str, Entry] = {
    "quantize": Entry("quantize", "nearest code of each vector"),
    "entropy": Entry("entropy", "entropy terms of lookup-free quantisation, forward and backward"),
    "rvq": Entry("rvq", "residual vector quantisation of audio frames"),
    "kmeans": Entry("kmeans", "Lloyd's algorithm from the same start"),
    "ema-step": Entry("ema_step", "training step of a quantizer with an EMA codebook, forward and backward"),
    "encode": Entry("models", "image to tokens, with the same weights on both sides", "against"),
    "decode": Entry("models", "tokens to image, with the same weights on both sides", "against"),
    "encode-audio": Entry("codecs", "audio to tokens, with the same weights on both sides", "against"),
    "decode-audio": Entry("codecs", "tokens to audio, with the same weights on both sides", "against"),
    "train-step": Entry("train_step", "training step of a tokenizer: forward, backward, AdamW"),
    "recompute": Entry("recompute", "training step that recomputes norms and activations, against one that keeps all"),
    "load": Entry("load", "a model of published size from a file of weights"),
    "data": Entry("data", "JPEG files to batches of square images"),
    "tokenize": Entry("tokenize", "a folder of JPEG files to shards of tokens", "tokenize"),
}
