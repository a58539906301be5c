"""Run as a program of its own: loads a package's model as anybody would, and answers images with logits.

Knows segmentation_models_pytorch and nothing of SegSKD. Arguments: the unpacked folder, threads, height, width.
Reads images float32 (3, height, width) from standard input, writes logits float32 (C, height, width) to
standard output, each as bare bytes.
"""

from __future__ import annotations

import sys

import segmentation_models_pytorch as smp
import torch


def main(folder: str, threads: int, height: int, width: int) -> None:
    """Answers until there is no more to read."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # the library prints while it loads
    torch.set_num_threads(threads)
    model = smp.from_pretrained(folder).eval().to(memory_format=torch.channels_last)
    image_bytes = 3 * height * width * 4
    with torch.inference_mode():
        while pixels := sys.stdin.buffer.read(image_bytes):
            image = torch.frombuffer(bytearray(pixels), dtype=torch.float32).view(1, 3, height, width)
            logits = model(image.to(memory_format=torch.channels_last)).float().contiguous()
            answers.write(logits.numpy().tobytes())
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
