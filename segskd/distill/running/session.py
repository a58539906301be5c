"""A run from its recipe to its result: started, resumed, finished. What the command line and scripts call."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe
from segskd.data.transforms import RESIZE_FILTER
from segskd.devices import out_of_memory
from segskd.distill.running.checks import can_sync
from segskd.distill.running.flops import image_passes, training_flops
from segskd.distill.running.prepare import prepare, settled
from segskd.distill.training.job import Job
from segskd.distill.training.ranks import Ranks, another_ended, gather_ranks
from segskd.distill.training.trainer import Trainer
from segskd.errors import Echoed, Stopped, UserError
from segskd.evaluate.cost import cost, latencies
from segskd.evaluate.metrics import Score
from segskd.evaluate.predictor import Predictor, evaluate
from segskd.models.build import describe
from segskd.models.stages import StagedNetwork
from segskd.runs import Event, Onlooker, Run
from segskd.subset_file import SubsetNames, read_subset_names, subset_text

Listener = Callable[[Event], None]
PACKAGES = ("segskd", "torch", "torchvision", "segmentation-models-pytorch", "albumentations", "opencv-python-headless")


def start(recipe: Recipe, folder: Path, listeners: Sequence[Listener] = (), until: str | None = None) -> dict[str, Any]:
    """Begins a run in `folder` and works on it to its end, or to the end of stage `until`.

    Returns the run's result, or {"run", "after"} when it paused at `until`. Raises UserError before anything
    is written when the recipe can't be carried out, Stopped when it was asked to stop.
    """
    recipe = settled(recipe)
    ranks = gather_ranks(recipe)
    folder = ranks.same(folder)

    def begin() -> tuple[Job, Run]:
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
    """Goes on with a run where it stopped; a finished run's result comes back at once. See `start`.

    On so many `devices` of so many `nodes`, by default as before; with another number of processes batches hold other
    images, and its weights differ from those that it would have come to.
    """
    result = run.read_json("result.json")
    if result is not None:
        return dict(result)
    run.listeners += listeners
    before = run.recipe
    asked = {"devices": devices or before.devices, "nodes": nodes or before.nodes}
    threads = before.threads if asked["devices"] == before.devices else None
    with nullcontext() if run.is_alive() else _errors_told(run):
        recipe = settled(before.model_copy(update={**asked, "threads": threads}))
        apart = recipe.sync_batchnorm and not can_sync(recipe)
        recipe = recipe.model_copy(update={"sync_batchnorm": recipe.sync_batchnorm and not apart})
        ranks = gather_ranks(recipe)

    def go_on() -> tuple[Job, Run]:
        if not run.is_alive():
            shutil.rmtree(run.path / "store", ignore_errors=True)  # what a killed worker left, so that its room counts
        with nullcontext() if run.is_alive() else _errors_told(run):
            job = prepare(recipe, run.path, read_subset_names(run), _preparing(listeners), ranks)
        _check_until(job, until)
        if apart and ranks.count > 1:
            run.event("warning", message="here batch normalisation sees each process's own images alone")
        _write_subset(job, run)
        return job, run

    return _work(*_together(ranks, go_on), until)


def _together(ranks: Ranks, begin: Callable[[], tuple[Job, Run]]) -> tuple[Job, Run]:
    """The job and the run of every process: what the first one has found and decided counts for all of them."""
    if ranks.first:
        job, run = ranks.attempt(begin)
        names = [[one.name for one in images] for images in (job.subset.train, job.subset.holdout)]
        ranks.same(
            (run.path, job.recipe, job.store.kind, SubsetNames(names[0], names[1], sorted(job.subset.unlabelled)))
        )
        return job, run
    ranks.attempt(begin)
    decided: Any = ranks.same(None)
    path, recipe, kind, chosen = decided
    run = Onlooker(path)
    with _errors_told(run):
        return prepare(recipe, path, chosen, ranks=ranks, kind=kind), run


def _write_subset(job: Job, run: Run) -> None:
    subset = job.subset
    run.write("subset.txt", subset_text(subset.train, subset.holdout, subset.unlabelled).encode())


def pruned(recipe: Recipe, folder: Path, listeners: Sequence[Listener] = ()) -> Run:
    """The finished run that `plan_pruned` has told of, trained now if there is none, or gone on with. See `start`."""
    if (folder / "recipe.yaml").exists():
        resume(Run(folder), listeners)
    else:
        start(recipe, folder, listeners)
    return Run(folder)


def _preparing(listeners: Sequence[Listener]) -> OnActivity:
    """Tells the listeners what is drawn or computed before a run can begin."""

    def report(stage: str, done: int, total: int | None) -> None:
        for listener in listeners:
            listener({"time": time.time(), "kind": "preparing", "stage": stage, "done": done, "total": total or done})

    return report


def _work(job: Job, run: Run, until: str | None) -> dict[str, Any]:
    with run.working(), run.listening_to_signals(), _errors_told(run):
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
    run.event("done", miou=student.miou, seconds=result["seconds"])
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
        "views": job.recipe.data.views,
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
        "store": {"kind": job.store.kind, "bytes": job.store.bytes, "bits": job.store_bits},
        "device": _device_name(job),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def _teacher_score(job: Job, run: Run) -> Score | None:
    """The teacher's score on the validation split: measured once a run, kept in teacher.json."""
    if job.teacher is None:
        return None
    kept = job.ranks.same(run.read_json("teacher.json"))
    if kept is not None:
        return Score.from_dict(kept)
    score = _score(job, run, job.teacher, "teacher")
    run.write_json("teacher.json", score.as_dict())
    return score


def _score(job: Job, run: Run, network: StagedNetwork, who: str) -> Score:
    """In fp32 on the validation split, as `evaluate` does it."""

    def report(done: int, total: int) -> None:
        if job.ranks.count == 1 and run.stop_requested():  # several stop together, at their next step
            run.event("stopped", phase=f"evaluation of the {who}")
            raise Stopped(f"stopped; 'python -m segskd resume {run.name}' goes on")
        run.tell("evaluating", model=who, done=done, total=total)

    predictor = Predictor(network.model, job.card, job.recipe.data.size, job.recipe.device)
    score = evaluate(predictor, job.ranks.part(job.subset.val), report=report, batch=job.batch, add=job.ranks.add)
    run.event("evaluation", model=who, split="val", **score.as_dict())
    return score


def _chosen_on(recipe: Recipe) -> str:
    """What the kept epochs were chosen on: nothing, a fifth of the subset, or the reported split itself."""
    if recipe.select == "last":
        return "nothing: the last epoch of each phase"
    return "a fifth of the subset" if recipe.select_on == "holdout" else "val, the split that is reported"


def _tell_start(job: Job, run: Run) -> None:
    phases = [{"phase": p.name, "epochs": p.epochs, "steps": job.steps(p)} for p in job.phases]
    run.event("start", phases=phases, images=len(job.subset.train), batch=job.batch)
    if job.diagnosis:
        run.event("diagnosis", message=str(job.diagnosis), **asdict(job.diagnosis))
    asked, images = job.recipe.optimisation.batch, len(job.subset.train)
    if images < asked:
        run.event("warning", message=f"{images} images are fewer than a batch of {asked}: the batch is {images}")
    _tell_store(job, run)


def _tell_store(job: Job, run: Run) -> None:
    kind = job.store.kind
    before = next((e["kind_of_store"] for e in reversed(run.events()) if e["kind"] == "store"), kind)
    bits = f", in {job.store_bits} bits a value" if job.store_bits else ""
    size = f"{job.store.bytes / 2**30:.2f} GiB, {job.recipe.data.views} views{bits}"
    places = {"memory": f"in memory, {size}", "disk": f"on disk, memory-mapped, {size}"}
    place = places.get(kind, f"none, {size} would be needed")
    run.event("store", kind_of_store=kind, message=f"feature store: {place}")
    if kind == "recompute":
        message = "features are recomputed in every step, which is slower than a store (see --store-budget)"
        run.event("warning", message=message)
    if (before == "recompute") != (kind == "recompute"):
        message = f"the run began with its features in '{before}' and goes on with '{kind}'"
        run.event("warning", message=message + ": its weights will differ in their last bits")


@contextmanager
def _errors_told(run: Run) -> Iterator[None]:
    """Writes what ended the run into its events; memory or processes that are gone become a UserError."""
    try:
        yield
    except (Stopped, Echoed):
        raise
    except Exception as error:
        gone = another_ended(error)
        mended = out_of_memory(error) or gone or error
        with suppress(UserError, OSError):
            if not gone or (run.events() or [{}])[-1].get("kind") != "error":  # the other has said why itself
                run.event("error", message=str(mended), error=type(mended).__name__)
        if mended is error:
            raise
        raise mended from error


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
