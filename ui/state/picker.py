"""The subset picker: which images a rule takes, and their classes compared with the whole training split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from segskd.callbacks import OnActivity
from segskd.config import first_problem
from segskd.data.dataset import Pair
from segskd.data.pixel_counts import PixelCounts
from segskd.data.subset import ASK_TEACHER, MINIMUM, pick_subset, subset_order, subset_size
from segskd.errors import UserError, in_labels
from segskd.evaluate.image_statistics import ImageStatistics
from segskd.evaluate.statistics_worker import Question, image_statistics_in_worker
from segskd.files import write_whole
from segskd.models.build import WEIGHTS_FILES, model_folder

from .background import Task
from .choice import Choice
from .dataset_report import Json
from .datasets import Datasets, OpenDataset, short_digest
from .teachers import Teacher, best_teacher, find_teacher, fits

_CHOICES = TypeAdapter(Choice)


class Picker:
    """Chooses subsets of the server's datasets. The page stores the result, a `Choice`."""

    def __init__(self, datasets: Datasets, list_teachers: Callable[[], list[Teacher]]) -> None:
        self._datasets = datasets
        self._list_teachers = list_teachers
        self._orders: dict[tuple[object, ...], list[str]] = {}
        self._teachers: dict[str, list[Teacher]] = {}

    def select(self, choice: Choice) -> Json:
        """The images of a choice, in the rule's order, as places in the sorted list of names.

        `waiting` names what the rule still needs ("counts", "teacher", "answer"), `problem` says what is wrong with the
        choice; both are None if the choice is valid. `classes` compares the subset with the whole split. Raises
        UserError if the dataset is not on this server.
        """
        opened = self._datasets.open(choice.card)
        pairs = opened.pairs()
        reading = self._datasets.reading(opened)
        counted = reading.pixel_counts if reading else None
        names: Sequence[str] = ()
        waiting = problem = None
        try:
            waiting = self._lacking(opened, choice, counted)
            if waiting is None:
                names = self._names(opened, choice, counted)
            elif waiting == "counts" and reading:
                raise UserError(f"the classes can't be counted: {reading.problem}")
        except UserError as error:
            waiting, problem = None, in_labels(error)
        places = {pair.name: index for index, pair in enumerate(pairs)}
        return {
            "version": opened.version,
            "total": len(pairs),
            "chosen": [places[name] for name in names],
            "waiting": waiting,
            "problem": problem,
            "classes": class_rows(counted, [pair.name for pair in pairs], names) if counted else None,
        }

    def _lacking(self, opened: OpenDataset, choice: Choice, counted: PixelCounts | None) -> str | None:
        """What the rule still needs, None if it has all."""
        if choice.rule == "balanced" and counted is None:
            return "counts"
        if choice.rule in ASK_TEACHER:
            if choice.teacher is None:
                return "teacher"
            return "answer" if self.answer(opened, choice.teacher) is None else None
        return None

    def _names(self, opened: OpenDataset, choice: Choice, counted: PixelCounts | None) -> Sequence[str]:
        pairs = opened.pairs()
        if choice.rule == "hand":
            return by_hand(pairs, choice.names or ())
        size = images_of(len(pairs), choice.fraction)
        asked = self.answer(opened, choice.teacher) if choice.rule in ASK_TEACHER else None
        key = (opened.version, choice.rule, choice.seed, choice.teacher if asked else None)
        if len(self._orders.get(key, ())) < size:
            self._orders[key] = subset_order(pairs, choice.rule, choice.seed, opened.card, size, asked, counted)
        return self._orders[key][:size]

    # -- teachers -----------------------------------------------------------------------------------

    def teachers(self, place: str) -> list[Teacher]:
        """The teachers that `diverse` and `hardest` can use for this dataset, the best first."""
        card = self._datasets.card(place)
        known = [teacher for teacher in self._list_teachers() if teacher.ready and fits(teacher, card)]
        best = best_teacher(known, card)
        self._teachers[place] = sorted(known, key=lambda teacher: teacher != best)
        return self._teachers[place]

    def ask(self, place: str, teacher: object) -> Task:
        """The task in which a teacher computes statistics of every training image.

        Raises UserError for a teacher that doesn't fit this dataset.
        """
        opened = self._datasets.open(place)
        asked = self._teacher(place, teacher)
        question = Question(asked.place, opened.card, opened.pairs(), asked.asking_size, self._datasets.cache)
        key = _key(opened, asked)
        marker = self._marker(key)

        def work(report: OnActivity) -> ImageStatistics:
            answer = image_statistics_in_worker(question, report)
            write_whole(marker, b"")
            return answer

        before = self._datasets.tasks.get(key)
        return before if before is not None and before.state == "done" else self._datasets.tasks.start(key, work)

    def asking(self, place: str, teacher: object) -> Task | None:
        """The last task that `ask` started for this dataset and teacher."""
        return self._datasets.tasks.get(_key(self._datasets.open(place), self._teacher(place, teacher)))

    def answer(self, opened: OpenDataset, teacher: object) -> ImageStatistics | None:
        """The teacher's statistics of the images, None while there are none. Those of an earlier server are on disk."""
        key = _key(opened, self._teacher(opened.place, teacher))
        task = self._datasets.tasks.get(key)
        if task is None and self._marker(key).exists():
            self.ask(opened.place, teacher)
        return task.result if task is not None and task.state == "done" else None

    def _teacher(self, place: str, teacher: object) -> Teacher:
        text = str(teacher)
        known = find_teacher(self._teachers.get(place, ()), text) or find_teacher(self.teachers(place), text)
        if known is not None:
            return known
        raise UserError(f"this server has no teacher {str(teacher)!r} for this dataset: choose one from the list")

    def _marker(self, key: str) -> Path:
        return self._datasets.cache / f"asked-{short_digest(key)}"


def read_choice(content: object) -> Choice:
    """A choice from the page; the default for None. Raises UserError for anything else."""
    try:
        choice = _CHOICES.validate_python(content or {})
    except ValidationError as error:
        raise UserError(f"the choice can't be read: {first_problem(error)}") from error
    if not 0 <= choice.seed < 2**31:
        raise UserError("the seed must be a whole number between 0 and 2147483647")
    return choice


def images_of(total: int, fraction: float) -> int:
    """The number of images in a share of `total`. Raises UserError if it is too small for training."""
    if not 0 < fraction <= 1:
        raise UserError("the share must lie above 0 and be at most 100 %")
    if int(total * fraction + 1e-9) < MINIMUM:
        raise UserError(f"{fraction * 100:g} % of {total} images are too few: training needs at least {MINIMUM}")
    return subset_size(total, fraction, None)


def by_hand(pairs: Sequence[Pair], names: Sequence[str]) -> list[str]:
    """The named images, sorted. Raises UserError for unknown names and for fewer than two."""
    if len(set(names)) < MINIMUM:
        raise UserError(f"tick at least {MINIMUM} images: training needs them")
    return [pair.name for pair in pick_subset(pairs, sorted(set(names)))]


def class_rows(counted: PixelCounts, whole: Sequence[str], subset: Sequence[str]) -> list[Json]:
    """A row for each class: images that hold it and its share of the pixels, in the subset and in the whole split."""
    columns = (
        counted.images_with(subset),
        counted.images_with(whole),
        counted.shares(subset),
        counted.shares(whole),
    )
    return [
        {"images": int(images), "of": int(of), "share": float(share), "whole": float(all_share)}
        for images, of, share, all_share in zip(*columns, strict=True)
    ]


def _key(opened: OpenDataset, teacher: Teacher) -> str:
    folder = model_folder(teacher.place) or teacher.place
    changed = [path.stat().st_mtime_ns for name in WEIGHTS_FILES if (path := folder / name).is_file()]
    return f"ask {opened.version} {folder} {teacher.size} {changed}"
