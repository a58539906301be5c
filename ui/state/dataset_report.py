"""What reading every file of a dataset found, as the page shows it: shares of the pixels, problems by file name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segskd.data.check import CheckReport

Json = dict[str, Any]
SHOWN_PROBLEMS = 20
SHOWN_SIZES = 3


def plain_report(found: CheckReport, root: Path) -> Json:
    """A check's report for the page: pixels by split, the first problems by file name below `root`, all counted."""
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
    """Each class's share of the pixels that count; zeros when there are none."""
    total = sum(pixels)
    return [count / total if total else 0.0 for count in pixels]


def report_for_page(found: Json) -> Json:
    """What the page shows of a plain report."""
    sizes = list(found["sizes"].items())
    return {
        "shares": {split: shares(pixels) for split, pixels in found["pixels"].items()},
        "sizes": sizes[:SHOWN_SIZES],
        "more_sizes": max(0, len(sizes) - SHOWN_SIZES),
        "problems": found["problems"],
    }


def without_folder(root: Path, text: str) -> str:
    """A message with file names below the dataset's folder instead of this server's paths."""
    return text.replace(f"{root}/", "")
