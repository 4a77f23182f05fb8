"""Real pictures of every mode, and damaged ones, become upright sRGB on white or a clear refusal."""

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
from zoo.media.image import files


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


# --- refusals


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
