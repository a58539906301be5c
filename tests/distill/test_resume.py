"""A run that is killed with SIGKILL, in several phases, ends with the bits of one that was not."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import torch

from segskd.cli import main
from segskd.config import Recipe, dump_recipe
from segskd.runs import Run

pytestmark = pytest.mark.slow

PATIENCE = 300.0
Worker = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def worker() -> Worker:
    """Starts a command in a process of its own, forked from one that has imported all and computed nothing."""
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segskd.cli", "segskd.distill.running.session"])

    def begin(*arguments: str) -> ForkServerProcess:
        process = context.Process(target=main, args=(arguments,))
        process.start()
        return process

    return begin


def new_events(path: Path, process: ForkServerProcess, seen: int) -> Iterator[dict[str, Any]]:
    """Events behind the first `seen` bytes, as they come, until the process ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.is_alive():
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for line in content[seen:whole].splitlines():
            yield json.loads(line)
        seen = max(seen, whole)
        time.sleep(0.002)


def kill_at(folder: Path, process: ForkServerProcess, kind: str, phase: str) -> None:
    """SIGKILL as soon as the run has written such an event."""
    path = folder / "events.jsonl"
    seen = path.stat().st_size if path.exists() else 0
    for event in new_events(path, process, seen):
        if (event["kind"], event.get("phase")) == (kind, phase):
            process.kill()
            break
    process.join(PATIENCE)
    assert process.exitcode == -SIGKILL


def finish(folder: Path, process: ForkServerProcess) -> Run:
    process.join(PATIENCE)
    assert process.exitcode == 0
    run = Run.open(folder)
    assert run.status() == "finished"
    return run


def final_state(run: Run) -> dict[str, torch.Tensor]:
    state = run.load_state()
    assert state is not None
    student: dict[str, torch.Tensor] = state["student"]
    return student


@pytest.mark.parametrize(
    ("changes", "kills"),
    [
        # saved at every step; killed between two steps of the stem, with a skip in the decoder, and in the head
        ({"checkpoint_seconds": 0.0}, [("step", "encoder.0"), ("epoch", "decoder.1"), ("epoch", "head")]),
        # saved at the ends of phases alone, so that the best epoch so far is lost and found again
        ({"checkpoint_seconds": 1e9, "select": "best"}, [("epoch", "encoder.0"), ("epoch", "encoder.2")]),
    ],
)
def test_killed_and_resumed_gives_the_same_bits(
    recipe: Callable[..., Any], tmp_path: Path, worker: Worker, changes: dict[str, Any], kills: list[tuple[str, str]]
) -> None:
    def begin(name: str, made: Recipe) -> ForkServerProcess:
        (tmp_path / f"{name}.yaml").write_text(dump_recipe(made))
        return worker("distill", "--recipe", str(tmp_path / f"{name}.yaml"), "--run", str(tmp_path / name))

    made = recipe(subset={"count": 10}, threads=1, **changes)
    never_saved_inside = made.model_copy(update={"checkpoint_seconds": 1e9})
    whole = finish(tmp_path / "whole", begin("whole", never_saved_inside))

    process, folder = begin("killed", made), tmp_path / "killed"
    for kind, phase in kills:
        kill_at(folder, process, kind, phase)
        assert Run.open(folder).status() == "interrupted"
        process = worker("resume", str(folder))
    killed = finish(folder, process)

    first, second = final_state(whole), final_state(killed)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    weights = [(run.model_folder / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
    assert killed.read_json("result.json")["miou"] == whole.read_json("result.json")["miou"]
