"""The list of runs: what it says of each, when it reads again, and that no broken folder takes the others with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.errors import UserError
from segskd.run_admin import write_note
from segskd.runs import Run
from ui.context import Context
from ui.state import catalogue as module
from ui.state.catalogue import DIED, STOPPED, Catalogue, Row
from ui.state.exports import Exports
from ui.state.follow import Followers
from ui.tabs.runs import _unused_run

Make = Callable[..., Run]


@pytest.fixture
def catalogue(context: Context) -> Catalogue:
    return Catalogue(context.jobs, Followers(context))


def only(catalogue: Catalogue) -> Row:
    (row,) = catalogue.rows()
    return row


def test_a_finished_run_has_its_figures(catalogue: Catalogue, make_run: Make, finish: Make) -> None:
    run = finish(make_run("small", seed=7, teacher="/some/where/big"))
    os.utime(run.path / "events.jsonl", (5000, 5000))
    for name in ("recipe.yaml", "result.json"):
        os.utime(run.path / name, (4000, 4000))
    write_note(run, "<b>mine</b>")
    assert only(catalogue) == Row(
        name="small",
        state="finished",
        kind="distill",
        dataset="bands",
        student="unet:resnet10",
        teacher="big",
        method="stagewise",
        size="64×96",
        seed=7,
        epochs=250,  # 3,000 image passes
        images=12,
        miou=0.5,
        teacher_miou=0.625,
        percent_of_teacher=80.0,
        parameters=1000,
        gmacs=0.25,
        bytes=4000,
        latency_ms=2.5,
        teacher_cost={"bytes": 36000, "gmacs": 1.25, "latency_ms": 7.5},
        seconds=90.5,
        changed=5000.0,
        note="<b>mine</b>",
    )
    assert json.loads(json.dumps(only(catalogue).as_dict()))["teacher_cost"]["bytes"] == 36000


def test_a_run_without_result_has_none(catalogue: Catalogue, make_run: Make) -> None:
    make_run("fresh")
    row = only(catalogue)
    assert (row.state, row.dataset, row.student) == ("new", "bands", "unet:resnet10")
    assert (row.miou, row.bytes, row.teacher_cost, row.share) == (None, None, None, None)


@pytest.mark.parametrize(
    ("place", "name"), [("/runs/big/student", "big"), ("/models/large", "large"), ("somebody/large", "large")]
)
def test_a_teacher_goes_by_its_runs_name(catalogue: Catalogue, make_run: Make, place: str, name: str) -> None:
    make_run("small", teacher=place)
    assert only(catalogue).teacher == name


def test_a_run_that_goes_on_from_another_says_so(catalogue: Catalogue, make_run: Make) -> None:
    make_run("later", begin={"run": "/runs/earlier", "stage": "decoder.1"})
    assert only(catalogue).begun_from == "earlier, decoder.1"


@pytest.mark.parametrize(
    ("last", "state", "ended"),
    [
        ({"kind": "stopped", "phase": "encoder.0"}, "interrupted", STOPPED),
        ({"kind": "error", "message": "the disk is full", "error": "UserError"}, "failed", "the disk is full"),
        ({}, "interrupted", DIED),
        ({"kind": "paused", "after": "encoder.0"}, "paused", "It paused where it was asked to. Resume goes on"),
    ],
)
def test_a_run_that_stands_still_says_why(
    catalogue: Catalogue, make_run: Make, begin: Make, last: dict[str, Any], state: str, ended: str
) -> None:
    begin(make_run("half"), **last)
    row = only(catalogue)
    assert row.state == state
    assert row.ended.startswith(ended)
    assert row.share == pytest.approx(0.125)  # one of four epochs, in one of two phases of the same length


def test_a_run_at_work_says_what_it_does(catalogue: Catalogue, make_run: Make, begin: Make) -> None:
    run = make_run("busy")
    with run.working():
        begin(run)
        row = only(catalogue)
    assert (row.state, row.doing, row.ended) == ("running", "training encoder.0, epoch 1 of 4", "")


def test_those_that_changed_last_come_first(catalogue: Catalogue, make_run: Make, finish: Make) -> None:
    for name, time in (("a", 3000), ("b", 9000), ("c", 6000)):
        run = finish(make_run(name))
        for file in ("recipe.yaml", "result.json", "events.jsonl"):
            os.utime(run.path / file, (1000, 1000))
        os.utime(run.path / ("events.jsonl" if name == "b" else "result.json"), (time, time))
    assert [row.name for row in catalogue.rows()] == ["b", "c", "a"]


def test_only_distilled_runs_with_a_teacher_are_students(
    catalogue: Catalogue, make_run: Make, make_teacher: Make, finish: Make
) -> None:
    finish(make_teacher("big"))
    finish(make_run("alone", method="supervised", teacher=None))
    make_run("unfinished")
    finish(make_run("small"))
    assert [row.name for row in catalogue.finished_students()] == ["small"]


def test_what_has_not_changed_is_read_once(
    catalogue: Catalogue, make_run: Make, finish: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("small")
    read: list[str] = []
    honest = module._read

    def reading(run: Run) -> Row:
        read.append(run.name)
        return honest(run)

    monkeypatch.setattr(module, "_read", reading)
    for _ in range(3):
        assert only(catalogue).miou is None
    assert read == ["small"]
    finish(run)
    assert only(catalogue).miou == 0.5
    before = (run.path / "result.json").stat()
    finish(run, miou=0.75)
    os.utime(run.path / "result.json", ns=(before.st_atime_ns, before.st_mtime_ns))  # another file of the same time
    assert only(catalogue).miou == 0.75
    (run.path / "result.json").unlink()
    assert only(catalogue).miou is None
    assert read == ["small"] * 4


def test_a_run_that_is_made_anew_under_its_old_name(catalogue: Catalogue, make_run: Make, finish: Make) -> None:
    run = finish(make_run("small"))
    assert only(catalogue).miou == 0.5
    shutil.rmtree(run.path)
    assert catalogue.rows() == []
    assert catalogue._cache == {}  # what is gone is forgotten
    make_run("small", seed=9)
    assert (only(catalogue).miou, only(catalogue).seed) == (None, 9)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[1]",
        '"text"',
        '{"student": 5}',
        '{"miou": "high"}',
        '{"miou": NaN}',
        '{"student": {"bytes": [1]}}',
        '{"teacher": {"bytes": 1}}',
    ],
)
def test_a_result_that_no_run_writes_is_damage(
    catalogue: Catalogue, make_run: Make, finish: Make, content: str
) -> None:
    finish(make_run("whole"))
    (make_run("torn").path / "result.json").write_text(content)
    rows = {row.name: row for row in catalogue.rows()}
    assert rows["whole"].miou == 0.5
    assert rows["torn"].state == "damaged"
    assert rows["torn"].problem is not None
    assert rows["torn"].problem.endswith("result.json is damaged: delete it and resume the run")


def test_a_result_that_can_not_be_read_is_damage(catalogue: Catalogue, make_run: Make) -> None:
    (make_run("odd").path / "result.json").mkdir()
    row = only(catalogue)
    assert row.state == "damaged"
    assert row.problem == f"can't read {catalogue._jobs.runs / 'odd' / 'result.json'}: Is a directory"


@pytest.mark.parametrize("content", ["", "kind: [", "student: 5\n", "<script>alert(1)</script>"])
def test_a_recipe_that_is_none_is_damage(catalogue: Catalogue, make_run: Make, context: Context, content: str) -> None:
    make_run("whole")
    (context.runs / "torn").mkdir()
    (context.runs / "torn" / "recipe.yaml").write_text(content)
    states = {row.name: (row.state, bool(row.problem)) for row in catalogue.rows()}
    assert states == {"whole": ("new", False), "torn": ("damaged", True)}


def test_a_note_that_is_no_text_takes_nothing_with_it(catalogue: Catalogue, make_run: Make) -> None:
    (make_run("one").path / "note.txt").write_bytes(b"\xff\xfe\x00")
    (make_run("two").path / "note.txt").mkdir()
    assert [row.note for row in catalogue.rows()] == ["", ""]


@pytest.mark.parametrize("name", ["my run", "<img src=x onerror=alert(1)>", ".deleted-x", "-x", "run\n"])
def test_a_folder_that_can_not_be_a_runs_name_is_no_run(
    catalogue: Catalogue, make_run: Make, context: Context, name: str
) -> None:
    shutil.copytree(make_run("good").path, context.runs / name)
    assert [row.name for row in catalogue.rows()] == ["good"]


def test_a_run_that_goes_while_it_is_read_is_left_out(
    catalogue: Catalogue, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("stays")
    gone = make_run("goes")

    def read_and_go(run: Run) -> str:
        if run.name == "goes":
            shutil.rmtree(gone.path)
        return ""

    monkeypatch.setattr(module, "note", read_and_go)
    assert [row.name for row in catalogue.rows()] == ["stays"]
    assert catalogue.row("goes") is None


def test_an_empty_folder_is_an_empty_list(catalogue: Catalogue, context: Context, tmp_path: Path) -> None:
    assert catalogue.rows() == []
    (context.runs / "empty").mkdir()
    (context.runs / "file").write_text("")
    assert catalogue.rows() == []


def test_without_followers_states_come_from_the_jobs(context: Context, make_run: Make, begin: Make) -> None:
    begin(make_run("half"))
    context.jobs.submit(make_run("x").recipe, "queued")
    rows = {row.name: row for row in Catalogue(context.jobs).rows()}
    assert [rows[name].state for name in ("half", "x", "queued")] == ["interrupted", "new", "waiting"]
    assert rows["half"].share is None


@pytest.mark.parametrize(
    ("state", "said"), [("waiting", "is in the queue: take it out first"), ("starting", "is starting: wait a moment")]
)
def test_a_run_that_is_about_to_begin_keeps_its_name(
    state: str, said: str, context: Context, make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run("small")
    monkeypatch.setattr(context.jobs, "state", lambda _: state)
    with pytest.raises(UserError, match=f"run small {said}"):
        _unused_run(context, Exports(context.runs, context.data), "small")


def test_a_run_that_is_gone_is_named_without_its_place(context: Context) -> None:
    with pytest.raises(UserError, match=r"^this server has no run lost: it may have been renamed or deleted$"):
        context.run("lost")
