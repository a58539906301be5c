"""A run's directory: its recipe, events, state and liveness. Readers need nothing but the directory."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import filelock
import torch

from segskd.config import Recipe, dump_recipe, load_recipe
from segskd.errors import UserError
from segskd.files import REFUSED, write_whole, writing

RUN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
Event = dict[str, Any]
Status = Literal["running", "finished", "paused", "interrupted", "failed", "new"]
# What torch.load raises for a file that is cut short, no archive, or holds more than tensors.
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, pickle.UnpicklingError)
# A folder that holds one of these is somebody's model, not room for a run.
FOREIGN = ("config.json", "model.safetensors", "pytorch_model.bin", "state.pt", "events.jsonl")
# A study's folder holds runs and is none.
STUDY = "study.yaml"
IMPORTED = "imported"
"""A folder beside the runs, for teachers made of files of weights."""
LOCK_SECONDS = 1.0
# Who only looks holds the lock for a moment, too: looks of this process take turns, those of others are waited out.
LOOKING = threading.Lock()
LOOK_SECONDS = 0.002
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
        """A new directory with its recipe. Raises UserError when it is taken or can't be written."""
        run = cls(path)
        if path.name == IMPORTED:
            raise UserError(f"'{IMPORTED}' is where teachers lie that were files: give the run another name")
        if (path / "recipe.yaml").exists():
            raise UserError(f"run {path} exists: 'python -m segskd resume {path.name}' goes on, or give another name")
        foreign = [name for name in (*FOREIGN, STUDY) if (path / name).exists()]
        if foreign:
            raise UserError(f"{path} holds {foreign[0]} and is no run: name another folder, so that nothing is lost")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run.write_recipe(recipe)
        return run

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run. Raises UserError when there is none."""
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
        """The folder of the trained network, which is the run itself for a teacher and student/ otherwise."""
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
        """Holds the run's lock while a worker works on it. Raises UserError when another one does."""
        try:
            with writing(self.path):
                self._lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout as error:
            raise UserError(f"run {self.name} is being worked on by another process: stop that one first") from error
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
            with LOOKING, probe.acquire(timeout=LOOK_SECONDS, poll_interval=LOOK_SECONDS):
                return False
        except filelock.Timeout:
            return True
        except OSError as error:  # a folder that can't be written, or has just been deleted, has no worker
            if error.errno in {*REFUSED, errno.ENOENT}:
                return False
            raise

    def status(self) -> Status:
        """What the run is doing; "interrupted" when its worker died or was stopped."""
        if self.is_alive():
            return "running"
        if (self.path / "result.json").exists():
            return "finished"
        last = next((e["kind"] for e in reversed(self.events()) if e["kind"] in _CLOSING), None)
        if last is None:
            return "interrupted" if (self.path / "state.pt").exists() else "new"
        return _CLOSING[last]

    @property
    def _stop_file(self) -> Path:
        return self.path / "stop"

    def request_stop(self, after_epoch: bool = False) -> None:
        """Asks the worker to stop at its next step, or at the end of its epoch."""
        with writing(self._stop_file):
            if not after_epoch:
                self._stop_file.write_text("")
                return
            # Whole at once: while it is empty it would mean the next step.
            whole = self.path / f".stop-{os.getpid()}-{threading.get_ident()}"
            whole.write_text(AFTER_EPOCH)
            os.replace(whole, self._stop_file)

    def stop_requested(self, epoch_over: bool = False) -> bool:
        """Whether somebody asked, by `request_stop` or by a signal; `epoch_over` says that an epoch just ended."""
        if self._signalled:
            return True
        try:
            asked = self._stop_file.read_text()
        except FileNotFoundError:
            return False
        return epoch_over or asked != AFTER_EPOCH

    @contextmanager
    def listening_to_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM become requests to stop, as far as this is the main thread."""

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
        """What a list of runs shows; figures are None until the run is finished."""
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

    def event(self, kind: str, /, **figures: Any) -> None:
        """Adds one line to events.jsonl and tells the listeners."""
        event = _event(kind, figures)
        with writing(self.path / "events.jsonl"), open(self.path / "events.jsonl", "ab+") as file:
            if not _ends_with_newline(file):
                file.write(b"\n")
            file.write(json.dumps(event).encode() + b"\n")
        self._tell(event)

    def tell(self, kind: str, /, **figures: Any) -> None:
        """Tells the listeners alone: what is of interest only while it happens."""
        self._tell(_event(kind, figures))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)

    def events(self) -> list[Event]:
        """All complete events; a line cut short by a killed worker is left out."""
        try:
            lines = (self.path / "events.jsonl").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            with suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict) and "kind" in event]

    # -- files --------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes) -> None:
        """Writes a file of the run whole. Raises UserError when the disk won't take it."""
        write_whole(self.path / name, content)

    def write_json(self, name: str, content: object) -> None:
        self.write(name, json.dumps(content, indent=2).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """A JSON file of the run, None when it is not there."""
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
        """What `save_state` wrote last, None when the run has not got that far."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (*DAMAGED, OSError) as error:
            raise UserError(f"{path} is damaged: start the run anew under another name") from error


_CLOSING: dict[str, Status] = {
    "done": "finished",
    "paused": "paused",
    "stopped": "interrupted",
    "error": "failed",
    "phase_start": "interrupted",
    "resumed": "interrupted",
}


class Onlooker(Run):
    """A run as all but the first of its processes have it: they read its files, write nothing and tell nobody."""

    def write(self, name: str, content: bytes) -> None:
        """Nothing."""

    def event(self, kind: str, /, **figures: Any) -> None:
        """Nothing but what ended this process."""
        if kind == "error":
            super().event(kind, **figures)

    def tell(self, kind: str, /, **figures: Any) -> None:
        """Nothing."""

    def stop_requested(self, epoch_over: bool = False) -> bool:
        """The first process asks."""
        return False

    @contextmanager
    def working(self) -> Iterator[None]:
        """The first process holds the lock."""
        yield


def runs_folder() -> Path:
    """Where runs lie: SEGSKD_RUNS, else checkpoints/ in the project."""
    given = os.environ.get("SEGSKD_RUNS")
    return Path(given).expanduser().resolve() if given else Path(__file__).resolve().parents[1] / "checkpoints"


def _is_run(path: Path) -> bool:
    try:
        return (path / "recipe.yaml").is_file()
    except OSError:  # a name that is too long for one
        return False


def find_run(name_or_path: str, runs: Path | None = None) -> Run:
    """A run by its name below `runs` (`runs_folder()`), or by a path. Raises UserError when there is none."""
    below = (runs or runs_folder()) / name_or_path
    if Path(name_or_path).name == name_or_path and name_or_path.isprintable() and _is_run(below):
        return Run(below)
    return Run.open(Path(name_or_path).expanduser())


def list_runs(runs: Path | None = None) -> list[Run]:
    """All runs below `runs`, the newest first."""
    written: dict[Path, float] = {}
    for path in (runs or runs_folder()).glob("*/recipe.yaml"):
        if path.parent.name.startswith("."):  # being deleted
            continue
        with suppress(FileNotFoundError):  # deleted or renamed in the meantime
            written[path.parent] = path.stat().st_mtime
    return [Run(path) for path in sorted(written, key=written.__getitem__, reverse=True)]


def default_name(recipe: Recipe, card: str) -> str:
    """A run's name by what it is about, `card` being the dataset's, such as camvid-resnet10-stagewise-10pc-s0."""
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
    """`wish`, or `wish-2`, `wish-3` … when it is taken."""
    wish = re.sub(r"[^A-Za-z0-9_.-]+", "-", wish).strip("-.")
    names = (wish if i == 1 else f"{wish}-{i}" for i in range(1, 10_000))
    folder = runs or runs_folder()
    return next(name for name in names if not (folder / name).exists())


def _event(kind: str, figures: dict[str, Any]) -> Event:
    return {"time": round(time.time(), 3), "kind": kind, **figures}


def _ends_with_newline(file: Any) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
