"""The names in SEED's published files: those of SEED-2, and those of the first SEED tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.checkpoint import KeyMap


def _block(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.{{}}.attn.*": f"{own}.{{}}.attention.*",
        f"{published}.{{}}.norm1.*": f"{own}.{{}}.norm1.*",
        f"{published}.{{}}.norm2.*": f"{own}.{{}}.norm2.*",
        f"{published}.{{}}.mlp.*": f"{own}.{{}}.mlp.*",
    }


def _with_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision transformer's biases of queries, keys (zero, and not stored) and values as one."""
    for key in [key for key in state if key.endswith(".q_bias")]:
        place, query = key.removesuffix("q_bias"), state.pop(key)
        state[f"{place}qkv.bias"] = torch.cat([query, torch.zeros_like(query), state.pop(f"{place}v_bias")])
    return state


def _qformer(published: str, own: str) -> dict[str, str | None]:
    layer, ours = f"{published}.bert.encoder.layer.{{}}", f"{own}.layers.{{}}"
    return {
        f"{published}.bert.embeddings.LayerNorm.*": f"{own}.norm_in.*",
        f"{published}.bert.embeddings.*": None,  # of text, as are the next three
        f"{layer}.intermediate.*": None,
        f"{layer}.output.*": None,
        f"{published}.cls.*": None,
        **{
            f"{layer}.{theirs}.self.{part}.*": f"{ours}.{theirs.replace('crossa', 'cross_a')}.{part}.*"
            for theirs in ("attention", "crossattention")
            for part in ("query", "key", "value")
        },
        f"{layer}.attention.output.dense.*": f"{ours}.attention.proj.*",
        f"{layer}.attention.output.LayerNorm.*": f"{ours}.norm1.*",
        f"{layer}.crossattention.output.dense.*": f"{ours}.cross_attention.proj.*",
        f"{layer}.crossattention.output.LayerNorm.*": f"{ours}.norm2.*",
        f"{layer}.intermediate_query.dense.*": f"{ours}.mlp.fc1.*",
        f"{layer}.output_query.dense.*": f"{ours}.mlp.fc2.*",
        f"{layer}.output_query.LayerNorm.*": f"{ours}.norm3.*",
    }


_SHARED = {
    "visual_encoder.patch_embed.proj.*": "vision.patches.*",
    "visual_encoder.cls_token": "vision.class_token",
    "visual_encoder.pos_embed": "vision.positions",
    **_block("visual_encoder.blocks", "vision.blocks"),
    "ln_vision.*": "norm_vision.*",
    "query_tokens": "queries.tokens",
    **_qformer("Qformer", "queries"),
    "encode_task_layer.*": "to_latent.*",
    "quantize.embedding.weight": "quantizer.codebook.weight",
    "decode_task_layer.*": "from_codes.*",
    **dict.fromkeys(("pos_embed", "blocks.*"), None),  # of a loss of the original's training
}

KEY_MAP = KeyMap(
    {
        **_SHARED,
        "pos_embed_image": "code_positions",
        **_block("blocks_image", "blocks"),
        "image_down.*": "reduce.*",
        "distill_image_proj.*": "to_embedding.*",
    },
    finish=_with_biases,
)

KEY_MAP_OF_PROMPTS = KeyMap(
    {
        **_SHARED,
        "pos_embed_text": "code_positions",
        **_block("blocks_text", "blocks"),
        "reverse_tokens": "prompt.tokens",
        **_qformer("Reverse_Qformer", "prompt"),
        "distill_text_proj.*": "to_embedding.*",
        **dict.fromkeys(("vision_proj.*", "text_proj.*", "itm_head.*", "temp"), None),  # of its first stage's training
    },
    finish=_with_biases,
)


def of_prompts(meta: dict[str, Any]) -> bool:
    """Whether a fixture or a published listing is of the first SEED tokenizer."""
    return meta["original"].get("class") == "SEEDVisualTokenizer"


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture's weights."""
    return KEY_MAP_OF_PROMPTS if of_prompts(meta) else KEY_MAP
