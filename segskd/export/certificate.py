"""Certificates: a package is opened again, its model loaded in a fresh process, and compared with the checkpoint."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from segskd.config import Size
from segskd.data.dataset import Pair, read_image
from segskd.data.transforms import padded_size, unpad
from segskd.errors import UserError
from segskd.evaluate.metrics import drop_surplus
from segskd.evaluate.predict import Predictor
from segskd.models.build import output_classes

IMAGES = 32
PROGRAM = Path(__file__).with_name("reload.py")


@dataclass(frozen=True)
class Certificate:
    """What a package proves about itself.

    `pixels` were compared on `images` validation images, `pixels_differing` of them have another class than the
    checkpoint gives; `max_logit_difference` is the largest |Δ| of any logit. `bytes` and `sha256` are the zip's.
    """

    file: str
    format: str
    run: str
    network: str
    bytes: int
    sha256: str
    images: int
    size: tuple[int, int]
    pixels: int
    pixels_differing: int
    share_differing: float
    max_logit_difference: float
    versions: dict[str, str]

    @property
    def holds(self) -> bool:
        """Whether the package gives the checkpoint's masks, pixel by pixel."""
        return self.pixels_differing == 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Difference(NamedTuple):
    """Two networks' answers to the same images."""

    images: int
    pixels: int
    differing: int
    logits: float


def compare_reloaded(
    archive: Path,
    checkpoint: Predictor,
    pairs: Sequence[Pair],
    report: Callable[[int, int], None] | None = None,
) -> Difference:
    """Compares the model in a zip, loaded by a fresh process, with `checkpoint` on up to IMAGES of the pairs.

    Both compute alike: fp32, one image at a time, the same number of threads. Raises UserError when the package
    can't be opened or loaded.
    """
    chosen = evenly(pairs, IMAGES)
    pixels = differing = 0
    largest = 0.0
    with tempfile.TemporaryDirectory(prefix="segskd-") as scratch:
        folder = _unpacked(archive, Path(scratch))
        classes = output_classes(checkpoint.model)
        with FreshProcess(folder, padded_size(checkpoint.size), classes) as fresh:
            for done, pair in enumerate(chosen, start=1):
                image = checkpoint.view.image_only(read_image(pair.image))
                ours, theirs = checkpoint.logits(image[None]), _finished(fresh.logits(image), checkpoint)
                differing += int((ours.argmax(1) != theirs.argmax(1)).sum())
                pixels += ours[:, 0].numel()
                largest = max(largest, float((ours - theirs).abs().max()))
                if report:
                    report(done, len(chosen))
    return Difference(len(chosen), pixels, differing, largest)


def _finished(logits: Tensor, checkpoint: Predictor) -> Tensor:
    """Padding and a surplus output taken off, as the checkpoint's own logits come."""
    return drop_surplus(unpad(logits, checkpoint.size), checkpoint.card)


def evenly(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """At most `most` of the pairs, spread over all."""
    places = np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)
    return [pairs[place] for place in places]


def sha256(path: Path) -> str:
    """Of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpacked(archive: Path, folder: Path) -> Path:
    """The folder in the zip that holds the model; the zip is our own, so its paths are trusted."""
    try:
        with zipfile.ZipFile(archive) as file:
            if damaged := file.testzip():
                raise UserError(f"{archive}: {damaged} is damaged in it: export again")
            file.extractall(folder)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is no zip: export again") from error
    return next(folder.rglob("config.json")).parent


class FreshProcess:
    """A Python process that loads the model in `folder` and answers images (3, h, w) of `size` with logits."""

    def __init__(self, folder: Path, size: Size, classes: int) -> None:
        self._shape = (1, classes, *size)
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM), str(folder), str(torch.get_num_threads()), *map(str, size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def logits(self, image: Tensor) -> Tensor:
        """(1, C, h, w) of an image (3, h, w). Raises UserError with the process's last line when it has ended."""
        stdin, stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        with suppress(BrokenPipeError):  # the answer that doesn't come tells
            stdin.write(image.contiguous().numpy().tobytes())
            stdin.flush()
        answer = stdout.read(4 * prod(self._shape))
        if len(answer) < 4 * prod(self._shape):
            status = self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip() or f"the process that loads it ended with status {status}").splitlines()[
                -1
            ]
            raise UserError(f"the package can't be loaded back: {last}")
        return torch.frombuffer(bytearray(answer), dtype=torch.float32).view(self._shape)
