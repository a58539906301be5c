"""Runs and their teachers side by side, for the Compare tab. They load in the background; the last ones stay loaded."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segskd.callbacks import OnActivity
from segskd.data.pixels import read_upload
from segskd.distill.running.branch import branch_recipe
from segskd.errors import UserError, in_labels
from segskd.evaluate.comparison import AGREEMENT, AGREEMENT_COLORS
from segskd.evaluate.sidebyside import IGNORED, TEACHER_TOO, Frame, SideBySide
from segskd.models.stages import HEAD
from segskd.runs import Run, free_name

from ..context import Context
from ..jobs import JobState
from .background import Task, Tasks
from .catalogue import Catalogue, Row
from .frames import packed, picture_url, stage_colours, thumbnail

MOST_RUNS = 3
MOST_EPOCHS = 100_000
MOST_UPLOADS = 8
MOST_CACHED_THUMBNAILS = 2000
MOST_THUMBNAILS = 12
SHORT_WAIT_SECONDS = 0.12
LOADING, COMPARING, COUNTING = "loading both networks", "both networks look at the images", "counting first errors"
DOING: dict[JobState, str] = {
    "waiting": "waits in the queue",
    "starting": "is starting",
    "running": "is still being trained",
    "paused": "is paused",
    "interrupted": "was stopped before its end",
    "failed": "failed before its end",
    "new": "has not been started",
}


@dataclass
class OpenComparison:
    """A run that is loaded and compared: its summary for the page, and the thumbnails that were drawn so far."""

    side: SideBySide
    summary: dict[str, Any]
    thumbnails: dict[str, str] = field(default_factory=dict)


class NotOpen(UserError):
    """The run is not loaded (any more). The page then asks for `state` again."""


class Comparisons:
    """The runs that the page compares. Safe to use from several threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._catalogue = Catalogue(context.jobs)
        self._tasks = Tasks()
        self._opened: OrderedDict[str, OpenComparison] = OrderedDict()
        self._uploads: OrderedDict[str, tuple[str, Frame]] = OrderedDict()
        self._lock = threading.Lock()

    # -- which run ----------------------------------------------------------------------------------

    def runs(self) -> list[dict[str, Any]]:
        """The runs that can be compared, the newest first."""
        return [_choice(row) for row in self._catalogue.finished_students()]

    def relatives(self, name: object) -> list[dict[str, Any]]:
        """Pairs of finished runs with figures. One is this run, and one began from a stage of the other."""
        rows = {row.name: row for row in self._catalogue.rows()}
        pairs = []
        for row in rows.values():
            before, _, stage = (row.begun_from or "").partition(", ")
            old = rows.get(before)
            if old is None or name not in (row.name, before) or row.miou is None or old.miou is None:
                continue
            figures = [{"run": one.name, **_figures(Run(self._context.runs / one.name))} for one in (old, row)]
            pairs.append({"stage": stage, "before": figures[0], "after": figures[1]})
        return pairs

    def state(self, name: object, retry: bool = False) -> dict[str, Any]:
        """The state of a comparison: "ready" with its summary, "working", or the reason why there is none.

        The first call begins to load the run. `retry` loads it again after a failure.
        """
        if not name:
            return {"state": "none"}
        try:
            run = self._context.run(name)
            why_not = self._why_not(run)
            if why_not:
                return why_not
            key = _key(run)
        except UserError as error:
            return {"state": "problem", "text": in_labels(error)}
        opened = self._get(key)
        if opened:
            return {"state": "ready", **opened.summary}
        task = self._tasks.get(key)
        if task is None or task.state in ("done", "stopped") or (retry and task.state == "failed"):
            task = self._tasks.start(key, lambda report: self._load(run, key, report))
        if task.state == "failed":
            return {"state": "problem", "text": task.problem, "again": True}
        return task.as_dict() | {"state": "working"}

    def _why_not(self, run: Run) -> dict[str, Any] | None:
        try:
            recipe = run.recipe
        except UserError as error:
            raise UserError(f"the files of {run.name} are damaged: {error}") from error
        if recipe.kind == "teach":
            return _other_tab(f"{run.name} is a teacher. Distill a student from it, then compare the two.", "distill")
        if recipe.teacher is None:
            return _other_tab(
                f"{run.name} was trained on labels alone, so it has no teacher to be compared with. "
                "Choose a run that was distilled.",
                "distill",
            )
        state = self._context.jobs.state(run.name)
        if state == "finished":
            if not (run.model_folder / "config.json").is_file():
                raise UserError(f"the trained network of {run.name} is missing: put its folder student/ back")
            return None
        return _other_tab(f"{run.name} {DOING.get(state, state)}. Compare shows it when it is finished.", "watch")

    def _load(self, run: Run, key: str, report: OnActivity) -> None:
        report(LOADING, 0, None)
        side = SideBySide(run)
        side.predict(lambda done, total: report(COMPARING, done, total))
        with self._lock:
            self._opened[key] = OpenComparison(side, summary(side))
            while len(self._opened) > MOST_RUNS:
                self._opened.popitem(last=False)

    def _get(self, key: str) -> OpenComparison | None:
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
            return self._opened.get(key)

    def opened(self, name: object) -> OpenComparison:
        """A loaded run. Raises NotOpen if it is not loaded, UserError if there is no such run."""
        run = self._context.run(name)
        opened = self._get(_key(run))
        if opened is None:
            raise NotOpen(f"run {run.name} is not loaded")
        return opened

    # -- one image ----------------------------------------------------------------------------------

    def frame(self, name: object, image: str) -> dict[str, Any]:
        """The photograph and the maps of an image, for the page. Raises UserError."""
        side = self.opened(name).side
        return {**_frame(side.frame(image)), "agreement": side.agreement(image)}

    def upload(self, name: object, path: Path, native: bool = False) -> str:
        """Runs both networks on an uploaded picture, at the run's size or, with `native`, at its own size by tiles.

        Returns a key for `uploaded`. Raises UserError.
        """
        try:
            opened = self.opened(name)
        except NotOpen as error:
            raise UserError("no run is open yet: wait until its images are shown, then upload yours again") from error
        found = opened.side.predict_image(read_upload(path, opened.side.card), native)
        key = secrets.token_hex(8)
        with self._lock:
            self._uploads[key] = path.name, found
            while len(self._uploads) > MOST_UPLOADS:
                self._uploads.popitem(last=False)
        return key

    def uploaded(self, key: str) -> dict[str, Any]:
        """An uploaded picture, in the form of `frame`. Raises UserError if it is no longer stored."""
        with self._lock:
            kept = self._uploads.get(key)
        if kept is None:
            raise UserError("your image is no longer stored: upload it again")
        return {**_frame(kept[1]), "name": kept[0], "agreement": None, "tile": kept[1].tile}

    def stages(self, name: object, image: str) -> dict[str, Any]:
        """The grafts' masks and the first errors of an image; "working" while they are computed. Raises UserError."""
        run = self._context.run(name)
        side = self.opened(name).side
        task = self._once(f"stages {_key(run)} {image}", lambda report: _stages(side, image))
        task.wait(SHORT_WAIT_SECONDS)
        return _task_answer(task)

    def thumbnails(self, name: object, images: list[str]) -> dict[str, str | None]:
        """Thumbnails by the images' names, MOST_THUMBNAILS at once; None for a file that can't be read."""
        opened = self.opened(name)
        return {image: _thumbnail(opened, image) for image in images[:MOST_THUMBNAILS]}

    # -- all images ---------------------------------------------------------------------------------

    def gaps(self, name: object, class_name: str | None) -> list[list[Any]]:
        """Rows of name, teacher's IoU, student's IoU and gap, by falling gap. Raises UserError."""
        return [list(gap) for gap in self.opened(name).side.gaps(class_name or None)]

    def shares(self, name: object, begin: bool) -> dict[str, Any]:
        """First errors by stage over all images. The state is "idle" until a call with `begin`. Raises UserError."""
        run = self._context.run(name)
        side = self.opened(name).side
        key = f"shares {_key(run)}"

        def count(report: OnActivity) -> dict[str, Any]:
            return {"shares": side.error_shares(report=lambda done, total: report(COUNTING, done, total))}

        task = self._once(key, count) if begin else self._tasks.get(key)
        return {"state": "idle"} if task is None or task.state == "stopped" else _task_answer(task)

    def stop_shares(self, name: object) -> dict[str, Any]:
        """Stops the count over all images. The results for single images are kept. Raises UserError."""
        task = self._tasks.get(f"shares {_key(self._context.run(name))}")
        if task:
            task.stop()
            task.wait(SHORT_WAIT_SECONDS)
        return self.shares(name, begin=False)

    def retrain(self, name: object, stage: str, epochs: object) -> str:
        """Queues a run that trains `stage` and the later ones for `epochs` more. Returns its name. Raises UserError."""
        run = self._context.run(name)
        if type(epochs) is not int or not 1 <= epochs <= MOST_EPOCHS:
            raise UserError(f"epochs must be a whole number from 1 to {MOST_EPOCHS:,}")
        recipe = branch_recipe(run, stage, epochs)
        branch = free_name(f"{run.name[:60]}-from-{stage}", self._context.runs)
        return self._context.jobs.submit(recipe, branch).name

    # -- inside -------------------------------------------------------------------------------------

    def _once(self, key: str, work: Callable[[OnActivity], Any]) -> Task:
        """The task of that key. It is started unless it is working or done."""
        task = self._tasks.get(key)
        if task is not None and task.state in ("working", "done"):
            return task
        return self._tasks.start(key, work)


def summary(side: SideBySide) -> dict[str, Any]:
    """A compared run for the page: classes, scores, images by gap, retention, agreement, stages."""
    card, recipe = side.card, side.run.recipe
    teacher, student = side.scores()
    return {
        "run": side.run.name,
        "dataset": card.name,
        "size": list(side.size),
        "classes": [{"name": entry.name, "color": list(entry.color)} for entry in card.classes],
        "ignore": card.ignore_index,
        "teacher": {"name": side.teacher_name, "miou": teacher.miou, "accuracy": teacher.pixel_accuracy},
        "student": {"name": side.student_name, "miou": student.miou, "accuracy": student.pixel_accuracy},
        "images": [list(gap) for gap in side.gaps()],
        "unreadable": side.unreadable,
        "retention": side.retention(),
        "agreement": {"kinds": AGREEMENT[:4], "colors": AGREEMENT_COLORS[:4], "pixels": side.agreement()},
        "stages": side.stages,
        "stage_colors": stage_colours(len(side.stages)),
        "first_errors": bool(side.stages) and side.stages[-1] == HEAD,
        "marks": {"teacher_too": TEACHER_TOO, "ignored": IGNORED},
        "no_grafts": side.no_grafts,
        "epochs": recipe.optimisation.epochs,
    }


def _frame(frame: Frame) -> dict[str, Any]:
    maps = {
        "truth": frame.truth,
        "teacher": frame.teacher,
        "student": frame.student,
        "teacher_confidence": frame.teacher_confidence,
        "student_confidence": frame.student_confidence,
    }
    return {"photo": picture_url(frame.image), **packed({k: v for k, v in maps.items() if v is not None})}


def _stages(side: SideBySide, image: str) -> dict[str, Any]:
    maps = dict(zip(side.stages, side.graft_classes(image), strict=True))
    if side.stages[-1] != HEAD:
        return packed(maps)
    return packed(maps | {"first errors": side.first_errors(image)}) | {"shares": side.error_shares([image])}


def _thumbnail(opened: OpenComparison, image: str) -> str | None:
    found = opened.thumbnails.get(image)
    if found is None:
        try:
            found = picture_url(thumbnail(opened.side.frame(image), opened.side.card.ignore_index))
        except UserError:  # opening the image reports what is wrong with its file
            return None
        if len(opened.thumbnails) < MOST_CACHED_THUMBNAILS:
            opened.thumbnails[image] = found
    return found


def _task_answer(task: Task) -> dict[str, Any]:
    return task.as_dict() | (task.result if task.state == "done" else {})


def _choice(row: Row) -> dict[str, Any]:
    return {"run": row.name, "dataset": row.dataset, "student": row.student, "miou": row.miou}


def _other_tab(text: str, tab: str) -> dict[str, Any]:
    return {"state": "elsewhere", "text": text, "tab": tab}


def _figures(run: Run) -> dict[str, Any]:
    student = (run.read_json("result.json") or {}).get("student", {})
    return {name: student.get(name) for name in ("miou", "pixel_accuracy", "per_class")}


def _key(run: Run) -> str:
    """A key of the finished run. Another training under the same name has another key."""
    try:
        return f"{run.name} {(run.path / 'result.json').stat().st_mtime_ns}"
    except OSError as error:
        raise UserError(f"run {run.name} has no result: finish it in Watch") from error
