"""What a store holds in each phase, worked out by hand from the U-Net's wiring."""

from __future__ import annotations

import pytest
import torch

from segskd.distill.caching.contents import IMAGE_KEY, MASK_KEY, Key, Planner, graft_inputs, phase_inputs
from segskd.distill.planning.methods import stagewise, supervised
from segskd.distill.planning.phase import Phase, Setting
from segskd.models.build import create
from segskd.models.cut import cut
from segskd.models.pairing import paired, shared
from segskd.models.stages import StagedNetwork


def student(name: str) -> Key:
    return Key("student", name)


def teacher(name: str) -> Key:
    return Key("teacher", name)


@pytest.fixture(scope="module")
def network() -> StagedNetwork:
    return cut(create("unet", "resnet10", 3))


def held(phases: list[Phase], network: StagedNetwork) -> dict[str, set[Key]]:
    needs = [phase_inputs(phase, network) for phase in phases]
    contents = Planner(phases, {"student": network, "teacher": network}).contents(needs)
    return {phase.name: set(keys) for phase, keys in zip(phases, contents, strict=True)}


def test_a_stage_needs_its_inputs_and_the_teachers_feature(network: StagedNetwork) -> None:
    phases = {phase.name: phase for phase in stagewise(Setting(tuple(network.names), 1))}
    assert phase_inputs(phases["encoder.0"], network) == {IMAGE_KEY, teacher("encoder.0")}
    assert phase_inputs(phases["encoder.3"], network) == {student("encoder.2"), teacher("encoder.3")}
    assert phase_inputs(phases["decoder.1"], network) == {
        student("decoder.0"),
        student("encoder.2"),
        teacher("decoder.1"),
    }
    assert phase_inputs(phases["head"], network) == {student("decoder.4"), MASK_KEY}


def test_nothing_is_held_that_no_later_phase_needs(network: StagedNetwork) -> None:
    contents = held(stagewise(Setting(tuple(network.names), 1)), network)
    skips = {side(f"encoder.{i}") for side in (student, teacher) for i in range(3)}
    # encoder.3 trains on encoder.2; the skips of both networks wait for the decoder, the mask for the head
    assert contents["encoder.3"] == {*skips, teacher("encoder.3"), MASK_KEY}
    # decoder.3 takes decoder.2 and encoder.0; the teacher goes on from its decoder.3 without any skip
    assert contents["decoder.3"] == {student("decoder.2"), student("encoder.0"), teacher("decoder.3"), MASK_KEY}
    assert contents["decoder.4"] == {student("decoder.3"), teacher("decoder.4"), MASK_KEY}
    assert contents["head"] == {student("decoder.4"), MASK_KEY}


def test_the_image_goes_once_both_stems_have_seen_it(network: StagedNetwork) -> None:
    contents = held(stagewise(Setting(tuple(network.names), 1)), network)
    assert IMAGE_KEY in contents["encoder.0"]
    assert all(IMAGE_KEY not in keys for name, keys in contents.items() if name != "encoder.0")


def test_a_network_trained_whole_needs_images_and_masks(network: StagedNetwork) -> None:
    assert held(supervised(Setting(tuple(network.names), 1)), network) == {"supervised": {IMAGE_KEY, MASK_KEY}}


def test_a_joint_phase_at_the_end_keeps_the_image_till_then(network: StagedNetwork) -> None:
    joint = Phase("joint", tuple(network.names), 1, labels=1.0)
    contents = held([*stagewise(Setting(tuple(network.names), 1)), joint], network)
    assert all(IMAGE_KEY in keys for keys in contents.values())
    assert contents["joint"] == {IMAGE_KEY, MASK_KEY}


def test_a_graft_needs_the_students_features_that_the_teacher_alone_takes_in() -> None:
    """A DeepLab reads the features of strides 4 and 16. A U-Net's last blocks read those of strides 2, 4 and 8, too."""
    torch.manual_seed(0)
    deeplab, unet = (cut(create(arch, "resnet18", 3)) for arch in ("deeplabv3plus", "unet"))
    partner = paired(unet, deeplab, (96, 128))
    setting = Setting(tuple(deeplab.names), 1, paired=shared(deeplab.names, partner.names))
    phase = next(phase for phase in stagewise(setting) if phase.name == "decoder.0")
    assert phase.trained == ("decoder.0",)
    assert graft_inputs(phase, deeplab, partner, deeplab.names) == {
        *(student(f"encoder.{place}") for place in (0, 1, 4)),
        MASK_KEY,
    }


def test_a_graft_needs_every_skip_that_is_still_to_come(network: StagedNetwork) -> None:
    phases = {phase.name: phase for phase in stagewise(Setting(tuple(network.names), 1))}
    assert graft_inputs(phases["encoder.0"], network, network, network.names) == {IMAGE_KEY, MASK_KEY}
    assert graft_inputs(phases["encoder.4"], network, network, network.names) == {
        *(student(f"encoder.{i}") for i in range(4)),
        MASK_KEY,
    }
    assert graft_inputs(phases["decoder.4"], network, network, network.names) == {student("decoder.3"), MASK_KEY}
