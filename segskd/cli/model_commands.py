"""`evaluate`, `predict`, `compare`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from tyro.conf import Positional

from segskd.cli.flags import Device, Json
from segskd.cli.output import bar, listeners, show, stage_bars
from segskd.errors import Echoed, UserError
from segskd.export.formats import FormatName

if TYPE_CHECKING:
    from segskd.evaluate.tiles import Tiles
    from segskd.export.push import Hub
    from segskd.runs import Run


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
    json: Json = False,
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
    from segskd.data.dataset import list_pairs
    from segskd.data.transforms import RESIZE_FILTER
    from segskd.evaluate.predictor import evaluate as score_split
    from segskd.evaluate.source import find_source
    from segskd.evaluate.tiles import choose_tiles

    tiles = choose_tiles(tile, overlap)
    source = find_source(model, dataset, size, data)
    predictor = source.predictor(device, tiles)
    with bar(f"evaluating {model}") as report:
        score = score_split(predictor, list_pairs(source.card, source.data, split), native, report)
    found = {
        **score.as_dict(),
        "resize": RESIZE_FILTER if source.size else None,
        "split": split,
        "native": native,
        **source.as_dict(),
        **_tiling(tiles),
    }
    table = Table("class", "IoU %", title=f"{model}: mIoU {100 * score.miou:.2f} %")
    for name, value in score.per_class.items():
        table.add_row(name, "absent" if value is None else f"{100 * value:.1f}")
    show(table, found, json)


def predict(
    model: Positional[str],
    images: Positional[tuple[Path, ...]],
    out: Path,
    dataset: str | None = None,
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    device: Device = "auto",
    json: Json = False,
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
    from segskd.evaluate.predictor import predict_files
    from segskd.evaluate.source import find_source
    from segskd.evaluate.tiles import choose_tiles

    if not images:
        raise UserError("name at least one image")
    tiles = choose_tiles(tile, overlap)
    source = find_source(model, dataset, size, None)
    with bar("predicting") as report:
        written, unreadable = predict_files(source.predictor(device, tiles), images, out, report)
    found = {"masks": [str(p) for p in written], "unreadable": unreadable, **_tiling(tiles)}
    show("\n".join(map(str, written)), found, json)
    if unreadable:
        others = ": the masks of all others are written" if written else ""
        raise UserError(f"can't read {', '.join(unreadable)}{others}")


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
    json: Json = False,
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
    from segskd.data.dataset import list_pairs
    from segskd.evaluate.comparison import compare as compare_two
    from segskd.evaluate.source import find_source
    from segskd.evaluate.tiles import choose_tiles

    tiles = choose_tiles(tile, overlap)
    ours = find_source(student, dataset, size, data)
    theirs = ours.with_model(teacher)
    pairs = list_pairs(ours.card, ours.data, split)
    with bar("comparing") as report:
        found = compare_two(theirs.predictor(device, tiles), ours.predictor(device, tiles), pairs, out, report)
    table = Table("class", "teacher IoU %", "student IoU %", "difference", "pixels", title=f"written to {out}")
    for row in found.retention():
        shares = [row["teacher"], row["student"], row["difference"]]
        table.add_row(row["class"], *("–" if v is None else f"{100 * v:.1f}" for v in shares), f"{row['pixels']:,}")
    mious = {"miou": found.student.miou, "teacher_miou": found.teacher.miou}
    show(table, {"out": str(out), **mious, **_tiling(tiles)}, json)


def export(
    run: Positional[str],
    format: FormatName = "safetensors",
    int8: bool = False,
    pixels: bool = False,
    prune: float | None = None,
    prune_epochs: int | None = None,
    push: str | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Turn a finished run's network into files that run without SegSKD, and prove them.

    Args:
        run: A finished run.
        format: What the network comes as.
        int8: Quantize to INT8, calibrated on the run's own images, if the format can hold it.
        pixels: Put the pre-processing inside, so that uint8 images go in, if the format can hold it.
        prune: Take this share of every layer's channels away first and repair the rest stage by stage, as a run of
            its own beside RUN, whose export this is then.
        prune_epochs: Epochs a stage of that repair (half of the run's).
        push: Upload it to this repository of the Hugging Face hub, OWNER/NAME, with the token in HF_TOKEN; a new
            repository is private.
        out: Folder for the zip and certificate.json (exports/ in the run).
        json: Print JSON.
    """
    from segskd.export.formats import Spec
    from segskd.export.package import package
    from segskd.runs import find_run

    spec, found = Spec(format, int8, pixels), find_run(run)
    hub = _hub(push) if push else None
    if prune_epochs is not None and prune is None:
        raise UserError("--prune-epochs says how long a pruned student is repaired: give --prune, too")
    if prune is not None:
        found = _pruned(found, prune, prune_epochs)
    with stage_bars() as report:
        made = package(found, spec, out, report)
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


def _tiling(tiles: Tiles | None) -> dict[str, Any]:
    """Plain data for JSON: the tiles as they are used, None where images go whole."""
    return {"tile": list(tiles.tile) if tiles else None, "overlap": tiles.overlap if tiles else None}


def _hub(repository: str) -> Hub:
    """Where to push; checked before an export that may take long."""
    from segskd.export.push import Hub

    return Hub(repository)


def _pruned(run: Run, ratio: float, epochs: int | None) -> Run:
    """The run that prunes and repairs its student, trained now where there is none."""
    from segskd.distill.running.pruning import plan_pruned
    from segskd.distill.running.session import pruned
    from segskd.distill.training.ranks import is_first

    recipe, folder = plan_pruned(run, ratio, epochs)
    with listeners(folder) as hearing:
        made = pruned(recipe, folder, hearing)
    if not is_first():
        raise Echoed
    return made


COMMANDS = (evaluate, predict, compare, export)
