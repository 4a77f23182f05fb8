"""Every kind of text and image encoder that open_clip has takes pseudo-words and gives its own features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertConfig, BertModel, BertTokenizerFast

from tokenizers_visual.inversion.cir_inputs import image_input
from tokenizers_visual.inversion.clip import OpenClipPair
from tokenizers_visual.inversion.words import PseudoWords

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
TIMM = {"timm_model_pretrained": False, "image_size": 64, "timm_pool": "", "timm_proj": None}
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "photo",
    "of",
    "that",
    "is",
    "red",
    "dog",
    "$",
    "two",
    "word",
]


def model_of(kind: str, folder: Path) -> Any:
    sizes: dict[str, Any] = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    if kind == "clip":
        return open_clip.CLIP(**sizes)
    if kind == "worldwide":  # MetaCLIP 2 pools at the end of text, wherever its id is
        return open_clip.CLIP(24, VISION, {**TEXT, "pool_type": "eos", "eos_id": 49407})
    if kind == "resnet":
        vision = {**VISION, "layers": [1, 1, 1, 1], "image_size": 64, "head_width": 64}
        return open_clip.CLIP(24, vision, TEXT)
    if kind == "coca":
        return open_clip.CoCa(
            embed_dim=24,
            multimodal_cfg={"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            vision_cfg={**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
            text_cfg={**TEXT, "embed_cls": True, "output_tokens": True},
        )
    if kind == "siglip":
        vision = {**TIMM, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
        text = {**TEXT, "vocab_size": 40, "no_causal_mask": True, "pool_type": "last", "proj_bias": True}
        return open_clip.CustomTextCLIP(24, vision, text, init_logit_bias=-10)
    if kind == "convnext":
        vision = {**TIMM, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}
        return open_clip.CustomTextCLIP(24, vision, TEXT)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
    return open_clip.CustomTextCLIP(24, VISION, text)


def tokenizer_of(kind: str, folder: Path) -> Any:
    if kind not in ("siglip", "bert"):
        return open_clip.SimpleTokenizer(context_length=20)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "tokenizer")
    return HFTokenizer(
        str(folder / "tokenizer"), context_length=20, clean="canonicalize" if kind == "siglip" else "lower"
    )


KINDS = ("clip", "worldwide", "resnet", "coca", "siglip", "convnext", "bert")
IMAGES = {"resnet": 64, "siglip": 160, "convnext": 160}
TOKENS = {
    "clip": (5, 16),
    "worldwide": (5, 16),
    "coca": (5, 16),
    "resnet": (4, 512),
    "siglip": (101, 64),
    "convnext": (25, 64),
    "bert": (5, 16),
}


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[OpenClipPair, Any]]:
    made: dict[str, tuple[OpenClipPair, Any]] = {}

    def make(kind: str) -> tuple[OpenClipPair, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            tokenizer = tokenizer_of(kind, folder)
            made[kind] = OpenClipPair(model_of(kind, folder / "text"), tokenizer, backbone=kind), tokenizer
        return made[kind]

    return make


def own(pair: OpenClipPair, ids: Tensor) -> Tensor:
    return pair.model.encode_text(ids, normalize=False)  # type: ignore[operator]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_images_have_the_features_of_the_library(kind: str, pair_of: Callable) -> None:
    pair, tokenizer = pair_of(kind)
    assert torch.equal(pair.tokenize("a photo of two dog"), tokenizer(["a photo of two dog"]))
    assert torch.equal(pair.text_features("a photo of two dog"), own(pair, tokenizer(["a photo of two dog"])))
    size = IMAGES.get(kind, 32)
    images = torch.randn(2, 3, size, size)
    features = pair.model.encode_image(images, normalize=False)  # type: ignore[operator]
    assert torch.equal(pair.image_features(images), features)
    assert (features.norm(dim=-1) - 1).abs().min() > 1e-3  # not normalised
    assert pair.image_tokens(images).shape == (2, *TOKENS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_words_take_the_places_of_the_placeholders(kind: str, pair_of: Callable) -> None:
    pair, _ = pair_of(kind)
    plain = pair.tokenize("a photo of dog that is red")
    dog = pair.tokenize("dog")[0, 0 if pair.start_id is None else 1]
    real = PseudoWords(pair.token_embeddings(dog[None, None]), kind)
    composed = pair.compose("a photo of $ that is red", real)
    torch.testing.assert_close(composed, own(pair, plain))
    other = PseudoWords(torch.randn(1, 1, 16, requires_grad=True), kind)
    changed = pair.compose("a photo of $ that is red", other)
    assert (changed - composed).abs().max() > 1e-4
    changed.square().sum().backward()
    assert other.embeddings.grad is not None
    assert other.embeddings.grad.abs().sum() > 0
    both = pair.compose("$ of $", [real, PseudoWords(real.embeddings.detach() + 1, kind)])
    assert both.shape == (1, 24)
    output = pair.encode_text(plain)
    assert output.hidden.shape == (1, 20, 16)
    torch.testing.assert_close(output.features, own(pair, plain))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_refused(kind: str, pair_of: Callable) -> None:
    pair, _ = pair_of(kind)
    words = PseudoWords(torch.randn(1, 1, 16), kind)
    with pytest.raises(ValueError, match="expected at most 20 tokens"):
        pair.compose("a photo of $ " + "word " * 30, words)
    with pytest.raises(ValueError, match="expected '\\$'"):
        pair.compose("a photo", words)


def test_a_model_without_its_tokenizer_takes_ids(pair_of: Callable) -> None:
    model = pair_of("siglip")[0].model
    pair = OpenClipPair(model, backbone="siglip", placeholder_id=39)
    ids = torch.randint(0, 38, (1, 20))
    ids[0, 7] = 39
    real = PseudoWords(pair.token_embeddings(torch.tensor([[39]])), "siglip")
    torch.testing.assert_close(pair.compose(ids, real), own(pair, ids))


def test_a_model_that_pools_at_its_end_of_text_takes_ids_without_a_tokenizer() -> None:
    model = open_clip.CLIP(24, VISION, {**TEXT, "pool_type": "eos", "eos_id": 7})
    pair = OpenClipPair(model, backbone="worldwide", placeholder_id=39)
    assert pair.end_id == 7
    ids = torch.tensor([[5, 39, 9, 7, *[1] * 16]])
    real = PseudoWords(pair.token_embeddings(torch.tensor([[39]])), "worldwide")
    torch.testing.assert_close(pair.compose(ids, real), own(pair, ids))


@pytest.mark.parametrize("size", [(97, 180), (60, 32), (20, 20)])
@pytest.mark.parametrize(
    "stated",
    [
        {},
        {"mean": [0.5] * 3, "std": [0.4] * 3},
        {"resize_mode": "squash"},
        {"interpolation": "bilinear"},
        {"resize_mode": "squash", "interpolation": "bilinear"},
    ],
    ids=str,
)
def test_pictures_are_prepared_as_the_library_does(
    stated: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    pair, theirs = prepared(stated, tmp_path)
    torch.testing.assert_close(image_input(pair)(picture), theirs(picture), rtol=0, atol=1e-6)


def test_pictures_that_would_be_padded_are_refused(tmp_path: Path) -> None:
    pair, _ = prepared({"resize_mode": "longest"}, tmp_path)
    with pytest.raises(ValueError, match="expected pictures resized by their short side or squashed, got longest"):
        image_input(pair)


def prepared(stated: dict[str, Any], folder: Path) -> tuple[OpenClipPair, Any]:
    """The pair of a file that states how pictures are prepared, and the library's preparation."""
    from tiny_open_clip import save_tiny_clip

    architecture = save_tiny_clip(folder).removeprefix("open_clip:").removesuffix("/None")
    file = folder / "open_clip_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "preprocess_cfg": stated}))
    return OpenClipPair.load(architecture), open_clip.create_model_and_transforms(architecture)[2]


def test_programs_of_torchscript_are_refused(tmp_path: Path) -> None:
    """Nothing in them can be exchanged."""
    from tiny_open_clip import save_tiny_clip

    architecture = save_tiny_clip(tmp_path).removeprefix("open_clip:").removesuffix("/None")
    with pytest.raises(ValueError, match="expected a module, got a program of TorchScript"):
        OpenClipPair.load(architecture, jit=True)


def test_tokenizers_that_drop_the_end_of_text_are_refused(pair_of: Callable) -> None:
    pair, tokenizer = pair_of("bert")
    tokenizer.strip_sep_token = True
    try:
        with pytest.raises(ValueError, match="keeps the end of text"):
            OpenClipPair(pair.model, tokenizer, backbone="bert")
    finally:
        tokenizer.strip_sep_token = False


def test_a_tokenizer_that_cannot_be_had_is_asked_for(tmp_path: Path) -> None:
    sizes = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": {**TEXT, "hf_tokenizer_name": "nowhere"}}
    model = open_clip.CLIP(**{**sizes, "text_cfg": TEXT})
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": {}}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              tmp_path / "open_clip_model.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="expected the tokenizer of local-dir:"):
        OpenClipPair.load(f"local-dir:{tmp_path}")
