"""Grafts: the student's stages up to one of them, followed by the teacher's remaining stages."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from segskd.config import Size
from segskd.models.adapters import Adapters
from segskd.models.pairing import inputs_after, unpaired_inputs
from segskd.models.stages import HEAD, Features, StagedNetwork


def graft_logits(
    last: str,
    student_features: Features,
    teacher_features: Features,
    teacher: StagedNetwork,
    adapters: Adapters,
    compared: Collection[str],
    size: Size,
) -> Tensor:
    """Logits float32 (N, classes, h, w) of the graft behind the student's stage `last`, at the padded `size`.

    `student_features` holds the student's features up to `last` as far as the teacher's later stages read them.
    `compared` are the stages whose features were compared with the teacher's. What the teacher's later stages read
    besides comes from `teacher_features`: the teacher's own features and "image", as `pairing.lent` names them.
    The teacher's stages bear the names of the student's (`pairing.paired`). After the head the graft is the student.
    """
    if last == HEAD:
        return student_features[HEAD].float()
    own = unpaired_inputs(last, teacher, compared)
    adapted = {name: adapters.adapt(name, student_features[name]) for name in inputs_after(last, teacher) - set(own)}
    known = {**adapted, **{name: teacher_features[name] for name in own}}
    return teacher.run(known, size, teacher.index(last) + 1)[HEAD].float()
