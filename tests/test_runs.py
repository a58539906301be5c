"""A run's directory: liveness, events, states, and disks that refuse."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.errors import UserError
from segskd.events import (
    DoneEvent,
    ErrorEvent,
    FillingEvent,
    PausedEvent,
    PhaseStartEvent,
    ResumedEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
    WarningEvent,
    WrittenEvent,
)
from segskd.runs import Run, find_run, free_name, list_runs

START = StartEvent(phases=(), images=40, batch=4)
PHASE_START = PhaseStartEvent(phase="encoder.0", number=1, phases=1, epochs=1, steps=9, steps_before=0)
ERROR = ErrorEvent(message="the disk is full", error="UserError")


def step(loss: float, **changes: float) -> StepEvent:
    return StepEvent(phase="encoder.0", epoch=1, step=1, loss=loss, lr=0.1, **changes)


@pytest.fixture
def run(recipe: Callable[..., Any], tmp_path: Path) -> Run:
    return Run.create(tmp_path / "one", recipe())


def test_the_recipe_comes_back(run: Run, recipe: Callable[..., Any]) -> None:
    assert run.recipe == recipe()


def test_a_taken_name_is_refused(run: Run, recipe: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"one exists: .*resume one"):
        Run.create(run.path, recipe())


def test_a_missing_run_is_told(recipe: Callable[..., Any], tmp_path: Path) -> None:
    Run.create(tmp_path / "one\n", recipe())
    for name in ("nothing", "one\n", "n" * 300):
        with pytest.raises(UserError, match="no run at"):
            find_run(name, tmp_path)


def test_a_run_is_found_by_name_and_by_path(run: Run) -> None:
    assert find_run("one", run.path.parent).path == run.path
    assert find_run(str(run.path), Path("elsewhere")).path == run.path
    assert [found.name for found in list_runs(run.path.parent)] == ["one"]
    odd = run.path.rename(run.path.with_name("t ö😀"))
    assert find_run("t ö😀", odd.parent).path == odd
    odd.rename(run.path)
    assert free_name("one", run.path.parent) == "one-2"
    assert free_name("../a b", run.path.parent) == "a-b"


def test_a_run_is_alive_while_it_is_worked_on(run: Run) -> None:
    other = Run(run.path)
    assert not other.is_alive()
    with run.working():
        assert other.is_alive()
        assert other.status() == "running"
        with pytest.raises(UserError, match="another process is working on run"), other.working():
            pass
    assert not other.is_alive()


def test_who_looks_is_not_taken_for_a_worker(run: Run) -> None:
    with run.working():
        pass

    def look(_: int) -> bool:
        return Run(run.path).is_alive()

    with ThreadPoolExecutor(4) as threads:
        assert not any(threads.map(look, range(400)))
        with run.working():
            assert all(threads.map(look, range(8)))


def test_a_run_deleted_while_somebody_looks_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.working():
        pass

    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    with monkeypatch.context() as patched:
        patched.setattr("filelock.FileLock.acquire", gone)
        assert not run.is_alive()
    found = list(run.path.parent.glob("*/recipe.yaml"))
    shutil.rmtree(run.path)
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    assert len(found) == 1
    assert list_runs(run.path.parent) == []


def test_the_newest_run_is_listed_first(run: Run, recipe: Callable[..., Any]) -> None:
    for name, written in (("two", 3.0), ("three", 2.0)):
        other = Run.create(run.path.parent / name, recipe())
        os.utime(other.path / "recipe.yaml", (written, written))
    os.utime(run.path / "recipe.yaml", (1.0, 1.0))
    assert [found.name for found in list_runs(run.path.parent)] == ["two", "three", "one"]


def test_a_new_worker_forgets_an_old_request_to_stop(run: Run) -> None:
    run.request_stop()
    assert run.stop_requested()
    with run.working():
        assert not run.stop_requested()


def test_events_come_back_in_order(run: Run) -> None:
    run.record(PHASE_START)
    run.record(step(0.5))
    assert [replace(event, time=0.0) for event in run.events()] == [replace(PHASE_START, time=0.0), step(0.5, time=0.0)]


def test_a_line_cut_short_is_left_out_and_not_built_upon(run: Run) -> None:
    run.record(step(1.0))
    with open(run.path / "events.jsonl", "ab") as file:
        file.write(b'{"time": 1, "kind": "st')
    run.record(step(2.0))
    assert [event.loss for event in run.events()] == [1.0, 2.0]


def test_listeners_hear_what_is_kept_and_what_is_only_told(run: Run) -> None:
    heard: list[str] = []
    run.listeners.append(lambda event: heard.append(event.kind))
    run.record(step(1.0))
    run.notify(FillingEvent(done=1, total=2))
    assert heard == ["step", "filling"]
    assert [event.kind for event in run.events()] == ["step"]


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([], "new"),
        ([START], "new"),
        ([START, PHASE_START], "interrupted"),
        ([PHASE_START, DoneEvent(miou=0.5, seconds=1.0)], "finished"),
        ([PHASE_START, PausedEvent(after="encoder.0")], "paused"),
        ([PHASE_START, StoppedEvent(phase="encoder.0")], "interrupted"),
        ([PHASE_START, ERROR], "failed"),
        ([ERROR], "failed"),
        ([PHASE_START, ERROR, WarningEvent(message="the batch is 2")], "failed"),
        ([PHASE_START, ERROR, ResumedEvent(phase="encoder.0", epoch=0, step=1), PHASE_START], "interrupted"),
    ],
)
def test_the_status_is_read_from_the_events(run: Run, events: list[WrittenEvent], status: str) -> None:
    for event in events:
        run.record(event)
    assert run.status() == status


def test_a_full_disk_leaves_the_last_state_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save_state({"weights": torch.ones(3)})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"state\.pt: No space left on device; free some space, then resume"):
        run.save_state({"weights": torch.zeros(3)})
    state = run.load_state()
    assert state is not None
    assert torch.equal(state["weights"], torch.ones(3))
    assert not list(run.path.glob(".*.part"))


def test_a_read_only_directory_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match="Read-only file system; make it writable"):
        run.record(step(1.0))


def test_a_run_cannot_lie_below_a_file(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write"):
        Run.create(tmp_path / "file" / "run", recipe())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "state.pt"])
def test_a_folder_with_somebodys_model_is_not_overwritten(
    recipe: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"is no run and holds {name}"):
        Run.create(tmp_path, recipe())
    assert (tmp_path / name).read_text() == "precious"


def test_a_run_with_a_result_is_finished_whatever_its_events_say(run: Run) -> None:
    run.record(PHASE_START)
    run.write_json("result.json", {"miou": 0.5})
    assert run.status() == "finished"


def test_a_damaged_state_is_told(run: Run) -> None:
    (run.path / "state.pt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        run.load_state()


def test_a_state_with_code_in_it_is_not_run(run: Run, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"weights": Payload()}, run.path / "state.pt")
    with pytest.raises(UserError):
        run.load_state()
    assert not (tmp_path / "harm").exists()


def test_the_summary_of_a_run_without_result(run: Run) -> None:
    summary = run.summary()
    assert (summary["state"], summary["miou"]) == ("new", None)


@pytest.mark.parametrize(("name", "content"), [("recipe.yaml", "data: ["), ("result.json", '{"miou": 0.')])
def test_a_damaged_run_is_listed_as_such(run: Run, name: str, content: str) -> None:
    (run.path / name).write_text(content)
    assert run.summary()["state"] == "damaged"
    assert run.summary().keys() == Run(run.path).summary().keys()


def test_a_stop_after_the_epoch_is_due_only_when_one_is_over(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.stop_requested(epoch_over=True)
    run.request_stop(after_epoch=True)
    assert run.stop_requested(epoch_over=True)
    assert not run.stop_requested()
    assert [path.name for path in tmp_path.iterdir()] == ["stop"]
    run.request_stop()
    assert run.stop_requested()


def test_a_stop_after_the_epoch_is_never_one_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is opened, written or moved for it: a worker that looks in between goes on."""
    run, looked = Run(tmp_path), []

    def looking(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            done = real(*arguments, **named)
            looked.append(run.stop_requested())
            return done

        return wrapped

    real_open = Path.open
    monkeypatch.setattr(Path, "write_text", looking(Path.write_text))
    monkeypatch.setattr(os, "replace", looking(os.replace))

    def opened(path: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        file = real_open(path, mode, *more, **named)
        if "w" in mode:
            looked.append(run.stop_requested())
        return file

    monkeypatch.setattr(Path, "open", opened)
    run.request_stop(after_epoch=True)
    assert looked
    assert not any(looked)
