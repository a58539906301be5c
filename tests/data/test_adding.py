"""Adding: what masks hold becomes classes, bad files are left out by name, a failure leaves nothing behind."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

from segskd.data import adding
from segskd.data.adding import Added, add_archive, add_folder, candidate_folders
from segskd.data.cards import load_card
from segskd.data.check import check
from segskd.data.dataset import list_pairs, read_mask
from segskd.data.palette import OKABE_ITO
from segskd.data.unpack import ArchiveLimits
from segskd.errors import UserError

SIZE = (8, 12)


def grid(*values: Any) -> np.ndarray:
    """A mask that holds each of the values, in columns of equal width."""
    columns = np.repeat(np.array(values), SIZE[1] // len(values), axis=0)
    return np.broadcast_to(columns, (SIZE[0], *columns.shape)).astype(np.uint8)


def save_mask(path: Path, values: np.ndarray, palette: Sequence[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(values))
    if palette is not None:
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette(list(palette))
    image.save(path)


def save_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(list(path.name.encode())).integers(0, 255, (*size, 3), dtype=np.uint8)).save(
        path
    )


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes tmp_path/data/mine with one image a mask; (folder)."""

    def write(*masks: np.ndarray, palettes: Sequence[Sequence[int]] | None = None, suffix: str = "png") -> Path:
        folder = tmp_path / "data" / "mine"
        for number, mask in enumerate(masks):
            save_image(folder / "images" / f"{number}.png")
            save_mask(folder / "masks" / f"{number}.{suffix}", mask, palettes[number] if palettes else None)
        return folder

    return write


def classes(added: Added) -> dict[str, tuple[int, int, int]]:
    return {entry.name: entry.color for entry in added.card.classes}


def decoded(added: Added, data: Path) -> list[list[int]]:
    """The first row of every mask, training masks first, as the core reads it."""
    pairs = [pair for split in ("train", "val") for pair in list_pairs(added.card, data, split)]
    return [read_mask(pair.mask, added.card)[0].tolist() for pair in sorted(pairs)]


# -- what values mean ---------------------------------------------------------------------------------


def test_numbers_with_gaps_are_mapped(put: Callable[..., Path], tmp_path: Path) -> None:
    folder = put(grid(0, 7, 255), grid(11, 7, 0), grid(0, 0, 0))
    told: list[tuple[int, int]] = []
    added = add_folder(folder, tmp_path / "data", report=lambda *step: told.append(step))
    assert added.place == tmp_path / "data" / "mine.yaml"
    assert classes(added) == dict(zip(("class 0", "class 7", "class 11"), OKABE_ITO, strict=False))
    assert decoded(added, tmp_path / "data") == [[0] * 4 + [1] * 4 + [255] * 4, [2] * 4 + [1] * 4 + [0] * 4, [0] * 12]
    assert load_card(added.place).model_dump() == added.card.model_dump() == added.report.card.model_dump()
    assert (added.layout, added.report.images) == ("images and masks", {"train": 2, "val": 1})
    assert [problem for problem in added.report.problems if problem.kind != "empty class"] == []
    assert told == sorted(told)
    assert told[-1] == (1000, 1000)


def test_what_was_found_is_what_a_check_finds(put: Callable[..., Path], tmp_path: Path) -> None:
    added = add_folder(put(grid(0, 1), grid(1, 0), grid(2, 0)), tmp_path / "data")
    assert added.report.as_dict() == check(load_card(added.place), tmp_path / "data").as_dict()


@pytest.mark.parametrize("channels", [1, 3])
def test_black_and_white_are_two_classes(put: Callable[..., Path], tmp_path: Path, channels: int) -> None:
    masks = [grid(0, 255), grid(255, 255), grid(255, 0)]
    folder = put(*(masks if channels == 1 else [np.repeat(mask[..., None], 3, axis=-1) for mask in masks]))
    added = add_folder(folder, tmp_path / "data", class_names=["road", "hole"])
    assert list(classes(added)) == ["road", "hole"]
    assert added.card.values == {0: 0, 255: 1}
    assert decoded(added, tmp_path / "data")[0] == [0] * 6 + [1] * 6


def test_three_numbers_of_four_names_keep_their_place(put: Callable[..., Path], tmp_path: Path) -> None:
    added = add_folder(put(grid(0, 1), grid(3, 0), grid(3, 255)), tmp_path / "data", class_names=list("abcd"))
    assert (added.card.class_names, added.card.values) == (list("abcd"), None)
    assert decoded(added, tmp_path / "data")[1] == [3] * 6 + [0] * 6


def test_a_number_beyond_the_names_makes_a_mask_unusable(put: Callable[..., Path], tmp_path: Path) -> None:
    folder = put(grid(0, 1), grid(2, 9), grid(2, 1), grid(1, 0))
    (folder / "classes.txt").write_text("a\nb\nc\n")
    added = add_folder(folder, tmp_path / "data")
    (odd,) = [problem for problem in added.report.problems if problem.kind == "unknown values"]
    assert odd.file == str(folder / "masks" / "1.png")
    assert "value 9" in odd.text
    assert len(decoded(added, tmp_path / "data")) == 3


PALETTE = [10, 20, 30, 200, 0, 0, 0, 200, 0]


def test_the_palette_of_the_files_gives_the_colours(put: Callable[..., Path], tmp_path: Path) -> None:
    added = add_folder(put(grid(0, 1), grid(1, 2), grid(2, 0), palettes=[PALETTE] * 3), tmp_path / "data")
    assert classes(added) == {"class 0": (10, 20, 30), "class 1": (200, 0, 0), "class 2": (0, 200, 0)}
    assert added.card.mask_format == "index"
    assert decoded(added, tmp_path / "data")[1] == [1] * 6 + [2] * 6


def test_palettes_that_differ_are_read_as_colours(put: Callable[..., Path], tmp_path: Path) -> None:
    other = PALETTE[3:] + PALETTE[:3]
    added = add_folder(put(grid(0, 1), grid(1, 2), grid(2, 0), palettes=[PALETTE, PALETTE, other]), tmp_path / "data")
    assert added.card.mask_format == "color"
    # In order: (0, 200, 0), (10, 20, 30), (200, 0, 0); the last file's 2 and 0 are the others' 0 and 1.
    assert decoded(added, tmp_path / "data") == [[1] * 6 + [2] * 6, [2] * 6 + [0] * 6, [1] * 6 + [2] * 6]


def test_a_grey_palette_is_no_palette(put: Callable[..., Path], tmp_path: Path) -> None:
    ramp = [level for number in range(256) for level in (number,) * 3]
    added = add_folder(put(grid(0, 1), grid(1, 0), grid(1, 1), palettes=[ramp] * 3), tmp_path / "data")
    assert list(classes(added).values()) == list(OKABE_ITO[:2])


def test_colour_masks_without_a_list_of_classes(put: Callable[..., Path], tmp_path: Path) -> None:
    red, black, blue = (255, 0, 0), (0, 0, 0), (0, 0, 255)
    added = add_folder(
        put(grid(red, blue), grid(black, red), grid(blue, blue)), tmp_path / "data", class_names=["none", "sea", "fire"]
    )
    assert classes(added) == {"none": black, "sea": blue, "fire": red}
    assert decoded(added, tmp_path / "data") == [[2] * 6 + [1] * 6, [0] * 6 + [2] * 6, [1] * 12]


def cvat(folder: Path, *masks: np.ndarray) -> Path:
    for number, mask in enumerate(masks):
        save_image(folder / "JPEGImages" / f"{number}.jpg")
        save_mask(folder / "SegmentationClass" / f"{number}.png", mask)
    (folder / "labelmap.txt").write_text("background:0,0,0::\ncar:250,50,83::\nbus:1,2,3::\n")
    return folder


def test_cvat_has_the_colours_of_its_label_map(tmp_path: Path) -> None:
    car, black, border, stray = (250, 50, 83), (0, 0, 0), (224, 224, 192), (9, 9, 8)
    masks = [grid(car, black), grid(border, car), grid(black, car), grid(stray, car)]
    added = add_folder(cvat(tmp_path / "data" / "c", *masks), tmp_path / "data")
    assert added.layout == "CVAT segmentation mask"
    assert classes(added) == {"background": black, "car": car, "bus": (1, 2, 3)}
    assert decoded(added, tmp_path / "data") == [[1] * 6 + [0] * 6, [255] * 6 + [1] * 6, [0] * 6 + [1] * 6]
    assert next(p.text for p in added.report.problems if p.kind == "unknown values").count("#090908") == 1
    renamed = add_folder(tmp_path / "data" / "c", tmp_path / "data", class_names=["x", "y", "z"])
    assert classes(renamed) == {"x": black, "y": car, "z": (1, 2, 3)}
    assert renamed.card.name == "c-2"
    with pytest.raises(UserError, match=r"2 names for the 3 classes in .*labelmap"):
        add_folder(tmp_path / "data" / "c", tmp_path / "data", class_names=["x", "y"])


@pytest.mark.parametrize("names", [None, [*"abcd"]])
def test_voc_colours_stand_in_the_order_of_voc(tmp_path: Path, names: list[str] | None) -> None:
    # Numbers 0, 1 and 2 of VOC's colour map, and its border.
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
    folder = tmp_path / "data" / "v"
    cvat(folder, grid(colours[0], colours[1]), grid(colours[2], colours[255]), grid(colours[1], colours[0]))
    (folder / "labelmap.txt").unlink()
    added = add_folder(folder, tmp_path / "data", class_names=names)
    assert added.layout == "PASCAL VOC"
    expected = {f"class {n}": colours[n] for n in (0, 1, 2)}
    if names:
        expected = {"a": colours[0], "b": colours[1], "c": colours[2], "d": (128, 128, 0)}
    assert list(classes(added).items()) == list(expected.items())
    assert decoded(added, tmp_path / "data")[1] == [list(expected.values()).index(colours[2])] * 6 + [255] * 6


def test_cityscapes_has_the_classes_of_the_benchmark(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "train", "val")):
        stem = f"{split}/ulm/ulm_{number}"
        save_image(tmp_path / "data" / "c" / "leftImg8bit" / f"{stem}_leftImg8bit.png")
        # Label ids: 7 is road (train id 0), 26 car (13), 3 counts nowhere.
        save_mask(tmp_path / "data" / "c" / "gtFine" / f"{stem}_gtFine_labelIds.png", grid(7, 26, 3))
    added = add_folder(tmp_path / "data" / "c", tmp_path / "data")
    assert (len(added.card.classes), added.card.class_names[13]) == (19, "car")
    assert decoded(added, tmp_path / "data")[0] == [0] * 4 + [13] * 4 + [255] * 4


# -- what is no dataset -------------------------------------------------------------------------------


def test_photographs_are_no_masks(put: Callable[..., Path], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    with pytest.raises(UserError, match=r"masks/0\.png: these look like photographs"):
        add_folder(put(*noise), tmp_path / "data")
    assert not (tmp_path / "data" / "mine.yaml").exists()


def test_each_mask_may_hold_few_colours_and_all_too_many(put: Callable[..., Path], tmp_path: Path) -> None:
    steps = np.arange(200, dtype=np.uint8).reshape(1, -1, 1)
    reds, greens = steps * np.array([1, 0, 0], np.uint8), steps * np.array([0, 1, 0], np.uint8)
    with pytest.raises(UserError, match="these look like photographs"):
        add_folder(put(reds, greens, greens), tmp_path / "data")


def test_one_photograph_among_masks_is_left_out(put: Callable[..., Path], tmp_path: Path) -> None:
    red, black = (255, 0, 0), (0, 0, 0)
    folder = put(*[grid(red, black)] * 4)
    save_image(folder / "images" / "3.png", (40, 40))
    save_mask(folder / "masks" / "3.png", np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    added = add_folder(folder, tmp_path / "data")
    assert list(classes(added).values()) == [black, red]
    assert [Path(p.file).name for p in added.report.problems if p.kind == "unknown values"] == ["3.png"]


@pytest.mark.parametrize(
    ("masks", "names", "said"),
    [
        ([grid(4, 4)] * 3, None, "hold nothing but 4, and a dataset needs two classes"),
        ([grid((1, 2, 3), (1, 2, 3))] * 3, None, "hold one colour, and a dataset needs two"),
        ([grid((1, 2, 3), (0, 0, 0))] * 3, ["a", "b", "c"], "the given names: 3 names for 2 classes"),
        ([grid(0, 1)] * 3, ["a", "a"], "'a' is named twice"),
        ([grid(0, 1)] * 2, None, r"the split 'val' has 0 images with a mask that can be used, and needs 1"),
        ([grid(0, 1)], None, r"the split 'train' has 1 image with"),
        ([grid(8, 9, 7)] * 3, ["a", "b"], r"'train' has 0 images .*3 files can't be used, the first: .*values 7, 8, 9"),
    ],
)
def test_what_makes_no_dataset(
    put: Callable[..., Path], tmp_path: Path, masks: list[np.ndarray], names: list[str] | None, said: str
) -> None:
    folder = put(*masks)
    with pytest.raises(UserError, match=said) as error:
        add_folder(folder, tmp_path / "data", class_names=names)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*.yaml"))
    assert candidate_folders(tmp_path / "data") == ["mine"]


def test_a_split_of_which_nothing_counts_is_refused(tmp_path: Path) -> None:
    for split, mask in (("train", grid(0, 1)), ("val", grid(255, 255))):
        for name in ("a.png", "b.png"):
            save_image(tmp_path / "data/mine" / split / "images" / f"{split}-{name}")
            save_mask(tmp_path / "data/mine" / split / "masks" / f"{split}-{name}", mask)
    with pytest.raises(UserError, match="all pixels of the split 'val' are ignored"):
        add_folder(tmp_path / "data/mine", tmp_path / "data")
    assert not list((tmp_path / "data").glob("*.yaml"))


def test_jpeg_masks_are_refused(put: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no mask can be used: mask .*0\.jpg is a JPEG, which changes the values"):
        add_folder(put(grid(0, 1), grid(1, 0), grid(1, 1), suffix="jpg"), tmp_path / "data")


# -- bad files among good ones ------------------------------------------------------------------------


def test_bad_files_are_listed_and_left_out(put: Callable[..., Path], tmp_path: Path) -> None:
    folder = put(*[grid(0, 1)] * 9)
    images, masks = folder / "images", folder / "masks"
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:60])
    save_mask(masks / "1.png", grid(0, 1)[:5])
    (masks / "2.png").write_bytes(b"no picture")
    (masks / "3.png").unlink()
    save_mask(masks / "lonely.png", grid(0, 1))
    save_image(images / "4.bmp")
    added = add_folder(folder, tmp_path / "data")
    named = {(p.kind, Path(p.file).relative_to(folder).as_posix()) for p in added.report.problems}
    assert len(named) == len(added.report.problems)
    assert named == {
        ("unreadable", "images/0.png"),
        ("sizes differ", "masks/1.png"),
        ("unreadable", "masks/2.png"),
        ("unpaired", "images/3.png"),
        ("unpaired", "masks/lonely.png"),
        ("unpaired", "images/4.png"),
    }
    # Five pairs are left; train has the first four fifths of them.
    assert added.report.images == {"train": 4, "val": 1}
    assert len(decoded(added, tmp_path / "data")) == 5
    again = check(load_card(added.place), tmp_path / "data")
    assert {problem.kind for problem in again.problems} == {"unpaired"}


def test_names_like_anything(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "<b>bold & höhe"
    for name in ("a b", "<i>x", "größe.1", "日本", "'q\"", "{name}", "x*y"):
        save_image(folder / "images" / f"{name}.png")
        save_mask(folder / "masks" / f"{name}_mask.png", grid(0, 1))
    added = add_folder(folder, tmp_path / "data")
    assert added.card.name == "b-bold-hohe"
    assert added.card.folder == "<b>bold & höhe"
    assert sum(added.report.images.values()) == 7
    assert [problem for problem in added.report.problems if problem.kind != "empty class"] == []


def test_a_control_character_in_a_file_name(put: Callable[..., Path], tmp_path: Path) -> None:
    save_image(put(grid(0, 1)) / "images" / "a\nb.png")
    with pytest.raises(UserError, match=r"the file 'a\\nb.png' has a control character"):
        add_folder(tmp_path / "data" / "mine", tmp_path / "data")


# -- names and places ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("My photos (1)", "My-photos-1"),
        ("camvid", "camvid-2"),
        ("CamVid", "CamVid-2"),
        ("x.yaml", "x"),
        ("日本", "dataset"),
        ("-.a", "a"),
        ("n" * 300, "n" * 64),
    ],
)
def test_a_free_name_is_made(put: Callable[..., Path], tmp_path: Path, given: str, name: str) -> None:
    folder = put(grid(0, 1), grid(0, 1), grid(0, 1))
    assert add_folder(folder, tmp_path / "data", given).card.name == name
    assert (tmp_path / "data" / f"{name}.yaml").is_file()


@pytest.mark.parametrize("given", ["../x", "a/b", "<b>x</b>", " ", "a\nb", "c:\\x", "a..b"])
def test_names_that_are_refused(put: Callable[..., Path], tmp_path: Path, given: str) -> None:
    with pytest.raises(UserError, match="is no name for a dataset: use letters") as error:
        add_folder(put(grid(0, 1), grid(0, 1), grid(0, 1)), tmp_path / "data", given)
    assert "\n" not in str(error.value)


def test_candidates_are_folders_that_no_card_names(put: Callable[..., Path], tmp_path: Path) -> None:
    folder = put(grid(0, 1), grid(0, 1), grid(0, 1))
    data = tmp_path / "data"
    for name in ("other", ".hidden", "CamVid", "VOCdevkit", "__pycache__"):
        (data / name).mkdir()
    (data / "file.txt").touch()
    assert candidate_folders(data) == ["mine", "other"]
    add_folder(folder, data)
    assert candidate_folders(data) == ["other"]
    assert candidate_folders(tmp_path / "none") == []


def test_a_folder_elsewhere_is_linked(put: Callable[..., Path], tmp_path: Path) -> None:
    folder, data = put(grid(0, 1), grid(0, 1), grid(0, 1)), tmp_path / "elsewhere"
    with pytest.raises(UserError, match="1 classes; a dataset has 2 to 254"):
        add_folder(folder, data, class_names=["one"])
    assert not (data / "mine").exists()
    added = add_folder(folder, data)
    assert (data / "mine").is_symlink()
    assert len(list_pairs(load_card("mine", data), data, "train")) == 2
    assert added.place == data / "mine.yaml"


def test_a_link_among_the_datasets_is_a_folder_like_any_other(put: Callable[..., Path], tmp_path: Path) -> None:
    folder, data = put(grid(0, 1), grid(0, 1), grid(0, 1)), tmp_path / "elsewhere"
    data.mkdir()
    (data / "linked").symlink_to(folder)
    assert candidate_folders(data) == ["linked"]
    assert add_folder(data / "linked", data).card.folder == "linked"
    assert candidate_folders(data) == []


def test_two_at_once_get_a_plain_message(put: Callable[..., Path], tmp_path: Path) -> None:
    folder = put(grid(0, 1), grid(0, 1), grid(0, 1))
    with FileLock(tmp_path / "data" / ".adding.lock"), pytest.raises(UserError, match="another dataset is being added"):
        add_folder(folder, tmp_path / "data")


# -- archives -----------------------------------------------------------------------------------------


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, "PNG")
    return file.getvalue()


GOOD = {
    f"top/{kind}/{n}.png": png(values)
    for n in range(3)
    for kind, values in (("images", np.zeros((*SIZE, 3), np.uint8)), ("masks", grid(0, 1)))
}


def visible(data: Path) -> list[str]:
    return sorted(path.name for path in data.iterdir() if path.name != ".adding.lock")


def test_a_zip_becomes_a_dataset_beside_those_there(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "holes.zip", {**GOOD, "__MACOSX/top/images/._0.png": b"x"})
    data = tmp_path / "data"
    (data / "holes").mkdir(parents=True)
    (data / ".adding-dead").mkdir()
    told: list[tuple[int, int]] = []
    added = add_archive(archive, data, report=lambda *step: told.append(step))
    assert (added.card.name, added.card.folder) == ("holes-2", "holes-2/top")
    assert visible(data) == ["holes", "holes-2", "holes-2.yaml"]
    assert yaml.safe_load(added.place.read_text())["name"] == "holes-2"
    assert told == sorted(told)
    assert told[-1] == (1000, 1000)
    assert add_archive(archive, data, "A name").card.name == "A-name"


def masks_of(value: int) -> dict[str, bytes]:
    return {name: png(grid(value, value)) if "masks" in name else content for name, content in GOOD.items()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({**GOOD, "../evil.png": b"x"}, "leads outside"),
        ({**GOOD, "/evil.png": b"x"}, "leads outside"),
        ({**GOOD, "top/a\x1b[2J.png": b"x"}, r"its member 'top/a\\x1b\[2J.png' has a control character"),
        ({**GOOD, "a/" * 40 + "x.png": b"x"}, "lies too deep or has too long a name"),
        ({**GOOD, "n" * 256 + ".png": b"x"}, "lies too deep or has too long a name"),
        ({**GOOD, "top/images": b"x"}, "can't add a dataset to .*: "),
        ({"notes.txt": b"x"}, "no known layout in .*accepted are"),
        (masks_of(5), "hold nothing but 5"),
        ({}, "holds no files"),
    ],
)
def test_a_failure_leaves_nothing_behind(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    archive = zipped(tmp_path / "bad.zip", files)
    with pytest.raises(UserError, match=said) as error:
        add_archive(archive, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert visible(tmp_path / "data") == []


def test_a_key_that_stops_the_program_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adding, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        add_archive(zipped(tmp_path / "a.zip", GOOD), tmp_path / "data")
    assert visible(tmp_path / "data") == []


@pytest.mark.parametrize("content", [b"", b"GIF89a no zip", b"PK\x03\x04 cut short"])
def test_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"'a\.zip' is no zip file, or cut short"):
        add_archive(tmp_path / "a.zip", tmp_path / "data")
    with pytest.raises(UserError, match=r"no folder and no file .*none\.zip"):
        add_archive(tmp_path / "none.zip", tmp_path / "data")


def encrypted(path: Path) -> Path:
    """The bit that says so is set in the header of the first member and in the directory at the end."""
    content = bytearray(zipped(path, GOOD).read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return path


def test_an_encrypted_zip(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is encrypted; pack it without a password"):
        add_archive(encrypted(tmp_path / "a.zip"), tmp_path / "data")


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (ArchiveLimits(files=5), "it holds 6 files, and at most 5 are allowed"),
        (ArchiveLimits(total_bytes=sum(map(len, GOOD.values())) - 1), "it holds 0.0 GB, and .* are allowed"),
        (ArchiveLimits(ratio=50, ratio_from_bytes=10_000), "'top/zeros.bin' unpacks to 0 MB from far fewer bytes"),
    ],
)
def test_bombs_are_refused_unopened(tmp_path: Path, limits: ArchiveLimits, said: str) -> None:
    files = {**GOOD, "top/zeros.bin": b"\0" * 100_000} if limits.ratio == 50 else GOOD
    with pytest.raises(UserError, match=said):
        add_archive(zipped(tmp_path / "bomb.zip", files), tmp_path / "data", limits=limits)
    assert visible(tmp_path / "data") == []


def test_limits_allow_what_they_say(tmp_path: Path) -> None:
    limits = ArchiveLimits(files=6, total_bytes=sum(map(len, GOOD.values())), ratio_from_bytes=0, ratio=2)
    assert add_archive(zipped(tmp_path / "a.zip", GOOD), tmp_path / "data", limits=limits).card.name == "a"
    assert ArchiveLimits() == ArchiveLimits(
        total_bytes=20_000_000_000, files=200_000, ratio=200, ratio_from_bytes=100_000_000
    )


def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", GOOD)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("top/masks/0.png", b"x")
    with pytest.raises(UserError, match=r"'top/masks/0\.png' is there twice"):
        add_archive(archive, tmp_path / "data")
