"""Adapters: 1x1 convolutions from the student's features to the teacher's, where their shapes differ."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segskd.config import Size
from segskd.models.stages import StagedNetwork, feature_shapes


class Adapter(nn.Module):
    """(N, c_student, h, w) to (N, c_teacher, h', w'). Used in training and grafting, never exported."""

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
    """The adapters of a pair of networks by stage name; a stage whose features agree has none."""

    def adapt(self, name: str, feature: Tensor) -> Tensor:
        """The student's feature of stage `name` in the shape of the teacher's."""
        key = _key(name)
        return self[key](feature) if key in self else feature

    def of(self, names: Iterable[str]) -> list[nn.Module]:
        """The adapters of those stages that have one."""
        return [self[_key(name)] for name in names if _key(name) in self]


def probe_adapters(student: StagedNetwork, teacher: StagedNetwork, names: Iterable[str], size: Size) -> Adapters:
    """Adapters for those of the named stages whose features differ in channels or size, by a run without storage."""
    of_student, of_teacher = feature_shapes(student, size), feature_shapes(teacher, size)
    return Adapters(
        {
            _key(name): Adapter(of_student[name][0], of_teacher[name])
            for name in names
            if of_student[name] != of_teacher[name]
        }
    )


def at_every_feature(adapters: Adapters, student: StagedNetwork, names: Iterable[str], size: Size) -> Adapters:
    """The adapters, and the identity at each of the named features that has none."""
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
