"""Studies carried out: nothing twice, nothing lost, whatever comes between."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in import StandIn

from segskd.errors import Stopped, UserError
from segskd.runs import Run, list_runs
from segskd.study import list_studies, read_study, runner
from segskd.study.grid import Study, dump_study
from segskd.study.runner import carry_out

FIRST, SECOND, THIRD, FOURTH = (f"{m}-resnet10-50pc-s{s}" for s in (0, 1) for m in ("stagewise", "supervised"))
PATIENCE = 300.0


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def told() -> list[str]:
    return []


def test_a_study_from_its_first_cell_to_its_table(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    stand_in.plan(miou={FIRST: 0.5, THIRD: 0.4})
    read = carry_out(study(title="Bands"), tmp_path / "out", told.append)
    assert stand_in.started() == [f"distill {name}" for name in (FIRST, SECOND, THIRD, FOURTH)]
    assert (read["done"], read["total"], read["running"], read["teacher_miou"]) == (4, 4, False, 0.6)
    assert [row["miou_mean"] for row in read["rows"]] == [pytest.approx(0.45), 0.3]
    assert read["cells"][0]["image_passes"] == 132
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| 6 (50 %) | **stagewise** | 2 | **0.450 ± 0.071** | **75.0 ± 11.8** | 132 |" in table
    assert {path.name for path in (tmp_path / "out").glob("*.*") if path.is_file()} == {
        *("study.yaml", "progress.json", "table.md", "table.csv", "cells.csv", "curve.png", "curve.svg", ".lock"),
    }
    recipe = Run(tmp_path / "out" / SECOND).recipe
    assert (recipe.method, recipe.optimisation.epochs, recipe.subset.fraction) == ("supervised", 2, 0.5)
    assert [run.name for run in list_runs(tmp_path / "out")][::-1] == [FIRST, SECOND, THIRD, FOURTH]
    assert told[1] == f"[1/4] {FIRST}: begins: 6 images, 2 epochs a stage"
    assert told[2].startswith(f"[1/4] {FIRST}: mIoU 0.5000, 83.3 % of the teacher, 4 s of training; 1 of 4 done, about")
    assert told[-1].endswith("4 of 4 done")


def test_nothing_is_done_twice_and_a_larger_grid_goes_on(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    carry_out(study(seeds=[0]), tmp_path / "out", told.append)
    before = times(tmp_path / "out" / FIRST) | times(tmp_path / "out" / SECOND)
    carry_out(study(seeds=[0]), tmp_path / "out", told.append)
    assert len(stand_in.started()) == 2
    read = carry_out(study(fractions=[0.5, 1.0], seeds={0.5: [0, 1], 1.0: [0]}), tmp_path / "out", told.append)
    assert [line.split()[1] for line in stand_in.started()[2:]] == [
        *(THIRD, FOURTH),
        *("stagewise-resnet10-100pc-s0", "supervised-resnet10-100pc-s0"),
    ]
    assert (read["done"], read["total"]) == (6, 6)
    assert times(tmp_path / "out" / FIRST) | times(tmp_path / "out" / SECOND) == before


def test_what_all_cells_share_can_not_change(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    made = study()
    carry_out(made, tmp_path / "out", told.append)
    written = (tmp_path / "out" / "study.yaml").read_text()
    with pytest.raises(UserError, match=r"study out was begun with recipe\.init random, .* take another --out"):
        carry_out(study(recipe=made.recipe | {"init": "teacher"}), tmp_path / "out", told.append)
    assert len(stand_in.started()) == 4
    assert (tmp_path / "out" / "study.yaml").read_text() == written


def test_a_cell_that_fails_does_not_stop_the_others_and_is_tried_again(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    stand_in.plan(fail=[FIRST], kill=[THIRD])
    read = carry_out(study(), tmp_path / "out", told.append)
    states = {cell["name"]: (cell["state"], cell["error"]) for cell in read["cells"]}
    assert states == {
        FIRST: ("failed", "no luck today"),
        SECOND: ("finished", None),
        THIRD: ("failed", "killed by signal 9 (out of memory, perhaps)"),
        FOURTH: ("finished", None),
    }
    assert (read["done"], read["failed"]) == (2, 2)
    assert f"[1/4] {FIRST}: failed: no luck today" in told
    assert "2 of 4 cells are finished, 2 failed." in (tmp_path / "out" / "table.md").read_text()
    assert "working on it" in (tmp_path / "out" / FIRST / "log.txt").read_text()
    stand_in.plan()
    read = carry_out(study(), tmp_path / "out", told.append)
    assert stand_in.started()[4:] == [f"resume {FIRST}", f"resume {THIRD}"]
    assert (read["done"], read["failed"]) == (4, 0)


def test_a_study_that_is_stopped_shows_what_it_has_and_goes_on(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    out = tmp_path / "out"
    stand_in.plan(block=[SECOND])
    seen: list[dict[str, Any]] = []

    def look() -> None:
        wait_until((out / SECOND / "events.jsonl").exists)
        seen.append(read_study(out))
        with pytest.raises(UserError, match="study out is run by another process"):
            carry_out(study(), out, told.append)
        Run(out).request_stop()

    watcher = threading.Thread(target=look)
    watcher.start()
    with pytest.raises(Stopped, match="3 of 4 cells left; the same command continues the study"):
        carry_out(study(), out, told.append)
    watcher.join()
    assert seen[0]["running"]
    assert [cell["state"] for cell in seen[0]["cells"]] == ["finished", "running", "waiting", "waiting"]
    assert (seen[0]["done"], seen[0]["cells"][1]["images"], seen[0]["cells"][1]["miou"]) == (1, 6, None)
    assert Path(seen[0]["curve"]).is_file()
    read = read_study(out)
    assert [cell["state"] for cell in read["cells"]] == ["finished", "interrupted", "waiting", "waiting"]
    assert not read["running"]
    stand_in.plan()
    assert carry_out(study(), out, told.append)["done"] == 4
    assert stand_in.started()[1:] == [
        *(f"distill {SECOND}", f"resume {SECOND}", f"distill {THIRD}", f"distill {FOURTH}"),
    ]


def test_a_cell_that_does_not_heed_is_killed(
    study: Callable[..., Study],
    stand_in: StandIn,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.3)
    stand_in.plan(block=[FIRST], deaf=[FIRST])

    def ask() -> None:
        wait_until((out / FIRST / "events.jsonl").exists)
        Run(out).request_stop()

    watcher = threading.Thread(target=ask)
    watcher.start()
    with pytest.raises(Stopped, match="4 of 4 cells left"):
        carry_out(study(), out, told.append)
    watcher.join()
    assert told[-1] == f"[1/4] {FIRST}: was stopped"
    assert read_study(out)["cells"][0]["state"] == "interrupted"


def test_cells_run_side_by_side_and_share_the_threads(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    out = tmp_path / "out"
    stand_in.plan(block=[FIRST, SECOND])

    def let_go() -> None:
        wait_until(lambda: (out / FIRST / "events.jsonl").exists() and (out / SECOND / "events.jsonl").exists())
        stand_in.plan()
        Run(out).request_stop()

    watcher = threading.Thread(target=let_go)
    watcher.start()
    with pytest.raises(Stopped):
        carry_out(study(), out, told.append, jobs=2)
    watcher.join()
    assert stand_in.started() in ([f"distill {FIRST}", f"distill {SECOND}"], [f"distill {SECOND}", f"distill {FIRST}"])
    assert Run(out / FIRST).recipe.threads == 1
    with pytest.raises(UserError, match="--jobs 0"):
        carry_out(study(), out, told.append, jobs=0)


def test_a_cell_that_outlived_its_study_is_awaited(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    run = Run.create(tmp_path / "out" / FIRST, study().recipe_of(study().cells()[0], 2))
    over = threading.Event()

    def work() -> None:
        with run.working():
            over.wait(PATIENCE)
            run.write_json("result.json", {"miou": 0.5, "percent_of_teacher": None, "seconds": 1.0})

    worker = threading.Thread(target=work)
    worker.start()
    wait_until(run.is_alive)

    def tell(line: str) -> None:
        told.append(line)
        if "waiting for its end" in line:
            over.set()

    read = carry_out(study(seeds=[0]), tmp_path / "out", tell)
    worker.join()
    assert stand_in.started() == [f"distill {SECOND}"]
    assert (read["done"], read["cells"][0]["miou"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["magic"]}, "no method 'magic': name one of"),
        ({"students": ["resnet10"]}, "write ARCH:ENCODER"),
        ({"students": ["unet:resnet10", "unet:resnet99"]}, "can't build unet:resnet99"),
        ({"fractions": [0.5, 0.1]}, "--fraction 0.1 of 12 images leaves 1"),
        ({"recipe": {"data": {"card": "nowhere"}, "teacher": "some/body"}}, "no card 'nowhere'"),
        ({"recipe": {"data": {"card": "scenes"}, "teacher": "/nowhere"}}, "no model at /nowhere"),
    ],
)
def test_what_every_cell_would_say_is_said_before_anything_is_written(
    study: Callable[..., Study], tmp_path: Path, told: list[str], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        carry_out(study(**changes), tmp_path / "out", told.append)
    assert not (tmp_path / "out").exists()


def test_a_runs_folder_is_no_room_for_a_study(
    study: Callable[..., Study], recipe: Callable[..., Any], tmp_path: Path, told: list[str]
) -> None:
    Run.create(tmp_path / "run", recipe())
    with pytest.raises(UserError, match=r"holds recipe\.yaml and is no study: name another folder with --out"):
        carry_out(study(), tmp_path / "run", told.append)


def test_studies_are_listed_and_a_damaged_one_says_what_is_wrong(study: Callable[..., Study], tmp_path: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "study.yaml").write_text(dump_study(study(title="Good")))
    (tmp_path / "runs" / "bad" / "study.yaml").write_text("name: [")
    (tmp_path / "runs" / "no study").mkdir()
    by_name = {Path(read["folder"]).name: read for read in list_studies(tmp_path / "runs")}
    assert set(by_name) == {"good", "bad"}
    assert "is not YAML" in by_name["bad"]["problem"]
    good = by_name["good"]
    assert (good["problem"], good["title"], good["done"], good["total"]) == (None, "Good", 0, 4)
    assert {cell["state"] for cell in good["cells"]} == {"waiting"}
    json.dumps(good)
    with pytest.raises(UserError, match="no study at"):
        read_study(tmp_path / "runs" / "no study")
    shutil.rmtree(tmp_path / "runs" / "good")
    assert len(list_studies(tmp_path / "runs")) == 1


def test_damaged_files_of_a_cell_do_not_take_the_study_down(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str]
) -> None:
    carry_out(study(), tmp_path / "out", told.append)
    (tmp_path / "out" / FIRST / "result.json").write_text("{")
    (tmp_path / "out" / "progress.json").write_text("[]")
    read = read_study(tmp_path / "out")
    assert [cell["state"] for cell in read["cells"]] == ["interrupted", "finished", "finished", "finished"]
    assert read["training_images"] is None


@pytest.mark.parametrize("damaged", ["{", "[]", '{"miou": null}'])
def test_a_damaged_result_is_made_anew(
    study: Callable[..., Study], stand_in: StandIn, tmp_path: Path, told: list[str], damaged: str
) -> None:
    carry_out(study(), tmp_path / "out", told.append)
    (tmp_path / "out" / FIRST / "result.json").write_text(damaged)
    read = carry_out(study(), tmp_path / "out", told.append)
    assert stand_in.started()[4:] == [f"resume {FIRST}"]
    assert read["done"] == 4
    assert f"[1/4] {FIRST}: its result is damaged; it is run again" in told


def test_cells_side_by_side_share_out_the_gpus(
    study: Callable[..., Study],
    stand_in: StandIn,
    tmp_path: Path,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = study()
    recipe = {**made.recipe, "device": "auto"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["4", "7"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def gpus(folder: str, jobs: int, **changes: Any) -> list[str]:
        carry_out(study(recipe=recipe, **changes), tmp_path / folder, told.append, jobs)
        return [(tmp_path / folder / name / "gpu.txt").read_text() for name in (FIRST, SECOND, THIRD, FOURTH)]

    stand_in.plan()
    assert sorted(gpus("two", 2)[:2]) == ["4", "7"]
    assert gpus("one", 1) == ["any"] * 4
    recipe["device"] = "cpu"
    assert gpus("cpu", 2) == ["any"] * 4
    recipe["device"] = "auto"
    monkeypatch.setattr(runner, "visible_gpus", lambda: ["0"])
    assert gpus("single", 2) == ["any"] * 4
