"""The images of a run: those it trains on, those of them with labels, and those held out for choosing epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segskd.callbacks import OnActivity
from segskd.config import Recipe, named
from segskd.data.cache import cache_folder
from segskd.data.cards import Card
from segskd.data.dataset import Pair, hash_order, list_pairs
from segskd.data.pixel_counts import pixel_counts
from segskd.data.subset import (
    ASK_TEACHER,
    MINIMUM,
    draw_subset,
    holdout_size,
    pick_subset,
    split_holdout,
    subset_size,
)
from segskd.data.unlabelled import Example, example, list_further, list_unlabelled
from segskd.errors import DataError, UserError
from segskd.evaluate.image_statistics import image_statistics
from segskd.models.stages import StagedNetwork
from segskd.runs import runs_folder
from segskd.subset_file import SubsetNames


@dataclass(frozen=True)
class Subset:
    """The images of a run: to train on, held out for choosing among epochs, and the validation split."""

    train: list[Example]
    holdout: list[Pair]
    val: list[Pair]

    @property
    def labelled(self) -> list[int]:
        """Places in `train` of the images that have labels."""
        return [place for place, image in enumerate(self.train) if image.mask is not None]

    @property
    def unlabelled(self) -> set[str]:
        """Names of the training images that have no labels."""
        return {image.name for image in self.train if image.mask is None}


def choose_images(
    recipe: Recipe,
    card: Card,
    data: Path,
    names: SubsetNames | None,
    teacher: StagedNetwork | None,
    report: OnActivity | None,
) -> Subset:
    """The images with the `names` that the run has saved, or without these the images that its recipe describes.

    Raises UserError when there are too few, or one of the named ones is missing.
    """
    pairs = list_pairs(card, data, "train")
    val = list_pairs(card, data, "val")
    folder = Path(recipe.data.unlabelled).expanduser() if recipe.data.unlabelled else None
    if names is not None:
        return _named_images(names, pairs, val, list_unlabelled(folder) if folder else [])
    others = list_further(folder, card, data) if folder else []
    picked, labelled = _picked(recipe, card, pairs, teacher, report)
    holdout: list[Pair] = []
    if held_out_size(recipe, len(labelled)):
        labelled, holdout = split_holdout(labelled, recipe.seed)
    held_out, with_labels = {pair.name for pair in holdout}, {pair.name for pair in labelled}
    train = [example(pair, pair.name in with_labels) for pair in picked if pair.name not in held_out]
    # In the order of the run's subset.txt, from which a resumed run reads them: the order of training depends on it.
    return Subset(sorted([*train, *others], key=lambda one: one.mask is None), holdout, val)


def subset_images(recipe: Recipe, total: int) -> int:
    """How many of `total` training images the recipe's subset has, with those held out. Raises UserError."""
    part = recipe.subset
    return len(part.names) if part.names is not None else subset_size(total, part.fraction, part.count)


def held_out_size(recipe: Recipe, labelled: int) -> int:
    """How many of the subset's labelled images are held out for choosing among epochs. Raises UserError."""
    if recipe.select != "best" or recipe.select_on != "holdout":
        return 0
    if not labelled:
        select, labels = named("select"), named("subset.labels")
        none_left = f"{select} best holds labelled images out, and {labels} 0 leaves none: take {select} last"
        raise UserError(none_left, "select")
    return holdout_size(labelled)


def labelled_size(total: int, labels: float | None, images: int) -> int:
    """How many of the `images` of a subset have labels: the share `labels` of the dataset's `total`, rounded down.

    All of them where `labels` is None. Raises UserError when the subset has fewer images, or for a single one.
    """
    if labels is None:
        return images
    size = int(total * labels + 1e-9)
    about = "subset.labels"
    asked = f"{named(about)} {labels:g} of {total} images"
    if size > images:
        mend = f"raise {named('subset.fraction')} or lower {named(about)}"
        raise UserError(f"{asked} are {size}, and only {images} are trained on: {mend}", about)
    if labels and size < MINIMUM:
        mend = "raise it, or take 0 for none"
        raise UserError(f"{asked} leaves {size}, and training needs at least {MINIMUM}: {mend}", about)
    return size


def _picked(
    recipe: Recipe, card: Card, pairs: Sequence[Pair], teacher: StagedNetwork | None, report: OnActivity | None
) -> tuple[list[Pair], list[Pair]]:
    """(picked images, those of them that have labels), sorted by name. Labelled are the first in the rule's order."""
    part, cache = recipe.subset, cache_folder(runs_folder())
    if part.names is not None:
        picked = pick_subset(pairs, part.names)
        first = hash_order([pair.name for pair in picked], recipe.seed)
        wanted = set(first[: labelled_size(len(pairs), part.labels, len(picked))])
        return picked, [pair for pair in picked if pair.name in wanted]
    size = subset_images(recipe, len(pairs))
    labels = labelled_size(len(pairs), part.labels, size)
    if labels < size and part.rule == "balanced":
        raise UserError(
            f"rule balanced counts the pixels of every mask, but with {named('subset.labels')} some masks must not be "
            "read: take rule random, diverse or hardest",
            "subset.rule",
        )
    statistics = counts = None
    if part.rule in ASK_TEACHER and teacher is not None:
        progress = _stage_report(report, "asking the teacher about the images")
        statistics = image_statistics(teacher, card, pairs, recipe.data.size, recipe.device, cache, progress)
    elif part.rule == "balanced":
        counts = pixel_counts(card, pairs, cache, _stage_report(report, "counting the classes' pixels"))
    picked = draw_subset(pairs, size, recipe.seed, part.rule, card, statistics, counts)
    if labels == size:
        return picked, picked
    return picked, draw_subset(pairs, labels, recipe.seed, part.rule, card, statistics, counts) if labels else []


def _stage_report(report: OnActivity | None, stage: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(stage, done, total)


def _named_images(names: SubsetNames, pairs: Sequence[Pair], val: list[Pair], unlabelled: Sequence[Example]) -> Subset:
    without = set(names.unlabelled)
    known = {pair.name: pair for pair in pairs}
    examples = [example(pair, pair.name not in without) for pair in pairs]
    train = _named({one.name: one for one in [*examples, *unlabelled]}, names.train)
    return Subset(train, _named(known, names.held_out), val)


def _named(by_name: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    missing = [name for name in names if name not in by_name]
    if missing:
        gone = f"training image '{missing[0]}' of the run's subset is gone ({len(missing)} are): put it back"
        raise DataError(gone)
    return [by_name[name] for name in names]
