"""`app.py` with a demo of fewer images and epochs, which is over in seconds; its masks are no better for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from small_scenes import put_scenes

from segskd.cli import main
from segskd.config import Recipe, make_recipe, merged
from segskd.demo import demo_recipes
from ui.state import guide

CHANGES: list[dict[str, Any]] = [
    {"subset": {"fraction": 0.12}, "data": {"views": 1}, "optimisation": {"epochs": 1}},
    {"subset": {"fraction": 0.04}, "data": {"views": 1}, "optimisation": {"epochs": 6}, "trust_teacher": True},
]
"""Of the teacher and of the student. So short a training makes a teacher that a look at its answers would refuse."""


def short_recipes(data: Path | None, runs: Path) -> list[tuple[str, Recipe]]:
    """The demo's recipes with these changes."""
    made = zip(demo_recipes(data, runs), CHANGES, strict=True)
    return [(name, make_recipe(merged(recipe.model_dump(mode="json"), changes))) for (name, recipe), changes in made]


put_scenes(Path(sys.argv[sys.argv.index("--data") + 1]) / "scenes")
guide.demo_recipes = short_recipes
raise SystemExit(main(["ui", *sys.argv[1:]]))
