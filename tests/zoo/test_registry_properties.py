"""What every registered family must do; a new family is tested here without a line added."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from zoo.checkpoint import CheckpointError, load_into
from zoo.config import ConfigError
from zoo.quantizers import BinaryConfig, FiniteScalarConfig, VectorConfig
from zoo.registry import registry
from zoo.tokenizer import InputSpec, Tokenizer
from zoo.tokens import Tokens

every = pytest.mark.parametrize("name", tiny.FAMILIES)
QUANTIZERS = {
    "vector": VectorConfig(codebook_size=11, dim=3),
    "finite_scalar": FiniteScalarConfig(levels=(4, 3, 5)),
    "binary": BinaryConfig(bits=5),
}


def same(one: Tokens, other: Tokens) -> bool:
    return len(one.levels) == len(other.levels) and all(torch.equal(a, b) for a, b in zip(one.levels, other.levels))


# -- config and weights --------------------------------------------------------------------------------------------


@every
def test_config_survives_json(name: str) -> None:
    family = registry.family(name)
    for config in (family.config(), tiny.config(family)):
        again = family.config.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)


@every
def test_config_refuses_unknown_fields_and_wrong_types(name: str) -> None:
    config = registry.family(name).config
    values = config().to_dict()
    with pytest.raises(ConfigError, match="no_such_field"):
        config.from_dict({**values, "no_such_field": 1})
    field = next(key for key, value in values.items() if type(value) in (int, float, list))
    with pytest.raises(ConfigError, match=field):
        config.from_dict({**values, field: "many"})


@every
def test_config_rebuilds_the_model(name: str) -> None:
    model = tiny.build(name)
    again = registry.family(name).model(type(model.config).from_dict(model.config.to_dict()))
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


@every
def test_state_dict_keys_are_stable(name: str) -> None:
    """Use and training neither add nor drop a key, and the keys are those under which stored weights load."""
    model = tiny.build(name)
    keys = list(model.state_dict())
    model.decode(model.encode(tiny.signal(model)))
    model.train()(tiny.signal(model))
    assert list(model.state_dict()) == keys
    assert list(copy.deepcopy(model).to(torch.bfloat16).state_dict()) == keys
    stored = tiny.fixture_weights(name)
    if stored is not None:
        assert sorted(stored) == sorted(keys)


@every
def test_missing_unexpected_and_mis_shaped_weights_are_told_by_module(name: str) -> None:
    model = tiny.build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.zeros_like(value) for key, value in before.items()}
    keys = [key for key, value in state.items() if value.ndim > 0]
    missing, mis_shaped = keys[0], keys[-1]
    del state[missing]
    state["no.such.weight"] = torch.zeros(1)
    state[mis_shaped] = torch.zeros(*state[mis_shaped].shape, 2)
    with pytest.raises(CheckpointError) as raised:
        load_into(model, state)
    message = str(raised.value)
    assert re.search("1 missing", message)
    assert re.search("1 unexpected", message)
    assert re.search("1 mis-shaped", message)
    assert all(
        part in message for part in (missing.rpartition(".")[0], "no.such", str(tuple(before[mis_shaped].shape)))
    )
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())  # all or nothing


@every
def test_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = tiny.build(name)
    path = zoo.save_model(model, tmp_path / "model")
    for place in (str(path), f"local-dir:{path.parent}"):
        again = zoo.create_model(place)
        assert again.source == model.source
        assert again.config == model.config
        assert same(again.encode(tiny.signal(model)), model.encode(tiny.signal(model)))
    assert zoo.create_model(str(path), dtype=torch.bfloat16).source == model.source


# -- tokens --------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("odd", [False, True])
def test_an_item_alone_in_any_batch_and_twice_gives_the_same_tokens(name: str, odd: bool) -> None:
    model = tiny.build(name)
    x = tiny.signal(model, 3, odd)
    together = model.encode(x)
    assert same(together, model.encode(x))
    for i in range(3):
        assert same(together[i : i + 1], model.encode(x[i : i + 1]))
    assert same(model.encode(x.flip(0)), together[[2, 1, 0]])
    assert same(model.train().encode(x), together)  # training mode does not reach encode
    assert all(module.training for module in model.modules())


@every
@pytest.mark.parametrize("odd", [False, True])
def test_tokens_alone_give_the_reconstruction(name: str, odd: bool) -> None:
    model = tiny.build(name)
    x = tiny.signal(model, 2, odd)
    tokens = model.encode(x)
    with torch.no_grad():
        expected = model(x).reconstruction
    decoded = model.decode(Tokens.unpack(tokens.pack()))
    assert decoded.shape == x.shape
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5)
    raw = model.tokens(tokens.indices, extent=tuple(x.shape[2:]))
    assert torch.equal(model.decode(raw), decoded)


@every
def test_codes_are_what_the_quantizer_gave(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    with torch.no_grad():
        quantized = model(x).quantized
    codes = model.codes(model.encode(x))
    assert codes.dtype == torch.float32
    torch.testing.assert_close(codes, quantized.codes)


@every
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4))
def test_packing_flattening_and_files_lose_nothing(name: str, seed: int, count: int, tmp_path: Path) -> None:
    model = tiny.build(name)
    generator = torch.Generator().manual_seed(seed)
    sides = tiny.size(model.spec, odd=True)
    padded = tuple(side + grow for side, grow in zip(sides, model.spec.padding(sides)))
    shapes = model.token_shapes(padded)
    levels = [
        torch.randint(0, size, (count, *shape), generator=generator) for shape, size in zip(shapes, model.vocab_sizes)
    ]
    if len({level.shape for level in levels}) == 1:
        indices = levels[0] if len(levels) == 1 and model.layout != "frames" else torch.stack(levels, 1)
    else:
        indices = torch.cat([level.flatten(1) for level in levels], 1)
    tokens = model.tokens(indices, extent=sides)
    assert same(Tokens.unpack(tokens.pack()), tokens)
    assert Tokens.unpack(tokens.pack()) == tokens
    bits = sum(math.ceil(math.log2(size)) * level.numel() for size, level in zip(model.vocab_sizes, levels))
    assert sum(tokens.bits) == bits
    tokens.save(tmp_path / "tokens.safetensors")
    assert Tokens.load(tmp_path / "tokens.safetensors") == tokens
    for order in ("frame", "level"):
        if order == "frame" and len({level.shape for level in levels}) > 1:
            continue
        ids = tokens.flatten(order=order)
        assert ids.shape == (count, sum(math.prod(shape) for shape in shapes))
        assert int(ids.max()) < sum(model.vocab_sizes)
        assert same(model.tokens(ids, extent=sides, order=order), tokens)


@every
def test_prefixes_decode(name: str) -> None:
    model = tiny.build(name)
    tokens = model.encode(tiny.signal(model))
    if model.prefix is None:
        with pytest.raises(ValueError, match=r"prefix|truncate"):
            tokens.truncate(1)
        return
    assert model.decode(tokens.truncate(1)).shape == tiny.signal(model).shape


# -- training ------------------------------------------------------------------------------------------------------


@every
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    model = tiny.build(name).train()
    x = tiny.signal(model, 2, odd=True)
    output = model(x)
    assert output.reconstruction.shape == x.shape
    (output.reconstruction.square().mean() + sum(output.quantized.losses.values(), torch.zeros(()))).backward()
    trainable = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    for key, parameter in trainable.items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert bool(parameter.grad.any()), key


@every
@pytest.mark.parametrize("training", [False, True])
def test_bf16_autocast_is_finite_with_quantisation_in_float32(name: str, training: bool) -> None:
    model = tiny.build(name).train(training)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        output = model(tiny.signal(model))
    assert output.quantized.codes.dtype == torch.float32
    assert all(bool(loss.isfinite()) and loss.dtype == torch.float32 for loss in output.quantized.losses.values())
    assert bool(output.reconstruction.isfinite().all())


@every
def test_a_model_in_half_precision_encodes_decodes_and_trains(name: str) -> None:
    model = tiny.build(name).to(torch.bfloat16)
    x = tiny.signal(model).to(torch.bfloat16)
    decoded = model.decode(model.encode(x))
    assert decoded.shape == x.shape
    assert bool(decoded.isfinite().all())
    assert bool(model.train()(x).reconstruction.isfinite().all())


@every
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_architecture_takes_every_quantizer(name: str, quantizer: str) -> None:
    model = tiny.build(name, QUANTIZERS[quantizer])
    x = tiny.signal(model)
    tokens = model.encode(x)
    assert tokens.vocab_sizes == QUANTIZERS[quantizer].vocab_sizes
    assert model.decode(tokens).shape == x.shape
    output = model.train()(x)
    (output.reconstruction.mean() + sum(output.quantized.losses.values(), torch.zeros(()))).backward()


# -- bad input -----------------------------------------------------------------------------------------------------


def spoilt(model: Tokenizer) -> list[tuple[object, str]]:
    x = tiny.signal(model)
    low, high = model.spec.value_range
    nan = x.clone()
    nan[(0,) * nan.ndim] = math.nan
    infinite = x.clone()
    infinite[(0,) * nan.ndim] = math.inf
    return [
        (x + (high - low), rf"expected values in \[{low}, {high}\]"),
        (x - (high - low), rf"expected values in \[{low}, {high}\]"),
        (torch.full_like(x, 255.0), r"got 255 to 255"),
        (nan, r"got nan"),
        (infinite, r"expected values in"),
        (torch.zeros(x.shape, dtype=torch.uint8), "got torch.uint8"),
        (torch.cat([x, x[:, :1]], 1), rf"got \({len(x)}, {x.shape[1] + 1}"),
        (x[0], "expected a batch of shape"),
        (x[:0], "expected a batch of shape"),
        (x[..., :0], "expected a batch of shape"),
        (x.numpy(), "got ndarray"),
    ]


@every
def test_bad_input_is_refused_with_expected_and_got(name: str) -> None:
    model = tiny.build(name)
    for x, message in spoilt(model):
        with pytest.raises(ValueError, match=message):
            model.encode(x)
    if model.spec.size is not None:
        x = tiny.signal(model)
        with pytest.raises(ValueError, match="expected a batch of shape"):
            model.encode(torch.cat([x, x], -1))


@every
def test_tokens_of_another_model_are_refused(name: str) -> None:
    model, other = tiny.build(name), tiny.build(name, seed=1)
    tokens = model.encode(tiny.signal(model))
    with pytest.raises(
        ValueError, match=f"expected tokens of .*{other.source.fingerprint}.*{model.source.fingerprint}"
    ):
        other.decode(tokens)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ValueError, match="expected tokens of"):
        model.decode(tokens)  # its weights have changed since


@every
def test_integers_that_do_not_fit_are_refused(name: str) -> None:
    model = tiny.build(name)
    tokens = model.encode(tiny.signal(model))
    extent = tiny.size(model.spec)
    with pytest.raises(ValueError, match=r"expected integers, got torch\.float32"):
        model.tokens(tokens.indices.float(), extent=extent)
    with pytest.raises(ValueError, match="expected a tensor of integers, got ndarray"):
        model.tokens(tokens.indices.numpy(), extent=extent)
    for use in (model.decode, model.codes):
        with pytest.raises(ValueError, match=r"expected Tokens, which `model.tokens` makes of indices, got Tensor"):
            use(tokens.indices)
    with pytest.raises(ValueError, match="expected indices in"):
        model.tokens(torch.full_like(tokens.indices, max(model.vocab_sizes)), extent=extent)
    more = torch.cat([tokens.indices, tokens.indices[..., :1]], -1)
    count = tokens.indices.shape[-1]
    fewer = next(k for k in reversed(range(count)) if k not in model.shorter_rows(count))
    for indices in (more, tokens.indices[..., :fewer]):
        with pytest.raises(ValueError, match="expected indices"):
            model.tokens(indices, extent=extent)


@every
def test_options_that_the_model_does_not_take_are_refused_by_name(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    tokens = model.encode(x)
    for option in {"num_tokens", "quality", "num_codebooks", "bitrate"} - model.encode_options:
        with pytest.raises(ValueError, match=f"does not take {option}"):
            model.encode(x, **{option: 1})
    given_values: dict[str, object] = {"steps": 3, "guidance_scale": 2.0, "seed": 0, "noise": Tensor(), "text": "a"}
    for option in given_values.keys() - model.decode_options:
        with pytest.raises(ValueError, match=f"does not take {option}"):
            model.decode(tokens, **{option: given_values[option]})


# -- files in the published layout -------------------------------------------------------------------------------


@every
def test_default_sizes_build_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = registry.family(name).model(registry.family(name).config())
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    card = registry.card(name)
    assert card.family == name
    assert card.modality == model.spec.modality


@every
def test_audio_has_a_sample_rate_and_bitrates(name: str) -> None:
    model = tiny.build(name)
    if model.spec.modality != "audio":
        assert model.bitrates == ()
        return
    assert isinstance(model.spec.sample_rate, int)
    tokens = model.encode(tiny.signal(model))
    assert tokens.extent is not None
    assert tokens.extent.sample_rate == model.spec.sample_rate
    assert len(model.bitrates) == len(model.vocab_sizes)
    assert all(rate > 0 for rate in model.bitrates)


def test_specs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a sample_rate of audio"):
        InputSpec("audio", 1, (-1.0, 1.0))
    with pytest.raises(ValueError, match="expected a frame_multiple of 1 for audio, got 16000"):
        InputSpec("audio", 1, (-1.0, 1.0), sample_rate=16000, frame_multiple=16000)
