"""Every server function of the page, called with what no script of ours sends: it answers, and changes no file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from fastapi import HTTPException
from typing_extensions import TypedDict

from segskd.errors import UserError
from segskd.events import DoneEvent
from segskd.runs import Run
from ui.context import Context
from ui.jobs import Jobs
from ui.server_functions import UNPROCESSABLE, checked_functions

Tree = dict[str, tuple[int, int]]
Function = Callable[[Any], Any]
LONG = "x" * 100_000
MARKUP = "<img src=x onerror=alert(1)>"
NO_NAMES: list[Any] = ["../out", "/etc/passwd", "..", ".", "", "a\n", "mine\n", "a\0b", MARKUP, LONG, "\ud800"]
ODD: list[Any] = [None, True, 0, -1, 1e308, float("nan"), [], [[]], {}, {"run": {}}, ["a", 1], *NO_NAMES]
ACTS = {
    *("strip_stop", "strip_resume", "runs_rename", "runs_note", "runs_delete", "runs_resume", "runs_stop"),
    *("export_start", "watch_retry"),
}
"""With the name of a run that there is these do what they are for, whatever else is said."""
ENTRIES: list[Any] = [None, True, -1, float("nan"), [[]], {"a": {}}, ["a", 1], "../out", "mine\n", LONG, "\ud800"]
KEPT = ".cache"


@pytest.fixture(scope="module")
def context(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    runs = tmp_path_factory.mktemp("runs")
    return Context(data, runs, Jobs(runs, data))


@pytest.fixture(scope="module")
def run(context: Context, recipe: Callable[..., Any]) -> Run:
    """The one run of the server, finished by its files."""
    made = Run.create(context.runs / "mine", recipe())
    made.write_json("result.json", {"miou": 0.5, "student": {}, "phases": []})
    made.record(DoneEvent(miou=0.5, seconds=1.0))
    return made


@pytest.fixture(scope="module")
def functions(context: Context, run: Run, built: Callable[[Context], Any]) -> dict[str, Function]:
    """Every function that a component of the page offers to its script, by name."""
    found = [one for block in built(context).blocks.values() for one in getattr(block, "server_fns", ())]
    return {one.__name__: one for one in found}


@pytest.fixture
def unchanged(context: Context) -> Iterator[None]:
    before = tree(context.runs.parent) | tree(context.data)
    yield
    after = tree(context.runs.parent) | tree(context.data)
    assert after == before


def tree(folder: Path) -> Tree:
    """Size and time of every file but those of the cache, which hold what was read."""
    files = (path for path in folder.rglob("*") if path.is_file() and KEPT not in path.parts)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.name != ".lock"}


def entries(function: Function) -> Iterator[tuple[str, Any]]:
    """What a function reads of a question, each with everything that it might be instead."""
    wanted = get_type_hints(function)
    wanted.pop("return", None)
    (kind,) = wanted.values()
    keys = getattr(kind, "__annotations__", ())
    return ((key, junk) for key in keys for junk in ENTRIES)


def answer(function: Function, asked: Any) -> Any:
    """What a script gets, as JSON has it; a message for what is refused."""
    try:
        given = function(asked)
    except HTTPException as error:
        return {"refused": error.detail, "status": error.status_code}
    json.dumps(given, ensure_ascii=False).encode()  # as it goes over the wire
    return given


def test_there_are_functions_on_every_tab(functions: dict[str, Function]) -> None:
    tabs = {name.partition("_")[0] for name in functions}
    assert tabs >= {"strip", "start", "data", "distill", "preflight", "watch", "compare", "runs", "export"}


def test_what_is_no_question_at_all(functions: dict[str, Function], unchanged: None) -> None:
    for function in functions.values():
        for junk in ODD:
            answer(function, junk)


def test_each_entry_of_a_question(functions: dict[str, Function], unchanged: None) -> None:
    for function in functions.values():
        for key, junk in entries(function):
            answer(function, {key: junk})


def test_questions_about_what_there_is(
    functions: dict[str, Function], context: Context, card_path: Path, unchanged: None
) -> None:
    """A run and a dataset of this server, and everything else wrong."""
    for name, function in functions.items():
        for key, junk in entries(function) if name not in ACTS else ():
            answer(function, {"run": "mine", "place": str(card_path), key: junk})
    choices = [{"card": str(card_path), key: junk} for key in ("fraction", "rule", "seed", "names") for junk in ODD]
    told = [answer(functions["data_select"], {"choice": choice}) for choice in choices]
    assert all("error" in one or "problem" in one for one in told)


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_are_no_paths(context: Context, run: Run, name: str) -> None:
    with pytest.raises(UserError):
        context.run(name)
    with pytest.raises(UserError):
        context.jobs.submit(run.recipe, name)


class Asked(TypedDict, total=False):
    run: str
    count: int


def test_a_function_gets_what_its_annotation_says_and_no_more() -> None:
    def first(asked: Asked) -> object:
        return asked

    def second(_: dict[str, Any]) -> object:
        raise UserError("no such run")

    one, other = checked_functions(first, second)
    assert one({"run": "a", "count": 2, "other": 3}) == {"run": "a", "count": 2}
    for junk in (None, [], {"count": True}, {"count": "2"}, {"run": None}):
        assert "first: " in answer(one, junk)["refused"]
    assert answer(other, {}) == {"refused": "no such run", "status": UNPROCESSABLE}
