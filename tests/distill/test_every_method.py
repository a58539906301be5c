"""Every method trains by the same loop: what each needs is a part of its phases."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as functional

from segskd.config import make_recipe
from segskd.data.transforms import ViewMaker
from segskd.distill.caching import store
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key, phase_inputs
from segskd.distill.planning.losses import soft_loss
from segskd.distill.planning.methods import METHODS
from segskd.distill.running import session
from segskd.distill.running.flops import epochs_within, training_flops
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import resume, start
from segskd.distill.training import loop, module, trainer
from segskd.distill.training.job import Job
from segskd.distill.training.module import adapted_stages
from segskd.distill.training.trainer import Trainer
from segskd.errors import Stopped, UserError
from segskd.models.stages import IMAGE, freeze
from segskd.runs import Run

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"subset": {"count": 4}, "data": {"views": 1}}


@pytest.fixture(scope="module")
def snapshots(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher beside two others of its build, as if they were its snapshots."""
    folder = tmp_path_factory.mktemp("teachers") / "teacher"
    shutil.copytree(teacher_folder, folder)
    for number in (1, 2):
        torch.manual_seed(10 + number)
        model = smp.Linknet("tu-test_resnet", layers=[2, 2, 2, 2], classes=3, encoder_weights=None)
        with torch.no_grad():
            model.train()(torch.randn(4, 3, 64, 96))
        model.eval().save_pretrained(folder / "snapshots" / str(number))
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
    losses = [event.loss for event in run.events() if event.kind == "epoch"]
    assert all(loss == loss for loss in losses)
    drawn = prepare(small(method), tmp_path / "other").student.model.state_dict()
    trained = smp.from_pretrained(str(run.model_folder)).state_dict()
    moved = {name.split(".")[0] for name in trained if not torch.equal(trained[name], drawn[name])}
    assert moved == {"encoder", "decoder", "segmentation_head"}


def reckoned(job: Job, place: int, features: Any, theirs: Any, mask: torch.Tensor) -> torch.Tensor:
    """What a method's phase is to minimise, written out from the papers, apart from the code of the phases."""
    labels = functional.cross_entropy(features["head"], mask.long(), ignore_index=255)
    blocks = job.student.names[:-1]
    squares = {name: torch.mean((features[name] - theirs[name]) ** 2) for name in blocks}
    soft = {
        t: t**2 * functional.kl_div(*(torch.log_softmax(x["head"] / t, 1) for x in (features, theirs)), log_target=True,
                                    reduction="sum") / mask.numel()
        for t in (1.0, 4.0)
    }  # fmt: skip
    phase = job.phases[place]
    match job.recipe.method, phase.name:
        case ("simultaneous", _) | ("blockwise", "joint"):
            return (sum(squares.values()) + labels) / 11
        case "blockwise", "blocks":
            return sum(squares.values()) + labels
        case "fitnets", "to-encoder.2":
            return squares["encoder.2"]
        case "fitnets", "to-decoder.2":
            return squares["decoder.2"]
        case "hinton", _:
            return 0.9 * soft[4.0] + 0.1 * labels
        case "hdkd", _:
            return soft[4.0] + 0.1 * sum((i + 1) * squares[name] for i, name in enumerate(blocks))
        case "dearkd", "early":
            return squares["encoder.0"] + squares["encoder.1"] + squares["encoder.2"]
        case "attention", _:
            maps = [
                [functional.normalize((x[n] ** 2).sum(1).flatten(1), dim=1) for n in blocks] for x in (features, theirs)
            ]
            return sum(((a - b) ** 2).sum(1).mean() for a, b in zip(*maps, strict=True)) + labels
        case "fsp", _:
            pairs = pairwise(blocks)
            return sum(torch.mean((gram(features, *pair) - gram(theirs, *pair)) ** 2) for pair in pairs) / 9 + labels
        case "channelwise", _:
            where = [[torch.log_softmax(x[n].flatten(2) / 4, 2) for n in blocks] for x in (features, theirs)]
            each = [16 * (b.exp() * (b - a)).sum(2).mean() for a, b in zip(*where, strict=True)]
            return sum(each) / 10 + labels
        case "stagewise_finetuned", "joint":  # at its beginning
            return (labels + soft[1.0]) / 2 + sum(squares.values()) / 10
        case "stagewise_finetuned", "head":
            return (labels + soft[1.0]) / 2
        case (("stagewise" | "stagewise_finetuned" | "multi_teacher_gan"), name) if name != "head":
            return squares[phase.trained[0]]
        case _:  # the head of the last two, supervised, the rest of fitnets and dearkd
            return labels


def gram(features: Any, first: str, second: str) -> torch.Tensor:
    one, other = features[first], features[second]
    sides = [min(a, b) for a, b in zip(one.shape[-2:], other.shape[-2:], strict=True)]
    one, other = (functional.adaptive_max_pool2d(feature, sides) for feature in (one, other))
    return torch.einsum("nchw,ndhw->ncd", one, other) / (sides[0] * sides[1])


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_every_phase_is_what_its_paper_says(small: Callable[..., Any], tmp_path: Path, method: str) -> None:
    job = prepare(small(method, init="random"), tmp_path / "run")
    freeze([job.student.model])
    owners = {comparison.teacher for phase in job.phases for comparison in phase.compared} | {"teacher"}
    names = job.student.names
    every = frozenset({Key("student", n) for n in names} | {Key(o, n) for o in owners for n in names})
    kept = job.feature_store(job.subset.train, 1, tmp_path)
    kept.advance(every | {IMAGE_KEY, MASK_KEY})
    (batch,) = kept.batches()
    chosen = {0, len(job.phases) // 2, len(job.phases) - 1}
    for place in chosen:
        phase = job.phases[place]
        theirs = batch.features(phase.compared[0].teacher if phase.compared else "teacher")
        features = batch.features("student")
        if phase.fed_by == "teacher":
            features = {n: job.student.run(theirs, job.size, i, i)[n] for i, n in enumerate(names)}
        expected = reckoned(job, place, features, theirs, batch.mask)
        with torch.no_grad():
            found = job.module(phase)(batch)
        assert found["loss"].item() == pytest.approx(float(expected), rel=2e-4), phase.name
        discriminators = [comparison for comparison in phase.compared if comparison.discriminator]
        if not discriminators:
            assert found["adversarial"].item() == 0
        for comparison in discriminators:
            discriminator = job.module(phase).discriminators[comparison.name.replace(".", "_")]
            with torch.no_grad():
                made, real = discriminator(features[phase.trained[0]]), discriminator(theirs[phase.trained[0]])
                yes, no = (functional.binary_cross_entropy_with_logits(x, torch.full_like(x, y)) for x, y in
                           ((real, 1.0), (made, 0.0)))  # fmt: skip
                deceived = functional.binary_cross_entropy_with_logits(made, torch.ones_like(made))
            assert found["adversarial"].item() == pytest.approx(float(0.01 * deceived + (yes + no) / 2), rel=1e-4)


def test_the_weight_of_features_falls_to_zero_in_a_straight_line(small: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(small("stagewise_finetuned", init="random"), tmp_path / "run")
    made = job.module(job.phases[-1])
    kept = job.fresh_store(job.subset.train, job.phases[-1], tmp_path)
    kept.advance(phase_inputs(job.phases[-1], job.student))
    (batch,) = kept.stream([torch.arange(4)], phase_inputs(job.phases[-1], job.student))
    losses = []
    for done in (0.0, 0.25, 1.0):
        made.done = done
        with torch.no_grad():
            losses.append(float(made.eval()(batch)["loss"]))
    assert losses[0] > losses[2] + 0.01
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)


def test_the_last_phase_sees_a_new_view_of_each_image_in_each_epoch(
    small: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small("stagewise_finetuned", options={"joint": 0.2})
    seen: list[tuple[str, int]] = []
    view = ViewMaker.__call__

    def noted(self: ViewMaker, image: Any, mask: Any, name: str, number: int) -> Any:
        seen.append((name, number))
        return view(self, image, mask, name, number)

    start(made, tmp_path / "run", until="head")
    monkeypatch.setattr(ViewMaker, "__call__", noted)
    run = Run.open(tmp_path / "run")
    resume(run)
    names = (tmp_path / "run" / "subset.txt").read_text().split()
    assert [phase["epochs"] for phase in run.read_json("result.json")["phases"]][-1] == 4  # a fifth of 2 x 11
    assert {one for one in seen if one[0] in names} == {(name, number) for name in names for number in range(4)}


def test_a_teacher_may_have_an_output_more_than_there_are_classes(small: Callable[..., Any], tmp_path: Path) -> None:
    """One at the ignore index: what it says of the classes counts, without an adapter between."""
    for method in ("hinton", "hdkd"):
        phase = prepare(small(method), tmp_path / "run").phases[0]
        answers = next(comparison for comparison in phase.compared if comparison.stages == ("head",))
        student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
        assert answers.measure([student], [teacher]) == soft_loss(student, teacher[:, :3], temperature=4.0)
        assert "head" not in adapted_stages([phase])


def test_a_student_of_logits_may_have_another_depth_than_its_teacher(small: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    shallow = smp.Linknet("tu-test_resnet", encoder_depth=4, classes=3, encoder_weights=None)
    shallow.eval().save_pretrained(tmp_path / "shallow")
    made = small("hinton", teacher=str(tmp_path / "shallow"))
    made = made.model_copy(update={"data": made.data.model_copy(update={"views": None})})
    assert prepare(made, tmp_path / "run").recipe.data.views == 4


def test_what_is_recomputed_is_what_the_phase_needs(small: Callable[..., Any], tmp_path: Path) -> None:
    job = prepare(small("multi_teacher_gan", store={"kind": "recompute"}), tmp_path / "run")
    place = [phase.name for phase in job.phases].index("encoder.3")
    assert job.plan.contents.train[place] == {Key("student", "encoder.2"), Key("teacher", "encoder.3")}


def test_other_snapshots_than_before_end_a_resumed_run(
    small: Callable[..., Any], snapshots: Path, tmp_path: Path
) -> None:
    shutil.copytree(snapshots, tmp_path / "teacher")
    made = small("multi_teacher_gan", teacher=str(tmp_path / "teacher"))
    start(made, tmp_path / "run", until="encoder.0")
    shutil.rmtree(tmp_path / "teacher" / "snapshots" / "2")
    with pytest.raises(UserError, match=r"the snapshots of teacher .* have changed since then: put them back"):
        resume(Run.open(tmp_path / "run"))


def test_the_loop_knows_no_method() -> None:
    sources = "".join(inspect.getsource(part) for part in (trainer, loop, module, store, session))
    words = set(sources.replace('"', " ").replace("'", " ").split())
    assert words & set(METHODS) <= {"supervised"}  # which has no teacher


def test_snapshots_are_the_network_on_its_way(recipe: Callable[..., Any], tmp_path: Path) -> None:
    content = recipe(optimisation={"epochs": 3}, subset={"count": 4}).model_dump(mode="json")
    folder = tmp_path / "teacher"
    start(make_recipe(content | {"kind": "teach", "teacher": None, "snapshots": 2}), folder)
    first, second, last = (
        smp.from_pretrained(str(place)).encoder.model.layer1[0].conv1.weight
        for place in (folder / "snapshots" / "1", folder / "snapshots" / "2", folder)
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
    theirs = {IMAGE: batch.features("teacher")[IMAGE], **batch.features("teacher")}
    alone = job.student.run(theirs, job.size, 6, 6)["decoder.1"]  # takes the teacher's decoder.0 and encoder.2
    assert parts["decoder.1"].item() == pytest.approx(torch.mean((alone - theirs["decoder.1"]) ** 2).item(), rel=1e-5)
    parts["decoder.1"].backward()
    touched = {
        name for name, stage in job.student.stages.items() if any(p.grad is not None for p in stage.parameters())
    }
    assert touched == {"decoder.1"}


def test_blocks_of_other_widths_are_refused(small: Callable[..., Any], wide_teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"phase 'blocks' feeds .* of encoder\.1 differ \(32x16x24 and 64x16x24\)"):
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
    discriminator = duel.discriminators["encoder_0"]
    student = torch.randn(2, 32, 8, 8, requires_grad=True)
    deceived, told = discriminator.losses(student, torch.randn(2, 32, 8, 8))
    (from_deceit,) = torch.autograd.grad(deceived, student, retain_graph=True)
    assert from_deceit.abs().sum() > 0
    assert (
        torch.autograd.grad(deceived, list(discriminator.parameters()), retain_graph=True, allow_unused=True)
        == (None,) * 6
    )
    assert torch.autograd.grad(told, student, retain_graph=True, allow_unused=True) == (None,)
    assert all(gradient is not None for gradient in torch.autograd.grad(told, list(discriminator.parameters())))
    assert {id(p) for p in discriminator.parameters()} <= {id(p) for p in duel.trained_parameters()}


def test_a_discriminator_is_the_same_whatever_was_drawn_before(small: Callable[..., Any], tmp_path: Path) -> None:
    first = prepare(small("multi_teacher_gan"), tmp_path / "run").networks.discriminators.state_dict()
    torch.rand(7)
    again = prepare(small("multi_teacher_gan"), tmp_path / "run").networks.discriminators.state_dict()
    other = prepare(small("multi_teacher_gan", seed=1), tmp_path / "run").networks.discriminators.state_dict()
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
    graft = trainer.GraftScorer(job, Run(tmp_path / "run"))
    kept = job.feature_store(job.subset.val[:2], 1, tmp_path)
    kept.advance(job.plan.contents.val[0])
    (batch,) = kept.batches()
    logits = graft.logits(job.phases[0], batch)
    with torch.no_grad():
        image = batch.tensors[("data", IMAGE)]
        ours = job.student.run({IMAGE: image}, job.size, 0, 2)
        theirs = job.teacher.run({IMAGE: image}, job.size, 0, 1)
        rest = job.teacher.run({**theirs, "encoder.2": ours["encoder.2"]}, job.size, 3)
    assert torch.allclose(logits, rest["head"], atol=1e-5)


def test_flops_of_a_convolution_worked_out_by_hand(small: Callable[..., Any], tmp_path: Path) -> None:
    """The head: a 1x1 convolution of 32 channels to 3 classes at 64x96, once forwards and twice backwards."""
    job = prepare(small("stagewise"), tmp_path / "run")
    contents = replace(job.plan.contents, train=[job.plan.contents.train[-1]])
    head_alone = replace(job, plan=replace(job.plan, phases=job.phases[-1:], contents=contents))
    forward = 2 * 64 * 96 * 3 * 32
    steps = 2 * 4 * 2 * forward  # the gradient of its input is not needed: two products in place of three
    no_epochs = replace(head_alone.plan, phases=[replace(job.phases[-1], epochs=0)])
    prefix = training_flops(replace(head_alone, plan=no_epochs))
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


def test_epochs_within_a_number_of_operations_where_views_depend_on_epochs(
    small: Callable[..., Any], tmp_path: Path
) -> None:
    made = small("stagewise")
    made = made.model_copy(update={"data": made.data.model_copy(update={"views": None})})

    def flops(epochs: int) -> int:
        part = made.optimisation.model_copy(update={"epochs": epochs})
        job = prepare(made.model_copy(update={"optimisation": part}), tmp_path / "run")
        assert job.views == max(4, epochs)  # of four images
        return training_flops(job)

    limit = flops(7)
    assert epochs_within(made, tmp_path / "run", limit) == 7
    assert epochs_within(made, tmp_path / "run", limit - 1) == 6


def first_batch(job: Job, folder: Path) -> Any:
    stored = job.feature_store(job.subset.train, 1, folder)
    stored.advance(job.plan.contents.train[0])
    return next(stored.batches())
