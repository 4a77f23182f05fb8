"""X-Codec's discriminators on mel spectra."""

import pytest
import torch

from zoo.config import ConfigError
from zoo.losses.frequency_discriminators import FrequencyDiscriminatorConfig


def test_each_hop_length_judges_its_spectrum() -> None:
    model = FrequencyDiscriminatorConfig(hop_lengths=(32, 64), channels=(32, 64)).build()
    judgements = model(torch.randn(2, 1, 4000))
    assert len(judgements) == 2
    assert [judgement.logits.shape for judgement in judgements] == [(2, 1, 9, 16), (2, 1, 17, 8)]
    assert [maps.shape[1:] for maps in judgements[0].features] == [
        (1, 65, 126), (2, 33, 63), (4, 33, 63), (8, 17, 32), (16, 17, 32), (32, 9, 16),
    ]  # fmt: skip


def test_levels_run_from_80_decibels_below_one_to_twenty_above() -> None:
    model = FrequencyDiscriminatorConfig(hop_lengths=(64,), channels=(32,)).build()
    (part,) = model.discriminators
    magnitude, level = part._image(0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0)))[0]
    assert torch.allclose(level, ((20 * magnitude.log10() + 80) / 100).clamp(0, 1))
    _, silent = part._image(torch.zeros(1, 1, 4000))[0]
    assert float(silent.max()) < 0.2


def test_published_size() -> None:
    with torch.device("meta"):
        model = FrequencyDiscriminatorConfig().build()
    assert len(model.discriminators) == 6
    assert model.discriminators[-1].conv_post.parametrizations.weight.original1.shape == (1, 512, 3, 3)


def test_gradients_reach_the_signal() -> None:
    model = FrequencyDiscriminatorConfig(hop_lengths=(32,), channels=(32,)).build()
    x = torch.randn(1, 1, 2000, requires_grad=True)
    sum(judgement.logits.sum() for judgement in model(x)).backward()
    assert x.grad.isfinite().all()
    assert float(x.grad.abs().max()) > 0


def test_widths_that_cannot_work_are_told() -> None:
    for changes in ({"channels": (64,)}, {"channels": (16,) * 6}, {"hop_lengths": (), "channels": ()}):
        with pytest.raises(ConfigError):
            FrequencyDiscriminatorConfig(**changes)
