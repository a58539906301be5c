"""Packages: what is in them, what they prove, and that none is offered which doesn't."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch

from segskd import cli
from segskd.data.cards import load_card
from segskd.errors import UserError
from segskd.events import PhaseEndEvent, PlannedPhase, StartEvent, StoppedEvent
from segskd.export import formats, timing
from segskd.export import package as packing
from segskd.export.certificate import Difference, Package, find_package
from segskd.export.formats import Spec, all_specs
from segskd.export.formats.pt2 import write_pt2
from segskd.export.graph import FromPixels, Logits, example_input, free_axes, only_size
from segskd.export.model_card import model_card
from segskd.export.package import package
from segskd.export.timing import Latency
from segskd.models.build import create, load, save
from segskd.runs import Run

pytestmark = pytest.mark.slow

Packed = Callable[[Spec], Package]
SAFETENSORS, ONNX = Spec(), Spec("onnx")
PIXELS = 4 * (50 * 90 + 64 * 64 + 64 * 128)
"""Four validation images at the run's size, about half of it, and five quarters."""
EXTRAS = ["README.md", "bands.py", "card.json", "certificate.json", "predict.py", "recipe.yaml", "result.json"]


@pytest.fixture
def same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison that finds no difference, in no time."""
    found = Difference(4, ((50, 90),), 100, 0, 0.0, 0.0, 1.0, 0.5, 0.5)
    times = Latency((64, 96), 2, 5, 4.0, 2.0, 1.0, (3.5, 4.0, 4.5), (1.9, 2.0, 2.1))
    monkeypatch.setattr(packing, "compare", lambda *_: found)
    monkeypatch.setattr(packing, "measure", lambda *_: times)


def test_a_network_that_takes_one_size_comes_for_that(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Swin transformer's windows fit 224x224 alone, whether pixels go in or what became of them."""
    monkeypatch.setattr(timing, "REPEATS", 5)
    shutil.copytree(run.path, tmp_path / "swin", ignore=shutil.ignore_patterns("exports"))
    recipe = tmp_path / "swin" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("50x90", "224x224"))
    model = create("unet", "tu-swin_tiny_patch4_window7_224", 3).eval()
    save(model, tmp_path / "swin" / "student")
    run = Run.open(tmp_path / "swin")
    made = package(run, Spec("onnx", pixels=True))
    assert made.certificate.sizes == ((224, 224),)
    assert made.certificate.only_size == (224, 224)
    inside = made.path.stem
    with zipfile.ZipFile(made.path) as content:
        session = onnxruntime.InferenceSession(content.read(f"{inside}/model.onnx"))
        assert json.loads(content.read(f"{inside}/card.json"))["only_size"] == [224, 224]
        assert (
            "`size` (`resize` says how), which is the only size that it takes"
            in content.read(f"{inside}/README.md").decode()
        )
    assert session.get_inputs()[0].shape == ["batch", 224, 224, 3]
    write_pt2(model, tmp_path / "model.pt2", only_size(model, (200, 210)))  # of images that are padded
    given = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(given), model(given))


def test_one_size_is_that_of_the_images(run: Run) -> None:
    """Pixels are padded inside the file, normalised images before it."""
    model, card = load(run.model_folder), load_card(run.recipe.data.card)
    assert example_input(Logits(model, card), (50, 90)).shape == (2, 3, 64, 96)
    assert example_input(FromPixels(model, card), (50, 90)).shape == (2, 50, 90, 3)
    assert (free_axes(Logits(model, card), (50, 90)), only_size(model, (50, 90))) == ({0: "batch"}, None)


def test_it_lies_in_the_run_with_its_certificate(run: Run, packed: Packed) -> None:
    made, folder = packed(SAFETENSORS), run.path / "exports" / "safetensors"
    assert made.path == folder / "small-safetensors.zip"
    assert sorted(path.name for path in folder.iterdir()) == ["certificate.json", "small-safetensors.zip"]
    certificate = json.loads((folder / "certificate.json").read_text())
    content = made.path.read_bytes()
    assert certificate["sha256"] == hashlib.sha256(content).hexdigest()
    assert (certificate["bytes"], certificate["run"]) == (len(content), "small")
    assert (certificate["images"], certificate["pixels"]) == (4, PIXELS)
    assert certificate["sizes"] == [[50, 90], [64, 64], [64, 128]]
    assert certificate["only_size"] is None
    assert (certificate["pixels_differing"], certificate["max_logit_difference"]) == (0, 0.0)
    found = find_package(run)
    assert found is not None
    assert (found.path, found.certificate.sha256) == (made.path, made.certificate.sha256)


@pytest.mark.parametrize("spec", [Spec(name) for name in formats.FORMATS], ids=lambda spec: spec.name)
def test_every_format_gives_the_checkpoints_masks(spec: Spec, packed: Packed, unpacked: Callable[[Spec], Path]) -> None:
    own = packed(spec).certificate
    assert (own.format, own.precision, own.failures) == (spec.format, "float32", ())
    assert own.pixels == PIXELS
    assert own.pixels_differing <= PIXELS / 10_000
    assert own.miou_after == pytest.approx(own.miou_before, abs=1e-4)
    files = [*formats.FORMATS[spec.format].files, *EXTRAS]
    assert sorted(path.name for path in unpacked(spec).iterdir()) == sorted(files)
    assert own.model_bytes == sum((unpacked(spec) / name).stat().st_size for name in formats.FORMATS[spec.format].files)
    assert own.model_bytes == pytest.approx(own.float_bytes, rel=0.05)


@pytest.mark.parametrize("spec", [Spec("onnx", int8=True), Spec("openvino", int8=True)], ids=lambda spec: spec.name)
def test_int8_weighs_a_quarter_and_says_what_it_costs(spec: Spec, packed: Packed) -> None:
    own = packed(spec).certificate
    assert own.precision == "int8"
    assert 0.25 < own.model_bytes / own.float_bytes < 0.3
    assert 0 < own.share_differing < 0.01
    assert own.quantization is not None
    assert own.quantization["images"] == 4
    assert own.limits == {"agreement": 0.99, "difference": None, "points": 0.5, "size": 0.3}


def test_latencies_are_ratios_of_the_same_turn(packed: Packed) -> None:
    own = packed(ONNX).certificate.latency
    assert own is not None
    assert (list(own["size"]), own["repeats"]) == ([64, 96], 5)
    low, middle, high = own["than_teacher"]
    assert 0 < low <= middle <= high
    assert own["student_ms"] > 0


def test_what_a_format_has_not() -> None:
    with pytest.raises(UserError, match="pt2 has no INT8: take --format onnx or openvino"):
        Spec("pt2", int8=True)
    with pytest.raises(UserError, match="safetensors has no pre-processing inside the file"):
        Spec(pixels=True)
    names = [spec.name for spec in all_specs()]
    assert names[:4] == ["safetensors", "onnx", "pt2", "openvino"]
    assert {name for name in names if name.partition("-")[0] in ("onnx", "openvino") and "-" in name} == {
        f"{name}{more}" for name in ("onnx", "openvino") for more in ("-int8", "-pixels", "-int8-pixels")
    }
    assert not [name for name in names if name.startswith(("safetensors-", "pt2-"))]


def test_a_package_that_is_missing_is_named_with_its_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise formats.PackageNotFoundError(name)

    monkeypatch.setattr(formats, "version", version)
    with pytest.raises(UserError, match="openvino is not installed: pip install openvino"):
        package(run, Spec("openvino"))


def test_one_that_differs_is_kept_aside(run: Run, tmp_path: Path, same: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Difference(4, ((50, 90),), 200, 3, 0.5, 0.1, 2.0, 0.5, 0.5)
    monkeypatch.setattr(packing, "compare", lambda *_: found)
    with pytest.raises(UserError, match=r"is refused: 1\.5 % of 200 pixels differ .*; a logit differs by 0\.25"):
        package(run, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]
    kept = tmp_path / "refused"
    assert sorted(path.name for path in kept.iterdir()) == ["certificate.json", "small-safetensors.zip"]
    assert len(json.loads((kept / "certificate.json").read_text())["failures"]) == 2
    assert find_package(run, out=tmp_path) is None


def test_a_disk_that_fills_leaves_nothing_half_written(
    run: Run, tmp_path: Path, same: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        package(run, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_before_anything_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times 8 058 939 parameters and their statistics, four bytes each, are 129 MB."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000_000))
    with pytest.raises(UserError, match="has 100 MB free, 129 MB are needed"):
        package(run, out=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("same")
def test_a_teacher_that_is_gone_is_not_timed(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    moved = Run.open(tmp_path / "small")
    moved.write_recipe(moved.recipe.model_copy(update={"teacher": "/nowhere/at-all"}))
    own = package(moved).certificate
    assert own.latency is not None
    assert "no model at /nowhere/at-all" in own.latency["no_teacher"]
    assert "the teacher was not timed" in model_card(load_card(run.recipe.data.card), run.read_json("result.json"), own)


@pytest.mark.usefixtures("same")
def test_an_export_of_the_name_before_goes(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    package(Run.open(tmp_path / "small"))
    shutil.move(tmp_path / "small", tmp_path / "renamed")
    package(Run.open(tmp_path / "renamed"))
    kept = tmp_path / "renamed" / "exports" / "safetensors"
    assert sorted(path.name for path in kept.iterdir()) == ["certificate.json", "renamed-safetensors.zip"]


def test_images_that_are_too_small_for_a_graph(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    moved, recipe = Run.open(tmp_path / "small"), run.recipe
    moved.write_recipe(recipe.model_copy(update={"data": recipe.data.model_copy(update={"size": (32, 96)})}))
    with pytest.raises(UserError, match="images of 32x96 are too small for onnx, whose least side is 64"):
        package(moved, ONNX)


def test_markup_in_a_name_stays_text(card_path: Path, run: Run, packed: Packed, tmp_path: Path) -> None:
    """In Markdown a letter behind one backslash stands for itself, and a backslash behind a backslash, too."""
    other = tmp_path / "other.yaml"
    other.write_text(card_path.read_text().replace("sky", "'a_b*<img> [x](y)'"))
    page = model_card(load_card(other), run.read_json("result.json"), packed(SAFETENSORS).certificate)
    assert r"ground, wall, a\_b\*\<img\> \[x\](y)." in page


def test_the_page_says_how_to_run_it_and_what_was_proved(unpacked: Callable[[Spec], Path]) -> None:
    page = (unpacked(ONNX) / "README.md").read_text()
    assert "pip install numpy pillow onnxruntime\npython predict.py image.png" in page
    assert "unet:resnet10 | its teacher, linknet:tu-test_resnet" in page
    assert f"of {PIXELS} (" in page
    assert "faster than the teacher in eager PyTorch" in page


@pytest.mark.usefixtures("same")
def test_a_card_beside_the_data_is_found_by_its_name(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SEGSKD_DATA", raising=False)
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    moved = Run.open(tmp_path / "small")
    moved.write_recipe(moved.recipe.model_copy(update={"data": moved.recipe.data.model_copy(update={"card": "bands"})}))
    assert package(moved).certificate.holds


@pytest.mark.usefixtures("same")
def test_a_package_cut_short_is_none(run: Run, tmp_path: Path) -> None:
    made = package(run, out=tmp_path)
    assert find_package(run, out=tmp_path) is not None
    made.path.write_bytes(b"cut short")
    assert find_package(run, out=tmp_path) is None


@pytest.mark.usefixtures("same")
def test_the_encoder_is_fetched_from_nowhere(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    path = tmp_path / "small" / "student" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoder_weights": "imagenet"}))
    made = package(Run.open(tmp_path / "small"), out=tmp_path / "out")
    with zipfile.ZipFile(made.path) as archive:
        assert json.loads(archive.read("small-safetensors/config.json"))["encoder_weights"] is None


def test_an_unfinished_run_says_how_far_it_is(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "half", recipe())
    phases = tuple(PlannedPhase(phase=name, epochs=2, steps=20) for name in ("encoder.0", "encoder.1", "head"))
    run.record(StartEvent(phases=phases, images=40, batch=4))
    run.record(PhaseEndEvent(phase="encoder.0", loss=0.5, seconds=1.0, graft_miou=0.5))
    run.record(StoppedEvent(phase="encoder.1"))
    with pytest.raises(UserError, match=r"half is not finished \(interrupted, 1 of 3 phases are done\).*resume half"):
        package(run)


def test_files_that_are_gone(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "small", ignore=shutil.ignore_patterns("exports"))
    moved, recipe = Run.open(tmp_path / "small"), run.recipe
    moved.write_recipe(recipe.model_copy(update={"data": recipe.data.model_copy(update={"folder": str(tmp_path)})}))
    with pytest.raises(UserError, match=f"no folder {tmp_path}/bands"):
        package(moved)
    moved.write_recipe(recipe)
    (tmp_path / "small" / "student" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has a config\.json but no weights"):
        package(moved)


@pytest.mark.usefixtures("same")
def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run.path), "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out.splitlines()[-1])
    assert found["package"] == str(tmp_path / "small-safetensors.zip")
    assert found["certificate"]["format"] == "safetensors"
    assert "4.0 × (3.5 to 4.5) faster than the teacher in eager PyTorch" in err
    assert cli.main(["export", str(run.path), "--int8"]) == 2
    assert "take --format onnx or openvino" in capsys.readouterr().err
