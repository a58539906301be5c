"""Measures how quickly the server answers the page's requests while a run trains on the same cores.

    python benchmarks/page.py --runs FOLDER [--run NAME] [--data DIR]

FOLDER holds a finished run NAME (demo-student) and its teacher. A server is started on a copy of the run. Requests are
sent first while nothing trains, then while it trains a run of the same recipe, which Watch and the strip show. Each
figure is the median and the maximum of REPEATS answers in milliseconds. The requests take turns, PAUSE seconds apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from segskd.config import make_recipe, merged
from segskd.runs import Run
from ui.jobs import Jobs
from ui.server import choose_port

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 40
PAUSE = 0.1
BESIDE = "beside"
LIMIT_MS = 200
PATIENCE = 180.0


class Client:
    """Sends the requests that the scripts on the page send to a server."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        config = self._session.get(f"{url}/config", timeout=60).json()
        self._components = {
            name: part["id"] for part in config["components"] for name in part["props"].get("server_fns") or []
        }

    def page(self) -> None:
        """Requests the page itself."""
        self._session.get(self._url, timeout=60).raise_for_status()

    def ask(self, name: str, data: dict[str, Any]) -> Any:
        """One server function's answer."""
        body = {"session_hash": "bench", "component_id": self._components[name], "fn_name": name, "data": data}
        answer = self._session.post(f"{self._url}/gradio_api/component_server", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()


def main() -> None:
    """Prints a table, and a JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--run", default="demo-student")
    parser.add_argument("--data", type=Path, default=None)
    arguments = parser.parse_args()
    run = Run.open(arguments.runs.resolve() / arguments.run)
    data = (arguments.data or Path(run.recipe.data.folder or "")).resolve()
    with tempfile.TemporaryDirectory(prefix="segskd-") as folder:
        runs = Path(folder)
        shutil.copytree(run.path, runs / run.name)
        port = choose_port("127.0.0.1", None)
        server = _serve(runs, data, port)
        try:
            client = Client(f"http://127.0.0.1:{port}")
            questions = _questions(client, run)
            idle = _measure(client, questions)
            with _training(run, Jobs(runs, data)):
                training = _measure(client, questions | {"Watch": ("watch_page", {"run": BESIDE})})
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    _tell(idle, training)


def _serve(runs: Path, data: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "app.py", "--port", str(port), "--runs", str(runs), "--data", str(data)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    for line in server.stdout:
        if "is open" in line:
            return server
    raise SystemExit("the server did not start")


def _questions(client: Client, run: Run) -> dict[str, tuple[str, dict[str, Any]]]:
    """The requests by what they are for. The comparison is opened first."""
    deadline = time.monotonic() + PATIENCE
    while "images" not in (gaps := client.ask("compare_gaps", {"run": run.name, "class": None})):
        client.ask("compare_open", {"run": run.name})
        if time.monotonic() > deadline:
            raise SystemExit(f"the comparison did not open: {gaps}")
        time.sleep(0.5)
    image = gaps["images"][0]
    name = image["name"] if isinstance(image, dict) else image[0]
    return {
        "run strip": ("strip_state", {}),
        "Start": ("start_state", {}),
        "Watch": ("watch_page", {"run": run.name}),
        "Runs": ("runs_rows", {}),
        "Compare, one image": ("compare_frame", {"run": run.name, "image": name}),
        "Export": ("export_state", {"run": run.name}),
    }


def _measure(client: Client, questions: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"the page": [], **{title: [] for title in questions}}
    for _ in range(REPEATS):
        times["the page"].append(_timed(client.page))
        for title, (name, data) in questions.items():
            time.sleep(PAUSE)
            times[title].append(_timed(lambda name=name, data=data: client.ask(name, data)))
    return times


def _timed(act: Any) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


@contextmanager
def _training(run: Run, jobs: Jobs) -> Iterator[None]:
    """Trains a run of the same recipe during the block, started as from the page."""
    recipe = merged(run.recipe.model_dump(mode="json"), {"optimisation": {"epochs": 2000}})
    started = jobs.submit(make_recipe(recipe), BESIDE)
    try:
        deadline = time.monotonic() + PATIENCE
        while not any(event.kind == "step" for event in started.events()):
            if time.monotonic() > deadline:
                raise SystemExit("the training run did not begin")
            time.sleep(0.5)
        yield
        if not started.is_alive():
            raise SystemExit("the training run ended too early")
    finally:
        worker = jobs.worker(BESIDE)
        if worker and worker.process():
            worker.send(signal.SIGKILL)
            while worker.process():
                time.sleep(0.1)


def _tell(idle: dict[str, list[float]], training: dict[str, list[float]]) -> None:
    print(f"{'answer, ms':24}{'idle: median':>14}{'worst':>8}{'training: median':>18}{'worst':>8}")
    for title, quiet in idle.items():
        busy = training[title]
        figures = (statistics.median(quiet), max(quiet), statistics.median(busy), max(busy))
        print(f"{title:24}{figures[0]:14.1f}{figures[1]:8.1f}{figures[2]:18.1f}{figures[3]:8.1f}")
    medians = {title: statistics.median(times) for title, times in training.items()}
    worst = {title: max(times) for title, times in training.items()}
    within = all(value <= LIMIT_MS for value in medians.values())
    print(json.dumps({"limit_ms": LIMIT_MS, "medians_within": within, "median_ms": medians, "worst_ms": worst}))


if __name__ == "__main__":
    main()
