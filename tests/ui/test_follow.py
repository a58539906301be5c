"""Following a run: what is read of its events, how far it is, how long it takes, and what the Watch tab asks for."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segskd.config import make_recipe
from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs, read_mask
from segskd.errors import UserError
from segskd.evaluate.pictures import write_index_png
from segskd.events import EventReader
from segskd.runs import Run
from ui.context import Context
from ui.jobs import Jobs
from ui.state import previews
from ui.state.follow import Followers
from ui.state.logs import tail
from ui.state.watching import Watching

PHASES = [{"phase": name, "epochs": 2, "steps": 20} for name in ("encoder.0", "decoder.0", "head")]
PLACE = {"number": 1, "phases": 3, "steps_before": 0}


@pytest.fixture
def context(tmp_path: Path, data: Path) -> Context:
    return Context(data, tmp_path, Jobs(tmp_path, data))


@pytest.fixture
def new_run(tmp_path: Path, data: Path, card_path: Path) -> Callable[..., Run]:
    def make(name: str = "one", **changes: Any) -> Run:
        content = {
            "data": {"card": str(card_path), "folder": str(data), "size": "64x96"},
            "teacher": "a/teacher",
            "optimisation": {"batch": 4},
        }
        return Run.create(tmp_path / name, make_recipe(content | changes))

    return make


def write(run: Run, *events: dict[str, Any], end: str = "\n") -> None:
    with open(run.path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(event) for event in events) + end)


def start(time: float = 0.0) -> dict[str, Any]:
    return {"time": time, "kind": "start", "phases": PHASES, "images": 40, "batch": 4}


def begin(phase: str, time: float) -> dict[str, Any]:
    return {"time": time, "kind": "phase_start", "phase": phase, "epochs": 2, "steps": 20, **PLACE}


def step(phase: str, number: int, time: float, loss: float = 1.0) -> dict[str, Any]:
    figures = {"loss": loss, "lr": 0.1}
    return {"time": time, "kind": "step", "phase": phase, "epoch": 1 + number // 11, "step": number, **figures}


def epoch(phase: str, number: int, time: float, loss: float, **more: float) -> dict[str, Any]:
    return {"time": time, "kind": "epoch", "phase": phase, "epoch": number, "epochs": 2, "loss": loss, **more}


def end(phase: str, time: float, seconds: float, miou: float = 0.5) -> dict[str, Any]:
    return {"time": time, "kind": "phase_end", "phase": phase, "loss": 0.1, "seconds": seconds, "graft_miou": miou}


def evaluated(model: str, miou: float) -> dict[str, Any]:
    scores = {"split": "val", "pixel_accuracy": 0.9, "per_class": {"ground": 0.8}, "absent_classes": [], "images": 4}
    return {"time": 0.5, "kind": "evaluation", "model": model, "miou": miou, **scores}


# -- reading ------------------------------------------------------------------------------------------


def test_a_half_written_line_waits_for_its_end(context: Context, new_run: Callable[..., Run]) -> None:
    run, followers = new_run(), Followers(context)
    write(run, start(), begin("encoder.0", 1.0))
    text = json.dumps(step("encoder.0", 3, 2.0, loss=0.25))
    write(run, end=text[:30])
    assert followers.get("one").phases[0].step == 0
    write(run, end=text[30:] + "\n")
    assert (followers.get("one").phases[0].step, followers.get("one").phases[0].loss) == (3, 0.25)
    assert followers.get("one").phases[0].losses.points == [(3, 0.25)]


def test_only_what_is_new_is_read(new_run: Callable[..., Run]) -> None:
    run = new_run()
    reader = EventReader(run.path / "events.jsonl")
    write(run, start(), begin("encoder.0", 1.0))
    assert [event.kind for event in reader.read()[1]] == ["start", "phase_start"]
    write(run, step("encoder.0", 1, 2.0))
    assert [event.kind for event in reader.read()[1]] == ["step"]
    assert reader.read() == (False, [])


def test_broken_lines_and_broken_events_are_left_out(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), begin("encoder.0", 1.0), end="\n{broken\n[1]\n")
    write(run, {"time": 2, "kind": "step", "phase": "encoder.0"}, {"time": "x", "kind": "epoch"}, {"kind": 3})
    write(run, step("nowhere", 1, 3.0), step("encoder.0", 2, 4.0))
    view = Followers(context).get("one")
    assert (view.phases[0].step, view.progress.updated) == (2, 4.0)


def test_options_and_labels_are_told_where_they_say_anything(context: Context, new_run: Callable[..., Run]) -> None:
    new_run()
    new_run("two", method="hinton", options={"temperature": 2.0}, subset={"labels": 0.01})
    data = {**new_run("old").recipe.data.model_dump(mode="json"), "unlabelled": "/drives/may"}
    new_run("three", subset={"labels": 0.0}, data=data)
    new_run("four", data=data)
    told = [Followers(context).get(name).as_dict() for name in ("one", "two", "three", "four")]
    assert [view["options"] for view in told] == ["", "temperature 2", "", ""]
    assert [view["labels"] for view in told] == ["", "1 % of the training images", "none", "all but those in may"]


def test_a_phase_whose_beginning_is_lost_counts_from_its_first_line(
    context: Context, new_run: Callable[..., Run]
) -> None:
    run = new_run()
    write(run, start(1.7e9), step("encoder.0", 5, 1.7e9 + 1), step("encoder.0", 10, 1.7e9 + 4))
    assert Followers(context).get("one").phases[0].seconds == 3
    write(run, step("decoder.0", 5, 1.7e9 + 10), step("decoder.0", 6, 1.7e9 + 12))
    assert [phase.seconds for phase in Followers(context).get("one").phases] == [3, 2, 0]


def test_stages_that_ended_early_count_by_the_steps_that_they_took(
    context: Context, new_run: Callable[..., Run]
) -> None:
    run = new_run()
    early = [end("encoder.0", 5, 5) | {"epochs": 0}, begin("decoder.0", 5), step("decoder.0", 10, 15)]
    write(run, start(), begin("encoder.0", 0), *early, end("decoder.0", 16, 10) | {"epochs": 1}, begin("head", 16))
    view = Followers(context).get("one")
    assert [(phase.state, phase.epoch, phase.share) for phase in view.phases[:2]] == [("done", 0, 1), ("done", 1, 1)]
    assert view.progress.share == pytest.approx(40 / 60)
    assert run.progress().seconds_left() == pytest.approx(20 * (5 + 10) / 10)


def test_figures_that_cannot_be_are_left_out(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    none = [{"phase": "encoder.0", "epochs": 0, "steps": 0}]
    write(run, {**start(), "phases": none}, begin("encoder.0", 1) | {"epochs": 0}, epoch("encoder.0", 1, 2, 0.5))
    write(run, {**start(), "images": float("inf")}, step("encoder.0", 3, 4))
    assert Followers(context).get("one").phases[0].step == 3


def test_a_damaged_result_is_told_beside_what_is_left(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), begin("encoder.0", 0), step("encoder.0", 5, 1))
    (run.path / "result.json").write_text('{"miou": 0.')
    answer = Watching(context).page({"run": "one"})
    assert answer["problem"].endswith("result.json is damaged: delete it and resume the run")
    assert answer["failure"] is None
    assert answer["run"]["phases"][0]["step"] == 5


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_shrank_or_was_replaced_is_read_anew(
    context: Context, new_run: Callable[..., Run], replaced: bool
) -> None:
    run, followers = new_run(), Followers(context)
    write(run, start(), begin("encoder.0", 1.0), step("encoder.0", 7, 2.0))
    assert followers.get("one").phases[0].step == 7
    path = run.path / "events.jsonl"
    text = path.read_text()
    if replaced:
        other = run.path / "other"
        other.write_text(text.replace('"step": 7', '"step": 8') + json.dumps(step("encoder.0", 9, 3.0)) + "\n")
        os.replace(other, path)
        assert followers.get("one").phases[0].losses.points == [(8, 1.0), (9, 1.0)]
    else:
        path.write_text(json.dumps(start()) + "\n")
        assert followers.get("one").phases[0].state == "to come"


def test_a_file_that_vanished_leaves_nothing(context: Context, new_run: Callable[..., Run]) -> None:
    run, followers = new_run(), Followers(context)
    write(run, start())
    assert len(followers.get("one").phases) == 3
    (run.path / "events.jsonl").unlink()
    assert followers.get("one").phases == []


def test_names_are_no_paths(context: Context, new_run: Callable[..., Run]) -> None:
    new_run()
    for name in ("../one", "one/../one", "/etc", "", None, 3, "gone"):
        with pytest.raises(UserError):
            Followers(context).get(name)


def test_a_damaged_recipe_is_told(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    (run.path / "recipe.yaml").write_text("data: [")
    view = Followers(context).get("one")
    assert view.state == "damaged"
    assert "recipe.yaml" in view.problem


# -- understanding ------------------------------------------------------------------------------------


def test_phases_fill_one_after_the_other(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), evaluated("teacher", 0.8), begin("encoder.0", 1.0))
    write(run, step("encoder.0", 1, 2.0), epoch("encoder.0", 1, 3.0, 0.5), epoch("encoder.0", 2, 5.0, 0.25))
    write(run, end("encoder.0", 6.0, seconds=5.0, miou=0.6), begin("decoder.0", 6.0))
    view = Followers(context).get("one")
    assert [phase.state for phase in view.phases] == ["done", "filling", "to come"]
    assert (view.progress.stage, view.teacher_miou, view.progress.seconds) == (2, 0.8, 5.0)
    assert (view.phases[0].graft_miou, view.phases[0].loss) == (0.6, 0.1)
    assert view.phases[0].epoch_losses.points == [(10, 0.5), (20, 0.25)]
    assert view.progress.share == pytest.approx(1 / 3)


def test_a_resumed_run_forgets_what_lay_beyond_its_checkpoint(context: Context, new_run: Callable[..., Run]) -> None:
    run, followers = new_run(), Followers(context)
    write(run, start(), begin("encoder.0", 0.0), end("encoder.0", 9.0, 9.0), begin("decoder.0", 9.0))
    write(run, step("decoder.0", 5, 14.0), epoch("decoder.0", 1, 19.0, 0.5), step("decoder.0", 14, 23.0))
    assert followers.get("one").phases[1].seconds == 14.0
    write(run, start(100.0), {"time": 101.0, "kind": "resumed", "phase": "decoder.0", "epoch": 1, "step": 2})
    write(run, begin("decoder.0", 102.0))
    phase = followers.get("one").phases[1]
    assert (phase.state, phase.epoch, phase.step, phase.losses.points) == ("filling", 1, 12, [(5, 1.0)])
    write(run, step("decoder.0", 13, 104.0))
    view = followers.get("one")
    assert view.phases[1].losses.points == [(5, 1.0), (13, 1.0)]
    assert view.phases[1].seconds == 14.0 + 2.0
    assert view.phases[0].state == "done"


def test_a_run_that_begins_again_without_a_checkpoint_is_empty(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), begin("encoder.0", 0.0), step("encoder.0", 15, 5.0), start(9.0), begin("encoder.0", 10.0))
    phase = Followers(context).get("one").phases[0]
    assert (phase.step, phase.losses.points, phase.seconds) == (0, [], 0.0)


def test_a_phase_that_is_trained_again_takes_its_mask_and_the_later_ones_back(
    context: Context, new_run: Callable[..., Run]
) -> None:
    run, followers = new_run(), Followers(context)
    write(run, start(), begin("encoder.0", 0.0), end("encoder.0", 9.0, 9.0), begin("decoder.0", 9.0))
    versions = [phase.version for phase in followers.get("one").phases]
    write(run, start(20.0), begin("encoder.0", 21.0))
    phases = followers.get("one").phases
    assert all(phase.version > before for phase, before in zip(phases, versions, strict=True))  # the page draws anew
    assert [phase.state for phase in phases] == ["filling", "to come", "to come"]
    assert phases[0].graft_miou is None


def test_the_time_left_is_reckoned_from_this_run(context: Context, new_run: Callable[..., Run]) -> None:
    """encoder.0 took 40 s for 20 steps; decoder.0 takes 1 s a step and has 14 left; head has 20 to come."""
    run, followers = new_run(), Followers(context)
    write(run, start(), begin("encoder.0", 0.0))
    with run.working():
        assert followers.get("one").seconds_left is None
        write(run, end("encoder.0", 40.0, 40.0), begin("decoder.0", 40.0))
        assert followers.get("one").seconds_left == pytest.approx(20 * 2 + 20 * 2)
        write(run, step("decoder.0", 1, 100.0), step("decoder.0", 6, 105.0))
        assert followers.get("one").seconds_left == pytest.approx(14 * 1 + 20 * 2)
    assert followers.get("one").seconds_left is None


def test_a_network_trained_whole_has_a_curve_of_scores(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    whole = start() | {"phases": [{"phase": "supervised", "epochs": 2, "steps": 20}]}
    write(run, whole, begin("supervised", 1.0), epoch("supervised", 1, 2.0, 1.5, val_miou=0.3))
    write(run, epoch("supervised", 2, 3.0, 1.0, val_miou=0.4))
    assert Followers(context).get("one").phases[0].scores.points == [(10, 0.3), (20, 0.4)]


def test_a_loss_that_is_no_number_is_left_out(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), begin("encoder.0", 1.0), step("encoder.0", 1, 2.0, loss=float("nan")))
    phase = Followers(context).get("one").phases[0]
    assert (phase.loss, phase.losses.points, phase.step) == (None, [], 1)


def test_warnings_are_told_once_and_an_error_until_the_next_attempt(
    context: Context, new_run: Callable[..., Run]
) -> None:
    run, followers = new_run(), Followers(context)
    warning = {"time": 0.5, "kind": "warning", "message": "small batch"}
    write(
        run, start(), warning, start(), warning, {"time": 1.0, "kind": "error", "message": "no", "error": "UserError"}
    )
    view = followers.get("one")
    error = view.progress.error
    assert error is not None
    assert (view.progress.warnings, error.message, error.error) == (["small batch"], "no", "UserError")
    assert view.state == "failed"
    write(run, start(2.0))
    assert followers.get("one").progress.error is None


@pytest.mark.parametrize(
    ("events", "doing"),
    [
        ([], "preparing the data"),
        ([start()], "measuring the teacher on the validation images"),
        ([start(), begin("encoder.0", 1.0)], "storing what encoder.0 will be trained on"),
        ([start(), begin("encoder.0", 1.0), step("encoder.0", 12, 2.0)], "training encoder.0, epoch 2 of 2"),
        ([start(), begin("encoder.0", 1.0), epoch("encoder.0", 2, 2.0, 1.0)], "measuring the mIoU after encoder.0"),
        ([start(), begin("encoder.0", 1.0), end("encoder.0", 2.0, 1.0)], "storing what decoder.0 will be trained on"),
        ([start(), begin("head", 1.0), end("head", 2.0, 1.0)], "measuring the trained network: mIoU and latency"),
    ],
)
def test_what_a_run_does_is_said_in_words(
    context: Context, new_run: Callable[..., Run], events: list[dict[str, Any]], doing: str
) -> None:
    run = new_run()
    write(run, *events)
    with run.working():
        assert Followers(context).get("one").doing == doing


def test_a_result_outweighs_the_events(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start(), evaluated("student", 0.1))
    followers = Followers(context)
    assert followers.get("one").miou == 0.1
    figures = {"miou": 0.5, "teacher_miou": 0.625, "percent_of_teacher": 80.0, "dataset": "bands"}
    run.write_json("result.json", figures)
    view = followers.get("one")
    assert (view.miou, view.teacher_miou, view.percent_of_teacher, view.state) == (0.5, 0.625, 80.0, "finished")


def test_a_run_at_rest_is_not_asked_again(context: Context, new_run: Callable[..., Run]) -> None:
    run, followers, asked = new_run(), Followers(context), []
    write(run, start(), begin("encoder.0", 1.0), {"time": 2.0, "kind": "paused", "after": "encoder.0"})
    state = context.jobs.state
    context.jobs.state = lambda name: asked.append(name) or state(name)
    assert [followers.state("one") for _ in range(3)] == ["paused"] * 3
    assert len(asked) == 1
    run.write_json("result.json", {"miou": 0.5})
    assert followers.state("one") == "finished"
    context.jobs.resume = lambda name: None
    (context.runs / ".queue.json").write_text('["one"]')
    view = followers.get("one")
    assert (view.state, view.place, view.doing) == ("waiting", 1, "waiting, number 1 in the queue")


# -- what the page asks -------------------------------------------------------------------------------


def test_the_page_follows_what_trains_else_what_ran_last(context: Context, new_run: Callable[..., Run]) -> None:
    watching = Watching(context)
    assert watching.page({"run": ""})["run"] is None
    first, second = new_run("first"), new_run("second")
    write(second, start())
    os.utime(second.path / "events.jsonl", (1000, 1000))
    write(first, start())
    assert watching.page({"run": ""})["run"]["name"] == "first"
    with second.working():
        assert watching.page({"run": ""})["run"]["name"] == "second"
        assert watching.page({"run": "first"})["run"]["name"] == "first"
    gone = watching.page({"run": "gone"})
    assert (gone["run"]["name"], gone["problem"]) == ("first", "There is no run 'gone' here any more.")


def test_an_answer_to_a_poll_is_small(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    names = [*(f"encoder.{i}" for i in range(5)), *(f"decoder.{i}" for i in range(5)), "head"]
    write(run, start() | {"phases": [{"phase": name, "epochs": 2, "steps": 5000} for name in names]})
    for name in names:
        write(run, begin(name, 0.0) | {"steps": 5000}, *(step(name, i, i, 0.123456789) for i in range(1, 1001)))
    watching = Watching(context)
    assert len(json.dumps(watching.page({"run": "one"}))) < 20_000
    assert len(watching.curves({"run": "one"})["steps"]) <= 1000
    one = watching.curves({"run": "one", "phase": "head"})
    assert 100 < len(one["steps"]) <= 300
    bounds = watching.curves({"run": "one"})["bounds"]
    assert bounds == [5000 * number for number in range(1, 12)]


def test_the_log_is_read_from_its_end(context: Context, new_run: Callable[..., Run]) -> None:
    run, watching = new_run(), Watching(context)
    assert watching.log({"run": "one"}) == {"lines": []}
    lines = [f"line {number} {'x' * 700}" for number in range(300)]
    (run.path / "log.txt").write_text("\n".join(lines) + "\n")
    assert watching.log({"run": "one"})["lines"] == lines[100:]
    assert tail(run.path / "log.txt", 3) == lines[-3:]
    assert watching.log({"run": "one", "whole": True})["text"] == "\n".join(lines) + "\n"
    long = [f"line {number} {'x' * 4000}" for number in range(300)]
    (run.path / "log.txt").write_text("\n".join(long) + "\n")
    shown = watching.log({"run": "one"})["lines"]
    assert 100 < len(shown) < 200
    assert shown == long[-len(shown) :]


def test_masks_come_with_photograph_and_truth_once(context: Context, new_run: Callable[..., Run]) -> None:
    run, watching = new_run(), Watching(context)
    card = load_card(run.recipe.data.card)
    pair = list_pairs(card, context.data, "val")[1]
    mask = np.full((64, 96), 2, dtype=np.uint8)
    run.write(f"previews/encoder.0/{pair.name}.png", write_index_png(mask, card))
    write(run, start(), begin("encoder.0", 1.0))
    answer = watching.previews({"run": "one", "phase": "encoder.0"})
    (image,) = answer["images"]
    assert (image["name"], image["teacher"], answer["problem"]) == (pair.name, "", "")
    assert (np.asarray(decoded(image["mask"])) == 2).all()
    assert decoded(image["photo"]).size == (512, 341)
    truth = decoded(image["truth"]).convert("RGBA")
    classes = read_mask(pair.mask, card)
    assert (np.asarray(truth)[..., 3] == np.where(classes == 255, 0, 255)).all()
    colours = np.asarray(card.palette)[np.where(classes == 255, 0, classes)]
    assert (np.asarray(truth)[..., :3][classes != 255] == colours[classes != 255]).all()
    again = watching.previews(
        {"run": "one", "phase": "encoder.0", "known": {pair.name: image["stamp"]}, "pictures": [pair.name]}
    )
    assert again["images"] == [{"name": pair.name, "stamp": image["stamp"]}]
    (context.runs / "stray.png").write_bytes(b"")
    assert watching.previews({"run": "one", "phase": "../.."}) == {**again, "images": []}


def test_the_truth_is_scaled_to_the_size_of_the_masks(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    card = load_card(run.recipe.data.card)
    pair = list_pairs(card, context.data, "val")[1]
    small = new_run("small", data={**run.recipe.data.model_dump(), "size": "40x56"})
    shown = np.asarray(decoded(previews.truth(small, pair.name)))
    by_pillow = Image.fromarray(read_mask(pair.mask, card)).resize((56, 40), Image.Resampling.NEAREST)
    assert (shown == np.asarray(by_pillow)).all()


def test_the_teachers_own_masks_are_shown_when_it_was_trained_here(
    context: Context, new_run: Callable[..., Run]
) -> None:
    card = load_card(new_run("any").recipe.data.card)
    pair = list_pairs(card, context.data, "val")[0]
    teacher = new_run("teacher", kind="teach", teacher=None, method="supervised", student="unet:resnet34")
    teacher.write_json("result.json", {"phases": [{"phase": "supervised"}]})
    teacher.write(f"previews/supervised/{pair.name}.png", write_index_png(np.ones((64, 96), np.uint8), card))
    run = new_run("student", teacher=str(teacher.path))
    write(run, start())
    run.write(f"previews/head/{pair.name}.png", write_index_png(np.zeros((64, 96), np.uint8), card))
    (image,) = Watching(context).previews({"run": "student", "phase": "head"})["images"]
    assert (np.asarray(decoded(image["teacher"])) == 1).all()


def test_an_image_that_is_gone_is_named(context: Context, new_run: Callable[..., Run]) -> None:
    run = new_run()
    write(run, start())
    run.write("previews/head/lost.png", b"")
    answer = Watching(context).previews({"run": "one", "phase": "head"})
    assert "'lost' is missing" in answer["problem"]


def test_retry_queues_the_run_at_half_its_batch(context: Context, new_run: Callable[..., Run]) -> None:
    run, watching = new_run(), Watching(context)
    with run.working():
        assert "is running" in watching.retry({"run": "one", "halve": True})["problem"]
    assert run.recipe.optimisation.batch == 4
    assert watching.retry({"run": "one", "halve": True}) == {"problem": ""}
    assert run.recipe.optimisation.batch == 2
    assert context.jobs.waiting() == ["one"]
    assert "not the name of a run" in watching.retry({"run": "../one"})["problem"]


def test_a_teacher_is_handed_to_the_distill_tab_with_its_own_data(
    context: Context, new_run: Callable[..., Run]
) -> None:
    card = new_run().recipe.data.card
    chosen = Watching(context).choice_for("one", {"card": card, "fraction": 0.3})
    assert (chosen["card"], chosen["teacher"], chosen["fraction"]) == (card, "one", 0.3)
    assert Watching(context).choice_for("one", {"card": "camvid", "fraction": 0.3})["fraction"] == 0.1


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
