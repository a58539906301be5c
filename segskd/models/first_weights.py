"""First weights of a network from a file or another network: matched by name, or by order where all shapes agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from segskd.config import named
from segskd.errors import UserError
from segskd.models.build import load
from segskd.models.state_files import read_state, without_prefix

LEAST = 0.5
"""The least share of a network's values that must fit, so that a file of another network is not taken unseen."""
TIMM = "model."
"""The prefix of the names in segmentation_models_pytorch's wrapper of a timm network."""
SHOWN = 3
ROLES = {"weight", "bias", "running_mean", "running_var"}
"""The last parts of names that say what a tensor is."""


@dataclass(frozen=True)
class Fit:
    """Which tensors of a network were given weights. `share` is that of the network's values, from 0 to 1."""

    fitted: int
    total: int
    share: float
    by_order: bool
    left: tuple[str, ...]

    def __str__(self) -> str:
        how = "by order" if self.by_order else "by name"
        more = f" and {len(self.left) - SHOWN} more" if len(self.left) > SHOWN else ""
        left = f"; without weights: {', '.join(self.left[:SHOWN])}{more}" if self.left else ""
        return f"{self.fitted} of {self.total} tensors ({100 * self.share:.0f} % of the values) fit {how}{left}"


def is_file(weights: str) -> bool:
    """Whether `weights` names a file, and not pretrained weights of a library, such as imagenet."""
    place = Path(weights).expanduser()
    return place.is_file() or len(place.parts) > 1 or bool(place.suffix)


def load_encoder(model: nn.Module, place: str, partly: bool = False) -> Fit:
    """Gives the encoder of a network the weights in a file of PyTorch or safetensors.

    The file may be timm's, torchvision's or segmentation_models_pytorch's. A first convolution for another number of
    channels is changed as timm does it. Raises UserError when fewer than half of the encoder's values fit, unless
    `partly`, and when none does.
    """
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    own = _numbers(encoder.state_dict())
    wrapped = all(name.startswith(TIMM) for name in own)
    wanted = {name.removeprefix(TIMM) if wrapped else name: tensor for name, tensor in own.items()}
    given = _numbers(read_state(Path(place).expanduser()))
    by_name, _ = without_prefix(given, wanted)
    _adapt_channels(wanted, by_name)
    return _take(wanted, by_name, given, f"{place} for the encoder", "weights", partly, _is_ordered(place))


def load_network(model: nn.Module, place: str, partly: bool = False) -> Fit:
    """Gives a network the weights of a file, or of the network in a folder, in a run or at a hub id.

    Raises UserError as `load_encoder` does, with the network in place of its encoder.
    """
    wanted, file = _numbers(model.state_dict()), Path(place).expanduser()
    given = _numbers(read_state(file) if file.is_file() else load(place).state_dict())
    by_name, _ = without_prefix(given, wanted)
    return _take(wanted, by_name, given, place, "init", partly, _is_ordered(place))


def _numbers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without whole numbers: counters of batch normalisation, which files of older versions lack."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}


def _take(
    wanted: Mapping[str, Tensor],
    by_name: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    what: str,
    field: str,
    partly: bool,
    ordered: bool,
) -> Fit:
    """Copies what fits into the tensors `wanted`: by name, or by order if fewer than half of the values fit so.

    `ordered` says whether `given` has the order in which a network holds its tensors. A file of safetensors has not.
    """
    fitting = {name: by_name[name] for name, own in wanted.items() if _fits(own, by_name.get(name))}
    total = sum(own.numel() for own in wanted.values())
    share = sum(tensor.numel() for tensor in fitting.values()) / total
    by_order = share < LEAST and ordered and _fits_in_order(wanted, given)
    if by_order:
        fitting, share = dict(zip(wanted, given.values(), strict=False)), 1.0
    left = tuple(name for name in wanted if name not in fitting)
    fit = Fit(len(fitting), len(wanted), share, by_order, left)
    if not fitting or (share < LEAST and not partly):
        advice = f"name another file, or take what fits with {named('partial_weights')}" if fitting else "name another"
        raise UserError(f"{what}: {fit}: {advice}", field)
    with torch.no_grad():
        for name, tensor in fitting.items():
            if not torch.isfinite(tensor).all():
                raise UserError(f"{what}: {name} holds values that are not finite: name another file", field)
            wanted[name].copy_(tensor)
    return fit


def _is_ordered(place: str) -> bool:
    return Path(place).suffix != ".safetensors"


def _fits_in_order(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether each tensor has the shape, and where names say it the role, of the one at the same place."""
    pairs = zip(wanted.items(), given.items(), strict=False)
    fit = [_fits(own, theirs) and _same_role(name, other) for (name, own), (other, theirs) in pairs]
    return len(fit) == len(wanted) and all(fit)


def _same_role(name: str, other: str) -> bool:
    roles = [one.rpartition(".")[2] for one in (name, other)]
    return roles[0] == roles[1] or not ROLES.issuperset(roles)


def _fits(own: Tensor, given: Tensor | None) -> bool:
    return given is not None and own.shape == given.shape


def _adapt_channels(wanted: Mapping[str, Tensor], given: dict[str, Tensor]) -> None:
    """Changes weights that differ in their input channels alone, from three as images have, as timm does it."""
    for name, own in wanted.items():
        theirs = given.get(name)
        if theirs is None or own.ndim != 4 or theirs.ndim != 4 or theirs.shape[1] != 3:
            continue
        if own.shape[1] != 3 and (own.shape[0], *own.shape[2:]) == (theirs.shape[0], *theirs.shape[2:]):
            given[name] = adapt_input_conv(own.shape[1], theirs)
