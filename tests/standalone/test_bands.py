"""Images of one, three and four channels and of 16 bits. Files are written by OpenCV, Pillow, or byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segskd.data.cards import Card
from segskd.data.pixels import displayed, read_image, read_upload
from segskd.errors import UserError
from segskd.standalone import bands

Array = npt.NDArray[Any]


def make_card(**changes: Any) -> Card:
    content = {
        "name": "deep",
        "title": "deep images",
        "folder": "deep",
        "classes": [{"name": name, "color": [i, i, i]} for i, name in enumerate("ab")],
        "splits": {"train": {"images": "{name}.png", "masks": "m/{name}.png"}},
    }
    return Card.model_validate({**content, **changes})


def noise(channels: int, dtype: Any = np.uint16) -> Array:
    pixels = np.random.default_rng(channels).integers(0, np.iinfo(dtype).max + 1, (7, 9, channels))
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = 0, np.iinfo(dtype).max, 256
    return pixels.astype(dtype)


def write(path: Path, pixels: Array) -> Path:
    """By OpenCV, which wants blue first."""
    cv2.imwrite(str(path), pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.shape[2] > 1 else pixels)
    return path


def write_tiff(
    path: Path, pixels: Array, photometric: int, extra: list[int], order: str = "<", planar: int = 1
) -> Path:
    """An uncompressed TIFF as TIFF 6.0 describes it: photometric 1 is grey, 2 RGB; `extra` are further samples."""
    height, width, count = pixels.shape
    content = (pixels.transpose(2, 0, 1) if planar == 2 else pixels).astype(pixels.dtype.newbyteorder(order)).tobytes()
    strips, size = (count, len(content) // count) if planar == 2 else (1, len(content))
    arrays = {258: [8 * pixels.dtype.itemsize] * count, 338: extra}
    numbers = {256: width, 257: height, 259: 1, 262: photometric, 277: count, 278: height, 284: planar}
    blob, entries = content + b"\0" * (len(content) % 2), []

    def put(tag: int, kind: str, values: list[int]) -> None:
        nonlocal blob
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, blob = struct.pack(f"{order}I", 8 + len(blob)), blob + packed
        entries.append(
            (tag, struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + packed.ljust(4, b"\0"))
        )

    for tag, values in arrays.items():
        if values:
            put(tag, "H", values)
    for tag, value in numbers.items():
        put(tag, "H", [value])
    put(273, "I", [8 + size * strip for strip in range(strips)])
    put(279, "I", [size] * strips)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(blob))
    table = b"".join(entry for _, entry in sorted(entries))
    path.write_bytes(head + blob + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_are_kept_exactly(tmp_path: Path, channels: int, suffix: str) -> None:
    pixels = noise(channels)
    image = read_image(write(tmp_path / f"i.{suffix}", pixels), make_card(channels=channels))
    assert (image.shape, image.dtype) == (pixels.shape, np.float32)
    assert np.array_equal((image.astype(np.float64) * 65535).round(), pixels)
    assert (image[0, 0, 0], image[0, 1, 0]) == (0.0, 1.0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_8_bits_stay_as_they_are(tmp_path: Path, channels: int) -> None:
    pixels = noise(channels, np.uint8)
    image = read_image(write(tmp_path / "i.png", pixels), make_card(channels=channels))
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("photometric", "extra"), [(1, [0, 0, 0]), (1, [0, 0, 2]), (2, [0]), (2, [1]), (2, [2])], ids=str
)
def test_four_bands_of_a_tiff_are_unchanged(
    tmp_path: Path, photometric: int, extra: list[int], dtype: Any, order: str
) -> None:
    """GDAL calls bands of 16 bits grey; an alpha, be it multiplied in (1) or not (2), is one band of four here."""
    pixels = noise(4, dtype)
    path = write_tiff(tmp_path / "i.tif", pixels, photometric, extra, order)
    assert np.array_equal(bands.read_bands(path), pixels)
    image = read_image(path, make_card())  # its first three bands
    assert np.array_equal((image * (1 if dtype == np.uint8 else 65535)).round(), pixels[..., :3])


def test_bands_that_lie_apart_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "i.tif", noise(4), 1, [0, 0, 0], planar=2)
    with pytest.raises(UserError, match=r"i\.tif stores each band separately: save it with"):
        read_image(path, make_card(channels=4))


def test_white_is_settable(tmp_path: Path) -> None:
    path = write(tmp_path / "i.png", np.array([[[0], [819], [4095], [5000]]], np.uint16))
    image = read_image(path, make_card(channels=1, white=4095))
    assert image[0, :, 0].tolist() == [0.0, pytest.approx(0.2), 1.0, 1.0]  # 819 / 4095; brighter counts as white
    eight = write(tmp_path / "e.png", np.array([[[100]]], np.uint8))
    with pytest.raises(UserError, match=r"e\.png has 8 bits, and its card says white: 4095"):
        read_image(eight, make_card(channels=1, white=4095))
    assert read_image(eight, make_card(channels=1, white=200)).tolist() == [[[0.5]]]


def test_a_grey_card_takes_colours_only_where_they_are_grey(tmp_path: Path) -> None:
    grey = make_card(channels=1)
    same = write(tmp_path / "same.png", np.array([[[7, 7, 7], [9, 9, 9]]], np.uint8))
    assert read_image(same, grey).tolist() == [[[7], [9]]]
    other = write(tmp_path / "other.png", np.array([[[7, 7, 7], [9, 9, 8]]], np.uint8))
    for read, called in ((read_image, f"image {other}"), (read_upload, r"'other\.png'")):
        with pytest.raises(UserError, match=f"^{called} has colours, and its card says channels: 1: save it in grey"):
            read(other, grey)


def test_four_channels_need_four(tmp_path: Path) -> None:
    path = write(tmp_path / "i.png", noise(3, np.uint8))
    for read in (read_image, read_upload):
        with pytest.raises(UserError, match=r"i\.png'? has 3 channels, and its card says channels: 4"):
            read(path, make_card(channels=4))


def test_uploads_heed_the_card(tmp_path: Path) -> None:
    four = noise(4, np.uint8)
    path = write(tmp_path / "four.png", four)
    assert np.array_equal(read_upload(path, make_card(channels=4)), four)  # and not laid on white
    deep = noise(1)
    path = write(tmp_path / "deep.tif", deep)
    assert np.array_equal((read_upload(path, make_card(channels=1)) * 65535).round(), deep)
    Image.new("L", (2, 1), 7).save(tmp_path / "grey.png")
    assert read_upload(tmp_path / "grey.png", make_card(channels=1)).tolist() == [[[7], [7]]]


def test_everything_is_shown_in_8_bits_of_rgb() -> None:
    assert displayed(np.array([[[7]]], np.uint8)).tolist() == [[[7, 7, 7]]]
    assert displayed(np.array([[[1, 2, 3, 4]]], np.uint8)).tolist() == [[[1, 2, 3]]]
    assert displayed(np.array([[[0.0], [0.5], [1.0]]], np.float32)).tolist() == [[[0] * 3, [128] * 3, [255] * 3]]
    assert displayed(np.array([[[0.2, 0.4, 0.6, 1]]], np.float32)).tolist() == [[[51, 102, 153]]]


def test_a_photograph_on_its_side_is_turned_whatever_its_channels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is on top
    Image.fromarray(np.array([[0, 250], [0, 250], [0, 250]], np.uint8)).save(tmp_path / "i.png", exif=exif)
    for card in (make_card(channels=1), make_card()):
        assert read_image(tmp_path / "i.png", card)[..., 0].tolist() == [[0, 0, 0], [250, 250, 250]]


def test_statistics_come_one_a_channel() -> None:
    grey, four = make_card(channels=1), make_card(channels=4)
    assert grey.mean == pytest.approx(((0.485 + 0.456 + 0.406) / 3,), abs=1e-4)
    assert four.mean == (0.485, 0.456, 0.406, grey.mean[0])
    assert four.std == (0.229, 0.224, 0.225, grey.std[0])
    with pytest.raises(ValueError, match="mean has 3 values, and channels is 1"):
        make_card(channels=1, mean=(0, 0, 0))
    assert "channels" not in make_card().model_dump(exclude_defaults=True)
