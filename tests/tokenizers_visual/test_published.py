"""Published checkpoints: the full-size models match the published names and shapes, and load from real files."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo import cards, checkpoint
from zoo.registry import import_module, registry

PARITY = Path(__file__).parents[1] / "parity"
# fixture folder -> (key list, model) of every published key list
KEY_LISTS = {
    "llamagen_vq/keys_vq_ds16_c2i": "llamagen_vq_f16.c2i",
    "llamagen_vq/keys_vq_ds8_c2i": "llamagen_vq_f8.c2i",
    "maskbit_lfq/keys_maskbit_tokenizer_14bit": "maskbit_lfq_14bit.imagenet",
    "maskbit_lfq/keys_maskbit_tokenizer_18bit": "maskbit_lfq_18bit.imagenet",
    "vqgan_plus/keys_vqgan_plus_12bit": "vqgan_plus_12bit.imagenet",
    "vqgan_plus/keys_maskgit_tokenizer": "maskgit_vqgan.maskbit",
    "cosmos_di/keys_di8x8": "cosmos_di8x8.v0_1",
    "cosmos_di/keys_di16x16": "cosmos_di16x16.v0_1",
}


def published_shapes(key_list: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{key_list}.json").read_text())


def test_every_key_list_is_checked() -> None:
    found = {f"{path.parent.name}/{path.stem}" for path in PARITY.glob("*/keys_*.json")}
    assert found == set(KEY_LISTS)


@pytest.mark.parametrize(("key_list", "name"), KEY_LISTS.items())
def test_full_size_model_matches_the_published_names_and_shapes(key_list: str, name: str) -> None:
    card = registry.card(name)
    family = registry.family(card.family)
    with torch.device("meta"):
        model = family.model(family.config.from_dict(card.config))
        published = {key: torch.empty(shape) for key, shape in published_shapes(key_list).items()}
    mapped = getattr(family.module, card.key_map)(published)
    assert {key: tuple(value.shape) for key, value in mapped.items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize("folder", ["llamagen_vq", "maskbit_lfq", "vqgan_plus", "cosmos_di"])
def test_every_published_checkpoint_is_a_manifest_entry(folder: str) -> None:
    entries = {(card.source.repo, card.source.file): card for card in cards.all_cards() if card.source is not None}
    for listed in json.loads((PARITY / folder / "published.json").read_text()):
        if listed["kwargs"].get("model_class") == "taming":
            continue  # of the taming family
        card = entries[listed["repo"], listed["file"]]
        module = import_module(card.module)
        config = registry.family(card.family).config.from_dict(card.config)
        assert config == module.config_from_original({"original": {"kwargs": listed["kwargs"]}})
        values = {metric.value for metric in card.metrics}
        assert values >= {v for k, v in listed["paper_metrics"].items() if isinstance(v, float)}
        assert all(metric.protocol for metric in card.metrics)
        if listed["container"]:
            assert listed["container"] in card.container


def random_state(key_list: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(shape) * 0.02 for key, shape in published_shapes(key_list).items()}


def assert_holds(model: zoo.Tokenizer, state: dict[str, torch.Tensor]) -> None:
    card = model.card
    mapped = getattr(import_module(card.module), card.key_map)(state)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in mapped.items())


def test_llamagen_file_loads(tmp_path: Path) -> None:
    state = random_state("llamagen_vq/keys_vq_ds16_c2i")
    path = tmp_path / "vq_ds16_c2i.pt"
    torch.save({"model": state, "steps": 300000, "optimizer": {"state": {}}}, path)
    model = zoo.create_model("llamagen_vq_f16", checkpoint=path)
    assert_holds(model, state)
    tokens = model.encode(torch.rand(1, 3, 64, 48) * 2 - 1)
    assert tokens.indices.shape == (1, 4, 3)
    assert model.decode(tokens).shape == (1, 3, 64, 48)


def test_maskbit_file_loads(tmp_path: Path) -> None:
    state = random_state("maskbit_lfq/keys_maskbit_tokenizer_14bit")
    path = tmp_path / "maskbit_tokenizer_14bit.bin"
    torch.save(state, path)
    model = zoo.create_model("maskbit_lfq_14bit", checkpoint=path)
    assert_holds(model, state)
    assert model.encode(torch.rand(1, 3, 64, 64)).bits == (16 * 14,)


class Tree(nn.Module):
    """Modules and parameters under dotted names, as a TorchScript file of a published model lists them."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        heads: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            head, _, rest = key.partition(".")
            if rest:
                heads.setdefault(head, {})[rest] = value
            else:
                self.register_parameter(head, nn.Parameter(value, requires_grad=False))
        for head, rest in heads.items():
            self.add_module(head, Tree(rest))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("part", ["autoencoder", "encoder", "decoder"])
def test_cosmos_torchscript_file_loads(tmp_path: Path, part: str) -> None:
    state = random_state("cosmos_di/keys_di16x16")
    sides = {"encoder": ("encoder", "quant_conv"), "decoder": ("post_quant_conv", "decoder")}
    if part != "autoencoder":
        state = {key: value for key, value in state.items() if key.startswith(sides[part])}
    constants = {"encoder.patcher.wavelets": torch.ones(2), "decoder.unpatcher.wavelets": torch.ones(2)}
    state |= {key: value for key, value in constants.items() if key.partition(".")[0] in (part, *part.split("auto"))}
    path = tmp_path / f"{part}.jit"
    torch.jit.save(torch.jit.trace(Tree(state), torch.zeros(1)), path)
    name = "cosmos_di16x16.v0_1" + ("" if part == "autoencoder" else f"_{part}")
    model = zoo.create_model(name, checkpoint=path)
    assert_holds(model, {key: value for key, value in state.items() if "wavelets" not in key})
    if part == "decoder":
        with pytest.raises(ValueError, match="holds only the decoder"):
            model.encode(torch.zeros(1, 3, 32, 32))
    else:
        assert model.encode(torch.zeros(1, 3, 32, 32)).indices.shape == (1, 2, 2)
    if part == "encoder":
        with pytest.raises(ValueError, match="holds only the encoder"):
            model.decode(model.encode(torch.zeros(1, 3, 32, 32)))


def test_names_of_another_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    torch.save({key: torch.zeros(1) for key in published_shapes("cosmos_di/keys_di8x8")}, path)
    with pytest.raises(checkpoint.CheckpointError, match="nearest architecture: cosmos_di"):
        zoo.create_model("maskbit_lfq_14bit", checkpoint=path)
