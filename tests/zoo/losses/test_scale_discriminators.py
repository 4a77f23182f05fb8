"""HiFi-GAN's discriminators on the waveform at several scales and of several periods."""

import pytest
import torch
import torch.nn.functional as F

from zoo.config import ConfigError
from zoo.losses.scale_discriminators import PeriodDiscriminatorConfig, ScaleDiscriminatorConfig


def test_each_scale_judges_its_half_of_the_signal() -> None:
    model = ScaleDiscriminatorConfig(scales=2, channels=(16,) * 7).build().eval()
    x = torch.randn(2, 1, 1024)
    first, second = model(x)
    assert first.logits.shape == (2, 1, 1024 // 64)
    assert [maps.shape[-1] for maps in first.features] == [1024, 512, 256, 64, 16, 16, 16, 16]
    assert first.features[-1] is first.logits
    (alone,) = (model.discriminators[1](F.avg_pool1d(x, 4, 2, padding=2)),)
    assert torch.equal(second.logits, alone.logits)
    assert all(float(maps.min()) < 0 for maps in first.features[:-1])


def test_each_period_judges_the_signal_as_it_is() -> None:
    model = PeriodDiscriminatorConfig(periods=(2, 5), channels=(2, 3)).build()
    x = torch.randn(2, 1, 40)
    even, fifth = model(x)
    assert [tuple(maps.shape) for maps in even.features] == [(2, 2, 7, 2), (2, 3, 7, 2), (2, 1, 7, 2)]  # no period more
    assert fifth.features[-1] is fifth.logits
    assert fifth.logits.shape == (2, 1, 3, 5)
    louder, _ = model(2 * x)
    assert not torch.allclose(louder.logits, even.logits)
    shorter, _ = model(x[..., :39])
    padded, _ = model(torch.nn.functional.pad(x[..., :39], (0, 1), mode="reflect"))
    assert torch.equal(shorter.logits, padded.logits)


def test_the_first_map_can_be_left_out() -> None:
    model = PeriodDiscriminatorConfig(periods=(2,), channels=(2, 3), first_map=False).build()
    (judgement,) = model(torch.randn(2, 1, 40))
    assert [tuple(maps.shape) for maps in judgement.features] == [(2, 3, 7, 2), (2, 1, 7, 2)]


def test_published_size() -> None:
    with torch.device("meta"):
        model = ScaleDiscriminatorConfig().build()
    counts = [sum(weight.numel() for weight in part.parameters()) for part in model.discriminators]
    assert counts[0] < counts[1] == counts[2]  # the first has no norms of its own to learn


def test_gradients_reach_the_signal() -> None:
    model = ScaleDiscriminatorConfig(channels=(16,) * 7).build()
    x = torch.randn(1, 1, 512, requires_grad=True)
    sum(judgement.logits.sum() for judgement in model(x)).backward()
    assert float(x.grad.abs().min()) > 0


def test_widths_that_cannot_work_are_told() -> None:
    for changes in ({"channels": (16,) * 6}, {"channels": (8,) * 7}, {"scales": 0}):
        with pytest.raises(ConfigError):
            ScaleDiscriminatorConfig(**changes)
    for changes in ({"periods": ()}, {"periods": (2, 0)}, {"channels": ()}):
        with pytest.raises(ConfigError):
            PeriodDiscriminatorConfig(**changes)
