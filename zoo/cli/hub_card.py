"""The card of a model that goes to a hub: what it is, a picture of what it keeps, how to use it, numbers, licence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from zoo.cards import ModelCard
    from zoo.tokenizer import Tokenizer

PICTURE = "example.png"
_LONGEST = 384  # pixels of the photo of a model that takes any size
_LICENCES = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0", "CC BY 4.0": "cc-by-4.0"}
_PHOTO = "Photo: danielbuechele, CC BY 2.0, as scikit-learn ships it."

_IMAGE_USE = """images = zoo.media.load("photo.jpg", model.spec)
tokens = model.encode(images)  # tokens.indices: {indices}
zoo.media.save(model.decode(tokens), "back.png", model.spec)"""
_AUDIO_USE = """sound = zoo.media.load("speech.wav", model.spec)
tokens = model.encode(sound)  # tokens.indices: {indices}
zoo.media.save(model.decode(tokens), "back.wav", model.spec)"""
_INDICES = {
    "grid": "(batch, height, width)",
    "sequence": "(batch, tokens)",
    "frames": "(batch, codebooks, frames)",
    "scales": "(batch, tokens of all scales)",
}


def write_card(model: Tokenizer, folder: Path, repo: str) -> list[Path]:
    """Write README.md, and the picture in it, beside the files of `save_model`.

    Args:
        model: it is run on a photo, or a synthetic voice.
        folder: where they are written.
        repo: owner/name of the hub, as the card tells to load it.

    Returns:
        The files.

    Raises:
        ValueError: a model without a card.
    """
    from zoo.media.storage import write_atomically

    card = model.card
    if card is None:
        raise ValueError(f"expected a model with a card, as `create_model` gives it, got {model.name} without one")
    found = _example(model)
    files = [folder / "README.md"]
    example = ""
    if found is not None:
        from zoo.cli.measure import png

        picture, caption = found
        write_atomically(folder / PICTURE, png(picture))
        files.append(folder / PICTURE)
        example = f"![Original and reconstruction]({PICTURE})\n\n*{caption}*\n\n"
    write_atomically(files[0], (_head(model, card) + _body(model, card, repo, example)).encode())
    return files


def _head(model: Tokenizer, card: ModelCard) -> str:
    """What the hub itself reads."""
    import yaml

    known = _LICENCES.get(card.licence.replace("CC-BY", "CC BY").strip())
    licence = {"license": known} if known else {"license": "other", "license_name": "see-licence-below"}
    tags = ["tokenizer-zoo", "tokenizer", model.spec.modality, card.family, model.quantizer.config.kind]
    task = {"image": "image-to-image", "audio": "audio-to-audio"}.get(model.spec.modality)
    about = {"library_name": "tokenizer-zoo", **licence, "tags": tags, **({"pipeline_tag": task} if task else {})}
    return f"---\n{yaml.safe_dump(about, sort_keys=False)}---\n\n"


def _body(model: Tokenizer, card: ModelCard, repo: str, example: str) -> str:
    from zoo.cli.info import of_model, rows

    known = rows(card, of_model(model))
    lines = {name: known[name] for name in ("input", "tokens", "vocabulary", "parameters") if known[name]}
    if model.spec.sample_rate is not None:
        rate = model.bitrates[-1]
        lines["sample rate"] = f"{model.spec.sample_rate:,} Hz"
        lines["bit rate"] = f"{rate / 1000:g} kbit/s with {len(model.vocab_sizes)} codebook(s)"
    lines |= {"quantizer": model.quantizer.config.kind, "family": card.family, "fingerprint": model.source.fingerprint}
    signal = {"image": "images", "audio": "recordings", "video": "videos"}[model.spec.modality]
    uses = {"image": _IMAGE_USE, "audio": _AUDIO_USE}.get(model.spec.modality, "")
    program = f'import zoo\n\nmodel = zoo.create_model("hf-hub:{repo}")\n{uses.format(indices=_INDICES[model.layout])}'
    metrics = [[metric.name, f"{metric.value:g}", metric.protocol] for metric in card.metrics]
    licence = card.licence[:1].upper() + card.licence[1:]
    terms = " It forbids commercial use." if card.non_commercial else ""
    sources = [f"- {name}: {text}" for name, text in (("Paper", card.paper), ("Code", card.code)) if text]
    return "\n".join(
        [
            f"# {model.name}\n",
            f"A discrete tokenizer: {signal} become a few integers, and those alone become {signal} again.\n",
            example + "## Use\n",
            f"```console\npip install tokenizer-zoo\n```\n\n```python\n{program.strip()}\n```\n",
            "## Facts\n",
            _table(["property", "value"], [[name, text] for name, text in lines.items()]),
            *(["## Numbers\n", _table(["metric", "value", "protocol"], metrics)] if metrics else []),
            *([f"## Notes\n\n{card.notes}\n"] if card.notes else []),
            f"## Licence\n\n{licence.rstrip('.')}.{terms}\n",
            *(["## Sources\n", *sources, ""] if sources else []),
        ]
    )


def _table(head: list[str], body: list[list[str]]) -> str:
    """A Markdown table; a bar in a cell parts no columns."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines) + "\n"


def _example(model: Tokenizer) -> tuple[Image.Image, str] | None:
    """Original and reconstruction side by side, and what is seen; None of what no picture shows."""
    if not model.has_decoder:
        return None
    if model.spec.modality == "image" and model.spec.channels == 3:
        return _photo(model)
    return _voice(model) if model.spec.modality == "audio" else None


def _photo(model: Tokenizer) -> tuple[Image.Image, str]:
    from PIL import Image

    from zoo.cli.measure import reconstruct
    from zoo.cli.samples import drawn_picture, sample_photos
    from zoo.media.image import side_by_side

    photos: Any = sample_photos()
    picture = Image.open(photos[0]).convert("RGB") if photos else Image.fromarray(drawn_picture(256, 384))
    picture.thumbnail((_LONGEST, _LONGEST))
    result = reconstruct(model, picture)
    facts = result.facts()
    size = f"{result.count:,} tokens, {facts['Bits per pixel']} bits per pixel with the file's header"
    caption = f"Left the original, right what {size}, give back; PSNR {facts['PSNR']}. {_PHOTO if photos else ''}"
    return side_by_side([result.original, result.image], ["original", "from its tokens"]), caption.strip()


def _voice(model: Tokenizer) -> tuple[Image.Image, str]:
    from zoo import media
    from zoo.cli.samples import synthetic_voice
    from zoo.cli.sounds import hear, picture

    rate = model.spec.sample_rate or 0
    heard = hear(model, media.load(synthetic_voice(rate), model.spec, sample_rate=rate)[0])
    return picture(heard, model.name), (
        f"Spectrograms of a synthetic voice and of what its {heard.count:,} tokens give back: time to the right, "
        "frequency upwards."
    )
