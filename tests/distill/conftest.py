"""One small run that was trained stage by stage, for all tests that only read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import spread_scales

from segskd.runs import Run


@pytest.fixture(scope="session")
def wide_teacher(once: Callable[..., Path]) -> Path:
    """A LinkNet whose features behind the stem have other channels than the student's, so that there are adapters."""
    return once("wide-teacher", save_wide_teacher)


def save_wide_teacher(folder: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    model = smp.Linknet("tu-test_resnet", channels=(64, 96, 24, 64), classes=3, encoder_weights=None)
    spread_scales(model)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 96))
    model.eval().save_pretrained(folder)


@pytest.fixture(scope="session")
def finished(recipe: Callable[..., Any], wide_teacher: Path, once: Callable[..., Path]) -> Run:
    """An epoch a stage on six images at a size that is padded, in fp32."""
    from segskd.distill.running.session import start

    made = recipe(
        data={"size": "50x90"}, subset={"count": 6}, optimisation={"epochs": 1}, teacher=str(wide_teacher), seed=5
    )
    return Run.open(once("old", lambda folder: start(made, folder)))
