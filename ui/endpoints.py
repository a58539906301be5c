"""Endpoints for scripts (gradio_client): start a run, ask for its state, list all runs."""

from __future__ import annotations

from typing import Any

import gradio as gr
import yaml
from gradio.events import api

from segskd.config import Recipe, make_recipe
from segskd.errors import UserError
from segskd.runs import list_runs

from .context import Context
from .state.admission import admit
from .state.outline import outline
from .state.teachers import find_teacher, list_teachers


def build(context: Context) -> None:
    """Adds the endpoints to the page. The client gets UserErrors as plain errors."""

    def start_run(recipe: dict[str, Any] | str, name: str) -> dict[str, Any]:
        """Queues a recipe, a dict or YAML text, as a new run: {"run", "state"}."""
        try:
            return start(context, recipe, name)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def run_state(name: str) -> dict[str, Any]:
        """The state of a run: {"run", "state", "phase", "phases", "miou", "teacher_miou", "error"}."""
        try:
            return state(context, name)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def runs() -> list[dict[str, Any]]:
        """All runs, the newest first: {"run", "state", "dataset", "student", "method", "miou", …} each."""
        return [run.summary() | {"state": context.jobs.state(run.name)} for run in list_runs(context.runs)]

    for endpoint in (start_run, run_state, runs):
        api(endpoint, api_name=endpoint.__name__)


def start(context: Context, recipe: object, name: str) -> dict[str, Any]:
    """Queues a recipe as a run of that name. Raises UserError that names the field."""
    made = admit(context, read_recipe(recipe))
    card = outline(made, context.data).card
    if made.teacher and (teacher := find_teacher(list_teachers(context), made.teacher)):
        teacher.check(card)
    run = context.jobs.submit(made, name)
    return {"run": run.name, "state": context.jobs.state(run.name)}


def read_recipe(recipe: object) -> Recipe:
    """A recipe from plain data or its YAML. Raises UserError."""
    if not isinstance(recipe, str):
        return make_recipe(recipe)
    try:
        return make_recipe(yaml.safe_load(recipe))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"this is not YAML: {' '.join(str(error).split())}") from error


def state(context: Context, name: str) -> dict[str, Any]:
    """The state of a run. `phase` trains or was trained last; `phases` is the number of phases, if known."""
    run = context.run(name)
    result = run.read_json("result.json") or {}
    progress = run.progress()
    return {
        "run": run.name,
        "state": context.jobs.state(run.name),
        "phase": progress.latest and progress.latest.name,
        "phases": len(progress.phases) or None,
        "miou": result.get("miou"),
        "teacher_miou": result.get("teacher_miou"),
        "error": progress.error and progress.error.message,
    }
