"""Work in several processes: every piece once, errors of the disk as such, nobody left behind."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from segskd.workers import processes_for, split_among

WORKER = """
import os, sys
from segskd.workers import ignore_interrupts, report_piece

ignore_interrupts()
folder, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for piece in range(7)[part::parts]:
    with open(os.path.join(folder, str(piece)), "x"):
        report_piece()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of Python's processes, for a module `worker`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "worker.py"


def test_each_piece_is_done_once(module: Path, tmp_path: Path) -> None:
    module.write_text(WORKER)
    (tmp_path / "out").mkdir()
    told: list[None] = []
    split_among(2, "worker", [str(tmp_path / "out")], lambda: told.append(None))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == list("0123456")
    assert len(told) == 7


def test_a_full_disk_is_an_error_of_the_disk(module: Path) -> None:
    module.write_text(
        "import sys, time\nfrom segskd.workers import report_piece\n"
        f"report_piece({errno.ENOSPC}) if sys.argv[1] == '1' else time.sleep(600)"
    )
    with pytest.raises(OSError, match="No space left on device") as caught:
        split_among(2, "worker", [], lambda: None)
    assert caught.value.errno == errno.ENOSPC


def test_a_process_that_fails_is_a_bug(module: Path) -> None:
    module.write_text("raise SystemExit(7)")
    with pytest.raises(RuntimeError, match="ended with status 7"):
        split_among(1, "worker", [], lambda: None)


def test_it_ends_when_nobody_listens(module: Path) -> None:
    """Its caller was killed: a worker that would go on for ever ends at its next piece, without a word."""
    module.write_text("from segskd.workers import report_piece\nwhile True:\n    report_piece()")
    worker = subprocess.Popen([sys.executable, "-m", "worker"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stderr is not None
    worker.stdout.readline()
    worker.stdout.close()
    assert worker.wait(300) == 1
    assert worker.stderr.read() == b""
    worker.stderr.close()


@pytest.mark.parametrize(
    ("cores", "pieces", "processes"), [(2, 600, 2), (64, 600, 8), (4, 120, 2), (4, 6, 1), (None, 600, 1)]
)
def test_as_many_as_are_worth_while(
    monkeypatch: pytest.MonkeyPatch, cores: int | None, pieces: int, processes: int
) -> None:
    monkeypatch.setattr("segskd.workers.os.cpu_count", lambda: cores)
    assert processes_for(pieces, least=50) == processes
