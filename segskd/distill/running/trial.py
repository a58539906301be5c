"""A trial: every phase of a job with a few real images, timed, and reckoned up to the whole run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from segskd.data.samples import Samples
from segskd.devices import synchronise, use_cpu
from segskd.distill.caching.budget import Choice
from segskd.distill.caching.inputs import Keys
from segskd.distill.caching.store import FeatureStore
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import Phase
from segskd.distill.training.job import Job
from segskd.distill.training.loop import Loop, Stores
from segskd.distill.training.trainer import VALIDATIONS, Trainer
from segskd.evaluate.predictor import Predictor, evaluate
from segskd.models.build import save
from segskd.models.stages import StagedNetwork, freeze
from segskd.runs import Run

STEP_SECONDS = 0.3
PASS_SECONDS = 0.5
LEAST_IMAGES, PROBED_IMAGES = 2, 4
VIEW_KINDS = 3
ENDLESS = 10_000

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Trial:
    """Seconds of a run by phase and of its evaluations, and the bytes of its previews."""

    phases: dict[str, float]
    evaluations: float
    preview_bytes: int

    @property
    def seconds(self) -> float:
        """From the first evaluation to the last."""
        return self.evaluations + sum(self.phases.values())


class TimedSamples(Samples):
    """Samples that know how long they took to load, so that stores can be timed without."""

    def __init__(self, samples: Samples) -> None:
        super().__init__(samples.pairs, samples.views, samples.make_view, samples.card)
        self.seconds = 0.0
        self.loaded = 0

    def load(self, numbers: Iterable[int]) -> tuple[Tensor, Tensor]:
        """See Samples.load."""
        started = time.perf_counter()
        images, masks = super().load(numbers)
        self.seconds += time.perf_counter() - started
        self.loaded += len(images)
        return images, masks


def run_trial(job: Job, folder: Path, report: Report | None = None) -> Trial:
    """Carries out each phase of `job` with at most two batches of each set of images; its student is then spoilt.

    `folder` takes what a run would write. `report` hears how many phases are done, and of how many.
    Raises UserError for what would end the run: a file that can't be read, a loss that is no number.
    """
    use_cpu(job.recipe.threads)
    scores = {network: _score_seconds(job, network) for network in (job.teacher, job.student) if network}
    small = _in_small(job, _affordable(sum(scores.values())))
    run = _SmallRun(job, small, Run(folder))
    phases = {}
    for place, phase in enumerate(job.phases):
        if report:
            report(place, len(job.phases))
        phases[phase.name] = run.seconds(place)
    saving = run.saving_seconds()
    return Trial(
        {name: seconds + saving for name, seconds in phases.items()},
        sum(scores.values()) * len(job.subset.val),
        sum(file.stat().st_size for file in (folder / "previews").rglob("*.png")),
    )


class _SmallRun:
    """The job in small, with stores that each phase advances in turn as the trainer does."""

    def __init__(self, job: Job, small: Job, run: Run) -> None:
        self._job = job
        self._small = small
        self._trainer = Trainer(small, run)
        self._stores = Stores(small, run)
        self._device = torch.device(job.recipe.device)
        for store in (self._stores.train, self._stores.holdout, self._stores.val):
            store.samples, store.reads_ahead = TimedSamples(store.samples), False  # so that both can be told apart
        views = job.recipe.data.views or 1
        self._load_train = _load_seconds(job, [min(view, VIEW_KINDS - 1) for view in range(views)])
        self._load_plain = _load_seconds(job, [0])

    def seconds(self, place: int) -> float:
        """What the phase at that place takes in the whole run, but for the files that it saves at its end."""
        phase = self._small.phases[place]
        freeze([self._small.student.model])
        filling = self._filling(place)
        module = self._small.module(phase)
        module.start_training()
        loop = Loop(self._small, module)
        training = self._training(loop, self._job.phases[place])
        return filling + training + self._validating(loop, self._job.phases[place])

    def saving_seconds(self) -> float:
        """Writing the student and the trainer's state at the end of a phase."""
        started = time.perf_counter()
        save(self._small.student.model, self._trainer.run.path / "student")
        self._trainer.save()
        return time.perf_counter() - started

    def _filling(self, place: int) -> float:
        held, subset, stores = self._job.contents, self._job.subset, self._stores
        views = self._job.recipe.data.views or 1
        train = self._advance(stores.train, held.train[place], len(subset.train) * views, self._load_train)
        holdout = self._advance(stores.holdout, held.holdout[place], len(subset.holdout), self._load_plain)
        val = self._advance(stores.val, held.val[place], len(subset.val), self._load_plain)
        return train + holdout + val

    def _advance(self, store: FeatureStore, wanted: Keys, total: int, load: float) -> float:
        """Advances the small store; seconds of the whole one: its first chunk as here, all others as the last here."""
        samples = _timed(store)
        loaded = samples.loaded
        marks = [(0, self._clock(samples))]
        store.advance(wanted, lambda done, _: marks.append((done, self._clock(samples))))
        if len(marks) == 1:
            return 0.0
        (_, start), (first, after_first), *_ = marks
        (before, since), (last, until) = marks[-2:]
        others = (total - first) * (until - since) / (last - before)
        return after_first - start + others + load * total * (samples.loaded > loaded)

    def _training(self, loop: Loop, phase: Phase) -> float:
        """The first step as it was, all others as the median of those that follow here."""
        steps = self._job.steps(phase)
        a_step = len(self._job.images_of(phase)) / self._job.steps_an_epoch(phase)
        few = torch.tensor(self._small.images_of(phase)[: math.ceil(a_step)])
        first = self._step(loop, few)
        times: list[float] = []
        while not times or (first + sum(times) < STEP_SECONDS and len(times) + 1 < steps):
            times.append(self._step(loop, few))
        return (first + (steps - 1) * statistics.median(times)) * a_step / len(few)

    def _step(self, loop: Loop, numbers: Tensor) -> float:
        samples = _timed(self._stores.train)
        loaded, started = samples.loaded, self._clock(samples)
        loop.step(self._stores.train.batch(numbers, loop.needs))
        return self._clock(samples) - started + self._load_train * (samples.loaded - loaded)

    def _validating(self, loop: Loop, phase: Phase) -> float:
        """The graft at the end, and what epochs are chosen by or told of on the way."""
        grafter, store, val = self._trainer.grafter, self._stores.val, len(self._job.subset.val)
        drawn = self._timed(lambda: grafter.score(loop.phase, store))
        plain = self._timed(lambda: grafter.score(loop.phase, store, draw=False))
        whole = plain * val / store.samples.images
        told = phase.epochs // max(1, phase.epochs // VALIDATIONS) if phase.whole else 0
        chosen = phase.epochs * self._choosing(loop, whole) if self._job.recipe.select == "best" else 0.0
        return (1 + told) * (whole + max(0.0, drawn - plain)) + chosen

    def _choosing(self, loop: Loop, score_val: float) -> float:
        """One look at the images that the epoch is chosen on."""
        recipe, subset = self._job.recipe, self._job.subset
        if loop.phase.labels:
            return score_val * (len(subset.holdout) / len(subset.val) if recipe.select_on == "holdout" else 1)
        store, total = self._stores.val, len(subset.val)
        if recipe.select_on == "holdout":
            store, total = self._stores.holdout, len(subset.holdout)
        with torch.no_grad():
            taken = self._timed(lambda: [loop.evaluated(batch) for batch in store.batches(loop.evaluated_on)])
        return taken * total / store.samples.images

    def _timed(self, work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        synchronise(self._device)
        return time.perf_counter() - started

    def _clock(self, samples: TimedSamples) -> float:
        """Seconds, leaving out those in which samples were loaded."""
        synchronise(self._device)
        return time.perf_counter() - samples.seconds


def _timed(store: FeatureStore) -> TimedSamples:
    assert isinstance(store.samples, TimedSamples)
    return store.samples


def _score_seconds(job: Job, network: StagedNetwork) -> float:
    """Seconds an image in which a network is evaluated, in fp32 as a run does it."""
    predictor = Predictor(network.model, job.card, job.recipe.data.size, job.recipe.device)
    pairs = job.subset.val[:PROBED_IMAGES]
    evaluate(predictor, pairs[:1], batch=1)
    started = time.perf_counter()
    evaluate(predictor, pairs, batch=job.batch)
    return (time.perf_counter() - started) / len(pairs)


def _affordable(image_seconds: float) -> int:
    """How many images may go through both networks in about PASS_SECONDS."""
    return max(LEAST_IMAGES, int(PASS_SECONDS / image_seconds))


def _in_small(job: Job, images: int) -> Job:
    """The same job with one view of a few images, two batches at most, and phases that don't end."""
    count = min(images, 2 * job.batch)
    data = job.recipe.data.model_copy(update={"views": 1})
    subset = job.subset
    return replace(
        job,
        recipe=job.recipe.model_copy(update={"data": data}),
        subset=Subset(subset.train[:count], subset.holdout[:count], subset.val[:count]),
        phases=[replace(phase, epochs=ENDLESS) for phase in job.phases],
        store=Choice("recompute" if job.store.kind == "recompute" else "memory", 1, 0),
    )


def _load_seconds(job: Job, views: Sequence[int]) -> float:
    """Seconds an image in which these views are read and made, on the average; view 2 stands for all random ones."""
    pairs = job.subset.train[:PROBED_IMAGES]
    plain = job.feature_store(pairs, VIEW_KINDS, Path()).samples
    seconds = {}
    for view in set(views):
        samples = TimedSamples(plain)
        samples.load(range(view * len(pairs), (view + 1) * len(pairs)))
        seconds[view] = samples.seconds / len(pairs)
    return statistics.mean(seconds[view] for view in views)
