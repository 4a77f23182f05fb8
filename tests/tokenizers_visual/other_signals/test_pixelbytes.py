"""PixelBytes: what comes back of text, pixels and samples, and the contexts of ids."""

import math
import string

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab
from torch import Tensor

import zoo
from tokenizers_visual.other_signals import pixelbytes
from tokenizers_visual.other_signals.pixelbytes import BYTES, PALETTE, VOCABULARY, Document, PixelBytes
from zoo.tokens import Tokens

MODEL = PixelBytes(pixelbytes.PixelBytesConfig()).eval()


def frames_of_palette(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(PALETTE), (count, height, width), generator=generator)
    return torch.tensor(PALETTE, dtype=torch.uint8)[places]


def test_the_vocabulary_has_151_ids_and_no_colour_twice() -> None:
    assert VOCABULARY == 151
    assert len(set(PALETTE)) == len(PALETTE)
    assert len(set(BYTES)) == len(BYTES)


@given(st.text(alphabet=string.ascii_lowercase + string.digits + " \"'()*,-+.:[];/%!", max_size=20))
def test_plain_text_comes_back(text: str) -> None:
    tokens = MODEL.encode(Document(text))
    assert len(tokens.indices[0]) == len(text) + 1
    (decoded,) = MODEL.decode(tokens)
    assert decoded == Document(text)


def test_other_text_is_made_plain() -> None:
    (decoded,) = MODEL.decode(MODEL.encode(Document("Crème BRÛLÉE?")))
    assert decoded.text == "creme brulee\x00"


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_frames_in_colours_of_the_palette_come_back(count: int, height: int, width: int, seed: int) -> None:
    frames = frames_of_palette(count, height, width, seed)
    tokens = MODEL.encode(Document(frames=frames))
    assert tokens.indices.shape == (1, count * height * (width + 1))
    (decoded,) = MODEL.decode(Tokens.unpack(tokens.pack()))
    assert decoded.frames is not None
    assert torch.equal(decoded.frames, frames)


def test_the_original_decoder_loses_the_last_row() -> None:
    frames = frames_of_palette(2, 3, 4)
    (decoded,) = MODEL.decode(MODEL.encode(Document(frames=frames)), last_rows=False)
    assert decoded.frames is not None
    assert torch.equal(decoded.frames, frames[:, :2])


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=20), st.floats(0.01, 100))
def test_samples_come_back_to_within_half_a_level_of_their_swing(samples: list[float], scale: float) -> None:
    audio = torch.tensor([samples, samples[::-1]], dtype=torch.float64) * scale
    (decoded,) = MODEL.decode(MODEL.encode(Document(audio=audio)), channels=2)
    assert decoded.audio is not None
    low, high = audio.aminmax()
    if bool(high > low):
        expected = (audio - low) / (high - low) * 2 - 1
        assert float((decoded.audio - expected).abs().max()) <= 1 / (pixelbytes.LEVELS - 1) + 1e-6


def test_silence_stays_near_zero() -> None:
    (decoded,) = MODEL.decode(MODEL.encode(Document(audio=torch.full((1, 5), 0.3))))
    assert decoded.audio is not None
    assert decoded.audio.shape == (1, 5)
    assert float(decoded.audio.abs().max()) < 2 / (pixelbytes.LEVELS - 1)


def test_a_whole_document_comes_back() -> None:
    frames = frames_of_palette(1, 2, 3)
    audio = torch.linspace(-1, 1, pixelbytes.LEVELS)[None]
    document = Document("a sprite", frames, audio)
    (decoded,) = MODEL.decode(MODEL.encode(document))
    assert decoded.text == "a sprite"
    assert decoded.frames is not None
    assert decoded.audio is not None
    assert torch.equal(decoded.frames, frames)
    torch.testing.assert_close(decoded.audio, audio)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_contexts_are_the_neighbours_of_each_place(count: int, height: int, width: int) -> None:
    document = Document(frames=frames_of_palette(count, height, width))
    (grid,) = MODEL.grids(document)

    def at(t: int, i: int, j: int) -> int:
        inside = t >= 0 and 0 <= i < height and j >= 0
        return int(grid[t, i, j]) if inside else 0

    expected, before = [], 0
    for t in range(count):
        for i in range(height):
            for j in range(width + 1):
                previous = [at(t - 1, i - 1, j), at(t - 1, i, j), at(t - 1, i + 1, j)]
                expected.append([*previous, at(t, i - 1, j - 1), at(t, i - 1, j), before])
                before = at(t, i, j)
    assert MODEL.context(document).tolist() == expected


def test_lab_is_that_of_scikit_image() -> None:
    colours = torch.randint(0, 256, (40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = rgb2lab(colours.numpy().astype(numpy.float64) / 255)
    torch.testing.assert_close(pixelbytes.lab(colours), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-3)


def test_steps_leave_out() -> None:
    model = zoo.create_model("pixelbytes", image_step=2, audio_step=3)
    frames, audio = frames_of_palette(3, 4, 5), torch.linspace(-1, 1, 10)[None]
    image, sound = model.grids(Document(frames=frames, audio=audio))
    assert image.shape == (2, 2, 3 + 1)
    assert sound.shape == (4 + 1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected text, frames or audio"),
        ({"frames": torch.zeros(2, 3, 3, dtype=torch.uint8)}, r"expected uint8 \(T, H, W, 3\)"),
        ({"frames": torch.zeros(1, 2, 3, 3)}, r"got torch\.float32"),
        ({"audio": torch.zeros(3, 5)}, r"got torch\.float32 \(3, 5\)"),
        ({"audio": torch.full((1, 5), math.nan)}, "expected finite samples"),
    ],
)
def test_what_is_no_document_is_refused(arguments: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Document(**arguments)


def test_ids_that_make_no_document_are_refused() -> None:
    def tokens(*ids: int) -> Tokens:
        return Tokens((torch.tensor([ids]),), (VOCABULARY,), "sequence")

    with pytest.raises(ValueError, match="rows of one length"):
        MODEL.decode(tokens(60, 61, 1, 62, 2))
    with pytest.raises(ValueError, match="expected levels for 2 channels, got 3"):
        MODEL.decode(tokens(120, 121, 122), channels=2)
    with pytest.raises(ValueError, match="expected vocabularies"):
        MODEL.decode(Tokens((torch.tensor([[1]]),), (9,), "sequence"))
