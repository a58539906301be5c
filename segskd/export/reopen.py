"""A new process that opens an exported network by its own runtime and computes its logits."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segskd.errors import UserError
from segskd.supervisor import last_line, start

PROGRAM = Path(__file__).parents[1] / "standalone" / "reload.py"
Array = npt.NDArray[Any]


class ReopeningProcess:
    """Runs standalone/reload.py on the network in `folder`, with as many threads as this process has."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-IB", str(PROGRAM), str(folder), str(torch.get_num_threads())]
        self._worker = start(command, "part", output="piped", environment={"HF_HUB_OFFLINE": "1"})

    def __enter__(self) -> ReopeningProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.__exit__()

    def logits(self, image: Array) -> tuple[Array, float]:
        """Logits float32 (1, C, h, w) of an input, and the seconds that the network took.

        The input is float32 (1, channels, h, w) or uint8 (1, h, w, channels). Raises UserError with the last line that
        the process printed when it has ended.
        """
        with suppress(BrokenPipeError):  # `_read` reports that the process has ended
            self._worker.input.write(np.array([image.ndim, *image.shape, image.itemsize], np.int32).tobytes())
            self._worker.input.write(np.ascontiguousarray(image).tobytes())
            self._worker.input.flush()
        seconds = float(self._read(1, np.float64)[0])
        shape = self._read(int(self._read(1, np.int32)[0]), np.int32)
        return self._read(int(shape.prod()), np.float32).reshape(shape), seconds

    def _read(self, count: int, kind: type[np.generic]) -> Array:
        size = count * np.dtype(kind).itemsize
        answer = self._worker.output.read(size)
        if len(answer) < size:
            status = self._worker.wait()
            said = last_line(self._worker.error_text()) or f"the process ended with status {status}"
            raise UserError(f"the export can't be opened by its own runtime: {said}")
        return np.frombuffer(bytearray(answer), kind)
