"""Runs a network over images: predicts masks, writes them to files, and scores a network on a split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence, Set
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segskd.callbacks import OnProgress
from segskd.config import Size
from segskd.data.cards import Card
from segskd.data.dataset import Pair, read_mask
from segskd.data.pixels import Uint8, displayed, read_image
from segskd.data.transforms import ViewMaker, unpad
from segskd.errors import UserError
from segskd.evaluate.memory import PassMemory
from segskd.evaluate.metrics import ConfusionMatrix, Score, check_fits, class_logits
from segskd.evaluate.pictures import overlay, write_index_png, write_png
from segskd.evaluate.tiles import Tiles, blended
from segskd.files import writing
from segskd.models.build import describe
from segskd.standalone.bands import Pixels

PIXELS_AT_ONCE = 2**21
"""Pixels of all images of a batch: eight images of 512x512."""


class Predictor:
    """A network in fp32 and eval mode, with the pre-processing that it was trained with.

    `size` is the (height, width) to which images are resized; with None, each image keeps its own. With `tiles`, images
    larger than a tile are predicted tile by tile. Raises UserError for a network that doesn't fit the card.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card,
        size: Size | None,
        device: torch.device | str = "cpu",
        tiles: Tiles | None = None,
    ) -> None:
        check_fits(model, card, describe(model))
        self.device = torch.device(device)
        self.model = model.eval().to(self.device).to(memory_format=torch.channels_last)
        self.card = card
        self.fixed_size = size
        self.tiles = tiles
        self._memory = PassMemory(self.model, self.device)

    @property
    def size(self) -> Size:
        """(height, width) of all images and logits. Raises RuntimeError where each image keeps its own."""
        if self.fixed_size is None:
            raise RuntimeError("each image keeps its own size: take the predictor that `fitted` returns")
        return self.fixed_size

    @cached_property
    def view(self) -> ViewMaker:
        """Turns images into the input of `logits`."""
        return ViewMaker(self.card, self.size)

    def fitted(self, image: Uint8) -> Predictor:
        """This predictor or, where images keep their own size, one for the size of `image` (H, W, C)."""
        if self.fixed_size is not None:
            return self
        own = copy.copy(self)
        own.fixed_size = (image.shape[0], image.shape[1])
        return own

    def images_at_once(self, most: int) -> int:
        """The number of images, at most `most`, of a batch whose pixels don't exceed PIXELS_AT_ONCE."""
        if self.fixed_size is None:
            return 1
        return max(1, min(most, PIXELS_AT_ONCE // (self.size[0] * self.size[1])))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, K, height, width) of the K classes at `size`, for images (N, C, h, w) at the padded size.

        Raises UserError when the memory is too small for the pass.
        """
        if self.tiles is None or self.tiles.cover((images.shape[-2], images.shape[-1])):
            return unpad(self._pass(images), self.size)
        return unpad(blended(self._pass, images, self.tiles), self.size)

    def _pass(self, images: Tensor) -> Tensor:
        self._memory.require(images.shape, self.tiles is not None)
        out = self.model(images.to(self.device, memory_format=torch.channels_last))
        return class_logits(out, self.card).float()

    def mask(self, image: Pixels) -> Uint8:
        """Classes uint8 (H, W) of an image (H, W, C): the argmax of its logits, bilinearly resized to the image's
        size."""
        fitted = self.fitted(image)
        logits = fitted.logits(fitted.view.image_only(image)[None])
        return scaled_classes(logits, image.shape[:2])[0].cpu().numpy().astype(np.uint8)


def scaled_classes(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Classes (N, H, W) of logits (N, C, h, w), bilinearly resized to `size`."""
    height, width = size
    if logits.shape[-2:] != (height, width):
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return logits.argmax(1)


def predict_pairs(
    predictor: Predictor, pairs: Sequence[Pair], batch: int = 8
) -> Iterator[tuple[Sequence[Pair], Tensor, Tensor]]:
    """Yields batches of (pairs, logits (N, K, h, w), masks int64 (N, h, w)) at the predictor's size or the image's own.

    A batch has at most `batch` pairs, and fewer of large images.
    """
    batch = predictor.images_at_once(batch)
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        fitted, images, masks = _loaded(predictor, part)
        logits = fitted.logits(images)
        yield part, logits, unpad(masks, fitted.size).to(predictor.device)


def _loaded(predictor: Predictor, pairs: Sequence[Pair]) -> tuple[Predictor, Tensor, Tensor]:
    """The predictor for the size of these pairs, and their images and masks as its input."""
    views = []
    for pair in pairs:
        image = read_image(pair.image, predictor.card)
        fitted = predictor.fitted(image)
        views.append(fitted.view(image, read_mask(pair.mask, predictor.card), pair.name, 0))
    images, masks = zip(*views, strict=True)
    return fitted, torch.stack(images), torch.stack(masks)


def evaluate(
    predictor: Predictor,
    pairs: Sequence[Pair],
    native: bool = False,
    report: OnProgress | None = None,
    batch: int = 8,
    add: Callable[[Tensor], Tensor] | None = None,
) -> Score:
    """Scores a network on pairs.

    Masks are resized to the predictor's size by nearest neighbour. With `native`, the logits are resized to each mask's
    own size instead. `report` is called with the number of images that are scored and of all images. `add` sums a
    tensor over processes that score other pairs. Raises UserError when an image can't be read or all pixels are
    ignored.
    """
    matrix = ConfusionMatrix(predictor.card, predictor.device)
    for part, logits, masks in predict_pairs(predictor, pairs, batch):
        if native:
            _add_native(matrix, part, logits)
        else:
            matrix.update(logits.argmax(1), masks)
        if report:
            report(matrix.images, len(pairs))
    return matrix.score(add)


def _add_native(matrix: ConfusionMatrix, pairs: Sequence[Pair], logits: Tensor) -> None:
    for pair, own in zip(pairs, logits, strict=True):
        mask = torch.from_numpy(read_mask(pair.mask, matrix.card).astype(np.int64))
        matrix.update(scaled_classes(own[None], tuple(mask.shape)), mask[None].to(logits.device))


def predict_files(
    predictor: Predictor, images: Sequence[Path], out: Path, report: OnProgress | None = None
) -> tuple[list[Path], list[str]]:
    """Writes for each image a palette PNG mask NAME.png and NAME_overlay.png into `out`, at the image's size.

    Returns the masks' paths, and the images that couldn't be read. The name gets a number when two images have the same
    name, or when a mask would overwrite an image. `report` is called with the number of images that are done and of all
    images. Raises UserError when `out` can't be written.
    """
    written: list[Path] = []
    unreadable: list[str] = []
    taken = {path.resolve() for path in images}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for done, path in enumerate(images, start=1):
        try:
            image = read_image(path, predictor.card)
        except UserError:
            unreadable.append(str(path))
            continue
        mask = predictor.mask(image)
        target, drawn = _free_paths(out, path.stem, taken)
        taken |= {target.resolve(), drawn.resolve()}
        with writing(target):
            target.write_bytes(write_index_png(mask, predictor.card))
            drawn.write_bytes(write_png(overlay(displayed(image), mask, predictor.card)))
        written.append(target)
        if report:
            report(done, len(images))
    return written, unreadable


def _free_paths(out: Path, stem: str, taken: Set[Path]) -> tuple[Path, Path]:
    names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
    paths = ((out / f"{name}.png", out / f"{name}_overlay.png") for name in names)
    return next(both for both in paths if not {path.resolve() for path in both} & taken)
