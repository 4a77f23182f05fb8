"""A small codec between two short-time Fourier transforms: ConvNeXt blocks, residual VQ, ConvNeXt blocks.

The zoo's own speech codec. Decoder after Vocos (arXiv 2306.00814), quantizer after SoundStream (arXiv 2107.03312). The
last codebooks can code how the levels of frequency bands differ between the network's sound and the original: analysis
by synthesis, with shape and gain apart (Sabin and Gray, IEEE TASSP 32(3), 1984).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from zoo.config import Config
from zoo.layers.constants import HasConstants
from zoo.layers.vocos import ConvNeXtBlock, SpectralHead, overlap_add
from zoo.ops import kmeans, nearest_code
from zoo.ops.precision import full_precision
from zoo.quantizers import EmaCodebookConfig, FrozenCodebookConfig, QuantizerConfig, ResidualConfig, VectorConfig
from zoo.quantizers.composite import evaluating
from zoo.reach import Reach
from zoo.registry import register
from zoo.tokenizer import InputSpec, Tokenizer

MOST_BELS = 3.0  # that a band is made louder or softer
PASSES = 2  # over the signal, whose overlapping frames take a change of level in part only


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
    envelope_bands: int = 0  # whose levels the last codebooks correct, in the last dimensions of the codes; 0 for none
    network_codebooks: int = 4  # the first ones, which code the network's own latent alone, where there are such bands
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
        if self.envelope_bands != 0:
            fits = 1 <= self.envelope_bands < self.quantizer.dim
            self.require(fits, f"0 to {self.quantizer.dim - 1} envelope_bands", self.envelope_bands)
            self.require(self.quantizer.prefix, "a quantizer whose first codebooks make sense alone", self.quantizer)
            most = len(self.quantizer.vocab_sizes) - 1
            self.require(1 <= self.network_codebooks <= most, f"1 to {most} codebooks", self.network_codebooks)


@register("spectral_codec")
class SpectralCodec(Tokenizer):
    """Signals (B, 1, T) in [-1, 1] -> frames of tokens (B, levels, ceil(T / (hop_length * frames_per_token)))."""

    layout = "frames"
    config: SpectralCodecConfig

    def __init__(self, config: SpectralCodecConfig) -> None:
        multiple = config.hop_length * config.frames_per_token
        spec = InputSpec("audio", 1, (-1.0, 1.0), multiple=multiple, sample_rate=config.sample_rate)
        super().__init__(config, spec, config.quantizer)
        stride, bins = config.frames_per_token, config.n_fft // 2 + 1
        self.width = dim = config.quantizer.dim - config.envelope_bands  # of the network's codes
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
        self.envelope: Envelope | None = None
        if config.envelope_bands > 0:
            self.envelope = Envelope(config.sample_rate, config.hop_length, config.envelope_bands)

    def latent(self, x: Tensor) -> Tensor:
        z = self.encoder(x).transpose(1, 2)
        if self.envelope is None:
            return z
        with evaluating(self.quantizer):
            known = nn.functional.pad(z, (0, self.config.envelope_bands))
            levels = self.quantizer.first_levels(known, self.config.network_codebooks)
            sound = self.network_sound(self.quantizer.indices_to_codes(*levels))
            missing = self.envelope.levels(x) - self.envelope.levels(sound)
            missing = missing.unflatten(1, (-1, self.config.frames_per_token)).mean(2).clamp(-MOST_BELS, MOST_BELS)
        return torch.cat([z, missing.to(z.dtype)], dim=-1)

    def reconstruct(self, codes: Tensor) -> Tensor:
        sound = self.network_sound(codes)
        if self.envelope is None:
            return sound
        change = codes[..., self.width :].repeat_interleave(self.config.frames_per_token, dim=1)
        return self.envelope.changed(sound, change)

    def network_sound(self, codes: Tensor) -> Tensor:
        """Codes (B, T, D) -> the network's sound (B, 1, samples), before the levels of bands are corrected."""
        features = self.decoder(codes[..., : self.width].transpose(1, 2))
        return self.head(features.transpose(1, 2))

    def reach(self, part: Literal["encoder", "decoder"]) -> Reach:
        """How far a token sees in the recording, or a sample in the tokens."""
        config, frame = self.config, Reach(Fraction(1), Fraction(0), Fraction(0))
        stride = config.frames_per_token
        inner, outer = config.decoder_blocks
        sample = _convolved(frame, 1 + inner).then(Fraction(1, stride), Fraction(1 - stride, stride), Fraction(0))
        sample = _overlapped(_convolved(sample, outer), config.n_fft, config.hop_length)
        if part == "decoder":
            return sample if self.envelope is None else self.envelope.reach(sample, PASSES)
        outer, inner = config.encoder_blocks
        token = _convolved(_framed(frame, config.n_fft, config.hop_length), outer)
        token = _convolved(token.then(Fraction(stride), Fraction(0), Fraction(stride - 1)), inner)
        if self.envelope is None:
            return token
        known = token.then(sample.scale, sample.before, sample.after)
        known = _framed(known, len(self.envelope.window), config.hop_length)
        return known.then(Fraction(stride), Fraction(0), Fraction(stride - 1))


@torch.no_grad()
def with_envelope(
    model: SpectralCodec,
    recordings: Iterable[Tensor],
    *,
    bands: int = 40,
    network_codebooks: int = 4,
    iterations: int = 8,
    generator: torch.Generator | None = None,
) -> SpectralCodec:
    """A codec without an envelope -> one of its network and first codebooks, the others coding the levels of bands.

    Their codes are k-means centres of what the codebooks before leave over, on all tokens of the recordings.

    Args:
        model: of residual Euclidean codebooks.
        recordings: signals (1, 1, T) in [-1, 1].
        bands, network_codebooks: as in `SpectralCodecConfig`.
        iterations: of k-means.
        generator: of its start.

    Raises:
        ValueError: a model that has an envelope, or other codebooks; no recording.
    """
    given = model.config.quantizer
    if not (isinstance(given, ResidualConfig) and isinstance(given.level, VectorConfig) and given.searches_vectors):
        raise ValueError(f"expected a codec of residual Euclidean codebooks, got {given}")
    if model.envelope is not None:
        raise ValueError(f"expected a codec without an envelope, got one of {model.config.envelope_bands} bands")
    level = given.level.replace(dim=given.dim + bands, codebook=FrozenCodebookConfig())
    config = model.config.replace(
        quantizer=given.replace(level=level, dropout=None), envelope_bands=bands, network_codebooks=network_codebooks
    )
    result = SpectralCodec(config).to(model.device).eval()
    for name in ("encoder", "decoder", "head"):
        getattr(result, name).load_state_dict(getattr(model, name).state_dict())
    tables, known = ([level.codebook.weight.data for level in part.quantizer.levels] for part in (result, model))
    for table in tables:
        table.zero_()
    for table, codes in zip(tables[:network_codebooks], known):
        table[:, : given.dim] = codes
    found = [result.latent(result.pad(x.to(model.device)))[0, :, given.dim :] for x in recordings]
    if not found:
        raise ValueError("expected at least one recording, got none")
    left = torch.cat(found)
    for table in tables[network_codebooks:]:
        centres, _ = kmeans(left, len(table), iterations=iterations, generator=generator)
        table[:, given.dim :] = centres
        left = left - centres[nearest_code(left, centres)]
    return result


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


class CompressedSpectrum(HasConstants):
    """Signals (B, 1, T) -> (B, n_fft + 2, T / hop_length): real and imaginary parts, magnitudes to the power of 0.3.

    Frames lie symmetrically about their `hop_length` samples; beyond both ends of the signal are zeros.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_constant("window", torch.hann_window, n_fft)

    def forward(self, x: Tensor) -> Tensor:
        side = (self.n_fft - self.hop_length) // 2
        with full_precision(x):  # the transform has no half precision
            signal = nn.functional.pad(x[:, 0].float(), (side, side))
            spectrum = torch.stft(
                signal, self.n_fft, self.hop_length, window=self.window.float(), center=False, return_complex=True
            )
            parts = torch.view_as_real(spectrum)
            magnitude = parts.square().sum(-1, keepdim=True).add(1e-8)
            return (parts * magnitude.pow((0.3 - 1) / 2)).permute(0, 3, 1, 2).flatten(1, 2).to(x.dtype)


def _convolved(reach: Reach, blocks: int) -> Reach:
    """The reach of blocks of convolutions of 7 on top of it."""
    return reach.then(Fraction(1), Fraction(-3 * blocks), Fraction(3 * blocks))


def _framed(reach: Reach, n_fft: int, hop: int) -> Reach:
    """The reach of frames of the signal that has it."""
    side = (n_fft - hop) // 2
    return reach.then(Fraction(hop), Fraction(-side), Fraction(n_fft - 1 - side))


def _overlapped(reach: Reach, n_fft: int, hop: int) -> Reach:
    """The reach of a signal of overlapping frames that have it."""
    side = (n_fft - hop) // 2
    return reach.then(Fraction(1, hop), Fraction(side - n_fft + 1, hop), Fraction(side, hop))


class Envelope(HasConstants):
    """The levels of frequency bands, frame by frame, and signals in which they are changed.

    Bands are triangles, as many as `bands` from 0 to half the sample rate, spaced evenly over log(1 + f / 700 Hz), and
    add up to 1 at every frequency. Levels are in bel, tenths of which are decibels. Frames of 2.5 hops lie
    symmetrically about the samples of their hop.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, hop_length: int, bands: int) -> None:
        super().__init__()
        self.hop_length, n_fft = hop_length, 5 * hop_length // 4 * 2
        self.register_constant("bands", _triangles, sample_rate, n_fft, bands)
        self.register_constant("window", torch.hann_window, n_fft)

    def levels(self, x: Tensor) -> Tensor:
        """Signals (B, 1, T) -> (B, T / hop_length, bands), float32."""
        with full_precision(x):
            return self._levels(self._spectrum(x))

    def changed(self, x: Tensor, change: Tensor) -> Tensor:
        """Signals (B, 1, T) whose levels are changed by (B, T / hop_length, bands) bel."""
        with full_precision(x):
            signal, target = x.float(), None
            for _ in range(PASSES):
                spectrum = self._spectrum(signal)
                levels = self._levels(spectrum)
                target = levels + change.float() if target is None else target
                gain = (target - levels).clamp(-MOST_BELS, MOST_BELS) @ self.bands.float().T
                raised = spectrum * (10 ** (gain / 2)).transpose(1, 2)
                signal = overlap_add(raised, self.window.float(), self.hop_length)[:, None]
            return signal.to(x.dtype)

    def reach(self, reach: Reach, passes: int) -> Reach:
        """The reach of a signal after so many passes over one that has this reach."""
        sizes = len(self.window), self.hop_length
        for _ in range(passes):
            reach = _overlapped(_framed(reach, *sizes), *sizes)
        return reach

    def _spectrum(self, x: Tensor) -> Tensor:
        """(B, 1, T) -> (B, frequencies, T / hop_length)."""
        window = self.window.float()
        side = (len(window) - self.hop_length) // 2
        signal = nn.functional.pad(x[:, 0].float(), (side, side))
        return torch.stft(signal, len(window), self.hop_length, window=window, center=False, return_complex=True)

    def _levels(self, spectrum: Tensor) -> Tensor:
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (power.transpose(1, 2) @ self.bands.float() + 1e-5).log10()


def _triangles(sample_rate: int, n_fft: int, bands: int) -> Tensor:
    """(frequencies, bands): weights that fall to 0 at the centres of the neighbours, evenly spaced in mel."""
    frequencies = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
    places = (1 + frequencies / 700).log()
    places = places / places[-1] * (bands - 1)
    return (1 - (places[:, None] - torch.arange(bands)).abs()).clamp_min(0).float()
