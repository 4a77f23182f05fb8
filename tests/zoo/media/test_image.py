"""Real pictures of every mode, and damaged ones, through zoo.media."""

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageSequence
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
RAMP16 = np.linspace(0, 65535, 24 * 40).round().astype(np.uint16).reshape(24, 40)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return load_sample_images().images[0].copy()  # (427, 640, 3) uint8


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def shown(source) -> np.ndarray:
    """(H, W, 3) in [0, 1]."""
    return media.load(source, UNIT)[0].permute(1, 2, 0).numpy()


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of 1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha) channels, which Pillow cannot write."""
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def linear_profile() -> bytes:
    """A display profile (ICC v2) with sRGB's primaries and a gamma of 1."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    text = b"linear test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360747, 0.2225045, 0.0139322),
        b"gXYZ": xyz(0.3850649, 0.7168786, 0.0971045),
        b"bXYZ": xyz(0.1430804, 0.0606169, 0.7141733),
        **{name: b"curv\0\0\0\0" + struct.pack(">I", 0) for name in (b"rTRC", b"gTRC", b"bTRC")},
    }
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    header = struct.pack(">I4sI4s4s4s", size, b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


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


# --- modes of real files


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "RGBX", "CMYK", "YCbCr", "HSV", "LA", "RGBA", "RGBa"])
def test_opaque_pictures_of_every_mode_show_what_pillow_shows(photo, mode):
    image = Image.fromarray(photo).resize((60, 40))
    image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    np.testing.assert_allclose(shown(image), np.asarray(image.convert("RGB")) / 255, atol=1e-6)


def test_lab_shows_its_colours(photo):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(photo), srgb, lab, outputMode="LAB")
    assert image is not None
    assert np.abs(shown(encoded(image, "TIFF")) - photo / 255).mean() < 0.01


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(mode, file_format):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (51, 51, 51, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    result = shown(encoded(image.convert(mode), file_format))
    np.testing.assert_allclose(result, np.repeat([[[1.0], [0.2], [0.8]]], 3, axis=2), atol=1e-6)


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("P", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_of_a_png_is_white(mode, key):
    image = Image.new(mode, (4, 4), key)
    if mode == "P":
        image.putpalette([0] * 768)
    assert shown(encoded(image, transparency=key)).min() == 1.0


def test_arrays_with_alpha_are_laid_on_white():
    array = np.zeros((2, 2, 4), np.float32)
    array[..., 3] = 0.25
    np.testing.assert_allclose(shown(array), 0.75)
    np.testing.assert_allclose(shown(torch.from_numpy(array).permute(2, 0, 1)), 0.75)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_camera_rotation_is_applied(orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = {  # what a camera stores for an upright picture (Exif 2.32, Orientation)
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    result = shown(encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    np.testing.assert_array_equal(np.rint(result[..., 0] * 255), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored():
    assert shown(encoded(Image.new("RGB", (4, 2), "red"), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).shape == (2, 4, 3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_files_keep_their_precision(file_format):
    result = shown(encoded(Image.fromarray(RAMP16), file_format))
    np.testing.assert_allclose(result[..., 0], RAMP16 / 65535, atol=1e-6)


def test_sixteen_bit_grey_survives_big_endian_and_white_is_zero():
    inverted = encoded(Image.fromarray(RAMP16), "TIFF", tiffinfo={262: 0})  # PhotometricInterpretation
    np.testing.assert_allclose(shown(inverted)[..., 0], 1 - RAMP16 / 65535, atol=1e-6)
    big_endian = Image.frombytes("I;16B", (40, 24), RAMP16.astype(">u2").tobytes())
    np.testing.assert_allclose(shown(big_endian)[..., 0], RAMP16 / 65535, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_is_scaled_and_not_clipped(channels):
    pixels = np.stack([RAMP16] * channels, axis=-1)
    if channels in (2, 4):
        pixels[..., -1] = 65535
    np.testing.assert_allclose(shown(png16(pixels))[..., 0], RAMP16 / 65535, atol=1 / 255)


def test_sixteen_bit_colour_tiff():
    tifffile = pytest.importorskip("tifffile")
    colour = np.stack([RAMP16, RAMP16[::-1], RAMP16[:, ::-1]], axis=-1)
    buffer = BytesIO()
    tifffile.imwrite(buffer, colour, photometric="rgb")
    np.testing.assert_allclose(shown(buffer.getvalue()), colour / 65535, atol=1 / 255)
    buffer = BytesIO()
    tifffile.imwrite(buffer, colour.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    with pytest.raises(media.MediaError, match="separate planes"):
        shown(buffer.getvalue())


def test_float_tiff_is_taken_in_unit_range_only():
    ramp = RAMP16.astype(np.float32) / 65535
    np.testing.assert_allclose(shown(encoded(Image.fromarray(ramp), "TIFF"))[..., 0], ramp)
    with pytest.raises(media.MediaError, match=r"float pixels in \[0, 1\], got \[0, 1000\]"):
        shown(encoded(Image.fromarray(ramp * 1000), "TIFF"))


def test_integer_tiff_of_unknown_range_is_refused():
    with pytest.raises(media.MediaError, match="which value is white"):
        shown(encoded(Image.fromarray(RAMP16.astype(np.int32)), "TIFF"))


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_counts(file_format):
    first, second = Image.new("RGB", (20, 10), (255, 0, 0)), Image.new("RGB", (20, 10), (0, 0, 255))
    data = encoded(first, file_format, save_all=True, append_images=[second])
    assert len(list(ImageSequence.Iterator(Image.open(BytesIO(data))))) == 2
    np.testing.assert_allclose(shown(data).mean(axis=(0, 1)), [1, 0, 0], atol=0.02)


def test_the_sample_files_of_scikit_image_are_read():
    pictures = files(Path(skimage.data.__file__).parent)
    foreign = [path for path in pictures if path.name == "multipage_rgb.tif"]  # float64 colour
    read = [path for path in pictures if path not in foreign]
    assert len(read) > 20
    assert media.load(read, Spec(size=(64, 64))).shape == (len(read), 3, 64, 64)
    for path in foreign:
        with pytest.raises(media.MediaError, match="not an image that Pillow"):
            media.load(path, Spec())


def test_cmyk_jpeg_shows_its_colours(photo):
    image = Image.fromarray(photo)
    result = shown(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(result - photo / 255).mean() < 0.02


def test_colour_profiles_lead_to_srgb():
    grey = Image.new("RGB", (4, 4), (55, 55, 55))
    assert shown(encoded(grey))[0, 0, 0] == np.float32(55) / np.float32(255)
    linear = 55 / 255
    expected = 1.055 * linear ** (1 / 2.4) - 0.055  # the sRGB transfer function (IEC 61966-2-1)
    for mode in ("RGB", "RGBA"):
        result = shown(encoded(grey.convert(mode), icc_profile=linear_profile()))
        np.testing.assert_allclose(result, expected, atol=1.5 / 255)
    palette = grey.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(shown(encoded(palette, icc_profile=linear_profile())), expected, atol=1.5 / 255)


def test_srgb_broken_and_foreign_profiles_change_nothing(photo):
    image = Image.fromarray(photo)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"not a profile", linear_profile()[:200]):
        np.testing.assert_array_equal(shown(encoded(image, icc_profile=profile)), shown(image))
    grey = image.convert("L")  # a profile for RGB does not fit grey
    np.testing.assert_array_equal(shown(encoded(grey, icc_profile=linear_profile())), shown(grey))


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


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("not an image")
    for name, reason in [
        ("gone.png", "no such file"),
        ("empty.png", "empty"),
        ("notes.png", "not an image"),
        (".", "folder"),
    ]:
        with pytest.raises(media.MediaError, match=reason) as caught:
            media.load(tmp_path / name, Spec())
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(media.MediaError, match="cannot read"):
        media.load("x" * 5000, Spec())


def test_decompression_bombs_are_refused(monkeypatch, photo):
    data = encoded(Image.fromarray(photo))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(media.MediaError, match="MAX_IMAGE_PIXELS"):
        media.load(data, Spec())


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_truncated_files_are_refused_by_name(file_format, photo, tmp_path):
    path = tmp_path / f"cut.{file_format.lower()}"
    data = encoded(Image.fromarray(photo), file_format)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(media.MediaError, match=r"cut\."):
        media.load(path, Spec())


@given(data=st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_pixels_or_a_media_error(data):
    file_format = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"]))
    whole = bytearray(encoded(Image.fromarray((RAMP16 >> 8).astype(np.uint8)), file_format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch = media.load(bytes(whole), UNIT)
    except media.MediaError:
        return
    assert 0 <= batch.min() <= batch.max() <= 1


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
