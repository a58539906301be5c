"""A field that is added to a copy of config.py, and to nothing else, is everywhere: flag, page, previews, messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import segskd

pytestmark = pytest.mark.slow

ROOT = Path(segskd.__file__).parents[1]
BEFORE = "    patience: Annotated["
ADDED = """    warm_up: Annotated[int | None, Display("Warm-up", "no warm-up", shared=True)] = Field(
        default=None, ge=0, le=9, description="epochs in which the rate rises"
    )
    sharp: Annotated[bool, Display("Sharp", commands=("distill",))] = Field(
        default=False, description="edges count more"
    )
"""
ASK = """
import contextlib, io, json, sys
import gradio as gr
from segskd.cli import main, run_commands
from segskd.config import dump_recipe, make_recipe, named
from segskd.errors import UserError
from ui.state.choice import Choice
from ui.state.form import FieldError, Form, TeachForm, command
from ui.tabs.distill import ADVANCED
from ui.tabs.distill_fields import Fields, other_fields

def told(*words):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main(words)
        except SystemExit:
            pass
    return out.getvalue() + err.getvalue()

carried = []
run_commands._run = lambda recipe, folder, until, json: carried.append(recipe.optimisation)
fields = Fields()
with gr.Blocks():
    other_fields(fields, "advanced")
form = Form(Choice(), teacher="t", warm_up="3", sharp=True)
main(form.command("/runs/one").split()[3:])
teacher = TeachForm().recipe(form)
main(command(teacher, "/runs/two").split()[3:])
try:
    Form(Choice(), teacher="t", warm_up="12").recipe()
except FieldError as error:
    problems = error.problems
error = UserError(f"{named('optimisation.warm_up')} is long", "optimisation.warm_up")
box = fields.inputs["warm_up"]
print(json.dumps({
    "help": {name: " ".join(told(name, "--help").split()) for name in ("teach", "distill", "preflight")},
    "refused": told("preflight", "--dataset", "scenes", "--teacher", "t", "--warm-up", "12", "--json").splitlines(),
    "box": [type(box).__name__, box.label, box.info, box.placeholder, box.elem_id],
    "switch": [type(fields.inputs["sharp"]).__name__, fields.inputs["sharp"].value],
    "command": form.command("one"), "teach": command(teacher, "two"),
    "recipe": dump_recipe(form.recipe()),
    "carried": [[part.warm_up, part.sharp] for part in carried],
    "again": Form.from_recipe(form.recipe())["warm_up"],
    "problems": problems, "advanced": sorted(ADVANCED & {"warm_up", "sharp"}),
    "said": [str(error), FieldError.of(error, "form").problems],
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program says of itself whose config.py has two more fields."""
    copy = tmp_path_factory.mktemp("copy")
    (copy / "segskd").mkdir()
    for path in (ROOT / "segskd").iterdir():
        (copy / "segskd" / path.name).symlink_to(path)
    config = copy / "segskd" / "config.py"
    source = config.read_text(encoding="utf-8")
    config.unlink()
    assert source.count(BEFORE) == 1
    config.write_text(source.replace(BEFORE, ADDED + BEFORE), encoding="utf-8")
    for name in ("ui", "datasets"):
        (copy / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(copy), "COLUMNS": "300"}
    words = [sys.executable, "-c", ASK]
    done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def test_the_command_line_has_a_flag_with_help(found: dict[str, Any]) -> None:
    for command in ("teach", "distill", "preflight"):
        assert "--warm-up INT" in found["help"][command]
        assert "Epochs in which the rate rises (no warm-up)." in found["help"][command]
    assert "--sharp" in found["help"]["distill"]
    assert "--sharp" not in found["help"]["teach"]
    message, answer = found["refused"][-1], json.loads(found["refused"][0])
    assert message == "segskd: --warm-up must be at most 9"
    assert (answer["about"], answer["error"]) == ("optimisation.warm_up", "UserError")


def test_the_page_has_a_field(found: dict[str, Any]) -> None:
    info = "epochs in which the rate rises; no warm-up"
    assert found["box"] == ["Textbox", "Warm-up", info, "no warm-up", "distill-warm-up"]
    assert found["switch"] == ["Checkbox", False]
    assert found["advanced"] == ["sharp", "warm_up"]
    assert found["problems"] == {"warm_up": "must be at most 9"}


def test_the_previews_have_it_and_start_the_same_run(found: dict[str, Any]) -> None:
    assert "--warm-up 3 --sharp" in found["command"]
    assert "--warm-up 3" in found["teach"]
    assert "  warm_up: 3\n  sharp: true\n" in found["recipe"]
    assert found["carried"] == [[3, True], [3, False]]
    assert found["again"] == 3


def test_messages_name_it(found: dict[str, Any]) -> None:
    assert found["said"] == ["--warm-up is long", {"warm_up": "«Warm-up» is long"}]
