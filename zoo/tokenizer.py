"""Tokenizer: the contract that every family obeys. A family writes `latent` and `reconstruct`; the rest is here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo import tiled
from zoo.adaptive import Quality, cut, fewest
from zoo.config import Config
from zoo.model import Model
from zoo.options import chosen, codebooks, plain
from zoo.quantizers.base import Quantized, Quantizer, QuantizerConfig
from zoo.tokens import Extent, Layout, Order, Tokens, integers, require_tokens, unflatten_ids

_AXES = {"image": ("height", "width"), "video": ("frames", "height", "width"), "audio": ("samples",)}


@dataclass(frozen=True)
class InputSpec:
    """What a model takes.

    Attributes:
        modality: "image": (B, C, H, W); "video": (B, C, T, H, W); "audio": (B, C, T).
        channels: C.
        value_range: least and largest value of a sample or pixel.
        size: (height, width), (frames, height, width) or (samples,) where the model takes no other; None for any size.
        multiple: sides are padded to multiples of it (the stride, or hop length) and cropped again by decoding.
        sample_rate: in Hz, of audio.
        causal: whether a token depends on no later sample.
        frame_multiple: of video, whose first frame stands alone: the number of frames after it is padded likewise.

    Raises:
        ValueError: audio without a sample rate, or a frame_multiple of what is no video.
    """

    modality: Literal["image", "video", "audio"]
    channels: int
    value_range: tuple[float, float]
    size: tuple[int, ...] | None = None
    multiple: int = 1
    sample_rate: int | None = None
    causal: bool = False
    frame_multiple: int = 1

    def __post_init__(self) -> None:
        if self.modality == "audio" and self.sample_rate is None:
            raise ValueError("expected a sample_rate of audio, got none")
        if self.modality != "video" and self.frame_multiple != 1:
            raise ValueError(f"expected a frame_multiple of 1 for {self.modality}, got {self.frame_multiple}")

    def check_shape(self, x: Tensor) -> None:
        """Raise a ValueError, with expected and got, unless `x` is a floating point batch of an allowed size."""
        axes = _AXES[self.modality]
        wanted = f"(batch, {self.channels}, {', '.join(map(str, self.size or axes))})"
        if not isinstance(x, Tensor):
            raise ValueError(
                f"expected a tensor {wanted}, got {type(x).__name__}; zoo.media.load reads files and arrays"
            )
        if x.layout != torch.strided:
            raise ValueError(f"expected a dense tensor {wanted}, got layout {x.layout}")
        if not x.is_floating_point() or x.itemsize == 1:
            expected = f"floating point values in {list(self.value_range)}, of 16 bits or more"
            raise ValueError(f"expected {expected}, got {x.dtype}")
        if x.ndim != 2 + len(axes) or x.shape[1] != self.channels or 0 in x.shape:
            raise ValueError(f"expected a batch of shape {wanted}, got {tuple(x.shape)}")
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            raise ValueError(f"expected a batch of shape {wanted}, got {tuple(x.shape)}")

    def check(self, x: Tensor) -> None:
        """`check_shape`, and that every value is finite and in range (one pass over the data)."""
        self.check_shape(x)
        if x.is_meta:
            raise ValueError("expected a tensor with data, got one of the meta device")
        low, high = self.value_range
        least, largest = (bound.item() for bound in x.aminmax())
        slack = (high - low) * 1e-3  # rounding of half precision and of resampling
        if not (low - slack <= least and largest <= high + slack):
            raise ValueError(f"expected values in [{low}, {high}], got {least:.4g} to {largest:.4g}")

    def sides(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size of a signal as a tuple; numbers of NumPy are taken as Python's.

        Raises:
            ValueError: no sequence, or one of other axes than the modality's.
        """
        axes, sides = _AXES[self.modality], plain(size)
        if not isinstance(sides, list) or len(sides) != len(axes):
            raise ValueError(f"extent: expected ({', '.join(axes)}), got {size!r}")
        return tuple(sides)

    def padding(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """How much each side grows at its end."""
        if self.modality == "video":
            frames, *sides = size
            return (-(frames - 1) % self.frame_multiple, *(-side % self.multiple for side in sides))
        return tuple(-side % self.multiple for side in size)

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of a plain grid of positions for a signal of `size` after padding."""
        if self.modality == "video":
            frames, *sides = size
            return (1 + (frames - 1) // self.frame_multiple, *(side // self.multiple for side in sides))
        return tuple(side // self.multiple for side in size)

    def size_of(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        """The size, after padding, of a signal with a plain grid of `positions`."""
        if self.modality == "video":
            frames, *sides = positions
            return (1 + (frames - 1) * self.frame_multiple, *(side * self.multiple for side in sides))
        return tuple(side * self.multiple for side in positions)


@dataclass(frozen=True)
class Output:
    """What training needs of one pass: reconstruction, latent before quantisation, and what the quantizer gave."""

    reconstruction: Tensor
    latent: Tensor
    quantized: Quantized


class Tokenizer(Model):
    """A signal to integers and back.

    A family sets `layout`, calls `super().__init__(config, spec, quantizer)`, and writes `latent` and `reconstruct`.
    One whose method is more (halting, streaming, ...) names the options it takes and overrides `encode_levels` or
    `decode_codes`. A quantizer whose first levels make sense alone brings `prefix` and the option `num_codebooks`, one
    whose levels differ in size the layout `scales`. A model that has no decoder says so by `has_decoder`; one whose
    published files lack a part that makes the signal names the config's field and a value for it by `further_parts`.
    """

    layout: Layout = "grid"
    prefix: Literal["positions", "levels"] | None = None
    encode_options: frozenset[str] = frozenset()
    decode_options: frozenset[str] = frozenset()
    own_losses: frozenset[str] = frozenset()  # that a training pass adds to those of the quantizer
    has_decoder: bool = True
    further_parts: ClassVar[Mapping[str, Config]] = {}

    def __init__(self, config: Config, spec: InputSpec, quantizer: QuantizerConfig) -> None:
        super().__init__(config)
        self.spec = spec
        self.quantizer: Quantizer = quantizer.build()
        if quantizer.prefix:
            self.prefix = "levels"
            self.encode_options = self.encode_options | {"num_codebooks"}
            if spec.sample_rate is not None:
                self.encode_options = self.encode_options | {"bitrate"}
        if quantizer.scales:
            self.layout = "scales"

    # -- what a family writes --------------------------------------------------------------------------------------

    def latent(self, x: Tensor) -> Tensor:
        """Signal (B, C, ...) of a size that needs no padding -> latent (B, *positions, D) before quantisation."""
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Code vectors (B, *positions, D) -> signal (B, C, ...)."""
        raise NotImplementedError

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Axes of the latent's positions for a signal of `size` after padding."""
        return self.spec.positions(size)

    def token_shapes(self, size: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Position axes of each level for a signal of `size` after padding."""
        return self.quantizer.config.level_shapes(self.positions(size))

    def shorter_rows(self, most: int) -> Sequence[int]:
        """Numbers of tokens below `most` that decode too, of models whose rows vary in length."""
        return range(1, most) if self.prefix == "positions" else ()

    def numbers_of_tokens(self, size: tuple[int, ...]) -> list[int]:
        """How many tokens a signal of `size` may get, ascending; of most models one number, or none that stands for all
        (levels of several axes, or of different numbers).
        """
        shapes = self.token_shapes(tuple(side + grow for side, grow in zip(size, self.spec.padding(size))))
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            return []
        return [*self.shorter_rows(shapes[0][0]), shapes[0][0]]

    def extent_of(self, x: Tensor) -> Extent:
        """What decoding needs of signals (B, C, ...) beside their tokens."""
        return Extent((tuple(x.shape[2:]),) * len(x), self.spec.sample_rate)

    def encode_levels(
        self, x: Tensor, *, num_codebooks: int | None = None, **options: Any
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Checked and padded signal -> index tensors of the levels, and lengths where items differ."""
        latent = self.latent(x)
        if num_codebooks is not None:
            return self.quantizer.first_levels(latent, num_codebooks), None
        return self.quantizer(latent).levels, None

    def decode_codes(self, codes: Tensor, tokens: Tokens, **options: Any) -> Tensor:
        """Code vectors of `tokens` -> padded signal."""
        return self.reconstruct(codes)

    def noise_shape(self, codes: Tensor) -> tuple[int, ...]:
        """Shape (B, ...) of the standard normal noise that `decode` takes with these code vectors (B, *positions, D).

        Raises:
            ValueError: a model that decodes without noise.
        """
        raise ValueError(f"{self.name} decodes without noise")

    def described(self) -> dict[str, Any]:
        return {
            "modality": self.spec.modality,
            "layout": self.layout,
            "quantizer": self.quantizer.config.kind,
            "config": self.config.to_dict(),
        }

    def compiled(self, mode: str | None = None) -> Self:
        self.latent = torch.compile(self.latent, mode=mode)  # type: ignore[method-assign]
        self.reconstruct = torch.compile(self.reconstruct, mode=mode)  # type: ignore[method-assign]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled functions, which are bound to this very model: copies and pickles are not compiled."""
        return {key: value for key, value in self.__dict__.items() if key not in ("latent", "reconstruct")}

    # -- what users call -------------------------------------------------------------------------------------------

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Number of codes of each level."""
        return self.quantizer.config.vocab_sizes

    @property
    def bitrates(self) -> tuple[float, ...]:
        """Bits per second of tokens with the first 1, 2, ... codebooks, at their nominal rate; of signals without a
        sample rate none.
        """
        if self.spec.sample_rate is None:
            return ()
        shapes = self.token_shapes((self.spec.multiple,))
        seconds = self.spec.multiple / self.spec.sample_rate
        bits = [math.prod(shape) * (size - 1).bit_length() for shape, size in zip(shapes, self.vocab_sizes)]
        return tuple(sum(bits[:count]) / seconds for count in range(1, len(bits) + 1))

    @torch.no_grad()
    def encode(
        self,
        x: Tensor | Sequence[Tensor],
        *,
        num_tokens: int | list[int] | None = None,
        quality: float | Quality | None = None,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
    ) -> Tokens:
        """Signals to tokens. Deterministic: an item alone, in any batch, and twice gives the same tokens.

        Args:
            x: a batch as `spec` states: (B, C, H, W), (B, C, T, H, W) or (B, C, T) in `spec.value_range`; or a list of
                audio signals (C, T) of any lengths, whose tokens are those of each alone.
            num_tokens, quality, num_codebooks, bitrate: for models that take them (see `encode_options`). A quality is
                a number where the model itself decides; a `zoo.Quality` gives each image the fewest tokens whose
                reconstruction reaches it, of any model that takes num_tokens (all of them where none do). A bitrate,
                in bits per second, chooses the most codebooks that stay within it (see `bitrates`).

        Raises:
            ValueError: input that `spec` does not allow, NaN included, or an option that the model does not take.
        """
        stated = quality if isinstance(quality, Quality) else None
        if not (quality is None or stated or "quality" in self.encode_options) and "num_tokens" in self.encode_options:
            raise ValueError(
                f"encode of {self.name} does not take quality as a number: expected a zoo.Quality, got {quality!r}"
            )
        options = chosen(
            "encode", self.name, self.encode_options, num_tokens=num_tokens, num_codebooks=num_codebooks,
            quality=quality if stated is None else None, bitrate=bitrate,
        )  # fmt: skip
        if bitrate is not None:
            options["num_codebooks"] = self._codebooks_within(options.pop("bitrate"), num_codebooks)
        codebooks(num_codebooks, len(self.vocab_sizes))
        self._require("encoder")
        if self.spec.modality == "audio" and isinstance(x, list | tuple):
            return self._encode_each(x, options)
        self.spec.check(x)
        return self._encode_batch(x, options) if stated is None else self._encode_within(x, stated, options)

    def _encode_within(self, x: Tensor, quality: Quality, options: dict[str, Any]) -> Tokens:
        """Of each image the fewest tokens that reach a quality."""
        if "num_tokens" not in self.encode_options or self.spec.modality != "image":
            raise ValueError(f"quality: expected a model of images that takes num_tokens, got {self.name}")
        if "num_tokens" in options:
            raise ValueError(f"expected num_tokens or quality, got both: {options['num_tokens']} and {quality}")
        self._require("decoder")
        whole = self._encode_batch(x, options) if self.prefix == "positions" else None

        def encoded(counts: list[int]) -> Tokens:
            if whole is None:
                return self._encode_batch(x, {**options, "num_tokens": counts})
            levels, lengths = cut(whole.levels, counts)
            return replace(whole, levels=levels, lengths=lengths)

        low, high = self.spec.value_range
        target = ((x.float() - low) / (high - low)).clamp(0, 1)

        def met(counts: list[int]) -> list[bool]:
            return quality.met(((self.decode(encoded(counts)).float() - low) / (high - low)).clamp(0, 1), target)

        return encoded(fewest(met, len(x), self.numbers_of_tokens(tuple(x.shape[2:]))))

    def _encode_batch(self, x: Tensor, options: dict[str, Any]) -> Tokens:
        x = x.to(self.dtype)
        with self._evaluating():
            levels, lengths = self.encode_levels(self.pad(x), **options)
            extent = self.extent_of(x)
        return Tokens(levels, self.vocab_sizes[: len(levels)], self.layout, lengths, self.source, extent, self.prefix)

    def _encode_each(self, items: Sequence[Tensor], options: dict[str, Any]) -> Tokens:
        """Signals (C, T) of unequal lengths; those of one length go together."""
        if not items:
            raise ValueError("expected at least one signal, got none")
        for item in items:
            self.spec.check(item[None] if isinstance(item, Tensor) else item)
        groups = _groups([tuple(item.shape[1:]) for item in items])
        parts = [self._encode_batch(torch.stack([items[i] for i in group]), options) for group in groups]
        order = [item for group in groups for item in group]
        return Tokens.cat(parts)[[order.index(item) for item in range(len(items))]]

    def _codebooks_within(self, bitrate: float, num_codebooks: int | None) -> int:
        if num_codebooks is not None:
            raise ValueError(f"expected num_codebooks or bitrate, got both: {num_codebooks} and {bitrate}")
        count = sum(rate <= bitrate * (1 + 1e-9) for rate in self.bitrates)
        if count == 0:
            raise ValueError(f"bitrate: expected at least {self.bitrates[0]:g} bits per second, got {bitrate:g}")
        return count

    @torch.no_grad()
    def decode(
        self,
        tokens: Tokens,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | list[int] | None = None,
        noise: Tensor | None = None,
        text: Any = None,
    ) -> Tensor:
        """Tokens to signals, of the size that was encoded, in `spec.value_range` but not clamped to it.

        Args:
            tokens: of this model, from `encode`, `tokens` or a file.
            steps, guidance_scale, seed, noise, text: for models that take them (see `decode_options`).

        Raises:
            ValueError: tokens of another model or shape, or of no item, or an option that the model does not take.
        """
        options = chosen(
            "decode", self.name, self.decode_options, steps=steps, guidance_scale=guidance_scale, seed=seed,
            noise=noise, text=text,
        )  # fmt: skip
        self._require("decoder")
        require_tokens(tokens)
        if len(tokens) == 0:
            raise ValueError("expected tokens of at least one item, got none")
        if self.spec.modality == "audio" and tokens.extent is not None:
            kinds = list(zip(tokens.extent.sizes, _row_lengths(tokens)))
            if tokens.lengths is not None or len(set(kinds)) > 1:
                return self._decode_each(tokens, _groups(kinds), options)
        return self._decode_batch(tokens, options)

    def _decode_batch(self, tokens: Tokens, options: dict[str, Any]) -> Tensor:
        with self._evaluating():
            signal = self.decode_codes(self.codes(tokens).to(self.dtype), tokens, **options)
        if tokens.extent is None:
            return signal
        largest = [max(sides) for sides in zip(*tokens.extent.sizes)]
        return signal[(..., *(slice(side) for side in largest))]

    def _decode_each(self, tokens: Tokens, groups: list[list[int]], options: dict[str, Any]) -> Tensor:
        """Items of unequal lengths, each as it is alone, and zeros after the shorter ones."""
        extent: Any = tokens.extent
        signals: dict[int, Tensor] = {}
        for group in groups:
            chosen = {
                name: option[group] if isinstance(option, Tensor) else [option[item] for item in group]
                if isinstance(option, list) else option
                for name, option in options.items()
            }  # fmt: skip
            signals |= zip(group, self._decode_batch(_trimmed(tokens[group]), chosen))
        longest = max(size[0] for size in extent.sizes)
        return torch.stack([F.pad(signals[i], (0, longest - signals[i].shape[-1])) for i in range(len(tokens))])

    @torch.no_grad()
    def encode_tiled(self, x: Tensor, *, tile: int = 512) -> Tokens:
        """`encode` of images of any size in little memory: tile by tile, each with as much margin as its tokens see.

        The tokens are those of `encode`, up to rounding: a latent on the very border of two codes may take the other
        where sums run in another order. A model with group norms walks over the tiles once for each (`zoo.tiling`).

        Args:
            x: (B, C, H, W) as `spec` states, on any device; the tiles go to that of the weights one after the other.
            tile: side in pixels, without the margin; a multiple of `spec.multiple`.

        Raises:
            ValueError: input as in `encode`; a model that sees the whole image in another way than by group norms and
                attention over maps, or whose quantizer takes more than single positions.
        """
        self._require("encoder")
        return tiled.encode(self, x, tile)

    @torch.no_grad()
    def decode_tiled(self, tokens: Tokens, *, tile: int = 512) -> Tensor:
        """`decode` of images of any size in little memory: tile by tile, each with as much margin as its pixels see.

        Args:
            tokens: of this model, on any device, where the image will lie too.
            tile: side in pixels, without the margin; a multiple of `spec.multiple`.

        Returns:
            The image of `decode`, up to rounding.

        Raises:
            ValueError: tokens as in `decode`, and a model as in `encode_tiled`.
        """
        self._require("decoder")
        return tiled.decode(self, tokens, tile)

    def forward(self, x: Tensor) -> Output:
        """One pass for training: `Output` with a reconstruction of the size of `x`.

        Raises:
            ValueError: a shape or dtype that `spec` does not allow (values are not checked).
        """
        self.spec.check_shape(x)
        latent = self.latent(self.pad(x))
        quantized = self.quantizer(latent)
        signal = self.reconstruct(quantized.codes.to(latent.dtype))
        return Output(signal[(..., *(slice(side) for side in x.shape[2:]))], latent, quantized)

    def codes(self, tokens: Tokens) -> Tensor:
        """The continuous code vectors (B, *positions, D), float32, for embedding tables and probing.

        Raises:
            ValueError: tokens of another model.
        """
        self._check_tokens(tokens)
        levels = [level.to(self.device) for level in tokens.levels]
        if self.layout == "scales" and tokens.extent is not None:
            size = tuple(max(sides) for sides in zip(*tokens.extent.sizes))
            grown = tuple(side + padding for side, padding in zip(size, self.spec.padding(size)))
            return self.quantizer.prefix_to_codes(self.positions(grown), *levels)
        return self.quantizer.indices_to_codes(*levels)

    def tokens(
        self, indices: Tensor, *, extent: Extent | Sequence[int] | None = None, order: Order | None = None
    ) -> Tokens:
        """Tokens from raw integers, those of a language model, say.

        Args:
            indices: in the form of `Tokens.indices`, of models of adaptive length also fewer; or ids (B, N) of
                `Tokens.flatten` when `order` is given.
            extent: size of the signals, its axes those of `spec`, for all items; or an `Extent`. It may be left
                out where the indices show their positions, which then are taken as without padding.
            order: "frame" or "level", the order in which `flatten` laid the ids.

        Raises:
            ValueError: integers of the wrong shape or outside the vocabulary, or an extent of other axes.
        """
        indices = integers(indices)
        if indices.ndim < 2 or len(indices) == 0:
            raise ValueError(f"expected a batch of indices (B, ...), got {tuple(indices.shape)}")
        if extent is None:
            extent = self.spec.size
        if extent is not None and not isinstance(extent, Extent):
            extent = Extent((self.spec.sides(extent),) * len(indices), self.spec.sample_rate)
        shapes = None
        if extent is not None:
            size = self.spec.sides([max(sides) for sides in zip(*extent.sizes)])
            shapes = self.token_shapes(tuple(s + p for s, p in zip(size, self.spec.padding(size))))
        if order is not None:
            if shapes is None:
                raise ValueError("ids of flatten need `extent`, the size of the signals")
            levels = unflatten_ids(indices, shapes, self.vocab_sizes, order)
        else:
            levels = self._levels(indices, shapes)
        if extent is None and self.layout == "grid":
            size = self.spec.size_of(tuple(levels[0].shape[1:]))
            extent = Extent((size,) * len(indices), self.spec.sample_rate)
        return Tokens(levels, self.vocab_sizes, self.layout, None, self.source, extent, self.prefix)

    def _levels(self, indices: Tensor, shapes: tuple[tuple[int, ...], ...] | None) -> tuple[Tensor, ...]:
        count = len(self.vocab_sizes)
        if self.layout == "scales":
            if shapes is None:
                raise ValueError("indices of several scales need `extent`, the size of the signals")
            sizes = [math.prod(shape) for shape in shapes]
            if indices.ndim != 2 or indices.shape[1] != sum(sizes):
                raise ValueError(f"expected indices (B, {sum(sizes)}), got {tuple(indices.shape)}")
            parts = indices.split(sizes, dim=1)
            return tuple(part.reshape(len(indices), *shape) for part, shape in zip(parts, shapes))
        stacked = count > 1 or self.layout == "frames"
        axes = len(_AXES[self.spec.modality]) if self.layout == "grid" else 1
        levels = indices.unbind(1) if stacked and indices.ndim == axes + 2 else (indices,)
        wanted = ["batch", *([count] if stacked else []), *(shapes[0] if shapes else ["positions"] * axes)]
        if any(level.ndim != axes + 1 for level in levels) or len(levels) != count:
            raise ValueError(f"expected indices of shape {wanted}, got {tuple(indices.shape)}")
        if shapes and axes == 1 and levels[0].shape[1] in self.shorter_rows(shapes[0][0]):
            return levels
        if shapes and any(tuple(level.shape[1:]) != shape for level, shape in zip(levels, shapes)):
            raise ValueError(f"expected indices of shape {wanted}, got {tuple(indices.shape)}")
        return levels

    # -- checks ----------------------------------------------------------------------------------------------------

    def pad(self, x: Tensor) -> Tensor:
        """Signals grown at their ends to the sides that the model takes, by repeating the last value."""
        padding = self.spec.padding(tuple(x.shape[2:]))
        if not any(padding):
            return x
        return F.pad(x, [side for grow in reversed(padding) for side in (0, grow)], mode="replicate")

    def _check_tokens(self, tokens: Tokens) -> None:
        require_tokens(tokens)
        tokens.require_from(self.source, self.layout, self.vocab_sizes, self.prefix)

    def overrides(self, *methods: str) -> bool:
        """Whether the family has its own way for one of these methods."""
        return any(getattr(type(self), name) is not getattr(Tokenizer, name) for name in methods)

    def _require(self, part: str) -> None:
        if self.device.type == "meta":
            raise ValueError(f"{self.name}: expected weights, got tensors without data (meta, or offloaded)")
        if part == "decoder" and not self.has_decoder:
            raise ValueError(
                f"{self.name} has no decoder: its tokens are for other models; `codes` gives their vectors"
            )
        if self.card is not None and self.card.part not in (None, part):
            raise ValueError(f"{self.name} holds only the {self.card.part}; load the whole model to use the {part}")


def _groups(kinds: Sequence[Any]) -> list[list[int]]:
    """The places of equal values."""
    places: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return list(places.values())


def _row_lengths(tokens: Tokens) -> list[tuple[int, ...]]:
    """Of each item the valid positions of each level."""
    if tokens.lengths is None:
        return [tuple(level.shape[1] for level in tokens.levels)] * len(tokens)
    lengths = tokens.lengths if tokens.lengths.ndim == 2 else tokens.lengths[:, None].expand(-1, len(tokens.levels))
    return [tuple(row) for row in lengths.tolist()]


def _trimmed(tokens: Tokens) -> Tokens:
    """Items of one length without what pads them."""
    levels = tuple(level[:, :length] for level, length in zip(tokens.levels, _row_lengths(tokens)[0]))
    return replace(tokens, levels=levels, lengths=None)
