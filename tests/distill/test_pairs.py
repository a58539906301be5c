"""Pairs of teachers and students of all kinds, each trained for a few steps through every stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.architectures import PAIRS, train_pair

pytestmark = pytest.mark.slow

IN_EVERY_RUN = (
    ("unet:resnet34", "unet:mobilenet_v2"),
    ("unet:resnet34", "unet:mit_b0"),
    ("unet:dpn68", "unet:resnet10"),
    ("fpn:resnet34", "fpn:resnet10"),
    ("pspnet:resnet34", "pspnet:mobilenet_v2"),
    ("lraspp_mobilenet_v3_large", "unet:mobilenet_v2"),
)
CHOSEN = [pair if pair in IN_EVERY_RUN else pytest.param(*pair, marks=pytest.mark.every_pair) for pair in PAIRS]


@pytest.mark.parametrize(("teacher", "student"), CHOSEN, ids=[" ".join(pair) for pair in PAIRS])
def test_every_stage_is_trained(teacher: str, student: str, tmp_path: Path) -> None:
    """`train_pair` raises where a stage stands still, or the student isn't readable with smp."""
    row = train_pair(teacher, student, tmp_path)
    assert row.phases[-1] == "head"
    assert sum(name.startswith("encoder.") for name in row.phases) >= 3


def test_the_pairs_hold_all_there_is() -> None:
    networks = {name for pair in PAIRS for name in pair}
    architectures = {name.partition(":")[0] for name in networks if ":" in name}
    assert len(architectures) == 12
    assert len({name.partition(":")[2] for name in networks}) >= 12
    assert len(PAIRS) >= 30
    assert set(IN_EVERY_RUN) <= set(PAIRS)
