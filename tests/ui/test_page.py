"""How the page's components and handlers are joined, and what the handlers make of a page that changed meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from ui.context import Context
from ui.state.choice import Choice
from ui.tabs.distill import Distill

Built = Callable[[Context], gr.Blocks]


@pytest.fixture
def distill(context: Context, built: Built, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Distill:
    """The tab of a server with a teacher; its pre-flights measure nothing, `verdict` is what they say."""
    shutil.copytree(teacher_folder, context.runs / "mine")
    (adopted,) = (function.fn for function in built(context).fns.values() if function.name == "_on_look")
    made = adopted.__self__  # type: ignore[union-attr]
    assert isinstance(made, Distill)
    verdict = {"state": "running", "problem": None, "result": None}
    asked: list[str] = []
    monkeypatch.setattr(made.preflights, "ask", lambda recipe: asked.append("key") or "key")
    monkeypatch.setattr(made, "asked", asked, raising=False)
    monkeypatch.setattr(made.preflights, "state", lambda key: verdict)
    monkeypatch.setattr(made, "verdict", verdict, raising=False)
    return made


def form(distill: Distill, card_path: Path, **changes: Any) -> list[Any]:
    """What the tab's handlers are given: the choice, then each field's value, those that are named changed."""
    choice = Choice(card=str(card_path), fraction=0.5).as_dict()
    own = {"known": "runs/mine", "size": "64x96", "epochs": "1", **changes}
    return [choice, *(own.get(name, component.value) for name, component in distill.fields.inputs.items())]


def known(distill: Distill, updates: dict[Any, Any]) -> dict[str, Any]:
    """What an answer does to the list of teachers."""
    update = updates[distill.fields.inputs["known"]]
    return {name: value for name, value in update._constructor_args[0].items() if name in ("choices", "value")}


def test_proposals_are_made_one_after_the_other(context: Context, built: Built) -> None:
    """The tab is opened and Data's choice arrives at once: two answers, the later laid over what was chosen between."""
    proposing = [function for function in built(context).fns.values() if function.name == "_on_look"]
    assert [(len(function.targets), function.trigger_mode) for function in proposing] == [(1, "always_last")]


def test_answers_come_in_the_order_of_their_questions(context: Context, built: Built) -> None:
    """An answer that waited, to what was chosen before, would hide the fields of what is chosen by now."""
    every = built(context).fns.values()
    (changed,) = (function for function in every if function.name == "_on_change")
    answering = [function for function in every if set(changed.outputs) <= set(function.outputs)]
    names = {function.name for function in answering}
    assert {
        "_on_look",
        "_on_server_change",
        "_on_change",
        "_on_start",
        "_on_preflight_end",
        "_on_upload_end",
        "_on_clone",
    } <= names
    assert {function.concurrency_id for function in answering} == {"distill"}
    assert {function.concurrency_limit for function in answering} == {1}


def test_a_list_that_is_read_anew_chooses_nobody(distill: Distill, card_path: Path) -> None:
    """Another teacher may have been chosen while the answer was on its way; one that is gone is chosen no longer."""
    assert "value" not in known(distill, distill._on_look("", "", *form(distill, card_path)))
    assert "value" not in known(distill, distill._on_server_change(*form(distill, card_path)))
    gone = known(distill, distill._on_server_change(*form(distill, card_path, known="runs/gone")))
    assert gone["value"] is None
    assert [key for _, key in gone["choices"]] == ["runs/mine"]


def test_a_clone_on_its_way_is_not_proposed_over(distill: Distill, card_path: Path) -> None:
    assert distill._on_look("", "some-run", *form(distill, card_path)) == {}


def start_of(distill: Distill, updates: dict[Any, Any]) -> Any:
    """The event with which the page's script says that a pre-flight is over."""
    return SimpleNamespace(_data={"start": updates[distill.preflight]["start"]["start"]})


def test_what_was_started_is_what_stood_there_then(
    distill: Distill, context: Context, card_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs started while the pre-flight measures, and a third name typed: both begin, the third stays typed."""
    first, second = (form(distill, card_path, name=name) for name in ("one", "two"))
    typed = form(distill, card_path, name="three")
    starts = [start_of(distill, distill._on_start(*given)) for given in (first, second)]
    assert context.jobs.waiting() == []
    distill.verdict["state"] = "fits"  # type: ignore[attr-defined]
    for event, said in zip(starts, ("one was", "two was"), strict=True):
        updates = distill._on_preflight_end(event, *typed)
        assert updates[distill.fields.notices["form"]]["text"].startswith(said)
        assert distill.page.tabs not in updates
        assert not {distill.fields.inputs["epochs"], distill.fields.inputs["size"]} & {
            component for component, update in updates.items() if getattr(update, "value", None) is not None
        }
    assert context.jobs.waiting() == ["one", "two"]
    assert distill._on_preflight_end(starts[0], *typed) == {}


def test_a_start_that_nobody_touched_opens_watch(distill: Distill, context: Context, card_path: Path) -> None:
    given = form(distill, card_path, name="one")
    event = start_of(distill, distill._on_start(*given))
    distill.verdict["state"] = "fits"  # type: ignore[attr-defined]
    updates = distill._on_preflight_end(event, *given)
    assert updates[distill.page.run] == "one"
    assert distill.page.tabs in updates


def test_a_start_that_does_not_fit_is_told_by_name(distill: Distill, context: Context, card_path: Path) -> None:
    event = start_of(distill, distill._on_start(*form(distill, card_path, name="one")))
    distill.verdict |= {"state": "refused", "problem": "too much memory"}  # type: ignore[attr-defined]
    updates = distill._on_preflight_end(event, *form(distill, card_path, name="two"))
    assert "one was not started: too much memory" in updates[distill.fields.notices["form"]]["text"]
    assert context.jobs.waiting() == []


def test_a_pre_flight_that_failed_is_not_asked_for_ever(distill: Distill, context: Context, card_path: Path) -> None:
    given = form(distill, card_path, name="one")
    event = start_of(distill, distill._on_start(*given))
    distill.verdict |= {"state": "failed", "problem": "it broke down"}  # type: ignore[attr-defined]
    updates = distill._on_preflight_end(event, *given)
    assert distill.asked == ["key"]  # type: ignore[attr-defined]
    assert updates[distill.fields.notices["form"]]["text"] == "Not started: it broke down."
    assert updates[distill.unchecked]._constructor_args[0]["visible"] is True
    assert context.jobs.waiting() == []
