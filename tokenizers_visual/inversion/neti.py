"""NeTI: one concept's word as a function of diffusion time and of the layer of the U-Net, with a bypass of the text
encoder.

Paper: arXiv 2305.15391. Original: NeuralTextualInversion/NeTI (MIT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizers_visual.inversion.clip import TextOutput, TransformersPair
from tokenizers_visual.inversion.projector import WordModel, WordsConfig
from tokenizers_visual.inversion.words import PseudoWords
from zoo import checkpoint
from zoo.checkpoint import CheckpointError, KeyMap
from zoo.registry import register

TIMES = 1000  # steps of diffusion
BYPASS = 0.2  # of the hidden state's norm, how far the bypass moves it
# cross-attention layers of Stable Diffusion's U-Net, in the order of their calls
UNET_LAYERS = (
    "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08",
    "OUT09", "OUT10", "OUT11",
)  # fmt: skip


@dataclass(frozen=True)
class NeTIConfig(WordsConfig):
    """Sizes of the mapper; the defaults are the published ones."""

    backbone: str = "CompVis/stable-diffusion-v1-4"
    layers: int = len(UNET_LAYERS)
    encoding: Literal["fourier", "plain"] = "fourier"  # plain: time and layer as two numbers in [-1, 1]
    frequencies: int = 1024  # of the Fourier features
    time_deviation: float = 0.03  # of the frequencies
    layer_deviation: float = 2.0
    time_anchors: int = 10  # times at which the first layer starts to look; a divisor of 1000
    hidden_dim: int = 128
    bypass: bool = True  # a second vector that moves the text encoder's last hidden state
    norm: float | None = None  # of the whole output, the norm of a similar word's embedding; None: as it comes
    dropout: float = 0.5  # probability of a call in training to cut hidden units off

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(min(self.layers, self.frequencies, self.hidden_dim) > 0, "positive sizes", self.to_dict())
        self.require(
            self.time_anchors > 0 and TIMES % self.time_anchors == 0,
            f"time_anchors that divide {TIMES}",
            self.time_anchors,
        )
        self.require(self.norm is None or self.norm > 0, "a positive norm", self.norm)
        self.require(0 <= self.dropout <= 1, "dropout in [0, 1]", self.dropout)


@dataclass(frozen=True)
class TimedWords:
    """One word for each of B times and layers, and its bypass (B, D) if there is one."""

    words: PseudoWords
    bypass: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """What a layer's cross-attention takes: its keys come from one version of the prompt, its values from the other."""

    keys: TextOutput
    values: TextOutput


@register("neti")
class NeTI(WordModel):
    """Times (B,) in 0..999 and layers (B,) of the U-Net -> one word each (B, D), with bypass (B, 2 D).

    The hidden units are ordered: cut off from the end, they leave a coarser and more editable word.
    """

    config: NeTIConfig
    frequencies: Tensor  # of the Fourier features, where there are any

    def __init__(self, config: NeTIConfig) -> None:
        super().__init__(config)
        fourier, hidden = config.encoding == "fourier", config.hidden_dim
        entries = config.time_anchors * config.layers if fourier else 2
        self.net = nn.Sequential(
            nn.Linear(entries, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.LeakyReLU(),
        )  # fmt: skip
        self.out = nn.Linear(hidden, config.word_dim * (2 if config.bypass else 1))
        if fourier:
            deviations = torch.tensor([config.time_deviation, config.layer_deviation])
            self.register_buffer("frequencies", torch.randn(config.frequencies, 2) * deviations)
            self.anchors = nn.Linear(2 * config.frequencies, entries)
            with torch.no_grad():
                self.anchors.weight.copy_(self.anchor_encodings())

    def encode(self, times: Tensor, layers: Tensor) -> Tensor:
        """Times and layers (B,) -> their encoding of norm 1 (B, 2 frequencies); plain: (B, 2)."""
        places = torch.stack([times, layers], dim=-1).to(self.out.weight.device, torch.float32)
        if self.config.encoding == "plain":  # of 16 layers, however many there are
            return 2 * places / places.new_tensor([TIMES - 1, len(UNET_LAYERS) - 1]) - 1
        angles = (places[:, None] * self.frequencies.to(places)).sum(-1)  # no product that autocast would round
        return F.normalize(torch.cat([angles.sin(), angles.cos()], dim=-1), dim=-1)

    def _replace_tensors(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> None:
        """All but the frequencies, which stay in float32: times up to 999 multiply them."""
        exact = self._buffers.get("frequencies")
        super()._replace_tensors(fn, recurse)
        if exact is not None and self.frequencies.dtype != exact.dtype:
            self.frequencies = exact.to(self.frequencies.device)

    def anchor_encodings(self) -> Tensor:
        """Encodings (anchors x layers, 2 frequencies) of evenly spaced times, each with all layers."""
        anchors, layers = self.config.time_anchors, self.config.layers
        times = torch.arange(0, TIMES, TIMES // anchors).repeat_interleave(layers)
        return self.encode(times, torch.arange(layers).repeat(anchors))

    def forward(self, times: Tensor, layers: Tensor, *, keep: int | Tensor | None = None) -> Tensor:
        """The mapper's output (B, D), or the word and then its bypass (B, 2 D).

        Args:
            times, layers: (B,).
            keep: how many hidden units are kept, of all or of each (B,); None: all, in training now and then fewer.
        """
        hidden = self.encode(times, layers).to(self.dtype)
        hidden = self.net(self.anchors(hidden) if self.config.encoding == "fourier" else hidden)
        width = hidden.shape[-1]
        if keep is None and self.training and torch.rand(()) < self.config.dropout:
            keep = torch.randint(width, (len(hidden),))
        if keep is not None:
            kept = torch.as_tensor(keep, device=hidden.device).reshape(-1, 1)
            hidden = hidden * (torch.arange(width, device=hidden.device) < kept)
        mapped = self.out(hidden)
        return mapped if self.config.norm is None else F.normalize(mapped, dim=-1) * self.config.norm

    def words(self, mapped: Tensor) -> TimedWords:
        """The mapper's output, as words and bypass."""
        words = PseudoWords(mapped[:, None, : self.config.word_dim], self.config.backbone)
        return TimedWords(words, mapped[:, self.config.word_dim :] if self.config.bypass else None)

    @torch.no_grad()
    def project(self, times: Tensor, layers: Tensor, *, keep: int | None = None) -> TimedWords:
        """The words of times and layers (B,), in evaluation mode and without gradients; see `forward`.

        Raises:
            ValueError: times or layers that there are not, or not as many of one as of the other.
        """
        if times.ndim != 1 or times.shape != layers.shape:
            shapes = f"{tuple(times.shape)} and {tuple(layers.shape)}"
            raise ValueError(f"expected as many times (B,) as layers (B,), got {shapes}")
        for name, values, count in (("times", times, TIMES), ("layers", layers, self.config.layers)):
            if not ((values >= 0) & (values < count)).all():
                raise ValueError(f"expected {name} in 0..{count - 1}, got {values.tolist()}")
        with self._evaluating():
            return self.words(self(times, layers, keep=keep))

    def compose(self, pair: TransformersPair, prompts: Any, words: TimedWords) -> Conditioning:
        """Prompts with one "$" each, or their ids (B, L), as one layer's cross-attention takes them at one time.

        Raises:
            ValueError: another text encoder; a prompt without "$", or with several where there is a bypass.
        """
        self.check_backbone(pair)
        ids, embeddings = pair.embed(prompts, words.words)
        if words.bypass is None:
            output = pair.encode_text(ids, embeddings)
            return Conditioning(output, output)
        places = ids == pair.placeholder_id
        if (counts := places.sum(1)).max() > 1:
            raise ValueError(f"expected one placeholder in each prompt, got {counts.tolist()}")
        hidden, output = pair.hidden_states(ids, embeddings)
        last = hidden[-1]
        way = F.normalize(words.bypass, dim=-1)[:, None] * last.norm(dim=-1, keepdim=True)
        moved = pair.final_norm(last + BYPASS * way * places[..., None])
        return Conditioning(output, TextOutput(output.features, moved))

    @torch.no_grad()
    def layer_prompts(
        self, pair: TransformersPair, prompt: Any, time: float, *, keep: int | None = None
    ) -> list[Conditioning]:
        """One prompt with "$", or its ids (1, L), at one time, for each layer in turn; see `project` and `compose`."""
        layers = torch.arange(self.config.layers, device=self.out.weight.device)
        made = self.compose(pair, prompt, self.project(torch.full_like(layers, int(time)), layers, keep=keep))
        parts = [
            [TextOutput(*part) for part in zip(side.features.split(1), side.hidden.split(1))]
            for side in (made.keys, made.values)
        ]
        return [Conditioning(*pair_of_sides) for pair_of_sides in zip(*parts)]


_ORIGINAL_DEFAULTS: dict[str, Any] = {
    "output_dim": 768, "unet_layers": UNET_LAYERS, "use_nested_dropout": True, "nested_dropout_prob": 0.5,
    "norm_scale": None, "use_positional_encoding": True, "num_pe_time_anchors": 10,
    "pe_sigmas": {"sigma_t": 0.03, "sigma_l": 2.0}, "output_bypass": True,
}  # fmt: skip


def config_from_original(meta: dict[str, Any]) -> NeTIConfig:
    """The config of the original's constructor arguments."""
    kwargs = {**_ORIGINAL_DEFAULTS, **meta["original"]["kwargs"]}
    layers, norm = kwargs["unet_layers"], kwargs["norm_scale"]
    return NeTIConfig(
        backbone=meta.get("base_model") or NeTIConfig.backbone,
        word_dim=kwargs["output_dim"],
        layers=layers if isinstance(layers, int) else len(layers),
        encoding="fourier" if kwargs["use_positional_encoding"] else "plain",
        frequencies=kwargs.get("num_w", NeTIConfig.frequencies),
        time_deviation=kwargs["pe_sigmas"]["sigma_t"],
        layer_deviation=kwargs["pe_sigmas"]["sigma_l"],
        time_anchors=kwargs["num_pe_time_anchors"],
        bypass=kwargs["output_bypass"],
        norm=None if isinstance(norm, str) else norm,  # a listing may say that it differs between concepts
        dropout=kwargs["nested_dropout_prob"] if kwargs["use_nested_dropout"] else 0.0,
    )


class _Encoder:
    """Stands for the encoder module that is pickled in the original's files: it keeps the attributes, does nothing."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state | state.get("_parameters", {}) | state.get("_buffers", {})


def load_concept(path: str | Path) -> NeTI:
    """The mapper of one concept, from a file `mapper-steps-N.pt` of the original; no code in it is run.

    Raises:
        CheckpointError: a file that is none, or that holds more than weights, settings and the encoder's frequencies.
    """
    names = [f"models.positional_encoding.{name}" for name in ("NeTIPositionalEncoding", "BasicEncoder")]
    try:
        with torch.serialization.safe_globals([(_Encoder, name) for name in names]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        state, settings, encoder = content["state_dict"], content["cfg"]["model"], content["encoder"]
        frequencies = state.pop("encoder.w", encoder.attributes.get("w"))
        bypass, fourier = settings.get("output_bypass", True), frequencies is not None
        sigmas = settings.get("pe_sigmas") or {}
        anchors = settings.get("num_pe_time_anchors", NeTIConfig.time_anchors)
        config = NeTIConfig(
            word_dim=len(state["output_layer.0.weight"]) // (2 if bypass else 1),
            layers=len(state["net.0.weight"]) // anchors if fourier else NeTIConfig.layers,
            encoding="fourier" if fourier else "plain",
            frequencies=len(frequencies) if fourier else NeTIConfig.frequencies,
            time_deviation=sigmas.get("sigma_t", NeTIConfig.time_deviation),
            layer_deviation=sigmas.get("sigma_l", NeTIConfig.layer_deviation),
            time_anchors=anchors,
            hidden_dim=state["output_layer.0.weight"].shape[1],
            bypass=bypass,
            norm=settings.get("target_norm"),
        )
    except Exception as error:
        raise CheckpointError(f"{path}: expected a mapper of NeTI: {type(error).__name__}: {error}") from error
    model = NeTI(config)
    checkpoint.load_into(model, KEY_MAP(state | ({"encoder.w": frequencies.detach()} if fourier else {})))
    return model.eval()


KEY_MAP = KeyMap(
    {
        "encoder.w": "frequencies",
        "input_layer.*": None,  # the same tensors as net.0
        "net.0.*": "anchors.*",
        "net.1.*": "net.0.*",
        "net.2.*": "net.1.*",
        "net.4.*": "net.3.*",
        "net.5.*": "net.4.*",
        "output_layer.0.*": "out.*",
    }
)
