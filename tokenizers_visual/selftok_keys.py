"""The names of Selftok's weights in its published files."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo.checkpoint import KeyMap

_ENCODER: dict[str, str | None] = {
    "x_embedder.proj.*": "encoder.patches.proj.*",
    "pos_embed": "encoder.patches.positions",
    "query_tokens": "encoder.queries",
    "blocks.{}.attn.qkv.*": "encoder.blocks.{}.qkv.*",
    "blocks.{}.attn.proj.*": "encoder.blocks.{}.proj.*",
    "blocks.{}.attn.to_query_kv.*": "encoder.blocks.{}.to_query_kv.*",
    "blocks.{}.attn.query_linear.*": "encoder.blocks.{}.query_qkv.*",
    "blocks.{}.attn.query_proj.*": "encoder.blocks.{}.query_proj.*",
    "blocks.{}.mlp.*": "encoder.blocks.{}.mlp.*",
    "blocks.{}.q_mlp.*": "encoder.blocks.{}.query_mlp.*",
    "blocks.{}.adaLN_modulation.*": "encoder.blocks.{}.modulation.*",
    "blocks.{}.t_embedder.mlp.*": "encoder.blocks.{}.place.*",
    "final_layer_norm3.*": "norm_codes.*",
    "final_layer_norm.*": None,  # never used
    "final_layer_norm2.*": None,
    "quantizer.project_in.*": "to_latent.*",
    "quantizer._codebook.embed": "quantizer.inner.codebook.weight",
    "quantizer._codebook.embed_avg": "quantizer.inner.ema.total",
    "quantizer._codebook.cluster_size": "quantizer.inner.ema.count",
    "quantizer._codebook.timestep_p_over_c": "quantizer.frequencies",
    "quantizer._codebook.tpc_initted": "quantizer.started",
    "quantizer._codebook.cluster_size_wo_react": None,  # counters
    "quantizer._codebook.initted": None,
    "quantizer.continuous": None,
    "quantizer.steps": None,
    "quantizer.count": None,
}

_STREAM = {"attn.qkv": "qkv", "attn.proj": "proj", "mlp": "mlp", "adaLN_modulation": "modulation"}
_SIDES = {"context_block": "context", "x_block": "image"}
_JOINT: dict[str, str | None] = {  # of both decoders
    "t_embedder.mlp.*": "decoder.time.*",
    "y_embedder.*": None,  # never used
    "context_embedder.*": "decoder.from_context.*",
    "context_pos_embed": "decoder.context_positions",
    "joint_blocks.{}.context_block.t_embedder.mlp.*": "decoder.blocks.{}.place.*",
    **{
        f"joint_blocks.{{}}.{published}.{theirs}.*": f"decoder.blocks.{{}}.{own}.{ours}.*"
        for published, own in _SIDES.items()
        for theirs, ours in _STREAM.items()
    },
    "final_layer.adaLN_modulation.*": "decoder.modulation_out.*",
    "final_layer.linear.*": "decoder.to_patches.*",
}
_FLOW: dict[str, str | None] = {
    "x_embedder.proj.*": "decoder.patches.proj.*",
    "pos_embed": "decoder.patches.positions",
    **_JOINT,
}
_RENDERER: dict[str, str | None] = {
    "mask_token": "decoder.patches.mask_token",
    "positional_embedding": "decoder.patches.positions",
    "pos_embed": None,  # zeros, never used
    **_JOINT,
}


def _without_unread(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what the last blocks hold and nothing reads: the encoder's image, the places of the decoder's context."""
    unread = {"encoder": ("qkv.", "proj.", "mlp."), "decoder": ("place.",)}
    for side, names in unread.items():
        blocks = [int(key.split(".")[2]) for key in state if key.startswith(f"{side}.blocks.")]
        starts = tuple(f"{side}.blocks.{max(blocks, default=0)}.{name}" for name in names)
        state = {key: value for key, value in state.items() if not key.startswith(starts)}
    return state


_FLAT = {f"quantizer.{name}": lambda table: table[0] for name in ("inner.*", "frequencies")}


def _key_map(decoder: dict[str, str | None]) -> KeyMap:
    patterns: dict[str, str | None] = {
        **{f"encoder.{published}": own for published, own in _ENCODER.items()},
        **{f"model.{published}": own for published, own in decoder.items()},
        "diffusion.*": None,  # the times that sampling visits
    }
    return KeyMap(patterns, transforms=_FLAT, finish=_without_unread)


KEY_MAP, KEY_MAP_RENDERER = _key_map(_FLOW), _key_map(_RENDERER)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The key map of a fixture: of a whole model with a renderer, or of one part, under names without its prefix."""
    of = meta["original"].get("class")
    if of == "ImageTokenizer":
        return KEY_MAP_RENDERER
    return KeyMap(_FLOW if of == "MMDiT" else _ENCODER, transforms=_FLAT, finish=_without_unread)
