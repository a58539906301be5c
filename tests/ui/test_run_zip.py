"""A run as a zip."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from segskd.errors import UserError
from segskd.runs import Run
from ui.state import run_zip as module
from ui.state.run_zip import write_zip

Make = Callable[..., Run]
WANTED = {
    "recipe.yaml",
    "subset.txt",
    "events.jsonl",
    "teacher.json",
    "result.json",
    "log.txt",
    "note.txt",
    "config.json",
    "model.safetensors",
    "student/config.json",
    "student/model.safetensors",
    "previews/head.png",
    "previews/head/b00.png",
}
UNWANTED = {
    "state.pt",
    "worker.json",
    "stop",
    ".lock",
    ".state.pt.part",
    "previews/.head.png.part",
    "exports/safetensors/small.zip",
    "store/features.bin",
}


@pytest.fixture
def run(make_run: Make) -> Run:
    """A run with every file that runs have, each content its own name; but for its recipe, which is one."""
    made = make_run("small")
    for name in (WANTED | UNWANTED) - {"recipe.yaml"}:
        made.write(name, name.encode())
    return made


def test_all_that_a_reader_needs_is_in_it(run: Run, tmp_path: Path) -> None:
    write_zip(run, tmp_path / "small.zip")
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert sorted(names) == sorted(f"small/{name}" for name in WANTED)
        for name in WANTED - {"recipe.yaml"}:
            assert archive.read(f"small/{name}") == name.encode()
        assert archive.read("small/recipe.yaml") == (run.path / "recipe.yaml").read_bytes()


def test_a_run_that_has_only_begun(make_run: Make, tmp_path: Path) -> None:
    write_zip(make_run("fresh"), tmp_path / "fresh.zip")
    with zipfile.ZipFile(tmp_path / "fresh.zip") as archive:
        assert archive.namelist() == ["fresh/recipe.yaml"]


def test_links_lead_nowhere(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (run.path / "previews" / "link.png").symlink_to(tmp_path / "secret")
    (run.path / "log.txt").unlink()
    (run.path / "log.txt").symlink_to(tmp_path / "secret")
    write_zip(run, tmp_path / "small.zip")
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert {"small/previews/link.png", "small/log.txt"}.isdisjoint(archive.namelist())


def test_a_file_older_than_zips_are(run: Run, tmp_path: Path) -> None:
    os.utime(run.path / "log.txt", (0, 0))
    write_zip(run, tmp_path / "small.zip")
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert archive.read("small/log.txt") == b"log.txt"


def test_what_goes_meanwhile_is_left_out(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = module._files(run.path)
    monkeypatch.setattr(module, "_files", lambda _: files)
    (run.path / "previews" / "head.png").unlink()
    write_zip(run, tmp_path / "small.zip")
    with zipfile.ZipFile(tmp_path / "small.zip") as archive:
        assert archive.testzip() is None
        assert set(archive.namelist()) == {f"small/{name}" for name in WANTED - {"previews/head.png"}}


def test_a_place_that_is_none_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write"):
        write_zip(run, tmp_path / "file" / "small.zip")
