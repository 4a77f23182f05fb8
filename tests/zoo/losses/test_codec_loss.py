"""The codec's training loss: what it sums, and that weights are shares of the gradient when it is balanced."""

import pytest
import torch
from torch import Tensor

from zoo.config import ConfigError
from zoo.losses.audio_discriminators import (
    Judgement,
    STFTDiscriminatorConfig,
    WaveDiscriminatorConfig,
    discriminator_loss,
    feature_loss,
    generator_loss,
    summed_feature_loss,
)
from zoo.losses.codec import CodecAdversaryConfig, CodecLoss, CodecLossConfig, JuryConfig
from zoo.losses.intelligibility import IntelligibilityLoss
from zoo.losses.mel import LogMelLossConfig, MelConfig
from zoo.losses.multi_resolution import CompressedSpectrumLoss, MultiResolutionSTFT, MultiResolutionSTFTConfig

MEL = LogMelLossConfig(resolutions=(MelConfig(16000, 64, 16, 8), MelConfig(16000, 128, 32, 8)))
PLAIN = CodecLossConfig(waveform_weight=3.0, mel=MEL, mel_weight=0.5, stft_weight=0.25, balanced=False)
ADVERSARY = CodecAdversaryConfig(
    discriminators=(
        STFTDiscriminatorConfig(filters=2, n_ffts=(64,), hop_lengths=(16,), window_lengths=(64,)),
        WaveDiscriminatorConfig(periods=(2,), period_channels=(2, 4), windows=()),
    ),
    adversarial_weight=1.5,
    feature_weight=2.5,
    discriminator_start=3,
)


def signals() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 4096, generator=draw) - 0.5
    return x, (x + 0.1 * torch.rand(2, 1, 4096, generator=draw)).requires_grad_()


def loss(config: CodecLossConfig = PLAIN, adversary: CodecAdversaryConfig | None = None) -> CodecLoss:
    torch.manual_seed(0)
    return CodecLoss(config, adversary).train()


def test_the_total_is_the_weighted_sum_of_its_terms() -> None:
    x, y = signals()
    found = loss(PLAIN, ADVERSARY).generator_loss(x, y, torch.tensor(0.7), step=3)
    assert set(found.values) == {"waveform", "mel", "stft", "adversarial", "features", "quantizer"}
    weights = {"waveform": 3.0, "mel": 0.5, "stft": 0.25, "adversarial": 1.5, "features": 2.5, "quantizer": 1.0}
    expected = sum(weights[name] * value for name, value in found.values.items())
    torch.testing.assert_close(found.total.detach(), expected)
    torch.testing.assert_close(found.values["waveform"], (x - y).abs().mean().detach())
    assert all(not value.requires_grad for value in (*found.values.values(), *found.terms.values()))


@pytest.mark.parametrize("summed", [False, True])
def test_several_discriminators_judge_together(summed: bool) -> None:
    x, y = signals()
    module = loss(PLAIN, ADVERSARY.replace(summed=summed))
    real, fake = ([judged for part in module.discriminator for judged in part(z)] for z in (x, y.detach()))
    found = module.generator_loss(x, y, torch.zeros(()), step=3).values
    factor = len(real) if summed else 1
    torch.testing.assert_close(found["adversarial"], generator_loss(fake, "hinge").detach() * factor)
    features = summed_feature_loss if summed else feature_loss
    torch.testing.assert_close(found["features"], features(real, fake).detach())
    discriminator = module.discriminator_loss(x, y, step=3)
    torch.testing.assert_close(discriminator.total, discriminator_loss(real, fake, "hinge") * factor)
    discriminator.total.backward()
    assert y.grad is None


def test_juries_judge_by_objectives_and_weights_of_their_own() -> None:
    x, y = signals()
    other = JuryConfig(
        (WaveDiscriminatorConfig((3, 5), (2, 4), ()),), "least_squares", adversarial_weight=0.5, feature_weight=4.0,
        summed=True,
    )  # fmt: skip
    adversary = ADVERSARY.replace(discriminator_start=0, others=(other,))
    assert CodecAdversaryConfig.from_dict(adversary.to_dict()) == adversary
    module = loss(PLAIN, adversary)
    real, fake = ([judged for part in module.discriminator for judged in part(z)] for z in (x, y.detach()))
    hinge, squares = slice(2), slice(2, 4)  # a scale and a period, two periods

    found = module.generator_loss(x, y, torch.zeros(()), step=0)
    expected = {
        "adversarial": generator_loss(fake[hinge], "hinge"),
        "features": feature_loss(real[hinge], fake[hinge]),
        "adversarial_2": 2 * generator_loss(fake[squares], "least_squares"),
        "features_2": summed_feature_loss(real[squares], fake[squares]),
    }
    for name, weight in (("adversarial", 1.5), ("features", 2.5), ("adversarial_2", 0.5), ("features_2", 4.0)):
        torch.testing.assert_close(found.values[name], expected[name].detach())
        torch.testing.assert_close(found.terms[name], weight * expected[name].detach())
    torch.testing.assert_close(found.total.detach(), sum(found.terms.values()))

    parts = (
        discriminator_loss(real[hinge], fake[hinge], "hinge"),
        discriminator_loss(real[squares], fake[squares], "least_squares"),
    )
    told = module.discriminator_loss(x, y, step=0)
    torch.testing.assert_close(told.total, parts[0] + 2 * parts[1])
    torch.testing.assert_close(told.values["adversarial"], (parts[0] + parts[1]).detach() / 2)
    assert adversary.chance == (2.0 + 0.5) / 2


def test_terms_of_all_juries_are_balanced() -> None:
    x, y = signals()
    other = JuryConfig((WaveDiscriminatorConfig((3,), (2,), ()),), "least_squares")
    adversary = ADVERSARY.replace(discriminator_start=0, others=(other,))
    module = loss(CodecLossConfig(mel=None, mel_weight=0.0, balanced=True), adversary)
    found = module.generator_loss(x, y, torch.zeros(()), step=0)
    assert {"adversarial_2", "features_2"} < set(found.values)
    found.total.backward()
    assert float(y.grad.abs().max()) > 0


def test_discriminators_wait_for_their_start_and_for_training() -> None:
    x, y = signals()
    module = loss(PLAIN, ADVERSARY)
    assert [module.factor(step) for step in (0, 2, 3, 9)] == [0, 0, 1, 1]
    assert "adversarial" not in module.generator_loss(x, y, torch.zeros(()), step=2).values
    assert "adversarial" not in module.eval().generator_loss(x, y, torch.zeros(()), step=3).values
    assert loss().factor(9) == 0
    with pytest.raises(ValueError, match="a loss with discriminators"):
        loss().discriminator_loss(x, y, step=9)


def test_balanced_weights_are_shares_of_the_gradient() -> None:
    """Of one loss alone the gradient at an item has norm 1 whatever its scale; the quantizer's loss stays as it is."""
    x, y = signals()
    for weight in (1.0, 100.0):
        alone = CodecLossConfig(waveform_weight=weight, mel=None, mel_weight=0.0, balanced=True)
        y.grad = None
        scale = torch.ones((), requires_grad=True)
        loss(alone).generator_loss(x, y, 5 * scale, step=0).total.backward()
        torch.testing.assert_close(y.grad.flatten(1).norm(dim=1).mean(), torch.tensor(1.0))
        assert float(scale.grad) == 5


def test_without_gradient_the_balanced_loss_is_the_weighted_sum() -> None:
    x, y = signals()
    config = PLAIN.replace(balanced=True)
    with torch.no_grad():
        total = loss(config).eval().generator_loss(x, y, torch.tensor(0.5), step=0).total
    expected = loss(PLAIN).eval().generator_loss(x, y, torch.tensor(0.5), step=0).total
    torch.testing.assert_close(total, expected.detach())


def test_adversarial_terms_alone_are_enough() -> None:
    x, y = signals()
    for balanced in (False, True):
        module = loss(CodecLossConfig(waveform_weight=0.0, mel_weight=0.0, balanced=balanced), ADVERSARY)
        assert float(module.generator_loss(x, y, torch.tensor(0.5), step=0).total) == 0.5
        found = module.generator_loss(x, y, torch.tensor(0.5), step=3)
        assert set(found.values) == {"adversarial", "features", "quantizer"}
        found.total.backward()


def test_spectra_at_several_resolutions_and_intelligibility_are_terms() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(2, 1, 8000, generator=draw) - 0.5
    y = (x + 0.1 * torch.rand(2, 1, 8000, generator=draw)).requires_grad_()
    one = MultiResolutionSTFTConfig(n_ffts=(256,), hop_lengths=(60,), window_lengths=(240,), weight=2.0)
    bands = MultiResolutionSTFTConfig(n_ffts=(64,), hop_lengths=(20,), window_lengths=(64,), bands=4, weight=0.5)
    config = CodecLossConfig(
        waveform_weight=0.0, mel=None, mel_weight=0.0, multi_resolution=(one, bands), compressed_weight=3.0,
        intelligibility_weight=5.0, balanced=False,
    )  # fmt: skip
    found = CodecLoss(config, sample_rate=8000).generator_loss(x, y, torch.zeros(()), step=0)
    spectra = 2 * MultiResolutionSTFT(one)(y, x) + 0.5 * MultiResolutionSTFT(bands)(y, x)
    compressed, intelligible = CompressedSpectrumLoss(8000)(y, x), IntelligibilityLoss(8000)(y, x)
    torch.testing.assert_close(found.values["multi_resolution"], spectra.detach())
    torch.testing.assert_close(found.total, spectra + 3 * compressed + 5 * intelligible)
    assert CodecLossConfig.from_dict(config.to_dict()) == config


def test_a_term_of_weight_zero_is_left_out() -> None:
    x, y = signals()
    only = CodecLossConfig(waveform_weight=1.0, mel=MEL, mel_weight=0.0, balanced=False)
    assert set(loss(only).generator_loss(x, y, torch.zeros(()), step=0).values) == {"waveform", "quantizer"}


def test_settings_that_cannot_work_are_told() -> None:
    with pytest.raises(ValueError, match="not all 0"):
        CodecLoss(CodecLossConfig(waveform_weight=0.0, mel_weight=0.0))
    with pytest.raises(ConfigError, match="weights >= 0"):
        CodecLossConfig(waveform_weight=-1.0)
    with pytest.raises(ConfigError, match="at least one discriminator"):
        CodecAdversaryConfig(discriminators=())


@pytest.mark.parametrize("objective", ["hinge", "clamped_hinge", "least_squares"])
def test_chance_is_the_loss_of_a_discriminator_that_tells_nothing(objective: str) -> None:
    """With one logit for all, the best one, as a search over logits finds it."""
    logits = torch.linspace(-2, 2, 401)
    judgements = [[Judgement(logit[None], ())] for logit in logits]
    best = min(float(discriminator_loss(judged, judged, objective)) for judged in judgements)  # type: ignore[arg-type]
    assert ADVERSARY.replace(objective=objective).chance == pytest.approx(best, abs=1e-3)
