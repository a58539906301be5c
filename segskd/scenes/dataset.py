"""The built-in sample dataset: street scenes drawn by code, which are the same on every machine."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from segskd.callbacks import OnProgress
from segskd.config import named
from segskd.errors import DiskError, UserError
from segskd.scenes.ground import cast_shadows, paint_ground, paint_sky, paint_skyline
from segskd.scenes.parts import IGNORED, SKY, Bytes, Canvas, Floats, Light, Rng, noise
from segskd.scenes.street import Street, furnish, lay_out
from segskd.workers import ignore_interrupts, processes_for, report_piece, split_among

# Raise it with every change of the scenes, so that existing folders are drawn again.
VERSION = "1"
SIZES: dict[str, int] = {"train": 400, "val": 100, "test": 100}
HEIGHT = 192
WIDTH = 256
# The least number of scenes of a process: to start one takes as long as to draw ten scenes.
LEAST_PER_PROCESS = 50

_VERSION_FILE = "VERSION"
_BONNETS = 0.15


def draw_scene(split: str, index: int) -> tuple[Bytes, Bytes]:
    """One scene: image uint8 (HEIGHT, WIDTH, 3) RGB and mask uint8 (HEIGHT, WIDTH).

    The mask holds 0 … 8 for sky, building, road, marking, pavement, tree, pole, car and person, and 255 on the bonnet
    of the camera's own car. Each index from 0 on always gives the same scene. Raises ValueError for a split that is not
    in SIZES.
    """
    if split not in SIZES:
        raise ValueError(f"no split '{split}': it is one of {', '.join(SIZES)}")
    rng = np.random.Generator(np.random.PCG64([list(SIZES).index(split), index]))
    street, canvas = lay_out(rng), Canvas()
    paint_sky(canvas, rng, street.camera, street.light)
    paint_skyline(canvas, rng, street.camera, street.light)
    paint_ground(canvas, rng, street.camera, street.light, street.road)
    furniture = furnish(canvas, rng, street)
    cast_shadows(canvas, street.light, furniture.casts, furniture.soft)
    for _, paint in sorted(furniture.things, key=lambda thing: -thing[0]):
        paint()
    image, mask = _expose(canvas, rng, street)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def _expose(canvas: Canvas, rng: Rng, street: Street) -> tuple[Bytes, Bytes]:
    """Turns the painted street into a photograph: halves its size, and adds fog, colour cast, vignette, blur and
    noise."""
    light = street.light
    if rng.random() < _BONNETS:
        _draw_bonnet(canvas, rng, light)
    mask = canvas.mask[::2, ::2]
    picture = cv2.resize(canvas.image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Close to exp(-fog · depth), in operations that round in the same way on every machine.
    clear = np.square(np.square(1 / (1 + canvas.depth[::2, ::2] * np.float32(light.fog / 4))))[..., None]
    clear[mask == SKY] = 1
    picture = picture * clear + np.array(light.haze, np.float32) * (1 - clear)
    picture *= np.array(light.gain, np.float32)
    picture *= _vignette(float(rng.uniform(0.0, 0.32)))[..., None]
    if rng.random() < 0.35:
        soft = cv2.blur(picture, (3, 3)).astype(np.float32)
        picture += (soft - picture) * np.float32(rng.uniform(0.2, 0.6))
    picture += _sensor_noise(rng, float(rng.uniform(0.6, 3.2)) / min(1.0, light.gain[1]))
    return np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8), mask


def _draw_bonnet(canvas: Canvas, rng: Rng, light: Light) -> None:
    """Paints the bonnet of the camera's own car at the lower edge. Its pixels are ignored."""
    height, width = canvas.mask.shape
    rise = float(rng.uniform(18, 44))
    across = np.linspace(-1, 1, width, dtype=np.float32)
    edge = np.float32(height) - np.float32(rise) * (1 - np.square(np.square(across)) * np.float32(0.8))
    inside = np.arange(height, dtype=np.float32)[:, None] > edge[None, :]
    paint = np.array([rng.integers(24, 150)] * 3, np.float32)
    shine = noise(rng, height, width, 96)[..., None] * np.array(light.haze, np.float32) * np.float32(0.35)
    canvas.image[inside] = np.clip(paint * np.float32(0.75) + shine, 0, 255).astype(np.uint8)[inside]
    canvas.mask[inside] = IGNORED
    canvas.depth[inside] = 1.0


def _vignette(strength: float) -> Floats:
    across = np.linspace(-1, 1, WIDTH, dtype=np.float32)[None, :]
    down = np.linspace(-1, 1, HEIGHT, dtype=np.float32)[:, None]
    return np.asarray(1 - np.float32(strength / 2) * (across * across + down * down), np.float32)


def _sensor_noise(rng: Rng, deviation: float) -> Floats:
    """Noise (HEIGHT, WIDTH, 3) from sums of integers, which are the same on every machine."""
    sums = rng.integers(-8, 9, (2, HEIGHT, WIDTH, 3), dtype=np.int8).sum(axis=0, dtype=np.int8)
    return np.asarray(sums * np.float32(deviation / 6.9), np.float32)


def is_current(folder: Path) -> bool:
    """Whether the folder holds all scenes of this VERSION."""
    try:
        if (folder / _VERSION_FILE).read_text(encoding="utf-8").strip() != VERSION:
            return False
    except OSError:
        return False
    return all(
        len(list((folder / split / kind).glob("scene_*.png"))) == size
        for split, size in SIZES.items()
        for kind in ("images", "masks")
    )


def generate(folder: Path, progress: OnProgress | None = None) -> None:
    """Writes all scenes to `folder/<split>/images` and `folder/<split>/masks` as `scene_0000.png` and so on.

    It does nothing when they are there already, and replaces scenes of another version. The folder appears only when it
    is complete. If several processes call this, one draws and the others wait. `progress` is called with the number of
    scenes that are written and of all scenes. Raises UserError when the folder holds other files or can't be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not is_current(folder):
                _refuse_foreign(folder)
                _generate_beside(folder, progress)
    except OSError as error:
        raise DiskError(
            f"can't write the sample scenes to {folder}: {error.strerror or error}; "
            f"free some space there (100 MB) or choose another folder with {named('data.folder')}",
            "data.folder",
        ) from error


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _VERSION_FILE).is_file() and any(folder.iterdir()):
        foreign = f"{folder} holds files that are no sample scenes: move them away or choose another"
        raise UserError(f"{foreign} {named('data.folder')}", "data.folder")


def _generate_beside(folder: Path, progress: OnProgress | None) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*.tmp"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=".tmp", dir=folder.parent))
    try:
        _write_all(work / "new", progress)
        if folder.exists():
            # The old folder is moved first, since a deletion that is cut short would leave half a dataset.
            os.replace(folder, work / "old")
        os.replace(work / "new", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_all(folder: Path, progress: OnProgress | None) -> None:
    """Draws all scenes, in several processes if there are enough."""
    for split in SIZES:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
    total, lock = sum(SIZES.values()), threading.Lock()
    numbers = iter(range(1, total + 1))

    def on_scene() -> None:
        with lock:
            done = next(numbers)
            if progress is not None:
                progress(done, total)

    processes = processes_for(total, LEAST_PER_PROCESS)
    if processes > 1:
        split_among(processes, "segskd.scenes.dataset", [str(folder)], on_scene)
    else:
        _write_part(folder, 0, 1, on_scene)
    (folder / _VERSION_FILE).write_text(f"{VERSION}\n", encoding="utf-8")


def _write_part(folder: Path, part: int, parts: int, on_scene: Callable[[], None]) -> None:
    """Draws the scenes of process `part` out of `parts`: every `parts`-th scene."""
    scenes = [(split, index) for split, size in SIZES.items() for index in range(size)]
    for split, index in scenes[part::parts]:
        image, mask = draw_scene(split, index)
        name = f"scene_{index:04d}.png"
        _write_png(folder / split / "images" / name, image[..., ::-1])
        _write_png(folder / split / "masks" / name, mask)
        on_scene()


def _write_png(path: Path, pixels: Bytes) -> None:
    # OpenCV's imwrite doesn't say why a file couldn't be written.
    done, encoded = cv2.imencode(".png", pixels)
    if not done:
        raise RuntimeError(f"OpenCV can't encode {path.name} as PNG")
    path.write_bytes(encoded.tobytes())


def _main(folder: str, part: str, parts: str) -> None:
    """The main function of a process that draws scenes."""
    ignore_interrupts()
    cv2.setNumThreads(1)  # the other processes use the other cores
    try:
        _write_part(Path(folder), int(part), int(parts), report_piece)
    except OSError as error:
        report_piece(error.errno or errno.EIO)


if __name__ == "__main__":
    _main(*sys.argv[1:])
