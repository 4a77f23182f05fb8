"""WavTokenizer: EnCodec's encoder, one codebook, and a Vocos decoder with attention that ends in an inverse STFT.

Paper: arXiv 2408.16532. Original: jishengpeng/WavTokenizer (MIT); files of transformers' WavTokenizerModel load too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from audio.encodec import KEY_MAP_TRANSFORMERS as ENCODEC_KEYS
from audio.encodec import NORMS
from audio.speechtokenizer import seanet_keys
from zoo.checkpoint import KeyMap
from zoo.config import Config
from zoo.interop.transformers import TransformersLayout, codec_extractor
from zoo.layers.attention import SpatialAttention
from zoo.layers.resnet import ResBlock
from zoo.layers.seanet import SEANetConfig, SEANetEncoder, seanet_from_transformers, seanet_to_transformers
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


_DECODER_FIELDS = {"decoder_attention_num_groups": 32, "norm_eps": 1e-6}  # of transformers, where they may be others


def config_from_transformers(fields: dict[str, Any]) -> WavTokenizerConfig:
    """The config of the fields of transformers' WavTokenizerConfig.

    Raises:
        ValueError: a decoder with other norms than WavTokenizer's.
    """
    found = {name: fields[name] for name in _DECODER_FIELDS}
    if found != _DECODER_FIELDS:
        raise ValueError(f"expected WavTokenizer's decoder, {_DECODER_FIELDS}, got {found}")
    network = seanet_from_transformers(
        {**fields, "trim_right_ratio": 1.0}, lstm_layers=fields["num_lstm_layers"], norm=NORMS[fields["norm_type"]]
    )
    return WavTokenizerConfig(
        network=network,
        width=fields["decoder_hidden_size"],
        hidden=fields["decoder_intermediate_size"],
        layers=fields["decoder_num_layers"],
        conditions=fields["adanorm_num_embeddings"],
        n_fft=4 * network.hop_length,
        sample_rate=fields["sampling_rate"],
        quantizer=codebook(fields["codebook_size"], fields["codebook_dim"]),
    )


def fields_for_transformers(config: WavTokenizerConfig) -> dict[str, Any]:
    """Values of transformers' WavTokenizerConfig.

    Raises:
        ValueError: a network or quantizer that WavTokenizerModel does not have.
    """
    network, quantizer = config.network, config.quantizer
    plain = (network.activation, network.bidirectional, network.channels) == ("elu", False, 1)
    if not plain or quantizer != codebook(quantizer.vocab_sizes[0], quantizer.dim):
        raise ValueError(f"expected EnCodec's network for one channel and WavTokenizer's codebook, got {config}")
    if config.n_fft != 4 * network.hop_length:
        raise ValueError(f"expected an n_fft of 4 hops, {4 * network.hop_length}, got {config.n_fft}")
    seanet = seanet_to_transformers(network)
    del seanet["trim_right_ratio"]  # of a decoder
    return {
        **seanet,
        "norm_type": "time_group_norm" if network.norm == "time_group_norm" else "weight_norm",
        "num_lstm_layers": network.lstm_layers,
        "sampling_rate": config.sample_rate,
        "hidden_size": quantizer.dim,
        "codebook_size": quantizer.vocab_sizes[0],
        "codebook_dim": quantizer.dim,
        "decoder_hidden_size": config.width,
        "decoder_intermediate_size": config.hidden,
        "decoder_num_layers": config.layers,
        "adanorm_num_embeddings": config.conditions,
    }


def original_losses(quantized: Quantized, meta: dict[str, Any]) -> dict[str, Tensor]:
    """The commitment loss; it is weighed by 1000 in the sum."""
    return {"loss.commit": quantized.losses["commitment"]}


def _codebook_keys(published: str) -> dict[str, str | None]:
    return {
        f"{published}.embed": "quantizer.codebook.weight",
        f"{published}.embed_avg": "quantizer.ema.total",
        f"{published}.cluster_size": "quantizer.ema.count",
        f"{published}.inited": "quantizer.codebook.started",
    }


_TRANSFORMS = {"*.started": lambda started: started.bool().squeeze()}
_BACKBONE_KEYS = {
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
}

KEY_MAP = KeyMap(
    {
        **seanet_keys("feature_extractor.encodec.encoder.model", "encoder.layers"),
        "feature_extractor.encodec.decoder.*": None,  # EnCodec's own, which is never run
        **_codebook_keys("feature_extractor.encodec.quantizer.vq.layers.0._codebook"),
        **_BACKBONE_KEYS,
        "head.out.*": "decoder.head.out.*",
        "head.istft.window": None,  # Hann's
        **{  # networks of the original's training, which lie in the same file
            f"{name}.*": None
            for name in ("discriminator", "multiperioddisc", "multiresddisc", "dac", "dacdiscriminator", "melspec_loss")
        },
    },
    weight_norm=True,
    transforms=_TRANSFORMS,
)

KEY_MAP_TRANSFORMERS = KeyMap(
    {
        **{
            name.replace("*.layers", "encoder_model.encoder.layers"): own and own.replace("*.layers", "encoder.layers")
            for name, own in ENCODEC_KEYS.patterns.items()
            if name.startswith("*.layers")
        },
        **_codebook_keys("encoder_model.quantizer.codebook"),
        **_BACKBONE_KEYS,
        "head.linear.*": "decoder.head.out.*",
    },
    weight_norm=True,
    transforms=_TRANSFORMS,
)

TRANSFORMERS = TransformersLayout(
    "WavTokenizerModel",
    "WavTokenizerConfig",
    KEY_MAP_TRANSFORMERS,
    config_from_transformers,
    fields_for_transformers,
    extractor=partial(codec_extractor, "WavTokenizerFeatureExtractor"),
)
