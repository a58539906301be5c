"""The server under test, and what is heard of a page."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Request

from ui.jobs import Jobs

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 300.0
"""Seconds after which a condition is taken as never coming true, on a machine that has other work to do, too."""
LOST = (
    "ERR_CONNECTION_REFUSED",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "ERR_CONNECTION_RESET",
    "ERR_EMPTY_RESPONSE",
    "AbortError",
    "Connection errored out",
)


class Server:
    """`python app.py`, or another program like it, on a free port, with folders of its own."""

    def __init__(self, folder: Path, program: str = "app.py") -> None:
        self.program = program
        self.runs = folder / "runs"
        self.data = folder / "data"
        self.connections = folder / "connections.txt"
        self._log = folder / "server.txt"
        self.runs.mkdir(exist_ok=True)
        self.data.mkdir(exist_ok=True)
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def furnish(self, data: Path, teacher: Path) -> None:
        """Puts the small dataset `bands` and a teacher for it, `bands-teacher`, where the server looks for both."""
        shutil.copytree(data / "bands", self.data / "bands")
        shutil.copy(data / "bands.yaml", self.data)
        shutil.copytree(teacher, self.data / "bands-teacher")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it and waits until it answers."""
        tests = ROOT / "tests"
        paths = f"{tests / 'browser' / 'guard'}:{ROOT}:{tests}"
        environment = {**os.environ, "PYTHONPATH": paths, "SEGSKD_GUARD": str(self.connections)}
        command = [
            sys.executable,
            self.program,
            "--port",
            str(self.port),
            "--runs",
            str(self.runs),
            "--data",
            str(self.data),
        ]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + LIMIT
        while b"SegSKD is open" not in self._log.read_bytes().rpartition(b"is starting")[2]:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, f"the server did not start: {self._log.read_text()}"
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: it has no time to say goodbye."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> str:
        """Ends it and its workers; what it printed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(LIMIT)
        jobs = Jobs(self.runs, self.data)
        for name in jobs.busy():
            worker = jobs.worker(name)
            if worker and (process := worker.process()):
                process.kill()
        return self._log.read_text()


class Watch:
    """Hears what a page prints and asks for; while `forgiving`, what a killed server or a reload leaves may pass."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        self.forgiving = False
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.problems.append(f"error on the page: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        lost = self.forgiving and any(sign in message.text for sign in LOST)
        if message.type == "error" and not lost:
            self.problems.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.problems.append(f"the page asked {request.url}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], object], what: str) -> None:
    """Waits until something is true; fails naming what did not happen."""
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline, f"waited {LIMIT:.0f} s for {what}"
        time.sleep(0.1)
