"""A small model of every family, for tests over the whole registry: of a parity fixture's sizes where there is one."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenizers_visual.gaussian_token import gaussian_quantizer
from tokenizers_visual.selftok import FlowConfig
from zoo import cards
from zoo.checkpoint import read
from zoo.config import Config
from zoo.layers.base_autoencoder import VariationalBaseConfig
from zoo.layers.query_transformer import TransformerSizes
from zoo.layers.unclip import UnCLIPConfig
from zoo.quantizers import DimensionWiseConfig, FiniteScalarConfig
from zoo.registry import Family, import_module, registry
from zoo.tokenizer import InputSpec, Tokenizer

PARITY = Path(__file__).parents[1] / "parity"
for _manifest in cards.manifests():
    import_module(_manifest.module)
FAMILIES = [
    name
    for name in registry.families()
    if issubclass(model := registry.family(name).model, Tokenizer) and model.has_decoder
]

# sizes of the families that no fixture narrows, and what random weights need for every parameter to be used
_SMALL: dict[str, dict[str, Any]] = {
    "compact": {
        "patch_size": 2, "fine_channels": 8, "channels": 8, "encoder_blocks": (1, 1), "decoder_blocks": (1, 1),
        "quantizer": FiniteScalarConfig(levels=(4, 3)),
    },
    "alit": {"halting": 0.0},
    "spectral": {
        "patch_size": 2, "channels": (8, 8), "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "latent_channels": 6,
        "hidden": 8, "quantizer": FiniteScalarConfig(levels=(4, 3)),
    },
    "seed_tokenizer": {
        "generator": UnCLIPConfig(
            embedding_width=8, channels=(4, 4), blocks=1, heads=(1, 1), prompt_length=2, prompt_width=4, latent_size=4,
            decoder_channels=(4, 4), decoder_blocks=1, norm_groups=2, steps=2,
        ),
    },
    "selftok": {
        "decoder": FlowConfig(
            head_width=8, layers=2, positions=6, stage_ends=(500, 1000), stage_tokens=(40, 24), steps=2
        )
    },
    "flextok": {"null_probability": 0.5, "steps": 2},
    "elastictok": {
        "resolution": 8, "blocks": 2, "block_frames": 2, "patch_size": 4, "least_tokens": 2, "width": 8, "hidden": 12,
        "layers": 1, "heads": 2, "quantizer": FiniteScalarConfig(levels=(4, 3)),
    },
    "semanticist": {
        "image_size": 16, "num_tokens": 5, "patch_size": 8, "encoder": TransformerSizes(width=8, layers=1, heads=2),
        "base": VariationalBaseConfig(
            dim=3, channels=4, channel_multipliers=(1, 1, 1), blocks=1, norm_groups=2, attention=(False,) * 3
        ),
        "decoder": TransformerSizes(width=8, layers=1, heads=2), "steps": 2,
        "quantizer": DimensionWiseConfig(dim=4, bits=3, limit=3.0, deviations=3.0),
    },
    "gaussian_token": {  # few steps: sums of other batches differ by rounding, which 65,536 steps would tell
        "resolution": 16, "channels": 16, "channel_multipliers": (1, 1), "blocks": 1, "norm_groups": 4, "width": 16,
        "gaussians": 16, "features": 4, "map_layers": 1, "stages": 2, "heads": 2, "points": 2,
        "quantizer": gaussian_quantizer(7, 4, bits=8),
    },
}  # fmt: skip
_OF_A_PART = {"selftok", "seed_tokenizer"}  # families whose fixtures hold the encoder, or all but the generator


def fixture(name: str) -> Path | None:
    """The folder of the family's first fixture that holds a whole model."""
    names = next((manifest.fixtures for manifest in cards.manifests() if manifest.family == name), (name,))
    for meta in sorted(PARITY.glob("*/meta.json")):
        content = json.loads(meta.read_text())
        if content["family"] in names and any(check["check"] == "encode" for check in content["checks"]):
            return meta.parent
    return None


def config(family: Family) -> Config:
    """The config of the small model."""
    folder = fixture(family.name)
    if folder is None:
        chosen = family.config()
    else:
        chosen = family.module.config_from_original(json.loads((folder / "meta.json").read_text()))
    return chosen.replace(**_SMALL.get(family.name, {}))


def build(name: str, quantizer: object = None, seed: int = 0) -> Tokenizer:
    """The small model, in evaluation mode, with random weights away from special starts such as zero."""
    family = registry.family(name)
    chosen = config(family)
    made: Tokenizer = random(family.model, chosen if quantizer is None else chosen.replace(quantizer=quantizer), seed)
    return made


def random(model: type[Any], config: Config, seed: int = 0) -> Any:
    """The model of a config, as `build` gives those of families."""
    torch.manual_seed(seed)
    made = model(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def fixture_weights(name: str) -> dict[str, Tensor] | None:
    """The weights of the family's fixture under the names of our model; None where it does not hold all of them."""
    folder = fixture(name)
    if folder is None or name in _OF_A_PART:
        return None
    module, meta = registry.family(name).module, json.loads((folder / "meta.json").read_text())
    choose = getattr(module, "key_map_from_original", None)
    weights, prefix = read(folder / "weights.safetensors"), meta.get("weights_prefix") or ""
    return (choose(meta) if choose else module.KEY_MAP)({k.removeprefix(prefix): v for k, v in weights.items()})


def size(spec: InputSpec, odd: bool = False) -> tuple[int, ...]:
    """Sides of a small signal; `odd` ones need padding where the model pads."""
    if spec.size is not None:
        return spec.size
    if spec.modality == "audio":
        sides: tuple[int, ...] = (4 * spec.multiple,)
    else:
        sides = (2 * spec.multiple, 3 * spec.multiple)
    if odd:
        sides = tuple(side - min(3, spec.multiple - 1) for side in sides)
    if spec.modality == "video":
        sides = (1 + 2 * spec.frame_multiple - int(odd and spec.frame_multiple > 1), *sides)
    return sides


def signal(model: Tokenizer, count: int = 2, odd: bool = False, seed: int = 0) -> Tensor:
    """A batch of random signals in the model's range."""
    generator = torch.Generator().manual_seed(seed)
    low, high = model.spec.value_range
    x = torch.rand(count, model.spec.channels, *size(model.spec, odd), generator=generator)
    return x * (high - low) + low
