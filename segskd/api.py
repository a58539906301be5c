"""Functions for scripts: train, score, predict and export. The command line calls the same functions.

A *place* of a network is a run, a run's name below `checkpoints/`, a folder with `config.json` and weights, or a hub
id. Functions raise `segskd.UserError` for errors that a caller can put right, with one line that says how. They print
nothing; with `progress=True` they show bars, or plain lines, on standard error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segskd.bars import ERR, bar, stage_bars
from segskd.config import FIRST_WEIGHTS, Device, Recipe, make_recipe, overridden, read_yaml
from segskd.console import LogFile, watching
from segskd.data.adding import Added, add_archive, add_folder
from segskd.data.cards import data_folder, load_card
from segskd.data.dataset import list_pairs
from segskd.data.transforms import RESIZE_FILTER
from segskd.distill.running import session
from segskd.distill.running.pruning import plan_pruned
from segskd.distill.running.session import Listener
from segskd.distill.training.ranks import is_first
from segskd.errors import EndedByFirstProcess, UserError
from segskd.evaluate import comparison as comparing
from segskd.evaluate import predictor as predicting
from segskd.evaluate.comparison import NetworkComparison
from segskd.evaluate.metrics import Score
from segskd.evaluate.predictor import Predictor
from segskd.evaluate.source import Source, find_source
from segskd.evaluate.tiles import Tiles, choose_tiles
from segskd.export.certificate import Package
from segskd.export.formats import FormatName, Spec
from segskd.export.package import package
from segskd.runs import RUN_NAME, Run, default_name, find_run, free_name, runs_folder

Place = str | Path | Run
"""Where a network is: a run, its name or folder, a folder with config.json and weights, or a hub id."""
RecipeLike = Recipe | Mapping[str, Any] | str | Path
"""A recipe, the same as plain data, or the path of its YAML file."""


@dataclass(frozen=True)
class Evaluation:
    """A network's score on a split, and how it was measured."""

    score: Score
    source: Source
    split: str
    native: bool
    tiles: Tiles | None

    @property
    def miou(self) -> float:
        """Mean intersection over union, from 0 to 1."""
        return self.score.miou

    @property
    def per_class(self) -> dict[str, float | None]:
        """Intersection over union of each class, from 0 to 1; None for a class that is in no mask."""
        return self.score.per_class

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **self.score.as_dict(),
            "resize": RESIZE_FILTER if self.source.size else None,
            "split": self.split,
            "native": self.native,
            **self.source.as_dict(),
            **tiling(self.tiles),
        }


@dataclass(frozen=True)
class Prediction:
    """The masks that were written, and the images that could not be read."""

    masks: list[Path]
    unreadable: list[str]
    tiles: Tiles | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"masks": [str(path) for path in self.masks], "unreadable": self.unreadable, **tiling(self.tiles)}


# -- data ---------------------------------------------------------------------------------------------


def add_dataset(
    source: str | Path,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    progress: bool = False,
) -> Added:
    """Makes a card for a dataset of your own. A folder stays where it is; a zip is unpacked.

    Args:
        source: A folder or a zip with images and masks; PASCAL VOC, CVAT and Cityscapes layouts are recognised, too.
        name: The card's name (the folder's or the zip's).
        classes: The classes' names in the order of the mask values.
        data: Where datasets lie (SEGSKD_DATA, else datasets/).
        progress: Whether to show a bar.

    Returns:
        The `card`, its file `place`, and the `report` of its files, which also names those that can't be used.

    Raises:
        UserError: For a layout that is not recognised, too few pairs, or a folder that can't be written.
    """
    place = Path(source).expanduser()
    add = add_folder if place.is_dir() else add_archive
    with bar(f"adding {place.name}", progress) as report:
        return add(place, data_folder(data), name, list(classes) if classes is not None else None, report)


# -- runs ---------------------------------------------------------------------------------------------


def teach(
    recipe: RecipeLike | None = None,
    run: str | Path | None = None,
    *,
    network: str | None = None,
    progress: bool = False,
    listeners: Sequence[Listener] = (),
    **fields: Any,
) -> Run:
    """Trains a teacher on labels. Returns when training is over.

    Args:
        recipe: A recipe to begin with; without one, give fields.
        run: The run's name below checkpoints/, or its folder (a name made from the dataset and the network).
        network: ARCH:ENCODER (unet:resnet34).
        progress: Whether to show bars or lines on standard error.
        listeners: Functions that are called with each event of the run (see segskd.events).
        fields: Fields that replace those of the recipe, such as ``data={"card": "camvid"}``.

    Returns:
        The finished run. Its folder is a network that every other function takes.

    Raises:
        UserError: For a recipe that can't be trained. Nothing is written then.
        Stopped: If the run was asked to stop; `resume` goes on.
    """
    base = {"kind": "teach", "method": "supervised", "student": "unet:resnet34"} if recipe is None else {}
    own = {**base, **fields, **({"student": network} if network else {})}
    return _start_run(_make_recipe(recipe, own), run, None, progress, listeners)


def distill(
    recipe: RecipeLike | None = None,
    run: str | Path | None = None,
    *,
    until: str | None = None,
    progress: bool = False,
    listeners: Sequence[Listener] = (),
    **fields: Any,
) -> Run:
    """Distills a student from a teacher. Returns when training is over.

    Args:
        recipe: A recipe to begin with, such as another run's; without one, give fields.
        run: The run's name below checkpoints/, or its folder (a name made from the recipe).
        until: Pause after this stage; `resume` goes on.
        progress: Whether to show bars or lines on standard error.
        listeners: Functions that are called with each event of the run (see segskd.events).
        fields: Fields that replace those of the recipe, such as ``teacher=run, subset={"fraction": 0.1}``.
            A field may be a `Run` or a path where the recipe names one.

    Returns:
        The run, finished or paused at `until`. `run.result` holds its figures, `run.model_folder` the student.

    Raises:
        UserError: For a recipe that can't be trained. Nothing is written then.
        Stopped: If the run was asked to stop; `resume` goes on.
    """
    return _start_run(_make_recipe(recipe, fields), run, until, progress, listeners)


def resume(
    run: Place,
    *,
    until: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    progress: bool = False,
    listeners: Sequence[Listener] = (),
) -> Run:
    """Goes on with a run that was stopped, paused or killed. A finished run is returned at once.

    Args:
        run: The run, its name, or its folder.
        until: Pause after this stage.
        devices: Processes on each machine (as the run began).
        nodes: Machines (as the run began).
        progress: Whether to show bars or lines on standard error.
        listeners: Functions that are called with each event of the run (see segskd.events).

    Returns:
        The run, finished or paused at `until`.

    Raises:
        UserError: If there is no such run, if another process trains it, or if its data are missing.
        Stopped: If the run was asked to stop again.
    """
    found = _run(run)
    with event_listeners(found.path, progress, listeners) as active:
        session.resume(found, active, until, devices, nodes)
    return Run(found.path)


@contextmanager
def event_listeners(
    folder: Path, progress: bool = False, listeners: Sequence[Listener] = ()
) -> Iterator[list[Listener]]:
    """Who hears a run's events: its log.txt, the caller's listeners, and with `progress` standard error.

    Nobody hears them in a run's further processes, since the first one tells of all.
    """
    if not is_first():
        yield []
        return
    with watching(ERR) if progress else nullcontext() as watcher:
        yield [*([watcher] if watcher else []), LogFile(folder), *listeners]


def absolute_place(place: str | None) -> str | None:
    """A run's name or a path as an absolute path, so that the recipe is valid in any folder. Hub ids stay."""
    if not place:
        return place
    for path in (runs_folder() / place, Path(place).expanduser()):
        if path.exists():
            return str(path.resolve())
    return place


def network_place(field: str, value: Any) -> Any:
    """`absolute_place` of the value of a recipe's field "teacher" or "init"; what is no place stays as it is."""
    is_place = isinstance(value, str) and not (field == "init" and value in FIRST_WEIGHTS)
    return absolute_place(value) if is_place else value


def _make_recipe(recipe: RecipeLike | None, fields: Mapping[str, Any]) -> Recipe:
    """The recipe with its fields replaced by `fields`. Raises UserError that names a wrong field."""
    content: object = {} if recipe is None else recipe
    if isinstance(content, (str, Path)):
        content = read_yaml(Path(content).expanduser())
    elif isinstance(content, Recipe):
        content = content.model_dump(mode="json")
    if isinstance(content, Mapping):
        content = overridden(_plain(content), _plain(fields))
        content |= {name: network_place(name, content[name]) for name in ("teacher", "init") if content.get(name)}
    return make_recipe(content)


def _plain(value: Any) -> Any:
    """Plain data, with runs and paths as text."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Run):
        return str(value.path.resolve())
    return str(value.expanduser().resolve()) if isinstance(value, Path) else value


def _start_run(
    recipe: Recipe, run: str | Path | None, until: str | None, progress: bool, listeners: Sequence[Listener]
) -> Run:
    folder = run_folder(recipe, run)
    with event_listeners(folder, progress, listeners) as active:
        return Run(Path(session.start(recipe, folder, active, until)["run"]))


def run_folder(recipe: Recipe, run: str | Path | None) -> Path:
    """The folder of a new run: below checkpoints/ for a name, and without `run` for a name made from the recipe.

    Raises UserError for text that is neither a name nor a path.
    """
    if run is None:
        card = load_card(recipe.data.card, data_folder(recipe.data.folder)).name
        return runs_folder() / free_name(default_name(recipe, card))
    if isinstance(run, Path):
        return run.expanduser().resolve()
    if RUN_NAME.fullmatch(run):
        return runs_folder() / run
    if Path(run).name == run:
        raise UserError(
            f"--run: '{run}' can't be a name: use at most 100 letters, digits, '.', '-' and '_', and begin with a "
            "letter or digit; a path has a '/' in it"
        )
    return Path(run).expanduser().resolve()


def _run(place: Place) -> Run:
    return place if isinstance(place, Run) else find_run(str(place))


# -- networks -----------------------------------------------------------------------------------------


def evaluate(
    model: Place,
    split: str = "val",
    *,
    dataset: str | Path | None = None,
    size: str | None = None,
    native: bool = False,
    tile: str | None = None,
    overlap: int | None = None,
    data: str | Path | None = None,
    device: Device = "auto",
    progress: bool = False,
) -> Evaluation:
    """Scores a network on a split.

    Args:
        model: The network's place.
        split: train, val or test.
        dataset: A card's name or path (a run knows its own).
        size: HEIGHTxWIDTH (a run knows its own), or native: each image at its own size.
        native: Scale the logits up to each mask's own size instead of shrinking the masks.
        tile: HEIGHTxWIDTH of tiles by which larger images go through the network, rounded up to multiples of 32.
        overlap: Pixels by which tiles overlap at least (a quarter of the shorter side).
        data: Where datasets lie (the run's own, SEGSKD_DATA, else datasets/).
        device: Where to compute.
        progress: Whether to show a bar.

    Raises:
        UserError: If the network, the card or the split is missing, or if they don't fit each other.
    """
    tiles = choose_tiles(tile, overlap)
    source = _source(model, dataset, size, data)
    predictor = source.predictor(device, tiles)
    with bar(f"evaluating {_name(model)}", progress) as report:
        score = predicting.evaluate(predictor, list_pairs(source.card, source.data, split), native, report)
    return Evaluation(score, source, split, native, tiles)


def load_predictor(
    model: Place,
    *,
    dataset: str | Path | None = None,
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    device: Device = "auto",
) -> Predictor:
    """A network with its pre-processing. Its method `mask` takes an image (H, W, C) and returns classes, uint8 (H, W).

    It takes the arguments of `evaluate`, and raises the same errors.
    """
    return _source(model, dataset, size, None).predictor(device, choose_tiles(tile, overlap))


def predict(
    model: Place,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    dataset: str | Path | None = None,
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    device: Device = "auto",
    progress: bool = False,
) -> Prediction:
    """Writes a palette PNG mask and an overlay of each image, at the image's own size.

    Args:
        model: The network's place.
        images: Image files.
        out: Folder for NAME.png and NAME_overlay.png.
        dataset: The card that the network was trained on (a run knows its own).
        size: HEIGHTxWIDTH that the network sees (a run knows its own), or native: each image at its own size.
        tile: HEIGHTxWIDTH of tiles by which larger images go through the network, rounded up to multiples of 32.
        overlap: Pixels by which tiles overlap at least (a quarter of the shorter side).
        device: Where to compute.
        progress: Whether to show a bar.

    Raises:
        UserError: If no image is named, or the network or its card is missing.
    """
    if not images:
        raise UserError("name at least one image")
    predictor = load_predictor(model, dataset=dataset, size=size, tile=tile, overlap=overlap, device=device)
    with bar("predicting", progress) as report:
        found = predicting.predict_files(predictor, [Path(image) for image in images], Path(out), report)
    return Prediction(*found, predictor.tiles)


def compare(
    teacher: Place,
    student: Place,
    out: str | Path,
    split: str = "val",
    *,
    dataset: str | Path | None = None,
    size: str | None = None,
    tile: str | None = None,
    overlap: int | None = None,
    data: str | Path | None = None,
    device: Device = "auto",
    progress: bool = False,
) -> NetworkComparison:
    """Compares two networks on a split: both scores, maps of their agreement, and the images by the student's gap.

    Args:
        teacher: The teacher's place.
        student: The student's place; its run names the dataset and the size.
        out: Folder for the tables and pictures.
        split: train, val or test.

    The other arguments and the errors are those of `evaluate`.
    """
    tiles = choose_tiles(tile, overlap)
    ours = _source(student, dataset, size, data)
    theirs = ours.with_model(_name(teacher))
    pairs = list_pairs(ours.card, ours.data, split)
    with bar("comparing", progress) as report:
        return comparing.compare(
            theirs.predictor(device, tiles), ours.predictor(device, tiles), pairs, Path(out), report
        )


def export(
    run: Place,
    format: FormatName = "safetensors",
    *,
    int8: bool = False,
    pixels: bool = False,
    prune: float | None = None,
    prune_epochs: int | None = None,
    out: str | Path | None = None,
    progress: bool = False,
) -> Package:
    """Turns a finished run's network into files that run without SegSKD, and checks their results.

    Args:
        run: The run, its name, or its folder.
        format: safetensors, onnx, pt2 or openvino.
        int8: Quantize to INT8, calibrated on the run's own images (onnx, openvino).
        pixels: Put the pre-processing inside, so that uint8 images go in (onnx, openvino).
        prune: First remove this share of every layer's channels, and train what remains as another run.
        prune_epochs: Epochs a stage of that training (half of the run's).
        out: Folder for the zip and certificate.json (exports/ in the run).
        progress: Whether to show bars.

    Returns:
        The zip's `path` and its `certificate`, which holds agreement with the checkpoint, mIoU, bytes and latency.

    Raises:
        UserError: For a run that is not finished, a format that can't hold its network, a package that is not
            installed, or an export whose results differ more than its format allows.
    """
    if prune_epochs is not None and prune is None:
        raise UserError("--prune-epochs is for a pruned student: give --prune, too")
    spec, found = Spec(format, int8, pixels), _run(run)
    if prune is not None:
        found = _pruned(found, prune, prune_epochs, progress)
    with stage_bars(progress) as report:
        return package(found, spec, None if out is None else Path(out), report)


def tiling(tiles: Tiles | None) -> dict[str, Any]:
    """Plain data for JSON: size and overlap of the tiles, None without tiles."""
    return {"tile": list(tiles.tile) if tiles else None, "overlap": tiles.overlap if tiles else None}


def _pruned(run: Run, ratio: float, epochs: int | None, progress: bool) -> Run:
    """The run with the pruned student. It is trained now if there is none."""
    recipe, folder = plan_pruned(run, ratio, epochs)
    with event_listeners(folder, progress) as active:
        made = session.train_pruned(recipe, folder, active)
    if not is_first():
        raise EndedByFirstProcess
    return made


def _source(model: Place, dataset: str | Path | None, size: str | None, data: str | Path | None) -> Source:
    return find_source(_name(model), _text(dataset), size, _text(data))


def _name(place: Place) -> str:
    return str(place.path if isinstance(place, Run) else place)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
