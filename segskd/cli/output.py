"""Printing of results: on standard output, or with --json on standard error beside the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from segskd.bars import ERR

WIDE = 200
"""Columns of output that is not a terminal, so that no table in a log is cut."""


def show(shown: Any, content: dict[str, Any], as_json: bool) -> None:
    """Prints `shown` for a person. With --json it goes to standard error, and `content` to standard output."""
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
    of_teacher = f", {share:.1f} % of the teacher" if share else ""
    show(result_table(result), result, json)
    ERR.print(f"{result['run']}: {result['seconds']:.0f} s of training{of_teacher}", highlight=False, soft_wrap=True)
    return None
