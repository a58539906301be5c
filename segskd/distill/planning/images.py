"""The images of a run: which it trains on, which of them have labels, which are held out of them for choosing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segskd.callbacks import OnActivity
from segskd.config import Recipe
from segskd.data.cache import cache_folder
from segskd.data.cards import Card
from segskd.data.dataset import Pair, hash_order, list_pairs
from segskd.data.pixel_counts import pixel_counts
from segskd.data.subset import (
    ASK_TEACHER,
    MINIMUM,
    draw_subset,
    pick_subset,
    split_holdout,
    subset_size,
)
from segskd.data.unlabelled import Example, example, list_further, list_unlabelled
from segskd.errors import UserError
from segskd.evaluate.image_statistics import image_statistics
from segskd.models.stages import StagedNetwork
from segskd.runs import runs_folder
from segskd.subset_file import SubsetNames


@dataclass(frozen=True)
class Subset:
    """The images of a run: those it trains on, those held out of them for choosing, and the validation split."""

    train: list[Example]
    holdout: list[Pair]
    val: list[Pair]

    @property
    def labelled(self) -> list[int]:
        """Places of the training images that have labels."""
        return [place for place, image in enumerate(self.train) if image.mask is not None]

    @property
    def unlabelled(self) -> set[str]:
        """Names of those that have none."""
        return {image.name for image in self.train if image.mask is None}


def choose_images(
    recipe: Recipe,
    card: Card,
    data: Path,
    chosen: SubsetNames | None,
    teacher: StagedNetwork | None,
    report: OnActivity | None,
) -> Subset:
    """Those that the run has chosen before, or else those that its recipe asks for.

    Raises UserError when there are too few, or one that was chosen is gone.
    """
    pairs = list_pairs(card, data, "train")
    val = list_pairs(card, data, "val")
    folder = Path(recipe.data.unlabelled).expanduser() if recipe.data.unlabelled else None
    if chosen is not None:
        others = list_unlabelled(folder) if folder else []
        without = set(chosen.unlabelled)
        known = {pair.name: pair for pair in pairs}
        examples = [example(pair, pair.name not in without) for pair in pairs]
        train = _named({one.name: one for one in [*examples, *others]}, chosen.train)
        return Subset(train, _named(known, chosen.held_out), val)
    others = list_further(folder, card, data) if folder else []
    picked, labelled = _picked(recipe, card, pairs, teacher, report)
    holdout: list[Pair] = []
    if recipe.select == "best" and recipe.select_on == "holdout":
        if not labelled:
            raise UserError("--select best holds labelled images out, and --labels 0 leaves none: take --select last")
        labelled, holdout = split_holdout(labelled, recipe.seed)
    out, known_labels = {pair.name for pair in holdout}, {pair.name for pair in labelled}
    train = [example(pair, pair.name in known_labels) for pair in picked if pair.name not in out]
    # In the order of the run's subset.txt, from which a resumed run has them: the order of training hangs on it.
    return Subset(sorted([*train, *others], key=lambda one: one.mask is None), holdout, val)


def labelled_size(total: int, labels: float | None, images: int) -> int:
    """How many of `images` chosen from `total` have labels: a share of all, int(n·p) as for the images themselves.

    Raises UserError when these are more than the images, or a single one.
    """
    if labels is None:
        return images
    size = int(total * labels + 1e-9)
    asked = f"--labels {labels:g} of {total} images"
    if size > images:
        raise UserError(f"{asked} are {size}, and only {images} are trained on: raise --images or lower --labels")
    if labels and size < MINIMUM:
        raise UserError(f"{asked} leaves {size}, and training needs at least {MINIMUM}: raise it, or take 0 for none")
    return size


def _picked(
    recipe: Recipe, card: Card, pairs: Sequence[Pair], teacher: StagedNetwork | None, report: OnActivity | None
) -> tuple[list[Pair], list[Pair]]:
    """(chosen, those of them that have labels), each sorted by name; the second come first in the rule's order."""
    part, cache = recipe.subset, cache_folder(runs_folder())
    if part.names is not None:
        picked = pick_subset(pairs, part.names)
        first = hash_order([pair.name for pair in picked], recipe.seed)
        wanted = set(first[: labelled_size(len(pairs), part.labels, len(picked))])
        return picked, [pair for pair in picked if pair.name in wanted]
    size = subset_size(len(pairs), part.fraction, part.count)
    labels = labelled_size(len(pairs), part.labels, size)
    if labels < size and part.rule == "balanced":
        raise UserError(
            "rule balanced counts the pixels of every mask, and --labels says that some are not to be used:"
            " take rule random, diverse or hardest"
        )
    asked = counted = None
    if part.rule in ASK_TEACHER and teacher is not None:
        heard = _heard(report, "asking the teacher about the images")
        asked = image_statistics(teacher, card, pairs, recipe.data.size, recipe.device, cache, heard)
    elif part.rule == "balanced":
        counted = pixel_counts(card, pairs, cache, _heard(report, "counting the classes' pixels"))
    picked = draw_subset(pairs, size, recipe.seed, part.rule, card, asked, counted)
    if labels == size:
        return picked, picked
    return picked, draw_subset(pairs, labels, recipe.seed, part.rule, card, asked, counted) if labels else []


def _heard(report: OnActivity | None, stage: str) -> Callable[[int, int], None] | None:
    return None if report is None else lambda done, total: report(stage, done, total)


def _named(by_name: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(f"training image '{missing[0]}' of the run's subset is gone ({len(missing)} are): put it back")
    return [by_name[name] for name in names]
