"""`encode_tiled` and `decode_tiled` of tokenizers: images of any size, tile by tile, in the passes of `zoo.tiling`.

`model` is a `zoo.tokenizer.Tokenizer`, which imports this module for the two methods.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from zoo import tiling
from zoo.tokens import Tokens


def encode(model: Any, x: Tensor, tile: int) -> Tokens:
    """As `Tokenizer.encode_tiled`."""
    _check("encode_tiled", model, tile)
    model.spec.check(x)
    padded, multiple = model.pad(x), model.spec.multiple
    plan = _passes(model, "latent", padded, (2, 3))
    grid = model.positions(tuple(padded.shape[2:]))
    levels = tuple(torch.empty(len(x), *grid, dtype=torch.int64, device=x.device) for _ in model.vocab_sizes)
    with model._evaluating():
        parts = tiling.outputs(model, "latent", plan, padded, (2, 3), tile=tile, multiple=multiple)
        for rows, columns, latent in parts:
            for level, found in zip(levels, model.quantizer(latent).levels, strict=True):
                level[:, rows, columns] = found.to(x.device)
    return Tokens(levels, model.vocab_sizes, model.layout, None, model.source, model.extent_of(x), model.prefix)


def decode(model: Any, tokens: Tokens, tile: int) -> Tensor:
    """As `Tokenizer.decode_tiled`."""
    _check("decode_tiled", model, tile)
    model._check_tokens(tokens)
    indices, multiple = torch.stack(tokens.levels, dim=-1), model.spec.multiple  # (B, h, w, levels)
    codes = torch.empty(*indices.shape[:3], model.quantizer.config.dim, device="meta")
    plan = _passes(model, "reconstruct", codes, (1, 2))
    padded = [side * multiple for side in indices.shape[1:3]]
    size = padded if tokens.extent is None else [max(sides) for sides in zip(*tokens.extent.sizes)]
    image = torch.empty(len(tokens), model.spec.channels, *size, dtype=model.dtype, device=tokens.device)
    with model._evaluating():
        parts = tiling.outputs(
            model,
            "reconstruct",
            plan,
            indices,
            (1, 2),
            tile=tile // multiple,
            load=lambda given: model.quantizer.indices_to_codes(*given.unbind(-1)).to(model.dtype),
        )
        for rows, columns, signal in parts:
            target = image[:, :, rows, columns]
            target.copy_(signal[:, :, : target.shape[2], : target.shape[3]])
    return image


def _check(verb: str, model: Any, tile: int) -> None:
    """Raise a ValueError where images of this model cannot be cut into tiles of that size."""
    multiple = model.spec.multiple
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < 1 or tile % multiple:
        raise ValueError(f"tile: expected a positive multiple of {multiple} pixels, got {tile!r}")
    own = model.overrides("encode_levels", "decode_codes", "positions")
    if model.spec.modality != "image" or model.spec.size is not None or model.layout != "grid" or own:
        raise ValueError(f"{verb}: expected a model of images of any size on a plain grid, got {model.name}")
    if set(model.quantizer.config.level_shapes((4, 6))) != {(4, 6)}:
        raise ValueError(f"{verb}: expected a quantizer of single positions, got {model.quantizer.config.kind}")


def _passes(
    model: Any, part: Literal["latent", "reconstruct"], given: Tensor, axes: tuple[int, int]
) -> list[tiling.Pass]:
    """How a part of the network goes over tiles of what it is given."""
    verb, multiple = "encode_tiled" if part == "latent" else "decode_tiled", model.spec.multiple
    scale = Fraction(multiple) if part == "latent" else Fraction(1, multiple)
    least = 4 * multiple if part == "latent" else 4  # the reach is followed on sides that differ from 1
    sides = [max(side, least) if axis in axes else side for axis, side in enumerate(given.shape)]
    with torch.inference_mode(False), torch.device("meta"):  # as large, but without numbers
        outline = type(model)(model.config).to(model.dtype).eval()
        example = torch.empty(sides, dtype=model.dtype)
    try:
        plan = tiling.passes(outline, part, example, axes)
    except ValueError as error:
        raise ValueError(f"{verb}: {model.name} cannot be cut into tiles with exact seams: {error}") from error
    if plan[-1].maps == 0 and any(reach.scale != scale for reach in plan[-1].seen.reaches):
        raise ValueError(f"{verb}: expected a token for {multiple} x {multiple} pixels, got {plan[-1].seen.reaches}")
    return plan
