"""The subset picker: which images a choice takes, what it lacks, what it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segskd.data.pixel_counts import PixelCounts
from segskd.data.subset import draw_subset
from segskd.errors import Stopped, UserError
from segskd.evaluate.image_statistics import ImageStatistics
from segskd.evaluate.statistics_worker import Question, _answer, _listen, image_statistics_in_worker
from ui.state import picker as picker_module
from ui.state.background import Tasks
from ui.state.choice import Choice
from ui.state.datasets import Datasets
from ui.state.picker import Picker, by_hand, class_rows, images_of, read_choice
from ui.state.teachers import Teacher

SECONDS = 300.0


@pytest.fixture
def datasets(data: Path, card_path: Path, tmp_path: Path) -> Datasets:
    return Datasets(data, tmp_path / "cache", Tasks())


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher("runs/kind", "kind", "runs", teacher_folder, "unet:resnet18", outputs=3, size=(64, 96))


@pytest.fixture
def picker(datasets: Datasets, teacher: Teacher) -> Picker:
    stranger = Teacher("runs/other", "other", "runs", teacher.place, "unet:resnet18", outputs=9)
    learner = Teacher("run/new", "new", "run", teacher.place, "unet:resnet18", outputs=3, state="running")
    return Picker(datasets, lambda: [stranger, learner, teacher])


@pytest.fixture
def choice(card_path: Path) -> Callable[..., Choice]:
    return lambda **parts: Choice(**{"card": str(card_path), "fraction": 0.5, **parts})


@pytest.fixture
def counted(datasets: Datasets, card_path: Path) -> Datasets:
    """The datasets, every mask read."""
    assert datasets.read(datasets.open(str(card_path))).wait(SECONDS)
    return datasets


def test_a_random_choice_is_the_run_s_own_subset(
    picker: Picker, datasets: Datasets, choice: Callable[..., Choice]
) -> None:
    asked = choice(seed=3)
    answer = picker.select(asked)
    opened = datasets.open(asked.card)
    run = draw_subset(opened.pairs(), 6, 3, "random", opened.card)
    assert sorted(answer["chosen"]) == [opened.pairs().index(pair) for pair in run]
    assert (answer["total"], answer["waiting"], answer["problem"], answer["classes"]) == (12, None, None, None)
    assert answer["chosen"] != picker.select(choice(seed=4))["chosen"]


def test_a_smaller_share_lies_inside_a_larger_one(picker: Picker, choice: Callable[..., Choice]) -> None:
    large, small = picker.select(choice(fraction=0.75)), picker.select(choice(fraction=0.25))
    assert len(large["chosen"]) == 9
    assert small["chosen"] == large["chosen"][:3]


def test_balanced_waits_for_the_counts_and_then_chooses(
    picker: Picker, datasets: Datasets, choice: Callable[..., Choice]
) -> None:
    asked = choice(rule="balanced")
    before = picker.select(asked)
    assert (before["waiting"], before["chosen"], before["problem"]) == ("counts", [], None)
    opened = datasets.open(asked.card)
    assert datasets.read(opened).wait(SECONDS)
    after = picker.select(asked)
    run = draw_subset(opened.pairs(), 6, 0, "balanced", opened.card)
    assert sorted(after["chosen"]) == [opened.pairs().index(pair) for pair in run]
    assert after["waiting"] is None


def test_counts_that_cannot_be_had_are_a_problem(
    picker: Picker, counted: Datasets, choice: Callable[..., Choice]
) -> None:
    opened = counted.open(choice().card)
    task = counted.reading_task(opened.place)
    assert task is not None
    task.result = type(task.result)(task.result.report, None, "mask train/masks/b01.png has value 77")
    answer = picker.select(choice(rule="balanced"))
    assert answer["waiting"] is None
    assert "b01.png has value 77" in answer["problem"]


def test_rows_count_images_and_pixels_in_the_subset_and_in_all() -> None:
    pixel_counts = PixelCounts(("a", "b", "c"), np.array([[6, 2, 0, 9], [0, 8, 0, 0], [4, 0, 4, 1]]))
    assert class_rows(pixel_counts, ["a", "b", "c"], ["a", "c"]) == [
        {"images": 2, "of": 2, "share": 10 / 16, "whole": 10 / 24},
        {"images": 1, "of": 2, "share": 2 / 16, "whole": 10 / 24},
        {"images": 1, "of": 1, "share": 4 / 16, "whole": 4 / 24},
    ]
    assert [row["images"] for row in class_rows(pixel_counts, ["a", "b", "c"], [])] == [0, 0, 0]


@pytest.mark.parametrize(
    ("fraction", "problem"),
    [(0.1, r"10 % of 12 images are too few"), (0.0, "above 0"), (1.5, "at most 100"), (float("nan"), "above 0")],
)
def test_a_share_that_cannot_be_is_a_problem(
    picker: Picker, choice: Callable[..., Choice], fraction: float, problem: str
) -> None:
    answer = picker.select(choice(fraction=fraction))
    assert answer["chosen"] == []
    assert problem in answer["problem"]


def test_shares_are_rounded_down_as_in_a_run() -> None:
    assert (images_of(367, 0.1), images_of(10, 0.29), images_of(10, 0.3)) == (36, 2, 3)


def test_by_hand_takes_the_ticked_images_and_no_others(picker: Picker, choice: Callable[..., Choice]) -> None:
    assert picker.select(choice(rule="hand", names=("b07", "b02")))["chosen"] == [2, 7]
    assert "at least 2" in picker.select(choice(rule="hand", names=("b07",)))["problem"]
    assert "at least 2" in picker.select(choice(rule="hand", names=None))["problem"]
    assert "b99" in picker.select(choice(rule="hand", names=("b07", "b99", "b01")))["problem"]
    with pytest.raises(UserError, match="at least 2"):
        by_hand([], ["a", "a"])


# -- teachers -----------------------------------------------------------------------------------------


def test_only_teachers_that_know_the_classes_and_are_trained_are_asked(
    picker: Picker, choice: Callable[..., Choice]
) -> None:
    card = choice().card
    assert [teacher.key for teacher in picker.teachers(card)] == ["runs/kind"]
    for stranger in ("runs/other", "run/new", "../../etc", None):
        with pytest.raises(UserError, match="has no teacher"):
            picker.ask(card, stranger)
    answer = picker.select(choice(rule="diverse", teacher="runs/other"))
    assert "has no teacher" in answer["problem"]


def fake_statistics(asked: list[Question]) -> Callable[..., ImageStatistics]:
    """A teacher that is the less sure the higher an image's number, and sees two groups."""

    def image_statistics(question: Question, report: Any) -> ImageStatistics:
        asked.append(question)
        names = tuple(pair.name for pair in question.pairs)
        features = np.array([[number % 2 * 10.0, number] for number in range(len(names))], dtype=np.float32)
        return ImageStatistics(names, features, np.arange(len(names), dtype=np.float32))

    return image_statistics


def test_the_rules_that_ask_wait_for_the_answer_and_are_instant_then(
    picker: Picker, choice: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Question] = []
    monkeypatch.setattr(picker_module, "image_statistics_in_worker", fake_statistics(asked))
    assert picker.select(choice(rule="hardest"))["waiting"] == "teacher"
    hardest = choice(rule="hardest", fraction=0.25, teacher="runs/kind")
    assert picker.select(hardest)["waiting"] == "answer"
    assert picker.asking(hardest.card, "runs/kind") is None
    assert picker.ask(hardest.card, "runs/kind").wait(SECONDS)
    assert picker.select(hardest)["chosen"] == [11, 10, 9]
    # From the image nearest the mean (5, 5.5): b04, b05, b06, b07 and so on; then always the farthest.
    diverse = picker.select(choice(rule="diverse", fraction=0.25, teacher="runs/kind"))["chosen"]
    assert diverse[:2] == [5, 0]
    picker.ask(hardest.card, "runs/kind")
    assert len(asked) == 1
    assert asked[0].size == (64, 96)


def test_another_server_hears_again_what_was_said(
    picker: Picker, datasets: Datasets, teacher: Teacher, choice: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Question] = []
    monkeypatch.setattr(picker_module, "image_statistics_in_worker", fake_statistics(asked))
    hardest = choice(rule="hardest", teacher="runs/kind")
    assert picker.ask(hardest.card, "runs/kind").wait(SECONDS)
    again = Picker(Datasets(datasets.data, datasets.cache, Tasks()), lambda: [teacher])
    assert again.select(hardest)["waiting"] == "answer"
    task = again.asking(hardest.card, "runs/kind")
    assert task is not None
    assert task.wait(SECONDS)
    assert again.select(hardest)["chosen"] == [11, 10, 9, 8, 7, 6]


def test_a_teacher_is_asked_in_a_process_of_its_own(
    datasets: Datasets, teacher_folder: Path, choice: Callable[..., Choice], tmp_path: Path
) -> None:
    opened = datasets.open(choice().card)
    heard: list[tuple[str, int, int | None]] = []
    question = Question(teacher_folder, opened.card, opened.pairs(), (64, 96), tmp_path / "cache")
    answer = image_statistics_in_worker(question, lambda *step: heard.append(step))
    assert answer.names == tuple(f"b{number:02}" for number in range(12))
    assert answer.features.shape == (12, 96)
    assert heard[0] == ("loading the teacher", 0, None)
    assert heard[-1] == ("the teacher looks at the images", 12, 12)


def test_a_teacher_that_cannot_be_loaded_is_a_message(
    datasets: Datasets, teacher_folder: Path, choice: Callable[..., Choice], tmp_path: Path
) -> None:
    opened = datasets.open(choice().card)
    gone = tmp_path / "gone"
    shutil.copytree(teacher_folder, gone)
    (gone / "model.safetensors").write_bytes(b"cut short")
    ear, mouth = Pipe(duplex=False)
    _answer(Question(gone, opened.card, opened.pairs(), (64, 96), tmp_path), mouth)  # here, not in a process
    with pytest.raises(UserError, match="can't be loaded"):
        _listen(ear, 12, lambda *step: None)


def test_whoever_listens_may_stop_and_hears_of_a_silent_end() -> None:
    ear, mouth = Pipe(duplex=False)

    def stop(*step: object) -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped):
        _listen(ear, 12, stop)
    mouth.close()
    with pytest.raises(EOFError):
        _listen(ear, 12, lambda *step: None)


# -- choices from the page ----------------------------------------------------------------------------


def test_a_choice_survives_the_page() -> None:
    choice = Choice("bands", 0.25, "hand", 7, ("a", "b"), "run/one")
    assert read_choice(choice.as_dict()) == choice
    assert read_choice(None) == Choice()


@pytest.mark.parametrize(
    "content",
    [
        {"card": 7},
        {"rule": "best"},
        {"fraction": "much"},
        {"seed": -1},
        {"seed": 2**31},
        {"names": "abc"},
        {"names": [1, 2]},
        {"teacher": ["run"]},
        [1, 2],
        "scenes",
    ],
)
def test_what_is_no_choice_is_refused(content: object) -> None:
    with pytest.raises(UserError):
        read_choice(content)
