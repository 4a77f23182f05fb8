"""How many tokens an image gets, where a model leaves the choice: the counts that `encode` is given, the cut, and the
search for the fewest tokens that reach a stated quality.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from zoo.config import Config


@dataclass(frozen=True)
class Quality(Config):
    """What a reconstruction must reach, for `encode(x, quality=Quality(psnr=30))`; of several bounds each.

    Measured as `zoo.metrics.image` does, on reconstructions clamped to the range of pixels but not rounded to 8 bits.

    Attributes:
        psnr: dB, at least.
        ssim, ms_ssim: at least; `ms_ssim` of images with sides of at least 176 pixels.
        lite2_distance, lpips_alex, lpips_vgg: perceptual distances, at most.

    Raises:
        ConfigError: no bound, or one that is no finite number.
    """

    psnr: float | None = None
    ssim: float | None = None
    ms_ssim: float | None = None
    lite2_distance: float | None = None
    lpips_alex: float | None = None
    lpips_vgg: float | None = None

    def __post_init__(self) -> None:
        self.require(len(self.bounds) > 0, f"a bound of {', '.join(f.name for f in fields(self))}", "none")
        for name, bound in self.bounds.items():
            number = isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) < float("inf")
            self.require(number, f"{name} to be a finite number", bound)

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are stated, by the names of their metrics."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def met(self, images: Tensor, targets: Tensor) -> list[bool]:
        """Whether each image (B, 3, H, W) in [0, 1] reaches its target of the same shape and range.

        Raises:
            ValueError: images that a metric does not take.
        """
        from zoo.metrics.image import IMAGE_METRICS

        reached = torch.ones(len(images), dtype=torch.bool, device="cpu")
        for name, bound in self.bounds.items():
            metric, measure = IMAGE_METRICS[name]
            values = measure(images, targets).cpu()
            reached &= values >= bound if metric.better == "higher" else values <= bound
        return reached.tolist()


def fewest(met: Callable[[list[int]], list[bool]], items: int, allowed: Sequence[int]) -> list[int]:
    """Of each item the least of the allowed numbers that is enough, by bisection over all items at once.

    Where quality does not quite rise with the number, the one found is enough while the next lower one is not.

    Args:
        met: numbers of all items -> whether each is enough.
        items: how many.
        allowed: numbers, ascending. An item for which the largest is not enough gets it all the same.
    """
    low, high = [0] * items, [len(allowed) - 1] * items  # the answer's place among the allowed
    while any(a < b for a, b in zip(low, high)):
        middle = [(a + b) // 2 for a, b in zip(low, high)]
        for item, enough in enumerate(met([allowed[place] for place in middle])):
            if low[item] < high[item]:
                low[item], high[item] = (low[item], middle[item]) if enough else (middle[item] + 1, high[item])
    return [allowed[place] for place in low]


def token_counts(num_tokens: int | list[int] | None, batch: int, allowed: Sequence[int]) -> list[int]:
    """The number of tokens of each item.

    Args:
        num_tokens: one number for all items, or one for each; None stands for the most.
        batch: number of items.
        allowed: the numbers that the model can give, ascending.

    Raises:
        ValueError: another number, one that is no integer, or not as many of them as items.
    """
    most = allowed[-1]
    given: list[int] = [most] * batch
    if isinstance(num_tokens, list | tuple):
        given = list(num_tokens)
    elif num_tokens is not None:
        given = [num_tokens] * batch
    if len(given) != batch:
        raise ValueError(f"num_tokens: expected one number for each of {batch} items, got {len(given)}")
    for count in given:
        if isinstance(count, bool) or not isinstance(count, int) or count not in allowed:
            wanted = f"an integer from {allowed[0]} to {most}"
            if isinstance(allowed, range) and allowed.step > 1:
                wanted += f" in steps of {allowed.step}"
            raise ValueError(f"num_tokens: expected {wanted}, got {count!r}")
    return given


def cut(levels: Sequence[Tensor], counts: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The first tokens of each item: index tensors (B, N), zero beyond an item's count, and lengths if they differ."""
    longest = max(counts)
    levels = tuple(level[:, :longest] for level in levels)
    if min(counts) == longest:
        return levels, None
    lengths = torch.tensor(counts, dtype=torch.int64, device=levels[0].device)
    beyond = torch.arange(longest, device=lengths.device) >= lengths[:, None]
    return tuple(level.masked_fill(beyond, 0) for level in levels), lengths
