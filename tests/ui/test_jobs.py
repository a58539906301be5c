"""Workers and their queue, with real processes on a small run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from segskd.config import make_recipe
from segskd.errors import UserError
from segskd.events import PhaseStartEvent, StoppedEvent
from segskd.runs import Run
from segskd.supervisor import NICENESS
from ui.jobs import QUEUE, WORKER, Jobs

pytestmark = pytest.mark.slow

PATIENCE = 90.0


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture
def jobs(tmp_path: Path, data: Path) -> Iterator[Jobs]:
    made = Jobs(tmp_path / "runs", data)
    made.start()
    yield made
    made.close()
    for name in made.busy():
        worker = made.worker(name)
        if worker and (process := worker.process()):
            process.kill()


@pytest.fixture
def idle(tmp_path: Path, data: Path) -> Jobs:
    """Jobs that start nothing."""
    (tmp_path / "runs").mkdir(exist_ok=True)
    return Jobs(tmp_path / "runs", data)


@pytest.mark.slow
def test_two_runs_are_worked_off_one_after_the_other(jobs: Jobs, recipe: Callable[..., Any]) -> None:
    for name in ("first", "second"):
        jobs.submit(recipe(optimisation={"epochs": 1}), name)
    assert jobs.waiting()[-1] == "second"
    wait_until(lambda: jobs.state("first") == "running", "the first run")
    process = jobs.worker("first").process()  # type: ignore[union-attr]
    assert process is not None
    assert process.nice() == max(NICENESS, psutil.Process().nice()) > 0
    assert os.getsid(process.pid) == process.pid  # detached: outlives the server
    assert process.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert process.environ()["GOMP_SPINCOUNT"] == "10000"
    assert jobs.state("second") == "waiting"
    assert jobs.busy() == ["first"]
    assert (jobs.memory("first") or 0) > 50 * 2**20
    wait_until(lambda: jobs.state("second") == "finished", "the second run")
    assert jobs.state("first") == "finished"
    ends = [Run(jobs.runs / name).events()[-1].time for name in ("first", "second")]
    starts = [Run(jobs.runs / name).events()[0].time for name in ("first", "second")]
    assert starts[1] > ends[0]
    assert "Traceback" not in (jobs.runs / "second" / "log.txt").read_text()


def test_a_queue_outlives_its_server(jobs: Jobs, idle: Jobs, recipe: Callable[..., Any]) -> None:
    jobs.close()
    idle.submit(recipe(), "later")
    again = Jobs(idle.runs, idle.runs)
    assert again.waiting() == ["later"]
    assert again.state("later") == "waiting"


@pytest.mark.slow
def test_a_run_that_works_is_stopped_and_resumed(jobs: Jobs, recipe: Callable[..., Any]) -> None:
    jobs.submit(recipe(optimisation={"epochs": 400}), "long")
    wait_until(lambda: any(e.kind == "epoch" for e in Run(jobs.runs / "long").events()), "an epoch")
    with pytest.raises(UserError, match="run long is running"):
        jobs.resume("long")
    jobs.stop("long")
    wait_until(lambda: jobs.state("long") == "interrupted", "the stop")
    before = len(Run(jobs.runs / "long").events())
    jobs.resume("long")
    wait_until(lambda: any(e.kind == "resumed" for e in Run(jobs.runs / "long").events()[before:]), "the resume")
    jobs.stop("long", after_epoch=True)
    wait_until(lambda: jobs.state("long") == "interrupted", "the stop after the epoch")
    assert [e.kind for e in Run(jobs.runs / "long").events()[-2:]] == ["epoch", "stopped"]


def test_a_worker_that_goes_is_none_that_starts(idle: Jobs, recipe: Callable[..., Any]) -> None:
    """Its process outlives its last word by a moment, in which a stopped run can be resumed already."""
    run = Run.create(idle.runs / "going", recipe())
    born = psutil.Process().create_time()
    run.write(WORKER, json.dumps({"pid": os.getpid(), "born": born}).encode())
    assert idle.state("going") == "starting"
    with pytest.raises(UserError, match="is running"):
        idle.resume("going")
    run.record(PhaseStartEvent(phase="encoder.0", number=1, phases=1, epochs=1, steps=9, steps_before=0))
    assert idle.state("going") == "starting"
    run.record(StoppedEvent(phase="encoder.0"))
    assert idle.state("going") == "interrupted"
    assert idle.busy() == ["going"]
    idle.resume("going")
    assert idle.waiting() == ["going"]


@pytest.mark.slow
def test_a_student_waits_for_its_teacher(jobs: Jobs, recipe: Callable[..., Any]) -> None:
    """A teacher that was stopped keeps its student waiting, and nobody else."""
    plain = recipe(optimisation={"epochs": 1}).model_dump(mode="json")
    Run.create(jobs.runs / "big", make_recipe(plain | {"kind": "teach", "method": "supervised", "teacher": None}))
    jobs.submit(recipe(teacher=str(jobs.runs / "big"), optimisation={"epochs": 1}), "small")
    jobs.submit(recipe(optimisation={"epochs": 1}), "other")
    assert jobs.unfinished_teacher("small") == "big"
    wait_until(lambda: jobs.state("other") == "finished", "the run behind it")
    assert jobs.waiting() == ["small"]
    jobs.resume("big")
    wait_until(lambda: jobs.state("small") == "finished", "the student")
    assert jobs.unfinished_teacher("small") is None
    assert Run(jobs.runs / "small").events()[0].time > Run(jobs.runs / "big").events()[-1].time


def test_what_waits_is_taken_out(idle: Jobs, recipe: Callable[..., Any]) -> None:
    idle.submit(recipe(), "a")
    idle.submit(recipe(), "b")
    idle.stop("a")
    assert idle.waiting() == ["b"]
    assert idle.state("a") == "new"
    with pytest.raises(UserError, match="run a is not running"):
        idle.stop("a")
    idle.resume("a")
    idle.resume("a")
    assert idle.waiting() == ["b", "a"]


def test_of_two_who_take_one_name_one_gets_it(idle: Jobs, recipe: Callable[..., Any]) -> None:
    idle.submit(recipe(), "mine")
    with pytest.raises(UserError, match=r"run .*mine exists"):
        idle.submit(recipe(), "mine")
    assert idle.waiting() == ["mine"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "<img src=x>", ".x", "x" * 101])
def test_names_that_cannot_be_are_refused(idle: Jobs, recipe: Callable[..., Any], name: str) -> None:
    with pytest.raises(UserError, match="a run's name has letters"):
        idle.submit(recipe(), name)
    assert list(idle.runs.glob("*")) == []


def test_a_finished_run_is_not_queued(idle: Jobs, recipe: Callable[..., Any]) -> None:
    run = Run.create(idle.runs / "done", recipe())
    run.write_json("result.json", {})
    with pytest.raises(UserError, match="run done is finished"):
        idle.resume("done")


def test_a_worker_of_another_birth_is_not_ours(idle: Jobs, recipe: Callable[..., Any]) -> None:
    """After a restart of the machine the same number may belong to somebody else's process."""
    run = Run.create(idle.runs / "old", recipe())
    run.write(WORKER, json.dumps({"pid": os.getpid(), "born": psutil.Process().create_time() - 100}).encode())
    assert idle.state("old") == "new"
    assert idle.memory("old") is None
    run.write(WORKER, json.dumps({"pid": os.getpid(), "born": psutil.Process().create_time()}).encode())
    assert idle.state("old") == "starting"


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', "[1, 2]", '["../x"]'])
def test_a_queue_or_worker_file_that_is_damaged_is_none(idle: Jobs, recipe: Callable[..., Any], content: str) -> None:
    run = Run.create(idle.runs / "x", recipe())
    run.write(WORKER, content.encode())
    (idle.runs / QUEUE).write_text(content)
    assert idle.waiting() == []
    assert idle.state("x") == "new"


def test_a_run_whose_files_are_gone_is_damaged(idle: Jobs) -> None:
    (idle.runs / "empty").mkdir()
    assert idle.state("empty") == "damaged"
