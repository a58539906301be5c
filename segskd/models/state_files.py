"""Reads files of weights that other programs wrote, without running code from them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from segskd.errors import UserError

WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "model_state", "weights", "params"),
    *("student", "teacher", "state_dict_ema", "model_ema", "ema"),
)
"""Keys under which training scripts store the weights beside optimizer and epoch. The first one present is used."""
PREFIXES = ("", "module.", "model.", "net.", "network.", "student.", "teacher.")
"""Usual prefixes of a network's own names. They are preferred to others that fit as well, such as an average's."""
COMPILED = "_orig_mod."
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
Weights = dict[str, Tensor]


def read_state(path: Path) -> Weights:
    """The tensors of a state dict by name, from a file of PyTorch or safetensors.

    Raises UserError when the file holds no state dict; the message says what it is instead.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: name one that holds weights")
    _refuse_programs(path)
    state = _unwrapped(_content(path))
    if not state:
        raise UserError(f"{path} holds no weights: give a file as {SAVE} writes it")
    return {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}


def without_prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[Weights, list[str]]:
    """The tensors of a network with the keys `wanted`, by these keys, and the keys of all other tensors.

    In the file, all keys of the network may have a common prefix such as "module.model.". It is found and removed.
    Tensors without it, such as those of a loss, are left out. If no prefix fits, all tensors are returned as they are.
    """
    prefix = _prefix(state, wanted)
    named = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return named, [key for key in state if not key.startswith(prefix)]


def _prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> str:
    """The prefix with which most of `wanted` are in `state`. Of equal ones, those in PREFIXES come first, in order."""
    known = set(wanted)
    starts = ((key, dot.end()) for key in state for dot in re.finditer(r"\.", key))
    candidates = {key[:start] for key, start in starts if key[start:] in known} | {""}

    def fitting(prefix: str) -> tuple[int, int, str]:
        matches = sum(prefix + name in state for name in known)
        return -matches, PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES), prefix

    return min(candidates, key=fitting)


def _refuse_programs(path: Path) -> None:
    """Raises UserError for files that hold a program and not only weights."""
    advice = f"give the weights that it was made from, as {SAVE} writes them"
    if path.suffix == ".onnx":
        raise UserError(f"{path} is an ONNX file, whose layers don't keep their names: {advice}")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript program, which can't be cut into stages: {advice}")
    if path.suffix == ".pt2" or any(name.endswith("archive_format") for name in names):
        raise UserError(f"{path} is an exported program, which can't be cut into stages: {advice}")


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _more_than_tensors(path, str(error)) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is damaged, or no file of weights: {SAVE} writes one") from error


def _more_than_tensors(path: Path, message: str) -> UserError:
    """The error for a file that names Python classes: those of a whole network, or of settings beside its weights."""
    match = re.search(r"Unsupported (?:global|class|operand).*? ([\w.]+\.[\w.]+)", message)
    if match is None:
        return UserError(f"{path} is damaged, or no file of weights: {SAVE} writes one")
    named = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else [match[1]]
    if any(name.startswith("torch.nn.") for name in named) or not zipfile.is_zipfile(path):
        return UserError(
            f"{path} is a whole network, not its weights: reading it would execute code from the file and needs its "
            f"author's classes (such as {match[1]}); where it was made, {SAVE} saves the weights alone"
        )
    return UserError(
        f"{path} holds more than tensors ({', '.join(sorted(named)[:3])}), and reading these would execute code from "
        f"the file: where it was made, {SAVE} saves the weights alone"
    )


def _unwrapped(content: Any) -> Weights:
    """The state dict within what a training script has saved, {} if there is none."""
    if not isinstance(content, Mapping):
        return {}
    inner = next((state for name in WRAPPERS if (state := _unwrapped(content.get(name)))), None)
    return inner or {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
