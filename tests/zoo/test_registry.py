"""create_model: names, places, changes of the config, another quantizer, and every refusal."""

import logging
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

import zoo
from zoo import cards
from zoo.checkpoint import CheckpointError
from zoo.config import ConfigError
from zoo.quantizers import BinaryConfig, FiniteScalarConfig
from zoo.registry import UnknownModelError, registry
from zoo.tokenizer import InputSpec, Tokenizer

SMALL = {"fine_channels": 8, "channels": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1)}


def test_a_name_its_tag_and_its_alias_are_one_model() -> None:
    for card in cards.all_cards():
        assert registry.card(card.full_name) == card
        for alias in card.aliases:
            assert registry.card(alias) == card
    first = {card.name: card for card in reversed(cards.all_cards())}  # the first tag is the default
    for name, card in first.items():
        assert registry.card(name) == card


def test_models_are_built_in_evaluation_mode_with_their_card() -> None:
    model = zoo.create_model("compact_f8", **SMALL)
    assert not any(module.training for module in model.modules())
    assert model.name == "compact_f8.photos"
    assert model.card is not None
    assert model.card.config == model.config.to_dict()


@pytest.mark.parametrize("name", ["llamagen_vq_f61", "LLAMAGEN_VQ_F16.imagnet", "lamagen", "maskbit_14", ""])
def test_an_unknown_name_gets_the_five_nearest(name: str) -> None:
    with pytest.raises(UnknownModelError, match=f"unknown model {name!r}; nearest names: ") as raised:
        zoo.create_model(name)
    near = str(raised.value).partition("nearest names: ")[2].split(", ")
    assert len(near) == 5
    known = {card.full_name for card in cards.all_cards()} | set(registry.families())
    assert set(near) <= known
    if name.lower().startswith("l"):
        assert any("llamagen_vq" in found for found in near)


def test_a_familys_name_is_any_model_of_it() -> None:
    with torch.device("meta"):
        model = zoo.create_model("movq", blocks=1)
    family = registry.family("movq")
    assert model.config == family.config(blocks=1)
    assert model.name == "movq.default"
    assert registry.card("movq").sizes == "file"
    assert registry.card("compact").sizes == "config"


def test_list_models_takes_globs_and_filters() -> None:
    assert zoo.list_models("compact*") == ["compact_f8.photos"]
    assert set(zoo.list_models(quantizer="binary")) == {
        c.full_name for c in cards.all_cards() if c.quantizer == "binary"
    }
    assert zoo.list_models("no such*") == []


def test_config_fields_change_and_wrong_ones_are_refused() -> None:
    assert zoo.create_model("compact_f8", **SMALL, patch_size=2).spec.multiple == 4
    with pytest.raises(ConfigError, match=r"CompactConfig has no field chanels; its fields are .*channels"):
        zoo.create_model("compact_f8", chanels=8)
    with pytest.raises(ConfigError, match=r"CompactConfig.channels: expected int, got 'many'"):
        zoo.create_model("compact_f8", channels="many")
    with pytest.raises(ConfigError, match=r"expected a patch size of 1, 2, 4, 8 or 16, got 3"):
        zoo.create_model("compact_f8", patch_size=3)


def test_another_quantizer_by_name_config_and_fields() -> None:
    model = zoo.create_model("compact_f8", **SMALL, quantizer="lfq", bits=7, entropy=None)
    assert model.config.quantizer == BinaryConfig(bits=7, entropy=None)  # type: ignore[attr-defined]
    assert model.vocab_sizes == (128,)
    assert model.card is not None
    assert (model.card.quantizer, model.card.metrics) == ("binary", ())
    given = FiniteScalarConfig(levels=(3, 3))
    assert zoo.create_model("compact_f8", **SMALL, quantizer=given).vocab_sizes == (9,)
    assert zoo.create_model("compact_f8", **SMALL, quantizer=given, levels=(5, 5)).vocab_sizes == (25,)
    with pytest.raises(ConfigError, match=r"quantizer: expected one of .*fsq.*, got 'fsqq'"):
        zoo.create_model("compact_f8", quantizer="fsqq")
    with pytest.raises(ConfigError, match=r"BinaryConfig has no field levels"):
        zoo.create_model("compact_f8", quantizer="lfq", levels=(8,))


def test_the_rest_of_the_weights_loads_beside_another_quantizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = zoo.create_model("compact_f8", **SMALL)
    path = zoo.save_model(trained, tmp_path)
    with caplog.at_level(logging.WARNING, "zoo"):
        model = zoo.create_model(str(path), quantizer="lfq", bits=9)
    assert "quantizer replaced; fresh weights: encoder" in caplog.text
    assert model.card is not None
    assert "quantizer replaced" in model.card.notes
    before, after = trained.state_dict(), model.state_dict()
    fresh = [key for key in after if key not in before or not torch.equal(before.get(key, torch.empty(0)), after[key])]
    assert fresh
    assert all(key.startswith(("quantizer.", "encoder.", "decoder.0.")) for key in fresh)
    assert all(after[key].shape != before[key].shape for key in fresh if key in before)
    x = torch.zeros(1, 3, 16, 16)
    assert model.decode(model.encode(x)).shape == x.shape


@pytest.mark.parametrize("by_name", [False, True])
def test_the_quantizer_of_a_file_named_once_more_keeps_its_weights(
    by_name: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vector = {"quantizer": {"kind": "vector", "codebook_size": 20, "dim": 4}}
    trained = zoo.create_model("compact_f8", **SMALL, **vector)
    path = zoo.save_model(trained, tmp_path)
    with caplog.at_level(logging.WARNING, "zoo"):
        if by_name:
            model = zoo.create_model("compact_f8", checkpoint=path, **SMALL, **vector)
        else:
            model = zoo.create_model(str(path), **vector)
    assert torch.equal(model.quantizer.codebook.weight, trained.quantizer.codebook.weight)
    assert not caplog.records
    with pytest.raises(ConfigError, match="has no field chanels"):
        zoo.create_model("compact_f8", chanels=3, **vector)


def test_device_and_dtype() -> None:
    model = zoo.create_model("compact_f8", **SMALL, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_a_model_without_weights_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    card = dataclasses.replace(registry.card("compact_f8"), source=None)
    monkeypatch.setattr(cards, "all_cards", lambda: [card])
    with pytest.raises(ValueError, match=r"compact_f8.photos has no published weights; use checkpoint=FILE"):
        zoo.create_model("compact_f8", pretrained=True)


# -- places --------------------------------------------------------------------------------------------------------


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(zoo.HubError, match=r"no such file"):
        zoo.create_model(str(tmp_path / "model.safetensors"))
    with pytest.raises(zoo.HubError, match=r"expected a folder with model.safetensors"):
        zoo.create_model(f"local-dir:{tmp_path}")
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"use create_model\(NAME, checkpoint="):
        zoo.create_model(str(tmp_path / "weights.pt"))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a file that `save_model` or `zoo convert` wrote"):
        zoo.create_model(f"local-dir:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        zoo.create_model(f"local-dir:{tmp_path}")


def test_a_checkpoint_of_another_family_names_the_nearest(tmp_path: Path) -> None:
    folder = tiny.fixture("llamagen_vq")
    assert folder is not None
    with pytest.raises(CheckpointError, match=r"(?s)not a checkpoint of maskbit.*nearest architecture: llamagen_vq"):
        zoo.create_model("maskbit_lfq_14bit", checkpoint=folder / "weights.safetensors")


def test_saving_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    first = zoo.create_model("compact_f8", **SMALL)
    zoo.save_model(first, tmp_path)
    second = zoo.create_model("compact_f8", **{**SMALL, "channels": 16})
    path = zoo.save_model(second, tmp_path)
    assert zoo.create_model(str(path)).source == second.source
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert second.source.fingerprint in (tmp_path / "README.md").read_text()


def test_the_path_that_saving_gives_loads_and_a_folder_says_how(tmp_path: Path) -> None:
    model = zoo.create_model("compact_f8", **SMALL)
    path = zoo.save_model(model, tmp_path / "mine")
    assert zoo.create_model(path).source == model.source
    with pytest.raises(zoo.HubError, match=f"a folder; expected local-dir:{path.parent}"):
        zoo.create_model(path.parent)


def test_what_cannot_be_saved_leaves_no_folder(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = zoo.create_model("compact_f8", **SMALL)
    with pytest.raises(ValueError, match="expected weights, got tensors without data"):
        zoo.save_model(model, tmp_path / "mine")
    with pytest.raises(ValueError, match="expected a model of a registered family, got Linear"):
        zoo.save_model(torch.nn.Linear(2, 2), tmp_path / "mine")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


# -- families of users ---------------------------------------------------------------------------------------------


def test_a_family_may_not_take_the_name_of_another() -> None:
    with pytest.raises(ValueError, match=r"family 'compact' is already registered by tokenizers_visual.compact"):

        @zoo.register("compact")
        class Other(Tokenizer):
            def __init__(self, config: FiniteScalarConfig) -> None:
                super().__init__(config, InputSpec("image", 3, (0.0, 1.0)), config)


def test_a_model_that_is_not_registered_is_not_saved(tmp_path: Path) -> None:
    class Stranger(Tokenizer):
        def __init__(self, config: FiniteScalarConfig) -> None:
            super().__init__(config, InputSpec("image", 3, (0.0, 1.0)), config)

    with pytest.raises(ValueError, match=r"expected a model of a registered family, got Stranger"):
        zoo.save_model(Stranger(FiniteScalarConfig(levels=(3,))), tmp_path / "saved")


def test_a_model_without_weights_is_made_as_any_other() -> None:
    """FreeDom counts votes, and has nothing that is learned."""
    model = zoo.create_model("freedom_vit_l14")
    assert not model.state_dict()
    assert model.device == torch.device("cpu")
    assert model.source.fingerprint == zoo.create_model("freedom_vit_l14").source.fingerprint
    assert model.source.fingerprint != zoo.create_model("freedom_vit_l14", neighbours=3).source.fingerprint
