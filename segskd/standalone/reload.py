"""A program that opens an exported network by its own predict.py and computes logits. It imports nothing of SegSKD.

Its arguments are the folder of the package and the number of threads. For each input it reads from standard input:
the number of dimensions, each dimension and the bytes of a value as int32, then the values, which are uint8 where a
value has one byte and else float32. It writes to standard output: the seconds that the network took as float64, the
number of dimensions and each dimension as int32, then the logits as float32.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np


def main(folder: str, threads: int) -> None:
    """Computes the logits of each input until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print to stdout, which carries the logits
    sys.path.insert(0, folder)
    import predict  # type: ignore[import-not-found]

    run = predict.network(Path(folder), threads)
    while (image := _read(sys.stdin.buffer)) is not None:
        start = time.perf_counter()
        logits = run(image)
        seconds = time.perf_counter() - start
        answers.write(np.float64(seconds).tobytes())
        answers.write(np.array([logits.ndim, *logits.shape], np.int32).tobytes())
        answers.write(np.ascontiguousarray(logits, np.float32).tobytes())
        answers.flush()


def _read(source: BinaryIO) -> np.ndarray | None:
    head = source.read(4)
    if not head:
        return None
    *shape, size = np.frombuffer(source.read(4 * (int.from_bytes(head, sys.byteorder) + 1)), np.int32).tolist()
    kind = np.dtype(np.uint8 if size == 1 else np.float32)
    return np.frombuffer(bytearray(source.read(math.prod(shape) * kind.itemsize)), kind).reshape(shape)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
