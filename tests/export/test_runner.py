"""predict.py, as it lies in a package: alone with its runtime, NumPy and Pillow."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from bare_python import bare
from PIL import Image

from segskd.data.cards import load_card
from segskd.data.dataset import list_pairs
from segskd.data.pixels import read_image
from segskd.evaluate.predictor import Predictor
from segskd.export import timing
from segskd.export.formats import FORMATS, Spec
from segskd.export.package import package
from segskd.models.build import load
from segskd.runs import Run
from segskd.standalone import bands, predict

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "spec",
    [Spec(), Spec("onnx", int8=True, pixels=True), Spec("openvino", int8=True)],
    ids=lambda spec: spec.name,
)
def test_it_runs_where_there_is_nothing_else(
    spec: Spec, run: Run, unpacked: Callable[[Spec], Path], tmp_path: Path
) -> None:
    card = load_card(run.recipe.data.card)
    pair = list_pairs(card, Path(str(run.recipe.data.folder)), "val")[0]
    python = bare(tmp_path / "bare", ("numpy", "pillow", *FORMATS[spec.format].packages))
    command = [python, unpacked(spec) / "predict.py", pair.image, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    drawn = Image.open(tmp_path / f"{pair.name}_mask.png")
    expected = Predictor(load(run.model_folder), card, run.recipe.data.size).mask(read_image(pair.image, card))
    agreeing = (np.asarray(drawn) == expected).mean()
    assert agreeing > (0.99 if spec.int8 else 0.999)
    palette = drawn.getpalette()
    assert palette is not None
    assert palette[:9] == [value for entry in card.classes for value in entry.color]


def test_a_pruned_network_is_built_by_what_lies_beside_it(
    narrow_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "REPEATS", 5)
    card = load_card(narrow_run.recipe.data.card)
    pair = list_pairs(card, Path(str(narrow_run.recipe.data.folder)), "val")[0]
    made = package(narrow_run, Spec(), tmp_path / "made")
    assert made.certificate.pixels_differing == 0
    with zipfile.ZipFile(made.path) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / made.path.stem
    assert "50 % fewer channels than `config.json` says" in (folder / "README.md").read_text()
    python = bare(tmp_path / "bare", ("numpy", "pillow", *FORMATS["safetensors"].packages))
    command = [python, folder / "predict.py", pair.image, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = Predictor(load(narrow_run.model_folder), card, narrow_run.recipe.data.size).mask(
        read_image(pair.image, card)
    )
    assert (np.asarray(Image.open(tmp_path / f"{pair.name}_mask.png")) == expected).mean() > 0.999


def test_nothing_else_is_there(tmp_path: Path) -> None:
    python = bare(tmp_path / "bare", ("numpy", "pillow"))
    for name in ("segskd", "torch", "cv2", "onnxruntime"):
        alone = subprocess.run(
            [python, "-c", f"import {name}"], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert f"No module named '{name}'" in alone.stderr


@pytest.mark.parametrize("size", [(30, 40), (64, 96), (50, 91), (33, 7), (64, 50), (150, 50), (50, 150), (65, 95)])
def test_it_shrinks_as_opencv_does(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.float32)
    ours = predict.resized(image.transpose(2, 0, 1), *size).transpose(1, 2, 0)
    assert np.abs(ours - cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)).max() < 0.01


@pytest.mark.parametrize("size", [(64, 96), (150, 200), (129, 97)])
def test_it_enlarges_as_opencv_does(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).standard_normal((64, 96, 3)).astype(np.float32)
    ours = predict.resized(image.transpose(2, 0, 1), *size, area=False).transpose(1, 2, 0)
    assert np.abs(ours - cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)).max() < 1e-4


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls predict.py in a folder of its own, with a network that calls what is brighter than 128 class 1."""
    card = {"classes": [{"color": [0, 0, 0]}, {"color": [255, 255, 255]}], "size": [40, 20], "size_multiple": 1}
    card |= {"input": "uint8", "layout": "NHWC", "channels": 3, "white": None, "mean": [0, 0, 0], "std": [1, 1, 1]}
    (tmp_path / "card.json").write_text(json.dumps(card))
    bright = lambda x: np.stack([128.0 - x[..., 0], x[..., 0] - 128.0], axis=1)  # noqa: E731
    monkeypatch.syspath_prepend(str(Path(bands.__file__).parent))
    monkeypatch.setattr(predict, "network", lambda folder: bright)
    monkeypatch.setattr(predict, "__file__", str(tmp_path / "predict.py"))

    def call(*arguments: Path | str) -> int:
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments), "--out", str(tmp_path / "masks")])
        return predict.main()

    return call


def test_it_turns_a_photograph_upright(program: Callable[..., int], tmp_path: Path) -> None:
    """A telephone's JPEG, lying on its side with a note that says so: OpenCV, which training reads with, heeds it."""
    upright = np.zeros((40, 20, 3), np.uint8)
    upright[:20] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.rot90(upright)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert program(tmp_path / "photo.jpg") == 0
    drawn = np.asarray(Image.open(tmp_path / "masks/photo_mask.png"))
    expected = (read_image(tmp_path / "photo.jpg", load_card("scenes"))[..., 0] > 128).astype(np.uint8)
    assert drawn.shape == (40, 20)
    assert (drawn == expected).all()


def test_images_of_one_name_get_masks_of_their_own(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for grey, name in ((0, "a/x.png"), (250, "b/x.png"), (0, "masks/x-2_mask.png"), (250, "b/x.tif")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 40), (grey, grey, grey)).save(tmp_path / name)
    given = [tmp_path / name for name in ("a/x.png", "b/x.png", "b/x.tif", "masks/x-2_mask.png")]
    assert program(*given) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == ["x_mask.png", "x-3_mask.png", "x-4_mask.png", "x-2_mask_mask.png"]
    assert [int(np.asarray(Image.open(path)).max()) for path in written] == [0, 1, 1, 0]


def test_what_is_no_image_is_told_and_left_out(
    program: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fake.jpg").write_text("junk")
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)  # more pixels than Pillow dares to open
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    Image.new("RGB", (20, 40)).save(tmp_path / "sound.png")
    assert program(*(tmp_path / name for name in ("fake.jpg", "none.png", "bomb.png", "sound.png"))) == 2
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'masks/sound_mask.png'}\n"
    assert [line.split(": ")[0] for line in told.err.splitlines()] == [
        f"can't use {tmp_path / name}" for name in ("fake.jpg", "none.png", "bomb.png")
    ]


def test_what_goes_in_is_what_training_saw() -> None:
    """Also of an image that is exactly twice as large, for which OpenCV rounds otherwise."""
    card = {"classes": [0, 1], "size": [40, 20], "size_multiple": 1, "input": "uint8"}
    seen = []

    def look(x: np.ndarray) -> np.ndarray:
        seen.append(x[0])
        return np.zeros((1, 2, 40, 20), np.float32)

    for times in (2, 3, 4):
        image = np.random.default_rng(times).integers(0, 256, (40 * times, 20 * times, 3), dtype=np.uint8)
        predict.mask(look, image, card)
        assert (seen[-1] == cv2.resize(image, (20, 40), interpolation=cv2.INTER_AREA)).all()


def test_it_is_short_enough_to_be_read() -> None:
    lines = Path(str(predict.__file__)).read_text().splitlines()
    assert len(lines) < 140
