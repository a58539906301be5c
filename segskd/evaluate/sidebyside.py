"""A run's student beside its teacher: masks, confidences, gaps, agreement, grafts and first errors of a split.

Everything that takes networks is computed once and kept below the run (`compare/SPLIT`), so that switching
images only reads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from segskd.config import Device, Size
from segskd.data.cache import kept
from segskd.data.cards import data_folder, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.data.transforms import padded_size
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.evaluate.compare import AGREEMENT, Comparison, ImageGap
from segskd.evaluate.grafts import Grafts
from segskd.evaluate.metrics import Score, score
from segskd.evaluate.pictures import resized
from segskd.evaluate.predict import Predictor, Report
from segskd.evaluate.predictions import Array, Predictions, classes_and_confidence
from segskd.evaluate.tiles import tiles_of
from segskd.models.build import describe, digest, load
from segskd.models.cut import cut, takes
from segskd.models.stages import HEAD
from segskd.runs import Run
from segskd.standalone.bands import Pixels

WIDEST = 1024
NATIVE_SIDE = 2048
"""Longest side of a picture that both networks see at its own resolution; larger ones are scaled down to it."""
NATIVE_LOGITS = 2**28
"""Of such a picture, pixels times classes: 1 GiB. With more than 64 classes the largest pictures are scaled down."""
TEACHER_TOO = 254
"""In a map of first errors: the teacher is wrong there as well, so no stage is to blame."""
IGNORED = 255


@dataclass(frozen=True)
class Frame:
    """One image: the photograph RGB (H, W, 3), and masks and confidences in percent, uint8 (h, w) at the run's size.

    The photograph has the run's aspect and is at most WIDEST pixels wide. `truth` is None for an uploaded one; one seen
    at its own resolution gives all of them at that, and the `tile` by which it went through the networks.
    """

    image: Uint8
    truth: Uint8 | None
    teacher: Uint8
    student: Uint8
    teacher_confidence: Uint8
    student_confidence: Uint8
    tile: Size | None = field(default=None, kw_only=True)


class Gap(NamedTuple):
    """Both networks' IoU on one image, between 0 and 1, and by how much the teacher's is larger."""

    name: str
    teacher: float
    student: float
    gap: float


class SideBySide:
    """Teacher and student of a distilled run on one split. Safe to use from several threads."""

    def __init__(self, run: Run, split: str = "val", device: Device = "auto") -> None:
        """Loads both networks. Raises UserError when the run has no teacher, no student yet, or files are gone."""
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
        self._kept = Predictions(self._teacher, self._student, self._pairs, run.path / "compare" / split)
        self._lock = threading.Lock()
        self.no_grafts: str | None = None
        """Why there are no grafts; None where there are."""
        self._open_grafts()

    def _open_grafts(self) -> None:
        self._grafts: Grafts | None = None
        try:
            grafts = Grafts.of(self.run, cut(self._student.model), cut(self._teacher.model), self.card)
        except UserError as error:
            self.no_grafts = str(error)
            return
        self._grafts = grafts
        self._grafts_are = [*grafts.stages, digest(grafts.adapters), self._kept.folder.name]

    # -- what there is ------------------------------------------------------------------------------

    @property
    def stages(self) -> list[str]:
        """The stages after which there is a graft, in order; none where `no_grafts` says why."""
        return self._grafts.stages if self._grafts else []

    @property
    def names(self) -> list[str]:
        """The images by name, but for those that can't be read (known once `predict` is done)."""
        unreadable = self.unreadable
        return [pair.name for pair in self._pairs if pair.name not in unreadable]

    @property
    def unreadable(self) -> dict[str, str]:
        """What is wrong with images that were left out, by name."""
        return self._kept.unreadable if self.ready else {}

    @property
    def ready(self) -> bool:
        """Whether `predict` has nothing left to do."""
        return self._kept.ready

    def predict(self, report: Report | None = None) -> None:
        """Both networks over all images, once: whatever else is asked for reads what this keeps.

        At once when it was done before; goes on where a process that was killed got to.
        Raises UserError when the run is gone, the disk is full, or no image can be read.
        """
        Run.open(self.run.path)  # a run deleted in the meantime must not come back as a folder of predictions
        try:
            self._kept.compute(report)
        except FileNotFoundError:
            Run.open(self.run.path)
            raise

    # -- one image ----------------------------------------------------------------------------------

    def frame(self, name: str) -> Frame:
        """An image with everything to be shown of it. Raises UserError for an image that there isn't."""
        number = self._place(name)
        maps = ("truth", "teacher", "student", "teacher_confidence", "student_confidence")
        image = shown(read_image(self._pairs[number].image, self.card), self.size)
        return Frame(image, *(np.array(self._kept[kind][number]) for kind in maps))

    def predict_image(self, image: Pixels, native: bool = False) -> Frame:
        """A picture (H, W, C) of no dataset, with the card's channels, seen by both networks.

        At the run's size or, where `native`, at its own, by overlapping tiles of the run's. Raises UserError where a
        network doesn't take the tiles of a small picture.
        """
        networks = (self._teacher, self._student)
        if native:
            networks = (self._native(self._teacher, image), self._native(self._student, image))
        size, tiles = networks[0].size, networks[0].tiles
        photograph = resized(displayed(image), size) if tiles else shown(image, size)
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
                f"{describe(network.model)} doesn't take pieces of {piece[0]}x{piece[1]}, as this image would give: "
                "look at it at the run's size"
            )
        return Predictor(network.model, self.card, (height, width), network.device, tiles)

    def graft_classes(self, name: str) -> Uint8:
        """The mask after each of `stages`, uint8 (S, h, w); kept once it is computed.

        After the head it is the student's own. Raises UserError where there are no grafts.
        """
        number = self._place(name)
        if self._grafts is None:
            raise UserError(str(self.no_grafts))
        if not self._kept.folder.is_dir():
            raise UserError(f"run {self.run.name} was trained further or deleted: open it again")
        grafts, pair = self._grafts, self._pairs[number]

        def find() -> dict[str, Array]:
            image = self._student.view.image_only(read_image(pair.image, self.card))
            return {"classes": grafts.classes(image[None])}

        about = [*self._grafts_are, pair.name]
        classes: Uint8 = kept(self._kept.folder / "grafts", "graft", about, [pair.image], find)["classes"]
        if grafts.stages[-1] == HEAD:  # computed alone an image may differ from its batch in a pixel
            classes[-1] = self._kept["student"][number]
        return classes

    def first_errors(self, name: str) -> Uint8:
        """Which stage is to blame for each pixel, uint8 (h, w).

        0: the student is right; 1 + k: it is wrong, and the first graft to be wrong there is that after
        `stages[k]`; TEACHER_TOO: both networks are wrong; IGNORED: the truth says nothing.
        Raises UserError where there are no grafts, or the last stage is not trained yet.
        """
        if self.stages and self.stages[-1] != HEAD:
            raise UserError(f"run {self.run.name} is trained up to {self.stages[-1]}: first errors come with its last")
        classes, number = self.graft_classes(name), self._place(name)
        truth, teacher = (np.array(self._kept[kind][number]) for kind in ("truth", "teacher"))
        return first_errors(classes, teacher, truth, self.card.ignore_index)

    # -- all images ---------------------------------------------------------------------------------

    def gaps(self, class_name: str | None = None) -> list[Gap]:
        """The images by their gap in mIoU (see ImageGap.place), or by falling gap in one class's IoU.

        A network that rightly finds nothing of a class has IoU 1; images where neither the truth nor a
        network has the class are left out.
        """
        if class_name is None:
            return [Gap(i.name, i.teacher_miou, i.student_miou, i.gap) for i in self._figures.comparison.images]
        if class_name not in self.card.class_names:
            raise UserError(f"'{self.card.name}' has no class '{class_name}'")
        found = []
        for name, scores in self._figures.scores.items():
            shares = [score.per_class[class_name] for score in scores]
            if any(share is not None for share in shares):
                teacher, student = (1.0 if share is None else share for share in shares)
                found.append(Gap(name, teacher, student, teacher - student))
        return sorted(found, key=lambda gap: -gap.gap)

    def retention(self) -> list[dict[str, Any]]:
        """A row a class: "class", "teacher" and "student" IoU, their "difference", and "pixels" of it in truth."""
        return self._figures.comparison.retention()

    def scores(self) -> tuple[Score, Score]:
        """The teacher's and the student's score on the split."""
        return self._figures.comparison.teacher, self._figures.comparison.student

    def agreement(self, name: str | None = None) -> dict[str, int]:
        """Pixels of each kind of `compare.AGREEMENT`, of one image or of all."""
        if name is None:
            return self._figures.comparison.pixels
        return dict(zip(AGREEMENT, self._kept["agreement"][self._place(name)].tolist(), strict=True))

    def error_shares(self, names: Sequence[str] | None = None, report: Report | None = None) -> list[dict[str, Any]]:
        """The student's wrong pixels by the stage that is to blame, over the named images or all.

        Rows of "stage", "pixels" and "share" (of all its wrong pixels) in the order of the stages; last the
        row of stage "teacher": those that the teacher has wrong, too.
        """
        chosen = self.names if names is None else list(names)
        counts = np.zeros(256, dtype=np.int64)
        for done, name in enumerate(chosen, start=1):
            counts += np.bincount(self.first_errors(name).ravel(), minlength=256)
            if report:
                report(done, len(chosen))
        pixels = [*counts[1 : len(self.stages) + 1].tolist(), int(counts[TEACHER_TOO])]
        rows = zip([*self.stages, "teacher"], pixels, strict=True)
        return [{"stage": stage, "pixels": n, "share": n / max(sum(pixels), 1)} for stage, n in rows]

    # -- inside -------------------------------------------------------------------------------------

    def _place(self, name: str) -> int:
        if name not in self._number or name in self.unreadable:
            raise UserError(f"split '{self.split}' of '{self.card.name}' has no image '{name}'")
        return self._number[name]

    @property
    def _figures(self) -> _Figures:
        with self._lock:
            return self._made_figures

    @cached_property
    def _made_figures(self) -> _Figures:
        return _Figures(self._kept, self._pairs, self._teacher)


class _Figures:
    """What the kept confusion matrices amount to."""

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
        self.comparison = Comparison(
            score(totals[0], card, len(read)),
            score(totals[1], card, len(read)),
            dict(zip(card.class_names, totals[0].sum(1).tolist(), strict=True)),
            sorted(images, key=lambda image: image.place),
        )


def first_errors(grafts: Uint8, teacher: Uint8, truth: Uint8, ignore_index: int) -> Uint8:
    """See `SideBySide.first_errors`: from masks (S, h, w) after each stage, the last being the student's own."""
    wrong = grafts != truth
    found = np.where(wrong[-1], 1 + wrong.argmax(0), 0)
    found = np.where(wrong[-1] & (teacher != truth), TEACHER_TOO, found)
    return np.where(truth == ignore_index, IGNORED, found).astype(np.uint8)


def shown(image: Pixels, size: Size) -> Uint8:
    """A photograph in the aspect of `size` (height, width), at most WIDEST pixels wide."""
    width = min(WIDEST, image.shape[1])
    return resized(displayed(image), (max(1, round(width * size[0] / size[1])), width))
