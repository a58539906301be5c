"""Runs a network over images: masks at the size of evaluation, at the image's own, and scores of a split."""

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

Report = Callable[[int, int], None]
PIXELS_AT_ONCE = 2**21
"""Pixels of the images that are taken together: eight of 512x512."""


class Predictor:
    """A network with the pre-processing that it was trained with, in fp32 and eval mode.

    `size` is the (height, width) that images are resized to; None leaves each image at its own. With `tiles` larger
    images go through the network by tiles.
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
        """(height, width) of images and logits, the same for all. RuntimeError where each image has its own."""
        if self.fixed_size is None:
            raise RuntimeError("each image has its own size: ask the predictor that `fitted` gives")
        return self.fixed_size

    @cached_property
    def view(self) -> ViewMaker:
        """Makes what `logits` takes."""
        return ViewMaker(self.card, self.size)

    def fitted(self, image: Uint8) -> Predictor:
        """This predictor, or where images keep their own size the same for that of `image` (H, W, C)."""
        if self.fixed_size is not None:
            return self
        own = copy.copy(self)
        own.fixed_size = (image.shape[0], image.shape[1])
        return own

    def images_at_once(self, most: int) -> int:
        """How many images to take together, so that large ones don't fill the memory."""
        if self.fixed_size is None:
            return 1
        return max(1, min(most, PIXELS_AT_ONCE // (self.size[0] * self.size[1])))

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C, h, w) at the padded size to (N, K, height, width) at `size`, a logit a class.

        Raises UserError when a large pass would not fit the memory.
        """
        if self.tiles is None or self.tiles.cover((images.shape[-2], images.shape[-1])):
            return unpad(self._pass(images), self.size)
        return unpad(blended(self._pass, images, self.tiles), self.size)

    def _pass(self, images: Tensor) -> Tensor:
        self._memory.require(images.shape, self.tiles is not None)
        out = self.model(images.to(self.device, memory_format=torch.channels_last))
        return class_logits(out, self.card).float()

    def mask(self, image: Pixels) -> Uint8:
        """Classes of an image (H, W, C) at its own size: logits are scaled up bilinearly, then argmax. (H, W)"""
        fitted = self.fitted(image)
        logits = fitted.logits(fitted.view.image_only(image)[None])
        return scaled_classes(logits, image.shape[:2])[0].cpu().numpy().astype(np.uint8)


def scaled_classes(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Argmax of (N, C, h, w) logits resized bilinearly to `size`: (N, H, W)."""
    height, width = size
    if logits.shape[-2:] != (height, width):
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return logits.argmax(1)


def predict_pairs(
    predictor: Predictor, pairs: Sequence[Pair], batch: int = 8
) -> Iterator[tuple[Sequence[Pair], Tensor, Tensor]]:
    """Parts of (pairs, logits (N, K, h, w), masks int64 (N, h, w)) at the predictor's size, or at the image's own.

    At most `batch` pairs a part, fewer where images are large.
    """
    batch = predictor.images_at_once(batch)
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        fitted, images, masks = _loaded(predictor, part)
        logits = fitted.logits(images)
        yield part, logits, unpad(masks, fitted.size).to(predictor.device)


def _loaded(predictor: Predictor, pairs: Sequence[Pair]) -> tuple[Predictor, Tensor, Tensor]:
    """The predictor that fits these pairs, and their images and masks as it takes them."""
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
    report: Report | None = None,
    batch: int = 8,
    add: Callable[[Tensor], Tensor] | None = None,
) -> Score:
    """Scores a network on pairs.

    Against masks resized to the predictor's size by nearest neighbour; `native` scales the logits up to
    each mask's own size instead. `add` sums a tensor over processes that have other pairs.
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
    predictor: Predictor, images: Sequence[Path], out: Path, report: Report | None = None
) -> tuple[list[Path], list[str]]:
    """Writes NAME.png, a palette PNG mask, and NAME_overlay.png for each image, at the image's size.

    Returns the masks' paths, and the images that could not be read, which are skipped. Images of one name
    from different folders get a number behind it, as do those whose masks would replace an image.
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
