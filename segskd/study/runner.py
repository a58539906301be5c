"""Runs the cells of a study, one after another or several at once. Finished cells are skipped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from segskd.callbacks import OnActivity
from segskd.data.cards import data_folder, load_card
from segskd.data.dataset import list_pairs
from segskd.data.fetch import fetch
from segskd.data.subset import subset_size
from segskd.devices import visible_gpus
from segskd.distill.planning.methods import METHODS
from segskd.distill.running.flops import epochs_within
from segskd.errors import Stopped, UserError, plural
from segskd.models.build import create, model_folder, parse_spec
from segskd.models.cut import cut
from segskd.study.curve import write_curve
from segskd.study.figures import Durations, Facts
from segskd.study.folder import StudyFolder
from segskd.study.grid import Cell, Study
from segskd.study.process import AdoptedCell, CellProcess
from segskd.study.reader import read_study
from segskd.study.table import write_tables

TICK_SECONDS = 0.1
GRACE_SECONDS = 60.0
"""How long a cell that was asked to stop may take before it is killed. It can be resumed from its last saved state."""
Tell = Callable[[str], None]


def carry_out(
    study: Study, folder: Path, tell: Tell, jobs: int = 1, report: OnActivity | None = None
) -> dict[str, Any]:
    """Runs all cells that are not finished, `jobs` at once, and returns what `read_study` returns.

    `tell` is called with a line when a cell begins or ends, `report` while the built-in dataset is drawn. Table and
    curve are written after each cell. The failure of a cell is noted, and the other cells are run.
    Raises UserError before anything is written when the study can't be run. Raises Stopped when the study was asked to
    stop, after its cells have saved their states, or when one of its cells was stopped.
    """
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one cell must run at a time")
    images = _check(study, report)
    place = StudyFolder.begin(folder, study)
    with place.working(study), place.desk.listening_to_signals():
        _Runner(place, study, images, tell, jobs).work()
    read = read_study(folder)
    if left := read["total"] - read["done"] - read["failed"]:
        raise Stopped(f"stopped with {left} of {read['total']} cells left; the same command continues the study")
    return read


class _Runner:
    """Starts cells, notices when they end, and updates the study's files."""

    def __init__(self, place: StudyFolder, study: Study, images: int, tell: Tell, jobs: int) -> None:
        self._place, self._study, self._jobs, self._say = place, study, jobs, tell
        self._threads = max(1, torch.get_num_threads() // jobs) if jobs > 1 else None
        self._cells = study.cells()
        self._progress = place.progress()
        self._progress.images, self._progress.working = images, []
        self._waiting = [cell for cell in self._cells if not self._has_result(cell)]
        self._working: dict[Cell, CellProcess | AdoptedCell] = {}
        shared = study.recipe_of(self._cells[0], 1)
        pinned = jobs > 1 and shared.device in ("auto", "cuda") and shared.devices == 1
        self._gpus = visible_gpus() if pinned else []
        self._on_gpu: dict[Cell, str] = {}
        self._durations = Durations()

    def work(self) -> None:
        """Runs cells until none is left, or until the study is asked to stop."""
        done = len(self._cells) - len(self._waiting)
        self._say(f"{self._study.name}: {len(self._cells)} cells" + (f", {done} of them finished" if done else ""))
        self._write()
        try:
            while (self._waiting or self._working) and not self._place.desk.stop_requested():
                while self._waiting and len(self._working) < self._jobs:
                    self._start(self._waiting.pop(0))
                self._look()
                time.sleep(TICK_SECONDS)
        finally:
            self._stop()

    def _start(self, cell: Cell) -> None:
        run = self._place.run(cell)
        images = subset_size(self._progress.images, cell.fraction, None)
        if run.is_alive():
            self._working[cell] = AdoptedCell(run)
            self._tell(cell, "another process runs it already; waiting for its end")
        else:
            if self._place.drop_damaged(cell):
                self._tell(cell, "its result is damaged; it is run again")
            try:
                epochs = self._epochs(cell, images)
            except UserError as error:
                self._fail(cell, str(error))
                return
            begins = "resumes" if (run.path / "recipe.yaml").exists() else "begins"
            self._tell(cell, f"{begins}: {images} images, {plural(epochs, 'epoch')} a stage")
            self._progress.failed.pop(cell.name, None)
            recipe = self._study.recipe_of(cell, epochs, self._threads)
            self._working[cell] = CellProcess(run, recipe, self._threads, self._free_gpu(cell))
        self._write_progress()

    def _free_gpu(self, cell: Cell) -> str | None:
        """The GPU on which the fewest cells run, None if there are fewer than two."""
        if len(self._gpus) < 2:
            return None
        taken = [self._on_gpu[other] for other in self._working if other in self._on_gpu]
        self._on_gpu[cell] = min(self._gpus, key=taken.count)
        return self._on_gpu[cell]

    def _epochs(self, cell: Cell, images: int) -> int:
        """The epochs a stage that the study's budget allows."""
        if self._study.tflops is None:
            return self._study.epochs_a_stage(images)
        run = self._place.run(cell)
        if (run.path / "recipe.yaml").exists() and (begun := run.recipe.optimisation.epochs):
            return begun
        return epochs_within(self._study.recipe_of(cell, 1), run.path, 1e12 * self._study.tflops)

    def _look(self) -> None:
        over = [cell for cell, process in self._working.items() if process.is_over()]
        for cell in over:
            self._end(cell, self._working.pop(cell))
        if over:
            self._write()

    def _end(self, cell: Cell, process: CellProcess | AdoptedCell) -> None:
        if failure := process.failure():
            self._fail(cell, failure)
        elif figures := self._place.figures(cell):
            self._durations.add(cell.method, time.monotonic() - process.started)
            self._tell(cell, f"{_in_words(figures)}{self._left()}")
        elif isinstance(process, AdoptedCell) and not self._place.desk.stop_requested():
            self._waiting.insert(0, cell)
        else:
            self._tell(cell, "was stopped")

    def _fail(self, cell: Cell, why: str) -> None:
        self._progress.failed[cell.name] = why
        self._tell(cell, f"failed: {why}")
        self._write()

    def _stop(self) -> None:
        """Stops all running cells, which save their states."""
        if self._working:
            self._say(f"stopping at the next step: {', '.join(cell.name for cell in self._working)}")
        for process in self._working.values():
            process.stop()
        deadline = time.monotonic() + GRACE_SECONDS
        while self._working:
            if time.monotonic() > deadline:
                for process in self._working.values():
                    process.give_up()
            self._look()
            time.sleep(TICK_SECONDS)

    def _left(self) -> str:
        now = time.monotonic()
        begun = [(cell.method, now - process.started) for cell, process in self._working.items()]
        left = self._durations.left([*begun, *((cell.method, 0.0) for cell in self._waiting)], self._jobs)
        done = sum(self._has_result(cell) for cell in self._cells)
        return f"; {done} of {len(self._cells)} done{', ' + left if left else ''}"

    def _tell(self, cell: Cell, words: str) -> None:
        self._say(f"[{self._cells.index(cell) + 1}/{len(self._cells)}] {cell.name}: {words}")

    def _has_result(self, cell: Cell) -> bool:
        return self._place.figures(cell) is not None

    def _write_progress(self) -> None:
        self._progress.working = [cell.name for cell in self._working]
        self._place.write_progress(self._progress)

    def _write(self) -> None:
        self._write_progress()
        read = read_study(self._place.path)
        write_tables(read, self._place.path)
        write_curve(read, self._place.path)


def _in_words(figures: Facts) -> str:
    share, seconds = figures["percent_of_teacher"], figures["seconds"]
    kept = f", {share:.1f} % of the teacher" if share else ""
    trained = f", {seconds:.0f} s of training" if seconds is not None else ""
    return f"mIoU {figures['miou']:.4f}{kept}{trained}"


def _check(study: Study, report: OnActivity | None) -> int:
    """Checks what would make every cell fail, and returns the number of training images.

    The built-in dataset is drawn if it is missing. Raises UserError when a method, a student, the teacher or the
    dataset can't be used, or a fraction is too small.
    """
    if unknown := [method for method in study.methods if method not in METHODS]:
        raise UserError(f"no method '{unknown[0]}': name one of {', '.join(METHODS)}")
    for student in study.students:
        cut(create(*parse_spec(student), classes=2))
    recipe = study.recipe_of(study.cells()[0], 1)
    if recipe.teacher:
        model_folder(recipe.teacher)
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    if card.generator:
        fetch(card, data, report)
    images = len(list_pairs(card, data, "train"))
    for fraction in study.fractions:
        subset_size(images, fraction, None)
    return images
