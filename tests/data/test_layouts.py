"""Layouts: folders as people have them are recognised, with the right partners. Files need only exist here."""

from __future__ import annotations

from pathlib import Path

import pytest

from segskd.data.cards import Card
from segskd.data.dataset import list_split
from segskd.data.layouts import DatasetLayout, recognise
from segskd.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def pairs(layout: DatasetLayout, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """What a card with these splits lists, as paths below the layout's root."""
    card = Card.model_validate(
        {
            "name": "x",
            "title": "x",
            "folder": layout.root.relative_to(folder).as_posix(),
            "classes": [{"name": n, "color": (0, 0, 0)} for n in "ab"],
            "splits": layout.splits,
        }
    )
    return {
        split: [
            (pair.image.relative_to(layout.root).as_posix(), pair.mask.relative_to(layout.root).as_posix())
            for pair in list_split(card, folder, split).pairs
        ]
        for split in card.splits
    }


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{split}{n}.jpg", "masks/{split}{n}.png"),
        ("Images/{split}{n}.JPG", "Annotations/{split}{n}.PNG"),
        ("imgs/{split}{n}.png", "gt/{split}{n}_mask.png"),
        ("img/{split}{n}.png", "labels/{split}{n}-label.png"),
        ("image/{split}{n}_img.png", "annot/{split}{n}_P.png"),
    ],
)
def test_images_and_masks_without_splits_are_divided(tmp_path: Path, image: str, mask: str) -> None:
    for n in range(10):
        touch(tmp_path, image.format(split="f", n=n), mask.format(split="f", n=n))
    layout = recognise(tmp_path)
    found = pairs(layout, tmp_path)
    assert layout.kind == "images and masks"
    assert {split: len(both) for split, both in found.items()} == {"train": 8, "val": 2}
    expected = {(image.format(split="f", n=n), mask.format(split="f", n=n)) for n in range(10)}
    assert {both for split in found.values() for both in split} == expected


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{split}/images/a{n}.jpg", "{split}/masks/a{n}.png"),
        ("images/{split}/a{n}.jpg", "labels/{split}/a{n}.png"),
        ("{split}/a{n}.png", "{split}annot/a{n}.png"),
        ("{split}/a{n}.png", "{split}_labels/a{n}_L.png"),
        ("{split}_images/a{n}.png", "{split}_masks/a{n}.png"),
        ("img-{split}/a{n}.png", "gt-{split}/a{n}.png"),
    ],
)
@pytest.mark.parametrize("words", [("train", "val", "test"), ("Training", "valid", "testing")])
def test_splits_are_taken_as_they_are(tmp_path: Path, image: str, mask: str, words: tuple[str, str, str]) -> None:
    expected = {}
    for name, word, number in zip(("train", "val", "test"), words, (3, 2, 1), strict=True):
        expected[name] = [(image.format(split=word, n=n), mask.format(split=word, n=n)) for n in range(number)]
        touch(tmp_path, *(file for both in expected[name] for file in both))
    layout = recognise(tmp_path)
    assert pairs(layout, tmp_path) == expected
    assert all(split.share is None for split in layout.splits.values())


def test_a_val_split_is_cut_off_where_only_a_test_split_is_there(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{kind}/{n}.png" for kind in ("images", "masks") for n in range(5)))
    touch(tmp_path, "test/images/t.png", "test/masks/t.png", "val/images/v.png")
    found = pairs(recognise(tmp_path), tmp_path)
    assert {split: len(both) for split, both in found.items()} == {"train": 4, "val": 1, "test": 1}


def test_mixed_suffixes_and_dots_in_names(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.1.jpg", "images/a.2.png", "images/b c.jpeg")
    touch(tmp_path, "masks/a.1.png", "masks/a.2.png", "masks/b c.tif")
    layout = recognise(tmp_path)
    assert layout.splits["train"].images == "images/{name}.*"
    found = pairs(layout, tmp_path)
    assert {both for split in found.values() for both in split} == {
        ("images/a.1.jpg", "masks/a.1.png"),
        ("images/a.2.png", "masks/a.2.png"),
        ("images/b c.jpeg", "masks/b c.tif"),
    }


def test_a_folder_in_a_folder_and_what_systems_leave_behind(tmp_path: Path) -> None:
    for n in range(5):
        touch(tmp_path, f"export/My data/images/{n}.png", f"export/My data/masks/{n}.png")
    touch(tmp_path, "__MACOSX/export/My data/images/._0.png", ".DS_Store", "export/Thumbs.db", "readme.txt")
    touch(tmp_path, "export/My data/images/.hidden.png", "export/My data/masks/Thumbs.db")
    layout = recognise(tmp_path)
    assert layout.root == tmp_path / "export" / "My data"
    assert sum(map(len, pairs(layout, tmp_path).values())) == 5


def test_of_several_mask_folders_the_one_that_fits_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/a{n}.png" for n in range(3)), *(f"masks/a{n}.png" for n in range(3)))
    touch(tmp_path, "annotations/a0.png", "labels/a0.txt")
    assert recognise(tmp_path).splits["train"].masks == "masks/{name}.png"


def voc(root: Path, names: str) -> None:
    touch(root, *(f"JPEGImages/{n}.jpg" for n in names), *(f"SegmentationClass/{n}.png" for n in names[:-1]))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)


def test_pascal_voc_with_lists(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    voc(root, "abcdefg")
    touch(root, "SegmentationObject/a.png", "Annotations/a.xml")
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("a\nb\nd\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "trainval.txt").write_text("a\nb\nc\nd\n")
    layout = recognise(tmp_path)
    assert layout.kind == "PASCAL VOC"
    found = pairs(layout, tmp_path)
    assert {split: [image for image, _ in both] for split, both in found.items()} == {
        "train": ["JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/d.jpg"],
        "val": ["JPEGImages/c.jpg"],
    }


def test_cvat_lists_all_in_default_with_blanks_in_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"JPEGImages/my {n}.png" for n in range(5)), *(f"SegmentationClass/my {n}.png" for n in range(5)))
    touch(tmp_path, "JPEGImages/other.png", "SegmentationClass/other.png")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "default.txt").write_text("".join(f"my {n}\n" for n in range(5)))
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\n")
    layout = recognise(tmp_path)
    assert layout.kind == "CVAT segmentation mask"
    assert layout.labels is not None
    assert layout.labels.names == ("background", "car")
    assert layout.labels.colours == ((0, 0, 0), (250, 50, 83))
    found = pairs(layout, tmp_path)
    assert {split: len(both) for split, both in found.items()} == {"train": 4, "val": 1}
    assert all("my" in image for both in found.values() for image, _ in both)


def test_masks_of_voc_without_images(tmp_path: Path) -> None:
    touch(tmp_path, "SegmentationClass/a.png")
    with pytest.raises(UserError, match="no folder JPEGImages with images lies beside it"):
        recognise(tmp_path)


@pytest.mark.parametrize(("ending", "ids"), [("labelIds", "label ids"), ("labelTrainIds", "train ids")])
def test_cityscapes(tmp_path: Path, ending: str, ids: str) -> None:
    for split, city in (("train", "ulm"), ("train", "bonn"), ("val", "koeln"), ("test", "berlin")):
        stem = f"{split}/{city}/{city}_000001_000019"
        touch(tmp_path, f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_{ending}.png")
        touch(tmp_path, f"gtFine/{stem}_gtFine_color.png")
    layout = recognise(tmp_path)
    assert (layout.kind, layout.city_ids) == ("Cityscapes", ids)
    found = pairs(layout, tmp_path)
    assert found["val"] == [
        (
            "leftImg8bit/val/koeln/koeln_000001_000019_leftImg8bit.png",
            f"gtFine/val/koeln/koeln_000001_000019_gtFine_{ending}.png",
        )
    ]
    assert {split: len(both) for split, both in found.items()} == {"train": 2, "val": 1}


def test_names_of_classes_beside_the_folder_that_wraps_the_dataset(tmp_path: Path) -> None:
    touch(tmp_path, *(f"in/{kind}/{n}.png" for kind in ("images", "masks") for n in range(3)))
    (tmp_path / "classes.txt").write_text("\ufeff__ignore__\nroad\n\n sky \n", encoding="utf-8")
    labels = recognise(tmp_path).labels
    assert labels is not None
    assert (labels.names, labels.colours) == (("road", "sky"), None)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("classes.txt", "a\nb\na\n", "'a' is named twice"),
        ("labels.txt", "only\n", "1 classes; a dataset has 2 to 254"),
        ("class_names.txt", "a\nb\x07\n", r"'b\\x07' is no name for a class"),
        ("labelmap.txt", "road 1 2 3\n", r"line 'road 1 2 3' is not of the form 'name:r,g,b::'"),
        ("labelmap.txt", "a:0,0,0::\nroad:1,2,300::\n", "line 'road:1,2,300::' is not of the form"),
        ("label_colors.txt", "1 2 x road\n", "is not of the form 'r g b name'"),
    ],
)
def test_files_of_classes_that_say_nonsense(tmp_path: Path, file: str, text: str, said: str) -> None:
    touch(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(3)))
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=rf"{file}: .*{said}"):
        recognise(tmp_path)


def test_a_label_map_without_colours_has_those_of_voc_and_colons_may_be_in_names(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/{n}.png" for kind in ("images", "masks") for n in range(3)))
    (tmp_path / "labelmap.txt").write_text("background:::\nroad:wet:9,8,7:part:act\nsky:::\n")
    labels = recognise(tmp_path).labels
    assert labels is not None
    assert labels.names == ("background", "road:wet", "sky")
    assert labels.colours == ((0, 0, 0), (9, 8, 7), (0, 128, 0))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no folders and 0 files"),
        (["a.png", "b.png"], "no folders and 2 files"),
        (["images/a.png", "notes/b.txt"], "the folders images, notes and 0 files"),
        (["images/a.png", "masks/b.png"], "the folders images, masks"),
        (["train/a.png", "train/masks/a.png"], "train/masks in it holds no folders and 1 files"),
    ],
)
def test_nothing_known_says_what_is_there_and_what_is_accepted(tmp_path: Path, files: list[str], said: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=rf"{said}.*accepted are images/ and masks/.*Cityscapes") as error:
        recognise(tmp_path)
    assert "\n" not in str(error.value)
