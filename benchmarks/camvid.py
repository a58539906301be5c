"""The CamVid table of docs/results.md: stagewise against supervised, with the same images and about the same time.

    python benchmarks/camvid.py --teacher FOLDER [--data DIR] [--fractions 0.1 1.0] [--seeds 0]

It trains one run after another by the command line with default settings, and skips finished runs. A supervised step
trains all eleven stages and a stagewise step one. So the supervised student's whole network is trained for as many
epochs as the stagewise student has a stage, which takes about the same time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import tyro

from segskd.runs import find_run, runs_folder

STAGES = 11


@dataclass(frozen=True)
class Options:
    """What to run."""

    teacher: str
    """Folder of a teacher trained on CamVid."""
    data: str | None = None
    """Where datasets lie."""
    fractions: tuple[float, ...] = (0.1, 1.0)
    """Shares of the 367 training images."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each draws a subset of its own."""
    methods: tuple[str, ...] = ("stagewise", "supervised")
    """Which methods."""


def main(options: Options) -> None:
    """Prints a Markdown table, and the phases of each stagewise run."""
    print("| method | images | seed | mIoU val | % of teacher | training s | wall s |\n|---|---|---|---|---|---|---|")
    for fraction in options.fractions:
        for seed in options.seeds:
            for method in options.methods:
                print(_row(_run(options, method, fraction, seed), seed), flush=True)


def _run(options: Options, method: str, fraction: float, seed: int) -> dict[str, Any]:
    name = _name(method, fraction, seed)
    if (runs_folder() / name / "result.json").exists():
        return dict(find_run(name).read_json("result.json")) | {"wall": None}
    flags = ["--dataset", "camvid", "--teacher", options.teacher, "--method", method]
    flags += ["--fraction", str(fraction), "--seed", str(seed), "--run", name, "--json"]
    flags += ["--data", options.data] if options.data else []
    if method == "supervised":
        stagewise = find_run(_name("stagewise", fraction, seed)).recipe.optimisation.epochs or 0
        flags += ["--epochs", str(max(1, round(stagewise / STAGES)))]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "segskd", "distill", *flags], check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | {"wall": time.monotonic() - started}


def _row(result: dict[str, Any], seed: int) -> str:
    share = result["percent_of_teacher"]
    wall = f"{result['wall']:.0f}" if result["wall"] else "–"
    pct = f"{share:.1f}" if share else "–"
    seconds = f"{result['seconds']:.0f}"
    return f"| {result['method']} | {result['images']} | {seed} | {result['miou']:.4f} | {pct} | {seconds} | {wall} |"


def _name(method: str, fraction: float, seed: int) -> str:
    return f"camvid-{method}-{fraction}-s{seed}"


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
