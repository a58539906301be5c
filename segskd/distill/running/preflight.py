"""Pre-flight: how much time, memory and disk a run will need, and whether it fits, before it begins."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe, named
from segskd.devices import choose_device, choose_precision, free_device_memory
from segskd.distill.caching.budget import ADAM_COPIES, GIB, Sizes
from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, reach
from segskd.distill.planning.settle import changed
from segskd.distill.running.prepare import prepare
from segskd.distill.running.trial import Trial, run_trial
from segskd.distill.training.job import DTYPES, Job
from segskd.distill.training.networks import step_bytes
from segskd.errors import NoRoom, in_flags
from segskd.evaluate.cost import weight_bytes

# Memory of Python and its libraries in a worker, before there is a network. This process uses as much already, and
# gives it back before the run begins.
LIBRARIES = GIB // 2
TIMING_PHASES = "timing a few steps of each phase"


@dataclass(frozen=True)
class Preflight:
    """What a run will need, in seconds and bytes. Figures that are unknown for a job that doesn't fit are None.

    `seconds` counts from the first evaluation to the last; `phases` has {"phase", "seconds"} for each phase.
    `memory_bytes` is the run's peak where the networks compute, `free_memory` what is free there. `disk_bytes` is the
    most that is on disk at once. `largest_batch` is the largest batch that fits, 0 when none does. `epochs` are those
    of a stage. `problem` says in one line why the run doesn't fit, and what to change; `template` is the same with
    marks for the names of fields (see `errors`).
    """

    seconds: float | None
    phases: list[dict[str, Any]]
    memory_bytes: int
    free_memory: int
    disk_bytes: int | None
    free_disk: int
    batch: int
    largest_batch: int
    store: str | None
    store_bytes: int | None
    views: int | None
    images: int | None
    epochs: int | None
    fits: bool
    template: str | None
    device: str
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "problem": self.problem}

    @property
    def problem(self) -> str | None:
        return self.template and in_flags(self.template)


def preflight(recipe: Recipe, folder: Path, report: OnActivity | None = None) -> Preflight:
    """Prepares the job as a run in `folder` would, and times a few steps of each phase; nothing is written there.

    Raises the UserError that would end the run, except for too little memory or disk, which is an answer.
    """
    device = torch.device(choose_device(recipe.device))
    free = free_device_memory(device) + _libraries(device.type)
    try:
        job = prepare(recipe, folder, report=report)
    except NoRoom as error:
        return _too_large(recipe, folder, error)
    counted = _counted(job, folder, free)
    if not counted.fits:
        return counted
    with tempfile.TemporaryDirectory(prefix="segskd-") as scratch:
        trial = run_trial(job, Path(scratch), report and (lambda done, total: report(TIMING_PHASES, done, total)))
    return _timed(counted, trial)


def _counted(job: Job, folder: Path, free: int) -> Preflight:
    """The result without seconds: what can be counted before anything is computed."""
    forecast = MemoryForecast(job)
    memory = forecast.bytes(job.batch)
    images = len(job.subset.train)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    counted = Preflight(
        seconds=None,
        phases=[],
        memory_bytes=memory,
        free_memory=free,
        disk_bytes=_disk_bytes(job),
        free_disk=shutil.disk_usage(place).free,
        batch=job.batch,
        largest_batch=min(images, forecast.largest_batch(free)),
        store=job.plan.store.kind,
        store_bytes=job.plan.store.bytes,
        views=job.recipe.data.views,
        images=images,
        epochs=job.recipe.optimisation.epochs,
        fits=True,
        template=None,
        device=job.recipe.device,
        precision=job.recipe.precision,
    )
    problem = _problem(counted)
    return replace(counted, fits=problem is None, template=problem)


def _timed(counted: Preflight, trial: Trial) -> Preflight:
    """The result with seconds, and with the previews' bytes on disk."""
    phases = [{"phase": name, "seconds": round(seconds, 3)} for name, seconds in trial.phases.items()]
    disk = (counted.disk_bytes or 0) + trial.preview_bytes
    counted = replace(counted, seconds=round(trial.seconds, 3), phases=phases, disk_bytes=disk)
    problem = _problem(counted)
    return replace(counted, fits=problem is None, template=problem)


def _problem(counted: Preflight) -> str | None:
    if counted.memory_bytes > counted.free_memory:
        largest = f"{named('optimisation.batch')} {counted.largest_batch}"
        smaller = f"take {largest}" if counted.largest_batch else f"take a smaller {named('data.size')}"
        smaller += f", or a smaller {named('store.budget_gib')}" * (counted.store == "memory")
        return (
            f"the run needs about {_gib(counted.memory_bytes)} of memory and {_gib(counted.free_memory)} are free: "
            f"{smaller}"
        )
    if counted.disk_bytes is not None and counted.disk_bytes > counted.free_disk:
        fewer = f", or take fewer {named('data.views')} or {named('store.kind')} recompute"
        smaller = fewer * (counted.store == "disk")
        return (
            f"the run needs about {_gib(counted.disk_bytes)} of disk and {_gib(counted.free_disk)} are free: "
            f"free some space there{smaller}"
        )
    return None


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _too_large(recipe: Recipe, folder: Path, error: NoRoom) -> Preflight:
    """What is known of a job that `prepare` refuses, from the same job with one image a step and no store."""
    smallest = {"optimisation": {"batch": 1}}
    job: Job | None
    try:
        job = prepare(changed(recipe, smallest), folder, kind="recompute")
    except NoRoom:
        job = None
    device = choose_device(recipe.device)
    free = error.free + _libraries(device)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    images = len(job.subset.train) if job else None
    return Preflight(
        seconds=None,
        phases=[],
        memory_bytes=error.needed + _libraries(device),
        free_memory=free,
        disk_bytes=None,
        free_disk=shutil.disk_usage(place).free,
        batch=min(recipe.optimisation.batch, images or recipe.optimisation.batch),
        largest_batch=min(len(job.subset.train), MemoryForecast(job).largest_batch(free)) if job else 0,
        store=None,
        store_bytes=None,
        views=None,
        images=images,
        epochs=job.recipe.optimisation.epochs if job else None,
        fits=False,
        template=error.template,
        device=device,
        precision=choose_precision(recipe.precision, device),
    )


class MemoryForecast:
    """A run's peak of memory where its networks compute; it grows linearly with the images of a batch."""

    def __init__(self, job: Job) -> None:
        device = job.recipe.device
        modules = [
            *(network.model for network in job.networks.by_name.values()),
            job.networks.adapters,
            job.networks.discriminators,
        ]
        self._fixed = sum(weight_bytes(module) for module in modules)
        self._fixed += _libraries(device)
        if device != "cuda" and job.plan.store.kind == "memory":
            self._fixed += job.plan.store.bytes
        on_meta = job.on_meta
        self._steps = [[step_bytes(on_meta, phase, batch) for batch in (1, 2)] for phase in job.phases]
        self._chunk = _chunk_bytes(job)

    def bytes(self, batch: int) -> int:
        """The peak with so many images a step."""
        return self._fixed + max(*(one + (batch - 1) * (two - one) for one, two in self._steps), self._chunk * batch)

    def largest_batch(self, free: int) -> int:
        """The most images a step that fit into `free` bytes; 0 when not even one fits."""
        room = free - self._fixed
        batches = [1 + (room - one) // (two - one) for one, two in self._steps]
        return max(0, min(*batches, room // self._chunk))


def _libraries(device: str) -> int:
    """Bytes of LIBRARIES where the networks compute: none in a GPU's memory."""
    return 0 if device == "cuda" else LIBRARIES


def _chunk_bytes(job: Job) -> int:
    """Bytes an image while a store is filled: what it holds, what it will hold, and all features on the way."""
    sizes = Sizes(
        job.networks.by_name, job.size, DTYPES[job.recipe.precision]
    )  # in their own precision, even if the store has 8 bits
    most, files = 0, frozenset({IMAGE_KEY, MASK_KEY})
    for contents in (job.plan.contents.train, job.plan.contents.holdout, job.plan.contents.val):
        known = files
        for wanted in contents:
            most = max(most, sum(sizes.of(key) for key in reach(known, wanted, job.networks.by_name)))
            known = files if job.plan.store.kind == "recompute" else files | wanted
    return most


def _disk_bytes(job: Job) -> int:
    """The store, the student, snapshots, and the state twice, because the new state is written beside the old."""
    student = weight_bytes(job.student.model)
    moments, discriminators = 0, 0
    for phase in job.phases:
        module = job.on_meta.module(phase)
        trained = sum(p.numel() * p.element_size() for p in module.trained_parameters())
        moments = max(moments, (ADAM_COPIES - 2) * trained)
        discriminators = max(discriminators, weight_bytes(module.discriminators))
    best = (student + discriminators) * (job.recipe.select == "best")
    state = student + weight_bytes(job.networks.adapters) + moments + discriminators + best
    snapshots = student * max(len(phase.snapshots) for phase in job.phases)
    return snapshots + student + 2 * state + (job.plan.store.bytes if job.plan.store.kind == "disk" else 0)
