"""Runs taken together: noted, renamed, deleted."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.config import make_recipe
from segskd.errors import UserError
from segskd.run_admin import delete, dependants, note, rename, write_note
from segskd.runs import Run, list_runs

Pair = tuple[Run, Run]


@pytest.fixture
def pair(recipe: Callable[..., Any], tmp_path: Path) -> Pair:
    """A teacher's run and a run that learns from it."""
    plain = recipe().model_dump(mode="json") | {"kind": "teach", "method": "supervised", "teacher": None}
    teacher = Run.create(tmp_path / "big", make_recipe(plain))
    return teacher, Run.create(tmp_path / "small", recipe(teacher=str(tmp_path / "big")))


def test_a_note_stays_with_its_run(pair: Pair) -> None:
    assert note(pair[0]) == ""
    write_note(pair[0], "ten epochs more than «small» – naïve")
    assert note(Run.open(pair[0].path)) == "ten epochs more than «small» – naïve"
    with pytest.raises(UserError, match="at most 2000 characters; this one has 2001"):
        write_note(pair[0], "x" * 2001)


def test_recipes_follow_a_teacher_that_is_renamed(pair: Pair) -> None:
    teacher, student = pair
    renamed = rename(teacher, "huge")
    assert renamed.path.name == "huge"
    assert not teacher.path.exists()
    assert student.recipe.teacher == str(renamed.path)
    assert sorted(run.name for run in list_runs(teacher.path.parent)) == ["huge", "small"]


def test_a_folder_within_a_renamed_run_is_followed(pair: Pair) -> None:
    teacher, student = pair
    student.write_recipe(student.recipe.model_copy(update={"teacher": str(teacher.path / "student")}))
    rename(teacher, "huge")
    assert student.recipe.teacher == str(teacher.path.with_name("huge") / "student")


def test_a_neighbour_whose_name_begins_alike_is_not_followed(pair: Pair) -> None:
    teacher, student = pair
    student.write_recipe(student.recipe.model_copy(update={"teacher": str(teacher.path) + "ger"}))
    assert dependants(teacher) == []
    rename(teacher, "huge")
    assert student.recipe.teacher == str(teacher.path) + "ger"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "<b>", "new\n"])
def test_names_that_cannot_be_are_refused(pair: Pair, name: str) -> None:
    with pytest.raises(UserError, match="a run's name has letters"):
        rename(pair[1], name)


def test_a_taken_name_is_refused(pair: Pair) -> None:
    with pytest.raises(UserError, match="a run big exists already"):
        rename(pair[1], "big")


def test_a_run_at_work_is_neither_renamed_nor_deleted(pair: Pair) -> None:
    teacher, student = pair
    with student.working():
        for change in (lambda: rename(student, "other"), lambda: delete(student), lambda: rename(teacher, "huge")):
            with pytest.raises(UserError, match="run small is running: stop it first"):
                change()


def test_a_teacher_that_is_needed_is_not_deleted(pair: Pair) -> None:
    teacher, student = pair
    with pytest.raises(UserError, match="run big is the teacher of, or comes before, small"):
        delete(teacher)
    delete(student)
    delete(teacher)
    assert list(teacher.path.parent.iterdir()) == []


def test_nobody_meets_a_run_that_is_being_deleted(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = pair
    seen: list[list[str]] = []
    remove = shutil.rmtree

    def removing(*arguments: Any, **options: Any) -> None:
        seen.append([run.name for run in list_runs(teacher.path.parent)])
        remove(*arguments, **options)

    monkeypatch.setattr(tempfile._shutil, "rmtree", removing)  # type: ignore[attr-defined]
    delete(student)
    assert seen == [["big"]]
