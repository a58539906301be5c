"""The pinned validation images of a run: photograph, truth, and the masks after a phase, as data URLs."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segskd.config import Recipe, Size
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.dataset import Pair, list_pairs, read_mask
from segskd.data.pixels import displayed, read_image
from segskd.errors import UserError
from segskd.evaluate.pictures import class_legend, palette_table, resized
from segskd.runs import Run

from .dataurl import data_url, jpeg_url

MOST_WIDE = 512
QUALITY = 88


@dataclass(frozen=True)
class Pinned:
    """One pinned image and the file with its mask after a phase."""

    name: str
    mask: Path

    @property
    def stamp(self) -> str:
        """Changes when the mask does."""
        return str(self.mask.stat().st_mtime_ns)


def pinned(run: Run, phase: str) -> list[Pinned]:
    """The images whose masks were drawn after a phase, by name."""
    folder = run.path / "previews" / phase
    return [Pinned(path.stem, path) for path in sorted(folder.glob("*.png")) if not path.name.startswith(".")]


def drawn_phases(run: Run) -> dict[str, str]:
    """The phases that have masks, each with a stamp that changes when one of its masks does."""
    stamps: dict[str, int] = {}
    for path in (run.path / "previews").glob("*/[!.]*.png"):
        with suppress(FileNotFoundError):  # replaced just now
            stamps[path.parent.name] = max(stamps.get(path.parent.name, 0), path.stat().st_mtime_ns)
    return {phase: str(stamp) for phase, stamp in stamps.items()}


def teacher_masks(run: Run) -> dict[str, Path]:
    """The teacher's masks of the pinned images, by name, if it was trained here on the same card; else none."""
    recipe = run.recipe
    teacher = Path(recipe.teacher).parent if recipe.teacher and recipe.teacher.endswith("student") else recipe.teacher
    if not teacher or not (Path(teacher) / "recipe.yaml").is_file() or not (Path(teacher) / "result.json").is_file():
        return {}
    own = Run(Path(teacher))
    phases = [phase["phase"] for phase in (own.read_json("result.json") or {}).get("phases", [])]
    if own.recipe.data.card != recipe.data.card or not phases:
        return {}
    return {found.name: found.mask for found in pinned(own, phases[-1])}


def legend(run: Run) -> list[dict[str, Any]]:
    """Name and CSS colour of each class."""
    return [{"name": name, "color": "rgb({}, {}, {})".format(*rgb)} for name, rgb in class_legend(_card(run.recipe))]


def photograph(run: Run, name: str) -> str:
    """The photograph, a JPEG as data URL. Raises UserError if it is missing or can't be read."""
    path = _pair(run.recipe, name).image
    return _photograph(path, path.stat().st_mtime_ns, run.recipe.data.card, _display_size(run.recipe.data.size))


def truth(run: Run, name: str) -> str:
    """The true mask at the run's size in the card's colours, a PNG as data URL. Ignored pixels are transparent."""
    path = _pair(run.recipe, name).mask
    return _truth(path, path.stat().st_mtime_ns, run.recipe.data.card, run.recipe.data.size)


def mask(path: Path) -> str:
    """A mask that the core drew, as data URL; "" if there is no such file."""
    try:
        return data_url(path.read_bytes(), "png")
    except FileNotFoundError:
        return ""


@lru_cache(maxsize=64)
def _photograph(path: Path, _changed: int, card_name: str, size: Size) -> str:
    return jpeg_url(resized(displayed(read_image(path, load_card(card_name))), size), QUALITY)


@lru_cache(maxsize=64)
def _truth(path: Path, _changed: int, card_name: str, size: Size) -> str:
    card = load_card(card_name)
    classes = cv2.resize(read_mask(path, card), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    picture = Image.fromarray(classes.astype(np.uint8)).convert("P")
    picture.putpalette(palette_table(card).ravel().tolist())
    clear = bytes(255 if value < len(card.classes) else 0 for value in range(256))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=clear)
    return data_url(buffer.getvalue(), "png")


def _display_size(size: Size) -> Size:
    """MOST_WIDE wide, in the proportions of the run's size, so that the mask fits over the photograph."""
    scale = MOST_WIDE / size[1]
    return max(1, round(size[0] * scale)), MOST_WIDE


def _card(recipe: Recipe) -> Card:
    return load_card(recipe.data.card)


def _pair(recipe: Recipe, name: str) -> Pair:
    """The validation pair whose preview has that name. Raises UserError if it is missing."""
    folder = str(data_folder(recipe.data.folder))
    found = _pairs(recipe.data.card, folder).get(name)
    if found is None or not found.image.is_file() or not found.mask.is_file():
        _pairs.cache_clear()
        raise UserError(f"validation image '{name}' is missing in {folder}: put it back")
    return found


@lru_cache(maxsize=8)
def _pairs(card_name: str, folder: str) -> dict[str, Pair]:
    return {Path(pair.name).name: pair for pair in list_pairs(load_card(card_name), Path(folder), "val")}
