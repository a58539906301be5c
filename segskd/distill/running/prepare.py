"""From a recipe to a job, in steps: read what it names, build the networks, plan the training. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.fetch import fetch
from segskd.data.transforms import padded_size
from segskd.distill.caching.budget import Room, Sizes, choose_store, choose_views, room
from segskd.distill.caching.contents import STUDENT, plan_contents
from segskd.distill.caching.store import Kind
from segskd.distill.planning.images import Subset, choose_images
from segskd.distill.planning.methods import stagewise
from segskd.distill.planning.phase import TEACHER, Phase, Setting
from segskd.distill.planning.plan import plan_phases
from segskd.distill.planning.settle import filled_in, for_images, for_this_machine, with_places, with_views
from segskd.distill.running.branch import BaseRun, phases_from
from segskd.distill.running.loading import (
    check_stage_inputs,
    diagnose_teacher,
    give_first_weights,
    load_teachers,
    make_adapters,
    make_student,
)
from segskd.distill.running.pruning import base_of
from segskd.distill.training.discriminators import make_discriminators
from segskd.distill.training.job import DTYPES, Job, Plan
from segskd.distill.training.networks import MetaNetworks, Networks, check_memory
from segskd.distill.training.ranks import Ranks, alone, check_batch, check_sync
from segskd.models.pairing import paired, shared
from segskd.models.stages import StagedNetwork
from segskd.subset_file import SubsetNames, read_subset_names


@dataclass(frozen=True)
class Sources:
    """What a recipe names: its dataset and images, its teachers, and the run that it begins from.

    Of the recipe only the number of views is still open.
    """

    recipe: Recipe
    card: Card
    subset: Subset
    teachers: dict[str, StagedNetwork]
    base: BaseRun | None


@dataclass(frozen=True)
class PairedNetworks:
    """The student as its recipe names it, the teachers with their stages paired with the student's, and the phases.

    `phases` are the run's; `method_phases` all those of its method. `first_weights` as in `Job`.
    """

    student: StagedNetwork
    teachers: dict[str, StagedNetwork]
    phases: list[Phase]
    method_phases: list[Phase]
    first_weights: tuple[str, ...]


def prepare(
    recipe: Recipe,
    folder: Path,
    names: SubsetNames | None = None,
    report: OnActivity | None = None,
    ranks: Ranks | None = None,
    kind: Kind | None = None,
) -> Job:
    """Reads, loads, checks and plans everything. `folder` is where the run will lie.

    `names` are the images of a run that has begun. `report` hears what takes long, such as drawing the built-in
    dataset. `ranks` are the processes that share the work, by default this one alone. `kind` is where features are
    kept, if that is decided already. Raises UserError for anything that the user can mend.
    """
    on_machine = for_this_machine(recipe)
    ranks = ranks or alone(on_machine)
    sources = read_sources(on_machine, folder, names, report)
    card, subset = sources.card, sources.subset
    check_batch(sources.recipe, subset, ranks)
    pair = pair_networks(sources, folder)
    check_sync(sources.recipe, pair.phases, ranks)
    networks = build_networks(sources, pair)
    settled, plan = plan_stores(sources, networks, pair, folder, ranks.count, kind)
    on_meta = MetaNetworks(networks, card, padded_size(settled.data.size))
    check_memory(settled, subset, on_meta, plan.phases, plan.store, ranks.count)
    begins = names is None
    diagnosis = diagnose_teacher(settled, card, subset, networks.teacher, report) if begins else None
    return Job(settled, card, subset, networks, plan, ranks, diagnosis, pair.first_weights)


def read_sources(recipe: Recipe, folder: Path, names: SubsetNames | None, report: OnActivity | None) -> Sources:
    """The first step: everything that is read from disk. See `prepare`."""
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    if card.generator:
        fetch(card, data, report)
    teachers = load_teachers(recipe, card)
    base = base_of(recipe, card, folder)
    names = names or (read_subset_names(base.run) if base else None)
    subset = choose_images(recipe, card, data, names, teachers.get(TEACHER), report)
    settled = with_places(for_images(recipe, len(subset.train)), base.recipe_part if base else {})
    return Sources(settled, card, subset, teachers, base)


def pair_networks(sources: Sources, folder: Path) -> PairedNetworks:
    """The second step: the student with its first weights, the teachers paired with it, and the phases."""
    recipe, subset = sources.recipe, sources.subset
    size = padded_size(recipe.data.size)
    student = make_student(recipe, sources.card, folder)
    teachers = {name: paired(network, student, size) for name, network in sources.teachers.items()}
    teacher = teachers.get(TEACHER)
    first_weights = give_first_weights(recipe, student, teacher, folder)
    stages = teacher.names if teacher else None
    images, labelled = len(subset.train), len(subset.labelled)
    method_phases = plan_phases(recipe, stages, student.names, images, labelled, list(teachers))
    phases = phases_from(method_phases, recipe.begin)
    if teacher:
        check_stage_inputs(phases, student, teacher, size)
    return PairedNetworks(student, teachers, phases, method_phases, first_weights)


def build_networks(sources: Sources, pair: PairedNetworks) -> Networks:
    """The third step: adapters and discriminators, and what another run left. That changes the student in place."""
    recipe, student, teacher = sources.recipe, pair.student, pair.teachers.get(TEACHER)
    size = padded_size(recipe.data.size)
    adapters = make_adapters(recipe, student, teacher, pair.method_phases)
    discriminators = make_discriminators(pair.method_phases, pair.teachers, size, recipe.seed)
    if sources.base and teacher:
        adapters = sources.base.hand_over(student, teacher, adapters, size)
    return Networks(student, pair.teachers, adapters, discriminators.to(torch.device(recipe.device)))


def plan_stores(
    sources: Sources, networks: Networks, pair: PairedNetworks, folder: Path, processes: int, kind: Kind | None
) -> tuple[Recipe, Plan]:
    """The last step: the recipe with its views, and where which features are kept. `kind` says where if it is known."""
    recipe, subset, by_name = sources.recipe, sources.subset, networks.by_name
    phases, method_phases = pair.phases, pair.method_phases
    contents = plan_contents(recipe, by_name, phases, method_phases, processes=processes)
    available = room(recipe.store, folder)
    sizes = Sizes(by_name, padded_size(recipe.data.size), DTYPES[recipe.precision], recipe.store.bits)
    settled = with_views(recipe, recipe.data.views or _default_views(recipe, by_name, sizes, subset, available))
    views = filled_in(settled.data.views)
    store = choose_store(sizes, contents.planned_stores(subset), views, recipe.store, available)
    store = replace(store, kind=kind or store.kind)
    if store.kind == "recompute":
        contents = plan_contents(recipe, by_name, phases, method_phases, ahead=False, processes=processes)
    return settled, Plan(phases, method_phases, store, contents)


def _default_views(
    recipe: Recipe, by_name: dict[str, StagedNetwork], sizes: Sizes, subset: Subset, available: Room
) -> int:
    """As many views as `stagewise` has room for, whatever the recipe's method, so that methods compare."""
    stages = tuple(by_name[STUDENT].names)
    pairs = shared(stages, by_name[TEACHER].names) if TEACHER in by_name else None
    reference = (
        [Phase("supervised", stages, 1, labels=1.0)] if pairs is None else stagewise(Setting(stages, 1, paired=pairs))
    )
    contents = plan_contents(recipe, by_name, reference, reference)
    images, epochs = len(subset.train), filled_in(recipe.optimisation.epochs)
    return choose_views(sizes, contents.planned_stores(subset), available, images, epochs)
