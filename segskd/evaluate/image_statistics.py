"""ImageStatistics: what the teacher makes of each training image, for the rules `diverse` and `hardest`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from segskd.config import Size
from segskd.data.cache import Arrays, kept
from segskd.data.cards import Card
from segskd.data.dataset import Pair
from segskd.data.pixels import read_image
from segskd.data.transforms import padded_size, unpad
from segskd.errors import UserError
from segskd.evaluate.metrics import class_logits
from segskd.evaluate.predict import Predictor, Report
from segskd.models.build import digest
from segskd.models.cut import check_size, cut
from segskd.models.stages import HEAD, IMAGE, StagedNetwork

THREADS = 2
MAX_BATCH = 8
# Every feature of a batch is held at once: some 300 bytes a pixel of the image for a ResNet-34 U-Net.
BATCH_PIXELS = 1 << 21


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """What the teacher makes of N images, a row a name.

    `features` float32 (N, C) are the spatial means of the teacher's deepest feature, that of its last encoder
    stage; `entropy` float32 (N,) is the entropy of its softmax in nats, the mean over all pixels.
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
    report: Report | None = None,
) -> ImageStatistics:
    """One pass of the teacher over the plain images at `size`, kept in `folder`.

    It holds until the teacher's weights, the card, the size or an image changes. `report` hears (images done,
    images in all) while the teacher runs. Raises UserError for a network that can't be cut or hasn't the
    card's classes, for an image that can't be read, and when the teacher's answers are no numbers.
    """
    network = teacher if isinstance(teacher, StagedNetwork) else _cut(teacher, size)
    predictor = Predictor(network.model, card, size, device)
    height, width = size
    about = [digest(network.model), card.model_dump_json(), f"{height}x{width}", *(pair.name for pair in pairs)]
    images = [pair.image for pair in pairs]
    arrays = kept(folder, "image_statistics", about, images, lambda: _ask(network, predictor, pairs, report))
    return ImageStatistics(tuple(pair.name for pair in pairs), arrays["features"], arrays["entropy"])


def _cut(teacher: nn.Module, size: Size) -> StagedNetwork:
    network = cut(teacher)
    check_size(network, padded_size(size), "the teacher")
    return network


def _ask(network: StagedNetwork, predictor: Predictor, pairs: Sequence[Pair], report: Report | None) -> Arrays:
    features: list[Tensor] = []
    entropy: list[Tensor] = []
    done = 0
    for part, images in _batches(predictor, pairs):
        means, uncertainty = _answers(network, predictor, images)
        if not (means.isfinite().all() and uncertainty.isfinite().all()):
            raise UserError(f"the teacher gives no numbers for images such as '{part[0].name}': name another teacher")
        features.append(means.cpu())
        entropy.append(uncertainty.cpu())
        done += len(part)
        if report:
            report(done, len(pairs))
    return {"features": torch.cat(features).numpy(), "entropy": torch.cat(entropy).numpy()}


@torch.inference_mode()
def _answers(network: StagedNetwork, predictor: Predictor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, C) and entropies (N,) of images (N, C, h, w) at the padded size; padding has no entropy."""
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
