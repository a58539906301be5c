"""The house's own rules: which way imports point, and that datasets/ is data."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Rooms of segskd by what they may import; a room may always import itself.
BASE = ("callable_packages", "callbacks", "errors", "files", "folders", "config", "devices", "supervisor", "workers")
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "callbacks": set(),
    "files": {"errors"},
    "folders": set(),
    "schema": {"errors"},
    "config": {"errors", "schema"},
    "devices": {"errors", "config"},
    "standalone": set(),
    "supervisor": {"errors", "files"},
    "workers": {"errors", "files", "supervisor"},
    "scenes": {*BASE},
    "data": {*BASE, "standalone", "scenes"},
    "models": {*BASE, "standalone"},
    "events": {"errors", "files"},
    "run_progress": {"errors", "events"},
    "runs": {*BASE, "events", "run_progress"},
    "subset_file": {*BASE, "data", "runs"},
    "evaluate": {*BASE, "standalone", "data", "models", "runs"},
    "export": {*BASE, "standalone", "data", "models", "runs", "subset_file", "evaluate"},
    "distill": {*BASE, "standalone", "data", "models", "events", "runs", "subset_file", "evaluate"},
    "study": {*BASE, "data", "models", "runs", "distill"},
}
DISTILL = ("planning", "caching", "training", "running")
"""The rooms of segskd/distill; each may import those before it and itself."""


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return names


def test_the_core_knows_no_screen() -> None:
    by_name = set()
    for path in (ROOT / "segskd").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"ui", "gradio"}, path
        assert not {name for name in imported(path) if name.startswith("segskd.ui")}, path
        text = path.read_text(encoding="utf-8")
        if "import_module" in text and '"ui.' in text:
            by_name.add(path.relative_to(ROOT).as_posix())
    assert by_name == {"segskd/cli/ui_command.py"}  # the command `ui`, when it is called


def test_the_page_imports_itself_relatively() -> None:
    """In a wheel it lies in another package."""
    for path in (ROOT / "ui").rglob("*.py"):
        assert not {name for name in imported(path) if name.split(".")[0] == "ui"}, path


@pytest.mark.parametrize("words", [["--help"], ["data", "list"], ["ui", "--help"]])
def test_commands_that_need_neither_torch_nor_gradio_do_not_import_them(words: list[str]) -> None:
    program = (
        "import sys, segskd\n"
        "from segskd.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as leaving: status = leaving.code\n"
        "assert not status, status\n"
        "assert not {'torch', 'gradio', 'ui', 'segskd.ui', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_imports_point_one_way() -> None:
    for path in (ROOT / "segskd").rglob("*.py"):
        room = path.relative_to(ROOT / "segskd").parts[0].removesuffix(".py")
        if room in ALLOWED:
            rooms = {name.split(".")[1] for name in imported(path) if name.startswith("segskd.")}
            assert rooms <= ALLOWED[room] | {room}, path


def test_imports_inside_distill_point_one_way() -> None:
    for place, room in enumerate(DISTILL):
        for path in (ROOT / "segskd" / "distill" / room).rglob("*.py"):
            rooms = {name.split(".")[2] for name in imported(path) if name.startswith("segskd.distill.")}
            assert rooms <= set(DISTILL[: place + 1]), path
    names = {path.name for path in (ROOT / "segskd" / "distill").iterdir()}
    assert names - {"__pycache__"} == {"__init__.py", *DISTILL}


def test_datasets_is_no_package_that_other_libraries_take_for_theirs() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
    program = (
        "import importlib.util, segskd.distill.running.session\n"
        "spec = importlib.util.find_spec('datasets')\n"
        "assert spec is None or spec.origin is None, spec\n"
        "import timm, huggingface_hub, torchmetrics\n"
        "import sys; assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
