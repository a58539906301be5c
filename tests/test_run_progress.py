"""Where a run stands, by its events: figures worked out by hand from runs of the earlier program."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from segskd.console import Bars, PlainLines
from segskd.events import (
    EvaluatingEvent,
    Event,
    FillingEvent,
    PhaseEndEvent,
    PhaseStartEvent,
    PlannedPhase,
    PreparingEvent,
    StartEvent,
    StepEvent,
    StoppedEvent,
)
from segskd.run_progress import LossCurve, RunProgress
from segskd.runs import Run

OLD_RUNS = Path(__file__).parent / "old_runs"


def test_an_old_run_that_paused() -> None:
    """Two of eleven phases of 4 steps: 0.14 + 0.076 s for 8 steps, so 0.972 s for the other 36."""
    progress = Run(OLD_RUNS / "stopped").progress()
    assert (progress.ended, progress.error, progress.begun, progress.store) == ("paused", None, True, "memory")
    assert (progress.stage, progress.phases_done, len(progress.phases), progress.steps) == (2, 2, 11, 44)
    assert progress.share == pytest.approx(8 / 44)
    assert progress.seconds == pytest.approx(0.216)
    assert progress.seconds_left() == pytest.approx(0.972)
    assert (progress.images, progress.teacher_miou, progress.miou) == (8, 0.47908387461528273, None)
    assert progress.updated == 1796120327.905
    second, third = progress.phases[1:3]
    assert (second.name, second.state, second.epoch, second.step) == ("encoder.1", "done", 2, 4)
    assert (second.loss, second.graft_miou) == (0.38348136842250824, 0.3831599488531687)
    assert second.losses.points == [(1, 0.9668968915939331)]
    assert second.epoch_losses.points == [(2, 0.9133082330226898), (4, 0.38348136842250824)]
    assert (third.name, third.state, third.share, third.graft_miou) == ("encoder.2", "to come", 0.0, None)
    assert Run(OLD_RUNS / "stopped").status() == "paused"


def test_an_old_run_that_is_finished() -> None:
    progress = Run(OLD_RUNS / "finished").progress()
    assert (progress.ended, progress.phases_done, progress.share, progress.seconds_left()) == ("finished", 11, 1.0, 0.0)
    assert (progress.teacher_miou, progress.miou) == (0.47908387461528273, 0.24200762106986062)
    assert progress.seconds == pytest.approx(0.981)
    assert progress.latest is progress.phases[10]
    assert progress.latest.graft_miou == 0.24200762106986062


def test_an_old_teacher_has_a_score_every_second_epoch() -> None:
    """20 epochs of 3 steps."""
    (phase,) = Run(OLD_RUNS / "teacher").progress().phases
    assert [step for step, _ in phase.scores.points] == [6 * number for number in range(1, 11)]
    assert (phase.scores.points[0][1], phase.scores.points[9][1]) == (0.14042764741398198, 0.47908387461528273)


# -- curves -------------------------------------------------------------------------------------------


def test_a_full_curve_merges_neighbours() -> None:
    curve = LossCurve(limit=4)
    for x, y in ((1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)):
        curve.add(x, y)
    assert curve.points == [(2, 2.0), (4, 6.0)]
    curve.add(5, 9.0)
    assert curve.points == [(2, 2.0), (4, 6.0), (5, 9.0)]
    curve.add(6, 12.0)
    assert curve.points == [(2, 2.0), (4, 6.0), (6, 10.5)]


def test_a_long_curve_stays_small_and_keeps_its_mean() -> None:
    curve = LossCurve(limit=300)
    for x in range(1, 9601):
        curve.add(x, float(x))
    assert len(curve.points) == 150
    assert curve.points[-1][0] == 9600
    assert sum(y for _, y in curve.points) / 150 == pytest.approx(4800.5)


def test_a_cut_curve_forgets_what_lies_beyond() -> None:
    curve = LossCurve(limit=4)
    for x in range(1, 6):
        curve.add(x, 1.0)
    curve.cut(4)
    assert [x for x, _ in curve.points] == [2, 4]


# -- as it happens ------------------------------------------------------------------------------------


PLAN = tuple(PlannedPhase(phase=name, epochs=2, steps=20) for name in ("encoder.0", "head"))
START = StartEvent(time=0.0, phases=PLAN, images=40, batch=4)


def begin(number: int, time: float) -> PhaseStartEvent:
    return PhaseStartEvent(
        time=time, phase=PLAN[number].phase, number=number + 1, phases=2, epochs=2, steps=20, steps_before=20 * number
    )


def step(number: int, time: float) -> StepEvent:
    return StepEvent(time=time, phase="encoder.0", epoch=1, step=number, loss=0.5, lr=0.1)


def test_work_beside_training_is_known_to_listeners_until_it_is_over() -> None:
    progress = RunProgress()
    progress.apply(START)
    evaluating = EvaluatingEvent(time=1.0, model="teacher", done=1, total=2)
    progress.apply(evaluating)
    assert progress.side_work == evaluating
    assert progress.updated == 0.0  # only what is written counts
    progress.apply(replace(evaluating, done=2))
    assert progress.side_work is None
    for event in (begin(0, 2.0), FillingEvent(time=3.0, done=3, total=40), step(1, 4.0)):
        progress.apply(event)
    assert progress.side_work is None


def test_a_copy_stays_as_it_is() -> None:
    progress = RunProgress()
    for event in (START, begin(0, 1.0), step(1, 2.0)):
        progress.apply(event)
    before = progress.copy()
    progress.apply(step(2, 3.0))
    progress.apply(StoppedEvent(time=4.0, phase="encoder.0"))
    assert (before.ended, before.phases[0].step, before.phases[0].losses.points) == (None, 1, [(1, 0.5)])
    assert (progress.ended, progress.phases[0].losses.points) == ("stopped", [(1, 0.5), (2, 0.5)])


def test_the_bars_stand_where_the_run_stands() -> None:
    """Two phases of 20 steps; after the first and 5 steps of the second the run is at 25 of 40."""
    bars = Bars(Console(file=io.StringIO(), force_terminal=True, width=200))
    end = PhaseEndEvent(time=5.0, phase="encoder.0", epochs=2, loss=0.25, seconds=4.0, graft_miou=0.5)

    def shown(*events: Event) -> list[tuple[str, float, float | None]]:
        for event in events:
            bars(event)
        return [(task.description, task.completed, task.total) for task in bars.progress.tasks]

    assert shown(PreparingEvent(time=0.0, stage="drawing", done=1, total=3)) == [("drawing", 1, 3)]
    assert shown(PreparingEvent(time=0.0, stage="drawing", done=3, total=3), START) == []
    assert shown(begin(0, 1.0), step(7, 2.0)) == [("run", 7, 40), ("1/2 encoder.0", 7, 20)]
    first = bars.progress.tasks[1].id
    assert shown(end) == [("run", 20, 40), ("1/2 encoder.0", 20, 20)]
    last = step(5, 7.0)
    assert shown(begin(1, 6.0), replace(last, phase="head")) == [("run", 25, 40), ("2/2 head", 5, 20)]
    assert bars.progress.tasks[1].id != first  # its own time left
    filling = FillingEvent(time=8.0, done=4, total=9)
    assert shown(filling)[-1] == ("storing features", 4, 9)
    assert shown(replace(last, time=9.0, phase="head", step=6))[-1] == ("2/2 head", 6, 20)


def test_plain_lines_tell_what_is_new() -> None:
    stream = io.StringIO()
    tell = PlainLines(stream)
    for done in range(1, 4):
        tell(PreparingEvent(time=0.0, stage="drawing", done=done, total=3))
    for event in (START, begin(0, 1.0), step(1, 2.0), *Run(OLD_RUNS / "stopped").events()):
        tell(event)
    assert stream.getvalue().splitlines() == [
        "drawing …",
        "feature store: in memory, 0.05 GiB, 4 views",
        "teacher: mIoU 0.4791 on val (4 images)",
        "encoder.0: loss 0.01998, graft mIoU 0.4071, 0.1 s",
        "encoder.1: loss 0.3835, graft mIoU 0.3832, 0.1 s",
        "paused after encoder.1",
    ]
