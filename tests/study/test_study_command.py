"""`study`: the command's contract, and a small study of real runs that is interrupted and goes on."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in import StandIn

from segskd import cli
from segskd.runs import Run

pytestmark = pytest.mark.slow

PATIENCE = 300.0


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs `study` with its runs below tmp_path; (exit status, standard output, standard error)."""
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "checkpoints"))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main(["study", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def config(content: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content(seeds=[0])))
    return tmp_path / "mine.yaml"


def test_the_table_is_printed_and_the_last_line_is_json(
    call: Callable[..., Any], config: Path, stand_in: StandIn, tmp_path: Path
) -> None:
    status, out, err = call("--config", config)
    folder = tmp_path / "checkpoints" / "bands"
    assert status == 0
    assert out.strip() == (folder / "table.md").read_text().strip()
    assert "[2/2] supervised-resnet10-50pc-s0: mIoU 0.3000" in err
    assert str(folder / "curve.svg") in err
    status, out, err = call("--config", config, "--json")
    assert status == 0
    answer = json.loads(out.splitlines()[-1])
    assert answer["study"] == str(folder)
    assert len(out.splitlines()) == 1
    assert [cell["state"] for cell in answer["cells"]] == ["finished", "finished"]
    assert [row["method"] for row in answer["rows"]] == ["stagewise", "supervised"]
    for key, name in (("table", "table.md"), ("csv", "table.csv"), ("curve", "curve.png"), ("cells_csv", "cells.csv")):
        assert answer[key] == str(folder / name)
        assert (folder / name).is_file()
    assert len(stand_in.started()) == 2


def test_flags_override_the_shared_recipe(
    call: Callable[..., Any], config: Path, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher-r18").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    status, _, _ = call("--config", "mine.yaml", "--out", "here", "--teacher", "moved", "--precision", "32")
    assert status == 0
    recipe = Run.open(tmp_path / "here" / "stagewise-resnet10-50pc-s0").recipe
    assert (recipe.teacher, recipe.precision) == (str(tmp_path / "moved"), "32")
    assert len(stand_in.started()) == 2
    status, _, err = call("--config", "mine.yaml", "--out", "here", "--teacher", "moved", "--precision", "bf16")
    assert status == 2
    assert "study here was begun with recipe.precision 32, and now it would be bf16" in err
    assert err.count("\n") == 1


def test_a_failed_cell_makes_exit_status_1_after_the_table(
    call: Callable[..., Any], config: Path, stand_in: StandIn
) -> None:
    stand_in.plan(fail=["stagewise-resnet10-50pc-s0"])
    status, out, err = call("--config", config)
    assert status == 1
    assert "| 6 (50 %) | supervised | 1 | 0.300 |" in out
    assert err.splitlines()[-1] == (
        "segskd: 1 of 2 cells failed: stagewise-resnet10-50pc-s0; the same command tries again"
    )
    assert "Traceback" not in err


def test_bad_input_is_one_line_and_status_2(call: Callable[..., Any], config: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--config", tmp_path / "nothing.yaml"), "can't read"),
        (("--config", config, "--jobs", 0), "--jobs 0"),
        (("--config", config, "--data", tmp_path / "empty"), "no folder"),
        (("--config", config, "--teacher", tmp_path / "empty"), "no model at"),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "checkpoints" / "bands").exists()


def test_real_runs_are_interrupted_and_go_on(
    call: Callable[..., Any], content: Callable[..., dict[str, Any]], teacher_folder: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the midst of the first of two cells, then the same command again."""
    shared = content()["recipe"] | {"device": "cpu", "precision": "32", "checkpoint_seconds": 0}
    shared |= {"data": shared["data"] | {"views": 1}, "optimisation": {"batch": 6, "lr": 1e-3}}
    small = "linknet:tu-test_resnet"
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(content(recipe=shared, students=[small], seeds=[0], passes=6)))
    words = ("--config", tmp_path / "real.yaml", "--out", tmp_path / "out", "--teacher", teacher_folder, "--json")
    first = Run(tmp_path / "out" / "stagewise-linknet-tu-test_resnet-50pc-s0")
    assert threading.current_thread() is threading.main_thread()  # no other one hears signals

    def interrupt() -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not (first.path / "state.pt").exists():
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    status, out, err = call(*words)
    watcher.join()
    assert (status, out) == (130, "")
    assert err.splitlines()[-1] == "segskd: stopped with 2 of 2 cells left; the same command continues the study"
    assert first.status() == "interrupted"

    status, out, _ = call(*words)
    assert status == 0
    answer = json.loads(out.splitlines()[-1])
    assert [event.kind for event in first.events()].count("resumed") == 1
    assert (answer["done"], answer["failed"]) == (2, 0)
    stagewise, supervised = answer["cells"]
    assert stagewise["image_passes"] == supervised["image_passes"] == 6 * 11  # one epoch a stage, eleven stages
    assert supervised["teacher_miou"] == stagewise["teacher_miou"] > 0
    assert supervised["percent_of_teacher"] == pytest.approx(100 * supervised["miou"] / supervised["teacher_miou"])
    assert "mIoU" in (first.path / "log.txt").read_text()
