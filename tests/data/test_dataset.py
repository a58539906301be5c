"""Pairs and their order, splits, and what files become in memory. Files are written with Pillow."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segskd.data.cards import Card
from segskd.data.dataset import has_split, hash_order, list_pairs, list_split, read_image, read_mask
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
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.tolist() == [[[250, 10, 30], [0, 0, 255]]]


def test_grey_image_gets_three_channels(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "i.png", [[7, 200]])).tolist() == [[[7, 7, 7], [200, 200, 200]]]


def test_alpha_is_dropped(tmp_path: Path) -> None:
    assert read_image(write(tmp_path / "i.png", [[[1, 2, 3, 128]]])).tolist() == [[[1, 2, 3]]]


def test_unreadable_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"can't read image .*x\.png"):
        read_image(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"can't read mask .*x\.png"):
        read_mask(tmp_path / "x.png", make_card())
    with pytest.raises(UserError, match=r"can't read image .*none\.png"):
        read_image(tmp_path / "none.png")
