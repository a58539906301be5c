"""Adapters: only where features differ, and then in the teacher's shape."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch

from segskd.models.adapters import Adapter, probe_adapters
from segskd.models.build import create
from segskd.models.cut import cut
from segskd.models.stages import IMAGE, StagedNetwork

SIZE = (64, 96)


@pytest.fixture(scope="module")
def student() -> StagedNetwork:
    torch.manual_seed(0)
    return cut(create("unet", "resnet10", 4).eval())


def test_a_wider_teacher(student: StagedNetwork) -> None:
    teacher = cut(create("unet", "resnet50", 4).eval())
    adapters = probe_adapters(student, teacher, student.names, SIZE)
    # Bottlenecks make layers 1 to 4 four times as wide; the stem, the decoder and the head are alike.
    assert sorted(adapters) == ["encoder_1", "encoder_2", "encoder_3", "encoder_4"]
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        ours, theirs = student.run({IMAGE: image}, SIZE), teacher.run({IMAGE: image}, SIZE)
        for name in student.names:
            adapted = adapters.adapt(name, ours[name])
            assert adapted.shape == theirs[name].shape
            assert (adapted is ours[name]) is (name not in ("encoder.1", "encoder.2", "encoder.3", "encoder.4"))
    assert [module.project.out_channels for module in adapters.of(["head", "encoder.1", "encoder.3"])] == [256, 1024]
    # 1x1 weights and biases: 64·256 + 256 + 128·512 + 512 + 256·1024 + 1024 + 512·2048 + 2048
    assert sum(parameter.numel() for parameter in adapters.parameters()) == 1_396_480


def test_only_the_named_stages(student: StagedNetwork) -> None:
    teacher = cut(create("unet", "resnet50", 4))
    assert list(probe_adapters(student, teacher, ["encoder.0", "encoder.2"], SIZE)) == ["encoder_2"]


def test_an_equal_pair_has_none(student: StagedNetwork) -> None:
    teacher = cut(create("unet", "resnet34", 4))
    adapters = probe_adapters(student, teacher, student.names, SIZE)
    assert len(adapters) == 0
    assert adapters.of(student.names) == []
    assert list(adapters.parameters()) == []


def test_strides_that_differ(student: StagedNetwork) -> None:
    # The same blocks at stride 16 leave a feature of twice the height and width after layer 4.
    teacher = cut(smp.Unet("resnet18", encoder_weights=None, classes=4).eval())
    teacher.model.encoder.make_dilated(16)  # type: ignore[operator,union-attr]
    adapters = probe_adapters(student, teacher, ["encoder.3", "encoder.4"], SIZE)
    assert list(adapters) == ["encoder_4"]
    assert adapters.adapt("encoder.4", torch.randn(2, 512, 2, 3)).shape == (2, 512, 4, 6)


def test_an_adapter_by_hand() -> None:
    adapter = Adapter(2, (1, 2, 2))
    with torch.no_grad():
        adapter.project.weight.copy_(torch.tensor([[[[1.0]], [[10.0]]]]))
        adapter.project.bias.fill_(0.5)  # type: ignore[union-attr]
        feature = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [2.0, 3.0]]]])
        assert adapter(feature).tolist() == [[[[1.5, 12.5], [23.5, 34.5]]]]
        # One pixel spread over four
        assert adapter(feature[..., :1, 1:]).tolist() == [[[[12.5, 12.5], [12.5, 12.5]]]]
