"""paella_vq against diffusers' class over sizes, both ways of its training; and what is refused."""

from typing import Any

import pytest
import torch
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

from tokenizers_visual import paella_vq
from zoo.checkpoint import load_into


@pytest.mark.parametrize(
    "sizes",
    [
        {"levels": 1, "bottleneck_blocks": 1, "embed_dim": 8},
        {"levels": 3, "bottleneck_blocks": 2, "embed_dim": 16, "latent_channels": 5},
        {"levels": 2, "bottleneck_blocks": 0, "embed_dim": 8, "up_down_scale_factor": 4, "in_channels": 1},
    ],
)
@torch.no_grad()
def test_any_size_equals_diffusers_class(sizes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kwargs = {"num_vq_embeddings": 20, "out_channels": sizes.get("in_channels", 3), **sizes}
    theirs = PaellaVQModel(**kwargs).eval()
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = paella_vq.PaellaVQ(paella_vq.config_from_original({"original": {"kwargs": kwargs}})).eval()
    load_into(ours, paella_vq.KEY_MAP(theirs.state_dict()))
    ours, theirs = ours.double(), theirs.double()
    x = torch.rand(2, ours.spec.channels, 2 * ours.spec.multiple, 3 * ours.spec.multiple).double()
    latent, tokens = theirs.encode(x).latents, ours.encode(x)
    codes, _, (_, _, indices) = theirs.vquantizer(latent)
    assert torch.equal(tokens.indices.flatten(), indices)
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(codes).sample, rtol=0, atol=1e-6)


def test_it_starts_as_patches_and_convolutions_that_the_blocks_leave_alone() -> None:
    block = paella_vq.MixingBlock(6)
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(block(x), x)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 4"):
        paella_vq.PaellaVQConfig(levels=3, channels=6)
    with pytest.raises(ValueError, match="levels >= 1"):
        paella_vq.PaellaVQConfig(levels=0)
    with pytest.raises(ValueError, match="as many channels out as in"):
        paella_vq.config_from_original({"original": {"kwargs": {"in_channels": 3, "out_channels": 1}}})
