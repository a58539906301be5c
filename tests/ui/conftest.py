"""Runs as they lie on disk, written by hand: nothing is trained here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from segskd.config import make_recipe, merged
from segskd.events import DoneEvent
from segskd.runs import Run
from ui.app import build
from ui.context import Context
from ui.jobs import Jobs

RESULT: dict[str, Any] = {
    "dataset": "bands",
    "images": 12,
    "miou": 0.5,
    "teacher_miou": 0.625,
    "percent_of_teacher": 80.0,
    "seconds": 90.5,
    "student": {"parameters": 1000, "gmacs": 0.25, "bytes": 4000, "latency_ms": 2.5},
    "teacher": {"parameters": 9000, "gmacs": 1.25, "bytes": 36000, "latency_ms": 7.5},
}


@pytest.fixture
def context(tmp_path: Path, data: Path) -> Context:
    """A server's folders, with jobs that start nothing."""
    runs = tmp_path / "runs"
    runs.mkdir()
    return Context(data, runs, Jobs(runs, data))


@pytest.fixture(scope="session")
def built() -> Callable[[Context], gr.Blocks]:
    """Builds the whole page."""

    async def made(context: Context) -> gr.Blocks:
        return build(context)

    def aside(context: Context) -> gr.Blocks:
        with ThreadPoolExecutor() as thread:  # the browser's tests leave a loop running in this one
            return thread.submit(lambda: asyncio.run(made(context))).result()  # without a loop Gradio leaves one open

    return aside


@pytest.fixture
def make_run(context: Context, data: Path, card_path: Path) -> Callable[..., Run]:
    """A run that was never begun; parts of its recipe can be given by name."""

    def make(name: str, teacher: str | None = "some/teacher", **changes: Any) -> Run:
        content = {
            "data": {"card": str(card_path), "folder": str(data), "size": "64x96"},
            "student": "unet:resnet10",
            **({"teacher": teacher} if teacher else {}),
        }
        return Run.create(context.runs / name, make_recipe(merged(content, changes)))

    return make


@pytest.fixture
def make_teacher(make_run: Callable[..., Run]) -> Callable[..., Run]:
    """A run that teaches, never begun."""
    return lambda name: make_run(name, kind="teach", method="supervised", teacher=None, student="unet:resnet34")


@pytest.fixture
def finish() -> Callable[..., Run]:
    """Gives a run a result, RESULT with the changes that are named, and a last event."""

    def done(run: Run, **changes: Any) -> Run:
        run.write_json("result.json", {**RESULT, **changes})
        run.record(DoneEvent(miou=RESULT["miou"], seconds=RESULT["seconds"]))
        return run

    return done


@pytest.fixture
def begin() -> Callable[..., Run]:
    """Writes what a worker says until the end of the first of four epochs of ten steps, in the first of two phases."""

    def write(run: Run, **last: Any) -> Run:
        phases = [{"phase": phase, "epochs": 4, "steps": 40} for phase in ("encoder.0", "head")]
        scores = {"pixel_accuracy": 0.8, "per_class": {"ground": 0.75}, "absent_classes": [], "images": 4}
        place = {"number": 1, "phases": 2, "steps_before": 0}
        lines = [
            {"time": 0.0, "kind": "start", "phases": phases, "images": 40, "batch": 4},
            {"time": 0.0, "kind": "evaluation", "model": "teacher", "split": "val", "miou": 0.75, **scores},
            {"time": 1.0, "kind": "phase_start", "phase": "encoder.0", "epochs": 4, "steps": 40, **place},
            {"time": 2.0, "kind": "epoch", "phase": "encoder.0", "epoch": 1, "epochs": 4, "loss": 0.5},
        ]
        lines += [{"time": 3.0, **last}] if last else []
        text = "\n".join(json.dumps(line) for line in lines) + "\n"
        (run.path / "events.jsonl").write_text(text, encoding="utf-8")
        return run

    return write
