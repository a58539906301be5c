"""Packages: a finished run's network as files that run without SegSKD, in one zip, with a certificate."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segskd.config import Recipe, Size
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import read_image
from segskd.errors import UserError
from segskd.evaluate.cost import weight_bytes
from segskd.evaluate.predict import Predictor
from segskd.export.certificate import LEAST_SIDE, Certificate, Difference, compare, evenly, failures
from segskd.export.existing import CERTIFICATE, Package, folder_of
from segskd.export.formats import Spec, network_bytes
from segskd.export.model_card import model_card
from segskd.export.package_info import PACKAGES, about
from segskd.export.quantize import CALIBRATION_IMAGES, Quantized
from segskd.export.reopen import Array, ReopeningProcess
from segskd.export.timing import Latency, measure
from segskd.export.tracing import only_size
from segskd.export.write import write
from segskd.files import write_whole, writing
from segskd.models.build import describe, load
from segskd.runs import Run
from segskd.standalone import bands, predict
from segskd.subset_file import read_subset_names

REFUSED = "refused"
RUNNER = Path(str(predict.__file__))
READER = Path(str(bands.__file__))
TEXTS = (".json", ".yaml", ".md", ".py", ".xml")
ROOM = 4
"""Times the weights: the network in float and as it is exported, the zip, and what a runtime keeps beside them."""
Report = Callable[[str, int, int | None], None]


def package(run: Run, spec: Spec | None = None, out: Path | None = None, report: Report | None = None) -> Package:
    """Writes RUN-SPEC.zip and certificate.json into `out`, by default the run's exports/SPEC/.

    The zip appears only after its network was opened in a fresh process, by the package's own predict.py, and kept
    within the limits of its format; one that doesn't is kept below refused/, with its certificate. `report` hears
    what is done. Raises UserError for that, for a run that is not finished, for a network that the format can't
    take, for a package that is not installed, and for files that are gone.
    """
    spec = spec or Spec()
    work = _Work(run, spec, report or (lambda *_: None))
    out = out or folder_of(run, spec)
    _check_room(out, ROOM * weight_bytes(work.checkpoint.model))
    with ExitStack() as stack:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".export-", dir=out)))
        files = place / f"{run.name}-{spec.name}"
        certificate = work.make(files)
        archive = _zip(files)
        found = Package(out / archive.name, _weighed(certificate, archive))
        if not found.certificate.holds:
            _refuse(archive, found, out / REFUSED)
        _put(archive, found)
    if out == folder_of(run, spec):
        for old in set(out.glob("*.zip")) - {found.path}:  # of the run's name before
            old.unlink()
    return found


class _Work:
    """One export: what it is made of, and the steps to its certificate."""

    def __init__(self, run: Run, spec: Spec, report: Report) -> None:
        self.run, self.spec, self.report = run, spec, report
        self.result = _finished(run)
        self.versions = spec.versions()
        self.recipe = run.recipe
        self.data = data_folder(self.recipe.data.folder)
        self.card = load_card(self.recipe.data.card, self.data)
        self.pairs = list_pairs(self.card, self.data, "val")
        self.checkpoint = Predictor(load(run.model_folder), self.card, self.recipe.data.size)
        self.teacher, self.no_teacher = _teacher(self.recipe)
        _check_size(spec, self.checkpoint.view.padded)
        size = self.recipe.data.size
        self.only = None if spec.format == "safetensors" else only_size(self.checkpoint.model, size)
        _check_bits(spec, self.card, self.pairs)

    def make(self, files: Path) -> Certificate:
        """Writes all that goes into the zip into the new folder `files`; the certificate doesn't know the zip yet."""
        self.report(f"writing {self.spec.name}", 0, None)
        with writing(files):
            files.mkdir()
            quantized = self._write_network(files)
            for program in (RUNNER, READER):
                shutil.copyfile(program, files / program.name)
            shutil.copyfile(self.run.path / "recipe.yaml", files / "recipe.yaml")
            (files / "result.json").write_text(_json(self.result), encoding="utf-8")
        with ReopeningProcess(files) as fresh:
            difference = self._compare(fresh)
            latency = self._time(fresh)
        made = self._certificate(difference, latency, network_bytes(self.spec, files), quantized)
        with writing(files):
            (files / CERTIFICATE).write_text(_json(made.as_dict()), encoding="utf-8")
            (files / "README.md").write_text(model_card(self.card, self.result, made), encoding="utf-8")
        return made

    def _write_network(self, files: Path) -> Quantized | None:
        model = self.checkpoint.model
        told = about(self.spec, model, self.card, self.recipe, self.result, self.only)
        (files / "card.json").write_text(_json(told), encoding="utf-8")
        return write(self.spec, model, files, self.card, told, self.run.model_folder, self._calibration, self.only)

    def _calibration(self) -> list[Array]:
        """Inputs of the network: the images that the run was trained on."""
        chosen = read_subset_names(self.run)
        pairs = {pair.name: pair for pair in list_pairs(self.card, self.data, "train")}
        wanted = [pairs[name] for name in chosen[0] if name in pairs] if chosen else []
        return [self._input(pair) for pair in evenly(wanted or list(pairs.values()), CALIBRATION_IMAGES)]

    def _input(self, pair: Pair) -> Array:
        view, image = self.checkpoint.view, read_image(pair.image, self.card)
        return (view.resized(image) if self.spec.pixels else view.image_only(image).numpy())[None]

    def _compare(self, fresh: ReopeningProcess) -> Difference:
        def report(done: int, total: int) -> None:
            self.report("comparing with the checkpoint", done, total)

        return compare(fresh, self.checkpoint, self.pairs, self.spec.pixels, self.only, report)

    def _time(self, fresh: ReopeningProcess) -> Latency:
        self.report("timing", 0, None)
        given, size = self._input(self.pairs[0]), self.checkpoint.view.padded
        found = measure(self.teacher, self.checkpoint.model, fresh, given, size)
        return replace(found, no_teacher=self.no_teacher)

    def _certificate(
        self, difference: Difference, latency: Latency, model_bytes: int, quantized: Quantized | None
    ) -> Certificate:
        spec, model = self.spec, self.checkpoint.model
        return Certificate(
            file="",
            bytes=0,
            sha256="",
            format=spec.format,
            precision="int8" if spec.int8 else "float32",
            input="uint8" if spec.pixels else "float32",
            run=self.run.name,
            network=describe(model),
            model_bytes=model_bytes,
            float_bytes=weight_bytes(model),
            images=difference.images,
            sizes=difference.sizes,
            pixels=difference.pixels,
            pixels_differing=difference.differing,
            share_differing=difference.differing / difference.pixels,
            max_logit_difference=difference.largest,
            mean_logit_difference=difference.mean,
            largest_logit=difference.scale,
            miou_before=difference.before,
            miou_after=difference.after,
            latency=latency.as_dict(),
            quantization=asdict(quantized) if quantized else None,
            limits=asdict(spec.limits),
            failures=tuple(failures(difference, model_bytes / weight_bytes(model), spec.limits)),
            versions={**self.versions, **{name: version(name) for name in PACKAGES}},
            only_size=self.only,
        )


def _teacher(recipe: Recipe) -> tuple[nn.Module | None, str | None]:
    """The teacher, to be timed beside the student; or why there is none: the export goes without it."""
    if recipe.teacher is None:
        return None, None
    try:
        return load(recipe.teacher).to(memory_format=torch.channels_last), None
    except UserError as error:
        return None, str(error)


def _check_size(spec: Spec, size: Size) -> None:
    """Raises UserError for images that are smaller than a graph can be traced for."""
    if spec.format != "safetensors" and min(size) < LEAST_SIDE:
        raise UserError(
            f"images of {size[0]}x{size[1]} are too small for {spec.format}, which takes sides of {LEAST_SIDE} on: "
            "take --format safetensors"
        )


def _check_bits(spec: Spec, card: Card, pairs: Sequence[Pair]) -> None:
    """Raises UserError for pixels that don't go into a file that takes uint8."""
    deep = spec.pixels and next((pair for pair in pairs if read_image(pair.image, card).dtype != np.uint8), None)
    if deep:
        raise UserError(
            f"--pixels puts 8 bits of each channel in, and {deep.image} has more, or its card a white of its own: "
            "leave --pixels out"
        )


def _check_room(out: Path, needed: int) -> None:
    """Raises UserError where the disk hasn't room for the files on their way; not all that write them say so well."""
    there = next(place for place in (out, *out.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{out} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed: free some space")


def _finished(run: Run) -> dict[str, Any]:
    """The run's result. Raises UserError that says how far a run without one is."""
    result = run.read_json("result.json")
    if result is not None:
        return dict(result)
    progress = run.progress()
    far = f", {progress.phases_done} of {len(progress.phases)} phases are done" if progress.phases else ""
    mend = "wait for its end" if run.is_alive() else f"'python -m segskd resume {run.name}' goes on"
    raise UserError(f"run {run.name} is not finished ({run.status()}{far}): {mend}, then export it")


def _zip(files: Path) -> Path:
    """A zip beside the folder, all below a folder of its name, with one date: equal files give equal bytes."""
    target = files.with_name(f"{files.name}.zip")
    with writing(target), zipfile.ZipFile(target, "w") as archive:
        for file in sorted(files.iterdir()):
            entry = zipfile.ZipInfo(f"{files.name}/{file.name}")
            entry.compress_type = zipfile.ZIP_DEFLATED if file.suffix in TEXTS else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as inside, file.open("rb") as source:
                shutil.copyfileobj(source, inside)
    return target


def _weighed(certificate: Certificate, archive: Path) -> Certificate:
    """With what the zip weighs. Raises UserError when the disk gives back other bytes than were written to it."""
    with zipfile.ZipFile(archive) as content:
        if damaged := content.testzip():
            raise UserError(f"{archive}: {damaged} is damaged in it: see that the disk is sound, and export again")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return replace(certificate, file=archive.name, bytes=archive.stat().st_size, sha256=digest)


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
    raise UserError(f"{made.name} is not offered: {'; '.join(own.failures)}. It is kept in {aside}")


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
