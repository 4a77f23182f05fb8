"""Our models in half precision beside float32: where that is fast, and how far the results agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from zoo.bench.peers import ZOO
from zoo.bench.problem import Contender, Verdict
from zoo.tokenizer import Tokenizer

D = TypeVar("D")

_LEAST = 0.5  # the share of tokens that must be those of float32: a long token differs if one of its bits does
_LARGEST = 0.1  # root mean square error of a decoded signal, relative to its own root mean square


def precisions(device: str) -> dict[str, torch.dtype]:
    """Contender -> the type of its weights, where the device computes in it: float16 on a GPU, and bfloat16 there and
    on a CPU with instructions for it.
    """
    if device == "cuda":
        return {f"{ZOO}, bfloat16": torch.bfloat16, f"{ZOO}, float16": torch.float16}
    return {f"{ZOO}, bfloat16": torch.bfloat16} if torch.cpu._is_avx512_bf16_supported() else {}


def contenders(
    device: str, build: Callable[[torch.dtype], Callable[[D], Callable[[], Any]]]
) -> tuple[Contender[D], ...]:
    """One for each precision; `build` makes what builds its action."""
    return tuple(Contender(name, build(dtype)) for name, dtype in precisions(device).items())


def rounded(model: Tokenizer, dtype: torch.dtype) -> Tokenizer:
    """A copy of the model in that precision, which takes the model's tokens."""
    twin = copy.deepcopy(model)
    _ = twin.source  # the fingerprint is of the weights before the cast
    return twin.to(dtype)


def judge_tokens(found: Tensor, expected: Tensor) -> Verdict:
    """How many indices are those of float32."""
    if found.shape != expected.shape:
        return Verdict(False, f"wrong: indices of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    agreement = float((found == expected).double().mean())
    text = f"{100 * agreement:.1f} % of the tokens as in float32"
    return Verdict(agreement >= _LEAST, text if agreement >= _LEAST else f"wrong: {text}", agreement)


def judge_signals(found: Tensor, expected: Tensor) -> Verdict:
    """How far a decoded signal is from that of float32."""
    if found.shape != expected.shape:
        return Verdict(False, f"wrong: signals of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    found, expected = found.double(), expected.double()
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    near = error <= _LARGEST  # false for NaN too
    text = f"within {100 * error:.2g} % of float32, root mean square"
    return Verdict(near, text if near else f"wrong: {text}")
