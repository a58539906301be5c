"""`ui`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from segskd.folders import CLONE


@dataclass(frozen=True)
class PageFlags:
    """How the page is served."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs --auth."""
    port: int | None = None
    """Port to listen on (7860, or the next free one)."""
    auth: Path | None = None
    """A file of lines NAME:PASSWORD; only these people may use the page."""
    data: Path | None = None
    """Where datasets lie (SEGSKD_DATA, else datasets/)."""
    runs: Path | None = None
    """Where runs lie (SEGSKD_RUNS, else checkpoints/)."""
    open: bool = False
    """Open a browser, too."""


NO_PAGE_FLAGS = PageFlags()


def ui(page: OmitArgPrefixes[PageFlags] = NO_PAGE_FLAGS) -> None:
    """Serve the page, on which a browser does what these commands do; Ctrl-C ends it."""
    # Imported by its name, and only by this command, so that the core doesn't depend on the page.
    if CLONE:
        sys.path.insert(0, str(CLONE))
    import_module("ui.server" if CLONE else "segskd.ui.server").serve(page)


COMMANDS = (ui,)
