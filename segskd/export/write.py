"""Writes a network as the files of a format."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch import nn

from segskd.config import Size
from segskd.data.cards import Card
from segskd.export import onnx, openvino, torch_export
from segskd.export.formats import FORMATS, Spec
from segskd.export.graph import FromPixels, Logits
from segskd.export.quantize import Quantized, quantize
from segskd.files import writing
from segskd.standalone import narrow

Images = Callable[[], Sequence[npt.NDArray[Any]]]


def write(
    spec: Spec,
    model: nn.Module,
    folder: Path,
    card: Card,
    about: Mapping[str, Any],
    source: Path,
    calibration: Images,
    only: Size | None = None,
) -> Quantized | None:
    """Writes the network's files into `folder`; `source` holds the model as SegSKD keeps it.

    `calibration` gives inputs of the network (1, …) for INT8; `only` is the size of the images where the network takes
    no other. Raises UserError when the format can't take the network, or when the disk is full.
    """
    with writing(folder):
        if spec.format == "safetensors":
            _copy(source, folder)
            return None
        graph = (FromPixels if spec.pixels else Logits)(model, card).eval()
        if spec.format == "pt2":
            torch_export.write_pt2(graph, folder / FORMATS["pt2"].files[0], only)
            return None
        with tempfile.TemporaryDirectory(prefix="segskd-", dir=folder.parent) as scratch:
            plain = Path(scratch) / "model.onnx"
            onnx.write_onnx(graph, plain, about, only)
            return _from_onnx(spec, plain, folder, about, calibration)


def _from_onnx(
    spec: Spec, plain: Path, folder: Path, about: Mapping[str, Any], calibration: Images
) -> Quantized | None:
    target = folder / FORMATS[spec.format].files[0]
    if spec.int8:
        made = quantize(plain, target, calibration(), to_openvino=spec.format == "openvino")
        if spec.format == "onnx":
            onnx.add_metadata(target, {**about, "quantization": asdict(made)})
        return made
    if spec.format == "openvino":
        openvino.write_openvino(plain, target)
    else:
        shutil.move(plain, target)
    return None


def _copy(source: Path, folder: Path) -> None:
    """Weights and config; the weights are all there, so whoever loads them must not fetch an encoder's from a hub."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "encoder_weights": None}, indent=2) + "\n")
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    if narrow.PRUNED in config:
        shutil.copyfile(narrow.__file__, folder / Path(narrow.__file__).name)
