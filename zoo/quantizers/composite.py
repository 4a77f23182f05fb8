"""What the quantizers that are built of other quantizers share: their parts' configs, losses and modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.quantizers.base import Quantizer, QuantizerConfig, straight_through
from zoo.quantizers.gradients import GradientConfig, StraightThroughConfig
from zoo.quantizers.level_dropout import LevelDropoutConfig


def each(config: QuantizerConfig | tuple[QuantizerConfig, ...], count: int) -> tuple[QuantizerConfig, ...]:
    """The config of each of `count` parts: one config stands for all of them."""
    return config if isinstance(config, tuple) else (config,) * count


def require_levels(config: QuantizerConfig, levels: Sequence[Tensor]) -> None:
    """Raise a ValueError unless there are as many levels as the config has or, with prefixes, at least one."""
    expected = len(config.vocab_sizes)
    if len(levels) != expected and not (config.prefix and 0 < len(levels) < expected):
        raise ValueError(f"expected {'1 to ' if config.prefix else ''}{expected} levels, got {len(levels)}")


def split_levels(parts: Sequence[QuantizerConfig], levels: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The levels of each part, those of one after those of the other; parts beyond the given ones get none."""
    split = []
    for part in parts:
        split.append(levels[: len(part.vocab_sizes)])
        levels = levels[len(part.vocab_sizes) :]
    return split


def drops_levels(config: QuantizerConfig) -> bool:
    """Whether a quantizer or one inside it has quantizer dropout."""
    return any(isinstance(part, LevelDropoutConfig) for part in _inside(config))


def needs_its_gradient(config: QuantizerConfig) -> bool:
    """Whether a straight-through gradient must not stand in for that of a quantizer or of one inside it."""
    return any(
        getattr(part, "own_gradient", False) or (isinstance(part, GradientConfig) and part != StraightThroughConfig())
        for part in _inside(config)
    )


def _inside(config: Config) -> Iterator[Config]:
    """The config and all that it holds."""
    yield config
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Config):
                yield from _inside(part)


def mean_by_name(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars of several parts as one dict: under each name the mean over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A block without gradients in which the module is in evaluation mode."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def prefix_codes(quantizer: Quantizer, z: Tensor, count: int) -> Tensor:
    """What the first `count` levels alone make of latents, as in evaluation: for losses on them, such as distillation.

    In training it is to be called before the quantizer's own pass, which moves its codebooks.

    Args:
        quantizer: one whose prefixes make sense (`config.prefix`).
        z: (B, *positions, D).
        count: from 1 to the number of levels.

    Returns:
        (B, *positions, D) float32, with the identity's gradient to z.
    """
    with evaluating(quantizer):
        codes = quantizer.indices_to_codes(*quantizer(z).levels[:count])
    return straight_through(z.float(), codes)
