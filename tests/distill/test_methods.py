"""Methods as lists of phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from segskd.distill.methods import default_epochs, plan
from segskd.errors import UserError

STAGES = [*(f"encoder.{i}" for i in range(5)), *(f"decoder.{i}" for i in range(5)), "head"]


def test_stagewise_trains_one_stage_a_phase_and_the_head_on_labels(recipe: Callable[..., Any]) -> None:
    phases = plan(recipe(optimisation={"epochs": 7}), STAGES, STAGES, images=12)
    assert [phase.name for phase in phases] == STAGES
    assert all(phase.trained == (phase.name,) and phase.epochs == 7 for phase in phases)
    assert [dict(phase.taps) for phase in phases[:-1]] == [{name: 1.0} for name in STAGES[:-1]]
    assert [phase.labels for phase in phases] == [0.0] * 10 + [1.0]
    assert not phases[-1].taps


def test_supervised_gets_the_image_passes_of_all_stages(recipe: Callable[..., Any]) -> None:
    (phase,) = plan(recipe(method="supervised", optimisation={"epochs": 7}), None, STAGES, images=12)
    assert phase.epochs == 7 * 11
    assert phase.trained == tuple(STAGES)
    assert phase.labels == 1.0


def test_teaching_takes_the_epochs_as_they_are(recipe: Callable[..., Any]) -> None:
    teaching = recipe(optimisation={"epochs": 7}).model_copy(update={"kind": "teach", "teacher": None})
    (phase,) = plan(teaching, None, STAGES, images=12)
    assert phase.epochs == 7


def test_an_unknown_method_names_the_known_ones(recipe: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"no method 'magic'.*stagewise, supervised"):
        plan(recipe(method="magic"), STAGES, STAGES, images=12)


def test_a_teacher_with_fewer_blocks_is_refused(recipe: Callable[..., Any]) -> None:
    shallow = [name for name in STAGES if name not in ("encoder.4", "decoder.4")]
    with pytest.raises(UserError, match=r"no stage decoder\.4, encoder\.4"):
        plan(recipe(), shallow, STAGES, images=12)


def test_small_subsets_get_more_epochs() -> None:
    assert default_epochs(1000) == default_epochs(300)
    assert default_epochs(36) > default_epochs(367)
