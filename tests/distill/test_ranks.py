"""Several processes on one run: the same figures as one process that normalises each part of a batch by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from processes import PATIENCE, began, command, ended, workers
from torch import Tensor

from segskd.config import Recipe
from segskd.distill.caching.store import Batch
from segskd.distill.running.prepare import prepare
from segskd.distill.running.session import resume, start
from segskd.distill.training.job import Job
from segskd.distill.training.module import PhaseModule, epoch_batches
from segskd.distill.training.ranks import Ranks, gather_ranks, is_first, started_by_others
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor, evaluate
from segskd.models.build import load
from segskd.models.stages import freeze
from segskd.runs import Run

pytestmark = pytest.mark.slow


class Halves:
    """A phase trained by one process as two would: each half of a batch with running statistics of its own."""

    def __init__(self, job: Job, module: PhaseModule) -> None:
        self.job, self.module = job, module
        self.store = job.feature_store(job.subset.train, job.recipe.data.views or 1, Path())
        self.statistics: list[dict[str, Tensor]] = [self._buffers(), self._buffers()]

    def train(self, place: int) -> list[float]:
        """The losses of the phase's epochs."""
        job, module, phase = self.job, self.module, self.job.phases[place]
        freeze([job.student.model])
        self.store.advance(job.plan.contents.train[place])
        module.start_training()
        rate = job.recipe.optimisation.lr or 0.0
        optimiser = torch.optim.Adam(module.trained_parameters(), lr=rate)
        steps = job.steps_an_epoch(phase)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=phase.epochs * steps)
        losses = []
        for epoch in range(phase.epochs):
            total = 0.0
            for halves in zip(*(self._batches(place, epoch, half) for half in (0, 1)), strict=True):
                images = sum(len(numbers) for numbers in halves)
                optimiser.zero_grad()
                batches = [self.store.batch(numbers) for numbers in halves]
                weights = [len(numbers) / images for numbers in halves]
                if phase.labels:
                    counted = [int((batch.mask != job.card.ignore_index).sum()) for batch in batches]
                    weights = [pixels / sum(counted) for pixels in counted]
                for half, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
                    loss = self._loss(half, batch) * weight
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                optimiser.step()
                schedule.step()
            losses.append(total / steps)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_((self.statistics[0][name] + self.statistics[1][name]) / 2)
        return losses

    def _batches(self, place: int, epoch: int, half: int) -> list[Tensor]:
        """Sample numbers of a half, whose images are every second one."""
        job, phase = self.job, self.job.phases[place]
        own = list(range(half, len(job.subset.train), 2))
        views, steps = job.recipe.data.views or 1, job.steps_an_epoch(phase)
        made = epoch_batches(job.recipe.seed, phase.name, epoch, range(len(own)), len(own), views, steps)
        whole = len(job.subset.train)
        return [torch.tensor([n // len(own) * whole + own[n % len(own)] for n in part.tolist()]) for part in made]

    def _loss(self, half: int, batch: Batch) -> Tensor:
        for name, buffer in self.module.named_buffers():
            buffer.copy_(self.statistics[half][name])
        loss: Tensor = self.module(batch)["loss"]
        self.statistics[half] = self._buffers()
        return loss

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}


def test_steps_do_not_ask_for_gpus_by_the_slow_way_that_lightning_sets() -> None:
    program = "import os, segskd.distill.training.ranks; print(os.environ.get('PYTORCH_NVML_BASED_CUDA_CHECK'))"
    assert subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout == b"None\n"


@pytest.fixture
def asked(recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        # Few and small steps: Adam makes much of gradients that are nothing but rounding.
        part = {"epochs": 2, "batch": 6, "lr": 1e-4}
        return recipe(**{"subset": {"count": 11}, "optimisation": part, "threads": 1, **changes})

    return make


def test_two_processes_of_which_one_is_killed_train_what_one_would_on_halves(
    asked: Callable[..., Recipe], tmp_path: Path
) -> None:
    made, run = asked(checkpoint_seconds=0.0), Run(tmp_path / "run")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "--")
    process = command(*torchrun, "segskd", "distill", "--recipe", began(made, tmp_path), "--run", run.path)
    deadline = time.monotonic() + PATIENCE
    while not any(event.kind == "epoch" and event.phase == "encoder.2" for event in run.events()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers(process, run)[-1].kill()
    status, out, err = ended(process)
    assert (status != 0, out, run.status()) == (True, "", "failed")
    assert "another process of the run ended" in err
    assert (run.recipe.devices, run.recipe.nodes) == (2, 1)

    status, out, err = ended(command("segskd", "resume", run.path, "--json"))
    assert status == 0, err
    (line,) = out.splitlines()  # the other process says nothing
    result = json.loads(line)
    job = prepare(made, tmp_path / "other")
    told = {(event.phase, event.epoch): event.loss for event in run.events() if event.kind == "epoch"}
    for place, phase in enumerate(job.phases):
        losses = Halves(job, job.module(phase)).train(place)
        assert [told[phase.name, epoch] for epoch in (1, 2)] == pytest.approx(losses, rel=1e-4, abs=1e-5), phase.name
    theirs, before = load(run.model_folder).state_dict(), prepare(made, tmp_path / "other").student.model.state_dict()
    for name, value in job.student.model.state_dict().items():
        if name.endswith("block.1.0.bias"):  # batch normalisation behind it takes it away: it has no gradient but noise
            continue
        # Adam makes a whole step of a gradient that is nothing but rounding, so single weights may be apart.
        moved, apart = (value - before[name]).double(), (theirs[name] - value).double()
        assert apart.norm() <= 0.05 * moved.norm(), name
        assert (apart.abs() > 1e-4).double().mean() < 0.01, name
    assert (result["student"]["images"], result["image_passes"]) == (4, 11 * 2 * 11)
    job.student.model.eval()
    score = evaluate(Predictor(job.student.model, job.card, job.recipe.data.size), job.subset.val)
    assert result["miou"] == pytest.approx(score.miou, abs=1e-3)
    assert sorted(path.name for path in (run.path / "previews" / "head").iterdir()) == [
        f"b{n:02}.png" for n in range(4)
    ]
    assert not (run.path / "store").exists()


def test_what_ends_the_first_process_ends_the_others_without_a_word(
    asked: Callable[..., Recipe], tmp_path: Path
) -> None:
    made = asked(teacher=str(tmp_path / "nothing"))
    words = ("--recipe", began(made, tmp_path), "--run", tmp_path / "run", "--devices", 2)
    status, out, err = ended(command("segskd", "distill", *words))
    assert (status, out) == (2, "")
    assert len([line for line in err.splitlines() if line.startswith("segskd: ")]) == 1, err


def test_too_few_images_for_so_many_processes(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    ranks = SimpleNamespace(count=4, number=0)
    with pytest.raises(UserError, match=r"4 processes need a --batch of 8 at least .* these are 6 and 11: take fewer"):
        prepare(asked(), tmp_path, ranks=cast(Any, ranks))


def test_a_part_is_every_so_manyth_image(asked: Callable[..., Recipe], tmp_path: Path) -> None:
    """The labelled images come first, so that each part has as many of them as the others, give or take one."""
    made = asked(subset={"labels": 0.5})
    jobs = [prepare(made, tmp_path, ranks=_part(number)) for number in (0, 1)]
    whole = [image.name for image in jobs[0].subset.train]
    parts = [[image.name for image in job.ranks.part(job.subset.train)] for job in jobs]
    assert parts == [whole[::2], whole[1::2]]
    head = jobs[0].phases[-1]
    own = [[parts[number][place] for place in job.own_images_of(head)] for number, job in enumerate(jobs)]
    assert sorted(own[0] + own[1]) == sorted(whole[:6])
    assert [len(names) for names in own] == [3, 3]


def test_unused_adapters_and_fewer_processes_later(
    asked: Callable[..., Recipe], wide_teacher: Path, tmp_path: Path
) -> None:
    """Each phase trains one of many adapters; DDP must not wait for the others."""
    small = {"epochs": 1, "batch": 6}
    made = asked(teacher=str(wide_teacher), subset={"count": 8}, optimisation=small)
    assert len(prepare(made, tmp_path / "other").networks.adapters) > 1
    run = Run(tmp_path / "run")
    words = ("--recipe", began(made, tmp_path), "--run", run.path, "--devices", 2, "--until", "encoder.3")
    status, out, err = ended(command("segskd", "distill", *words))
    assert status == 0, err
    assert "stopped after encoder.3" in out
    status, out, err = ended(command("segskd", "resume", run.path, "--devices", 1, "--json"))
    assert status == 0, err
    assert json.loads(out)["student"]["images"] == 4


SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_NAME": "train"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "6", "RANK": "3", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("environment", "processes", "first"),
    [
        ({}, None, True),
        (TORCHRUN, (2, 3), False),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, (2, 3), True),
        (SRUN, (2, 2), False),
        ({**SRUN, "SLURM_PROCID": "0"}, (2, 2), True),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, None, True),  # one shell in a job of several tasks
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}, None, True),  # sbatch without srun
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, None, False),  # started by the first process
    ],
)
def test_who_started_the_processes(
    environment: dict[str, str], processes: tuple[int, int] | None, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (started_by_others(), is_first()) == (processes, first)


def test_machines_that_nobody_has_named(asked: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    for name in ("MASTER_PORT", "NODE_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="--nodes 2: MASTER_PORT, NODE_RANK must say where the others are"):
        gather_ranks(asked(nodes=2))


def test_normalisation_over_one_device_is_refused_but_a_run_that_had_more_goes_on(
    asked: Callable[..., Recipe], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--sync-batchnorm is for several GPUs, and this run has 1 cpu device: leave"):
        prepare(asked(sync_batchnorm=True), tmp_path / "refused")
    start(asked(), tmp_path / "run", until="encoder.0")
    run = Run(tmp_path / "run")
    recipe = run.path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("sync_batchnorm: false", "sync_batchnorm: true"))
    assert Run(run.path).recipe.sync_batchnorm
    assert resume(Run(run.path), until="encoder.1")["after"] == "encoder.1"


def _part(number: int) -> Ranks:
    ranks = object.__new__(Ranks)
    ranks.number, ranks.count = number, 2
    return ranks
