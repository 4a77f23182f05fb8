"""Published checkpoints of audio: full-size models match the published names and shapes, and load from real files."""

import json
from pathlib import Path

import pytest
import torch

import zoo
from zoo import cards
from zoo.registry import import_module, registry

PARITY = Path(__file__).parents[1] / "parity"
# fixture folder/key list -> model
KEY_LISTS = {
    "encodec/keys_encodec_24khz": "encodec_24khz.original",
    "encodec/keys_encodec_24khz_transformers": "encodec_24khz.transformers",
    "encodec/keys_encodec_48khz": "encodec_48khz.original",
    "dac/keys_dac_44khz": "dac_44khz.8kbps",
    "dac/keys_dac_24khz": "dac_24khz.8kbps",
    "dac/keys_dac_44khz_transformers": "dac_44khz.transformers",
    "snac/keys_snac_24khz": "snac_24khz.original",
    "snac/keys_snac_44khz": "snac_44khz.original",
}
# key lists of networks that are no tokenizers
OTHER_NETWORKS = {"encodec/keys_encodec_lm_24khz"}
# listed checkpoint -> entry
LISTED = {
    "encodec_24khz": "encodec_24khz.original",
    "encodec_48khz": "encodec_48khz.original",
    "encodec_24khz_transformers": "encodec_24khz.transformers",
    "encodec_48khz_transformers": "encodec_48khz.transformers",
    "encodec_32khz_musicgen": "encodec_32khz.musicgen",
    "encodec_lm_24khz": None,
    "encodec_lm_48khz": None,
    "dac_44khz_8kbps": "dac_44khz.8kbps",
    "dac_44khz_16kbps": "dac_44khz.16kbps",
    "dac_24khz_8kbps": "dac_24khz.8kbps",
    "dac_16khz_8kbps": "dac_16khz.8kbps",
    "dac_44khz_transformers": "dac_44khz.transformers",
    "dac_24khz_transformers": "dac_24khz.transformers",
    "dac_16khz_transformers": "dac_16khz.transformers",
    "snac_24khz": "snac_24khz.original",
    "snac_32khz": "snac_32khz.original",
    "snac_44khz": "snac_44khz.original",
}
FOLDERS = ("encodec", "dac", "snac")


def published_shapes(key_list: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{key_list}.json").read_text())


def test_every_key_list_is_checked() -> None:
    found = {f"{folder}/{path.stem}" for folder in FOLDERS for path in (PARITY / folder).glob("keys_*.json")}
    assert found == set(KEY_LISTS) | OTHER_NETWORKS


def assert_full_size_matches(key_list: str, name: str) -> None:
    """The model of a card has, through its key map, the names and shapes of a published file."""
    card = registry.card(name)
    family = registry.family(card.family, card.module)
    with torch.device("meta"):
        model = family.model(family.config.from_dict(card.config))
        published = {key: torch.empty(shape) for key, shape in published_shapes(key_list).items()}
    mapped = getattr(family.module, card.key_map)(published)
    assert {key: tuple(value.shape) for key, value in mapped.items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }


@pytest.mark.parametrize(("key_list", "name"), KEY_LISTS.items())
def test_full_size_model_matches_the_published_names_and_shapes(key_list: str, name: str) -> None:
    assert_full_size_matches(key_list, name)


LISTINGS = [listed for folder in FOLDERS for listed in json.loads((PARITY / folder / "published.json").read_text())]


@pytest.mark.parametrize("listed", LISTINGS, ids=lambda listed: listed["name"])
def test_every_published_checkpoint_is_a_manifest_entry(listed: dict) -> None:
    name = LISTED[listed["name"]]
    if name is None:
        return
    card = registry.card(name)
    source = card.source
    assert source is not None
    if listed["repo"]:
        assert (source.repo, listed["file"].split(" ")[0]) == (listed["repo"], source.file)
    else:
        assert source.url == listed["file"]
    assert card.container == listed["container"]
    module = import_module(card.module)
    kwargs = listed["kwargs"] if isinstance(listed["kwargs"], dict) else {}
    expected = module.config_from_original({"original": {"kwargs": kwargs}})
    assert registry.family(card.family).config.from_dict(card.config) == expected
    assert card.non_commercial == ("NC" in listed["licence"])
    assert all(metric.protocol for metric in card.metrics)


def test_every_entry_is_a_published_checkpoint() -> None:
    entries = {card.full_name for card in cards.all_cards() if card.family in FOLDERS and card.source is not None}
    assert entries == set(filter(None, LISTED.values()))


def random_state(key_list: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(shape) * 0.02 for key, shape in published_shapes(key_list).items()}


@pytest.mark.parametrize(
    ("key_list", "name", "container"),
    [
        ("encodec/keys_encodec_24khz", "encodec_24khz", None),
        pytest.param("encodec/keys_encodec_48khz", "encodec_48khz", None, marks=pytest.mark.slow),
        pytest.param("dac/keys_dac_44khz", "dac_44khz", "state_dict", marks=pytest.mark.slow),
        pytest.param("snac/keys_snac_24khz", "snac_24khz", None, marks=pytest.mark.slow),
    ],
)
def test_file_of_the_published_layout_loads(tmp_path: Path, key_list: str, name: str, container: str | None) -> None:
    state = random_state(key_list)
    path = tmp_path / "published.th"
    metadata = {"kwargs": {"sample_rate": 44100}, "logs": {"loss": [1.0]}}
    torch.save({container: state, "metadata": metadata} if container else state, path)
    model = zoo.create_model(name, checkpoint=path)
    card = registry.card(name)
    mapped = getattr(import_module(card.module), card.key_map)(state)
    own = model.state_dict()
    assert all(torch.equal(own[key], value) for key, value in mapped.items())
    x = torch.rand(1, model.spec.channels, 3001) - 0.5
    assert model.decode(model.encode(x)).shape == x.shape
