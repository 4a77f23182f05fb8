"""Checks of `zoo.bpe` by fixtures of Being-VL's encoding, which is no model and so has no manifest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from zoo import bpe


class Case:
    """One method per kind of check, as of `zoo.parity.Case`."""

    def fit(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        size = settings["codebook_size"]
        pairs = bpe.train_flat(inputs["corpus"], size, settings["num_merges"])
        return {"merges": torch.tensor([[*pair, size + k] for k, pair in enumerate(pairs)])}

    def encode(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        rows = bpe.apply_flat(_pairs(inputs["merges"]), settings["codebook_size"], inputs["grids"])
        lengths = torch.tensor([len(row) for row in rows])
        return {"indices": pad_sequence(rows, batch_first=True, padding_value=-1), "lengths": lengths}

    def encode_stream(self, inputs: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
        """Ids of a language model: codes lie from `vocab_pad`, and merged tokens from `vocab_end`."""
        size, first, merged = settings["codebook_size"], settings["vocab_pad"], settings["vocab_end"]
        grid = inputs["stream"].view(1, *settings["grid"]) - first
        (tokens,) = bpe.apply_flat(_pairs(inputs["merges"]), size, grid)
        return {"stream": torch.where(tokens < size, tokens + first, tokens - size + merged)}


def _pairs(merges: Tensor) -> list[tuple[int, int]]:
    return [(first, second) for first, second, _ in merges.tolist()]
