"""`zoo eval`: a model over a folder, shards, Parquet files or a Hugging Face data set; numbers with their protocol.

Models of audio are measured by `zoo.cli.evaluate_audio`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Device, choose_device, load_model, note, strict
from zoo.cli.measurements import counted, print_measurements, records

if TYPE_CHECKING:
    import numpy as np
    import torch

    from zoo.media.sources import Source
    from zoo.tokenizer import Tokenizer

CROP = "lanczos-centre"  # the name of `zoo.media.image.evaluation_crop` in protocols
NAMED = 20  # skipped files that are named one by one


def evaluate(
    model: Annotated[str, typer.Argument(help="Name in the zoo, hf-hub:owner/repo, or a saved model.")],
    data: Annotated[str, typer.Argument(help="Folder, glob, WebDataset shards, Parquet, or hf:NAME?split=S.")],
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; default: psnr, ssim, bits_per_pixel, codebook; of audio: si_sdr, "
            "mel_distance, stft_distance, bitrate, codebook."
        ),
    ] = None,
    crop: Annotated[int | None, typer.Option(min=1, help="Evaluation crop to this many pixels a side.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images or recordings.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch, where their sizes are equal.")] = 8,
    checkpoint: Annotated[Path | None, typer.Option(help="Weights for MODEL in its published or our layout.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="NETWORK=FILE: inception, lite0, lite2, lpips_alex or lpips_vgg. Repeatable."),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Image column of Parquet files and Hugging Face data.")] = None,
    bitrate: Annotated[
        float | None, typer.Option(min=1, help="Bits per second at most, of codecs; default: all codebooks.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers; - for stdout.")] = None,
    device: Device = None,
) -> None:
    """Measure reconstructions of a data set: PSNR, SSIM, LPIPS, rFID; of audio SI-SDR, PESQ, STOI; codebook use."""
    from zoo.cli.evaluate_audio import evaluate_audio
    from zoo.media.sources import open_source
    from zoo.media.storage import write_atomically
    from zoo.metrics.evaluation import DEFAULT_METRICS, Evaluation
    from zoo.registry import create_model

    where = choose_device(device)
    tokenizer = create_model(model, checkpoint=checkpoint, device=where) if checkpoint else load_model(model, where)
    if tokenizer.spec.modality == "audio":
        if crop or weights or column:
            raise ValueError("expected no --crop, --weights or --column for recordings")
        evaluate_audio(tokenizer, data, metrics, limit, bitrate, json_file)
        return
    if bitrate is not None:
        raise ValueError(f"expected no --bitrate for a model of the modality {tokenizer.spec.modality}")
    source = open_source(data, column)
    if tokenizer.spec.modality != "image":
        raise ValueError(
            f"zoo eval measures models of images and audio, and {tokenizer.name} is one of {tokenizer.spec.modality}"
        )
    names = metrics.split(",") if metrics else DEFAULT_METRICS
    evaluation = Evaluation(names, tokenizer.vocab_sizes, weights=_weights(weights or []))
    evaluation.to("cpu" if where.type == "mps" else where)  # sums are in float64, which Apple's GPUs lack
    reference = _Reference(source, _size(tokenizer, crop), limit)
    with counted(reference.total) as advance:
        for batch in _batches(reference, batch_size):
            _measure(tokenizer, evaluation, batch, where)
            advance(len(batch))
    if reference.count == 0:
        name, reason = next(iter(reference.skipped.items()), (data, "it holds no images"))
        raise ValueError(f"no image of {data} can be read, the first being {name}: {reason}")
    measurements = evaluation.compute()
    protocol = _protocol(data, reference, tokenizer)
    if json_file is not None:
        content = json.dumps(
            strict({"metrics": records(measurements, protocol), "skipped": reference.skipped}), indent=1
        )
        if str(json_file) == "-":
            typer.echo(content)
            return
        write_atomically(json_file, content.encode())
    print_measurements(measurements, protocol)


def _weights(options: Sequence[str]) -> dict[str, Path]:
    files = {}
    for option in options:
        name, equals, file = option.partition("=")
        if not equals or not Path(file).is_file():
            raise ValueError(f"--weights: expected NETWORK=FILE with an existing file, got {option}")
        files[name] = Path(file)
    return files


def _size(tokenizer: Tokenizer, crop: int | None) -> tuple[int, ...] | None:
    size = tokenizer.spec.size
    if crop is not None and size is not None and size != (crop, crop):
        raise ValueError(f"--crop: {tokenizer.name} takes images of {size[0]} x {size[1]} alone, got {crop}")
    return size if crop is None else (crop, crop)


@dataclass
class _Reference:
    """The images of the data as uint8, with what the protocol says of them."""

    source: Source
    size: tuple[int, ...] | None
    limit: int | None
    count: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)

    @property
    def total(self) -> int | None:
        """How many there are, where that is known beforehand."""
        from zoo.media.sources import IndexedSource

        if isinstance(self.source, IndexedSource):
            known: int | None = len(self.source)
        else:
            sizes = [shard.size for shard in self.source.shards]
            known = None if None in sizes else sum(size for size in sizes if size is not None)
        return known if self.limit is None else min(self.limit, known) if known is not None else self.limit

    def __iter__(self) -> Iterator[np.ndarray]:
        """Arrays (H, W, 3)."""
        from zoo.media import MediaError
        from zoo.media.sources import Skipped

        for item in self.source.records():
            if isinstance(item, Skipped):
                self._skip(item.name, item.reason)
                continue
            try:
                pixels = self._pixels(item.data, item.name)
            except MediaError as error:
                self._skip(item.name, str(error).removeprefix("cannot read ").removeprefix(f"{item.name}: "))
                continue
            self.digest.update(item.data)
            self.count += 1
            self.sizes[f"{pixels.shape[1]} x {pixels.shape[0]}"] += 1
            yield pixels
            if self.count == self.limit:
                return

    def _pixels(self, data: bytes | np.ndarray, name: str) -> np.ndarray:
        import numpy as np

        from zoo.media.image import evaluation_crop
        from zoo.media.pixels import read_pixels, to_unit

        (pixels,) = read_pixels(data, name)
        if self.size is not None:
            pixels = evaluation_crop(pixels, self.size, name)
        return pixels if pixels.dtype == np.uint8 else (to_unit(pixels) * 255 + 0.5).astype(np.uint8)

    def _skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        if len(self.skipped) <= NAMED:
            note(f"skipped {name}: {reason}")


def _batches(images: Iterator[np.ndarray] | _Reference, batch_size: int) -> Iterator[list[np.ndarray]]:
    """Neighbours of one size together."""
    batch: list[np.ndarray] = []
    for pixels in images:
        if batch and (len(batch) == batch_size or batch[0].shape != pixels.shape):
            yield batch
            batch = []
        batch.append(pixels)
    if batch:
        yield batch


def _measure(tokenizer: Tokenizer, evaluation: Any, batch: Sequence[np.ndarray], device: torch.device) -> None:
    import numpy as np
    import torch

    from zoo.media.image import to_uint8

    low, high = tokenizer.spec.value_range
    originals = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()
    signal = originals.to(device).float() / 255 * (high - low) + low
    tokens = tokenizer.encode(signal.to(tokenizer.dtype))
    reconstructions = torch.from_numpy(to_uint8(tokenizer.decode(tokens), tokenizer.spec)).permute(0, 3, 1, 2)
    evaluation.update(originals, reconstructions, tokens.levels, tokens.bits)


# -- results -------------------------------------------------------------------------------------------------------


def _protocol(data: str, reference: _Reference, tokenizer: Tokenizer) -> dict[str, str]:
    """What holds for every number."""
    low, high = tokenizer.spec.value_range
    cropped = "none: every image at its own size"
    if reference.size is not None:
        rows, columns = reference.size
        cropped = f"{CROP}: resized (Lanczos, antialiased) until it covers {columns} x {rows}, then the centre"
    skipped = f"; {len(reference.skipped)} files skipped" if reference.skipped else ""
    return {
        "model": f"{tokenizer.name} (weights {tokenizer.source.fingerprint})",
        "data": data,
        "images": f"{reference.count}{skipped}",
        "sha256": f"{reference.digest.hexdigest()} of the encoded images one after the other",
        "crop": cropped,
        "sizes": ", ".join(f"{name} ({count})" for name, count in reference.sizes.most_common(5)),
        "dtype": f"model in {str(tokenizer.dtype).removeprefix('torch.')} on values in [{low:g}, {high:g}]; "
        "measured on 8-bit RGB, for metrics in [0, 1] divided by 255",
    }
