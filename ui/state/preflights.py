"""Pre-flights for the page. A worker, `segskd preflight`, measures one recipe at a time. The results are stored."""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segskd.config import Recipe, dump_recipe
from segskd.errors import ErrorRecord, in_labels
from segskd.supervisor import Worker, folder_variables, json_result, last_line, segskd, start

from ..context import Context

LONGEST_SECONDS = 120.0
VALID_SECONDS = {"fits": 15 * 60, "refused": 60}
"""How long a result is valid. The free memory changes."""
BAD_INPUT = 2
MOST_STORED = 100
State = Literal["unknown", "waiting", "running", "fits", "refused", "failed", "cancelled"]


@dataclass
class PreflightCheck:
    """One pre-flight: its state, its start and its result.

    "refused": the run doesn't fit, or would fail. "failed": the pre-flight itself failed.
    """

    state: State = "waiting"
    begun: float = field(default_factory=time.monotonic)
    result: dict[str, Any] | None = None
    problem: str | None = None
    worker: Worker | None = None

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
    """Measures recipes in the background."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._checks: dict[str, PreflightCheck] = {}
        self._turn = threading.Lock()
        self._guard = threading.Lock()

    def ask(self, recipe: Recipe) -> str:
        """Measures a recipe, unless that is being done or there is a valid result. Returns the key for `state`."""
        key = recipe_key(recipe)
        with self._guard:
            if self.state(key)["state"] in ("unknown", "failed", "cancelled"):
                check = self._checks[key] = PreflightCheck()
                for old in list(self._checks)[:-MOST_STORED]:
                    del self._checks[old]
                threading.Thread(target=self._measure, args=(check, recipe), name="pre-flight", daemon=True).start()
        return key

    def state(self, key: str) -> dict[str, Any]:
        """{"state", "seconds", "result", "problem"}. The state is "unknown" if there is no valid result."""
        check = self._checks.get(key)
        if check is None or time.monotonic() - check.begun > VALID_SECONDS.get(check.state, math.inf):
            return dict(UNKNOWN)
        return check.as_dict()

    def cancel(self, key: str) -> None:
        """Ends a pre-flight that waits or runs."""
        check = self._checks.get(key)
        if check and check.state in ("waiting", "running"):
            check.state = "cancelled"
            if check.worker is not None:
                check.worker.kill()

    def close(self) -> None:
        """Ends all pre-flights."""
        for key in list(self._checks):
            self.cancel(key)

    def _measure(self, check: PreflightCheck, recipe: Recipe) -> None:
        with self._turn:
            if check.state != "waiting":
                return
            check.state, check.begun = "running", time.monotonic()
            with tempfile.TemporaryDirectory(prefix="segskd-") as folder:
                path = Path(folder) / "recipe.yaml"
                path.write_text(dump_recipe(recipe), encoding="utf-8")
                self._run(check, path)

    def _run(self, check: PreflightCheck, path: Path) -> None:
        environment = {
            **folder_variables(self._context.runs, self._context.data),
            "TMPDIR": str(path.parent),  # if it is killed, its temporary files are deleted with the folder
        }
        command = segskd("preflight", "--recipe", str(path), "--json")
        with start(command, "bound", output="kept", environment=environment, low_priority=True) as worker:
            check.worker = worker
            if check.state == "cancelled":  # cancelled just before the start
                return
            try:
                status = worker.wait(LONGEST_SECONDS)
            except TimeoutError:
                check.state, check.problem = "failed", f"it took longer than {LONGEST_SECONDS:.0f} s and was ended"
                return
            if check.state == "running":
                check.state, check.result, check.problem = read_outcome(
                    status, worker.output_text(), worker.error_text()
                )


def read_outcome(status: int, output: str, errors: str) -> tuple[State, dict[str, Any] | None, str | None]:
    """(state, result, problem) from the command's exit status, standard output and standard error."""
    last = last_line(errors)
    if status == BAD_INPUT:
        return "refused", None, _refusal(output) or last or "the recipe can't be carried out"
    if status != 0:
        return "failed", None, f"it ended with status {status}: {last or 'and said nothing'}"
    try:
        result: dict[str, Any] = json_result(output)
        fits, problem = bool(result["fits"]), result.get("template") or result["problem"]
    except (ValueError, LookupError, TypeError):
        return "failed", None, "it printed no result"
    return ("fits", result, None) if fits else ("refused", result, in_labels(str(problem)))


def _refusal(output: str) -> str:
    """The command's message about the recipe, with the page's labels; "" if there is none."""
    try:
        return ErrorRecord.read(json_result(output)).in_labels
    except (ValueError, LookupError, AttributeError):
        return ""


def recipe_key(recipe: Recipe) -> str:
    """A key, which is the same for equal recipes only."""
    return hashlib.sha256(dump_recipe(recipe).encode()).hexdigest()[:20]
