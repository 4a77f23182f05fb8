"""Reading checkpoints of every published format, refusing hostile and broken ones, strict loading, and saving."""

from __future__ import annotations

import collections
import json
import os
import pickle
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from flax_file import flax_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from zoo.checkpoint import CheckpointError, load_into, metadata, read, save

STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.steps": torch.tensor(7)}


class Hostile:
    """Its unpickling creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.again = self.layers[0]
        self.scale = nn.Parameter(torch.rand(2, dtype=torch.bfloat16))
        self.register_buffer("levels", torch.tensor([8, 5]), persistent=False)
        self.names, self.offset = ["a", "b"], torch.ones(1)  # no weights

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale.float().sum() * self.levels.sum() + self.again(x) + self.offset


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    equal = (torch.equal(left[key], right[key]) and left[key].dtype == right[key].dtype for key in right)
    return left.keys() == right.keys() and all(equal)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", "model.pt", "legacy.ckpt", "safetensors.pt"])
def test_each_format_is_read_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if "safetensors" in name:
        save_file(STATE, path)
    else:
        content = collections.OrderedDict(STATE) | {"epoch": 3, "note": "text"}
        content["encoder.weight"] = nn.Parameter(STATE["encoder.weight"])
        torch.save(content, path, _use_new_zipfile_serialization=name != "legacy.ckpt")
    tensors = read(path)
    assert same(tensors, STATE)
    assert not tensors["encoder.weight"].requires_grad
    written = path.read_bytes()
    tensors["encoder.weight"].zero_()
    assert path.read_bytes() == written


def test_sharded_safetensors_are_joined(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same(read(index), {"a": torch.ones(1), "b": torch.ones(2)})
    for wrong, message in (({"c": "model-1.safetensors"}, "c"), ({"c": "3"}, "'3'"), ({"c": "../x"}, r"'\.\./x'")):
        index.write_text(json.dumps({"weight_map": weight_map | wrong}))
        with pytest.raises(CheckpointError, match=message):
            read(index)


@pytest.mark.parametrize("scripted", [False, True])
def test_torchscript_gives_the_parameters_and_buffers_of_its_module(tmp_path: Path, scripted: bool) -> None:
    path = tmp_path / "model.jit"
    network = Network().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, published files are not
        module = torch.jit.script(network) if scripted else torch.jit.trace(network, torch.rand(2, 3))
        module.save(path)
        expected = torch.jit.load(path).state_dict()
    assert same(read(path), expected)
    assert same({k: v for k, v in read(path).items() if k != "levels"}, network.state_dict())


class Restoring(nn.Module):
    """Its TorchScript archive holds a method that torch.jit.load runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        print("running")
        self.weight = state[0]
        self.training = state[1]


def test_a_tree_of_flax_is_read_by_its_paths(tmp_path: Path) -> None:
    kernel, scale = np.arange(24, dtype=np.float32).reshape(2, 3, 4), np.ones(5, np.float16)
    path = tmp_path / "checkpoint"
    path.write_bytes(flax_bytes({"params": {"a": {"Conv_0": {"kernel": kernel}}, "scale": scale}, "step": 7}))
    expected = {"params.a.Conv_0.kernel": torch.from_numpy(kernel), "params.scale": torch.from_numpy(scale)}
    assert same(read(path), expected)
    path.write_bytes(flax_bytes({str(i): scale for i in range(40)}))
    assert len(read(path)) == 40
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        read(path)
    path.write_bytes(msgpack.packb({"a": msgpack.ExtType(9, b"x")}))
    with pytest.raises(CheckpointError, match="expected arrays, got an extension of code 9"):
        read(path)


def test_torchscript_runs_none_of_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    linear, hostile, restoring = (tmp_path / name for name in ("linear.jit", "hostile.jit", "restoring.jit"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(1, 2)).save(linear)
        torch.jit.script(Restoring()).save(restoring)
    with zipfile.ZipFile(linear) as source, zipfile.ZipFile(hostile, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):  # first build, and throw away, an object of python's os module
                content = pickle.dumps(Hostile(tmp_path / "marker"), protocol=2)[:-1] + b"0" + content[2:]
            target.writestr(name, content)
    assert same(read(hostile), read(linear))
    assert not (tmp_path / "marker").exists()
    with pytest.raises(CheckpointError, match=r"restoring\.jit: expected tensors"):
        read(restoring)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "marker"
    content = {"model": STATE, "callback": Hostile(marker)}
    path = tmp_path / "hostile.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"hostile\.pt.*system.*could run code.*save its state dict as safeten"):
        read(path, container="model")
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Hostile(marker), protocol=2))
    with pytest.raises(CheckpointError, match=r"plain\.pt.*refused"):
        read(plain)
    assert not marker.exists()


def test_saved_training_arguments_do_not_stand_in_the_way(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": Namespace(lr=1e-4)}, tmp_path / "model.pt")
    assert same(read(tmp_path / "model.pt", container="model"), STATE)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_truncated_file_is_an_error_with_its_path_and_size(tmp_path: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["safetensors", "zip", "legacy", "jit"]))
    path = tmp_path / kind
    if not path.exists():
        if kind == "safetensors":
            save_file(STATE, path)
        elif kind == "jit":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.script(nn.Linear(2, 2)).save(path)
        else:
            torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    cut = tmp_path / f"cut_{kind}"
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=rf"cut_{kind} \({cut.stat().st_size} bytes\)") as error:
        read(cut)
    assert "weights_only" not in str(error.value)  # torch would advise to switch it off


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.bin").write_text("<html>sign in</html>")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("runs/last.ckpt", b"")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    for name, message in {
        "page.bin": r"expected safetensors.*got a file that begins with b'<html>",
        "archive.pt": r"a zip of .*last\.ckpt.*unpack it first",
        "tensor.pt": r"expected tensors at the top level, got none.*it is a Tensor",
        "absent.pt": r"expected a checkpoint file, got nothing",
        "": r"expected a checkpoint file, got a folder",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name)


def test_containers_are_found_by_name_or_listed(tmp_path: Path) -> None:
    path, ema = tmp_path / "model.pt", {key: value + 1 for key, value in STATE.items()}
    content = {"trainer": {"unitok": STATE}, "ema": ema, "a.b": ema, "empty": {}, "optimizer": {"state": {0: STATE}}}
    torch.save(content, path)
    assert same(read(path, container="trainer.unitok"), STATE)
    assert same(read(path, container="a.b"), ema)
    assert same(read(path, container=("model", "empty", "ema", "trainer.unitok")), ema)
    for container, wanted in ((None, "at the top level"), ("model", "'model'"), (("x", "empty"), "'x' or 'empty'")):
        with pytest.raises(CheckpointError, match=wanted) as error:
            read(path, container=container)
        for listed in ("trainer.unitok (2 tensors)", "ema (2 tensors)", "optimizer.state.0 (2 tensors)"):
            assert listed in str(error.value)


def network(width: int = 4) -> nn.Module:
    blocks = {name: nn.Sequential(*(nn.Linear(3, width) for _ in range(5))) for name in ("encoder", "decoder")}
    return nn.ModuleDict(blocks | {"norm": nn.BatchNorm1d(width)})


def test_load_casts_to_the_models_dtype_and_leaves_the_tensors_alone() -> None:
    source, target = network(), network()
    state = {key: value.double() if value.is_floating_point() else value for key, value in source.state_dict().items()}
    load_into(target, state)
    assert same(target.state_dict(), source.state_dict())
    assert state["norm.weight"].dtype == torch.float64


def test_load_is_all_or_nothing_and_reports_by_module() -> None:
    target = network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    state = {key: torch.full_like(value, 2) for key, value in before.items() if not key.startswith("encoder.1")}
    state |= {f"head.fc.{i}.weight": torch.ones(1) for i in range(5)}
    state["norm.bias"] = torch.ones(9)
    state["decoder.0.weight"][0, 0] = torch.nan
    with pytest.raises(CheckpointError) as error:
        load_into(target, state)
    report = str(error.value)
    assert report.splitlines() == [
        "the checkpoint does not fit ModuleDict:",
        "  2 missing (the model has them, the file does not):",
        "    encoder.1 (2): encoder.1.weight, encoder.1.bias",
        "  5 unexpected (the file has them, the model does not):",
        "    head.fc (5): head.fc.0.weight, head.fc.1.weight, head.fc.2.weight, ...",
        "  1 mis-shaped:",
        "    norm.bias (1): norm.bias: expected (4,), got (9,)",
        "  1 not finite (the file is corrupt):",
        "    decoder.0 (1): decoder.0.weight",
    ]
    assert same(target.state_dict(), before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_values_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    module = nn.Linear(1, 2)
    state = {"weight": torch.tensor([[1.0], [value]]).to(dtype), "bias": torch.zeros(2)}
    if not torch.isfinite(state["weight"].float()).all():
        with pytest.raises(CheckpointError, match="1 not finite"):
            load_into(module, state)
    else:  # a format without infinities saturates
        load_into(module, state)


def test_absent_names_keep_their_values() -> None:
    target = network()
    kept = target["decoder"][0].weight.clone()
    state = {key: value + 1 for key, value in target.state_dict().items() if not key.startswith("decoder.")}
    with pytest.raises(CheckpointError, match="10 missing"):
        load_into(target, state, absent=["encoder.*"])
    load_into(target, state, absent=["decoder.*"])
    assert torch.equal(target["decoder"][0].weight, kept)
    assert torch.equal(target["norm"].weight, torch.full((4,), 2.0))


def test_shapes_alone_are_compared_on_the_meta_device_but_never_taken_for_values() -> None:
    with torch.device("meta"):
        shapes = network()
    load_into(shapes, {key: value.to("meta") for key, value in network().state_dict().items()})
    with pytest.raises(CheckpointError, match="mis-shaped"):
        load_into(shapes, {key: value.to("meta") for key, value in network(5).state_dict().items()})
    for module, state in ((shapes, network().state_dict()), (network(), shapes.state_dict())):
        with pytest.raises(CheckpointError, match="25 without data on one side"):
            load_into(module, state)


def test_saved_file_has_the_tensors_and_metadata_and_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    weight = torch.rand(3, 4)
    state = {"a": nn.Parameter(weight), "tied": weight, "transposed": weight.T, "row": weight[1]}
    save(path, state, {"zoo": "{}"})
    assert same(read(path), {key: value.detach() for key, value in state.items()})
    assert metadata(path) == {"zoo": "{}"}
    written = path.read_bytes()
    with pytest.raises(Exception, match="str"):
        save(path, {"a": torch.zeros(3)}, {"zoo": 1})  # type: ignore[dict-item]
    assert path.read_bytes() == written
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_metadata_of_another_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345678{")
    for name in ("x", "absent"):
        with pytest.raises(CheckpointError, match=f"{name}: expected a safetensors file"):
            metadata(tmp_path / name)


def test_parts_of_a_file_are_joined_under_their_prefixes(tmp_path: Path) -> None:
    encoder, generator = {"weight": torch.ones(2)}, {"weight": torch.zeros(3), "bias": torch.ones(1)}
    path = tmp_path / "parts.pt"
    torch.save({"CodecEnc": encoder, "generator": generator, "step": 3}, path)
    joined = read(path, container={"CodecEnc": "CodecEnc.", "generator": "g."})
    assert same(joined, {"CodecEnc.weight": torch.ones(2), "g.weight": torch.zeros(3), "g.bias": torch.ones(1)})
    with pytest.raises(CheckpointError, match="under 'CodecEnc' or 'decoder'"):
        read(path, container={"CodecEnc": "CodecEnc.", "decoder": "g."})


def test_the_file_itself_may_be_one_of_several_containers(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "bare.pt")
    torch.save({"generator": STATE, "lr": 0.1}, tmp_path / "nested.pt")
    for name in ("bare", "nested"):
        assert same(read(tmp_path / f"{name}.pt", container=("generator", None)), STATE)


def test_a_folder_of_transformers_is_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a folder"):
        read(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read(tmp_path), STATE)
