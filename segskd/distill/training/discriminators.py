"""Discriminators: small networks that learn to tell a student's feature from the teacher's (adversarial losses)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from segskd.config import Size
from segskd.distill.planning.losses import real_or_not
from segskd.distill.planning.phase import Phase
from segskd.models.stages import StagedNetwork, feature_shapes

WIDTH = 64
SLOPE = 0.2


class Discriminator(nn.Module):
    """A discriminator of patches (PatchGAN, arXiv 1611.07004): (N, c, h, w) to scores (N, 1, h', w')."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, WIDTH, kernel_size=3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WIDTH, WIDTH, kernel_size=3, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(WIDTH, 1, kernel_size=1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Scores above 0 mean "the teacher's"."""
        return cast(Tensor, self.layers(feature))

    def losses(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """(the student's loss, the discriminator's loss), two scalars.

        The first has no gradient for the discriminator and the second none for the student. So one backward pass of
        their sum trains both.
        """
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        against = real_or_not(cast(Tensor, functional_call(self, frozen, (student,))), real=True)
        own = real_or_not(self(teacher.detach()), real=True) + real_or_not(self(student.detach()), real=False)
        return against, own / 2


def make_discriminators(
    phases: Sequence[Phase], teachers: Mapping[str, StagedNetwork], size: Size, seed: int
) -> nn.ModuleDict:
    """The discriminators of a run by phase, then by comparison. Their first weights depend on the seed alone."""
    made = nn.ModuleDict()
    names = {c.teacher for phase in phases for c in phase.compared if c.discriminator}
    shapes = {name: feature_shapes(teachers[name], size) for name in names}
    for phase in phases:
        wanted = [comparison for comparison in phase.compared if comparison.discriminator]
        if wanted:
            # The word is an older name of discriminators. Another one would change what a recipe and its seed train.
            drawn = hashlib.sha256(f"{seed}/{phase.name}/critics".encode()).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(drawn[:6], "big"))
                discriminators = {
                    discriminator_key(c.name): Discriminator(shapes[c.teacher][c.stages[0]][0]) for c in wanted
                }
            made[discriminator_key(phase.name)] = nn.ModuleDict(discriminators)
    return made


def discriminators_of(discriminators: nn.ModuleDict, phase: Phase) -> nn.ModuleDict | None:
    """The discriminators of one phase by comparison; None where it has none."""
    key = discriminator_key(phase.name)
    return cast(nn.ModuleDict, discriminators[key]) if key in discriminators else None


def discriminator_key(name: str) -> str:
    """A phase's or comparison's name without dots, which names of modules must not have."""
    return name.replace(".", "_")
