"""Models that begin without data, on the meta device, are the same models once they have their weights."""

import copy
from collections.abc import Callable, Iterator

import pytest
import tiny
import torch
from torch import Tensor, nn

import zoo
from zoo.layers.constants import HasConstants
from zoo.losses.mel import MelConfig, MelSpectrogram
from zoo.model import Model
from zoo.registry import registry
from zoo.tokenizer import Tokenizer

every = pytest.mark.parametrize("name", tiny.FAMILIES)


def blank(model: Model, materialise: Callable[[Model], object]) -> Model:
    """A model of the same config that begins on the meta device."""
    with torch.device("meta"):
        other = type(model)(model.config).eval()
    assert all(tensor.is_meta for tensor in (*other.parameters(), *other.buffers()))
    materialise(other)
    return other


def emptied(model: Model, state: dict[str, Tensor]) -> None:
    model.to_empty(device="cpu")
    model.load_state_dict(state)


def assigned(model: Model, state: dict[str, Tensor]) -> None:
    model.load_state_dict(state, assign=True)


def within(model: Model, state: dict[str, Tensor]) -> None:
    """As a part of another module, as Lightning and FSDP have it."""
    whole = nn.Sequential(model)
    whole.to_empty(device="cpu")
    whole.load_state_dict({f"0.{key}": value for key, value in state.items()})


def there_and_back(model: Model, state: dict[str, Tensor]) -> None:
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    model.to("meta")
    emptied(model, state)


@pytest.fixture(autouse=True)
def _memory_without_luck() -> Iterator[None]:
    """Memory that nobody has written holds NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check_same(model: Tokenizer, other: Tokenizer) -> None:
    buffers = dict(other.named_buffers())
    assert buffers.keys() == dict(model.named_buffers()).keys()
    for key, value in model.named_buffers():
        assert value.dtype == buffers[key].dtype, key
        assert torch.equal(value, buffers[key]), key
    x = tiny.signal(model)
    tokens = model.encode(x)
    assert other.encode(x) == tokens
    assert torch.equal(other.decode(tokens), model.decode(tokens))


@every
def test_a_model_of_the_meta_device_emptied_and_loaded_is_the_same(name: str) -> None:
    model = tiny.build(name)
    check_same(model, blank(model, lambda other: emptied(other, model.state_dict())))
    check_same(model, blank(model, lambda other: assigned(other, copy.deepcopy(model).state_dict())))
    check_same(model, blank(model, lambda other: within(other, model.state_dict())))


@pytest.mark.parametrize("materialise", [emptied, assigned, within, there_and_back])
def test_every_way_off_the_meta_device(materialise: Callable[[Model, dict[str, Tensor]], None]) -> None:
    model = tiny.build("compact")
    check_same(model, blank(model, lambda other: materialise(other, model.state_dict())))


@pytest.mark.parametrize("name", registry.families())
def test_no_buffer_of_any_model_stays_behind(name: str) -> None:
    """Of projectors and other models, too, at their full sizes: what no weights bring is not left undefined."""
    family = registry.family(name)
    with torch.device("meta"):
        model = family.model(family.config())
    kept = model.state_dict().keys()
    made = {
        f"{path}.{constant}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, HasConstants)
        for constant in module._constants
    }
    assert {key for key, _ in model.named_buffers()} - kept == made


@every
def test_constants_are_not_rounded_by_half_precision(name: str) -> None:
    model = tiny.build(name)
    again = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
    kept = model.state_dict().keys()
    for key, value in model.named_buffers():
        if key not in kept:
            assert torch.equal(again.get_buffer(key), value), key


@every
@pytest.mark.parametrize("training", [False, True])
def test_passes_on_the_meta_device_compute_shapes(name: str, training: bool) -> None:
    """What counters of operations run."""
    model = tiny.build(name)
    x = tiny.signal(model)
    other = blank(model, lambda other: None)
    if name.startswith("xcodec"):
        with pytest.raises(ValueError, match="expected samples with data, got some of the meta device"):
            other.train(training)(x.to("meta"))
        return
    output, wanted = other.train(training)(x.to("meta")), model.train(training)(x)
    assert output.reconstruction.is_meta
    assert output.reconstruction.shape == wanted.reconstruction.shape
    assert [level.shape for level in output.quantized.levels] == [level.shape for level in wanted.quantized.levels]
    if training and output.reconstruction.requires_grad:
        output.reconstruction.sum().backward()


def test_a_loss_of_the_meta_device_is_the_same() -> None:
    config = MelConfig(16_000, n_fft=64, hop_length=16, n_mels=8)
    with torch.device("meta"):
        module = MelSpectrogram(config)
    signal = torch.randn(1, 1, 256)
    assert torch.equal(module.to_empty(device="cpu")(signal), MelSpectrogram(config)(signal))


def test_a_forward_and_a_backward_pass_may_have_a_move_between_them() -> None:
    """A move to where a model is touches no constant."""
    model = tiny.build("compact").train()
    loss = model(tiny.signal(model)).reconstruction.sum()
    model.to("cpu", torch.float32)
    loss.backward()


def test_create_model_on_the_meta_device_takes_weights_by_assignment() -> None:
    full = zoo.create_model("compact_f8", pretrained=True)
    with torch.device("meta"):
        model = zoo.create_model("compact_f8")
    model.load_state_dict(full.state_dict(), assign=True)
    assert model.source.fingerprint == full.source.fingerprint
