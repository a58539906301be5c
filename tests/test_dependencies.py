"""What segskd and the page import is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
OWN = {"segskd", "ui", "bands", "narrow", "predict"}
"""`bands`, `narrow` and `predict` are modules of segskd/standalone, which lie without segskd in a package."""
NOT_IMPORTED = {"onnxscript"}
"""Needed by torch.onnx, which imports it itself."""


def imported(folder: str) -> set[str]:
    """Top-level names of all modules that are imported in a folder, at the top of a file or later."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - OWN


def declared() -> dict[str, dict[str, Requirement]]:
    """Requirements by the distribution's name, those of everybody ("") and those of each extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        group: {canonicalize_name(one.name): one for one in map(Requirement, lines)} for group, lines in groups.items()
    }


def test_what_is_imported_is_declared() -> None:
    distributions = packages_distributions()
    groups = declared()
    needed = {
        name: {canonicalize_name(one) for one in distributions[name]} for name in imported("segskd") | imported("ui")
    }
    everybodys = {name for name, ones in needed.items() if ones & groups[""].keys()}
    extras = {name for name, ones in needed.items() if ones & groups["openvino"].keys()}
    assert needed.keys() - everybodys == extras == {"openvino", "nncf"}
    unused = groups[""].keys() - {one for ones in needed.values() for one in ones} - NOT_IMPORTED
    assert not unused


def test_ranges_hold_what_is_installed_and_pin_nothing() -> None:
    for name, requirement in declared()[""].items():
        assert requirement.specifier.contains(version(name), prereleases=True), requirement
        assert {part.operator for part in requirement.specifier} <= {">=", "<"}, requirement
