"""Workers: where they work, with whose code, how they end, and that nobody else's process is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import segskd
from segskd.supervisor import NICENESS, Life, ProcessRecord, Worker, json_result, last_line, module, start

pytestmark = pytest.mark.slow

PATIENCE = 30.0
SLEEP = "import time; print('up', flush=True); time.sleep(600)"
CHILD = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)
time.sleep(600)
"""
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def sleeper() -> Iterator[Worker]:
    """A worker that has begun and does not end."""
    with start(python(SLEEP), "bound", output="piped") as worker:
        worker.output.readline()
        yield worker


def test_it_works_in_the_callers_folder_with_the_callers_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the user's may hold modules that are named like those of Python and of SegSKD."""
    for name in ("segskd", "json"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    program = "import os, json, segskd; print(json.dumps([os.getcwd(), segskd.__file__, os.environ['MINE']]))"
    with start(python(program), "bound", output="kept", environment={"MINE": "1"}) as worker:
        assert worker.wait(PATIENCE) == 0, worker.error_text()
        assert json_result(worker.output_text()) == [str(tmp_path), segskd.__file__, "1"]
    with start(module("segskd.nothing"), "bound") as worker:
        assert worker.wait(PATIENCE) == 1
        assert last_line(worker.error_text()).endswith("No module named segskd.nothing")


@pytest.mark.parametrize(("life", "own"), [("lasting", True), ("bound", True), ("part", False)])
def test_a_process_group_of_its_own(life: Life, own: bool) -> None:
    program = "import os; print(os.getpgid(0) == os.getsid(0) == os.getpid(), os.nice(0))"
    with start(python(program), life, output="kept") as worker:
        assert worker.wait(PATIENCE) == 0
        assert worker.output_text() == f"{own} {os.nice(0)}\n"


def test_low_priority() -> None:
    with start(python(SLEEP), "part", low_priority=True) as worker:
        process = worker.record.process()
        assert process is not None
        assert process.nice() == max(NICENESS, os.nice(0))


def test_its_group_is_killed_with_it() -> None:
    with start(python(CHILD), "bound", output="piped") as worker:
        child = int(worker.output.readline())
        assert lives(child)
    assert worker.wait() == -signal.SIGKILL
    wait_until(lambda: not lives(child))


def test_one_that_is_asked_to_stop_may_end_by_itself() -> None:
    program = f"import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); {SLEEP}"
    with start(python(program), "bound", output="piped") as worker:
        worker.output.readline()
        worker.ask_to_stop()
        assert worker.wait(PATIENCE) == 130


def test_only_the_first_process_is_asked_to_stop() -> None:
    """It tells the others when to stop; a signal would end those that don't listen yet."""
    with start(python(CHILD), "bound", output="piped") as worker:
        child = int(worker.output.readline())
        worker.ask_to_stop()
        assert worker.wait(PATIENCE) == -signal.SIGTERM
        time.sleep(0.2)
        assert lives(child)
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize(("program", "status"), [(SLEEP, -signal.SIGTERM), (DEAF, -signal.SIGKILL)])
def test_one_that_does_not_stop_is_ended(program: str, status: int) -> None:
    with start(python(program), "bound", output="piped") as worker:
        worker.output.readline()
        worker.record.end(0.2)
        assert worker.wait(PATIENCE) == status


def test_another_process_of_the_same_number_is_left_alone(sleeper: Worker) -> None:
    """After a restart of the machine a number that was written down may be somebody else's."""
    other = ProcessRecord(sleeper.record.pid, sleeper.record.born - 100)
    assert other.process() is None
    other.send(signal.SIGKILL)
    other.end(0.1)
    assert sleeper.record.process() is not None
    assert not sleeper.is_over()


def test_a_record_is_read_back(sleeper: Worker, tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_bytes(sleeper.record.as_json())
    assert ProcessRecord.read(tmp_path / "worker.json") == sleeper.record
    assert ProcessRecord.read(tmp_path / "none.json") is None
    sleeper.kill()
    assert sleeper.record.process() is None


def test_waiting_has_an_end(sleeper: Worker) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        sleeper.wait(0.2)
    assert 0.2 <= time.monotonic() - begun < PATIENCE
    assert not sleeper.is_over()


def test_who_waits_can_cancel() -> None:
    heard: list[None] = []

    def cancel() -> None:
        heard.append(None)
        if len(heard) == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError), start(python(SLEEP), "lasting") as worker:
        worker.wait(PATIENCE, cancel)
    assert worker.wait() == -signal.SIGKILL


def test_a_log_grows_and_said_is_its_own_part(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    for word in ("first", "second"):
        program = f"import sys; print('{word}', flush=True); print('segskd: {word} word', file=sys.stderr)"
        with start(python(program), "lasting", output="logged", log=log) as worker:
            assert worker.wait(PATIENCE) == 0
            assert worker.error_text() == f"{word}\nsegskd: {word} word\n"
    assert log.read_text() == "first\nsegskd: first word\nsecond\nsegskd: second word\n"


def test_bound_workers_end_with_their_caller_and_lasting_ones_go_on() -> None:
    program = (
        "from segskd.supervisor import start\n"
        f"workers = [start([{sys.executable!r}, '-c', {SLEEP!r}], life) for life in ('bound', 'lasting')]\n"
        "workers[1].let_go()\n"
        "print(*(worker.record.pid for worker in workers))"
    )
    done = subprocess.run(python(program), stdout=subprocess.PIPE, text=True, check=True)
    bound, lasting = map(int, done.stdout.split())
    try:
        wait_until(lambda: not lives(bound))
        assert lives(lasting)
    finally:
        os.kill(lasting, signal.SIGKILL)


@pytest.mark.parametrize(
    ("said", "last"),
    [
        ("", ""),
        ("\n \n", ""),
        ("segskd: no card 'x'\n\n", "no card 'x'"),
        ("Traceback\n  ValueError: y", "ValueError: y"),
    ],
)
def test_last_words(said: str, last: str) -> None:
    assert last_line(said) == last


def test_the_last_line_is_the_result() -> None:
    assert json_result('noise\n{"a": 1}\n') == {"a": 1}
    for printed in ("", "noise", '{"a": 1}\nnoise'):
        with pytest.raises(ValueError, match="Expecting value"):
            json_result(printed)


# -- threads that wait ----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")
@pytest.mark.parametrize(
    ("first", "given", "policy", "spins"),
    [
        ("segskd.runs", {}, "PASSIVE", "10000"),
        ("ui.server", {}, "PASSIVE", "10000"),
        ("segskd.runs", {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", ""),
    ],
)
def test_openmp_is_told_before_it_is_loaded(first: str, given: dict[str, str], policy: str, spins: str) -> None:
    """It prints what it has read; where the user has set one of the two, SegSKD sets neither."""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = python(f"import {first}, torch")
    environment = {**clean, **given, "OMP_DISPLAY_ENV": "verbose"}
    told = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True, env=environment).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in told
    assert f"GOMP_SPINCOUNT = '{spins}" in told
