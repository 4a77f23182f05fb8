"""movq: norms that the codes modulate; files with more than the network; what is refused."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tokenizers_visual import movq
from zoo.checkpoint import read
from zoo.layers.movq import SpatialNorm

PARITY = Path(__file__).parents[1] / "parity"


def test_scale_and_shift_are_those_of_the_nearest_code() -> None:
    torch.manual_seed(0)
    norm = SpatialNorm(8, 3, groups=2)
    x, codes = torch.randn(2, 8, 6, 4), torch.randn(2, 3, 3, 2)
    near = codes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.group_norm(x, 2, norm.norm_layer.weight, norm.norm_layer.bias, 1e-6) * norm.conv_y(near)
    torch.testing.assert_close(norm(x, codes), expected + norm.conv_b(near))


def test_the_decoder_sees_the_codes_beside_their_projection() -> None:
    torch.manual_seed(0)
    model = movq.MoVQ(
        movq.MoVQConfig(channels=8, channel_multipliers=(1, 1), blocks=1, norm_groups=2, decoder_norm_groups=2)
    )
    torch.nn.init.zeros_(model.from_codes.weight)
    one, other = (model.decode(model.tokens(torch.full((1, 2, 2), index), extent=(4, 4))) for index in (3, 4))
    assert not torch.allclose(one, other)


def test_averages_and_losses_of_a_file_are_left_out() -> None:
    weights = read(PARITY / "movq" / "weights.safetensors")
    further = {
        "ema_encoder.conv_inweight": torch.zeros(1),
        "ema_decoder.decay": torch.zeros(()),
        "ema_quantize.embeddingweight": torch.zeros(1),
        "ema_quant_conv.weight": torch.zeros(1),
        "ema_post_quant_conv.bias": torch.zeros(1),
        "loss.discriminator.main.0.weight": torch.zeros(1),
    }
    expected, found = movq.KEY_MAP(weights), movq.KEY_MAP(weights | further)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_attention_that_open_muse_does_not_apply_is_refused() -> None:
    meta = json.loads((PARITY / "movq__openmuse" / "meta.json").read_text())
    meta["original"]["kwargs"]["num_res_blocks"] = 1
    with pytest.raises(ValueError, match="more than one block a level"):
        movq.config_from_original(meta)
