"""The demo: a teacher and a student on the built-in scenes, offline, in a few minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from segskd.config import Recipe, make_recipe
from segskd.data.dataset import list_pairs
from segskd.distill.session import Listener, resume, start
from segskd.evaluate.compare import compare
from segskd.evaluate.source import find_source
from segskd.runs import Run

SIZE = "96x128"
TEACHER_EPOCHS = 8
FRACTION = 0.1
Listeners = Callable[[Path], AbstractContextManager[Sequence[Listener]]]


def run_demo(folder: Path, data: str | None, listeners: Listeners) -> dict[str, Any]:
    """Teaches ResNet-34, distills ResNet-10 from a tenth of the images, and compares them.

    Runs that an earlier demo finished in `folder` are used again; one that was stopped is resumed. Returns
    the student's result with the path of the side-by-side picture as "picture".
    """
    teacher, student = folder / "demo-teacher", folder / "demo-student"
    _carry_out(_teacher_recipe(data), teacher, listeners)
    result = _carry_out(_student_recipe(data, teacher), student, listeners)
    out = folder / "demo-comparison"
    ours = find_source(str(student), None, None, data)
    theirs = ours.with_model(str(teacher))
    compare(theirs.predictor(), ours.predictor(), list_pairs(ours.card, ours.data, "val"), out)
    return {**result, "picture": str(out / "gallery.png")}


def _carry_out(recipe: Recipe, place: Path, listeners: Listeners) -> dict[str, Any]:
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


def _student_recipe(data: str | None, teacher: Path) -> Recipe:
    return make_recipe(
        {
            "data": {"card": "scenes", "folder": data, "size": SIZE},
            "subset": {"fraction": FRACTION},
            "teacher": str(teacher),
            "student": "unet:resnet10",
        }
    )
