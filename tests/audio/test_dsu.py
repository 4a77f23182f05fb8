"""Discrete speech units: hidden states as transformers gives them, runs that lose nothing, k-means on any folder."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import zoo
from audio.dsu import DSU, DSUConfig, Runs, centres, fit, of_centres, units_of
from audio.speech_features import HiddenStates, HiddenStatesConfig, MelFeaturesConfig, hidden_states
from zoo.cli import app

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


def speech_model(kind: str = "Hubert", **changes: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    return getattr(transformers, f"{kind}Model")(config).eval()


def units(layer: int | None = 2, normalize: bool = False, count: int = 7, **changes: Any) -> DSU:
    """Units with random centres on a small random speech model."""
    config = DSUConfig(HiddenStatesConfig(24, layer, normalize), quantizer=centres(count, 24))
    model = of_centres(config, torch.randn(count, 24))
    assert isinstance(model.features, HiddenStates)
    model.features.use(speech_model(**changes))
    return model


def clip(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, samples, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "Wav2Vec2"])
@pytest.mark.parametrize("large", [False, True])
def test_hidden_states_are_those_of_transformers(kind: str, large: bool) -> None:
    model = speech_model(kind, **(LARGE if large else {}))
    x = clip(4000)
    with torch.no_grad():
        states = hidden_states(model, x)
        theirs = model(x, output_hidden_states=True)
        normed = model.encoder.layer_norm(states[-1])
    assert len(states) == len(theirs.hidden_states) == 4
    for own, other in zip(states[:-1], theirs.hidden_states[:-1]):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)
    # the large ones normalise after the last layer, which belongs to the last hidden state alone
    last = normed if large else states[-1]
    torch.testing.assert_close(last, theirs.last_hidden_state, rtol=1e-5, atol=1e-6)


def test_a_layer_is_the_same_without_the_later_ones() -> None:
    whole = speech_model()
    with torch.no_grad():
        states = hidden_states(whole, clip(4000))
    for layer in range(4):
        model = units(layer)
        torch.testing.assert_close(model.latent(clip(4000)[None]), states[layer], rtol=1e-5, atol=1e-6)
    mean = units(None).latent(clip(4000)[None])
    torch.testing.assert_close(mean, torch.stack(states).mean(0), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="expected a layer from 0 to 3, got 4"):
        units(4)


@pytest.mark.parametrize("samples", [400, 719, 720, 5000])
def test_clips_give_a_frame_each_320_samples_from_400_on(samples: int) -> None:
    model = units()
    tokens = model.encode(clip(samples)[None])
    assert tokens.indices.shape == (1, 1, (samples - 400) // 320 + 1)
    assert model.token_shapes((samples,)) == ((tokens.indices.shape[-1],),)
    assert model.tokens(tokens.indices, extent=(samples,)).levels[0].equal(tokens.levels[0])


def test_too_short_a_clip_is_refused_and_decoding_too() -> None:
    model = units()
    with pytest.raises(ValueError, match="expected at least 400 samples for one unit, got 399"):
        model.encode(clip(399)[None])
    tokens = model.encode(clip(2000)[None])
    with pytest.raises(ValueError, match="has no decoder"):
        model.decode(tokens)
    assert model.codes(tokens).shape == (1, 6, 24)
    assert model.bitrates == (150.0,)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_clips_of_unequal_lengths_are_as_each_alone(normalize: bool, large: bool) -> None:
    model = units(normalize=normalize, **(LARGE if large else {}))
    clips = [clip(samples, seed=samples) for samples in (3000, 400, 5001, 3000)]
    together = model.encode(clips)
    for item, alone in enumerate(clips):
        expected = model.encode(alone[None])
        count = expected.indices.shape[-1]
        assert torch.equal(together.indices[item, :, :count], expected.indices[0])
        assert together.lengths is not None
        assert int(together.lengths[item]) == count
    assert [len(run.expand()) for run in model.runs(together)] == together.lengths.tolist()


def test_normalisation_makes_loudness_not_matter() -> None:
    model = units(normalize=True)
    quiet = clip(3000)[None]
    assert torch.equal(model.encode(quiet).indices, model.encode(quiet * 1.9).indices)


@given(units=st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_runs_lose_nothing(units: list[int]) -> None:
    sequence = torch.tensor(units)
    runs = Runs.of(sequence)
    assert torch.equal(runs.expand(), sequence)
    assert bool((runs.units[1:] != runs.units[:-1]).all())
    assert torch.equal(sequence[runs.starts], runs.units)
    assert int(runs.durations.sum()) == len(units)
    assert torch.equal(units_of(runs.text()), runs.units)


def test_text_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match="expected units below 20992, got 20992"):
        Runs.of(torch.tensor([20_992])).text()
    with pytest.raises(ValueError, match="expected characters from"):
        units_of("a")


def test_fit_finds_what_the_clips_are_made_of() -> None:
    """Tones of four pitches share no unit, and the same seed gives the same units."""
    rate, length = 16_000, 320 * 60
    time = torch.arange(length) / rate
    tones = [0.5 * torch.sin(2 * np.pi * pitch * time) for pitch in (200.0, 600.0, 1800.0, 5000.0)]
    config = DSUConfig(MelFeaturesConfig(16), quantizer=centres(8, 16))
    model = fit(config, [tone[None] for tone in tones], seed=3, corpus="four tones")
    middles = torch.stack([model.encode(tone[None, None]).indices[0, 0, 5:-5] for tone in tones])
    own = [set(tone.tolist()) for tone in middles]
    assert len(set.union(*own)) == sum(map(len, own))
    again = fit(config, [tone[None] for tone in tones], seed=3)
    assert again.source.fingerprint == model.source.fingerprint
    assert model.card is not None
    assert "four tones" in model.card.metrics[0].protocol
    with pytest.raises(ValueError, match="expected at least 8 frames for 8 units, got 3"):
        fit(config, [tones[0][None, :1000]])


def test_the_sample_of_frames_is_bounded_and_of_all_clips() -> None:
    config = DSUConfig(MelFeaturesConfig(16), quantizer=centres(2, 16))
    clips = [clip(320 * 50, seed=seed) for seed in range(8)]
    model = fit(config, clips, most_frames=60)
    assert model.card is not None
    assert "60 of 400 frames" in model.card.notes


def test_a_folder_becomes_a_model_of_the_zoo(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        soundfile.write(tmp_path / "clips" / f"{name}.wav", generator.uniform(-0.5, 0.5, 8000), 16_000)
    (tmp_path / "clips" / "broken.wav").write_bytes(b"RIFF")
    model = speech_model()
    model.save_pretrained(tmp_path / "speech")
    options = ["--count", "5", "--layer", "2", "--repo", str(tmp_path / "speech"), "--out", str(tmp_path / "units")]
    done = CliRunner().invoke(app, ["units", str(tmp_path / "clips"), *options])
    assert done.exit_code == 0, done.output
    assert "5 units, squared distance" in done.output
    assert "broken.wav is left out" in done.output
    loaded = zoo.create_model(f"local-dir:{tmp_path / 'units'}")
    x = zoo.media.load(tmp_path / "clips" / "a.wav", loaded.spec)
    tokens = loaded.encode(x)
    with torch.no_grad():
        states = hidden_states(copy.deepcopy(model), x[0])[2][0]
    distances = (states[:, None] - loaded.quantizer.codebook.weight).square().sum(-1)
    assert torch.equal(tokens.indices[0, 0], distances.argmin(1))
    assert "48 of 48 frames" in loaded.card.notes
