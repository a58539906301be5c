"""The run strip: which run it shows, and what it says of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack

import gradio as gr
import pytest

from segskd.errors import UserError
from segskd.events import StoppedEvent
from segskd.runs import STUDY, Run
from ui.context import Context
from ui.handlers import existing_run, open_run, problem_of
from ui.state.follow import Followers
from ui.strip import strip

Make = Callable[..., Run]
IDLE = {"run": None}


@pytest.fixture
def followers(context: Context) -> Followers:
    return Followers(context)


def test_nothing_is_shown_where_nothing_is(context: Context, followers: Followers, make_run: Make) -> None:
    assert strip(context, followers) == IDLE
    make_run("never-begun")
    assert strip(context, followers) == IDLE


def test_a_study_at_work_is_named(context: Context, followers: Followers, make_run: Make) -> None:
    for name in ("one", "two"):
        (context.runs / name).mkdir()
        (context.runs / name / STUDY).write_text("name: it\n")
    assert strip(context, followers) == IDLE
    with Run(context.runs / "two").working():
        assert strip(context, followers) == {"run": None, "study": "two"}
        with make_run("busy").working():
            assert strip(context, followers)["run"] == "busy"


def test_the_run_at_work(context: Context, followers: Followers, make_run: Make, begin: Make) -> None:
    run = make_run("busy")
    with run.working():
        begin(run)
        shown = strip(context, followers)
    assert shown["run"] == "busy"
    assert shown["state"] == "running"
    assert shown["doing"] == "training encoder.0, epoch 1 of 4"
    assert (shown["stage"], shown["stages"]) == (1, 2)
    assert shown["share"] == pytest.approx(0.125)
    assert (shown["others"], shown["waiting"], shown["stopping"]) == (0, 0, None)


def test_others_at_work_and_in_the_queue_are_counted(context: Context, followers: Followers, make_run: Make) -> None:
    with ExitStack() as stack:
        for name in ("one", "two", "three"):
            stack.enter_context(make_run(name).working())
        for name in ("four", "five"):
            context.jobs.submit(make_run(f"{name}-like").recipe, name)
        shown = strip(context, followers)
    assert shown["run"] in ("one", "two", "three")
    assert (shown["others"], shown["waiting"]) == (2, 2)


def test_the_next_in_the_queue_when_none_works(context: Context, followers: Followers, make_run: Make) -> None:
    recipe = make_run("model").recipe
    for name in ("first", "second", "third"):
        context.jobs.submit(recipe, name)
    shown = strip(context, followers)
    assert (shown["run"], shown["state"], shown["waiting"]) == ("first", "waiting", 2)


def test_a_stop_that_was_asked_for_is_told(context: Context, followers: Followers, make_run: Make) -> None:
    run = make_run("busy")
    with run.working():
        run.request_stop(after_epoch=True)
        assert strip(context, followers)["stopping"] == "epoch"
        run.request_stop()
        assert strip(context, followers)["stopping"] == "now"
    run.record(StoppedEvent(phase="encoder.0"))
    assert strip(context, followers)["stopping"] is None  # the request is over with the run


@pytest.mark.parametrize(
    ("kind", "shown"), [("stopped", "interrupted"), ("error", "failed"), ("paused", "paused"), ("done", None)]
)
def test_the_last_run_is_shown_while_it_can_go_on(
    context: Context, followers: Followers, make_run: Make, begin: Make, kind: str, shown: str | None
) -> None:
    old = begin(make_run("old"))
    os.utime(old.path / "events.jsonl", (1000, 1000))
    figures = {"message": "m", "error": "E", "phase": "encoder.0", "after": "encoder.0", "miou": 0.5, "seconds": 1.0}
    begin(make_run("last"), kind=kind, **figures)
    found = strip(context, followers)
    assert (found["run"], found.get("state")) == (("last", shown) if shown else (None, None))


def test_a_folder_that_is_no_run_is_passed_over(
    context: Context, followers: Followers, make_run: Make, begin: Make
) -> None:
    run = begin(make_run("good"))
    os.utime(run.path / "events.jsonl", (1000, 1000))
    for name in ("not a name", ".deleted-x"):
        shutil.copytree(run.path, context.runs / name)
    (context.runs / "half").mkdir()
    (context.runs / "half" / "events.jsonl").write_text("{}")
    os.utime(context.runs / "half" / "events.jsonl", (500, 500))
    assert strip(context, followers)["run"] == "good"


def test_a_busy_folder_that_is_no_run_does_not_hide_a_run(
    context: Context, followers: Followers, make_run: Make
) -> None:
    shutil.copytree(make_run("model").path, context.runs / "no name")
    with Run(context.runs / "no name").working():
        context.jobs.submit(make_run("other").recipe, "queued")
        assert strip(context, followers)["run"] == "queued"


def test_a_queue_that_names_a_run_that_is_gone(context: Context, followers: Followers, make_run: Make) -> None:
    context.jobs.submit(make_run("model").recipe, "gone")
    shutil.rmtree(context.runs / "gone")
    assert strip(context, followers) == IDLE


@pytest.mark.parametrize("text", ["", "{", "[1, 2]\n", '{"kind": "start"}\n', "\xff\n"])
def test_events_that_are_damaged(context: Context, followers: Followers, make_run: Make, text: str) -> None:
    run = make_run("torn")
    (run.path / "events.jsonl").write_text(text, encoding="latin-1")
    assert strip(context, followers)["run"] == "torn"


# -- what the strip shares with other tabs ----------------------------------------------------------


def test_a_problem_is_the_answer() -> None:
    def refuse() -> None:
        raise UserError("no such thing")

    assert problem_of(refuse) == {"problem": "no such thing"}
    assert problem_of(lambda: 5) == {"problem": None}


@pytest.mark.parametrize("name", ["../good", "good/", "/good", "", None, 5, ["good"], "<b>", "GOOD", "good\n"])
def test_a_name_that_is_no_run_is_none(context: Context, make_run: Make, name: object) -> None:
    make_run("good")
    assert existing_run(context, "good") == "good"
    assert existing_run(context, name) == ""


def test_a_run_is_opened_in_a_tab(context: Context, make_run: Make) -> None:
    make_run("good")

    def opened(**data: object) -> tuple[object, object]:
        run, tab = open_run(context)(gr.EventData(None, data))
        return run, tab.selected if isinstance(tab, gr.Tabs) else tab

    assert opened(run="good", tab="watch") == ("good", "watch")
    assert opened(run="../good", tab="watch") == ("", "watch")
    run, tab = opened(tab="distill")  # the run that is looked at stays
    assert (run, tab) == (gr.skip(), "distill")
    assert opened(run="good", tab="<b>") == ("good", gr.skip())
