"""A small dataset and small networks, made on the spot: everything here is offline and seeded."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait must not spin, and tests that run side by side share the cores: so do the workers they start.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
os.environ["OMP_NUM_THREADS"] = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# Files that take a minute or more begin first, so that none is left over when the others are done.
LONG = (
    *("test_lasting.py", "test_jobs.py", "test_every_method.py", "test_resume.py", "test_upload.py", "test_package.py"),
    *("test_bad_input.py", "test_study_command.py"),
)
SIZE = (64, 96)
CLASSES = ("ground", "wall", "sky")
COLORS = ((128, 64, 128), (70, 70, 70), (70, 130, 180))
COUNTS = {"train": 12, "val": 4}
IGNORE = 255


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three bands of random height in noisy colours, and a square that is ignored."""
    height, width = SIZE
    first, second = sorted(generator.integers(8, height - 8, size=2))
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[:second] = 1
    mask[:first] = 2
    image = np.array(COLORS, dtype=np.int16)[mask] + generator.integers(-40, 40, size=(height, width, 3))
    mask[:4, :4] = IGNORE
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `bands/`: images/NAME.png and masks/NAME.png below each split."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in ("images", "masks"):
            (folder / "bands" / split / kind).mkdir(parents=True)
        for number in range(count):
            image, mask = draw(generator)
            cv2.imwrite(str(folder / "bands" / split / "images" / f"b{number:02}.png"), image[..., ::-1])
            cv2.imwrite(str(folder / "bands" / split / "masks" / f"b{number:02}.png"), mask)
    return folder


@pytest.fixture(scope="session")
def card_path(data: Path) -> Path:
    """The card of that dataset."""
    content = {
        "name": "bands",
        "title": "three bands",
        "folder": "bands",
        "classes": [{"name": n, "color": list(c)} for n, c in zip(CLASSES, COLORS, strict=True)],
        "splits": {
            split: {"images": f"{split}/images/{{name}}.png", "masks": f"{split}/masks/{{name}}.png"}
            for split in COUNTS
        },
    }
    path = data / "bands.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 U-Net with random weights and statistics, saved as segmentation_models_pytorch saves it."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(1)
    model = smp.Unet("resnet18", classes=len(CLASSES), encoder_weights=None)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, *SIZE))
    folder = tmp_path_factory.mktemp("teacher")
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(data: Path, card_path: Path, teacher_folder: Path) -> Callable[..., Any]:
    """Makes a small recipe: two whole epochs a stage, fp32, four images a step; parts can be given by name."""
    from segskd.config import make_recipe, merged

    def make(**changes: Any) -> Any:
        content = {
            "data": {"card": str(card_path), "folder": str(data), "size": "64x96", "views": 2},
            "teacher": str(teacher_folder),
            "trust_teacher": True,  # its weights are random
            "student": "unet:resnet10",
            "optimisation": {"epochs": 2, "batch": 4, "lr": 1e-3, "patience": 0},
            "device": "cpu",
            "precision": "32",
            "threads": int(os.environ["OMP_NUM_THREADS"]),
        }
        return make_recipe(merged(content, changes))

    return make
