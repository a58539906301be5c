"""Packages: a finished run's network and all that it takes to use it, in one zip, with a certificate beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from segskd.config import Recipe
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.dataset import list_pairs
from segskd.data.transforms import RESIZE_FILTER, SIZE_MULTIPLE
from segskd.errors import UserError
from segskd.evaluate.predict import Predictor
from segskd.export.certificate import Certificate, Difference, compare_reloaded, sha256
from segskd.export.readme import readme
from segskd.files import write_whole, writing
from segskd.models.build import describe, load
from segskd.runs import Run

FORMAT = "safetensors"
WEIGHTS = "model.safetensors"
CERTIFICATE = "certificate.json"
REFUSED = "refused"
PACKAGES = ("segskd", "torch", "segmentation-models-pytorch", "safetensors")
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Package:
    """A zip and what it proves about itself."""

    path: Path
    certificate: Certificate

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"package": str(self.path), "certificate": self.certificate.as_dict()}


def package(run: Run, out: Path | None = None, report: Report | None = None) -> Package:
    """Writes RUN.zip and certificate.json into `out`, by default the run's exports/safetensors/.

    The zip appears only after its model was loaded back in a fresh process and gave the checkpoint's masks; one
    that doesn't is kept below refused/, with its certificate. `report` hears how many images are compared.
    Raises UserError for that, for a run that is not finished, and for files that are gone.
    """
    result = _finished(run)
    recipe = run.recipe
    data = data_folder(recipe.data.folder)
    card = load_card(recipe.data.card, data)
    pairs = list_pairs(card, data, "val")
    checkpoint = Predictor(load(run.model_folder), card, recipe.data.size)
    out = out or run.path / "exports" / FORMAT
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        made = work / f"{run.name}.zip"
        _write_zip(made, run, card, result)
        difference = compare_reloaded(made, checkpoint, pairs, report)
        found = Package(out / made.name, _certificate(made, run, describe(checkpoint.model), difference))
        if not found.certificate.holds:
            _refuse(made, found, out / REFUSED)
        _put(made, found)
        return found
    finally:
        shutil.rmtree(work, ignore_errors=True)


def find_package(run: Run, out: Path | None = None) -> Package | None:
    """The package that was made last, None when there is none or a file of it is gone."""
    out = out or run.path / "exports" / FORMAT
    try:
        content = json.loads((out / CERTIFICATE).read_text(encoding="utf-8"))
        certificate = Certificate(**{**content, "size": tuple(content["size"])})
        path = out / certificate.file
        return Package(path, certificate) if path.stat().st_size == certificate.bytes else None
    except (OSError, ValueError, TypeError, KeyError):  # gone, cut short, or of another version: export again
        return None


def _finished(run: Run) -> dict[str, Any]:
    """The run's result. Raises UserError that says how far a run without one is."""
    result = run.read_json("result.json")
    if result is not None:
        return dict(result)
    events = run.events()
    total = next((len(event["phases"]) for event in events if event["kind"] == "start"), None)
    done = len({event["phase"] for event in events if event["kind"] == "phase_end"})
    far = f", {done} of {total} phases are done" if total else ""
    mend = "wait for its end" if run.is_alive() else f"'python -m segskd resume {run.name}' goes on"
    raise UserError(f"run {run.name} is not finished ({run.status()}{far}): {mend}, then export it")


def _write_zip(target: Path, run: Run, card: Card, result: dict[str, Any]) -> None:
    """All files below a folder of the run's name, with one date, so that the same run gives the same bytes."""
    name = run.name
    config = json.loads((run.model_folder / "config.json").read_text(encoding="utf-8"))
    texts = {
        # the weights are all there: whoever loads them must not fetch an encoder's from a hub
        "config.json": _json({**config, "encoder_weights": None}),
        "card.json": _json(card_json(card, run.recipe)),
        "result.json": _json(result),
        "recipe.yaml": (run.path / "recipe.yaml").read_text(encoding="utf-8"),
        "README.md": readme(card, result, name),
    }
    with writing(target), zipfile.ZipFile(target, "w") as archive:
        for file, text in texts.items():
            archive.writestr(zipfile.ZipInfo(f"{name}/{file}"), text, zipfile.ZIP_DEFLATED)
        weights = zipfile.ZipInfo(f"{name}/{WEIGHTS}")
        with archive.open(weights, "w", force_zip64=True) as inside, (run.model_folder / WEIGHTS).open("rb") as source:
            shutil.copyfileobj(source, inside)


def card_json(card: Card, recipe: Recipe) -> dict[str, Any]:
    """What somebody without SegSKD must know of the data: the classes, and what is done to an image."""
    return {
        "name": card.name,
        "title": card.title,
        "classes": [{"name": entry.name, "color": list(entry.color)} for entry in card.classes],
        "ignore_index": card.ignore_index,
        "mean": list(card.mean),
        "std": list(card.std),
        "size": list(recipe.data.size),
        "size_multiple": SIZE_MULTIPLE,
        "resize": RESIZE_FILTER,
    }


def _certificate(made: Path, run: Run, network: str, difference: Difference) -> Certificate:
    return Certificate(
        file=made.name,
        format=FORMAT,
        run=run.name,
        network=network,
        bytes=made.stat().st_size,
        sha256=sha256(made),
        images=difference.images,
        size=run.recipe.data.size,
        pixels=difference.pixels,
        pixels_differing=difference.differing,
        share_differing=difference.differing / difference.pixels,
        max_logit_difference=difference.logits,
        versions={name: version(name) for name in PACKAGES},
    )


def _put(made: Path, found: Package) -> None:
    """The zip under its name, then its certificate: whoever finds a certificate finds its zip."""
    out = found.path.parent
    with writing(out):
        (out / CERTIFICATE).unlink(missing_ok=True)
        os.replace(made, found.path)
    write_whole(out / CERTIFICATE, _json(found.certificate.as_dict()).encode())


def _refuse(made: Path, found: Package, aside: Path) -> None:
    with writing(aside):
        aside.mkdir(exist_ok=True)
    _put(made, Package(aside / made.name, found.certificate))
    own = found.certificate
    raise UserError(
        f"the package of {own.run} is not offered: {100 * own.share_differing:.4g} % of {own.pixels} pixels differ "
        f"from the checkpoint's on {own.images} images; it is kept in {aside}: export again, and report it "
        "if that doesn't help"
    )


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
