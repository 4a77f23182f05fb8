"""Models as programs that need nothing of the zoo: torch.export archives and ONNX files of encoding and decoding.

`encode` takes `signal`, its sides multiples of the stride, and gives the index tensors of the levels, `level_0` and so
on; `decode` takes these and gives the signal of all their positions, that of codecs which normalise at loudness 1.
Where the decoder draws noise, that is the last input, `noise`: standard normal, of the shape that
`Tokenizer.noise_shape` gives; encoders draw none. Every program is run once more after it was written, on other signals
and noise than those it was traced with, and must give what the model gives.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.tokenizer import Tokenizer
from zoo.tokens import Tokens

Form = Literal["torch-export", "onnx"]
SUFFIXES: dict[Form, str] = {"torch-export": ".pt2", "onnx": ".onnx"}
DEFAULT_SIDE = 256  # pixels, of models of any size
DIFFUSERS_BATCH = 31  # its networks take another way for 64 items, of which guidance makes two of each
_MOST = 1 << 16  # items, or positions along a side
TOKENS_AGREE = 0.999  # an ONNX runtime sums in another order, which moves a latent on the border of two codes
SIGNALS_AGREE = 1e-3  # of the value range


class ExportError(ValueError):
    """A model that cannot be exported, or whose program gives something else; the message says why."""


class NoProgramError(ExportError):
    """A part of a model that is no fixed program."""


@dataclass(frozen=True)
class Exported:
    """One program.

    Attributes:
        part: "encode" or "decode".
        file: where it lies; None where there is none.
        reason: why there is none.
        free: the axes whose length is free: "batch", and of models of any size the sides.
        inputs, outputs: what it takes and gives: "signal", "level_0", "level_1", ..., "noise".
        agreement: share of equal tokens (encode), or the largest difference of a sample as a share of the value range.
    """

    part: Literal["encode", "decode"]
    file: Path | None
    reason: str = ""
    free: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    agreement: float = math.nan


def export(model: Tokenizer, folder: str | Path, form: Form, *, size: tuple[int, ...] | None = None) -> list[Exported]:
    """Write `encode` and `decode` of a model, as far as it has them, and run what was written.

    Args:
        model: in float32, on the CPU.
        folder: is made where it is missing.
        form: "torch-export": archives of `torch.export.save`, which `torch.export.load` reads; "onnx".
        size: of the signals, where the model takes any: sides or samples, which grow to what needs no padding; default:
            about 256 pixels a side, or a second.

    Returns:
        The programs; of what is no fixed program (its number of tokens depends on the signal, say), the reason.

    Raises:
        ExportError: neither part is one, or a program that gives something else than the model; it is not left behind.
        ImportError: ONNX is not installed.
    """
    if form not in SUFFIXES:
        raise ValueError(f"form: expected one of {', '.join(SUFFIXES)}, got {form!r}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sides = example_sides(model, size)
    done = []
    with torch.no_grad(), model._evaluating(), _quiet():
        traced, other = (example_signal(model, sides, count, seed) for count, seed in ((2, 0), (2, 1)))
        tokens, fresh = (_full(model, signal) for signal in (traced, other))
        programs = [_Program("encode", _Encode(model), {"signal": traced}, {"signal": other}, fresh.levels)]
        if model.has_decoder:
            given, others = (_decoder_arguments(model, each, seed) for seed, each in enumerate((tokens, fresh)))
            noise = {"noise": others["noise"]} if "noise" in others else {}
            image = model.decode(fresh, **noise)  # type: ignore[arg-type]
            programs.append(_Program("decode", _Decode(model, tokens), given, others, (image,)))
        for each in programs:
            try:
                done.append(_exported(each, model, folder / f"{each.part}{SUFFIXES[form]}", form))
            except NoProgramError as error:
                done.append(Exported(each.part, None, str(error)))
    if not any(program.file for program in done):
        raise ExportError("; ".join(program.reason for program in done))
    return done


def _exported(each: _Program, model: Tokenizer, file: Path, form: Form) -> Exported:
    try:
        program, free = _traced(each, model, form)
        outputs = ("signal",) if each.part == "decode" else _level_names(len(each.wanted))
        found = _write(program, file, form, tuple(each.arguments), outputs)(each.others)
        agreement = _agreement(each.wanted, found, model, each.part, form)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return Exported(each.part, file, "", free, tuple(each.arguments), outputs, agreement)


def _halts(model: Tokenizer) -> bool:
    """Whether the model chooses how many tokens a signal gets."""
    return type(model)._encode_batch is not Tokenizer._encode_batch


def _full(model: Tokenizer, signal: Tensor) -> Tokens:
    """Tokens as programs know them: all rows are full, decoding gives whole positions, and codecs that normalise keep
    no loudness beside them.
    """
    tokens = model.encode(signal)
    levels = model.encode_levels(signal)[0] if _halts(model) else tokens.levels
    extent = tokens.extent
    if extent is not None:
        sizes = tuple(tuple(side + grow for side, grow in zip(size, model.spec.padding(size))) for size in extent.sizes)
        extent = replace(extent, sizes=sizes, gains=None, places=None)
    return replace(tokens, levels=levels, lengths=None, extent=extent)


@dataclass(frozen=True)
class _Program:
    """What is traced, by name the tensors that it is traced with and others to run it on, and what these give."""

    part: Literal["encode", "decode"]
    module: nn.Module
    arguments: dict[str, Tensor]
    others: dict[str, Tensor]
    wanted: tuple[Tensor, ...]


def _level_names(count: int) -> tuple[str, ...]:
    return tuple(f"level_{i}" for i in range(count))


def _decoder_arguments(model: Tokenizer, tokens: Tokens, seed: int) -> dict[str, Tensor]:
    found = dict(zip(_level_names(len(tokens.levels)), tokens.levels))
    if "noise" in model.decode_options:
        shape = model.noise_shape(model.codes(tokens))
        found["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return found


class _Encode(nn.Module):
    def __init__(self, model: Tokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, signal: Tensor) -> tuple[Tensor, ...]:
        levels, lengths = self.model.encode_levels(self.model.pad(signal))
        if lengths is not None or _halts(self.model):
            raise NoProgramError(f"encode of {self.model.name}: the number of its tokens depends on the signal")
        return tuple(levels)


class _Decode(nn.Module):
    """Takes the levels, and the noise after them where the decoder draws some."""

    def __init__(self, model: Tokenizer, tokens: Tokens) -> None:
        super().__init__()
        self.model, self.tokens = model, tokens

    def forward(self, *given: Tensor) -> Tensor:
        noisy = "noise" in self.model.decode_options
        levels, options = (given[:-1], {"noise": given[-1]}) if noisy else (given, {})
        quantizer = self.model.quantizer
        if self.model.layout == "scales" and self.tokens.extent is not None:
            positions = self.model.positions(self.tokens.extent.sizes[0])
            codes = quantizer.prefix_to_codes(positions, *levels)
        else:
            codes = quantizer.indices_to_codes(*levels)
        return self.model.decode_codes(codes.to(self.model.dtype), self.tokens, **options)


# -- signals ---------------------------------------------------------------------------------------------------------


def example_sides(model: Tokenizer, size: tuple[int, ...] | None) -> tuple[int, ...]:
    """Sides of a signal that needs no padding; see `export` for `size`."""
    spec = model.spec
    if spec.size is not None:
        if size not in (None, spec.size):
            raise ValueError(f"size: {model.name} takes {spec.size} alone, got {size}")
        return spec.size
    if size is None:
        near = spec.sample_rate if spec.sample_rate is not None else DEFAULT_SIDE
        side = max(1, round(near / spec.multiple)) * spec.multiple
        size = {"audio": (side,), "image": (side, side)}.get(spec.modality, (1 + spec.frame_multiple, side, side))
    return tuple(side + grow for side, grow in zip(size, spec.padding(size)))


def example_signal(model: Tokenizer, sides: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Smooth noise over the whole value range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, model.spec.channels, *(max(2, side // 16) for side in sides), generator=generator)
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    smooth = nn.functional.interpolate(coarse, sides, mode=modes[len(sides)], align_corners=False)
    low, high = model.spec.value_range
    return smooth * (high - low) + low


# -- programs --------------------------------------------------------------------------------------------------------


def _traced(each: _Program, model: Tokenizer, form: Form) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """The program with as many free axes as the model allows."""
    arguments, reasons = tuple(each.arguments.values()), []
    for free, most in _freedoms(model):
        try:
            shapes = _dynamic_shapes(each, free, most, model.spec.multiple)
            program = torch.export.export(each.module, arguments, dynamic_shapes=shapes, strict=False)
            return program.run_decompositions(_plain_searches() | (_transforms() if form == "onnx" else {})), free
        except ExportError:
            raise
        except Exception as error:  # the tracer raises nearly anything
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise NoProgramError(f"{each.part} of {model.name} cannot be traced into one program: {reasons[-1]}")


def _freedoms(model: Tokenizer) -> Iterator[tuple[tuple[str, ...], int]]:
    """Free axes, and the largest batch."""
    sides = {"image": ("height", "width"), "audio": ("samples",)}.get(model.spec.modality, ())
    if sides and model.spec.size is None and model.layout in ("grid", "frames"):
        yield ("batch", *sides), _MOST
    yield ("batch",), _MOST
    yield ("batch",), DIFFUSERS_BATCH
    yield (), 1


def _dynamic_shapes(each: _Program, free: tuple[str, ...], most: int, multiple: int) -> Any:
    """Which axes are free, and by how much those of one side grow together: levels of a coarse and a fine rate, say."""
    if not free:
        return None
    axes: list[dict[int, Any]] = [{0: torch.export.Dim("batch", min=1, max=most)} for _ in each.arguments]
    for place, name in enumerate(free[1:]):
        positions = torch.export.Dim(f"{name}_positions", min=2, max=_MOST)
        last = [tensor.ndim - len(free[1:]) + place for tensor in each.arguments.values()]
        sizes = [tensor.shape[axis] for tensor, axis in zip(each.arguments.values(), last)]
        common = sizes[0] // multiple if each.part == "encode" else math.gcd(*sizes)
        for of, axis, size in zip(axes, last, sizes):
            of[axis] = size // common * positions
    return tuple(axes) if each.part == "encode" else (tuple(axes),)  # those of *given are one argument


def _plain_searches() -> dict[Any, Callable[..., Any]]:
    """What stands for the searches of the zoo in a program: the same scores by plain operations.

    All other operations stay whole, since torch computes some of their parts with other sums than them.
    """
    return {
        torch.ops.zoo.nearest_code.default: _nearest_code,
        torch.ops.zoo.residual_codes.default: _residual_codes,
        torch.ops.aten.__lshift__.Tensor: lambda x, bits: x * 2**bits,  # ONNX shifts unsigned integers alone
        torch.ops.aten.__rshift__.Tensor: lambda x, bits: torch.div(x, 2**bits, rounding_mode="floor"),
    }


def _nearest_code(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    x, codes = x.double(), codebook.double()
    if metric == "cosine":
        codes = codes / codes.norm(dim=-1, keepdim=True)
    scores = x @ codes.transpose(-1, -2)
    if metric == "euclidean":
        scores = scores - codes.square().sum(-1).unsqueeze(-2) / 2
    return scores.argmax(dim=-1)


def _residual_codes(x: Tensor, codebooks: Sequence[Tensor], metric: str) -> Tensor:
    levels = []
    for codebook in codebooks:
        levels.append(_nearest_code(x, codebook, metric))
        x = x - codebook[levels[-1]]
    return torch.stack(levels, dim=1)


def _transforms() -> dict[Any, Callable[..., Any]]:
    """Fourier transforms for ONNX, whose runtime computes its own with errors that move tokens: sums in float64."""
    return {torch.ops.aten.stft.default: _stft, torch.ops.aten.fft_irfft.default: _irfft}


def _stft(x: Tensor, n_fft: int, hop_length: int, win_length: int | None, window: Tensor, *settings: Any) -> Tensor:
    """As `torch.stft` of plain frames: not normalised, one-sided."""
    if win_length not in (None, n_fft) or any(settings[:1]) or settings[1] is False:
        raise NotImplementedError(f"stft with win_length {win_length} and settings {settings}")
    cosines, sines = _waves(n_fft)
    frames = (x.unfold(-1, n_fft, hop_length) * window).double()
    return torch.complex((frames @ cosines).to(x.dtype), -(frames @ sines).to(x.dtype)).transpose(-1, -2)


def _irfft(spectrum: Tensor, n: int, dim: int = -1, norm: str | None = None) -> Tensor:
    """As `torch.fft.irfft`."""
    if norm not in (None, "backward"):
        raise NotImplementedError(f"irfft with norm {norm}")
    parts = torch.view_as_real(spectrum)
    real, imaginary = parts.double().movedim(dim, -2).unbind(-1)
    once = torch.tensor([1.0 if k in (0, n / 2) else 2.0 for k in range(n // 2 + 1)], dtype=torch.float64) / n
    cosines, sines = (waves * once for waves in _waves(n))
    return (real @ cosines.T - imaginary @ sines.T).to(parts.dtype).movedim(-1, dim)


def _waves(n_fft: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (n_fft, n_fft / 2 + 1) of the frequencies, float64."""
    turns = torch.outer(torch.arange(n_fft), torch.arange(n_fft // 2 + 1)) % n_fft
    angles = turns.double() * (2 * math.pi / n_fft)
    return angles.cos(), angles.sin()


def _write(
    program: torch.export.ExportedProgram, file: Path, form: Form, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
    """Write it, and give what runs the file."""
    if form == "torch-export":
        torch.export.save(program, file)

        def load_and_run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
            found = torch.export.load(file).module()(*given.values())
            return found if isinstance(found, tuple) else (found,)

        return load_and_run
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch needs it
    except ImportError as error:
        raise ImportError(f"{error}; ONNX needs it: pip install 'tokenizer-zoo[onnx]'") from error
    try:
        exported: Any = torch.onnx.export(  # its optimiser takes constants of up to 1e-8 for zero
            program, dynamo=True, verbose=False, optimize=False, input_names=inputs, output_names=outputs
        )
        exported.save(str(file), external_data=False)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise NoProgramError(
            f"{file.stem} has an operation that ONNX lacks: {reason[-1] if reason else error!r}"
        ) from error

    def run(given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        found = session.run(list(outputs), {name: value.numpy() for name, value in given.items()})
        return tuple(torch.from_numpy(value) for value in found)

    return run


def _agreement(wanted: tuple[Tensor, ...], found: tuple[Tensor, ...], model: Tokenizer, part: str, form: Form) -> float:
    if part == "encode":
        pairs = list(zip(wanted, found, strict=True))
        same = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        if same < TOKENS_AGREE:
            raise ExportError(f"encode of {model.name} as {form}: {1 - same:.2%} of the tokens are others")
        return same
    low, high = model.spec.value_range
    difference = float((wanted[0] - found[0]).abs().max()) / (high - low)
    if not difference < SIGNALS_AGREE:
        raise ExportError(f"decode of {model.name} as {form}: samples differ by {difference:.2g} of the value range")
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the tracers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
