"""Mimi: transformers' MimiModel gives the same tokens and audio; streams of any pieces give what the whole gives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from audio.mimi import KEY_MAP, KEY_MAP_TRANSFORMERS, Mimi, config_from_original
from zoo import checkpoint

PARITY = Path(__file__).parents[1] / "parity"
SMALL: dict[str, Any] = {
    "sampling_rate": 2400, "num_filters": 2, "hidden_size": 16, "upsampling_ratios": [4, 3, 2], "codebook_size": 32,
    "codebook_dim": 8, "num_quantizers": 5, "vector_quantization_hidden_dimension": 8, "num_hidden_layers": 2,
    "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 20,
    "upsample_groups": 16,
}  # fmt: skip


def theirs(folder: Path, **sizes: Any) -> Any:
    """A MimiModel with random weights, saved in `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.MimiModel(transformers.MimiConfig(**sizes)).eval()
    for key, value in model.named_buffers():
        if key.endswith("cluster_usage"):
            value.uniform_(0.5, 4.0)
        elif key.endswith("embed_sum"):
            value.normal_()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("layer_scale.scale"):
                value.fill_(0.3)
        codes = torch.randint(model.config.codebook_size, (1, model.config.num_quantizers, 6))
        peak = 2 * model.decode(codes).audio_values.abs().max()
        for parameter in list(model.decoder.parameters())[-2:]:  # samples in [-1, 1], as a codec's are
            parameter /= peak
    model.save_pretrained(folder)
    return model


def assert_same(model: zoo.Tokenizer, other: Any, samples: int) -> None:
    x = torch.rand(1, 1, samples) - 0.5
    tokens = model.encode(x)
    with torch.no_grad():
        codes = other.encode(x).audio_codes
        audio = other.decode(codes).audio_values
    assert torch.equal(tokens.indices, codes)
    assert 0.01 < float(audio.abs().max()) < 1.5
    torch.testing.assert_close(model.decode(tokens), audio, rtol=1e-4, atol=1e-5)
    few = model.encode(x, num_codebooks=3)
    assert torch.equal(few.indices, codes[:, :3])


def test_saved_folder_of_transformers_loads_and_agrees(tmp_path: Path) -> None:
    other = theirs(tmp_path, **SMALL)
    saved = json.loads((tmp_path / "config.json").read_text())
    model = Mimi(config_from_original({"original": {"kwargs": saved}})).eval()
    checkpoint.load_into(model, KEY_MAP_TRANSFORMERS(checkpoint.read(tmp_path)))
    assert_same(model, other, 48 * 40)  # beyond the window


@pytest.mark.slow
def test_saved_folder_of_transformers_loads_and_agrees_at_full_size(tmp_path: Path) -> None:
    other = theirs(tmp_path)
    model = zoo.create_model("mimi_24khz.transformers", checkpoint=tmp_path)
    assert_same(model, other, 1920 * 6)


def fixture_model() -> Mimi:
    meta = json.loads((PARITY / "mimi" / "meta.json").read_text())
    model = Mimi(config_from_original(meta)).eval()
    checkpoint.load_into(model, KEY_MAP(checkpoint.read(PARITY / "mimi" / "weights.safetensors")))
    return model


@settings(max_examples=15, deadline=None)
@given(
    samples=st.lists(st.integers(0, 700), min_size=1, max_size=6).filter(lambda pieces: sum(pieces) > 0),
    frames=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    count=st.integers(1, 5),
)
def test_a_stream_of_any_pieces_gives_what_the_whole_gives(samples: list[int], frames: list[int], count: int) -> None:
    model = fixture_model()
    x = torch.rand(2, 1, sum(samples), generator=torch.Generator().manual_seed(0)) - 0.5
    whole = model.encode(x, num_codebooks=count).indices
    with model.streaming(count) as stream:
        pieces = [stream.encode(piece) for piece in x.split(samples, dim=-1)]
        pieces.append(stream.encode(x[..., :0], last=True))
    assert torch.equal(torch.cat(pieces, dim=-1), whole)
    if sum(frames) == 0:
        return
    indices = torch.randint(0, 32, (1, count, sum(frames)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.reconstruct(model.quantizer.indices_to_codes(*indices.unbind(1)))
    with model.streaming() as stream:
        audio = torch.cat([stream.decode(piece) for piece in indices.split(frames, dim=-1)], dim=-1)
    torch.testing.assert_close(audio, expected, rtol=1e-4, atol=1e-5)  # nothing is held back at the end


def test_latency_is_one_frame_and_no_token_depends_on_later_samples() -> None:
    model = fixture_model()
    x = torch.rand(1, 1, 48 * 8) - 0.5
    with model.streaming() as stream:
        given_so_far = 0
        for i, sample in enumerate(x.split(16, dim=-1), start=1):
            given_so_far += stream.encode(sample).shape[-1]
            assert given_so_far == i * 16 // 48
    changed = x.clone()
    changed[..., 48 * 5 :] = 0
    assert torch.equal(model.encode(changed).indices[..., :5], model.encode(x).indices[..., :5])


def test_all_published_spellings_of_a_file_load() -> None:
    state = checkpoint.read(PARITY / "mimi" / "weights.safetensors")
    expected = KEY_MAP(state)
    spellings = [
        {"in_proj_weight": "in_projs.0.weight", "out_proj.weight": "out_projs.0.weight"},
        {"in_proj_weight": "in_proj.weight", "_initialized": "inited", "cluster_usage": "cluster_size"},
        {"embedding_sum": "embed_sum"},
        {"embedding_sum": "embed_avg"},
    ]
    for spelling in spellings:
        other = dict(state)
        for name, instead in spelling.items():
            other = {key.replace(name, instead): value for key, value in other.items()}
        assert other.keys() != state.keys()
        mapped = KEY_MAP(other)
        assert mapped.keys() == expected.keys()
        assert all(torch.equal(mapped[key], value) for key, value in expected.items())


def test_the_names_of_a_model_in_memory_load_as_those_of_a_file(tmp_path: Path) -> None:
    other = theirs(tmp_path, **SMALL)
    expected = KEY_MAP_TRANSFORMERS(checkpoint.read(tmp_path))
    mapped = KEY_MAP_TRANSFORMERS(other.state_dict())
    assert mapped.keys() == expected.keys()
    assert all(torch.equal(mapped[key], value) for key, value in expected.items())


def test_what_is_not_stated_is_at_the_originals_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    stated = transformers.MimiConfig().to_dict()
    assert config_from_original({"original": {"kwargs": {}}}) == config_from_original({"original": {"kwargs": stated}})


@pytest.mark.parametrize(
    ("argument", "value"),
    [("hidden_act", "silu"), ("norm_eps", 1e-3), ("head_dim", 4), ("num_key_value_heads", 1), ("upsample_groups", 4)],
)
def test_another_network_of_transformers_is_refused(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected Mimi's network.*{argument}"):
        config_from_original({"original": {"kwargs": {**SMALL, argument: value}}})


@pytest.mark.parametrize(
    ("part", "argument", "value"),
    [
        ("seanet", "activation", "ReLU"),
        ("transformer", "positional_embedding", "sin"),
        ("transformer", "gating", "silu"),
    ],
)
def test_another_network_of_the_original_is_refused(part: str, argument: str, value: str) -> None:
    meta = json.loads((PARITY / "mimi" / "meta.json").read_text())
    meta["original"]["kwargs"][part][argument] = value
    with pytest.raises(ValueError, match=f"expected Mimi's network.*{argument}"):
        config_from_original(meta)
