"""Predictions of teacher and student on a split, which are computed once and stored on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segskd.callbacks import OnProgress
from segskd.data.cache import stamp
from segskd.data.dataset import Pair
from segskd.data.samples import Samples
from segskd.data.transforms import unpad
from segskd.errors import UserError
from segskd.evaluate.comparison import AGREEMENT, agreement
from segskd.evaluate.metrics import ConfusionMatrix
from segskd.evaluate.predictor import Predictor
from segskd.files import write_whole, writing
from segskd.models.build import digest

Array = npt.NDArray[Any]
FORMAT = 1
BATCH = 8
SAVE_SECONDS = 2.0
SHORT = 16
VALUES_AT_ONCE = 2**24
"""Logits whose softmax is computed at once: a few rows of a large picture with many classes."""


@dataclass
class PredictionProgress:
    """How many images are done, and the problem of each image that couldn't be read, by name."""

    done: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


class Predictions:
    """True masks, predicted classes, confidences, confusion matrices and agreement of all images of a split.

    They lie in a folder below `parent` whose name depends on the networks, the card, the size and the files, so that
    other predictions are never mistaken for these. The arrays are written image by image; key.json says how many images
    are complete.
    """

    def __init__(self, teacher: Predictor, student: Predictor, pairs: Sequence[Pair], parent: Path) -> None:
        self._networks = (teacher, student)
        self._pairs = list(pairs)
        self._parent = parent
        self._key = _key(teacher, student, pairs)
        self.folder = parent / _sha(json.dumps(self._key))[:SHORT]
        self._arrays: dict[str, Array] = {}
        self._unreadable: dict[str, str] = {}

    @property
    def ready(self) -> bool:
        """Whether every image is done."""
        return bool(self._arrays) or self.progress().done == len(self._pairs)

    def progress(self) -> PredictionProgress:
        """How far the stored predictions are. With a damaged key.json, no image is done."""
        try:
            stored = json.loads((self.folder / "key.json").read_text(encoding="utf-8"))
            progress = PredictionProgress(**stored.pop("progress"))
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return PredictionProgress()
        complete = stored == self._key and all((self.folder / f"{name}.npy").is_file() for name in self._layout())
        return progress if complete else PredictionProgress()

    def compute(self, report: OnProgress | None = None) -> None:
        """Predicts the images that an earlier process left, and returns at once if there are none.

        It waits while another thread or process computes the same. `report` is called with the number of images that
        are done and of all images. Raises UserError when no image can be read, or the disk is full.
        """
        if not self.ready:
            with writing(self._parent):
                self._parent.mkdir(parents=True, exist_ok=True)
            with writing(self._parent), filelock.FileLock(self._parent / ".lock"):
                progress = self.progress()
                if not progress.done:
                    self._begin()
                if progress.done < len(self._pairs):
                    self._predict_rest(progress, report)
        self._mapped()

    def __getitem__(self, name: str) -> Array:
        """A stored array, mapped from disk: `truth`, `teacher`, `student` and both `_confidence` uint8 (N, h, w),
        `matrices` int32 (N, 2, C, C), `agreement` int64 (N, 5). Raises RuntimeError before all are there.
        """
        return self._mapped()[name]

    @property
    def unreadable(self) -> dict[str, str]:
        """The problem of each image that was skipped, by name. Raises RuntimeError before all images are done."""
        self._mapped()
        return self._unreadable

    def _mapped(self) -> dict[str, Array]:
        """Maps the arrays into memory. They then stay readable when their files are deleted."""
        if not self._arrays:
            progress = self.progress()
            if progress.done < len(self._pairs):
                raise RuntimeError("the predictions are not computed yet")
            self._unreadable = progress.unreadable
            self._arrays = {n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in self._layout()}
        return self._arrays

    def _layout(self) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
        """Shape and type of each array, by name."""
        images, classes = len(self._pairs), len(self._networks[0].card.classes)
        maps = ("truth", "teacher", "student", "teacher_confidence", "student_confidence")
        return {
            **dict.fromkeys(maps, ((images, *self._networks[0].size), np.uint8)),
            "matrices": ((images, 2, classes, classes), np.int32),
            "agreement": ((images, len(AGREEMENT)), np.int64),
        }

    def _begin(self) -> None:
        """Creates empty arrays, and deletes those of other networks. Processes that have these mapped can still read
        them."""
        for old in self._parent.iterdir():
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
        self.folder.mkdir()
        for name, (shape, dtype) in self._layout().items():
            np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def _predict_rest(self, progress: PredictionProgress, report: OnProgress | None) -> None:
        teacher = self._networks[0]
        samples = Samples(self._pairs, 1, teacher.view, teacher.card)
        batch = teacher.images_at_once(BATCH)
        saved = time.monotonic()
        while progress.done < len(self._pairs):
            wanted = range(progress.done, min(progress.done + batch, len(self._pairs)))
            for number, rows in self._batch(samples, wanted, progress).items():
                self._write(number, rows)
            progress.done = wanted.stop
            if progress.done == len(self._pairs) or time.monotonic() - saved > SAVE_SECONDS:
                self._save(progress)
                saved = time.monotonic()
            if report:
                report(progress.done, len(self._pairs))

    def _batch(self, samples: Samples, numbers: range, progress: PredictionProgress) -> dict[int, dict[str, Array]]:
        """The rows of the images that can be read, by number. The others are noted in `progress`."""
        try:
            images, masks = samples.load(numbers)
            return self._rows(list(numbers), images, masks)
        except UserError as error:
            if len(numbers) > 1:
                parts = [self._batch(samples, range(n, n + 1), progress) for n in numbers]
                return {number: rows for part in parts for number, rows in part.items()}
            progress.unreadable[self._pairs[numbers[0]].name] = str(error)
            if len(progress.unreadable) == len(self._pairs):
                raise
            return {}

    def _rows(self, numbers: Sequence[int], images: Tensor, masks: Tensor) -> dict[int, dict[str, Array]]:
        teacher, student = (classes_and_confidence(network, images) for network in self._networks)
        truth = unpad(masks, self._networks[0].size).numpy()
        card = self._networks[0].card
        rows: dict[int, dict[str, Array]] = {}
        for place, number in enumerate(numbers):
            ours, theirs, mask = teacher[0][place], student[0][place], truth[place]
            matrices = [_matrix(ConfusionMatrix(card), classes, mask) for classes in (ours, theirs)]
            kinds = agreement(ours, theirs, mask, card.ignore_index)
            rows[number] = {
                "truth": mask,
                "teacher": ours,
                "student": theirs,
                "teacher_confidence": teacher[1][place],
                "student_confidence": student[1][place],
                "matrices": np.stack(matrices),
                "agreement": np.bincount(kinds.ravel(), minlength=len(AGREEMENT)),
            }
        return rows

    def _write(self, number: int, rows: dict[str, Array]) -> None:
        """Writes one image's rows by file writes: on a full disk, a write to a mapped array would kill the process."""
        for name, (shape, dtype) in self._layout().items():
            size = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
            with open(self.folder / f"{name}.npy", "r+b") as file:
                file.seek((number - shape[0]) * size, os.SEEK_END)
                file.write(np.ascontiguousarray(rows[name], dtype=dtype).tobytes())

    def _save(self, progress: PredictionProgress) -> None:
        for name in self._layout():
            with open(self.folder / f"{name}.npy", "rb") as file:
                os.fsync(file.fileno())
        content = {**self._key, "progress": {"done": progress.done, "unreadable": progress.unreadable}}
        write_whole(self.folder / "key.json", json.dumps(content, indent=2).encode() + b"\n")


def classes_and_confidence(network: Predictor, images: Tensor) -> tuple[Array, Array]:
    """The classes and their softmax in percent, both uint8 (N, h, w), of images (N, C, H, W) at the padded size."""
    with torch.inference_mode():
        logits = network.logits(images)
        rows = max(1, VALUES_AT_ONCE // (logits.numel() // logits.shape[2]))
        parts = [part.softmax(1).max(1) for part in torch.split(logits, rows, dim=2)]
        classes = torch.cat([place for _, place in parts], dim=1)
        percent = (torch.cat([share for share, _ in parts], dim=1) * 100).round()
    return classes.cpu().numpy().astype(np.uint8), percent.cpu().numpy().astype(np.uint8)


def _matrix(matrix: ConfusionMatrix, classes: Array, mask: Array) -> Array:
    matrix.update(torch.from_numpy(classes)[None].long(), torch.from_numpy(mask)[None].long())
    counts: Array = matrix.counts.numpy().astype(np.int32)
    return counts


def _key(teacher: Predictor, student: Predictor, pairs: Sequence[Pair]) -> dict[str, Any]:
    tiles = [repr(network.tiles) for network in (teacher, student)]
    return {
        "format": FORMAT,
        "teacher": digest(teacher.model),
        "student": digest(student.model),
        "card": _sha(teacher.card.model_dump_json()),
        "size": list(teacher.size),
        "images": _sha("\n".join(f"{p.name} {stamp(p.image)} {stamp(p.mask)}" for p in pairs)),
        **({"tiles": tiles} if teacher.tiles or student.tiles else {}),
    }


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
