"""Stages that learn apart from each other, on one process and placed on two."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from processes import PATIENCE, began, command, ended, workers
from torch.utils.flop_counter import FlopCounterMode

from segskd.config import Recipe
from segskd.distill.caching.budget import Sizes
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key, phase_inputs, plan_contents
from segskd.distill.planning.phase import part_of
from segskd.distill.running.flops import training_flops
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import start
from segskd.distill.training.placement import PlacedLoop, place, step_seconds
from segskd.models.build import load
from segskd.runs import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def blocks(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        subset = {"count": 11, "labels": changes.pop("labels", None)}
        return recipe(method="blockwise", subset=subset, threads=1, checkpoint_seconds=0.0, **changes)

    return make


def test_the_costliest_first_to_whom_has_least_to_do() -> None:
    costs = {"a": 3.0, "b": 5.0, "c": 1.0, "d": 4.0, "e": 3.0}
    assert place(costs, 2) == [["b", "e"], ["a", "c", "d"]]  # 5 + 3 (e) against 4 + 3 (a), to which c is added
    assert place(costs, 3) == [["b"], ["c", "d"], ["a", "e"]]
    assert place(costs, 5) == [["b"], ["d"], ["a"], ["e"], ["c"]]


def test_a_part_of_a_phase(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    job = prepare(blocks(), tmp_path)
    whole = job.phases[0]
    assert [whole.placed_on(count) for count in (1, 2, 11, 12)] == [False, True, True, False]
    assert not job.phases[1].placed_on(2)
    part, rest = part_of(whole, ("decoder.0", "head")), part_of(whole, ("encoder.2",))
    assert ([c.name for c in part.compared], part.labels, rest.labels) == (["decoder.0"], 1.0, 0.0)
    teachers = {"encoder.4", "encoder.3", "decoder.0", "decoder.4"}  # what both take in, and what one is compared with
    assert phase_inputs(part, job.student) == {MASK_KEY, *(Key("teacher", name) for name in teachers)}


def test_room_for_what_each_stage_is_fed(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    """The stages' own tensors, wherever they are placed; the shared store keeps what the joint phase is made of."""
    job = prepare(blocks(), tmp_path)
    networks, phases = job.networks.by_name, job.phases
    held = plan_contents(job.recipe, networks, phases, phases, processes=2)
    assert held.train == [{IMAGE_KEY, MASK_KEY}, phase_inputs(phases[1], job.student)]
    assert len(held.placed) == 11
    assert held.placed[0] == {IMAGE_KEY, Key("teacher", "encoder.0")}
    sizes = Sizes(networks, job.size, torch.float32)
    first = next(content for content in held.planned_stores(job.subset) if content.phases == [held.placed[0]])
    pixels = 64 * 96
    assert sizes.most(first, 2) == 2 * 11 * 4 * (3 * pixels + 32 * pixels // 4)


def test_a_part_takes_the_steps_of_its_phase(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    """Also one of fewer stages than there are processes, and the head alone, which looks at labelled images."""
    job = prepare(blocks(labels=0.5), tmp_path)
    four = cast(Any, SimpleNamespace(count=4, number=0, own=job.ranks.own, fabric=job.ranks.fabric))
    job = replace(job, ranks=four)
    whole = job.phases[0]
    placement = [["head"], ["encoder.0"], *([name] for name in job.student.names[1:3]), job.student.names[3:-1]]
    loop = PlacedLoop(job, whole, placement)
    assert job.steps_an_epoch(whole) == 3  # eleven images in batches of four
    assert loop.steps == 3
    assert loop._schedule.total_steps == 3 * whole.epochs


def test_operations_of_stages_that_are_placed(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    job = prepare(blocks(), tmp_path)
    held = plan_contents(job.recipe, job.networks.by_name, job.phases, job.phases, processes=2)
    ranks = cast(Any, SimpleNamespace(count=2, number=0, fabric=job.ranks.fabric))
    placed = training_flops(replace(job, plan=replace(job.plan, contents=held), ranks=ranks))
    assert job.teacher is not None
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        job.teacher.model(torch.empty(1, 3, 64, 96))
    head = 2 * 64 * 96 * 3 * 32  # which nobody is compared with
    # The joint phase shares the images again, and has the teacher's features of each computed once more.
    assert placed - training_flops(job) == 2 * 11 * (counted.get_total_flops() - head)


def test_what_a_step_of_each_stage_takes_without_training_it(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    job = prepare(blocks(), tmp_path)
    before = {name: value.clone() for name, value in job.student.model.state_dict().items()}
    state = torch.get_rng_state()
    seconds = step_seconds(job, job.phases[0])
    assert list(seconds) == job.student.names
    assert min(seconds.values()) > 0
    assert seconds["decoder.4"] > seconds["decoder.0"] / 10
    assert all(torch.equal(value, before[name]) for name, value in job.student.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_with_stages_of_their_own_train_what_one_does(
    blocks: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Killed on the way, gone on with by one process, and by two again: every epoch's loss is that of one alone."""
    made, run, alone = blocks(), Run(tmp_path / "run"), Run(tmp_path / "alone")
    words = ("--recipe", began(made, tmp_path), "--run", run.path, "--devices", 2)
    _killed_after(2, command("segskd", "distill", *words), run)
    _killed_after(6, command("segskd", "resume", run.path, "--devices", 1), run)
    status, out, err = ended(command("segskd", "resume", run.path, "--devices", 2, "--json"))
    assert status == 0, err
    assert [phase["phase"] for phase in json.loads(out)["phases"]] == ["blocks", "joint"]
    for placed in (event for event in run.events() if event.kind == "placed"):
        assert sorted(name for stages in placed.stages for name in stages) == sorted(placed.step_seconds)
        assert all(placed.stages)
    start(made, alone.path, until="blocks")
    told, alones = (
        {e.epoch: e.loss for e in one.events() if e.kind == "epoch" and e.phase == "blocks"} for one in (run, alone)
    )
    assert list(told.values()) == pytest.approx(list(alones.values()), rel=1e-5)
    grafts = [next(e.miou for e in one.events() if e.kind == "graft") for one in (run, alone)]
    assert grafts[0] == pytest.approx(grafts[1], abs=1e-4)


def test_placed_stages_are_chosen_by_what_they_do_together(blocks: Callable[..., Recipe], tmp_path: Path) -> None:
    made = blocks(select="best", select_on="val", labels=0.0)  # by the loss of all stages
    run, alone = Run(tmp_path / "run"), Run(tmp_path / "alone")
    words = ("--recipe", began(made, tmp_path), "--run", run.path, "--devices", 2, "--until", "blocks")
    status, _, err = ended(command("segskd", "distill", *words))
    assert status == 0, err
    start(made, alone.path, until="blocks")
    choices = [[e.choice for e in one.events() if e.kind == "epoch"] for one in (run, alone)]
    assert choices[0] == pytest.approx(choices[1], rel=1e-3, abs=1e-4)
    best = [1 + of.index(min(of)) for of in choices]
    kept = [cast(Any, one.load_state())["progress"]["phases"][0]["best_epoch"] for one in (run, alone)]
    assert kept == best
    ours, theirs = (load(one.model_folder).state_dict() for one in (run, alone))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-2, atol=1e-3, msg=name)


def _killed_after(epochs: int, process: Any, run: Run) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(event.kind == "epoch" and event.epoch == epochs for event in run.events()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = workers(process, run)
    (others[-1] if others else process).kill()
    assert ended(process)[0] != 0
