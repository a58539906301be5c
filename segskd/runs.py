"""A run's directory: its recipe, events and state, and whether a worker is alive. Readers need only the directory."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import filelock
import torch

from segskd.config import Recipe, dump_recipe, load_recipe
from segskd.errors import UserError
from segskd.events import EVENTS, ErrorEvent, Event, EventReader, WrittenEvent, append_event, stamped
from segskd.files import REFUSED, write_whole, writing
from segskd.folders import runs_folder as runs_folder
from segskd.run_progress import RunProgress

RUN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
Status = Literal["running", "finished", "paused", "interrupted", "failed", "new"]
# What torch.load raises for a file that is cut short, is no archive, or holds more than tensors.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError)
# A folder with one of these files holds a model or another run. No new run begins there.
OTHER_MODELS = ("config.json", "model.safetensors", "pytorch_model.bin", "state.pt", EVENTS)
# A folder with this file holds a study.
STUDY = "study.yaml"
IMPORTED = "imported"
"""The folder beside the runs that holds teachers made from files of weights."""
LOCK_SECONDS = 1.0
# To see whether a run is alive, its lock is taken for a moment. Threads take turns. Other processes are waited for.
PROBE_LOCK = threading.Lock()
PROBE_SECONDS = 0.002
AFTER_EPOCH = "after this epoch"


class Run:
    """One directory below checkpoints/ (or anywhere). See docs/architecture.md for its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listeners: list[Callable[[Event], None]] = []
        self._signalled = False
        self._lock = filelock.FileLock(path / ".lock")

    @classmethod
    def create(cls, path: Path, recipe: Recipe) -> Run:
        """Makes a new directory with its recipe. Raises UserError if the name is taken or the disk can't be written."""
        cls.check_free(path)
        run = cls(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run.write_recipe(recipe)
        return run

    @staticmethod
    def check_free(path: Path) -> None:
        """Raises UserError if the directory of a new run can't be made at `path`, since other files are there."""
        if path.name == IMPORTED:
            raise UserError(f"the folder '{IMPORTED}' holds imported teachers: give the run another name")
        if (path / "recipe.yaml").exists():
            if (path / "result.json").exists():
                raise UserError(f"run {path} exists and is finished: give the new one another name")
            raise UserError(f"run {path} exists: 'python -m segskd resume {path.name}' goes on, or give another name")
        other_files = [name for name in (*OTHER_MODELS, STUDY) if (path / name).exists()]
        if other_files:
            raise UserError(
                f"{path} is no run and holds {other_files[0]}: name another folder, so that nothing is lost"
            )

    @classmethod
    def open(cls, path: Path) -> Run:
        """Opens an existing run. Raises UserError if there is none."""
        if not _is_run(path):
            raise UserError(f"no run at {path}: 'python -m segskd runs' lists them")
        return cls(path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml")

    @property
    def model_folder(self) -> Path:
        """The folder of the trained network: the run's own folder for a teacher, student/ in it otherwise."""
        return self.path if self.recipe.kind == "teach" else self.path / "student"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of result.json (mIoU, scores, costs, times), or None until the run is finished."""
        found: dict[str, Any] | None = self.read_json("result.json")
        return found

    def write_recipe(self, recipe: Recipe) -> None:
        self.write("recipe.yaml", dump_recipe(recipe).encode())

    # -- liveness -----------------------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[None]:
        """Holds the run's lock while a worker trains it. Raises UserError if another worker holds it."""
        try:
            with writing(self.path):
                self._lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout as error:
            raise UserError(f"another process is working on run {self.name}: stop that process first") from error
        try:
            with suppress(FileNotFoundError):
                self._stop_file.unlink()
            yield
        finally:
            self._lock.release()

    def is_alive(self) -> bool:
        """Whether a worker holds the run's lock."""
        if not (self.path / ".lock").exists():
            return False
        probe = filelock.FileLock(self.path / ".lock")
        try:
            with PROBE_LOCK, probe.acquire(timeout=PROBE_SECONDS, poll_interval=PROBE_SECONDS):
                return False
        except filelock.Timeout:
            return True
        except OSError as error:  # no worker is in a folder that can't be written or was just deleted
            if error.errno in {*REFUSED, errno.ENOENT}:
                return False
            raise

    def status(self) -> Status:
        """The state of the run. "interrupted" means that its worker died or was stopped."""
        if self.is_alive():
            return "running"
        if (self.path / "result.json").exists():
            return "finished"
        progress = self.progress()
        if progress.ended and progress.ended != "stopped":
            return progress.ended
        begun = progress.ended or progress.begun or (self.path / "state.pt").exists()
        return "interrupted" if begun else "new"

    @property
    def _stop_file(self) -> Path:
        return self.path / "stop"

    def request_stop(self, after_epoch: bool = False) -> None:
        """Asks the worker to stop at its next step, or at the end of its epoch."""
        with writing(self._stop_file):
            if not after_epoch:
                self._stop_file.write_text("")
                return
            # The finished file is moved into place, since an empty file means: stop at the next step.
            whole = self.path / f".stop-{os.getpid()}-{threading.get_ident()}"
            whole.write_text(AFTER_EPOCH)
            os.replace(whole, self._stop_file)

    def stop_requested(self, epoch_over: bool = False) -> bool:
        """Whether to stop now, by `request_stop` or by a signal. `epoch_over` says that an epoch has just ended."""
        if self._signalled:
            return True
        try:
            request = self._stop_file.read_text()
        except FileNotFoundError:
            return False
        return epoch_over or request != AFTER_EPOCH

    @contextmanager
    def listening_to_signals(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into requests to stop, in the main thread."""

        def ask(_signal: int, _frame: FrameType | None) -> None:
            self._signalled = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # only the main thread may listen to signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def summary(self) -> dict[str, Any]:
        """A row for a list of runs. Figures are None until the run is finished."""
        try:
            recipe = self.recipe
            result = self.read_json("result.json") or {}
        except UserError:
            return dict.fromkeys(("dataset", "student", "method", "miou", "percent_of_teacher"), None) | {
                "run": self.name,
                "state": "damaged",
            }
        return {
            "run": self.name,
            "state": self.status(),
            "dataset": result.get("dataset", recipe.data.card),
            "student": recipe.network,
            "method": "teach" if recipe.kind == "teach" else recipe.method,
            "miou": result.get("miou"),
            "percent_of_teacher": result.get("percent_of_teacher"),
        }

    # -- events -------------------------------------------------------------------------------------

    def record(self, event: WrittenEvent) -> None:
        """Adds an event to events.jsonl and calls the listeners. Raises UserError if the disk can't be written."""
        event = stamped(event)
        append_event(self.path / EVENTS, event)
        self._notify(event)

    def notify(self, event: Event) -> None:
        """Calls the listeners and writes nothing."""
        if self.listeners:
            self._notify(stamped(event))

    def _notify(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def events(self) -> list[WrittenEvent]:
        """All events of the file, without lines that are cut short or can't be read."""
        return EventReader(self.path / EVENTS).read()[1]

    def progress(self) -> RunProgress:
        """How far the run is, by its events."""
        progress = RunProgress()
        for event in self.events():
            progress.apply(event)
        return progress

    # -- files --------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run, whole or not at all. Raises UserError if the disk can't be written."""
        write_whole(self.path / name, content)

    def write_json(self, name: str, content: object) -> None:
        self.write(name, json.dumps(content, indent=2).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the run, None if there is none. Raises UserError if it is damaged."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(f"{self.path / name} is damaged: delete it and resume the run") from error

    def save_state(self, state: dict[str, Any]) -> None:
        """Writes state.pt: tensors and plain values only."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.write("state.pt", buffer.getvalue())

    def load_state(self) -> dict[str, Any] | None:
        """What `save_state` wrote last, None if it wrote nothing yet. Raises UserError if the file is damaged."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (*DAMAGED, OSError) as error:
            raise UserError(f"{path} is damaged: start the run anew under another name") from error


class ReadOnlyRun(Run):
    """A run as its processes other than the first use it: they read its files, write none, and call no listener."""

    def write(self, name: str, content: bytes) -> None:
        """Writes nothing."""

    def record(self, event: WrittenEvent) -> None:
        """Writes only the error that ended this process."""
        if isinstance(event, ErrorEvent):
            super().record(event)

    def notify(self, event: Event) -> None:
        """Calls no listener."""

    def stop_requested(self, epoch_over: bool = False) -> bool:
        """Always False, since the first process decides for all."""
        return False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Takes no lock: the first process holds it."""
        yield


def _is_run(path: Path) -> bool:
    try:
        return (path / "recipe.yaml").is_file()
    except OSError:  # the name is too long for a file
        return False


def find_run(name_or_path: str, runs: Path | None = None) -> Run:
    """A run by its name below `runs` (`runs_folder()`), or by a path. Raises UserError when there is none."""
    below = (runs or runs_folder()) / name_or_path
    if Path(name_or_path).name == name_or_path and name_or_path.isprintable() and _is_run(below):
        return Run(below)
    return Run.open(Path(name_or_path).expanduser())


def list_runs(runs: Path | None = None) -> list[Run]:
    """All runs below `runs` (`runs_folder()`), the newest first."""
    times: dict[Path, float] = {}
    for path in (runs or runs_folder()).glob("*/recipe.yaml"):
        if path.parent.name.startswith("."):  # being deleted
            continue
        with suppress(FileNotFoundError):  # deleted or renamed in the meantime
            times[path.parent] = path.stat().st_mtime
    return [Run(path) for path in sorted(times, key=times.__getitem__, reverse=True)]


def default_name(recipe: Recipe, card: str) -> str:
    """A name that says what the run is, such as camvid-resnet10-stagewise-10pc-s0. `card` is the dataset's name."""
    if recipe.begin:
        return f"{Path(recipe.begin.run).name}-from-{recipe.begin.stage}"
    if recipe.prune:
        return f"{Path(recipe.prune.run).name}-pruned-{100 * recipe.prune.ratio:g}pc"
    encoder = recipe.student.partition(":")[2]
    if recipe.kind == "teach":
        return f"{card}-{encoder}-teacher"
    subset = recipe.subset
    count = subset.count or len(subset.names or ())
    share = str(count) if count else f"{100 * (subset.fraction or 1):g}pc"
    rule = "" if subset.rule == "random" else f"-{subset.rule}"
    labels = "" if subset.labels is None else f"-{100 * subset.labels:g}pc-labels"
    return f"{card}-{encoder}-{recipe.method}-{share}{rule}{labels}-s{recipe.seed}"


def free_name(wish: str, runs: Path | None = None) -> str:
    """`wish`, or `wish-2`, `wish-3` … if it is taken."""
    wish = re.sub(r"[^A-Za-z0-9_.-]+", "-", wish).strip("-.")
    names = (wish if i == 1 else f"{wish}-{i}" for i in range(1, 10_000))
    folder = runs or runs_folder()
    return next(name for name in names if not (folder / name).exists())
