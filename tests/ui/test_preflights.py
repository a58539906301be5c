"""Pre-flights in processes of their own: what comes of them, cancelling, and freshness."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from segskd.config import Recipe, named
from segskd.errors import ErrorRecord, UserError
from ui.context import Context
from ui.jobs import Jobs
from ui.state import preflights as preflight
from ui.state.preflights import Preflights, read_outcome, recipe_key

pytestmark = pytest.mark.slow

PATIENCE = 300.0
GOOD = json.dumps({"fits": True, "problem": None, "seconds": 1.5})
FULL = json.dumps({"fits": False, "problem": "take a smaller batch"})


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def flights(tmp_path: Path) -> Iterator[Preflights]:
    made = Preflights(Context(tmp_path, tmp_path, Jobs(tmp_path, tmp_path)))
    yield made
    made.close()


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Lets a script stand in for the command; it is given the same arguments."""
    script, real = tmp_path / "stand-in.py", sys.executable

    def write(text: str) -> Path:
        script.write_text(f"import json, os, sys, time\nfrom pathlib import Path\n{text}\n")
        shell = tmp_path / "python"
        shell.write_text(f'#!/bin/sh\nexec "{real}" "{script}" "$@"\n')
        shell.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(shell))
        return script

    return write


def test_what_the_command_says_is_kept(
    flights: Preflights, recipe: Callable[..., Recipe], program: Callable[[str], Path], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    program(
        f"Path({str(seen)!r}).write_text(json.dumps([sys.argv[1:], os.nice(0), os.environ['SEGSKD_RUNS'], "
        f"Path(sys.argv[5]).read_text()]))\nprint('noise')\nprint({GOOD!r})"
    )
    made = recipe()
    key = flights.ask(made)
    wait_until(lambda: flights.state(key)["state"] == "fits")
    assert flights.state(key)["result"] == json.loads(GOOD)
    words, nice, runs, text = json.loads(seen.read_text())
    assert [words[i] for i in (0, 1, 2, 3, 5)] == ["-m", "segskd", "preflight", "--recipe", "--json"]
    assert nice >= 0
    assert runs == str(tmp_path)
    assert "teacher: " + str(made.teacher) in text
    seen.unlink()
    assert flights.ask(made) == key
    assert flights.state(key)["state"] == "fits"
    assert not seen.exists()  # known already: nothing is measured again


TOO_LARGE = ErrorRecord.of(UserError(f"take a smaller {named('data.size')}", "data.size")).as_dict()


@pytest.mark.parametrize(
    ("status", "output", "errors", "state", "problem"),
    [
        (0, f"x\n{GOOD}\n", "", "fits", None),
        (0, FULL, "", "refused", "take a smaller batch"),
        (2, json.dumps(TOO_LARGE), "segskd: take a smaller --size", "refused", "take a smaller «Size»"),
        (0, json.dumps({"fits": False, "problem": "", **TOO_LARGE}), "", "refused", "take a smaller «Size»"),
        (2, "", "noise\nsegskd: no card 'x'\n", "refused", "no card 'x'"),
        (1, "", "Traceback\nValueError: y\n", "failed", "it ended with status 1: ValueError: y"),
        (-9, "", "", "failed", "it ended with status -9: and said nothing"),
        (0, "", "", "failed", "it printed no result"),
        (0, "[]", "", "failed", "it printed no result"),
    ],
)
def test_what_came_of_it(status: int, output: str, errors: str, state: str, problem: str | None) -> None:
    found = read_outcome(status, output, errors)
    assert (found[0], found[2]) == (state, problem)


def test_one_at_a_time_and_cancelled(
    flights: Preflights, recipe: Callable[..., Recipe], program: Callable[[str], Path], tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    program(f"Path({str(pids)!r}).open('a').write(f'{{os.getpid()}}\\n')\ntime.sleep(300)")
    one, two = flights.ask(recipe(seed=1)), flights.ask(recipe(seed=2))
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    assert {flights.state(key)["state"] for key in (one, two)} == {"running", "waiting"}
    running = next(key for key in (one, two) if flights.state(key)["state"] == "running")
    other = two if running == one else one
    flights.cancel(other)
    flights.cancel(running)
    pid = int(pids.read_text())
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert [flights.state(key)["state"] for key in (one, two)] == ["cancelled", "cancelled"]
    assert len(pids.read_text().splitlines()) == 1
    program(f"print({GOOD!r})")
    wait_until(lambda: flights.state(flights.ask(recipe(seed=1)))["state"] == "fits")


def test_one_that_takes_too_long_is_ended(
    flights: Preflights, recipe: Callable[..., Recipe], program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "LONGEST_SECONDS", 0.2)
    program("time.sleep(300)")
    key = flights.ask(recipe())
    wait_until(lambda: flights.state(key)["state"] == "failed")
    assert "took longer" in flights.state(key)["problem"]


def test_what_was_found_grows_old(
    flights: Preflights, recipe: Callable[..., Recipe], program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program("print('segskd: no room', file=sys.stderr); sys.exit(2)")
    key = flights.ask(recipe())
    wait_until(lambda: flights.state(key)["state"] == "refused")
    monkeypatch.setattr(preflight, "VALID_SECONDS", {"refused": 0})
    assert flights.state(key)["state"] == "unknown"
    assert flights.state("nonsense")["state"] == "unknown"


def test_the_key_is_the_recipes(recipe: Callable[..., Recipe]) -> None:
    assert recipe_key(recipe()) == recipe_key(recipe())
    assert recipe_key(recipe()) != recipe_key(recipe(seed=1))


@pytest.mark.slow
def test_the_real_command(data: Path, tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    flights = Preflights(Context(data, tmp_path, Jobs(tmp_path, data)))
    key = flights.ask(recipe(teacher="/gone"))
    wait_until(lambda: flights.state(key)["state"] not in ("waiting", "running"))
    assert flights.state(key)["state"] == "refused"
    assert "no model at /gone" in flights.state(key)["problem"]
