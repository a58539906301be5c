"""The demo: trains a teacher and a student on the built-in scenes, offline, in about two minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from segskd.config import Recipe, make_recipe
from segskd.data.dataset import list_pairs
from segskd.distill.running.session import Listener, resume, start
from segskd.evaluate.comparison import compare
from segskd.evaluate.source import find_source
from segskd.runs import Run

SIZE = "96x128"
# Enough for good masks. More epochs would improve both networks a little and take minutes longer.
TEACHER_EPOCHS = 3
STUDENT_EPOCHS = 25
FRACTION = 0.1
TEACHER, STUDENT = "demo-teacher", "demo-student"
Listeners = Callable[[Path], AbstractContextManager[Sequence[Listener]]]


def demo_recipes(data: Path | None, runs: Path) -> list[tuple[str, Recipe]]:
    """The names, below the folder `runs`, and the recipes of the demo's two runs, in the order in which they must run.

    The student's recipe names the teacher's run, which exists only after the first recipe has run.
    """
    folder = str(data.expanduser().resolve()) if data else None
    teacher = str((runs / TEACHER).expanduser().resolve())
    return [(TEACHER, _teacher_recipe(folder)), (STUDENT, _student_recipe(folder, teacher))]


def run_demo(folder: Path, data: Path | None, listeners: Listeners) -> dict[str, Any]:
    """Trains a ResNet-34 U-Net, distills a ResNet-10 U-Net from a tenth of the images, and compares them.

    `data` is the folder where datasets lie. Runs that an earlier demo has finished in `folder` are used again, and one
    that was stopped is resumed. Returns the student's result, with the path of the side-by-side picture as "picture".
    """
    results = [_run_recipe(recipe, folder / name, listeners) for name, recipe in demo_recipes(data, folder)]
    out = folder / "demo-comparison"
    ours = find_source(str(folder / STUDENT), None, None, str(data) if data else None)
    theirs = ours.with_model(str(folder / TEACHER))
    compare(theirs.predictor(), ours.predictor(), list_pairs(ours.card, ours.data, "val"), out)
    return {**results[-1], "picture": str(out / "gallery.png")}


def _run_recipe(recipe: Recipe, place: Path, listeners: Listeners) -> dict[str, Any]:
    with listeners(place) as listening:
        if (place / "recipe.yaml").exists():
            return resume(Run.open(place), listening)
        return start(recipe, place, listening)


def _teacher_recipe(data: str | None) -> Recipe:
    return make_recipe(
        {
            "kind": "teach",
            "data": {"card": "scenes", "folder": data, "size": SIZE, "views": 4},
            "student": "unet:resnet34",
            "method": "supervised",
            "optimisation": {"epochs": TEACHER_EPOCHS, "lr": 2e-3},
        }
    )


def _student_recipe(data: str | None, teacher: str) -> Recipe:
    return make_recipe(
        {
            "data": {"card": "scenes", "folder": data, "size": SIZE},
            "subset": {"fraction": FRACTION},
            "teacher": teacher,
            "student": "unet:resnet10",
            "optimisation": {"epochs": STUDENT_EPOCHS},
        }
    )
