"""BigCodec's discriminators: what each part sees, and that they learn to tell signals apart."""

import pytest
import torch

from zoo.config import ConfigError
from zoo.losses.audio_discriminators import PeriodDiscriminator, discriminator_loss, summed_feature_loss
from zoo.losses.magnitude_discriminators import MagnitudeDiscriminatorConfig

SMALL = MagnitudeDiscriminatorConfig(
    (2, 3), (4, 8, 8), n_ffts=(64, 128), hop_lengths=(16, 32), channels=4, most_channels=8, strides=(2,)
)


@pytest.mark.parametrize("length", [600, 601, 605])
def test_a_part_sees_every_nth_sample_by_itself(length: int) -> None:
    torch.manual_seed(0)
    part = SMALL.build().discriminators[1]
    x = torch.randn(1, 1, length)
    changed = x.clone()
    changed[..., 1::3] += 1.0
    changed[..., -3:] = x[..., -3:]  # the end is reflected into the padding, at other places
    columns = (part(x).logits - part(changed).logits).abs().amax(dim=(0, 1, 2))
    assert columns.shape == (3,)
    assert columns[1] > 1e-4
    assert columns[0] == columns[2] == 0


@pytest.mark.parametrize(("length", "rows"), [(600, (200, 201)), (601, (201, 201))])
def test_a_signal_of_whole_periods_is_padded_where_the_recipe_does(length: int, rows: tuple[int, int]) -> None:
    for always_pad, expected in zip((False, True), rows):
        part = PeriodDiscriminator(3, (4, 8), always_pad=always_pad)
        assert part(torch.zeros(1, 1, length)).features[0].shape == (1, 4, -(-expected // 3), 3)


def test_widths_grow_up_to_their_bound() -> None:
    for judgement in SMALL.build()(torch.randn(2, 1, 700)):
        assert tuple(feature.shape[1] for feature in judgement.features) == (4, 8, 8)
        assert judgement.logits.shape[:2] == (2, 1)


def test_silence_and_half_precision_are_finite() -> None:
    network = SMALL.build()
    with torch.autocast("cpu", torch.bfloat16):
        judgements = network(torch.zeros(1, 1, 500, requires_grad=True))
    torch.stack([judgement.logits.float().sum() for judgement in judgements]).sum().backward()
    slopes = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert slopes
    assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_it_learns_to_tell_noise_from_tones() -> None:
    torch.manual_seed(0)
    network = SMALL.build()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        phase = torch.rand(4, 1, 1) * 6
        real, fake = torch.sin(torch.arange(400) * 0.3 + phase), torch.randn(4, 1, 400) * 0.5
        loss = discriminator_loss(network(real), network(fake), "least_squares")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


def test_feature_matching_leaves_the_logits_out() -> None:
    network = SMALL.build()
    x, y = torch.randn(2, 1, 1, 500)
    real, fake = network(x), network(y)
    pairs = [(a, b) for one, other in zip(real, fake) for a, b in zip(one.features, other.features)]
    expected = torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()
    torch.testing.assert_close(summed_feature_loss(real, fake), expected)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="a hop length per transform"):
        MagnitudeDiscriminatorConfig(n_ffts=(64,), hop_lengths=(16, 32))
    with pytest.raises(ConfigError, match="a window at most as long as it per transform"):
        MagnitudeDiscriminatorConfig(n_ffts=(64,), hop_lengths=(16,), window_lengths=(65,))
    with pytest.raises(ConfigError, match="odd kernel sizes"):
        MagnitudeDiscriminatorConfig(kernel_size=4)


def test_few_frames_in_bfloat16_are_judged_by_what_they_hold_alone() -> None:
    """oneDNN's strided bfloat16 convolutions of one or two columns add what memory holds, where a CPU has AMX."""
    torch.manual_seed(0)
    part = MagnitudeDiscriminatorConfig((), (4,), n_ffts=(876,), hop_lengths=(438,)).build().discriminators[0]
    x = torch.randn(2, 1, 1500, requires_grad=True)
    expected = part(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(20):
            garbage = [torch.full((size,), float("nan")) for size in (10, 100, 1000, 10_000, 100_000) for _ in range(3)]
            del garbage
            judgement = part(x)
            assert all(bool(values.isfinite().all()) for values in (judgement.logits, *judgement.features))
            (gradient,) = torch.autograd.grad(judgement.logits.float().sum(), x)
            assert bool(gradient.isfinite().all())
    torch.testing.assert_close(judgement.logits.float(), expected, rtol=0.1, atol=0.02)
