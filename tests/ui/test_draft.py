"""What the Distill tab's fields come to, and what is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segskd.config import Recipe, make_recipe
from segskd.errors import UserError
from segskd.events import ErrorEvent, PhaseStartEvent, PlannedPhase, ResumedEvent, StartEvent
from segskd.runs import Run
from ui.context import Context
from ui.endpoints import read_recipe, start, state
from ui.jobs import Jobs
from ui.state.admission import admit, form_values
from ui.state.choice import Choice
from ui.state.draft import SAMPLE_SIZE, make_draft, propose, submit, submit_teacher
from ui.state.form import FieldError
from ui.state.outline import method_sentences, outline, parameters, stage_names

ELEVEN = [*(f"encoder.{i}" for i in range(5)), *(f"decoder.{i}" for i in range(5)), "head"]


@pytest.fixture
def context(tmp_path: Path, data: Path, card_path: Path, teacher_folder: Path) -> Context:
    """A server with the small dataset, and its teacher as a folder beside the runs."""
    runs = tmp_path / "runs"
    shutil.copytree(teacher_folder, runs / "mine")
    return Context(data, runs, Jobs(runs, data))


@pytest.fixture
def values(card_path: Path) -> dict[str, Any]:
    choice = Choice(card=str(card_path), fraction=0.5, seed=3).as_dict()
    return {"choice": choice, "teacher_from": "known", "known": "runs/mine", "size": "64x96", "seed": 3.0}


def test_the_fields_come_to_a_run(context: Context, values: dict[str, Any]) -> None:
    draft = make_draft(context, values | {"epochs": "2"})
    assert draft.problems == {}
    assert draft.name == "bands-resnet10-stagewise-50pc-s3"
    assert draft.recipe is not None
    assert draft.recipe.teacher == str(context.runs / "mine")
    assert draft.recipe.data.folder == str(context.data)
    assert draft.outline is not None
    assert (draft.outline.total, draft.outline.images, draft.outline.epochs, draft.outline.epochs_chosen) == (
        12,
        6,
        2,
        False,
    )
    assert [(phase.name, phase.epochs) for phase in draft.outline.phases] == [(name, 2) for name in ELEVEN]
    assert draft.commands(context).startswith("python -m segskd distill --dataset ")
    assert submit(context, draft) == draft.name
    assert Run(context.runs / draft.name).recipe == draft.recipe
    assert context.jobs.waiting() == [draft.name]
    assert make_draft(context, values | {"epochs": "2"}).name == "bands-resnet10-stagewise-50pc-s3-2"


def test_a_card_that_is_none_of_this_servers_is_not_opened(
    context: Context, values: dict[str, Any], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: [hush")
    for place in (str(secret), "../secret.yaml", f"{context.data}/../secret.yaml"):
        draft = make_draft(context, values | {"choice": {"card": place}})
        assert draft.problems.keys() == {"data"}
        assert "this dataset is not on this server" in draft.problems["data"]
        with pytest.raises(FieldError, match="not on this server"):
            submit(context, draft)


def test_first_weights_come_from_runs_of_this_server_alone(
    context: Context, values: dict[str, Any], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    context.jobs.submit(recipe(), "other")
    for init in ("other", str(context.runs / "other")):
        draft = make_draft(context, values | {"init": init})
        assert draft.problems == {}
        assert draft.recipe is not None
        assert draft.recipe.init == str(context.runs / "other")
    for init in (str(tmp_path), "../runs/other", "nothing", "other/student"):
        draft = make_draft(context, values | {"init": init})
        assert draft.problems == {
            "init": f"there is no run {init} on this server: name one, or choose teacher or random"
        }
        with pytest.raises(FieldError, match="on this server"):
            admit(context, recipe(data={"folder": str(context.data)}, teacher="runs/mine", init=init))
    assert "only the command line" in make_draft(context, values | {"weights": "/etc/passwd"}).problems["weights"]


def test_the_phases_are_the_methods_own(context: Context, values: dict[str, Any]) -> None:
    draft = make_draft(context, values | {"method": "supervised", "teacher_from": "none"})
    assert draft.outline is not None
    # 3,000 passes over 6 images are 500 epochs, for each of 11 stages.
    assert draft.outline.as_dict()["phases"] == [{"name": "supervised", "epochs": 5500, "on": "labels", "beside": ""}]
    held = make_draft(context, values | {"select": "best"}).outline
    assert held is not None
    assert (held.images, held.held_out, held.epochs) == (5, 1, 600)


def test_the_data_in_one_line(context: Context, values: dict[str, Any]) -> None:
    choice = Choice.from_dict(values["choice"])
    draft = make_draft(context, values | {"select": "best"})
    line = "bands · 5 of 12 training images, chosen by the rule «random», 1 more held out for choosing"
    assert draft.data_line(choice) == line
    by_hand = values["choice"] | {"rule": "hand", "names": ["b00", "b01", "b02"]}
    picked = make_draft(context, values | {"choice": by_hand})
    assert picked.data_line(choice) == "bands · 3 of 12 training images, picked by hand"
    wrong = make_draft(context, values | {"batch": "0"})
    assert (wrong.data_line(choice), wrong.plan()) == ("bands", {})


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"known": None}, "teacher", "choose a teacher"),
        ({"known": "run/../mine"}, "teacher", "deleted"),
        ({"known": "/etc/passwd"}, "teacher", "deleted"),
        ({"teacher_from": "none"}, "teacher", "use method supervised"),
        ({"teacher_from": "hub", "hub": "../x"}, "hub", "OWNER/NAME"),
        ({"student": "unet:nothing"}, "student", "can't build"),
        ({"student": "fpn9:resnet18"}, "student", "there is no architecture 'fpn9'"),
        ({"student": "pan:resnet18"}, "size", "student pan:resnet18 doesn't take images of 64x96"),
        ({"method": "magic"}, "method", "no method 'magic'"),
        ({"name": "../x"}, "name", "a run's name has"),
        ({"name": "<b>bold</b>"}, "name", "a run's name has"),
        ({"name": "mine"}, "name", "there is already a run mine"),
        ({"batch": "0"}, "batch", "at least 1"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"count": "1"}, "count", "at least 2"),
        ({"choice": {"card": "nowhere"}}, "data", "no card 'nowhere'"),
        ({"choice": {"card": "scenes"}}, "teacher", "3 outputs, but 'scenes' has 9 classes"),
    ],
)
def test_wrong_values_stand_beside_their_field_and_start_nothing(
    context: Context, values: dict[str, Any], changes: dict[str, Any], field: str, message: str
) -> None:
    draft = make_draft(context, values | changes)
    assert list(draft.problems) == [field]
    assert message in draft.problems[field]
    assert not draft.measurable
    with pytest.raises(FieldError, match=r".+"):
        submit(context, draft)
    assert context.jobs.waiting() == []


def test_of_two_tabs_one_gets_the_name(context: Context, values: dict[str, Any]) -> None:
    one, other = (make_draft(context, values | {"name": "same"}) for _ in range(2))
    submit(context, one)
    with pytest.raises(FieldError) as caught:
        submit(context, other)
    assert caught.value.problems == {"name": "there is already a run same: give another name"}
    assert context.jobs.waiting() == ["same"]


TRAIN = {"teacher_from": "train", "teach_encoder": "resnet18", "teach_epochs": "1", "known": None}


def test_a_teacher_trained_first_goes_before_its_student(context: Context, values: dict[str, Any]) -> None:
    draft = make_draft(context, values | TRAIN | {"name": "s"})
    assert draft.problems == {}
    assert draft.teach is not None
    assert draft.teach_outline is not None
    assert (draft.teach_outline.images, draft.teach_outline.epochs) == (12, 1)
    assert draft.first is draft.teach
    assert len(draft.commands(context).splitlines()) == 2
    submit(context, draft)
    assert context.jobs.waiting() == ["bands-resnet18-teacher", "s"]
    teacher = Run(context.runs / "bands-resnet18-teacher").recipe
    assert (teacher.kind, teacher.student, teacher.data.size) == ("teach", "unet:resnet18", (64, 96))
    assert Run(context.runs / "s").recipe.teacher == str(context.runs / "bands-resnet18-teacher")

    later = make_draft(context, values | {"known": "run/bands-resnet18-teacher", "name": "s2"})
    assert later.problems == {}
    assert "waits in the queue" in later.hints["teacher"]
    assert not later.measurable


def test_a_teacher_alone(context: Context, values: dict[str, Any]) -> None:
    draft = make_draft(context, values | TRAIN | {"teach_name": "big", "batch": "4", "lr": "wrong"})
    assert draft.problems.keys() == {"lr"}  # the student's, and no business of the teacher's
    assert submit_teacher(context, draft) == "big"
    assert context.jobs.waiting() == ["big"]
    for changes, field in [({"teach_name": "big"}, "teach_name"), ({"teach_encoder": "x"}, "teach_encoder")]:
        with pytest.raises(FieldError) as caught:
            submit_teacher(context, make_draft(context, values | TRAIN | changes))
        assert caught.value.field == field
    same = make_draft(context, values | TRAIN | {"teach_name": "both", "name": "both"})
    assert "another one" in same.problems["name"]


def test_a_taken_name_starts_no_teacher_either(context: Context, values: dict[str, Any]) -> None:
    draft = make_draft(context, values | TRAIN | {"name": "taken"})
    (context.runs / "taken").mkdir()
    with pytest.raises(FieldError):
        submit(context, draft)
    assert context.jobs.waiting() == []


def test_what_goes_with_the_data_is_proposed(context: Context, card_path: Path, recipe: Callable[..., Recipe]) -> None:
    ours, scenes, camvid = Choice(card=str(card_path)), Choice(), Choice(card="camvid")
    assert propose(context, ours, "known", None) == {"teacher_from": "known", "known": "runs/mine"}
    assert propose(context, ours, "known", "runs/mine") == {}
    assert propose(context, ours, "hub", None) == {}
    assert propose(context, scenes, "known", "runs/mine") == {"teacher_from": "train", "size": SAMPLE_SIZE}
    assert propose(context, camvid, "train", None) == {"teacher_from": "train", "size": "192x256"}
    teach = Recipe.model_validate(recipe().model_dump(mode="json") | {"kind": "teach", "teacher": None})
    context.jobs.submit(teach, "t")
    asked = Choice(card=str(card_path), rule="hardest", teacher="t")
    assert propose(context, asked, "hub", None) == {"teacher_from": "known", "known": "run/t", "size": "64x96"}


def test_other_eyes_choose_other_images(context: Context, values: dict[str, Any]) -> None:
    choice = values["choice"] | {"rule": "hardest", "teacher": "somebody"}
    assert "chosen with somebody" in make_draft(context, values | {"choice": choice}).hints["data"]
    asked = values["choice"] | {"rule": "hardest", "teacher": str(context.runs / "mine")}
    hint = "chosen with images of 192x256. This run chooses with images of 64x96"
    assert hint in make_draft(context, values | {"choice": asked}).hints["data"]
    assert make_draft(context, values | {"choice": asked, "size": "192x256"}).hints == {}
    drawn = values["choice"] | {"rule": "random", "teacher": "somebody"}
    assert make_draft(context, values | {"choice": drawn}).hints == {}


def test_recipes_from_outside_stay_on_this_server(
    context: Context, recipe: Callable[..., Recipe], card_path: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere.yaml"
    shutil.copyfile(card_path, elsewhere)
    with pytest.raises(FieldError, match="not on this server"):
        admit(context, recipe(teacher="runs/mine", data={"card": str(elsewhere)}))
    ours = recipe(teacher=str(context.runs / "mine"), data={"folder": "/somewhere/else"})
    admitted = admit(context, ours)
    assert admitted.data.folder == str(context.data)
    assert admitted.teacher == str(context.runs / "mine")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"teacher": "/etc"}, "teacher"),
        ({"teacher": "../mine"}, "teacher"),
        ({"teacher": "runs/mine", "data": {"card": "/elsewhere/bands.yaml"}}, "data"),
        ({"teacher": "runs/mine", "data": {"card": "../bands.yaml"}}, "data"),
        ({"teacher": "runs/mine", "begin": {"run": "/elsewhere/none", "stage": "head"}}, "begin"),
    ]
    for changes, field in wrong:
        with pytest.raises(FieldError) as caught:
            admit(context, recipe(**changes))
        assert caught.value.field == field


def test_a_recipe_fills_the_fields(context: Context, recipe: Callable[..., Recipe], card_path: Path) -> None:
    filled = form_values(context, recipe(teacher=str(context.runs / "mine"), subset={"count": 4}))
    assert (filled["teacher_from"], filled["known"], filled["count"], filled["epochs"]) == ("known", "runs/mine", 4, 2)
    draft = make_draft(context, filled)
    assert draft.problems == {}
    assert draft.recipe is not None
    assert draft.recipe.subset.count == 4
    assert form_values(context, recipe(teacher="owner/name"))["hub"] == "owner/name"
    lost = form_values(context, recipe(teacher="/gone/away"))
    assert (lost["teacher_from"], lost["known"]) == ("known", None)
    teach = form_values(
        context, make_recipe({"kind": "teach", "data": {"card": str(card_path)}, "method": "supervised"})
    )
    assert (teach["teacher_from"], teach["teach_encoder"], teach["teach_weights"]) == ("train", "resnet10", "")


def test_images_of_a_sample_that_is_not_drawn_yet(tmp_path: Path) -> None:
    content = {"data": {"card": "scenes"}, "subset": {"fraction": 0.1}, "method": "supervised"}
    drawn = outline(make_recipe(content), tmp_path)
    assert (drawn.total, drawn.images, drawn.epochs) == (400, 40, 75)


def test_networks_by_name_alone() -> None:
    assert list(stage_names("unet:resnet10")) == ELEVEN
    assert round(parameters("unet:resnet10") / 1e6, 3) == 8.059  # as docs/architecture.md says
    assert method_sentences()["stagewise"].startswith("SKD")


def test_scripts_start_runs_and_ask_after_them(context: Context, recipe: Callable[..., Recipe]) -> None:
    content = recipe(teacher="runs/mine").model_dump(mode="json")
    assert start(context, content, "r") == {"run": "r", "state": "waiting"}
    assert Run(context.runs / "r").recipe.teacher == str(context.runs / "mine")
    assert state(context, "r") == {
        "run": "r", "state": "waiting", "phase": None, "phases": None,
        "miou": None, "teacher_miou": None, "error": None,
    }  # fmt: skip
    run = Run(context.runs / "r")
    phases = tuple(PlannedPhase(phase=name, epochs=2, steps=20) for name in ("encoder.0", "head"))
    run.record(StartEvent(phases=phases, images=40, batch=4))
    run.record(PhaseStartEvent(phase="encoder.0", number=1, phases=2, epochs=2, steps=20, steps_before=0))
    run.record(ErrorEvent(message="the disk is full"))
    found = state(context, "r")
    assert (found["phase"], found["phases"], found["error"]) == ("encoder.0", 2, "the disk is full")
    run.record(ResumedEvent(phase="encoder.0", epoch=0, step=3))
    assert state(context, "r")["error"] is None
    for wrong, name, message in [
        (content, "r", "exists"),
        (content, "../r", "a run's name"),
        (content | {"student": "x"}, "n", "ARCH:ENCODER"),
        (content | {"data": {"card": "scenes"}}, "n", "9 classes"),
        ([1], "n", "recipe"),
        ("a: [", "n", "not YAML"),
    ]:
        with pytest.raises(UserError, match=message):
            start(context, wrong, name)
    assert read_recipe("data: {card: scenes}\nmethod: supervised").data.card == "scenes"
    assert context.jobs.waiting() == ["r"]
