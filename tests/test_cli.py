"""The contract that scripts rely on: exit statuses, one line for what the user can mend, one JSON object last."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from segskd import api, cli, runs
from segskd.cli.flags import NO_DISTILL_FLAGS, NO_TEACHER_FLAGS
from segskd.cli.run_commands import recipe_from_flags
from segskd.config import dump_recipe, make_recipe
from segskd.data.cards import load_card
from segskd.distill.planning.methods import METHODS
from segskd.distill.running import preflight
from segskd.errors import ErrorRecord
from segskd.evaluate.predictor import Predictor
from segskd.evaluate.tiles import Tiles
from segskd.models.build import load

pytestmark = pytest.mark.slow


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs a command with its runs below tmp_path; (exit status, standard output, standard error)."""
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "checkpoints"))

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def flags(data: Path, card_path: Path, teacher_folder: Path) -> list[str]:
    """A small run."""
    return [
        *("--dataset", str(card_path), "--data", str(data), "--teacher", str(teacher_folder)),
        *("--student", "linknet:tu-test_resnet"),
        *("--size", "64x96", "--views", "1", "--epochs", "1", "--batch", "4", "--precision", "32", "--device", "cpu"),
        "--trust-teacher",  # its weights are random
    ]


def last_line(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def test_a_run_from_distill_to_compare(
    call: Callable[..., Any], flags: list[str], data: Path, card_path: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    status, out, err = call("distill", *flags, "--count", 4, "--run", "small", "--until", "encoder.0", "--json")
    assert status == 0
    folder = tmp_path / "checkpoints" / "small"
    assert last_line(out) == {"run": str(folder), "after": "encoder.0"}
    assert "encoder.0: nothing to learn, loss" in err
    assert "encoder.0: nothing to learn, loss" in (folder / "log.txt").read_text()

    status, out, _ = call("resume", "small", "--json")
    assert status == 0
    result = last_line(out)
    assert {"run", "miou", "teacher_miou", "seconds"} <= result.keys()

    status, out, err = call("resume", "small", "--json")
    assert (status, last_line(out)) == (0, result)
    assert "finished" in err

    status, out, _ = call("evaluate", "small", "--split", "val", "--json")
    assert status == 0
    score = last_line(out)
    assert score["miou"] == pytest.approx(result["miou"])
    assert score["resize"].startswith("INTER_AREA when shrinking")
    assert (score["images"], score["size"], set(score["per_class"])) == (4, [64, 96], {"ground", "wall", "sky"})

    status, out, _ = call(
        "evaluate", teacher_folder, "--dataset", card_path, "--data", data, "--size", "64x96", "--json"
    )
    assert last_line(out)["miou"] == pytest.approx(result["teacher_miou"])

    status, out, _ = call("runs", "--json")
    assert [(row["run"], row["state"]) for row in last_line(out)["runs"]] == [("small", "finished")]

    image = data / "bands" / "val" / "images" / "b00.png"
    status, out, _ = call("predict", "small", image, "--out", tmp_path / "masks", "--json")
    assert status == 0
    mask = Image.open(last_line(out)["masks"][0])
    assert mask.mode == "P"
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}

    status, out, _ = call("compare", teacher_folder, "small", "--out", tmp_path / "compared", "--json")
    assert status == 0
    assert last_line(out)["miou"] == pytest.approx(result["miou"])
    assert cv2.imread(str(tmp_path / "compared" / "gallery.png")) is not None

    status, _, err = call("stop", "small")
    assert (status, err) == (2, "segskd: run small is not running\n")


def test_a_recipe_and_flags_over_it(call: Callable[..., Any], recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe()))
    status, _, _ = call(
        *("distill", "--recipe", tmp_path / "recipe.yaml", "--count", 4, "--epochs", 1),
        *("--run", tmp_path / "run", "--until", "encoder.0"),
    )
    assert status == 0
    made = runs.Run.open(tmp_path / "run").recipe
    assert (made.subset.count, made.optimisation.epochs, made.optimisation.batch) == (4, 1, 4)
    # a run's own recipe holds a count; a fraction given beside it takes its place
    status, _, _ = call(
        *("distill", "--recipe", tmp_path / "run" / "recipe.yaml", "--fraction", 0.5),
        *("--run", tmp_path / "half", "--until", "encoder.0"),
    )
    assert status == 0
    made = runs.Run.open(tmp_path / "half").recipe
    assert (made.subset.count, made.subset.fraction) == (None, 0.5)


def test_empty_parts_of_a_recipe_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {card: scenes}\nteacher: t\nsubset:\noptimisation:\nstore:\noptions:\n", encoding="utf-8")
    made = recipe_from_flags(path, NO_TEACHER_FLAGS, NO_DISTILL_FLAGS)
    assert made == make_recipe({"data": {"card": "scenes"}, "teacher": "t"})


def bad(flags: list[str], **changes: object) -> list[str]:
    """The flags with some replaced."""
    *pairs, trust = flags
    given = dict(zip(pairs[::2], pairs[1::2], strict=True)) | {f"--{name}": str(v) for name, v in changes.items()}
    return [*(part for pair in given.items() for part in pair), trust]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "nowhere"}, "no card 'nowhere': name one of"),
        ({"data": "/nowhere"}, "no folder /nowhere/bands"),
        ({"teacher": "/nowhere"}, "no model at /nowhere"),
        ({"fraction": "0"}, "--fraction 0 must be above 0"),
        ({"fraction": "0.1"}, "leaves 1, and training needs at least 2"),
        ({"count": "13"}, "more than the 12 training images"),
        ({"size": "big"}, "write HEIGHTxWIDTH"),
        ({"size": "16000x16000"}, "make --size, --batch or --store-budget smaller"),
        ({"student": "unet:nothing"}, "can't build unet:nothing"),
        ({"student": "resnet10"}, "write ARCH:ENCODER"),
        ({"method": "magic"}, "no method 'magic'"),
        ({"until": "encoder.9"}, "no such phase"),
        ({"batch": "0"}, "--batch must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    call: Callable[..., Any], flags: list[str], tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    status, out, err = call("distill", *bad(flags, **changes), "--run", "bad")
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "checkpoints" / "bad").exists()


def test_a_preflight_without_memory_tells_programs_which_fields_help(
    call: Callable[..., Any], flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(preflight, "preflight", fail)
    status, out, err = call("preflight", *flags, "--json")
    answer = json.loads(out)
    assert (status, answer["error"]) == (2, "OutOfMemory")
    assert "take a smaller --size, --batch or --store-budget" in err
    assert "take a smaller «Size», «Batch» or «Memory for the store (GiB)»" in ErrorRecord.read(answer).in_labels


@pytest.mark.parametrize("name", ["s bin", "über", "..", ".hidden", "n" * 101])
def test_what_is_neither_name_nor_path_is_refused(call: Callable[..., Any], flags: list[str], name: str) -> None:
    status, out, err = call("distill", *flags, "--run", name)
    assert (status, out) == (2, "")
    assert f"--run: '{name}' can't be a name" in err


def test_a_teacher_of_other_classes_is_refused(
    call: Callable[..., Any], flags: list[str], tmp_path: Path, teacher_folder: Path
) -> None:
    import segmentation_models_pytorch as smp

    smp.Unet("resnet18", classes=5, encoder_weights=None).save_pretrained(tmp_path / "five")
    status, _, err = call("distill", *bad(flags, teacher=tmp_path / "five"), "--run", "bad")
    assert status == 2
    assert "has 5 outputs, but 'bands' has 3 classes" in err


def test_a_mask_value_outside_the_card_is_named(
    call: Callable[..., Any], flags: list[str], data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "data")
    mask = tmp_path / "data" / "bands" / "train" / "masks" / "b03.png"
    cv2.imwrite(str(mask), np.full((64, 96), 9, dtype=np.uint8))
    status, _, err = call("distill", *bad(flags, data=tmp_path / "data"), "--run", "bad")
    assert status == 2
    assert f"mask {mask} has value 9" in err
    status, out, err = call("data", "check", flags[1], "--data", tmp_path / "data", "--json")
    assert status == 2
    (problem,) = last_line(out)["problems"]
    assert (problem["kind"], problem["file"]) == ("unknown values", str(mask))


def test_an_unreadable_image_is_skipped_and_named(
    call: Callable[..., Any], data: Path, card_path: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = data / "bands" / "val" / "images" / "b00.png"
    flags = ("--dataset", card_path, "--size", "64x96", "--out", tmp_path / "masks")
    status, out, err = call("predict", teacher_folder, tmp_path / "broken.png", good, *flags, "--json")
    assert status == 2
    assert str(tmp_path / "broken.png") in err
    assert [Path(path).name for path in last_line(out)["masks"]] == ["b00.png"]
    assert call("predict", teacher_folder, *flags)[0] == 2


def test_large_images_by_tiles(
    call: Callable[..., Any], data: Path, card_path: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    """The mask is that of the library's call; what tiles were rounded to is told."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    flags = ("--dataset", card_path, "--size", "native", "--tile", "60x90", "--overlap", 10, "--json")
    status, out, _ = call("predict", teacher_folder, tmp_path / "large.png", *flags, "--out", tmp_path / "masks")
    assert (status, last_line(out)["tile"], last_line(out)["overlap"]) == (0, [64, 96], 32)
    made = np.asarray(Image.open(last_line(out)["masks"][0]))
    assert (made == mask_by(teacher_folder, card_path, Tiles((64, 96), 32), pixels)).all()
    assert (made != mask_by(teacher_folder, card_path, None, pixels)).any()

    status, out, _ = call("evaluate", teacher_folder, "--data", data, "--split", "val", *flags)
    assert (status, last_line(out)["tile"], last_line(out)["overlap"]) == (0, [64, 96], 32)
    flags = ("--dataset", card_path, "--size", "native", "--tile", "32x32", "--out", tmp_path)
    status, _, err = call("predict", teacher_folder, tmp_path / "large.png", *flags)
    assert (status, "too small to overlap" in err) == (2, True)


def mask_by(network: Path, card: Path, tiles: Tiles | None, image: np.ndarray) -> np.ndarray:
    return Predictor(load(network), load_card(str(card)), None, tiles=tiles).mask(image)


def test_a_bug_shows_its_traceback(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(runs, "list_runs", fail)
    status, _, err = call("runs")
    assert status == 1
    assert "Traceback" in err
    assert "ZeroDivisionError: a bug" in err


def test_a_request_to_stop_ends_a_real_worker_with_130(flags: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segskd", "distill", *bad(flags, epochs=500), "--run", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        try:
            for line in worker.stderr:
                if line.strip().startswith("teacher:"):
                    break
            assert runs.Run.open(tmp_path / "run").is_alive()
            assert cli.main(["stop", str(tmp_path / "run")]) == 0
            _, err = worker.communicate(timeout=300)
        finally:
            worker.kill()
    assert worker.returncode == 130
    assert "resume run" in err.splitlines()[-1]
    assert runs.Run.open(tmp_path / "run").status() == "interrupted"


def test_cards_are_listed(call: Callable[..., Any], tmp_path: Path) -> None:
    status, out, _ = call("data", "list", "--data", tmp_path, "--json")
    assert status == 0
    cards = {row["card"]: row["splits_here"] for row in last_line(out)["cards"]}
    assert {"camvid", "cityscapes", "oxford_pets", "pascal_voc", "scenes"} <= cards.keys()
    assert not any(cards.values())


def test_a_dataset_is_added_listed_and_checked_by_its_name(
    call: Callable[..., Any], recipe: Callable[..., Any], data: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(data / "bands", tmp_path / "data" / "My bands")
    (tmp_path / "data" / "broken.yaml").write_text("name: [")
    (tmp_path / "data" / "My bands" / "val" / "masks" / "b03.png").unlink()
    flags = ("--data", tmp_path / "data", "--json")
    status, out, err = call("data", "add", tmp_path / "data" / "My bands", "--classes", "ground,wall, sky", *flags)
    assert status == 0
    added = last_line(out)
    assert (added["card"], added["layout"], added["images"]) == (
        "My-bands",
        "images and masks",
        {"train": 12, "val": 3},
    )
    assert added["place"] == str(tmp_path / "data" / "My-bands.yaml")
    assert [problem["kind"] for problem in added["problems"]] == ["unpaired"]
    assert "My-bands (images and masks) is described in" in err
    status, out, _ = call("data", "list", *flags)
    rows = {row["card"]: row for row in last_line(out)["cards"]}
    assert rows["My-bands"]["classes"] == ["ground", "wall", "sky"]
    assert (rows["My-bands"]["own"], rows["camvid"]["own"]) == (True, False)
    assert "is not YAML" in rows["broken"]["problem"]
    status, _, err = call("data", "check", "My-bands", *flags)
    assert status == 2
    assert "1 problem, the first: image" in err
    status, out, _ = call("evaluate", teacher_folder, "--dataset", "My-bands", "--size", "64x96", *flags)
    assert (status, last_line(out)["dataset"], last_line(out)["images"]) == (0, "My-bands", 3)
    asked = recipe(data={"card": "My-bands", "folder": str(tmp_path / "data")}, subset={"count": 4})
    assert api.run_folder(asked, None).name == "My-bands-tu-test_resnet-stagewise-4-s0"
    status, _, err = call("data", "add", tmp_path / "nowhere", *flags)
    assert status == 2
    assert "no folder and no file" in err


@pytest.mark.parametrize(
    "words", [("--option", "temperature", "-2"), ("--option", "temperature=-2"), ("--option=temperature=-2",)]
)
def test_an_option_is_two_words_or_one(call: Callable[..., Any], flags: list[str], words: tuple[str, ...]) -> None:
    begun = call("distill", *flags, "--count", 4, "--method", "hinton", *words)
    assert begun[0] == 2
    assert "option of method hinton: temperature: must be greater than 0" in begun[2]


def test_every_method_is_listed_with_its_options(call: Callable[..., Any]) -> None:
    status, out, _ = call("methods", "--json")
    listed = last_line(out)["methods"]
    assert (status, [one["method"] for one in listed]) == (0, list(METHODS))
    options = {one["method"]: {name: option["default"] for name, option in one["options"].items()} for one in listed}
    assert (options["hinton"], options["hdkd"], options["supervised"]) == (
        {"temperature": 4.0, "soft": 0.9},
        {"temperature": 4.0, "weight": 0.1, "alpha": 1.0},
        {},
    )
    table = call("methods")[1]
    assert [name for name in METHODS if name not in table] == []
