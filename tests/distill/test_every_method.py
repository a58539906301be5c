"""Every method trains by the same loop: what each needs is a part of its phases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from segskd.distill import loop, module, session, store, trainer
from segskd.distill.flops import epochs_within, training_flops
from segskd.distill.job import Job, prepare
from segskd.distill.methods import METHODS
from segskd.distill.session import resume, start
from segskd.distill.trainer import Trainer
from segskd.errors import Stopped, UserError
from segskd.models.stages import IMAGE, freeze
from segskd.runs import Run

SMALL: dict[str, Any] = {"subset": {"count": 4}, "data": {"views": 1}, "student": "unet:resnet10"}


@pytest.fixture(scope="module")
def snapshots(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's run of three epochs that has kept two snapshots."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    content = recipe(student="unet:resnet18", optimisation={"epochs": 3}, subset={"count": 4}).model_dump(mode="json")
    from segskd.config import make_recipe

    start(make_recipe(content | {"kind": "teach", "teacher": None, "snapshots": 2}), folder)
    return folder


@pytest.fixture
def small(recipe: Callable[..., Any], snapshots: Path) -> Callable[..., Any]:
    """Two epochs a stage on four images, in one step each."""

    def make(method: str, **changes: Any) -> Any:
        return recipe(**{**SMALL, "method": method, "teacher": str(snapshots), **changes})

    return make


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(small: Callable[..., Any], tmp_path: Path, method: str) -> None:
    result = start(small(method), tmp_path / "run")
    assert result["image_passes"] == 2 * 11 * 4
    assert result["training_flops"] > 0
    assert result["cpu_seconds"] > 0
    run = Run.open(tmp_path / "run")
    losses = [event["loss"] for event in run.events() if event["kind"] == "epoch"]
    assert all(loss == loss for loss in losses)
    drawn = prepare(small(method), tmp_path / "other").student.model.state_dict()
    trained = smp.from_pretrained(str(run.model_folder)).state_dict()
    moved = {name.split(".")[0] for name in trained if not torch.equal(trained[name], drawn[name])}
    assert moved == {"encoder", "decoder", "segmentation_head"}


def test_the_loop_knows_no_method() -> None:
    sources = "".join(inspect.getsource(part) for part in (trainer, loop, module, store, session))
    words = set(sources.replace('"', " ").replace("'", " ").split())
    assert words & set(METHODS) <= {"supervised"}  # which has no teacher


def test_snapshots_are_the_network_on_its_way(snapshots: Path) -> None:
    first, second, last = (
        smp.from_pretrained(str(folder)).encoder.conv1.weight
        for folder in (snapshots / "snapshots" / "1", snapshots / "snapshots" / "2", snapshots)
    )
    assert not torch.equal(first, second)
    assert not torch.equal(second, last)


def test_a_teacher_without_snapshots_is_refused(
    small: Callable[..., Any], teacher_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"learns from snapshots of the teacher's training, and .* has none"):
        start(small("multi_teacher_gan", teacher=str(teacher_folder)), tmp_path / "run")


def test_blocks_apart_are_fed_by_the_teacher(small: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(small("blockwise", init="random"), tmp_path / "run")
    assert job.teacher is not None
    apart = job.module(job.phases[0])
    apart.start_training()
    batch = first_batch(job, tmp_path)
    parts = apart(batch)
    theirs = {IMAGE: batch.taps("teacher")[IMAGE], **batch.taps("teacher")}
    alone = job.student.run(theirs, job.size, 6, 6)["decoder.1"]  # takes the teacher's decoder.0 and encoder.2
    assert parts["decoder.1"].item() == pytest.approx(torch.mean((alone - theirs["decoder.1"]) ** 2).item(), rel=1e-5)
    parts["decoder.1"].backward()
    touched = {
        name for name, stage in job.student.stages.items() if any(p.grad is not None for p in stage.parameters())
    }
    assert touched == {"decoder.1"}


def test_blocks_of_other_widths_are_refused(small: Callable[..., Any], wide_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"phase 'blocks' feeds .* of encoder\.1 differ \(64x16x24 and 256x16x24\)"):
        prepare(small("blockwise", teacher=str(wide_teacher)), tmp_path / "run")


def test_the_assembled_network_is_scored_before_and_after_it_trains_together(
    small: Callable[..., Any], tmp_path: Path
) -> None:
    result = start(small("blockwise"), tmp_path / "run")
    before, after = result["phases"]
    assert (before["phase"], after["phase"]) == ("blocks", "joint")
    assert after["graft_miou"] == pytest.approx(result["miou"])
    assert before["graft_miou"] != after["graft_miou"]


def test_discriminator_and_student_learn_against_each_other(small: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(small("multi_teacher_gan", init="random"), tmp_path / "run")
    phase = job.phases[0]
    duel = job.module(phase)
    duel.start_training()
    critic = duel.critics["encoder_0"]
    student = torch.randn(2, 64, 8, 8, requires_grad=True)
    deceived, told = critic.losses(student, torch.randn(2, 64, 8, 8))
    (from_deceit,) = torch.autograd.grad(deceived, student, retain_graph=True)
    assert from_deceit.abs().sum() > 0
    assert torch.autograd.grad(deceived, list(critic.parameters()), retain_graph=True, allow_unused=True) == (None,) * 6
    assert torch.autograd.grad(told, student, retain_graph=True, allow_unused=True) == (None,)
    assert all(gradient is not None for gradient in torch.autograd.grad(told, list(critic.parameters())))
    assert {id(p) for p in critic.parameters()} <= {id(p) for p in duel.trained_parameters()}


def test_a_discriminator_is_the_same_whatever_was_drawn_before(small: Callable[..., Any], tmp_path: Path) -> None:
    first = prepare(small("multi_teacher_gan"), tmp_path / "run").critics.state_dict()
    torch.rand(7)
    again = prepare(small("multi_teacher_gan"), tmp_path / "run").critics.state_dict()
    other = prepare(small("multi_teacher_gan", seed=1), tmp_path / "run").critics.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_run_with_discriminators_goes_on_where_it_stopped(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small("multi_teacher_gan", optimisation={"epochs": 4, "batch": 2}, checkpoint_seconds=0)
    start(made, tmp_path / "whole", until="encoder.1")
    steps, save = iter(range(10_000)), Trainer.save

    def save_and_stop(self: Trainer, loop: Any = None) -> None:
        save(self, loop)
        if next(steps) == 12:  # in the middle of encoder.1-snapshot-1
            raise Stopped("as if killed")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save", save_and_stop)
        with pytest.raises(Stopped):
            start(made, tmp_path / "cut", until="encoder.1")
    state = Run.open(tmp_path / "cut").load_state()
    assert state is not None
    assert state["progress"]["step"] or state["progress"]["epoch"]
    resume(Run.open(tmp_path / "cut"), until="encoder.1")
    states = [Run.open(tmp_path / name).load_state() for name in ("whole", "cut")]
    first, second = (state["student"] for state in states if state)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_what_the_student_never_learnt_the_teacher_lends_to_the_graft(
    small: Callable[..., Any], tmp_path: Path
) -> None:
    """fitnets compares encoder.2 alone: the decoder takes the teacher's own encoder.0 and encoder.1."""
    job = prepare(small("fitnets", init="random"), tmp_path / "run")
    assert job.teacher is not None
    freeze([job.student.model])
    graft = trainer.Grafter(job, Run(tmp_path / "run"))
    kept = job.feature_store(job.subset.val[:2], 1, tmp_path)
    kept.advance(job.holdings.val[0])
    (batch,) = kept.batches()
    logits = graft.logits(job.phases[0], batch)
    with torch.no_grad():
        image = batch.tensors[("data", IMAGE)]
        ours = job.student.run({IMAGE: image}, job.size, 0, 2)
        theirs = job.teacher.run({IMAGE: image}, job.size, 0, 1)
        rest = job.teacher.run({**theirs, "encoder.2": ours["encoder.2"]}, job.size, 3)
    assert torch.allclose(logits, rest["head"], atol=1e-5)


def test_flops_of_a_convolution_worked_out_by_hand(small: Callable[..., Any], tmp_path: Path) -> None:
    """The head: a 3x3 convolution of 16 channels to 3 classes at 64x96, once forwards and twice backwards."""
    job = prepare(small("stagewise"), tmp_path / "run")
    head_alone = replace(job, phases=job.phases[-1:], holdings=replace(job.holdings, train=[job.holdings.train[-1]]))
    forward = 2 * 64 * 96 * 3 * 16 * 9
    steps = 2 * 4 * 2 * forward  # the gradient of its input is not needed: two products in place of three
    prefix = training_flops(replace(head_alone, phases=[replace(job.phases[-1], epochs=0)]))
    assert training_flops(head_alone) - prefix == steps
    whole = training_flops(prepare(small("supervised", init="random"), tmp_path / "run"))
    assert whole > 3 * training_flops(job)


@pytest.mark.parametrize("method", ["stagewise", "simultaneous"])
def test_epochs_within_a_number_of_operations(small: Callable[..., Any], tmp_path: Path, method: str) -> None:
    def flops(epochs: int) -> int:
        return training_flops(prepare(small(method, optimisation={"epochs": epochs}), tmp_path / "run"))

    limit = flops(7)
    assert epochs_within(small(method), tmp_path / "run", limit) == 7
    assert epochs_within(small(method), tmp_path / "run", limit - 1) == 6
    assert epochs_within(small(method), tmp_path / "run", 1) == 1


def first_batch(job: Job, folder: Path) -> Any:
    stored = job.feature_store(job.subset.train, 1, folder)
    stored.advance(job.holdings.train[0])
    return next(stored.batches())
