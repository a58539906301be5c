"""The demo: two recipes that a queue can carry out, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from segskd import demo
from segskd.config import dump_recipe, load_recipe
from segskd.demo import QUICK, demo_recipes, run_demo
from segskd.runs import RUN_NAME

pytestmark = pytest.mark.slow


def test_the_student_names_the_teachers_run(tmp_path: Path) -> None:
    (teacher_name, teacher), (student_name, student) = demo_recipes(tmp_path / "data", tmp_path / "runs")
    assert (teacher.kind, student.kind) == ("teach", "distill")
    assert student.teacher == str(tmp_path / "runs" / teacher_name)
    assert not (tmp_path / "runs").exists()
    for name, recipe in ((teacher_name, teacher), (student_name, student)):
        assert RUN_NAME.match(name)
        assert (recipe.data.card, recipe.data.folder, recipe.data.size) == ("scenes", str(tmp_path / "data"), (96, 128))
        (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert (student.subset.fraction, student.student, teacher.student) == (0.1, "unet:resnet10", "unet:resnet34")


def test_places_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipes = [recipe for _, recipe in demo_recipes(Path("data"), Path("runs"))]
    assert [recipe.data.folder for recipe in recipes] == [str(tmp_path / "data")] * 2
    assert recipes[1].teacher == str(tmp_path / "runs" / "demo-teacher")
    assert demo_recipes(None, Path("runs"))[0][1].data.folder is None


def test_a_quick_demo_has_runs_of_its_own_of_one_epoch_a_phase(tmp_path: Path) -> None:
    (teacher_name, teacher), (student_name, student) = demo_recipes(None, tmp_path, QUICK)
    assert student.teacher == str(tmp_path / teacher_name)
    assert not {teacher_name, student_name} & {name for name, _ in demo_recipes(None, tmp_path)}
    assert [recipe.optimisation.epochs for recipe in (teacher, student)] == [1, 1]
    assert [recipe.data.views for recipe in (teacher, student)] == [1, 1]
    assert [recipe.subset.fraction for recipe in (teacher, student)] == [0.02, 0.02]  # 8 of 400 images


def test_both_are_carried_out_in_order_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, Any]] = []

    def start(recipe: Any, place: Path, listening: Sequence[Any]) -> dict[str, Any]:
        started.append((place.name, recipe))
        return {"miou": len(started)}

    @contextmanager
    def nobody(place: Path) -> Iterator[Sequence[Any]]:
        yield []

    class Source:
        card, data = "card", "data"

        def predictor(self) -> str:
            return "student"

        def with_model(self, place: str) -> Source:
            assert place == str(tmp_path / "demo-teacher")
            return self

    monkeypatch.setattr(demo, "start", start)
    monkeypatch.setattr(demo, "find_source", lambda *_: Source())
    monkeypatch.setattr(demo, "list_pairs", lambda *_: [])
    monkeypatch.setattr(demo, "compare", lambda *_: None)
    result = run_demo(tmp_path, tmp_path / "data", nobody)
    assert started == demo_recipes(tmp_path / "data", tmp_path)
    assert result == {"miou": 2, "picture": str(tmp_path / "demo-comparison" / "gallery.png")}


@pytest.mark.whole_demo
def test_its_masks_are_worth_looking_at(tmp_path: Path) -> None:
    """The demo at its full length, about two minutes on two cores."""
    result = run_demo(tmp_path / "runs", tmp_path / "data", lambda _: nullcontext([]))
    assert result["teacher_miou"] > 0.4
    assert result["percent_of_teacher"] > 85
    assert Path(result["picture"]).is_file()
