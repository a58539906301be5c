"""A new process that opens an exported network by its own runtime and computes its logits."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from segskd.errors import UserError

PROGRAM = Path(__file__).parents[1] / "standalone" / "reload.py"
Array = npt.NDArray[Any]


class ReopeningProcess:
    """Runs standalone/reload.py on the network in `folder`, with as many threads as this process has."""

    def __init__(self, folder: Path) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-IB", str(PROGRAM), str(folder), str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def __enter__(self) -> ReopeningProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()

    def logits(self, image: Array) -> tuple[Array, float]:
        """Logits float32 (1, C, h, w) of an input, and the seconds that the network took.

        The input is float32 (1, channels, h, w) or uint8 (1, h, w, channels). Raises UserError with the last line that
        the process printed when it has ended.
        """
        stdin = cast(IO[bytes], self._process.stdin)
        with suppress(BrokenPipeError):  # `_read` reports that the process has ended
            stdin.write(np.array([image.ndim, *image.shape, image.itemsize], np.int32).tobytes())
            stdin.write(np.ascontiguousarray(image).tobytes())
            stdin.flush()
        seconds = float(self._read(1, np.float64)[0])
        shape = self._read(int(self._read(1, np.int32)[0]), np.int32)
        return self._read(int(shape.prod()), np.float32).reshape(shape), seconds

    def _read(self, count: int, kind: type[np.generic]) -> Array:
        size = count * np.dtype(kind).itemsize
        answer = cast(IO[bytes], self._process.stdout).read(size)
        if len(answer) < size:
            raise UserError(f"the export can't be opened by its own runtime: {self._last_line()}")
        return np.frombuffer(bytearray(answer), kind)

    def _last_line(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        return (self._stderr.read().strip() or f"the process ended with status {status}").splitlines()[-1]
