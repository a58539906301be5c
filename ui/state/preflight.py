"""Pre-flights for the page: `python -m segskd preflight` in a process of its own, one at a time, results kept."""

from __future__ import annotations

import atexit
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from segskd.config import Recipe, dump_recipe
from segskd.errors import ErrorRecord, in_labels
from ui.context import Context
from ui.processes import NICENESS, ROOT, child_environment

TIMEOUT = 120.0
FRESH_SECONDS = {"fits": 15 * 60, "refused": 60}
BAD_INPUT = 2
MOST_KEPT = 100
State = Literal["unknown", "waiting", "running", "fits", "refused", "failed", "cancelled"]


@dataclass
class Check:
    """One pre-flight: what it does, since when, and what it found.

    "refused" is what won't fit, or what a run would end with; "failed" is a pre-flight that found nothing out.
    """

    state: State = "waiting"
    begun: float = field(default_factory=time.monotonic)
    result: dict[str, Any] | None = None
    problem: str | None = None
    process: subprocess.Popen[str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return {
            "state": self.state,
            "seconds": round(time.monotonic() - self.begun, 1),
            "result": self.result,
            "problem": self.problem,
        }


UNKNOWN: dict[str, Any] = {"state": "unknown", "seconds": 0, "result": None, "problem": None}


class Preflights:
    """Measures recipes in the background. Free memory changes, so what was found holds for FRESH_SECONDS."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._checks: dict[str, Check] = {}
        self._turn = threading.Lock()
        self._guard = threading.Lock()
        atexit.register(self.close)

    def ask(self, recipe: Recipe) -> str:
        """Measures a recipe unless that is done or under way; the key under which `state` knows it."""
        key = recipe_key(recipe)
        with self._guard:
            if self.state(key)["state"] in ("unknown", "failed", "cancelled"):
                check = self._checks[key] = Check()
                for old in list(self._checks)[:-MOST_KEPT]:
                    del self._checks[old]
                threading.Thread(target=self._measure, args=(check, recipe), name="pre-flight", daemon=True).start()
        return key

    def state(self, key: str) -> dict[str, Any]:
        """{"state", "seconds", "result", "problem"}; "unknown" for what was never asked, or is no longer fresh."""
        check = self._checks.get(key)
        if check is None or time.monotonic() - check.begun > FRESH_SECONDS.get(check.state, math.inf):
            return dict(UNKNOWN)
        return check.as_dict()

    def cancel(self, key: str) -> None:
        """Ends a pre-flight that waits or runs."""
        check = self._checks.get(key)
        if check and check.state in ("waiting", "running"):
            check.state = "cancelled"
            _kill(check)

    def close(self) -> None:
        """Ends whatever runs."""
        for key in list(self._checks):
            self.cancel(key)

    def _measure(self, check: Check, recipe: Recipe) -> None:
        with self._turn:
            if check.state != "waiting":
                return
            check.state, check.begun = "running", time.monotonic()
            with tempfile.TemporaryDirectory(prefix="segskd-") as folder:
                path = Path(folder) / "recipe.yaml"
                path.write_text(dump_recipe(recipe), encoding="utf-8")
                self._run(check, path)

    def _run(self, check: Check, path: Path) -> None:
        environment = {
            **child_environment(self._context.runs, self._context.data),
            "TMPDIR": str(path.parent),  # what it leaves behind when it is killed goes with the folder
        }
        process = check.process = subprocess.Popen(
            [sys.executable, "-m", "segskd", "preflight", "--recipe", str(path), "--json"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with suppress(psutil.Error):
            psutil.Process(process.pid).nice(NICENESS)
        if check.state == "cancelled":  # asked between the thread's look and the start
            _kill(check)
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            _kill(check)
            process.communicate()
            check.state, check.problem = "failed", f"it took longer than {TIMEOUT:.0f} s and was ended"
            return
        if check.state == "running":
            check.state, check.result, check.problem = read_outcome(process.returncode, output, errors)


def read_outcome(status: int, output: str, errors: str) -> tuple[State, dict[str, Any] | None, str | None]:
    """(state, result, problem) from what the command left: exit status, standard output and error."""
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "").removeprefix("segskd: ")
    if status == BAD_INPUT:
        return "refused", None, _refusal(output) or last or "the recipe can't be carried out"
    if status != 0:
        return "failed", None, f"it ended with status {status}: {last or 'and said nothing'}"
    try:
        result: dict[str, Any] = json.loads(output.splitlines()[-1])
        fits, problem = bool(result["fits"]), result.get("template") or result["problem"]
    except (ValueError, LookupError, TypeError):
        return "failed", None, "it printed no result"
    return ("fits", result, None) if fits else ("refused", result, in_labels(str(problem)))


def _refusal(output: str) -> str:
    """What the command says is wrong with the recipe, in the page's words; "" where it says nothing."""
    try:
        return ErrorRecord.read(json.loads(output.splitlines()[-1])).in_labels
    except (ValueError, LookupError, AttributeError):
        return ""


def recipe_key(recipe: Recipe) -> str:
    """The same for equal recipes alone."""
    return hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()[:20]


def _kill(check: Check) -> None:
    if check.process is not None and check.process.poll() is None:
        with suppress(OSError):
            os.killpg(check.process.pid, signal.SIGKILL)
