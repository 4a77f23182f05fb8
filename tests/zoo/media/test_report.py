"""The HTML report and the token picture."""

from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from zoo.media import MediaError
from zoo.media.report import Section, token_map, write_report


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, and the text of each kind of element."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # every element is closed in order

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [Image.fromarray(image).resize((320, 213)) for image in load_sample_images().images]


def test_the_page_holds_its_pictures_and_fetches_nothing(photos, tmp_path):
    reconstruction = photos[0].resize((40, 27)).resize(photos[0].size)
    tokens = token_map(torch.arange(12).view(3, 4), 12, 8)
    sections = [
        Section("China", "One.\n\nTwo.", photos[0], reconstruction, tokens, {"PSNR": "24.31 dB", "Tokens": "1,040"}),
        Section("Flower", "", photos[1], photos[1]),
    ]
    path = tmp_path / "out" / "report.html"
    write_report(path, "Two photos", sections)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    assert [attributes for tag, attributes in page.tags if tag in ("link", "iframe") or "href" in attributes] == []
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    pictures = [Image.open(BytesIO(b64decode(source.removeprefix("data:image/png;base64,")))) for source in sources]
    for picture, expected in zip(pictures, [reconstruction, photos[0], tokens, photos[1], photos[1]], strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html
    assert page.texts["h1"] == ["Two photos"]
    assert page.texts["h2"] == ["China", "Flower"]
    assert page.texts["p"][1:] == ["One.", "Two."]
    assert dict(zip(page.texts["dt"], page.texts["dd"], strict=True)) == {"PSNR": "24.31 dB", "Tokens": "1,040"}
    assert len([tag for tag, attributes in page.tags if attributes.get("type") == "range"]) == 2  # the keyboard's way
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert "prefers-color-scheme: dark" in html


def test_everything_is_escaped(tmp_path):
    hostile = "<script>alert('x')</script> & \"quoted\" {style} \udcff"
    dot = Image.new("RGB", (2, 2))
    write_report(tmp_path / "r.html", hostile, [Section(hostile, hostile, dot, dot, dot, {hostile: hostile})])
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    shown = hostile.replace("\udcff", "?")
    for element in ("title", "h1", "h2", "dt", "dd"):
        assert "".join(page.texts[element]) == shown
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert all(shown in attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_pictures_of_every_mode_are_embedded(tmp_path):
    for mode in ("1", "L", "P", "RGBA", "CMYK"):
        picture = Image.new(mode, (4, 3))
        write_report(tmp_path / "r.html", mode, [Section(mode, "", picture, picture)])
        assert (tmp_path / "r.html").stat().st_size > 1000


def test_sizes_must_agree():
    with pytest.raises(MediaError, match=r"got \(4, 3\) and \(4, 4\)"):
        Section("photo", "", Image.new("RGB", (4, 3)), Image.new("RGB", (4, 4)))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MediaError, match=r"cannot write .*r\.html"):
        write_report(tmp_path / "file" / "r.html", "", [])
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@given(ids=st.lists(st.integers(0, 2**18 - 1), min_size=6, max_size=6), scale=st.integers(1, 5))
def test_equal_tokens_have_equal_colours_in_any_picture(ids, scale):
    indices = torch.tensor(ids).view(2, 3)
    picture = np.asarray(token_map(indices, 2**18, scale))
    assert picture.shape == (2 * scale, 3 * scale, 3)
    for (row, column), token in np.ndenumerate(indices.numpy()):
        square = picture[row * scale : (row + 1) * scale, column * scale : (column + 1) * scale]
        alone = np.asarray(token_map(torch.tensor([[token]]), 2**18, 1))[0, 0]
        assert (square == alone).all()


def test_a_thousand_tokens_have_a_thousand_colours_and_neighbours_differ():
    picture = np.asarray(token_map(torch.arange(1024).view(32, 32), 1024, 1)).astype(int)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000
    assert np.abs(np.diff(picture.reshape(-1, 3), axis=0)).sum(axis=1).min() > 60


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        (torch.tensor([[0, 8]]), r"\[0, 8\), got \[0, 8\]"),
        (torch.tensor([[-1, 0]]), r"got \[-1, 0\]"),
        (torch.zeros(3, dtype=torch.int64), r"\(H, W\)"),
        (torch.zeros(0, 3, dtype=torch.int64), r"\(H, W\)"),
        (torch.zeros(2, 2), "float32"),
    ],
)
def test_wrong_ids_are_refused(indices, reason):
    with pytest.raises(MediaError, match=reason):
        token_map(indices, 8)
