"""Compares teacher and student on the same images, by pixel, by class and by image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from segskd.callbacks import OnProgress
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.errors import UserError
from segskd.evaluate.metrics import ConfusionMatrix, Score
from segskd.evaluate.pictures import class_legend, colourised, contact_sheet, enlarged, resized, shown_size, write_png
from segskd.evaluate.predictor import Predictor, predict_pairs
from segskd.files import writing

AGREEMENT = ("both right", "teacher only", "student only", "both wrong", "ignored")
# Blue, orange, green and vermilion of Okabe and Ito's palette, which colour-blind people can distinguish.
AGREEMENT_COLORS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (213, 94, 0), (0, 0, 0))
SHOWN = 4


@dataclass(frozen=True)
class ImageGap:
    """Both networks' mIoU on one image, and its pixels of each kind of agreement."""

    name: str
    teacher_miou: float
    student_miou: float
    pixels: dict[str, int]

    @property
    def gap(self) -> float:
        return self.teacher_miou - self.student_miou

    @property
    def sort_key(self) -> tuple[bool, float]:
        """The sort key of images: the largest gap first, and images whose pixels are all ignored last."""
        return sum(self.pixels.values()) == self.pixels[AGREEMENT[-1]], -self.gap


@dataclass(frozen=True)
class NetworkComparison:
    """Both networks' scores on a split, the pixels of each class in the truth (`support`), and the images by
    `sort_key`."""

    teacher: Score
    student: Score
    support: dict[str, int]
    images: list[ImageGap]

    @property
    def pixels(self) -> dict[str, int]:
        """Pixels of each kind of agreement, summed over all images."""
        return {kind: sum(image.pixels[kind] for image in self.images) for kind in AGREEMENT}

    def retention(self) -> list[dict[str, Any]]:
        """One row for each class: both IoUs, their difference, and the pixels of the class in the truth."""
        rows = []
        for name, support in self.support.items():
            teacher, student = self.teacher.per_class[name], self.student.per_class[name]
            lost = None if teacher is None or student is None else student - teacher
            rows.append({"class": name, "teacher": teacher, "student": student, "difference": lost, "pixels": support})
        return rows


def agreement(teacher: Uint8, student: Uint8, mask: Uint8, ignore_index: int) -> Uint8:
    """The index into AGREEMENT, uint8 (H, W), of each pixel of two predictions and the truth (H, W)."""
    kind = np.where(teacher == mask, np.where(student == mask, 0, 1), np.where(student == mask, 2, 3))
    return np.where(mask == ignore_index, 4, kind).astype(np.uint8)


def compare(
    teacher: Predictor, student: Predictor, pairs: Sequence[Pair], out: Path, report: OnProgress | None = None
) -> NetworkComparison:
    """Compares two networks on `pairs` and writes the comparison into `out`. Both must have the same card and size.

    It writes comparison.json, retention.csv, images.csv (sorted by ImageGap.sort_key), agreement/NAME.png, and
    gallery.png with the images that have the largest gap. `report` is called with the number of images that are
    compared and of all images. Raises UserError when the sizes differ.
    """
    if teacher.fixed_size != student.fixed_size:
        raise UserError("teacher and student must be compared at one --size")
    card = teacher.card
    totals = ConfusionMatrix(card), ConfusionMatrix(card)
    images: list[ImageGap] = []
    for (part, ours, masks), (_, theirs, _) in zip(
        predict_pairs(teacher, pairs), predict_pairs(student, pairs), strict=True
    ):
        for pair, *classes in zip(part, ours.argmax(1).cpu(), theirs.argmax(1).cpu(), masks.cpu(), strict=True):
            images.append(_compare_one(pair, classes, totals, card, out))
        if report:
            report(len(images), len(pairs))
    comparison = NetworkComparison(
        totals[0].score(), totals[1].score(), _support(totals[0]), sorted(images, key=lambda image: image.sort_key)
    )
    _write_tables(comparison, out)
    _write(out / "gallery.png", gallery(teacher, student, pairs, [image.name for image in comparison.images[:SHOWN]]))
    return comparison


def gallery(teacher: Predictor, student: Predictor, pairs: Sequence[Pair], names: Sequence[str]) -> bytes:
    """A PNG with a row for each named image: image, truth, teacher, student, agreement, all in the size of the
    first."""
    by_name = {pair.name: pair for pair in pairs}
    named = [by_name[name] for name in names]
    shown = shown_size(teacher.fitted(read_image(named[0].image, teacher.card)).size)
    rows: list[list[Uint8]] = []
    for (part, ours, masks), (_, theirs, _) in zip(
        predict_pairs(teacher, named), predict_pairs(student, named), strict=True
    ):
        for pair, *tensors in zip(part, masks, ours.argmax(1), theirs.argmax(1), strict=True):
            mask, by_teacher, by_student = (_array(tensor) for tensor in tensors)
            kinds = agreement(by_teacher, by_student, mask, teacher.card.ignore_index)
            drawn = [colourised(m, teacher.card) for m in (mask, by_teacher, by_student)]
            drawn.append(np.array(AGREEMENT_COLORS, dtype=np.uint8)[kinds])
            photograph = resized(displayed(read_image(pair.image, teacher.card)), shown)
            rows.append([photograph, *(enlarged(picture, shown) for picture in drawn)])
    captions = ["image", "truth", "teacher", "student", "agreement"]
    legend = [*class_legend(teacher.card), *zip(AGREEMENT[:4], AGREEMENT_COLORS, strict=False)]
    return write_png(contact_sheet(rows, captions, legend))


def _compare_one(
    pair: Pair, tensors: Sequence[Tensor], totals: tuple[ConfusionMatrix, ConfusionMatrix], card: Card, out: Path
) -> ImageGap:
    teacher, student, mask = tensors
    own = ConfusionMatrix(card), ConfusionMatrix(card)
    for matrix, classes in ((totals[0], teacher), (totals[1], student), (own[0], teacher), (own[1], student)):
        matrix.update(classes[None], mask[None])
    kinds = agreement(_array(teacher), _array(student), _array(mask), card.ignore_index)
    _write(out / "agreement" / f"{pair.name}.png", _agreement_png(kinds))
    counts = np.bincount(kinds.ravel(), minlength=len(AGREEMENT)).tolist()
    ours, theirs = (matrix.score().miou if (mask != card.ignore_index).any() else 0.0 for matrix in own)
    return ImageGap(pair.name, ours, theirs, dict(zip(AGREEMENT, counts, strict=True)))


def _agreement_png(kinds: Uint8) -> bytes:
    return write_png(np.array(AGREEMENT_COLORS, dtype=np.uint8)[kinds])


def _support(matrix: ConfusionMatrix) -> dict[str, int]:
    return dict(zip(matrix.card.class_names, matrix.counts.sum(1).tolist(), strict=True))


def _write_tables(comparison: NetworkComparison, out: Path) -> None:
    retention = comparison.retention()
    images = [
        {"image": i.name, "teacher": i.teacher_miou, "student": i.student_miou, "gap": i.gap, **i.pixels}
        for i in comparison.images
    ]
    _write(out / "retention.csv", _csv(retention))
    _write(out / "images.csv", _csv(images))
    content = {
        "teacher": comparison.teacher.as_dict(),
        "student": comparison.student.as_dict(),
        "pixels": comparison.pixels,
        "retention": retention,
        "images": images,
    }
    _write(out / "comparison.json", json.dumps(content, indent=2).encode() + b"\n")


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write(path: Path, content: bytes) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _array(tensor: Tensor) -> Uint8:
    return tensor.cpu().numpy().astype(np.uint8)
