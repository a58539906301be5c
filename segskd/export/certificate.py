"""What an export proves about itself: its certificate, the comparison behind it, and packages that were made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from segskd.callbacks import OnProgress
from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask
from segskd.data.pixels import read_image
from segskd.data.transforms import SIZE_MULTIPLE, unpad
from segskd.evaluate.metrics import ConfusionMatrix, class_logits
from segskd.evaluate.predictor import Predictor
from segskd.export.formats import ExportLimits, Spec
from segskd.export.reopen import Array, ReopeningProcess
from segskd.models.cut import takes
from segskd.runs import Run

CERTIFICATE = "certificate.json"
IMAGES = 128
LEAST_SIDE = 64
"""The shortest side of an image that a traced graph takes. At 32 the deepest feature has one pixel, and torch.export
fixes axes of length 1."""
NO_NUMBER = torch.finfo(torch.float32).max
"""The difference that is counted for a logit that is not finite."""
OTHER_IMAGES = 4
"""Images that are compared at each further size."""


@dataclass(frozen=True)
class Difference:
    """How the outputs of the checkpoint and of its export differ on the same images.

    `images` images were compared at `sizes`, of which the first is the recipe's. They have `pixels` pixels, and
    `differing` of these get another class from the export. `largest` and `mean` are the largest and the mean absolute
    difference of a logit, and `scale` is the largest absolute logit of the checkpoint. `before` and `after` are the
    mIoU of the checkpoint and of the export on the images at the recipe's size.
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
    """What an export is and what it proves about itself.

    `file`, `bytes` and `sha256` describe the zip. `model_bytes` are the bytes of the network's own files in it, and
    `float_bytes` those of the network's weights in float. `latency` is a `timing.Latency`. `failures` says in words
    which of `limits` are exceeded. `only_size` is (height, width) where the file takes images of one size alone.
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


@dataclass(frozen=True)
class Package:
    """A zip and its certificate."""

    path: Path
    certificate: Certificate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"package": str(self.path), "certificate": self.certificate.as_dict()}


_CERTIFICATE = TypeAdapter(Certificate)


def folder_of(run: Run, spec: Spec) -> Path:
    """The folder of an export where no other was asked for."""
    return run.path / "exports" / spec.name


def find_package(run: Run, spec: Spec | None = None, out: Path | None = None) -> Package | None:
    """The package in `out`, by default the run's own of this kind; None when there is none or a file of it is gone."""
    out = out or folder_of(run, spec or Spec())
    try:
        content = json.loads((out / CERTIFICATE).read_text(encoding="utf-8"))
        certificate = _CERTIFICATE.validate_python(Certificate(**content).as_dict())
        path = out / certificate.file
        return Package(path, certificate) if path.stat().st_size == certificate.bytes else None
    except (OSError, ValueError, TypeError):  # missing, cut short or of another version: the run is exported anew
        return None


def compare(
    reopened: ReopeningProcess,
    checkpoint: Predictor,
    pairs: Sequence[Pair],
    pixels: bool,
    only: Size | None = None,
    report: OnProgress | None = None,
) -> Difference:
    """Compares an exported network with its `checkpoint` on up to IMAGES pairs, and on a few at two other sizes.

    Both compute one image at a time with the same number of threads. `pixels` says that the export takes uint8. `only`
    is the (height, width) of images where the export takes no other; then no other size is compared. Raises UserError
    when the exported network can't be opened.
    """
    card, model = checkpoint.card, checkpoint.model
    others = [] if only else [size for size in other_sizes(checkpoint.size) if takes(model, size)]
    sizes = tuple(dict.fromkeys((checkpoint.size, *others)))
    compared = [(checkpoint.size, pair) for pair in evenly(pairs, IMAGES)]
    compared += [(size, pair) for size in sizes[1:] for pair in evenly(pairs, OTHER_IMAGES)]
    predictors = {size: Predictor(checkpoint.model, card, size) for size in sizes}
    before, after, count = ConfusionMatrix(card), ConfusionMatrix(card), _Count()
    for done, (size, pair) in enumerate(compared, start=1):
        predictor, image = predictors[size], read_image(pair.image, card)
        view, mask = predictor.view(image, read_mask(pair.mask, card), pair.name, 0)
        ours = predictor.logits(view[None])
        given = predictor.view.resized(image)[None] if pixels else view[None].numpy()
        theirs = unpadded_logits(reopened.logits(given)[0], size, card)
        count.add(ours, theirs)
        if size == checkpoint.size:
            truth = unpad(mask[None], size)
            before.update(ours.argmax(1), truth)
            after.update(theirs.argmax(1), truth)
        if report:
            report(done, len(compared))
    mean = count.total / count.logits
    scores = before.score().miou, after.score().miou
    return Difference(before.images, sizes, count.pixels, count.differing, count.largest, mean, count.scale, *scores)


def unpadded_logits(logits: Array, size: Size, card: Card) -> Tensor:
    """Logits (1, C, height, width) at `size`, without the padding and without an output that is no class."""
    return class_logits(unpad(torch.from_numpy(logits), size), card)


def failures(difference: Difference, share_of_bytes: float, limits: ExportLimits) -> list[str]:
    """Says in words which limits are exceeded; `share_of_bytes` are the export's bytes as a share of those in float."""
    agreeing = 1 - difference.differing / difference.pixels
    lost = 100 * (difference.before - difference.after)
    relative = difference.largest / difference.scale if difference.scale else difference.largest
    problems = []
    if difference.largest >= NO_NUMBER:
        problems.append("it returns logits that are not finite numbers")
    if agreeing < limits.agreement:
        problems.append(
            f"{100 * (1 - agreeing):.4g} % of {difference.pixels} pixels differ from the checkpoint's "
            f"(at most {100 * (1 - limits.agreement):.4g} %)"
        )
    if limits.difference is not None and relative > limits.difference:
        problems.append(f"a logit differs by {relative:.2g} of the largest (at most {limits.difference:.2g})")
    if limits.points is not None and lost > limits.points:
        problems.append(f"{lost:.2f} points of mIoU are lost (at most {limits.points:g})")
    if limits.size is not None and share_of_bytes > limits.size:
        problems.append(f"it weighs {share_of_bytes:.2f} of the network in float (at most {limits.size:g})")
    return problems


def other_sizes(size: Size) -> tuple[Size, Size]:
    """Two more sizes at which an export must agree: about 0.5 and 1.25 times `size`, multiples of 32 from 64 on."""
    return _scaled(size, 0.5), _scaled(size, 1.25)


def _scaled(size: Size, factor: float) -> Size:
    height, width = (
        max(LEAST_SIDE // SIZE_MULTIPLE, round(factor * side / SIZE_MULTIPLE)) * SIZE_MULTIPLE for side in size
    )
    return height, width


def evenly(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` of the pairs, at equal distances in the list."""
    places = np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)
    return [pairs[place] for place in places]


class _Count:
    """Sums and maxima of the differences over all images."""

    def __init__(self) -> None:
        self.pixels = self.differing = self.logits = 0
        self.largest = self.total = self.scale = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Adds one image; both logits are (1, C, h, w)."""
        distance = torch.nan_to_num((ours - theirs).abs(), nan=NO_NUMBER, posinf=NO_NUMBER)
        self.pixels += ours[:, 0].numel()
        self.differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
        self.logits += ours.numel()
        self.largest = max(self.largest, float(distance.max()))
        self.total += float(distance.double().sum())
        self.scale = max(self.scale, float(ours.abs().max()))
