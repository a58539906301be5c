"""Where things lie, in a clone and where SegSKD was installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from segskd import folders
from segskd.folders import CARDS_FOLDER, CLONE, STUDIES_FOLDER, data_folder, home, runs_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEGSKD_DATA", "SEGSKD_RUNS"):
        monkeypatch.delenv(name, raising=False)


def test_in_a_clone_all_lies_in_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (home(), CLONE) == (ROOT, ROOT)
    assert (CARDS_FOLDER, STUDIES_FOLDER) == (ROOT / "datasets", ROOT / "studies")
    assert (data_folder(), runs_folder()) == (ROOT / "datasets", ROOT / "checkpoints")


def test_an_installed_program_looks_where_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "CLONE", None)
    monkeypatch.chdir(tmp_path)
    assert (data_folder(), runs_folder()) == (tmp_path / "datasets", tmp_path / "checkpoints")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert data_folder() == tmp_path / "below" / "datasets"


def test_or_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSKD_DATA", "data")
    monkeypatch.setenv("SEGSKD_RUNS", str(tmp_path / "runs"))
    assert (data_folder(), runs_folder()) == (tmp_path / "data", tmp_path / "runs")
    assert data_folder(tmp_path / "given") == tmp_path / "given"
