"""diffusers' VQModel and AutoencoderKL as models of the zoo, and back, with the same latents, tokens and images.

Families of the VQGAN line (arXiv 2012.09841) hold the same network as a VQModel. Of an AutoencoderKL (arXiv 2112.10752)
the latents become tokens dimension by dimension, without training (arXiv 2503.16430). A family that can be such a model
offers `config_from_diffusers`, which takes a `VQArchitecture`, `MoVQArchitecture` or `KLArchitecture`; the way back
needs nothing of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn

from zoo import cards
from zoo.checkpoint import KeyMap, load_into
from zoo.layers.base_autoencoder import VariationalBase, VariationalBaseConfig
from zoo.layers.movq import MoVQDecoder
from zoo.layers.vqgan import Decoder, Encoder
from zoo.quantizers import VectorConfig
from zoo.registry import import_module, registry
from zoo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, VQModel

_BLOCKS = {False: ("DownEncoderBlock2D", "UpDecoderBlock2D"), True: ("AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D")}


@dataclass(frozen=True)
class Architecture:
    """An autoencoder of diffusers, in the zoo's terms.

    Attributes:
        widths: of the levels, finest first; the first convolution has the first width.
        blocks: residual blocks a level of the encoder; the decoder has one more.
        attention, decoder_attention: whether a level has attention after each block, finest first.
        middle_attention: attention between the two blocks of the coarsest resolution.
        latent_channels: of what the decoder takes.
        norm_groups: of every group norm.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[bool, ...]
    decoder_attention: tuple[bool, ...]
    middle_attention: bool
    latent_channels: int
    norm_groups: int

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
        """Constructor arguments of the model of diffusers."""
        return {
            "down_block_types": tuple(_BLOCKS[attends][0] for attends in self.attention),
            "up_block_types": tuple(_BLOCKS[attends][1] for attends in reversed(self.decoder_attention)),
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.norm_groups,
            "mid_block_add_attention": self.middle_attention,
        }


@dataclass(frozen=True)
class VQArchitecture(Architecture):
    """A VQModel.

    Attributes:
        codebook_size, dim: of the codebook, whose search is Euclidean.
        channels: of the images.
    """

    codebook_size: int
    dim: int
    channels: int = 3

    norm_type: ClassVar[str] = "group"  # of the decoder
    decoder_class: ClassVar[type[Decoder | MoVQDecoder]] = Decoder

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """Of VQModel's constructor arguments, or its config, all those without a default value there.

        Raises:
            ValueError: a setting that no model of the zoo has, by name.
        """
        channels = kwargs.get("in_channels", 3)
        return cls(
            **_network_of_kwargs(kwargs, norm_type=cls.norm_type, in_channels=channels, out_channels=channels),
            codebook_size=kwargs["num_vq_embeddings"],
            dim=kwargs.get("vq_embed_dim") or kwargs["latent_channels"],
            channels=channels,
        )

    @classmethod
    def of(cls, model: Tokenizer) -> Self:
        """Of a model of the zoo, read off its modules.

        Raises:
            ValueError: a model that is no such network, and why.
        """
        projections = [getattr(model, name, None) for name in ("to_latent", "from_codes")]
        if not all(isinstance(layer, nn.Conv2d) for layer in projections):
            raise ValueError(f"expected a VQGAN's encoder, decoder and two projections, got {model.name}")
        network = _network_of(model, model, cls.decoder_class)
        quantizer = model.quantizer.config
        if not isinstance(quantizer, VectorConfig) or quantizer.affine is not None or not quantizer.unit_vectors:
            raise ValueError(f"expected a plain codebook of vectors, got the quantizer {quantizer}")
        if quantizer.metric not in ("euclidean", "cosine"):
            raise ValueError(f"expected a Euclidean or cosine search, got {quantizer.metric!r}")
        return cls(**network, codebook_size=quantizer.codebook_size, dim=quantizer.dim, channels=model.spec.channels)

    def kwargs(self) -> dict[str, Any]:
        return {
            **super().kwargs(),
            "in_channels": self.channels,
            "out_channels": self.channels,
            "num_vq_embeddings": self.codebook_size,
            "vq_embed_dim": self.dim,
            "lookup_from_codebook": True,
            "norm_type": self.norm_type,
        }


@dataclass(frozen=True)
class MoVQArchitecture(VQArchitecture):
    """A VQModel whose decoder is MoVQ's (arXiv 2209.09002).

    Raises:
        ValueError: sizes that diffusers gives no such decoder.
    """

    decoder_norm_groups: int = 32

    norm_type = "spatial"
    decoder_class = MoVQDecoder

    def __post_init__(self) -> None:
        if self.decoder_norm_groups != 32 or any(width % 32 for width in self.widths):
            found = (self.decoder_norm_groups, self.widths)
            raise ValueError(f"expected norms of 32 groups in the decoder, and widths that these divide, got {found}")
        if self.dim != self.latent_channels:
            raise ValueError(f"expected codes as wide as the latents, {self.latent_channels}, got {self.dim}")

    @classmethod
    def of(cls, model: Tokenizer) -> Self:
        architecture = super().of(model)
        return replace(architecture, decoder_norm_groups=model.decoder.norm_out.norm_layer.num_groups)


@dataclass(frozen=True)
class KLArchitecture(Architecture):
    """An AutoencoderKL.

    Attributes:
        scale: factor that brings the latents to about unit variance.
        shift: that is taken off them before.
        projections: 1x1 convolutions before and after the latents.
    """

    scale: float
    shift: float = 0.0
    projections: bool = True

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> KLArchitecture:
        """Of AutoencoderKL's constructor arguments, or its config, all those without a default value there.

        Raises:
            ValueError: a setting that no model of the zoo has, by name.
        """
        projections = kwargs.get("use_quant_conv", True)
        plain = {"use_post_quant_conv": projections, "latents_mean": None, "latents_std": None}
        return cls(
            **_network_of_kwargs(kwargs, **plain),
            scale=kwargs.get("scaling_factor", 0.18215),
            shift=kwargs.get("shift_factor") or 0.0,
            projections=projections,
        )

    @classmethod
    def of(cls, model: Tokenizer) -> KLArchitecture:
        """Of a model of the zoo, read off its modules.

        Raises:
            ValueError: a model that is no such network, and why.
        """
        base = getattr(model, "base", None)
        if not isinstance(base, VariationalBase):
            raise ValueError(f"expected a model of a variational autoencoder's latents, got {model.name}")
        network = _network_of(model, base)
        network = {**network, "latent_channels": network["latent_channels"] // 2}
        projections = not isinstance(base.to_posterior, nn.Identity)
        return cls(**network, scale=base.scale, shift=base.shift, projections=projections)

    def base(self) -> VariationalBaseConfig:
        """The zoo's own network of these sizes, into which `KL_KEY_MAP` leads.

        Raises:
            ValueError: attention in the decoder's levels or none in the middle, or widths that are no multiples of the
                first.
        """
        if not self.middle_attention or any(self.decoder_attention):
            found = (self.decoder_attention, self.middle_attention)
            raise ValueError(f"expected attention in the middle, and none at the levels of the decoder, got {found}")
        return VariationalBaseConfig(
            dim=self.latent_channels,
            channels=self.widths[0],
            channel_multipliers=self.multipliers,
            blocks=self.blocks,
            norm_groups=self.norm_groups,
            attention=self.attention,
            scale=self.scale,
            shift=self.shift,
            projections=self.projections,
        )

    def kwargs(self) -> dict[str, Any]:
        return {
            **super().kwargs(),
            "scaling_factor": self.scale,
            "shift_factor": self.shift or None,
            "use_quant_conv": self.projections,
            "use_post_quant_conv": self.projections,
        }


def _network_of_kwargs(kwargs: Mapping[str, Any], **further: Any) -> dict[str, Any]:
    """Fields of `Architecture`; `further`: settings that must be so."""
    expected = {"act_fn": "silu", "in_channels": 3, "out_channels": 3, **further}
    if wrong := {name: kwargs[name] for name, value in expected.items() if kwargs.get(name, value) != value}:
        raise ValueError(f"expected {', '.join(f'{name}={expected[name]!r}' for name in wrong)}, got {wrong}")
    down, up, widths = kwargs["down_block_types"], kwargs["up_block_types"], tuple(kwargs["block_out_channels"])
    for place, types in enumerate((down, up)):
        names = {attends: kinds[place] for attends, kinds in _BLOCKS.items()}
        if not set(types) <= set(names.values()):
            raise ValueError(f"expected blocks among {', '.join(names.values())}, got {', '.join(types)}")
    if not len(down) == len(up) == len(widths):
        raise ValueError(f"expected as many block types as widths, got {len(down)}, {len(up)} and {len(widths)}")
    return {
        "widths": widths,
        "blocks": kwargs["layers_per_block"],
        "attention": tuple(name == _BLOCKS[True][0] for name in down),
        "decoder_attention": tuple(name == _BLOCKS[True][1] for name in reversed(up)),
        "middle_attention": kwargs.get("mid_block_add_attention", True),
        "latent_channels": kwargs["latent_channels"],
        "norm_groups": kwargs["norm_num_groups"],
    }


def _network_of(
    model: Tokenizer, holder: nn.Module, decoder_class: type[Decoder | MoVQDecoder] = Decoder
) -> dict[str, Any]:
    """Fields of `Architecture`, of the module that holds encoder and decoder; `latent_channels` as the encoder ends."""
    encoder, decoder = getattr(holder, "encoder", None), getattr(holder, "decoder", None)
    if not isinstance(encoder, Encoder) or not isinstance(decoder, decoder_class):
        raise ValueError(f"expected a VQGAN's encoder and decoder, got {model.name}")
    down, up = _levels(encoder), _levels(decoder)[::-1]
    activated = encoder.final_activation and getattr(decoder, "final_activation", True)
    fused = any(getattr(layer, "fused", False) for layer in holder.modules())
    blocks = down[0][1]
    attended = tuple(attends for _, _, attends in up)
    expected = [(width, blocks + 1, attends) for (width, _, _), attends in zip(down, attended)]
    if up != expected or {count for _, count, _ in down} != {blocks} or fused or not activated:
        own = model.config.to_dict()
        raise ValueError(f"expected the levels of the encoder, each with one block more, in the decoder, got {own}")
    if encoder.conv_in.out_channels != down[0][0]:
        raise ValueError(
            f"expected a first convolution as wide as the first level, {down[0][0]}, got {encoder.conv_in.out_channels}"
        )
    if isinstance(encoder.mid[1], nn.Identity) != isinstance(decoder.mid[1], nn.Identity):
        raise ValueError("expected attention in the middle of both encoder and decoder, or of none")
    return {
        "widths": tuple(width for width, _, _ in down),
        "blocks": blocks,
        "attention": tuple(attends for _, _, attends in down),
        "decoder_attention": attended,
        "middle_attention": not isinstance(encoder.mid[1], nn.Identity),
        "latent_channels": encoder.conv_out.out_channels,
        "norm_groups": encoder.norm_out.num_groups,
    }


def from_diffusers(autoencoder: VQModel | AutoencoderKL, *, family: str | None = None) -> Tokenizer:
    """A model of the zoo with the weights of a VQModel or an AutoencoderKL, in evaluation mode, on its device and in
    its precision.

    Args:
        autoencoder: of any sizes.
        family: the family that the model becomes one of; default: the first by name that holds its architecture.

    Returns:
        A model whose tokens and images are those of the VQModel, its range of values that of the family; or whose
        latents are the scaled means of the AutoencoderKL, and whose images are what that decodes from the codes.

    Raises:
        ValueError: another class, or an architecture that no family holds, with the reason of each.
    """
    kind = type(autoencoder).__name__
    if kind not in _KINDS:
        raise ValueError(f"expected a VQModel or an AutoencoderKL of diffusers, got {kind}")
    modulated = autoencoder.config.get("norm_type") == MoVQArchitecture.norm_type
    architecture = (MoVQArchitecture if modulated else _KINDS[kind]).from_kwargs(autoencoder.config)
    refused: dict[str, str] = {}
    for name, config_of in _families(family, type(architecture)).items():
        try:
            config = config_of(architecture)
        except ValueError as error:
            refused[name] = str(error)
            continue
        model = registry.family(name).model(config)  # type: ignore[call-arg]
        load_into(model, key_map(autoencoder)(autoencoder.state_dict()))
        parameter = next(autoencoder.parameters())
        return model.to(parameter.device, parameter.dtype).eval()
    raise ValueError(f"no family holds this {kind}: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))


def to_diffusers(model: Tokenizer) -> VQModel | AutoencoderKL:
    """A VQModel with the weights of a model of the zoo, in evaluation mode, on its device and in its precision; an
    AutoencoderKL of a model that makes tokens of such latents.

    Codes of a cosine search are stored on the unit sphere, where the nearest by distance is the nearest by angle.

    Raises:
        ValueError: a model that is no such network, and why.
    """
    import diffusers

    peer: VQModel | AutoencoderKL
    own = dict(model.state_dict())
    held = _held_by(registry.family_of(model).module)
    if held is KLArchitecture:
        peer = diffusers.AutoencoderKL(**KLArchitecture.of(model).kwargs())
        own = {name: value for name, value in own.items() if not name.startswith("quantizer.")}
    else:
        kind = MoVQArchitecture if held is MoVQArchitecture else VQArchitecture
        peer = diffusers.VQModel(**kind.of(model).kwargs())
        own = {name: value for name, value in own.items() if not name.startswith("quantizer.ema.")}  # of training alone
    names, expected = diffusers_names(peer), peer.state_dict()
    if surplus := own.keys() - names.keys():
        name = type(peer).__name__
        raise ValueError(f"expected a network without {', '.join(sorted(surplus))}, which {name} does not have")
    weights = {theirs: own[ours].reshape(expected[theirs].shape) for ours, theirs in names.items()}
    if getattr(model.quantizer.config, "metric", None) == "cosine":
        weights[names["quantizer.codebook.weight"]] = model.quantizer.codes().detach()  # type: ignore[operator]
    peer.load_state_dict(weights)
    parameter = next(model.parameters())
    peer.to(parameter.device)
    if parameter.dtype != peer.dtype:
        peer.to(parameter.dtype)
    return peer.eval()


def diffusers_names(autoencoder: VQModel | AutoencoderKL) -> dict[str, str]:
    """Name of a parameter in the zoo -> its name in the model of diffusers."""
    keys, names_of = list(autoencoder.state_dict()), key_map(autoencoder)
    names = {names_of.name(key, keys): key for key in keys}
    return {ours: theirs for ours, theirs in names.items() if ours is not None}


def key_map(autoencoder: VQModel | AutoencoderKL) -> KeyMap:
    """Names of diffusers -> those of the zoo."""
    return KEY_MAP if type(autoencoder).__name__ == "VQModel" else KL_KEY_MAP


def _families(family: str | None, architecture: type[Architecture]) -> dict[str, Any]:
    """Families that can hold such a model, by name, with the function that gives their config."""

    if family is not None:
        modules = {family: registry.family(family).module}
    else:
        names = {manifest.family: manifest.module for manifest in cards.manifests()}
        modules = {name: import_module(names[name]) for name in sorted(names)}
    found = {n: module.config_from_diffusers for n, module in modules.items() if _held_by(module) is architecture}
    if family is not None and not found:
        raise ValueError(f"expected a family that can hold such a model, got {family!r}")
    return found


def _held_by(module: ModuleType) -> type[Architecture] | None:
    """What the family of a module can be."""
    function = getattr(module, "config_from_diffusers", None)
    return function and inspect.get_annotations(function, eval_str=True)["architecture"]


def _levels(network: Encoder | Decoder | MoVQDecoder) -> list[tuple[int, int, bool]]:
    """Width, blocks and attention of each level in the order in which they run."""
    return [
        (level.blocks[-1].conv2.out_channels, len(level.blocks), len(level.attentions) > 0)  # type: ignore[union-attr, index, arg-type]
        for level in network.levels
    ]


_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "group_norm": "norm",
    "spatial_norm": "norm",
}


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


_KINDS: dict[str, type[VQArchitecture] | type[KLArchitecture]] = {
    "VQModel": VQArchitecture,
    "AutoencoderKL": KLArchitecture,
}

_HALVES = {**_half("encoder", "down_blocks", "downsamplers"), **_half("decoder", "up_blocks", "upsamplers")}
_TRANSFORMS = {
    f"*.{place}.{name}.weight": _as_convolution for place in ("mid.1", "attentions.*") for name in ("[qkv]", "proj_out")
}

KEY_MAP = KeyMap(
    {
        **_HALVES,
        "quant_conv.*": "to_latent.*",
        "quantize.embedding.weight": "quantizer.codebook.weight",
        "post_quant_conv.*": "from_codes.*",
    },
    transforms=_TRANSFORMS,
)

KL_KEY_MAP = KeyMap(
    {
        **{theirs: f"base.{ours}" for theirs, ours in _HALVES.items()},
        "quant_conv.*": "base.to_posterior.*",
        "post_quant_conv.*": "base.from_latent.*",
    },
    transforms=_TRANSFORMS,
)
