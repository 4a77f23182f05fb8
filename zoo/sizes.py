"""What the shapes of a checkpoint's tensors tell of its network, for files whose config is not at hand.

A family that reads them offers `sizes_from_tensors(own, stated)`: the fields of its config that the tensors, under the
zoo's own names, tell. What no shape tells, as the groups of the norms, stays as stated. A few tensors are enough, since
all are compared with the model that these sizes make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.key_map import CheckpointError
from zoo.quantizers import GumbelConfig, QuantizerConfig, VectorConfig


def sizes_of(own: Mapping[str, Tensor], name: str, form: str) -> dict[str, int]:
    """The named sizes of a tensor.

    Args:
        form: of its shape, numbers and names, of which equal ones stand for equal sizes: "width width 3 3".

    Raises:
        CheckpointError: no such tensor, or one of another form.
    """
    shape, places = tuple(own[name].shape) if name in own else None, form.split()
    sizes: dict[str, int] = {}
    if (
        shape is None
        or len(shape) != len(places)
        or 0 in shape
        or any(
            size != (int(place) if place.isdigit() else sizes.setdefault(place, size))
            for place, size in zip(places, shape)
        )
    ):
        raise CheckpointError(f"expected {name} with the shape ({', '.join(places)}), got {shape or 'no such tensor'}")
    return sizes


def count_of(own: Mapping[str, Tensor], name: str, start: int = 0) -> int:
    """How many numbers from `start` on, without a gap, stand for `{}` in the name of a tensor."""
    end = start
    while name.replace("{}", str(end)) in own:
        end += 1
    return end - start


def quantizer_of(own: Mapping[str, Tensor], stated: QuantizerConfig) -> QuantizerConfig:
    """The stated quantizer with the sizes of the tensors' codebook, or one of the kind that they show; as stated where
    they hold no codebook.

    Raises:
        CheckpointError: a codebook that is no table of vectors.
    """
    if "quantizer.codebook.weight" not in own:
        return stated
    sizes = sizes_of(own, "quantizer.codebook.weight", "codebook_size dim")
    kind = GumbelConfig if "quantizer.logits.weight" in own else VectorConfig
    return stated.replace(**sizes) if isinstance(stated, kind) else kind(sizes["codebook_size"], sizes["dim"])


@dataclass(frozen=True)
class VQGANSizes:
    """Sizes of an encoder and decoder of `zoo.layers.vqgan`, `movq` or `maskgit`.

    Attributes:
        in_channels: of the images.
        channels: of the encoder's first convolution.
        widths: of the levels, finest first.
        blocks: a level, of the encoder.
        attention: whether a level of the decoder has it, finest first.
        latent_channels: that the encoder gives.
    """

    in_channels: int
    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    latent_channels: int

    @classmethod
    def of(cls, own: Mapping[str, Tensor], *groups: int) -> VQGANSizes:
        """Read off the tensors.

        Args:
            groups: of the norms, as stated.

        Raises:
            CheckpointError: tensors of another network, levels of unequally many blocks, or widths that the groups do
                not divide.
        """
        first = sizes_of(own, "encoder.conv_in.weight", "channels in_channels 3 3")
        last = sizes_of(own, "encoder.conv_out.weight", "latent_channels width height height")
        block = "encoder.levels.{}.blocks.0.conv2.weight"
        levels = range(count_of(own, block))
        blocks = {count_of(own, f"encoder.levels.{i}.blocks.{{}}.conv2.weight") for i in levels}
        if len(blocks) != 1:
            raise CheckpointError(f"expected levels of equally many blocks, got {sorted(blocks) or 'no level'}")
        widths = tuple(sizes_of(own, block.format(i), "width width 3 3")["width"] for i in levels)
        for count in groups:
            if count < 1 or any(width % count for width in (first["channels"], *widths)):
                found = (first["channels"], *widths)
                raise CheckpointError(f"expected widths that the {count} groups of a norm divide, got {found}")
        attended = [f"decoder.levels.{i}.attentions.0.q.weight" in own for i in levels]  # coarsest first
        return cls(**first, widths=widths, blocks=blocks.pop(), attention=tuple(attended[::-1]),
                   latent_channels=last["latent_channels"])  # fmt: skip

    def network(self, resolution: int) -> dict[str, Any]:
        """The fields of a config that states widths as multiples of the first convolution's, and places attention by a
        resolution: that given, or the network's stride where that is more.

        Raises:
            CheckpointError: widths that are no multiples.
        """
        if any(width % self.channels for width in self.widths):
            raise CheckpointError(f"expected widths that are multiples of {self.channels}, got {self.widths}")
        resolution = max(resolution, 2 ** (len(self.widths) - 1))
        places = (resolution // 2**i for i, attends in enumerate(self.attention) if attends)
        return {
            "in_channels": self.in_channels,
            "channels": self.channels,
            "channel_multipliers": tuple(width // self.channels for width in self.widths),
            "blocks": self.blocks,
            "resolution": resolution,
            "attention_resolutions": tuple(places),
            "latent_channels": self.latent_channels,
        }
