"""Files of weights as others write them: read without running code from them, unwrapped, by plain names."""

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
"""Where training scripts keep the weights beside optimizer and epoch; the first of these that is there counts."""
PREFIXES = ("", "module.", "model.", "net.", "network.", "student.", "teacher.")
"""What stands before a network's own names; these come before others that fit as well, such as an average's."""
COMPILED = "_orig_mod."
SAVE = "torch.save(model.state_dict(), 'weights.pth')"
Weights = dict[str, Tensor]


def read_state(path: Path) -> Weights:
    """The tensors of a state dict by name, from PyTorch's or safetensors' file.

    Raises UserError, which says what else the file is.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: name one that holds weights")
    _refuse_programs(path)
    found = _unwrapped(_content(path))
    if not found:
        raise UserError(f"{path} holds no weights: what is needed is the file that {SAVE} writes")
    return {name.replace(COMPILED, ""): tensor for name, tensor in found.items()}


def without_prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[Weights, list[str]]:
    """The tensors by the names that a network with the keys `wanted` gives them, and the keys left out.

    Before these names all keys of the network have one prefix, which may be nested; keys without it are left out,
    such as a loss's own beside a network. Where none fits, all are given as they are.
    """
    prefix = _prefix(state, wanted)
    named = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return named, [key for key in state if not key.startswith(prefix)]


def _prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> str:
    """The one under which most of `wanted` are found; of several PREFIXES come first, in their order."""
    known = set(wanted)
    starts = ((key, dot.end()) for key in state for dot in re.finditer(r"\.", key))
    candidates = {key[:start] for key, start in starts if key[start:] in known} | {""}

    def fitting(prefix: str) -> tuple[int, int, str]:
        found = sum(prefix + name in state for name in known)
        return -found, PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES), prefix

    return min(candidates, key=fitting)


def _refuse_programs(path: Path) -> None:
    """Raises UserError for files that hold a network's computation beside its weights."""
    advice = f"give the weights that it was made from, as {SAVE} writes them"
    if path.suffix == ".onnx":
        raise UserError(f"{path} is an ONNX file, whose layers can't be told apart by name: {advice}")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UserError(f"{path} is a TorchScript program, which holds code to run and no stages to cut: {advice}")
    if path.suffix == ".pt2" or any(name.endswith("archive_format") for name in names):
        raise UserError(f"{path} is an exported program, which has no stages to cut: {advice}")


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
    """Says which classes the file names: those of a whole network, or of settings beside its weights."""
    found = re.search(r"Unsupported (?:global|class|operand).*? ([\w.]+\.[\w.]+)", message)
    if found is None:
        return UserError(f"{path} is damaged, or no file of weights: {SAVE} writes one")
    named = get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else [found[1]]
    if any(name.startswith("torch.nn.") for name in named) or not zipfile.is_zipfile(path):
        return UserError(
            f"{path} is a whole network, not its weights: reading it would execute code from the file and needs its "
            f"author's classes (such as {found[1]}); where it was made, {SAVE} saves the weights alone"
        )
    return UserError(
        f"{path} holds more than tensors ({', '.join(sorted(named)[:3])}), and reading these would execute code from "
        f"the file: where it was made, {SAVE} saves the weights alone"
    )


def _unwrapped(content: Any) -> Weights:
    """The state dict in what a training script has saved; {} where there is none."""
    if not isinstance(content, Mapping):
        return {}
    inner = next((state for name in WRAPPERS if (state := _unwrapped(content.get(name)))), None)
    return inner or {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
