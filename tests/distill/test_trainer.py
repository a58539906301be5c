"""Whole runs on the small dataset: what moves, what stands still, what the run directory says."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import resume, start
from segskd.distill.training.graft_scores import GraftScorer
from segskd.distill.training.trainer import Trainer
from segskd.errors import Stopped, UserError
from segskd.events import Event
from segskd.models.cut import cut
from segskd.runs import Run
from segskd.subset_file import read_subset_names

pytestmark = pytest.mark.slow

Weights = dict[str, torch.Tensor]


def weights(model: torch.nn.Module, *stages: str) -> Weights:
    """Parameters and buffers of some stages."""
    network = cut(model)
    return {f"{name}.{key}": t.clone() for name in stages for key, t in network.stages[name].state_dict().items()}


def saved(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = smp.from_pretrained(str(folder))
    return model


def assert_equal(first: Weights, second: Weights) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def finished(once: Callable[..., Path], recipe: Callable[..., Any]) -> tuple[Path, dict[str, Any]]:
    """One whole stagewise run, and what `start` gave back."""
    folder = once("whole", lambda folder: (folder / "given.json").write_text(json.dumps(start(recipe(), folder))))
    return folder, json.loads((folder / "given.json").read_text())


def test_the_run_directory_holds_everything(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, result = finished
    run = Run.open(folder)
    assert run.status() == "finished"
    assert run.recipe.optimisation.epochs == 2
    assert run.recipe.data.views == 2
    assert (folder / "subset.txt").read_text().split() == [f"b{i:02}" for i in range(12)]
    assert json.loads((folder / "result.json").read_text()) == result
    kinds = [event.kind for event in run.events()]
    assert kinds.count("phase_start") == kinds.count("phase_end") == kinds.count("graft") == 11
    assert kinds.count("epoch") == 22
    assert kinds[-1] == "done"
    torch.load(folder / "state.pt", weights_only=True)
    assert not list(folder.rglob("*.part"))


def test_the_result_gives_both_networks_and_the_phases(finished: tuple[Path, dict[str, Any]]) -> None:
    _, result = finished
    assert result["student"]["network"] == "linknet:tu-test_resnet"
    assert result["teacher"]["network"] == "linknet:tu-test_resnet"
    assert result["student"]["images"] == 4
    assert result["chosen_on"] == "nothing: the last epoch of each phase"
    assert [phase["phase"] for phase in result["phases"]][-2:] == ["decoder.4", "head"]
    assert result["percent_of_teacher"] == pytest.approx(100 * result["miou"] / result["teacher_miou"])


def test_the_student_loads_in_the_library_it_is_made_of(finished: tuple[Path, dict[str, Any]]) -> None:
    model = saved(finished[0] / "student")
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)


def test_previews_show_every_phase(finished: tuple[Path, dict[str, Any]]) -> None:
    folder = finished[0] / "previews"
    assert len(list(folder.glob("*.png"))) == 11
    masks = sorted((folder / "decoder.2").glob("*.png"))
    assert [mask.stem for mask in masks] == ["b00", "b01", "b02", "b03"]
    sheet = cv2.imread(str(folder / "head.png"))
    assert sheet.shape[0] > 4 * 64
    assert sheet.shape[1] > 3 * 96


def test_training_lowers_the_feature_loss(finished: tuple[Path, dict[str, Any]]) -> None:
    events = Run.open(finished[0]).events()
    losses = {(e.phase, e.epoch): e.loss for e in events if e.kind == "epoch"}
    assert losses["encoder.0", 2] < losses["encoder.0", 1]


def test_a_step_tells_the_rate_that_it_was_taken_at(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Of one cycle: from a 25th of the highest up to it in three tenths of the steps, and down by cosines."""
    rates: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event.kind == "step":
            rates.append(event.lr)

    made = recipe(subset={"count": 4}, optimisation={"epochs": 10})
    start(made, tmp_path / "run", [listen], until="encoder.0")
    assert rates == pytest.approx([4e-5, 5.2e-4, 1e-3, *(down(step / 7) for step in range(1, 8))])


def down(share: float) -> float:
    """From 1e-3 to a ten-thousandth of the first rate."""
    return 4e-9 + (1e-3 - 4e-9) * (1 + math.cos(math.pi * share)) / 2


def test_until_gives_the_weights_that_a_whole_run_gives(
    finished: tuple[Path, dict[str, Any]], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    part = start(recipe(), tmp_path / "part", until="encoder.1")
    assert part == {"run": str(tmp_path / "part"), "after": "encoder.1"}
    assert Run.open(tmp_path / "part").status() == "paused"
    early = weights(saved(tmp_path / "part" / "student"), "encoder.0", "encoder.1")
    late = weights(saved(finished[0] / "student"), "encoder.0", "encoder.1")
    assert_equal(early, late)


def test_a_paused_run_goes_on_to_the_same_end(
    finished: tuple[Path, dict[str, Any]], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    start(recipe(), tmp_path / "part", until="decoder.1")
    result = resume(Run.open(tmp_path / "part"))
    assert result["miou"] == finished[1]["miou"]
    ours, theirs = (saved(folder / "student").state_dict() for folder in (tmp_path / "part", finished[0]))
    assert_equal(ours, theirs)


def test_until_a_stage_that_is_done_does_nothing(recipe: Callable[..., Any], tmp_path: Path) -> None:
    start(recipe(), tmp_path / "run", until="encoder.1")
    before = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    assert resume(Run.open(tmp_path / "run"), until="encoder.0")["after"] == "encoder.0"
    assert Run.open(tmp_path / "run").status() == "paused"
    assert (tmp_path / "run" / "student" / "model.safetensors").read_bytes() == before


def test_only_the_trained_stage_moves(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(), tmp_path)
    assert job.teacher is not None
    fixed = weights(job.teacher.model, *job.teacher.names)
    before = weights(job.student.model, *job.student.names)
    run = Run.create(tmp_path / "run", job.recipe)
    Trainer(job, run).train(until="encoder.0")
    after = weights(job.student.model, *job.student.names)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("encoder.0.")}
    assert_equal(weights(job.teacher.model, *job.teacher.names), fixed)
    assert not any(module.training for module in job.teacher.model.modules())


def test_a_graft_is_the_student_so_far_and_the_rest_of_the_teacher(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(), tmp_path)
    assert job.teacher is not None
    job.student.model.eval()
    phase = next(phase for phase in job.phases if phase.name == "encoder.2")
    store = job.feature_store(job.subset.val, 1, tmp_path)
    store.advance(job.plan.contents.val[job.phases.index(phase)])
    batch = next(store.batches())
    logits = GraftScorer(job, Run(tmp_path)).logits(phase, batch)

    images, _ = store.samples.load(range(4))
    student, teacher = job.student.model, job.teacher.model
    with torch.no_grad():
        features = student.encoder(images)[:4]
        for layer in (teacher.encoder.model.layer3, teacher.encoder.model.layer4):
            features.append(layer(features[-1]))
        expected = teacher.segmentation_head(teacher.decoder(features))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_graft_after_the_head_is_the_student(finished: tuple[Path, dict[str, Any]]) -> None:
    events = Run.open(finished[0]).events()
    graft = next(e for e in events if e.kind == "graft" and e.phase == "head")
    assert graft.miou == pytest.approx(finished[1]["miou"], abs=1e-4)


def test_recomputing_trains_what_the_store_trains(
    finished: tuple[Path, dict[str, Any]], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    events: list[Event] = []
    made = recipe(store={"kind": "recompute"})
    start(made, tmp_path / "slow", [events.append], until="encoder.2")
    warnings = [event.message for event in events if event.kind == "warning"]
    assert warnings == ["features are recomputed in every step, which is slower than a store"]  # as it was asked to
    ours = weights(saved(tmp_path / "slow" / "student"), "encoder.0", "encoder.1", "encoder.2")
    theirs = weights(saved(finished[0] / "student"), "encoder.0", "encoder.1", "encoder.2")
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=5e-3, atol=5e-3, msg=name)


def test_a_store_on_disk_trains_the_same_bits(
    finished: tuple[Path, dict[str, Any]], recipe: Callable[..., Any], tmp_path: Path
) -> None:
    start(recipe(store={"kind": "disk"}), tmp_path / "disk", until="encoder.2")
    assert not (tmp_path / "disk" / "store").exists()
    stages = ("encoder.0", "encoder.1", "encoder.2")
    assert_equal(
        weights(saved(tmp_path / "disk" / "student"), *stages), weights(saved(finished[0] / "student"), *stages)
    )


def test_a_run_with_features_in_8_bits_goes_on_to_the_same_bits(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe(store={"bits": 8}, options={"joint": 0.1})
    start(made, tmp_path / "through")
    start(made, tmp_path / "paused", until="encoder.1")
    resume(Run(tmp_path / "paused"), until="head")  # then all stages are trained, and the store is filled once more
    resume(Run(tmp_path / "paused"))
    paused, through = (saved(tmp_path / name / "student").state_dict() for name in ("paused", "through"))
    assert_equal(paused, through)


def test_fewer_images_than_a_batch_shrink_it_and_say_so(recipe: Callable[..., Any], tmp_path: Path) -> None:
    events: list[Event] = []
    start(recipe(subset={"count": 3}), tmp_path / "few", [events.append], until="encoder.0")
    assert [e.message for e in events if e.kind == "warning"] == [
        "3 images are fewer than a batch of 4: the batch is 3"
    ]


def test_the_best_epoch_is_chosen_on_images_held_out(recipe: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "best"
    start(recipe(select="best", optimisation={"epochs": 4, "lr": 0.05}), folder, until="encoder.0")
    train, held = (folder / "subset.txt").read_text().split("# held out for choosing\n")
    assert len(held.split()) == 12 // 5
    assert not set(train.split()) & set(held.split())
    run = Run.open(folder)
    choices = {e.epoch: e.choice for e in run.events() if e.kind == "epoch"}
    best = min(choices, key=lambda epoch: choices[epoch])
    state = run.load_state()
    assert state is not None
    assert state["progress"]["phases"][0]["best_epoch"] == best

    job = prepare(run.recipe, folder, read_subset_names(run))
    assert job.teacher is not None
    job.student.model.load_state_dict(state["student"])
    images, _ = job.feature_store(job.subset.holdout, 1, folder).samples.load(range(2))
    with torch.no_grad():
        student, teacher = (net.model.eval().encoder(images)[1] for net in (job.student, job.teacher))
    assert float(((student - teacher) ** 2).mean()) == pytest.approx(min(choices.values()), rel=1e-3)


def test_the_best_weights_so_far_outlast_a_stop(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each epoch is worse than the one before, the first is kept, whether the run was stopped after it or not."""
    monkeypatch.setattr(Trainer, "_choice_value", lambda trainer, _: float(trainer.progress.epoch))

    def stop(event: Event) -> None:
        if event.kind == "step":
            Run(tmp_path / "stopped").request_stop(after_epoch=True)

    made = recipe(subset={"count": 6}, select="best")
    start(made, tmp_path / "whole", until="encoder.0")
    with pytest.raises(Stopped):
        start(made, tmp_path / "stopped", [stop])
    resume(Run.open(tmp_path / "stopped"), until="encoder.0")
    whole, stopped = (Run.open(tmp_path / name) for name in ("whole", "stopped"))
    assert_equal(weights(saved(whole.model_folder), "encoder.0"), weights(saved(stopped.model_folder), "encoder.0"))
    states = [run.load_state() for run in (whole, stopped)]
    assert [state and state["progress"]["phases"][0]["best_epoch"] for state in states] == [1, 1]


def test_a_teacher_is_a_run_that_the_library_reads(recipe: Callable[..., Any], tmp_path: Path) -> None:
    made = recipe().model_copy(update={"kind": "teach", "teacher": None, "method": "supervised"})
    result = start(made, tmp_path / "teacher")
    assert result["method"] == "teach"
    assert result["teacher"] is None
    model = saved(tmp_path / "teacher")
    assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)
    again = start(recipe(teacher=str(tmp_path / "teacher")), tmp_path / "student", until="encoder.0")
    assert again["after"] == "encoder.0"


def test_sizes_that_the_network_cannot_take_are_padded(recipe: Callable[..., Any], tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []
    job = prepare(recipe(data={"size": "50x70"}), tmp_path)
    job.student.stages["encoder.0"].register_forward_pre_hook(lambda _m, inputs: seen.append(tuple(inputs[0].shape)))
    run = Run.create(tmp_path / "run", job.recipe)
    trainer = Trainer(job, run)
    trainer.train(until="encoder.0")
    assert {shape[2:] for shape in seen} == {(64, 96)}
    mask = cv2.imread(str(next((tmp_path / "run" / "previews" / "encoder.0").glob("*.png"))))
    assert mask.shape[:2] == (50, 70)


def test_a_stop_saves_and_leaves_the_run_resumable(recipe: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop_at_third_step(event: Event) -> None:
        if event.kind == "step" and event.step == 3:
            Run(folder).request_stop()

    with pytest.raises(Stopped, match=r"stopped in encoder\.0, epoch 1; .* resume run"):
        start(recipe(), folder, [stop_at_third_step])
    run = Run.open(folder)
    assert run.status() == "interrupted"
    state = run.load_state()
    assert state is not None
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (0, 3)
    assert resume(run, until="encoder.0")["after"] == "encoder.0"


def test_a_stop_after_the_epoch_waits_for_its_last_step(recipe: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def stop_after_the_first_epoch(event: Event) -> None:
        if event.kind == "step" and event.step == 1:
            Run(folder).request_stop(after_epoch=True)

    with pytest.raises(Stopped, match=r"stopped in encoder\.0, epoch 1; "):
        start(recipe(), folder, [stop_after_the_first_epoch])
    state = Run.open(folder).load_state()
    assert state is not None
    assert (state["progress"]["epoch"], state["progress"]["step"]) == (1, 0)
    assert resume(Run.open(folder), until="encoder.0")["after"] == "encoder.0"


def test_what_keeps_a_run_from_beginning_stands_in_its_events(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(teacher=str(tmp_path / "gone")))
    with pytest.raises(UserError, match="no model at"):
        resume(run)
    assert run.status() == "failed"
    assert run.events()[-1].message.startswith(f"no model at {tmp_path / 'gone'}")


def test_a_finished_run_is_not_trained_again(finished: tuple[Path, dict[str, Any]]) -> None:
    before = (finished[0] / "events.jsonl").read_bytes()
    assert resume(Run.open(finished[0])) == finished[1]
    assert (finished[0] / "events.jsonl").read_bytes() == before


def test_a_teacher_that_changed_is_refused(recipe: Callable[..., Any], teacher_folder: Path, tmp_path: Path) -> None:
    import shutil

    place = tmp_path / "teacher"
    shutil.copytree(teacher_folder, place)
    start(recipe(teacher=str(place)), tmp_path / "run", until="encoder.0")
    other = smp.Linknet("tu-test_resnet", classes=3, encoder_weights=None)
    other.save_pretrained(place)
    with pytest.raises(UserError, match="has changed since the run began"):
        resume(Run.open(tmp_path / "run"))


def test_a_full_disk_at_the_end_of_a_phase_leaves_the_run_resumable(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    from segskd import files

    def full(source: Path, target: Path) -> None:
        if target.name == "model.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    with monkeypatch.context() as broken:
        broken.setattr(files.os, "replace", full)
        with pytest.raises(UserError, match=r"model\.safetensors: No space left on device; free some space"):
            start(recipe(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.part"))
    assert resume(Run.open(tmp_path / "run"), until="encoder.0")["after"] == "encoder.0"


def test_a_run_cut_off_before_its_subset_was_written_draws_it_again(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe(subset={"count": 5}))
    resume(run, until="encoder.0")
    assert len((tmp_path / "run" / "subset.txt").read_text().split()) == 5


def test_a_students_first_weights_are_the_teachers(recipe: Callable[..., Any], tmp_path: Path) -> None:
    smp.Linknet("tu-test_resnet", classes=3, encoder_weights=None).save_pretrained(tmp_path / "equal")
    job = prepare(recipe(teacher=str(tmp_path / "equal")), tmp_path)
    assert job.teacher is not None
    assert_equal(job.student.model.state_dict(), job.teacher.model.state_dict())
    supervised = prepare(recipe(teacher=str(tmp_path / "equal"), method="supervised"), tmp_path)
    assert_equal(supervised.student.model.state_dict(), job.teacher.model.state_dict())
    assert supervised.first_weights == ("first weights from the teacher: 100 % of the student's values",)
    other = prepare(recipe(teacher=str(tmp_path / "equal"), init="random"), tmp_path)
    assert (other.recipe.init, other.first_weights) == ("random", ())
    ours, theirs = (net.model.encoder.model.layer1[0].conv1.weight for net in (other.student, job.teacher))
    assert not torch.equal(ours, theirs)


def test_a_students_first_weights_are_those_of_a_folder(recipe: Callable[..., Any], tmp_path: Path) -> None:
    other = smp.Linknet("tu-test_resnet", classes=3, encoder_weights=None)
    other.save_pretrained(tmp_path / "other")
    job = prepare(recipe(init=str(tmp_path / "other")), tmp_path / "run")
    assert_equal(job.student.model.state_dict(), other.state_dict())
    assert job.first_weights[0].startswith("first weights from other: ")
    torch.save(other.encoder.state_dict(), tmp_path / "encoder.pth")
    job = prepare(recipe(weights=str(tmp_path / "encoder.pth")), tmp_path / "run")
    assert job.recipe.init == "random"
    assert_equal(job.student.model.encoder.state_dict(), other.encoder.state_dict())


def test_a_resumed_run_no_longer_needs_the_file_of_its_first_weights(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    smp.Linknet("tu-test_resnet", classes=3, encoder_weights=None).save_pretrained(tmp_path / "other")
    start(recipe(init=str(tmp_path / "other")), tmp_path / "run", until="encoder.0")
    (tmp_path / "other").rename(tmp_path / "elsewhere")
    resume(Run(tmp_path / "run"), until="encoder.1")
    assert len(Run(tmp_path / "run").load_state()["progress"]["phases"]) == 2


def test_a_loss_that_is_no_number_ends_the_run_with_advice(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "segskd.distill.planning.phase.feature_loss", lambda student, teacher: student.sum() * float("nan")
    )
    with pytest.raises(UserError, match=r"the loss of encoder\.0 became nan: use a smaller --lr"):
        start(recipe(), tmp_path / "run")
    assert Run.open(tmp_path / "run").status() == "failed"


def test_an_image_that_breaks_during_training_is_named(recipe: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(data, tmp_path / "data")
    broken = tmp_path / "data" / "bands" / "train" / "images" / "b05.png"
    made = recipe(data={"folder": str(tmp_path / "data")}, store={"kind": "recompute"})

    def break_it(event: Event) -> None:
        if event.kind == "phase_start":
            broken.write_bytes(b"no image")

    with pytest.raises(UserError, match=r"can't read image .*b05\.png"):
        start(made, tmp_path / "run", [break_it])
    shutil.copy(data / "bands" / "train" / "images" / "b05.png", broken)
    assert resume(Run.open(tmp_path / "run"), until="encoder.0")["after"] == "encoder.0"


def test_masks_reach_training_unharmed(recipe: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(recipe(), tmp_path)
    _, masks = job.feature_store(job.subset.train, 2, tmp_path).samples.load(range(24))
    assert set(np.unique(masks.numpy())) == {0, 1, 2, 255}
