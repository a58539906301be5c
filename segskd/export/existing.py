"""Exports that were made: where they lie, and what they prove. Imports no runtime."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from segskd.export.certificate import Certificate
from segskd.export.formats import Spec
from segskd.runs import Run

CERTIFICATE = "certificate.json"
_CERTIFICATE = TypeAdapter(Certificate)


@dataclass(frozen=True)
class Package:
    """A zip and what it proves about itself."""

    path: Path
    certificate: Certificate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"package": str(self.path), "certificate": self.certificate.as_dict()}


def folder_of(run: Run, spec: Spec) -> Path:
    """Where an export lies unless told otherwise."""
    return run.path / "exports" / spec.name


def find_package(run: Run, spec: Spec | None = None, out: Path | None = None) -> Package | None:
    """The package that was made last, None when there is none or a file of it is gone."""
    out = out or folder_of(run, spec or Spec())
    try:
        content = json.loads((out / CERTIFICATE).read_text(encoding="utf-8"))
        certificate = _CERTIFICATE.validate_python(Certificate(**content).as_dict())
        path = out / certificate.file
        return Package(path, certificate) if path.stat().st_size == certificate.bytes else None
    except (OSError, ValueError, TypeError):  # gone, cut short, or of another version: export again
        return None
