"""The wheel: what it holds, and that it works in an environment and a folder where nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

import cv2
import httpx
import pytest
from bare_python import bare
from gradio_client import Client
from packaging.requirements import Requirement
from small_scenes import put_scenes

from segskd.data.cards import PROJECT_CARDS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the clone in which a user has worked: there is a card, a dataset and a run of their own."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("segskd", "ui", "datasets", "studies", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=_left_out)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "app.py"):
        shutil.copy(ROOT / name, source)
    (source / "datasets" / "own.yaml").write_text("name: own\n")
    for folder in ("datasets/own", "checkpoints/run"):
        (source / folder).mkdir(parents=True)
        (source / folder / "recipe.yaml").write_text("")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = out.glob("segskd-*.whl")
    return made


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Of the clone, what is large or made by Python itself: the datasets beside the cards, bytecode."""
    data = {name for name in names if Path(folder).name == "datasets" and not name.endswith(".yaml")}
    return data | {"__pycache__"}


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, without its extras."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        needed = Parser().parsestr(opened.read(name).decode()).get_all("Requires-Dist", [])
    return [line for line in needed if not (marker := Requirement(line).marker) or marker.evaluate({"extra": ""})]


class Installed:
    """The wheel in an environment with what it requires and nothing else, called in a folder of its own."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.python = bare(folder / "env", requirements(wheel))
        self.folder = folder / "empty"
        self.folder.mkdir()
        self.environment = {key: os.environ[key] for key in os.environ if not key.startswith(("PYTHON", "SEGSKD"))}
        command = [sys.executable, "-m", "pip", "--python", self.python, "install", "--no-deps", "--no-index", wheel]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [self.python.with_name("segskd"), *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **pipes)

    def call(self, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error of a command."""
        process = self.start(*words)
        out, said = process.communicate(timeout=SECONDS)
        return process.returncode, out, said

    def ask(self, program: str) -> str:
        command = [self.python, "-c", program]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    made = Installed(wheel, tmp_path_factory.mktemp("installed"))
    put_scenes(made.folder / "datasets" / "scenes")
    return made


# -- what it holds ------------------------------------------------------------------------------------


def names_below(folder: Path, patterns: Sequence[str]) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.rglob(pattern)}


def test_it_holds_one_package_with_the_page_the_cards_and_the_studies(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"segskd"}
    assets = {f"assets/{path.name}" for path in (ROOT / "ui" / "assets").iterdir()}
    assert names == {
        *(f"segskd/{name}" for name in names_below(ROOT / "segskd", ["*.py", "py.typed"])),
        *(f"segskd/ui/{name}" for name in names_below(ROOT / "ui", ["*.py"]) | assets),
        *(f"segskd/cards/{name}.yaml" for name in PROJECT_CARDS),
        *(f"segskd/studies/{path.name}" for path in (ROOT / "studies").glob("*.yaml")),
    }
    assert "segskd/py.typed" in names


# -- what it does -------------------------------------------------------------------------------------


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    asked = "import segskd, segskd.ui, sys; print(segskd.__file__, segskd.ui.__file__, 'torch' in sys.modules)"
    (site,) = installed.python.parents[1].glob("lib/python*/site-packages")
    package = site / "segskd"
    assert installed.ask(asked).split() == [f"{package}/__init__.py", f"{package}/ui/__init__.py", "False"]
    assert installed.ask("import importlib.util; print(importlib.util.find_spec('ui'))") == "None"


@pytest.mark.slow
def test_every_module_can_be_imported_and_studies_go_by_their_names(installed: Installed) -> None:
    """All that it takes is required by the wheel; OpenVINO is an extra."""
    program = (
        "import importlib, pkgutil, sys, segskd\n"
        "for module in pkgutil.walk_packages(segskd.__path__, 'segskd.'):\n"
        "    if not module.name.startswith('segskd.standalone.') and not module.name.endswith('.__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "from segskd.study.grid import load_study\n"
        "print(len([name for name in sys.modules if name.startswith('segskd')]), load_study('camvid-cost').name)"
    )
    modules, study = installed.ask(program).split()
    assert (int(modules) > 100, study) == (True, "camvid-cost")


def test_cards_go_by_their_names(installed: Installed) -> None:
    status, out, said = installed.call("data", "list", "--json")
    assert status == 0, said
    listed = json.loads(out.splitlines()[-1])
    assert listed["folder"] == str(installed.folder / "datasets")
    assert [card["card"] for card in listed["cards"]] == list(PROJECT_CARDS)
    assert {card["card"]: card["splits_here"] for card in listed["cards"]}["scenes"] == ["train", "val", "test"]


@pytest.mark.slow
def test_the_demo_then_a_study_then_the_page(installed: Installed) -> None:
    runs = installed.folder / "checkpoints"
    status, out, said = installed.call("demo", "--quick", "--json")
    assert status == 0, said
    result = json.loads(out.splitlines()[-1])
    assert result["run"] == str(runs / "quick-demo-student")
    assert result["picture"] == str(runs / "quick-demo-comparison" / "gallery.png")
    assert cv2.imread(result["picture"]) is not None

    study = "{name: tiny, recipe: {data: {card: scenes, size: 64x64}}, methods: [supervised], epochs: 1,"
    study += " students: ['unet:tu-test_efficientnet'], fractions: [0.005], seeds: [0]}"
    (installed.folder / "tiny.yaml").write_text(study)
    status, out, said = installed.call("study", "--config", "tiny.yaml", "--json")
    assert status == 0, said
    assert [cell["state"] for cell in json.loads(out.splitlines()[-1])["cells"]] == ["finished"]
    assert (runs / "tiny" / "table.md").is_file()

    with serving(installed) as client:
        assert {run["run"] for run in client.predict(api_name="/runs")} >= {"quick-demo-teacher", "quick-demo-student"}
        recipe = (runs / "tiny" / "supervised-tu-test_efficientnet-0.5pc-s0" / "recipe.yaml").read_text()
        client.predict(recipe, "from-the-page", api_name="/start_run")
        deadline = time.monotonic() + SECONDS
        while (state := client.predict("from-the-page", api_name="/run_state")["state"]) != "finished":
            assert state in ("waiting", "starting", "running"), (runs / "from-the-page" / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
    assert {path.name for path in installed.folder.iterdir()} == {"datasets", "checkpoints", "tiny.yaml"}


@contextmanager
def serving(installed: Installed) -> Iterator[Client]:
    """The page of the installed program, as `segskd ui` serves it, and the end of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = installed.start("ui", "--port", str(port))
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + SECONDS
        while not _answers(url):
            assert server.poll() is None, server.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield Client(url, verbose=False)
        server.send_signal(signal.SIGTERM)
        out, said = server.communicate(timeout=SECONDS)
        assert server.returncode == 0, said
        assert f"SegSKD is open at {url}" in out.splitlines()
    finally:
        server.kill()
        server.communicate()


def _answers(url: str) -> bool:
    try:
        return "SegSKD" in httpx.get(url, timeout=5).text
    except httpx.TransportError:
        return False
