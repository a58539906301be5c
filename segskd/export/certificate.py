"""Certificates: an exported network is opened by its own runtime in a fresh process, compared, weighed and timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask
from segskd.data.pixels import read_image
from segskd.data.transforms import SIZE_MULTIPLE, unpad
from segskd.evaluate.metrics import ConfusionMatrix, class_logits
from segskd.evaluate.predict import Predictor
from segskd.export.formats import Limits
from segskd.export.reopen import Array, ReopeningProcess
from segskd.models.cut import takes

IMAGES = 128
LEAST_SIDE = 64
"""torch.export takes a side for one that is never 32, where the deepest feature would be a single pixel."""
NO_NUMBER = torch.finfo(torch.float32).max
"""Counted as the difference of a logit that is not finite."""
OTHER_IMAGES = 4
"""At each of the other sizes."""
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Difference:
    """Two networks' answers to the same images.

    `pixels` of `images` images were compared, at `sizes`, the first of which is the recipe's; `differing` of them
    have another class. Logits differ by at most `largest` and `mean` on average; the checkpoint's own largest is
    `scale`. mIoU `before` and `after` are those of the images at the recipe's size.
    """

    images: int
    sizes: tuple[Size, ...]
    pixels: int
    differing: int
    largest: float
    mean: float
    scale: float
    before: float
    after: float


@dataclass(frozen=True)
class Certificate:
    """What an export proves about itself, beside what it is.

    `file`, `bytes` and `sha256` are the zip's, `model_bytes` what the network's own files in it weigh, `float_bytes`
    what they weigh in float. `latency` is that of `timing.Latency`. `failures` says what lies beyond `limits`,
    `only_size` the size of images where a file made of the network's graph takes no other (none of safetensors).
    """

    file: str
    format: str
    precision: str
    input: str
    run: str
    network: str
    bytes: int
    sha256: str
    model_bytes: int
    float_bytes: int
    images: int
    sizes: tuple[tuple[int, int], ...]
    pixels: int
    pixels_differing: int
    share_differing: float
    max_logit_difference: float
    mean_logit_difference: float
    largest_logit: float
    miou_before: float
    miou_after: float
    latency: dict[str, Any] | None
    quantization: dict[str, Any] | None
    limits: dict[str, float | None]
    failures: tuple[str, ...]
    versions: dict[str, str]
    only_size: tuple[int, int] | None = None

    @property
    def holds(self) -> bool:
        """Whether the export may be offered."""
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def compare(
    fresh: ReopeningProcess,
    checkpoint: Predictor,
    pairs: Sequence[Pair],
    pixels: bool,
    only: Size | None = None,
    report: Report | None = None,
) -> Difference:
    """Compares an exported network with `checkpoint`, on up to IMAGES pairs and a few at two other sizes that it takes.

    Both compute one image at a time with the same number of threads. `pixels` says that uint8 goes in, `only` is the
    size of images where the export takes no other. Raises UserError when the network can't be opened.
    """
    card, model = checkpoint.card, checkpoint.model
    others = [] if only else [size for size in other_sizes(checkpoint.size) if takes(model, size)]
    sizes = tuple(dict.fromkeys((checkpoint.size, *others)))
    chosen = [(checkpoint.size, pair) for pair in evenly(pairs, IMAGES)]
    chosen += [(size, pair) for size in sizes[1:] for pair in evenly(pairs, OTHER_IMAGES)]
    predictors = {size: Predictor(checkpoint.model, card, size) for size in sizes}
    before, after, count = ConfusionMatrix(card), ConfusionMatrix(card), _Count()
    for done, (size, pair) in enumerate(chosen, start=1):
        predictor, image = predictors[size], read_image(pair.image, card)
        view, mask = predictor.view(image, read_mask(pair.mask, card), pair.name, 0)
        ours = predictor.logits(view[None])
        given = predictor.view.resized(image)[None] if pixels else view[None].numpy()
        theirs = finished(fresh.logits(given)[0], size, card)
        count.add(ours, theirs)
        if size == checkpoint.size:
            truth = unpad(mask[None], size)
            before.update(ours.argmax(1), truth)
            after.update(theirs.argmax(1), truth)
        if report:
            report(done, len(chosen))
    mean = count.total / count.logits
    scores = before.score().miou, after.score().miou
    return Difference(before.images, sizes, count.pixels, count.differing, count.largest, mean, count.scale, *scores)


def finished(logits: Array, size: Size, card: Card) -> Tensor:
    """Padding and a surplus output taken off, as the checkpoint's own logits come."""
    return class_logits(unpad(torch.from_numpy(logits), size), card)


def failures(difference: Difference, share_of_bytes: float, limits: Limits) -> list[str]:
    """What lies beyond the limits, in words."""
    agreeing = 1 - difference.differing / difference.pixels
    lost = 100 * (difference.before - difference.after)
    relative = difference.largest / difference.scale if difference.scale else difference.largest
    found = []
    if difference.largest >= NO_NUMBER:
        found.append("it answers with values that are no numbers")
    if agreeing < limits.agreement:
        found.append(
            f"{100 * (1 - agreeing):.4g} % of {difference.pixels} pixels differ from the checkpoint's "
            f"(at most {100 * (1 - limits.agreement):.4g} %)"
        )
    if limits.difference is not None and relative > limits.difference:
        found.append(f"a logit differs by {relative:.2g} of the largest (at most {limits.difference:.2g})")
    if limits.points is not None and lost > limits.points:
        found.append(f"{lost:.2f} points of mIoU are lost (at most {limits.points:g})")
    if limits.size is not None and share_of_bytes > limits.size:
        found.append(f"it weighs {share_of_bytes:.2f} of the network in float (at most {limits.size:g})")
    return found


def other_sizes(size: Size) -> tuple[Size, Size]:
    """Two more sizes at which an export must agree: about half and five quarters, multiples of 32 from 64 on."""
    return _scaled(size, 0.5), _scaled(size, 1.25)


def _scaled(size: Size, factor: float) -> Size:
    height, width = (
        max(LEAST_SIDE // SIZE_MULTIPLE, round(factor * side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in size
    )
    return height, width


def evenly(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` of the pairs, spread over all."""
    places = np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)
    return [pairs[place] for place in places]


class _Count:
    """Sums over all images."""

    def __init__(self) -> None:
        self.pixels = self.differing = self.logits = 0
        self.largest = self.total = self.scale = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Logits (1, C, h, w) of both."""
        apart = torch.nan_to_num((ours - theirs).abs(), nan=NO_NUMBER, posinf=NO_NUMBER)
        self.pixels += ours[:, 0].numel()
        self.differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
        self.logits += ours.numel()
        self.largest = max(self.largest, float(apart.max()))
        self.total += float(apart.double().sum())
        self.scale = max(self.scale, float(ours.abs().max()))
