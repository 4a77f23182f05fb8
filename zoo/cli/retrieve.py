"""`zoo retrieve`: pictures of a folder that are like a picture, but as a text says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.common import Device, Json, note, print_json, stdout
from zoo.cli.inversion import (
    BatchSize,
    Setup,
    TextEncoder,
    Vocabulary,
    encode_all,
    prepare,
    store_file,
    tell_skipped,
    vocabulary_of,
    words_of,
)

if TYPE_CHECKING:
    from tokenizers_visual.inversion.retrieval import Gallery

DEFAULT_PROJECTOR = "lincir_vit_l14"
COLUMNS = 5  # pictures in a row of the sheet
THUMBNAIL = 224  # pixels of their longer side


def retrieve(
    gallery: Annotated[Path, typer.Option(help="Folder of the pictures to search in, all its levels.")],
    query: Annotated[Path, typer.Option(help="The picture to start from.")],
    text: Annotated[str, typer.Option(help='What should be different: "is red"; or a whole prompt with $ in it.')],
    projector: Annotated[
        str, typer.Option(help="Name in the zoo, or a saved model: a projector, or FreeDom.")
    ] = DEFAULT_PROJECTOR,
    top: Annotated[int, typer.Option(min=1, help="How many pictures to show.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Sheet of the query and what was found; default: none.")] = None,
    index: Annotated[Path | None, typer.Option(help="File that keeps the gallery's features.")] = None,
    text_encoder: TextEncoder = None,
    vocabulary: Vocabulary = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every picture, however many there are.")] = False,
    batch_size: BatchSize = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search a folder for what a picture and a text ask for together.

    The gallery's features are computed once and kept; later runs, or one that goes on where another was interrupted,
    compute only those of new and changed pictures. Pictures that cannot be read are named and left out. The query
    itself is never among the results.
    """
    from tokenizers_visual.inversion.cir_base import PROMPTS
    from tokenizers_visual.inversion.clip import PLACEHOLDER
    from tokenizers_visual.inversion.retrieval import FeatureStore, Gallery, ImageFile
    from zoo.media import MediaError
    from zoo.media.image import files

    if not gallery.is_dir():
        raise MediaError(f"--gallery: expected a folder of pictures, got {gallery}")
    if not query.is_file():
        raise MediaError(f"--query: expected a picture, got {query}")
    if out is not None and out.suffix.lower() != ".png":
        raise MediaError(f"--out: expected a name that ends in .png, got {out}")
    pictures = [ImageFile(path.resolve()) for path in files(gallery)]
    setup = prepare(projector, None, text_encoder, device)
    store = FeatureStore(store_file(index, gallery, setup.pair.backbone), setup.pair.backbone, setup.preprocess)
    skipped = encode_all(setup, store, pictures, batch_size)
    tell_skipped(skipped, len(pictures))
    found = Gallery.of(store, pictures)

    if setup.freedom is not None:
        prompt, direction = _by_words(setup, ImageFile(query.resolve()), found, text, vocabulary_of(setup, vocabulary))
    else:
        prompts = PROMPTS.get(setup.family, PROMPTS[""])
        prompt = text if PLACEHOLDER in text else prompts["cirr"].replace("{caption}", text)
        direction = _composed(setup, ImageFile(query.resolve()), prompt)
    scores, places = _search(found, store.file, exact).search(direction, top + 1)
    rows = [
        (float(score), found.names[place])
        for score, place in zip(scores[0], places[0].tolist())
        if place >= 0 and found.names[place] != str(query.resolve())
    ][:top]
    if out is not None:
        _write_sheet(out, query, prompt, rows)
    model = setup.projector or setup.freedom
    if as_json:
        print_json(
            {
                "prompt": prompt,
                "projector": model.name if model else None,
                "clip": setup.pair.backbone,
                "gallery": {"pictures": len(found.names), "skipped": skipped, "index": str(store.file)},
                "results": [{"rank": rank, "score": score, "file": name} for rank, (score, name) in enumerate(rows, 1)],
            },
            indent=1,
        )
        return
    _print(prompt, rows, len(found.names), out)


def _composed(setup: Setup, query: Any, prompt: str) -> Any:
    """The direction (1, E) of the prompt with the query's words."""
    import torch

    with torch.no_grad():
        pixels = query.load(setup.preprocess)[None].to(next(setup.pair.parameters()))
        words = words_of(setup, setup.pair.image_features(pixels), [query], 1)
        return setup.text_pair.compose(prompt, words.to(pixels.device), fill="first").float().cpu()


def _by_words(setup: Setup, query: Any, gallery: Gallery, text: str, vocabulary: Any) -> tuple[str, Any]:
    """FreeDom's words of the query, with the text behind them, and their direction (1, E); the gallery votes."""
    import torch

    words, features = vocabulary
    model: Any = setup.freedom
    with torch.no_grad():
        pixels = query.load(setup.preprocess)[None].to(next(setup.pair.parameters()))
        image = setup.pair.image_features(pixels).float().cpu()
    voted = model.invert(image, gallery.features, features)
    direction = model.directions(setup.pair, voted, words, text)
    return ", ".join(words[label] for label in voted.labels[0].tolist() if label >= 0) + f": {text}", direction


def _search(gallery: Gallery, file: Path, exact: bool) -> Any:
    """What searches: the gallery itself, or faiss where it is large."""
    import importlib.util

    from tokenizers_visual.inversion.retrieval import LARGE, ApproximateSearch

    if exact or len(gallery.names) < LARGE:
        return gallery
    if importlib.util.find_spec("faiss") is None:
        note(f"{len(gallery.names)} pictures: pip install 'tokenizer-zoo[retrieval]' makes the search faster")
        return gallery
    return ApproximateSearch(gallery, file)


def _write_sheet(path: Path, query: Path, prompt: str, rows: list[tuple[float, str]]) -> None:
    """One picture: the query with its prompt above what was found, in rows of `COLUMNS`."""
    from io import BytesIO

    from PIL import Image

    from tokenizers_visual.inversion.cir_inputs import picture
    from zoo.media.image import side_by_side
    from zoo.media.storage import write_atomically

    def small(file: str | Path) -> Image.Image:
        image = picture(file)
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    cells = [(small(name), f"{rank}  {score:.3f}\n{Path(name).name}") for rank, (score, name) in enumerate(rows, 1)]
    bands = [side_by_side([small(query)], [prompt])]
    for start in range(0, len(cells), COLUMNS):
        images, labels = zip(*cells[start : start + COLUMNS])
        bands.append(side_by_side(images, labels))
    sheet = Image.new("RGB", (max(band.width for band in bands), sum(band.height for band in bands)), "white")
    top = 0
    for band in bands:
        sheet.paste(band, (0, top))
        top += band.height
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _print(prompt: str, rows: list[tuple[float, str]], count: int, out: Path | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{prompt}  ({count} pictures)"), title_justify="left", header_style="bold")
    for column in ("rank", "cosine", "file"):
        table.add_column(column, justify="left" if column == "file" else "right")
    for rank, (score, name) in enumerate(rows, 1):
        table.add_row(str(rank), f"{score:.4f}", escape(name))
    stdout().print(table)
    if out is not None:
        note(f"wrote {out}")
