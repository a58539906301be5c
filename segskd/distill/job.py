"""A job: everything that a recipe names, found, loaded and checked, before a run directory is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from segskd.config import Recipe, Size, make_recipe, merged
from segskd.data.cards import Card, card_place, data_folder, load_card
from segskd.data.census import census
from segskd.data.dataset import Pair, list_pairs
from segskd.data.fetch import Report, fetch
from segskd.data.kept import cache_folder
from segskd.data.samples import Samples
from segskd.data.subset import ASK_TEACHER, draw_subset, pick_subset, split_holdout, subset_size
from segskd.data.transforms import ViewMaker, padded_size
from segskd.devices import choose_device, choose_precision, free_memory
from segskd.distill.branch import Beginning, phases_from
from segskd.distill.budget import Choice, Holding, Room, Sizes, check_step_fits, choose_store, choose_views, room
from segskd.distill.methods import Phase, default_epochs, default_lr, plan, stagewise
from segskd.distill.needs import Keys, Planner, graft_needs, phase_needs
from segskd.distill.phase import steps_an_epoch
from segskd.distill.pruning import Pruning, narrow_weights
from segskd.distill.store import FeatureStore, Networks
from segskd.errors import NoRoom, UserError
from segskd.evaluate.metrics import check_outputs
from segskd.evaluate.survey import survey
from segskd.models.adapters import Adapters, probe_adapters
from segskd.models.build import create, load, model_folder, output_classes, parse_spec
from segskd.models.narrow import narrow
from segskd.models.stages import StagedNetwork, copy_matching, cut, freeze
from segskd.runs import runs_folder

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Subset:
    """The images of a run: those it trains on, those held out of them for choosing, and the validation split."""

    train: list[Pair]
    holdout: list[Pair]
    val: list[Pair]


@dataclass(frozen=True)
class Holdings:
    """What each store holds in each phase."""

    train: list[Keys]
    holdout: list[Keys]
    val: list[Keys]

    def to_be(self, subset: Subset) -> list[Holding]:
        """The same with numbers of samples, for reckoning bytes."""
        return [
            Holding(len(subset.train), self.train, viewed=True),
            Holding(len(subset.holdout), self.holdout, viewed=False),
            Holding(len(subset.val), self.val, viewed=False),
        ]


@dataclass(frozen=True)
class Job:
    """A recipe with every default filled in, and all it names."""

    recipe: Recipe
    card: Card
    subset: Subset
    student: StagedNetwork
    teacher: StagedNetwork | None
    adapters: Adapters
    phases: list[Phase]
    store: Choice
    holdings: Holdings

    @property
    def size(self) -> Size:
        """(height, width) of the tensors, padding included."""
        return padded_size(self.recipe.data.size)

    @property
    def batch(self) -> int:
        return min(self.recipe.optimisation.batch, len(self.subset.train))

    def steps(self, phase: Phase) -> int:
        """Steps of the optimiser in a phase."""
        return steps_an_epoch(len(self.subset.train), self.batch) * phase.epochs

    def steps_before(self, phase: int) -> int:
        """Steps of all phases before the one at that place."""
        return sum(self.steps(done) for done in self.phases[:phase])

    def networks(self) -> Networks:
        """The two networks as stores use them."""
        device, dtype = torch.device(self.recipe.device), DTYPES[self.recipe.precision]
        mixed = dtype != torch.float32
        return Networks(
            self.student,
            self.teacher,
            self.size,
            device,
            dtype,
            lambda: torch.autocast(device.type, dtype) if mixed else nullcontext(),
        )

    def feature_store(self, pairs: Sequence[Pair], views: int, folder: Path) -> FeatureStore:
        """A store of `views` views of the pairs."""
        make_view = ViewMaker(self.card, self.recipe.data.size, self.recipe.seed)
        return FeatureStore(
            Samples(pairs, views, make_view, self.card), self.networks(), self.store.kind, folder, self.batch
        )


def prepare(
    recipe: Recipe,
    folder: Path,
    names: tuple[list[str], list[str]] | None = None,
    report: Report | None = None,
) -> Job:
    """Finds, loads and checks everything. `folder` is where the run will lie.

    `names` are the training and held-out names that the run has chosen already; `report` hears how far the
    built-in dataset is drawn when it is not there yet.
    Raises UserError for anything that the user can mend.
    """
    recipe = _with_machine(recipe)
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    if card.generator:
        fetch(card, data, report)
    teacher = _teacher(recipe, card)
    beginning, pruning = Beginning.of(recipe, card, folder), Pruning.of(recipe, card, folder)
    earlier = beginning or pruning
    names = names or (earlier.names() if earlier else None)
    subset = _subset(recipe, card, data, names, teacher, report)
    student = _student(recipe, card, teacher, folder)
    planned = plan(recipe, teacher.names if teacher else None, student.names, len(subset.train))
    phases = phases_from(planned, recipe.begin)
    adapters = _adapters(recipe, student, teacher, planned)
    if beginning and teacher:
        beginning.hand_over(student, adapters, teacher)
    if pruning and teacher:
        adapters = pruning.prune(student, teacher, adapters, padded_size(recipe.data.size))
    holdings = _holdings(recipe, student, teacher, phases)
    available = room(recipe.store, folder)
    sizes = Sizes(student, teacher, padded_size(recipe.data.size), DTYPES[recipe.precision])
    views = recipe.data.views or _views(recipe, student, teacher, sizes, subset, available)
    store = choose_store(sizes, holdings.to_be(subset), views, recipe.store, available)
    _check_memory(recipe, subset, student, phases, store)
    part = recipe.optimisation
    epochs, rate = part.epochs or default_epochs(len(subset.train)), part.lr or default_lr(recipe)
    place = recipe.teacher and model_folder(recipe.teacher)
    filled = {
        "optimisation": {"epochs": epochs, "lr": rate},
        "data": {"card": card_place(recipe.data.card), "folder": str(data), "views": views},
        "teacher": str(place.resolve()) if place else recipe.teacher,
        "init": recipe.init if teacher and recipe.method != "supervised" else "random",
        "begin": {"run": beginning.path} if beginning else None,
        "prune": {"run": str(pruning.run.path.resolve())} if pruning else None,
    }
    return Job(_changed(recipe, filled), card, subset, student, teacher, adapters, phases, store, holdings)


def _changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))


def _with_machine(recipe: Recipe) -> Recipe:
    """The device, precision and threads that "auto" stands for on this machine."""
    device = choose_device(recipe.device)
    precision = choose_precision(recipe.precision, device)
    threads = recipe.threads or torch.get_num_threads()
    return _changed(recipe, {"device": device, "precision": precision, "threads": threads})


def _subset(
    recipe: Recipe,
    card: Card,
    data: Path,
    names: tuple[list[str], list[str]] | None,
    teacher: StagedNetwork | None,
    report: Report | None,
) -> Subset:
    pairs = list_pairs(card, data, "train")
    val = list_pairs(card, data, "val")
    if names is not None:
        return Subset(_named(pairs, names[0]), _named(pairs, names[1]), val)
    chosen = _chosen(recipe, card, pairs, teacher, report)
    if recipe.select == "best" and recipe.select_on == "holdout":
        return Subset(*split_holdout(chosen, recipe.seed), val)
    return Subset(chosen, [], val)


def _chosen(
    recipe: Recipe, card: Card, pairs: Sequence[Pair], teacher: StagedNetwork | None, report: Report | None
) -> list[Pair]:
    part, cache = recipe.subset, cache_folder(runs_folder())
    if part.names is not None:
        return pick_subset(pairs, part.names)
    size = subset_size(len(pairs), part.fraction, part.count)
    asked = counted = None
    if part.rule in ASK_TEACHER and teacher is not None:
        heard = _heard(report, "asking the teacher about the images")
        asked = survey(teacher, card, pairs, recipe.data.size, recipe.device, cache, heard)
    elif part.rule == "balanced":
        counted = census(card, pairs, cache, _heard(report, "counting the classes' pixels"))
    return draw_subset(pairs, size, recipe.seed, part.rule, card, asked, counted)


def _heard(report: Report | None, stage: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(stage, done, total)


def _named(pairs: Sequence[Pair], names: Sequence[str]) -> list[Pair]:
    by_name = {pair.name: pair for pair in pairs}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"training image '{missing[0]}' of the run's subset is gone ({len(missing)} are): put it back")
    return [by_name[name] for name in names]


def _teacher(recipe: Recipe, card: Card) -> StagedNetwork | None:
    if recipe.teacher is None:
        return None
    model = load(recipe.teacher)
    check_outputs(output_classes(model), card, f"teacher {recipe.teacher}")
    network = cut(_on_device(model, recipe))
    freeze([model])
    return network


def _student(recipe: Recipe, card: Card, teacher: StagedNetwork | None, folder: Path) -> StagedNetwork:
    torch.manual_seed(recipe.seed)
    model = create(*parse_spec(recipe.student), classes=len(card.classes), weights=recipe.weights)
    if recipe.prune and (narrower := narrow_weights(recipe, folder)):
        narrow(model, narrower, recipe.prune.ratio)
    network = cut(_on_device(model, recipe))
    if teacher is not None and recipe.init == "teacher" and recipe.method != "supervised":
        copy_matching(network, teacher)
    return network


def _on_device(model: torch.nn.Module, recipe: Recipe) -> torch.nn.Module:
    return model.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def _adapters(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, phases: Sequence[Phase]
) -> Adapters:
    if teacher is None:
        return Adapters()
    compared = [name for name in student.names if any(name in phase.taps for phase in phases)]
    adapters = probe_adapters(student, teacher, compared, padded_size(recipe.data.size))
    return adapters.to(torch.device(recipe.device)).to(memory_format=torch.channels_last)


def _holdings(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, phases: Sequence[Phase]
) -> Holdings:
    planner = Planner(phases, student, teacher)
    needed = [phase_needs(phase, student) for phase in phases]
    grafts = [graft_needs(phase, student) for phase in phases]
    both = [needs | graft for needs, graft in zip(needed, grafts, strict=True)]
    on_val = recipe.select == "best" and recipe.select_on == "val"
    train, chosen_on, shown = (planner.holdings(needs) for needs in (needed, both, grafts))
    return Holdings(train, chosen_on, chosen_on if on_val else shown)


def _views(
    recipe: Recipe, student: StagedNetwork, teacher: StagedNetwork | None, sizes: Sizes, subset: Subset, available: Room
) -> int:
    """As many views as the default method has room for, whatever the method, so that methods compare."""
    stages = student.names
    reference = stagewise(stages, 1) if teacher else [Phase("supervised", tuple(stages), 1, labels=1.0)]
    return choose_views(sizes, _holdings(recipe, student, teacher, reference).to_be(subset), available)


def _check_memory(
    recipe: Recipe, subset: Subset, student: StagedNetwork, phases: Sequence[Phase], store: Choice
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
    check_step_fits(student, phases, padded_size(recipe.data.size), batch, in_memory, device)
