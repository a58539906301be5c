"""A recipe's open values are filled in once: the second time nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.config import Recipe
from segskd.distill.planning.settle import changed, default_epochs, filled_in, for_images, for_this_machine
from segskd.distill.running.prepare import prepare


@pytest.fixture
def open_recipe(recipe: Callable[..., Any]) -> Recipe:
    """A recipe that leaves open whatever it can."""
    made: Recipe = recipe()
    part = made.optimisation.model_copy(update={"epochs": None, "lr": None})
    data = made.data.model_copy(update={"views": None})
    return made.model_copy(update={"optimisation": part, "data": data, "threads": None, "precision": "auto"})


def test_a_job_has_no_value_left_open(open_recipe: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    job = prepare(open_recipe, tmp_path / "run")
    settled = job.recipe
    assert (settled.optimisation.epochs, settled.optimisation.lr, settled.data.views) == (default_epochs(12), 0.01, 4)
    assert (job.lr, job.views) == (0.01, 4)
    assert settled.precision in ("32", "bf16")
    assert settled.threads is not None
    assert settled.teacher == str(teacher_folder)
    assert prepare(settled, tmp_path / "run").recipe == settled


def test_a_student_without_a_teacher_begins_with_random_weights(recipe: Callable[..., Any]) -> None:
    assert for_images(recipe(), 12).init == "teacher"
    assert for_images(recipe(method="supervised"), 12).init == "random"


def test_the_threads_are_divided_between_the_devices(recipe: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    asking = recipe(devices=2).model_copy(update={"threads": None})
    assert for_this_machine(asking).threads == 4


def test_an_open_value_is_an_error(open_recipe: Recipe) -> None:
    with pytest.raises(AssertionError, match="not been settled"):
        filled_in(open_recipe.optimisation.epochs)
    assert filled_in(changed(open_recipe, {"optimisation": {"epochs": 3}}).optimisation.epochs) == 3
