"""Pictures and maps of classes on their way to the page: photographs as data URLs, maps whole and compressed."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from segskd.data.cards import Colour
from segskd.data.pixels import Uint8
from segskd.evaluate.comparison import AGREEMENT_COLORS, agreement
from segskd.evaluate.pictures import resized
from segskd.evaluate.sidebyside import Frame

from .dataurl import jpeg_url

QUALITY = 90
FAST = 1
THUMBNAIL_WIDTH = 160
TINT = 0.7
TEACHER_ONLY, STUDENT_ONLY = 1, 2


def packed(maps: Mapping[str, Uint8]) -> dict[str, Any]:
    """Maps (h, w) of one size, by name: "planes", "height", "width", and "data", which holds their bytes one map
    after the other, in zlib's format and base64. Nothing is lost.
    """
    stacked = np.stack(list(maps.values()))
    data = base64.b64encode(zlib.compress(stacked.tobytes(), FAST)).decode()
    return {"planes": list(maps), "height": stacked.shape[1], "width": stacked.shape[2], "data": data}


def picture_url(picture: Uint8) -> str:
    """A photograph RGB (H, W, 3) as a data URL, for looking at."""
    return jpeg_url(picture, QUALITY)


def thumbnail(frame: Frame, ignore_index: int) -> Uint8:
    """The photograph small, RGB, tinted where one network alone is right: in AGREEMENT_COLORS of who that is."""
    height, width = frame.image.shape[:2]
    size = max(1, round(height * THUMBNAIL_WIDTH / width)), THUMBNAIL_WIDTH
    small = resized(frame.image, size)
    if frame.truth is None:
        return small
    kinds = agreement(frame.teacher, frame.student, frame.truth, ignore_index)
    near = cv2.resize(kinds, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)
    tint = np.array(AGREEMENT_COLORS, dtype=np.uint8)[near]
    mixed = (small * (1 - TINT) + tint * TINT).astype(np.uint8)
    return np.where(np.isin(near, (TEACHER_ONLY, STUDENT_ONLY))[..., None], mixed, small)


def stage_colours(count: int) -> list[Colour]:
    """RGB of each of `count` stages, in order from dark to bright: told apart by lightness alone, too.

    OpenCV's «plasma», which is even in perception and holds for colour-blind people.
    """
    steps = np.linspace(40, 255, max(count, 1)).astype(np.uint8)
    ramp = cv2.applyColorMap(steps[None], cv2.COLORMAP_PLASMA)[0, :, ::-1].tolist()
    return [(red, green, blue) for red, green, blue in ramp][:count]
