"""One phase as a module: the student's running stages, and the loss that they are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.cards import Card
from segskd.distill.losses import label_loss, tap_loss
from segskd.distill.methods import Phase
from segskd.distill.needs import span
from segskd.distill.store import Batch
from segskd.models.adapters import Adapters
from segskd.models.stages import HEAD, StagedNetwork, set_trained


class PhaseModule(nn.Module):
    """Runs the student from the phase's first trained stage to the last one that a loss looks at."""

    def __init__(self, phase: Phase, student: StagedNetwork, adapters: Adapters, card: Card, size: Size) -> None:
        super().__init__()
        self.phase = phase
        self.span = span(phase, student)
        self._student = student
        self._adapters = adapters
        self._card = card
        self._size = size
        running = student.names[self.span.first : self.span.last + 1]
        self.stages = nn.ModuleList(student.stages[name] for name in running)
        self.adapters = nn.ModuleList(adapters.of(phase.taps))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """ "loss", and its parts by stage name or "labels": scalars in fp32."""
        taps = self._student.run(batch.taps("student"), self._size, self.span.first, self.span.last)
        parts: dict[str, Tensor] = {}
        for name in self.phase.taps:
            parts[name] = tap_loss(self._adapters.adapt(name, taps[name]), batch.taps("teacher")[name])
        if self.phase.labels:
            parts["labels"] = label_loss(taps[HEAD], batch.mask, self._card.ignore_index)
        weights = {**self.phase.taps, "labels": self.phase.labels}
        return {"loss": torch.stack([weights[name] * part for name, part in parts.items()]).sum(), **parts}

    def start_training(self) -> None:
        """Trained stages move, all others of the student stand still."""
        set_trained(self._student, self.phase.trained)

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimiser gets: the trained stages' parameters and those of the adapters in use."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def steps_an_epoch(images: int, batch: int) -> int:
    """Batches of at most `batch` that hold every image once."""
    return -(-images // batch)


def epoch_batches(seed: int, phase: str, epoch: int, images: int, views: int, batch: int) -> Iterator[Tensor]:
    """The sample numbers of each step of an epoch, int64 (n,): every image once, in view epoch mod views.

    The order depends on the arguments alone, so that a resumed run goes on in it. Batches differ in size by
    at most one: a last batch of a single image would upset batch normalisation.
    """
    drawn = hashlib.sha256(f"{seed}/{phase}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn[:6], "big"))
    order = torch.randperm(images, generator=generator) + (epoch % views) * images
    yield from order.tensor_split(steps_an_epoch(images, batch))
