"""Discriminators on magnitudes of plain spectra, of Vocos and WavTokenizer."""

import pytest
import torch

from zoo.config import ConfigError
from zoo.losses.spectrum_discriminators import SpectrumDiscriminatorConfig

SMALL = SpectrumDiscriminatorConfig(n_ffts=(64, 256), hop_lengths=(16, 64), channels=2)


def test_each_transform_judges_its_spectrum() -> None:
    judgements = SMALL.build()(torch.randn(2, 1, 1024))
    assert [judgement.logits.shape for judgement in judgements] == [(2, 1, 2, 9), (2, 1, 5, 3)]
    assert [maps.shape[1:] for maps in judgements[0].features] == [
        (2, 17, 33), (2, 9, 33), (2, 5, 17), (2, 3, 17), (2, 2, 9), (1, 2, 9),
    ]  # fmt: skip
    assert judgements[0].features[-1] is judgements[0].logits


def test_a_spectrum_without_window_tells_no_phase() -> None:
    """A cycle that fills the frames lies in one bin, with the same magnitude wherever a frame begins."""
    model = SpectrumDiscriminatorConfig(n_ffts=(64,), hop_lengths=(16,), channels=2).build()
    time = torch.arange(1024) / 64
    one, other = (model(torch.sin(2 * torch.pi * 8 * time + phase)[None, None])[0].features[0] for phase in (0.0, 1.0))
    middle = slice(6, -6)  # the ends are reflected
    torch.testing.assert_close(one[..., middle], other[..., middle], atol=1e-4, rtol=0)
    assert float((one - model(torch.zeros(1, 1, 1024))[0].features[0])[..., middle].abs().max()) > 0.1


def test_published_size() -> None:
    with torch.device("meta"):
        model = SpectrumDiscriminatorConfig().build()
    weights = [conv.parametrizations.weight.original1.shape for conv in model.discriminators[-1].convs]
    assert weights == [(64, 1, 7, 5), (64, 64, 5, 3), (64, 64, 5, 3), (64, 64, 3, 3), (64, 64, 3, 3)]
    assert len(model.discriminators) == 3


def test_gradients_reach_the_signal_and_silence_is_finite() -> None:
    model = SMALL.build()
    noise, silence = torch.randn(1, 1, 1024).requires_grad_(), torch.zeros(1, 1, 1024, requires_grad=True)
    for x in (noise, silence):
        with torch.autocast("cpu", torch.bfloat16):
            sum(judgement.logits.float().sum() for judgement in model(x)).backward()
        assert x.grad.isfinite().all()
    assert float(noise.grad.abs().max()) > 0


def test_sizes_that_cannot_work_are_told() -> None:
    for changes in ({"n_ffts": (64,)}, {"n_ffts": (), "hop_lengths": ()}, {"channels": 0}):
        with pytest.raises(ConfigError):
            SpectrumDiscriminatorConfig(**changes)
