"""Shared blocks against torch's own layers, and what their options promise."""

import pytest
import torch
from torch import nn

from zoo.layers.attention import SpatialAttention
from zoo.layers.maskgit import MaskGITBlock, MaskGITDecoder, MaskGITEncoder
from zoo.layers.resnet import ResBlock
from zoo.layers.transformer import SelfAttention
from zoo.layers.unet import UNet
from zoo.layers.vqgan import Decoder, Encoder, levels


def test_self_attention_equals_torch() -> None:
    ours, theirs = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 7, 12)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


def test_fused_attention_is_the_same_function() -> None:
    plain, fused = SpatialAttention(8, 2), SpatialAttention(8, 2, fused=True)
    state = plain.state_dict()
    for kind in ("weight", "bias"):
        state[f"qkv.{kind}"] = torch.cat([state.pop(f"{name}.{kind}") for name in "qkv"])
    fused.load_state_dict(state)
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(fused(x), plain(x))


def test_levels_resample_all_but_the_last() -> None:
    made = levels((8, 16, 16), 2, (False, True, False))
    assert [level.resample for level in made] == [True, True, False]
    assert [level.attention for level in made] == [False, True, False]
    with pytest.raises(ValueError, match="shorter"):
        levels((8, 16), 2, (False,))


def test_the_middle_may_do_without_attention() -> None:
    sizes = levels((4, 8), 1, (False, False))
    for side in (Encoder(3, 4, sizes, 6, 2, middle_attention=False), Decoder(6, sizes, 3, 2, middle_attention=False)):
        assert not any(isinstance(module, SpatialAttention) for module in side.modules())
        assert list(dict(side.mid.named_children())) == ["0", "1", "2"]  # the blocks keep their names


def test_a_maskgit_block_that_widens_has_no_skip() -> None:
    block = MaskGITBlock(4, 8, groups=2)
    nn.init.zeros_(block.conv2.weight)
    assert not block(torch.randn(1, 4, 5, 5)).any()
    block = MaskGITBlock(4, 4, groups=2)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("strided", [False, True])
def test_maskgit_halves_and_doubles_by_level(strided: bool) -> None:
    encoder = MaskGITEncoder(4, (4, 8, 8), 1, 5, groups=2, strided_convolution=strided)
    decoder = MaskGITDecoder(5, (8, 8, 4), 1, groups=2)
    latent = encoder(torch.randn(1, 3, 16, 24))
    assert latent.shape == (1, 5, 4, 6)
    assert decoder(latent).shape == (1, 3, 16, 24)


def test_a_residual_block_without_biases_has_none() -> None:
    names = {name for name, _ in ResBlock(4, 8, 2, bias=False).named_parameters()}
    assert "shortcut.weight" in names
    assert not {"conv1.bias", "conv2.bias", "shortcut.bias"} & names


def test_the_unet_is_told_the_time() -> None:
    unet = UNet(3, 2, 4, (1, 2), blocks=1, attention=(2,), groups=2)
    x = torch.randn(2, 3, 8, 4)
    early, late = (unet(x, torch.full((2,), time)) for time in (1, 900))
    assert early.shape == (2, 2, 8, 4)
    assert not torch.allclose(early, late)
    mixed = unet(x, torch.tensor([1, 900]))
    torch.testing.assert_close(mixed, torch.stack([early[0], late[1]]))
