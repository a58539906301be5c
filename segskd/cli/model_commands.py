"""`evaluate`, `predict`, `compare`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tyro.conf import Positional

from segskd.cli.flags import JsonFlag
from segskd.cli.output import show
from segskd.config import Device
from segskd.errors import UserError
from segskd.export.formats import FormatName

if TYPE_CHECKING:
    from segskd.export.push import Hub


def evaluate(
    model: Positional[str],
    dataset: str | None = None,
    split: str = "val",
    size: str | None = None,
    native: bool = False,
    tile: str | None = None,
    overlap: int | None = None,
    data: str | None = None,
    device: Device = "auto",
    json: JsonFlag = False,
) -> None:
    """Score a model or a run on a split.

    Args:
        model: A model's folder, a run, or a hub id.
        dataset: A card (a run knows its own).
        split: train, val or test.
        size: HEIGHTxWIDTH (a run knows its own), or native: each image at its own size.
        native: Scale the logits up to each mask's own size instead of shrinking the masks.
        tile: HEIGHTxWIDTH of tiles by which larger images go through the network, in multiples of 32.
        overlap: Pixels by which tiles overlap at least, in multiples of 32 (a quarter of the shorter side).
        data: Where datasets lie.
        device: Where to compute.
        json: Print JSON.
    """
    from segskd import api

    found = api.evaluate(
        model,
        split,
        dataset=dataset,
        size=size,
        native=native,
        tile=tile,
        overlap=overlap,
        data=data,
        device=device,
        progress=True,
    )
    table = Table("class", "IoU %", title=f"{model}: mIoU {100 * found.miou:.2f} %")
    for name, value in found.per_class.items():
        table.add_row(name, "absent" if value is None else f"{100 * value:.1f}")
    show(table, found.as_dict(), json)


def predict(
    model: Positional[str],
    images: Positional[tuple[Path, ...]],
    out: Path,
    dataset: str | None = None,
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    device: Device = "auto",
    json: JsonFlag = False,
) -> None:
    """Write a palette PNG mask and an overlay of each image.

    Args:
        model: A model's folder, a run, or a hub id.
        images: Image files.
        out: Folder for NAME.png and NAME_overlay.png.
        dataset: The card that the model was trained on (a run knows its own).
        size: HEIGHTxWIDTH that the network sees (a run knows its own), or native: each image at its own size;
            masks come at the image's size.
        tile: HEIGHTxWIDTH of tiles by which larger images go through the network, in multiples of 32.
        overlap: Pixels by which tiles overlap at least, in multiples of 32 (a quarter of the shorter side).
        device: Where to compute.
        json: Print JSON.
    """
    from segskd import api

    found = api.predict(
        model, images, out, dataset=dataset, size=size, tile=tile, overlap=overlap, device=device, progress=True
    )
    masks = [str(path) for path in found.masks]
    show("\n".join(masks), found.as_dict(), json)
    if found.unreadable:
        others = ": the masks of all others are written" if masks else ""
        raise UserError(f"can't read {', '.join(found.unreadable)}{others}")


def compare(
    teacher: Positional[str],
    student: Positional[str],
    out: Path,
    dataset: str | None = None,
    split: str = "val",
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    data: str | None = None,
    device: Device = "auto",
    json: JsonFlag = False,
) -> None:
    """Compare two networks: agreement maps, retention of each class, images by gap.

    Args:
        teacher: A model's folder, a run, or a hub id.
        student: The same.
        out: Folder for tables and pictures.
        dataset: A card (the student's run knows its own).
        split: train, val or test.
        size: HEIGHTxWIDTH (the student's run knows its own), or native: each image at its own size.
        tile: HEIGHTxWIDTH of tiles by which larger images go through the networks, in multiples of 32.
        overlap: Pixels by which tiles overlap at least, in multiples of 32 (a quarter of the shorter side).
        data: Where datasets lie.
        device: Where to compute.
        json: Print JSON.
    """
    from segskd import api
    from segskd.evaluate.tiles import choose_tiles

    found = api.compare(
        teacher,
        student,
        out,
        split,
        dataset=dataset,
        size=size,
        tile=tile,
        overlap=overlap,
        data=data,
        device=device,
        progress=True,
    )
    table = Table("class", "teacher IoU %", "student IoU %", "difference", "pixels", title=f"written to {out}")
    for row in found.retention():
        shares = [row["teacher"], row["student"], row["difference"]]
        table.add_row(row["class"], *("–" if v is None else f"{100 * v:.1f}" for v in shares), f"{row['pixels']:,}")
    mious = {"miou": found.student.miou, "teacher_miou": found.teacher.miou}
    show(table, {"out": str(out), **mious, **api.tiling(choose_tiles(tile, overlap))}, json)


def export(
    run: Positional[str],
    format: FormatName = "safetensors",
    int8: bool = False,
    pixels: bool = False,
    prune: float | None = None,
    prune_epochs: int | None = None,
    push: str | None = None,
    out: Path | None = None,
    json: JsonFlag = False,
) -> None:
    """Turn a finished run's network into files that run without SegSKD, and check their results.

    Args:
        run: A finished run.
        format: The format of the network.
        int8: Quantize to INT8, calibrated on the run's own images, if the format can.
        pixels: Put the pre-processing inside, so that uint8 images go in, if the format can.
        prune: First remove this share of every layer's channels and train the rest stage by stage, as another run
            beside RUN. That run is then exported.
        prune_epochs: Epochs a stage of that training (half of the run's).
        push: Upload it to this repository of the Hugging Face hub, OWNER/NAME, with the token in HF_TOKEN; a new
            repository is private.
        out: Folder for the zip and certificate.json (exports/ in the run).
        json: Print JSON.
    """
    from segskd import api
    from segskd.export.formats import Spec

    spec = Spec(format, int8, pixels)
    hub = _hub(push) if push else None
    made = api.export(
        run, format, int8=int8, pixels=pixels, prune=prune, prune_epochs=prune_epochs, out=out, progress=True
    )
    own = made.certificate
    lines = [
        f"{made.path}: {own.bytes / 1e6:.1f} MB, the network in it {own.model_bytes / 1e6:.1f} MB",
        f"sha256 {own.sha256}",
        f"opened in a fresh process: {own.pixels_differing} of {own.pixels} pixels "
        f"({100 * own.share_differing:.3g} %) differ from the checkpoint's on {own.images} images, "
        f"logits by at most {own.max_logit_difference:.2g}",
        f"mIoU {100 * own.miou_before:.2f} % before, {100 * own.miou_after:.2f} % after",
    ]
    if own.latency:
        lines += [
            f"{ratio[1]:.1f} × ({ratio[0]:.1f} to {ratio[2]:.1f}) faster than the {who} in eager PyTorch"
            for who in ("teacher", "student")
            if (ratio := own.latency[f"than_{who}"])
        ]
    if hub:
        try:
            pushed = hub.push(made, spec)
        except UserError as error:
            raise UserError(f"{error}; the package itself is finished: {made.path}") from error
        lines.append(f"pushed to {pushed}")
    show("\n".join(lines), {**made.as_dict(), "pushed": pushed if hub else None}, json)


def _hub(repository: str) -> Hub:
    """The repository to push to. It is checked before the export, which may take long."""
    from segskd.export.push import Hub

    return Hub(repository)


COMMANDS = (evaluate, predict, compare, export)
