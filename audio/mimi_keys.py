"""The names of Mimi's weights in its published files, and in those of transformers' MimiModel."""

from __future__ import annotations

import torch
from torch import Tensor

from audio.speechtokenizer import seanet_keys
from zoo.checkpoint import KeyMap

LEAST_USAGE = 1e-5  # that a code's sum of latents is divided by


def with_codes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the codebooks: the published files hold the running sums of the latents of each code, and its usage."""
    result = dict(state)
    for key in [key for key in state if key.endswith(".ema.total")]:
        usage = state[key.replace(".total", ".count")].clamp_min(LEAST_USAGE)
        result[key.replace(".ema.total", ".codebook.weight")] = state[key] / usage[:, None]
    return result


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`with_codes`, and queries, keys and values, which lie apart, in one map."""
    result = with_codes(state)
    for key in [key for key in state if key.endswith(".attention.q.weight")]:
        parts = [result.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        result[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    return result


def _transformer_keys(side: str) -> dict[str, str | None]:
    published, own = f"{side}_transformer.transformer.layers.{{}}", f"{side}_transformer.layers.{{}}"
    names = {
        "self_attn.in_proj_weight": "attention.qkv.weight",
        "self_attn.in_proj.weight": "attention.qkv.weight",
        "self_attn.in_projs.0.weight": "attention.qkv.weight",
        "self_attn.out_proj.weight": "attention.proj.weight",
        "self_attn.out_projs.0.weight": "attention.proj.weight",
        "norm1.*": "norm1.*",
        "norm2.*": "norm2.*",
        "linear1.weight": "mlp.fc1.weight",
        "linear2.weight": "mlp.fc2.weight",
        "layer_scale_1.scale": "scale1.scale",
        "layer_scale_2.scale": "scale2.scale",
    }
    return {f"{published}.{name}": f"{own}.{to}" for name, to in names.items()}


def _quantizer_keys(published: str, part: int) -> dict[str, str | None]:
    own = f"quantizer.parts.{part}"
    names = {
        "_initialized": "codebook.started",
        "inited": "codebook.started",
        "cluster_usage": "ema.count",
        "cluster_size": "ema.count",
        "embedding_sum": "ema.total",
        "embed_sum": "ema.total",
        "embed_avg": "ema.total",
    }
    levels = {
        f"{published}.vq.layers.{{}}._codebook.{name}": f"{own}.inner.levels.{{}}.{to}" for name, to in names.items()
    }
    return {
        f"{published}.input_proj.weight": f"{own}.project_in.weight",
        f"{published}.output_proj.weight": f"{own}.project_out.weight",
        **levels,
    }


_TRANSFORMS = {
    "*.project_*.weight": lambda weight: weight.squeeze(-1),  # a 1x1 convolution
    "*.started": lambda started: started.bool().squeeze(),
}

KEY_MAP = KeyMap(
    {
        **seanet_keys("encoder.model", "encoder.layers"),
        **seanet_keys("decoder.model", "decoder.layers"),
        **_transformer_keys("encoder"),
        **_transformer_keys("decoder"),
        **_quantizer_keys("quantizer.rvq_first", 0),
        **_quantizer_keys("quantizer.rvq_rest", 1),
        "downsample.conv.conv.conv.weight": "downsample.weight",
        "upsample.convtr.convtr.convtr.weight": "upsample.weight",
    },
    transforms=_TRANSFORMS,
    finish=with_codes,
)


def _transformers_layers(side: str, network: str, transformer: str) -> dict[str, str | None]:
    published, own = f"{transformer}.layers.{{}}", f"{side}_transformer.layers.{{}}"
    names = {
        "self_attn.q_proj.weight": "attention.q.weight",
        "self_attn.k_proj.weight": "attention.k.weight",
        "self_attn.v_proj.weight": "attention.v.weight",
        "self_attn.o_proj.weight": "attention.proj.weight",
        "input_layernorm.*": "norm1.*",
        "post_attention_layernorm.*": "norm2.*",
        "mlp.fc1.weight": "mlp.fc1.weight",
        "mlp.fc2.weight": "mlp.fc2.weight",
        "self_attn_layer_scale.scale": "scale1.scale",
        "mlp_layer_scale.scale": "scale2.scale",
    }
    return {
        **{f"{published}.{name}": f"{own}.{to}" for name, to in names.items()},
        f"{network}.layers.{{}}.conv.*": f"{side}.layers.{{}}.*",
        f"{network}.layers.{{}}.block.{{}}.conv.*": f"{side}.layers.{{}}.block.{{}}.*",
        f"{network}.layers.{{}}.shortcut.conv.*": f"{side}.layers.{{}}.shortcut.*",
    }


def _transformers_quantizer(name: str, part: int) -> dict[str, str | None]:
    published, own = f"quantizer.{name}_residual_vector_quantizer", f"quantizer.parts.{part}"
    return {
        f"{published}.input_proj.weight": f"{own}.project_in.weight",
        f"{published}.output_proj.weight": f"{own}.project_out.weight",
        f"{published}.layers.{{}}.codebook.initialized": f"{own}.inner.levels.{{}}.codebook.started",
        f"{published}.layers.{{}}.codebook.cluster_usage": f"{own}.inner.levels.{{}}.ema.count",
        f"{published}.layers.{{}}.codebook.embed_sum": f"{own}.inner.levels.{{}}.ema.total",
    }


KEY_MAP_TRANSFORMERS = KeyMap(
    {
        **_transformers_layers("encoder", "encoder", "encoder_transformer"),
        **_transformers_layers("decoder", "decoder", "decoder_transformer"),
        **_transformers_quantizer("semantic", 0),
        **_transformers_quantizer("acoustic", 1),
        "downsample.conv.weight": "downsample.weight",
        "upsample.conv.weight": "upsample.weight",
        # as newer releases name the modules in memory
        **_transformers_layers("encoder", "encoder.encoder_seanet", "encoder.encoder_transformer"),
        **_transformers_layers("decoder", "decoder.decoder_seanet", "decoder.decoder_transformer"),
        "encoder.downsample.conv.weight": "downsample.weight",
        "decoder.upsample.conv.weight": "upsample.weight",
    },
    transforms=_TRANSFORMS,
    finish=from_transformers,
)
