"""The runs below one folder, taken together: noted, renamed, deleted."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from segskd.config import make_recipe, merged
from segskd.errors import UserError
from segskd.files import writing
from segskd.runs import RUN_NAME, Run, list_runs

NOTE = "note.txt"
LONGEST_NOTE = 2000
EARLIER = ("begin", "prune")
"""Parts of a recipe that name a run to begin from."""


def note(run: Run) -> str:
    """What somebody wrote about the run, "" for nothing."""
    try:
        return (run.path / NOTE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # none, or not written by us
        return ""


def write_note(run: Run, text: str) -> None:
    """Keeps a note of at most LONGEST_NOTE characters with the run. Raises UserError for a longer one."""
    if len(text) > LONGEST_NOTE:
        raise UserError(f"a note has at most {LONGEST_NOTE} characters; this one has {len(text)}")
    run.write(NOTE, text.encode())


def dependants(run: Run) -> list[Run]:
    """Runs of the same folder whose recipes name this one, as teacher, or as what they begin from."""
    return [other for other in list_runs(run.path.parent) if other.name != run.name and _named(other, run.path)]


def rename(run: Run, name: str) -> Run:
    """Gives a run another name; recipes of other runs that name it follow.

    Raises UserError for a name that can't be or is taken, and while a worker is at the run or at one of those.
    """
    if not RUN_NAME.fullmatch(name):
        raise UserError("a run's name has letters, digits, '.', '-' and '_', and begins with a letter or digit")
    target = run.path.parent / name
    if target.exists():
        raise UserError(f"there is a run {name} already")
    following = dependants(run)
    for other in (run, *following):
        if other.is_alive():
            raise UserError(f"run {other.name} is running: stop it first")
    with writing(target):
        os.rename(run.path, target)
    for other in following:
        _follow(other, run.path, target)
    return Run(target)


def delete(run: Run) -> None:
    """Removes a run and all that came of it.

    Raises UserError while a worker is at it, and when another run needs it.
    """
    if run.is_alive():
        raise UserError(f"run {run.name} is running: stop it first")
    needing = [other.name for other in dependants(run)]
    if needing:
        raise UserError(f"run {run.name} is the teacher or the beginning of {', '.join(needing)}: delete those first")
    with writing(run.path), tempfile.TemporaryDirectory(prefix=".deleted-", dir=run.path.parent) as doomed:
        os.rename(run.path, Path(doomed) / run.name)  # gone at once, so that nobody meets half a run


def _named(run: Run, place: Path) -> bool:
    try:
        recipe = run.recipe.model_dump(mode="json")
    except UserError:  # a damaged recipe names nobody
        return False
    return any(_lies_in(value, place) for value in _places(recipe))


def _places(recipe: dict[str, object]) -> list[object]:
    return [recipe["teacher"], *(part["run"] for key in EARLIER if isinstance(part := recipe.get(key), dict))]


def _lies_in(value: object, place: Path) -> bool:
    if not isinstance(value, str):
        return False
    found, there = Path(value).resolve(), place.resolve()
    return found == there or there in found.parents


def _follow(run: Run, before: Path, after: Path) -> None:
    recipe = run.recipe.model_dump(mode="json")
    changes: dict[str, object] = {}
    if _lies_in(recipe["teacher"], before):
        changes["teacher"] = _moved(recipe["teacher"], before, after)
    for key in EARLIER:
        part = recipe.get(key)
        if isinstance(part, dict) and _lies_in(part["run"], before):
            changes[key] = {"run": _moved(part["run"], before, after)}
    run.write_recipe(make_recipe(merged(recipe, changes)))


def _moved(value: object, before: Path, after: Path) -> str:
    return str(after / Path(str(value)).resolve().relative_to(before.resolve()))
