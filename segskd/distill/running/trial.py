"""A trial: every phase of a job is timed with a few real images, and the times are scaled up to the whole run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from segskd.callbacks import OnProgress
from segskd.data.samples import Samples
from segskd.devices import synchronise, use_cpu
from segskd.distill.caching.budget import StorePlace
from segskd.distill.caching.contents import Keys
from segskd.distill.caching.store import FeatureStore, Kind
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
    """Samples that measure how long loading took, so that the time of stores can be measured without it."""

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


def run_trial(job: Job, folder: Path, report: OnProgress | None = None) -> Trial:
    """Carries out each phase of `job` with at most two batches of each set of images. This changes its student.

    What a run would write goes to `folder`. `report` hears how many phases are done, and of how many. Raises the
    UserError that would end the run: a file that can't be read, or a loss that isn't finite.
    """
    use_cpu(job.recipe.threads)
    scores = {network: _score_seconds(job, network) for network in (job.teacher, job.student) if network}
    small = _small_job(job, _affordable(sum(scores.values())))
    timer = _PhaseTimer(job, small, Run(folder))
    phases = {}
    for place, phase in enumerate(job.phases):
        if report:
            report(place, len(job.phases))
        phases[phase.name] = timer.seconds(place)
    saving = timer.saving_seconds()
    return Trial(
        {name: seconds + saving for name, seconds in phases.items()},
        sum(scores.values()) * len(job.subset.val),
        sum(file.stat().st_size for file in (folder / "previews").rglob("*.png")),
    )


class _PhaseTimer:
    """Times the phases of a small copy of the job one after the other, with stores that advance as the trainer's do."""

    def __init__(self, job: Job, small: Job, run: Run) -> None:
        self._job = job
        self._small = small
        self._trainer = Trainer(small, run)
        self._stores = Stores(small, run)
        self._device = torch.device(job.recipe.device)
        for store in (self._stores.train, self._stores.holdout, self._stores.val):
            store.samples, store.reads_ahead = TimedSamples(store.samples), False  # so that both can be timed
        self._load_train = _load_seconds(job, [min(view, VIEW_KINDS - 1) for view in range(job.views)])
        self._load_plain = _load_seconds(job, [0])
        self._load_random = _load_seconds(job, [VIEW_KINDS - 1])

    def seconds(self, place: int) -> float:
        """The seconds of the phase at `place` in the whole run, without saving the files at its end."""
        phase = self._small.phases[place]
        freeze([self._small.student.model])
        filling = self._filling(place)
        module = self._small.module(phase)
        module.start_training()
        loop = Loop(self._small, module)
        training = self._training(loop, self._job.phases[place])
        return filling + training + self._validating(loop, self._job.phases[place])

    def saving_seconds(self) -> float:
        """Seconds to write the student and the trainer's state at the end of a phase."""
        started = time.perf_counter()
        save(self._small.student.model, self._trainer.run.path / "student")
        self._trainer.save()
        return time.perf_counter() - started

    def _filling(self, place: int) -> float:
        contents, subset, stores = self._job.plan.contents, self._job.subset, self._stores
        train = self._advance(
            stores.train, contents.train[place], len(subset.train) * self._job.views, self._load_train
        )
        holdout = self._advance(stores.holdout, contents.holdout[place], len(subset.holdout), self._load_plain)
        val = self._advance(stores.val, contents.val[place], len(subset.val), self._load_plain)
        return train + holdout + val

    def _advance(self, store: FeatureStore, wanted: Keys, total: int, load: float) -> float:
        """Advances the small store, and returns the seconds that the whole run's store of `total` samples will take.

        The first chunk of the whole store takes as long as the first one here. Each later chunk takes as long as the
        last one here. `load` is the seconds to load a sample from its files.
        """
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
        """Seconds of all steps: the first as measured, all others as the median of the later ones measured."""
        steps = self._job.steps(phase)
        a_step = len(self._job.images_of(phase)) / self._job.steps_an_epoch(phase)
        few = torch.tensor(self._small.images_of(phase)[: math.ceil(a_step)])
        first = self._step(loop, few)
        times: list[float] = []
        while not times or (first + sum(times) < STEP_SECONDS and len(times) + 1 < steps):
            times.append(self._step(loop, few))
        return (first + (steps - 1) * statistics.median(times)) * a_step / len(few)

    def _step(self, loop: Loop, numbers: Tensor) -> float:
        store = self._stores.training(loop.phase)
        if not isinstance(store.samples, TimedSamples):  # that of a phase with fresh views
            store.samples = TimedSamples(store.samples)
        samples = _timed(store)
        loaded, started = samples.loaded, self._clock(samples)
        loop.step(store.batch(numbers, loop.inputs))
        load = self._load_random if loop.phase.fresh else self._load_train
        return self._clock(samples) - started + load * (samples.loaded - loaded)

    def _validating(self, loop: Loop, phase: Phase) -> float:
        """Seconds of scoring the graft at the end, and of scores during the phase, some of which choose its epoch."""
        grafter, store, val = self._trainer.grafter, self._stores.val, len(self._job.subset.val)
        drawn = self._timed(lambda: grafter.score(loop.phase, store))
        plain = self._timed(lambda: grafter.score(loop.phase, store, draw=False))
        whole = plain * val / store.samples.images
        scores = phase.epochs // max(1, phase.epochs // VALIDATIONS) if phase.whole else 0
        choosing = phase.epochs * self._choosing(loop, whole) if self._job.recipe.select == "best" else 0.0
        return (1 + scores) * (whole + max(0.0, drawn - plain)) + choosing

    def _choosing(self, loop: Loop, score_val: float) -> float:
        """Seconds of one evaluation on the images by which the epoch is chosen."""
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
        """Seconds, without those in which samples were loaded."""
        synchronise(self._device)
        return time.perf_counter() - samples.seconds


def _timed(store: FeatureStore) -> TimedSamples:
    assert isinstance(store.samples, TimedSamples)
    return store.samples


def _score_seconds(job: Job, network: StagedNetwork) -> float:
    """Seconds to evaluate a network on an image, in fp32 as a run does it."""
    predictor = Predictor(network.model, job.card, job.recipe.data.size, job.recipe.device)
    pairs = job.subset.val[:PROBED_IMAGES]
    evaluate(predictor, pairs[:1], batch=1)
    started = time.perf_counter()
    evaluate(predictor, pairs, batch=job.batch)
    return (time.perf_counter() - started) / len(pairs)


def _affordable(image_seconds: float) -> int:
    """How many images both networks can process in about PASS_SECONDS."""
    return max(LEAST_IMAGES, int(PASS_SECONDS / image_seconds))


def _small_job(job: Job, images: int) -> Job:
    """The job with one view of a few images, at most two batches, and phases that don't end."""
    count = min(images, 2 * job.batch)
    data = job.recipe.data.model_copy(update={"views": 1})
    subset = job.subset
    phases = [replace(phase, epochs=ENDLESS) for phase in job.phases]
    kind: Kind = "recompute" if job.plan.store.kind == "recompute" else "memory"
    return replace(
        job,
        recipe=job.recipe.model_copy(update={"data": data}),
        subset=Subset(subset.train[:count], subset.holdout[:count], subset.val[:count]),
        plan=replace(job.plan, phases=phases, store=StorePlace(kind, 0)),
    )


def _load_seconds(job: Job, views: Sequence[int]) -> float:
    """Mean seconds to read an image and make one of these views; view 2 stands for all random ones."""
    pairs = job.subset.train[:PROBED_IMAGES]
    plain = job.feature_store(pairs, VIEW_KINDS, Path()).samples
    seconds = {}
    for view in set(views):
        samples = TimedSamples(plain)
        samples.load(range(view * len(pairs), (view + 1) * len(pairs)))
        seconds[view] = samples.seconds / len(pairs)
    return statistics.mean(seconds[view] for view in views)
