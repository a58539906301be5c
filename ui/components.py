"""Components that several tabs use."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gradio as gr

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

    A function and no subclass, for which Gradio would write a stub file beside this one.
    """
    template = '{{#if value.text}}<div class="notice {{value.kind}}" role="status">{{value.text}}</div>{{/if}}'
    classes = ["notice-place", *arguments.pop("elem_classes", [])]
    value = notice(text, kind)
    return gr.HTML(
        value, html_template=template, js_on_load=None, apply_default_css=False, elem_classes=classes, **arguments
    )


def served_file(component: Any, name: str, write: Callable[[Path], object]) -> str:
    """A file of that name which the browser may fetch: written by `write` into Gradio's own cache.

    Gradio serves nothing else, wherever runs lie; it deletes what has become old.
    """
    folder = Path(component.GRADIO_CACHE) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    write(folder / name)
    return str(folder / name)
