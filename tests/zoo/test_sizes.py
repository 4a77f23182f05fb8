"""Checkpoints whose config is not at hand: the shapes of their tensors tell the sizes of the model."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tokenizers_visual import taming_vqgan
from tokenizers_visual.maskgit_vq import MaskGITVQ, MaskGITVQConfig
from tokenizers_visual.movq import MoVQ, MoVQConfig
from tokenizers_visual.paella_vq import PaellaVQ, PaellaVQConfig
from tokenizers_visual.taming_vqgan import TamingVQGAN, TamingVQGANConfig
from zoo import cards
from zoo.checkpoint import CheckpointError, KeyMap
from zoo.config import Config, ConfigError
from zoo.quantizers import FiniteScalarConfig, GumbelConfig, VectorConfig
from zoo.registry import import_module, registry
from zoo.sizes import VQGANSizes, count_of, sizes_of

# by family, a config of other sizes than any published one, which 32 groups divide
TINY: dict[str, Config] = {
    "taming_vqgan": TamingVQGANConfig(
        channels=32, channel_multipliers=(1, 2), blocks=1, attention_resolutions=(128,), latent_channels=5,
        quantizer=VectorConfig(codebook_size=7, dim=3), in_channels=2, middle_attention=False,
    ),
    "movq": MoVQConfig(
        channels=32, channel_multipliers=(2, 1), blocks=1, attention_resolutions=(256,), latent_channels=5,
        quantizer=VectorConfig(codebook_size=7, dim=3), in_channels=2,
    ),
    "paella_vq": PaellaVQConfig(
        patch_size=1, levels=3, bottleneck_blocks=2, channels=8, quantizer=VectorConfig(codebook_size=7, dim=3)
    ),
    "maskgit_vq": MaskGITVQConfig(
        network="vqgan", channels=32, widths=(32, 96), blocks=2, latent_channels=5, attention=(True, False),
        quantizer=VectorConfig(codebook_size=7, dim=3), in_channels=2,
    ),
}  # fmt: skip
READABLE = [card for card in cards.all_cards() if card.family in TINY]
FROM_FILE = [card for card in cards.all_cards() if card.sizes == "file"]


def published(model: zoo.Tokenizer, key_map: KeyMap) -> dict[str, Tensor]:
    """The weights of a model under the published names that a key map reads."""
    swapped: dict[str, str | None] = {}
    for theirs, own in key_map.patterns.items():
        if own is not None:  # of several published names the first
            counted = theirs.replace("{i}", "{-i}") if "{-i}" in own else theirs
            swapped.setdefault(own.replace("{-i}", "{i}"), counted)
    state = KeyMap(swapped)(model.state_dict())
    if "quantize.proj.weight" in state:  # Gumbel's
        state["quantize.embed.weight"] = state.pop("quantize.embedding.weight")
        state["quantize.proj.weight"] = state["quantize.proj.weight"][..., None, None]
    return {key: value.flatten(1) if ".to_" in key and value.ndim == 4 else value for key, value in state.items()}


def file_of(model: zoo.Tokenizer, card: cards.ModelCard, folder: Path) -> Path:
    """The model in the layout of a card; beside it what else such a file holds."""
    key_map = getattr(import_module(card.module), card.key_maps[0])
    content: dict[str, Any] = {key_map.prefix + key: value for key, value in published(model, key_map).items()}
    if key_map.prefix:
        content |= {"transformer.head.weight": torch.zeros(2, 3), "cond_stage_model.colorize": torch.zeros(3, 2, 1, 1)}
    container = card.container[0] if isinstance(card.container, tuple) else card.container
    path = folder / "published.ckpt"
    torch.save({container: content, "epoch": 3} if container else content, path)
    return path


def assert_same(ours: zoo.Tokenizer, original: zoo.Tokenizer) -> None:
    low, high = original.spec.value_range
    side = 2 * original.spec.multiple
    x = torch.rand(2, original.spec.channels, side, side + original.spec.multiple) * (high - low) + low
    one, other = ours.encode(x), original.encode(x)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(ours.reconstruct(ours.codes(one)), original.reconstruct(original.codes(other)))


@pytest.mark.parametrize("card", FROM_FILE, ids=lambda card: card.full_name)
def test_an_entry_loads_a_file_of_other_sizes_than_it_assumes(card: cards.ModelCard, tmp_path: Path) -> None:
    family = registry.family(card.family, card.module)
    assumed = family.config.from_dict(card.config)
    told = {"value_range": assumed.value_range} if isinstance(assumed, MaskGITVQConfig) else {}
    original = tiny.random(family.model, TINY[card.family].replace(**told))
    model = zoo.create_model(card.full_name, checkpoint=file_of(original, card, tmp_path))
    assert model.config == original.config != assumed
    assert model.card is not None
    assert model.card.config == original.config.to_dict()
    assert model.card.licence == card.licence
    assert_same(model, original)
    saved = zoo.create_model(zoo.save_model(model, tmp_path / "saved"))
    assert saved.config == model.config
    assert saved.source == model.source


@pytest.mark.parametrize("card", READABLE, ids=lambda card: card.full_name)
def test_shapes_tell_the_stated_sizes_of_every_entry(card: cards.ModelCard) -> None:
    family = registry.family(card.family, card.module)
    stated = family.config.from_dict(card.config)
    with torch.device("meta"):
        own = family.model(stated).state_dict()
    kept = {"norm_groups": 32, "decoder_norm_groups": 32, "in_channels": 3, "value_range": None, "latent_channels": 0}
    untold = {name: getattr(stated, name) for name in kept if hasattr(stated, name)}
    other = TINY[card.family].replace(**untold)
    assert other.replace(**family.module.sizes_from_tensors(own, other)) == stated


def test_only_families_that_read_sizes_have_such_entries() -> None:
    assert FROM_FILE
    assert all(hasattr(import_module(card.module), "sizes_from_tensors") for card in FROM_FILE)


# -- files of users ------------------------------------------------------------------------------------------------


@st.composite
def vqgans(draw: st.DrawFn) -> dict[str, Any]:
    """Fields of a small VQGAN whose norms have two groups."""
    count = draw(st.integers(1, 3))
    attends = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return {
        "channels": draw(st.sampled_from([2, 4, 6])),
        "channel_multipliers": tuple(draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))),
        "blocks": draw(st.integers(1, 2)),
        "attention_resolutions": tuple(256 // 2**i for i in range(count) if attends[i]),
        "latent_channels": draw(st.integers(1, 5)),
        "norm_groups": 2,
        "quantizer": VectorConfig(codebook_size=draw(st.integers(1, 9)), dim=draw(st.integers(1, 5))),
        "in_channels": draw(st.integers(1, 4)),
    }


def assert_loads(model: zoo.Tokenizer, key_map: KeyMap, name: str, **changes: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        content = {key_map.prefix + key: value for key, value in published(model, key_map).items()}
        torch.save({"state_dict": content, "global_step": 7}, path)
        loaded = zoo.create_model(name, checkpoint=path, **changes)
    assert loaded.config == model.config
    assert_same(loaded, model)


@settings(max_examples=10, deadline=None)
@given(vqgans(), st.booleans(), st.booleans(), st.booleans())
def test_any_vqgan_loads(fields: dict[str, Any], middle: bool, gumbel: bool, within: bool) -> None:
    if gumbel:
        fields["quantizer"] = GumbelConfig(fields["quantizer"].codebook_size, fields["quantizer"].dim)
    model = tiny.random(TamingVQGAN, TamingVQGANConfig(**fields, middle_attention=middle))
    key_map = taming_vqgan.KEY_MAP_FIRST_STAGE if within else taming_vqgan.KEY_MAP
    assert_loads(model, key_map, "taming_vqgan", norm_groups=2)
    assert_loads(model, key_map, "taming_vqgan_f16_1024.ffhq", norm_groups=2)


@settings(max_examples=6, deadline=None)
@given(vqgans(), st.sampled_from(["KEY_MAP", "KEY_MAP_DIFFUSERS"]))
def test_any_movq_loads(fields: dict[str, Any], layout: str) -> None:
    model = tiny.random(MoVQ, MoVQConfig(**fields, decoder_norm_groups=2))
    assert_loads(model, getattr(import_module(MoVQ.__module__), layout), "movq", norm_groups=2, decoder_norm_groups=2)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))
def test_any_paella_vqgan_loads(patch: int, levels: int, blocks: int, width: int, codes: int, channels: int) -> None:
    config = PaellaVQConfig(patch, levels, blocks, width * 4, VectorConfig(codes, 2), channels)
    assert_loads(
        tiny.random(PaellaVQ, config), import_module(PaellaVQ.__module__).KEY_MAP, "paella_vq", in_channels=channels
    )


@settings(max_examples=8, deadline=None)
@given(vqgans(), st.booleans(), st.sampled_from(["maskgit", "KEY_MAP_TAMING", "KEY_MAP_DIFFUSERS"]))
def test_any_network_of_open_muse_loads(fields: dict[str, Any], middle: bool, layout: str) -> None:
    places, multipliers = fields.pop("attention_resolutions"), fields.pop("channel_multipliers")
    widths = tuple(fields["channels"] * multiplier for multiplier in multipliers)
    network = "maskgit" if layout == "maskgit" else "vqgan"
    if network == "maskgit":
        fields["latent_channels"], middle, places = MaskGITVQConfig().latent_channels, False, ()
    elif fields["blocks"] == 1:
        places = ()
    attention = tuple(256 // 2**i in places for i in range(len(widths)))
    config = MaskGITVQConfig(network=network, widths=widths, attention=attention, middle_attention=middle, **fields)
    key_map = getattr(import_module(MaskGITVQ.__module__), "KEY_MAP" if network == "maskgit" else layout)
    assert_loads(tiny.random(MaskGITVQ, config), key_map, "maskgit_vq", norm_groups=2)


@pytest.fixture
def model() -> TamingVQGAN:
    return tiny.random(TamingVQGAN, TINY["taming_vqgan"])


@pytest.fixture
def weights(model: TamingVQGAN) -> dict[str, Tensor]:
    return published(model, taming_vqgan.KEY_MAP)


def load(weights: dict[str, Tensor], folder: Path, name: str = "taming_vqgan", **changes: Any) -> Any:
    path = folder / "mine.ckpt"
    torch.save(weights, path)
    return zoo.create_model(name, checkpoint=path, **changes)


def test_what_training_leaves_in_a_file_does_not_stand_in_the_way(model, weights, tmp_path: Path) -> None:
    further = {"loss.logvar": torch.zeros(()), "colorize": torch.zeros(3, 2, 1, 1), "model_ema.decay": torch.zeros(())}
    assert_same(load(weights | further, tmp_path), model)


def test_without_weights_the_assumed_model_is_built() -> None:
    with torch.device("meta"):
        model = zoo.create_model("taming_vqgan_f16_1024.ffhq")
        bare = zoo.create_model("taming_vqgan")
    assert model.config == bare.config == TamingVQGANConfig()
    with pytest.raises(ValueError, match=r"taming_vqgan.default has no published weights; use checkpoint=FILE"):
        zoo.create_model("taming_vqgan", pretrained=True)


def test_changes_hold_beside_the_sizes_of_the_file(model, weights, tmp_path: Path, caplog) -> None:
    given = load(weights, tmp_path, dropout=0.5)
    assert given.config == model.config.replace(dropout=0.5)
    moved = load(weights, tmp_path, resolution=64)
    assert (moved.config.resolution, moved.config.attention_resolutions) == (64, (32,))
    assert_same(moved, model)
    assert not caplog.records
    other = load(weights, tmp_path, quantizer="fsq", levels=(5, 3))
    assert other.config == model.config.replace(quantizer=FiniteScalarConfig(levels=(5, 3)))
    assert "quantizer replaced" in other.card.notes
    assert torch.equal(other.encoder.conv_in.weight, model.encoder.conv_in.weight)
    same = load(weights, tmp_path, quantizer="vq", codebook_size=7, dim=3)
    assert_same(same, model)
    assert "quantizer replaced" not in same.card.notes


def test_changes_that_contradict_the_file_are_refused(weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected \(64, 2, 3, 3\), got \(32, 2, 3, 3\)"):
        load(weights, tmp_path, channels=64)
    with pytest.raises(CheckpointError, match=r"widths that the 24 groups of a norm divide, got \(32, 32, 64\)"):
        load(weights, tmp_path, norm_groups=24)
    with pytest.raises(ConfigError, match="has no field codebook_size"):
        load(weights, tmp_path, codebook_size=9)


def test_a_file_in_our_layout_keeps_all_of_its_config(tmp_path: Path) -> None:
    config = TINY["taming_vqgan"].replace(norm_groups=16, dropout=0.1)
    model = tiny.random(TamingVQGAN, config)
    path = zoo.save_model(model, tmp_path)
    for name in ("taming_vqgan", "taming_vqgan_f16_1024.ffhq"):
        loaded = zoo.create_model(name, checkpoint=path)
        assert loaded.config == config
        assert_same(loaded, model)
    with pytest.raises(CheckpointError, match="expected a model of movq, got one of taming_vqgan"):
        zoo.create_model("movq", checkpoint=path)


def test_an_entry_of_known_sizes_says_how_others_load(weights, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)mis-shaped.*create_model\('taming_vqgan', checkpoint=FILE\)"):
        load(weights, tmp_path, "taming_vqgan_f16_1024.maskbit", channels=64)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (
            "encoder.conv_in.weight",
            r"expected encoder.conv_in.weight with .*\(channels, in_channels, 3, 3\), got no such",
        ),
        ("encoder.down.0.block.0.conv2.weight", "expected levels of equally many blocks, got no level"),
        ("encoder.down.1.block.0.conv2.weight", r"(?s)unexpected.*encoder.levels.1"),
        ("decoder.up.1.block.1.conv1.weight", r"(?s)1 missing.*decoder.levels.0.blocks.1.conv1.weight"),
        ("quantize.embedding.weight", r"(?s)1 missing.*quantizer.codebook.weight"),
        ("post_quant_conv.bias", r"(?s)1 missing.*from_codes.bias"),
    ],
)
def test_a_file_that_lacks_tensors_is_refused(weights, tmp_path: Path, lost: str, message: str) -> None:
    del weights[lost]
    with pytest.raises(CheckpointError, match=message):
        load(weights, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder.conv_in.weight", (32, 2, 3), r"\(channels, in_channels, 3, 3\), got \(32, 2, 3\)"),
        ("encoder.conv_in.weight", (24, 2, 3, 3), r"widths that the 32 groups of a norm divide, got \(24, 32, 64\)"),
        ("encoder.conv_in.weight", (64, 2, 3, 3), r"widths that are multiples of 64, got \(32, 64\)"),
        ("encoder.down.1.block.0.conv2.weight", (64, 1, 3, 3), r"\(width, width, 3, 3\), got \(64, 1, 3, 3\)"),
        ("encoder.down.1.block.0.conv2.weight", (0, 0, 3, 3), r"\(width, width, 3, 3\), got \(0, 0, 3, 3\)"),
        ("quantize.embedding.weight", (7,), r"\(codebook_size, dim\), got \(7,\)"),
        ("quantize.embedding.weight", (7, 4), r"to_latent.weight: expected \(4, 5, 1, 1\), got \(3, 5, 1, 1\)"),
    ],
)
def test_shapes_that_make_no_network_are_refused(weights, tmp_path: Path, name: str, shape, message: str) -> None:
    weights[name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=message):
        load(weights, tmp_path)


def test_levels_of_unequally_many_blocks_are_refused(weights, tmp_path: Path) -> None:
    weights["encoder.down.1.block.1.conv2.weight"] = torch.zeros(64, 64, 3, 3)
    with pytest.raises(CheckpointError, match=r"expected levels of equally many blocks, got \[1, 2\]"):
        load(weights, tmp_path)


def test_files_of_other_families_are_refused(weights, tmp_path: Path) -> None:
    paella = published(tiny.random(PaellaVQ, TINY["paella_vq"]), import_module(PaellaVQ.__module__).KEY_MAP)
    with pytest.raises(CheckpointError, match=r"(?s)covered by no pattern.*nearest architecture: paella_vq"):
        load(paella, tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)covered by no pattern.*nearest architecture"):
        load(weights, tmp_path, "paella_vq")
    with pytest.raises(CheckpointError, match="missing"):
        load(weights, tmp_path, "movq")
    with pytest.raises(CheckpointError, match=r"square patches of 3 channels, got 5 values of a patch"):
        load(paella | {"in_block.1.weight": torch.zeros(2, 5, 1, 1)}, tmp_path, "paella_vq")
    path = tmp_path / "cut.ckpt"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated or corrupt"):
        zoo.create_model("taming_vqgan", checkpoint=path)


# -- parts ---------------------------------------------------------------------------------------------------------


def test_equal_names_stand_for_equal_sizes_and_numbers_for_themselves() -> None:
    own = {"a": torch.zeros(4, 4, 3), "b.0": torch.zeros(1), "b.1": torch.zeros(1), "b.3": torch.zeros(1)}
    assert sizes_of(own, "a", "width width 3") == {"width": 4}
    assert (count_of(own, "b.{}"), count_of(own, "b.{}", start=1), count_of(own, "c.{}")) == (2, 1, 0)
    with pytest.raises(CheckpointError, match=r"expected a with the shape \(width, width, 1\), got \(4, 4, 3\)"):
        sizes_of(own, "a", "width width 1")
    with pytest.raises(CheckpointError, match=r"expected c with the shape \(n\), got no such tensor"):
        sizes_of(own, "c", "n")


def test_a_resolution_places_attention_at_any_depth() -> None:
    sizes = VQGANSizes(3, 4, (4,) * 6, 1, (False, False, True, False, False, True), 4)
    assert sizes.network(256)["attention_resolutions"] == (64, 8)
    assert (sizes.network(7)["resolution"], sizes.network(7)["attention_resolutions"]) == (32, (8, 1))


def test_the_most_fitting_of_several_key_maps_is_taken() -> None:
    card = registry.card("movq")
    assert card.key_maps == ("KEY_MAP", "KEY_MAP_DIFFUSERS")
    keys = [f"encoder.down_blocks.0.resnets.{i}.conv1.weight" for i in range(3)]
    module = import_module(card.module)
    assert [getattr(module, name).covered(keys) for name in card.key_maps] == [0, 3]
