"""Makes packages: a zip with a finished run's network, what it takes to run it without SegSKD, and a certificate."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segskd.callbacks import OnActivity
from segskd.config import Recipe, Size
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.dataset import Pair, list_pairs
from segskd.data.pixels import read_image
from segskd.errors import UserError
from segskd.evaluate.cost import weight_bytes
from segskd.evaluate.predictor import Predictor
from segskd.export.certificate import (
    CERTIFICATE,
    LEAST_SIDE,
    Certificate,
    Difference,
    Package,
    compare,
    evenly,
    failures,
    folder_of,
)
from segskd.export.formats import DEFAULT, ExportInput, Format, Spec, network_bytes
from segskd.export.graph import only_size
from segskd.export.model_card import PACKAGES, model_card, package_info
from segskd.export.quantize import CALIBRATION_IMAGES, Quantized
from segskd.export.reopen import Array, ReopeningProcess
from segskd.export.timing import Latency, measure
from segskd.files import write_whole, writing
from segskd.models.build import describe, load
from segskd.runs import Run
from segskd.standalone import bands, predict
from segskd.subset_file import read_subset_names

REFUSED = "refused"
IMAGE_READER = Path(str(bands.__file__))
TEXTS = (".json", ".yaml", ".md", ".py", ".xml")
ROOM = 4
"""How many times the weights' bytes an export needs on the disk: the network in float, the network as exported, the
zip, and temporary files of a runtime."""


def package(run: Run, spec: Spec | None = None, out: Path | None = None, report: OnActivity | None = None) -> Package:
    """Writes RUN-SPEC.zip and certificate.json into `out`, by default the run's exports/SPEC/.

    Before the zip appears, a new process opens its network by the package's own predict.py, and the network must keep
    the limits of its format. A zip that exceeds them is put into refused/ with its certificate. `report` is called
    with what is being done. Raises UserError when a limit is exceeded, when the run is not finished, when the format
    can't take the network, when a Python package is not installed, and when a file is missing.
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
        made = Package(out / archive.name, _with_zip(certificate, archive))
        if not made.certificate.holds:
            _refuse(archive, made, out / REFUSED)
        _put(archive, made)
    if out == folder_of(run, spec):
        for old in set(out.glob("*.zip")) - {made.path}:  # made before the run was renamed
            old.unlink()
    return made


class _Work:
    """One export: what it is made from, and the steps that lead to its certificate."""

    def __init__(self, run: Run, spec: Spec, report: OnActivity) -> None:
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
        self.only = only_size(self.checkpoint.model, size) if spec.kind.traced else None
        _check_bits(spec, self.card, self.pairs)

    def make(self, files: Path) -> Certificate:
        """Writes what goes into the zip into the new folder `files`. The certificate has no figures of the zip yet."""
        self.report(f"writing {self.spec.name}", 0, None)
        with writing(files):
            files.mkdir()
            quantized = self._write_network(files)
            (files / "predict.py").write_text(predict_program(self.spec.kind), encoding="utf-8")
            shutil.copyfile(IMAGE_READER, files / IMAGE_READER.name)
            shutil.copyfile(self.run.path / "recipe.yaml", files / "recipe.yaml")
            (files / "result.json").write_text(_json(self.result), encoding="utf-8")
        with ReopeningProcess(files) as reopened:
            difference = self._compare(reopened)
            latency = self._time(reopened)
        made = self._certificate(difference, latency, network_bytes(self.spec, files), quantized)
        with writing(files):
            (files / CERTIFICATE).write_text(_json(made.as_dict()), encoding="utf-8")
            (files / "README.md").write_text(model_card(self.card, self.result, made), encoding="utf-8")
        return made

    def _write_network(self, files: Path) -> Quantized | None:
        model = self.checkpoint.model
        info = package_info(self.spec, model, self.card, self.recipe, self.result, self.only)
        (files / "card.json").write_text(_json(info), encoding="utf-8")
        given = ExportInput(self.spec, model, self.card, info, self.run.model_folder, self._calibration, self.only)
        return self.spec.kind.write(given, files)

    def _calibration(self) -> list[Array]:
        """Inputs of the network from images that the run was trained on."""
        subset = read_subset_names(self.run)
        pairs = {pair.name: pair for pair in list_pairs(self.card, self.data, "train")}
        wanted = [pairs[name] for name in subset.train if name in pairs] if subset else []
        return [self._input(pair) for pair in evenly(wanted or list(pairs.values()), CALIBRATION_IMAGES)]

    def _input(self, pair: Pair) -> Array:
        view, image = self.checkpoint.view, read_image(pair.image, self.card)
        return (view.resized(image) if self.spec.pixels else view.image_only(image).numpy())[None]

    def _compare(self, reopened: ReopeningProcess) -> Difference:
        def report(done: int, total: int) -> None:
            self.report("comparing with the checkpoint", done, total)

        return compare(reopened, self.checkpoint, self.pairs, self.spec.pixels, self.only, report)

    def _time(self, reopened: ReopeningProcess) -> Latency:
        self.report("timing", 0, None)
        given, size = self._input(self.pairs[0]), self.checkpoint.view.padded
        latency = measure(self.teacher, self.checkpoint.model, reopened, given, size)
        return replace(latency, no_teacher=self.no_teacher)

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


def predict_program(kind: Format) -> str:
    """The source of predict.py in packages of this kind: standalone/predict.py with the kind's own `network`."""
    head = "def network(folder, threads=0):\n"
    body = inspect.getsource(kind.network).partition(":\n")[2]
    return inspect.getsource(predict).replace(inspect.getsource(predict.network), head + body)


def _teacher(recipe: Recipe) -> tuple[nn.Module | None, str | None]:
    """The teacher, which is timed beside the student; or why it can't be loaded, which doesn't stop the export."""
    if recipe.teacher is None:
        return None, None
    try:
        return load(recipe.teacher).to(memory_format=torch.channels_last), None
    except UserError as error:
        return None, str(error)


def _check_size(spec: Spec, size: Size) -> None:
    """Raises UserError where a traced format can't take images as small as the run's."""
    if spec.kind.traced and min(size) < LEAST_SIDE:
        raise UserError(
            f"images of {size[0]}x{size[1]} are too small for {spec.format}, whose least side is {LEAST_SIDE}: "
            f"take --format {DEFAULT}"
        )


def _check_bits(spec: Spec, card: Card, pairs: Sequence[Pair]) -> None:
    """Raises UserError where `spec` takes uint8 and an image of `pairs` has other pixels."""
    deep = spec.pixels and next((pair for pair in pairs if read_image(pair.image, card).dtype != np.uint8), None)
    if deep:
        raise UserError(
            f"--pixels takes images with 8 bits a channel, but {deep.image} has more, or its card sets white: "
            "leave --pixels out"
        )


def _check_room(out: Path, needed: int) -> None:
    """Raises UserError where less than `needed` bytes are free. Not every library reports a full disk clearly."""
    there = next(place for place in (out, *out.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(f"{out} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed: free some space")


def _finished(run: Run) -> dict[str, Any]:
    """The run's result.json. Raises UserError, which says how far the run is, when it is not finished."""
    result = run.read_json("result.json")
    if result is not None:
        return dict(result)
    progress = run.progress()
    far = f", {progress.phases_done} of {len(progress.phases)} phases are done" if progress.phases else ""
    mend = "wait for its end" if run.is_alive() else f"'python -m segskd resume {run.name}' goes on"
    raise UserError(f"run {run.name} is not finished ({run.status()}{far}): {mend}, then export it")


def _zip(files: Path) -> Path:
    """Writes the folder as a zip beside it. All entries have the same date, so equal files give equal bytes."""
    target = files.with_name(f"{files.name}.zip")
    with writing(target), zipfile.ZipFile(target, "w") as archive:
        for file in sorted(files.iterdir()):
            entry = zipfile.ZipInfo(f"{files.name}/{file.name}")
            entry.compress_type = zipfile.ZIP_DEFLATED if file.suffix in TEXTS else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as inside, file.open("rb") as source:
                shutil.copyfileobj(source, inside)
    return target


def _with_zip(certificate: Certificate, archive: Path) -> Certificate:
    """Adds the zip's name, bytes and checksum. Raises UserError when the disk returns other bytes than were written."""
    with zipfile.ZipFile(archive) as content:
        if damaged := content.testzip():
            raise UserError(f"{archive}: its file {damaged} is damaged: check the disk, and export again")
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return replace(certificate, file=archive.name, bytes=archive.stat().st_size, sha256=digest)


def _put(archive: Path, made: Package) -> None:
    """Moves the zip to its place, then writes its certificate: a certificate is never there without its zip."""
    out = made.path.parent
    with writing(out):
        (out / CERTIFICATE).unlink(missing_ok=True)
        os.replace(archive, made.path)
    write_whole(out / CERTIFICATE, _json(made.certificate.as_dict()).encode())


def _refuse(archive: Path, made: Package, aside: Path) -> None:
    with writing(aside):
        aside.mkdir(exist_ok=True)
    _put(archive, Package(aside / archive.name, made.certificate))
    raise UserError(f"{archive.name} is refused: {'; '.join(made.certificate.failures)}. It is kept in {aside}")


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"
