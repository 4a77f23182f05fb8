"""What other libraries and careful users do to a module, done to a model of every family."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from ranks import run_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset

import zoo
from zoo.registry import registry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Source, Tokens

every = pytest.mark.parametrize("name", tiny.FAMILIES)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def both_ways(model: Tokenizer, x: Tensor | None = None) -> tuple[Tokens, Tensor]:
    tokens = model.encode(tiny.signal(model) if x is None else x)
    return tokens, model.decode(tokens)


def check_same(one: Tokenizer, other: Tokenizer) -> None:
    (tokens, signal), (same_tokens, same_signal) = both_ways(one), both_ways(other)
    assert same_tokens == tokens
    assert torch.equal(same_signal, signal)


def fresh(name: str) -> Tokenizer:
    family = registry.family(name)
    return family.model(tiny.config(family)).eval()


@every
def test_looking_at_all_that_a_model_has_raises_nothing(name: str) -> None:
    """What help, mocks and tracers do; also of a model without data."""
    for model in (tiny.build(name), tiny.build(name).to("meta")):
        for member in dir(model):
            if member != "source" or model.device.type != "meta":
                assert hasattr(model, member)


# -- copies --------------------------------------------------------------------------------------------------------


@every
def test_copies_pickles_and_files_of_torch_are_the_same_model(name: str) -> None:
    model = tiny.build(name)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    for other in copies:
        assert other.source == model.source
        check_same(model, other)


@every
def test_safetensors_saves_and_loads_a_model(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    model, other = tiny.build(name), fresh(name)
    save_model(model, str(tmp_path / "model.safetensors"))
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    check_same(model, other)


class Encoded(Dataset[Tokens]):
    """Items that a model encodes in a worker."""

    def __init__(self, model: Tokenizer) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, item: int) -> Tokens:
        return self.model.encode(tiny.signal(self.model, 1, seed=item))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_hold_models_and_send_tokens(method: str) -> None:
    model = tiny.build("compact")
    loader = DataLoader(Encoded(model), 2, num_workers=1, multiprocessing_context=method, collate_fn=Tokens.cat)
    items = [model.encode(tiny.signal(model, 1, seed=item)) for item in range(4)]
    assert list(loader) == [Tokens.cat(items[:2]), Tokens.cat(items[2:])]


# -- defaults of torch ---------------------------------------------------------------------------------------------


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@every
def test_a_default_dtype_makes_models_of_it_and_leaves_others(name: str, dtype: torch.dtype) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    tokens, signal = both_ways(model, x)
    with default_dtype(dtype):
        other = fresh(name)
        assert other.dtype == dtype
        assert both_ways(other, x)[1].dtype == dtype
        assert model.encode(x) == tokens
        torch.testing.assert_close(model.decode(tokens), signal, rtol=1e-5, atol=1e-5)


@every
def test_a_default_device_is_where_new_things_begin_and_touches_no_model(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model, odd=True)
    tokens, signal = both_ways(model, x)
    with torch.device("meta"):  # as any other device that is not the model's
        again = model.encode(x)
        assert again == tokens
        assert torch.equal(model.decode(again), signal)
        assert Tokens.unpack(again.pack()) == tokens
        assert again.unflatten(again.flatten("level"), "level") == tokens
        assert Tokens.cat([again[0], again[1]]) == tokens
        assert again.bits == tokens.bits


@every
def test_what_hooks_keep_stays_as_it_was(name: str) -> None:
    """As researchers take features from layers; memory that results share would change these behind their back."""
    model = tiny.build(name)
    x = tiny.signal(model)
    tokens, signal = both_ways(model, x)
    kept: list[tuple[str, Tensor, Tensor]] = []

    def keeping(layer: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: Any, outputs: Any) -> None:
            values = [value for value in tree_leaves((inputs, outputs)) if isinstance(value, Tensor)]
            kept.extend((layer, value, value.detach().clone()) for value in values)

        return keep

    for layer, module in model.named_modules():
        if layer:
            module.register_forward_hook(keeping(layer))
    with torch.no_grad():
        model(x)
    again, same = both_ways(model, x)
    assert again == tokens
    torch.testing.assert_close(same, signal, rtol=1e-4, atol=1e-5)
    assert kept
    assert not {layer for layer, value, before in kept if not torch.equal(value.nan_to_num(), before.nan_to_num())}


# -- networks that others change -----------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A layer, and beside it a small one that learns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.beside = layer, copy.deepcopy(layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any) -> Any:
        return self.layer(*args) + 0.1 * self.beside(*args)


def used(model: Tokenizer) -> set[str]:
    """Layers whose weights a training pass uses."""
    output = model.train()(tiny.signal(model))
    (output.reconstruction.square().mean() + sum(output.quantized.losses.values(), torch.zeros(()))).backward()
    return {
        name
        for name, layer in model.named_modules()
        if type(layer) in LAYERS and layer.weight is not None and layer.weight.grad is not None
    }


@every
def test_an_adapter_around_any_layer_that_learns_takes_part(name: str) -> None:
    """Such as LoRA's: no weight is used without its layer."""
    model = tiny.build(name)
    names = used(copy.deepcopy(model)) - {"quantizer.logits"}  # a classifier, searched as a codebook
    if not names:
        return
    for layer in names:
        parent, _, child = layer.rpartition(".")
        setattr(model.get_submodule(parent), child, Adapter(model.get_submodule(layer)))
    both_ways(model)
    learning = used(model)
    assert {f"{layer}.beside" for layer in names} <= learning


@every
def test_pruned_and_parametrised_layers_count(name: str) -> None:
    model = tiny.build(name)
    layers = [layer for layer in model.modules() if type(layer) in LAYERS]
    expected = copy.deepcopy(model)
    with torch.no_grad():
        for layer in expected.modules():
            if type(layer) in LAYERS:
                layer.weight.mul_(0.5)

    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 0.5

    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Half())
    tokens, signal = both_ways(model)
    wanted_tokens, wanted = both_ways(expected)
    assert all(torch.equal(a, b) for a, b in zip(tokens.levels, wanted_tokens.levels))
    torch.testing.assert_close(signal, wanted)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")
        prune.random_unstructured(layer, "weight", amount=0.5)
    pruned = both_ways(model)
    for layer in layers:
        prune.remove(layer, "weight")
    bare = both_ways(model)
    assert all(torch.equal(a, b) for a, b in zip(bare[0].levels, pruned[0].levels))
    torch.testing.assert_close(bare[1], pruned[1])


@every
@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization.*")
def test_linear_maps_of_eight_bits_encode_and_decode(name: str) -> None:
    model = tiny.build(name)
    narrow = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    tokens, signal = both_ways(narrow)
    assert signal.isfinite().all()
    if any(type(layer) is nn.Linear for layer in model.modules()):
        assert tokens.source != model.source


def test_forward_hooks_see_all_layers_and_may_change_what_they_give() -> None:
    model = tiny.build("llamagen_vq")
    tokens, signal = both_ways(model)
    seen = set()
    hooks = [
        layer.register_forward_hook(lambda layer, given, result, name=name: seen.add(name))
        for name, layer in model.named_modules()
        if isinstance(layer, LAYERS)
    ]
    again = model.decode(model.encode(tiny.signal(model)))
    torch.testing.assert_close(again, signal)
    assert seen == {name for name, layer in model.named_modules() if isinstance(layer, LAYERS)}
    for hook in hooks:
        hook.remove()
    upsample = model.decoder.levels[0].resample
    upsample.conv.register_forward_hook(lambda layer, given, result: 0 * result)
    assert not torch.allclose(model.decode(tokens), signal)


def test_lora_of_peft_trains_saves_and_merges(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = tiny.build("llamagen_vq")
    layers = [name for name, layer in model.named_modules() if type(layer) in LAYERS]
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=layers))
    output = wrapped.train()(tiny.signal(model))
    (output.reconstruction.square().mean() + output.quantized.losses["commitment"]).backward()
    learning = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert all("lora_" in name and weight.grad is not None for name, weight in learning.items())
    with torch.no_grad():
        for weight in learning.values():
            weight.normal_(std=0.2)
    tokens, signal = both_ways(wrapped.eval())
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path))
    assert loaded.encode(tiny.signal(model)) == tokens
    merged = wrapped.merge_and_unload()
    assert list(merged.state_dict()) == list(model.state_dict())
    found, again = both_ways(merged)
    assert all(torch.equal(a, b) for a, b in zip(found.levels, tokens.levels))
    torch.testing.assert_close(again, signal, rtol=1e-4, atol=1e-4)


# -- weights that lie elsewhere ------------------------------------------------------------------------------------


def test_accelerate_builds_without_memory_loads_and_dispatches(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    for name in ("compact", "titok", "encodec"):
        model = tiny.build(name)
        file = zoo.save_model(model, tmp_path / name)
        with accelerate.init_empty_weights():
            other = fresh(name)
        assert all(weight.is_meta for weight in other.parameters())
        accelerate.load_checkpoint_and_dispatch(other, str(file), device_map={"": "cpu"})
        check_same(model, other)


@pytest.mark.parametrize("name", ["compact", "titok", "encodec"])
def test_weights_that_are_offloaded_are_told(name: str) -> None:
    """Its hooks bring a layer's weights when the layer is called, and a tokenizer also uses those of no layer."""
    accelerate = pytest.importorskip("accelerate")
    model = tiny.build(name)
    tokens = model.encode(tiny.signal(model))
    accelerate.cpu_offload(model, execution_device="cpu")
    for use in (lambda: model.encode(tiny.signal(model)), lambda: model.decode(tokens)):
        with pytest.raises(ValueError, match=r"expected weights, got tensors without data \(meta, or offloaded\)"):
            use()


@pytest.mark.parametrize("name", ["compact", "bigcodec", "titok"])
def test_a_sharded_model_from_the_meta_device_is_the_same(name: str, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    model = tiny.build(name)
    x = tiny.signal(model)
    tokens = model.encode(x)
    with torch.device("meta"):
        sharded = fresh(name)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        sharded.to_empty(device="cpu")
        set_model_state_dict(sharded, model.state_dict(), options=StateDictOptions(full_state_dict=True))
        for method in ("encode", "decode"):
            register_fsdp_forward_method(sharded, method)
        found = sharded.encode(x)
        assert all(torch.equal(a, b) for a, b in zip(found.levels, tokens.levels))
        assert found.source is not None
        assert found.source.fingerprint == model.source.fingerprint
        assert torch.equal(sharded.decode(found), model.decode(tokens))
        assert torch.equal(sharded(x).reconstruction, model(x).reconstruction)
    finally:
        torch.distributed.destroy_process_group()


def use_shards(rank: int, name: str) -> None:
    """What a model whose layers lie in shards on two processes makes of another signal on each."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    whole, model = tiny.build(name), tiny.build(name)
    for layer in (layer for layer in model.modules() if isinstance(layer, LAYERS)):
        fully_shard(layer)
    fully_shard(model)
    for method in ("encode", "decode"):
        register_fsdp_forward_method(model, method)
    x = tiny.signal(whole) * (1 - rank / 2)
    for _ in range(2):
        tokens = model.encode(x)
        assert tokens == whole.encode(x)
        # gathered weights are aligned otherwise, so that products add in another order
        torch.testing.assert_close(model.decode(tokens), whole.decode(tokens), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected tokens of"):
        model.decode(replace(tokens, source=Source(name, "0" * 16)))


@pytest.mark.parametrize("name", ["compact", "dac", "titok"])
def test_layers_sharded_over_two_processes_encode_and_decode_the_same(name: str) -> None:
    run_ranks(use_shards, name)


# -- hostile input -------------------------------------------------------------------------------------------------


@every
def test_tensors_that_no_model_can_take_are_refused(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    refused = {
        "expected a dense tensor": x.to_sparse(),
        "got torch.float8_e4m3fn": x.to(torch.float8_e4m3fn),
        "got torch.complex64": x.to(torch.complex64),
        "got torch.bool": x > 0,
        "got one of the meta device": x.to("meta"),
    }
    for message, bad in refused.items():
        with pytest.raises(ValueError, match=message):
            model.encode(bad)


@every
def test_layouts_and_types_of_the_same_values_give_the_same_tokens(name: str) -> None:
    model = tiny.build(name)
    x = tiny.signal(model)
    kept, tokens = x.clone(), model.encode(x)
    spread = torch.empty(*x.shape[:-1], 2 * x.shape[-1])
    spread[..., ::2] = x
    same = [x.mT.contiguous().mT, spread[..., ::2], x.double(), x.clone().requires_grad_(), nn.Parameter(x)]
    for form in same:
        assert model.encode(form) == tokens
    repeated = x[:1].expand(3, *x.shape[1:])
    assert model.encode(repeated) == Tokens.cat([tokens[0]] * 3)
    assert torch.equal(x, kept)


@every
def test_tokens_of_no_item_are_refused(name: str) -> None:
    model = tiny.build(name)
    with pytest.raises(ValueError, match="expected tokens of at least one item, got none"):
        model.decode(model.encode(tiny.signal(model))[:0])
