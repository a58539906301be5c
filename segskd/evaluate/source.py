"""Finds a network to evaluate, with the dataset and the size for it: a run, or a model's folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segskd.config import Device, Size, parse_size
from segskd.data.cards import Card, data_folder, load_card
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.evaluate.predictor import Predictor
from segskd.evaluate.tiles import Tiles
from segskd.models.build import load
from segskd.runs import Run, runs_folder

NATIVE = "native"
"""The value of --size with which each image keeps its own size."""


@dataclass(frozen=True)
class Source:
    """Where a network lies, and the dataset and size to evaluate it on."""

    place: str
    card: Card
    size: Size | None
    """(height, width); None if each image keeps its own."""
    data: Path

    def predictor(self, device: Device = "auto", tiles: Tiles | None = None) -> Predictor:
        """Loads the network. Raises UserError when it can't be loaded, or hasn't the card's classes."""
        return Predictor(load(self.place), self.card, self.size, choose_device(device), tiles)

    def with_model(self, place: str) -> Source:
        """The same dataset and size with another network."""
        return replace(self, place=model_place(place))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        size = NATIVE if self.size is None else list(self.size)
        return {"model": self.place, "dataset": self.card.name, "size": size}


def find_source(model: str, dataset: str | None, size: str | None, data: str | None) -> Source:
    """The source for a model's folder, a run or a hub id. For a run, its recipe fills in arguments that are None.

    With the size "native", each image keeps its own. Raises UserError when the card or the size is neither given nor in
    a recipe.
    """
    place = model_place(model)
    recipe = Run(Path(place)).recipe if (Path(place) / "recipe.yaml").is_file() else None
    card = dataset or (recipe.data.card if recipe else None)
    if not card:
        if not Path(place).expanduser().exists():
            where = "'python -m segskd runs' lists the runs; a hub id takes --dataset, which names its classes"
            raise UserError(f"there is no run and no folder '{model}': {where}")
        raise UserError(f"{model} is no run, so name the classes it was trained on with --dataset")
    if size is None and recipe is None:
        raise UserError(f"{model} is no run, so give the size it was trained at with --size HEIGHTxWIDTH")
    evaluated = _parsed_size(size) if size else recipe.data.size  # type: ignore[union-attr]
    folder = data_folder(data or (recipe.data.folder if recipe else None))
    return Source(place, load_card(card, folder), evaluated, folder)


def _parsed_size(size: str) -> Size | None:
    if size == NATIVE:
        return None
    try:
        return parse_size(size)
    except ValueError as error:
        raise UserError(str(error)) from error


def model_place(name: str) -> str:
    """The path of a run if `name` is a run's name, else `name`."""
    run = runs_folder() / name
    return str(run) if (run / "recipe.yaml").is_file() else name
