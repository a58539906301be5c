"""Components that several tabs use."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from .server_functions import Function, checked_functions

ASSETS = Path(__file__).parent / "assets"
NoticeKind = Literal["problem", "hint", "good"]


def asset(name: str) -> str:
    """The text of a script or style in ui/assets/."""
    return (ASSETS / name).read_text(encoding="utf-8")


def notice(text: str = "", kind: NoticeKind = "problem") -> dict[str, str]:
    """The value of a `Notice`; an empty text hides it."""
    return {"text": text, "kind": kind}


def Notice(text: str = "", kind: NoticeKind = "problem", **arguments: Any) -> gr.HTML:  # noqa: N802 - reads as a component
    """A plain message beside a field. Its text is escaped, so it may hold names that somebody else chose.

    This is a function, since Gradio would write a stub file beside this module for a subclass.
    """
    template = '{{#if value.text}}<div class="notice {{value.kind}}" role="status">{{value.text}}</div>{{/if}}'
    classes = ["notice-place", *arguments.pop("elem_classes", [])]
    value = notice(text, kind)
    return gr.HTML(
        value, html_template=template, js_on_load=None, apply_default_css=False, elem_classes=classes, **arguments
    )


def script_view(
    name: str, scripts: Sequence[str], functions: Sequence[Function], value: Any = None, template: str = ""
) -> gr.HTML:
    """An element that scripts draw, with the id `name`.

    `scripts` are files of ui/assets/, which become one script in this order. `functions` are what it asks the server
    for. `template` is the element's HTML, by default an empty box of the class `name`.
    """
    return gr.HTML(
        value,
        html_template=template or f'<div class="{name}"></div>',
        js_on_load="\n".join(asset(script) for script in scripts),
        server_functions=checked_functions(*functions),
        apply_default_css=False,
        padding=False,
        elem_id=name,
    )


def served_file(component: Any, name: str, write: Callable[[Path], object]) -> str:
    """Lets `write` make a file of that name in Gradio's own cache, and returns its path for the browser.

    Gradio serves files of its cache alone, and deletes old ones.
    """
    folder = Path(component.GRADIO_CACHE) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    write(folder / name)
    return str(folder / name)
