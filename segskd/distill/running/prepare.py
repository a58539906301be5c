"""From a recipe to a job: everything is found, loaded and checked before a run directory is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from segskd.callbacks import OnActivity
from segskd.config import Recipe, make_recipe, merged
from segskd.data.cards import card_place, data_folder, load_card
from segskd.data.fetch import fetch
from segskd.data.transforms import padded_size
from segskd.devices import choose_device, choose_precision
from segskd.distill.caching.budget import Choice, Room, Sizes, choose_store, choose_views, room
from segskd.distill.caching.contents import StoreContents, plan_contents
from segskd.distill.caching.inputs import STUDENT
from segskd.distill.caching.store import Kind
from segskd.distill.planning.images import Subset, choose_images
from segskd.distill.planning.methods import stagewise
from segskd.distill.planning.phase import TEACHER, Phase, Setting
from segskd.distill.planning.plan import default_epochs, default_lr, plan
from segskd.distill.running.branch import Beginning, phases_from
from segskd.distill.running.checks import check_fed, check_memory, check_parts, check_sync
from segskd.distill.running.loading import diagnosed, load_teachers, make_adapters, make_student
from segskd.distill.running.pruning import Pruning
from segskd.distill.training.discriminators import make_discriminators
from segskd.distill.training.job import DTYPES, Job
from segskd.distill.training.meta import MetaNetworks
from segskd.distill.training.ranks import Ranks, alone, started_by_others
from segskd.models.build import model_folder
from segskd.models.cut import check_size
from segskd.models.pairing import paired, shared
from segskd.models.stages import StagedNetwork, copy_matching
from segskd.subset_file import SubsetNames


def prepare(
    recipe: Recipe,
    folder: Path,
    chosen: SubsetNames | None = None,
    report: OnActivity | None = None,
    ranks: Ranks | None = None,
    kind: Kind | None = None,
) -> Job:
    """Finds, loads and checks everything. `folder` is where the run will lie.

    `chosen` are the images that the run has chosen already; `report` hears how far the built-in dataset is drawn
    when it is not there yet; `ranks` are the processes that share the work, by default this one alone;
    `kind` is where features are kept, if that is settled already.
    Raises UserError for anything that the user can mend.
    """
    recipe = settled(recipe)
    ranks = ranks or alone(recipe)
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    if card.generator:
        fetch(card, data, report)
    size = padded_size(recipe.data.size)
    teachers = load_teachers(recipe, card)
    for network in teachers.values():
        check_size(network, size, f"teacher {recipe.teacher}")
    beginning, pruning = Beginning.of(recipe, card, folder), Pruning.of(recipe, card, folder)
    earlier = beginning or pruning
    fresh = chosen is None
    chosen = chosen or (earlier.names() if earlier else None)
    subset = choose_images(recipe, card, data, chosen, teachers.get(TEACHER), report)
    check_parts(recipe, subset, ranks)
    student = make_student(recipe, card, folder)
    check_size(student, size, f"student {recipe.student}")
    teachers = {owner: paired(network, student, size) for owner, network in teachers.items()}
    teacher = teachers.get(TEACHER)
    if teacher and recipe.init == "teacher" and recipe.method != "supervised":
        copy_matching(student, teacher)
    stages = teacher.names if teacher else None
    planned = plan(recipe, stages, student.names, len(subset.train), len(subset.labelled), list(teachers))
    phases = phases_from(planned, recipe.begin)
    check_sync(recipe, phases, ranks)
    adapters = make_adapters(recipe, student, teacher, planned)
    discriminators = make_discriminators(planned, teachers, size, recipe.seed).to(torch.device(recipe.device))
    if teacher:
        check_fed(phases, student, teacher, size)
    if beginning and teacher:
        beginning.hand_over(student, adapters, teacher)
    if pruning and teacher:
        adapters = pruning.prune(student, teacher, adapters, size)
        student.model.to(memory_format=torch.channels_last)  # torch-pruning's weights lie the other way
    by_owner = {STUDENT: student, **teachers}
    views, store, contents = _kept(recipe, folder, subset, by_owner, phases, planned, ranks.count, kind)
    check_memory(
        recipe, subset, MetaNetworks(by_owner, adapters, discriminators, card, size), phases, store, ranks.count
    )
    diagnosis = diagnosed(recipe, card, subset, teacher, report) if fresh else None
    made = _filled(recipe, data, len(subset.train), views, teacher is not None, beginning, pruning)
    return Job(
        made,
        card,
        subset,
        student,
        teachers,
        adapters,
        discriminators,
        phases,
        planned,
        store,
        contents,
        ranks,
        diagnosis,
    )


def _kept(
    recipe: Recipe,
    folder: Path,
    subset: Subset,
    by_owner: dict[str, StagedNetwork],
    phases: list[Phase],
    planned: list[Phase],
    processes: int,
    kind: Kind | None,
) -> tuple[int, Choice, StoreContents]:
    """Views an image, where features are kept, and which of them in each phase. `kind` says where, if it is known."""
    contents = plan_contents(recipe, by_owner, phases, planned, processes=processes)
    available = room(recipe.store, folder)
    sizes = Sizes(by_owner, padded_size(recipe.data.size), DTYPES[recipe.precision], recipe.store.bits)
    views = recipe.data.views or _views(recipe, by_owner, sizes, subset, available)
    store = choose_store(sizes, contents.to_be(subset), views, recipe.store, available)
    store = replace(store, kind=kind or store.kind)
    if store.kind == "recompute":
        contents = plan_contents(recipe, by_owner, phases, planned, ahead=False, processes=processes)
    return views, store, contents


def _views(recipe: Recipe, by_owner: dict[str, StagedNetwork], sizes: Sizes, subset: Subset, available: Room) -> int:
    """As many views as the default method has room for, whatever the method, so that methods compare."""
    stages = tuple(by_owner[STUDENT].names)
    pairs = shared(stages, by_owner[TEACHER].names) if TEACHER in by_owner else None
    reference = (
        [Phase("supervised", stages, 1, labels=1.0)] if pairs is None else stagewise(Setting(stages, 1, paired=pairs))
    )
    return choose_views(sizes, plan_contents(recipe, by_owner, reference, reference).to_be(subset), available)


def _filled(
    recipe: Recipe,
    data: Path,
    images: int,
    views: int,
    taught: bool,
    beginning: Beginning | None,
    pruning: Pruning | None,
) -> Recipe:
    """The recipe with every default as it was chosen, and with places in words that hold in any folder."""
    part = recipe.optimisation
    unlabelled = recipe.data.unlabelled and str(Path(recipe.data.unlabelled).expanduser().resolve())
    place = recipe.teacher and model_folder(recipe.teacher)
    filled: dict[str, object] = {
        "optimisation": {"epochs": part.epochs or default_epochs(images), "lr": part.lr or default_lr(recipe)},
        "data": {
            "card": card_place(recipe.data.card),
            "folder": str(data),
            "unlabelled": unlabelled,
            "views": views,
        },
        "teacher": str(place.resolve()) if place else recipe.teacher,
        "init": recipe.init if taught and recipe.method != "supervised" else "random",
        "begin": {"run": beginning.path} if beginning else None,
        "prune": {"run": str(pruning.run.path.resolve())} if pruning else None,
    }
    return _changed(recipe, filled)


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


def _changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    return make_recipe(merged(recipe.model_dump(mode="json"), changes))
