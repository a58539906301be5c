"""The command line: parses, calls the core, prints. See docs/architecture.md for the contract."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes, Positional

from segskd.errors import Stopped, UserError

app = tyro.extras.SubcommandApp()
data_app = tyro.extras.SubcommandApp()
app.command(data_app, name="data", help="List, check and download datasets.")

ERR = Console(stderr=True)
Json = Annotated[bool, tyro.conf.arg(name="json", help="Print one JSON object as the last line of standard output.")]
Device = Literal["auto", "cpu", "cuda", "mps"]
DESCRIPTION = "Compress segmentation networks by stagewise knowledge distillation."
FLAG_STYLE = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130


@dataclass(frozen=True)
class DataFlags:
    """What to train on."""

    dataset: str | None = None
    """A card's name, or the path of a card."""
    data: str | None = None
    """Where datasets lie (SEGSKD_DATA, else datasets/)."""
    size: str | None = None
    """HEIGHTxWIDTH that images are resized to (192x256)."""
    views: int | None = None
    """Augmentations of each image (4, or 1 where no store has room)."""
    fraction: float | None = None
    """Share of the training images, above 0 and at most 1."""
    count: int | None = None
    """Number of training images, instead of a fraction."""
    rule: Literal["random", "balanced"] | None = None
    """How they are chosen."""


@dataclass(frozen=True)
class TrainFlags:
    """How to train."""

    epochs: int | None = None
    """Epochs a stage (by the number of images)."""
    batch: int | None = None
    """Images a step (8)."""
    lr: float | None = None
    """Peak learning rate (0.01; 0.001 to teach)."""
    weight_decay: float | None = None
    """L2 penalty (0)."""
    select: Literal["last", "best"] | None = None
    """Which epoch's weights a phase keeps (last)."""
    select_on: Literal["holdout", "val"] | None = None
    """What "best" is measured on: a fifth of the subset, or val (holdout)."""
    seed: int | None = None
    """Decides the subset, the views, the first weights and the order (0)."""
    device: Device | None = None
    """Where to train (auto)."""
    precision: Literal["auto", "32", "bf16", "fp16"] | None = None
    """Arithmetic: auto takes bf16 where the hardware multiplies it."""
    threads: int | None = None
    """CPU threads (all cores)."""
    store: Literal["auto", "memory", "disk", "recompute"] | None = None
    """Where taps are kept (what has room)."""
    store_budget: float | None = None
    """GiB of memory for taps (half of what is free)."""
    checkpoint_seconds: float | None = None
    """Least time between saves inside a phase (30)."""


def _recipe_changes(data: DataFlags, train: TrainFlags) -> dict[str, Any]:
    """The flags that were given, as parts of a recipe."""
    return {
        "data": {"card": data.dataset, "folder": data.data, "size": data.size, "views": data.views},
        "subset": {"fraction": data.fraction, "count": data.count, "rule": data.rule},
        "optimisation": {
            "epochs": train.epochs,
            "batch": train.batch,
            "lr": train.lr,
            "weight_decay": train.weight_decay,
        },
        "store": {"kind": train.store, "budget_gib": train.store_budget},
        "select": train.select,
        "select_on": train.select_on,
        "checkpoint_seconds": train.checkpoint_seconds,
        "seed": train.seed,
        "device": train.device,
        "precision": train.precision,
        "threads": train.threads,
    }


# -- data -------------------------------------------------------------------------------------------


@data_app.command(name="list")
def data_list(data: str | None = None, json: Json = False) -> None:
    """The cards, and which of their data are on this disk."""
    from segskd.data.cards import card_paths, data_folder, load_card
    from segskd.data.dataset import has_split

    folder = data_folder(data)
    table = Table("card", "classes", "here", "what it is")
    rows = []
    for path in card_paths():
        card = load_card(path)
        here = [split for split in card.splits if has_split(card, folder, split)]
        rows.append({"card": card.name, "classes": card.class_names, "splits_here": here, "title": card.title})
        shown = ", ".join(here) or ("built in" if card.generator else "–")
        table.add_row(card.name, str(len(card.classes)), shown, card.title)
    _print(table, {"folder": str(folder), "cards": rows}, json)


@data_app.command(name="check")
def data_check(card: Positional[str], data: str | None = None, json: Json = False) -> None:
    """Reads every image and mask of a card; exit status 2 when something is wrong."""
    from segskd.console import check_table
    from segskd.data.cards import data_folder, load_card
    from segskd.data.check import check

    with _bar(f"checking {card}") as report:
        found = check(load_card(card), data_folder(data), report)
    _print(check_table(found.as_dict()), found.as_dict(), json)
    if found.problems:
        raise UserError(f"{card}: {len(found.problems)} problems, the first: {found.problems[0].text}")


@data_app.command(name="fetch")
def data_fetch(card: Positional[str], data: str | None = None, json: Json = False) -> None:
    """Downloads a card's data with checksum; running it again resumes."""
    from segskd.data.cards import data_folder, load_card
    from segskd.data.fetch import fetch

    with _stage_bars() as report:
        folder = fetch(load_card(card), data_folder(data), report)
    _print(f"{card} lies in {folder}", {"card": card, "folder": str(folder)}, json)


# -- runs -------------------------------------------------------------------------------------------


@app.command
def teach(
    out: Path,
    arch: str = "unet",
    encoder: str = "resnet34",
    weights: str | None = None,
    *,
    data: OmitArgPrefixes[DataFlags] = DataFlags(),
    train: OmitArgPrefixes[TrainFlags] = TrainFlags(),
    json: Json = False,
) -> None:
    """Train a teacher on labels; OUT is a run, readable with segmentation_models_pytorch.from_pretrained.

    Args:
        out: The run's directory.
        arch: Decoder.
        encoder: Encoder.
        weights: Pretrained weights of the encoder, such as imagenet (from a hub).
    """
    from segskd.config import make_recipe, merged

    base = {"kind": "teach", "student": f"{arch}:{encoder}", "weights": weights, "method": "supervised"}
    _run(make_recipe(merged(base, _recipe_changes(data, train))), out, None, json)


@app.command
def distill(
    recipe: Path | None = None,
    teacher: str | None = None,
    student: str | None = None,
    init: Literal["random", "teacher"] | None = None,
    method: str | None = None,
    run: str | None = None,
    until: str | None = None,
    *,
    data: OmitArgPrefixes[DataFlags] = DataFlags(),
    train: OmitArgPrefixes[TrainFlags] = TrainFlags(),
    json: Json = False,
) -> None:
    """Distill a student from a teacher, or carry out a recipe; flags given beside a recipe override it.

    Args:
        recipe: A recipe (YAML), such as a run's recipe.yaml.
        teacher: A folder with config.json and weights, a run, or a hub id.
        student: ARCH:ENCODER of the student (unet:resnet10).
        init: The student's first weights: random, or the teacher's where stage, name and shape agree.
        method: Which list of phases (stagewise).
        run: Name below checkpoints/, or a path.
        until: Stop after this stage; `resume` goes on.
    """
    from segskd.config import make_recipe, merged, read_yaml

    base = read_yaml(recipe) if recipe else {"data": {"card": "scenes"}}
    if not isinstance(base, dict):
        raise UserError(f"{recipe} is no recipe: a run's recipe.yaml is one")
    flags = {
        "teacher": _run_path(teacher),
        "student": student,
        "init": init,
        "method": method,
        **_recipe_changes(data, train),
    }
    if recipe is None and data.dataset is None:
        raise UserError("name what to train on with --dataset (see 'python -m segskd data list') or --recipe")
    made = make_recipe(merged(base, flags))
    _run(made, _run_folder(run or _default_name(made), run is None), until, json)


@app.command
def resume(run: Positional[str], until: str | None = None, json: Json = False) -> None:
    """Go on with a run that was stopped, paused or killed."""
    from segskd.distill.session import resume as resume_run
    from segskd.runs import find_run

    found = find_run(run)
    finished = found.read_json("result.json") is not None
    if finished:
        ERR.print(f"run {found.name} is finished", highlight=False)
    with _listeners(found.path) as listeners:
        result = resume_run(found, listeners, until)
    _print_result(result, json)


@app.command
def stop(run: Positional[str], json: Json = False) -> None:
    """Ask a running run to stop at its next step; it can be resumed."""
    from segskd.runs import find_run

    found = find_run(run)
    alive = found.is_alive()
    if not alive:
        raise UserError(f"run {found.name} is not running")
    found.request_stop()
    _print(f"asked {found.name} to stop", {"run": str(found.path), "asked": True}, json)


@app.command
def runs(json: Json = False) -> None:
    """List the runs below checkpoints/, the newest first."""
    from segskd.runs import list_runs

    table = Table("run", "state", "data", "student", "method", "mIoU %", "% of teacher")
    rows = [run.summary() for run in list_runs()]
    for row in rows:
        shares = [row["miou"] and 100 * row["miou"], row["percent_of_teacher"]]
        cells = [str(row[key] or "–") for key in ("run", "state", "dataset", "student", "method")]
        table.add_row(*cells, *("–" if share is None else f"{share:.1f}" for share in shares))
    _print(table, {"runs": rows}, json)


# -- models -----------------------------------------------------------------------------------------


@app.command
def evaluate(
    model: Positional[str],
    dataset: str | None = None,
    split: str = "val",
    size: str | None = None,
    native: bool = False,
    data: str | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score a model or a run on a split.

    Args:
        model: A model's folder, a run, or a hub id.
        dataset: A card (a run knows its own).
        split: train, val or test.
        size: HEIGHTxWIDTH (a run knows its own).
        native: Scale the logits up to each mask's own size instead of shrinking the masks.
        data: Where datasets lie.
        device: Where to compute.
        json: Print JSON.
    """
    from segskd.data.dataset import list_pairs
    from segskd.evaluate.predict import evaluate as score_split
    from segskd.evaluate.source import find_source

    source = find_source(model, dataset, size, data)
    predictor = source.predictor(device)
    with _bar(f"evaluating {model}") as report:
        score = score_split(predictor, list_pairs(source.card, source.data, split), native, report)
    found = {**score.as_dict(), "split": split, "size": list(source.size), "native": native, **source.as_dict()}
    table = Table("class", "IoU %", title=f"{model}: mIoU {100 * score.miou:.2f} %")
    for name, value in score.per_class.items():
        table.add_row(name, "absent" if value is None else f"{100 * value:.1f}")
    _print(table, found, json)


@app.command
def predict(
    model: Positional[str],
    images: Positional[tuple[Path, ...]],
    out: Path,
    dataset: str | None = None,
    size: str | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write a palette PNG mask and an overlay of each image.

    Args:
        model: A model's folder, a run, or a hub id.
        images: Image files.
        out: Folder for NAME.png and NAME_overlay.png.
        dataset: The card that the model was trained on (a run knows its own).
        size: HEIGHTxWIDTH that the network sees (a run knows its own); masks come at the image's size.
        device: Where to compute.
        json: Print JSON.
    """
    from segskd.evaluate.predict import predict_files
    from segskd.evaluate.source import find_source

    if not images:
        raise UserError("name at least one image")
    source = find_source(model, dataset, size, None)
    with _bar("predicting") as report:
        written, unreadable = predict_files(source.predictor(device), images, out, report)
    _print("\n".join(map(str, written)), {"masks": [str(p) for p in written], "unreadable": unreadable}, json)
    if unreadable:
        raise UserError(f"can't read {', '.join(unreadable)}: the other {len(written)} masks are written")


@app.command
def compare(
    teacher: Positional[str],
    student: Positional[str],
    out: Path,
    dataset: str | None = None,
    split: str = "val",
    size: str | None = None,
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
        size: HEIGHTxWIDTH (the student's run knows its own).
        data: Where datasets lie.
        device: Where to compute.
        json: Print JSON.
    """
    from segskd.data.dataset import list_pairs
    from segskd.evaluate.compare import compare as compare_two
    from segskd.evaluate.source import find_source

    ours = find_source(student, dataset, size, data)
    theirs = ours.with_model(teacher)
    pairs = list_pairs(ours.card, ours.data, split)
    with _bar("comparing") as report:
        found = compare_two(theirs.predictor(device), ours.predictor(device), pairs, out, report)
    table = Table("class", "teacher IoU %", "student IoU %", "difference", "pixels", title=f"written to {out}")
    for row in found.retention():
        shares = [row["teacher"], row["student"], row["difference"]]
        table.add_row(row["class"], *("–" if v is None else f"{100 * v:.1f}" for v in shares), f"{row['pixels']:,}")
    _print(table, {"out": str(out), "miou": found.student.miou, "teacher_miou": found.teacher.miou}, json)


@app.command
def demo(out: Path | None = None, data: str | None = None, json: Json = False) -> None:
    """Train a teacher on the built-in scenes, distill a student from a tenth of them, and show both.

    Args:
        out: Folder below which both runs and the comparison are written (checkpoints/).
        data: Where datasets lie.
        json: Print JSON.
    """
    from segskd.demo import run_demo
    from segskd.runs import runs_folder

    result = run_demo(out or runs_folder(), data, _listeners)
    _print_result(result, json)
    ERR.print(f"side by side: {result['picture']}", highlight=False, soft_wrap=True)


# -- shared -----------------------------------------------------------------------------------------


def _run(recipe: Any, folder: Path, until: str | None, json: bool) -> None:
    from segskd.distill.session import start

    with _listeners(folder) as listeners:
        result = start(recipe, folder, listeners, until)
    _print_result(result, json)


@contextlib.contextmanager
def _listeners(folder: Path) -> Iterator[list[Callable[[dict[str, Any]], None]]]:
    from segskd.console import log_file, watching

    with watching(ERR) as watcher, log_file(folder) as log:
        yield [watcher, log]


def _run_path(place: str | None) -> str | None:
    """A run's name as its path, so that the recipe holds in any folder; paths made absolute, hub ids left alone."""
    from segskd.runs import runs_folder

    if place is None:
        return None
    for path in (runs_folder() / place, Path(place).expanduser()):
        if path.exists():
            return str(path.resolve())
    return place


def _run_folder(name_or_path: str, made_up: bool) -> Path:
    from segskd.runs import RUN_NAME, free_name, runs_folder

    if made_up:
        return runs_folder() / free_name(name_or_path)
    if RUN_NAME.match(name_or_path):
        return runs_folder() / name_or_path
    return Path(name_or_path).expanduser().resolve()


def _default_name(recipe: Any) -> str:
    from segskd.data.cards import load_card

    share = f"{recipe.subset.count}" if recipe.subset.count else f"{100 * (recipe.subset.fraction or 1):g}pc"
    encoder = recipe.student.partition(":")[2]
    return f"{load_card(recipe.data.card).name}-{encoder}-{recipe.method}-{share}-s{recipe.seed}"


def _print_result(result: dict[str, Any], json: bool) -> None:
    from segskd.console import result_table

    if "student" not in result:
        text = f"stopped after {result['after']}; 'python -m segskd resume {Path(result['run']).name}' goes on"
        return _print(text, result, json)
    share = result["percent_of_teacher"]
    kept = f", {share:.1f} % of the teacher" if share else ""
    _print(result_table(result), result, json)
    ERR.print(f"{result['run']}: {result['seconds']:.0f} s of training{kept}", highlight=False, soft_wrap=True)
    return None


def _print(shown: Any, content: dict[str, Any], as_json: bool) -> None:
    """A person's view; with --json that goes to standard error and the object to standard output."""
    console = ERR if as_json else Console()
    console.print(shown, highlight=False, soft_wrap=isinstance(shown, str))
    if as_json:
        print(json.dumps(content), flush=True)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One progress bar on a terminal, nothing elsewhere."""
    with _stage_bars() as report:
        yield lambda done, total: report(title, done, total)


@contextlib.contextmanager
def _stage_bars() -> Iterator[Callable[[str, int, int | None], None]]:
    """A progress bar for each stage that is reported."""
    from rich.progress import Progress

    tasks: dict[str, Any] = {}
    with Progress(console=ERR, disable=not ERR.is_terminal) as progress:

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status: 0 done, 2 bad input, 130 stopped, 1 anything else."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    try:
        app.cli(prog="segskd", description=DESCRIPTION, args=arguments, config=FLAG_STYLE)
    except UserError as error:
        print(f"segskd: {error}", file=sys.stderr)
        return BAD_INPUT
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"segskd: {stopped or 'stopped'}", file=sys.stderr)
        return STOPPED
    except Exception:
        traceback.print_exc()
        return FAILED
    return DONE
