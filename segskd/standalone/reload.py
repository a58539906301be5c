"""Run as a program of its own: opens an exported network as anybody would, by the predict.py beside it.

Knows nothing of SegSKD. Arguments: the folder, threads. Reads from standard input: int32 number of dimensions,
int32 each, bytes a value, then one input: float32, or uint8 where a value has one byte. Writes to standard
output: float64 seconds that the network took, int32 dimensions, int32 each, float32 logits.
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
    """Answers until there is no more to read."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
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
