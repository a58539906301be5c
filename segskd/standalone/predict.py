"""Writes masks of images by the network in this folder: python predict.py IMAGE … [--out DIR]

For each image it writes NAME_mask.png in the size of the image, and prints the path. A pixel's value is the place of
its class in card.json, counted from 0, and is shown in the class's colour. When two images have the same name, the
second mask gets a number. Needs bands.py, NumPy, Pillow and the packages that README.md names.
"""

import argparse
import json
import sys
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image


def network(folder, threads=0):
    """Opens the network in `folder`. In a package, the function of its format takes the place of this one."""
    raise NotImplementedError(f"{folder} is no package")


def mask(run, image, card):
    """Classes uint8 (H, W) of an image (H, W, channels), which is uint8, or float32 from 0 to 1.

    `run` is what `network` returns, `card` the content of card.json.
    """
    height, width = card["size"]
    x = resized(image.astype(np.float32).transpose(2, 0, 1), height, width).transpose(1, 2, 0)
    halves = image.shape[:2] == (2 * height, 2 * width)  # for exact halving OpenCV rounds .5 up, otherwise to even
    x = x * 255 if image.dtype != np.uint8 else np.floor(x + 0.5) if halves else np.rint(x)
    if card["input"] == "uint8":  # the file normalises and pads by itself
        x = x.astype(np.uint8)[None]
    else:
        x = ((x / 255 - card["mean"]) / card["std"]).astype(np.float32).transpose(2, 0, 1)[None]
        x = np.pad(x, ((0, 0), (0, 0), (0, -height % card["size_multiple"]), (0, -width % card["size_multiple"])))
    logits = run(x)[0, : len(card["classes"]), :height, :width]
    return resized(logits, image.shape[0], image.shape[1], area=False).argmax(0).astype(np.uint8)


def resized(channels, height, width, area=True):
    """Resizes (C, H, W) to (C, height, width): as OpenCV's INTER_AREA if `area` and a side shrinks, else bilinearly."""
    sides = [(channels.shape[1], height), (channels.shape[2], width)]
    shrinks = [new < old for old, new in sides]
    weights = between if not (area and any(shrinks)) else shares if all(new <= old for old, new in sides) else mixed
    rows, columns = (weights(old, new) for old, new in sides)
    return rows @ channels @ columns.T


def shares(old, new):
    """Weights (new, old) of INTER_AREA where both sides shrink: how much of each new pixel each old one covers."""
    edges, places = np.arange(new + 1) * (old / new), np.arange(old)
    covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (covered.clip(0) * (new / old)).astype(np.float32)


def mixed(old, new):
    """Weights (new, old) of INTER_AREA where one side shrinks and the other grows."""
    places = np.arange(new)
    first = np.floor(places * (old / new))
    part = places + 1 - (first + 1) * (new / old)
    part = np.where(part <= 0, 0, part - np.floor(part))[:, None]
    ahead = np.minimum(first + 1, old - 1)[:, None]
    return ((np.arange(old) == first[:, None]) * (1 - part) + (np.arange(old) == ahead) * part).astype(np.float32)


def between(old, new):
    """Weights (new, old) of INTER_LINEAR: linear between the centres of pixels."""
    centres = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
    return (1 - np.abs(centres[:, None] - np.arange(old))).clip(0).astype(np.float32)


def main():
    import bands  # lies beside this file

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    folder = Path(__file__).parent
    card = json.loads((folder / "card.json").read_text())
    run = network(folder)
    given.out.mkdir(parents=True, exist_ok=True)
    taken = {path.resolve() for path in given.images}
    unread = 0
    for path in given.images:
        try:
            image = bands.read(path, card["channels"], card["white"])
        except Exception as error:  # Pillow raises many kinds of error for damaged files
            print(f"can't use {path}: {error}", file=sys.stderr)
            unread += 1
            continue
        drawn = Image.fromarray(mask(run, image, card))
        drawn.putpalette([value for one in card["classes"] for value in one["color"]])
        names = (f"{path.stem}{number}_mask.png" for number in chain([""], (f"-{n}" for n in count(2))))
        target = next(given.out / name for name in names if (given.out / name).resolve() not in taken)
        taken.add(target.resolve())
        drawn.save(target)
        print(target)
    return 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
