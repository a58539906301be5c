"""A run that is killed with SIGKILL, in several phases, ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.config import dump_recipe
from segskd.runs import Run

PATIENCE = 120.0


def worker(*arguments: str) -> subprocess.Popen[bytes]:
    """A real process, as a person or the interface starts it."""
    command = [sys.executable, "-m", "segskd", *arguments, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ)


def new_events(path: Path, process: subprocess.Popen[bytes], seen: int) -> Iterator[dict[str, Any]]:
    """Events behind the first `seen` bytes, as they come, until the process ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for line in content[seen:whole].splitlines():
            yield json.loads(line)
        seen = max(seen, whole)
        time.sleep(0.002)


def kill_at(folder: Path, process: subprocess.Popen[bytes], kind: str, phase: str) -> None:
    """SIGKILL as soon as the run has written such an event."""
    path = folder / "events.jsonl"
    seen = path.stat().st_size if path.exists() else 0
    for event in new_events(path, process, seen):
        if (event["kind"], event.get("phase")) == (kind, phase):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    state = Run.open(folder).load_state()
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
    recipe: Callable[..., Any], tmp_path: Path, changes: dict[str, Any], kills: list[tuple[str, str]]
) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe(subset={"count": 10}, **changes)))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    untouched = worker("distill", "--recipe", str(tmp_path / "recipe.yaml"), "--run", str(whole))
    untouched.communicate(timeout=PATIENCE)
    assert untouched.returncode == 0

    process = worker("distill", "--recipe", str(tmp_path / "recipe.yaml"), "--run", str(killed))
    for kind, phase in kills:
        kill_at(killed, process, kind, phase)
        assert Run.open(killed).status() == "interrupted"
        process = worker("resume", str(killed))
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0

    first, second = final_state(whole), final_state(killed)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    weights = [(folder / "student" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    result = json.loads(output.splitlines()[-1])
    assert result["miou"] == json.loads((whole / "result.json").read_text())["miou"]
