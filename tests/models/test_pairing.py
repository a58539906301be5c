"""Pairs of stages: by stride, in order, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from segskd.models.build import create, parse_spec
from segskd.models.cut import cut
from segskd.models.pairing import match, paired, shared, unpaired_inputs
from segskd.models.stages import IMAGE, StagedNetwork

SIZE = (96, 128)


def network(spec: str) -> StagedNetwork:
    torch.manual_seed(0)
    return cut(create(*parse_spec(spec), classes=3))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2, 4, 8, 16, 32], [2, 4, 8, 16, 32], [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ([4, 8, 16, 32], [2, 4, 8, 16, 32], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([1, 2, 4, 8, 16, 32], [2, 4, 8, 16, 32], [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]),
        # Dilated: the deep stages of both are compared, and an adapter resizes.
        ([2, 4, 8, 8, 8], [2, 4, 8, 16, 32], [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]),
        ([2, 4, 8, 16, 32], [16, 16, 16, 16], [(1, 0), (2, 1), (3, 2), (4, 3)]),
        ([16, 8, 4, 2, 1], [4], [(2, 0)]),
        ([4], [16, 8, 4, 2, 1], [(0, 2)]),
        ([16, 8, 4, 2, 1], [8, 4], [(1, 0), (2, 1)]),
        ([2, 4, 8], [2, 4, 8, 8], [(0, 0), (1, 1), (2, 3)]),
        ([1], [32], []),
    ],
)
def test_pairs_by_hand(ours: Sequence[int], theirs: Sequence[int], expected: list[tuple[int, int]]) -> None:
    octaves = [[math.log2(stride) for stride in strides] for strides in (ours, theirs)]
    assert list(match(*octaves)) == expected


def test_a_teacher_of_the_same_build_keeps_its_names() -> None:
    teacher = network("unet:resnet34")
    assert paired(teacher, network("unet:resnet10"), SIZE).names == teacher.names


def test_a_cnn_teacher_of_a_transformer() -> None:
    student = network("unet:mit_b0")
    teacher = paired(network("unet:resnet18"), student, SIZE)
    assert teacher.names[:5] == ["own.encoder.0", "encoder.0", "encoder.1", "encoder.2", "encoder.3"]
    assert teacher.names[5:] == student.names[4:]
    assert shared(student.names, teacher.names) == tuple(student.names)
    # Its own stem comes in from the side in the graft: the student has no such feature.
    assert teacher.sources(teacher.index("decoder.3")) == ["decoder.2", "own.encoder.0"]
    assert unpaired_inputs("encoder.1", teacher, student.names) == ["own.encoder.0"]
    assert unpaired_inputs("decoder.3", teacher, student.names) == []


def test_a_decoder_of_one_stage() -> None:
    student = network("unet:resnet10")
    teacher = paired(network("fpn:resnet18"), student, SIZE)
    assert teacher.names == [*student.names[:5], "decoder.2", "head"]
    assert shared(student.names, teacher.names) == (*student.names[:5], "decoder.2", "head")


def test_a_decoder_that_asks_for_tokens_is_lent_the_image() -> None:
    student = network("unet:resnet10")
    teacher = paired(network("dpt:tu-vit_tiny_patch16_224"), student, SIZE)
    assert IMAGE in unpaired_inputs("encoder.4", teacher, student.names)
    assert unpaired_inputs("decoder.3", teacher, student.names) == []


def test_without_a_teacher_all_stages_are_there() -> None:
    assert shared(["encoder.0", "head"], None) == ("encoder.0", "head")


def test_a_stage_with_nothing_to_train_has_no_partner() -> None:
    """VGG's last stage is a pooling, from stride 16 to 32."""
    student = network("unet:vgg11")
    names = paired(network("unet:resnet18"), student, SIZE).names
    assert names[:5] == ["encoder.1", "encoder.2", "encoder.3", "encoder.4", "own.encoder.4"]
