"""Files of EnCodec, `.ecdc`: the codes of one recording, plain or entropy coded.

Format of facebookresearch/encodec (MIT), version 0. Without a language model codes take 10 bits each. With one they
take fewer, but its probabilities must be the same to the last bit where the file is read: the original's files of that
kind, and files from another machine or version of torch, may not decode.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import torch
from torch import Tensor

from audio.encodec import Encodec, EncodecConfig
from audio.encodec_entropy import CodeModel
from zoo.ops.arithmetic_coder import ArithmeticDecoder, ArithmeticEncoder, pack_bits, quantized_cdf, unpack_bits
from zoo.tokens import Extent, Tokens

_MAGIC, _VERSION = b"ECDC", 0
_HEADER = struct.Struct(">4sBI")


def model_name(model: Encodec) -> str:
    """What files call a model: "encodec_24khz", "encodec_48khz"."""
    return f"encodec_{model.config.sample_rate // 1000}khz"


def to_ecdc(model: Encodec, tokens: Tokens, code_model: CodeModel | None = None) -> bytes:
    """The bytes of a file.

    Args:
        tokens: of `model` and of one recording.
        code_model: language model for entropy coding.

    Raises:
        ValueError: tokens of another number of recordings, or without extent.
    """
    if len(tokens) != 1 or tokens.extent is None:
        raise ValueError(f"expected the tokens of one recording with their extent, got {len(tokens)}")
    samples = tokens.extent.sizes[0][0]
    parts = list(tokens.indices.cpu().split(model.config.frames(samples), dim=-1))
    gains = None if tokens.extent.gains is None else tokens.extent.gains[0]
    return write(model_name(model), parts, samples, gains, model.vocab_sizes[0], code_model)


def from_ecdc(model: Encodec, data: bytes, code_model: CodeModel | None = None) -> Tokens:
    """The tokens of a file; `model` decodes them.

    Raises:
        ValueError: no such file, of another model, cut short, or entropy coded while there is no language model.
    """
    about, start = read_header(data)
    if about["m"] != model_name(model):
        raise ValueError(f"expected a file of {model_name(model)}, got one of {about['m']}")
    parts, gains = read_segments(data[start:], about, model.config, model.vocab_sizes[0], code_model)
    levels = tuple(torch.cat(parts, dim=-1).unbind(1))
    extent = Extent(((about["al"],),), model.config.sample_rate, None if gains is None else (tuple(gains),))
    return Tokens(levels, model.vocab_sizes[: len(levels)], "frames", None, model.source, extent, model.prefix)


def write(
    name: str,
    segments: list[Tensor],
    samples: int,
    gains: tuple[float, ...] | None,
    codebook_size: int,
    code_model: CodeModel | None = None,
) -> bytes:
    """The bytes of a file.

    Args:
        name: of the model.
        segments: int64 (1, Q, frames) of each segment.
        samples: length of the recording.
        gains: loudness of each segment, of models that normalise.
        codebook_size: K.
        code_model: language model for entropy coding.
    """
    about = {"m": name, "al": samples, "nc": segments[0].shape[1], "lm": code_model is not None}
    text = json.dumps(about).encode()
    out = [_HEADER.pack(_MAGIC, _VERSION, len(text)), text]
    for i, codes in enumerate(segments):
        if gains is not None:
            out.append(struct.pack(">f", gains[i]))
        if code_model is None:
            out.append(pack_bits(codes[0].T.flatten(), (codebook_size - 1).bit_length()))
        else:
            out.append(_encoded(codes, code_model))
    return b"".join(out)


def read_header(data: bytes) -> tuple[dict[str, Any], int]:
    """What a file says of itself, `m`odel, `a`udio `l`ength, `n`umber of `c`odebooks, `lm`, and where its codes begin.

    Raises:
        ValueError: no such file.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise ValueError(f"expected an .ecdc file (it begins with {_MAGIC!r}), got {data[:4]!r}")
    _, version, length = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"expected an .ecdc file of version {_VERSION}, got {version}")
    start = _HEADER.size + length
    try:
        about = json.loads(data[_HEADER.size : start])
        valid = isinstance(about["m"], str) and isinstance(about["lm"], bool)
        counts = (about["al"], about["nc"])
        valid = valid and start <= len(data) and all(isinstance(count, int) and count > 0 for count in counts)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"expected the header of an .ecdc file, got something else ({error!r})") from error
    if not valid:
        raise ValueError(f"expected the header of an .ecdc file, got {about}")
    return about, start


def read_segments(
    data: bytes, about: dict[str, Any], config: EncodecConfig, codebook_size: int, code_model: CodeModel | None = None
) -> tuple[list[Tensor], list[float] | None]:
    """The codes (1, Q, frames) of each segment, and their gains where the model normalises.

    Raises:
        ValueError: cut short or too long, or entropy coded while there is no language model.
    """
    if about["lm"] and code_model is None:
        raise ValueError("the file is entropy coded: expected the language model that coded it, got none")
    parts, gains, width = [], [], (codebook_size - 1).bit_length()
    for frames in config.frames(about["al"]):
        if config.normalize:
            if len(data) < 4:
                raise ValueError(f"expected the gain of a segment, got {len(data)} bytes")
            gains.append(struct.unpack(">f", data[:4])[0])
            data = data[4:]
        if about["lm"] and code_model is not None:
            codes, used = _decoded(data, about["nc"], frames, code_model)
        else:
            used = -(-about["nc"] * frames * width // 8)
            codes = unpack_bits(data[:used], width, about["nc"] * frames).view(frames, about["nc"]).T[None]
        parts.append(codes)
        data = data[used:]
    if data:
        raise ValueError(f"expected the end of the file, got {len(data)} more bytes")
    return parts, gains if config.normalize else None


def _encoded(codes: Tensor, code_model: CodeModel) -> bytes:
    encoder, state, previous = ArithmeticEncoder(), code_model.start(), None
    for frame in codes.unbind(-1):
        cdfs = quantized_cdf(state.step(previous, codes.shape[1])[0]).tolist()
        for symbol, cdf in zip(frame[0].tolist(), cdfs):
            encoder.push(symbol, cdf)
        previous = frame
    return encoder.finish()


def _decoded(data: bytes, num_codebooks: int, frames: int, code_model: CodeModel) -> tuple[Tensor, int]:
    decoder, state = ArithmeticDecoder(data), code_model.start()
    previous, found = None, []
    for _ in range(frames):
        cdfs = quantized_cdf(state.step(previous, num_codebooks)[0]).tolist()
        previous = torch.tensor([[decoder.pull(cdf) for cdf in cdfs]])
        found.append(previous)
    return torch.stack(found, dim=-1), decoder.bytes_read
