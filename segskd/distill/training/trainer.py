"""The one training loop: carries out the phases of any method, and can be resumed at every step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from segskd.devices import use_cpu
from segskd.distill.caching.budget import FEWEST_VIEWS
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.training.graft_scores import GraftScorer
from segskd.distill.training.job import Job
from segskd.distill.training.loop import Loop, Stores
from segskd.distill.training.module import epoch_batches
from segskd.distill.training.placement import PlacedLoop, Placement, place, step_seconds
from segskd.errors import Stopped, UserError
from segskd.events import (
    EpochEvent,
    FillingEvent,
    GraftEvent,
    PausedEvent,
    PhaseEndEvent,
    PhaseStartEvent,
    PlacedEvent,
    ResumedEvent,
    SkippedEvent,
    StepEvent,
    StoppedEvent,
)
from segskd.models.build import SNAPSHOTS, digest, save
from segskd.models.stages import freeze
from segskd.runs import Run

STEP_EVENT_SECONDS = 0.5
VALIDATIONS = 10
EQUAL = {None: 1e-5, 8: 1e-3}
"""Features count as equal below this squared error, as a share of the teacher's squares: in bf16, and in 8 bits."""
FALL = 0.01
"""A loss has stalled when it falls by less than this share."""
RISE = 0.3
"""Share of a phase in which the rate of OneCycle rises."""
FORMAT = 1


@dataclass
class Position:
    """Where the training of a run stands; plain values, saved in state.pt as "progress"."""

    phase: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    loss_sum: float = 0.0
    loss: float = math.nan
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    placement: Placement = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)


def has_stalled(losses: Sequence[float], patience: int, views: int) -> bool:
    """Whether the loss fell by less than 1 % in the last `patience` epochs, as a mean over as many epochs as views."""
    if len(losses) < patience + views:
        return False
    now, before = (fmean(losses[end - views : end]) for end in (len(losses), len(losses) - patience))
    return now > (1 - FALL) * before


class _Clock:
    """Seconds that a phase has taken, with those before an interruption."""

    def __init__(self, before: Position) -> None:
        self._wall = time.monotonic() - before.seconds
        self._cpu = time.process_time() - before.cpu_seconds

    def read(self) -> tuple[float, float]:
        """(wall seconds, CPU seconds of this process)."""
        return time.monotonic() - self._wall, time.process_time() - self._cpu


class Trainer:
    """Trains a job's student into its run directory."""

    def __init__(self, job: Job, run: Run) -> None:
        self.job = job
        self.run = run
        self.progress = Position()
        recipe = job.recipe
        use_cpu(recipe.threads)
        self.ranks = job.ranks
        self.grafter = GraftScorer(job, run)
        self._stores = Stores(job, run)
        self._stored = 0
        self._teacher_digest = digest(job.teacher.model) if job.teacher else ""
        self._snapshot_digests = {
            name: digest(net.model) for name, net in job.networks.teachers.items() if name != TEACHER
        }
        self._inside: dict[str, Any] = {}
        self._best_weights: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()
        self._told_at = 0.0

    def train(self, until: str | None = None) -> bool:
        """Trains the phases that remain, up to the one named `until`. True when every phase is finished.

        Raises Stopped, after saving, when the run is asked to stop; UserError for what the user can mend.
        """
        self._restore()
        names = [phase.name for phase in self.job.phases]
        end = len(names) if until is None else names.index(until) + 1
        try:
            while self.progress.phase < end:
                self._train_phase(self.job.phases[self.progress.phase])
        finally:
            self._stores.close()
        if self.progress.phase < len(names):
            self.run.record(PausedEvent(after=names[self.progress.phase - 1]))
            return False
        return True

    # -- one phase ----------------------------------------------------------------------------------

    def _train_phase(self, phase: Phase) -> None:
        clock = _Clock(self.progress)
        self._tell_phase_start(phase)
        loop = self._loop(phase)
        self._advance_stores(loop)
        loop.module.start_training()
        loop.restore(self._inside)
        if not self._nothing_to_learn(loop):
            while self.progress.epoch < phase.epochs:
                self._skip_if_stalled(loop)
                self._train_epoch(loop, self.progress.epoch, clock)
        self._finish_phase(phase, loop, clock)

    def _advance_stores(self, loop: Loop) -> None:
        """Fills the stores for the loop's phase.

        Features in 8 bits depend on the stored features that they were computed from. The stores of a resumed run
        therefore go through all earlier phases.
        """
        freeze([self.job.student.model])
        now = self.progress.phase
        for before in range(self._stored, now) if self.job.store_bits else ():
            self._stores.advance(before, self._tell_store)
        self._stores.advance(now, self._tell_store, loop.inputs if self.job.placed(loop.phase) else None)
        self._stored = now + 1

    def _loop(self, phase: Phase) -> Loop:
        """The phase's loop. Processes that train some of the stages each share them out by the time of a step."""
        if not self.job.placed(phase):
            module = self.job.module(phase)
            module.start_training()
            return Loop(self.job, module)
        if len(self.progress.placement) != self.ranks.count:
            seconds = self.ranks.same(self.ranks.attempt(lambda: step_seconds(self.job, phase)))
            self.progress.placement = place(seconds, self.ranks.count)
            self.run.record(PlacedEvent(phase=phase.name, stages=self.progress.placement, step_seconds=seconds))
        return PlacedLoop(self.job, phase, self.progress.placement)

    def _train_epoch(self, loop: Loop, epoch: int, clock: _Clock) -> None:
        progress, phase, store = self.progress, loop.phase, self._stores.training(loop.phase)
        left = list(self._batches(phase, epoch))[progress.step :]
        for batch in store.stream(left, loop.inputs):
            progress.loss_sum += loop.step(batch)
            progress.step += 1
            progress.seconds, progress.cpu_seconds = clock.read()
            self._tell_step(loop, epoch)
            self._save_if_due(loop)
        loss = progress.loss_sum / loop.steps
        loop.bring_together()
        if epoch + 1 in phase.snapshots:
            self._keep_snapshot(phase.snapshots.index(epoch + 1) + 1)
        choice, miou = self._validate(loop, epoch)
        self.run.record(
            EpochEvent(phase=phase.name, epoch=epoch + 1, epochs=phase.epochs, loss=loss, choice=choice, val_miou=miou)
        )
        progress.epoch, progress.step, progress.loss_sum, progress.loss = epoch + 1, 0, 0.0, loss
        progress.losses.append(loss)
        if self.ranks.same(self.run.stop_requested(epoch_over=True)):
            self.save(loop)
            self._tell_stopped(loop)

    def _skip_if_stalled(self, loop: Loop) -> None:
        """Skips to the last quarter of the phase, in which the rate falls to zero, if the loss has stalled."""
        progress, phase, recipe = self.progress, loop.phase, self.job.recipe
        patience, views = recipe.optimisation.patience, min(self.job.views, FEWEST_VIEWS)
        last = phase.epochs - max(views, math.ceil(phase.epochs / 4))
        if (
            not patience
            or phase.labels
            or phase.fresh
            or progress.step
            or not RISE * phase.epochs <= progress.epoch < last
        ):
            return
        if has_stalled(progress.losses, patience, views):
            self.run.record(SkippedEvent(phase=phase.name, epochs=phase.epochs, after=progress.epoch, to=last + 1))
            progress.skipped, progress.epoch = last - progress.epoch, last
            loop.skip_to(last)

    def _nothing_to_learn(self, loop: Loop) -> bool:
        """Whether the phase's features equal the teacher's before it begins, apart from rounding.

        Training could only make them worse, because in training batch normalisation uses each batch's statistics.
        """
        phase, store = loop.phase, self._stores.train
        begun = self.progress.epoch or self.progress.step
        if begun or self.job.placed(phase) or not phase.on_features_alone or self.job.recipe.optimisation.patience == 0:
            return False
        loop.module.eval()
        equal = EQUAL[self.job.store_bits]
        error = power = done = 0.0
        with torch.no_grad():
            for batch in store.batches(loop.inputs):
                error += float(loop.wrapped(batch)["loss"]) * len(batch)
                for comparison in phase.compared:
                    features = [batch.features(comparison.teacher)[name] for name in comparison.stages]
                    power += (
                        comparison.weight
                        * sum(float(feature.float().square().mean()) for feature in features)
                        * len(batch)
                    )
                done += len(batch)
                if error > equal * power:
                    break
                self._tell_store(int(done), len(store.samples))
        error, power, done = self.ranks.total(error, power, done)
        loop.module.start_training()
        if error > equal * power:
            return False
        self.progress.loss = error / done
        return True

    def _batches(self, phase: Phase, epoch: int) -> Iterator[Tensor]:
        job, samples = self.job, self._stores.training(phase).samples
        images, steps = job.own_images_of(phase), job.steps_an_epoch(phase)
        return epoch_batches(job.recipe.seed, phase.name, epoch, images, samples.images, samples.views, steps)

    def _keep_snapshot(self, number: int) -> None:
        if self.ranks.first:
            save(self.job.student.model, self.run.model_folder / SNAPSHOTS / str(number))

    def _validate(self, loop: Loop, epoch: int) -> tuple[float | None, float | None]:
        """The value that `select best` minimises, and the mIoU in a phase of all stages. None where not measured."""
        phase = loop.phase
        value = miou = None
        if self.job.recipe.select == "best":
            value = self._choice_value(loop)
            if self.progress.best is None or value < self.progress.best:
                self.progress.best, self.progress.best_epoch = value, epoch + 1
                self._best_weights = loop.weights()
        every = max(1, phase.epochs // VALIDATIONS)
        if phase.whole and (epoch + 1) % every == 0:
            miou = self.grafter.score(phase, self._stores.val, draw=True).miou
        loop.module.start_training()
        return value, miou

    def _choice_value(self, loop: Loop) -> float:
        """What `select best` minimises: the loss on features, or minus the mIoU in a phase with labels."""
        store = self._stores.holdout if self.job.recipe.select_on == "holdout" else self._stores.val
        if loop.phase.labels:
            return -self.grafter.score(loop.phase, store, draw=False).miou
        freeze([self.job.student.model])
        with torch.no_grad():
            losses = [float(loop.evaluated(batch)) * len(batch) for batch in store.batches(loop.evaluated_on)]
        loss, images = self.ranks.total(sum(losses), len(store.samples))
        return loss / images

    def _finish_phase(self, phase: Phase, loop: Loop, clock: _Clock) -> None:
        if self._best_weights:
            loop.load_weights(self._best_weights)
        freeze([self.job.student.model])
        if self.ranks.first:
            save(self.job.student.model, self.run.model_folder)
        score = self.grafter.score(phase, self._stores.val)
        seconds, cpu_seconds = clock.read()
        cpu_seconds, store_bytes = self.ranks.total(cpu_seconds, self._stores.bytes)
        times = {"seconds": round(seconds, 3), "cpu_seconds": round(cpu_seconds, 3)}
        figures: dict[str, Any] = {
            "phase": phase.name,
            "epochs": self.progress.epoch - self.progress.skipped,
            "loss": self.progress.loss,
            **times,
        }
        self.run.record(GraftEvent(phase=phase.name, miou=score.miou, pixel_accuracy=score.pixel_accuracy))
        self.run.record(PhaseEndEvent(**figures, graft_miou=score.miou, store_bytes=int(store_bytes)))
        done = [*self.progress.phases, {**figures, "graft_miou": score.miou, "best_epoch": self.progress.best_epoch}]
        self.progress = Position(phase=self.progress.phase + 1, phases=done)
        self._inside, self._best_weights = {}, {}
        self.save()

    # -- state --------------------------------------------------------------------------------------

    def save(self, loop: Loop | None = None) -> None:
        """Writes all that a resumed run needs into one file, whole or not at all."""
        inside: dict[str, Any] = {}
        if loop:
            loop.bring_together()
            inside = loop.state()
        if not self.ranks.first:
            return
        self.run.save_state(
            {
                "format": FORMAT,
                "progress": asdict(self.progress),
                "student": self.job.student.model.state_dict(),
                "adapters": self.job.networks.adapters.state_dict(),
                "inside": inside,
                "best_weights": self._best_weights,
                "rng": torch.get_rng_state(),
                "teacher_digest": self._teacher_digest,
                "snapshot_digests": self._snapshot_digests,
            }
        )
        self._saved_at = time.monotonic()

    def _restore(self) -> None:
        state = self.run.load_state()
        if state is None:
            return
        if state["format"] != FORMAT:
            raise UserError(f"{self.run.path / 'state.pt'} was written by another version: start the run anew")
        if state["teacher_digest"] != self._teacher_digest:
            raise UserError(
                f"the teacher {self.job.recipe.teacher} has changed since the run began: put it back", "teacher"
            )
        if state.get("snapshot_digests", {}) != self._snapshot_digests:
            raise UserError(
                f"the snapshots of teacher {self.job.recipe.teacher} have changed since then: put them back", "teacher"
            )
        self.job.student.model.load_state_dict(state["student"])
        self.job.networks.adapters.load_state_dict(state["adapters"])
        torch.set_rng_state(state["rng"])
        self.progress = Position(**state["progress"])
        self._inside, self._best_weights = state["inside"], state["best_weights"]
        self.run.record(ResumedEvent(phase=self._phase_name(), epoch=self.progress.epoch, step=self.progress.step))

    def _phase_name(self) -> str:
        names = [phase.name for phase in self.job.phases]
        return names[min(self.progress.phase, len(names) - 1)]

    def _save_if_due(self, loop: Loop) -> None:
        due = time.monotonic() - self._saved_at >= self.job.recipe.checkpoint_seconds
        stop, due = self.ranks.same((self.run.stop_requested(), due))
        if stop or due:
            self.save(loop)
        if stop:
            self._tell_stopped(loop)

    def _tell_stopped(self, loop: Loop) -> None:
        epoch = self.progress.epoch + (self.progress.step > 0)
        self.run.record(StoppedEvent(phase=loop.phase.name, epoch=epoch))
        where = f"{loop.phase.name}, epoch {epoch}"
        raise self.ranks.refuse(Stopped(f"stopped in {where}; 'python -m segskd resume {self.run.name}' goes on"))

    # -- telling ------------------------------------------------------------------------------------

    def _tell_phase_start(self, phase: Phase) -> None:
        self._told_at = 0.0
        self.run.record(
            PhaseStartEvent(
                phase=phase.name,
                number=self.progress.phase + 1,
                phases=len(self.job.phases),
                epochs=phase.epochs,
                steps=self.job.steps(phase),
                steps_before=self.job.steps_before(self.progress.phase),
            )
        )

    def _tell_store(self, done: int, total: int) -> None:
        self.run.notify(FillingEvent(done=done, total=total))
        if self.ranks.count == 1 and self.run.stop_requested():  # several processes stop together, at their next step
            self.run.record(StoppedEvent(phase=self._phase_name(), epoch=self.progress.epoch + 1))
            raise Stopped(f"stopped; 'python -m segskd resume {self.run.name}' goes on")

    def _tell_step(self, loop: Loop, epoch: int) -> None:
        now = time.monotonic()
        due = now - self._told_at >= STEP_EVENT_SECONDS
        tell = self.run.record if due else self.run.notify
        self._told_at = now if due else self._told_at
        step = epoch * loop.steps + self.progress.step
        tell(StepEvent(phase=loop.phase.name, epoch=epoch + 1, step=step, loss=loop.loss, lr=loop.rate))
