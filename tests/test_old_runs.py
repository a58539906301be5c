"""Runs, a study and an export that an earlier version of the program wrote: they open, go on and export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from segskd import cli
from segskd.config import SCHEMA, Recipe
from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs
from segskd.distill.planning.methods import METHODS
from segskd.distill.running.branch import branch_recipe
from segskd.distill.running.pruning import prune_recipe
from segskd.evaluate.predictor import Predictor
from segskd.models.build import load
from segskd.runs import Run, list_runs
from segskd.study import read_study

pytestmark = pytest.mark.slow

OLD = Path(__file__).parent / "old_runs"
CELL = "stagewise-linknet-tu-test_efficientnet-50pc-s0"


@pytest.fixture
def old(data: Path, card_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs with a copy of each old one, whose places are those of the copies and of the dataset."""
    runs = tmp_path / "runs"
    shutil.copytree(OLD, runs)
    shutil.copytree(data, tmp_path / "data")
    for file in (*runs.rglob("*.yaml"), *runs.rglob("*.json")):
        file.write_text(file.read_text().replace("@HERE@", str(tmp_path)))
    monkeypatch.setenv("SEGSKD_RUNS", str(runs))
    monkeypatch.setenv("SEGSKD_DATA", str(tmp_path / "data"))
    return runs


@pytest.fixture
def call(old: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command, which must end with status 0; its JSON, with its standard error as "stderr"."""

    def run(*arguments: object) -> dict[str, Any]:
        status = cli.main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        answer: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
        return {**answer, "stderr": captured.err}

    return run


def test_old_runs_are_listed_with_what_became_of_them(old: Path) -> None:
    states = {run.name: run.summary()["state"] for run in list_runs(old)}
    assert states == {"teacher": "finished", "finished": "finished", "stopped": "paused"}
    summary = Run.open(old / "finished").summary()
    assert (summary["method"], summary["dataset"]) == ("stagewise", "bands")
    assert summary["miou"] == pytest.approx(0.2420, abs=1e-4)


def test_a_finished_run_is_evaluated_as_its_result_says(old: Path, call: Callable[..., dict[str, Any]]) -> None:
    result = Run.open(old / "finished").read_json("result.json")
    resumed = call("resume", "finished")
    assert resumed["miou"] == result["miou"]
    assert "finished" in resumed["stderr"]
    assert call("evaluate", "finished", "--split", "val")["miou"] == pytest.approx(result["miou"], abs=1e-4)
    assert call("evaluate", "teacher", "--split", "val")["miou"] == pytest.approx(result["teacher_miou"], abs=1e-4)


def test_a_stopped_run_goes_on_to_the_weights_of_the_finished_one(
    old: Path, call: Callable[..., dict[str, Any]]
) -> None:
    result = call("resume", "stopped")
    finished = old / "finished"
    ours = load_file(old / "stopped" / "student" / "model.safetensors")
    theirs = load_file(finished / "student" / "model.safetensors")
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    assert result["miou"] == pytest.approx(Run.open(finished).read_json("result.json")["miou"], abs=0.01)
    assert [phase["phase"] for phase in result["phases"]] == [
        phase["phase"] for phase in Run.open(finished).read_json("result.json")["phases"]
    ]


def test_a_finished_run_is_exported(old: Path, call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    answer = call("export", "finished", "--format", "onnx", "--out", tmp_path / "exported")
    with zipfile.ZipFile(answer["package"]) as package:
        assert {Path(name).name for name in package.namelist()} >= {"model.onnx", "predict.py", "certificate.json"}


def test_a_finished_run_is_branched_from(old: Path, call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    made = branch_recipe(Run.open(old / "finished"), "decoder.4", epochs=1)
    assert (made.optimisation.epochs, made.optimisation.lr) == (1, 0.005)  # half the epochs, half the rate
    result = call("distill", "--recipe", recipe_file(made, tmp_path), "--run", "branch")
    assert [phase["phase"] for phase in result["phases"]] == ["decoder.4", "head"]


def test_a_finished_run_is_pruned(old: Path, call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    made = prune_recipe(Run.open(old / "finished"), 0.3, epochs=1)
    result = call("distill", "--recipe", recipe_file(made, tmp_path), "--run", "pruned")
    assert (
        result["student"]["parameters"] < Run.open(old / "finished").read_json("result.json")["student"]["parameters"]
    )


def recipe_file(recipe: Recipe, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    return path


def test_every_field_of_an_old_recipe_is_known(old: Path) -> None:
    recipe = Run.open(old / "finished").recipe
    assert recipe.method in METHODS
    written = yaml.safe_load((old / "finished" / "recipe.yaml").read_text())
    now = recipe.model_dump(mode="json")
    later = [field for field in SCHEMA if field.value_in(now) != field.value_in(written)]
    assert {field.dotted for field in later} == {"partial_weights"}  # what is None was not there, either
    assert all(field.value_in(now) == field.default for field in later)


def test_a_study_goes_on_with_another_seed(old: Path, call: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    before = read_study(old / "study")
    assert [(cell["name"], cell["state"]) for cell in before["cells"]] == [(CELL, "finished")]
    weights = (old / "study" / CELL / "student" / "model.safetensors").stat()
    config = yaml.safe_load((old / "study" / "study.yaml").read_text())
    config["seeds"] = {0.5: [0, 1]}
    (tmp_path / "larger.yaml").write_text(yaml.safe_dump(config))
    answer = call("study", "--config", tmp_path / "larger.yaml", "--out", old / "study")
    other = CELL.replace("-s0", "-s1")
    assert {cell["name"]: cell["state"] for cell in answer["cells"]} == {CELL: "finished", other: "finished"}
    assert (old / "study" / CELL / "student" / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    figures = {cell["name"]: cell["miou"] for cell in answer["cells"]}
    assert figures[CELL] == before["cells"][0]["miou"]
    assert len(answer["rows"]) == 1


def test_an_old_export_gives_the_masks_of_its_checkpoint(old: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(old / "finished-onnx.zip") as package:
        package.extractall(tmp_path)
    folder = tmp_path / "finished-onnx"
    pairs = list_pairs(load_card("bands", tmp_path / "data"), tmp_path / "data", "val")
    images = [str(pair.image) for pair in pairs]
    command = [sys.executable, "predict.py", *images, "--out", str(tmp_path / "masks")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    predictor = Predictor(load(old / "finished" / "student"), load_card("bands", tmp_path / "data"), (64, 96))
    for pair in pairs:
        (made,) = (tmp_path / "masks").glob(f"{Path(pair.name).name}*.png")
        expected = predictor.mask(np.asarray(Image.open(pair.image).convert("RGB")))
        assert (np.asarray(Image.open(made)) == expected).mean() > 0.999
