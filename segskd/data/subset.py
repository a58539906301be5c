"""Subsets: which training images a run may see. Reproducible on every machine, smaller ones inside larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from segskd.config import SubsetRule
from segskd.data.cards import Card
from segskd.data.dataset import Pair, hash_order, read_mask
from segskd.errors import UserError

MINIMUM = 2
POOL = 64
HOLDOUT_PARTS = 5


def subset_size(total: int, fraction: float | None, count: int | None) -> int:
    """How many of `total` images a fraction or a count keeps; int(n·p) as in the SKD paper.

    Raises UserError for a fraction outside (0, 1], or when fewer than two images would be left.
    """
    if count is not None:
        if count > total:
            raise UserError(f"--count {count} is more than the {total} training images there are")
        size, asked = count, f"--count {count}"
    else:
        share = 1.0 if fraction is None else fraction
        if not 0 < share <= 1:
            raise UserError(f"--fraction {share:g} must be above 0 and at most 1")
        size, asked = int(total * share + 1e-9), f"--fraction {share:g} of {total} images"
    if size < MINIMUM:
        raise UserError(f"{asked} leaves {size}, and training needs at least {MINIMUM}: raise it")
    return size


def draw_subset(pairs: Sequence[Pair], size: int, seed: int, rule: SubsetRule, card: Card) -> list[Pair]:
    """`size` of the pairs, sorted by name.

    The choice is the beginning of an order that depends on the names, the seed and the rule alone, so a
    smaller subset is part of every larger one.
    """
    by_name = {pair.name: pair for pair in pairs}
    order = hash_order(list(by_name), seed)
    if rule == "balanced":
        order = _balanced_order(order, lambda name: class_shares(by_name[name], card), size)
    return [by_name[name] for name in sorted(order[:size])]


def split_holdout(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """(train, held out): a fifth of the pairs, at least one, put aside for choosing among epochs."""
    if len(pairs) < MINIMUM + 1:
        raise UserError(f"--select best holds a fifth of the subset out, and {len(pairs)} images are too few")
    by_name = {pair.name: pair for pair in pairs}
    order = hash_order(list(by_name), f"holdout/{seed}")
    held = max(1, len(order) // HOLDOUT_PARTS)
    return [by_name[n] for n in sorted(order[held:])], [by_name[n] for n in sorted(order[:held])]


def class_shares(pair: Pair, card: Card) -> npt.NDArray[np.float64]:
    """Share of the mask's pixels that each class has: (C,), summing to at most 1."""
    mask = read_mask(pair.mask, card)
    counts = np.bincount(mask.ravel(), minlength=256)[: len(card.classes)]
    return np.asarray(counts / mask.size, dtype=np.float64)


def _balanced_order(names: list[str], shares_of: Callable[[str], npt.NDArray[np.float64]], size: int) -> list[str]:
    """The first `size` names of an order that brings the rare classes in early.

    Stochastic greedy maximisation (Mirzasoleiman et al. 2015) of sum_c log(pixels of class c): each step
    takes the best of the first POOL names left in the drawn order.
    """
    pool: list[tuple[str, npt.NDArray[np.float64]]] = []
    waiting = iter(names)
    chosen: list[str] = []
    total = np.zeros(0)
    while len(chosen) < size:
        pool += [(name, shares_of(name)) for name in islice(waiting, POOL - len(pool))]
        if not len(total):
            total = np.full_like(pool[0][1], 1e-3)
        gains = np.log(np.stack([shares for _, shares in pool]) + total).sum(axis=1)
        name, shares = pool.pop(int(gains.argmax()))
        chosen.append(name)
        total = total + shares
    return chosen
