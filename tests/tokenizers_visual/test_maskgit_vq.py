"""maskgit_vq against diffusers' VQModel, any sizes, attention in the middle included; and MaskGIT's own files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from flax_file import flax_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_published import PARITY

import zoo
from tokenizers_visual import maskgit_vq
from zoo.checkpoint import load_into
from zoo.config import ConfigError


def pair(attention: bool, widths: list[int], blocks: int, seed: int) -> tuple[VQModel, maskgit_vq.MaskGITVQ]:
    torch.manual_seed(seed)
    kwargs = {
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": blocks,
        "latent_channels": 6,
        "num_vq_embeddings": 20,
        "vq_embed_dim": 5,
        "norm_num_groups": 2,
        "mid_block_add_attention": attention,
        "lookup_from_codebook": True,
    }
    theirs = VQModel(**kwargs).eval()
    torch.nn.init.normal_(theirs.quantize.embedding.weight)
    ours = maskgit_vq.MaskGITVQ(
        maskgit_vq.config_from_original({"original": {"class": "diffusers VQModel", "kwargs": kwargs}})
    )
    load_into(ours, maskgit_vq.KEY_MAP_DIFFUSERS(theirs.state_dict()))
    return theirs, ours.eval()


@settings(max_examples=6)
@given(
    attention=st.booleans(),
    widths=st.lists(st.sampled_from([4, 6, 8]), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    seed=st.integers(0, 9),
)
def test_equals_diffusers(attention: bool, widths: list[int], blocks: int, seed: int) -> None:
    theirs, ours = pair(attention, widths, blocks, seed)
    side = 4 * 2 ** (len(widths) - 1)
    images = torch.rand(2, 3, side, side + side // 4) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(images).latents
        _, _, (_, _, indices) = theirs.quantize(latents)
        expected = theirs.decode(latents).sample
    tokens = ours.encode(images)
    assert torch.equal(tokens.indices.flatten(), indices)
    torch.testing.assert_close(ours.decode(tokens), expected, rtol=1e-4, atol=1e-4)


def test_attention_of_levels_is_not_taken_for_something_else() -> None:
    kwargs = {
        "down_block_types": ["AttnDownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [8], "layers_per_block": 2, "latent_channels": 4, "num_vq_embeddings": 5,
        "norm_num_groups": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match="attention at the same levels"):
        maskgit_vq.config_from_original({"original": {"class": "VQModel", "kwargs": kwargs}})


def test_config_refuses_attention_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="no attention in the network maskgit"):
        maskgit_vq.MaskGITVQConfig(middle_attention=True)
    with pytest.raises(ConfigError, match="attention of 2 levels"):
        maskgit_vq.MaskGITVQConfig(network="vqgan", widths=(4, 4), attention=(True,))


@pytest.mark.parametrize("tag", ["maskgit_256", "maskgit_512"])
def test_the_originals_own_file_loads(tag: str, tmp_path: Path) -> None:
    shapes = json.loads((PARITY / "maskgit_vq" / "keys_maskgit_flax.json").read_text())
    tree: dict[str, Any] = {}
    values = {}
    for number, (key, shape) in enumerate(shapes.items()):
        *folders, leaf = key.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = values[key] = np.full(shape, number + 1, np.float32)
    path = tmp_path / f"tokenizer_imagenet{tag[-3:]}_checkpoint"
    path.write_bytes(flax_bytes(tree))
    model = zoo.create_model(f"maskgit_vq_f16.{tag}", checkpoint=path)
    own = model.state_dict()
    assert len(own) == len(values)
    for name, theirs in {
        "encoder.conv_in.weight": "params.encoder.Conv_0.kernel",
        "encoder.levels.4.blocks.1.conv2.weight": "params.encoder.ResBlock_9.Conv_1.kernel",
        "decoder.levels.0.blocks.0.norm1.bias": "params.decoder.ResBlock_2.GroupNorm_0.bias",
        "decoder.levels.3.resample.conv.weight": "params.decoder.Conv_4.kernel",
    }.items():
        assert own[name].unique().tolist() == [values[theirs].flat[0]], name


def test_another_tokenizer_of_maskgits_code_is_refused() -> None:
    meta = json.loads((PARITY / "maskgit_vq__flax" / "meta.json").read_text())
    meta["original"]["kwargs"]["quantizer"] = "gumbel"
    with pytest.raises(ConfigError, match=r"MaskGIT's tokenizer as published.*gumbel"):
        maskgit_vq.config_from_original(meta)
