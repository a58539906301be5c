"""A small dataset and small networks, made on the spot: everything here is offline and seeded."""

from __future__ import annotations

import gc
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait must not spin, and tests that run side by side share the cores: so do the workers they start.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000", OMP_NUM_THREADS="1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from small_networks import spread_scales

torch.set_num_threads(1)
gc.set_threshold(100_000, 20, 100)  # as the program does: to import all that the tests need takes half as long

Once = Callable[[str, Callable[[Path], object]], Path]
SIZE = (64, 96)
CLASSES = ("ground", "wall", "sky")
COLORS = ((128, 64, 128), (70, 70, 70), (70, 130, 180))
COUNTS = {"train": 12, "val": 4}
IGNORE = 255


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
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Has a folder made by the first process that asks for it; all tests share it, and none may change it."""
    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / f"{name}.done").exists():
                shutil.rmtree(shared / name, ignore_errors=True)
                make(shared / name)
                (shared / f"{name}.done").touch()
        return shared / name

    return made


@pytest.fixture(scope="session")
def data(once: Once) -> Path:
    """A folder with the dataset `bands/`: images/NAME.png and masks/NAME.png below each split."""
    return once("data", write_data)


def write_data(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for kind in ("images", "masks"):
            (folder / "bands" / split / kind).mkdir(parents=True)
        for number in range(count):
            image, mask = draw(generator)
            cv2.imwrite(str(folder / "bands" / split / "images" / f"b{number:02}.png"), image[..., ::-1])
            cv2.imwrite(str(folder / "bands" / split / "masks" / f"b{number:02}.png"), mask)
    write_card(folder)


def write_card(folder: Path) -> None:
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
    (folder / "bands.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="session")
def card_path(data: Path) -> Path:
    """The card of that dataset."""
    return data / "bands.yaml"


@pytest.fixture(scope="session")
def teacher_folder(once: Once) -> Path:
    """A LinkNet of timm's small test ResNet, two blocks a layer, with random weights and statistics.

    The student has one block a layer, so that features have the same channels, and begins with the teacher's weights.
    """
    return once("teacher", save_teacher)


def save_teacher(folder: Path) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(1)
    model = smp.Linknet("tu-test_resnet", layers=[2, 2, 2, 2], classes=len(CLASSES), encoder_weights=None)
    spread_scales(model)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(4, 3, *SIZE))
    model.eval().save_pretrained(folder)


@pytest.fixture(scope="session")
def recipe(data: Path, card_path: Path, teacher_folder: Path) -> Callable[..., Any]:
    """Makes a small recipe: two whole epochs a stage, fp32, four images a step; parts can be given by name."""
    from segskd.config import make_recipe, merged

    def make(**changes: Any) -> Any:
        content = {
            "data": {"card": str(card_path), "folder": str(data), "size": "64x96", "views": 2},
            "teacher": str(teacher_folder),
            "trust_teacher": True,  # its weights are random
            "student": "linknet:tu-test_resnet",
            "optimisation": {"epochs": 2, "batch": 4, "lr": 1e-3, "patience": 0},
            "device": "cpu",
            "precision": "32",
            "threads": 1,
        }
        return make_recipe(merged(content, changes))

    return make
