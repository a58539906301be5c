"""The documentation: it builds without a warning, and what it tells a reader to type works as it stands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from segskd import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "datasets" / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
RUN_BLOCK = re.compile(r"<!-- run: \w+ -->\n```[a-z]*\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"(?:^|[`(]|-m |-- )segskd ((?:data )?[a-z]+)([^`\n]*)", re.MULTILINE)
NETWORK = "tu-test_efficientnet"
TINY = ("--size", "64x96", "--views", "1", "--epochs", "1", "--device", "cpu", "--precision", "32")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: it holds the reader's folder `potholes`; runs and data go below it."""
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "potholes" / folder).mkdir(parents=True)
    for number in range(1, 13):
        mask = np.zeros((64, 96), dtype=np.uint8)
        for value in (1, 2):
            x, y = (int(v) for v in generator.integers((20, 16), (76, 48)))
            cv2.circle(mask, (x, y), 12, value, -1)
        image = mask[..., None] * 80 + generator.integers(0, 60, (64, 96, 3))
        cv2.imwrite(str(tmp_path / "potholes" / "images" / f"{number:04}.png"), image)
        cv2.imwrite(str(tmp_path / "potholes" / "masks" / f"{number:04}.png"), mask)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("SEGSKD_DATA", str(tmp_path / "datasets"))
    return tmp_path


def commands(page: Path) -> list[str]:
    """The lines of the page's blocks that are marked to be run."""
    return [line for block in RUN_BLOCK.findall(page.read_text(encoding="utf-8")) for line in block.splitlines()]


def at_smallest_scale(line: str) -> list[str]:
    """The words of a command, with a network and images that train in a second."""
    program, command, *words = shlex.split(line)
    assert program == "segskd"
    words = [word.replace("unet:resnet10", f"linknet:{NETWORK}").replace("resnet34", NETWORK) for word in words]
    if command == "teach":
        words += ["--arch", "linknet", *TINY]
    if command in ("preflight", "distill"):
        words += [*TINY, "--trust-teacher"]
    return [command, *words]


@pytest.mark.slow
def test_the_commands_of_getting_started_run_as_they_stand(workplace: Path) -> None:
    lines = commands(DOCS / "getting_started.md")
    assert {line.split()[1] for line in lines} >= {"data", "teach", "distill", "evaluate", "compare", "export"}
    for line in lines:
        assert cli.main(at_smallest_scale(line)) == 0, line
    assert (workplace / "checkpoints" / "potholes-small" / "exports" / "onnx" / "potholes-small-onnx.zip").is_file()
    assert (workplace / "masks" / "0001.png").is_file()


def test_the_readmes_first_student_is_that_of_getting_started() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (block for block in BLOCK.findall(text) if "segskd data add" in block)
    assert [line for line in block.splitlines() if line not in commands(DOCS / "getting_started.md")] == []


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_the_examples_of_the_python_page_run_as_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = RUN_BLOCK.findall((DOCS / "python.md").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    out = capsys.readouterr().out
    assert "['road', 'pothole', 'water']" in out
    assert "paused" in out
    assert "no run" in out.splitlines()[-1]
    assert names["runs"] == ["potholes-seed-1", "potholes-small", "potholes-teacher"]


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_the_notebook_runs_from_a_folder_of_images_to_an_exported_student() -> None:
    notebook = nbformat.read(DOCS / "first_student.ipynb", as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    told = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("pixels differ from the checkpoint's" in text for text in told)
    assert "image/png" in told[-1]


def flags_in_docs() -> Iterator[tuple[str, str, str]]:
    """(page, command, flag) for each command that a page shows."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command, words in COMMAND.findall(text):
            for flag in re.findall(r"--[a-z][a-z0-9-]*", words):
                yield page.name, command, flag


def test_every_flag_in_the_docs_is_one_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    shown = sorted(set(flags_in_docs()))
    assert len(shown) > 30
    helps: dict[str, str] = {}
    for command in {command for _, command, _ in shown}:
        with pytest.raises(SystemExit):
            cli.main([*command.split(), "--help"])
        helps[command] = capsys.readouterr().out
    wrong = [one for one in shown if not re.search(rf"{one[2]}\b", helps[one[1]])]
    assert wrong == []


@pytest.mark.slow
def test_the_docs_build_without_a_warning(tmp_path: Path) -> None:
    options = ["-W", "-n", "--keep-going", "-q", "-d", str(tmp_path / "trees")]
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True
    )
    assert (made.returncode, made.stderr) == (0, "")
    assert (tmp_path / "html" / "index.html").is_file()
