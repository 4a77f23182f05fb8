"""What every codec that streams does with pieces that do not fit, and with other precisions."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "zoo"))
import tiny

MODELS: dict[str, Any] = {name: model for name in tiny.FAMILIES if hasattr(model := tiny.build(name), "streaming")}
every = pytest.mark.parametrize("name", MODELS)


def test_there_are_codecs_that_stream() -> None:
    assert {"encodec", "mimi"} <= set(MODELS)


@every
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_of_any_precision_give_the_tokens_of_encode(
    name: str, weights: torch.dtype, samples: torch.dtype
) -> None:
    model = copy.deepcopy(MODELS[name]).to(weights)
    x = tiny.signal(model).to(samples)
    with model.streaming() as stream:
        first = stream.encode(x[..., : x.shape[-1] // 2])
        indices = torch.cat([first, stream.encode(x[..., x.shape[-1] // 2 :], last=True)], -1)
        sound = stream.decode(indices, last=True)
    if weights == torch.float32:  # half precision rounds pieces otherwise than the whole
        assert torch.equal(indices, model.encode(x).indices)
    assert sound.dtype == weights
    assert bool(sound.isfinite().all())


@every
def test_pieces_that_do_not_fit_are_refused_and_the_stream_goes_on(name: str) -> None:
    model = MODELS[name]
    x = tiny.signal(model)
    tokens = model.encode(x)
    with model.streaming() as stream:
        first = stream.encode(x[..., :5])
        for piece, message in (
            ([x], "expected a tensor .*, got list"),
            (torch.cat([x, x]), "expected a batch of 2 to encode, as before, got 4"),
            (torch.zeros(2, model.spec.channels + 1, 0), "expected a batch of shape"),
            (torch.zeros(0), "expected a batch of shape"),
            (torch.zeros(2, model.spec.channels, 0, dtype=torch.int16), "got torch.int16"),
        ):
            with pytest.raises(ValueError, match=message):
                stream.encode(piece, last=True)
        assert torch.equal(torch.cat([first, stream.encode(x[..., 5:], last=True)], -1), tokens.indices)


@every
def test_indices_that_do_not_fit_are_refused_and_the_stream_goes_on(name: str) -> None:
    model = MODELS[name]
    tokens = model.encode(tiny.signal(model))
    indices, size = tokens.indices, model.vocab_sizes[0]
    with model.streaming() as stream:
        first = stream.decode(indices[..., :1])
        for bad, message in (
            (tokens, r"expected int64 indices \(batch, .*, got Tokens"),
            (torch.cat([indices, indices]), "expected a batch of 2 to decode, as before, got 4"),
            (torch.full_like(indices, size), rf"expected indices in \[0, {size}\), got {size} to {size}"),
            (torch.full_like(indices, -1), rf"expected indices in \[0, {size}\), got -1 to -1"),
        ):
            with pytest.raises(ValueError, match=message):
                stream.decode(bad, last=True)
        sound = torch.cat([first, stream.decode(indices[..., 1:], last=True)], -1)
    whole = model.decode(tokens)
    torch.testing.assert_close(sound[..., : whole.shape[-1]], whole, rtol=1e-4, atol=1e-4)


@every
def test_the_number_of_codebooks_holds_for_the_stream(name: str) -> None:
    """Another one midway is of another signal; what is encoded beside it has its own."""
    model = MODELS[name]
    most = len(model.vocab_sizes)
    indices = model.encode(tiny.signal(model)).indices
    for first in range(1, most + 1) if model.prefix == "levels" else ():
        with model.streaming() as stream:
            pieces = [stream.decode(indices[:, :first, :1])]
            for other in {1, most} - {first}:
                with pytest.raises(ValueError, match=f"expected {first} codebooks to decode, as before, got {other}"):
                    stream.decode(indices[:, :other, 1:], last=True)
            assert stream.encode(tiny.signal(model), last=True).shape[1] == most
            pieces.append(stream.decode(indices[:, :first, 1:], last=True))
        whole = model.decode(model.encode(tiny.signal(model), num_codebooks=first))
        torch.testing.assert_close(torch.cat(pieces, -1)[..., : whole.shape[-1]], whole, rtol=1e-4, atol=1e-4)


def test_a_stream_that_opens_again_may_have_another_number_of_codebooks() -> None:
    model = MODELS["encodec"]
    indices = model.encode(tiny.signal(model)).indices
    stream = model.streaming()
    for count in (len(model.vocab_sizes), 1):
        with stream:
            assert stream.decode(indices[:, :count], last=True).isfinite().all()
