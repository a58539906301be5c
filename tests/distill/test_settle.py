"""A recipe's open values are filled in once: the second time nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.config import Recipe
from segskd.distill.planning.phase import Phase
from segskd.distill.planning.settle import changed, default_epochs, filled_in, for_images, for_this_machine, peak_rate
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
    assert (settled.optimisation.epochs, settled.data.views, job.views) == (default_epochs(12), 83, 83)  # of 12 images
    assert (settled.optimisation.lr, settled.optimisation.joint_lr) == (0.01, 0.001)
    assert settled.precision in ("32", "bf16")
    assert settled.threads is not None
    assert settled.teacher == str(teacher_folder)
    assert prepare(settled, tmp_path / "run").recipe == settled


def test_every_method_begins_with_the_teachers_weights_if_there_is_a_teacher(recipe: Callable[..., Any]) -> None:
    assert for_images(recipe(), 12).init == "teacher"
    assert for_images(recipe(method="supervised"), 12).init == "teacher"
    assert for_images(recipe(method="supervised").model_copy(update={"teacher": None}), 12).init == "random"
    assert for_images(recipe(weights="imagenet"), 12).init == "random"
    assert for_images(recipe(weights="imagenet", init="teacher"), 12).init == "teacher"


@pytest.mark.parametrize(
    ("rates", "stage", "network"),
    [
        ({}, 0.01, 0.001),
        ({"lr": 0.003}, 0.003, 0.003),  # as recipes of earlier versions have it
        ({"joint_lr": 0.002}, 0.01, 0.002),
        ({"lr": 0.02, "joint_lr": 0.002}, 0.02, 0.002),
    ],
)
def test_a_stage_and_a_whole_network_have_rates_of_their_own(
    open_recipe: Recipe, rates: dict[str, float], stage: float, network: float
) -> None:
    made = for_images(changed(open_recipe, {"optimisation": rates}), 12)
    assert peak_rate(made, Phase("encoder.0", ("encoder.0",), 1, alone=True)) == stage
    assert peak_rate(made, Phase("all", ("encoder.0", "head"), 1)) == network


def test_the_threads_are_divided_between_the_devices(recipe: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    asking = recipe(devices=2).model_copy(update={"threads": None})
    assert for_this_machine(asking).threads == 4


def test_an_open_value_is_an_error(open_recipe: Recipe) -> None:
    with pytest.raises(AssertionError, match="not been settled"):
        filled_in(open_recipe.optimisation.epochs)
    assert filled_in(changed(open_recipe, {"optimisation": {"epochs": 3}}).optimisation.epochs) == 3
