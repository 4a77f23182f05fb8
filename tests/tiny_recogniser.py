"""A face recogniser with random weights, in the layout of `model_ir_se50.pth`."""

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.losses.identity import FaceRecogniser

PUBLISHED = (  # own name -> that of the file
    ("stem.", "input_layer."), ("units.", "body."), (".shortcut.", ".shortcut_layer."), (".residual.", ".res_layer."),
    ("head.3.", "output_layer.4."), ("head.2.", "output_layer.3."), ("head.0.", "output_layer.0."),
)  # fmt: skip


def tiny_recogniser() -> FaceRecogniser:
    """The same each time, with norms that have seen something."""
    torch.manual_seed(0)
    network = FaceRecogniser(widths=(4, 8, 12, 16), units=(1, 2, 1, 1), squeeze=2, dim=6)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return network.eval()


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of the file."""
    renamed = {}
    for name, value in state.items():
        for own, published in PUBLISHED:
            name = name.replace(own, published, 1) if name.startswith(own) or own[0] == "." else name
        renamed[name] = value
    return renamed


def save_tiny_recogniser(path: Path) -> Path:
    """Write one as a pickle of tensors, as the published file is."""
    torch.save(published_names(tiny_recogniser().state_dict()), path)
    return path
