"""Where a network to evaluate comes from: a run, which knows its card and size, or a bare model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segskd.config import Device, Size, parse_size
from segskd.data.cards import Card, data_folder, load_card
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.evaluate.predict import Predictor
from segskd.evaluate.tiles import Tiles
from segskd.models.build import load
from segskd.runs import Run, runs_folder

NATIVE = "native"
"""The size of images that keep their own."""


@dataclass(frozen=True)
class Source:
    """A network by its place, and what to evaluate it on."""

    place: str
    card: Card
    size: Size | None
    """None: each image's own."""
    data: Path

    def predictor(self, device: Device = "auto", tiles: Tiles | None = None) -> Predictor:
        """The network, loaded. Raises UserError when it can't be, or has not the card's classes."""
        return Predictor(load(self.place), self.card, self.size, choose_device(device), tiles)

    def with_model(self, place: str) -> Source:
        """Another network on the same data at the same size."""
        return replace(self, place=model_place(place))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        size = NATIVE if self.size is None else list(self.size)
        return {"model": self.place, "dataset": self.card.name, "size": size}


def find_source(model: str, dataset: str | None, size: str | None, data: str | None) -> Source:
    """A model's folder, a run or a hub id, with what is not given taken from the run's recipe.

    The size "native" leaves each image at its own. Raises UserError when the card or the size is neither given nor
    known.
    """
    place = model_place(model)
    recipe = Run(Path(place)).recipe if (Path(place) / "recipe.yaml").is_file() else None
    card = dataset or (recipe.data.card if recipe else None)
    if not card:
        raise UserError(f"{model} is no run, so name the classes it was trained on with --dataset")
    if size is None and recipe is None:
        raise UserError(f"{model} is no run, so give the size it was trained at with --size HEIGHTxWIDTH")
    chosen = _chosen_size(size) if size else recipe.data.size  # type: ignore[union-attr]
    folder = data_folder(data or (recipe.data.folder if recipe else None))
    return Source(place, load_card(card, folder), chosen, folder)


def _chosen_size(size: str) -> Size | None:
    if size == NATIVE:
        return None
    try:
        return parse_size(size)
    except ValueError as error:
        raise UserError(str(error)) from error


def model_place(name: str) -> str:
    """A run's name as its path; anything else as it is."""
    run = runs_folder() / name
    return str(run) if (run / "recipe.yaml").is_file() else name
