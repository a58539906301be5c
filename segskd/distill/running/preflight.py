"""Pre-flight: what a run will take in time, memory and disk, and whether it fits, before it begins."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe, make_recipe, merged
from segskd.devices import choose_device, choose_precision, free_device_memory
from segskd.distill.caching.budget import ADAM_COPIES, GIB, Sizes
from segskd.distill.caching.inputs import IMAGE_KEY, MASK_KEY, reach
from segskd.distill.running.prepare import prepare
from segskd.distill.running.trial import Trial, run_trial
from segskd.distill.training.job import DTYPES, Job
from segskd.distill.training.meta import step_bytes
from segskd.errors import NoRoom
from segskd.evaluate.cost import weight_bytes

# What Python and its libraries take of a worker's memory before there is a network; this process holds as much
# already, and gives it back before the run begins.
LIBRARIES = GIB // 2
TRYING = "timing a few steps of each phase"


@dataclass(frozen=True)
class Preflight:
    """What a run will take; seconds and bytes. What can't be told of a job that doesn't fit is None.

    `seconds` counts from the first evaluation to the last, `phases` holds {"phase", "seconds"} of each phase.
    `memory_bytes` is the run's peak where the networks compute, `free_memory` what is free there. `disk_bytes`
    is the most that lies on disk at once. `largest_batch` is the largest that fits, 0 when none does. `epochs`
    are those a stage. `problem` says in one line why the run doesn't fit, and what to change.
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
    problem: str | None
    device: str
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def preflight(recipe: Recipe, folder: Path, report: OnActivity | None = None) -> Preflight:
    """Prepares the job as a run in `folder` would, and times a few steps of each phase; nothing is written there.

    Raises UserError for everything that has nothing to do with room: those a run would end with, too.
    """
    device = torch.device(choose_device(recipe.device))
    free = free_device_memory(device) + _libraries(device.type)
    try:
        job = prepare(recipe, folder, report=report)
    except NoRoom as error:
        return _too_large(recipe, folder, error)
    found = _counted(job, folder, free)
    if not found.fits:
        return found
    with tempfile.TemporaryDirectory(prefix="segskd-") as scratch:
        trial = run_trial(job, Path(scratch), report and (lambda done, total: report(TRYING, done, total)))
    return _timed(found, trial)


def _counted(job: Job, folder: Path, free: int) -> Preflight:
    """The result without seconds: what can be counted without computing anything."""
    needs = MemoryForecast(job)
    memory = needs.bytes(job.batch)
    images = len(job.subset.train)
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    found = Preflight(
        seconds=None,
        phases=[],
        memory_bytes=memory,
        free_memory=free,
        disk_bytes=_disk_bytes(job),
        free_disk=shutil.disk_usage(place).free,
        batch=job.batch,
        largest_batch=min(images, needs.largest_batch(free)),
        store=job.store.kind,
        store_bytes=job.store.bytes,
        views=job.recipe.data.views,
        images=images,
        epochs=job.recipe.optimisation.epochs,
        fits=True,
        problem=None,
        device=job.recipe.device,
        precision=job.recipe.precision,
    )
    problem = _problem(found)
    return replace(found, fits=problem is None, problem=problem)


def _timed(found: Preflight, trial: Trial) -> Preflight:
    """With the seconds, and the previews' bytes on disk."""
    phases = [{"phase": name, "seconds": round(seconds, 3)} for name, seconds in trial.phases.items()]
    disk = (found.disk_bytes or 0) + trial.preview_bytes
    found = replace(found, seconds=round(trial.seconds, 3), phases=phases, disk_bytes=disk)
    problem = _problem(found)
    return replace(found, fits=problem is None, problem=problem)


def _problem(found: Preflight) -> str | None:
    if found.memory_bytes > found.free_memory:
        smaller = f"take --batch {found.largest_batch}" if found.largest_batch else "take a smaller --size"
        return (
            f"the run needs about {_gib(found.memory_bytes)} of memory and {_gib(found.free_memory)} are free: "
            f"{smaller}{', or a smaller --store-budget' * (found.store == 'memory')}"
        )
    if found.disk_bytes is not None and found.disk_bytes > found.free_disk:
        smaller = ", or take fewer --views or --store recompute" * (found.store == "disk")
        return (
            f"the run needs about {_gib(found.disk_bytes)} of disk and {_gib(found.free_disk)} are free: "
            f"free some space there{smaller}"
        )
    return None


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def _too_large(recipe: Recipe, folder: Path, error: NoRoom) -> Preflight:
    """What can be told of a job that `prepare` refuses: what it would be with one image a step, features recomputed."""
    least = {"optimisation": {"batch": 1}}
    job: Job | None
    try:
        job = prepare(make_recipe(merged(recipe.model_dump(mode="json"), least)), folder, kind="recompute")
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
        problem=str(error),
        device=device,
        precision=choose_precision(recipe.precision, device),
    )


class MemoryForecast:
    """A run's peak of memory where its networks compute, as a line over the images of a batch."""

    def __init__(self, job: Job) -> None:
        device = job.recipe.device
        modules = [*(network.model for network in job.by_owner.values()), job.adapters, job.discriminators]
        self._fixed = sum(weight_bytes(module) for module in modules)
        self._fixed += _libraries(device)
        if device != "cuda" and job.store.kind == "memory":
            self._fixed += job.store.bytes
        on_meta = job.on_meta
        self._steps = [[step_bytes(on_meta, phase, batch) for batch in (1, 2)] for phase in job.phases]
        self._chunk = _chunk_bytes(job)

    def bytes(self, batch: int) -> int:
        """At that many images a step."""
        return self._fixed + max(*(one + (batch - 1) * (two - one) for one, two in self._steps), self._chunk * batch)

    def largest_batch(self, free: int) -> int:
        """The most images a step that fit into `free` bytes; 0 when not even one does."""
        room = free - self._fixed
        batches = [1 + (room - one) // (two - one) for one, two in self._steps]
        return max(0, min(*batches, room // self._chunk))


def _libraries(device: str) -> int:
    """Bytes of LIBRARIES where the networks compute: none beside a GPU's own memory."""
    return 0 if device == "cuda" else LIBRARIES


def _chunk_bytes(job: Job) -> int:
    """Bytes an image when a store is filled: what it holds, and what is computed on the way to what it will hold."""
    sizes = Sizes(job.by_owner, job.size, DTYPES[job.recipe.precision])  # as they come, whatever is kept
    most, files = 0, frozenset({IMAGE_KEY, MASK_KEY})
    for held in (job.contents.train, job.contents.holdout, job.contents.val):
        known = files
        for wanted in held:
            most = max(most, sum(sizes.of(key) for key in reach(known, wanted, job.by_owner)))
            known = files if job.store.kind == "recompute" else files | wanted
    return most


def _disk_bytes(job: Job) -> int:
    """The store, the student, and the state twice: the new one is written beside the old."""
    student = weight_bytes(job.student.model)
    moments, discriminators = 0, 0
    for phase in job.phases:
        module = job.on_meta.module(phase)
        trained = sum(p.numel() * p.element_size() for p in module.trained_parameters())
        moments = max(moments, (ADAM_COPIES - 2) * trained)
        discriminators = max(discriminators, weight_bytes(module.discriminators))
    best = (student + discriminators) * (job.recipe.select == "best")
    state = student + weight_bytes(job.adapters) + moments + discriminators + best
    snapshots = student * max(len(phase.snapshots) for phase in job.phases)
    return snapshots + student + 2 * state + (job.store.bytes if job.store.kind == "disk" else 0)
