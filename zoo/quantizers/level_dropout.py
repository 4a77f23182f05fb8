"""Quantizer dropout: training with a random number of first levels, so that each such prefix decodes well.

SoundStream, arXiv 2107.03312; in steps of several levels: EnCodec, arXiv 2210.13438; per item: DAC, arXiv 2306.06546.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from zoo.config import Config
from zoo.ops.collective import world_size


@dataclass(frozen=True)
class LevelDropoutConfig(Config):
    """How many levels a training batch, or each of its items, uses.

    Attributes:
        minimum: the least number of levels; each number from it to all is as likely.
        multiple_of: the number is rounded up to a multiple of it (or to all levels).
        share: of the items that are shortened; without `per_item` the chance that a batch is.
        per_item: each item draws its own number. The first items of the batch are those that do, as many as `share`
            says, and all levels go on looking at every item (DAC, with a share of 0.5). Otherwise one number holds for
            the batch, on all processes.
        choices: numbers that alone are drawn, each as likely (X-Codec); larger ones than there are levels stand for
            all. Empty: as the first two say.
    """

    minimum: int = 1
    multiple_of: int = 1
    share: float = 1.0
    per_item: bool = False
    choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.require(self.minimum >= 1, "a minimum >= 1", self.minimum)
        self.require(self.multiple_of >= 1, "multiple_of >= 1", self.multiple_of)
        alone = self.minimum == self.multiple_of == 1
        wanted = "choices >= 1 that differ, without minimum and multiple_of"
        valid = not self.choices or (min(self.choices) >= 1 and len(set(self.choices)) == len(self.choices) and alone)
        self.require(valid, wanted, self.choices)
        self.require(0 < self.share <= 1, "a share in (0, 1]", self.share)

    def draw_batch(self, most: int, device: torch.device) -> int:
        """A number of levels, at most `most`, for a batch; the same on all processes."""
        number = self._draw(1, most)
        if float(torch.rand((), device="cpu")) >= self.share:
            number.fill_(most)
        if world_size() > 1:
            number = number.to(device)
            torch.distributed.broadcast(number, src=0)
        return int(number)

    def draw_items(self, most: int, items: int) -> Tensor:
        """(B,) a number of levels, at most `most`, for each item."""
        counts = torch.full((items,), most, device="cpu")
        shortened = int(items * self.share)
        counts[:shortened] = self._draw(shortened, most)
        return counts

    def _draw(self, count: int, most: int) -> Tensor:
        if self.choices:
            numbers = torch.tensor(self.choices, device="cpu")
            return numbers[torch.randint(len(numbers), (count,), device="cpu")].clamp(max=most)
        drawn = torch.randint(self.minimum, most + 1, (count,), device="cpu")
        return (drawn + -drawn % self.multiple_of).clamp(max=most)
