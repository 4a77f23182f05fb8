"""diffusers' VQModel as a model of the zoo, and back, with the same tokens and images.

Families of the VQGAN line (arXiv 2012.09841) hold the same network. A family that can be such a model offers
`config_from_diffusers`, which takes a `VQArchitecture`; the way back needs nothing from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoo import cards
from zoo.checkpoint import KeyMap, load_into
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers import VectorConfig
from zoo.registry import import_module, registry
from zoo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from diffusers import VQModel

_BLOCKS = {False: ("DownEncoderBlock2D", "UpDecoderBlock2D"), True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}


@dataclass(frozen=True)
class VQArchitecture:
    """What a VQModel is, in the zoo's terms.

    Attributes:
        widths: of the levels, finest first; the first convolution has the first width.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention, decoder_attention: whether a level has attention after each block, finest first.
        middle_attention: attention between the two blocks of the coarsest resolution.
        latent_channels: before the projection to the codes.
        codebook_size, dim: of the codebook, whose search is Euclidean.
        norm_groups: of every group norm.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    decoder_attention: tuple[bool, ...]
    middle_attention: bool
    latent_channels: int
    codebook_size: int
    dim: int
    norm_groups: int

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> VQArchitecture:
        """Of VQModel's constructor arguments, or its config, all those without a default value there.

        Raises:
            ValueError: a setting that no model of the zoo has, by name.
        """
        expected = {"act_fn": "silu", "norm_type": "group", "in_channels": 3, "out_channels": 3}
        if wrong := {name: kwargs[name] for name, value in expected.items() if kwargs.get(name, value) != value}:
            raise ValueError(f"expected {', '.join(f'{name}={expected[name]!r}' for name in wrong)}, got {wrong}")
        down, up, widths = kwargs["down_block_types"], kwargs["up_block_types"], tuple(kwargs["block_out_channels"])
        for place, types in enumerate((down, up)):
            names = {attends: kinds[place] for attends, kinds in _BLOCKS.items()}
            if not set(types) <= set(names.values()):
                raise ValueError(f"expected blocks among {', '.join(names.values())}, got {', '.join(types)}")
        if not len(down) == len(up) == len(widths):
            raise ValueError(f"expected as many block types as widths, got {len(down)}, {len(up)} and {len(widths)}")
        return cls(
            widths=widths,
            blocks=kwargs["layers_per_block"],
            attention=tuple(name == _BLOCKS[True][0] for name in down),
            decoder_attention=tuple(name == _BLOCKS[True][1] for name in reversed(up)),
            middle_attention=kwargs.get("mid_block_add_attention", True),
            latent_channels=kwargs["latent_channels"],
            codebook_size=kwargs["num_vq_embeddings"],
            dim=kwargs.get("vq_embed_dim") or kwargs["latent_channels"],
            norm_groups=kwargs["norm_num_groups"],
        )

    @classmethod
    def of(cls, model: Tokenizer) -> VQArchitecture:
        """Of a model of the zoo, read off its modules.

        Raises:
            ValueError: a model that is no such network, and why.
        """
        encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
        projections = [getattr(model, name, None) for name in ("to_latent", "from_codes")]
        plain = all(isinstance(layer, nn.Conv2d) for layer in projections)
        if not isinstance(encoder, Encoder) or not isinstance(decoder, Decoder) or not plain:
            raise ValueError(f"expected a VQGAN's encoder, decoder and two projections, got {model.name}")
        quantizer = model.quantizer.config
        if not isinstance(quantizer, VectorConfig) or quantizer.affine is not None or not quantizer.unit_vectors:
            raise ValueError(f"expected a plain codebook of vectors, got the quantizer {quantizer}")
        if quantizer.metric not in ("euclidean", "cosine"):
            raise ValueError(f"expected a Euclidean or cosine search, got {quantizer.metric!r}")
        down, up = _levels(encoder), _levels(decoder)[::-1]
        activated = encoder.final_activation and decoder.final_activation
        fused = any(getattr(layer, "fused", False) for layer in model.modules())
        own = model.config.to_dict()
        found = cls(
            widths=tuple(width for width, _, _ in down),
            blocks=down[0][1],
            attention=tuple(attends for _, _, attends in down),
            decoder_attention=tuple(attends for _, _, attends in up),
            middle_attention=not isinstance(encoder.mid[1], nn.Identity),
            latent_channels=encoder.conv_out.out_channels,
            codebook_size=quantizer.codebook_size,
            dim=quantizer.dim,
            norm_groups=encoder.norm_out.num_groups,
        )
        expected = [(width, found.blocks + 1, attends) for width, attends in zip(found.widths, found.decoder_attention)]
        if up != expected or {blocks for _, blocks, _ in down} != {found.blocks} or fused or not activated:
            raise ValueError(f"expected the levels of the encoder, each with one block more, in the decoder, got {own}")
        if encoder.conv_in.out_channels != found.widths[0]:
            raise ValueError(
                f"expected a first convolution as wide as the first level, {found.widths[0]}, got "
                f"{encoder.conv_in.out_channels}"
            )
        if isinstance(encoder.mid[1], nn.Identity) != isinstance(decoder.mid[1], nn.Identity):
            raise ValueError("expected attention in the middle of both encoder and decoder, or of none")
        return found

    @property
    def multipliers(self) -> tuple[int, ...]:
        """The widths as multiples of the first.

        Raises:
            ValueError: they are none.
        """
        if any(width % self.widths[0] for width in self.widths):
            raise ValueError(f"expected widths that are multiples of the first, got {self.widths}")
        return tuple(width // self.widths[0] for width in self.widths)

    def kwargs(self) -> dict[str, Any]:
        """Constructor arguments of VQModel."""
        return {
            "down_block_types": tuple(_BLOCKS[attends][0] for attends in self.attention),
            "up_block_types": tuple(_BLOCKS[attends][1] for attends in reversed(self.decoder_attention)),
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent_channels,
            "num_vq_embeddings": self.codebook_size,
            "vq_embed_dim": self.dim,
            "norm_num_groups": self.norm_groups,
            "mid_block_add_attention": self.middle_attention,
            "lookup_from_codebook": True,
        }


def from_diffusers(vq_model: VQModel, *, family: str | None = None) -> Tokenizer:
    """A model of the zoo with the weights of a VQModel, in evaluation mode, on its device and in its precision.

    Args:
        vq_model: of any sizes.
        family: the family that the model becomes one of; default: the first by name that holds its architecture.

    Returns:
        A model whose tokens and images are those of the VQModel. Its range of values is that of the family.

    Raises:
        ValueError: another class, or an architecture that no family holds, with the reason of each.
    """
    if type(vq_model).__name__ != "VQModel":
        raise ValueError(f"expected a VQModel of diffusers, got {type(vq_model).__name__}")
    architecture = VQArchitecture.from_kwargs(vq_model.config)
    refused: dict[str, str] = {}
    for name, config_of in _families(family).items():
        try:
            config = config_of(architecture)
        except ValueError as error:
            refused[name] = str(error)
            continue
        model = registry.family(name).model(config)  # type: ignore[call-arg]
        load_into(model, KEY_MAP(vq_model.state_dict()))
        parameter = next(vq_model.parameters())
        return model.to(parameter.device, parameter.dtype).eval()
    raise ValueError("no family holds this VQModel: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))


def to_diffusers(model: Tokenizer) -> VQModel:
    """A VQModel with the weights of a model of the zoo, in evaluation mode, on its device and in its precision.

    Codes of a cosine search are stored on the unit sphere, where the nearest by distance is the nearest by angle.

    Raises:
        ValueError: a model that is no such network, and why.
    """
    from diffusers import VQModel

    peer = VQModel(**VQArchitecture.of(model).kwargs())
    names, expected, own = diffusers_names(peer), peer.state_dict(), model.state_dict()
    own = {name: value for name, value in own.items() if not name.startswith("quantizer.ema.")}  # of training alone
    if surplus := own.keys() - names.keys():
        raise ValueError(f"expected a network without {', '.join(sorted(surplus))}, which VQModel does not have")
    weights = {theirs: own[ours].reshape(expected[theirs].shape) for ours, theirs in names.items()}
    if model.quantizer.config.metric == "cosine":  # type: ignore[attr-defined]
        weights[names["quantizer.codebook.weight"]] = model.quantizer.codes().detach()  # type: ignore[operator]
    peer.load_state_dict(weights)
    parameter = next(model.parameters())
    peer.to(parameter.device)
    if parameter.dtype != peer.dtype:
        peer.to(parameter.dtype)
    return peer.eval()


def diffusers_names(vq_model: VQModel) -> dict[str, str]:
    """Name of a parameter in the zoo -> its name in a VQModel."""
    keys = list(vq_model.state_dict())
    names = {KEY_MAP.name(key, keys): key for key in keys}
    return {ours: theirs for ours, theirs in names.items() if ours is not None}


def _families(family: str | None) -> dict[str, Any]:
    """Families that can hold a VQModel, by name, with the function that gives their config."""
    if family is not None:
        module = registry.family(family).module
        if not hasattr(module, "config_from_diffusers"):
            raise ValueError(f"expected a family that can hold a VQModel, got {family!r}")
        return {family: module.config_from_diffusers}
    found = {}
    for manifest in sorted(cards.manifests(), key=lambda manifest: manifest.family):
        module = import_module(manifest.module)
        if hasattr(module, "config_from_diffusers"):
            found[manifest.family] = module.config_from_diffusers
    return found


def _levels(network: Encoder | Decoder) -> list[tuple[int, int, bool]]:
    """Width, blocks and attention of each level in the order in which they run."""
    return [
        (level.blocks[-1].conv2.out_channels, len(level.blocks), len(level.attentions) > 0)  # type: ignore[union-attr, index, arg-type]
        for level in network.levels
    ]


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _half(side: str, levels: str, resample: str) -> dict[str, str]:
    level, ours = f"{side}.{levels}.{{}}", f"{side}.levels.{{}}"
    return {
        f"{side}.conv_in.*": f"{side}.conv_in.*",
        f"{level}.resnets.{{}}.conv_shortcut.*": f"{ours}.blocks.{{}}.shortcut.*",
        f"{level}.resnets.{{}}.*": f"{ours}.blocks.{{}}.*",
        **{f"{level}.attentions.{{}}.{a}.*": f"{ours}.attentions.{{}}.{b}.*" for a, b in _ATTENTION.items()},
        f"{level}.{resample}.0.*": f"{ours}.resample.*",
        f"{side}.mid_block.resnets.0.*": f"{side}.mid.0.*",
        **{f"{side}.mid_block.attentions.0.{a}.*": f"{side}.mid.1.{b}.*" for a, b in _ATTENTION.items()},
        f"{side}.mid_block.resnets.1.*": f"{side}.mid.2.*",
        f"{side}.conv_norm_out.*": f"{side}.norm_out.*",
        f"{side}.conv_out.*": f"{side}.conv_out.*",
    }


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[:, :, None, None]


KEY_MAP = KeyMap(
    {
        **_half("encoder", "down_blocks", "downsamplers"),
        "quant_conv.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "post_quant_conv.*": "from_codes.*",
        **_half("decoder", "up_blocks", "upsamplers"),
    },
    transforms={
        f"*.{place}.{name}.weight": _as_convolution
        for place in ("mid.1", "attentions.*")
        for name in ("[qkv]", "proj_out")
    },
)
