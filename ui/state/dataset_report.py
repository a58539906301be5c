"""The check of a dataset as the page shows it: shares of the pixels, and problems by file name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segskd.data.check import CheckReport

Json = dict[str, Any]
SHOWN_PROBLEMS = 20
SHOWN_SIZES = 3


def plain_report(found: CheckReport, root: Path) -> Json:
    """A check's report as plain data: pixels by split, the number of problems, and the first ones with file names."""
    kinds: dict[str, int] = {}
    for problem in found.problems:
        kinds[problem.kind] = kinds.get(problem.kind, 0) + 1
    return {
        "images": found.images,
        "sizes": dict(found.sizes.most_common()),
        "pixels": {split: counts.tolist() for split, counts in found.pixels.items()},
        "problems": {
            "count": len(found.problems),
            "kinds": kinds,
            "shown": [
                {
                    "kind": problem.kind,
                    "file": without_folder(root, problem.file),
                    "text": without_folder(root, problem.text),
                }
                for problem in found.problems[:SHOWN_PROBLEMS]
            ],
        },
    }


def shares(pixels: list[int]) -> list[float]:
    """Each class's share of the pixels with a class; zeros if there are none."""
    total = sum(pixels)
    return [count / total if total else 0.0 for count in pixels]


def report_for_page(found: Json) -> Json:
    """The part of a plain report that the page shows."""
    sizes = list(found["sizes"].items())
    return {
        "shares": {split: shares(pixels) for split, pixels in found["pixels"].items()},
        "sizes": sizes[:SHOWN_SIZES],
        "more_sizes": max(0, len(sizes) - SHOWN_SIZES),
        "problems": found["problems"],
    }


def without_folder(root: Path, text: str) -> str:
    """A message without the path of the dataset's folder."""
    return text.replace(f"{root}/", "")
