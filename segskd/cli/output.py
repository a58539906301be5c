"""What commands print: figures on standard output, all else on standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from segskd.bars import ERR

WIDE = 200
"""Columns where the output is no terminal: a table read by a program or a log is not cut."""


def show(shown: Any, content: dict[str, Any], as_json: bool) -> None:
    """A person's view; with --json that goes to standard error and the object to standard output."""
    console = ERR if as_json else Console(markup=False)
    if not console.is_terminal:
        console = Console(file=console.file, markup=False, width=WIDE)
    console.print(shown, highlight=False, soft_wrap=isinstance(shown, str))
    if as_json:
        print(json.dumps(content), flush=True)


def print_result(result: dict[str, Any], json: bool) -> None:
    from segskd.console import result_table

    if "student" not in result:
        text = f"stopped after {result['after']}; 'python -m segskd resume {Path(result['run']).name}' goes on"
        return show(text, result, json)
    share = result["percent_of_teacher"]
    kept = f", {share:.1f} % of the teacher" if share else ""
    show(result_table(result), result, json)
    ERR.print(f"{result['run']}: {result['seconds']:.0f} s of training{kept}", highlight=False, soft_wrap=True)
    return None
