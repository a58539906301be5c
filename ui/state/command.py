"""A recipe as the line that starts it from a shell, and the name of its run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segskd.config import Recipe

from .places import at, defaults, differences

# Flags of `distill`; what has none goes by a recipe file.
FLAGS: dict[tuple[str, ...], str] = {
    ("data", "card"): "--dataset",
    ("data", "folder"): "--data",
    ("subset", "fraction"): "--fraction",
    ("subset", "count"): "--count",
    ("subset", "rule"): "--rule",
    ("subset", "labels"): "--labels",
    ("data", "unlabelled"): "--unlabelled",
    ("teacher",): "--teacher",
    ("trust_teacher",): "--trust-teacher",
    ("student",): "--student",
    ("method",): "--method",
    ("options",): "--option",
    ("data", "size"): "--size",
    ("data", "views"): "--views",
    ("init",): "--init",
    ("optimisation", "epochs"): "--epochs",
    ("optimisation", "batch"): "--batch",
    ("optimisation", "lr"): "--lr",
    ("optimisation", "weight_decay"): "--weight-decay",
    ("optimisation", "patience"): "--patience",
    ("select",): "--select",
    ("select_on",): "--select-on",
    ("store", "kind"): "--store",
    ("store", "budget_gib"): "--store-budget",
    ("store", "bits"): "--store-bits",
    ("checkpoint_seconds",): "--checkpoint-seconds",
    ("seed",): "--seed",
    ("device",): "--device",
    ("precision",): "--precision",
    ("threads",): "--threads",
    ("devices",): "--devices",
    ("nodes",): "--nodes",
    ("sync_batchnorm",): "--sync-batchnorm",
}
ALWAYS = {("teacher",), ("student",), ("method",), ("data", "size"), ("subset", "fraction"), ("data", "card")}
OF_STUDENT = (
    *(("student",), ("method",), ("options",), ("init",), ("trust_teacher",)),
    *(("optimisation", "patience"), ("store", "bits")),
)
TEACH_FLAGS = {place: flag for place, flag in FLAGS.items() if place not in OF_STUDENT} | {
    ("snapshots",): "--snapshots"
}


def command(recipe: Recipe, run: str) -> str:
    """The line that starts that recipe, quoted for a shell.

    What flags can't say, such as names picked by hand, is left to the recipe's file beside it.
    """
    content = recipe.model_dump(mode="json")
    teach = recipe.kind == "teach"
    begin = ["python", "-m", "segskd", recipe.kind]
    if teach:
        arch, _, encoder = recipe.student.partition(":")
        begin += ["--arch", arch, "--encoder", encoder]
        begin += ["--weights", recipe.weights] if recipe.weights else []
    elif unsaid(content):
        return shlex.join([*begin, "--recipe", f"{Path(run).name}.yaml", "--run", run])
    known = TEACH_FLAGS if teach else FLAGS
    standard = defaults()
    words = list(begin)
    for place, flag in known.items():
        value = at(content, place)
        if isinstance(value, dict):
            words += [word for name, part in value.items() for word in (flag, name, repr(part))]
        elif value is not None and (place in ALWAYS or value != at(standard, place)):
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join([*words, "--out" if teach else "--run", run])


def unsaid(content: Mapping[str, Any]) -> set[str]:
    """Places of a distilling recipe that differ from the defaults and have no flag."""
    flags = {".".join(place) for place in FLAGS}
    whole = {**content, "options": {}}
    return differences(whole, defaults()) - flags - {"kind", "data.card"}
