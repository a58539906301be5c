"""A recipe's images and phases, and whether its parts fit each other, computed without loading a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from segskd.config import Recipe, Size
from segskd.data.cards import Card, load_card
from segskd.data.dataset import list_pairs
from segskd.data.transforms import padded_size
from segskd.data.unlabelled import UNLABELLED, list_further
from segskd.distill.planning.images import held_out_size, labelled_size, subset_images
from segskd.distill.planning.methods import METHODS, options_of, summary_of
from segskd.distill.planning.phase import TEACHER, Phase
from segskd.distill.planning.plan import plan_phases
from segskd.distill.planning.settle import filled_in, for_images
from segskd.distill.running.loading import teacher_places
from segskd.errors import UserError
from segskd.models.build import create, load, model_folder, parse_spec
from segskd.models.cut import check_size, cut
from segskd.models.pairing import paired
from segskd.models.stages import HEAD, StagedNetwork, meta_copy

from .form import FieldError, write_options

COUNT_SECONDS = 10.0
_counts: dict[tuple[str, Path], tuple[float, int]] = {}


@dataclass(frozen=True)
class Outline:
    """Images and phases of a run that has not started.

    `unlabelled` of the `images` come from a folder without masks. `epochs` are those of one stage; `epochs_chosen` says
    that SegSKD chose them.
    """

    card: Card
    total: int
    images: int
    held_out: int
    labelled: int
    unlabelled: int
    epochs: int
    epochs_chosen: bool
    phases: list[Phase]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the page."""
        return {
            "dataset": self.card.name,
            "total": self.total,
            "images": self.images,
            "held_out": self.held_out,
            "labelled": self.labelled,
            "epochs": self.epochs,
            "chosen": self.epochs_chosen,
            "phases": [
                {"name": phase.name, "epochs": phase.epochs, "on": _learns_from(phase), "beside": _trains_with(phase)}
                for phase in self.phases
            ],
        }


def outline(recipe: Recipe, data: Path) -> Outline:
    """Images and phases of a recipe whose datasets lie in `data`. Raises FieldError for wrong fields."""
    with errors_beside("data"):
        card = load_card(recipe.data.card)
        total = count_images(card, data)
        size = subset_images(recipe, total)
    with errors_beside("labels"):
        labelled = labelled_size(total, recipe.subset.labels, size)
    with errors_beside("unlabelled"):
        further = count_unlabelled(Path(recipe.data.unlabelled), card, data) if recipe.data.unlabelled else 0
    with errors_beside("select"):
        held_out = held_out_size(recipe, labelled)
    images = size - held_out + further
    with errors_beside("student"):
        stages = stage_names(recipe.student)
    with errors_beside("size"):
        _check_takes(recipe.student, padded_size(recipe.data.size))
    with errors_beside("teacher"):
        teachers, partners = _teachers(recipe), _partners(recipe, stages)
    try:
        settled = for_images(recipe, images)
        phases = plan_phases(settled, partners, stages, images, labelled - held_out, teachers)
    except UserError as error:
        raise FieldError.of(error, "method") from error
    return Outline(
        card=card,
        total=total,
        images=images,
        held_out=held_out,
        labelled=labelled - held_out,
        unlabelled=further,
        epochs=filled_in(settled.optimisation.epochs),
        epochs_chosen=recipe.optimisation.epochs is None,
        phases=phases,
    )


def count_images(card: Card, data: Path) -> int:
    """The number of a dataset's training images. For scenes that SegSKD draws it is known before they are drawn."""
    expected = card.split("train").count
    if card.generator and expected and not card.root(data).is_dir():
        return expected
    return _counted((card.name, data), lambda: len(list_pairs(card, data, "train")))


def count_unlabelled(folder: Path, card: Card, data: Path) -> int:
    """The number of images in a folder without masks. Raises UserError if there are none, or if the dataset uses it."""
    return _counted((f"{UNLABELLED} {card.name}", folder), lambda: len(list_further(folder, card, data)))


def _counted(key: tuple[str, Path], count: Callable[[], int]) -> int:
    """A count that is stored for COUNT_SECONDS, since the page asks at every key press."""
    seen = _counts.get(key)
    if seen is None or time.monotonic() - seen[0] > COUNT_SECONDS:
        seen = _counts[key] = (time.monotonic(), count())
    return seen[1]


@lru_cache(maxsize=64)
def stage_names(spec: str) -> tuple[str, ...]:
    """The names of a network's stages. Raises UserError for a network without stages."""
    return tuple(_built(spec).names)


@lru_cache(maxsize=8)
def _built(spec: str) -> StagedNetwork:
    """A network by its name, whose weights take no memory."""
    return cut(meta_copy(create(*parse_spec(spec), classes=2)))


@lru_cache(maxsize=64)
def _check_takes(student: str, size: Size) -> None:
    """Raises UserError if the student can't take images of the padded size."""
    check_size(_built(student), size, f"student {student}")


def _partners(recipe: Recipe, stages: tuple[str, ...]) -> tuple[str, ...]:
    """The student's stages that have a partner in the teacher; all of them while the teacher can't be loaded."""
    try:
        folder = model_folder(recipe.teacher) if recipe.teacher else None
    except UserError:  # a teacher that is not trained yet; other checks report a wrong one
        folder = None
    if folder is None:
        return stages
    changed = (folder / "config.json").stat().st_mtime_ns
    return _paired_names(recipe.student, folder, changed, padded_size(recipe.data.size))


@lru_cache(maxsize=64)
def _paired_names(student: str, teacher: Path, changed: int, size: Size) -> tuple[str, ...]:
    """The names for the teacher in a folder. `changed` is the time of its config, so that a new one is read."""
    network = cut(meta_copy(load(teacher)))
    check_size(network, size, f"teacher {teacher.name}")
    return tuple(paired(network, _built(student), size).names)


@lru_cache(maxsize=64)
def parameters(spec: str) -> int:
    """The number of a network's parameters, for a typical number of classes."""
    return sum(parameter.numel() for parameter in create(*parse_spec(spec), classes=12).parameters())


def method_sentences() -> dict[str, str]:
    """A sentence for each method, which says what it does."""
    return {name: summary_of(name) for name in METHODS}


def method_options(name: str) -> str:
    """A method's options with their defaults, as text for the page's field; "" for a method without options."""
    return write_options({option: one.default for option, one in options_of(name).items()}) if name in METHODS else ""


def option_sentences(name: str) -> str:
    """The meanings of a method's options; "" for a method without options."""
    options = options_of(name) if name in METHODS else {}
    return "; ".join(f"{option}: {one.meaning}" for option, one in options.items())


@contextmanager
def errors_beside(field: str) -> Iterator[None]:
    """Turns a UserError into a FieldError at the field that caused it, or at `field` if it names none."""
    try:
        yield
    except FieldError:
        raise
    except UserError as error:
        raise FieldError.of(error, field) from error


def _teachers(recipe: Recipe) -> list[str]:
    """The names of the teachers; the teacher alone as long as there is none that could be looked at."""
    if not recipe.teacher or not Path(recipe.teacher).exists():
        return [TEACHER]
    return list(teacher_places(recipe))


def _trains_with(phase: Phase) -> str:
    """The stages that train with the one that names the phase. A snapshot's name may follow the stage's name."""
    *before, last = phase.trained
    return ", ".join(before) if phase.name == last or phase.name.startswith(f"{last}-") else ""


def _learns_from(phase: Phase) -> str:
    features = [name for name in phase.features if name != HEAD]
    whose = {comparison.teacher for comparison in phase.compared}
    owner = "the teacher's" if whose <= {TEACHER} else f"{', '.join(sorted(whose))}'s"
    separately = ", each stage by itself" if phase.fed_by == TEACHER else ""
    sources = [f"{owner} feature{'s' * (len(features) > 1)}"] if features else []
    sources += [f"{owner} answers"] if HEAD in phase.features else []
    sources += ["a discriminator"] if any(comparison.discriminator for comparison in phase.compared) else []
    sources += ["labels"] if phase.labels else []
    listed = " and ".join([", ".join(sources[:-1]), sources[-1]]) if len(sources) > 1 else "".join(sources)
    return listed + separately
