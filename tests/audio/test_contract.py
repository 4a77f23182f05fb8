"""What every family of audio does with odd input: a defined result, or a ValueError that says expected and got."""

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import zoo
from zoo.long_audio import can_be_cut
from zoo.media import MediaError
from zoo.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
import tiny

MODELS = {name: model for name in tiny.FAMILIES if (model := tiny.build(name)).spec.modality == "audio"}
every = pytest.mark.parametrize("name", MODELS)
# so narrow that their group norm has one value, which torch refuses, for clips of one frame
_ONE_FRAME_IS_TOO_FEW = {"wavtokenizer", "xcodec2"}


def clip(model: Tokenizer, samples: int, items: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(items, model.spec.channels, samples, generator=generator) - 0.5


def hop(model: Tokenizer) -> int:
    return max(model.spec.multiple, 16)


def test_every_family_is_here() -> None:
    assert {"encodec", "dac", "mimi", "snac", "speechtokenizer", "dm_codec", "wavtokenizer", "bigcodec", "xcodec",
            "xcodec2", "sqcodec", "brainomni"} <= set(MODELS)  # fmt: skip


@every
def test_samples_that_are_no_numbers_are_refused(name: str) -> None:
    model = MODELS[name]
    for value in (float("nan"), float("inf"), -float("inf")):
        x = clip(model, 3 * hop(model))
        x[0, 0, 5] = value
        with pytest.raises(ValueError, match="expected values in"):
            model.encode(x)


@every
def test_empty_clips_and_wrong_channels_are_refused(name: str) -> None:
    model = MODELS[name]
    more = torch.zeros(1, model.spec.channels + 1, 3 * hop(model))
    for x in (clip(model, 9)[..., :0], clip(model, 9)[:0], more, clip(model, 9)[0]):
        with pytest.raises(ValueError, match="expected a batch of shape"):
            model.encode(x)


@every
def test_integers_are_refused_and_double_precision_is_taken(name: str) -> None:
    model = MODELS[name]
    x = clip(model, 3 * hop(model) + 5)
    with pytest.raises(ValueError, match=r"expected floating point values in .*, got torch\.int16"):
        model.encode((x * 32767).to(torch.int16))
    assert model.encode(x.double()) == model.encode(x)


@every
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_clips_shorter_than_a_frame_come_back(name: str, part: float) -> None:
    model = MODELS[name]
    x = clip(model, max(1, int(part * (hop(model) - 1))))
    if name in _ONE_FRAME_IS_TOO_FEW:
        try:
            decoded = model.decode(model.encode(x))
        except ValueError as error:
            assert "Expected more than 1" in str(error)  # noqa: PT017
            return
    else:
        decoded = model.decode(model.encode(x))
    assert decoded.shape == x.shape
    assert bool(decoded.isfinite().all())


@every
def test_silence_is_finite(name: str) -> None:
    model = MODELS[name]
    x = torch.zeros(1, model.spec.channels, 4 * hop(model) + 3)
    assert bool(model.decode(model.encode(x)).isfinite().all())


@every
def test_clips_of_unequal_lengths_are_as_each_alone(name: str) -> None:
    model = MODELS[name]
    clips = [
        clip(model, factor * hop(model) + more, seed=factor)[0] for factor, more in ((3, 1), (6, 0), (3, 1), (4, 7))
    ]
    together = model.encode(clips)
    decoded = model.decode(together)
    for item, alone in enumerate(clips):
        expected = model.encode(alone[None])
        for level, own in zip(together[item].levels, expected.levels):
            assert torch.equal(level[:, : own.shape[1]], own)
        sound = model.decode(expected)[0]
        torch.testing.assert_close(decoded[item, :, : alone.shape[-1]], sound, rtol=1e-4, atol=1e-5)
        assert not decoded[item, :, alone.shape[-1] :].any()


@every
def test_a_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    rate = model.spec.sample_rate or 1
    soundfile.write(tmp_path / "whole.wav", np.zeros((rate, model.spec.channels), np.float32), rate)
    content = (tmp_path / "whole.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    assert zoo.media.load(tmp_path / "whole.wav", model.spec).shape == (1, model.spec.channels, rate)
    with pytest.raises(MediaError, match="truncated"):
        zoo.media.load(tmp_path / "cut.wav", model.spec)


@every
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_family_is_cut_into_pieces_or_says_why_not(name: str, part: str) -> None:
    reason = can_be_cut(MODELS[name], part)
    assert (reason is None) == (name in {"dac", "encodec", "mimi", "spectral_codec"})
    assert reason is None or "cannot be cut into pieces with exact seams: " in reason
