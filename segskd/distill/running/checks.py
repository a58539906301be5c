"""What is refused before anything is trained, with what to do instead."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segskd.config import Recipe, Size, named
from segskd.devices import free_memory
from segskd.distill.caching.budget import Choice
from segskd.distill.caching.inputs import STUDENT
from segskd.distill.planning.images import Subset
from segskd.distill.planning.phase import Phase, part_of
from segskd.distill.training.meta import MetaNetworks, check_step_fits
from segskd.distill.training.ranks import Ranks
from segskd.errors import NoRoom, UserError
from segskd.models.cut import kinds
from segskd.models.stages import HEAD, StagedNetwork, feature_shapes


def check_parts(recipe: Recipe, subset: Subset, ranks: Ranks) -> None:
    """Raises UserError when a process would have less than two images a step: batch normalisation needs them."""
    least = 2 * ranks.count
    trained = min(len(subset.train), len(subset.labelled) or len(subset.train))
    if ranks.count > 1 and min(recipe.optimisation.batch, trained) < least:
        raise UserError(
            f"{ranks.count} processes need a {named('optimisation.batch')} of {least} at least and as many images with "
            f"labels; these are {recipe.optimisation.batch} and {trained}: take fewer {named('devices')}",
            "devices",
        )


def check_sync(recipe: Recipe, phases: Sequence[Phase], ranks: Ranks) -> None:
    """Raises UserError where batch normalisation can't see the images of other devices."""
    if not recipe.sync_batchnorm:
        return
    if not can_sync(recipe):
        here = f"is for several GPUs, and this run has {_devices(recipe)}: leave it out"
        raise UserError(f"{named('sync_batchnorm')} {here}", "sync_batchnorm")
    placed = next((phase.name for phase in phases if phase.placed_on(ranks.count)), None)
    if placed:
        alone = f"phase '{placed}' trains each stage on one GPU, with whole batches"
        raise UserError(f"{alone}: leave {named('sync_batchnorm')} out", "sync_batchnorm")


def can_sync(recipe: Recipe) -> bool:
    """Whether there are other devices whose images batch normalisation could see; the recipe must be settled."""
    return recipe.device == "cuda" and recipe.devices * recipe.nodes > 1


def _devices(recipe: Recipe) -> str:
    count = recipe.devices * recipe.nodes
    return f"{count} {recipe.device} device{'s' * (count > 1)}"


def check_fed(phases: Sequence[Phase], student: StagedNetwork, teacher: StagedNetwork, size: Size) -> None:
    """Raises UserError when stages are to be fed by a teacher whose features have other shapes than theirs."""
    fed = next((phase for phase in phases if phase.fed_by != STUDENT), None)
    if fed is None:
        return
    if "pyramid" in kinds(student):
        raise UserError(
            f"phase '{fed.name}' feeds each stage by itself, and the encoder of {type(student.model).__name__} can't "
            "be cut into such: take another student, or another method"
        )
    ours, theirs = feature_shapes(student, size), feature_shapes(teacher, size)
    for name in student.names:
        if name not in theirs:
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's features, and {name} has no partner "
                "among the teacher's stages: take another student, or another method"
            )
        if name != HEAD and ours[name] != theirs[name]:
            shapes = " and ".join("x".join(map(str, shape)) for shape in (ours[name], theirs[name]))
            raise UserError(
                f"phase '{fed.name}' feeds the student's stages with the teacher's features, and those of {name} "
                f"differ ({shapes}): take a student of the teacher's widths, or another method"
            )


def check_memory(
    recipe: Recipe, subset: Subset, on_meta: MetaNetworks, phases: Sequence[Phase], store: Choice, processes: int
) -> None:
    """Raises NoRoom when the store in memory, or a step of a phase beside it, needs more memory than is free."""
    device = torch.device(recipe.device)
    batch = min(recipe.optimisation.batch, len(subset.train))
    in_memory = store.bytes if store.kind == "memory" else 0
    if in_memory > (free := free_memory()):
        raise NoRoom(
            f"the feature store needs {in_memory / 2**30:.1f} GiB of memory: take {named('store.kind')} disk, or fewer "
            f"{named('data.views')}",
            in_memory,
            free,
            "store.kind",
        )
    in_memory *= device.type != "cuda"
    shared = [phase for phase in phases if not phase.placed_on(processes)]
    apart = [part_of(phase, (name,)) for phase in phases if phase.placed_on(processes) for name in phase.trained]
    for some, images in ((shared, -(-batch // processes)), (apart, batch)):
        if some:
            check_step_fits(on_meta, some, images, in_memory, device)
