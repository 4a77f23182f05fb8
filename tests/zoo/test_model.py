"""Model: who it is follows its weights, however they come, in inference mode too."""

import copy
import threading

import pytest
import tiny
import torch
from torch import nn

import zoo
from zoo.tokens import Tokens

SMALL = {"fine_channels": 8, "channels": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}


def by_copy(model: nn.Module, other: nn.Module) -> None:
    model.load_state_dict(other.state_dict())


def by_assignment(model: nn.Module, other: nn.Module) -> None:
    model.load_state_dict(other.state_dict(), assign=True)


def by_data(model: nn.Module, other: nn.Module) -> None:
    for parameter, value in zip(model.parameters(), copy.deepcopy(other).parameters()):
        parameter.data = value.data


def by_vector(model: nn.Module, other: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(other.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())


@pytest.mark.parametrize("load", [by_copy, by_assignment, by_data, by_vector])
def test_the_fingerprint_follows_the_weights(load) -> None:
    model, other = tiny.build("llamagen_vq"), tiny.build("llamagen_vq", seed=1)
    assert model.source != other.source
    load(model, other)
    assert model.source == other.source


def test_a_model_made_in_inference_mode_is_like_any_other() -> None:
    plain = zoo.create_model("compact_f8", pretrained=True)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        model = zoo.create_model("compact_f8", pretrained=True).to(torch.float64).to(torch.float32)
        tokens = model.encode(x)
    assert tokens == plain.encode(x)
    assert model.source == plain.source
    model.train()(x).reconstruction.sum().backward()


def test_a_class_called_in_inference_mode_has_a_fingerprint_that_follows_its_weights() -> None:
    with torch.inference_mode():
        model = tiny.build("llamagen_vq")
        x = tiny.signal(model)
        tokens = model.encode(x)
        assert tokens == tiny.build("llamagen_vq").encode(x)
        model.decode(tokens)
        next(model.parameters()).mul_(2)
        assert model.source != tokens.source


def test_a_model_without_data_is_built_for_its_sizes_and_says_what_it_lacks() -> None:
    with torch.device("meta"):
        model = zoo.create_model("compact_f8", **SMALL)
    full = zoo.create_model("compact_f8", **SMALL)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in full.parameters())
    part = {key: value for key, value in full.state_dict().items() if not key.startswith("decoder.")}
    model.load_state_dict(part, strict=False, assign=True)
    with pytest.raises(ValueError, match=r"expected weights, got tensors without data \(meta\): decoder."):
        _ = model.source
    model.load_state_dict(full.state_dict(), assign=True)
    assert model.source == full.source


def test_threads_that_use_a_model_in_training_get_its_tokens_and_leave_it_as_it_was() -> None:
    """One thread ends while another is on its way to the codebook, which would follow the latents in training."""
    model = tiny.build("encodec")
    x = tiny.signal(model)
    expected = model.encode(x)
    model.train()
    arrived, first_ended = threading.Barrier(2), threading.Event()

    def meet(*_: object) -> None:
        arrived.wait(30)
        if threading.current_thread().name == "second":
            first_ended.wait(30)

    hook = model.quantizer.register_forward_pre_hook(meet)
    found: dict[str, Tokens] = {}

    def use() -> None:
        name = threading.current_thread().name
        found[name] = model.encode(x)
        if name == "first":
            first_ended.set()

    threads = [threading.Thread(target=use, name=name) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hook.remove()
    assert found == {"first": expected, "second": expected}
    assert all(module.training for module in model.modules())
