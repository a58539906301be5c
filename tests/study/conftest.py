"""Studies on the small dataset, whose cells train nothing where a test asks for the stand-in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn

from segskd.study import process
from segskd.study.grid import Study, make_study


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    folder = tmp_path / "stand-in"
    folder.mkdir()
    made = StandIn(folder)
    monkeypatch.setattr(process, "segskd", lambda *words: [sys.executable, str(folder / "stand_in.py"), *words])
    return made


@pytest.fixture
def content(data: Path, card_path: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes a study's plain data: two methods, half of the images, two seeds; parts can be given by name."""
    teacher = tmp_path / "teacher-r18"
    teacher.mkdir()
    for name in ("config.json", "model.safetensors"):
        (teacher / name).write_text("{}")

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "name": "bands",
            "recipe": {
                "data": {"card": str(card_path), "folder": str(data), "size": "64x96"},
                "teacher": str(teacher),
                "trust_teacher": True,
                "init": "random",
            },
            "methods": ["stagewise", "supervised"],
            "fractions": [0.5],
            "seeds": [0, 1],
            "passes": 12,
        } | changes

    return make


@pytest.fixture
def study(content: Callable[..., dict[str, Any]]) -> Callable[..., Study]:
    return lambda **changes: make_study(content(**changes), "study")
