"""EnCodec: transformers' EncodecModel gives the same; streams give what the whole gives; segments join."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_codecs import MODELS, signal

import zoo
from audio.encodec import (
    KEY_MAP_TRANSFORMERS,
    Encodec,
    EncodecConfig,
    config_from_original,
    config_from_transformers,
    overlap_add,
)
from zoo import checkpoint
from zoo.config import ConfigError
from zoo.layers.seanet import SEANetConfig
from zoo.parity import run_fixture
from zoo.tokens import Tokens

SMALL: dict[str, Any] = {
    "target_bandwidths": [0.45, 1.8], "sampling_rate": 3000, "hidden_size": 16, "codebook_dim": 16, "num_filters": 4,
    "upsampling_ratios": [5, 4, 2], "codebook_size": 64,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "causal": {},
    "segments": {
        "audio_channels": 2, "normalize": True, "chunk_length_s": 0.2, "overlap": 0.01, "use_causal_conv": False,
        "norm_type": "time_group_norm",
    },
    "identity_shortcut": {"use_conv_shortcut": False, "use_causal_conv": False, "num_residual_layers": 2},
}  # fmt: skip


def theirs(folder: Path, **sizes: Any) -> Any:
    """An EncodecModel with random weights and codebooks, saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**sizes)).eval()
    for key, value in model.named_buffers():
        if key.endswith(".embed"):
            value.normal_()
    model.save_pretrained(folder)
    return model


def assert_same(model: zoo.Tokenizer, other: Any, samples: int) -> None:
    x = torch.rand(2, model.spec.channels, samples) - 0.5
    tokens = model.encode(x)
    with torch.no_grad():
        encoded = other.encode(x, bandwidth=other.config.target_bandwidths[-1], return_dict=True)
        pad = encoded.last_frame_pad_length
        audio = other.decode(encoded.audio_codes, encoded.audio_scales, last_frame_pad_length=pad).audio_values
    codes = torch.cat(list(encoded.audio_codes), dim=-1)
    codes = codes[..., : codes.shape[-1] - pad]
    assert torch.equal(tokens.indices, codes)
    torch.testing.assert_close(model.decode(tokens), audio[..., :samples], rtol=1e-4, atol=1e-5)
    if encoded.audio_scales[0] is not None:
        gains = torch.cat([scale.view(2, 1) for scale in encoded.audio_scales], dim=1)
        torch.testing.assert_close(torch.tensor(tokens.extent.gains), gains)  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_folder_of_transformers_loads_and_agrees(variant: str, tmp_path: Path) -> None:
    other = theirs(tmp_path, **SMALL, **VARIANTS[variant])
    saved = json.loads((tmp_path / "config.json").read_text())
    model = Encodec(config_from_transformers(saved)).eval()
    checkpoint.load_into(model, KEY_MAP_TRANSFORMERS(checkpoint.read(tmp_path / "model.safetensors")))
    for samples in (1500, 37):
        assert_same(model, other, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encodec_24khz.transformers", "encodec_48khz.transformers"])
def test_full_size_folder_of_transformers_loads_and_agrees(name: str, tmp_path: Path) -> None:
    sizes = {"target_bandwidths": [3.0, 6.0, 12.0, 24.0], "sampling_rate": 48000, **VARIANTS["segments"]}
    sizes["chunk_length_s"] = 1.0
    other = theirs(tmp_path, **(sizes if "48" in name else {}))
    assert_same(zoo.create_model(name, checkpoint=tmp_path / "model.safetensors"), other, 50_001)


# -- streams


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 1300),
    cuts=st.lists(st.integers(0, 1300), max_size=12),
    frame_cuts=st.lists(st.integers(0, 33), max_size=12),
    count=st.integers(1, 4),
)
def test_pieces_of_any_size_give_what_the_whole_gives(
    samples: int, cuts: list[int], frame_cuts: list[int], count: int
) -> None:
    model = MODELS["encodec"]
    x = signal(model, samples, items=2)
    tokens = model.encode(x, num_codebooks=count)

    def pieces(whole: torch.Tensor, at: list[int]) -> list[torch.Tensor]:
        edges = sorted({0, whole.shape[-1], *(cut for cut in at if cut < whole.shape[-1])})
        return [whole[..., a:b] for a, b in pairwise(edges)]

    with model.streaming(num_codebooks=count) as stream:
        parts = pieces(x, cuts)
        found = torch.cat([stream.encode(part, last=part is parts[-1]) for part in parts], -1)
        assert torch.equal(found, tokens.indices)
        parts = pieces(found, frame_cuts)
        audio = torch.cat([stream.decode(part, last=part is parts[-1]) for part in parts], -1)
    torch.testing.assert_close(audio[..., :samples], model.decode(tokens), rtol=1e-4, atol=1e-5)


def test_a_stream_says_when_it_is_misused() -> None:
    model = MODELS["encodec"]
    stream = model.streaming()
    with pytest.raises(ValueError, match="expected an open stream"):
        stream.encode(signal(model, 40))
    with stream:
        stream.encode(signal(model, 40), last=True)
        with pytest.raises(ValueError, match="the last piece has come"):
            stream.encode(signal(model, 40))
        with pytest.raises(ValueError, match="expected int64 indices"):
            stream.decode(torch.zeros(1, 9, 3, dtype=torch.int64))
        with pytest.raises(ValueError, match="expected values in"), model.streaming() as other:
            other.encode(signal(model, 40) * 9)
    with pytest.raises(ValueError, match="num_codebooks: expected 1 to 4, got 5"):
        model.streaming(num_codebooks=5)
    with pytest.raises(ValueError, match="cannot stream"):
        MODELS["encodec__48khz"].streaming()


def test_streaming_starts_after_the_reflection_and_then_keeps_pace() -> None:
    """The published sizes but for widths: 7 frames each way, as the documentation says."""
    model = Encodec(EncodecConfig(seanet=SEANetConfig(filters=2))).eval()
    with model.streaming() as stream:
        frames = [stream.encode(torch.zeros(1, 1, 320)).shape[-1] for _ in range(9)]
        samples = [stream.decode(torch.zeros(1, 32, 1, dtype=torch.int64)).shape[-1] for _ in range(9)]
    assert frames == [0] * 6 + [7, 1, 1]
    assert samples[:6] == [0] * 6
    assert samples[6] > 0
    assert samples[7:] == [320, 320]


# -- segments


@pytest.mark.parametrize("samples", [1, 593, 594, 595, 599, 600, 601, 1188, 1189, 1193, 1200, 1500])
def test_segments_at_their_edges(samples: int) -> None:
    """600 samples every 594: a last segment may lie wholly inside the one before, which then is shorter too."""
    model = MODELS["encodec__48khz"]
    x = signal(model, samples)
    tokens = model.encode(x)
    segments = model.config.segments(samples)
    assert segments[0][0] == 0
    assert max(start + length for start, length in segments) == samples
    assert tokens.levels[0].shape[1] == sum(-(-length // 40) for _, length in segments)
    assert len(tokens.extent.gains[0]) == len(segments)  # type: ignore[union-attr, index]
    decoded = model.decode(Tokens.unpack(tokens.pack()))
    with torch.no_grad():
        torch.testing.assert_close(decoded, model(x).reconstruction)


def test_loudness_is_kept_beside_the_tokens() -> None:
    model = MODELS["encodec__48khz"]
    x = signal(model, 700)
    loud, quiet = model.encode(x), model.encode(x / 8)
    assert torch.equal(loud.indices, quiet.indices)
    torch.testing.assert_close(model.decode(quiet), model.decode(loud) / 8, rtol=1e-4, atol=1e-6)


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), stride=st.integers(1, 40))
def test_overlap_add_is_a_weighted_mean(lengths: list[int], stride: int) -> None:
    first = max(lengths[0], stride)
    parts = [torch.ones(1, 1, first)] + [torch.ones(1, 1, min(length, first)) for length in lengths[1:]]
    joined = overlap_add(parts, stride)
    covered = max(i * stride + part.shape[-1] for i, part in enumerate(parts))
    assert joined.shape[-1] == covered
    reached = [set(range(i * stride, i * stride + part.shape[-1])) for i, part in enumerate(parts)]
    for place in set().union(*reached):
        assert joined[0, 0, place] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segment": 0.001}, "expected segments of a frame or more"),
        ({"overlap": 1.0}, "expected an overlap in"),
        ({"sample_rate": 0}, "expected sample_rate >= 1"),
        (
            {"seanet": SEANetConfig(causal=False).to_dict() | {"norm": "time_group_norm", "causal": True}},
            "no norm over",
        ),
    ],
)
def test_configs_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncodecConfig().replace(**fields)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("activation", "ReLU"),
        ("activation_params", {"alpha": 0.5}),
        ("final_activation", "Tanh"),
        ("norm", "layer_norm"),
    ],
)
def test_a_network_that_is_not_here_is_refused(argument: str, value: Any) -> None:
    kwargs = {"seanet": {argument: value}, "quantizer": {}, "model": {"sample_rate": 24000}}
    with pytest.raises(ValueError, match="expected"):
        config_from_original({"original": {"kwargs": kwargs}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": [1, 3]}, "expected EnCodec's discriminators"),
        ({"activation": "ELU"}, "expected EnCodec's discriminators"),
        ({"activation_params": {}}, "relative error"),  # then the slope is 0.2, not the 0.3 of the fixture
    ],
)
def test_arguments_of_the_discriminators_count(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(__file__).parents[1] / "parity" / "encodec__msstftd", tmp_path / "fixture"))
    meta = json.loads((folder / "meta.json").read_text())
    meta["original"]["kwargs"] |= change
    (folder / "meta.json").write_text(json.dumps(meta))
    assert message in run_fixture(folder).checks[0].message
