"""Grafts during training: after every phase they are scored on the validation split, and some masks are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segskd.data.dataset import read_mask
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.data.transforms import ViewMaker, unpad
from segskd.distill.caching.contents import STUDENT, last_trained, span
from segskd.distill.caching.store import Batch, FeatureStore
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.training.job import Job
from segskd.evaluate.metrics import ConfusionMatrix, Score, class_logits
from segskd.evaluate.pictures import (
    class_legend,
    colourised,
    contact_sheet,
    enlarged,
    resized,
    shown_size,
    write_index_png,
    write_png,
)
from segskd.models.graft import graft_logits
from segskd.models.stages import HEAD, freeze
from segskd.runs import Run

PREVIEWS = 4


class GraftScorer:
    """Scores grafts on the validation split and draws the pinned images."""

    def __init__(self, job: Job, run: Run) -> None:
        self._job = job
        self._run = run
        self._networks = job.feature_computer()
        self._pinned = _evenly(len(job.subset.val), PREVIEWS)
        self._ranks = job.ranks

    def score(self, phase: Phase, store: FeatureStore, draw: bool = True) -> Score:
        """The score of the graft after `phase` on the store's samples. The store must hold `contents.graft_inputs`.

        With `draw` the store holds this process's part of the validation split, whose pinned images are drawn.
        """
        freeze([self._job.student.model])
        matrix = ConfusionMatrix(self._job.card, self._networks.device)
        drawn: list[tuple[int, Uint8]] = []
        for batch in store.batches():
            classes = class_logits(unpad(self.logits(phase, batch), self._job.recipe.data.size), self._job.card).argmax(
                1
            )
            if draw:
                drawn += [
                    (i, classes[at].cpu().numpy().astype(np.uint8)) for i, at in self._shown(matrix.images, classes)
                ]
            matrix.update(classes, unpad(batch.mask, self._job.recipe.data.size).long())
        if draw:
            all_drawn = sorted((one for some in self._ranks.gather(drawn) for one in some), key=lambda one: one[0])
            if self._ranks.first:
                self._draw(phase, all_drawn)
        return matrix.score(self._ranks.add)

    def _shown(self, before: int, classes: Tensor) -> list[tuple[int, int]]:
        """(number in the split, place in the batch) of the pinned images in a batch that follows `before` images."""
        ranks = self._ranks
        numbers = [(before + at) * ranks.count + ranks.number for at in range(len(classes))]
        return [(number, at) for at, number in enumerate(numbers) if number in self._pinned]

    @torch.inference_mode()
    def logits(self, phase: Phase, batch: Batch) -> Tensor:
        """Logits (N, classes, h, w) of the graft after `phase`, at the padded size."""
        student, teacher = self._job.student, self._job.teacher
        part = span(phase, student)
        size = self._networks.size
        with self._networks.autocast():
            features = batch.features(STUDENT)
            last = HEAD if teacher is None else last_trained(phase, student)
            features |= student.run(features, size, part.first, student.index(last))
            if teacher is None:
                return features[HEAD].float()
            compared, adapters = self._job.compared(phase), self._job.networks.adapters
            return graft_logits(last, features, batch.features(TEACHER), teacher, adapters, compared, size)

    def _draw(self, phase: Phase, drawn: list[tuple[int, Uint8]]) -> None:
        card, size = self._job.card, self._job.recipe.data.size
        view, shown = ViewMaker(card, size), shown_size(self._job.recipe.data.size)
        rows = []
        for number, classes in drawn:
            pair = self._job.subset.val[number]
            image = read_image(pair.image, card)
            truth = unpad(view(image, read_mask(pair.mask, card), pair.name, 0)[1], size).numpy().astype(np.uint8)
            masks = [enlarged(colourised(mask, card), shown) for mask in (truth, classes)]
            rows.append([resized(displayed(image), shown), *masks])
            name = Path(pair.name).name
            self._run.write(f"previews/{phase.name}/{name}.png", write_index_png(classes, card))
        sheet = contact_sheet(rows, ["image", "truth", f"graft after {phase.name}"], class_legend(card))
        self._run.write(f"previews/{phase.name}.png", write_png(sheet))


def _evenly(total: int, wanted: int) -> list[int]:
    """Up to `wanted` places, evenly spread over `total`."""
    return sorted({round(i * (total - 1) / max(wanted - 1, 1)) for i in range(min(wanted, total))})
