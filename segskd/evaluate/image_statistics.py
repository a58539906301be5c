"""Figures that a teacher gives for each training image. The subset rules `diverse` and `hardest` use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segskd.callbacks import OnProgress
from segskd.config import Size
from segskd.data.cache import Arrays, cached
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.pixels import read_image
from segskd.data.transforms import padded_size, unpad
from segskd.errors import UserError
from segskd.evaluate.metrics import class_logits
from segskd.evaluate.predictor import Predictor
from segskd.models.build import digest
from segskd.models.cut import check_size, cut
from segskd.models.stages import HEAD, IMAGE, StagedNetwork

THREADS = 2
MAX_BATCH = 8
# All features of a batch are in memory at once: about 300 bytes a pixel of the image for a ResNet-34 U-Net.
BATCH_PIXELS = 1 << 21


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Figures of N images, a row for each of `names`.

    `features` float32 (N, C) are spatial means of the feature of the teacher's last encoder stage. `entropy` float32
    (N,) is the entropy of its softmax in nats, as a mean over all pixels.
    """

    names: tuple[str, ...]
    features: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]


def image_statistics(
    teacher: nn.Module | StagedNetwork,
    card: Card,
    pairs: Sequence[Pair],
    size: Size,
    device: torch.device | str,
    folder: Path,
    report: OnProgress | None = None,
) -> ImageStatistics:
    """Runs the teacher once over the images at `size`, and caches the figures in `folder`.

    They are computed anew when the teacher's weights, the card, the size or an image changes. `report` is called with
    the number of images that are done and of all images. Raises UserError for a network that has no stages or not the
    card's classes, for an image that can't be read, and when the teacher's outputs are not finite numbers.
    """
    network = teacher if isinstance(teacher, StagedNetwork) else _cut(teacher, size)
    predictor = Predictor(network.model, card, size, device)
    height, width = size
    inputs = [digest(network.model), card.model_dump_json(), f"{height}x{width}", *(pair.name for pair in pairs)]
    images = [pair.image for pair in pairs]
    arrays = cached(folder, "image_statistics", inputs, images, lambda: _compute(network, predictor, pairs, report))
    return ImageStatistics(tuple(pair.name for pair in pairs), arrays["features"], arrays["entropy"])


def _cut(teacher: nn.Module, size: Size) -> StagedNetwork:
    network = cut(teacher)
    check_size(network, padded_size(size), "the teacher")
    return network


def _compute(network: StagedNetwork, predictor: Predictor, pairs: Sequence[Pair], report: OnProgress | None) -> Arrays:
    features: list[Tensor] = []
    entropy: list[Tensor] = []
    done = 0
    for part, images in _batches(predictor, pairs):
        means, uncertainty = _figures(network, predictor, images)
        if not (means.isfinite().all() and uncertainty.isfinite().all()):
            raise UserError(
                f"the teacher's outputs for images such as '{part[0].name}' aren't finite numbers: name another teacher"
            )
        features.append(means.cpu())
        entropy.append(uncertainty.cpu())
        done += len(part)
        if report:
            report(done, len(pairs))
    return {"features": torch.cat(features).numpy(), "entropy": torch.cat(entropy).numpy()}


@torch.inference_mode()
def _figures(network: StagedNetwork, predictor: Predictor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and entropies (N,) of images (N, channels, h, w) at the padded size. Padding doesn't count."""
    deepest = [name for name in network.names if name.startswith("encoder.")][-1]
    images = images.to(predictor.device, memory_format=torch.channels_last)
    features = network.run({IMAGE: images}, padded_size(predictor.size))
    logits = class_logits(unpad(features[HEAD], predictor.size), predictor.card).float()
    entropy = torch.special.entr(logits.softmax(1)).sum(1)
    return features[deepest].float().mean((2, 3)), entropy.mean((1, 2))


def _batches(predictor: Predictor, pairs: Sequence[Pair]) -> Iterator[tuple[Sequence[Pair], Tensor]]:
    height, width = padded_size(predictor.size)
    batch = max(1, min(MAX_BATCH, BATCH_PIXELS // (height * width)))
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            views = threads.map(lambda pair: predictor.view.image_only(read_image(pair.image, predictor.card)), part)
            yield part, torch.stack(list(views))
