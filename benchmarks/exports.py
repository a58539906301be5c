"""Exports a finished run and students pruned from it in all formats, and prints the figures of the certificates.

python benchmarks/exports.py RUN [--prune 0.3 0.5] [--prune-epochs 42] [--out FOLDER]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import tyro
from tyro.conf import Positional

from segskd.distill.running.pruning import plan_pruned
from segskd.distill.running.session import train_pruned
from segskd.errors import UserError
from segskd.export.certificate import Certificate
from segskd.export.formats import Spec, all_specs
from segskd.export.package import package
from segskd.runs import Run, find_run

HEAD = ("", "MB", "mIoU", "% of teacher", "pixels of another class", "ms", "× teacher", "× student")


def main(
    run: Positional[str],
    prune: tuple[float, ...] = (0.3, 0.5),
    prune_epochs: int | None = None,
    out: Path | None = None,
) -> None:
    """Export a run in every format and print a table.

    Args:
        run: A finished run.
        prune: Shares of channels to take away; a run for each is trained beside RUN where there is none.
        prune_epochs: Epochs a stage of their repair (half of the run's).
        out: Where the packages are kept (nowhere).
    """
    found = find_run(run)
    runs = [found, *(train_pruned(*plan_pruned(found, ratio, prune_epochs)) for ratio in prune)]
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for one in runs:
            for spec in all_specs():
                if not spec.pixels:
                    print(
                        f"| {' | '.join(row(one, spec, (out or Path(scratch)) / one.name / spec.name))} |", flush=True
                    )


def row(run: Run, spec: Spec, out: Path) -> list[str]:
    """A row of the table; it says why if the export failed."""
    part = run.recipe.prune
    name = spec.name + (f", pruned by {100 * part.ratio:g} %" if part else "")
    try:
        return [name, *cells(package(run, spec, out).certificate, run.read_json("result.json")["percent_of_teacher"])]
    except UserError as error:
        return [name, str(error)]


def cells(own: Certificate, percent: float | None) -> list[str]:
    """Figures of a certificate. The checkpoint has `percent` % of its teacher's mIoU."""
    times = own.latency or {}
    ratios = [times.get(f"than_{who}") for who in ("teacher", "student")]
    return [
        f"{own.model_bytes / 1e6:.1f}",
        f"{own.miou_after:.3f}",
        f"{percent * own.miou_after / own.miou_before:.1f}" if percent else "",
        f"{100 * own.share_differing:.1f} %" if own.pixels_differing else "0",
        f"{times['export_ms']:.1f}" if times else "",
        *(f"{ratio[1]:.1f} ({ratio[0]:.1f}–{ratio[2]:.1f})" if ratio else "" for ratio in ratios),
    ]


if __name__ == "__main__":
    tyro.cli(main)
