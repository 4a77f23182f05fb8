"""WavTokenizer: EnCodec's encoder, one codebook, and a Vocos decoder with attention that ends in an inverse STFT.

Paper: arXiv 2408.16532. Original: jishengpeng/WavTokenizer (MIT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from audio.speechtokenizer import seanet_keys
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.layers.attention import SpatialAttention
from zoo.layers.resnet import ResBlock
from zoo.layers.seanet import SEANetConfig, SEANetEncoder
from zoo.layers.vocos import AdaptiveLayerNorm, ConvNeXtBlock, SpectralHead
from zoo.quantizers import EmaCodebookConfig, Quantized, QuantizerConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


def codebook(size: int, dim: int) -> VectorConfig:
    """EnCodec's codebook, with more steps of k-means at its start."""
    return VectorConfig(size, dim, codebook=EmaCodebookConfig(start="kmeans", kmeans_iterations=200, revive_below=2.0))


@dataclass(frozen=True)
class WavTokenizerConfig(Config):
    """Sizes of the network; the defaults are those of the published models of 75 tokens a second."""

    network: SEANetConfig = SEANetConfig(causal=False)  # of the encoder
    width: int = 768  # of the decoder, in multiples of 32
    hidden: int = 2304  # of its ConvNeXt blocks
    layers: int = 12
    conditions: int = 4  # rows of the adaptive norms: one is drawn for each training step, the first is used
    n_fft: int = 1280
    dropout: float = 0.1
    sample_rate: int = 24_000
    quantizer: QuantizerConfig = codebook(4096, 512)

    def __post_init__(self) -> None:
        self.require(self.width % 32 == 0, "a width in multiples of 32", self.width)
        self.require(min(self.layers, self.conditions) >= 1, "layers and conditions >= 1", self.conditions)
        hop = self.network.hop_length
        self.require(self.n_fft > hop and self.n_fft % 2 == 0, f"an even n_fft > {hop}", self.n_fft)


@register("wavtokenizer")
class WavTokenizer(Tokenizer):
    """Signals (B, 1, T) in [-1, 1] -> frames of one token (B, 1, ceil(T / hop)); every token depends on all of T.

    Attention in the decoder is over the whole signal: memory grows with the square of its length.
    """

    layout = "frames"

    def __init__(self, config: WavTokenizerConfig) -> None:
        network = config.network
        spec = InputSpec("audio", network.channels, (-1.0, 1.0), None, network.hop_length, config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        self.encoder = SEANetEncoder(network, config.quantizer.dim)
        self.decoder = VocosDecoder(config)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.decoder(codes)

    def pad(self, x: Tensor) -> Tensor:
        return x  # every convolution pads its own input


class VocosDecoder(nn.Module):
    """Codes (B, T, D) -> waveform (B, 1, T x hop). `condition`: the row of the adaptive norms."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Conv1d(config.quantizer.dim, width, 7, padding=3)
        self.context = nn.Sequential(
            ResBlock(width, width, dropout=config.dropout, dims=1),
            ResBlock(width, width, dropout=config.dropout, dims=1),
            SpatialAttention(width, dims=1),
            ResBlock(width, width, dropout=config.dropout, dims=1),
            ResBlock(width, width, dropout=config.dropout, dims=1),
            nn.GroupNorm(32, width, eps=1e-6),
        )
        self.norm = AdaptiveLayerNorm(width, config.conditions)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(width, config.hidden, config.conditions, 1 / config.layers) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=1e-6)
        self.head = SpectralHead(width, config.n_fft, config.network.hop_length)

    def forward(self, codes: Tensor, condition: int = 0) -> Tensor:
        x = self.context(self.embed(codes.transpose(1, 2)))
        x = self.norm(x.transpose(1, 2), condition).transpose(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        return self.head(self.norm_out(x.transpose(1, 2)))


def config_from_original(meta: dict[str, Any]) -> WavTokenizerConfig:
    """The config of the original's three parts; a fixture states their arguments in one dict."""
    kwargs = meta["original"]["kwargs"]
    if "backbone" in kwargs:
        kwargs = {**kwargs["feature_extractor"], **kwargs["backbone"], **kwargs["head"]}
    network = SEANetConfig(
        filters=kwargs.get("n_filters", 32), strides=tuple(reversed(kwargs["dowmsamples"])), causal=False
    )
    return WavTokenizerConfig(
        network=network,
        width=kwargs["dim"],
        hidden=kwargs["intermediate_dim"],
        layers=kwargs["num_layers"],
        conditions=kwargs["adanorm_num_embeddings"],
        n_fft=kwargs["n_fft"],
        quantizer=codebook(kwargs["vq_bins"], kwargs.get("dimension", 512)),
    )


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The commitment loss; it is weighed by 1000 in the sum."""
    return {"loss.commit": quantized.losses["commitment"]}


_CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook"

KEY_MAP = KeyMap(
    {
        **seanet_keys("feature_extractor.encodec.encoder.model", "encoder.layers"),
        "feature_extractor.encodec.decoder.*": None,  # EnCodec's own, which is never run
        f"{_CODEBOOK}.embed": "quantizer.codebook.weight",
        f"{_CODEBOOK}.embed_avg": "quantizer.ema.total",
        f"{_CODEBOOK}.cluster_size": "quantizer.ema.count",
        f"{_CODEBOOK}.inited": "quantizer.codebook.started",
        "backbone.embed.*": "decoder.embed.*",
        "backbone.pos_net.*": "decoder.context.*",
        "backbone.norm.scale.weight": "decoder.norm.scale",
        "backbone.norm.shift.weight": "decoder.norm.shift",
        "backbone.convnext.{}.dwconv.*": "decoder.blocks.{}.depthwise.*",
        "backbone.convnext.{}.norm.scale.weight": "decoder.blocks.{}.norm.scale",
        "backbone.convnext.{}.norm.shift.weight": "decoder.blocks.{}.norm.shift",
        "backbone.convnext.{}.pwconv1.*": "decoder.blocks.{}.fc1.*",
        "backbone.convnext.{}.pwconv2.*": "decoder.blocks.{}.fc2.*",
        "backbone.convnext.{}.gamma": "decoder.blocks.{}.scale",
        "backbone.final_layer_norm.*": "decoder.norm_out.*",
        "head.out.*": "decoder.head.out.*",
        "head.istft.window": None,  # Hann's
        **{  # networks of the original's training, which lie in the same file
            f"{name}.*": None
            for name in ("discriminator", "multiperioddisc", "multiresddisc", "dac", "dacdiscriminator", "melspec_loss")
        },
    },
    weight_norm=True,
    transforms={"*.started": lambda started: started.bool().squeeze()},
)
