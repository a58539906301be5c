"""The built-in scenes in a second, for tests to which their content is all the same."""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from segskd.scenes.dataset import SIZES, VERSION, draw_scene


def put_scenes(folder: Path) -> None:
    """The sample scenes, of which all of a split are one: to draw them takes half a minute."""
    for split, size in SIZES.items():
        for kind, pixels in zip(("images", "masks"), draw_scene(split, 0), strict=True):
            first = folder / split / kind / "scene_0000.png"
            first.parent.mkdir(parents=True)
            cv2.imwrite(str(first), pixels)
            for number in range(1, size):
                os.link(first, first.with_name(f"scene_{number:04d}.png"))
    (folder / "VERSION").write_text(VERSION)
