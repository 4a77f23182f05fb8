"""Batches, sizes, writing and labelled pictures of zoo.media."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from zoo import media
from zoo.media.image import evaluation_crop, files, side_by_side, to_uint8
from zoo.media.storage import write_atomically


@dataclass(frozen=True)
class Spec:
    modality: str = "image"
    channels: int = 3
    value_range: tuple[float, float] = (-1.0, 1.0)
    size: tuple[int, int] | None = None
    multiple: int = 16


UNIT = Spec(value_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return load_sample_images().images[0].copy()  # (427, 640, 3) uint8


# --- what comes out


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)])
def test_every_level_survives_the_round_trip(value_range):
    spec = Spec(value_range=value_range)
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    batch = media.load(levels, spec)
    assert batch.dtype == torch.float32
    assert batch.shape == (1, 3, 16, 16)
    assert (batch.min().item(), batch.max().item()) == value_range
    np.testing.assert_array_equal(to_uint8(batch, spec)[0], levels[..., None].repeat(3, axis=2))


def test_one_photo_in_every_form_gives_one_batch(photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    unit = photo.astype(np.float32) / 255
    forms = [path, str(path), path.read_bytes(), Image.open(path), photo, photo[None], unit, unit.astype(np.float64)]
    forms += [tensor, tensor[None], tensor / 255, photo.astype(np.uint16) * 257, [path], (photo,)]
    expected = media.load(path, Spec())
    assert expected.shape == (1, 3, 427, 640)
    assert expected.is_contiguous()
    for form in forms:
        torch.testing.assert_close(media.load(form, Spec()), expected, rtol=0, atol=1e-6)


def test_a_list_of_mixed_sources_becomes_a_batch_in_order(photo):
    other = photo[::-1].copy()
    batch = media.load([photo, Image.fromarray(other), torch.from_numpy(photo).permute(2, 0, 1)[None]], UNIT)
    np.testing.assert_array_equal(to_uint8(batch, UNIT), np.stack([photo, other, photo]))


def test_bfloat16_and_gradient_tensors_are_read():
    image = torch.full((3, 8, 8), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert media.load(image, UNIT).unique().tolist() == [0.5]


# --- sizes


def test_the_evaluation_crop_is_torchvisions(photo):
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    reference = Compose([Resize(256, InterpolationMode.LANCZOS), CenterCrop(256)])
    for image in (
        Image.fromarray(photo),
        Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90).resize((301, 555)),
    ):
        np.testing.assert_array_equal(evaluation_crop(np.asarray(image), (256, 256)), np.asarray(reference(image)))


@given(
    height=st.integers(1, 90), width=st.integers(1, 90), rows=st.integers(1, 40), columns=st.integers(1, 40),
    dtype=st.sampled_from([np.uint8, np.float32]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_crop_has_its_size_and_keeps_a_plain_colour(height, width, rows, columns, dtype):
    image = np.full((height, width, 3), 200 if dtype == np.uint8 else 0.75, dtype)
    result = evaluation_crop(image, (rows, columns))
    assert result.shape == (rows, columns, 3)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, image[0, 0, 0], atol=1e-6)


def test_a_strip_is_cropped_up_to_a_hundred_to_one():
    assert media.load(np.zeros((3, 300), np.uint8), Spec(size=(32, 32))).shape == (1, 3, 32, 32)
    with pytest.raises(media.MediaError, match=r"array: .*100:1.* got 1x60000"):
        media.load(np.zeros((1, 60000), np.uint8), Spec(size=(512, 512)))


def test_a_fixed_size_makes_one_batch_of_unequal_pictures(photo):
    spec = Spec(size=(96, 128))
    batch = media.load([photo, photo[:100, :50], np.zeros((300, 20), np.uint8)], spec)
    assert batch.shape == (3, 3, 96, 128)
    assert batch.min() >= -1
    assert batch.max() <= 1


def test_unequal_sizes_without_a_fixed_size_are_named(photo, tmp_path):
    path = tmp_path / "small.png"
    Image.new("RGB", (30, 20)).save(path)
    with pytest.raises(media.MediaError, match=r"array 0 427x640, .*small\.png 20x30"):
        media.load([photo, path], Spec())


# --- refusals


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 4), np.int32), "got int32"),
        (np.full((4, 4), 255.0), r"float pixels in \[0, 1\], got \[255, 255\]"),
        (np.full((4, 4), np.nan), r"float pixels in \[0, 1\], got \[nan, nan\]"),
        (np.full((4, 4), -0.01), r"float pixels in \[0, 1\]"),
        (np.zeros((3, 8, 9), np.uint8), r"\(H, W, C\) with 1 to 4 channels, got \(3, 8, 9\)"),
        (np.zeros((0, 5, 3), np.uint8), "height 0, width 5"),
        (torch.zeros(8, 9, 3), r"\(C, H, W\)"),
        (torch.zeros(8, 9), r"\(C, H, W\)"),
        (Image.new("RGB", (0, 0)), "PIL image"),
        (b"", "empty"),
        (b"not an image at all", "not an image that Pillow"),
        ([], "at least one image"),
        (torch.zeros(0, 3, 4, 4), "at least one image"),
        (None, "got NoneType"),
        ([None], "got NoneType"),
    ],
)
def test_wrong_sources_are_refused_with_the_reason(source, reason):
    with pytest.raises(media.MediaError, match=reason):
        media.load(source, Spec())


def test_other_channel_counts_and_modalities_are_refused(photo):
    with pytest.raises(media.MediaError, match="asks for 1"):
        media.load(photo, Spec(channels=1))
    with pytest.raises(media.MediaError, match="'smell'"):
        media.load(photo, Spec(modality="smell"))


# --- writing


@pytest.mark.parametrize(("suffix", "error"), [(".png", 0), (".webp", 0), (".jpg", 24), (".JPEG", 24)])
def test_saved_pictures_read_back(suffix, error, photo, tmp_path):
    path = tmp_path / "new folder" / f"photo{suffix}"
    assert media.save(media.load(photo, Spec()), path, Spec()) == [path]
    assert np.abs(np.asarray(Image.open(path)).astype(int) - photo).max() <= error
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_batch_is_numbered(tmp_path):
    paths = media.save(torch.zeros(2, 3, 4, 5), str(tmp_path / "a.b.png"), Spec())
    assert [path.name for path in paths] == ["a.b_0.png", "a.b_1.png"]
    assert sorted(tmp_path.iterdir()) == paths
    assert np.asarray(Image.open(paths[1])).tolist() == np.full((4, 5, 3), 128).tolist()


def test_levels_are_rounded_to_nearest_and_clamped():
    values = torch.tensor([-9.0, 0.0, 0.49 / 255, 0.51 / 255, 1.0, 1.5]).repeat(1, 3, 1, 1)
    assert to_uint8(values, UNIT)[0, 0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize(
    ("images", "name", "reason"),
    [
        (torch.full((1, 3, 2, 2), torch.nan), "a.png", "finite"),
        (torch.full((1, 3, 2, 2), torch.inf), "a.png", "finite"),
        (torch.zeros(1, 1, 2, 2), "a.png", r"\(B, 3, H, W\)"),
        (torch.zeros(0, 3, 2, 2), "a.png", r"\(B, 3, H, W\)"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "a.png", "uint8"),
        (torch.zeros(1, 3, 2, 2), "a.tga", r"got '\.tga'"),
        (torch.zeros(1, 3, 1, 17000), "a.webp", "cannot write"),
        (torch.zeros(1, 3, 2, 2), "occupied/a.png", "cannot write"),
        (torch.zeros(1, 3, 2, 2), "folder.png", "cannot write"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(images, name, reason, tmp_path):
    (tmp_path / "occupied").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(media.MediaError, match=reason):
        media.save(images, tmp_path / name, Spec())
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full_disk(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(media.MediaError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- listing and labelled pictures


def test_files_of_a_file_a_folder_and_a_pattern(tmp_path):
    for name in ["b.png", "a.JPG", "deep/c.webp", "notes.txt", ".hidden.png", ".thumbnails/d.png", "odd [1].png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in files(tmp_path)] == [
        "a.JPG",
        "b.png",
        "deep/c.webp",
        "odd [1].png",
    ]
    assert files(str(tmp_path / "*.png")) == [tmp_path / "b.png", tmp_path / "odd [1].png"]
    assert files(tmp_path / "**" / "*.webp") == [tmp_path / "deep/c.webp"]
    assert files(tmp_path / "odd [1].png") == [tmp_path / "odd [1].png"]
    for empty in (tmp_path / "folder.png", tmp_path / "*.txt", tmp_path / "gone"):
        with pytest.raises(media.MediaError, match="no images at"):
            files(empty)


def test_side_by_side_shows_every_picture_unchanged_above_its_caption(photo):
    tensor = torch.from_numpy(photo).permute(2, 0, 1) / 255
    canvas = np.asarray(
        side_by_side([photo, tensor, photo[:200, :30]], ["original", "reconstruction\n31 dB", "a long caption"])
    )
    gutter = next(x for x in range(50) if (canvas[50, x] != 255).any())
    np.testing.assert_array_equal(canvas[gutter : gutter + 427, gutter : gutter + 640], photo)
    second = 2 * gutter + 640
    np.testing.assert_array_equal(canvas[gutter : gutter + 427, second : second + 640], photo)
    captions = canvas[gutter + 427 :]
    assert (captions[:, gutter : gutter + 640] < 128).any()
    assert (captions[:, -1] == 255).all()  # the long caption fits


def test_side_by_side_needs_a_label_for_each_picture(photo):
    for images, labels in [([photo], ["a", "b"]), ([], [])]:
        with pytest.raises(media.MediaError, match="one label each"):
            side_by_side(images, labels)
