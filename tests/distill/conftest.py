"""One small run that was trained stage by stage, for all tests that only read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.runs import Run


@pytest.fixture(scope="session")
def wide_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net of bottleneck blocks: its features have other channels than a ResNet-10's, so that there are adapters."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(3)
    model = smp.Unet(
        "tu-resnet50", layers=[1, 1, 1, 1], classes=3, encoder_weights=None, decoder_channels=(64, 32, 32, 16, 16)
    )
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 96))
    folder = tmp_path_factory.mktemp("wide")
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def finished(recipe: Callable[..., Any], wide_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An epoch a stage on six images at a size that is padded, in fp32."""
    from segskd.distill.running.session import start

    folder = tmp_path_factory.mktemp("runs") / "old"
    made = recipe(
        data={"size": "50x90"}, subset={"count": 6}, optimisation={"epochs": 1}, teacher=str(wide_teacher), seed=5
    )
    start(made, folder)
    return Run.open(folder)
