"""What every projector must do; a new one is tested here without a line added but its full-size names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tokenizers_visual.inversion.ladi_vton import LadiVtonConfig, try_on_prompt
from tokenizers_visual.inversion.lincir import LinCIRConfig
from tokenizers_visual.inversion.pic2word import Pic2WordConfig
from tokenizers_visual.inversion.projector import Projector
from tokenizers_visual.inversion.searle import SearleConfig
from tokenizers_visual.inversion.words import PseudoWords
from tokenizers_visual.parity.inversion import open_clip_pair
from zoo import cards, checkpoint
from zoo.checkpoint import CheckpointError
from zoo.cli.common import load_model
from zoo.config import ConfigError
from zoo.parity import Fixture
from zoo.registry import import_module, registry

PARITY = Path(__file__).parents[2] / "parity"
MANIFESTS = [m for m in cards.manifests() if m.module.startswith("tokenizers_visual.inversion.")]
for _manifest in MANIFESTS:
    import_module(_manifest.module)
PROJECTORS = [name for name in registry.families() if issubclass(registry.family(name).model, Projector)]
CARDS = [card for manifest in MANIFESTS for card in manifest.cards]
every = pytest.mark.parametrize("name", PROJECTORS)

FAMILIES = [manifest.family for manifest in MANIFESTS]
FOLDERS = [name for name in FAMILIES if (PARITY / name).is_dir()]  # of their fixtures

# sizes of the projectors that no fixture narrows
SMALL: dict[str, dict[str, Any]] = {
    "isa": {"image_dim": 12, "word_dim": 10, "words": 3, "hidden_dim": 8},
    "vilex": {"image_dim": 12, "word_dim": 10, "words": 4, "heads": 2},
    "sitta": {"image_dim": 12, "word_dim": 10},
    "domain_agnostic_e4t": {"image_dim": 12, "word_dim": 10, "hidden_dim": 8},
}

# list of published names and shapes -> model
KEY_LISTS = {
    "pic2word/keys_pic2word_vit_l14": "pic2word_vit_l14.cc3m",
    "searle/keys_searle_vit_b32": "searle_vit_b32.imagenet",
    "searle/keys_searle_xl_vit_l14": "searle_xl_vit_l14.imagenet",
    "lincir/keys_lincir_vit_l14": "lincir_vit_l14.navervision",
    "ladi_vton/keys_ladi_vton_dresscode": "ladi_vton.dresscode",
    "neti/keys_neti_default": "neti.sd14",
    "fdt/keys_clip_fdt_cc3m_without_text_tower": "clip_fdt_vit_b32.cc3m",
    "precise_control/keys_precise_control_wt_mapper": "precise_control.sd21",
}
# what a file of the list's layout holds elsewhere
ELSEWHERE = {"neti.sd14": {"frequencies"}}
# published files -> models; the listings name those that lie in no hub repository in their own way
PUBLISHED = {
    "pic2word_vit_l14": "pic2word_vit_l14.cc3m",
    "pic2word_vit_l14.navervision": "pic2word_vit_l14.navervision",
    "searle_vit_b32": "searle_vit_b32.imagenet",
    "searle_xl_vit_l14": "searle_xl_vit_l14.imagenet",
    "lincir_vit_l14": "lincir_vit_l14.navervision",
    "ladi_vton_dresscode": "ladi_vton.dresscode",
    "ladi_vton_vitonhd": "ladi_vton.vitonhd",
    "neti_paper_concepts": "neti.sd14",
    "clip_fdt_vitb32_cc3m": "clip_fdt_vit_b32.cc3m",
    "precise_control_wt_mapper": "precise_control.sd21",
    "sitta_flan-t5-base_rn50x64_linear_reg": "sitta_flan_t5_base.linear",
    "sitta_t5-v1_1-base_rn50x64_linear_reg": "sitta_t5_v1_1_base.linear",
    "sitta_t5-v1_1-large_rn50x64_linear_reg": "sitta_t5_v1_1_large.linear",
    "sitta_t5-v1_1-xl_rn50x64_linear_reg": "sitta_t5_v1_1_xl.linear",
    "sitta_t5-v1_1-xxl_rn50x64_linear_reg": "sitta_t5_v1_1_xxl.linear",
    "sitta_flan-t5-large_rn50x64_linear_reg": "sitta_flan_t5_large.linear",
    "sitta_flan-t5-xl_rn50x64_linear_reg": "sitta_flan_t5_xl.linear",
    "sitta_flan-t5-xxl_rn50x64_linear_reg": "sitta_flan_t5_xxl.linear",
    "sitta_llama-7b-hf_rn50x64_linear_reg": "sitta_llama_7b.linear",
    "sitta_llama-7b-hf_rn50x64_procrustes": "sitta_llama_7b.procrustes",
}
IN_A_FOLDER = {"neti.sd14", "precise_control.sd21"}  # published without an address of the file itself


def meta(name: str) -> dict[str, Any]:
    return json.loads((PARITY / name / "meta.json").read_text())


def build(name: str) -> Projector:
    """A small model: of the family's fixture where that has one."""
    family = registry.family(name)
    config = family.config(**SMALL[name]) if name in SMALL else family.module.config_from_original(meta(name))
    return family.model(config).eval()


def features(model: Projector, count: int = 3, seed: int = 0) -> Tensor:
    shape = (count, 5, model.config.image_dim) if model.features == "tokens" else (count, model.config.image_dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- properties ----------------------------------------------------------------------------------------------------


def test_there_are_projectors() -> None:
    assert set(PROJECTORS) >= {"pic2word", "searle", "lincir", "ladi_vton"}


@every
def test_words_have_the_width_and_the_clip_of_the_config(name: str) -> None:
    model = build(name)
    words = model.project(features(model))
    assert words.embeddings.shape == (3, getattr(model.config, "words", 1), model.config.word_dim)
    assert words.backbone == getattr(model.config, "language_model", model.config.backbone)
    assert not words.embeddings.requires_grad


@every
def test_an_item_alone_in_any_batch_and_while_training_gives_the_same_words(name: str) -> None:
    model = build(name)
    x = features(model, 4)
    expected = model.project(x).embeddings
    for item in range(4):
        torch.testing.assert_close(model.project(x[item : item + 1]).embeddings[0], expected[item])
    model.train()
    assert torch.equal(model.project(x).embeddings, expected)  # dropout never touches it
    assert model.training
    if any(isinstance(module, torch.nn.Dropout) and module.p for module in model.modules()):
        assert not torch.equal(model(x), expected)


@every
def test_every_weight_gets_a_gradient(name: str) -> None:
    model = build(name)
    model(features(model)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@every
@pytest.mark.parametrize("change", ["integers", "width", "axes", "empty", "nan", "array", "sparse", "meta", "float8"])
def test_wrong_features_are_refused(name: str, change: str) -> None:
    model = build(name)
    x = features(model)
    wrong = {
        "integers": x.long(), "width": x[..., 1:], "axes": x[None], "empty": x[:0], "nan": x * float("nan"),
        "array": x.numpy(), "sparse": x.to_sparse(), "meta": x.to("meta"), "float8": x.to(torch.float8_e4m3fn),
    }[change]  # fmt: skip
    with pytest.raises(ValueError, match=r"expected .*image features.*, got"):
        model.project(wrong)


@every
def test_config_survives_json_and_rebuilds_the_model(name: str) -> None:
    family = registry.family(name)
    for config in (family.config(), build(name).config):
        assert family.config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    model = build(name)
    again = family.model(type(model.config).from_dict(model.config.to_dict()))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    with pytest.raises(ConfigError, match="no_such_field"):
        family.config.from_dict({"no_such_field": 1})


@every
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = build(name)
    path = zoo.save_model(model, tmp_path / "model")
    again = zoo.create_model(f"local-dir:{path.parent}")
    assert type(again) is type(model)
    assert again.config == model.config
    assert again.source == model.source
    assert torch.equal(again.project(features(model)).embeddings, model.project(features(model)).embeddings)


@every
def test_half_precision_keeps_the_fingerprint(name: str) -> None:
    model = build(name)
    source = model.source
    model.to(torch.bfloat16)
    assert model.source == source
    assert model.project(features(model)).embeddings.dtype == torch.bfloat16


def test_the_wrong_clip_is_refused() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    model, images = build("searle"), torch.randn(2, 3, 32, 32)
    assert len(model.project_images(images, pair)) == 2
    pair.backbone = "openai/clip-vit-base-patch32"
    with pytest.raises(ValueError, match="expected the CLIP tiny_clip, got openai/clip-vit-base-patch32"):
        model.project_images(images, pair)


def test_image_tokens_go_to_the_projector_that_takes_them() -> None:
    pair = open_clip_pair(Fixture.read(PARITY / "tiny_clip"), 259)
    config = LadiVtonConfig("tiny_clip", image_dim=32, word_dim=40, words=3, heads=2, mlp_dim=8, hidden_dim=8)
    model = registry.family("ladi_vton").model(config).eval()
    images = torch.randn(2, 3, 32, 32)
    words = model.project_images(images, pair)
    assert torch.equal(words.embeddings, model.project(pair.image_tokens(images)).embeddings)
    assert words.embeddings.shape == (2, 3, 40)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SearleConfig, {"image_dim": 0}, "positive image_dim"),
        (SearleConfig, {"dropout": 1.0}, "dropout"),
        (LinCIRConfig, {"hidden_dim": 0}, "positive hidden_dim"),
        (Pic2WordConfig, {"layers": 0}, "at least one layer"),
        (Pic2WordConfig, {"backbone": ""}, "name of a CLIP"),
        (LadiVtonConfig, {"heads": 7}, "heads that divide 1280"),
        (LadiVtonConfig, {"words": 0}, "at least one word"),
    ],
)
def test_wrong_configs_are_refused(config: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_a_projector_is_no_tokenizer_and_says_so(tmp_path: Path) -> None:
    path = zoo.save_model(build("searle"), tmp_path)
    with pytest.raises(ValueError, match="expected a tokenizer of images, video or audio, got a Searle"):
        load_model(str(path))


def test_try_on_prompts_name_the_garment() -> None:
    assert try_on_prompt("dresses") == "a photo of a model wearing a dress $"
    with pytest.raises(ValueError, match="upper_body"):
        try_on_prompt("hats")


@given(count=st.integers(1, 5), words=st.integers(1, 3))
def test_items_of_words_are_chosen(count: int, words: int) -> None:
    whole = PseudoWords(torch.randn(count, words, 4), "clip")
    assert len(whole) == count
    assert torch.equal(whole[count - 1].embeddings, whole.embeddings[-1:])
    assert torch.equal(whole[[0, 0]].embeddings, whole.embeddings[:1].repeat(2, 1, 1))
    assert whole.to(torch.float64).embeddings.dtype == torch.float64


# -- published checkpoints -----------------------------------------------------------------------------------------


def test_every_key_list_is_checked() -> None:
    found = {f"{name}/{path.stem}" for name in FOLDERS for path in (PARITY / name).glob("keys_*")}
    assert found == set(KEY_LISTS)


def shapes(key_list: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{key_list}.json").read_text())


@pytest.mark.parametrize(("key_list", "name"), KEY_LISTS.items())
def test_full_size_model_matches_the_published_names_and_shapes(key_list: str, name: str) -> None:
    card = registry.card(name)
    family = registry.family(card.family)
    with torch.device("meta"):
        model = family.model(family.config.from_dict(card.config))
        published = {key: torch.empty(shape) for key, shape in shapes(key_list).items()}
    mapped = getattr(family.module, card.key_map)(published)
    own = {k: v.shape for k, v in model.state_dict().items() if k not in ELSEWHERE.get(name, ())}
    assert {k: v.shape for k, v in mapped.items()} == own


def numbers(stated: object) -> set[float]:
    """The numbers in a listing's metrics, without the texts beside them."""
    if isinstance(stated, dict | list):
        return set().union(*map(numbers, stated.values() if isinstance(stated, dict) else stated))
    return set() if isinstance(stated, str) else {stated}  # type: ignore[arg-type]


def test_every_published_checkpoint_is_a_manifest_entry() -> None:
    listings = [path for name in FOLDERS if (path := PARITY / name / "published.json").exists()]
    found = set()
    for listed in [entry for path in listings for entry in json.loads(path.read_text())]:
        card = registry.card(PUBLISHED[listed["name"]])
        found.add(card.full_name)
        family = registry.family(card.family)
        if card.family == "sitta":
            assert card.config["image_dim"] == listed["kwargs"]["source_dim"]
            assert listed["kwargs"]["target_dim"] in (None, card.config["word_dim"])
        else:
            stated = family.module.config_from_original({"original": {"kwargs": listed["kwargs"]}})
            assert family.config.from_dict(card.config) == stated
        if card.full_name in IN_A_FOLDER:
            assert card.source is None
        elif listed["repo"]:
            assert (card.source.repo, card.source.file) == (listed["repo"], listed["file"])
        else:
            assert {word for word in listed["file"].split() if word in card.source.url}
        assert {metric.value for metric in card.metrics} == numbers(listed["paper_metrics"])
        assert card.container == listed["container"]
        assert card.non_commercial == ("NC" in listed["licence"])
    assert found == {card.full_name for card in CARDS if card.source is not None} | IN_A_FOLDER


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_pic2words_layout_loads(tmp_path: Path, prefix: str) -> None:
    state = {key: torch.randn(shape) * 0.02 for key, shape in shapes("pic2word/keys_pic2word_vit_l14").items()}
    content = {"epoch": 1, "state_dict": {"x": torch.zeros(1)}, "state_dict_img2text": {}}
    content["state_dict_img2text"] = {prefix + key: value for key, value in state.items()}
    torch.save(content, tmp_path / "pic2word.pt")
    model = zoo.create_model("pic2word_vit_l14", checkpoint=tmp_path / "pic2word.pt")
    assert isinstance(model, Projector)
    assert torch.equal(model.out.weight, state["fc_out.weight"])
    assert model.name == "pic2word_vit_l14.cc3m"


def test_a_file_of_searles_layout_loads_and_another_is_refused(tmp_path: Path) -> None:
    state = {key: torch.randn(shape) * 0.02 for key, shape in shapes("searle/keys_searle_vit_b32").items()}
    torch.save({"Phi": state, "epoch": 50}, tmp_path / "searle.pt")
    model = zoo.create_model("searle_vit_b32", checkpoint=tmp_path / "searle.pt")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(CheckpointError, match="mis-shaped"):
        zoo.create_model("searle_xl_vit_l14", checkpoint=tmp_path / "searle.pt")


def test_joined_attention_weights_are_queries_keys_and_values() -> None:
    fixture = checkpoint.read(PARITY / "ladi_vton" / "weights.safetensors")
    published = {key: value for key, value in fixture.items() if not key.startswith("clip_text.")}
    own = registry.family("ladi_vton").module.KEY_MAP(published)
    parts = [published[f"encoder_layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(own["blocks.0.attention.qkv.weight"], torch.cat(parts))


@pytest.mark.parametrize(
    ("fixture", "defaults"),
    [
        ("pic2word", {"embed_dim": 512, "middle_dim": 512, "output_dim": 512, "n_layer": 2, "dropout": 0.1}),
        ("precise_control", {"depth": 4, "num_embeds_per_token": 2, "use_timestep_embedder": True}),
        ("ladi_vton", {"num_encoder_layers": 1}),
        ("freedom", {"kappa": 20, "ni": 7, "miu": 7}),
    ],
)
def test_what_is_not_stated_is_at_the_originals_defaults(fixture: str, defaults: dict[str, Any]) -> None:
    stated = meta(fixture)
    original = stated["original"]["kwargs"]
    without = {**stated, "original": {"kwargs": {k: v for k, v in original.items() if k not in defaults}}}
    module = registry.family(fixture).module
    expected = module.config_from_original({**stated, "original": {"kwargs": {**original, **defaults}}})
    assert module.config_from_original(without) == expected
