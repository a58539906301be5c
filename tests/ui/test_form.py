"""The Distill tab's form as a recipe and as a command, and back."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import segskd
from segskd.cli import main
from segskd.config import SCHEMA, Recipe, dump_recipe, make_recipe, named
from segskd.errors import UserError
from segskd.runs import default_name
from ui.state.choice import Choice
from ui.state.form import FieldError, Form, TeachForm, as_text, command, page_field, read_options, write_options

Carried = list[tuple[Recipe, Path]]


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Carried:
    """What the command line would have carried out, instead of training."""
    from segskd.cli import run_commands

    seen: Carried = []
    monkeypatch.setattr(run_commands, "_run", lambda recipe, folder, until, json: seen.append((recipe, folder)))
    return seen


def run_line(line: str) -> None:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "segskd"]
    assert main(words[3:]) == 0


FULL = Form(
    Choice(card="camvid", fraction=0.25, rule="balanced", seed=7),
    folder="/some where/data",
    size="64x96",
    views="2",
    teacher="/models/it's mine",
    trust_teacher=True,
    student="unet:resnet14",
    weights="imagenet",
    init="random",
    partial_weights=True,
    method="hinton",
    options="temperature 2, soft = 0.5",
    labels="0.1",
    unlabelled="/more pictures",
    epochs="3",
    batch=4.0,
    lr="0.002",
    joint_lr="3e-4",
    weight_decay="1e-5",
    patience="4",
    select="best",
    select_on="val",
    store="disk",
    store_budget="1.5",
    store_bits="8",
    checkpoint_seconds="5",
    device="cpu",
    precision="32",
    threads="2",
    devices="2",
    nodes="3",
    sync_batchnorm=True,
)


def test_every_field_reaches_its_place_in_the_recipe() -> None:
    assert FULL.recipe().model_dump(mode="json") == {
        "kind": "distill",
        "data": {
            "card": "camvid",
            "folder": "/some where/data",
            "size": "64x96",
            "views": 2,
            "unlabelled": "/more pictures",
        },
        "subset": {"fraction": 0.25, "count": None, "rule": "balanced", "names": None, "labels": 0.1},
        "teacher": "/models/it's mine",
        "trust_teacher": True,
        "student": "unet:resnet14",
        "weights": "imagenet",
        "init": "random",
        "partial_weights": True,
        "method": "hinton",
        "options": {"temperature": 2.0, "soft": 0.5},
        "snapshots": 0,
        "begin": None,
        "prune": None,
        "optimisation": {"epochs": 3, "batch": 4, "lr": 0.002, "joint_lr": 3e-4, "weight_decay": 1e-5, "patience": 4},
        "select": "best",
        "select_on": "val",
        "store": {"kind": "disk", "budget_gib": 1.5, "bits": 8},
        "checkpoint_seconds": 5.0,
        "seed": 7,
        "device": "cpu",
        "precision": "32",
        "threads": 2,
        "devices": 2,
        "nodes": 3,
        "sync_batchnorm": True,
    }


def test_empty_fields_leave_the_defaults() -> None:
    form = Form(Choice(), teacher="somewhere", epochs="", views="  ", batch=None)
    assert form.recipe() == make_recipe(
        {"data": {"card": "scenes"}, "subset": {"fraction": 0.1, "rule": "random"}, "teacher": "somewhere"}
    )


def test_a_count_takes_the_place_of_the_share() -> None:
    subset = Form(Choice(), teacher="t", count="12").recipe().subset
    assert (subset.count, subset.fraction) == (12, None)


def test_every_problem_stands_beside_its_field() -> None:
    form = Form(Choice(seed=-1), teacher="t", size="big", epochs="1.5", batch="0", lr="fast", store="cloud")
    with pytest.raises(FieldError) as caught:
        form.recipe()
    assert caught.value.problems == {
        "size": "'big' is not a size: write HEIGHTxWIDTH, such as 192x256",
        "epochs": "must be a whole number",
        "batch": "must be at least 1",
        "lr": "must be a number",
        "store": "must be 'auto', 'memory', 'disk' or 'recompute'",
        "seed": "must be at least 0",
    }
    assert caught.value.field == "size"


@pytest.mark.parametrize(
    ("form", "field"),
    [
        (Form(Choice()), "teacher"),
        (Form(Choice(rule="hand", names=("a",)), teacher="t"), "data"),
        (Form(Choice(rule="hand", names=("a", "b")), teacher="t", count="3"), "data"),
    ],
)
def test_problems_of_several_fields_stand_where_they_can_be_mended(form: Form, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        form.recipe()
    assert caught.value.field == field


@pytest.mark.parametrize(
    "form",
    [
        FULL,
        Form(Choice(), teacher="a/b"),
        Form(Choice(fraction=1.0, seed=3), method="supervised"),
        Form(Choice(card="/data/own.yaml", rule="diverse"), teacher="t", count="9"),
    ],
)
def test_the_command_starts_the_same_recipe(form: Form, carried: Carried, tmp_path: Path) -> None:
    run_line(form.command(str(tmp_path / "my run")))
    ((recipe, folder),) = carried
    assert recipe == form.recipe()
    assert folder == str(tmp_path / "my run")


def test_what_flags_cannot_say_goes_by_the_recipe(
    carried: Carried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(Choice(rule="hand", names=("b", "a")), teacher="t", weights="imagenet")
    line = form.command("picked")
    assert line == "python -m segskd distill --recipe picked.yaml --run picked"
    monkeypatch.chdir(tmp_path)
    Path("picked.yaml").write_text(dump_recipe(form.recipe()))
    run_line(line)
    assert carried[0][0] == form.recipe()


def test_the_teachers_command_starts_the_same_recipe(carried: Carried, tmp_path: Path) -> None:
    student = Form(Choice(card="camvid", seed=5), folder="/d", size="64x64", batch="2", threads="1", lr="0.5")
    recipe = TeachForm("resnet18", epochs="4", lr="0.003", weights="imagenet").recipe(student)
    assert (recipe.kind, recipe.student, recipe.seed, recipe.teacher) == ("teach", "unet:resnet18", 5, None)
    assert (recipe.optimisation.epochs, recipe.optimisation.lr, recipe.optimisation.batch) == (4, 0.003, 2)
    run_line(command(recipe, str(tmp_path / "t")))
    assert carried == [(recipe, tmp_path / "t")]


def test_a_teachers_problems_stand_beside_its_own_fields() -> None:
    with pytest.raises(FieldError) as caught:
        TeachForm("resnet18", epochs="0", lr="-1").recipe(Form(Choice(), batch="none"))
    assert caught.value.problems.keys() == {"teach_epochs", "teach_lr", "batch"}


@pytest.mark.parametrize(
    "form", [FULL, Form(Choice(fraction=1.0, rule="hand", names=("a", "b")), teacher="t", weights="imagenet")]
)
def test_a_recipe_fills_the_form_that_asks_for_it(form: Form) -> None:
    recipe = make_recipe(yaml.safe_load(dump_recipe(form.recipe())))
    assert Form.from_recipe(recipe).recipe() == recipe
    assert Form.from_recipe(recipe).choice == form.choice


def test_a_teachers_recipe_fills_its_form(recipe: Callable[..., Recipe]) -> None:
    made = TeachForm("resnet50", epochs=6).recipe(Form(Choice(card="camvid", seed=2), size="64x64", views="3"))
    teach, student = TeachForm.from_recipe(made)
    assert (teach.encoder, teach.epochs, student["size"], student.choice.seed) == ("resnet50", 6, "64x64", 2)
    assert teach.recipe(student) == made


@pytest.mark.parametrize(
    "changes",
    [
        {"begin": {"run": "r", "stage": "head"}},
        {"kind": "teach", "teacher": None},
    ],
)
def test_recipes_that_no_form_asks_for_are_refused(changes: dict[str, Any]) -> None:
    content = {"data": {"card": "scenes"}, "teacher": "t", "subset": {"fraction": 0.1}} | changes
    with pytest.raises(FieldError) as caught:
        Form.from_recipe(make_recipe(content))
    assert caught.value.field == "load"


def test_a_teacher_on_part_of_the_images_is_refused() -> None:
    content = {"kind": "teach", "data": {"card": "scenes"}, "method": "supervised", "subset": {"fraction": 0.5}}
    with pytest.raises(FieldError, match=r"subset\.fraction"):
        TeachForm.from_recipe(make_recipe(content))


def test_names_say_what_a_run_is_about() -> None:
    def name(**changes: Any) -> str:
        return default_name(Form(**{"choice": Choice(fraction=0.25), "teacher": "t"} | changes).recipe(), "camvid")

    assert name() == "camvid-resnet10-stagewise-25pc-s0"
    assert name(count="40", student="unet:resnet26") == "camvid-resnet26-stagewise-40-s0"
    assert name(choice=Choice(rule="hardest", seed=3)) == "camvid-resnet10-stagewise-10pc-hardest-s3"
    assert name(choice=Choice(rule="hand", names=("a", "b", "c"))) == "camvid-resnet10-stagewise-3-hand-s0"


def test_fields_explain_themselves_in_the_recipes_words() -> None:
    assert SCHEMA["batch"].help == "images a step"
    assert SCHEMA["threads"].help == "CPU threads; all cores, divided among the processes"
    assert SCHEMA["threads"].empty == "all cores, divided among the processes"
    assert SCHEMA["batch"].empty == ""
    assert all(field.description and field.label for field in SCHEMA if field.display)
    assert SCHEMA["select"].choices == ["last", "best"]
    assert SCHEMA["store"].choices == ["auto", "memory", "disk", "recompute"]
    assert [SCHEMA[name].default for name in ("batch", "size", "epochs")] == [8, "192x256", None]


def test_paths_without_a_field_of_their_own() -> None:
    paths = ("optimisation.lr", "store.kind", "data.card", "subset.fraction", "begin.run", "nothing", "")
    assert [page_field(path) for path in paths] == ["lr", "store", "data", "data", "", "", ""]
    assert [as_text(value) for value in (None, 0.0, 1e-5, 30.0, "x")] == ["", "0", "1e-05", "30", "x"]


def test_one_message_has_flags_on_the_command_line_and_labels_on_the_page() -> None:
    error = UserError(f"{named('data.size')} 64x64: take {named('store.budget_gib')} 2, or less --tile", "data.size")
    assert str(error) == "--size 64x64: take --store-budget 2, or less --tile"
    found = FieldError.of(error, "form")
    assert found.problems == {"size": "«Size» 64x64: take «Memory for the store (GiB)» 2, or less --tile"}
    assert FieldError.of(UserError("wrong"), "name").field == "name"


def test_every_name_in_a_message_is_a_field() -> None:
    """A wrong path would be noticed only when the message is written."""
    source = "".join(path.read_text() for path in Path(segskd.__file__).parent.rglob("*.py"))
    paths = set(re.findall(r"""named\(["']([\w.]+)["']\)""", source))
    assert len(paths) > 10
    assert paths <= {field.dotted for field in SCHEMA if field.display}


def test_a_pruned_run_is_no_form() -> None:
    pruned = {"prune": {"run": "/runs/big", "ratio": 0.3}, "method": "stagewise", "options": {}}
    content = FULL.recipe().model_dump(mode="json") | pruned
    with pytest.raises(FieldError, match="start a pruned run on the Export tab"):
        Form.from_recipe(make_recipe(content))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("temperature 2", {"temperature": 2.0}),
        (" temperature=2 ,soft: 0.5,", {"temperature": 2.0, "soft": 0.5}),
    ],
)
def test_options_are_names_and_numbers(text: str, options: dict[str, float]) -> None:
    assert read_options(text) == options
    assert read_options(write_options(options)) == options


@pytest.mark.parametrize("text", ["temperature", "temperature two", "2", "soft 0.5 temperature 2"])
def test_what_is_no_option_stands_beside_its_field(text: str) -> None:
    with pytest.raises(FieldError, match="is not an option: write a name and a number") as caught:
        Form(Choice(), teacher="t", method="hinton", options=text).recipe()
    assert caught.value.field == "options"


def test_a_teachers_snapshots_reach_its_command(carried: Carried, tmp_path: Path) -> None:
    teacher = TeachForm(epochs="6", snapshots="2").recipe(Form())
    assert teacher.snapshots == 2
    run_line(command(teacher, str(tmp_path / "teacher")))
    ((recipe, _),) = carried
    assert recipe == teacher
