"""A self-contained HTML page of originals and reconstructions with a slider between them, tokens and sounds."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from zoo.media.storage import MediaError, write_atomically


@dataclass(frozen=True)
class Section:
    """One picture of a report.

    Args:
        heading: its title.
        text: a sentence or more below the title; blank lines part paragraphs.
        original: the picture that went in.
        reconstruction: what came out, of the same size.
        token_map: a picture of the tokens between the two (see `token_map`).
        facts: name -> value as the reader sees it, in order of importance.
        sounds: label -> WAV file, to be heard below the pictures.

    Raises:
        MediaError: original and reconstruction differ in size.
    """

    heading: str
    text: str
    original: Image.Image
    reconstruction: Image.Image
    token_map: Image.Image | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    sounds: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.original.size != self.reconstruction.size:
            raise MediaError(
                f"{self.heading}: original and reconstruction need one size, "
                f"got {self.original.size} and {self.reconstruction.size} (width, height)"
            )


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page as one file: pictures inside (lossless), nothing fetched, readable in dark and light.

    Raises:
        MediaError: the file cannot be written.
    """
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(title=escape(title), style=_STYLE, script=_SCRIPT, body=body)
    write_atomically(Path(path), page.encode(errors="replace"))  # a heading may be a file name that is not UTF-8


def token_map(indices: Tensor, vocab_size: int, scale: int = 16) -> Image.Image:
    """Paint each token as a square whose colour is a hash of its id: equal tokens, equal colours.

    Args:
        indices: integers (H, W) in [0, vocab_size).
        vocab_size: number of tokens that exist.
        scale: pixels per token; a tokenizer's stride gives a picture of its image's size.

    Raises:
        MediaError: another shape, or an id outside the vocabulary.
    """
    ids = indices.detach().cpu().numpy()
    if ids.ndim != 2 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise MediaError(f"expected integer token ids (H, W), got {indices.dtype} {tuple(indices.shape)}")
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise MediaError(f"expected token ids in [0, {vocab_size}), got [{ids.min()}, {ids.max()}]")
    # multiples of irrational numbers spread neighbouring ids evenly over hue and lightness
    hue, depth = (ids * 0.6180339887498949) % 1, (ids * 0.7548776662466927) % 1
    colours = _oklch_to_srgb(0.58 + 0.24 * depth, 0.115, 2 * np.pi * hue)
    picture = Image.fromarray((colours * 255 + 0.5).astype(np.uint8))
    return picture.resize((ids.shape[1] * scale, ids.shape[0] * scale), Image.Resampling.NEAREST)


def _oklch_to_srgb(lightness: np.ndarray, chroma: float, hue: np.ndarray) -> np.ndarray:
    """Colours of even brightness: Oklab in polar form (B. Ottosson, 2020) -> sRGB (..., 3) in [0, 1]."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=-1)
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (((lab @ to_lms.T) ** 3) @ to_rgb.T).clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _section(section: Section) -> str:
    heading = escape(section.heading)
    width, height = section.original.size
    paragraphs = "".join(f"<p>{escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip())
    pairs = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in section.facts.items()]
    facts = f"<dl>{''.join(pairs)}</dl>" if pairs else ""
    tokens = ""
    if section.token_map is not None:
        picture = _image(section.token_map, f"Token map of {heading}")
        tokens = f"<figure>{picture}<figcaption>The tokens: equal colour, equal token</figcaption></figure>"
    players = "".join(
        f'<figure><figcaption>{escape(name)}</figcaption><audio controls src="data:audio/wav;base64,'
        f'{b64encode(data).decode()}"></audio></figure>'
        for name, data in section.sounds.items()
    )
    sounds = f'<div class="below">{players}</div>' if players else ""
    return f"""<section>
<h2>{heading}</h2>
{paragraphs}
<div class="compare" style="--ratio: {width / height:.4f}">
{_image(section.reconstruction, f"Reconstruction of {heading}")}
<span class="tag end">Reconstruction</span>
<div class="before">{_image(section.original, f"Original of {heading}")}<span class="tag">Original</span></div>
<input type="range" min="0" max="100" step="2" value="50" aria-label="Share of the original that is shown: {heading}">
<span class="handle" aria-hidden="true"></span>
</div>
{sounds}
<div class="below">{facts}{tokens}</div>
</section>"""


def _image(image: Image.Image, description: str) -> str:
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    data = b64encode(buffer.getvalue()).decode()
    return f'<img width="{image.width}" height="{image.height}" alt="{description}" src="data:image/png;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>Drag across a picture to compare. On the keyboard: Tab to reach it, arrow keys to move.</p>
</header>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f8f7f4; --tile: #fff; --ink: #1e1d1b; --muted: #6c6962; --line: #e5e2da; --accent: #b4470f;
}
@media (prefers-color-scheme: dark) {
  :root { --paper: #121215; --tile: #1b1b20; --ink: #eeedf1; --muted: #9c9ba6; --line: #2c2c34; --accent: #ff9d5c; }
}
* { box-sizing: border-box; margin: 0; }
body {
  padding: clamp(1.5rem, 5vw, 4.5rem) 0 6rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
header, main { width: min(70rem, 100% - 2.5rem); margin-inline: auto; }
header p, section > p { max-width: 50rem; color: var(--muted); }
h1 { font-size: clamp(2rem, 5vw, 3.25rem); line-height: 1.1; letter-spacing: -.03em; margin-bottom: .75rem; }
h2 { font-size: clamp(1.35rem, 3vw, 1.75rem); line-height: 1.2; letter-spacing: -.02em; }
h1, h2, section > p, dd { text-wrap: pretty; overflow-wrap: anywhere; }
section { margin-top: clamp(2.5rem, 6vw, 4rem); display: grid; gap: .75rem; }
section + section { padding-top: clamp(2.5rem, 6vw, 4rem); border-top: 1px solid var(--line); }
img { display: block; width: 100%; height: auto; }
.compare {
  --split: 50%;
  position: relative; width: min(100%, 82vh * var(--ratio)); margin: .75rem auto; overflow: hidden;
  border-radius: 14px; box-shadow: 0 18px 50px -18px rgb(0 0 0 / .45), 0 0 0 1px rgb(128 128 128 / .2);
  cursor: ew-resize; touch-action: pan-y; user-select: none; -webkit-user-select: none;
}
.compare img { pointer-events: none; }
.before { position: absolute; inset: 0; clip-path: inset(0 calc(100% - var(--split)) 0 0); }
.tag {
  position: absolute; top: .9rem; left: .9rem; padding: .2rem .7rem; border-radius: 99px;
  background: rgb(15 15 18 / .62); color: #fff; font-size: .8125rem; font-weight: 600; backdrop-filter: blur(6px);
}
.tag.end { left: auto; right: .9rem; }
.compare input { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; pointer-events: none; }
.handle {
  position: absolute; inset: 0 auto 0 var(--split); width: 2px; margin-left: -1px;
  background: #fff; box-shadow: 0 0 6px rgb(0 0 0 / .5); pointer-events: none;
}
.handle::after {
  content: "\\2039\\2009\\203a"; position: absolute; top: 50%; left: 50%; translate: -50% -50%;
  width: 46px; height: 46px; border-radius: 50%; background: #fff; color: #222; box-shadow: 0 3px 14px rgb(0 0 0 / .4);
  font: 600 1.5rem/40px system-ui, sans-serif; text-align: center;
}
input:focus-visible + .handle::after { outline: 4px solid var(--accent); outline-offset: 2px; }
.below { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: start; }
figure { flex: 1 1 17rem; max-width: 24rem; }
audio { display: block; width: 100%; margin-top: .4rem; }
figure img { border-radius: 10px; image-rendering: pixelated; }
figcaption { margin-top: .5rem; color: var(--muted); font-size: .875rem; }
dl {
  flex: 3 1 20rem; display: grid; gap: .75rem; padding: 0;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
}
dl div { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 10px; background: var(--tile); }
dt { color: var(--muted); font-size: .8125rem; line-height: 1.4; }
dd { font-size: 1.3rem; font-weight: 620; line-height: 1.35; font-variant-numeric: tabular-nums; }
"""

_SCRIPT = """
for (const box of document.querySelectorAll(".compare")) {
  const range = box.querySelector("input");
  const show = (percent) => box.style.setProperty("--split", Math.min(100, Math.max(0, percent)) + "%");
  const follow = (event) => {
    const frame = box.getBoundingClientRect();
    range.value = 100 * (event.clientX - frame.left) / frame.width;
    show(100 * (event.clientX - frame.left) / frame.width);
  };
  range.addEventListener("input", () => show(range.value));
  box.addEventListener("pointerdown", (event) => {
    box.setPointerCapture(event.pointerId);
    event.preventDefault();
    range.focus({ preventScroll: true });
    follow(event);
  });
  box.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
}
"""
