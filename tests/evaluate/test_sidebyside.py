"""Side by side with networks whose answers are known: every figure is worked out by hand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from segskd.config import make_recipe
from segskd.errors import UserError
from segskd.evaluate import predictions, sidebyside
from segskd.evaluate.comparison import AGREEMENT
from segskd.evaluate.sidebyside import TEACHER_TOO, SideBySide, display_image, first_errors
from segskd.runs import Run

pytestmark = pytest.mark.slow

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SIZE = (32, 40)
EACH = 80
"""Pixels of each of the 4x4 fields that the images are drawn of."""
HALF = [[0] * 4, [0] * 4, [2] * 4, [2] * 4]
LAST = [[0] * 4, [0] * 4, [0] * 4, [2] * 4]
ONE_OFF = [[1, 255, 0, 0], [0] * 4, [0] * 4, [2] * 4]
IMAGES = {
    "easy": ([[0] * 4] * 4, [[0] * 4] * 4),
    "mixed": (LAST, ONE_OFF),
    "town/hard": (HALF, HALF),
    "void": (LAST, [[255] * 4] * 4),
}
"""What each shows, and its truth, in fields."""


def fields(values: Any) -> np.ndarray:
    return np.kron(np.array(values, dtype=np.uint8), np.ones((8, 10), dtype=np.uint8))


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(make_card: Callable[..., Any], tmp_path: Path) -> Path:
    """A dataset of four images, its card, and an empty run with a student's folder."""
    splits = {s: {"images": f"{s}/{{name}}.png", "masks": f"m/{s}/{{name}}.png"} for s in ("train", "val")}
    card = tmp_path / "colours.yaml"
    card.write_text(yaml.safe_dump(make_card(splits=splits).model_dump(mode="json", exclude_defaults=True)))
    for name, (seen, truth) in IMAGES.items():
        write(tmp_path / "colours/val" / f"{name}.png", np.array(COLORS, dtype=np.uint8)[fields(seen)])
        write(tmp_path / "colours/m/val" / f"{name}.png", fields(truth))
    data = {"card": str(card), "folder": str(tmp_path), "size": list(SIZE)}
    run = Run.create(tmp_path / "run", make_recipe({"data": data, "teacher": "teacher"}))
    run.write("student/config.json", b"{}")
    return tmp_path


class Opened:
    """Opens the run with a teacher that is right and a student that calls blue green."""

    def __init__(self, folder: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.networks = {"teacher": network(), "student": network((0, 1, 1))}
        monkeypatch.setattr(sidebyside, "load", lambda place: self.networks[Path(place).name])

    def __call__(self, predict: bool = True) -> SideBySide:
        made = SideBySide(Run.open(self.folder / "run"), device="cpu")
        if predict:
            made.predict()
        return made

    @property
    def seen(self) -> list[int]:
        """How many images each call of the teacher saw, since the last time this was asked."""
        teacher = self.networks["teacher"]
        seen, teacher.seen = [shape[0] for shape in teacher.seen], []
        return seen


@pytest.fixture
def opened(folder: Path, network: Any, monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(folder, network, monkeypatch)


def test_a_frame_by_hand(opened: Opened) -> None:
    frame = opened().frame("town/hard")
    assert frame.image.shape == (32, 40, 3)
    assert frame.truth is not None
    assert (frame.truth == fields(HALF)).all()
    assert (frame.teacher == fields(HALF)).all()
    assert (frame.student == np.where(fields(HALF) == 2, 1, 0)).all()
    # Logits are 0 for the colour itself and -2 for another: 1 / (1 + 2 e^-2), and 1 / (1 + e^-2) of two answers.
    assert np.unique(frame.teacher_confidence).tolist() == [79]
    assert np.unique(frame.student_confidence).tolist() == [88]
    assert {array.dtype for array in (frame.truth, frame.student, frame.teacher_confidence)} == {np.dtype(np.uint8)}


def test_an_uploaded_picture(opened: Opened) -> None:
    picture = np.zeros((640, 800, 3), dtype=np.uint8)
    picture[:, 400:] = COLORS[2]
    picture[:, :400] = COLORS[0]
    frame = opened(predict=False).predict_image(picture)
    assert frame.truth is None
    assert (frame.teacher[:, :20] == 0).all()
    assert (frame.teacher[:, 20:] == 2).all()
    assert (frame.student[:, 20:] == 1).all()
    assert frame.student_confidence.shape == SIZE


def test_a_picture_at_its_own_resolution(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of a single pixel are seen there; networks that look at each pixel alone give the same by tiles."""
    monkeypatch.setattr(sidebyside, "takes", lambda *_: True)
    monkeypatch.setattr(predictions, "VALUES_AT_ONCE", 7 * 300 * 3)  # seven rows of three classes
    picture = np.full((200, 300, 3), COLORS[0], dtype=np.uint8)
    picture[:, 131] = COLORS[2]
    picture[17] = COLORS[1]
    seen = np.zeros((200, 300))
    seen[:, 131], seen[17] = 2, 1
    side = opened(predict=False)
    frame = side.predict_image(picture, native=True)
    assert (frame.tile, frame.truth) == ((64, 64), None)
    assert (frame.image == picture).all()
    assert (frame.teacher == seen).all()
    assert (frame.student == seen.clip(max=1)).all()
    assert frame.teacher_confidence.shape == (200, 300)
    assert set(opened.networks["teacher"].seen) == {(6 * 9, 3, 64, 64)}  # of 224x320, 32 apart
    monkeypatch.setattr(sidebyside, "NATIVE_SIDE", 150)
    assert side.predict_image(picture, native=True).teacher.shape == (100, 150)
    monkeypatch.setattr(sidebyside, "NATIVE_LOGITS", 3 * 50 * 75)  # of three classes
    assert side.predict_image(picture, native=True).teacher.shape == (50, 75)


def test_pieces_that_a_network_does_not_take_are_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidebyside, "takes", lambda _, size: size == (64, 64))
    side = opened(predict=False)
    assert side.predict_image(np.zeros((64, 80, 3), dtype=np.uint8), native=True).tile == (64, 64)
    assert side.predict_image(np.zeros((64, 50, 3), dtype=np.uint8), native=True).tile is None  # one is enough
    with pytest.raises(UserError, match=r"doesn't take images of 32x64.*predict it at the run's size"):
        side.predict_image(np.zeros((20, 80, 3), dtype=np.uint8), native=True)


def test_a_photograph_has_the_aspect_of_the_run() -> None:
    assert display_image(np.zeros((1000, 2000, 3), dtype=np.uint8), SIZE).shape == (819, 1024, 3)
    assert display_image(np.zeros((50, 100, 3), dtype=np.uint8), SIZE).shape == (80, 100, 3)


def test_gaps_by_hand(opened: Opened) -> None:
    found = opened().gaps()
    assert [gap.name for gap in found] == ["town/hard", "mixed", "easy", "void"]
    # hard: the student's red 1, green 0, blue 0; mixed: red 10 of 11 and green 0, blue 1 against 0
    assert [gap.teacher for gap in found] == pytest.approx([1, (10 / 11 + 1) / 3, 1, 0])
    assert [gap.student for gap in found] == pytest.approx([1 / 3, 10 / 11 / 3, 1, 0])
    assert [gap.gap for gap in found] == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_gaps_of_a_class_by_hand(opened: Opened) -> None:
    side = opened()
    assert [gap[:3] for gap in side.gaps("blue")] == [("mixed", 1.0, 0.0), ("town/hard", 1.0, 0.0)]
    # In "hard" there is no green and the teacher finds none, so it is right; the student finds some.
    assert [gap[:3] for gap in side.gaps("green")] == [("town/hard", 1.0, 0.0), ("mixed", 0.0, 0.0)]
    assert [gap.name for gap in side.gaps("red")] == ["easy", "mixed", "town/hard"]
    with pytest.raises(UserError, match="no class 'pink'"):
        side.gaps("pink")


def test_retention_and_agreement_by_hand(opened: Opened) -> None:
    side = opened()
    rows = side.retention()
    assert [row["pixels"] for row in rows] == [34 * EACH, EACH, 12 * EACH]
    assert [row["teacher"] for row in rows] == pytest.approx([34 / 35, 0, 1])
    assert [row["difference"] for row in rows] == pytest.approx([0, 0, -1])
    assert [s.miou for s in side.scores()] == pytest.approx([(34 / 35 + 1) / 3, 34 / 35 / 3])
    assert list(side.agreement()) == list(AGREEMENT)
    assert [n / EACH for n in side.agreement().values()] == [34, 12, 0, 1, 17]
    assert [n / EACH for n in side.agreement("mixed").values()] == [10, 4, 0, 1, 1]


# -- what is kept -----------------------------------------------------------------------------------


def test_networks_run_once(opened: Opened) -> None:
    told: list[tuple[int, int]] = []
    side = opened(predict=False)
    assert not side.ready
    with pytest.raises(RuntimeError, match="not computed yet"):
        side.frame("easy")
    side.predict(lambda *done: told.append(done))
    assert (side.ready, told, opened.seen) == (True, [(4, 4)], [4])
    assert opened(predict=False).ready
    again = opened()
    assert (again.frame("town/hard").student == side.frame("town/hard").student).all()
    assert again.gaps() == side.gaps()
    assert opened.seen == []


def test_a_process_that_is_killed_leaves_what_it_finished(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "BATCH", 1)
    monkeypatch.setattr(predictions, "SAVE_SECONDS", -1.0)

    def kill(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(predict=False).predict(kill)
    side = opened(predict=False)
    assert (opened.seen, side.ready) == ([1, 1, 1], False)
    side.predict()
    assert opened.seen == [1]
    assert [n / EACH for n in side.agreement().values()] == [34, 12, 0, 1, 17]


def test_a_run_deleted_while_it_is_compared_is_told_and_stays_gone(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "BATCH", 1)
    run = opened.folder / "run"
    with pytest.raises(UserError, match="no run at"):
        opened(predict=False).predict(lambda done, _: shutil.rmtree(run) if done == 2 else None)
    assert not run.exists()


@pytest.mark.parametrize("what", ["mask", "image", "network", "size", "key", "array"])
def test_computed_anew_when_it_no_longer_holds(opened: Opened, network: Any, what: str) -> None:
    first = opened()
    kept = list((opened.folder / "run/compare/val").glob("*/key.json"))
    assert len(kept) == 1
    if what == "mask":
        write(opened.folder / "colours/m/val/easy.png", fields([[1] * 4] * 4))
    elif what == "image":
        os.utime(opened.folder / "colours/val/easy.png", ns=(1, 1))
    elif what == "network":
        opened.networks["student"] = network((1, 1, 1))
    elif what == "size":
        run = Run.open(opened.folder / "run")
        run.write("recipe.yaml", (run.path / "recipe.yaml").read_bytes().replace(b"32x40", b"64x80"))
    elif what == "key":
        kept[0].write_text('{"progress": {"done": 4}')
    else:
        (kept[0].parent / "student.npy").unlink()
    opened.seen  # noqa: B018
    second = opened(predict=False)
    assert not second.ready
    second.predict()
    assert opened.seen == [4]
    assert len(list((opened.folder / "run/compare/val").glob("*/key.json"))) == 1
    if what == "mask":
        assert second.agreement("easy")["both wrong"] == 16 * EACH
        assert first.agreement("easy")["both right"] == 16 * EACH  # who has the old one open keeps it


def test_two_threads_compute_once(opened: Opened) -> None:
    both = [opened(predict=False), opened(predict=False)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda side: side.predict(), both * 2))
    assert opened.seen == [4]
    assert both[0].gaps() == both[1].gaps()


def test_unreadable_images_are_named_and_left_out(opened: Opened) -> None:
    (opened.folder / "colours/val/easy.png").write_bytes(b"no picture")
    write(opened.folder / "colours/m/val/mixed.png", np.full(SIZE, 77, dtype=np.uint8))
    for side in (opened(), opened()):
        assert list(side.unreadable) == ["easy", "mixed"]
        assert "value 77" in side.unreadable["mixed"]
        assert side.names == ["town/hard", "void"]
        assert [gap.name for gap in side.gaps()] == ["town/hard", "void"]
        assert [n / EACH for n in side.agreement().values()] == [8, 8, 0, 0, 16]
        with pytest.raises(UserError, match="has no image 'easy'"):
            side.frame("easy")
    for name in ("town/hard", "void"):
        (opened.folder / "colours/val" / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match="can't read"):
        opened()


def test_runs_that_can_not_be_compared(opened: Opened) -> None:
    side = opened(predict=False)
    assert side.stages == []
    assert "has no encoder, decoder and segmentation head" in str(side.no_grafts)
    side.predict()
    with pytest.raises(UserError, match="has no encoder, decoder and segmentation head"):
        side.graft_classes("easy")
    with pytest.raises(UserError, match="has no image"):
        side.frame("../easy")
    run = opened.folder / "run"
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        recipe.replace("teacher: teacher", "teacher: null").replace("stagewise", "supervised")
    )
    with pytest.raises(UserError, match="no teacher to compare with"):
        opened()
    (run / "recipe.yaml").write_text(recipe)
    shutil.rmtree(run / "student")
    with pytest.raises(UserError, match="has no student yet"):
        opened()
    shutil.rmtree(run)
    with pytest.raises(UserError, match="no run at"):
        side.predict()


# -- grafts and first errors ------------------------------------------------------------------------


def test_first_errors_by_hand() -> None:
    #                         right  healed  first  second  last   both   void   right although the teacher is not
    truth = np.array([[0, 0, 0, 0, 0, 0, 255, 1]], dtype=np.uint8)
    teacher = np.array([[0, 0, 0, 0, 0, 1, 0, 0]], dtype=np.uint8)
    grafts = [[0, 1, 1, 0, 0, 0, 1, 1], [0, 0, 0, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]]
    found = first_errors(np.array(grafts, dtype=np.uint8)[:, None], teacher, truth, 255)
    assert found.tolist() == [[0, 0, 1, 2, 3, TEACHER_TOO, 255, 0]]
    assert found.dtype == np.uint8


class FakeGrafts:
    """Grafts after two stages and the head; the second has the last row of fields wrong, the student all of blue."""

    def __init__(self, stages: Sequence[str] = ("encoder.0", "decoder.0", "head")) -> None:
        self.stages = list(stages)
        self.adapters = nn.Module()
        self.calls = 0

    def classes(self, image: torch.Tensor) -> np.ndarray:
        self.calls += 1
        assert image.shape == (1, 3, 32, 64)
        seen = image[0, :, :32, :40].argmax(0).numpy().astype(np.uint8)
        second = seen.copy()
        second[24:] = 1
        return np.stack([seen, second, seen])[: len(self.stages)]


@pytest.fixture
def grafts(monkeypatch: pytest.MonkeyPatch) -> FakeGrafts:
    fake = FakeGrafts()
    monkeypatch.setattr(sidebyside, "cut", lambda model: model)
    monkeypatch.setattr(sidebyside.Grafts, "of", lambda *_: fake)
    return fake


def test_graft_masks_are_computed_once(opened: Opened, grafts: FakeGrafts) -> None:
    for side in (opened(), opened()):
        assert (side.stages, side.no_grafts) == (grafts.stages, None)
        masks = side.graft_classes("town/hard")
        assert (masks[0] == fields(HALF)).all()
        assert (masks[1][24:] == 1).all()
        assert (masks[2] == side.frame("town/hard").student).all()
    assert grafts.calls == 1
    grafts.stages = grafts.stages[:2]
    assert opened().graft_classes("town/hard").shape == (2, *SIZE)
    with pytest.raises(UserError, match=r"up to decoder\.0"):
        opened().first_errors("town/hard")
    opened.networks["student"].segmentation_head[0].bias.data += 1
    opened()
    with pytest.raises(UserError, match="open it again"):
        side.graft_classes("easy")


def test_shares_of_the_errors_by_hand(opened: Opened, grafts: FakeGrafts) -> None:
    side = opened()
    # hard: rows 2 and 3 are blue and called green; the graft after decoder.0 has row 3 wrong already.
    errors = side.first_errors("town/hard")
    assert [np.unique(errors[rows]).tolist() for rows in (slice(16), slice(16, 24), slice(24, 32))] == [[0], [3], [2]]
    told: list[tuple[int, int]] = []
    rows = side.error_shares(report=lambda *done: told.append(done))
    # mixed: row 3 at decoder.0, and one field that the teacher has wrong, too; void counts nowhere.
    assert [(row["stage"], row["pixels"] / EACH) for row in rows] == [
        ("encoder.0", 0),
        ("decoder.0", 4 + 4),
        ("head", 4),
        ("teacher", 1),
    ]
    assert [row["share"] for row in rows] == pytest.approx([0, 8 / 13, 4 / 13, 1 / 13])
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [row["share"] for row in side.error_shares(["easy"])] == [0, 0, 0, 0]
