"""The public interface: what `import segskd` offers, what it loads, and what its functions give back."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import segskd
from segskd import api
from segskd.config import dump_recipe

pytestmark = pytest.mark.slow

NETWORK = "linknet:tu-test_efficientnet"


@pytest.fixture
def fields(data: Path, card_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Fields of a recipe that trains in a second; runs lie below tmp_path."""
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "runs"))
    return {
        "data": {"card": card_path, "folder": data, "size": "64x96", "views": 1},
        "optimisation": {"epochs": 1, "batch": 4},
        "device": "cpu",
        "precision": "32",
    }


def test_importing_it_loads_neither_pytorch_nor_a_screen() -> None:
    program = "import sys, segskd; print({'torch', 'gradio', 'ui', 'pydantic'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "set()\n"


def test_every_public_name_is_there_and_no_other() -> None:
    assert [name for name in segskd.__all__ if not callable(getattr(segskd, name))] == []
    assert set(segskd.__all__) <= set(dir(segskd))
    with pytest.raises(AttributeError, match="no attribute 'teech'"):
        segskd.teech  # noqa: B018


@pytest.mark.parametrize("name", ["distill", "evaluate", "export"])
def test_a_package_is_called_like_the_function_of_its_name(name: str) -> None:
    package = getattr(segskd, name)
    assert inspect.ismodule(package)
    assert inspect.signature(package) == inspect.signature(getattr(api, name))


@pytest.mark.slow
def test_from_a_teacher_to_an_exported_student(
    fields: dict[str, Any], data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[str] = []
    teacher = segskd.teach(run="teacher", network=NETWORK, listeners=[lambda e: heard.append(e.kind)], **fields)
    assert teacher.path == tmp_path / "runs" / "teacher"
    assert heard[-1] == "done"
    fields |= {"teacher": teacher, "trust_teacher": True, "student": NETWORK}
    paused = segskd.distill(run="student", until="encoder.1", subset={"count": 6}, **fields)
    assert paused.result is None
    assert paused.recipe.teacher == str(teacher.path)
    assert paused.recipe.subset.count == 6
    student = segskd.resume("student")
    assert student.result is not None
    found = segskd.evaluate(student)
    assert found.miou == pytest.approx(student.result["miou"])
    assert set(found.per_class) == {"ground", "wall", "sky"}
    image = data / "bands" / "val" / "images" / "b00.png"
    written = segskd.predict(student, [image, tmp_path / "nowhere.png"], tmp_path / "masks")
    assert (written.masks, written.unreadable) == ([tmp_path / "masks" / "b00.png"], [str(tmp_path / "nowhere.png")])
    mask = segskd.load_predictor(student).mask(cv2.imread(str(image))[..., ::-1])
    assert (mask.shape, mask.dtype) == ((64, 96), np.uint8)
    compared = segskd.compare(teacher, student, tmp_path / "compared")
    assert compared.student.miou == pytest.approx(found.miou)
    package = segskd.export(student)
    assert package.path == student.path / "exports" / "safetensors" / "student-safetensors.zip"
    assert package.certificate.pixels_differing == 0
    assert capfd.readouterr() == ("", "")
    assert "head: loss" in (student.path / "log.txt").read_text()


def test_progress_goes_to_standard_error(fields: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    segskd.teach(run="told", network=NETWORK, progress=True, **fields)
    out, err = capfd.readouterr()
    assert out == ""
    assert "student: mIoU" in err


def test_a_recipe_may_be_an_object_plain_data_or_a_file(fields: dict[str, Any], tmp_path: Path) -> None:
    made = api._make_recipe(None, {**fields, "method": "supervised"})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(made))
    for given in (made, made.model_dump(mode="json"), tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml")):
        changed = api._make_recipe(given, {"seed": 3, "optimisation": {"batch": 2}})
        assert (changed.seed, changed.optimisation.batch, changed.optimisation.epochs) == (3, 2, 1)
        assert changed.data == made.data


def test_what_a_caller_can_mend_is_a_user_error(fields: dict[str, Any], tmp_path: Path) -> None:
    wrong: list[tuple[str, Callable[[], Any]]] = [
        (
            "recipe: optimisation.batch: must be at least 1",
            lambda: segskd.teach(**fields | {"optimisation": {"batch": 0}}),
        ),
        ("recipe: data: is missing", lambda: segskd.distill(method="supervised")),
        ("needs a teacher", lambda: segskd.distill(**fields)),
        ("can't be a name", lambda: segskd.teach(run="a b", **fields)),
        ("no run at", lambda: segskd.resume(tmp_path / "nowhere")),
        ("is no run", lambda: segskd.evaluate(tmp_path)),
        ("name at least one image", lambda: segskd.predict(tmp_path, [], tmp_path)),
        ("prune-epochs is for a pruned student", lambda: segskd.export(tmp_path, prune_epochs=3)),
        ("no folder and no file", lambda: segskd.add_dataset(tmp_path / "nowhere", data=tmp_path)),
    ]
    for message, call in wrong:
        with pytest.raises(segskd.UserError, match=message):
            call()


def test_a_teachers_place_that_is_empty_is_no_folder() -> None:
    assert (api.absolute_place(""), api.absolute_place(None)) == ("", None)


def test_init_teacher_is_no_run_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path))
    (tmp_path / "teacher").mkdir()
    assert api.network_place("init", "teacher") == "teacher"
    assert api.network_place("teacher", "teacher") == str(tmp_path / "teacher")
    assert api.network_place("init", None) is None
