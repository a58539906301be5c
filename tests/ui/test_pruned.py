"""Pruned students on the Export tab: what is shown of them, and how one is begun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from segskd.errors import UserError
from segskd.runs import Run
from ui.context import Context
from ui.state.catalogue import Catalogue, Row
from ui.state.pruned import begin_pruned, pruned_students

Make = Callable[..., Run]


@pytest.fixture
def base(make_run: Make, finish: Make) -> Run:
    return finish(make_run("big", optimisation={"epochs": 10}))


def rows(context: Context) -> dict[str, Row]:
    return {row.name: row for row in Catalogue(context.jobs).rows()}


def test_a_run_is_queued_once_and_shown(context: Context, base: Run) -> None:
    assert begin_pruned(context.jobs, base, 0.3) == "big-pruned-30pc"
    assert begin_pruned(context.jobs, base, 0.3) == "big-pruned-30pc"
    assert begin_pruned(context.jobs, base, 0.5) == "big-pruned-50pc"
    assert context.jobs.waiting() == ["big-pruned-30pc", "big-pruned-50pc"]
    recipe = Run(context.runs / "big-pruned-30pc").recipe
    assert recipe.prune is not None
    assert (recipe.prune.ratio, recipe.optimisation.epochs) == (0.3, 5)
    found = rows(context)
    row = found["big-pruned-50pc"]
    assert (row.student, row.pruned_from, row.pruned) == ("unet:resnet10 pruned by 50 %", "big", 0.5)
    shown = pruned_students(found["big"], list(found.values()))
    assert shown is not None
    assert json.loads(json.dumps(shown))["seconds"] == [90.5 / 2, 90.5]
    assert [(one["name"], one["pruned"], one["state"]) for one in shown["runs"]] == [
        ("big-pruned-30pc", 0.3, "waiting"),
        ("big-pruned-50pc", 0.5, "waiting"),
    ]


def test_one_that_was_stopped_goes_on_and_one_that_is_finished_stays(context: Context, base: Run, finish: Make) -> None:
    begin_pruned(context.jobs, base, 0.3)
    context.jobs.stop("big-pruned-30pc")
    assert context.jobs.waiting() == []
    assert begin_pruned(context.jobs, base, 0.3) == "big-pruned-30pc"
    assert context.jobs.waiting() == ["big-pruned-30pc"]
    context.jobs.stop("big-pruned-30pc")
    finish(Run(context.runs / "big-pruned-30pc"), miou=0.25, percent_of_teacher=40.0)
    with pytest.raises(UserError, match="big-pruned-30pc is finished"):
        begin_pruned(context.jobs, base, 0.3)
    assert begin_pruned(context.jobs, base, 0.3, whole=True) == "big-pruned-30pc-2"
    assert Run(context.runs / "big-pruned-30pc-2").recipe.optimisation.epochs == 10
    context.jobs.stop("big-pruned-30pc-2")
    shutil.rmtree(context.runs / "big-pruned-30pc-2")
    found = rows(context)
    shown = pruned_students(found["big"], list(found.values()))
    assert shown is not None
    assert [(one["miou"], one["percent_of_teacher"], one["bytes"]) for one in shown["runs"]] == [(0.25, 40.0, 4000)]
    assert pruned_students(found["big-pruned-30pc"], list(found.values())) is None


def test_epochs_that_the_number_of_images_chose_are_repeated_too(
    context: Context, make_run: Make, finish: Make
) -> None:
    """A run of the page's form names no epochs: 100 images have 40 a stage at least, of 3,000 passes 30."""
    run = finish(make_run("free"))
    run.write("subset.txt", "\n".join(f"b{number}" for number in range(100)).encode())
    for whole, epochs in ((True, 40), (False, 20)):
        name = begin_pruned(context.jobs, run, 0.3, whole)
        assert Run(context.runs / name).recipe.optimisation.epochs == epochs
    assert len(context.jobs.waiting()) == 2


@pytest.mark.parametrize("ratio", [None, 0, 1, 0.35, "0.3", [0.3], True, float("nan")])
def test_shares_that_are_not_offered(context: Context, base: Run, ratio: object) -> None:
    with pytest.raises(UserError, match="not one of the shares"):
        begin_pruned(context.jobs, base, ratio)
    assert context.jobs.waiting() == []


def test_where_there_is_nothing_to_prune(context: Context, make_run: Make, make_teacher: Make, finish: Make) -> None:
    make_run("new")
    finish(make_run("alone", teacher=None, method="supervised"))
    finish(make_teacher("teacher"))
    found = rows(context)
    assert [pruned_students(found[name], []) for name in ("new", "alone", "teacher")] == [None, None, None]
    with pytest.raises(UserError, match="new is new"):
        begin_pruned(context.jobs, Run(context.runs / "new"), 0.3)
