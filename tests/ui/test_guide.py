"""The demo's guide: what it queues, what it says of each step, and what the machine is."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from segskd.errors import UserError
from segskd.runs import Run
from ui.context import Context
from ui.state import guide as module
from ui.state import machine as machines
from ui.state.follow import Followers
from ui.state.guide import Guide

Make = Callable[..., Run]
TEACHER, STUDENT = "demo-teacher", "demo-student"


@pytest.fixture
def guide(context: Context) -> Guide:
    return Guide(context.jobs, context.data, Followers(context).get)


def steps(guide: Guide) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = guide.as_dict()["steps"]
    return found


def states(guide: Guide) -> list[str]:
    return [step["state"] for step in steps(guide)]


def test_before_the_demo_all_is_to_come(guide: Guide) -> None:
    state = guide.as_dict()
    assert (state["begun"], state["busy"], state["finished"]) == (False, False, False)
    assert states(guide) == ["to come"] * 4
    assert [(step["run"], step["tab"]) for step in steps(guide)] == [
        (TEACHER, "watch"),
        (STUDENT, "watch"),
        (STUDENT, "compare"),
        (STUDENT, "export"),
    ]
    assert not guide.finished


def test_it_queues_the_teacher_then_the_student(guide: Guide, context: Context) -> None:
    assert guide.start() == ""  # whatever trains: the teacher, then the student
    assert context.jobs.waiting() == [TEACHER, STUDENT]
    assert context.run(STUDENT).recipe.teacher == str(context.runs / TEACHER)
    assert context.run(TEACHER).recipe.data.folder == str(context.data)
    assert states(guide) == ["waiting", "waiting", "to come", "to come"]
    assert guide.as_dict()["busy"]
    assert guide.start() == ""  # a second click changes nothing
    assert context.jobs.waiting() == [TEACHER, STUDENT]


def test_two_pages_that_ask_at_once_get_one_demo(context: Context) -> None:
    guide = Guide(context.jobs, context.data, Followers(context).get)
    answers: list[object] = []
    together = threading.Barrier(2)

    def ask() -> None:
        together.wait()
        try:
            answers.append(guide.start())
        except UserError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["", ""]
    assert context.jobs.waiting() == [TEACHER, STUDENT]


def test_what_stopped_goes_on(guide: Guide, context: Context, finish: Make, begin: Make) -> None:
    guide.start()
    for name in (TEACHER, STUDENT):
        context.jobs.stop(name)
    finish(context.run(TEACHER))
    begin(context.run(STUDENT), kind="error", message="no space", error="UserError")
    assert states(guide) == ["finished", "failed", "to come", "to come"]
    assert steps(guide)[1]["doing"] == "no space"
    assert steps(guide)[1]["done"] == pytest.approx(0.125)
    assert guide.start() == STUDENT
    assert context.jobs.waiting() == [STUDENT]
    assert states(guide)[1] == "waiting"
    assert steps(guide)[1]["doing"] == ""  # what failed before is over


def test_a_step_says_what_its_run_does(guide: Guide, context: Context, begin: Make) -> None:
    guide.start()
    context.jobs.stop(TEACHER)
    with context.run(TEACHER).working():
        begin(context.run(TEACHER))
        step = steps(guide)[0]
    assert step["state"] == "running"
    assert step["doing"] == "training encoder.0, epoch 1 of 4"
    assert step["done"] == pytest.approx(0.125)
    assert step["seconds_left"] is None or step["seconds_left"] > 0


def test_a_finished_demo_is_not_repeated(
    guide: Guide, context: Context, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide.start()
    for name in (TEACHER, STUDENT):
        context.jobs.stop(name)
        finish(context.run(name))
    assert guide.start() == STUDENT
    assert context.jobs.waiting() == []
    assert guide.finished
    assert states(guide) == ["finished", "finished", "ready", "ready"]
    monkeypatch.setattr(module, "has_export", lambda run: run.name == STUDENT)
    assert states(guide)[3] == "finished"


def test_a_folder_of_somebody_elses_is_left_alone(guide: Guide, context: Context) -> None:
    (context.runs / TEACHER).mkdir()
    (context.runs / TEACHER / "model.safetensors").write_text("mine")
    with pytest.raises(UserError, match=r"is no run and holds model\.safetensors"):
        guide.start()
    assert (context.runs / TEACHER / "model.safetensors").read_text() == "mine"


def test_a_run_that_goes_while_it_is_looked_at(context: Context) -> None:
    def gone(name: str) -> Any:
        shutil.rmtree(context.runs / name)
        raise UserError("no run")

    guide = Guide(context.jobs, context.data, gone)
    guide.start()
    assert [step["done"] for step in steps(guide)] == [0.0] * 4
    assert states(guide) == ["to come"] * 4


# -- the machine ------------------------------------------------------------------------------------


class Disk(NamedTuple):
    free: int


def test_the_machine_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(machines, "choose_device", lambda _: "cpu")
    monkeypatch.setattr(machines, "free_memory", lambda: 3 * 2**30)

    def usage(place: Path) -> Disk:
        asked.append(place)
        return Disk(5 * 2**30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    found = machines.machine(tmp_path / "not" / "there" / "yet")
    assert asked == [tmp_path]  # the disk that the folder will be on
    assert (found["memory"], found["disk"], found["device_memory"], found["gpu"]) == (3.0, 5.0, None, False)
    assert found["device"] == f"processor, {psutil.cpu_count()} cores"


def test_a_gpu_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "choose_device", lambda _: "cuda")
    monkeypatch.setattr(machines, "choose_precision", lambda *_: "bf16")
    monkeypatch.setattr(machines, "free_device_memory", lambda device: 7 * 2**30 if device.type == "cuda" else 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Big One")
    found = machines.machine(tmp_path)
    assert (found["device"], found["gpu"], found["device_memory"], found["precision"]) == ("Big One", True, 7.0, "bf16")
