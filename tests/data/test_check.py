"""The check of a dataset: each kind of damage is found, once, under the file's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segskd.data.cards import Card, load_card
from segskd.data.check import check
from segskd.errors import UserError


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged; the train split's folder is `copy / "bands/train"`."""
    shutil.copytree(data, tmp_path / "data")
    return tmp_path / "data"


def changed(card_path: Path, **counts: int) -> Card:
    content = yaml.safe_load(card_path.read_text())
    for split, count in counts.items():
        content["splits"][split]["count"] = count
    return Card.model_validate(content)


def put(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.uint8)).save(path)


def test_a_clean_dataset_reports_nothing(data: Path, card_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = check(changed(card_path, train=12, val=4), data, lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.images == {"train": 12, "val": 4}
    assert report.sizes == {"64x96": 16}
    assert seen == [(done, 16) for done in range(1, 17)]


def test_pixels_are_counted_by_class(data: Path, card_path: Path) -> None:
    masks = [np.asarray(Image.open(path)) for path in (data / "bands/val/masks").iterdir()]
    counts = [sum(int((mask == index).sum()) for mask in masks) for index in range(3)]
    found = check(load_card(card_path), data)
    assert found.pixels["val"].tolist() == counts
    shares = found.as_dict()["class_shares"]["val"]
    assert shares == pytest.approx(
        {name: n / sum(counts) for name, n in zip(("ground", "wall", "sky"), counts, strict=True)}
    )


def test_every_kind_of_damage_is_reported_once(copy: Path, card_path: Path) -> None:
    images, masks = copy / "bands/train/images", copy / "bands/train/masks"
    (masks / "b00.png").unlink()
    (images / "b01.png").unlink()
    whole = (images / "b02.png").read_bytes()
    (images / "b02.png").write_bytes(whole[: len(whole) // 2])
    whole = (masks / "b03.png").read_bytes()
    (masks / "b03.png").write_bytes(whole[: len(whole) // 2])
    put(masks / "b04.png", np.zeros((64, 95)))
    odd = np.zeros((64, 96))
    odd[5, 5:8] = [3, 77, 3]
    put(masks / "b05.png", odd)
    for path in (copy / "bands/val/masks").iterdir():
        put(path, np.minimum(np.asarray(Image.open(path)), 1))
    report = check(changed(card_path, train=12, val=4), copy)
    assert sorted((problem.kind, Path(problem.file).name) for problem in report.problems) == [
        ("empty class", "sky"),
        ("incomplete", "train"),
        ("sizes differ", "b04.png"),
        ("unknown values", "b05.png"),
        ("unpaired", "b00.png"),
        ("unpaired", "b01.png"),
        ("unreadable", "b02.png"),
        ("unreadable", "b03.png"),
    ]
    files = {problem.kind + Path(problem.file).name: problem.file for problem in report.problems}
    assert files["unpairedb00.png"] == str(images / "b00.png")
    assert files["unpairedb01.png"] == str(masks / "b01.png")
    assert files["unreadableb02.png"] == str(images / "b02.png")
    assert files["unreadableb03.png"] == str(masks / "b03.png")
    assert all(problem.file in problem.text for problem in report.problems)
    texts = {problem.kind: problem.text for problem in report.problems}
    assert "64x96 and 64x95" in texts["sizes differ"]
    assert "values 3, 77" in texts["unknown values"]
    assert "has 10 images, and the card says 12" in texts["incomplete"]
    assert "split 'val'" in texts["empty class"]
    assert report.images == {"train": 10, "val": 4}


def test_listed_names_without_image(copy: Path, card_path: Path) -> None:
    content = yaml.safe_load(card_path.read_text())
    content["splits"]["train"]["names"] = "train.txt"
    (copy / "bands/train.txt").write_text("b00\nb01\ngone\n")
    report = check(Card.model_validate(content), copy)
    assert [(problem.kind, problem.file) for problem in report.problems] == [("unpaired", "gone")]
    assert report.images["train"] == 2


def test_a_split_that_is_not_there_is_passed_over_but_train_is_not(copy: Path, card_path: Path) -> None:
    shutil.rmtree(copy / "bands/val")
    assert check(load_card(card_path), copy).images == {"train": 12}
    shutil.rmtree(copy / "bands/train")
    with pytest.raises(UserError, match="split 'train' of 'bands' has no images"):
        check(load_card(card_path), copy)


def test_a_jpeg_that_is_cut_short_is_found(tmp_path: Path, card_path: Path) -> None:
    """OpenCV fills the missing part and says nothing."""
    content = yaml.safe_load(card_path.read_text())
    content["splits"] = {"train": {"images": "{name}.jpg", "masks": "{name}.png"}}
    folder = tmp_path / "bands"
    folder.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(folder / "a.jpg")
    put(folder / "a.png", np.arange(64 * 96).reshape(64, 96) % 3)
    assert check(Card.model_validate(content), tmp_path).problems == []
    whole = (folder / "a.jpg").read_bytes()
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    problems = check(Card.model_validate(content), tmp_path).problems
    assert ("unreadable", str(folder / "a.jpg")) in [(problem.kind, problem.file) for problem in problems]


def test_an_image_that_two_splits_share_is_named(copy: Path, card_path: Path) -> None:
    image = copy / "bands/val/images" / sorted(path.name for path in (copy / "bands/val/images").iterdir())[0]
    twin = copy / "bands/train/images/b03.png"
    Image.open(twin).save(image, compress_level=0)  # other bytes, the same pixels
    assert image.read_bytes() != twin.read_bytes()
    (problem,) = check(load_card(card_path), copy).problems
    assert (problem.kind, problem.file) == ("in two splits", str(image))
    assert problem.text == f"image {image} of split 'val' has the same pixels as {twin} of split 'train'"


def test_black_frames_are_alike_in_all_splits(copy: Path, card_path: Path) -> None:
    for split in ("train", "val"):
        put(min((copy / "bands" / split / "images").iterdir()), np.zeros((64, 96, 3)))
    assert check(load_card(card_path), copy).problems == []


def test_the_same_image_twice_in_one_split_is_no_problem(copy: Path, card_path: Path) -> None:
    images = copy / "bands/train/images"
    (images / "b04.png").write_bytes((images / "b03.png").read_bytes())
    assert check(load_card(card_path), copy).problems == []


@pytest.mark.parametrize(("greys", "told"), [(12, True), (6, False)])
def test_masks_with_soft_edges_are_told(copy: Path, card_path: Path, greys: int, told: bool) -> None:
    """Black and white, and between them lines of `greys` shades, as resizing leaves them."""
    shades = [0, *(20 * number for number in range(1, greys + 1)), 254]
    for path in (copy / "bands").rglob("masks/*.png"):
        mask = np.full((64, 96), 254)
        mask[:30] = 0
        mask[30 : 30 + greys] = np.array(shades[1:-1])[:, None]
        put(path, mask)
    problems = check(of_shades(card_path, shades), copy).problems
    assert [problem.kind for problem in problems] == ["soft edges"] * told
    assert not told or problems[0].text.startswith(
        "12 of 14 classes have no pixel whose four neighbours are of that class"
    )


def test_many_small_things_are_no_soft_edges(copy: Path, card_path: Path) -> None:
    """Three by three pixels of each of twelve classes, in one mask alone."""
    shades = [0, *(20 * number for number in range(1, 13)), 254]
    masks = sorted((copy / "bands").rglob("masks/*.png"))
    for path in masks:
        mask = np.full((64, 96), 254)
        mask[:30] = 0
        for place, shade in enumerate(shades[1:-1]):
            side = 3 if path == masks[0] else 1
            mask[:side, 4 * place : 4 * place + side] = shade
        put(path, mask)
    assert check(of_shades(card_path, shades), copy).problems == []


def of_shades(card_path: Path, shades: list[int]) -> Card:
    content = yaml.safe_load(card_path.read_text())
    content["classes"] = [{"name": f"class {shade}", "color": [shade, 0, 0]} for shade in shades]
    content["values"] = {shade: place for place, shade in enumerate(shades)}
    return Card.model_validate(content)
