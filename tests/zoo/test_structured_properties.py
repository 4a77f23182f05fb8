"""What every registered tokenizer of graphs, meshes and the like must do.

Its signals are no arrays, so of `test_registry_properties.py` that stays which needs neither a value range nor padding.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from tokenizers_visual.other_signals.meshgpt import Mesh
from tokenizers_visual.other_signals.semantic_ids import residual_codes_of_items
from tokenizers_visual.other_signals.vqgraph import Graph
from zoo.checkpoint import CheckpointError, load_into
from zoo.config import ConfigError
from zoo.quantizers import BinaryConfig, FiniteScalarConfig, MultiScaleConfig, QuantizerConfig, VectorConfig
from zoo.registry import registry
from zoo.structured import StructuredTokenizer
from zoo.tokens import Tokens

FAMILIES = [name for name in registry.families() if issubclass(registry.family(name).model, StructuredTokenizer)]
every = pytest.mark.parametrize("name", FAMILIES)
QUANTIZERS = {
    "vector": VectorConfig(codebook_size=11, dim=12),
    "another width": VectorConfig(codebook_size=11, dim=3),
    "finite_scalar": FiniteScalarConfig(levels=(4, 3, 5)),
    "binary": BinaryConfig(bits=5),
}


def graph(count: int, seed: int) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(count, (2, 3 * count), generator=generator)
    return Graph(torch.randn(count, 12, generator=generator), edges)


def mesh(count: int, seed: int) -> Mesh:
    generator = torch.Generator().manual_seed(seed)
    vertices = torch.rand(count + 2, 3, generator=generator) * 2 - 1
    first = torch.arange(count)
    return Mesh(vertices, torch.stack([first, first + 1, first + 2], dim=1))  # a strip


def catalogue(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


SIGNALS = {"graph": graph, "mesh": mesh, "embeddings": catalogue}
SMALL = {"semantic_ids": {"width": 12, "hidden": (9,), "quantizer": residual_codes_of_items(7, 5, 3)}}


def signals(model: StructuredTokenizer, counts: tuple[int, ...] = (5, 3, 5)) -> list[Any]:
    return [SIGNALS[model.modality](count, seed) for seed, count in enumerate(counts)]


def build(name: str, quantizer: QuantizerConfig | None = None, seed: int = 0) -> StructuredTokenizer:
    """The model of the sizes of its fixture, or of SMALL, with random weights away from special starts such as zero."""
    family = registry.family(name)
    if name in SMALL:
        config = family.config().replace(**SMALL[name])
    else:
        config = family.module.config_from_original(json.loads((tiny.PARITY / name / "meta.json").read_text()))
    torch.manual_seed(seed)
    model = family.model(config if quantizer is None else config.replace(quantizer=quantizer)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def tensors(thing: Any) -> dict[str, torch.Tensor]:
    """The tensors of a signal, a reconstruction or an output."""
    if isinstance(thing, torch.Tensor):
        return {"": thing}
    return {name: value for name, value in vars(thing).items() if isinstance(value, torch.Tensor)}


def total(output: Any) -> torch.Tensor:
    """A number that depends on all that a pass gives."""
    parts = [x.square().mean() for x in (*tensors(output.reconstruction).values(), *tensors(output).values())]
    return sum(parts, torch.zeros(())) + sum(output.quantized.losses.values(), torch.zeros(()))


def cast(signal: Any, dtype: torch.dtype) -> Any:
    """The signal in another precision."""
    if isinstance(signal, torch.Tensor):
        return signal.to(dtype)
    return replace(signal, **{name: x.to(dtype) for name, x in tensors(signal).items() if x.is_floating_point()})


def test_there_are_such_families() -> None:
    assert {"vqgraph", "meshgpt"} <= set(FAMILIES)


# -- config and weights --------------------------------------------------------------------------------------------


@every
def test_config_survives_json_and_refuses_unknown_fields(name: str) -> None:
    family = registry.family(name)
    for config in (family.config(), build(name).config):
        again = family.config.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert hash(again) == hash(config)
    with pytest.raises(ConfigError, match="no_such_field"):
        family.config.from_dict({"no_such_field": 1})


@every
def test_config_rebuilds_the_model(name: str) -> None:
    model = build(name)
    again = type(model)(type(model.config).from_dict(model.config.to_dict()))  # type: ignore[call-arg]
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}


@every
def test_use_and_training_leave_the_keys(name: str) -> None:
    model = build(name)
    keys = list(model.state_dict())
    model.decode(model.encode(signals(model)))
    model.train()(signals(model)[0])
    assert list(model.state_dict()) == keys
    assert list(copy.deepcopy(model).to(torch.bfloat16).state_dict()) == keys


@every
def test_weights_that_do_not_fit_are_refused(name: str) -> None:
    model = build(name)
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    del state[next(iter(state))]
    with pytest.raises(CheckpointError, match="1 missing"):
        load_into(model, state)


@every
def test_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = build(name)
    path = zoo.save_model(model, tmp_path / "model")
    again = zoo.create_model(str(path))
    assert again.source == model.source
    assert again.config == model.config
    assert again.encode(signals(model)) == model.encode(signals(model))


@every
def test_default_sizes_build_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = registry.family(name).model(registry.family(name).config())
    card = registry.card(name)
    assert (card.family, card.modality, card.layout) == (name, model.modality, "sequence")
    assert card.quantizer == model.quantizer.config.kind


# -- tokens --------------------------------------------------------------------------------------------------------


@every
@settings(max_examples=10)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_a_signal_alone_in_any_batch_and_twice_gives_the_same_tokens(name: str, counts: list[int]) -> None:
    model = build(name)
    items = signals(model, tuple(counts))
    together = model.encode(items)
    assert together == model.encode(items)
    lengths = [level.shape[1] for level in (model.encode([item]).levels[0] for item in items)]
    for i, (item, length) in enumerate(zip(items, lengths)):
        alone = model.encode([item])
        for level, own in zip(together.levels, alone.levels, strict=True):
            assert torch.equal(level[i, :length], own[0])
            assert not level[i, length:].any()
    assert model.train().encode(items) == together  # training mode does not reach encode
    assert all(module.training for module in model.modules())


@every
def test_tokens_alone_give_the_reconstruction(name: str) -> None:
    model = build(name)
    items = signals(model)
    tokens = Tokens.unpack(model.encode(items).pack())
    for item, decoded in zip(items, model.decode(tokens), strict=True):
        with torch.no_grad():
            expected = model(item).reconstruction
        assert type(decoded) is type(expected)
        found = tensors(decoded)
        for field, value in tensors(expected).items():
            torch.testing.assert_close(found[field], value, rtol=1e-5, atol=1e-5)
    raw = model.tokens(model.encode(items[:1]).indices)
    assert raw == model.encode(items[:1])


@every
def test_packing_flattening_and_files_lose_nothing(name: str, tmp_path: Path) -> None:
    model = build(name)
    tokens = model.encode(signals(model))
    assert Tokens.unpack(tokens.pack()) == tokens
    tokens.save(tmp_path / "tokens.safetensors")
    assert Tokens.load(tmp_path / "tokens.safetensors") == tokens
    assert int(tokens.flatten().max()) < sum(model.vocab_sizes)


@every
def test_tokens_and_integers_that_do_not_fit_are_refused(name: str) -> None:
    model, other = build(name), build(name, seed=1)
    tokens = model.encode(signals(model))
    with pytest.raises(ValueError, match=f"expected tokens of .*{other.source.fingerprint}"):
        other.decode(tokens)
    with pytest.raises(ValueError, match=r"expected integers, got torch\.float32"):
        model.tokens(tokens.indices.float())
    with pytest.raises(ValueError, match=r"expected Tokens, which `model.tokens` makes of indices, got Tensor"):
        model.decode(tokens.indices)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected indices in"):
        model.tokens(torch.full_like(tokens.indices, max(model.vocab_sizes)))
    with pytest.raises(ValueError, match="expected indices"):
        model.tokens(tokens.indices[..., None, None])


@every
def test_what_is_no_signal_of_the_model_is_refused(name: str) -> None:
    model = build(name)
    item = signals(model)[0]
    for wrong in (item, [], [torch.zeros(3, 2, 12)], [item, None]):
        with pytest.raises(ValueError, match="expected a"):
            model.encode(wrong)  # type: ignore[arg-type]
    for modality in SIGNALS.keys() - {model.modality}:
        with pytest.raises(ValueError, match="expected a"):
            model.encode([SIGNALS[modality](4, 0)])


# -- training ------------------------------------------------------------------------------------------------------


@every
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    model = build(name).train()
    total(model(signals(model, (8,))[0])).backward()
    trainable = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    for key, parameter in trainable.items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert bool(parameter.grad.any()), key


@every
@pytest.mark.parametrize("training", [False, True])
def test_bf16_autocast_is_finite_with_quantisation_in_float32(name: str, training: bool) -> None:
    model = build(name).train(training)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        output = model(signals(model)[0])
    assert output.quantized.codes.dtype == torch.float32
    assert bool(total(output).isfinite())


@every
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_a_model_of_any_precision_takes_signals_of_any(name: str, own: torch.dtype, given: torch.dtype) -> None:
    model = build(name).to(own)
    for decoded in model.decode(model.encode([cast(item, given) for item in signals(model)])):
        assert all(bool(value.isfinite().all()) for value in tensors(decoded).values())


@every
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_architecture_takes_every_quantizer(name: str, quantizer: str) -> None:
    model = build(name, QUANTIZERS[quantizer])
    tokens = model.encode(signals(model))
    assert tokens.vocab_sizes == QUANTIZERS[quantizer].vocab_sizes
    assert len(model.decode(tokens)) == 3
    total(model.train()(signals(model)[0])).backward()


@every
def test_a_quantizer_of_several_scales_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a quantizer of single positions, got multi_scale"):
        build(name, MultiScaleConfig())
