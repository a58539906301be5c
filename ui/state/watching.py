"""Answers for the Watch tab's script, as plain data. An answer to a poll has a few kilobytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from typing_extensions import TypedDict

from segskd.distill.running.session import halve_batch
from segskd.errors import UserError, in_labels
from segskd.events import EVENTS
from segskd.run_progress import LossCurve, PhaseProgress, Point
from segskd.runs import Run, list_runs

from ..context import Context
from . import previews
from .choice import Choice
from .failure import Failure, diagnose
from .follow import Followers, RunView
from .logs import tail

MOST_LISTED = 200
POINTS_A_PHASE = 60
"""In the curve over all phases."""
FIGURES = ("network", "miou", "pixel_accuracy", "parameters", "gmacs", "bytes", "latency_ms")
FACTS = ("seconds", "device", "chosen_on", "images", "size", "split")


class WatchQuery(TypedDict, total=False):
    """What the tab's script sends."""

    run: str | None
    phase: str | None
    known: dict[str, str]
    pictures: list[str]
    whole: bool
    halve: bool


class Watching:
    """Answers the page. `query` comes from the browser, so its names are checked before they are used."""

    def __init__(self, context: Context, followers: Followers | None = None) -> None:
        self._context = context
        self._followers = followers or Followers(context)

    def page(self, query: WatchQuery) -> dict[str, Any]:
        """The run `query["run"]`, or the one that trains, or the last one; and the list of all runs."""
        runs = list_runs(self._context.runs)[:MOST_LISTED]
        states = {run.name: self._followers.state(run.name) for run in runs}
        view, problem = self._view(query.get("run"), runs, states)
        answer: dict[str, Any] = {
            "runs": [{"name": name, "state": state} for name, state in states.items()],
            "problem": problem,
            "run": None,
        }
        if view is not None:
            found = self._of_run(view)
            answer |= found | {"problem": problem or found["problem"]}
        return answer

    def curves(self, query: WatchQuery) -> dict[str, Any]:
        """Losses and scores of one phase, or of all phases in a row with fewer points each."""
        view = self._followers.get(query.get("run"))
        chosen = [phase for phase in view.phases if phase.name == query.get("phase")]
        if chosen:
            phase = chosen[0]
            return {**{name: curve.points for name, curve in _curves(phase).items()}, "bounds": []}
        return _in_a_row(view.phases)

    def previews(self, query: WatchQuery) -> dict[str, Any]:
        """The masks after phase `query["phase"]` that the page needs. `query["known"]` has the stamps of its masks.

        For an image that is not in `query["pictures"]` the answer also has the photograph, truth and teacher's mask.
        """
        run, phase = self._context.run(query.get("run")), str(query.get("phase"))
        names = [view.name for view in self._followers.get(run.name).phases]
        images = previews.pinned(run, phase) if phase in names else []
        known, pictures = query.get("known", {}), query.get("pictures", [])
        try:
            shown = [_picture(run, image, known, pictures) for image in images]
            return {"images": shown, "legend": previews.legend(run), "problem": ""}
        except (UserError, OSError) as error:
            return {"images": [], "legend": [], "problem": str(error)}

    def log(self, query: WatchQuery) -> dict[str, Any]:
        """The last lines of the log, or all of it with `query["whole"]`."""
        path = self._context.run(query.get("run")).path / "log.txt"
        if query.get("whole"):
            return {"text": path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""}
        return {"lines": tail(path)}

    def retry(self, query: WatchQuery) -> dict[str, Any]:
        """Puts the run into the queue again, with half the batch if the query says so. Returns the error as text."""
        try:
            run = self._context.run(query.get("run"))
            if query.get("halve"):
                halve_batch(run)
            self._context.jobs.resume(run.name)
        except UserError as error:
            return {"problem": in_labels(error)}
        return {"problem": ""}

    def choice_for(self, teacher: str, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """The choice of the Data tab with that run as its teacher. Other data are replaced by the run's own.

        Raises UserError if there is no such run.
        """
        run = self._context.run(teacher)
        before = Choice.from_dict(chosen)
        same = chosen is not None and before.card == run.recipe.data.card
        return replace(before if same else Choice(card=run.recipe.data.card), teacher=run.name).as_dict()

    def _view(self, name: object, runs: list[Run], states: dict[str, Any]) -> tuple[RunView | None, str]:
        problem = ""
        if name:
            try:
                return self._followers.get(name), ""
            except UserError:
                problem = f"There is no run {name!r} here any more."
        default = _default(runs, states)
        return (self._followers.get(default) if default else None), problem

    def _of_run(self, view: RunView) -> dict[str, Any]:
        run = self._context.run(view.name)
        path = run.path / "log.txt"
        status = path.stat() if path.is_file() else None
        failure = self._failure(view, run)
        return {
            "run": view.as_dict(),
            "problem": "" if failure else view.problem,
            "failure": failure.as_dict() if failure else None,
            "result": _summary(view.result),
            "drawn": previews.drawn_phases(run),
            "lately": self._last_log_line(view, run),
            "log": [status.st_size, status.st_mtime_ns // 1_000_000] if status else None,
        }

    def _last_log_line(self, view: RunView, run: Run) -> str:
        """The last line of the log while the worker prepares to train, else ""."""
        beginning = view.state == "starting" or (view.state == "running" and view.progress.activity == "beginning")
        return " ".join(self._own_log(view.name, run)[-1:]) if beginning else ""

    def _own_log(self, name: str, run: Run) -> list[str]:
        """The last lines of the log, empty if the last worker wrote nothing, since older lines are another worker's."""
        worker, path = self._context.jobs.worker(name), run.path / "log.txt"
        if worker and path.is_file() and path.stat().st_mtime < worker.born:
            return []
        return tail(path)

    def _failure(self, view: RunView, run: Run) -> Failure | None:
        if view.state in ("running", "starting", "waiting", "finished"):
            return None
        worker = self._context.jobs.worker(view.name)
        return diagnose(view, self._own_log(view.name, run), worker is not None)


def _default(runs: list[Run], states: dict[str, Any]) -> str | None:
    """The name of the run that trains, else of the next one in the queue, else of the one that changed last."""
    for wanted in ("running", "starting", "waiting"):
        found = [name for name, state in states.items() if state == wanted]
        if found:
            return found[-1] if wanted == "waiting" else found[0]
    times: dict[str, float] = {run.name: _last_change(run) for run in runs}
    return max(times, key=lambda name: times[name]) if times else None


def _last_change(run: Run) -> float:
    for name in (EVENTS, "recipe.yaml"):
        path = run.path / name
        if path.is_file():
            return path.stat().st_mtime
    return 0.0


def _curves(phase: PhaseProgress) -> dict[str, LossCurve]:
    return {"steps": phase.losses, "epochs": phase.epoch_losses, "scores": phase.scores}


def _in_a_row(phases: list[PhaseProgress]) -> dict[str, Any]:
    """The curves of all phases in a row, by the step over all phases. Bounds are the steps at which phases end."""
    curves: dict[str, list[Point]] = {"steps": [], "epochs": [], "scores": []}
    bounds, before = [], 0
    for phase in phases:
        for name, curve in _curves(phase).items():
            curves[name] += [(before + x, y) for x, y in _thinned(curve.points)]
        before += phase.steps
        bounds.append(before)
    return {**curves, "bounds": bounds}


def _thinned(points: list[Point]) -> list[Point]:
    every = -(-len(points) // POINTS_A_PHASE) if points else 1
    return points[every - 1 :: every]


def _picture(run: Run, image: previews.Pinned, known: dict[str, str], pictures: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": image.name, "stamp": image.stamp}
    if known.get(image.name) != image.stamp:
        shown["mask"] = previews.mask(image.mask)
    if image.name not in pictures:
        shown["photo"] = previews.photograph(run, image.name)
        shown["truth"] = previews.truth(run, image.name)
        own = previews.teacher_masks(run).get(image.name)
        shown["teacher"] = previews.mask(own) if own else ""
    return shown


def _summary(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """The part of a result.json that the page shows."""
    if result is None:
        return None
    models = {who: result[who] for who in ("teacher", "student") if isinstance(result.get(who), dict)}
    return {
        **{name: result.get(name) for name in FACTS},
        "models": {who: {name: model.get(name) for name in FIGURES} for who, model in models.items()},
    }
