"""The teachers of this server: finished runs, uploads, and folders of models among datasets and runs."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segskd.config import DataPart, Size
from segskd.data.cards import Card
from segskd.data.unpack import ArchiveLimits, unpack
from segskd.errors import UserError
from segskd.evaluate.metrics import check_channels, check_outputs
from segskd.files import writing
from segskd.models.build import HUB_ID, WEIGHTS_FILES, load
from segskd.models.cut import cut
from segskd.models.importing import Adjustments, NetworkSpec, import_model
from segskd.runs import IMPORTED, Run, free_name, list_runs

from ..context import Context
from .file_stamp import Stamp, stamp

UPLOADS = ".teachers"
CONFIG = "config.json"
LARGEST_CONFIG = 1 << 20
LIMITS = ArchiveLimits(total_bytes=10 * 10**9, files=1000)
LONGEST_NAME = 80
IN_TRAINING = ("waiting", "starting", "running")
Origin = Literal["run", "upload", "data", "runs", "imported"]
DEFAULT_SIZE: Size = DataPart.model_fields["size"].default


@dataclass(frozen=True)
class Teacher:
    """A network to learn from. On the page `key` stands for it, since the page must never send a path.

    `state` is "ready", or the state of its run while it trains.
    """

    key: str
    name: str
    origin: Origin
    place: Path
    network: str
    outputs: int | None = None
    channels: int = 3
    dataset: str | None = None
    size: Size | None = None
    miou: float | None = None
    state: str = "ready"
    distilled: bool = False
    """Whether it is the student of another teacher."""

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def asking_size(self) -> Size:
        """The size of images when it chooses a subset for Data: its own size, or the default."""
        return self.size or DEFAULT_SIZE

    @property
    def label(self) -> str:
        """A line for a list."""
        parts = [self.name, self.network]
        if self.miou is not None:
            parts.append(f"{100 * self.miou:.1f} % mIoU on {self.dataset}")
        elif self.dataset:
            parts.append(self.dataset)
        if not self.ready:
            parts.append("waits for its training" if self.state == "waiting" else "still training")
        if self.origin == "upload":
            parts.append("uploaded")
        return " · ".join(parts)

    def check(self, card: Card) -> None:
        """Raises UserError unless it has the card's classes and channels."""
        if self.outputs is not None:
            check_channels(self.channels, card, f"teacher {self.name}")
            check_outputs(self.outputs, card, f"teacher {self.name}")
        elif self.dataset is not None and self.dataset != card.name:
            raise UserError(
                f"teacher {self.name} learns '{self.dataset}', not '{card.name}': take one of these classes"
            )


WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin")
"""Suffixes of files that hold weights and don't say for which network."""
_cache: dict[Path, tuple[tuple[Stamp | None, ...], Teacher | None]] = {}


def list_teachers(context: Context) -> list[Teacher]:
    """All teachers, also those that still train: runs (newest first), uploads, folders, and then students."""
    runs = [teacher for run in list_runs(context.runs) if (teacher := _of_run(context, run))]
    uploads = _folders(context.runs / UPLOADS, "upload")
    known = [*runs, *uploads, *_folders(context.data, "data"), *_folders(context.runs, "runs")]
    known += _folders(context.runs / IMPORTED, "imported")
    return sorted(known, key=lambda teacher: teacher.distilled)


def find_teacher(teachers: Sequence[Teacher], text: str) -> Teacher | None:
    """The teacher of that key, run's name or path; None if there is none."""
    for teacher in teachers:
        if text in (teacher.key, str(teacher.place)) or (teacher.origin == "run" and text == teacher.name):
            return teacher
    return None


def best_teacher(teachers: Sequence[Teacher], card: Card) -> Teacher | None:
    """The teacher to propose: one trained on this dataset, or else any with its classes. Students come last."""
    fitting = [teacher for teacher in teachers if teacher.ready and fits(teacher, card)]
    fitting.sort(key=lambda teacher: (teacher.distilled, teacher.dataset != card.name))
    return next(iter(fitting), None)


def fits(teacher: Teacher, card: Card) -> bool:
    """Whether it has the card's classes."""
    try:
        teacher.check(card)
    except UserError:
        return False
    return True


def check_hub_id(text: str) -> str:
    """The hub id without spaces around it. Raises UserError for other text, and for a path on this server."""
    text = text.strip()
    if not HUB_ID.match(text) or any(part.startswith(".") for part in text.split("/")):
        raise UserError("a hub id is OWNER/NAME, in letters, digits, '.', '-' and '_'")
    if Path(text).exists():
        raise UserError(f"{text} is a folder of this server: choose it from the list")
    return text


def add_upload(files: Sequence[Path], runs: Path, network: str = "") -> str:
    """Stores an uploaded network below `runs` and returns its key.

    `files` is one zip, or config.json with model.safetensors (or pytorch_model.bin, read as tensors alone), or one
    file of weights for `network`, such as unet:resnet34 or torchvision's fcn_resnet50.
    Raises UserError, and stores nothing, if it is not a network whose stages can be cut.
    """
    uploads = runs / UPLOADS
    with writing(uploads):
        uploads.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=uploads, prefix=".new-") as scratch:
        folder, wish = _gather(files, Path(scratch), network.strip())
        _check(folder)
        model = Path(scratch) / "model"
        model.mkdir()
        for name in (CONFIG, *WEIGHTS_FILES):
            if (folder / name).is_file():
                (folder / name).rename(model / name)
        name = free_name(wish[:LONGEST_NAME] if re.search("[A-Za-z0-9]", wish) else "teacher", uploads)
        with writing(uploads):
            model.rename(uploads / name)
    return f"upload/{name}"


def _gather(files: Sequence[Path], scratch: Path, network: str) -> tuple[Path, str]:
    """The folder of the model among the files, and a name for it."""
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        folder = scratch / "zip"
        folder.mkdir()
        unpack(files[0], folder, limits=LIMITS)
        found = sorted(folder.rglob(CONFIG), key=lambda path: (len(path.parts), path))
        if not found:
            raise UserError(f"{files[0].name} holds no {CONFIG}: zip the folder that save_pretrained wrote")
        return found[0].parent, files[0].stem
    if len(files) == 1 and (files[0].suffix.lower() in WEIGHT_SUFFIXES or (network and files[0].name != CONFIG)):
        return _imported(files[0], scratch, network), files[0].stem
    for file in files:
        if file.name not in (CONFIG, *WEIGHTS_FILES):
            raise UserError(f"{file.name} doesn't belong to a model: give one zip, or {CONFIG} and {WEIGHTS_FILES[0]}")
        with writing(scratch):
            shutil.copyfile(file, scratch / file.name)
    return scratch, "teacher"


def _imported(file: Path, scratch: Path, network: str) -> Path:
    """Imports a file of weights, and returns the folder."""
    if not network:
        raise UserError(
            f"{file.name} is a file of weights: name their network in the field beside the button, then upload it; or "
            f"upload its {CONFIG} with it"
        )
    arch, _, encoder = network.partition(":")
    try:
        import_model(str(file), NetworkSpec(arch, encoder or None), Adjustments(), scratch / "imported")
    except UserError as error:
        raise UserError(str(error).replace(str(file), file.name)) from error
    return scratch / "imported"


def _check(folder: Path) -> None:
    """Raises UserError unless the folder holds a network whose stages can be cut."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{CONFIG} is missing: it lies beside the weights that save_pretrained wrote")
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise UserError(f"the weights are missing: give {WEIGHTS_FILES[0]} together with {CONFIG}")
    config = _read_config(folder)
    if config is None:
        raise UserError(f"{CONFIG} can't be read: it is no JSON object as save_pretrained writes it")
    try:
        cut(load(folder))
    except UserError as error:  # the path of the unpacked files would help nobody
        raise UserError(str(error).replace(str(folder), "the upload")) from error


def _of_run(context: Context, run: Run) -> Teacher | None:
    """The network of a finished run, or of a teacher's run that waits or trains."""
    stamps = (stamp(run.path / "recipe.yaml"), stamp(run.path / "result.json"))
    if _cache.get(run.path, ((), None))[0] != stamps:
        _cache[run.path] = (stamps, _read_run(run))
    teacher = _cache[run.path][1]
    if teacher is None or teacher.ready:
        return teacher
    state = context.jobs.state(run.name)
    return replace(teacher, state=state) if state in IN_TRAINING else None


def _read_run(run: Run) -> Teacher | None:
    try:
        recipe, result = run.recipe, run.read_json("result.json")
        config = _read_config(run.model_folder) if result else None
    except UserError:  # a damaged run is no teacher; the Runs tab reports it
        return None
    if not isinstance(result, dict | None) or (result is None and recipe.kind != "teach"):
        return None
    if result is not None and config is None:  # its network is missing
        return None
    return Teacher(
        key=f"run/{run.name}",
        name=run.name,
        origin="run",
        place=run.path,
        network=recipe.network,
        outputs=_outputs(config),
        channels=_channels(config),
        dataset=(result or {}).get("dataset", Path(recipe.data.card).stem),
        size=recipe.data.size,
        miou=(result or {}).get("miou"),
        state="ready" if result is not None else "new",
        distilled=recipe.kind != "teach",
    )


def _folders(parent: Path, origin: Origin) -> list[Teacher]:
    """The models directly below a folder, without runs."""
    found = []
    for config_path in sorted(parent.glob(f"[!.]*/{CONFIG}")):
        folder = config_path.parent
        if (folder / "recipe.yaml").exists() or not any((folder / name).is_file() for name in WEIGHTS_FILES):
            continue
        stamps = (stamp(config_path),)
        if _cache.get(folder, ((), None))[0] != stamps:
            _cache[folder] = (stamps, _read_folder(folder, origin))
        if teacher := _cache[folder][1]:
            found.append(teacher)
    return found


def _read_folder(folder: Path, origin: Origin) -> Teacher | None:
    config = _read_config(folder)
    if config is None or not isinstance(config.get("_model_class"), str):
        return None
    network = str(config.get("arch") or f"{config['_model_class'].lower()}:{config.get('encoder_name')}")
    return Teacher(f"{origin}/{folder.name}", folder.name, origin, folder, network, _outputs(config), _channels(config))


def _read_config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _outputs(config: dict[str, Any] | None) -> int | None:
    classes = (config or {}).get("classes")
    return classes if isinstance(classes, int) else None


def _channels(config: dict[str, Any] | None) -> int:
    channels = (config or {}).get("in_channels")
    return channels if isinstance(channels, int) else 3
