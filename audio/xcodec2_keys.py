"""The names of X-codec2's weights in its published files, and in those of transformers' Xcodec2Model."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from audio.bigcodec import alias_free_keys
from zoo.checkpoint import KeyMap


def with_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last layers of the acoustic encoder, which are named apart, numbered on after the others."""
    numbers = [int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")]
    after = max(numbers, default=-1) + 1
    last = re.compile(r"^encoder\.last\.(\d+)")
    return {
        last.sub(lambda found: f"encoder.layers.{after + int(found[1])}", key): value for key, value in state.items()
    }


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The acoustic encoder's layers numbered as one sequence, and queries, keys and values in one map."""
    unit = re.compile(r"^encoder\.stages\.(\d+)\.unit(\d+)\.")
    after = re.compile(r"^encoder\.stages\.(\d+)\.after\.(\d+)\.")
    units = max((int(found[2]) for key in state if (found := unit.match(key))), default=0)

    def own(key: str) -> str:
        key = unit.sub(lambda found: f"encoder.layers.{int(found[1]) + 1}.{int(found[2]) - 1}.block.", key)
        return after.sub(lambda found: f"encoder.layers.{int(found[1]) + 1}.{units + int(found[2])}.", key)

    result = with_last({own(key): value for key, value in state.items()})
    for key in [key for key in result if key.endswith(".attention.q.weight")]:
        parts = [result.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        result[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return result


def _semantic_keys(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.initial_conv.weight": f"{own}.conv_in.weight",
        f"{published}.residual_blocks.1.*": f"{own}.conv1.*",
        f"{published}.residual_blocks.3.*": f"{own}.conv2.*",
        f"{published}.final_conv.weight": f"{own}.conv_out.weight",
    }


KEY_MAP_HEAD = KeyMap(  # of the training's semantic head
    {**_semantic_keys("SemanticDecoder_module", "network"), "fc_post_s.*": "from_codes.*"}
)

KEY_MAP = KeyMap(
    {
        **alias_free_keys("CodecEnc.conv_blocks", "encoder.layers"),
        **alias_free_keys("CodecEnc.conv_final_block", "encoder.last"),
        **_semantic_keys("SemanticEncoder_module", "semantic_encoder"),
        "fc_prior.*": "to_latent.*",
        "generator.quantizer.project_in.*": "quantizer.project_in.*",
        "generator.quantizer.project_out.*": "quantizer.project_out.*",
        "fc_post_a.*": "decoder.from_codes.*",
        "generator.backbone.embed.*": "decoder.embed.*",
        "generator.backbone.prior_net.*": "decoder.before.*",
        "generator.backbone.transformers.{}.att_norm.weight": "decoder.blocks.{}.norm1.weight",
        "generator.backbone.transformers.{}.att.c_attn.weight": "decoder.blocks.{}.attention.qkv.weight",
        "generator.backbone.transformers.{}.att.c_proj.weight": "decoder.blocks.{}.attention.proj.weight",
        "generator.backbone.transformers.{}.ffn_norm.weight": "decoder.blocks.{}.norm2.weight",
        "generator.backbone.transformers.{}.mlp.*": "decoder.blocks.{}.mlp.*",
        "generator.backbone.post_net.*": "decoder.after.*",
        "generator.backbone.final_layer_norm.*": "decoder.norm_out.*",
        "generator.head.out.*": "decoder.head.out.*",
        "generator.head.istft.window": None,  # Hann's
        "fc_post_s.*": None,  # the training's semantic head
        "SemanticDecoder_module.*": None,
        "discriminator.*": None,
        "spec_discriminator.*": None,
        "semantic_model.*": None,  # as it was published
    },
    weight_norm=True,
    finish=with_last,
)


_BLOCK = "acoustic_decoder.layers.{}"

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        "acoustic_encoder.conv1.*": "encoder.layers.0.*",
        "acoustic_encoder.block.{}.res_unit{}.snake1.act.*": "encoder.stages.{}.unit{}.0.*",
        "acoustic_encoder.block.{}.res_unit{}.conv1.*": "encoder.stages.{}.unit{}.1.*",
        "acoustic_encoder.block.{}.res_unit{}.snake2.act.*": "encoder.stages.{}.unit{}.2.*",
        "acoustic_encoder.block.{}.res_unit{}.conv2.*": "encoder.stages.{}.unit{}.3.*",
        "acoustic_encoder.block.{}.snake1.act.*": "encoder.stages.{}.after.0.*",
        "acoustic_encoder.block.{}.conv1.*": "encoder.stages.{}.after.1.*",
        "acoustic_encoder.snake1.act.*": "encoder.last.0.*",
        "acoustic_encoder.conv2.*": "encoder.last.1.*",
        "semantic_adapter.conv1.weight": "semantic_encoder.conv_in.weight",
        "semantic_adapter.conv2.*": "semantic_encoder.conv1.*",
        "semantic_adapter.conv3.*": "semantic_encoder.conv2.*",
        "semantic_adapter.conv4.weight": "semantic_encoder.conv_out.weight",
        "semantic_encoder.*": None,  # w2v-BERT 2.0, as it was published
        "fc_encoder.*": "to_latent.*",
        "quantizer.project_in.*": "quantizer.project_in.*",
        "quantizer.project_out.*": "quantizer.project_out.*",
        "acoustic_decoder.fc.*": "decoder.from_codes.*",
        "acoustic_decoder.embed.*": "decoder.embed.*",
        "acoustic_decoder.prior_net.*": "decoder.before.*",
        f"{_BLOCK}.input_layernorm.weight": "decoder.blocks.{}.norm1.weight",
        f"{_BLOCK}.self_attn.q_proj.weight": "decoder.blocks.{}.attention.q.weight",
        f"{_BLOCK}.self_attn.k_proj.weight": "decoder.blocks.{}.attention.k.weight",
        f"{_BLOCK}.self_attn.v_proj.weight": "decoder.blocks.{}.attention.v.weight",
        f"{_BLOCK}.self_attn.o_proj.weight": "decoder.blocks.{}.attention.proj.weight",
        f"{_BLOCK}.post_attention_layernorm.weight": "decoder.blocks.{}.norm2.weight",
        f"{_BLOCK}.mlp.*": "decoder.blocks.{}.mlp.*",
        "acoustic_decoder.post_net.*": "decoder.after.*",
        "acoustic_decoder.norm.*": "decoder.norm_out.*",
        "acoustic_decoder.head.linear.*": "decoder.head.out.*",
    },
    finish=from_transformers,
)
