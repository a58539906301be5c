"""Runs on grey images of 16 bits and on four bands, from the card to the masks of the exported package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from PIL import Image

from segskd.data.cards import Card, load_card
from segskd.data.dataset import list_pairs
from segskd.data.pixels import read_image
from segskd.distill.planning.methods import _softened
from segskd.distill.running.session import start
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor, predict_files
from segskd.export import timing
from segskd.export.formats import Spec
from segskd.export.package import package
from segskd.models.build import input_channels, load, output_classes
from segskd.runs import Run

pytestmark = pytest.mark.slow

SIZE = (64, 64)
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
KINDS = {"grey": (1, np.uint16, "tif"), "four": (4, np.uint8, "png"), "aerial": (4, np.uint16, "tif")}


def dataset(folder: Path, kind: str) -> Path:
    """Two halves, dark and bright, of random width; the card's place."""
    channels, dtype, suffix = KINDS[kind]
    generator = np.random.default_rng(2)
    top = 4095 if kind == "grey" else np.iinfo(dtype).max
    for split, count in (("train", 6), ("val", 4)):
        for sort in ("images", "masks"):
            (folder / kind / split / sort).mkdir(parents=True)
        for number in range(count):
            mask = (np.arange(SIZE[1]) < generator.integers(16, 48)) & np.ones(SIZE, bool)
            shares = np.where(mask, 0.7, 0.2)[..., None] + generator.uniform(-0.1, 0.1, (*SIZE, channels))
            image = (shares * top).astype(dtype)
            cv2.imwrite(str(folder / kind / split / "images" / f"{number}.{suffix}"), image)
            cv2.imwrite(str(folder / kind / split / "masks" / f"{number}.png"), mask.astype(np.uint8))
    content = {
        "name": kind,
        "title": kind,
        "folder": kind,
        "channels": channels,
        "classes": [{"name": "dark", "color": [0, 0, 0]}, {"name": "bright", "color": [255, 255, 0]}],
        "splits": {
            split: {"images": f"{split}/images/{{name}}.{suffix}", "masks": f"{split}/masks/{{name}}.png"}
            for split in ("train", "val")
        },
    } | ({"white": 4095} if kind == "grey" else {})
    (folder / f"{kind}.yaml").write_text(yaml.safe_dump(content))
    return folder / f"{kind}.yaml"


def teacher(folder: Path, channels: int) -> Path:
    """With one output for two classes, as binary networks have it."""
    torch.manual_seed(1)
    model = smp.Unet("resnet18", classes=1, encoder_weights=None, in_channels=channels)
    with torch.no_grad():
        model.train()(torch.randn(4, channels, *SIZE))
    model.eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_of(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    made: dict[str, Run] = {}
    data = tmp_path_factory.mktemp("deep")

    def get(kind: str) -> Run:
        if kind not in made:
            own = {"card": str(dataset(data, kind)), "folder": str(data), "size": "64x64"}
            changes: dict[str, Any] = {"student": "unet:resnet10", "optimisation": {"epochs": 1}}
            if kind == "four":  # learns its labels, too: only a network that is sure of itself keeps its masks in INT8
                changes |= {"method": "hinton", "options": {"soft": 0.1}, "optimisation": {"epochs": 4, "lr": 1e-2}}
            place = teacher(data / f"{kind}-teacher", KINDS[kind][0])
            start(recipe(data=own, teacher=str(place), **changes), data / f"{kind}-run")
            made[kind] = Run.open(data / f"{kind}-run")
        return made[kind]

    return get


def opened(run: Run) -> tuple[Card, Predictor, list[Path]]:
    card = load_card(run.recipe.data.card)
    pairs = list_pairs(card, Path(str(run.recipe.data.folder)), "val")
    return card, Predictor(load(run.model_folder), card, run.recipe.data.size), [pair.image for pair in pairs]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_cards_channels(kind: str, run_of: Callable[[str], Run]) -> None:
    run = run_of(kind)
    student = load(run.model_folder)
    assert (input_channels(student), output_classes(student)) == (KINDS[kind][0], 2)
    result = run.read_json("result.json")
    assert result is not None
    assert 0 <= result["miou"] <= 1
    assert result["teacher"]["miou"] is not None


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("grey", Spec("onnx")),
        ("grey", Spec()),
        ("aerial", Spec("pt2")),
        ("aerial", Spec("openvino")),
        ("four", Spec("onnx", pixels=True)),
        ("four", Spec("onnx", int8=True, pixels=True)),
    ],
    ids=str,
)
def test_a_package_gives_the_checkpoints_masks(
    kind: str, spec: Spec, run_of: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "REPEATS", 5)
    run = run_of(kind)
    made = package(run, spec, tmp_path / "made")
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / made.path.stem
    told = json.loads((folder / "card.json").read_text())
    assert (told["channels"], told["white"]) == (KINDS[kind][0], 4095 if kind == "grey" else None)
    card, checkpoint, images = opened(run)
    command = [sys.executable, folder / "predict.py", *images, "--out", tmp_path / "masks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=ALONE)
    assert done.returncode == 0, done.stderr
    for image in images:
        found = np.asarray(Image.open(tmp_path / "masks" / f"{image.stem}_mask.png"))
        expected = checkpoint.mask(read_image(image, card))
        assert (found == expected).mean() > (0.98 if spec.int8 else 0.999)


def test_pixels_of_16_bits_do_not_go_into_a_file_of_8(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--pixels takes images with 8 bits a channel, but .*0\.tif has more"):
        package(run_of("grey"), Spec("onnx", pixels=True), tmp_path)


def test_predictions_and_overlays(run_of: Callable[[str], Run], tmp_path: Path) -> None:
    card, checkpoint, images = opened(run_of("grey"))
    predict_files(checkpoint, images[:1], tmp_path)
    image = read_image(images[0], card)
    mask = np.asarray(Image.open(tmp_path / "0.png"))
    drawn = np.asarray(Image.open(tmp_path / "0_overlay.png"))
    grey = np.rint(image * 255)
    expected = (grey * 0.45 + np.array(card.palette)[mask] * 0.55).astype(np.uint8)
    assert np.abs(drawn.astype(int) - expected).max() <= 1


def test_a_teacher_of_other_channels_is_refused(
    recipe: Callable[..., Any], run_of: Callable[[str], Run], tmp_path: Path
) -> None:
    run = run_of("grey")
    own = {"card": run.recipe.data.card, "folder": run.recipe.data.folder, "size": "64x64"}
    wrong = teacher(tmp_path / "wrong", 3)
    with pytest.raises(UserError, match=r"teacher .*wrong takes 3-channel images, but 'grey' has 1: take"):
        start(recipe(data=own, teacher=str(wrong)), tmp_path / "run")
    with pytest.raises(UserError, match="unet:resnet18 takes 3-channel images, but 'grey' has 1"):
        Predictor(load(wrong), load_card(run.recipe.data.card), SIZE)


def test_soft_labels_of_one_output_are_those_of_two() -> None:
    """By hand: T² Σ p log(p / q) with p from the sigmoid of z / T."""
    z, student = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.5]], [[-1.0]]]])
    p, q = torch.sigmoid(z / 4).item(), torch.sigmoid((student[:, 1] - student[:, 0]) / 4).item()
    expected = 16 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert _softened([student], [z], temperature=4.0).item() == pytest.approx(expected, rel=1e-5)
