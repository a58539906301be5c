"""Subsets: the training images that a run may use. The choice is reproducible, and larger subsets contain smaller."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from segskd.config import SubsetRule, named
from segskd.data.cards import Card
from segskd.data.dataset import Pair, hash_order
from segskd.data.pixel_counts import PixelCounts, count_pixels
from segskd.data.unlabelled import UNLABELLED
from segskd.errors import UserError

MINIMUM = 2
POOL = 64
HOLDOUT_PARTS = 5
ASK_TEACHER: tuple[SubsetRule, ...] = ("diverse", "hardest")
SHOWN = 3


class TeacherStatistics(Protocol):
    """Figures that a teacher gives for each image, such as `evaluate.image_statistics.ImageStatistics`."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def features(self) -> npt.NDArray[np.float32]: ...

    @property
    def entropy(self) -> npt.NDArray[np.float32]: ...


def subset_size(total: int, fraction: float | None, count: int | None) -> int:
    """The size of a subset of `total` images by its fraction or its count; int(n·p) as in the SKD paper.

    Raises UserError for a fraction outside (0, 1], or when fewer than two images would be left.
    """
    about = "subset.fraction" if count is None else "subset.count"
    if count is not None:
        if count > total:
            raise UserError(f"{named(about)} {count} is more than the {total} training images there are", about)
        size, asked = count, f"{named(about)} {count}"
    else:
        share = 1.0 if fraction is None else fraction
        if not 0 < share <= 1:
            raise UserError(f"{named(about)} {share:g} must be above 0 and at most 1", about)
        size, asked = int(total * share + 1e-9), f"{named(about)} {share:g} of {total} images"
    if size < MINIMUM:
        raise UserError(f"{asked} leaves {size}, and training needs at least {MINIMUM}: raise it", about)
    return size


def draw_subset(
    pairs: Sequence[Pair],
    size: int,
    seed: int,
    rule: SubsetRule,
    card: Card,
    image_statistics: TeacherStatistics | None = None,
    pixel_counts: PixelCounts | None = None,
) -> list[Pair]:
    """`size` of the pairs, sorted by name: the beginning of `subset_order`."""
    by_name = {pair.name: pair for pair in pairs}
    return [
        by_name[name] for name in sorted(subset_order(pairs, rule, seed, card, size, image_statistics, pixel_counts))
    ]


def subset_order(
    pairs: Sequence[Pair],
    rule: SubsetRule,
    seed: int,
    card: Card,
    size: int,
    image_statistics: TeacherStatistics | None = None,
    pixel_counts: PixelCounts | None = None,
) -> list[str]:
    """The first `size` names of the order in which a rule takes the pairs.

    The order doesn't depend on `size`, so a larger subset contains every smaller one. `random` and `balanced` depend on
    the names, the seed and the masks alone; `balanced` counts the masks' pixels itself if `pixel_counts` is None.
    `diverse` and `hardest` depend on the teacher and not on the seed. Raises UserError when `image_statistics` is None
    for one of these two.
    """
    names = sorted(pair.name for pair in pairs)
    if rule == "random":
        return hash_order(names, seed)[:size]
    if rule == "balanced":
        return _balanced_order(hash_order(names, seed), pixel_counts or count_pixels(card, pairs), size)
    if rule == "hand":
        raise ValueError("a subset by hand has no order: take pick_subset")
    if image_statistics is None:
        raise UserError(
            f"rule {rule} needs a teacher, and this run has none: "
            f"take {named('subset.rule')} random or balanced, or distill with a {named('teacher')}",
            "subset.rule",
        )
    rows = _rows(image_statistics.names, names)
    if rule == "diverse":
        return [names[place] for place in _k_centre_order(image_statistics.features[rows], size)]
    return [names[place] for place in np.argsort(-image_statistics.entropy[rows], kind="stable")[:size]]


def pick_subset(pairs: Sequence[Pair], names: Sequence[str]) -> list[Pair]:
    """The pairs with these names, sorted by name. Raises UserError for names that no pair has."""
    by_name = {pair.name: pair for pair in pairs}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        shown = ", ".join(f"'{name}'" for name in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise UserError(
            f"no training image is named {shown}{more}: name images of the split 'train', such as '{min(by_name)}'",
            "subset.names",
        )
    return [by_name[name] for name in sorted(names)]


def read_names(path: Path) -> list[str]:
    """The names in a text file, one in each line. Blank lines and lines that begin with # are skipped.

    A run's subset.txt is such a file. Raises UserError when it can't be read, or when it is that of a run with images
    without labels.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"can't read {named('subset.names')} {path}: {error.strerror}", "subset.names") from error
    except UnicodeDecodeError as error:
        no_text = f"{named('subset.names')} {path} is no text: write one image name a line"
        raise UserError(no_text, "subset.names") from error
    if UNLABELLED in lines:
        raise UserError(
            f"{named('subset.names')} {path} names images that a run used without labels: "
            f"leave out the lines below '{UNLABELLED}'",
            "subset.names",
        )
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def holdout_size(images: int) -> int:
    """How many of so many images are held out for choosing among epochs: a fifth, and at least one.

    Raises UserError where too few would be left.
    """
    if images < MINIMUM + 1:
        few = f"{named('select')} best holds a fifth of the subset out, and {images} images are too few"
        raise UserError(few, "select")
    return max(1, images // HOLDOUT_PARTS)


def split_holdout(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): as many pairs as `holdout_size` says are put aside for choosing among epochs."""
    held = holdout_size(len(pairs))
    by_name = {pair.name: pair for pair in pairs}
    order = hash_order(list(by_name), f"holdout/{seed}")
    return [by_name[n] for n in sorted(order[held:])], [by_name[n] for n in sorted(order[:held])]


def _balanced_order(names: list[str], pixel_counts: PixelCounts, size: int) -> list[str]:
    """The first `size` names of an order in which rare classes come early.

    Stochastic greedy maximisation (Mirzasoleiman et al. 2015) of sum_c log(pixels of class c): each step
    takes the best of the first POOL names left in the drawn order.
    """
    counts = pixel_counts.of(names)
    shares = counts[:, :-1] / counts.sum(axis=1, keepdims=True)
    total = np.full(shares.shape[1], 1e-3)
    waiting = iter(range(len(names)))
    pool: list[int] = []
    order: list[str] = []
    while len(order) < min(size, len(names)):
        pool += islice(waiting, POOL - len(pool))
        gains = np.log(shares[pool] + total).sum(axis=1)
        place = pool.pop(int(gains.argmax()))
        order.append(names[place])
        total = total + shares[place]
    return order


def _k_centre_order(features: npt.NDArray[np.float32], size: int) -> list[int]:
    """The first `size` rows of the k-centre greedy order of (N, C) features, by L2 distance.

    The first row is the one nearest to the mean of all rows. Each next one is the row whose nearest taken row is
    farthest away, and of equal ones the first (Gonzalez 1985; Sener & Savarese 2018).
    """
    points = torch.from_numpy(features)
    taken: list[int] = []
    nearest = torch.full((len(points),), torch.inf)
    place = int(torch.linalg.vector_norm(points - points.mean(0), dim=1).argmin())
    while len(taken) < min(size, len(points)):
        taken.append(place)
        nearest = nearest.minimum(torch.linalg.vector_norm(points - points[place], dim=1))
        nearest[place] = -1.0  # lower than that of an equal image, so that a row is taken once
        place = int(nearest.argmax())
    return taken


def _rows(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    places = {name: row for row, name in enumerate(names)}
    return [places[name] for name in wanted]
