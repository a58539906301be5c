"""Notes on runs, renaming and deleting. Other runs that depend on a run are found and updated."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from segskd.config import FIRST_WEIGHTS, make_recipe, merged
from segskd.errors import UserError
from segskd.files import writing
from segskd.runs import RUN_NAME, Run, list_runs

NOTE = "note.txt"
LONGEST_NOTE = 2000
NETWORK_FIELDS = ("teacher", "init")
"""Fields of a recipe that may name a run whose network it begins with or learns from."""
SOURCE_RUNS = ("begin", "prune")
"""Parts of a recipe that name a run from which it begins."""


def note(run: Run) -> str:
    """The user's note about the run, "" if there is none."""
    try:
        return (run.path / NOTE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # there is none, or it isn't a text that SegSKD wrote
        return ""


def write_note(run: Run, text: str) -> None:
    """Stores a note about the run. Raises UserError for more than LONGEST_NOTE characters."""
    if len(text) > LONGEST_NOTE:
        raise UserError(f"a note has at most {LONGEST_NOTE} characters; this one has {len(text)}")
    run.write(NOTE, text.encode())


def dependants(run: Run) -> list[Run]:
    """The runs of the same folder whose recipes name this one as their teacher or as the run from which they begin."""
    return [other for other in list_runs(run.path.parent) if other.name != run.name and _depends_on(other, run.path)]


def rename(run: Run, name: str) -> Run:
    """Renames a run, and changes the recipes of the runs that depend on it.

    Raises UserError for a name that isn't valid or is taken, and while a process runs one of these runs.
    """
    if not RUN_NAME.fullmatch(name):
        raise UserError("a run's name has letters, digits, '.', '-' and '_', and begins with a letter or digit")
    target = run.path.parent / name
    if target.exists():
        raise UserError(f"a run {name} exists already")
    following = dependants(run)
    for other in (run, *following):
        if other.is_alive():
            raise UserError(f"run {other.name} is running: stop it first")
    with writing(target):
        os.rename(run.path, target)
    for other in following:
        _update_recipe(other, run.path, target)
    return Run(target)


def delete(run: Run) -> None:
    """Deletes a run's directory.

    Raises UserError while a process runs it, and when another run depends on it.
    """
    if run.is_alive():
        raise UserError(f"run {run.name} is running: stop it first")
    needing = [other.name for other in dependants(run)]
    if needing:
        raise UserError(f"run {run.name} is the teacher of, or comes before, {', '.join(needing)}: delete those first")
    with writing(run.path), tempfile.TemporaryDirectory(prefix=".deleted-", dir=run.path.parent) as doomed:
        os.rename(run.path, Path(doomed) / run.name)  # it disappears at once, so that nobody reads a half-deleted run


def _depends_on(run: Run, place: Path) -> bool:
    try:
        recipe = run.recipe.model_dump(mode="json")
    except UserError:  # a damaged recipe names no run
        return False
    return any(_is_inside(value, place) for value in _named_places(recipe))


def _named_places(recipe: dict[str, object]) -> list[object]:
    own = [recipe[field] for field in NETWORK_FIELDS if recipe[field] not in FIRST_WEIGHTS]
    return [*own, *(part["run"] for key in SOURCE_RUNS if isinstance(part := recipe.get(key), dict))]


def _is_inside(value: object, place: Path) -> bool:
    if not isinstance(value, str):
        return False
    path, folder = Path(value).resolve(), place.resolve()
    return path == folder or folder in path.parents


def _update_recipe(run: Run, before: Path, after: Path) -> None:
    recipe = run.recipe.model_dump(mode="json")
    changes: dict[str, object] = {}
    for field in NETWORK_FIELDS:
        if recipe[field] not in FIRST_WEIGHTS and _is_inside(recipe[field], before):
            changes[field] = _moved(recipe[field], before, after)
    for key in SOURCE_RUNS:
        part = recipe.get(key)
        if isinstance(part, dict) and _is_inside(part["run"], before):
            changes[key] = {"run": _moved(part["run"], before, after)}
    run.write_recipe(make_recipe(merged(recipe, changes)))


def _moved(value: object, before: Path, after: Path) -> str:
    return str(after / Path(str(value)).resolve().relative_to(before.resolve()))
