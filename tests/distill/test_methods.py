"""Methods as lists of phases."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from segskd.distill.planning.losses import soft_loss
from segskd.distill.planning.methods import METHODS, Option, Share, method, method_names, options_of, summary_of
from segskd.distill.planning.phase import TEACHER, Comparison, Phase, Setting
from segskd.distill.planning.plan import plan_phases
from segskd.distill.planning.settle import default_epochs
from segskd.distill.training.module import adapted_stages
from segskd.errors import UserError

STAGES = [*(f"encoder.{i}" for i in range(5)), *(f"decoder.{i}" for i in range(5)), "head"]


def test_stagewise_trains_one_stage_a_phase_and_the_head_on_labels(recipe: Callable[..., Any]) -> None:
    phases = plan_phases(recipe(optimisation={"epochs": 7}), STAGES, STAGES, images=12)
    assert [phase.name for phase in phases] == STAGES
    assert all(phase.trained == (phase.name,) and phase.epochs == 7 for phase in phases)
    assert [phase.compared for phase in phases[:-1]] == [(Comparison((name,), 1.0),) for name in STAGES[:-1]]
    assert [phase.labels for phase in phases] == [0.0] * 10 + [1.0]
    assert not phases[-1].features


def test_supervised_gets_the_image_passes_of_all_stages(recipe: Callable[..., Any]) -> None:
    (phase,) = plan_phases(recipe(method="supervised", optimisation={"epochs": 7}), None, STAGES, images=12)
    assert phase.epochs == 7 * 11
    assert phase.trained == tuple(STAGES)
    assert phase.labels == 1.0


def test_teaching_takes_the_epochs_as_they_are(recipe: Callable[..., Any]) -> None:
    teaching = recipe(optimisation={"epochs": 7}).model_copy(update={"kind": "teach", "teacher": None})
    (phase,) = plan_phases(teaching, None, STAGES, images=12)
    assert phase.epochs == 7


def test_an_unknown_method_names_the_known_ones(recipe: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"no method 'magic'.*stagewise, .*supervised"):
        plan_phases(recipe(method="magic"), STAGES, STAGES, images=12)


def test_a_stage_without_a_partner_trains_with_the_next_that_has_one(recipe: Callable[..., Any]) -> None:
    shallow = [name for name in STAGES if name not in ("encoder.0", "encoder.1", "decoder.4")]
    phases = plan_phases(recipe(optimisation={"epochs": 7}), shallow, STAGES, images=12)
    assert [phase.name for phase in phases] == [name for name in STAGES if name in shallow]
    assert phases[0].trained == ("encoder.0", "encoder.1", "encoder.2")
    assert [comparison.stages for comparison in phases[0].compared] == [("encoder.2",)]
    assert phases[0].epochs == 21
    assert phases[-1].trained == ("decoder.4", "head")
    assert phases[-1].epochs == 14
    assert phases[-1].features == ()


@pytest.mark.parametrize("method", METHODS)
def test_methods_compare_nothing_but_stages_with_a_partner(recipe: Callable[..., Any], method: str) -> None:
    paired = [name for name in STAGES if name not in ("encoder.0", "encoder.2", "decoder.0", "decoder.4")]
    phases = plan_phases(recipe(method=method), paired, STAGES, images=12)
    assert {name for phase in phases for name in phase.features} <= set(paired)
    assert {name for phase in phases for name in phase.trained} == set(STAGES)


def test_small_subsets_get_more_epochs() -> None:
    assert default_epochs(1000) == default_epochs(300)
    assert default_epochs(36) > default_epochs(367)


def planned(recipe: Callable[..., Any], method: str, teachers: tuple[str, ...] = (TEACHER,), **changes: Any) -> Any:
    made = recipe(method=method, optimisation={"epochs": 7}, **changes)
    return plan_phases(made, STAGES, STAGES, images=12, teachers=teachers)


def compared(phase: Phase) -> dict[str, float]:
    return {comparison.name: comparison.weight for comparison in phase.compared}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_same_image_passes(recipe: Callable[..., Any], method: str) -> None:
    for teachers in ((TEACHER,), ("snapshot-1", "snapshot-2", TEACHER)):
        phases = planned(recipe, method, teachers)
        assert sum(phase.epochs for phase in phases) == 7 * 11
        assert len({phase.name for phase in phases}) == len(phases)
        assert {name for phase in phases for name in phase.trained} == set(STAGES)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_names_its_paper(method: str) -> None:
    if method != "supervised":
        assert re.search(r"arXiv \d{4}\.\d{4,5}|CVPR \d{4}|et al\., \d{4}", str(METHODS[method].__doc__))


def test_simultaneous_is_the_mean_of_ten_features_and_the_labels(recipe: Callable[..., Any]) -> None:
    (phase,) = planned(recipe, "simultaneous")
    assert compared(phase) == pytest.approx(dict.fromkeys(STAGES[:-1], 1 / 11))
    assert phase.labels == pytest.approx(1 / 11)


def test_finetuning_follows_the_stages(recipe: Callable[..., Any]) -> None:
    *stages, joint = planned(recipe, "stagewise_finetuned", options={"joint": 0.3, "soft": 0.25, "features": 2.0})
    plain = planned(recipe, "stagewise", options={"joint": 0.3})
    assert stages[:-1] == plain[:10]
    assert (stages[-1].labels, compared(stages[-1])) == (0.75, {"head": 0.25})
    assert (joint.trained, joint.epochs, joint.labels) == (tuple(STAGES), plain[-1].epochs, 0.75)
    assert compared(joint) == pytest.approx({**dict.fromkeys(STAGES[:-1], 2 / 10), "head": 0.25})
    assert [comparison.fades for comparison in joint.compared] == [True] * 10 + [False]
    assert (joint.fresh, joint.alone, stages[-1].alone) == (True, False, True)
    (*_, head) = planned(recipe, "stagewise_finetuned", options={"joint": 0, "soft": 0, "features": 0})
    assert (head.name, head.labels, head.compared) == ("head", 1.0, ())
    once = plan_phases(recipe(method="stagewise_finetuned", optimisation={"epochs": 1}), STAGES, STAGES, images=12)
    assert [phase.name for phase in once] == STAGES  # there is no epoch left for all of them


def test_stagewise_may_end_with_a_share_of_its_epochs_together(recipe: Callable[..., Any]) -> None:
    *stages, joint = planned(recipe, "stagewise", options={"joint": 0.3})
    # 23 of the 77 epochs; the other 54 are shared by eleven stages
    assert [phase.name for phase in stages] == STAGES
    assert sorted(phase.epochs for phase in stages) == [4] + [5] * 10
    assert (joint.name, joint.epochs, joint.trained) == ("joint", 23, tuple(STAGES))
    assert joint.labels == pytest.approx(1 / 11)
    assert compared(joint) == pytest.approx(dict.fromkeys(STAGES[:-1], 1 / 11))
    assert [phase.epochs for phase in planned(recipe, "stagewise", options={"joint": 1.0})] == [1] * 11 + [66]
    assert planned(recipe, "stagewise", options={"joint": 0.001})[-1].epochs == 1
    with pytest.raises(UserError, match=r"\(option joint\) needs at least two epochs a stage"):
        plan_phases(recipe(options={"joint": 0.1}, optimisation={"epochs": 1}), STAGES, STAGES, images=12)


def test_fitnets_takes_two_hints_and_leaves_the_rest_to_the_labels(recipe: Callable[..., Any]) -> None:
    encoder, decoder, rest = planned(recipe, "fitnets")
    assert (encoder.trained, compared(encoder), encoder.epochs) == (tuple(STAGES[:3]), {"encoder.2": 1.0}, 21)
    assert (decoder.trained, compared(decoder), decoder.epochs) == (tuple(STAGES[3:8]), {"decoder.2": 1.0}, 35)
    assert (rest.trained, compared(rest), rest.epochs, rest.labels) == (tuple(STAGES[8:]), {}, 21, 1.0)


def test_hinton_shares_out_between_soft_and_hard_labels(recipe: Callable[..., Any]) -> None:
    (phase,) = planned(recipe, "hinton", options={"soft": 0.75, "temperature": 2.0})
    assert compared(phase) == {"head": 0.75}
    assert phase.labels == 0.25
    student, teacher = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    measured = phase.compared[0].measure([student], [teacher])
    assert measured == soft_loss(student, teacher, temperature=2.0)


def test_blockwise_ends_with_a_fifth_of_its_epochs_together(recipe: Callable[..., Any]) -> None:
    apart, joint = planned(recipe, "blockwise")
    assert (apart.fed_by, apart.epochs, apart.labels) == ("teacher", 62, 1.0)
    assert compared(apart) == dict.fromkeys(STAGES[:-1], 1.0)
    assert (joint.fed_by, joint.epochs) == ("student", 15)
    assert compared(joint) == pytest.approx(dict.fromkeys(STAGES[:-1], 1 / 11))


def test_attention_needs_no_adapters_and_channelwise_does(recipe: Callable[..., Any]) -> None:
    (attention,), (channelwise,) = planned(recipe, "attention"), planned(recipe, "channelwise")
    assert adapted_stages([attention]) == set()
    assert adapted_stages([channelwise]) == set(STAGES[:-1])
    assert attention.labels == channelwise.labels == 1.0


def test_fsp_follows_each_feature_to_the_next(recipe: Callable[..., Any]) -> None:
    (phase,) = planned(recipe, "fsp")
    assert [comparison.stages for comparison in phase.compared] == list(pairwise(STAGES[:-1]))
    assert sum(compared(phase).values()) == pytest.approx(1.0)


def test_hdkd_weighs_later_features_more_and_uses_no_labels(recipe: Callable[..., Any]) -> None:
    (phase,) = planned(recipe, "hdkd", options={"weight": 0.5, "alpha": 2.0})
    weights = compared(phase)
    assert weights.pop("head") == 1.0
    assert weights == {name: 0.5 * (place + 1) ** 2 for place, name in enumerate(STAGES[:-1])}
    assert phase.labels == 0.0


def test_dearkd_lets_go_of_the_teacher_after_the_early_features(recipe: Callable[..., Any]) -> None:
    early, labels = planned(recipe, "dearkd")
    assert (early.trained, early.epochs) == (tuple(STAGES[:3]), 21)
    assert compared(early) == dict.fromkeys(STAGES[:3], 1.0)
    assert (labels.trained, labels.epochs, labels.features) == (tuple(STAGES), 56, ())


def test_multi_teacher_gan_goes_from_snapshot_to_snapshot(recipe: Callable[..., Any]) -> None:
    phases = planned(recipe, "multi_teacher_gan", ("snapshot-1", "snapshot-2", TEACHER))
    names = [phase.name for phase in phases]
    assert names[:4] == ["encoder.0-snapshot-1", "encoder.0-snapshot-2", "encoder.0", "encoder.1-snapshot-1"]
    assert [phase.epochs for phase in phases[:3]] == [3, 2, 2]
    assert [phase.compared[0].teacher for phase in phases[:3]] == ["snapshot-1", "snapshot-2", TEACHER]
    assert all(phase.compared[0].discriminator == 0.01 for phase in phases[:-1])
    assert (names[-1], phases[-1].labels) == ("head", 1.0)


def test_with_fewer_epochs_than_teachers_the_earliest_are_left_out(recipe: Callable[..., Any]) -> None:
    made = recipe(method="multi_teacher_gan", optimisation={"epochs": 2})
    phases = plan_phases(made, STAGES, STAGES, images=12, teachers=("snapshot-1", "snapshot-2", TEACHER))
    assert [phase.name for phase in phases[:2]] == ["encoder.0-snapshot-2", "encoder.0"]


def test_options_of_another_method_are_refused(recipe: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"method hinton has no option 'temp': it has temperature, soft"):
        planned(recipe, "hinton", options={"temp": 2.0})
    with pytest.raises(UserError, match=r"method supervised has no option 'soft': it has none"):
        planned(recipe, "supervised", options={"soft": 0.5})
    with pytest.raises(UserError, match=r"option of method hinton: temperature: must be greater than 0"):
        planned(recipe, "hinton", options={"temperature": 0.0})
    with pytest.raises(UserError, match=r"option of method hdkd: alpha: must be a finite number"):
        planned(recipe, "hdkd", options={"alpha": float("nan")})


def test_a_phase_on_labels_alone_sees_the_labelled_images_as_often_as_all(recipe: Callable[..., Any]) -> None:
    *blocks, head = plan_phases(recipe(optimisation={"epochs": 7}), STAGES, STAGES, images=12, labelled=5)
    assert {phase.epochs for phase in blocks} == {7}
    assert head.epochs == round(7 * 12 / 5)
    (mixed,) = plan_phases(
        recipe(method="simultaneous", optimisation={"epochs": 7}), STAGES, STAGES, images=12, labelled=5
    )
    assert mixed.epochs == 77


def test_without_any_label_the_teachers_answers_stand_in(recipe: Callable[..., Any]) -> None:
    head = plan_phases(recipe(optimisation={"epochs": 7}), STAGES, STAGES, images=12, labelled=0)[-1]
    assert (compared(head), head.labels, head.epochs) == ({"head": 1.0}, 0.0, 7)
    with pytest.raises(UserError, match="only labels to learn from"):
        plan_phases(recipe(method="supervised"), None, STAGES, images=12, labelled=0)


def test_snapshots_are_spread_over_a_teachers_epochs(recipe: Callable[..., Any]) -> None:
    teaching = recipe(optimisation={"epochs": 9}).model_copy(update={"kind": "teach", "teacher": None, "snapshots": 2})
    (phase,) = plan_phases(teaching, None, STAGES, images=12)
    assert phase.snapshots == (3, 6)
    with pytest.raises(UserError, match=r"--snapshots 9 need at least 10 epochs"):
        plan_phases(teaching.model_copy(update={"snapshots": 9}), None, STAGES, images=12)


def test_a_method_is_one_function(recipe: Callable[..., Any]) -> None:
    """Everything else finds it by itself: phases, names, options and their meaning, the page's list."""

    @method
    def half(to: Setting, *, share: Share = 0.5) -> list[Phase]:
        """Half of the epochs on labels, for a test.

        More of it.
        """
        return [Phase("half", to.stages, max(1, int(to.epochs * share)), labels=1.0)]

    try:
        (phase,) = planned(recipe, "half", options={"share": 0.9})
        assert (phase.name, phase.epochs) == ("half", 6)
        assert method_names().endswith(" or half")
        assert summary_of("half") == "Half of the epochs on labels, for a test."
        assert options_of("half") == {"share": Option(0.5, "")}
        with pytest.raises(UserError, match="method half has no option 'temperature': it has share"):
            planned(recipe, "half", options={"temperature": 2.0})
    finally:
        del METHODS["half"]
    with pytest.raises(UserError, match="no method 'half'"):
        planned(recipe, "half")
