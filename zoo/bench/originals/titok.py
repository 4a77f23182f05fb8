"""Originals of TiTok and of what grew from it: One-D-Piece and TA-TiTok."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bench.originals.adapter import Adapter, Original, Setting
from zoo.registry import registry

_SIZES = {512: "small", 768: "base", 1024: "large"}  # the original's names of widths
_FASTER = {"cpu": 1.3, "cuda": 1.3}


def _images(*models: str) -> tuple[Setting, ...]:
    return tuple(Setting(model, batch=8, size=(256, 256)) for model in models)


def config(model: str) -> dict[str, Any]:
    """The config of the original's that our card's says in other words."""
    card = registry.card(model).config
    quantizer, two_stages = card["quantizer"], card["proxy"] is not None
    network = {
        "codebook_size": quantizer["codebook_size"], "token_size": quantizer["dim"],
        "use_l2_norm": quantizer["metric"] == "cosine", "commitment_cost": 0.25, "clustering_vq": False,
        "vit_enc_model_size": _SIZES[card["encoder"]["width"]], "vit_enc_patch_size": card["patch_size"],
        "vit_dec_model_size": _SIZES[card["decoder"]["width"]], "vit_dec_patch_size": card["patch_size"],
        "num_latent_tokens": card["num_tokens"], "finetune_decoder": two_stages, "is_legacy": two_stages,
        "strict_length_assertion": False,
    }  # fmt: skip
    return {"model": {"vq_model": network}, "dataset": {"preprocessing": {"crop_size": card["image_size"]}}}


def _original(module: Any, **others: Any) -> Original:
    nn.init.normal_(module.quantize.embedding.weight)  # which begins so near 0 that codes hardly differ
    return Original(
        module,
        lambda images: module.encode(images)[1]["min_encoding_indices"][:, 0],
        lambda indices, **conditions: module.decode_tokens(indices[:, None], *conditions.values()),
        **others,
    )


def _titok(model: str) -> Original:
    return _original(importlib.import_module("modeling.titok").TiTok(config(model)).eval())


def _one_d_piece(model: str) -> Original:
    return _original(importlib.import_module("modeling.one_d_piece").OneDPiece(config(model)).eval())


def _tatitok(model: str) -> Original:
    module = importlib.import_module("modeling.tatitok").TATiTok(config(model)).eval()
    projection = module.decoder.text_guidance_proj
    features = (module.decoder.text_context_length, projection.in_features)

    def conditions(indices: Tensor) -> dict[str, Tensor]:
        text = torch.randn(len(indices), *features, generator=torch.Generator().manual_seed(3))
        return {"text": text.to(indices.device)}

    return _original(module, conditions=conditions)


ADAPTERS: dict[str, Adapter] = {
    "titok": Adapter(
        "bytedance/1d-tokenizer", "modeling.titok",
        _images("titok_s128.imagenet", "titok_b64.imagenet", "titok_l32.imagenet", "titok_bl64_vq8k.imagenet"),
        _titok, _FASTER,
    ),
    "one_d_piece": Adapter(
        "turingmotors/One-D-Piece", "modeling.one_d_piece",
        _images("one_d_piece_s256.imagenet", "one_d_piece_b256.imagenet", "one_d_piece_l256.imagenet"),
        _one_d_piece, _FASTER,
    ),
    "tatitok": Adapter(
        "bytedance/1d-tokenizer", "modeling.tatitok",
        _images("tatitok_bl32_vq.datacomp", "tatitok_bl64_vq.datacomp", "tatitok_bl128_vq.datacomp"),
        _tatitok, _FASTER,
    ),
}  # fmt: skip
