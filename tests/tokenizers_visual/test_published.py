"""Published checkpoints: the full-size models match the published names and shapes, and load from real files."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from zoo import cards, checkpoint
from zoo.config import Config
from zoo.registry import import_module, registry

PARITY = Path(__file__).parents[1] / "parity"
# fixture folder -> (key list, model) of every published key list
KEY_LISTS = {
    "alit/keys_alit_small_vae": "alit_small_vae_quantised.in100",
    "alit/keys_alit_small_vqgan": "alit_small_vqgan_quantised.in100",
    "llamagen_vq/keys_vq_ds16_c2i": "llamagen_vq_f16.c2i",
    "llamagen_vq/keys_vq_ds8_c2i": "llamagen_vq_f8.c2i",
    "maskbit_lfq/keys_maskbit_tokenizer_14bit": "maskbit_lfq_14bit.imagenet",
    "maskbit_lfq/keys_maskbit_tokenizer_18bit": "maskbit_lfq_18bit.imagenet",
    "vqgan_plus/keys_vqgan_plus_12bit": "vqgan_plus_12bit.imagenet",
    "vqgan_plus/keys_maskgit_tokenizer": "maskgit_vqgan.maskbit",
    "bae/keys_bae_16": "bae_16bit.imagenet",
    "bsq_vit/keys_bsqvit_b36g36": "bsq_vit_36bit.approx",
    "cosmos_di/keys_di8x8": "cosmos_di8x8.v0_1",
    "cosmos_di/keys_di16x16": "cosmos_di16x16.v0_1",
    "cosmos_dv/keys_dv4x8x8": "cosmos_dv4x8x8.v0_1",
    "cosmos_dv/keys_dv8x16x16": "cosmos_dv8x16x16.v0_1",
    "gaussian_token/keys_gaussian_token_cifar_gs64_cb1024": "gaussian_token_64_1024.cifar100",
    "gaussian_token/keys_gaussian_token_in_gs256_cb1024": "gaussian_token_256_1024.imagenet",
    "fourm_vq/keys_divae_rgb_16k_224": "four_m_rgb.16k_224_448",
    "fourm_vq/keys_vqvae_clip_b16_8k_224": "four_m_clip_b16.8k_224_448",
    "ibq/keys_ibq_imagenet_16384": "ibq_16384.imagenet",
    "layton/keys_layton_lactok_t": "layton_1024.256",
    "flextok/keys_flextok_d12_d12_inferred": "flextok_d12_d12.in1k",
    "flextok/keys_flextok_d18_d28_inferred": "flextok_d18_d28.in1k",
    "instella_t2i/keys_instella_bae_config": "instella_t2i_bae.amd",
    "karl/keys_karl_small_vae": "karl_small_vae_quantised.in100",
    "karl/keys_karl_small_vqgan": "karl_small_vqgan_quantised.in1k",
    "maskgit_vq/keys_openmuse_maskgit_vqgan_f16": "maskgit_vq_f16.openmuse",
    "maskgit_vq/keys_maskgit_flax": "maskgit_vq_f16.maskgit_512",
    "maskgit_vq/keys_openmuse_vqgan_f16_8192": "openmuse_vqgan_f16_8192.laion",
    "open_magvit2/keys_open_magvit2_imagenet_256": "open_magvit2_256.imagenet",
    "open_magvit2/keys_open_magvit2_pretrain_16384": "open_magvit2_256_16384.pretrain",
    "open_magvit2_video/keys_video_128_262144": "open_magvit2_video_128.ucf101",
    "meshgpt/keys_meshgpt_default": "meshgpt.default",
    "mingtok/keys_mingtok_vision": "mingtok_vision.512",
    "movq/keys_movqgan_67m": "movq_f8_16384.sber_67m",
    "movq/keys_openmuse_movq": "movq_f8_16384.openmuse",
    "movq/keys_diffusers_movq": "movq_f8_16384.kandinsky_2_1",
    "paella_vq/keys_diffusers_paella_vq": "paella_vq_f4_8192.wuerstchen",
    "paella_vq/keys_openmuse_paella_vq": "paella_vq_f4_8192.openmuse",
    "one_d_piece/keys_one_d_piece_l256": "one_d_piece_l256.imagenet",
    "one_d_piece/keys_one_d_piece_s256": "one_d_piece_s256.imagenet",
    "taming_vqgan/keys_vqgan_gumbel_f8": "taming_vqgan_gumbel_f8.openimages",
    "taming_vqgan/keys_vqgan_imagenet_f16_1024": "taming_vqgan_f16_1024.imagenet",
    "taming_vqgan/keys_vq_f4_noattn_ldm": "taming_vqgan_f4_8192.no_attention",
    "taming_vqgan/keys_vq_f16_ldm": "taming_vqgan_f16_16384_d8.openimages",
    "taming_vqgan/keys_vqgans_of_sflckr_transformer": "taming_vqgan_f16_1024.sflckr",
    "titok/keys_titok_bl64_vq8k": "titok_bl64_vq8k.imagenet",
    "titok/keys_titok_l32": "titok_l32.imagenet",
    "titok/keys_titok_s128": "titok_s128.imagenet",
    "titok_vae/keys_titok_bl128_vae_c16": "titok_bl128_vae_c16.imagenet",
    "robust_tok/keys_robustok_main_train": "robust_tok.main",
    "robust_tok/keys_xqgan_msvr10p2_4096": "imagefolder_msvr10p2_4096.imagenet",
    "seed_tokenizer/keys_seed1": "seed_tokenizer_1.v1",
    "seed_tokenizer/keys_seed2": "seed_tokenizer_2.seed_llama",
    "selftok/keys_renderer_512": "selftok_512_renderer.imagenet",
    "selftok/keys_renderer_1024": "selftok_1024_renderer.imagenet",
    "selftok/keys_tokenizer_512": "selftok_512.imagenet",
    "selftok/keys_tokenizer_512_encoder": "selftok_512.imagenet",
    "selftok/keys_tokenizer_1024": "selftok_1024.imagenet",
    "tokenbridge/keys_mar_kl16": "tokenbridge_kl16_6bit.imagenet",
    "tatitok/keys_tatitok_bl128_vq": "tatitok_bl128_vq.datacomp",
    "tatitok/keys_tatitok_bl32_vae": "tatitok_bl32_vae.datacomp",
    "unitok/keys_unitok_tokenizer": "unitok_large.256",
    "var_vq/keys_vae_ch160v4096z32": "var_vq_f16.256",
}
# models of which a file holds more than one
FURTHER = [("taming_vqgan/keys_vqgans_of_sflckr_transformer", "taming_vqgan_labels_f16_1024.sflckr")]
# lists that hold less than the file: of UniTok's and XQ-GAN's transformers the first layer, of FlexTok's the first two,
# one of Selftok's the encoder
SHORTENED = {
    "unitok/keys_unitok_tokenizer": {"layers": 1},
    "flextok/keys_flextok_d12_d12_inferred": {
        side: {"width": 768, "layers": 2, "heads": 12} for side in ("encoder", "decoder")
    },
    "flextok/keys_flextok_d18_d28_inferred": {
        "encoder": {"width": 1152, "layers": 2, "heads": 18},
        "decoder": {"width": 1792, "layers": 2, "heads": 28},
    },
    "selftok/keys_tokenizer_512_encoder": {"decoder": None},
    "robust_tok/keys_xqgan_msvr10p2_4096": {
        side: {"width": 768, "layers": 1, "heads": 12} for side in ("encoder", "decoder")
    },
}
WITHOUT_BASE = {"flextok/keys_flextok_d18_d28_inferred"}  # nor this list the autoencoder below
# published files that do not lie in a hub repository, or at a place there that the listing does not know exactly
ELSEWHERE = {
    "alit_small_vqgan_quantised_in1k": "alit_small_vqgan_quantised.in1k",
    "alit_small_vqgan_quantised_in100": "alit_small_vqgan_quantised.in100",
    "alit_base_vqgan_quantised_in100": "alit_base_vqgan_quantised.in100",
    "alit_semilarge_vqgan_quantised_in100": "alit_semilarge_vqgan_quantised.in100",
    "alit_small_vqgan_continuous_in100": "alit_small_vqgan_continuous.in100",
    "alit_small_vae_quantised_in100": "alit_small_vae_quantised.in100",
    "alit_small_vae_continuous_in100": "alit_small_vae_continuous.in100",
    "bsqvit_b18_group9": "bsq_vit_18bit.group9",
    "bsqvit_b18_group9_ema": "bsq_vit_18bit.group9_ema",
    "bsqvit_b18_approx": "bsq_vit_18bit.approx",
    "bsqvit_b18_approx_ema": "bsq_vit_18bit.approx_ema",
    "bsqvit_b36_approx": "bsq_vit_36bit.approx",
    "bsqvit_b36_approx_ema": "bsq_vit_36bit.approx_ema",
    "gaussian_token_cifar_gs64_cb1024": "gaussian_token_64_1024.cifar100",
    "gaussian_token_in_gs256_cb1024": "gaussian_token_256_1024.imagenet",
    "karl_small_vqgan_quantised_in1k": "karl_small_vqgan_quantised.in1k",
    "karl_small_vqgan_quantised_in100": "karl_small_vqgan_quantised.in100",
    "karl_small_vqgan_continuous_in100": "karl_small_vqgan_continuous.in100",
    "karl_small_vae_quantised_in100": "karl_small_vae_quantised.in100",
    "karl_small_vae_continuous_in100": "karl_small_vae_continuous.in100",
    "seed_tokenizer_1": "seed_tokenizer_1.v1",
    "tokenbridge_kl16_b6_r5": "tokenbridge_kl16_6bit.imagenet",
    "vqgan_imagenet_f16_1024": "taming_vqgan_f16_1024.imagenet",
    "vqgan_imagenet_f16_16384": "taming_vqgan_f16_16384.imagenet",
    "vqgan_gumbel_f8": "taming_vqgan_gumbel_f8.openimages",
    "vqgan_f8_256_ldm": "taming_vqgan_f8_256.openimages",
    "vqgan_f8_16384_ldm": "taming_vqgan_f8_16384.openimages",
    "vqgan_faceshq": "taming_vqgan_f16_1024.faceshq",
    "maskgit_imagenet256": "maskgit_vq_f16.maskgit_256",
    "maskgit_imagenet512": "maskgit_vq_f16.maskgit_512",
    "vqgan_f4_8192_ldm": "taming_vqgan_f4_8192.openimages",
    "vqgan_f4_8192_noattn_ldm": "taming_vqgan_f4_8192.no_attention",
    "vqgan_f16_16384_ldm": "taming_vqgan_f16_16384_d8.openimages",
    "vqgan_coco_8k": "taming_vqgan_f16_8192.coco",
    "vqgan_coco_openimages_8k": "taming_vqgan_f16_8192.coco_openimages",
    "vqgan_imagenetdepth": "taming_vqgan_depth_f16_1024.imagenet",
    "vqgan_sflckr": "taming_vqgan_f16_1024.sflckr",
    "vqgan_sflckr_labels": "taming_vqgan_labels_f16_1024.sflckr",
    "vqgan_ffhq": "taming_vqgan_f16_1024.ffhq",
    "vqgan_celebahq": "taming_vqgan_f16_1024.celebahq",
    "vqgan_coco_labels": "taming_vqgan_labels_f16_1024.coco",
    "vqgan_coco_stuff": "taming_vqgan_f16_1024.coco_stuff",
    "vqgan_ade20k": "taming_vqgan_f16_1024.ade20k",
    "vqgan_ade20k_labels": "taming_vqgan_labels_f16_1024.ade20k",
}
# published files whose sizes, or networks, are not known here
OF_UNKNOWN_SIZES = {"meshgpt_preview_autoencoder"} | {
    f"fourm_{kind}"
    for kind in (
        "semseg_4k_224-448", "DINOv2-B14-global_8k_16_224", "ImageBind-H14-global_8k_16_224", "sam-instance_1k_64",
        "human-poses_1k_8",
    )
}  # fmt: skip
# published autoencoders without tokens, which are part of the tokenizers' files
NO_TOKENIZERS = {f"flextok_vae_c{channels}" for channels in (4, 8, 16)}
VISUAL = {
    name
    for m in cards.manifests()
    if m.module.startswith("tokenizers_visual.") and not m.module.startswith("tokenizers_visual.inversion.")
    for name in m.fixtures
}
LISTINGS = sorted(name for name in VISUAL if (PARITY / name / "published.json").is_file())


def published_shapes(key_list: str) -> dict[str, list[int]]:
    return json.loads((PARITY / f"{key_list}.json").read_text())


def test_every_key_list_is_checked() -> None:
    found = {f"{name}/{path.stem}" for name in VISUAL for path in (PARITY / name).glob("keys_*.json")}
    assert found == set(KEY_LISTS)


@pytest.mark.parametrize(("key_list", "name"), [*KEY_LISTS.items(), *FURTHER])
def test_full_size_model_matches_the_published_names_and_shapes(key_list: str, name: str) -> None:
    card = registry.card(name)
    family = registry.family(card.family)
    with torch.device("meta"):
        model = family.model(family.config.from_dict(card.config).replace(**SHORTENED.get(key_list, {})))
        published = {key: torch.empty(shape) for key, shape in published_shapes(key_list).items()}
    mapped = getattr(family.module, card.key_map)(published)
    left_out = "base." if key_list in WITHOUT_BASE else "no module"
    assert {key: tuple(value.shape) for key, value in mapped.items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items() if not key.startswith(left_out)
    }


def config_of(card: cards.ModelCard) -> Config:
    return registry.family(card.family, card.module).config.from_dict(card.config)


def config_from(card: cards.ModelCard, original: dict[str, object]) -> Config:
    return import_module(card.module).config_from_original({"original": original})


@pytest.mark.parametrize("folder", LISTINGS)
def test_every_published_checkpoint_is_a_manifest_entry(folder: str) -> None:
    for listed in json.loads((PARITY / folder / "published.json").read_text()):
        if listed["name"] in OF_UNKNOWN_SIZES | NO_TOKENIZERS:
            continue
        name, place = ELSEWHERE.get(listed["name"]), (listed["repo"], listed["file"])
        entries = [card for card in cards.all_cards() if card.source and (card.source.repo, card.source.file) == place]
        entries = [registry.card(name)] if name else entries
        if (
            isinstance(listed["kwargs"], dict) and "model_class" not in listed["kwargs"]
        ):  # else the listing does not tell the sizes
            original = {"class": listed.get("class"), "kwargs": listed["kwargs"]}
            entries = [card for card in entries if config_of(card) == config_from(card, original)]
        assert len(entries) == 1, listed["name"]
        (card,) = entries
        values = {metric.value for metric in card.metrics}
        for stated in listed["paper_metrics"].values():
            assert (
                stated is None
                or isinstance(stated, str)
                or values >= set(stated if isinstance(stated, list) else [stated])
            )
        assert all(metric.protocol for metric in card.metrics)
        if listed["container"]:
            assert listed["container"].partition(" ")[0].strip("'") in card.container


def random_state(key_list: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {key: torch.randn(shape) * 0.02 for key, shape in published_shapes(key_list).items()}
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        state[key] = torch.tensor(5)
        state[key.replace("num_batches_tracked", "running_var")].abs_()
    return state


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


def test_maps_of_labels_of_a_transformers_file_load(tmp_path: Path) -> None:
    state = random_state("taming_vqgan/keys_vqgans_of_sflckr_transformer")
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    model = zoo.create_model("taming_vqgan_labels_f16_1024", checkpoint=path)
    assert_holds(model, state)
    labels = torch.randint(0, 182, (1, 40, 32))
    x = torch.nn.functional.one_hot(labels, 182).movedim(-1, 1).float()
    assert model.decode(model.encode(x)).shape == x.shape


def test_maskbit_file_loads(tmp_path: Path) -> None:
    state = random_state("maskbit_lfq/keys_maskbit_tokenizer_14bit")
    path = tmp_path / "maskbit_tokenizer_14bit.bin"
    torch.save(state, path)
    model = zoo.create_model("maskbit_lfq_14bit", checkpoint=path)
    assert_holds(model, state)
    assert model.encode(torch.rand(1, 3, 64, 64)).bits == (16 * 14,)


@pytest.mark.parametrize(
    ("key_list", "name", "container"),
    [
        ("taming_vqgan/keys_vqgan_gumbel_f8", "taming_vqgan_gumbel_f8", "state_dict"),
        pytest.param(
            "open_magvit2/keys_open_magvit2_imagenet_256", "open_magvit2_256", "state_dict", marks=pytest.mark.slow
        ),
        ("maskgit_vq/keys_openmuse_maskgit_vqgan_f16", "maskgit_vq_f16", None),
        ("movq/keys_movqgan_67m", "movq_f8_16384", None),
        ("movq/keys_openmuse_movq", "movq_f8_16384.openmuse", None),
        ("movq/keys_diffusers_movq", "movq_f8_16384.kandinsky_2_2", None),
        ("paella_vq/keys_openmuse_paella_vq", "paella_vq_f4_8192.wuerstchen_original", "state_dict"),
        ("paella_vq/keys_diffusers_paella_vq", "paella_vq_f4_8192", None),
        pytest.param("var_vq/keys_vae_ch160v4096z32", "var_vq_f16", None, marks=pytest.mark.slow),
        pytest.param("bae/keys_bae_16", "bae_16bit", None, marks=pytest.mark.slow),
        pytest.param("bsq_vit/keys_bsqvit_b36g36", "bsq_vit_36bit", "state_dict", marks=pytest.mark.slow),
        pytest.param("unitok/keys_unitok_tokenizer", "unitok_large", "trainer.unitok", marks=pytest.mark.slow),
        pytest.param("tokenbridge/keys_mar_kl16", "tokenbridge_kl16_6bit", "model", marks=pytest.mark.slow),
        pytest.param("robust_tok/keys_robustok_main_train", "robust_tok", "ema", marks=pytest.mark.slow),
        pytest.param("robust_tok/keys_robustok_main_train", "robust_tok", "model", marks=pytest.mark.slow),
    ],
)
def test_file_of_the_published_layout_loads(tmp_path: Path, key_list: str, name: str, container: str | None) -> None:
    state = random_state(key_list)
    path = tmp_path / "published.ckpt"
    content: dict[str, object] = {registry.card(name).prefix + key: value for key, value in state.items()}
    for part in reversed(container.split(".") if container else []):
        content = {part: content, "epoch": 3}
    torch.save(content, path)
    model = zoo.create_model(name, checkpoint=path, **SHORTENED.get(key_list, {}))
    assert_holds(model, state)
    f, (low, high) = model.spec.multiple, model.spec.value_range
    sides = model.spec.size or (2 * f, 3 * f)
    tokens = model.encode(torch.rand(1, 3, *sides) * (high - low) + low)
    assert tokens.levels[-1].shape == (1, sides[0] // f, sides[1] // f)
    assert model.decode(tokens).shape == (1, 3, *sides)


@pytest.mark.parametrize(
    ("key_list", "name"),
    [
        ("gaussian_token/keys_gaussian_token_cifar_gs64_cb1024", "gaussian_token_64_1024"),
        pytest.param(
            "gaussian_token/keys_gaussian_token_in_gs256_cb1024", "gaussian_token_256_1024", marks=pytest.mark.slow
        ),
    ],
)
def test_gaussian_token_file_loads(tmp_path: Path, key_list: str, name: str) -> None:
    state = random_state(key_list)
    state["quantize._codebook.initted"] = torch.ones(1)
    path = tmp_path / "last.ckpt"
    torch.save({"epoch": 29, "state_dict": state, "optimizer_states": [{"state": {}}]}, path)
    model = zoo.create_model(name, checkpoint=path)
    own = model.state_dict()
    assert torch.equal(own["anchors"], state["model_ema.gs_embedgaussian_lifteranchor"])
    assert torch.equal(own["states"], state["gs_embed.gaussian_lifter.instance_feature"])  # which has no average
    assert torch.equal(own["to_features.10.weight"], state["model_ema.gs_embedlayers8to_features10weight"])
    assert torch.equal(own["quantizer.groups.0.codebook.weight"], state["quantize._codebook.embed"][0])
    assert bool(own["quantizer.groups.0.codebook.started"])
    tokens = model.encode(torch.rand(1, 3, *model.spec.size) * 2 - 1)
    assert tokens.indices.shape == (1, 6, model.config.gaussians)
    assert model.decode(tokens).shape == (1, 3, *model.spec.size)


@pytest.mark.slow
def test_averaged_weights_of_a_file_are_the_ones_that_load(tmp_path: Path) -> None:
    state = random_state("ibq/keys_ibq_imagenet_16384")
    path = tmp_path / "imagenet256_16384.ckpt"
    torch.save({"state_dict": state}, path)
    own = zoo.create_model("ibq_16384", checkpoint=path).state_dict()
    assert torch.equal(own["quantizer.codebook.weight"], state["model_ema.quantizeembeddingweight"])
    assert torch.equal(own["encoder.conv_in.weight"], state["model_ema.encoderconv_inweight"])
    assert not torch.equal(own["encoder.conv_in.weight"], state["encoder.conv_in.weight"])


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


@pytest.mark.slow
def test_cosmos_torchscript_file_of_a_video_model_loads(tmp_path: Path) -> None:
    state = random_state("cosmos_dv/keys_dv4x8x8")
    constants = {"encoder.patcher3d.wavelets": torch.ones(2), "decoder.unpatcher3d.wavelets": torch.ones(2)}
    path = tmp_path / "autoencoder.jit"
    torch.jit.save(torch.jit.trace(Tree(state | constants), torch.zeros(1)), path)
    model = zoo.create_model("cosmos_dv4x8x8", checkpoint=path)
    assert_holds(model, state)
    tokens = model.encode(torch.zeros(1, 3, 5, 16, 8))
    assert tokens.indices.shape == (1, 2, 2, 1)
    assert model.decode(tokens).shape == (1, 3, 5, 16, 8)


def test_names_of_another_family_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.bin"
    torch.save({key: torch.zeros(1) for key in published_shapes("cosmos_di/keys_di8x8")}, path)
    with pytest.raises(checkpoint.CheckpointError, match="nearest architecture: cosmos_di"):
        zoo.create_model("maskbit_lfq_14bit", checkpoint=path)
