"""4M-21's tokenizers of vectors, such as an image's DINOv2 feature or a human pose: bottleneck MLPs and memory codes.

Papers: arXiv 2406.09406; MLPs: 2306.13575; memory codes: 2106.04283. Original: apple/ml-4m (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.transformer import MLP
from zoo.quantizers import GroupedConfig, MemoryConfig, Quantized, QuantizerConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class FourMVectorConfig(Config):
    """Sizes of the network; the defaults are those of the published tokenizer of DINOv2's global features."""

    in_channels: int = 768
    value_range: tuple[float, float] = (-100.0, 100.0)  # a vector has no bounds of its own
    width: int = 1024
    blocks: int = 6
    expansion: int = 4  # of the width inside a block
    quantizer: QuantizerConfig = GroupedConfig(MemoryConfig(codebook_size=8192, dim=64), num_groups=16)

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.width, self.blocks, self.expansion)
        self.require(min(sizes) >= 1, "in_channels, width, blocks and expansion of at least 1", sizes)


@register("four_m_vector")
class FourMVector(Tokenizer):
    """Vectors as maps (B, C, 1, 1) -> a token (B, 1, 1) of each codebook; every place of a larger map by itself."""

    def __init__(self, config: FourMVectorConfig) -> None:
        spec = InputSpec("image", channels=config.in_channels, value_range=config.value_range)
        super().__init__(config, spec, config.quantizer)
        width, dim = config.width, config.quantizer.dim
        self.encoder = _BottleneckMLP(config.in_channels, width, width, config)
        self.to_latent = nn.Linear(width, dim)
        self.from_codes = nn.Linear(dim, width)
        self.decoder = _BottleneckMLP(width, width, config.in_channels, config)

    def latent(self, x: Tensor) -> Tensor:
        return self.to_latent(self.encoder(x.movedim(1, -1)))

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(self.from_codes(codes)).movedim(-1, 1)


class _BottleneckMLP(nn.Module):
    """A linear layer, blocks x + MLP(norm x), a linear layer: (..., in_width) -> (..., out_width)."""

    def __init__(self, in_width: int, width: int, out_width: int, config: FourMVectorConfig) -> None:
        super().__init__()
        self.linear_in = nn.Linear(in_width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(config.blocks))
        self.mlps = nn.ModuleList(MLP(width, config.expansion * width) for _ in range(config.blocks))
        self.linear_out = nn.Linear(width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_in(x)
        for norm, mlp in zip(self.norms, self.mlps):
            x = x + mlp(norm(x))
        return self.linear_out(x)


def config_from_original(meta: dict[str, Any]) -> FourMVectorConfig:
    """The config of the original's constructor arguments, as a fixture states them; both networks have one size.

    Raises:
        ValueError: another quantizer than memory codes, networks of two sizes, or latents that the codebooks do not
            divide.
    """
    kwargs = meta["original"]["kwargs"]
    if kwargs["quant_type"] != "memcodes" or kwargs["enc_type"] != kwargs["dec_type"]:
        found = (kwargs["quant_type"], kwargs["enc_type"], kwargs["dec_type"])
        raise ValueError(f"expected memcodes, and encoder and decoder of one size, got {found}")
    if kwargs["latent_dim"] % kwargs["num_codebooks"]:
        widths = (kwargs["latent_dim"], kwargs["num_codebooks"])
        raise ValueError(f"expected a latent_dim that num_codebooks divides, got {widths}")
    # such as BottleneckMLP/B_6-Wi_1024-E_4: blocks, width, expansion
    sizes = [int(part.partition("_")[2]) for part in kwargs["enc_type"].partition("/")[2].split("-")]
    memory = MemoryConfig(kwargs["codebook_size"], kwargs["latent_dim"] // kwargs["num_codebooks"])
    return FourMVectorConfig(
        in_channels=kwargs["n_channels"],
        width=sizes[1],
        blocks=sizes[0],
        expansion=sizes[2] if len(sizes) > 2 else 4,
        quantizer=GroupedConfig(memory, num_groups=kwargs["num_codebooks"]),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The original has none of the quantizer: it learns through the codes alone."""
    return {}


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of all codebooks, stacked along the first axis -> those of each; maps (in, out) -> (out, in)."""
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "memories": lambda part: part,
        "keys.weight": lambda part: part.T,
        "values.weight": lambda part: part.T,
    }
    apart = {key: value for key, value in state.items() if not key.startswith("quantizer.")}
    for name, change in parts.items():
        for group, part in enumerate(state.get(f"quantizer.{name}", ())):
            apart[f"quantizer.groups.{group}.{name}"] = change(part)
    return apart


def _mlp(side: str) -> dict[str, str | None]:
    return {
        f"{side}.linear_in.*": f"{side}.linear_in.*",
        f"{side}.linear_out.*": f"{side}.linear_out.*",
        f"{side}.layernorms.{{}}.*": f"{side}.norms.{{}}.*",
        f"{side}.blocks.{{}}.block.0.*": f"{side}.mlps.{{}}.fc1.*",
        f"{side}.blocks.{{}}.block.2.*": f"{side}.mlps.{{}}.fc2.*",
    }


KEY_MAP = KeyMap(
    {
        **_mlp("encoder"),
        "quant_proj.*": "to_latent.*",
        "quantize.codes": "quantizer.memories",
        "quantize.to_k.weight": "quantizer.keys.weight",
        "quantize.to_v.weight": "quantizer.values.weight",
        "post_quant_proj.*": "from_codes.*",
        **_mlp("decoder"),
    },
    # 1x1 convolutions
    transforms={"to_latent.weight": lambda weight: weight.flatten(1), "from_codes.weight": lambda w: w.flatten(1)},
    finish=_apart,
)
