"""Numbers of levels that a training pass is cut to, of choice: those of X-Codec's bit rates."""

import pytest
import torch

from zoo.config import ConfigError
from zoo.quantizers import LevelDropoutConfig, ResidualConfig, VectorConfig


def test_only_the_choices_are_drawn_each_as_often() -> None:
    torch.manual_seed(0)
    dropout = LevelDropoutConfig(choices=(1, 2, 3, 4, 8))
    drawn = [dropout.draw_batch(8, torch.device("cpu")) for _ in range(1000)]
    assert {number: drawn.count(number) for number in set(drawn)} == {
        number: pytest.approx(200, abs=45) for number in (1, 2, 3, 4, 8)
    }
    assert {dropout.draw_batch(5, torch.device("cpu")) for _ in range(100)} == {1, 2, 3, 4, 5}
    items = LevelDropoutConfig(choices=(2, 4), share=0.5, per_item=True).draw_items(8, 40)
    assert set(items[:20].tolist()) == {2, 4}
    assert set(items[20:].tolist()) == {8}


def test_a_quantizer_takes_as_many_levels() -> None:
    torch.manual_seed(0)
    quantizer = ResidualConfig(VectorConfig(8, 4), 4, dropout=LevelDropoutConfig(choices=(1, 3))).build().train()
    z = torch.randn(2, 5, 4)
    assert {len(quantizer(z).levels) for _ in range(30)} == {1, 3}
    assert len(quantizer.eval()(z).levels) == 4


@pytest.mark.parametrize("settings", [{"choices": (0, 2)}, {"choices": (2, 2)}, {"choices": (2, 4), "minimum": 2}])
def test_choices_that_cannot_work_are_told(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="choices >= 1 that differ, without minimum and multiple_of"):
        LevelDropoutConfig(**settings)  # type: ignore[arg-type]
