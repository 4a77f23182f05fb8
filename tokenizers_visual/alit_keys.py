"""Names of weights that ALIT's and KARL's published files have in common."""

from __future__ import annotations


def blocks_map(published: str, own: str) -> dict[str, str]:
    """Names of a stack of pre-norm blocks in ALIT's and KARL's files."""
    return {
        f"{published}.{{}}.ln_1.*": f"{own}.{{}}.norm1.*",
        f"{published}.{{}}.attn.in_proj_weight": f"{own}.{{}}.attention.qkv.weight",
        f"{published}.{{}}.attn.in_proj_bias": f"{own}.{{}}.attention.qkv.bias",
        f"{published}.{{}}.attn.out_proj.*": f"{own}.{{}}.attention.proj.*",
        f"{published}.{{}}.ln_2.*": f"{own}.{{}}.norm2.*",
        f"{published}.{{}}.mlp.c_fc.*": f"{own}.{{}}.mlp.fc1.*",
        f"{published}.{{}}.mlp.c_proj.*": f"{own}.{{}}.mlp.fc2.*",
    }


def _base_side(kind: str, side: str) -> dict[str, str]:
    key, own, attends = f"base_tokenizer.{kind}.{side}", f"base.{side}", kind == "vae"
    levels, level = ("down.{i}", "levels.{i}") if side == "encoder" else ("up.{i}", "levels.{-i}")  # finest first
    attention = {
        f"{key}.{levels}.attn.{{j}}.*": f"{own}.{level}.attentions.{{j}}.*",
        f"{key}.{levels}.downsample.*": f"{own}.{level}.resample.*",
        f"{key}.mid.attn_1.*": f"{own}.mid.1.*",
    }
    return {
        f"{key}.conv_in.*": f"{own}.conv_in.*",
        f"{key}.{levels}.block.{{j}}.nin_shortcut.*": f"{own}.{level}.blocks.{{j}}.shortcut.*",
        f"{key}.{levels}.block.{{j}}.*": f"{own}.{level}.blocks.{{j}}.*",
        f"{key}.{levels}.upsample.*": f"{own}.{level}.resample.*",
        f"{key}.mid.block_1.*": f"{own}.mid.0.*",
        f"{key}.mid.block_2.*": f"{own}.mid.{1 + attends}.*",
        f"{key}.norm_out.*": f"{own}.norm_out.*",
        f"{key}.conv_out.*": f"{own}.conv_out.*",
        **(attention if attends else {}),
    }


BASE_KEYS = {
    **_base_side("vqgan", "encoder"),
    "base_tokenizer.vqgan.quantize.embedding.weight": "base.codebook.weight",
    **_base_side("vqgan", "decoder"),
    **_base_side("vae", "encoder"),
    "base_tokenizer.vae.quant_conv.*": "base.to_posterior.*",
    "base_tokenizer.vae.post_quant_conv.*": "base.from_latent.*",
    **_base_side("vae", "decoder"),
}
