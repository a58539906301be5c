"""The closed set of events: what is written comes back, files of earlier versions too, and what can't be used is left
out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from segskd.events import (
    DiagnosisEvent,
    DoneEvent,
    EpochEvent,
    ErrorEvent,
    EvaluatingEvent,
    EvaluationEvent,
    EventReader,
    FillingEvent,
    GraftEvent,
    PausedEvent,
    PhaseEndEvent,
    PhaseStartEvent,
    PlacedEvent,
    PlannedPhase,
    PreparingEvent,
    ProgressEvent,
    ResumedEvent,
    SkippedEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
    StoreEvent,
    WarningEvent,
    WeightsEvent,
    WrittenEvent,
    append_event,
)

OLD_RUNS = Path(__file__).parent / "old_runs"
SCORES: dict[str, Any] = {"miou": 0.5, "pixel_accuracy": 0.75}
WRITTEN: list[WrittenEvent] = [
    StartEvent(phases=(PlannedPhase(phase="head", epochs=2, steps=20),), images=40, batch=4),
    DiagnosisEvent(message="fits", miou=0.5, constant=0.25, frequency=0.125, images=8, split="train"),
    StoreEvent(kind_of_store="disk", message="feature store: on disk"),
    EvaluationEvent(
        model="teacher", split="val", **SCORES, per_class={"a": 0.5, "b": None}, absent_classes=["b"], images=4
    ),
    PhaseStartEvent(phase="head", number=1, phases=1, epochs=2, steps=20, steps_before=0),
    PlacedEvent(phase="blocks", stages=[["a", "b"], ["c"]], step_seconds={"a": 0.1, "b": 0.2, "c": 0.3}),
    StepEvent(phase="head", epoch=1, step=3, loss=0.5, lr=0.001),
    EpochEvent(phase="head", epoch=1, epochs=2, loss=0.5, choice=-0.5, val_miou=0.25),
    SkippedEvent(phase="head", epochs=40, after=12, to=31),
    GraftEvent(phase="head", **SCORES),
    PhaseEndEvent(phase="head", epochs=2, loss=0.5, seconds=1.5, cpu_seconds=2.5, graft_miou=0.5, store_bytes=1024),
    ResumedEvent(phase="head", epoch=1, step=2),
    PausedEvent(after="encoder.0"),
    StoppedEvent(phase="head", epoch=2),
    WarningEvent(message="small batch"),
    ErrorEvent(message="no such file", error="UserError", about="data.card", template="no ⟦--card|Card⟧"),
    DoneEvent(miou=0.5, seconds=12.5),
    WeightsEvent(message="first weights from the teacher: 90 % of the student's values"),
]


def read(path: Path) -> list[WrittenEvent]:
    return EventReader(path).read()[1]


def test_every_kind_comes_back(tmp_path: Path) -> None:
    assert {type(event) for event in WRITTEN} == set(get_args(WrittenEvent))
    sent = [replace(event, time=float(time)) for time, event in enumerate(WRITTEN)]
    for event in sent:
        append_event(tmp_path / "events.jsonl", event)
    assert read(tmp_path / "events.jsonl") == sent


def test_a_line_has_its_time_its_kind_and_what_is_known(tmp_path: Path) -> None:
    append_event(tmp_path / "events.jsonl", EpochEvent(time=3.5, phase="head", epoch=1, epochs=2, loss=0.5))
    text = '{"time": 3.5, "kind": "epoch", "phase": "head", "epoch": 1, "epochs": 2, "loss": 0.5}\n'
    assert (tmp_path / "events.jsonl").read_text() == text


@pytest.mark.parametrize("file", sorted(OLD_RUNS.rglob("events.jsonl")), ids=lambda file: file.parent.name)
def test_a_file_of_the_earlier_program_is_written_as_it_was(file: Path, tmp_path: Path) -> None:
    events = read(file)
    assert len(events) == len(file.read_bytes().splitlines())
    for event in events:
        append_event(tmp_path / "events.jsonl", event)
    assert (tmp_path / "events.jsonl").read_bytes() == file.read_bytes()


def test_what_is_only_told_is_no_line_of_a_file(tmp_path: Path) -> None:
    told = [
        PreparingEvent(stage="drawing", done=1, total=2),
        FillingEvent(done=1, total=2),
        EvaluatingEvent(model="student", done=1, total=2),
    ]
    assert {type(event) for event in told} == set(get_args(ProgressEvent))
    assert [event.title for event in told] == ["drawing", "storing features", "evaluating the student"]
    lines = [json.dumps({**vars(event), "time": 1.0}) for event in told]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert read(tmp_path / "events.jsonl") == []


GOOD = {"time": 2.0, "kind": "warning", "message": "small batch"}


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({**GOOD, "kind": "of a later version"}),
        json.dumps({**GOOD, "kind": ["warning"]}),
        json.dumps({**GOOD, "time": "yesterday"}),
        json.dumps({"kind": "warning", "message": "no time"}),
        json.dumps({**GOOD, "time": float("nan")}),
        json.dumps({**GOOD, "message": {"text": "odd"}}),
        json.dumps({"time": 2.0, "kind": "step", "phase": "head", "epoch": -1, "step": 3, "loss": 0.5, "lr": 0.1}),
        json.dumps({"time": 2.0, "kind": "step", "phase": "head", "epoch": 1, "step": 1e400, "loss": 0.5, "lr": 0.1}),
        json.dumps({"time": 2.0, "kind": "start", "phases": [{"phase": "head"}], "images": 4, "batch": 4}),
        json.dumps(GOOD)[:-4],
        "[" * 10_000,
        "null",
        "",
        "\udcff",
    ],
)
def test_what_cannot_be_used_is_left_out(line: str, tmp_path: Path) -> None:
    text = "\n".join([json.dumps({**GOOD, "of a later version": [1]}), line, json.dumps(GOOD)]) + "\n"
    (tmp_path / "events.jsonl").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read(tmp_path / "events.jsonl") == [WarningEvent(time=2.0, message="small batch")] * 2


def test_a_loss_may_be_no_number(tmp_path: Path) -> None:
    append_event(tmp_path / "events.jsonl", replace(WRITTEN[6], time=1.0, loss=float("nan")))
    (event,) = read(tmp_path / "events.jsonl")
    assert isinstance(event, StepEvent)
    assert event.loss != event.loss
