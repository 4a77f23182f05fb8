"""Losses on spectra at several resolutions, and the bands they split signals into."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from zoo.config import ConfigError
from zoo.losses.multi_resolution import (
    Bands,
    CompressedSpectrumLoss,
    MultiResolutionSTFT,
    MultiResolutionSTFTConfig,
)


def test_one_transform_is_the_definition() -> None:
    one, other = torch.randn(2, 3, 1, 2000, generator=torch.Generator().manual_seed(0))
    config = MultiResolutionSTFTConfig(n_ffts=(256,), hop_lengths=(60,), window_lengths=(200,))
    magnitudes = []
    for x in (one, other):
        padded = F.pad(x, (128, 128), mode="reflect")[:, 0].double().numpy()
        window = np.pad(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200), 28)
        frames = np.stack([padded[:, i : i + 256] for i in range(0, padded.shape[1] - 255, 60)], axis=1)
        magnitudes.append(np.maximum(np.abs(np.fft.rfft(frames * window)), 1e-7**0.5))
    made, wanted = magnitudes
    expected = np.linalg.norm(made - wanted) / np.linalg.norm(wanted) + np.abs(np.log(made) - np.log(wanted)).mean()
    assert float(MultiResolutionSTFT(config)(one, other)) == pytest.approx(expected, rel=1e-4)


def test_several_transforms_are_averaged() -> None:
    one, other = torch.randn(2, 1, 1, 4000, generator=torch.Generator().manual_seed(0))
    sizes = {"n_ffts": (512, 1024), "hop_lengths": (50, 120), "window_lengths": (240, 600)}
    alone = [
        float(MultiResolutionSTFT(MultiResolutionSTFTConfig(**{k: (v[i],) for k, v in sizes.items()}))(one, other))
        for i in range(2)
    ]
    together = float(MultiResolutionSTFT(MultiResolutionSTFTConfig(**sizes))(one, other))
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_bands_hold_the_energy_of_their_frequencies(count: int) -> None:
    bands = Bands(count)
    x = torch.randn(1, 1, 4801, generator=torch.Generator().manual_seed(0))
    assert bands(x).shape == (1, count, -(-4801 // count))
    for k in range(count):
        tone = torch.sin(torch.pi * (k + 0.5) / count * torch.arange(4800))[None, None]
        energy = bands(tone)[0].square().mean(1)
        assert int(energy.argmax()) == k
        assert float(energy[k]) > 0.99 * float(energy.sum())


@pytest.mark.parametrize("count", [4, 6])
def test_mirrored_filters_give_the_signal_back(count: int) -> None:
    bands = Bands(count)
    x = torch.randn(1, 1, 1200, generator=torch.Generator().manual_seed(0))
    parts = bands(x)
    spread = F.conv_transpose1d(parts, torch.eye(count)[:, :, None], stride=count, groups=1)[..., :1]
    raised = torch.zeros(1, count, 1200)
    raised[..., ::count] = count * parts
    back = F.conv1d(F.pad(raised, (31, 31)), bands.filters.flip(-1).transpose(0, 1))
    assert spread.shape[1] == count
    assert float((back - x)[..., 100:-100].abs().max()) < 0.02


def test_gradients_reach_the_signal_through_bands() -> None:
    config = MultiResolutionSTFTConfig(n_ffts=(128,), hop_lengths=(20,), window_lengths=(80,), bands=6)
    one = torch.randn(1, 1, 3000, requires_grad=True)
    MultiResolutionSTFT(config)(one, torch.randn(1, 1, 3000)).backward()
    assert float(one.grad.abs().min()) > 0


def test_settings_that_cannot_work_are_told() -> None:
    for changes in (
        {"n_ffts": (512,)},
        {"n_ffts": (), "hop_lengths": (), "window_lengths": ()},
        {"window_lengths": (600, 1200, 1024)},
        {"bands": 0},
        {"weight": -1.0},
    ):
        with pytest.raises(ConfigError):
            MultiResolutionSTFTConfig(**changes)


def test_compressed_spectra_see_magnitudes_and_phases() -> None:
    loss = CompressedSpectrumLoss(16_000)
    x = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    assert float(loss(x, x)) == 0
    assert float(loss(-x, x)) > 0.1  # phases alone
    without_phases = CompressedSpectrumLoss(16_000, complex_weight=0.0)
    assert float(without_phases(-x, x)) == 0
    assert float(without_phases(2 * x, x)) > 0
    silent = torch.zeros(1, 1, 4000, requires_grad=True)
    loss(silent, torch.zeros(1, 1, 4000)).backward()
    assert silent.grad.isfinite().all()
