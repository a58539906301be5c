"""What a recipe amounts to before anything is loaded, method by method."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segskd.distill.planning.methods import METHODS, SNAPSHOT_METHODS
from segskd.distill.planning.settle import default_epochs
from segskd.distill.running.prepare import prepare
from segskd.errors import UserError
from ui.state.admission import check_unlabelled, unlabelled_folders
from ui.state.form import FieldError, read_options
from ui.state.outline import method_options, method_sentences, option_sentences, outline


def on(recipe: Any, data: Path) -> list[str]:
    return [phase["on"] for phase in outline(recipe, data).as_dict()["phases"]]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("simultaneous", ["the teacher's features and labels"]),
        ("fitnets", ["the teacher's feature", "the teacher's feature", "labels"]),
        ("hinton", ["the teacher's answers and labels"]),
        ("hdkd", ["the teacher's features and the teacher's answers"]),
        ("supervised", ["labels"]),
        ("dearkd", ["the teacher's features", "labels"]),
        ("blockwise", ["the teacher's features and labels, each stage by itself", "the teacher's features and labels"]),
    ],
)
def test_every_phase_says_what_it_learns_from(
    recipe: Callable[..., Any], data: Path, method: str, expected: list[str]
) -> None:
    assert on(recipe(method=method), data) == expected


def test_snapshots_and_discriminators_are_told(
    recipe: Callable[..., Any], data: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    shutil.copytree(teacher_folder, tmp_path / "teacher" / "snapshots" / "1")
    told = on(recipe(method="multi_teacher_gan", teacher=str(tmp_path / "teacher")), data)
    assert told[:2] == ["snapshot-1's feature and a discriminator", "the teacher's feature and a discriminator"]
    assert (len(told), told[-1]) == (21, "labels")


def test_stages_that_train_with_another_are_told(
    recipe: Callable[..., Any], data: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """VGG's first block lies before the teacher's first feature, and its last, a pooling, behind the last one."""
    phases = outline(recipe(student="unet:vgg11"), data).as_dict()["phases"]
    beside = {phase["name"]: phase["beside"] for phase in phases if phase["beside"]}
    assert beside == {"encoder.1": "encoder.0", "decoder.0": "encoder.5"}
    assert {phase["beside"] for phase in outline(recipe(method="simultaneous"), data).as_dict()["phases"]} == {""}
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    shutil.copytree(teacher_folder, tmp_path / "teacher" / "snapshots" / "1")
    several = recipe(method="multi_teacher_gan", student="unet:vgg11", teacher=str(tmp_path / "teacher"))
    told = [phase["beside"] for phase in outline(several, data).as_dict()["phases"] if "encoder.1" in phase["name"]]
    assert told == ["encoder.0", "encoder.0"]


def test_labels_and_further_images_are_counted(recipe: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "bands" / "train" / "images" / "b00.png", tmp_path / "one.png")
    made = recipe(data={"unlabelled": str(tmp_path)}, subset={"labels": 0.25})
    made = made.model_copy(update={"optimisation": made.optimisation.model_copy(update={"epochs": None})})
    found = outline(made, data)
    assert (found.total, found.images, found.labelled, found.unlabelled) == (12, 13, 3, 1)
    assert found.epochs == default_epochs(13)
    assert found.phases[-1].epochs == round(default_epochs(13) * 13 / 3)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"subset": {"labels": 0.5, "fraction": 0.25}}, "labels"),
        ({"subset": {"labels": 0.0}, "method": "supervised"}, "labels"),
        ({"data": {"unlabelled": "/no such folder"}}, "unlabelled"),
        ({"options": {"temperature": 2.0}}, "options"),
    ],
)
def test_problems_stand_beside_their_fields(
    recipe: Callable[..., Any], data: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(FieldError) as caught:
        outline(recipe(**changes), data)
    assert caught.value.field == field
    assert "--" not in caught.value.message


@pytest.mark.parametrize("method", METHODS)
def test_the_pages_hint_of_options_is_what_a_method_takes(
    recipe: Callable[..., Any], data: Path, teacher_folder: Path, tmp_path: Path, method: str
) -> None:
    assert method_sentences()[method]
    told = read_options(method_options(method))
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    made = recipe(method=method, options=told, teacher=str(tmp_path / "teacher"))
    if method in SNAPSHOT_METHODS:
        with pytest.raises(FieldError, match="learns from snapshots"):
            outline(made, data)
        shutil.copytree(teacher_folder, tmp_path / "teacher" / "snapshots" / "1")
    assert len(outline(made, data).phases) > 0
    sentences = option_sentences(method).split("; ") if told else []
    assert [sentence.partition(": ")[0] for sentence in sentences] == list(told)


def test_folders_of_images_are_those_of_the_server(card_path: Path, tmp_path: Path) -> None:
    """A page can name no path: it would tell which folders exist, and how many pictures they hold."""
    data = tmp_path / "data"
    for name in (".hidden", "bands", "drives/may", "VOCdevkit/VOC2012"):
        (data / name).mkdir(parents=True)
    shutil.copy(card_path, data / "bands.yaml")
    context = SimpleNamespace(data=data)
    assert [path.name for path in unlabelled_folders(context)] == ["drives"]
    check_unlabelled(context, str(data / "drives"))
    for path in (
        tmp_path,
        data,
        data / "bands",
        data / "VOCdevkit",
        data / "drives" / "may",
        data / ".hidden",
        "/",
        "drives",
    ):
        with pytest.raises(UserError, match="in a folder directly below this server's data"):
            check_unlabelled(context, str(path))


@pytest.mark.parametrize(
    "changes",
    [
        {"select": "best"},
        {"subset": {"fraction": 0.5, "labels": 0.25}, "options": {"joint": 0.2}},
        {"subset": {"rule": "hand", "names": ["b01", "b03", "b05"]}, "method": "dearkd"},
        {"method": "supervised", "subset": {"labels": 0.5}},
    ],
)
def test_the_page_foretells_what_a_run_does(
    recipe: Callable[..., Any], data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = recipe(**changes)
    made = made.model_copy(update={"optimisation": made.optimisation.model_copy(update={"epochs": None})})
    told, job = outline(made, data), prepare(made, tmp_path / "run")
    subset = job.subset
    assert (told.images, told.labelled, told.held_out) == (len(subset.train), len(subset.labelled), len(subset.holdout))
    assert told.epochs == job.recipe.optimisation.epochs
    assert [(phase.name, phase.epochs) for phase in told.phases] == [(p.name, p.epochs) for p in job.phases]
