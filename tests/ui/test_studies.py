"""Studies on the Runs tab: figures worked out by hand, what is read again, damage, and names that are paths."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from segskd import run_admin
from segskd.errors import UserError
from segskd.events import StartEvent
from segskd.runs import Run
from segskd.study.folder import StudyFolder, StudyProgress
from segskd.study.grid import dump_study, make_study
from ui.context import Context
from ui.state import studies as module
from ui.state.catalogue import Catalogue
from ui.state.studies import FILES, Studies

Make = Callable[..., StudyFolder]
Facts = dict[str, Any]
FIRST = "stagewise-resnet10-50pc-s0"


@pytest.fixture
def studies(context: Context) -> Studies:
    return Studies(context)


@pytest.fixture
def make_study_folder(context: Context, data: Path, card_path: Path) -> Make:
    """A study of two methods on half of twelve images with three seeds each; parts can be given by name."""

    def make(name: str = "grid", **changes: Any) -> StudyFolder:
        content = {
            "name": name,
            "title": "Halves",
            "recipe": {
                "data": {"card": str(card_path), "folder": str(data), "size": "64x96"},
                "teacher": str(context.runs / "big"),
                "init": "random",
            },
            "methods": ["stagewise", "supervised"],
            "fractions": [0.5],
            "seeds": [0, 1, 2],
            "passes": 12,
        }
        place = StudyFolder(context.runs / name)
        place.desk.write("study.yaml", dump_study(make_study(content | changes, "study")).encode())
        place.write_progress(StudyProgress(12))
        return place

    return make


def end(place: StudyFolder, cell: str, miou: float, **changes: Any) -> Run:
    """Gives a cell a result; its teacher has an mIoU of 0.625."""
    run = Run(place.path / cell)
    figures = {"miou": miou, "teacher_miou": 0.625, "percent_of_teacher": 100 * miou / 0.625, "gpu_seconds": None}
    costs = {"image_passes": 24, "training_flops": 2e12, "seconds": 10.0, "cpu_seconds": 20.0}
    run.write_json("result.json", {**figures, **costs, **changes})
    run.record(StartEvent(phases=(), images=6, batch=4))
    return run


def end_first_three(place: StudyFolder) -> None:
    for seed, miou in enumerate((0.50, 0.52, 0.57)):
        end(place, f"stagewise-resnet10-50pc-s{seed}", miou, seconds=10.0 + seed)


def only(studies: Studies) -> Facts:
    (study,) = studies.answer()["studies"]
    return dict(study)


# -- figures --------------------------------------------------------------------------------------


def test_a_study_has_its_rows(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder()
    end_first_three(place)
    study = only(studies)
    assert {key: study[key] for key in ("name", "title", "state", "done", "total", "training_images")} == {
        "name": "grid",
        "title": "Halves",
        "state": "stopped",
        "done": 3,
        "total": 6,
        "training_images": 12,
    }
    assert study["shared"] == (
        "bands at 64x96, teacher big (mIoU 0.625), student unet:resnet10, images chosen by rule random, "
        "12 image passes a stage, first weights random"
    )
    first, second = study["rows"]
    # 0.50, 0.52, 0.57: mean 0.53, squares 0.0009 + 0.0001 + 0.0016 over n - 1 = 2
    assert first["miou_mean"] == pytest.approx(0.53)
    assert first["miou_std"] == pytest.approx(0.0013**0.5)
    assert first["percent_mean"] == pytest.approx(84.8)
    assert first["mious"] == [0.50, 0.52, 0.57]
    assert (first["line"], first["images"], first["seeds"], first["cells"]) == ("stagewise", 6, 3, 3)
    assert (first["image_passes"], first["training_flops"], first["seconds"]) == (24, 2e12, 11.0)
    assert (first["cpu_seconds"], first["gpu_seconds"]) == (20.0, None)
    assert (second["line"], second["seeds"], second["miou_mean"], second["mious"]) == ("supervised", 0, None, [])
    assert [row["best"] for row in study["rows"]] == [False, False]  # nothing to compare it with yet


def test_the_best_of_each_share_is_told(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder()
    end_first_three(place)
    end(place, "supervised-resnet10-50pc-s1", 0.54)
    assert [(row["line"], row["best"]) for row in only(studies)["rows"]] == [("stagewise", False), ("supervised", True)]


def test_axes_that_vary_name_the_lines(studies: Studies, make_study_folder: Make) -> None:
    make_study_folder(methods=["stagewise"], rules=["random", "diverse"], labels=[None, 0.5], seeds=[0])
    study = only(studies)
    assert study["varying"] == ["rule", "labels"]
    assert [row["line"] for row in study["rows"]] == [
        "random, all labels",
        "random, labels of 50 %",
        "diverse, all labels",
        "diverse, labels of 50 %",
    ]


def test_a_study_at_work_says_what_its_cells_do(studies: Studies, make_study_folder: Make, begin: Any) -> None:
    place = make_study_folder()
    cell = Run.create(place.path / FIRST, place.study().recipe_of(place.study().cells()[0], 4))
    place.write_progress(StudyProgress(12, [FIRST]))
    with place.working(place.study()), cell.working():
        begin(cell)
        answer = studies.answer()
    (study,) = answer["studies"]
    assert (study["state"], study["working"], study["go_on"]) == ("running", [FIRST], None)
    doing = "training encoder.0, epoch 1 of 4"
    assert answer["now"] == [{"study": "grid", "cell": FIRST, "doing": doing, "share": 0.125}]
    answer = studies.answer()  # its locks are free: it was killed
    assert (answer["studies"][0]["state"], answer["studies"][0]["working"], answer["now"]) == ("stopped", [], [])


def test_what_failed_says_why(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder(seeds=[0])
    end(place, "supervised-resnet10-50pc-s0", 0.5)
    place.write_progress(StudyProgress(12, [], {FIRST: "the disk is full"}))
    study = only(studies)
    assert study["failed"] == [{"name": FIRST, "error": "the disk is full"}]
    assert study["state"] == "failed"
    command = ["python", "-m", "segskd", "study", "--config", str(place.path / "study.yaml"), "--out", str(place.path)]
    assert shlex.split(study["go_on"]) == command


def test_a_finished_study_says_how_its_cells_are_opened(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder(seeds=[0])
    for method in ("stagewise", "supervised"):
        end(place, f"{method}-resnet10-50pc-s0", 0.5)
    folder = place.path.rename(place.path.with_name("it's mine"))
    study = only(studies)
    assert (study["name"], study["state"], study["go_on"]) == ("it's mine", "finished", None)
    assert shlex.split(study["open"]) == ["python", "-m", "segskd", "ui", "--runs", str(folder)]


# -- read again only when something has changed -----------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the studies that were read, each time that they were."""
    names: list[str] = []
    honest = module.read_study

    def reading(folder: Path) -> Facts:
        names.append(folder.name)
        return honest(folder)

    monkeypatch.setattr(module, "read_study", reading)
    return names


def test_what_has_not_changed_is_read_once(studies: Studies, make_study_folder: Make, reads: list[str]) -> None:
    make_study_folder("other")
    place = make_study_folder()
    for _ in range(3):
        studies.answer()
    assert sorted(reads) == ["grid", "other"]
    reads.clear()
    end(place, FIRST, 0.5)
    assert {study["name"]: study["done"] for study in studies.answer()["studies"]} == {"grid": 1, "other": 0}
    place.write_progress(StudyProgress(12, [], {"supervised-resnet10-50pc-s0": "no"}))
    studies.answer()
    result = place.path / FIRST / "result.json"
    before = result.stat()
    end(place, FIRST, 0.6)
    os.utime(result, ns=(before.st_atime_ns, before.st_mtime_ns))  # another file of the same time
    rows = next(study for study in studies.answer()["studies"] if study["name"] == "grid")["rows"]
    assert rows[0]["miou_mean"] == 0.6
    assert reads == ["grid"] * 3


def test_what_the_page_has_seen_is_not_sent_again(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder()
    make_study_folder("other")
    seen = {study["name"]: study["tag"] for study in studies.answer()["studies"]}
    answer = studies.answer(seen)
    assert (sorted(answer["names"]), answer["studies"], answer["now"]) == (["grid", "other"], [], [])
    end(place, FIRST, 0.5)
    later = studies.answer(seen)
    assert [(study["name"], study["done"]) for study in later["studies"]] == [("grid", 1)]
    assert len(studies.answer(seen | {"grid": later["studies"][0]["tag"]})["studies"]) == 0
    assert len(studies.answer({"grid": "another"})["studies"]) == 2


def test_the_one_begun_last_comes_first_and_what_is_gone_is_forgotten(
    studies: Studies, make_study_folder: Make
) -> None:
    for name, time in (("a", 3000), ("b", 9000), ("c", 6000)):
        os.utime(make_study_folder(name).path / "study.yaml", (time, time))
    assert [study["name"] for study in studies.answer()["studies"]] == ["b", "c", "a"]
    shutil.rmtree(studies._context.runs / "b")
    assert [study["name"] for study in studies.answer()["studies"]] == ["c", "a"]
    assert sorted(studies._cache) == ["a", "c"]


def test_without_studies_there_are_none(studies: Studies, make_run: Callable[..., Run]) -> None:
    make_run("alone")
    assert (studies.answer()["studies"], studies.answer()["now"]) == ([], [])


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["name: [", "", "[1]", "name: a", "\x00", "<img src=x onerror=alert(1)>"])
def test_a_damaged_study_says_so_and_the_others_stay(
    studies: Studies, make_study_folder: Make, context: Context, content: str
) -> None:
    make_study_folder("whole")
    (context.runs / "torn").mkdir()
    (context.runs / "torn" / "study.yaml").write_text(content)
    found = {study["name"]: study["problem"] for study in studies.answer()["studies"]}
    assert found["whole"] is None
    assert str(context.runs / "torn" / "study.yaml") in found["torn"]


@pytest.mark.parametrize(
    "content", ["{", "[1]", '"text"', "{}", '{"miou": "high"}', '{"miou": NaN}', '{"miou": [1]}', '{"miou": true}']
)
def test_a_result_that_no_run_writes_is_no_result(studies: Studies, make_study_folder: Make, content: str) -> None:
    place = make_study_folder()
    end(place, "supervised-resnet10-50pc-s0", 0.5)
    (place.path / FIRST).mkdir()
    (place.path / FIRST / "result.json").write_text(content)
    study = only(studies)
    assert (study["done"], [row["seeds"] for row in study["rows"]]) == (1, [0, 1])


def test_odd_figures_beside_a_good_one_are_none(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder()
    end(place, FIRST, 0.5, seconds=float("inf"), training_flops="many", percent_of_teacher=None, teacher_miou=[])
    study = only(studies)
    row = study["rows"][0]
    assert (row["miou_mean"], row["seconds"], row["training_flops"], row["percent_mean"]) == (0.5, None, None, None)
    json.dumps(study, allow_nan=False)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"images": 1e999, "working": [], "failed": {}}', '{"images": 12, "working": [[]], "failed": {}}'],
)
def test_progress_that_no_study_writes_is_none(studies: Studies, make_study_folder: Make, content: str) -> None:
    place = make_study_folder()
    (place.path / "progress.json").write_text(content)
    assert only(studies)["total"] == 6


def test_words_that_are_no_text_are_shown_as_text(studies: Studies, make_study_folder: Make) -> None:
    place = make_study_folder()
    place.desk.write_json("progress.json", {"images": 12, "working": [], "failed": {FIRST: {"a": 1}}})
    assert only(studies)["failed"] == [{"name": FIRST, "error": "{'a': 1}"}]


# -- files ----------------------------------------------------------------------------------------


def test_files_that_are_there_can_be_downloaded(studies: Studies, make_study_folder: Make, tmp_path: Path) -> None:
    place = make_study_folder()
    for name in FILES[1:]:
        (place.path / name).write_text(name)
    (tmp_path / "secret").write_text("secret")
    (place.path / "table.md").symlink_to(tmp_path / "secret")
    assert only(studies)["files"] == list(FILES[1:])
    assert studies.content("grid", "curve.png") == b"curve.png"
    with pytest.raises(UserError, match=r"has no table\.md"):
        studies.content("grid", "table.md")


PATHS: list[Any] = ["..", ".", "", "/", "/etc", "../runs/grid", "grid/", "./grid", "grid\0", None, 1, ["grid"], {}]


@pytest.mark.parametrize("name", [*PATHS, "alone"])
def test_a_path_is_no_studys_name(
    studies: Studies, make_study_folder: Make, make_run: Callable[..., Run], name: Any
) -> None:
    (make_study_folder().path / "table.md").write_text("a table")
    (make_run("alone").path / "table.md").write_text("no study's")
    with pytest.raises(UserError, match="is not the name of a study"):
        studies.content(name, "table.md")


@pytest.mark.parametrize("name", [*PATHS, "study.yaml", "../grid/table.md", "./table.md", f"{FIRST}/result.json"])
def test_a_path_is_no_file_of_a_study(studies: Studies, make_study_folder: Make, name: Any) -> None:
    place = make_study_folder()
    (place.path / "table.md").write_text("a table")
    end(place, FIRST, 0.5)
    with pytest.raises(UserError, match="not one of a study's files"):
        studies.content("grid", name)


# -- runs and studies beside one another -----------------------------------------------------------


def test_neither_a_study_nor_its_cells_are_among_the_runs(
    context: Context, make_study_folder: Make, make_run: Callable[..., Run]
) -> None:
    end_first_three(make_study_folder())
    make_run("alone")
    assert [row.name for row in Catalogue(context.jobs).rows()] == ["alone"]
    with pytest.raises(UserError, match="this server has no run grid"):
        context.run("grid")


def test_a_studys_name_is_taken(context: Context, make_study_folder: Make, make_run: Callable[..., Run]) -> None:
    make_study_folder()
    run = make_run("alone")
    with pytest.raises(UserError, match="a run grid exists already"):
        run_admin.rename(run, "grid")
    with pytest.raises(UserError, match=r"is no run and holds study\.yaml"):
        context.jobs.submit(run.recipe, "grid")
    assert context.jobs.waiting() == []


@pytest.mark.parametrize("below", ["", "student"])
def test_the_teacher_of_a_study_keeps_its_place(
    studies: Studies, context: Context, make_study_folder: Make, make_run: Callable[..., Run], below: str
) -> None:
    big, small = make_run("big"), make_run("small")
    (big.path / "student").mkdir()
    place = make_study_folder()
    content = (place.path / "study.yaml").read_text()
    assert str(big.path) in content
    (place.path / "study.yaml").write_text(content.replace(str(big.path), str(big.path / below)))
    studies.check_unneeded(small)
    with pytest.raises(UserError, match="run big is the teacher of study grid"):
        studies.check_unneeded(big)


def test_the_tab_asks_before_it_renames_or_deletes(
    context: Context, make_study_folder: Make, make_run: Callable[..., Run], built: Callable[[Context], gr.Blocks]
) -> None:
    make_run("big")
    (make_study_folder().path / "curve.svg").write_text("<svg/>")
    blocks = built(context).blocks.values()
    offered = {one.__name__: one for block in blocks for one in getattr(block, "server_fns", ())}
    for name in ("runs_rename", "runs_delete"):
        assert "is the teacher of study grid" in offered[name]({"run": "big", "name": "other"})["problem"]
    assert (context.runs / "big").is_dir()
    assert offered["runs_studies"]({})["studies"][0]["files"] == ["curve.svg"]
    assert offered["runs_file"]({"study": "grid", "file": "curve.svg"}) == {"problem": None, "base64": "PHN2Zy8+"}
    assert "is not the name" in offered["runs_file"]({"study": "../grid", "file": "curve.svg"})["problem"]
