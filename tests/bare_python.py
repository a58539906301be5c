"""A Python in which only some of this one's distributions are there, so that what else a program needs shows."""

from __future__ import annotations

import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def with_all_they_need(names: Iterable[str]) -> dict[str, Distribution]:
    """The distributions of those names (or requirements) and of all that they require."""
    found: dict[str, Distribution] = {}
    left = [Requirement(name) for name in names]
    asked: set[tuple[str, str]] = set()
    while left:
        one = left.pop()
        name = canonicalize_name(one.name)
        extras = {"", *one.extras} - {extra for known, extra in asked if known == name}
        asked |= {(name, extra) for extra in extras}
        found[name] = distribution(name)
        needed = [Requirement(line) for line in found[name].requires or ()]
        left += [
            each
            for each in needed
            for extra in extras
            if (each.marker is None and not extra) or (each.marker and each.marker.evaluate({"extra": extra}))
        ]
    return found


def bare(folder: Path, names: Iterable[str]) -> Path:
    """A Python in which these distributions and what they require are all there is, linked from this one."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = next(folder.glob("lib/python*/site-packages"))
    for one in with_all_they_need(names).values():
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(one.locate_file(top))))
    return folder / "bin" / "python"
