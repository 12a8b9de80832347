"""Image files: every depth and mode comes out as it was stored, and bad files say why."""

from __future__ import annotations

import io
import logging
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dira_core.data import Decoded
from dira_core.data.readers import inspect, read
from dira_core.data.windows import choose_window, to_image
from dira_core.errors import DataError, RecipeError

RAMP = np.add.outer(np.arange(24), 3 * np.arange(32)).astype(np.uint8)


def noise(shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(7).integers(0, np.iinfo(dtype).max, shape, dtype)


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Pillow.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_values_are_those_of_the_file(tmp_path: Path, suffix: str, dtype: type) -> None:
    pixels = noise((24, 32), dtype)
    image = read(saved(tmp_path / f"a{suffix}", pixels), "full")
    assert image.pixels.dtype == dtype
    assert np.array_equal(image.pixels, pixels[None])
    assert image.window == (0, np.iinfo(dtype).max)


def test_float_and_32_bit_tiff_become_float32(tmp_path: Path) -> None:
    floats = np.random.default_rng(1).normal(size=(24, 32)).astype(np.float32)
    integers = noise((24, 32), np.uint16).astype(np.int32) - 1000
    assert np.array_equal(read(saved(tmp_path / "f.tif", floats), "auto").pixels[0], floats)
    assert np.array_equal(read(saved(tmp_path / "i.tif", integers), "auto").pixels[0], integers)


def test_colour_keeps_three_channels_and_alpha_is_dropped(tmp_path: Path) -> None:
    rgba = noise((24, 32, 4))
    rgb = np.moveaxis(rgba[..., :3], -1, 0)
    assert np.array_equal(read(saved(tmp_path / "a.png", rgba), "auto").pixels, rgb)
    colour = read(saved(tmp_path / "b.png", rgba[..., :3].copy()), "auto")
    assert np.array_equal(colour.pixels, rgb)
    grey_alpha = read(saved(tmp_path / "c.png", rgba[..., :2].copy()), "auto")
    assert np.array_equal(grey_alpha.pixels, rgba[None, ..., 0])


def test_palette_and_one_bit_files_are_expanded(tmp_path: Path) -> None:
    index = noise((24, 32)) % 4
    palette = np.array([[0, 0, 0], [255, 0, 0], [0, 9, 0], [1, 2, 3]], np.uint8)
    image = Pillow.fromarray(index)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png")
    expected = np.moveaxis(palette[index], -1, 0)
    assert np.array_equal(read(tmp_path / "p.png", "auto").pixels, expected)
    Pillow.fromarray(index > 1).save(tmp_path / "b.png")
    bits = read(tmp_path / "b.png", "auto")
    assert np.array_equal(bits.pixels[0], 255 * (index > 1))
    assert bits.window == (0, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    image = read(saved(tmp_path / f"a{suffix}", RAMP, exif=exif), "auto")
    assert np.array_equal(image.pixels[0], np.rot90(RAMP, -1))


def test_the_first_page_is_read_and_a_note_says_so(tmp_path: Path) -> None:
    pages = [Pillow.fromarray(noise((24, 32)) // divisor) for divisor in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    image, decoded = inspect(tmp_path / "a.tif", "auto")
    assert np.array_equal(image.pixels[0], noise((24, 32)))
    assert decoded.notes == ("several pages: the first one is read",)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_minimum_is_white_is_inverted(tmp_path: Path, dtype: type) -> None:
    pixels = noise((24, 32), dtype)
    data = bytearray(_tiff(pixels))
    tag = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # 262, one short
    data[tag + 8] = 0
    (tmp_path / "a.tif").write_bytes(data)
    image = read(tmp_path / "a.tif", "full")
    assert np.array_equal(image.pixels[0], np.iinfo(dtype).max - pixels)
    assert image.window == (0, np.iinfo(dtype).max)


def _tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def test_content_decides_and_a_wrong_suffix_is_noted(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.PNG", RAMP, format="TIFF")
    image, decoded = inspect(path, "auto")
    assert np.array_equal(image.pixels[0], RAMP)
    assert decoded.notes == ("a TIFF file named .png",)


def test_pixels_are_writable_and_contiguous(tmp_path: Path) -> None:
    image = read(saved(tmp_path / "a.png", noise((24, 32, 3))), "auto")
    assert image.pixels.flags.writeable
    assert image.pixels.flags.c_contiguous


def test_auto_window_is_the_full_range_of_8_bits_and_percentiles_of_16(tmp_path: Path) -> None:
    eight, sixteen = noise((24, 32)), noise((24, 32), np.uint16)
    assert read(saved(tmp_path / "8.png", eight), "auto").window == (0, 255)
    window = read(saved(tmp_path / "16.png", sixteen), "auto").window
    assert window == pytest.approx(tuple(np.percentile(sixteen, [0.5, 99.5])))
    assert read(tmp_path / "8.png", "percentile").window == pytest.approx(
        tuple(np.percentile(eight, [0.5, 99.5]))
    )


def test_percentiles_of_a_large_image_are_near_those_of_all_pixels() -> None:
    pixels = np.random.default_rng(3).normal(500, 50, (1, 1500, 1500)).astype(np.float32)
    low, high = choose_window(Decoded(pixels, "TIFF", 32, (0, 1)), "percentile")
    assert (low, high) == pytest.approx(tuple(np.percentile(pixels, [0.5, 99.5])), abs=2)


@pytest.mark.parametrize("side", [127, 128])
def test_the_window_of_a_large_volume_does_not_hang_on_its_sides(side: int) -> None:
    plane = np.zeros((side, side), np.uint16)  # air around a body, a bone in it
    plane[20:100, 10:120] = 1000
    plane[60:70, 50:60] = 1900
    volume = np.broadcast_to(plane, (1, side, side, side))
    rows = np.broadcast_to(plane.T, (1, side, side, side))
    planes = np.moveaxis(volume, 1, 3)
    for pixels in (volume, rows, planes):
        assert choose_window(Decoded(pixels, "NIfTI", 16, (0, 65535)), "auto") == (0, 1900)


def test_equal_percentiles_give_way_to_the_range() -> None:
    pixels = np.zeros((1, 100, 100), np.float32)
    pixels[0, 0, 0] = 9
    assert choose_window(Decoded(pixels, "TIFF", 32, (0, 9)), "auto") == (0, 9)


def test_a_given_window_is_kept_and_must_be_in_order(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", RAMP)
    assert read(path, (3, 80)).window == (3, 80)
    with pytest.raises(RecipeError, match="smaller"):
        read(path, (80, 3))


def test_a_window_of_the_file_that_misses_every_pixel_is_not_believed() -> None:
    pixels = RAMP[None].astype(np.float32)
    missed = Decoded(pixels, "DICOM", 16, (0, 4095), window=(2000, 3000))
    assert choose_window(missed, "auto") == pytest.approx(tuple(np.percentile(pixels, [0.5, 99.5])))
    hit = Decoded(pixels, "DICOM", 16, (0, 4095), window=(20, 3000))
    assert choose_window(hit, "auto") == (20, 3000)


def test_inversion_turns_pixels_and_window_alike() -> None:
    pixels = noise((1, 24, 32), np.uint16) % 4096
    plain = Decoded(pixels, "DICOM", 12, (0, 4095), window=(100, 3000))
    turned = Decoded(pixels, "DICOM", 12, (0, 4095), window=(100, 3000), invert=True)
    for window in ("auto", "full", "percentile", (50.0, 60.0)):
        bright, dark = to_image(plain, window), to_image(turned, window)
        assert dark.pixels.dtype == np.uint16
        assert np.allclose(_shown(dark), 1 - _shown(bright), atol=1e-6)


def _shown(image: object) -> np.ndarray:
    low, high = image.window
    return np.clip((image.pixels.astype(np.float64) - low) / (high - low), 0, 1)


BAD = {
    "constant image": Decoded(np.full((1, 9, 9), 7, np.uint8), "PNG", 8, (0, 255)),
    "smaller than 8 px": Decoded(RAMP[None, :5], "PNG", 8, (0, 255)),
    "not finite": Decoded(np.full((1, 9, 9), np.nan, np.float32), "TIFF", 32, (0, 1)),
}


@pytest.mark.parametrize("reason", BAD)
def test_images_with_nothing_to_see_are_refused(reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        to_image(BAD[reason], "auto")


def test_one_colour_is_a_constant_image() -> None:
    colour = np.tile(np.array([1, 2, 3], np.uint8)[:, None, None], (1, 9, 9))
    with pytest.raises(DataError, match="constant"):
        to_image(Decoded(colour, "PNG", 8, (0, 255)), "auto")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_truncated_files_are_errors_that_do_not_name_the_path(
    tmp_path: Path, suffix: str, part: float
) -> None:
    path = saved(tmp_path / f"canary{suffix}", noise((64, 64)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(DataError) as caught:
        read(path, "auto")
    assert "canary" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "pipe.png", "auto")
    with pytest.raises(DataError, match="a folder with 0 DICOM slices"):
        read(tmp_path, "auto")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.png", "auto")
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "nul\0.png", "auto")


def test_decoders_can_neither_warn_nor_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def loud(*args: object, **options: object) -> None:
        warnings.warn("canary", UserWarning, stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("canary")
        raise ValueError("canary")

    path = saved(tmp_path / "a.png", RAMP)
    monkeypatch.setattr("dira_core.data.readers.Pillow.open", loud)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match="damaged or cut short"):
            read(path, "auto")
    assert not caught
    assert not caplog.records
    logging.getLogger("PIL.TiffImagePlugin").error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_16_bit_colour_is_read_as_8_bit_and_a_note_says_so(tmp_path: Path) -> None:
    pixels = noise((24, 32, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 32, 24, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        png += struct.pack(">I", len(data)) + name + data
        png += struct.pack(">I", zlib.crc32(name + data))
    (tmp_path / "a.png").write_bytes(png)
    image, decoded = inspect(tmp_path / "a.png", "auto")
    assert np.array_equal(image.pixels, np.moveaxis(pixels >> 8, -1, 0))
    assert decoded.notes == ("16 bits a channel are read as 8",)
