"""Grafts of a run that was trained stage by stage: the student's stages so far, then the teacher's remaining ones.

A stage is frozen while later ones train, so the final student's first stages are the same as when that stage was
finished. Its graft can therefore be made at any later time. Where a joint phase at the end trains all stages and their
adapters, the grafts are those of the student after that phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segskd.config import ENDING_TOGETHER, Device, Recipe, Size
from segskd.data.cards import Card, data_folder, load_card
from segskd.data.pixels import Uint8
from segskd.data.transforms import padded_size, unpad
from segskd.devices import choose_device
from segskd.errors import UserError
from segskd.evaluate.metrics import class_logits
from segskd.models.adapters import Adapters, probe_adapters
from segskd.models.build import load
from segskd.models.cut import cut
from segskd.models.graft import graft_logits
from segskd.models.pairing import paired, shared, unpaired_inputs
from segskd.models.stages import HEAD, IMAGE, StagedNetwork
from segskd.runs import Run


class Grafts:
    """The grafts of a run, one after each finished stage, in fp32 and eval mode."""

    def __init__(
        self,
        student: StagedNetwork,
        teacher: StagedNetwork,
        adapters: Adapters,
        stages: Sequence[str],
        card: Card,
        size: Size,
    ) -> None:
        self.stages = list(stages)
        self.adapters = adapters
        self._student = student
        self._teacher = teacher
        self._card = card
        self._size = size

    @classmethod
    def open(cls, run: Run, device: Device = "auto") -> Grafts:
        """The grafts of a run, whose networks are loaded.

        Raises UserError when the run has no grafts, since no stage is finished or its method is another one, and when a
        file is missing.
        """
        place = torch.device(choose_device(device))
        recipe = run.recipe
        if recipe.teacher is None:
            raise UserError(
                f"run {run.name} has no teacher, so there are no grafts: a graft ends in the teacher's stages"
            )
        card = load_card(recipe.data.card, data_folder(recipe.data.folder))
        models = [load(source).to(place).to(memory_format=torch.channels_last) for source in _sources(run)]
        return cls.of(run, cut(models[0]), cut(models[1]), card)

    @classmethod
    def of(cls, run: Run, student: StagedNetwork, teacher: StagedNetwork, card: Card) -> Grafts:
        """The grafts of a run whose networks are loaded already, on one device. Raises UserError as `open` does."""
        state, size = run.load_state(), run.recipe.data.size
        teacher = paired(teacher, student, padded_size(size))
        stages = trained_stages(run, state, shared(student.names, teacher.names))
        assert state is not None
        _check_same(run, student, state["student"], student.names[: student.index(stages[-1]) + 1])
        compared = [name for name in shared(student.names, teacher.names) if name != HEAD]
        adapters = probe_adapters(student, teacher, compared, padded_size(size))
        try:
            adapters.load_state_dict(state["adapters"])
        except RuntimeError as error:
            raise UserError(
                f"the adapters of run {run.name} don't fit its networks: put its student and teacher back"
            ) from error
        device = next(student.model.parameters()).device
        adapters = adapters.to(device).to(memory_format=torch.channels_last).eval()
        return cls(student, teacher, adapters, stages, card, size)

    @torch.inference_mode()
    def classes(self, image: Tensor) -> Uint8:
        """The masks uint8 (S, H, W) of all grafts at the run's size, for a normalised image (1, C, h, w), padded.

        The mask after the head is the student's own.
        """
        size = (image.shape[-2], image.shape[-1])
        device = next(self._student.model.parameters()).device
        pixels = image.to(device, memory_format=torch.channels_last)
        last = self._student.index(self.stages[-1])
        features = self._student.run({IMAGE: pixels}, size, last=last)
        theirs = self._own_features(pixels, size)
        compared = shared(self._student.names, self._teacher.names)
        grafts = (
            graft_logits(name, features, theirs, self._teacher, self.adapters, compared, size) for name in self.stages
        )
        return np.stack([self._mask(logits) for logits in grafts])

    def _own_features(self, pixels: Tensor, size: Size) -> dict[str, Tensor]:
        """The image, and those features of stages of the teacher without a partner that a graft needs."""
        compared = shared(self._student.names, self._teacher.names)
        wanted = {own for name in self.stages if name != HEAD for own in unpaired_inputs(name, self._teacher, compared)}
        wanted -= {IMAGE}
        last = max((self._teacher.index(name) for name in wanted), default=-1)
        features = self._teacher.run({IMAGE: pixels}, size, last=last) if wanted else {}
        return {IMAGE: pixels, **{name: features[name] for name in wanted}}

    def _mask(self, logits: Tensor) -> Uint8:
        return class_logits(unpad(logits, self._size), self._card)[0].argmax(0).cpu().numpy().astype(np.uint8)


def trained_stages(run: Run, state: dict[str, Any] | None, names: Sequence[str]) -> list[str]:
    """Those of the student's stages `names` after which there is a graft: the run has trained them or began with them.

    A stage that was trained together with a later one is not among them. `state` is what `run.load_state()` returned.
    Raises UserError when the run has trained no stage yet, or doesn't train stage by stage.
    """
    begin = run.recipe.begin
    first = names.index(begin.stage) if begin and begin.stage in names else 0
    phases = [phase["phase"] for phase in state["progress"]["phases"]] if state else []
    if _ends_with_all_stages(run.recipe) and phases:
        if phases[-1] == names[-1] and first < len(names) - 1:  # a branch that trains only the head has no joint phase
            raise UserError(
                f"run {run.name} is in its joint phase, which trains all stages: there are grafts when it ends"
            )
        phases = [name for name in phases if name in names]
    if run.recipe.method == "supervised" or not _in_order(phases, names[first:]):
        raise UserError(
            f"run {run.name} was trained by method '{run.recipe.method}', not stage by stage, so there are no grafts"
        )
    if not phases:
        raise UserError(f"run {run.name} has finished no stage yet: there are grafts from the first one on")
    return [*names[:first], *phases]


def _ends_with_all_stages(recipe: Recipe) -> bool:
    """Whether the run's last phase trains all stages together."""
    by_default = recipe.method in ENDING_TOGETHER
    if by_default and recipe.optimisation.epochs == 1:  # of a single epoch a stage none is left for them
        return False
    return bool(recipe.options.get("joint", by_default))


def _in_order(some: Sequence[str], names: Sequence[str]) -> bool:
    """Whether `some` are among `names` and in the same order."""
    return list(some) == [name for name in names if name in some]


def _check_same(run: Run, student: StagedNetwork, state: dict[str, Tensor], stages: Sequence[str]) -> None:
    """Raises UserError unless the student's trained `stages` have the weights in `state`.

    They have others when the run finished a stage after the student was read and before `state` was.
    """
    trained = {id(tensor) for name in stages for tensor in student.stages[name].state_dict(keep_vars=True).values()}
    for name, tensor in student.model.state_dict(keep_vars=True).items():
        if id(tensor) in trained and not (name in state and torch.equal(tensor.cpu(), state[name])):
            raise UserError(f"the student of run {run.name} is not the one in its state.pt: open the run again")


def _sources(run: Run) -> tuple[str, str]:
    return str(run.model_folder), str(run.recipe.teacher)
