"""Grafts made from a finished run are those that stood when each stage was finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from segskd.data.cards import load_card
from segskd.data.pixels import Uint8
from segskd.data.transforms import ViewMaker
from segskd.distill.running.session import start
from segskd.errors import UserError
from segskd.evaluate.grafts import Grafts
from segskd.runs import Run

pytestmark = pytest.mark.slow

STAGES = [*(f"encoder.{i}" for i in range(5)), *(f"decoder.{i}" for i in range(5)), "head"]


def masks(run: Run, data: Path, name: str) -> tuple[Grafts, Uint8]:
    recipe = run.recipe
    picture = cv2.imread(str(data / "bands" / "val" / "images" / f"{name}.png"))[..., ::-1]
    image = ViewMaker(load_card(recipe.data.card), recipe.data.size).image_only(np.ascontiguousarray(picture))
    grafts = Grafts.open(run, "cpu")
    return grafts, grafts.classes(image[None])


def preview(run: Run, stage: str, name: str) -> Uint8:
    with Image.open(run.path / "previews" / stage / f"{name}.png") as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("name", ["b00", "b03"])
def test_they_are_the_previews_of_the_run(finished: Run, data: Path, name: str) -> None:
    grafts, made = masks(finished, data, name)
    assert grafts.stages == STAGES
    assert (made.shape, made.dtype) == ((11, 50, 90), np.uint8)
    differ = {s: int((preview(finished, s, name) != made[k]).sum()) for k, s in enumerate(STAGES)}
    # The run drew them in batches, whose sums may differ in their last bit: at one pixel two classes are 2e-7 apart.
    assert max(differ.values()) <= 1, differ
    # The stages would be alike if all masks came from one of them.
    assert len({mask.tobytes() for mask in made}) > 3


def test_a_paused_run_has_those_of_its_finished_stages(recipe: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    made = recipe(subset={"count": 4}, optimisation={"epochs": 1})
    with pytest.raises(UserError, match="no model"):
        Grafts.open(_run(tmp_path / "new", made), "cpu")
    start(made, tmp_path / "paused", until="encoder.1")
    run = Run.open(tmp_path / "paused")
    grafts, found = masks(run, data, "b00")
    assert grafts.stages == STAGES[:2]
    assert [int((preview(run, s, "b00") != found[k]).sum()) for k, s in enumerate(STAGES[:2])] == [0, 0]


def test_no_grafts_of_a_run_that_was_not_trained_stage_by_stage(finished: Run, tmp_path: Path) -> None:
    copied = tmp_path / "whole"
    shutil.copytree(finished.path, copied)
    run = Run.open(copied)
    state = run.load_state()
    assert state is not None
    state["progress"]["phases"] = [{"phase": "supervised"}]
    run.save_state(state)
    with pytest.raises(UserError, match="not stage by stage"):
        Grafts.open(run, "cpu")
    state["progress"]["phases"] = []
    run.save_state(state)
    with pytest.raises(UserError, match="no stage yet"):
        Grafts.open(run, "cpu")
    recipe = run.recipe
    run.write_recipe(recipe.model_copy(update={"method": "supervised"}))
    with pytest.raises(UserError, match="not stage by stage"):
        Grafts.open(run, "cpu")
    run.write_recipe(recipe.model_copy(update={"options": {"joint": 0.1}}))
    state["progress"]["phases"] = [{"phase": name} for name in (*STAGES, "joint")]
    run.save_state(state)
    assert Grafts.open(run, "cpu").stages == STAGES
    state["progress"]["phases"].pop()
    run.save_state(state)
    with pytest.raises(UserError, match="is in its joint phase"):
        Grafts.open(run, "cpu")
    once, twice = (recipe.optimisation.model_copy(update={"epochs": epochs}) for epochs in (1, 2))
    run.write_recipe(recipe.model_copy(update={"method": "stagewise_finetuned", "optimisation": twice}))
    with pytest.raises(UserError, match="is in its joint phase"):
        Grafts.open(run, "cpu")
    run.write_recipe(recipe.model_copy(update={"method": "stagewise_finetuned", "optimisation": once}))
    assert Grafts.open(run, "cpu").stages == STAGES
    run.write_recipe(recipe)
    state["progress"]["phases"], state["adapters"] = [{"phase": "encoder.0"}], {"other": torch.zeros(1)}
    run.save_state(state)
    with pytest.raises(UserError, match="adapters of run whole don't fit"):
        Grafts.open(run, "cpu")


def test_a_teacher_has_none(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe().model_copy(update={"kind": "teach", "teacher": None})
    with pytest.raises(UserError, match="has no teacher"):
        Grafts.open(_run(tmp_path / "teacher", made), "cpu")


def _run(folder: Path, recipe: Any) -> Run:
    return Run.create(folder, recipe)


def test_a_stage_finished_between_two_files_gives_no_wrong_masks(finished: Run, tmp_path: Path) -> None:
    """state.pt may have come in anew after the student was read: then its adapters are not for that student."""
    shutil.copytree(finished.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    state = run.load_state()
    assert state is not None
    trained = state["progress"]["phases"]
    for name, expected in (("decoder.blocks.0.block.0.1.running_mean", "open the run again"), ("nothing", None)):
        student = {key: tensor + (key == name) for key, tensor in state["student"].items()}
        run.save_state(state | {"student": student})
        if expected:
            with pytest.raises(UserError, match=expected):
                Grafts.open(run, "cpu")
            # Stages that are still being trained may differ.
            run.save_state(state | {"student": student, "progress": state["progress"] | {"phases": trained[:5]}})
        assert Grafts.open(run, "cpu").stages == STAGES[: 5 if expected else 11]
