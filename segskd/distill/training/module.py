"""One phase as a module: the student's stages that run, and the loss that they are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.cards import Card
from segskd.distill.caching.contents import STUDENT, span
from segskd.distill.caching.store import Batch
from segskd.distill.planning.losses import label_loss
from segskd.distill.planning.phase import Comparison, Phase
from segskd.distill.training.discriminators import Discriminator, discriminator_key
from segskd.models.adapters import Adapters
from segskd.models.stages import HEAD, StagedNetwork, set_trained

LABELS = "labels"


class PhaseModule(nn.Module):
    """Runs the student from the phase's first trained stage to the last stage that a loss needs."""

    def __init__(
        self,
        phase: Phase,
        student: StagedNetwork,
        adapters: Adapters,
        card: Card,
        size: Size,
        discriminators: nn.ModuleDict | None = None,
    ) -> None:
        """`discriminators` by `discriminator_key` of their comparison."""
        super().__init__()
        self.phase = phase
        self.span = span(phase, student)
        self._student = student
        self._adapters = adapters
        self._card = card
        self._size = size
        running = student.names[self.span.first : self.span.last + 1]
        self.stages = nn.ModuleList(student.stages[name] for name in running)
        self.adapters = nn.ModuleList(adapters.of(_adapted(phase)))
        self.discriminators = discriminators or nn.ModuleDict()
        self.done = 0.0
        """The share of the phase's steps that is done, from 0 to 1. Weights that fade depend on it."""
        # The state of all adapters is saved, but those of other stages get no gradients, for which DDP would wait.
        used = {id(parameter) for parameter in self.adapters.parameters()}
        idle = [name for name, one in self.named_parameters() if name.startswith("_adapters.") and id(one) not in used]
        self._ddp_params_and_buffers_to_ignore = idle

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars in fp32: "loss", "adversarial", and the summands of "loss" by comparison or as "labels".

        Training lowers the sum of "loss" and "adversarial". The student is measured by "loss" alone: "adversarial" is
        the loss of discriminators and of the student against them, which says little about the student.
        """
        features = self._features(batch)
        parts: dict[str, Tensor] = {}
        sums: list[Tensor] = []
        adversarial: list[Tensor] = []
        for comparison in self.phase.compared:
            ours, theirs = self._compared(comparison, features, batch)
            parts[comparison.name] = comparison.measure(ours, theirs)
            fading = 1.0 - self.done if comparison.fades else 1.0
            sums.append(comparison.weight * fading * parts[comparison.name])
            if comparison.discriminator:
                against, own = self._discriminator(comparison).losses(ours[0].float(), theirs[0].float())
                adversarial += [comparison.discriminator * against, own]
        if self.phase.labels:
            parts[LABELS] = label_loss(features[HEAD], batch.mask, self._card.ignore_index, batch.counted)
            sums.append(self.phase.labels * parts[LABELS])
        loss = torch.stack(sums).sum()
        total = torch.stack(adversarial).sum() if adversarial else torch.zeros_like(loss)
        return {"loss": loss, "adversarial": total, **parts}

    def _features(self, batch: Batch) -> dict[str, Tensor]:
        """The student's features by stage. Each stage reads the stage before it, or what the teacher's stage reads."""
        fed = batch.features(self.phase.fed_by)
        if self.phase.fed_by == STUDENT:
            return self._student.run(fed, self._size, self.span.first, self.span.last)
        places = [self._student.index(name) for name in self.phase.trained]
        alone = [self._student.run(fed, self._size, place, place) for place in places]
        return {name: feature for features in alone for name, feature in features.items()}

    def _compared(
        self, comparison: Comparison, features: dict[str, Tensor], batch: Batch
    ) -> tuple[list[Tensor], list[Tensor]]:
        theirs = batch.features(comparison.teacher)
        adapt = self._adapters.adapt if comparison.adapted else lambda _, feature: feature
        stages: Sequence[str] = comparison.stages
        return [adapt(name, features[name]) for name in stages], [theirs[name] for name in stages]

    def _discriminator(self, comparison: Comparison) -> Discriminator:
        discriminator = self.discriminators[discriminator_key(comparison.name)]
        assert isinstance(discriminator, Discriminator)
        return discriminator

    def start_training(self) -> None:
        """Sets the phase's stages, adapters and discriminators to training, and freezes the student's other stages."""
        set_trained(self._student, self.phase.trained)
        for module in (*self.adapters, self.discriminators):
            module.requires_grad_(True)

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters of the trained stages, and of the adapters and discriminators in use."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def adapted_stages(phases: Sequence[Phase]) -> set[str]:
    """Stages whose features some phase compares after an adapter."""
    return {name for phase in phases for name in _adapted(phase)}


def _adapted(phase: Phase) -> list[str]:
    return list(dict.fromkeys(name for c in phase.compared if c.adapted for name in c.stages))


def steps_an_epoch(images: int, batch: int) -> int:
    """How many batches of at most `batch` images hold every image once."""
    return -(-images // batch)


def epoch_batches(
    seed: int, phase: str, epoch: int, images: Sequence[int], total: int, views: int, steps: int
) -> Iterator[Tensor]:
    """The sample numbers of an epoch's `steps`, int64 (n,): each of `images` once, in view epoch mod views.

    `images` are numbers of images below `total`, those that the phase learns from. The order depends on the
    arguments alone, so that a resumed run goes on in it. Batches differ in size by at most one: a last batch of a
    single image would upset batch normalisation.
    """
    drawn = hashlib.sha256(f"{seed}/{phase}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn[:6], "big"))
    order = torch.randperm(len(images), generator=generator)
    numbers = torch.tensor(images)[order] + (epoch % views) * total
    yield from numbers.tensor_split(steps)
