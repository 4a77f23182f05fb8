"""Recordings in pieces: the tokens and samples of the whole, in bounded memory, for models whose outputs see a part."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.checkpoint import load_into
from zoo.layers.snake import SnakeDecoder, SnakeEncoder
from zoo.long_audio import _Windows, can_be_cut, decode_pieces, encode_pieces
from zoo.parity import Fixture
from zoo.reach import Reach, reach_of
from zoo.registry import import_module, registry
from zoo.tokenizer import Tokenizer

PARITY = Path(__file__).parents[1] / "parity"
FIXTURES = {"dac": "dac", "dac__odd_strides": "dac", "encodec": "encodec", "mimi": "mimi", "snac__plain": "snac"}


def model_of(fixture: str) -> Tokenizer:
    content, family = Fixture.read(PARITY / fixture), FIXTURES[fixture]
    import_module(f"audio.{family}")
    known = registry.family(family)
    model = known.model(known.module.config_from_original(content.meta)).eval()  # type: ignore[call-arg]
    choose = getattr(known.module, "key_map_from_original", lambda meta: known.module.KEY_MAP)
    load_into(model, choose(content.meta)(content.weights))
    return model


MODELS = {fixture: model_of(fixture) for fixture in FIXTURES}
every = pytest.mark.parametrize("fixture", FIXTURES)


def recording(model: Tokenizer, samples: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(1, model.spec.channels, samples, generator=generator) - 0.5


@every
@settings(max_examples=6)
@given(samples=st.integers(1, 5000), piece=st.integers(1, 3000), chunk=st.integers(1, 4000))
def test_tokens_are_those_of_the_whole(fixture: str, samples: int, piece: int, chunk: int) -> None:
    model = MODELS[fixture]
    x = recording(model, samples)
    tokens = encode_pieces(model, x.split(piece, dim=-1), seconds=chunk / model.spec.sample_rate)  # type: ignore[operator]
    assert tokens == model.encode(x)
    few = encode_pieces(model, x.split(piece, dim=-1), num_codebooks=1)
    assert few == model.encode(x, num_codebooks=1)


@pytest.mark.parametrize("fixture", [name for name in FIXTURES if name != "snac__plain"])
@settings(max_examples=6)
@given(samples=st.integers(1, 5000), chunk=st.integers(1, 4000))
def test_samples_are_those_of_the_whole(fixture: str, samples: int, chunk: int) -> None:
    model = MODELS[fixture]
    x = recording(model, samples)
    tokens = model.encode(x)
    pieces = list(decode_pieces(model, tokens, seconds=chunk / model.spec.sample_rate))  # type: ignore[operator]
    assert all(piece.shape[-1] > 0 for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), model.decode(tokens), rtol=1e-4, atol=1e-5)


def test_inference_mode_changes_nothing() -> None:
    model = MODELS["dac"]
    x = recording(model, 3000)
    with torch.inference_mode():
        tokens = encode_pieces(model, x.split(700, dim=-1), seconds=0.02)
        samples = torch.cat(list(decode_pieces(model, tokens, seconds=0.02)), dim=-1)
    assert tokens == model.encode(x)
    torch.testing.assert_close(samples, model.decode(tokens), rtol=1e-4, atol=1e-5)


def test_what_is_kept_does_not_grow() -> None:
    model = MODELS["dac"]
    coder = _Windows(model, 1, seconds=0.05)
    most = (coder.chunk + 2) * coder.hop + 2 * int(coder.reach.after - coder.reach.before)
    for piece in recording(model, 20_000).split(500, dim=-1):
        coder.step(piece)
        assert coder.kept.shape[-1] <= most + 500
    assert coder.done * coder.hop > 15_000


@pytest.mark.slow
def test_an_hour_keeps_no_more_of_the_recording_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["dac"]
    rate = model.spec.sample_rate or 1

    def pieces(seconds: int) -> Iterator[torch.Tensor]:
        one = recording(model, rate)
        for second in range(seconds):
            yield one * (0.5 + 0.5 * (second % 2))

    most: list[int] = []
    step = _Windows.step

    def watched(self: _Windows, x: torch.Tensor) -> list[list[torch.Tensor]]:
        found = step(self, x)
        most[-1] = max(most[-1], self.kept.shape[-1])
        return found

    monkeypatch.setattr(_Windows, "step", watched)
    for seconds in (60, 3600):
        most.append(0)
        tokens = encode_pieces(model, pieces(seconds), num_codebooks=1)
        assert tokens.extent is not None
        assert tokens.extent.sizes == ((seconds * rate,),)
    assert most[0] == most[1]


@pytest.mark.parametrize(
    ("family", "fixture", "reason"),
    [("speechtokenizer", "speechtokenizer", "flip"), ("snac", "snac", "layer_norm"), ("bigcodec", "bigcodec", "pad1d")],
)
def test_models_that_see_everything_are_refused_by_name(family: str, fixture: str, reason: str) -> None:
    module = import_module(f"audio.{family}")
    config = module.config_from_original(json.loads((PARITY / fixture / "meta.json").read_text()))
    model = registry.family(family).model(config).eval()
    with pytest.raises(ValueError, match=f"cannot be cut into pieces with exact seams: .*{reason}"):
        encode_pieces(model, [recording(model, 500)])
    assert reason in (can_be_cut(model) or "")


def test_decoders_that_add_noise_are_refused() -> None:
    model = MODELS["snac__plain"]
    with pytest.raises(ValueError, match="expected frames of one rate, got scales"):
        next(decode_pieces(model, model.encode(recording(model, 900))))
    assert can_be_cut(model) is None
    assert can_be_cut(model, "decoder") is not None
    assert can_be_cut(MODELS["dac"], "decoder") is None


def test_senseless_pieces_are_refused() -> None:
    model = MODELS["dac"]
    with pytest.raises(ValueError, match="expected at least one piece"):
        encode_pieces(model, [])
    with pytest.raises(ValueError, match=r"expected pieces \(1, 1, n\), got \(2, 1, 9\)"):
        encode_pieces(model, [torch.zeros(2, 1, 9)])
    with pytest.raises(ValueError, match="num_codebooks: expected 1 to"):
        encode_pieces(model, [torch.zeros(1, 1, 9)], num_codebooks=99)
    with pytest.raises(ValueError, match="expected tokens of one recording"):
        next(decode_pieces(model, model.encode(torch.zeros(2, 1, 90))))


# -- what is seen along time ---------------------------------------------------------------------------------------


def seen(network: nn.Module, example: torch.Tensor) -> Reach:
    (reach,) = reach_of(network.to("meta"), example.to("meta"), (2,))
    return reach


@pytest.mark.parametrize("strides", [(2, 4), (5, 2), (3, 3)])
def test_reach_along_time_is_that_of_the_gradient(strides: tuple[int, ...]) -> None:
    """No input beyond the reach has a gradient, and those at its ends have one."""
    hop, positions = strides[0] * strides[1], 60
    encoder = SnakeEncoder(4, strides, 3)
    x = torch.randn(1, 1, hop * positions, requires_grad=True)
    place = positions // 2
    encoder(x)[0, :, place].sum().backward()
    assert x.grad is not None
    touched = x.grad[0, 0].nonzero().flatten()
    reach = seen(encoder, torch.empty(1, 1, hop * 4))
    assert reach.inputs(place, place + 1, x.shape[-1]) == (int(touched[0]), int(touched[-1]) + 1)
    decoder = SnakeDecoder(3, 16, strides)
    codes = torch.randn(1, 3, positions, requires_grad=True)
    sample = hop * place + 1
    decoder(codes)[0, 0, sample].backward()
    assert codes.grad is not None
    touched = codes.grad[0].abs().sum(0).nonzero().flatten()
    first, end = seen(decoder, torch.empty(1, 3, 4)).inputs(sample, sample + 1, positions)
    assert first <= int(touched[0])
    assert int(touched[-1]) < end
