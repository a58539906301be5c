"""A run's student beside its teacher: masks, confidences, gaps, agreement, grafts and first errors of a split.

What the networks compute is stored below the run (`compare/SPLIT`), so that showing another image only reads files.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from segskd.callbacks import OnProgress
from segskd.config import Device, Size
from segskd.data.cache import cached
from segskd.data.cards import data_folder, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.data.transforms import padded_size
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.evaluate.comparison import AGREEMENT, ImageGap, NetworkComparison
from segskd.evaluate.grafts import Grafts
from segskd.evaluate.metrics import Score, score
from segskd.evaluate.pictures import resized
from segskd.evaluate.predictions import Array, Predictions, classes_and_confidence
from segskd.evaluate.predictor import Predictor
from segskd.evaluate.tiles import tiles_of
from segskd.models.build import describe, digest, load
from segskd.models.cut import cut, takes
from segskd.models.stages import HEAD
from segskd.runs import Run
from segskd.standalone.bands import Pixels

WIDEST = 1024
NATIVE_SIDE = 2048
"""The longest side of a picture that is predicted at its own resolution. Larger ones are scaled down to it."""
NATIVE_LOGITS = 2**28
"""The most logits, pixels times classes, of such a picture: 1 GiB. With more than 64 classes the largest pictures are
scaled down."""
TEACHER_TOO = 254
"""The value in a map of first errors where the teacher is wrong, too, so that no stage is the cause."""
IGNORED = 255


@dataclass(frozen=True)
class Frame:
    """One image as RGB (H, W, 3), with masks and confidences in percent, uint8 (h, w), at the run's size.

    The image has the run's aspect ratio and is at most WIDEST pixels wide. `truth` is None for an uploaded image. For
    an image that is predicted at its own resolution, all arrays have that size, and `tile` is the (height, width) of
    the tiles, if there were several.
    """

    image: Uint8
    truth: Uint8 | None
    teacher: Uint8
    student: Uint8
    teacher_confidence: Uint8
    student_confidence: Uint8
    tile: Size | None = field(default=None, kw_only=True)


class Gap(NamedTuple):
    """Both networks' IoU on one image, from 0 to 1, and the teacher's minus the student's."""

    name: str
    teacher: float
    student: float
    gap: float


class SideBySide:
    """Teacher and student of a distilled run on one split. Several threads may use it at once."""

    def __init__(self, run: Run, split: str = "val", device: Device = "auto") -> None:
        """Loads both networks. Raises UserError when the run has no teacher or no student yet, or when files are
        missing."""
        recipe = run.recipe
        if recipe.kind == "teach" or recipe.teacher is None:
            raise UserError(f"run {run.name} has no teacher to compare with: open a run that was distilled")
        if not (run.model_folder / "config.json").is_file():
            raise UserError(f"run {run.name} has no student yet: it appears when the first stage is trained")
        self.run = run
        self.split = split
        data = data_folder(recipe.data.folder)
        self.card = load_card(recipe.data.card, data)
        self.size: Size = recipe.data.size
        place = choose_device(device)
        models = load(recipe.teacher), load(run.model_folder)
        self._teacher, self._student = (Predictor(model, self.card, self.size, place) for model in models)
        self.teacher_name, self.student_name = (describe(model) for model in models)
        self._pairs = list_pairs(self.card, data, split)
        self._number = {pair.name: number for number, pair in enumerate(self._pairs)}
        self._predictions = Predictions(self._teacher, self._student, self._pairs, run.path / "compare" / split)
        self._lock = threading.Lock()
        self.no_grafts: str | None = None
        """Why the run has no grafts, None if it has."""
        self._open_grafts()

    def _open_grafts(self) -> None:
        self._grafts: Grafts | None = None
        try:
            grafts = Grafts.of(self.run, cut(self._student.model), cut(self._teacher.model), self.card)
        except UserError as error:
            self.no_grafts = str(error)
            return
        self._grafts = grafts
        self._graft_inputs = [*grafts.stages, digest(grafts.adapters), self._predictions.folder.name]

    # -- what is stored -----------------------------------------------------------------------------

    @property
    def stages(self) -> list[str]:
        """The stages after which there is a graft, in order. It is empty where `no_grafts` says why."""
        return self._grafts.stages if self._grafts else []

    @property
    def names(self) -> list[str]:
        """The names of the images, without those that can't be read, which are known when `predict` is done."""
        unreadable = self.unreadable
        return [pair.name for pair in self._pairs if pair.name not in unreadable]

    @property
    def unreadable(self) -> dict[str, str]:
        """The problem of each image that was skipped, by name."""
        return self._predictions.unreadable if self.ready else {}

    @property
    def ready(self) -> bool:
        """Whether `predict` has nothing left to do."""
        return self._predictions.ready

    def predict(self, report: OnProgress | None = None) -> None:
        """Runs both networks over all images and stores the predictions, which all other methods read.

        Images that are stored already are skipped. `report` is called with the number of images that are done and of
        all images. Raises UserError when the run was deleted, the disk is full, or no image can be read.
        """
        Run.open(self.run.path)  # writing predictions must not create the folder of a deleted run again
        try:
            self._predictions.compute(report)
        except FileNotFoundError:
            Run.open(self.run.path)
            raise

    # -- one image ----------------------------------------------------------------------------------

    def frame(self, name: str) -> Frame:
        """Everything that is shown of an image. Raises UserError for an unknown image."""
        number = self._number_of(name)
        maps = ("truth", "teacher", "student", "teacher_confidence", "student_confidence")
        image = display_image(read_image(self._pairs[number].image, self.card), self.size)
        return Frame(image, *(np.array(self._predictions[kind][number]) for kind in maps))

    def predict_image(self, image: Pixels, native: bool = False) -> Frame:
        """Predictions of both networks for a picture (H, W, C) that has the card's channels and belongs to no dataset.

        It is predicted at the run's size or, with `native`, at its own, by overlapping tiles of the run's size. Raises
        UserError where a network doesn't take the tiles of a small picture.
        """
        networks = (self._teacher, self._student)
        if native:
            networks = (self._native(self._teacher, image), self._native(self._student, image))
        size, tiles = networks[0].size, networks[0].tiles
        photograph = resized(displayed(image), size) if tiles else display_image(image, size)
        pixels = networks[0].view.image_only(image)[None]
        teacher, student = (classes_and_confidence(net, pixels) for net in networks)
        tile = tiles.tile if tiles and not tiles.cover(padded_size(size)) else None
        return Frame(photograph, None, teacher[0][0], student[0][0], teacher[1][0], student[1][0], tile=tile)

    def _native(self, network: Predictor, image: Pixels) -> Predictor:
        height, width = image.shape[:2]
        logits = height * width * len(self.card.classes)
        scale = min(1.0, NATIVE_SIDE / max(height, width), (NATIVE_LOGITS / logits) ** 0.5)
        height, width = max(1, round(scale * height)), max(1, round(scale * width))
        tiles = tiles_of(self.size)
        sides = padded_size((height, width))
        piece = min(sides[0], tiles.tile[0]), min(sides[1], tiles.tile[1])
        if not takes(network.model, piece):
            raise UserError(
                f"{describe(network.model)} doesn't take images of {piece[0]}x{piece[1]}, into which it would "
                "be cut: predict it at the run's size"
            )
        return Predictor(network.model, self.card, (height, width), network.device, tiles)

    def graft_classes(self, name: str) -> Uint8:
        """The masks uint8 (S, h, w) of the grafts after each of `stages`. They are cached.

        The mask after the head is the student's own. Raises UserError where there are no grafts.
        """
        number = self._number_of(name)
        if self._grafts is None:
            raise UserError(str(self.no_grafts))
        if not self._predictions.folder.is_dir():
            raise UserError(f"run {self.run.name} was trained further or deleted: open it again")
        grafts, pair = self._grafts, self._pairs[number]

        def compute() -> dict[str, Array]:
            image = self._student.view.image_only(read_image(pair.image, self.card))
            return {"classes": grafts.classes(image[None])}

        inputs = [*self._graft_inputs, pair.name]
        classes: Uint8 = cached(self._predictions.folder / "grafts", "graft", inputs, [pair.image], compute)["classes"]
        if grafts.stages[-1] == HEAD:  # an image that is computed without its batch may differ in a pixel
            classes[-1] = self._predictions["student"][number]
        return classes

    def first_errors(self, name: str) -> Uint8:
        """The stage that causes each pixel's error, uint8 (h, w).

        0: the student is right. 1 + k: the student is wrong, and the first graft that is wrong there is the one after
        `stages[k]`. TEACHER_TOO: the teacher is wrong, too. IGNORED: the pixel doesn't count. Raises UserError where
        there are no grafts, or the last stage is not trained yet.
        """
        if self.stages and self.stages[-1] != HEAD:
            raise UserError(
                f"run {self.run.name} is trained up to {self.stages[-1]}: first errors are known after its last stage"
            )
        classes, number = self.graft_classes(name), self._number_of(name)
        truth, teacher = (np.array(self._predictions[kind][number]) for kind in ("truth", "teacher"))
        return first_errors(classes, teacher, truth, self.card.ignore_index)

    # -- all images ---------------------------------------------------------------------------------

    def gaps(self, class_name: str | None = None) -> list[Gap]:
        """The images sorted by their gap in mIoU (see ImageGap.sort_key), or in the IoU of one class, largest first.

        For one class, images are left out where neither the truth nor a network has the class. A network that rightly
        predicts no pixel of it where the other does has IoU 1. Raises UserError for an unknown class.
        """
        if class_name is None:
            return [Gap(i.name, i.teacher_miou, i.student_miou, i.gap) for i in self._figures.comparison.images]
        if class_name not in self.card.class_names:
            raise UserError(f"'{self.card.name}' has no class '{class_name}'")
        gaps = []
        for name, scores in self._figures.scores.items():
            shares = [score.per_class[class_name] for score in scores]
            if any(share is not None for share in shares):
                teacher, student = (1.0 if share is None else share for share in shares)
                gaps.append(Gap(name, teacher, student, teacher - student))
        return sorted(gaps, key=lambda gap: -gap.gap)

    def retention(self) -> list[dict[str, Any]]:
        """One row for each class: "class", the IoUs "teacher" and "student", their "difference", and its true
        "pixels"."""
        return self._figures.comparison.retention()

    def scores(self) -> tuple[Score, Score]:
        """The teacher's and the student's score on the split."""
        return self._figures.comparison.teacher, self._figures.comparison.student

    def agreement(self, name: str | None = None) -> dict[str, int]:
        """Pixels of each kind of AGREEMENT, of one image or of all."""
        if name is None:
            return self._figures.comparison.pixels
        return dict(zip(AGREEMENT, self._predictions["agreement"][self._number_of(name)].tolist(), strict=True))

    def error_shares(
        self, names: Sequence[str] | None = None, report: OnProgress | None = None
    ) -> list[dict[str, Any]]:
        """The student's wrong pixels by the stage that causes them, over the named images or all.

        Each row has "stage", "pixels", and "share" of all wrong pixels. Rows are in the order of the stages; the last
        one, "teacher", has the pixels where the teacher is wrong, too. `report` is called with the number of images
        that are done and of all images. Raises UserError as `first_errors` does.
        """
        named = self.names if names is None else list(names)
        counts = np.zeros(256, dtype=np.int64)
        for done, name in enumerate(named, start=1):
            counts += np.bincount(self.first_errors(name).ravel(), minlength=256)
            if report:
                report(done, len(named))
        pixels = [*counts[1 : len(self.stages) + 1].tolist(), int(counts[TEACHER_TOO])]
        rows = zip([*self.stages, "teacher"], pixels, strict=True)
        return [{"stage": stage, "pixels": n, "share": n / max(sum(pixels), 1)} for stage, n in rows]

    # -- inside -------------------------------------------------------------------------------------

    def _number_of(self, name: str) -> int:
        if name not in self._number or name in self.unreadable:
            raise UserError(f"split '{self.split}' of '{self.card.name}' has no image '{name}'")
        return self._number[name]

    @property
    def _figures(self) -> _Figures:
        with self._lock:
            return self._computed_figures

    @cached_property
    def _computed_figures(self) -> _Figures:
        return _Figures(self._predictions, self._pairs, self._teacher)


class _Figures:
    """Scores and gaps, computed from the stored confusion matrices."""

    def __init__(self, predictions: Predictions, pairs: Sequence[Pair], predictor: Predictor) -> None:
        card = predictor.card
        matrices, kinds = torch.from_numpy(np.array(predictions["matrices"])).long(), predictions["agreement"]
        read = [number for number, pair in enumerate(pairs) if pair.name not in predictions.unreadable]
        totals = matrices.sum(0)
        self.scores: dict[str, tuple[Score, Score]] = {}
        images = []
        for number in read:
            name, both = pairs[number].name, matrices[number]
            mious = (0.0, 0.0)  # an image whose every pixel is ignored has no mIoU
            if both.any():
                ours, theirs = score(both[0], card, 1), score(both[1], card, 1)
                self.scores[name] = ours, theirs
                mious = ours.miou, theirs.miou
            images.append(ImageGap(name, *mious, dict(zip(AGREEMENT, kinds[number].tolist(), strict=True))))
        self.comparison = NetworkComparison(
            score(totals[0], card, len(read)),
            score(totals[1], card, len(read)),
            dict(zip(card.class_names, totals[0].sum(1).tolist(), strict=True)),
            sorted(images, key=lambda image: image.sort_key),
        )


def first_errors(grafts: Uint8, teacher: Uint8, truth: Uint8, ignore_index: int) -> Uint8:
    """As `SideBySide.first_errors`, from masks `grafts` (S, h, w), of which the last is the student's, and (h, w)."""
    wrong = grafts != truth
    errors = np.where(wrong[-1], 1 + wrong.argmax(0), 0)
    errors = np.where(wrong[-1] & (teacher != truth), TEACHER_TOO, errors)
    return np.where(truth == ignore_index, IGNORED, errors).astype(np.uint8)


def display_image(image: Pixels, size: Size) -> Uint8:
    """The image as RGB in the aspect ratio of `size` (height, width), at most WIDEST pixels wide."""
    width = min(WIDEST, image.shape[1])
    return resized(displayed(image), (max(1, round(width * size[0] / size[1])), width))
