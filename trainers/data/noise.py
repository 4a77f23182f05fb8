"""Numbers of noises as training batches, for tasks that make their own images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers.data.captions import OrderedData


class NoiseData(OrderedData[Tensor]):
    """Batches (B,) of the numbers of noises, each of which comes once in every epoch; a task draws the noise of one.

    Args:
        train: how many there are.
        batch_size, seed: see `OrderedData`.
    """

    def __init__(self, train: int = 5, batch_size: int = 1, seed: int = 0) -> None:
        super().__init__(batch_size=batch_size, workers=0, seed=seed)
        self.save_hyperparameters()
        self.noises = train

    def count(self) -> int:
        return self.noises

    def batch(self, places: Sequence[int], epoch: int) -> Tensor:
        return torch.tensor(list(places))
