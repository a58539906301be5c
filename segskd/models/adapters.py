"""Adapters: 1x1 convolutions that bring the student's features into the shapes of the teacher's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segskd.config import Size
from segskd.models.stages import StagedNetwork, feature_shapes


class Adapter(nn.Module):
    """Turns a feature (N, c_student, h, w) into (N, c_teacher, h', w'). It is used in training and grafting only."""

    def __init__(self, channels: int, teacher_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, teacher_shape[0], kernel_size=1)
        self.size = teacher_shape[1:]

    def forward(self, feature: Tensor) -> Tensor:
        """The feature in the teacher's shape."""
        projected: Tensor = self.project(feature)
        if projected.shape[-2:] == self.size:
            return projected
        return F.interpolate(projected, size=self.size, mode="bilinear", align_corners=False)


class Adapters(nn.ModuleDict):
    """The adapters of student and teacher by stage. A stage whose features have equal shapes has none."""

    def adapt(self, name: str, feature: Tensor) -> Tensor:
        """The student's feature of stage `name` in the shape of the teacher's."""
        key = _key(name)
        return self[key](feature) if key in self else feature

    def of(self, names: Iterable[str]) -> list[nn.Module]:
        """The adapters of those stages that have one."""
        return [self[_key(name)] for name in names if _key(name) in self]


def probe_adapters(student: StagedNetwork, teacher: StagedNetwork, names: Iterable[str], size: Size) -> Adapters:
    """New adapters for those of the named stages whose features differ in channels or size at an input of `size`."""
    of_student, of_teacher = feature_shapes(student, size), feature_shapes(teacher, size)
    return Adapters(
        {
            _key(name): Adapter(of_student[name][0], of_teacher[name])
            for name in names
            if of_student[name] != of_teacher[name]
        }
    )


def with_identities(adapters: Adapters, student: StagedNetwork, names: Iterable[str], size: Size) -> Adapters:
    """The adapters, and for each named stage without one an adapter that is the identity."""
    shapes = feature_shapes(student, size)
    made = {_key(name): _identity(shapes[name]) for name in names}
    place = next(student.model.parameters()).device
    return Adapters({**made, **adapters}).to(place)


def _identity(shape: tuple[int, int, int]) -> Adapter:
    adapter = Adapter(shape[0], shape)
    with torch.no_grad():
        nn.init.dirac_(adapter.project.weight)
        nn.init.zeros_(cast(Tensor, adapter.project.bias))
    return adapter


def _key(name: str) -> str:
    return name.replace(".", "_")
