"""Packages: used as their own page says, proved pixel by pixel, and not offered when they differ."""

from __future__ import annotations

import hashlib
import json
import shutil
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

from segskd import cli
from segskd.data.cards import load_card
from segskd.data.dataset import Pair, list_pairs, read_image
from segskd.errors import UserError
from segskd.evaluate.predict import Predictor
from segskd.export import certificate as certificates
from segskd.export import package as packing
from segskd.export.certificate import Difference, compare_reloaded, evenly
from segskd.export.package import find_package, package
from segskd.export.readme import readme
from segskd.models.build import load
from segskd.runs import Run

SIZE = (50, 90)


@pytest.fixture(scope="module")
def run(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run at a size that is padded, with a teacher to compare with."""
    from segskd.distill.session import start

    folder = tmp_path_factory.mktemp("runs") / "small"
    changes = {"data": {"size": "50x90"}, "subset": {"count": 4}, "optimisation": {"epochs": 1}}
    start(recipe(**changes, method="supervised"), folder)
    return Run.open(folder)


@pytest.fixture(scope="module")
def packed(run: Run) -> packing.Package:
    return package(run)


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that finds no difference, in no time."""
    monkeypatch.setattr(packing, "compare_reloaded", lambda *_: Difference(4, 4 * 50 * 90, 0, 0.0))


def pairs(run: Run) -> list[Pair]:
    return list_pairs(load_card(run.recipe.data.card), Path(str(run.recipe.data.folder)), "val")


def unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder)
    return folder / "small"


def test_it_lies_in_the_run_with_its_certificate(run: Run, packed: packing.Package) -> None:
    folder = run.path / "exports" / "safetensors"
    assert packed.path == folder / "small.zip"
    assert sorted(path.name for path in folder.iterdir()) == ["certificate.json", "small.zip"]
    certificate = json.loads((folder / "certificate.json").read_text())
    content = packed.path.read_bytes()
    assert certificate["sha256"] == hashlib.sha256(content).hexdigest()
    assert (certificate["bytes"], certificate["file"], certificate["run"]) == (len(content), "small.zip", "small")
    assert (certificate["images"], certificate["pixels"]) == (4, 4 * 50 * 90)
    assert (certificate["pixels_differing"], certificate["share_differing"]) == (0, 0.0)
    assert certificate["max_logit_difference"] == 0.0
    assert find_package(run) == packed


def test_used_as_its_page_says(run: Run, packed: packing.Package, tmp_path: Path) -> None:
    """The lines of README.md as they stand, in a folder with the package and an image, without SegSKD."""
    folder = unpacked(packed.path, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "card.json", "config.json", "model.safetensors", "recipe.yaml", "result.json"),
    ]
    page = (folder / "README.md").read_text()
    (lines,) = (part.split("```")[0] for part in page.split("```python\n")[1:])
    assert "segskd" not in lines
    pair = pairs(run)[0]
    shutil.copy(pair.image, folder / "image.png")
    subprocess.run([sys.executable, "-I", "-c", lines], cwd=folder, check=True, capture_output=True)
    mask = cv2.imread(str(folder / "mask.png"), cv2.IMREAD_UNCHANGED)
    predictor = Predictor(load(run.model_folder), load_card(run.recipe.data.card), SIZE)
    expected = predictor.logits(predictor.view.image_only(read_image(pair.image))[None]).argmax(1)[0].numpy()
    assert mask.shape == SIZE
    assert (mask == expected).mean() > 0.999
    assert "unet:resnet10 | its teacher, unet:resnet18" in page


def test_what_the_card_says(packed: packing.Package, tmp_path: Path) -> None:
    card = json.loads((unpacked(packed.path, tmp_path) / "card.json").read_text())
    assert [entry["name"] for entry in card["classes"]] == ["ground", "wall", "sky"]
    assert card["classes"][2]["color"] == [70, 130, 180]
    assert (card["ignore_index"], card["size"], card["size_multiple"]) == (255, [50, 90], 32)
    assert card["mean"] == [0.485, 0.456, 0.406]


def test_differences_are_counted(run: Run, packed: packing.Package, tmp_path: Path) -> None:
    """Against a network whose last bias is moved by 0.75: every logit of that class differs by just that."""
    model = smp.from_pretrained(unpacked(packed.path, tmp_path)).eval()
    chosen = pairs(run)
    card = load_card(run.recipe.data.card)
    before = Predictor(load(run.model_folder), card, SIZE)
    with torch.no_grad():
        model.segmentation_head[0].bias[1] += 0.75
    moved = Predictor(model, card, SIZE)
    images = torch.stack([moved.view.image_only(read_image(pair.image)) for pair in chosen])
    expected = int((moved.logits(images).argmax(1) != before.logits(images).argmax(1)).sum())
    heard: list[tuple[int, int]] = []
    found = compare_reloaded(packed.path, moved, chosen, lambda done, total: heard.append((done, total)))
    assert heard == [(n, 4) for n in range(1, 5)]
    assert (found.images, found.pixels) == (4, 4 * 50 * 90)
    assert expected > 0
    assert found.differing == pytest.approx(expected, abs=2)
    assert found.logits == pytest.approx(0.75, abs=1e-4)


def test_one_that_differs_is_kept_aside(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "compare_reloaded", lambda *_: Difference(4, 200, 3, 0.5))
    with pytest.raises(UserError, match=r"not offered: 1\.5 % of 200 pixels differ .* on 4 images; it is kept in"):
        package(run, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]
    assert sorted(path.name for path in (tmp_path / "refused").iterdir()) == ["certificate.json", "small.zip"]
    assert find_package(run, tmp_path) is None


def test_one_that_cannot_be_loaded_says_why(run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "small.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("small/config.json", json.dumps({"_model_class": "Unet", "encoder_name": "resnet99"}))
    checkpoint = Predictor(load(run.model_folder), load_card(run.recipe.data.card), SIZE)
    with pytest.raises(UserError, match=r"can't be loaded back: .*resnet99"):
        compare_reloaded(archive, checkpoint, pairs(run))
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(UserError, match="is no zip: export again"):
        compare_reloaded(archive, checkpoint, pairs(run))


def test_a_process_that_ends_without_a_word_is_told(
    run: Run, packed: packing.Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that the system ends for want of memory."""
    silent = tmp_path / "reload.py"
    silent.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(certificates, "PROGRAM", silent)
    checkpoint = Predictor(load(run.model_folder), load_card(run.recipe.data.card), SIZE)
    with pytest.raises(UserError, match=r"can't be loaded back: the process .* ended with status -9"):
        compare_reloaded(packed.path, checkpoint, pairs(run))


def test_markup_in_a_name_stays_text(card_path: Path, run: Run, tmp_path: Path) -> None:
    """In Markdown a letter behind one backslash stands for itself, and a backslash behind a backslash, too."""
    other = tmp_path / "other.yaml"
    other.write_text(card_path.read_text().replace("sky", "'a_b*<img> [x](y)'"))
    page = readme(load_card(other), run.read_json("result.json"), "small")
    assert r"ground, wall, a\_b\*\<img\> \[x\](y)." in page


@pytest.mark.usefixtures("same")
def test_a_card_beside_the_data_is_found_by_its_name(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSKD_DATA", raising=False)
    shutil.copytree(run.path, tmp_path / "small")
    moved = Run.open(tmp_path / "small")
    moved.write_recipe(moved.recipe.model_copy(update={"data": moved.recipe.data.model_copy(update={"card": "bands"})}))
    assert package(moved).certificate.holds


@pytest.mark.usefixtures("same")
def test_the_same_run_gives_the_same_bytes(run: Run, packed: packing.Package, tmp_path: Path) -> None:
    again = package(run, tmp_path)
    assert again.certificate.sha256 == packed.certificate.sha256
    again.path.write_bytes(b"cut short")
    assert find_package(run, tmp_path) is None


@pytest.mark.usefixtures("same")
def test_the_encoder_is_fetched_from_nowhere(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small")
    path = tmp_path / "small" / "student" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_weights": "imagenet"}))
    made = package(Run.open(tmp_path / "small"), tmp_path / "out")
    config = json.loads((unpacked(made.path, tmp_path / "unpacked") / "config.json").read_text())
    assert config["encoder_weights"] is None


def test_an_unfinished_run_says_how_far_it_is(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "half", recipe())
    run.event("start", phases=[{"phase": name} for name in ("encoder.0", "encoder.1", "head")])
    run.event("phase_end", phase="encoder.0")
    run.event("stopped", phase="encoder.1")
    with pytest.raises(UserError, match=r"half is not finished \(interrupted, 1 of 3 phases are done\).*resume half"):
        package(run)


def test_files_that_are_gone(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small")
    moved, recipe = Run.open(tmp_path / "small"), run.recipe
    moved.write_recipe(recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": str(tmp_path)})}))
    with pytest.raises(UserError, match=f"no folder {tmp_path}/bands"):
        package(moved)
    moved.write_recipe(recipe)
    (tmp_path / "small" / "student" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has a config\.json but no weights"):
        package(moved)


def test_images_are_spread_over_the_split() -> None:
    many = [Pair(str(n), Path(), Path()) for n in range(100)]
    names = [int(pair.name) for pair in evenly(many, 32)]
    assert (len(set(names)), names[0], names[-1]) == (32, 0, 99)
    assert np.diff(names).max() <= 4
    assert evenly(many[:5], 32) == many[:5]


@pytest.mark.usefixtures("same")
def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run.path), "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["package"] == str(tmp_path / "small.zip")
    assert found["certificate"]["format"] == "safetensors"
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(run.path), "--format", "onnx"])
    assert ended.value.code == 2
