"""Measures what a stagewise run costs in three ways, phase by phase, and compares it with a lower bound.

    python benchmarks/stage_cost.py --teacher FOLDER [--data DIR] [--epochs 30] [--memory]
    python benchmarks/stage_cost.py --teacher unet:resnet101 ...     (random weights: a step takes as long)

The ways take turns in one process, with the same images, batches, seed and precision:

whole   every step runs the whole teacher and the whole student, as the authors' code does
stop    every step runs both up to the stage that trains
store   this program: frozen stages run once over all views, steps run what trains on what was stored

Images and views are decoded before the measurement, for all three ways. So whole and stop don't pay for reading them in
every step, while filling the store is measured with its copies. The time of E epochs is the time of filling plus E
times the steps of an epoch times the median time of a step. The floor is a lower bound for all ways: the forward and
backward pass of each student stage on tensors in memory, without loss and optimiser, and one pass of the teacher and of
the student's frozen part over all views.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from segskd.config import make_recipe
from segskd.data.samples import Samples
from segskd.devices import synchronise, use_cpu
from segskd.distill.caching.budget import Sizes
from segskd.distill.caching.contents import DATA, IMAGE_KEY, MASK_KEY, Key, Keys, feature_key, phase_inputs, reach
from segskd.distill.caching.store import Batch, FeatureStore
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.running.prepare import prepare
from segskd.distill.running.trial import ENDLESS
from segskd.distill.training.job import Job
from segskd.distill.training.loop import Loop
from segskd.distill.training.module import PhaseModule, epoch_batches
from segskd.errors import UserError
from segskd.models.build import create, parse_spec, save
from segskd.models.stages import IMAGE, freeze

Way = Literal["whole", "stop", "store"]
WAYS: tuple[Way, ...] = ("whole", "stop", "store")
CLASSES = 11
"""Outputs of a teacher with random weights: the number of CamVid's classes."""
MIB = 2**20


@dataclass(frozen=True)
class Options:
    """What to time."""

    teacher: str
    """Folder of a teacher, or ARCH:ENCODER of one with random weights."""
    dataset: str = "camvid"
    """Name of a card, or the path of one."""
    data: str | None = None
    """Where datasets lie."""
    size: str = "192x256"
    """Height x width."""
    student: str = "unet:resnet10"
    """ARCH:ENCODER."""
    images: int | None = None
    """Number of training images; all of them."""
    views: int = 4
    """Views an image."""
    epochs: int = 30
    """Epochs a stage for which the time of a run is computed."""
    batch: int = 8
    """Images a step."""
    precision: str = "auto"
    """auto, 32, bf16 or fp16."""
    rounds: int = 5
    """How often the ways take turns in each phase."""
    steps: int = 6
    """Steps of each way in a round."""
    memory: bool = False
    """Also measure each way's peak memory, in a process of its own."""
    json: bool = False
    """Print one line of JSON instead of tables."""
    only: Way | None = None
    """For --memory: run two steps of each phase in one way, and print the peak memory of the process."""


def main(options: Options) -> None:
    """Prints the times of all phases, their ratios and the bytes of the store."""
    use_cpu()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(_job(options, Path(place)), Path(place), options)
        if options.only:
            print(json.dumps({"peak_mib": bench.peak(options.only)}))
            return
        phases = bench.phases()
    figures = _figures(options, bench, phases)
    figures["stated_mib"] = bench.stated() / MIB
    if options.memory:
        figures["peak_mib"] = {way: _peak_of(options, way) for way in WAYS}
    print(json.dumps(figures) if options.json else _table(options, figures))


def _job(options: Options, place: Path) -> Job:
    teacher = options.teacher
    if ":" in teacher and not Path(teacher).exists():
        torch.manual_seed(0)
        save(create(*parse_spec(teacher), classes=CLASSES), place / "teacher")
        teacher = str(place / "teacher")
    height, width = map(int, options.size.split("x"))
    recipe = {
        "data": {"card": options.dataset, "folder": options.data, "size": (height, width), "views": options.views},
        "subset": {"count": options.images} if options.images else {"fraction": 1.0},
        "teacher": teacher,
        "trust_teacher": True,  # wrong outputs take as long as right ones
        "student": options.student,
        "init": "random",
        "optimisation": {"epochs": options.epochs, "batch": options.batch},
        "precision": options.precision,
        "store": {"kind": "memory"},
    }
    return prepare(make_recipe(recipe), place / "run")


class _DecodedSamples:
    """Samples that are decoded and in memory."""

    def __init__(self, samples: Samples) -> None:
        self.images, self.views, self._total = samples.images, samples.views, len(samples)
        self.image_by_image = samples.image_by_image
        self._pixels, self._masks = samples.load(range(self._total))

    def __len__(self) -> int:
        return self._total

    def load(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._pixels[list(numbers)], self._masks[list(numbers)]


def loader(samples: Any, job: Job) -> Callable[[Tensor], dict[Key, Tensor]]:
    """Images and masks of samples, on the device as networks take them."""
    networks = job.feature_computer()
    store = FeatureStore(samples, networks, "recompute", Path(), job.batch)
    store.advance(frozenset({IMAGE_KEY, MASK_KEY}))
    return lambda numbers: store.batch(numbers).tensors


class _WholeTeacher:
    """Returns batches with images and all features of the teacher, which runs in each step."""

    def __init__(self, samples: Any, job: Job) -> None:
        self._job, self._networks = job, job.feature_computer()
        self._loaded = loader(samples, job)

    def batch(self, numbers: Tensor, _keys: Keys | None = None) -> Batch:
        known = self._loaded(numbers)
        pixels = known[IMAGE_KEY]
        teacher = self._job.networks.by_name[TEACHER]
        with torch.no_grad(), self._networks.autocast():
            features = teacher.run({IMAGE: pixels}, self._job.size)
        return Batch({**known, **{Key(TEACHER, name): feature for name, feature in features.items()}})


class _WholeModule(PhaseModule):
    """A phase's module that runs the whole student in each step."""

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        return self._student.run(batch.features(DATA), self._size)


@dataclass
class PhaseTimes:
    """Seconds of a step in each way (one figure for each round), of a step of the floor, and before the first step."""

    name: str
    steps: dict[Way, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    bare: list[float] = field(default_factory=list)
    filling: float = 0.0
    passes: float = 0.0
    """The part of filling in which stages compute: each frozen stage once over all views."""
    store_bytes: int = 0


class Bench:
    """Runs a job's phases in all ways."""

    def __init__(self, job: Job, place: Path, options: Options) -> None:
        """Decodes the images, unless the memory of one way is measured."""
        self.job = job
        self._options = options
        self.device = torch.device(job.recipe.device)
        networks = job.feature_computer()
        self.store = job.feature_store(job.subset.train, job.recipe.data.views or 1, place / "store")
        held: Any = self.store.samples if options.only else _DecodedSamples(self.store.samples)
        self.store.samples = held
        self._stop = FeatureStore(held, networks, "recompute", place / "stop", job.batch)
        self._whole = _WholeTeacher(held, job)
        self.samples = len(held)

    def phases(self) -> list[PhaseTimes]:
        """The times of all phases. The ways take turns."""
        return [self._phase(place, phase) for place, phase in enumerate(self.job.phases)]

    def stated(self) -> int:
        """The most bytes that the store says it will hold at once."""
        job = self.job
        sizes = Sizes(job.networks.by_name, job.size, job.feature_computer().dtype)
        train, *_ = job.plan.contents.planned_stores(job.subset)
        return sizes.most(train, job.recipe.data.views or 1)

    def peak(self, way: Way) -> float:
        """The process's peak memory in MiB after two steps of every phase in one way."""
        for place, phase in enumerate(self.job.phases):
            self._enter(place, phase, (way,))
            _walk(*self._loop(phase, way), self._batches(phase, 2))
        # getrusage's peak isn't used, since a process inherits it from its parent.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))

    def _phase(self, place: int, phase: Phase) -> PhaseTimes:
        times = PhaseTimes(phase.name)
        times.filling = self._enter(place, phase, WAYS)
        times.passes = self._passes(place)
        times.store_bytes = self.store.bytes
        loops = {way: self._loop(phase, way) for way in WAYS}
        bare = self._bare(loops["store"][0].module, phase)
        batches = self._batches(phase, self._options.steps)
        for turn in range(self._options.rounds + 1):  # the first turn is for warming up
            for way, (loop, source) in loops.items():
                taken = self._timed(partial(_walk, loop, source, batches))
                if turn:
                    times.steps[way].append(taken / len(batches))
            taken = self._timed(lambda: [bare() for _ in batches])
            if turn:
                times.bare.append(taken / len(batches))
        freeze([self.job.student.model])
        print(f"{phase.name} timed", file=sys.stderr, flush=True)
        return times

    def _enter(self, place: int, phase: Phase, ways: Sequence[Way]) -> float:
        """Prepares the ways for a phase, and returns the seconds that the store took."""
        freeze([self.job.student.model])
        if "stop" in ways:
            self._stop.advance(phase_inputs(phase, self.job.student))
        return self._timed(lambda: self.store.advance(self.job.plan.contents.train[place])) if "store" in ways else 0.0

    def _passes(self, place: int) -> float:
        """Seconds of those stages that had to be run for this phase, over all views: no copies, no reading."""
        held = self.job.plan.contents.train
        before = held[place - 1] if place else frozenset({IMAGE_KEY, MASK_KEY})
        networks = self.job.feature_computer()
        values = dict(loader(self.store.samples, self.job)(torch.arange(self.job.batch)))
        fresh = reach(before, held[place], networks.by_name) - before - values.keys()
        taken = 0.0
        with torch.no_grad(), networks.autocast():
            for owner, name in sorted(fresh, key=lambda key: networks.by_name[key.network].index(key.name)):
                network = networks.by_name[owner]
                sources = network.sources(network.index(name))
                keys = frozenset(feature_key(owner, source) for source in sources)
                given = networks.compute(values, keys)
                features = {source: given[feature_key(owner, source)] for source in sources}
                run = partial(network.stages[name], features[sources[0]], features, self.job.size)
                run()
                taken += statistics.median(self._timed(run) for _ in range(self._options.rounds))
        return taken * self.samples / self.job.batch

    def _loop(self, phase: Phase, way: Way) -> tuple[Loop, Any]:
        job = self.job
        made = _WholeModule if way == "whole" else PhaseModule
        phase = replace(phase, epochs=ENDLESS)
        module = made(phase, job.student, job.networks.adapters, job.card, job.size)
        module.start_training()
        return Loop(job, module), {"whole": self._whole, "stop": self._stop, "store": self.store}[way]

    def _bare(self, module: PhaseModule, phase: Phase) -> Callable[[], None]:
        """A function that runs forward and backward pass of the trained stages on a batch in memory."""
        batch = self.store.batch(next(iter(self._batches(phase, 1))))
        mixed = self.job.feature_computer().autocast if self.job.recipe.precision != "32" else nullcontext
        gradients: dict[str, Tensor] = {}

        def run() -> None:
            with mixed():
                features = module._features(batch)
            last = next(reversed(features))
            if last not in gradients:
                gradients[last] = torch.ones_like(features[last])
            torch.autograd.backward(features[last], gradients[last])
            for parameter in module.parameters():
                parameter.grad = None

        return run

    def _batches(self, phase: Phase, count: int) -> list[Tensor]:
        job, samples = self.job, self.store.samples
        made: list[Tensor] = []
        epoch = 0
        while len(made) < count:
            images = job.images_of(phase)
            made += epoch_batches(
                0, phase.name, epoch, images, samples.images, samples.views, job.steps_an_epoch(phase)
            )
            epoch += 1
        return made[:count]

    def _timed(self, work: Callable[[], object]) -> float:
        synchronise(self.device)
        started = time.perf_counter()
        work()
        synchronise(self.device)
        return time.perf_counter() - started


def _walk(loop: Loop, source: Any, batches: Sequence[Tensor]) -> None:
    for numbers in batches:
        loop.step(source.batch(numbers, loop.inputs))


def _figures(options: Options, bench: Bench, phases: Sequence[PhaseTimes]) -> dict[str, Any]:
    job = bench.job
    steps = options.epochs * job.steps_an_epoch(job.phases[0])
    filling, passes = sum(phase.filling for phase in phases), sum(phase.passes for phase in phases)

    def whole_run(way: Way, turn: int | None) -> float:
        """Seconds of a run by its median steps, or by the steps of one round."""
        each = [statistics.median(p.steps[way]) if turn is None else p.steps[way][turn] for p in phases]
        return steps * sum(each) + filling * (way == "store")

    floor = steps * sum(statistics.median(phase.bare) for phase in phases) + passes
    seconds = {way: whole_run(way, None) for way in WAYS}
    turns = range(options.rounds)

    def ratio(way: Way) -> dict[str, float]:
        each = [whole_run(way, turn) / whole_run("store", turn) for turn in turns]
        return {"median": statistics.median(each), "least": min(each), "most": max(each)}

    return {
        "teacher": options.teacher,
        "student": options.student,
        "size": options.size,
        "images": len(job.subset.train),
        "views": job.recipe.data.views,
        "epochs": options.epochs,
        "precision": job.recipe.precision,
        "threads": torch.get_num_threads(),
        "device": str(bench.device),
        "torch": torch.__version__,
        "seconds": {**seconds, "floor": floor},
        "filling": filling,
        "passes": passes,
        "times": {way: ratio(way) for way in WAYS if way != "store"},
        "to_floor": seconds["store"] / floor,
        "store_mib": max(phase.store_bytes for phase in phases) / MIB,
        "bytes_a_view": max(phase.store_bytes for phase in phases) / bench.samples,
        "phases": [
            {
                "phase": phase.name,
                **{way: statistics.median(phase.steps[way]) for way in WAYS},
                "bare": statistics.median(phase.bare),
                "filling": phase.filling,
                "passes": phase.passes,
                "store_mib": phase.store_bytes / MIB,
            }
            for phase in phases
        ],
    }


def _table(options: Options, figures: dict[str, Any]) -> str:
    seconds, times = figures["seconds"], figures["times"]
    lines = [
        f"{figures['teacher']} to {figures['student']}, {figures['images']} images, {figures['views']} views, "
        f"{figures['size']}, "
        f"{figures['precision']}, {figures['threads']} threads, {figures['device']}, torch {figures['torch']}",
        "",
        "| phase | whole ms | stop ms | store ms | bare ms | filling s | passes s | store MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for phase in figures["phases"]:
        steps = " | ".join(f"{1e3 * phase[name]:.1f}" for name in (*WAYS, "bare"))
        rest = f"{phase['filling']:.1f} | {phase['passes']:.1f} | {phase['store_mib']:.0f}"
        lines.append(f"| {phase['phase']} | {steps} | {rest} |")
    lines += ["", f"Of {figures['epochs']} epochs a stage:", ""]
    lines += ["| way | seconds | times the store's |", "|---|---:|---:|"]
    for way in ("whole", "stop"):
        ratio = times[way]
        lines.append(
            f"| {way} | {seconds[way]:.0f} | {ratio['median']:.1f} ({ratio['least']:.1f} to {ratio['most']:.1f}) |"
        )
    lines.append(f"| store | {seconds['store']:.0f}, {figures['filling']:.0f} of them filling | 1 |")
    lines.append(
        f"| floor | {seconds['floor']:.0f}, {figures['passes']:.0f} of them passes | {1 / figures['to_floor']:.2f} |"
    )
    lines += ["", f"store / floor: {figures['to_floor']:.2f}; {figures['bytes_a_view'] / 1e6:.2f} MB a view"]
    if peaks := figures.get("peak_mib"):
        most = ", ".join(f"{way} {peak:.0f}" for way, peak in peaks.items())
        lines.append(f"peak memory, MiB: {most}; the store says that it takes up to {figures['stated_mib']:.0f}")
    return "\n".join(lines)


def _peak_of(options: Options, way: Way) -> float:
    flags = [f"--{key}={value}" for key, value in vars(options).items() if value is not None and key not in _SWITCHES]
    done = subprocess.run([sys.executable, __file__, *flags, "--only", way], check=True, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


_SWITCHES = ("memory", "json", "only")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
