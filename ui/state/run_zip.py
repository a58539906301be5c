"""A run as one zip, without the state of its training."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from pathlib import Path

from segskd.files import writing
from segskd.runs import Run

FILES = ("recipe.yaml", "subset.txt", "events.jsonl", "teacher.json", "result.json", "log.txt", "note.txt")
MODEL = ("config.json", "model.safetensors")
FOLDERS = ("student", "previews")


def write_zip(run: Run, target: Path) -> None:
    """Writes the run's files into the zip `target`, below a folder of the run's name.

    The run may train meanwhile. Files that it deletes or has not finished are left out. Raises UserError if the zip
    can't be written.
    """
    with (
        writing(target),
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive,
    ):
        for path in _files(run.path):
            with suppress(FileNotFoundError):
                archive.write(path, Path(run.name) / path.relative_to(run.path))


def _files(folder: Path) -> list[Path]:
    named = [folder / name for name in (*FILES, *MODEL)]
    inside = [path for name in FOLDERS for path in sorted((folder / name).rglob("*"))]
    whole = (path for path in [*named, *inside] if not path.name.startswith("."))
    return [path for path in whole if path.is_file() and not path.is_symlink()]
