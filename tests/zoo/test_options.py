"""Options of encode and decode, and extents: numbers of any library, and what is none is refused by name."""

import functools
import re
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

MODELS = {name: tiny.build(name) for name in tiny.FAMILIES}
ADAPTIVE = [name for name, model in MODELS.items() if "num_tokens" in model.encode_options]
SEEDED = [name for name, model in MODELS.items() if "seed" in model.decode_options]
NUMBERS = [
    (name, option)
    for name, model in MODELS.items()
    for option in sorted({"quality", "guidance_scale", "steps"} & (model.encode_options | model.decode_options))
]


@functools.cache
def encoded(name: str) -> Tokens:
    return MODELS[name].encode(tiny.signal(MODELS[name]))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_numbers_of_tokens_come_from_any_library(name: str) -> None:
    model = MODELS[name]
    x = tiny.signal(model)
    few, *_, most = model.numbers_of_tokens(tuple(x.shape[2:]))
    expected = model.encode(x, num_tokens=few)
    for same in (np.int64(few), torch.tensor(few), np.array([few, few]), torch.tensor([few, few]), (few, few)):
        assert model.encode(x, num_tokens=same) == expected
    assert model.encode(x, num_tokens=(few, most)) == model.encode(x, num_tokens=[few, most])


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_come_from_any_library(name: str) -> None:
    model = MODELS[name]
    tokens = encoded(name)
    expected = model.decode(tokens, seed=[3, 5])
    for same in ((3, 5), np.array([3, 5]), torch.tensor([3, 5]), [np.int64(3), 5]):
        assert torch.equal(model.decode(tokens, seed=same), expected)
    assert torch.equal(model.decode(tokens[0], seed=np.int64(3)), model.decode(tokens[0], seed=3))


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("seed", ["3", 1.5, True, [1.5, 2], [True, False], 2**64])
def test_what_is_no_seed_is_refused(name: str, seed: Any) -> None:
    model = MODELS[name]
    tokens = encoded(name)
    with pytest.raises(ValueError, match=rf"seed: expected .*got {re.escape(repr(seed))}"):
        model.decode(tokens, seed=seed)


@pytest.mark.parametrize("name", SEEDED)
def test_what_is_no_noise_is_refused(name: str) -> None:
    model = MODELS[name]
    tokens = encoded(name)
    noise = torch.zeros(model.noise_shape(model.codes(tokens)))
    for bad, got in ((noise.numpy(), "ndarray"), ([1.0], "list"), (noise.long(), r"torch\.int64")):
        with pytest.raises(ValueError, match=f"noise: expected a floating point tensor, got {got}"):
            model.decode(tokens, noise=bad)
    with pytest.raises(ValueError, match="noise: expected finite values, got nan"):
        model.decode(tokens, noise=noise + float("nan"))


@pytest.mark.parametrize(("name", "option"), NUMBERS)
@pytest.mark.parametrize("value", ["3", [1, 2], True, float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name: str, option: str, value: Any) -> None:
    model = MODELS[name]
    use, of = (model.encode, tiny.signal(model)) if option == "quality" else (model.decode, encoded(name))
    with pytest.raises(ValueError, match=rf"{option}: expected .*got {re.escape(repr(value))}"):
        use(of, **{option: value})


@pytest.fixture
def codec() -> Tokenizer:
    return MODELS["encodec"]


def test_numbers_of_codebooks_and_bitrates_come_from_any_library(codec: Tokenizer) -> None:
    x = tiny.signal(codec)
    assert codec.encode(x, num_codebooks=np.int64(2)) == codec.encode(x, num_codebooks=2)
    assert codec.encode(x, bitrate=np.float64(codec.bitrates[1])) == codec.encode(x, num_codebooks=2)


@pytest.mark.parametrize("value", ["2", 1.5, True, [2]])
def test_what_is_no_number_of_codebooks_is_refused(codec: Tokenizer, value: Any) -> None:
    message = f"num_codebooks: expected an integer of at least 1, got {re.escape(repr(value))}"
    with pytest.raises(ValueError, match=message):
        codec.encode(tiny.signal(codec), num_codebooks=value)
    with pytest.raises(ValueError, match=message):
        codec.streaming(num_codebooks=value)  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["6kbps", True, [6000], float("nan")])
def test_what_is_no_bitrate_is_refused(codec: Tokenizer, value: Any) -> None:
    with pytest.raises(ValueError, match=f"bitrate: expected a finite number, got {re.escape(repr(value))}"):
        codec.encode(tiny.signal(codec), bitrate=value)


@pytest.mark.parametrize("name", ["titok", "compact", "cosmos_dv", "encodec"])
def test_an_extent_is_as_many_integers_as_a_signal_has_axes(name: str) -> None:
    model = MODELS[name]
    tokens, sides = encoded(name), tiny.size(model.spec)
    for same in (sides, list(sides), torch.Size(sides), np.array(sides), tuple(map(np.int64, sides))):
        assert model.tokens(tokens.indices, extent=same) == tokens
    for bad in ((*sides, 8), sides[1:], "8x8", 8):
        with pytest.raises(ValueError, match=rf"extent: expected \(.*got {re.escape(repr(bad))}"):
            model.tokens(tokens.indices, extent=bad)
