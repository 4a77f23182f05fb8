"""A small codec between two short-time Fourier transforms: ConvNeXt blocks, residual VQ, ConvNeXt blocks.

The zoo's own speech codec. Decoder after Vocos (arXiv 2306.00814), quantizer after SoundStream (arXiv 2107.03312).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.vocos import ConvNeXtBlock, SpectralHead
from zoo.quantizers import EmaCodebookConfig, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer


@dataclass(frozen=True)
class SpectralCodecConfig(Config):
    """Sizes of the network. Outer blocks run at the rate of the transforms, inner ones at that of the tokens."""

    sample_rate: int = 16_000
    n_fft: int = 640  # of both transforms
    hop_length: int = 160  # of both transforms
    frames_per_token: int = 2
    encoder_widths: tuple[int, int] = (192, 256)  # of the outer and the inner blocks
    encoder_blocks: tuple[int, int] = (2, 3)
    decoder_widths: tuple[int, int] = (384, 256)  # of the inner and the outer blocks
    decoder_blocks: tuple[int, int] = (3, 3)
    expansion: int = 3  # hidden width of a block over its width
    quantizer: QuantizerConfig = ResidualConfig(
        VectorConfig(1024, 64, codebook=EmaCodebookConfig(start="kmeans", revive_below=1.0)), num_levels=12
    )

    def __post_init__(self) -> None:
        sizes = (self.hop_length, self.frames_per_token, self.expansion, *self.encoder_widths, *self.decoder_widths)
        self.require(min(sizes) >= 1, "sizes >= 1", sizes)
        spare = self.n_fft - self.hop_length
        self.require(
            spare > 0 and spare % 2 == self.n_fft % 2 == 0,
            f"an even n_fft above hop_length {self.hop_length}, by an even number",
            self.n_fft,
        )
        blocks = (*self.encoder_blocks, *self.decoder_blocks)
        self.require(min(blocks) >= 1, "at least one block each", blocks)


@register("spectral_codec")
class SpectralCodec(Tokenizer):
    """Signals (B, 1, T) in [-1, 1] -> frames of tokens (B, levels, ceil(T / (hop_length * frames_per_token)))."""

    layout = "frames"

    def __init__(self, config: SpectralCodecConfig) -> None:
        multiple = config.hop_length * config.frames_per_token
        spec = InputSpec("audio", 1, (-1.0, 1.0), multiple=multiple, sample_rate=config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        stride, bins, dim = config.frames_per_token, config.n_fft // 2 + 1, config.quantizer.dim
        outer, inner = config.encoder_widths
        self.encoder = nn.Sequential(
            CompressedSpectrum(config.n_fft, config.hop_length),
            nn.Conv1d(2 * bins, outer, 1),
            ConvNeXt(outer, config.encoder_blocks[0], config.expansion),
            nn.Conv1d(outer, inner, stride, stride),
            ConvNeXt(inner, config.encoder_blocks[1], config.expansion),
            nn.Conv1d(inner, dim, 1),
        )
        inner, outer = config.decoder_widths
        self.decoder = nn.Sequential(
            nn.Conv1d(dim, inner, 7, padding=3),
            ConvNeXt(inner, config.decoder_blocks[0], config.expansion),
            nn.ConvTranspose1d(inner, outer, stride, stride),
            ConvNeXt(outer, config.decoder_blocks[1], config.expansion),
        )
        self.head = SpectralHead(outer, config.n_fft, config.hop_length)

    def latent(self, x: Tensor) -> Tensor:
        return self.encoder(x).transpose(1, 2)

    def reconstruct(self, codes: Tensor) -> Tensor:
        return self.head(self.decoder(codes.transpose(1, 2)).transpose(1, 2))


class ConvNeXt(nn.Module):
    """`blocks` ConvNeXt blocks between layer norms: (B, C, T) -> the same."""

    def __init__(self, width: int, blocks: int, expansion: int) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(width, expansion * width, 1, 1 / blocks) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_in(x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x, 0)
        return self.norm_out(x.transpose(1, 2)).transpose(1, 2)


class CompressedSpectrum(nn.Module):
    """Signals (B, 1, T) -> (B, n_fft + 2, T / hop_length): real and imaginary parts, magnitudes to the power of 0.3.

    Frames lie symmetrically about their `hop_length` samples; beyond both ends of the signal are zeros.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        side = (self.n_fft - self.hop_length) // 2
        with torch.autocast(x.device.type, enabled=False):  # the transform has no half precision
            signal = nn.functional.pad(x[:, 0].float(), (side, side))
            spectrum = torch.stft(
                signal, self.n_fft, self.hop_length, window=self.window.float(), center=False, return_complex=True
            )
            parts = torch.view_as_real(spectrum)
            magnitude = parts.square().sum(-1, keepdim=True).add(1e-8)
            return (parts * magnitude.pow((0.3 - 1) / 2)).permute(0, 3, 1, 2).flatten(1, 2).to(x.dtype)
