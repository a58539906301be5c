"""Teacher against student, with two networks whose answers are known."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.errors import UserError
from segskd.evaluate.comparison import AGREEMENT, AGREEMENT_COLORS, ImageGap, NetworkComparison, agreement, compare
from segskd.evaluate.predictor import Predictor

SIZE = (4, 4)
HALF = [[0] * 4, [0] * 4, [2] * 4, [2] * 4]
LAST = [[0] * 4, [0] * 4, [0] * 4, [2] * 4]


@pytest.fixture
def compared(
    network: Any, make_card: Callable[..., Card], make_pair: Callable[..., Pair], tmp_path: Path
) -> NetworkComparison:
    """The teacher is right but for one pixel; the student calls blue green."""
    one_off = [list(row) for row in LAST]
    one_off[0][0], one_off[0][1] = 1, 255
    pairs = [
        make_pair("easy", [[0] * 4] * 4, [[0] * 4] * 4),
        make_pair("town/hard", HALF, HALF),
        make_pair("mixed", LAST, one_off),
        make_pair("void", LAST, [[255] * 4] * 4),
    ]
    card = make_card()
    teacher, student = Predictor(network(), card, SIZE), Predictor(network((0, 1, 1)), card, SIZE)
    return compare(teacher, student, pairs, tmp_path / "out")


def test_agreement_by_hand() -> None:
    truth, teacher, student = (
        [[0, 0, 0, 0], [1, 255, 1, 255]],
        [[0, 0, 1, 1], [2, 0, 1, 2]],
        [[0, 2, 0, 2], [2, 0, 0, 1]],
    )
    kinds = agreement(*(np.array(values, dtype=np.uint8) for values in (teacher, student, truth)), ignore_index=255)
    assert [[AGREEMENT[kind] for kind in row] for row in kinds] == [
        ["both right", "teacher only", "student only", "both wrong"],
        ["both wrong", "ignored", "teacher only", "ignored"],
    ]
    assert kinds.dtype == np.uint8


def test_scores_and_retention_by_hand(compared: NetworkComparison) -> None:
    # Truth without "void": red 16 + 8 + 10, green 1, blue 8 + 4. The teacher calls the one green pixel red.
    assert compared.support == {"red": 34, "green": 1, "blue": 12}
    assert compared.teacher.per_class == pytest.approx({"red": 34 / 35, "green": 0.0, "blue": 1.0})
    assert compared.student.per_class == pytest.approx({"red": 34 / 35, "green": 0.0, "blue": 0.0})
    assert compared.teacher.miou == pytest.approx((34 / 35 + 1) / 3)
    assert compared.student.miou == pytest.approx(34 / 35 / 3)
    rows = compared.retention()
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    assert [row["difference"] for row in rows] == pytest.approx([0.0, 0.0, -1.0])
    assert [row["pixels"] for row in rows] == [34, 1, 12]


def test_images_by_falling_gap(compared: NetworkComparison) -> None:
    assert [image.name for image in compared.images] == ["town/hard", "mixed", "easy", "void"]
    # hard: teacher 1, student red 1, green 0, blue 0; mixed: red 10 of 11, green 0, blue 1 against 0
    assert [image.teacher_miou for image in compared.images] == pytest.approx([1, (10 / 11 + 1) / 3, 1, 0])
    assert [image.student_miou for image in compared.images] == pytest.approx([1 / 3, 10 / 11 / 3, 1, 0])
    assert [image.gap for image in compared.images] == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_pixels_of_agreement(compared: NetworkComparison) -> None:
    hard, mixed, easy, void = (list(image.pixels.values()) for image in compared.images)
    assert hard == [8, 8, 0, 0, 0]
    assert mixed == [10, 4, 0, 1, 1]
    assert (easy, void) == ([16, 0, 0, 0, 0], [0, 0, 0, 0, 16])
    assert list(compared.pixels.values()) == [34, 12, 0, 1, 17]


def test_files(compared: NetworkComparison, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "agreement",
        "comparison.json",
        "gallery.png",
        "images.csv",
        "retention.csv",
    ]
    content = json.loads((out / "comparison.json").read_text())
    assert content["teacher"]["miou"] == compared.teacher.miou
    assert content["pixels"] == compared.pixels
    assert [image["image"] for image in content["images"]] == ["town/hard", "mixed", "easy", "void"]
    rows = list(csv.DictReader((out / "retention.csv").read_text().splitlines()))
    assert [(row["class"], float(row["difference"]), int(row["pixels"])) for row in rows][2] == ("blue", -1.0, 12)
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert [float(row["gap"]) for row in rows] == pytest.approx([2 / 3, 1 / 3, 0, 0])
    assert [row["teacher only"] for row in rows] == ["8", "4", "0", "0"]


def test_agreement_pictures(compared: NetworkComparison, tmp_path: Path) -> None:
    folder = tmp_path / "out/agreement"
    drawn = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert drawn == ["easy.png", "mixed.png", "town/hard.png", "void.png"]
    with Image.open(folder / "mixed.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    kinds = ["both wrong", "ignored", "both right"]
    assert [tuple(pixel) for pixel in pixels[0, :3].tolist()] == [AGREEMENT_COLORS[AGREEMENT.index(k)] for k in kinds]
    assert (pixels[3] == AGREEMENT_COLORS[1]).all()


def test_gallery_shows_the_widest_gap_first(compared: NetworkComparison, tmp_path: Path) -> None:
    with Image.open(tmp_path / "out/gallery.png") as picture:
        sheet = np.asarray(picture)
    # A caption and a legend of 22; four rows and five columns of 4 pixels, each shown as 40, with gaps of 4
    assert sheet.shape == (22 + 4 * 164 + 22, 5 * 164 + 4, 3)
    first = sheet[22:182:40]
    columns = [first[:, 4 + 164 * column : 164 + 164 * column : 40] for column in range(5)]
    assert [tuple(column[3, 0].tolist()) for column in columns] == [
        (0, 0, 255),
        (0, 0, 255),
        (0, 0, 255),
        (0, 255, 0),
        AGREEMENT_COLORS[1],
    ]


def test_progress_and_sizes(network: Any, make_card: Callable[..., Card], make_pair: Any, tmp_path: Path) -> None:
    card = make_card()
    told: list[tuple[int, int]] = []
    teacher = Predictor(network(), card, SIZE)
    compare(teacher, teacher, [make_pair("a", HALF, HALF)], tmp_path / "out", lambda *done: told.append(done))
    assert told == [(1, 1)]
    with pytest.raises(UserError, match="at one --size"):
        compare(teacher, Predictor(network(), card, (8, 8)), [], tmp_path / "out")


def test_an_image_of_which_nothing_counts_comes_last() -> None:
    """Behind those on which the student is better than its teacher, too."""
    counted = dict.fromkeys(AGREEMENT, 0)
    void = ImageGap("void", 0.0, 0.0, {**counted, "ignored": 16})
    better = ImageGap("better", 0.2, 0.9, {**counted, "student only": 15, "ignored": 1})
    worse = ImageGap("worse", 0.9, 0.2, {**counted, "teacher only": 16})
    assert sorted((void, better, worse), key=lambda image: image.sort_key) == [worse, better, void]
