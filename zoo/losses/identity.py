"""Loss of identity: whether a face recogniser takes two pictures for the same person.

The recogniser is ArcFace's IR-SE (arXiv 1801.07698), in the layout of the file `model_ir_se50.pth` that StyleGAN's
encoders and PreciseControl (arXiv 2408.05083) use. No package carries it: the file is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import checkpoint, hub
from zoo.losses.frozen import Frozen
from zoo.ops.precision import full_precision

ALIGNED, FACE, CROP = 256, 112, (slice(35, 223), slice(32, 220))  # pixels; of FFHQ's alignment: rows, columns


class FaceRecogniser(nn.Module):
    """Faces (B, 3, 112, 112) in [-1, 1] -> what tells persons apart, (B, E) of length 1.

    Args:
        widths: channels of the stages, each of which halves the picture.
        units: of each stage; 3, 4, 14 and 3 in IR-SE50.
        squeeze: how much narrower the gates of channels are inside.
        dim: E.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),
        units: Sequence[int] = (3, 4, 14, 3),
        squeeze: int = 16,
        dim: int = 512,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        entered = [widths[0], *widths[:-1]]
        self.units = nn.Sequential(
            *(
                _Unit(before if i == 0 else width, width, 2 if i == 0 else 1, squeeze)
                for before, width, count in zip(entered, widths, units, strict=True)
                for i in range(count)
            )
        )
        side = FACE >> len(widths)
        self.head = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.Flatten(), nn.Linear(widths[-1] * side**2, dim), nn.BatchNorm1d(dim)
        )

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.head(self.units(self.stem(faces))), dim=-1)


class _Unit(nn.Module):
    """Two convolutions whose channels are gated by their means, added to the input; strides are the second's."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, squeeze: int) -> None:
        from timm.layers import SqueezeExcite

        super().__init__()
        self.shortcut: nn.Module = nn.MaxPool2d(1, stride)
        if in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))
        self.residual = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            SqueezeExcite(out_channels, rd_channels=out_channels // squeeze, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class IdentityDistance(nn.Module):
    """1 - the cosine of what a frozen recogniser sees in two pictures of faces, aligned as FFHQ's.

    Pictures of another size are averaged to 256 x 256; the face is cut out and averaged to 112 x 112.

    Args:
        recogniser: (B, 3, 112, 112) in [-1, 1] -> (B, E). It is no part of what is trained or saved.
    """

    def __init__(self, recogniser: nn.Module) -> None:
        super().__init__()
        self.recogniser = Frozen(recogniser)

    def features(self, images: Tensor) -> Tensor:
        """What the recogniser sees in images (B, 3, H, W) in [-1, 1]: (B, E) of length 1, float32.

        Raises:
            ValueError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
        with full_precision(images):
            whole = F.adaptive_avg_pool2d(images.float(), ALIGNED)
            faces = F.adaptive_avg_pool2d(whole[:, :, CROP[0], CROP[1]], FACE)
            return F.normalize(self.recogniser(faces), dim=-1)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Distances (B,) in 0..2, float32; gradients reach the images (B, 3, H, W), not the targets of as many items.

        Raises:
            ValueError: another shape, or another number of targets.
        """
        if len(images) != len(targets):
            raise ValueError(f"expected as many targets as images, got {len(targets)} for {len(images)}")
        with torch.no_grad():
            wanted = self.features(targets)
        return 1 - (self.features(images) * wanted).sum(-1)


def face_recogniser(file: str | Path) -> FaceRecogniser:
    """The recogniser of a file, whose sizes the file tells: IR-SE50, or one of other depth and width.

    Raises:
        zoo.hub.HubError: no such file.
        zoo.CheckpointError: a file of another network.
    """
    state = KEY_MAP(checkpoint.read(hub.resolve(hub.WeightSource(path=str(file)), name="face recogniser")))
    try:
        recogniser = FaceRecogniser(**_sizes(state))
    except KeyError as error:
        raise checkpoint.CheckpointError(f"{file}: expected an IR-SE recogniser, got none of its {error}") from error
    checkpoint.load_into(recogniser, state)
    return recogniser.eval()


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the recogniser with these weights. A stage starts where a unit's shortcut has weights."""
    depth = sum(name.endswith("residual.1.weight") for name in state)
    widths, units = [len(state["units.0.residual.1.weight"])], [1]
    for unit in range(1, depth):
        if f"units.{unit}.shortcut.0.weight" in state:
            widths.append(len(state[f"units.{unit}.residual.1.weight"]))
            units.append(0)
        units[-1] += 1
    squeezed = len(state["units.0.residual.5.fc1.weight"])
    return {"widths": widths, "units": units, "squeeze": widths[0] // squeezed, "dim": len(state["head.2.weight"])}


KEY_MAP = checkpoint.KeyMap(
    {
        "input_layer.*": "stem.*",
        "body.{}.shortcut_layer.*": "units.{}.shortcut.*",
        "body.{}.res_layer.*": "units.{}.residual.*",
        "output_layer.0.*": "head.0.*",
        "output_layer.3.*": "head.2.*",
        "output_layer.4.*": "head.3.*",
    }
)
