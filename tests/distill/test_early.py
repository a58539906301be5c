"""Stages that end before their epochs are over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.config import Recipe
from segskd.distill.running.flops import training_flops
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import start
from segskd.distill.training.trainer import has_stalled
from segskd.errors import UserError
from segskd.events import Event
from segskd.models.build import load
from segskd.models.cut import cut
from segskd.runs import Run

pytestmark = pytest.mark.slow


def impatient(recipe: Callable[..., Recipe], patience: int | None, **changes: Any) -> Recipe:
    made = recipe(**changes)
    return made.model_copy(update={"optimisation": made.optimisation.model_copy(update={"patience": patience})})


@pytest.mark.parametrize(
    ("losses", "stalled"),
    [
        ([4.0, 2.0, 4.0], False),  # two views and a patience of two take four epochs
        ([4.0, 2.0, 4.0, 2.0], True),  # a mean of 3 before and after
        ([4.0, 2.0, 3.96, 1.98], False),  # by 1 %
        ([4.0, 2.0, 3.98, 1.98], True),  # from 3 to 2.98
        ([9.0, 9.0, 4.0, 2.0, 3.0, 3.0], True),  # what lies further back says nothing
    ],
)
def test_a_loss_that_falls_by_less_than_a_hundredth_has_stalled(losses: list[float], stalled: bool) -> None:
    assert has_stalled(losses, patience=2, views=2) == stalled


def test_a_stage_that_equals_the_teachers_is_left_as_it_is(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """The student's stem begins with the teacher's weights, and batch normalisation would but disturb it."""
    made = impatient(recipe, None)
    result = start(made, tmp_path / "run")
    assert [phase["epochs"] for phase in result["phases"]] == [0, *[2] * 10]
    assert result["phases"][0]["loss"] == pytest.approx(0, abs=1e-9)
    job = prepare(made, tmp_path / "other")
    assert job.teacher is not None
    ours = cut(load(tmp_path / "run" / "student")).stages["encoder.0"].state_dict()
    theirs = job.teacher.stages["encoder.0"].state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
    images = len(job.subset.train)
    assert result["image_passes"] == 10 * 2 * images
    assert result["training_flops"] == training_flops(job, [0, *[2] * 10]) < training_flops(job)
    events = [event.phase for event in Run.open(tmp_path / "run").events() if event.kind == "epoch"]
    assert events[:2] == ["encoder.1", "encoder.1"]


def test_features_in_8_bits_are_equal_but_for_their_rounding(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    start(impatient(recipe, None, store={"bits": 8}), tmp_path / "run", until="encoder.1")
    events = [event.phase for event in Run.open(tmp_path / "run").events() if event.kind == "epoch"]
    assert events == ["encoder.1", "encoder.1"]


def test_other_stages_are_trained(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    start(impatient(recipe, None, init="random"), tmp_path / "run", until="encoder.0")
    (end,) = [event for event in Run.open(tmp_path / "run").events() if event.kind == "phase_end"]
    assert end.epochs == 2


def test_a_stage_whose_loss_stands_still_goes_on_to_its_last_quarter(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """At a rate of next to nothing the loss stays: four epochs while the rate goes up, then 10, 11 and 12."""
    still = {"data": {"views": 1}, "init": "random", "optimisation": {"epochs": 12, "lr": 1e-12}}
    events: list[Event] = []
    start(impatient(recipe, 2, **still), tmp_path / "run", [events.append], until="encoder.1")
    told = {name: [e for e in events if e.kind == name and e.phase == "encoder.1"] for name in ("epoch", "step")}
    assert [event.epoch for event in told["epoch"]] == [1, 2, 3, 4, 10, 11, 12]
    assert told["step"][-1].lr < 0.01 * max(event.lr for event in told["step"])
    assert [event.epochs for event in events if event.kind == "phase_end"] == [7, 7]


def test_labels_are_learnt_from_for_all_epochs(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    still = {"data": {"views": 1}, "method": "supervised", "optimisation": {"epochs": 1, "lr": 1e-12}}
    result = start(impatient(recipe, 2, **still), tmp_path / "run")
    assert [phase["epochs"] for phase in result["phases"]] == [11]


def test_a_teacher_has_no_patience(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="leave --patience out"):
        recipe(kind="teach", optimisation={"patience": 2}, teacher="")
