"""Compares predictions by tiles with those of whole images: share of equal pixels, mIoU, seconds.

    python benchmarks/tiles.py --model FOLDER --dataset camvid --size 360x480 --tile 256x320 192x256 [--overlap 96]

It prints a line for whole images, and one for each size of tiles.
"""

from __future__ import annotations

import json
import time
from typing import Any

import torch
import tyro
from torch import Tensor

from segskd.data.dataset import Pair, list_pairs
from segskd.evaluate.metrics import ConfusionMatrix
from segskd.evaluate.predictor import Predictor, predict_pairs
from segskd.evaluate.source import find_source
from segskd.evaluate.tiles import choose_tiles


def main(
    model: str,
    tile: tuple[str, ...],
    dataset: str | None = None,
    split: str = "val",
    size: str | None = None,
    overlap: int | None = None,
    data: str | None = None,
) -> None:
    """Predicts a split as whole images and by tiles."""
    source = find_source(model, dataset, size, data)
    pairs = list_pairs(source.card, source.data, split)
    whole, figures = _predicted(source.predictor(), pairs)
    print(json.dumps({"tile": None, **figures}), flush=True)
    for name in tile:
        classes, figures = _predicted(source.predictor(tiles=choose_tiles(name, overlap)), pairs)
        same = sum(int((one == other).sum()) for one, other in zip(whole, classes, strict=True))
        share = same / sum(one.numel() for one in whole)
        print(json.dumps({"tile": name, **figures, "agreement": share}), flush=True)


def _predicted(predictor: Predictor, pairs: list[Pair]) -> tuple[list[Tensor], dict[str, Any]]:
    """Classes uint8 of all images, on the CPU, with mIoU and seconds."""
    matrix, predicted = ConfusionMatrix(predictor.card, predictor.device), []
    started = time.perf_counter()
    for _, logits, masks in predict_pairs(predictor, pairs):
        classes = logits.argmax(1)
        matrix.update(classes, masks)
        predicted += list(classes.to("cpu", torch.uint8))
    return predicted, {"miou": matrix.score().miou, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    tyro.cli(main)
