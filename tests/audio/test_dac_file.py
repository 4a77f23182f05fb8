"""DAC's procedure for whole recordings: exact seams, loudness, rates and channels; `.dac` files, read without risk."""

import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codecs import MODELS

from audio.dac import DAC, DACConfig
from audio.dac_file import DACFile, compress, decompress, delay, output_length, unpadded
from zoo.metrics.loudness import loudness


def dac(fixture: str = "dac") -> DAC:
    model = MODELS[fixture]
    assert isinstance(model, DAC)
    return model


def recording(samples: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2


@pytest.mark.parametrize("window", [0.75, 1.0, 1.3])
def test_a_window_gives_what_a_longer_one_gives(window: float) -> None:
    """But for a few samples at its end, to which no further frame adds."""
    model = dac()
    x = recording(9000)
    file = compress(model, x, model.config.sample_rate, window=window, target_db=None)
    assert not file.padding
    hop = model.spec.multiple
    padded = torch.nn.functional.pad(x[None], (delay(model), 0))
    with torch.no_grad(), unpadded(model):
        codes = model.quantizer(model.latent(padded[..., : padded.shape[-1] // hop * hop])).codes
        whole = model.decoder(codes.movedim(-1, 1))
        parts = [
            model.decoder(model.quantizer.indices_to_codes(*part.unbind(1)).movedim(-1, 1))
            for part in file.codes.split(file.chunk_length, dim=-1)
        ]
    step = output_length(model, -(-int(window * model.config.sample_rate) // hop) * hop)
    assert {part.shape[-1] for part in parts} == {step}
    assert len(parts) == -(-9000 // step)
    differs = (parts[0] - whole[..., :step]).abs() > 1e-4
    assert not differs[..., : step - max(model.config.strides)].any()


def test_the_published_delay_and_step() -> None:
    for sample_rate, strides, expected in [(44100, (2, 4, 8, 8), (7904, 28522)), (24000, (2, 4, 5, 8), (5264, 13346))]:
        with torch.device("meta"):
            model = DAC(DACConfig(sample_rate=sample_rate, strides=strides, decoder_strides=strides[::-1]))
        hop = model.spec.multiple
        assert (delay(model), output_length(model, -(-sample_rate // hop) * hop)) == expected


@settings(max_examples=12, deadline=None)
@given(
    samples=st.integers(1, 9000),
    channels=st.integers(1, 3),
    rate=st.sampled_from([4000, 8000, 3000]),
    window=st.sampled_from([None, 0.75]),
    count=st.integers(1, 4),
)
def test_any_recording_comes_back_at_its_length(
    samples: int, channels: int, rate: int, window: float | None, count: int
) -> None:
    model = dac()
    x = recording(samples, channels)
    file = compress(model, x, rate, window=window, num_codebooks=count)
    again = DACFile.from_bytes(file.to_bytes())
    assert torch.equal(again.codes, file.codes)
    assert file.codes.shape[:2] == (channels, count)
    audio = decompress(model, again)
    assert audio.shape == x.shape
    assert audio.isfinite().all()


def test_loudness_is_restored() -> None:
    model = dac()
    x = recording(8000) * 0.1
    file = compress(model, x, 4000, window=None)
    assert file.input_db == pytest.approx(loudness(x[None], 4000).item(), abs=1e-4)
    assert loudness(decompress(model, file)[None], 4000).item() == pytest.approx(file.input_db, abs=1e-3)


def test_windows_that_are_too_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"window: expected about .* seconds or more, got 0\.01"):
        compress(dac(), recording(8000), 4000, window=0.01)
    with pytest.raises(ValueError, match=r"expected a recording \(channels, samples\), got \(1, 1, 5\)"):
        compress(dac(), torch.zeros(1, 1, 5), 4000)


def test_what_is_no_sample_at_the_rate_of_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a batch .*, got \(1, 1, 0\)"):
        compress(dac(), recording(1), 1_000_000)


class Attack:
    def __reduce__(self) -> Any:
        return print, ("run",)


def file_of(content: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(content, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_files_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    good = compress(dac(), recording(500), 4000).to_bytes()
    metadata = np.load(io.BytesIO(good), allow_pickle=True).item()
    for data, message in [
        (b"", "expected the bytes of a .dac file"),
        (good[:-40], "expected the bytes of a .dac file"),
        (pickle.dumps(metadata), "expected the bytes of a .dac file"),
        (file_of({"codes": Attack()}), "its pickle holds more than numbers"),
        (
            file_of({**metadata, "metadata": {**metadata["metadata"], "dac_version": "0"}}),
            "expected version 1.0.0, got 0",
        ),
        (file_of({**metadata, "codes": metadata["codes"][0]}), "expected codes of 1 channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            DACFile.from_bytes(data)
    assert capsys.readouterr().out == ""
