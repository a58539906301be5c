"""A run from its recipe to its result: started, resumed, retried. What the command line and scripts call."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe, named
from segskd.data.transforms import RESIZE_FILTER
from segskd.devices import out_of_memory
from segskd.distill.planning.settle import changed, for_this_machine
from segskd.distill.running.flops import image_passes, training_flops
from segskd.distill.running.prepare import prepare
from segskd.distill.training.job import Job
from segskd.distill.training.ranks import Ranks, another_ended, can_sync, gather_ranks
from segskd.distill.training.trainer import Position, Trainer
from segskd.errors import EndedByFirstProcess, Stopped, UserError, full_disk
from segskd.evaluate.cost import cost, latencies
from segskd.evaluate.metrics import Score
from segskd.evaluate.predictor import Predictor, evaluate
from segskd.events import (
    DiagnosisEvent,
    DoneEvent,
    ErrorEvent,
    EvaluatingEvent,
    EvaluationEvent,
    Event,
    PlannedPhase,
    PreparingEvent,
    StartEvent,
    StoppedEvent,
    StoreEvent,
    WarningEvent,
    WeightsEvent,
)
from segskd.models.build import describe
from segskd.models.stages import StagedNetwork
from segskd.runs import ReadOnlyRun, Run
from segskd.subset_file import SubsetNames, read_subset_names, subset_text

Listener = Callable[[Event], None]
PACKAGES = ("segskd", "torch", "torchvision", "segmentation-models-pytorch", "albumentations", "opencv-python-headless")


def start(recipe: Recipe, folder: Path, listeners: Sequence[Listener] = (), until: str | None = None) -> dict[str, Any]:
    """Begins a run in `folder` and trains it to its end, or to the end of phase `until`.

    Returns the run's result, or {"run", "after"} when it paused after `until`. Raises UserError, before anything is
    written, when the recipe can't be carried out, and Stopped when the run was asked to stop.
    """
    recipe = for_this_machine(recipe)
    ranks = gather_ranks(recipe)
    folder = ranks.same(folder)

    def begin() -> tuple[Job, Run]:
        Run.check_free(folder)  # before the minutes that the teacher may take
        job = prepare(recipe, folder, report=_preparing(listeners), ranks=ranks)
        _check_until(job, until)
        run = Run.create(folder, job.recipe)
        run.listeners += listeners
        _write_subset(job, run)
        return job, run

    return _work(*_together(ranks, begin), until)


def resume(
    run: Run,
    listeners: Sequence[Listener] = (),
    until: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
) -> dict[str, Any]:
    """Continues a run where it stopped; for a finished run it returns the result at once. See `start`.

    `devices` and `nodes` are by default as before. With another number of processes batches hold other images, so
    that the run ends with other weights.
    """
    result = run.read_json("result.json")
    if result is not None:
        return dict(result)
    run.listeners += listeners
    before = run.recipe
    processes = {"devices": devices or before.devices, "nodes": nodes or before.nodes}
    threads = before.threads if processes["devices"] == before.devices else None
    with nullcontext() if run.is_alive() else _reporting_errors(run):
        recipe = for_this_machine(before.model_copy(update={**processes, "threads": threads}))
        sync_lost = recipe.sync_batchnorm and not can_sync(recipe)
        recipe = recipe.model_copy(update={"sync_batchnorm": recipe.sync_batchnorm and not sync_lost})
        ranks = gather_ranks(recipe)

    def go_on() -> tuple[Job, Run]:
        if not run.is_alive():
            # A killed worker left it. Deleted here, its room counts as free.
            shutil.rmtree(run.path / "store", ignore_errors=True)
        with nullcontext() if run.is_alive() else _reporting_errors(run):
            job = prepare(recipe, run.path, read_subset_names(run), _preparing(listeners), ranks)
        _check_until(job, until)
        if sync_lost and ranks.count > 1:
            run.record(WarningEvent(message="here batch normalisation sees each process's own images alone"))
        _write_subset(job, run)
        return job, run

    return _work(*_together(ranks, go_on), until)


def _together(ranks: Ranks, begin: Callable[[], tuple[Job, Run]]) -> tuple[Job, Run]:
    """The job and the run, in every process: the first process makes them, the others take over its decisions."""
    if ranks.first:
        job, run = ranks.attempt(begin)
        names = [[one.name for one in images] for images in (job.subset.train, job.subset.holdout)]
        ranks.same(
            (run.path, job.recipe, job.plan.store.kind, SubsetNames(names[0], names[1], sorted(job.subset.unlabelled)))
        )
        return job, run
    ranks.attempt(begin)
    decided: Any = ranks.same(None)
    path, recipe, kind, subset_names = decided
    run = ReadOnlyRun(path)
    with _reporting_errors(run):
        return prepare(recipe, path, subset_names, ranks=ranks, kind=kind), run


def _write_subset(job: Job, run: Run) -> None:
    subset = job.subset
    run.write("subset.txt", subset_text(subset.train, subset.holdout, subset.unlabelled).encode())


def halve_batch(run: Run) -> int:
    """Halves the batch of a run that ran out of memory, so that it can be tried again; returns the new one.

    Finished phases stay; the phase in which it failed begins anew, from the weights of the last checkpoint.
    Raises UserError while a worker trains it, and when a batch is one image already.
    """
    if run.is_alive():
        raise UserError(f"run {run.name} is running: stop it first")
    with run.working():  # so that no worker begins in the middle
        return _halve(run)


def _halve(run: Run) -> int:
    recipe = run.recipe
    names, batch = read_subset_names(run), recipe.optimisation.batch
    batch = min(batch, len(names.train)) if names else batch
    if batch < 2:
        raise UserError(f"a batch is one image already: take a smaller {named('data.size')}", "data.size")
    state = run.load_state()
    if state is not None:
        done = {name: state["progress"][name] for name in ("phase", "phases")}
        run.save_state(state | {"progress": asdict(Position(**done)), "inside": {}, "best_weights": {}})
    halved = batch // 2
    run.write_recipe(changed(recipe, {"optimisation": {"batch": halved}}))
    run.record(WarningEvent(message=f"memory ran out: the batch is {halved} from here on, and was {batch}"))
    return halved


def train_pruned(recipe: Recipe, folder: Path, listeners: Sequence[Listener] = ()) -> Run:
    """The finished pruned run in `folder`, which is begun or continued first unless it is finished. See `start`."""
    if (folder / "recipe.yaml").exists():
        resume(Run(folder), listeners)
    else:
        start(recipe, folder, listeners)
    return Run(folder)


def _preparing(listeners: Sequence[Listener]) -> OnActivity:
    """A report that tells the listeners what is drawn or computed before a run can begin."""

    def report(stage: str, done: int, total: int | None) -> None:
        for listener in listeners:
            listener(PreparingEvent(stage=stage, done=done, total=total or done))

    return report


def _work(job: Job, run: Run, until: str | None) -> dict[str, Any]:
    with run.working(), run.listening_to_signals(), _reporting_errors(run):
        _tell_start(job, run)
        teacher = _teacher_score(job, run)
        trainer = Trainer(job, run)
        if not trainer.train(until):
            return {"run": str(run.path), "after": until}
        return job.ranks.same(_finish(job, run, trainer, teacher))


def _finish(job: Job, run: Run, trainer: Trainer, teacher: Score | None) -> dict[str, Any]:
    student = _score(job, run, job.student, "student")
    if not job.ranks.first:
        return {}
    result = _result(job, run, trainer, student, teacher)
    run.write_json("result.json", result)
    run.record(DoneEvent(miou=student.miou, seconds=result["seconds"]))
    return result


def _result(job: Job, run: Run, trainer: Trainer, student: Score, teacher: Score | None) -> dict[str, Any]:
    phases = trainer.progress.phases
    networks = [network for network in (job.student, job.teacher) if network]
    device = torch.device(job.recipe.device)
    epochs = [phase.get("epochs", planned.epochs) for phase, planned in zip(phases, job.phases, strict=True)]
    seconds = round(sum(phase["seconds"] for phase in phases), 3)
    times = latencies([network.model for network in networks], job.size, device)
    costs = [cost(net.model, job.size, time) for net, time in zip(networks, times, strict=True)]
    return {
        "run": str(run.path),
        "dataset": job.card.name,
        "split": "val",
        "size": list(job.recipe.data.size),
        "resize": RESIZE_FILTER,
        "method": job.recipe.method if job.recipe.kind == "distill" else "teach",
        "images": len(job.subset.train),
        "labelled": len(job.subset.labelled),
        "views": job.views,
        "init": job.recipe.init,
        "chosen_on": _chosen_on(job.recipe),
        "miou": student.miou,
        "teacher_miou": teacher.miou if teacher else None,
        "percent_of_teacher": 100 * student.miou / teacher.miou if teacher and teacher.miou else None,
        "student": {
            "network": describe(job.student.model),
            "pruning_ratio": job.recipe.prune and job.recipe.prune.ratio,
            **student.as_dict(),
            **costs[0],
        },
        "teacher": {"network": describe(job.teacher.model), **teacher.as_dict(), **costs[1]}
        if teacher and job.teacher
        else None,
        "seconds": seconds,
        "cpu_seconds": round(sum(phase.get("cpu_seconds", 0.0) for phase in phases), 3),
        "gpu_seconds": seconds * job.ranks.count if device.type == "cuda" else None,
        "image_passes": image_passes(job, epochs),
        "training_flops": training_flops(job, epochs),
        "phases": phases,
        "store": {"kind": job.plan.store.kind, "bytes": job.plan.store.bytes, "bits": job.store_bits},
        "device": _device_name(job),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _teacher_score(job: Job, run: Run) -> Score | None:
    """The teacher's score on the validation split: measured once for a run, then read from teacher.json."""
    if job.teacher is None:
        return None
    measured = job.ranks.same(run.read_json("teacher.json"))
    if measured is not None:
        return Score.from_dict(measured)
    score = _score(job, run, job.teacher, "teacher")
    run.write_json("teacher.json", score.as_dict())
    return score


def _score(job: Job, run: Run, network: StagedNetwork, who: Literal["teacher", "student"]) -> Score:
    """A network's score on the validation split, in fp32, as `evaluate` measures it."""

    def report(done: int, total: int) -> None:
        if job.ranks.count == 1 and run.stop_requested():  # several stop together, at their next step
            run.record(StoppedEvent(phase=f"evaluation of the {who}"))
            raise Stopped(f"stopped; 'python -m segskd resume {run.name}' goes on")
        run.notify(EvaluatingEvent(model=who, done=done, total=total))

    predictor = Predictor(network.model, job.card, job.recipe.data.size, job.recipe.device)
    score = evaluate(predictor, job.ranks.part(job.subset.val), report=report, batch=job.batch, add=job.ranks.add)
    run.record(EvaluationEvent(model=who, split="val", **score.as_dict()))
    return score


def _chosen_on(recipe: Recipe) -> str:
    """In words: what the saved epochs were chosen on."""
    if recipe.select == "last":
        return "nothing: the last epoch of each phase"
    return "a fifth of the subset" if recipe.select_on == "holdout" else "val, the split that is reported"


def _tell_start(job: Job, run: Run) -> None:
    phases = tuple(PlannedPhase(phase=p.name, epochs=p.epochs, steps=job.steps(p)) for p in job.phases)
    run.record(StartEvent(phases=phases, images=len(job.subset.train), batch=job.batch))
    for message in job.first_weights:
        run.record(WeightsEvent(message=message))
    if job.diagnosis:
        run.record(DiagnosisEvent(message=str(job.diagnosis), **asdict(job.diagnosis)))
    batch, images = job.recipe.optimisation.batch, len(job.subset.train)
    if images < batch:
        run.record(WarningEvent(message=f"{images} images are fewer than a batch of {batch}: the batch is {images}"))
    _tell_store(job, run)


def _tell_store(job: Job, run: Run) -> None:
    kind = job.plan.store.kind
    before = run.progress().store or kind
    bits = f", in {job.store_bits} bits a value" if job.store_bits else ""
    size = f"{job.plan.store.bytes / 2**30:.2f} GiB, {job.views} views{bits}"
    places = {"memory": f"in memory, {size}", "disk": f"on disk, memory-mapped, {size}"}
    place = places.get(kind, f"none, {size} would be needed")
    run.record(StoreEvent(kind_of_store=kind, message=f"feature store: {place}"))
    if kind == "recompute":
        message = "features are recomputed in every step, which is slower than a store"
        why = "" if job.recipe.store.kind == "recompute" else ": none has room"
        run.record(WarningEvent(message=message + why))
    if (before == "recompute") != (kind == "recompute"):
        message = f"the run began with its features in '{before}' and goes on with '{kind}'"
        run.record(WarningEvent(message=message + ": its weights will differ in their last bits"))


@contextmanager
def _reporting_errors(run: Run) -> Iterator[None]:
    """Writes what ended the run into its events. Exhausted memory and lost processes become a UserError."""
    try:
        yield
    except (Stopped, EndedByFirstProcess):
        raise
    except Exception as error:
        lost = another_ended(error)
        told = out_of_memory(error) or full_disk(error) or lost or error
        with suppress(UserError, OSError):
            if not lost or run.progress().ended != "failed":  # the other process has said why itself
                run.record(ErrorEvent.of(told))
        if told is error:
            raise
        raise told from error


def _check_until(job: Job, until: str | None) -> None:
    names = [phase.name for phase in job.phases]
    if until is not None and until not in names:
        raise UserError(f"--until {until}: this run has no such phase; it has {', '.join(names)}")


def _device_name(job: Job) -> str:
    recipe = job.recipe
    if recipe.device == "cuda":
        many = f"{job.ranks.count} × " if job.ranks.count > 1 else ""
        return f"{many}{torch.cuda.get_device_name()} ({recipe.precision})"
    threads = "1 thread" if recipe.threads == 1 else f"{recipe.threads} threads"
    each = f"{job.ranks.count} processes of {threads}" if job.ranks.count > 1 else threads
    return f"{platform.machine()} {recipe.device}, {each} ({recipe.precision})"
