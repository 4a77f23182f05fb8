"""What every codec of these families does: any length, items of unequal lengths, bitrates, silence, wrong input."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.checkpoint import load_into
from zoo.parity import Fixture
from zoo.registry import registry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

PARITY = Path(__file__).parents[1] / "parity"
FIXTURES = {
    "encodec": "encodec",
    "encodec__48khz": "encodec",
    "dac": "dac",
    "dac__odd_strides": "dac",
    "snac": "snac",
    "snac__plain": "snac",
}
LONGEST = 1300
every = pytest.mark.parametrize("fixture", FIXTURES)


def model_of(fixture: str) -> Tokenizer:
    """The model of a fixture with its weights."""
    content, family = Fixture.read(PARITY / fixture), registry.family(FIXTURES[fixture])
    model = family.model(family.module.config_from_original(content.meta)).eval()  # type: ignore[call-arg]
    choose = getattr(family.module, "key_map_from_original", lambda meta: family.module.KEY_MAP)
    load_into(model, choose(content.meta)(content.weights))
    return model


MODELS = {fixture: model_of(fixture) for fixture in FIXTURES}


def signal(model: Tokenizer, samples: int, items: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(items, model.spec.channels, samples, generator=generator) * 1.6 - 0.8


@every
@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, LONGEST))
def test_any_length_comes_back(fixture: str, samples: int) -> None:
    model = MODELS[fixture]
    x = signal(model, samples)
    tokens = model.encode(x)
    with torch.no_grad():
        expected = model(x).reconstruction
    for decoded in (model.decode(tokens), model.decode(Tokens.unpack(tokens.pack()))):
        assert decoded.shape == x.shape
        torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)
    padded = tuple(side + more for side, more in zip((samples,), model.spec.padding((samples,))))
    assert tuple(level.shape[1:] for level in tokens.levels) == model.token_shapes(padded)


@every
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, LONGEST), min_size=1, max_size=5))
def test_items_of_unequal_lengths_are_as_each_alone(fixture: str, lengths: list[int]) -> None:
    model = MODELS[fixture]
    items = [signal(model, length)[0] for length in lengths]
    together = model.encode(items)
    decoded = model.decode(Tokens.unpack(together.pack()))
    assert decoded.shape == (len(items), model.spec.channels, max(lengths))
    for i, item in enumerate(items):
        alone = model.encode(item[None])
        one = together[i]
        for level, expected in zip(one.levels, alone.levels):
            assert torch.equal(level[:, : expected.shape[1]], expected)
            assert not level[:, expected.shape[1] :].any()
        assert one.bits == alone.bits
        audio = model.decode(alone)
        torch.testing.assert_close(decoded[i : i + 1, :, : lengths[i]], audio, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(one), audio, rtol=1e-4, atol=1e-5)
        assert not decoded[i, :, lengths[i] :].any()


@every
def test_codebooks_are_chosen_by_number_or_bitrate(fixture: str) -> None:
    model = MODELS[fixture]
    x = signal(model, 700)
    everything = model.encode(x)
    assert len(model.bitrates) == len(model.vocab_sizes)
    for count, rate in enumerate(model.bitrates, start=1):
        tokens = model.encode(x, num_codebooks=count)
        assert len(tokens.levels) == count
        assert tokens == everything.truncate(count)
        assert model.encode(x, bitrate=rate) == tokens
        assert model.encode(x, bitrate=rate * 1.01) == tokens
        assert model.decode(tokens).shape == x.shape
    with pytest.raises(ValueError, match=f"bitrate: expected at least {model.bitrates[0]:g} bits per second"):
        model.encode(x, bitrate=model.bitrates[0] * 0.99)
    with pytest.raises(ValueError, match="expected num_codebooks or bitrate, got both"):
        model.encode(x, num_codebooks=1, bitrate=1e6)
    with pytest.raises(ValueError, match="num_codebooks: expected 1 to"):
        model.encode(x, num_codebooks=len(model.vocab_sizes) + 1)


@every
def test_the_bitrate_is_that_of_long_recordings(fixture: str) -> None:
    model = MODELS[fixture]
    seconds = 4
    tokens = model.encode(signal(model, seconds * model.spec.sample_rate))  # type: ignore[operator]
    gains = tokens.extent.gains if tokens.extent is not None else None
    bits = tokens.bits[0] - (0 if gains is None else 32 * len(gains[0]))
    assert bits / seconds == pytest.approx(model.bitrates[-1], rel=0.05)


@every
def test_half_precision(fixture: str) -> None:
    model = copy.deepcopy(MODELS[fixture]).to(torch.bfloat16)
    x = signal(model, 700).to(torch.bfloat16)
    decoded = model.decode(model.encode(x))
    assert decoded.shape == x.shape
    assert decoded.dtype == torch.bfloat16
    assert decoded.isfinite().all()


@every
def test_silence_is_finite(fixture: str) -> None:
    model = MODELS[fixture]
    x = torch.zeros(1, model.spec.channels, 500)
    decoded = model.decode(model.encode(x))
    assert decoded.isfinite().all()


@every
def test_wrong_input_is_refused(fixture: str) -> None:
    model = MODELS[fixture]
    for items, message in [
        ([], "expected at least one signal"),
        ([torch.zeros(model.spec.channels + 1, 9)], f"expected a batch of shape .*{model.spec.channels}"),
        ([torch.zeros(9)], "expected a batch of shape"),
        ([torch.zeros(model.spec.channels, 0)], "expected a batch of shape"),
        ([torch.zeros(model.spec.channels, 9).numpy()], "got ndarray"),
        ([torch.full((model.spec.channels, 9), 3.0)], r"expected values in \[-1.0, 1.0\], got 3 to 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.encode(items)


@every
def test_tokens_without_extent_decode_to_whole_frames(fixture: str) -> None:
    model = MODELS[fixture]
    tokens = model.encode(signal(model, 600))
    if model.layout == "scales":
        with pytest.raises(ValueError, match="need `extent`"):
            model.tokens(tokens.indices)
        return
    raw = model.tokens(tokens.indices)
    assert model.decode(raw).shape[-1] >= 600


@every
def test_weights_load_from_json_config(fixture: str) -> None:
    model = MODELS[fixture]
    again = type(model.config).from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert again == model.config
