"""What the Compare tab shows of a run, checked against the figures and files that the run wrote itself."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segskd.config import load_recipe
from segskd.distill.running.session import start
from segskd.errors import UserError
from segskd.evaluate.sidebyside import Frame
from segskd.runs import Run
from ui.context import Context
from ui.jobs import Jobs
from ui.state.comparing import Comparisons, NotOpen
from ui.state.frames import packed, picture_url, stage_colours, thumbnail

NAMES = ["b00", "b01", "b02", "b03"]


@pytest.fixture(scope="module")
def runs(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished run `student`, a teacher's, one on labels alone, and one that never began."""
    folder = tmp_path_factory.mktemp("runs")
    start(recipe(optimisation={"epochs": 1}), folder / "student")
    Run.create(folder / "waiting", recipe())
    (Run.create(folder / "empty", recipe()).path / "recipe.yaml").write_text("")
    Run.create(folder / "labels", recipe().model_copy(update={"method": "supervised", "teacher": None}))
    Run.create(folder / "teacher", recipe().model_copy(update={"kind": "teach", "teacher": None}))
    return folder


@pytest.fixture(scope="module")
def context(runs: Path, data: Path) -> Context:
    return Context(data, runs, Jobs(runs, data))


@pytest.fixture(scope="module")
def comparisons(context: Context) -> Comparisons:
    """With `student` loaded and compared."""
    made = Comparisons(context)
    assert settled(lambda: made.state("student"))["state"] == "ready"
    return made


def settled(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The first answer that is not "working"."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        answer = ask()
        if answer["state"] != "working":
            return answer
        time.sleep(0.02)
    raise AssertionError("still at work after 300 seconds")


def maps_of(answer: dict[str, Any]) -> dict[str, np.ndarray]:
    """As the page's script unpacks them."""
    flat = np.frombuffer(zlib.decompress(base64.b64decode(answer["data"])), dtype=np.uint8)
    each = flat.reshape(len(answer["planes"]), answer["height"], answer["width"])
    return dict(zip(answer["planes"], each, strict=True))


def test_packed_maps_come_out_as_they_went_in() -> None:
    first = np.arange(6, dtype=np.uint8).reshape(2, 3)
    second = np.full((2, 3), 255, dtype=np.uint8)
    answer = packed({"a": first, "b": second})
    assert (answer["planes"], answer["height"], answer["width"]) == (["a", "b"], 2, 3)
    assert maps_of(answer)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert maps_of(answer)["b"].tolist() == [[255] * 3] * 2


def test_a_picture_keeps_its_colours_and_their_order() -> None:
    picture = np.full((8, 8, 3), (200, 100, 20), dtype=np.uint8)
    content = base64.b64decode(picture_url(picture).removeprefix("data:image/jpeg;base64,"))
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(bgr.astype(int) - (20, 100, 200)).max() <= 4


def test_a_thumbnail_is_tinted_where_one_network_alone_is_right() -> None:
    """Quarters: both right, teacher only, student only, both wrong; grey 100 mixed with 70 % of the colour."""
    truth = np.zeros((2, 2), dtype=np.uint8)
    teacher = np.array([[0, 0], [1, 1]], dtype=np.uint8)
    student = np.array([[0, 1], [0, 2]], dtype=np.uint8)
    sure = np.full((2, 2), 90, dtype=np.uint8)
    small = thumbnail(Frame(np.full((160, 160, 3), 100, np.uint8), truth, teacher, student, sure, sure), 255)
    assert small.shape == (160, 160, 3)
    assert small[40, 40].tolist() == small[120, 120].tolist() == [100, 100, 100]
    assert small[40, 120].tolist() == [191, 141, 30]  # 30 + 0.7 · (230, 159, 0)
    assert small[120, 40].tolist() == [30, 140, 110]  # 30 + 0.7 · (0, 158, 115), cut off


def test_stages_get_brighter_in_order() -> None:
    colours = stage_colours(11)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in colours]
    assert len(set(colours)) == 11
    assert light == sorted(light)
    assert light[-1] - light[0] > 100
    assert stage_colours(0) == []


@pytest.mark.parametrize(
    ("name", "state", "word"),
    [
        ("waiting", "elsewhere", "has not been started"),
        ("teacher", "elsewhere", "is a teacher"),
        ("labels", "elsewhere", "has no teacher"),
        ("../student", "problem", "not the name of a run"),
        ("<b>", "problem", "not the name of a run"),
        ("nobody", "problem", "this server has no run nobody"),
        ("empty", "problem", "the files of empty are damaged"),
    ],
)
def test_runs_that_can_not_be_compared_say_why(comparisons: Comparisons, name: str, state: str, word: str) -> None:
    found = comparisons.state(name)
    assert found["state"] == state
    assert word in found["text"]


def test_a_finished_run_without_its_network_says_so(
    context: Context, recipe: Callable[..., Any], tmp_path: Path
) -> None:
    Run.create(tmp_path / "robbed", recipe()).write_json("result.json", {})
    found = Comparisons(Context(context.data, tmp_path, Jobs(tmp_path, context.data))).state("robbed")
    assert found["state"] == "problem"
    assert "the trained network of robbed is missing" in found["text"]


def test_no_run_is_no_problem(comparisons: Comparisons) -> None:
    assert comparisons.state("") == {"state": "none"}


def test_a_ready_run_tells_its_figures(comparisons: Comparisons, runs: Path) -> None:
    result = Run(runs / "student").read_json("result.json")
    found = comparisons.state("student")
    assert found["student"]["miou"] == pytest.approx(result["miou"], abs=1e-6)
    assert found["teacher"]["miou"] == pytest.approx(result["teacher_miou"], abs=1e-6)
    assert [entry["name"] for entry in found["classes"]] == ["ground", "wall", "sky"]
    assert sorted(row[0] for row in found["images"]) == NAMES
    gaps = [row[3] for row in found["images"]]
    assert gaps == sorted(gaps, reverse=True)
    assert sum(found["agreement"]["pixels"][kind] for kind in found["agreement"]["kinds"]) == 4 * (64 * 96 - 16)
    assert len(found["stage_colors"]) == len(found["stages"]) == 11
    assert [row["run"] for row in comparisons.runs()] == ["student"]


def test_a_frame_holds_the_truth_of_its_file(comparisons: Comparisons, data: Path) -> None:
    answer = comparisons.frame("student", "b02")
    maps = maps_of(answer)
    written = cv2.imread(str(data / "bands" / "val" / "masks" / "b02.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(maps["truth"], written)
    right = (maps["teacher"] == written) & (maps["student"] != written) & (written != 255)
    assert answer["agreement"]["teacher only"] == right.sum()
    assert maps["student_confidence"].max() <= 100
    assert answer["photo"].startswith("data:image/jpeg;base64,")


def test_stages_come_with_the_grafts_the_run_drew(comparisons: Comparisons, runs: Path) -> None:
    answer = settled(lambda: comparisons.stages("student", "b00"))
    maps = maps_of(answer)
    drawn = cv2.imread(str(runs / "student" / "previews" / "decoder.2" / "b00.png"), cv2.IMREAD_COLOR_RGB)
    colours = np.array(((128, 64, 128), (70, 70, 70), (70, 130, 180)), dtype=np.uint8)
    assert (colours[maps["decoder.2"]] == drawn).all(axis=2).mean() > 0.999  # alone and in a batch: all but the same
    frame = maps_of(comparisons.frame("student", "b00"))
    counted = frame["truth"] != 255
    wrong = ((frame["student"] != frame["truth"]) & counted).sum()
    assert sum(row["pixels"] for row in answer["shares"]) == wrong > 0
    assert ((maps["first errors"] > 0) & counted).sum() == wrong


def test_errors_of_all_images_are_counted_when_asked(comparisons: Comparisons) -> None:
    assert comparisons.shares("student", begin=False) == {"state": "idle"}
    assert comparisons.shares("student", begin=True)["state"] in ("working", "done")
    rows = settled(lambda: comparisons.shares("student", begin=False))["shares"]
    each = [settled(lambda n=name: comparisons.stages("student", n))["shares"] for name in NAMES]
    assert [row["pixels"] for row in rows] == [sum(part[i]["pixels"] for part in each) for i in range(len(rows))]
    assert sum(row["share"] for row in rows) == pytest.approx(1)


def test_thumbnails_and_gaps_by_class(comparisons: Comparisons) -> None:
    pictures = comparisons.thumbnails("student", ["b01", "b03"])
    assert all(url.startswith("data:image/jpeg") for url in pictures.values() if url)
    assert pictures["b01"] != pictures["b03"]
    assert comparisons.thumbnails("student", ["../b01"]) == {"../b01": None}
    assert len(comparisons.thumbnails("student", [f"no{i}" for i in range(30)])) == 12
    by_class = comparisons.gaps("student", "sky")
    assert sorted(row[0] for row in by_class) == NAMES
    assert by_class != comparisons.gaps("student", None)
    with pytest.raises(UserError, match="no class 'moon'"):
        comparisons.gaps("student", "moon")


def test_an_uploaded_picture_is_seen_and_has_no_truth(
    comparisons: Comparisons, context: Context, data: Path, tmp_path: Path
) -> None:
    answer = comparisons.uploaded(comparisons.upload("student", data / "bands" / "val" / "images" / "b01.png"))
    known = maps_of(comparisons.frame("student", "b01"))
    seen = maps_of(answer)
    assert "truth" not in seen
    assert (seen["student"] == known["student"]).mean() > 0.999
    assert (seen["teacher"] == known["teacher"]).mean() > 0.999
    assert (answer["name"], answer["tile"]) == ("b01.png", None)
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((120, 200, 3), dtype=np.uint8))
    large = comparisons.uploaded(comparisons.upload("student", tmp_path / "large.png", native=True))
    assert (large["height"], large["width"], large["tile"]) == (120, 200, (64, 96))
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(UserError, match=r"no\.png"):
        comparisons.upload("student", tmp_path / "no.png")
    with pytest.raises(UserError, match="no run is open yet"):
        Comparisons(context).upload("student", tmp_path / "no.png")
    with pytest.raises(UserError, match="upload it again"):
        comparisons.uploaded("forgotten")


def test_retraining_queues_a_branch_with_the_epochs_asked_for(
    comparisons: Comparisons, context: Context, runs: Path
) -> None:
    name = comparisons.retrain("student", "decoder.3", 7)
    made = load_recipe(runs / name / "recipe.yaml")
    assert name == "student-from-decoder.3"
    assert made.begin is not None
    assert (made.begin.run, made.begin.stage) == (str(runs / "student"), "decoder.3")
    assert made.optimisation.epochs == 7
    assert context.jobs.waiting() == [name]
    assert comparisons.retrain("student", "decoder.3", 7) == "student-from-decoder.3-2"
    for epochs in (0, -1, 1.5, "3", None, True):
        with pytest.raises(UserError, match="whole number"):
            comparisons.retrain("student", "decoder.3", epochs)
    with pytest.raises(UserError, match="tail"):
        comparisons.retrain("student", "tail", 3)


def test_a_finished_branch_stands_beside_its_beginning(comparisons: Comparisons, runs: Path) -> None:
    assert comparisons.relatives("student") == []
    old = Run(runs / "student")
    begin = {"run": str(old.path), "stage": "decoder.4"}
    branch = Run.create(runs / "branch", type(old.recipe).model_validate({**old.recipe.model_dump(), "begin": begin}))
    result = old.read_json("result.json")
    branch.write_json("result.json", {**result, "miou": 0.5, "student": {**result["student"], "miou": 0.5}})
    (pair,) = comparisons.relatives("student")
    assert (pair["stage"], pair["before"]["run"], pair["after"]["run"]) == ("decoder.4", "student", "branch")
    assert (pair["before"]["miou"], pair["after"]["miou"]) == (result["miou"], 0.5)
    assert comparisons.relatives("branch") == [pair]
    assert comparisons.relatives("waiting") == []


def test_a_server_that_started_anew_asks_for_the_run_again(context: Context) -> None:
    fresh = Comparisons(context)
    with pytest.raises(NotOpen):
        fresh.frame("student", "b00")
    assert fresh.state("student")["state"] == "working"
    assert settled(lambda: fresh.state("student"))["state"] == "ready"
    assert fresh.frame("student", "b00")["planes"][0] == "truth"


def test_a_failure_is_told_and_tried_again_when_asked(context: Context, runs: Path) -> None:
    fresh = Comparisons(context)
    weights = runs / "student" / "student" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(b"cut short")
    try:
        failed = settled(lambda: fresh.state("student"))
        assert (failed["state"], failed["again"]) == ("problem", True)
        assert fresh.state("student")["state"] == "problem"
    finally:
        weights.write_bytes(content)
    assert fresh.state("student", retry=True)["state"] in ("working", "ready")
    assert settled(lambda: fresh.state("student"))["state"] == "ready"
