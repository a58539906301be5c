"""The last lines of a run's log."""

from __future__ import annotations

from pathlib import Path

CHUNK = 64 * 1024
MOST_BYTES = 512 * 1024
LINES = 200


def tail(path: Path, lines: int = LINES) -> list[str]:
    """The last lines of a text file, MOST_BYTES at most; an empty list if there is no such file."""
    try:
        with path.open("rb") as file:
            start = file.seek(0, 2)
            content = b""
            while start > 0 and content.count(b"\n") <= lines and len(content) < MOST_BYTES:
                step = min(CHUNK, start)
                start -= step
                file.seek(start)
                content = file.read(step) + content
    except FileNotFoundError:
        return []
    found = content.decode("utf-8", errors="replace").split("\n")
    whole = found if start == 0 else found[1:]  # the first line is incomplete
    return (whole[:-1] if whole and whole[-1] == "" else whole)[-lines:]
