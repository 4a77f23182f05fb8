"""The names of GaussianToken's weights in its published files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenizers_visual import open_magvit2
from zoo.checkpoint import KeyMap

_MEAN_WIDTH = (0.1 + 4.0) / 2  # where the running mean of widths begins, which the files do not hold


def _deformable(published: str, own: str) -> dict[str, str | None]:
    return {
        f"{published}.sampling_offsets.*": f"{own}.offsets.*",
        f"{published}.fixed_offsets": f"{own}.constant_offset",
        f"{published}.attention_weights.*": f"{own}.weights.*",
        f"{published}.value_proj.*": f"{own}.value.*",
        f"{published}.output_proj.*": f"{own}.project.*",
    }


def _stage(number: int) -> dict[str, str | None]:
    """A stage is three operations of the published list."""
    attention, merge, refine = (f"gs_embed.layers.{3 * number + i}" for i in range(3))
    own = f"stages.{number}"
    return {
        f"{attention}.layers.{{}}.self_attn.*": f"{own}.layers.{{}}.self_attention.*",
        **_deformable(f"{attention}.layers.{{}}.cross_attn", f"{own}.layers.{{}}.attention"),
        f"{attention}.layers.{{}}.mlp.*": f"{own}.layers.{{}}.feed_forward.*",
        f"{attention}.layers.{{}}.norm{{}}.*": f"{own}.layers.{{}}.norm{{}}.*",
        f"{merge}.pre_norm_layer.*": f"{own}.merge.norm.*",
        f"{merge}.layers.0.0.*": f"{own}.merge.hidden.*",
        f"{merge}.layers.1.*": f"{own}.merge.output.*",
        f"{merge}.identity_fc.*": f"{own}.merge.beside.*",
        f"{refine}.layers.*": f"{own}.refine.*",
        f"{refine}.to_features.*": None,  # the last stage's are used
        f"{refine}.range_scheduler.current_range_max": None,
    }


def _patterns(stages: int) -> dict[str, str | None]:
    last = f"gs_embed.layers.{3 * stages - 1}"
    return {
        **{f"img_{name}": own for name, own in open_magvit2.KEY_MAP.patterns.items() if name != "loss.*"},
        "gs_embed.fm_lifter.input_proj.*": "lift.*",
        "gs_embed.gaussian_lifter.anchor": "anchors",
        "gs_embed.gaussian_lifter.instance_feature": "states",
        "gs_embed.anchor_encoder.xy_fc.*": "anchor_encoder.place.*",
        "gs_embed.anchor_encoder.rot_fc.*": "anchor_encoder.angle.*",
        "gs_embed.anchor_encoder.scale_fc.*": "anchor_encoder.widths.*",
        "gs_embed.anchor_encoder.feature_fc.*": "anchor_encoder.state.*",
        "gs_embed.anchor_encoder.output_fc.*": "anchor_encoder.output.*",
        **_deformable("gs_embed.attn_encoder.layers.{}.self_attn", "map_layers.{}.attention"),
        "gs_embed.attn_encoder.layers.{}.mlp.*": "map_layers.{}.feed_forward.*",
        "gs_embed.attn_encoder.layers.{}.norm{}.*": "map_layers.{}.norm{}.*",
        **{name: own for number in range(stages) for name, own in _stage(number).items()},
        f"{last}.to_features.*": "to_features.*",
        f"{last}.range_scheduler.current_range_max": "scales.largest",
        "gs_embed.op_module_map.*": None,  # of which the stages were copied before training
        "quantize._codebook.embed": "quantizer.groups.0.codebook.weight",
        "quantize._codebook.embed_avg": "quantizer.groups.0.ema.total",
        "quantize._codebook.cluster_size": "quantizer.groups.0.ema.count",
        "quantize._codebook.initted": "quantizer.groups.0.codebook.started",
        "loss.*": None,  # discriminator and perceptual network of the original's training
    }


def _with_mean_width(state: dict[str, Tensor]) -> dict[str, Tensor]:
    largest = state.get("scales.largest")
    return state if largest is None else {**state, "scales.mean": torch.full_like(largest, _MEAN_WIDTH)}


def _key_map(stages: int) -> KeyMap:
    return KeyMap(
        _patterns(stages),
        ema="model_ema.",  # the averaged weights, with which the original evaluates, stand beside the raw ones
        transforms={"quantizer.groups.0.*": lambda x: x.squeeze(0)},
        finish=_with_mean_width,
    )


KEY_MAP = _key_map(3)


def key_map_from_original(meta: dict[str, Any]) -> KeyMap:
    """The names of a model of as many stages as the original's constructor arguments tell."""
    parts = meta["original"]["kwargs"].get("gs_embed_cfg")
    return _key_map(len(parts["operation_order"]) // 3) if parts else KEY_MAP
