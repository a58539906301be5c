"""Discriminators: small networks that tell a student's feature from the teacher's, and teach it by being deceived."""

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
        """Scores above 0 say "the teacher's"."""
        return cast(Tensor, self.layers(feature))

    def losses(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """What the student is to lower, and what this discriminator is: two scalars.

        The first has no gradient for the discriminator and the second none for the student, so that one backward
        pass of their sum trains both.
        """
        still = {name: parameter.detach() for name, parameter in self.named_parameters()}
        deceived = real_or_not(cast(Tensor, functional_call(self, still, (student,))), real=True)
        told = real_or_not(self(teacher.detach()), real=True) + real_or_not(self(student.detach()), real=False)
        return deceived, told / 2


def make_discriminators(
    phases: Sequence[Phase], teachers: Mapping[str, StagedNetwork], size: Size, seed: int
) -> nn.ModuleDict:
    """The discriminators of a run's phases, by phase, then by comparison; drawn from the seed and nothing else."""
    made = nn.ModuleDict()
    told = {c.teacher for phase in phases for c in phase.compared if c.discriminator}
    shapes = {owner: feature_shapes(teachers[owner], size) for owner in told}
    for phase in phases:
        wanted = [comparison for comparison in phase.compared if comparison.discriminator]
        if wanted:
            drawn = hashlib.sha256(f"{seed}/{phase.name}/discriminators".encode()).digest()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int.from_bytes(drawn[:6], "big"))
                discriminators = {
                    discriminator_key(c.name): Discriminator(shapes[c.teacher][c.stages[0]][0]) for c in wanted
                }
            made[discriminator_key(phase.name)] = nn.ModuleDict(discriminators)
    return made


def discriminators_of(discriminators: nn.ModuleDict, phase: Phase) -> nn.ModuleDict | None:
    """Those of one phase by comparison; None where it has none."""
    key = discriminator_key(phase.name)
    return cast(nn.ModuleDict, discriminators[key]) if key in discriminators else None


def discriminator_key(name: str) -> str:
    """A name as a module may bear it."""
    return name.replace(".", "_")
