"""The demo: trains a teacher and a student on the built-in scenes, offline, in about two minutes on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segskd.config import Recipe, make_recipe
from segskd.data.dataset import list_pairs
from segskd.distill.running.session import Listener, resume, start
from segskd.evaluate.comparison import compare
from segskd.evaluate.source import find_source
from segskd.runs import Run


@dataclass(frozen=True)
class Extent:
    """How much a demo trains."""

    name: str
    """What the names of its runs begin with."""
    size: str
    teacher_views: int
    student_views: int | None
    """None for the default, which goes by the room for the store."""
    teacher_fraction: float
    student_fraction: float
    teacher_epochs: int
    student_epochs: int


# Enough for good masks. More epochs would improve both networks a little and take minutes longer.
WHOLE = Extent("demo", "96x128", 4, None, 1.0, 0.1, 3, 25)
# Enough to see that everything works.
QUICK = Extent("quick-demo", "32x64", 1, 1, 0.02, 0.02, 1, 1)
Listeners = Callable[[Path], AbstractContextManager[Sequence[Listener]]]


def demo_recipes(data: Path | None, runs: Path, extent: Extent = WHOLE) -> list[tuple[str, Recipe]]:
    """The names, below the folder `runs`, and the recipes of the demo's two runs, in the order in which they must run.

    The student's recipe names the teacher's run, which exists only after the first recipe has run.
    """
    folder = str(data.expanduser().resolve()) if data else None
    teacher, student = f"{extent.name}-teacher", f"{extent.name}-student"
    place = str((runs / teacher).expanduser().resolve())
    return [(teacher, _teacher_recipe(folder, extent)), (student, _student_recipe(folder, place, extent))]


def run_demo(folder: Path, data: Path | None, listeners: Listeners, extent: Extent = WHOLE) -> dict[str, Any]:
    """Trains a ResNet-34 U-Net, distills a ResNet-10 U-Net from some of the images, and compares them.

    `data` is the folder where datasets lie. Runs that an earlier demo has finished in `folder` are used again, and one
    that was stopped is resumed. Returns the student's result, with the path of the side-by-side picture as "picture".
    """
    recipes = demo_recipes(data, folder, extent)
    results = [_run_recipe(recipe, folder / name, listeners) for name, recipe in recipes]
    teacher, student = (str(folder / name) for name, _ in recipes)
    out = folder / f"{extent.name}-comparison"
    ours = find_source(student, None, None, str(data) if data else None)
    theirs = ours.with_model(teacher)
    compare(theirs.predictor(), ours.predictor(), list_pairs(ours.card, ours.data, "val"), out)
    return {**results[-1], "picture": str(out / "gallery.png")}


def _run_recipe(recipe: Recipe, place: Path, listeners: Listeners) -> dict[str, Any]:
    with listeners(place) as listening:
        if (place / "recipe.yaml").exists():
            return resume(Run.open(place), listening)
        return start(recipe, place, listening)


def _teacher_recipe(data: str | None, extent: Extent) -> Recipe:
    return make_recipe(
        {
            "kind": "teach",
            "data": {"card": "scenes", "folder": data, "size": extent.size, "views": extent.teacher_views},
            "subset": {"fraction": extent.teacher_fraction} if extent.teacher_fraction < 1 else {},
            "student": "unet:resnet34",
            "method": "supervised",
            "optimisation": {"epochs": extent.teacher_epochs, "lr": 2e-3},
        }
    )


def _student_recipe(data: str | None, teacher: str, extent: Extent) -> Recipe:
    return make_recipe(
        {
            "data": {"card": "scenes", "folder": data, "size": extent.size, "views": extent.student_views},
            "subset": {"fraction": extent.student_fraction},
            "teacher": teacher,
            "trust_teacher": extent is QUICK,  # its teacher is no better than guessing
            "student": "unet:resnet10",
            "optimisation": {"epochs": extent.student_epochs},
        }
    )
