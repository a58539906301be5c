"""Half the batch after memory ran out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.distill.running.session import halve_batch, resume, start
from segskd.errors import Stopped, UserError
from segskd.events import Event
from segskd.runs import Run

pytestmark = pytest.mark.slow


def test_the_phase_begins_anew_with_half_the_batch(recipe: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop_in_the_second_phase(event: Event) -> None:
        if event.kind == "step" and event.phase == "encoder.1" and event.step == 4:
            Run(folder).request_stop()

    with pytest.raises(Stopped):
        start(recipe(optimisation={"epochs": 2, "batch": 4}), folder, [stop_in_the_second_phase])
    run = Run.open(folder)
    assert halve_batch(run) == 2
    assert run.recipe.optimisation.batch == 2
    resume(run, until="encoder.1")
    steps = [e for e in run.events() if e.kind == "phase_start" and e.phase == "encoder.1"]
    assert [step.steps for step in steps] == [6, 12]  # 12 images: 3 and 6 steps an epoch, two epochs
    assert [e.phase for e in run.events() if e.kind == "phase_end"] == ["encoder.0", "encoder.1"]
    losses = [e.epoch for e in run.events() if e.kind == "epoch" and e.phase == "encoder.1"]
    assert losses == [1, 1, 2]


def test_a_batch_above_the_number_of_images_is_halved_from_that(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(optimisation={"batch": 64}))
    run.write("subset.txt", b"a\nb\nc\nd\ne\nf\n")
    assert halve_batch(run) == 3


def test_images_held_out_are_in_no_batch(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(optimisation={"batch": 8}, select="best"))
    run.write("subset.txt", b"a\nb\n# held out for choosing\nc\n")
    assert halve_batch(run) == 1


def test_a_batch_of_one_cannot_be_halved(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(optimisation={"batch": 1}))
    with pytest.raises(UserError, match="a batch is one image already"):
        halve_batch(run)


def test_a_running_run_is_left_alone(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe())
    with run.working(), pytest.raises(UserError, match="run run is running: stop it first"):
        halve_batch(run)


def test_no_worker_begins_in_the_middle(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", recipe())
    alive: list[bool] = []
    written = Run.write_recipe
    monkeypatch.setattr(Run, "write_recipe", lambda own, made: (alive.append(own.is_alive()), written(own, made)))
    assert halve_batch(run) == 2
    assert alive == [True]
    assert not run.is_alive()
