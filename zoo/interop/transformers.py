"""transformers' codecs and image tokenizers as models of the zoo, and back, with the same tokens and signals.

A family whose networks transformers has too holds a `TransformersLayout` under the name `TRANSFORMERS`. Both ways go
through the files that transformers itself writes and reads, so that its releases may name modules as they like.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo import cards
from zoo.checkpoint import load_into, read
from zoo.config import Config
from zoo.interop.export import SIGNALS_AGREE, TOKENS_AGREE, ExportError, example_sides, example_signal
from zoo.key_map import WEIGHT_NORMS, KeyMap
from zoo.registry import import_module, registry
from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def encode_codec(peer: Any, x: Tensor) -> Tensor:
    """Tokens (B, codebooks, frames) of a codec of transformers, of signals (B, C, T)."""
    codes: Tensor = peer.encode(x).audio_codes
    return codes


def decode_codec(peer: Any, tokens: Tokens) -> Tensor:
    """What a codec of transformers decodes: (B, C, T)."""
    signal: Tensor = peer.decode(audio_codes=tokens.indices).audio_values
    return signal if signal.ndim == 3 else signal[:, None]


def codec_extractor(kind: str, config: Any) -> Any:
    """The feature extractor of transformers, by the name of its class, that goes with a codec's config."""
    import transformers

    fields = {"hop_length": "hop_length", "chunk_length_s": "chunk_length_s", "overlap": "overlap"}
    known = {field: getattr(config, name) for field, name in fields.items() if hasattr(config, name)}
    channels = getattr(config, "audio_channels", 1)
    rate = config.sampling_rate if hasattr(config, "sampling_rate") else config.sample_rate
    return getattr(transformers, kind)(feature_size=channels, sampling_rate=rate, **known)


@dataclass(frozen=True)
class SpeechModel:
    """A published speech model, which transformers holds among the weights of a codec and ours uses as `features`.

    Attributes:
        module: its name in the codec of transformers.
        config: the field of its config.
    """

    module: str
    config: str


@dataclass(frozen=True)
class TransformersLayout:
    """How a family's models stand in transformers.

    Attributes:
        model, config: names of the classes.
        key_map: names in the files that `save_pretrained` writes -> own names.
        to_config: values of its config by field -> our config.
        to_fields: our config -> values of its config that are not at their defaults, or a ValueError where transformers
            has no such network.
        weights: of a model, by the names that the key map gives before it finishes.
        encode, decode: of its model: a batch -> indices as `Tokens.indices` has them; tokens -> a batch.
        extractor: its config -> what prepares signals for it.
        speech: the speech model that it holds.
        training: what the names of weights begin with that only its training needs. Ours do not have them; they stay as
            a new model has them.
    """

    model: str
    config: str
    key_map: KeyMap
    to_config: Callable[[dict[str, Any]], Config]
    to_fields: Callable[[Any], dict[str, Any]]
    weights: Callable[[Any], dict[str, Tensor]] = lambda model: dict(model.state_dict())
    encode: Callable[[Any, Tensor], Tensor] = encode_codec
    decode: Callable[[Any, Tokens], Tensor] = decode_codec
    extractor: Callable[[Any], Any] | None = None
    speech: SpeechModel | None = None
    training: tuple[str, ...] = ()

    def file(self, model: Tokenizer, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the names of the files, in the shapes and types of `examples`.

        Raises:
            ValueError: weights that transformers does not have, or that the model does not have.
        """
        own, used, found = self.weights(model), set(), {}
        apart = self.training if self.speech is None else (*self.training, f"{self.speech.module}.")
        for key, example in examples.items():
            if key.startswith(apart):
                found[key] = example
                continue
            plain, part = _without_norm(key)
            name = self.key_map.name(plain, examples)
            if name not in own:
                raise ValueError(f"expected a model with the weight {name}, which {self.model} has as {key}")
            used.add(name)
            value = own[name].cpu()
            if part is not None:
                value = _magnitude_and_direction(value)[part]
            found[key] = value.reshape(example.shape).to(example.dtype).contiguous()
        if surplus := sorted(own.keys() - used):
            raise ValueError(f"expected a network without {', '.join(surplus)}, which {self.model} does not have")
        return found


def from_transformers(peer: PreTrainedModel) -> Tokenizer:
    """A model of the zoo with the weights of a model of transformers, in evaluation mode, on its device and in its
    precision.

    Args:
        peer: EncodecModel, DacModel, MimiModel, XcodecModel, Xcodec2Model, WavTokenizerModel or JanusVQVAE, of any
            sizes.

    Returns:
        A model whose tokens and signals are those of `peer`. It takes over a copy of the speech model that `peer`
        holds; a folder written of it holds the name of that alone.

    Raises:
        ValueError: another class, or a network that the family does not hold.
    """
    kind, layouts = type(peer).__name__, _layouts()
    known = {layout.model: (name, layout) for name, layout in layouts.items()}
    if kind not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))} of transformers, got {kind}")
    name, layout = known[kind]
    model: Tokenizer = registry.family(name).model(layout.to_config(peer.config.to_dict()))  # type: ignore[call-arg, assignment]
    with TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        load_into(model, layout.key_map(read(Path(folder))))
    if layout.speech is not None:
        model.features.use(copy.deepcopy(getattr(peer, layout.speech.module)).float())  # type: ignore[operator, union-attr]
    return model.to(peer.device, peer.dtype).eval()


def to_transformers(model: Tokenizer) -> PreTrainedModel:
    """A model of transformers with the weights of a model of the zoo, in evaluation mode, on its device and in its
    precision; its tokens and signals are the same.

    Raises:
        ValueError: a family, or a network, that transformers does not have.
        OSError: the speech model, which it holds, cannot be read.
    """
    import transformers
    from safetensors.torch import save_file

    layout = _layout_of(model)
    kind, fields = getattr(transformers, layout.model), layout.to_fields(model.config)
    speech = None if layout.speech is None else model.features.network  # type: ignore[union-attr]
    if layout.speech is not None:
        fields[layout.speech.config] = copy.deepcopy(speech.config)  # type: ignore[union-attr]
    config = getattr(transformers, layout.config)(**fields)
    layout.to_config(config.to_dict())  # refuses a speech model that runs otherwise there
    outline = kind(config)
    with TemporaryDirectory() as folder:
        outline.save_pretrained(folder)
        examples = read(Path(folder))
        (file,) = Path(folder).glob("*.safetensors")
        save_file(layout.file(model, examples), file, metadata={"format": "pt"})
        peer: PreTrainedModel = kind.from_pretrained(folder)
    if layout.speech is not None:
        getattr(peer, layout.speech.module).load_state_dict(speech.state_dict())  # type: ignore[union-attr]
    parameter = next(model.parameters())
    return peer.to(parameter.device, parameter.dtype).eval()  # type: ignore[no-any-return, arg-type]


@dataclass(frozen=True)
class Saved:
    """A folder in the layout of transformers.

    Attributes:
        kind: the class that reads it.
        files: what was written.
        tokens: share of equal tokens.
        samples: the largest difference of a sample, as a share of the value range.
    """

    kind: str
    files: tuple[Path, ...]
    tokens: float
    samples: float


def save(model: Tokenizer, folder: str | Path, *, size: tuple[int, ...] | None = None) -> Saved:
    """Write what `from_pretrained` of transformers reads, read it, and compare it with the model.

    Args:
        model: on the CPU.
        folder: is made where it is missing.
        size: of the signal that both are run on: sides or samples; default: about 256 pixels a side, or a second.

    Raises:
        ValueError: as `to_transformers`.
        ExportError: what was written gives something else than the model; nothing of it is left.
    """
    import transformers

    layout, folder = _layout_of(model), Path(folder)
    peer = to_transformers(model)
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    peer.save_pretrained(folder)
    if layout.extractor is not None:
        layout.extractor(peer.config).save_pretrained(folder)
    files = tuple(sorted(set(folder.iterdir()) - before))
    try:
        same, difference = agreement(
            model, getattr(transformers, layout.model).from_pretrained(folder).eval(), size=size
        )
    except ExportError:
        for file in files:
            file.unlink()
        raise
    return Saved(layout.model, files, same, difference)


@torch.no_grad()
def agreement(model: Tokenizer, peer: Any, *, size: tuple[int, ...] | None = None) -> tuple[float, float]:
    """Share of equal tokens, and the largest difference of a sample as a share of the value range.

    Raises:
        ExportError: more of either than rounding explains.
    """
    layout = _layout_of(model)
    x = example_signal(model, example_sides(model, size), 2, 0).to(model.dtype)
    tokens = model.encode(x)
    same = float((layout.encode(peer, x).reshape(tokens.indices.shape) == tokens.indices).float().mean())
    if same < TOKENS_AGREE:
        raise ExportError(f"{layout.model} of {model.name}: {1 - same:.2%} of the tokens are others")
    ours, theirs = model.decode(tokens), layout.decode(peer, tokens)
    length = min(ours.shape[-1], theirs.shape[-1])  # zeros may stand at the end of ours
    low, high = model.spec.value_range
    difference = float((ours[..., :length] - theirs[..., :length]).abs().max()) / (high - low)
    if not difference < SIGNALS_AGREE:
        raise ExportError(f"{layout.model} of {model.name}: samples differ by {difference:.2g} of the value range")
    return same, difference


def _layouts() -> dict[str, TransformersLayout]:
    """Those of all families that have one, by the family's name."""
    modules = {manifest.family: import_module(manifest.module) for manifest in cards.manifests()}
    return {name: module.TRANSFORMERS for name, module in modules.items() if hasattr(module, "TRANSFORMERS")}


def _layout_of(model: Tokenizer) -> TransformersLayout:
    family = registry.family_of(model)
    layout: TransformersLayout | None = getattr(family.module, "TRANSFORMERS", None)
    if layout is None:
        known = ", ".join(sorted(_layouts()))
        raise ValueError(f"expected a model of a family that transformers has too ({known}), got {family.name}")
    return layout


def _without_norm(key: str) -> tuple[str, int | None]:
    """The name of the weight that a key is a part of: 0 is its magnitude and 1 its direction, None all of it."""
    for pair in WEIGHT_NORMS:
        for part, suffix in enumerate(pair):
            if key.endswith(f".{suffix}"):
                return key.removesuffix(suffix) + "weight", part
    return key, None


def _magnitude_and_direction(weight: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    return magnitude, torch.where(magnitude == 0, 1.0, weight)  # zeros have no direction
