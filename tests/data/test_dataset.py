"""Pairs and their order, splits, and what files become in memory. Files are written with Pillow."""

from __future__ import annotations

import warnings
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segskd.data import dataset
from segskd.data.cards import Card
from segskd.data.dataset import has_split, hash_order, list_pairs, list_split, read_mask
from segskd.data.pixels import read_image, read_upload
from segskd.errors import UserError

IMAGES, MASKS = "images/{name}.png", "masks/{name}.png"


def make_card(split: dict[str, Any] | None = None, **changes: Any) -> Card:
    content = {
        "name": "three",
        "title": "three classes",
        "folder": "three",
        "classes": [
            {"name": "ground", "color": [128, 64, 0]},
            {"name": "wall", "color": [0, 1, 2]},
            {"name": "sky", "color": [2, 1, 0]},
        ],
        "splits": {"train": {"images": IMAGES, "masks": MASKS, **(split or {})}},
    }
    return Card.model_validate({**content, **changes})


def touch(root: Path, *names: str) -> None:
    """Files that need only exist."""
    for name in names:
        path = root / "three" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def both(root: Path, *names: str) -> None:
    touch(root, *(pattern.format(name=name) for name in names for pattern in (IMAGES, MASKS)))


def write(path: Path, values: Any, dtype: Any = np.uint8, mode: str | None = None) -> Path:
    image = Image.fromarray(np.array(values, dtype=dtype))
    (image.convert(mode) if mode else image).save(path)
    return path


# -- which files --------------------------------------------------------------------------------------


def test_pairs_are_sorted_by_name(tmp_path: Path) -> None:
    both(tmp_path, "b10", "a", "b2", "B")
    pairs = list_pairs(make_card(), tmp_path, "train")
    assert [pair.name for pair in pairs] == ["B", "a", "b10", "b2"]
    assert [pair.image for pair in pairs][1] == tmp_path / "three/images/a.png"
    assert [pair.mask for pair in pairs][1] == tmp_path / "three/masks/a.png"


def test_unpaired_files_are_left_out_but_listed(tmp_path: Path) -> None:
    both(tmp_path, "a", "b")
    touch(tmp_path, "images/lonely.png", "masks/single.png", "images/notes.txt", "images/.hidden.png")
    assert [pair.name for pair in list_pairs(make_card(), tmp_path, "train")] == ["a", "b"]
    listing = list_split(make_card(), tmp_path, "train")
    assert listing.images_without_mask == [tmp_path / "three/images/lonely.png"]
    assert listing.masks_without_image == [tmp_path / "three/masks/single.png"]
    assert listing.listed_but_missing == []


def test_a_list_of_names_chooses(tmp_path: Path) -> None:
    both(tmp_path, "a", "b", "c")
    touch(tmp_path, "masks/d.png")
    (tmp_path / "three/train.txt").write_text("# names and labels\nc 3 1\n\na 1 1\ngone 0 0\n")
    listing = list_split(make_card({"names": "train.txt"}), tmp_path, "train")
    assert [pair.name for pair in listing.pairs] == ["a", "c"]
    assert listing.listed_but_missing == ["gone"]
    assert listing.masks_without_image == []


def test_a_missing_list_of_names(tmp_path: Path) -> None:
    both(tmp_path, "a")
    with pytest.raises(UserError, match=r"list of names .*train\.txt"):
        list_pairs(make_card({"names": "train.txt"}), tmp_path, "train")


def test_a_listed_name_may_hold_blanks(tmp_path: Path) -> None:
    both(tmp_path, "my a", "my", "b")
    (tmp_path / "three/train.txt").write_text("\ufeffmy a\nb 1 0\n", encoding="utf-8")
    listing = list_split(make_card({"names": "train.txt"}), tmp_path, "train")
    assert [pair.name for pair in listing.pairs] == ["b", "my a"]
    assert listing.listed_but_missing == []
    (tmp_path / "three/train.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"train\.txt is no UTF-8 text"):
        list_split(make_card({"names": "train.txt"}), tmp_path, "train")


def test_names_left_out_are_gone_before_shares_are_cut(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(7)]
    both(tmp_path, *names)
    touch(tmp_path, "images/lonely.png")
    out = ("n1", "n5", "lonely")
    parts = [
        list_split(make_card({"left_out": out, "share": share}), tmp_path, "train") for share in [(0, 0.8), (0.8, 1)]
    ]
    assert [len(part.pairs) for part in parts] == [4, 1]
    assert sorted(pair.name for part in parts for pair in part.pairs) == ["n0", "n2", "n3", "n4", "n6"]
    assert parts[0].images_without_mask == []
    (tmp_path / "three/train.txt").write_text("n0\nn1\ngone\n")
    listing = list_split(make_card({"left_out": out, "names": "train.txt"}), tmp_path, "train")
    assert ([pair.name for pair in listing.pairs], listing.listed_but_missing) == (["n0"], ["gone"])


def test_a_star_for_the_suffix_leaves_dots_to_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.1.jpg", "images/a.2.png", "masks/a.1_m.png", "masks/a.2_m.tif", "masks/a.3.png")
    pairs = list_pairs(make_card({"images": "images/{name}.*", "masks": "masks/{name}_m.*"}), tmp_path, "train")
    assert [(pair.name, pair.mask.name) for pair in pairs] == [("a.1", "a.1_m.png"), ("a.2", "a.2_m.tif")]


def test_shares_are_disjoint_and_complete(tmp_path: Path) -> None:
    names = [f"n{number:02}" for number in range(37)]
    both(tmp_path, *names)
    bounds = [(0, 0.6), (0.6, 0.8), (0.8, 1)]
    parts = [[pair.name for pair in list_pairs(make_card({"share": share}), tmp_path, "train")] for share in bounds]
    # 0.6 · 37 = 22.2 and 0.8 · 37 = 29.6
    assert [len(part) for part in parts] == [22, 8, 7]
    assert sorted(chain(*parts)) == names
    assert all(part == sorted(part) for part in parts)
    assert parts[0] != names[:22]


def test_names_may_hold_slashes_and_stars_stay_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "left/train/ulm/u1_left.png", "left/train/bonn/b1_left.png", "left/train/bonn/b1_right.png")
    touch(tmp_path, "gt/train/ulm/u1_gt_v2.png", "gt/train/bonn/b1_gt_v3.png", "gt/val/ulm/u1_gt_v2.png")
    split = {"images": "left/train/{name}_left.png", "masks": "gt/train/{name}_gt_*.png"}
    pairs = list_pairs(make_card(split), tmp_path, "train")
    assert [pair.name for pair in pairs] == ["bonn/b1", "ulm/u1"]
    assert pairs[0].mask == tmp_path / "three/gt/train/bonn/b1_gt_v3.png"
    split = {"images": "*/train/ulm/{name}_left.png", "masks": "*/ulm/{name}_gt_v2.png"}
    listing = list_split(make_card(split), tmp_path, "train")
    assert [path.name for path in listing.images_without_mask] == ["u1_left.png"]


def test_pattern_characters_mean_themselves(tmp_path: Path) -> None:
    touch(tmp_path, "images/a+(1).png", "images/a+x1y.png", "masks/a+(1).png")
    split = {"images": "images/{name}(1).png", "masks": "masks/{name}(1).png"}
    assert [pair.name for pair in list_pairs(make_card(split), tmp_path, "train")] == ["a+"]


def test_missing_folder_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*three.*data fetch three.*--data"):
        list_pairs(make_card(), tmp_path, "train")
    assert not has_split(make_card(), tmp_path, "train")


def test_no_image_and_no_pair(tmp_path: Path) -> None:
    touch(tmp_path, "masks/a.png")
    with pytest.raises(UserError, match=r"'train' of 'three' has no images: nothing matches .*images/{name}\.png"):
        list_split(make_card(), tmp_path, "train")
    touch(tmp_path, "images/b.png")
    with pytest.raises(UserError, match=r"no image of split 'train'.*has a mask.*data check three"):
        list_pairs(make_card(), tmp_path, "train")
    assert has_split(make_card(), tmp_path, "train")
    assert not has_split(make_card(), tmp_path, "val")


def test_hash_order_is_pinned() -> None:
    # By sha256sum "2/c" begins with 1c, "2/a" with 4c and "2/b" with e9; "3/c" with 26, "3/b" with 27, "3/a" with 8c.
    assert hash_order(["a", "b", "c"], 2) == ["c", "a", "b"]
    assert hash_order(["b", "c", "a"], 3) == ["c", "b", "a"]


# -- what is in them ----------------------------------------------------------------------------------


def test_index_mask(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 1, 2], [255, 2, 0]])
    mask = read_mask(path, make_card())
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 1, 2], [255, 2, 0]]


def test_index_mask_with_values(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[7, 26], [0, 8]])
    card = make_card(values={0: 255, 7: 0, 8: 1, 26: 2})
    assert read_mask(path, card).tolist() == [[0, 2], [255, 1]]


def test_palette_png_gives_its_indices(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([9, 9, 9, 0, 200, 0, 200, 0, 0])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", make_card()).tolist() == [[2, 0, 1]]


def test_grey_rgb_png_counts_as_index_mask_and_a_coloured_one_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "grey.png", [[[2, 2, 2], [1, 1, 1]]])
    assert read_mask(path, make_card()).tolist() == [[2, 1]]
    path = write(tmp_path / "coloured.png", [[[2, 2, 2], [1, 1, 0]]])
    with pytest.raises(UserError, match=r"coloured\.png holds colours.*mask_format: index"):
        read_mask(path, make_card())


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colour_mask(tmp_path: Path, mode: str) -> None:
    colours = [[0, 1, 2], [2, 1, 0], [0, 0, 0], [128, 64, 0]]
    if mode == "P":
        image = Image.new("P", (4, 1))
        image.putpalette(list(chain(*colours)))
        image.putdata([0, 1, 2, 3])
        image.save(tmp_path / "m.png")
    else:
        write(tmp_path / "m.png", [colours], mode=mode)
    card = make_card(mask_format="color", ignore_colors=[[0, 0, 0]], ignore_index=11)
    assert read_mask(tmp_path / "m.png", card).tolist() == [[1, 2, 11, 0]]


def test_colour_mask_with_one_channel(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 1]])
    with pytest.raises(UserError, match=r"m\.png is no 8-bit colour picture.*mask_format: color"):
        read_mask(path, make_card(mask_format="color"))


def test_sixteen_bit_mask(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 2], [255, 1]], dtype=np.uint16)
    assert read_mask(path, make_card()).tolist() == [[0, 2], [255, 1]]
    # 257 is 1 modulo 256
    path = write(tmp_path / "wide.png", [[0, 257]], dtype=np.uint16)
    with pytest.raises(UserError, match=r"wide\.png has value 257, which card 'three' doesn't know"):
        read_mask(path, make_card())


@pytest.mark.parametrize(
    ("values", "changes", "said"),
    [
        ([[0, 3]], {}, "value 3,"),
        ([[9, 200, 9, 4]], {}, "values 4, 9, 200,"),
        ([[3, 4, 5, 6, 7, 8, 9]], {}, "values 3, 4, 5, 6, 7 and 2 more,"),
        ([[0, 1]], {"values": {0: 0, 2: 1}}, "value 1,"),
        ([[[0, 1, 2], [255, 16, 0]]], {"mask_format": "color"}, "value #ff1000,"),
    ],
)
def test_unknown_values_are_named(tmp_path: Path, values: Any, changes: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "odd.png", values)
    with pytest.raises(UserError, match=rf"odd\.png has {said} which card 'three' doesn't know"):
        read_mask(path, make_card(**changes))


def test_image_is_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "i.png", [[[250, 10, 30], [0, 0, 255]]])
    image = read_image(path, make_card())
    assert image.dtype == np.uint8
    assert image.tolist() == [[[250, 10, 30], [0, 0, 255]]]


def test_grey_image_gets_three_channels(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "i.png", [[7, 200]]), make_card()).tolist() == [[[7, 7, 7], [200, 200, 200]]]


def test_alpha_is_dropped(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "i.png", [[[1, 2, 3, 128]]]), make_card()).tolist() == [[[1, 2, 3]]]


def test_unreadable_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"can't read image .*x\.png"):
        read_image(tmp_path / "x.png", make_card())
    with pytest.raises(UserError, match=r"can't read mask .*x\.png"):
        read_mask(tmp_path / "x.png", make_card())
    with pytest.raises(UserError, match=r"can't read image .*none\.png"):
        read_image(tmp_path / "none.png", make_card())


# -- pictures of strange sizes and kinds ---------------------------------------------------------------


def header_only(path: Path, width: int, height: int) -> Path:
    """A PNG whose header says a size, with next to nothing behind it."""
    Image.new("1", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [
        (20_000, 300, "is 300x20000, and no side may exceed 16384 pixels"),
        (300, 16_385, "is 16385x300, and no side may exceed 16384 pixels"),
        (10_001, 10_000, r"has 100\.1 megapixels, and at most 100 are read"),
        (20_000, 20_000, r"has 400\.0 megapixels, and at most 100 are read"),
        (2**31 - 1, 2**31 - 1, r"has \d+\.\d megapixels, and at most 100 are read"),
    ],
)
def test_large_pictures_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, height: int, said: str
) -> None:
    path = header_only(tmp_path / "huge.png", width, height)
    monkeypatch.setattr(dataset.cv2, "imread", None)
    with pytest.raises(UserError, match=rf"image .*huge\.png {said}"):
        read_image(path, make_card())
    with pytest.raises(UserError, match=rf"mask .*huge\.png {said}"):
        read_mask(path, make_card())
    with pytest.raises(UserError, match=rf"^'huge\.png' {said}"):
        read_upload(path, make_card())


def test_a_large_picture_is_refused_where_warnings_are_none(tmp_path: Path) -> None:
    path = header_only(tmp_path / "huge.png", 10_001, 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"has 100\.1 megapixels"):
            read_image(path, make_card())
        with pytest.raises(UserError, match=r"has 100\.1 megapixels"):
            read_upload(path, make_card())


def test_a_picture_at_the_limit_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header passes, so the decoder gets it (and says that nothing is behind the header)."""
    asked: list[str] = []
    monkeypatch.setattr(dataset.cv2, "imread", lambda path, mode: asked.append(path))
    for width, height in ((16_384, 6_103), (10_000, 10_000)):
        with pytest.raises(UserError, match="can't read image"):
            read_image(header_only(tmp_path / "x.png", width, height), make_card())
    assert len(asked) == 2


def test_what_opencv_refuses_is_a_plain_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int) -> None:
        raise dataset.cv2.error("assertion failed")

    monkeypatch.setattr(dataset.cv2, "imread", refuse)
    with pytest.raises(UserError, match=r"can't read image .*i\.png"):
        read_image(write(tmp_path / "i.png", [[1]]), make_card())


RED, HALF_RED = (255, 0, 0), (255, 0, 0, 128)


def test_uploads_become_rgb(tmp_path: Path) -> None:
    plain = Image.new("RGB", (3, 2), RED)
    plain.save(tmp_path / "rgb.png")
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.png")
    plain.convert("P").save(tmp_path / "palette.png")
    Image.new("RGBA", (3, 2), HALF_RED).save(tmp_path / "alpha.png")
    Image.new("LA", (3, 2), (0, 0)).save(tmp_path / "clear.png")
    write(tmp_path / "deep.png", [[0, 256 * 9, 65535]] * 2, dtype=np.uint16)
    plain.save(tmp_path / "one.gif")
    found = {path.name: read_upload(path, make_card()) for path in tmp_path.iterdir()}
    assert {picture.shape for picture in found.values()} == {(2, 3, 3)}
    deep = found.pop("deep.png")
    assert {picture.dtype for picture in found.values()} == {np.dtype(np.uint8)}
    first = {name: picture[0, 0].tolist() for name, picture in found.items()}
    # 128 of 255 red on white: green and blue are 255 · (1 - 128/255) = 127.
    assert first == {
        **{name: [255, 0, 0] for name in ("rgb.png", "palette.png", "one.gif")},
        "grey.png": [7, 7, 7],
        "alpha.png": [255, 127, 127],
        "clear.png": [255, 255, 255],
    }
    assert deep.dtype == np.float32
    assert (deep[1, :, 2] * 65535).round().tolist() == [0, 256 * 9, 65535]


def test_an_upload_in_cmyk_and_one_from_a_camera_held_sideways(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    red, green, blue = read_upload(tmp_path / "print.jpg", make_card())[8, 8].tolist()
    assert red > 230 > 25 > max(green, blue)
    photograph = Image.new("RGB", (32, 16), RED)
    photograph.paste((0, 0, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright: its left side is then on top
    photograph.save(tmp_path / "phone.jpg", exif=exif, quality=95)
    upright = read_upload(tmp_path / "phone.jpg", make_card())
    assert upright.shape == (32, 16, 3)
    assert upright[4, 8, 2] > 200 > 50 > upright[28, 8, 2]


def test_uploads_that_are_no_single_whole_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for kind in ("png", "jpg"):
        Image.fromarray(noise).save(tmp_path / f"whole.{kind}")
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 1 << 20, np.int32)).save(tmp_path / "wide.tif")
    said = {
        **dict.fromkeys(("film.gif", "pages.tif", "film.png"), "is animated or has several pages"),
        **dict.fromkeys(("cut.png", "cut.jpg"), "is damaged or cut short"),
        **dict.fromkeys(("text.png", "page.jpg", "empty.png"), "is no picture: upload a PNG"),
        **dict.fromkeys(("float.tif", "wide.tif"), "holds values that don't fit into 16 bits"),
    }
    for name, reason in said.items():
        with pytest.raises(UserError, match=f"^'{name}' {reason}"):
            read_upload(tmp_path / name, make_card())


def test_a_cameras_two_pictures_in_one_file_are_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_upload(tmp_path / "phone.jpg", make_card())[0, 0, 0] > 240
