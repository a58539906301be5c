"""Exports a finished run in every format and prints the table of what the certificates say.

python benchmarks/exports.py RUN [--out FOLDER]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tyro
from tyro.conf import Positional

from segskd.errors import UserError
from segskd.export.certificate import Certificate
from segskd.export.formats import Spec, all_specs
from segskd.export.package import package
from segskd.runs import find_run

HEAD = ("", "MB", "mIoU", "% of teacher", "pixels of another class", "ms", "× teacher", "× student")


def main(run: Positional[str], out: Path | None = None) -> None:
    """Export a run in every format and print a table.

    Args:
        run: A finished run.
        out: Where the packages are kept (nowhere).
    """
    found = find_run(run)
    kept = found.read_json("result.json")["percent_of_teacher"]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for spec in all_specs():
            if not spec.pixels:
                try:
                    made = package(found, spec, (out or Path(scratch)) / spec.name)
                except UserError as error:
                    print(f"| {spec.name} | {error} |{' |' * (len(HEAD) - 2)}", flush=True)
                else:
                    print(f"| {' | '.join(row(spec, made.certificate, kept))} |", flush=True)


def row(spec: Spec, own: Certificate, kept: float | None) -> list[str]:
    """A line of the table; ratios with their quartiles. The checkpoint has `kept` so many % of its teacher's mIoU."""
    times = own.latency or {}
    ratios = [times.get(f"than_{who}") for who in ("teacher", "student")]
    return [
        spec.name,
        f"{own.model_bytes / 1e6:.1f}",
        f"{own.miou_after:.3f}",
        f"{kept * own.miou_after / own.miou_before:.1f}" if kept else "",
        f"{100 * own.share_differing:.1f} %" if own.pixels_differing else "0",
        f"{times['export_ms']:.1f}" if times else "",
        *(f"{ratio[1]:.1f} ({ratio[0]:.1f}–{ratio[2]:.1f})" if ratio else "" for ratio in ratios),
    ]


if __name__ == "__main__":
    tyro.cli(main)
