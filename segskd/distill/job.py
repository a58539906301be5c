"""A job: everything that a recipe names, found, loaded and checked, before a run directory is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from segskd.chosen import Chosen
from segskd.config import Recipe, Size, make_recipe, merged
from segskd.data.cards import Card, card_place, data_folder, load_card
from segskd.data.dataset import Pair
from segskd.data.fetch import Report, fetch
from segskd.data.kept import cache_folder
from segskd.data.samples import Samples
from segskd.data.transforms import ViewMaker, padded_size
from segskd.data.unlabelled import Example
from segskd.devices import choose_device, choose_precision, free_memory
from segskd.distill.branch import Beginning, phases_from
from segskd.distill.budget import Choice, Room, Sizes, check_step_fits, choose_store, choose_views, room
from segskd.distill.critics import critics_of, make_critics
from segskd.distill.holdings import Holdings, compared_by, plan_holdings
from segskd.distill.images import Subset, choose_images
from segskd.distill.methods import FROM_SNAPSHOTS, stagewise
from segskd.distill.module import PhaseModule, adapted_stages, steps_an_epoch
from segskd.distill.needs import STUDENT
from segskd.distill.phase import TEACHER, Phase, Setting, part_of
from segskd.distill.plan import default_epochs, default_lr, plan
from segskd.distill.pruning import Pruning, narrow_weights
from segskd.distill.ranks import Ranks, alone, started_by_others
from segskd.distill.shadow import Shadow
from segskd.distill.store import FeatureStore, Kind, Networks
from segskd.errors import NoRoom, UserError
from segskd.evaluate.diagnosis import Diagnosis, diagnose
from segskd.evaluate.metrics import check_fits
from segskd.models.adapters import Adapters, probe_adapters
from segskd.models.build import create, load, model_folder, parse_spec, snapshot_folders
from segskd.models.cut import check_size, cut, kinds
from segskd.models.narrow import narrow
from segskd.models.pairing import paired, shared
from segskd.models.stages import HEAD, StagedNetwork, copy_matching, freeze, tap_shapes
from segskd.runs import runs_folder

LOOKING = "looking at the teacher's answers"
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Job:
    """A recipe with every default filled in, and all it names."""

    recipe: Recipe
    card: Card
    subset: Subset
    student: StagedNetwork
    teachers: dict[str, StagedNetwork]
    adapters: Adapters
    critics: nn.ModuleDict
    phases: list[Phase]
    planned: list[Phase]
    store: Choice
    holdings: Holdings
    ranks: Ranks
    diagnosis: Diagnosis | None = None

    @property
    def teacher(self) -> StagedNetwork | None:
        """The teacher itself, which is scored and grafted."""
        return self.teachers.get(TEACHER)

    @property
    def by_owner(self) -> dict[str, StagedNetwork]:
        """All networks by the owner of their taps."""
        return {STUDENT: self.student, **self.teachers}

    @property
    def size(self) -> Size:
        """(height, width) of the tensors, padding included."""
        return padded_size(self.recipe.data.size)

    @property
    def batch(self) -> int:
        return min(self.recipe.optimisation.batch, len(self.subset.train))

    @property
    def chunk(self) -> int:
        """Images that this process holds at once: its part of a batch."""
        return -(-self.batch // self.ranks.count)

    @property
    def store_bits(self) -> int | None:
        """Bits in which the values of taps are kept; None where they are kept as they come, or not at all."""
        return None if self.store.kind == "recompute" else self.recipe.store.bits

    def compared(self, phase: Phase) -> set[str]:
        """Stages that the method has compared with the teacher's by the end of the phase, an earlier run's included."""
        return compared_by(phase, self.planned)

    def images_of(self, phase: Phase) -> list[int]:
        """Places of the training images that the phase learns from."""
        return self.subset.labelled if phase.on_labels_alone else list(range(len(self.subset.train)))

    def placed(self, phase: Phase) -> bool:
        """Whether this job's processes share the phase's stages, not its images."""
        return phase.placed_on(self.ranks.count)

    def own_images_of(self, phase: Phase) -> list[int]:
        """The same of this process: places among the training images that it holds."""
        ranks = self.ranks
        if self.placed(phase):
            return self.images_of(phase)
        return [place // ranks.count for place in self.images_of(phase) if place % ranks.count == ranks.number]

    def steps_an_epoch(self, phase: Phase) -> int:
        """Steps of the optimiser in an epoch of a phase; of several processes each has at least two images in each."""
        images, count = len(self.images_of(phase)), self.ranks.count
        steps = steps_an_epoch(images, self.batch)
        return steps if count == 1 or self.placed(phase) else min(steps, images // count // 2)

    def steps(self, phase: Phase) -> int:
        """Steps of the optimiser in a phase."""
        return self.steps_an_epoch(phase) * phase.epochs

    def steps_before(self, phase: int) -> int:
        """Steps of all phases before the one at that place."""
        return sum(self.steps(done) for done in self.phases[:phase])

    def module(self, phase: Phase) -> PhaseModule:
        """The phase as a module."""
        critics = critics_of(self.critics, phase)
        return PhaseModule(phase, self.student, self.adapters, self.card, self.size, critics)

    @cached_property
    def shadow(self) -> Shadow:
        """The same without storage."""
        return Shadow(self.by_owner, self.adapters, self.critics, self.card, self.size)

    def networks(self) -> Networks:
        """The networks as stores use them."""
        device, dtype = self.ranks.fabric.device, DTYPES[self.recipe.precision]
        mixed = dtype != torch.float32
        return Networks(
            self.by_owner,
            self.size,
            device,
            dtype,
            lambda: torch.autocast(device.type, dtype) if mixed else nullcontext(),
        )

    def feature_store(self, pairs: Sequence[Pair | Example], views: int, folder: Path) -> FeatureStore:
        """A store of `views` views of the pairs."""
        make_view = ViewMaker(self.card, self.recipe.data.size, self.recipe.seed)
        samples = Samples(pairs, views, make_view, self.card)
        return FeatureStore(samples, self.networks(), self.store.kind, folder, self.chunk, self.store_bits)


def prepare(
    recipe: Recipe,
    folder: Path,
    chosen: Chosen | None = None,
    report: Report | None = None,
    ranks: Ranks | None = None,
    kind: Kind | None = None,
) -> Job:
    """Finds, loads and checks everything. `folder` is where the run will lie.

    `chosen` are the images that the run has chosen already; `report` hears how far the built-in dataset is drawn
    when it is not there yet; `ranks` are the processes that share the work, by default this one alone;
    `kind` is where taps are kept, if that is settled already.
    Raises UserError for anything that the user can mend.
    """
    recipe = settled(recipe)
    ranks = ranks or alone(recipe)
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    if card.generator:
        fetch(card, data, report)
    teachers = _teachers(recipe, card)
    teacher, size = teachers.get(TEACHER), padded_size(recipe.data.size)
    for network in teachers.values():
        check_size(network, size, f"teacher {recipe.teacher}")
    beginning, pruning = Beginning.of(recipe, card, folder), Pruning.of(recipe, card, folder)
    earlier = beginning or pruning
    fresh = chosen is None
    chosen = chosen or (earlier.names() if earlier else None)
    subset = choose_images(recipe, card, data, chosen, teacher, report)
    _check_parts(recipe, subset, ranks)
    student = _student(recipe, card, folder)
    check_size(student, size, f"student {recipe.student}")
    teachers = {owner: paired(network, student, size) for owner, network in teachers.items()}
    teacher = teachers.get(TEACHER)
    if teacher and recipe.init == "teacher" and recipe.method != "supervised":
        copy_matching(student, teacher)
    stages = teacher.names if teacher else None
    planned = plan(recipe, stages, student.names, len(subset.train), len(subset.labelled), list(teachers))
    phases = phases_from(planned, recipe.begin)
    _check_sync(recipe, phases, ranks)
    adapters = _adapters(recipe, student, teacher, planned)
    critics = make_critics(planned, teachers, size, recipe.seed).to(torch.device(recipe.device))
    if teacher:
        _check_fed(phases, student, teacher, size)
    if beginning and teacher:
        beginning.hand_over(student, adapters, teacher)
    if pruning and teacher:
        adapters = pruning.prune(student, teacher, adapters, size)
        student.model.to(memory_format=torch.channels_last)  # torch-pruning's weights lie the other way
    by_owner = {STUDENT: student, **teachers}
    holdings = plan_holdings(recipe, by_owner, phases, planned, processes=ranks.count)
    available = room(recipe.store, folder)
    sizes = Sizes(by_owner, size, DTYPES[recipe.precision], recipe.store.bits)
    views = recipe.data.views or _views(recipe, by_owner, sizes, subset, available)
    store = choose_store(sizes, holdings.to_be(subset), views, recipe.store, available)
    store = replace(store, kind=kind or store.kind)
    if store.kind == "recompute":
        holdings = plan_holdings(recipe, by_owner, phases, planned, ahead=False, processes=ranks.count)
    shadow = Shadow(by_owner, adapters, critics, card, size)
    _check_memory(recipe, subset, shadow, phases, store, ranks.count)
    part = recipe.optimisation
    diagnosis = _diagnosis(recipe, card, subset, teacher, report) if fresh else None
    epochs, rate = part.epochs or default_epochs(len(subset.train)), part.lr or default_lr(recipe)
    place = recipe.teacher and model_folder(recipe.teacher)
    filled: dict[str, object] = {
        "optimisation": {"epochs": epochs, "lr": rate},
        "data": {**_places(recipe, data), "views": views},
        "teacher": str(place.resolve()) if place else recipe.teacher,
        "init": recipe.init if teacher and recipe.method != "supervised" else "random",
        "begin": {"run": beginning.path} if beginning else None,
        "prune": {"run": str(pruning.run.path.resolve())} if pruning else None,
    }
    made = _changed(recipe, filled)
    job = Job(made, card, subset, student, teachers, adapters, critics, phases, planned, store, holdings, ranks)
    return replace(job, diagnosis=diagnosis)


def _diagnosis(
    recipe: Recipe, card: Card, subset: Subset, teacher: StagedNetwork | None, report: Report | None
) -> Diagnosis | None:
    """What the teacher makes of a few images with labels; None where there is none, or where it is trusted.

    Raises UserError when something is wrong with it.
    """
    if teacher is None or recipe.trust_teacher:
        return None
    if report:
        report(LOOKING, 0, 1)
    labelled = [Pair(one.name, one.image, one.mask) for one in subset.train if one.mask is not None]
    found = diagnose(
        teacher.model, card, labelled, subset.val, recipe.data.size, recipe.device, cache_folder(runs_folder())
    )
    if report:
        report(LOOKING, 1, 1)
    return found


def _check_parts(recipe: Recipe, subset: Subset, ranks: Ranks) -> None:
    """Raises UserError when a process would have less than two images a step: batch normalisation needs them."""
    least = 2 * ranks.count
    trained = min(len(subset.train), len(subset.labelled) or len(subset.train))
    if ranks.count > 1 and min(recipe.optimisation.batch, trained) < least:
        raise UserError(
            f"{ranks.count} processes need a --batch of {least} at least and as many images with labels; these are "
            f"{recipe.optimisation.batch} and {trained}: take fewer --devices"
        )


def _check_sync(recipe: Recipe, phases: Sequence[Phase], ranks: Ranks) -> None:
    """Raises UserError where batch normalisation can't see the images of other devices."""
    if not recipe.sync_batchnorm:
        return
    if not can_sync(recipe):
        raise UserError(f"--sync-batchnorm is for several GPUs, and this run has {_devices(recipe)}: leave it out")
    placed = next((phase.name for phase in phases if phase.placed_on(ranks.count)), None)
    if placed:
        raise UserError(
            f"phase '{placed}' trains each stage on one GPU, with whole batches: leave --sync-batchnorm out"
        )


def can_sync(recipe: Recipe) -> bool:
    """Whether there are other devices whose images batch normalisation could see; the recipe must be settled."""
    return recipe.device == "cuda" and recipe.devices * recipe.nodes > 1


def _devices(recipe: Recipe) -> str:
    count = recipe.devices * recipe.nodes
    return f"{count} {recipe.device} device{'s' * (count > 1)}"


def _places(recipe: Recipe, data: Path) -> dict[str, str | None]:
    """Where the data lie, in words that hold in any folder."""
    unlabelled = recipe.data.unlabelled and str(Path(recipe.data.unlabelled).expanduser().resolve())
    return {"card": card_place(recipe.data.card), "folder": str(data), "unlabelled": unlabelled}


def _changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))


def settled(recipe: Recipe) -> Recipe:
    """The device, precision, processes and threads that "auto" stands for on this machine."""
    device = choose_device(recipe.device)
    precision = choose_precision(recipe.precision, device)
    outside = started_by_others()  # then the threads are this process's own already
    devices, nodes = outside or (recipe.devices, recipe.nodes)
    threads = recipe.threads or max(1, torch.get_num_threads() // (1 if outside else devices))
    machine: dict[str, object] = {
        "device": device,
        "precision": precision,
        "threads": threads,
        "devices": devices,
        "nodes": nodes,
    }
    return _changed(recipe, machine)


def _teachers(recipe: Recipe, card: Card) -> dict[str, StagedNetwork]:
    """The teacher by the owner of its taps, and before it the snapshots that the method learns from, if it does."""
    if recipe.teacher is None:
        return {}
    places: dict[str, str | Path] = {TEACHER: recipe.teacher}
    if recipe.method in FROM_SNAPSHOTS:
        places = {**snapshot_folders(recipe.teacher), TEACHER: recipe.teacher}
        if len(places) == 1:
            raise UserError(
                f"method {recipe.method} learns from snapshots of the teacher's training, and {recipe.teacher} has "
                "none: train one with 'teach --snapshots 2'"
            )
    return {owner: _teacher(recipe, card, place) for owner, place in places.items()}


def _teacher(recipe: Recipe, card: Card, place: str | Path) -> StagedNetwork:
    model = load(place)
    check_fits(model, card, f"teacher {place}")
    network = cut(_on_device(model, recipe))
    freeze([model])
    return network


def _student(recipe: Recipe, card: Card, folder: Path) -> StagedNetwork:
    torch.manual_seed(recipe.seed)
    model = create(
        *parse_spec(recipe.student), classes=len(card.classes), weights=recipe.weights, channels=card.channels
    )
    if recipe.prune and (narrower := narrow_weights(recipe, folder)):
        narrow(model, narrower, recipe.prune.ratio)
    if recipe.sync_batchnorm:
        model = convert_sync_batchnorm(model)
    return cut(_on_device(model, recipe))


def _on_device(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    return model.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def _adapters(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, phases: Sequence[Phase]
) -> Adapters:
    if teacher is None:
        return Adapters()
    wanted = adapted_stages(phases)
    compared = [name for name in student.names if name in wanted]
    adapters = probe_adapters(student, teacher, compared, padded_size(recipe.data.size))
    return adapters.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def _check_fed(phases: Sequence[Phase], student: StagedNetwork, teacher: StagedNetwork, size: Size) -> None:
    """Raises UserError when stages are to be fed by a teacher whose taps have other shapes than theirs."""
    fed = next((phase for phase in phases if phase.fed_by != STUDENT), None)
    if fed is None:
        return
    if "pyramid" in kinds(student):
        raise UserError(
            f"phase '{fed.name}' feeds each stage by itself, and the encoder of {type(student.model).__name__} can't "
            "be cut into such: take another student, or another method"
        )
    ours, theirs = tap_shapes(student, size), tap_shapes(teacher, size)
    for name in student.names:
        if name not in theirs:
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's taps, and {name} has no partner "
                "among the teacher's stages: take another student, or another method"
            )
        if name != HEAD and ours[name] != theirs[name]:
            shapes = " and ".join("x".join(map(str, shape)) for shape in (ours[name], theirs[name]))
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's taps, and those of {name} differ "
                f"({shapes}): take a student of the teacher's widths, or another method"
            )


def _views(recipe: Recipe, by_owner: dict[str, StagedNetwork], sizes: Sizes, subset: Subset, available: Room) -> int:
    """As many views as the default method has room for, whatever the method, so that methods compare."""
    stages = tuple(by_owner[STUDENT].names)
    pairs = shared(stages, by_owner[TEACHER].names) if TEACHER in by_owner else None
    reference = (
        [Phase("supervised", stages, 1, labels=1.0)] if pairs is None else stagewise(Setting(stages, 1, paired=pairs))
    )
    return choose_views(sizes, plan_holdings(recipe, by_owner, reference, reference).to_be(subset), available)


def _check_memory(
    recipe: Recipe, subset: Subset, shadow: Shadow, phases: Sequence[Phase], store: Choice, processes: int
) -> None:
    device = torch.device(recipe.device)
    batch = min(recipe.optimisation.batch, len(subset.train))
    in_memory = store.bytes if store.kind == "memory" else 0
    if in_memory > (free := free_memory()):
        raise NoRoom(
            f"the feature store needs {in_memory / 2**30:.1f} GiB of memory: take --store disk, or fewer --views",
            in_memory,
            free,
        )
    in_memory *= device.type != "cuda"
    shared = [phase for phase in phases if not phase.placed_on(processes)]
    apart = [part_of(phase, (name,)) for phase in phases if phase.placed_on(processes) for name in phase.trained]
    for some, images in ((shared, -(-batch // processes)), (apart, batch)):
        if some:
            check_step_fits(shadow, some, images, in_memory, device)
