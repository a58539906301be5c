"""Creates networks by name, loads them from disk or hub, and saves them in segmentation_models_pytorch's format."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from torch import nn

from segskd.config import named
from segskd.errors import UserError
from segskd.files import write_whole
from segskd.models import torchvision_models
from segskd.standalone import narrow
from segskd.standalone.narrow import PRUNED

# The SKD paper's students are timm's ResNet-18 with other numbers of BasicBlocks in its four layers.
STUDENT_LAYERS: dict[str, list[int]] = {
    "resnet10": [1, 1, 1, 1],
    "resnet14": [1, 1, 2, 2],
    "resnet20": [2, 2, 3, 2],
    "resnet26": [3, 3, 3, 3],
}
ARCHITECTURES: dict[str, type[nn.Module]] = dict(smp.MODEL_ARCHITECTURES_MAPPING)
"""Classes of networks by name, such as unet, unetplusplus, linknet, fpn, deeplabv3plus and segformer."""
ANY_SIZE_ARGUMENTS = {"dpt": {"dynamic_img_size": True}}
"""Arguments with which an architecture's encoders take images of any size."""
SNAPSHOTS = "snapshots"
"""A folder beside a teacher's weights, which holds the network earlier in its training in folders 1, 2, …"""
HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
LOAD_ERRORS = (
    OSError,
    KeyError,
    AttributeError,
    TypeError,
    ValueError,
    RuntimeError,
    SafetensorError,
    EOFError,
    pickle.UnpicklingError,
)


def parse_spec(spec: str) -> tuple[str, str]:
    """("unet", "resnet10") from "unet:resnet10". Raises UserError for anything else."""
    arch, colon, encoder = spec.partition(":")
    if arch in torchvision_models.TORCHVISION:
        raise UserError(f"{arch} can only be a teacher: take a student such as unet:resnet10")
    if not colon or not arch or not encoder:
        raise UserError(f"'{spec}' is no network: write ARCH:ENCODER, such as unet:resnet10")
    if arch not in ARCHITECTURES:
        raise UserError(f"'{spec}': there is no architecture '{arch}'; name one of {', '.join(ARCHITECTURES)}")
    return arch, encoder


def create(arch: str, encoder: str, classes: int, weights: str | None = None, channels: int = 3) -> nn.Module:
    """A new network that maps images (N, channels, H, W) to logits (N, classes, H, W).

    `weights` names pretrained weights of the encoder, such as "imagenet", which are downloaded from a hub. Raises
    UserError when there is no such network, or when the weights can't be downloaded.
    """
    arguments: dict[str, Any] = {"encoder_name": encoder, "encoder_weights": weights}
    arguments |= {"in_channels": channels, "classes": classes}
    if encoder in STUDENT_LAYERS:
        if weights:
            raise UserError(f"there are no pretrained weights for {encoder}: leave {named('weights')} out", "weights")
        arguments |= {"encoder_name": "tu-resnet18", "layers": STUDENT_LAYERS[encoder]}
    try:
        return ARCHITECTURES[arch](**arguments, **ANY_SIZE_ARGUMENTS.get(arch, {}))
    except OSError as error:
        raise UserError(f"can't get the weights '{weights}' for {encoder}: {_one_line(error)}") from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        why = _one_line(error) if encoder.partition(".")[0] in encoder_names() else _unknown_encoder(encoder)
        raise UserError(f"can't build {arch}:{encoder}: {why}") from error


def encoder_names() -> list[str]:
    """The names of all encoders: segmentation_models_pytorch's, the SKD paper's, and timm's behind "tu-"."""
    return [*STUDENT_LAYERS, *smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]


def _unknown_encoder(encoder: str) -> str:
    alike = difflib.get_close_matches(encoder, encoder_names(), 4)
    meant = f"did you mean {', '.join(alike)}?" if alike else "timm's encoders are named tu-NAME"
    return f"there is no encoder '{encoder}': {meant}"


def load(place: str | Path) -> nn.Module:
    """The network of a folder with config.json and weights, of a run, or of a hub id, in fp32 and eval mode.

    Weights are safetensors or a pickle that holds nothing but tensors. Raises UserError when there is no such place, or
    no model in it.
    """
    folder = model_folder(place)
    source = str(folder or place)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            model = _load_folder(folder) if folder else _load_from_hub(source)
    except LOAD_ERRORS as error:
        raise UserError(f"{source} can't be loaded as a model: {_one_line(error)}") from error
    return cast(nn.Module, model.float().eval())


def model_folder(place: str | Path) -> Path | None:
    """The folder that holds the model: `place` itself, or the folder student/ in it if `place` is a run.

    None when `place` is no path and may be a hub id. Raises UserError when it is neither.
    """
    path = Path(place).expanduser()
    if path.is_file():
        raise UserError(
            f"{path} is a file, and a model is a folder: 'python -m segskd import {path} --arch unet --encoder "
            "resnet34 --out DIR' makes such a folder, if these are the weights of that network"
        )
    for folder in (path / "student", path):
        if (folder / "config.json").is_file():
            if not any((folder / name).is_file() for name in WEIGHTS_FILES):
                raise UserError(f"{folder} has a config.json but no weights ({' or '.join(WEIGHTS_FILES)})")
            return folder
    if path.exists():
        raise UserError(
            f"{path} is no model: a folder with config.json and model.safetensors is needed, "
            "as segmentation_models_pytorch's save_pretrained writes it"
        )
    if HUB_ID.match(str(place)) and not str(place).startswith("."):
        return None
    raise UserError(f"no model at {path}: name a folder, a run or a hub id")


def snapshot_folders(place: str | Path) -> dict[str, Path]:
    """The folders of a network's snapshots by name, from the earliest to the latest; {} if there are none."""
    folder = model_folder(place)
    folders = [path.parent for path in folder.glob(f"{SNAPSHOTS}/*/config.json")] if folder else []
    numbered = sorted(folders, key=lambda path: (len(path.name), path.name))
    return {f"snapshot-{path.name}": path for path in numbered}


def save(model: nn.Module, folder: Path) -> None:
    """Writes config.json and model.safetensors, each atomically.

    `smp.from_pretrained` and `load` can read them; only `load` can read a pruned network or one of torchvision's.
    Raises UserError when the disk is full or can't be written.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    config = {**cast(Any, model).config, "_model_class": type(model).__name__}
    write_whole(folder / "model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))
    write_whole(folder / "config.json", json.dumps(config, sort_keys=True, indent=2).encode() + b"\n")


def output_classes(model: nn.Module) -> int:
    """The number of the network's output channels."""
    layers = cast(Any, model).segmentation_head.modules()
    return [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)][-1]


def input_channels(model: nn.Module) -> int:
    """The number of channels of the network's images: those of its first convolution, or 3 if it has none."""
    return next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)


def describe(model: nn.Module) -> str:
    """A short name such as unet:resnet34, or unet:resnet10 pruned by 30 %."""
    config: dict[str, Any] = cast(Any, model).config
    if isinstance(model, torchvision_models.TorchvisionModel):
        return str(config["arch"])
    encoder = config.get("encoder_name", "resnet34")
    for name, layers in STUDENT_LAYERS.items():
        if encoder == "tu-resnet18" and config.get("layers") == layers:
            encoder = name
    pruned = f" pruned by {100 * config[PRUNED]:g} %" if PRUNED in config else ""
    return f"{type(model).__name__.lower()}:{encoder}{pruned}"


def digest(model: nn.Module) -> str:
    """The sha256 of the names and values of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _load_folder(folder: Path) -> Any:
    if not (folder / WEIGHTS_FILES[0]).is_file():
        return _load_pickle(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if PRUNED in config:
        return narrow.load(folder)
    if config["_model_class"] == torchvision_models.TorchvisionModel.__name__:
        return torchvision_models.load(folder)
    return smp.from_pretrained(str(folder), encoder_weights=None)


def _load_from_hub(name: str) -> Any:
    config = Path(hf_hub_download(name, "config.json"))
    if PRUNED not in json.loads(config.read_text(encoding="utf-8")):
        return smp.from_pretrained(name, encoder_weights=None)
    hf_hub_download(name, WEIGHTS_FILES[0])
    return narrow.load(config.parent)


def _load_pickle(folder: Path) -> Any:
    """Loads a pickle of tensors from a folder. smp.from_pretrained can do that only from a hub."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = getattr(smp, config.pop("_model_class"))(**(config | {"encoder_weights": None}))
    weights = folder / WEIGHTS_FILES[1]
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{weights} is damaged or holds more than tensors: get the model as safetensors") from error
    model.load_state_dict(state)
    return model


def _one_line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    line = json.dumps(" ".join(str(text).split()), ensure_ascii=False)[1:-1]
    return line if len(line) <= 300 else line[:300] + " …"
