"""SpeechTokenizer: EnCodec's network for speech, its first codebook distilled from a self-supervised speech model.

Paper: arXiv 2308.16692. Original: ZhangXInFD/SpeechTokenizer (Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from zoo.quantizers import EmaCodebookConfig, Quantized, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


def codebooks(size: int, dim: int, count: int) -> ResidualConfig:
    """EnCodec's residual codebooks as first released: the losses of all but the first stay away from the encoder."""
    codebook = EmaCodebookConfig(start="kmeans", kmeans_iterations=50, revive_below=2.0)
    return ResidualConfig(VectorConfig(size, dim, codebook=codebook), num_levels=count, gradient="through")


@dataclass(frozen=True)
class SpeechTokenizerConfig(Config):
    """Sizes of the network; the defaults are those of the published models."""

    network: SEANetConfig = SEANetConfig(filters=64, bidirectional=True, causal=False)
    sample_rate: int = 16_000
    quantizer: QuantizerConfig = codebooks(1024, 1024, 8)


@register("speechtokenizer")
class SpeechTokenizer(Tokenizer):
    """Speech (B, 1, T) in [-1, 1] -> frames of tokens (B, codebooks, ceil(T / hop)); every token depends on all of T.

    The linear map from the first codebook to the teacher's features, which the published files also hold, belongs to
    training: `zoo.losses.distillation.SemanticDistillation`.
    """

    layout = "frames"

    def __init__(self, config: SpeechTokenizerConfig) -> None:
        network = config.network
        spec = InputSpec("audio", network.channels, (-1.0, 1.0), None, network.hop_length, config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        self.encoder = SEANetEncoder(network, config.quantizer.dim)
        self.decoder = SEANetDecoder(network, config.quantizer.dim)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes.transpose(1, 2))

    def pad(self, x: Tensor) -> Tensor:
        return x  # every convolution pads its own input


def config_from_original(meta: dict[str, Any]) -> SpeechTokenizerConfig:
    """The config of the original's JSON file."""
    original = meta["original"]["kwargs"]["config"]
    network = SEANetConfig(
        filters=original["n_filters"],
        strides=tuple(reversed(original["strides"])),
        residual_layers=original["n_residual_layers"],
        dilation_base=original["dilation_base"],
        residual_kernel_size=original["residual_kernel_size"],
        lstm_layers=original["lstm_layers"],
        bidirectional=original["bidirectional"],
        activation="snake" if original["activation"].lower() == "snake" else "elu",
        causal=False,
    )
    quantizer = codebooks(original["codebook_size"], original["dimension"], original["n_q"])
    return SpeechTokenizerConfig(network, original["sample_rate"], quantizer)


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The mean of the levels' commitment losses; it is weighed by 10 in the sum."""
    return {"loss.commit": quantized.losses["commitment"]}


def seanet_keys(published: str, own: str) -> dict[str, str | None]:
    """The names of an encoder's or a decoder's layers."""
    return {
        f"{published}.{{}}.lstm.*": f"{own}.{{}}.lstm.*",
        f"{published}.{{}}.alpha": f"{own}.{{}}.alpha",
        f"{published}.{{}}.conv.conv.*": f"{own}.{{}}.*",
        f"{published}.{{}}.convtr.convtr.*": f"{own}.{{}}.*",
        f"{published}.{{}}.block.{{}}.alpha": f"{own}.{{}}.block.{{}}.alpha",
        f"{published}.{{}}.block.{{}}.conv.conv.*": f"{own}.{{}}.block.{{}}.*",
        f"{published}.{{}}.shortcut.conv.conv.*": f"{own}.{{}}.shortcut.*",
    }


KEY_MAP = KeyMap(
    {
        **seanet_keys("encoder.model", "encoder.layers"),
        **seanet_keys("decoder.model", "decoder.layers"),
        "quantizer.vq.layers.{}._codebook.embed": "quantizer.levels.{}.codebook.weight",
        "quantizer.vq.layers.{}._codebook.embed_avg": "quantizer.levels.{}.ema.total",
        "quantizer.vq.layers.{}._codebook.cluster_size": "quantizer.levels.{}.ema.count",
        "quantizer.vq.layers.{}._codebook.inited": "quantizer.levels.{}.codebook.started",
        "transform.*": None,  # to the teacher's features, in training alone
    },
    weight_norm=True,
    transforms={"*.started": lambda started: started.bool().squeeze()},
)
