"""Stages: in turn they are the network, and a frozen one stands still."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from segskd.errors import UserError
from segskd.models.build import create
from segskd.models.cut import cut
from segskd.models.stages import IMAGE, StagedNetwork, copy_matching, feature_shapes, freeze, meta_copy, set_trained

SIZES = [(64, 96), (96, 64), (72, 100), (45, 61)]
NAMES = [f"encoder.{i}" for i in range(5)] + [f"decoder.{i}" for i in range(5)] + ["head"]


def make(encoder: str) -> nn.Module:
    """A U-Net whose residual branches all count: timm starts them at zero."""
    torch.manual_seed(0)
    model = create("unet", encoder, 4)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0)
    return model


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module", params=["resnet10", "resnet18", "resnet34", "resnet50", "tu-resnet34"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param)


class TestEveryEncoder:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_stages_in_turn_are_the_networks_own_forward(
        self, model: nn.Module, size: tuple[int, int], training: bool
    ) -> None:
        model.train(training)
        before = statistics(model)
        image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            whole = model(image)
            after_whole = statistics(model)
            model.load_state_dict(before, strict=False)
            staged = cut(model).logits(image)
        assert torch.equal(staged, whole)
        assert same(statistics(model), after_whole)
        assert same(before, after_whole) is not training

    def test_the_eleven_names(self, model: nn.Module) -> None:
        network = cut(model)
        assert network.names == NAMES
        assert [network.index(name) for name in NAMES] == list(range(11))

    def test_every_tensor_belongs_to_one_stage(self, model: nn.Module) -> None:
        owners = Counter(
            id(tensor) for stage in cut(model).stages.values() for tensor in (*stage.parameters(), *stage.buffers())
        )
        assert owners == Counter(id(tensor) for tensor in (*model.parameters(), *model.buffers()))
        assert set(owners.values()) == {1}

    @pytest.mark.parametrize("size", SIZES[1:])
    def test_feature_shapes_are_the_real_ones(self, model: nn.Module, size: tuple[int, int]) -> None:
        network = cut(model.eval())
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            features = network.run({IMAGE: image}, size)
        expected = {IMAGE: (3, *size)} | {name: tuple(feature.shape[1:]) for name, feature in features.items()}
        assert feature_shapes(network, size) == expected


@pytest.fixture
def small() -> nn.Module:
    return make("resnet10")


def test_feature_shapes_by_hand(small: nn.Module) -> None:
    shapes = feature_shapes(cut(small), (64, 96))
    assert shapes["encoder.0"] == (64, 32, 48)
    assert shapes["encoder.1"] == (64, 16, 24)
    assert shapes["encoder.4"] == (512, 2, 3)
    assert shapes["decoder.0"] == (256, 4, 6)
    assert shapes["decoder.4"] == (16, 64, 96)
    assert shapes["head"] == (4, 64, 96)


def test_a_ghost_asks_no_other_process() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4))
    on_meta = meta_copy(convert_sync_batchnorm(network))
    assert [type(layer) for layer in on_meta] == [nn.Conv2d, nn.BatchNorm2d, BatchNormAct2d]
    assert on_meta(torch.empty(2, 3, 5, 7, device="meta")).shape == (2, 4, 5, 7)


def test_a_ghost_has_no_storage_and_leaves_its_model_alone(small: nn.Module) -> None:
    before = state(small)
    assert {tensor.device.type for tensor in meta_copy(small).state_dict().values()} == {"meta"}
    assert small.training
    feature_shapes(cut(small), (64, 96))
    assert small.training
    assert same(state(small), before)


def test_what_a_stage_takes_in(small: nn.Module) -> None:
    network = cut(small)
    taken = [network.sources(i) for i in range(11)]
    assert taken[:2] == [[IMAGE], ["encoder.0"]]
    assert taken[5] == ["encoder.4", "encoder.3"]
    assert taken[8] == ["decoder.2", "encoder.0"]
    assert taken[9:] == [["decoder.3"], ["decoder.4"]]


def test_the_first_feature_is_after_the_relu(small: nn.Module) -> None:
    with torch.no_grad():
        feature = cut(small).run({IMAGE: torch.randn(2, 3, 64, 96)}, (64, 96), last=0)["encoder.0"]
    assert feature.min() == 0
    assert feature.max() > 0


def test_run_goes_on_from_features(small: nn.Module) -> None:
    network, image = cut(small.eval()), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = network.run({IMAGE: image}, (64, 96))
        early = network.run({IMAGE: image}, (64, 96), last=6)
        assert list(early) == NAMES[:7]
        needed = {name: early[name] for name in ("decoder.1", "encoder.1", "encoder.0")}
        late = network.run(needed, (64, 96), first=7, last=9)
    assert list(late) == NAMES[7:10]
    assert torch.equal(late["decoder.4"], features["decoder.4"])


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_shallower_networks(encoder: str, depth: int) -> None:
    torch.manual_seed(0)
    channels = (64, 32, 16, 8)[:depth]
    unet = smp.Unet(encoder, encoder_depth=depth, decoder_channels=channels, encoder_weights=None, classes=2).eval()
    network = cut(unet)
    assert network.names == [f"{part}.{i}" for part in ("encoder", "decoder") for i in range(depth)] + ["head"]
    image = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        assert torch.equal(network.logits(image), unet(image))


@pytest.mark.parametrize("changes", [{"decoder_attention_type": "scse"}, {"decoder_interpolation": "bilinear"}])
def test_other_decoders(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = smp.Unet("resnet18", encoder_weights=None, classes=2, **changes).eval()
    image = torch.randn(1, 3, 45, 61)
    with torch.no_grad():
        assert torch.equal(cut(unet).logits(image), unet(image))


def test_networks_that_cannot_be_cut() -> None:
    with torch.device("meta"):
        classifies = smp.Unet("resnet18", encoder_weights=None, aux_params={"classes": 2})
    with pytest.raises(UserError, match="a network with a classification head"):
        cut(classifies)
    with pytest.raises(UserError, match="Sequential has no encoder, decoder and segmentation head"):
        cut(nn.Sequential(nn.Conv2d(3, 3, 1)))


# -- freezing -----------------------------------------------------------------------------------------


def step(network: StagedNetwork) -> None:
    """One step of SGD with weight decay over everything that has a gradient, in the modes that are set."""
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    trained = [p for p in network.model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=0.1)
    network.logits(image).square().mean().backward()
    optimiser.step()


@pytest.mark.parametrize("trained", [["encoder.0"], ["encoder.3"], ["decoder.1"], ["head"], ["encoder.2", "head"]])
def test_only_trained_stages_move(small: nn.Module, trained: list[str]) -> None:
    network = cut(small.train())
    set_trained(network, trained)
    before = {name: state(stage) for name, stage in network.stages.items()}
    step(network)
    for name, stage in network.stages.items():
        after = state(stage)
        if name not in trained:
            assert same(after, before[name])
            assert all(parameter.grad is None for parameter in stage.parameters())
            continue
        moved = {entry for entry in after if not torch.equal(after[entry], before[name][entry])}
        assert moved == set(after)
        assert name == "head" or any(entry.endswith("running_mean") for entry in moved)


def test_training_another_stage_freezes_the_one_before(small: nn.Module) -> None:
    network = cut(small)
    set_trained(network, ["encoder.0"])
    set_trained(network, ["encoder.1"])
    assert {n for n, s in network.stages.items() if any(p.requires_grad for p in s.parameters())} == {"encoder.1"}
    training = {n for n, s in network.stages.items() if any(m.training for m in s.modules())}
    assert training == {"encoder.1"}


def test_freeze_covers_gradients_and_statistics(small: nn.Module) -> None:
    untouched = copy.deepcopy(small)
    freeze([small])
    with torch.no_grad():
        small(torch.randn(2, 3, 64, 96))
    assert same(state(small), state(untouched))
    assert not any(parameter.requires_grad for parameter in small.parameters())


def test_a_student_can_begin_with_the_teachers_first_blocks() -> None:
    torch.manual_seed(0)
    teacher, student = (cut(create("unet", encoder, 3)) for encoder in ("resnet34", "resnet10"))
    share = copy_matching(student, teacher)
    for name, stage in student.stages.items():
        theirs = teacher.stages[name].state_dict()
        for key, value in stage.state_dict().items():
            assert torch.equal(value, theirs[key]), f"{name} {key}"
    assert share == 1.0


def test_what_has_another_shape_stays_as_it_was() -> None:
    torch.manual_seed(0)
    teacher, student = cut(create("unet", "resnet50", 4)), cut(create("unet", "resnet10", 3))
    before = {name: {k: v.clone() for k, v in s.state_dict().items()} for name, s in student.stages.items()}
    share = copy_matching(student, teacher)
    assert 0 < share < 1
    assert torch.equal(student.stages["encoder.0"].blocks[0].weight, teacher.stages["encoder.0"].blocks[0].weight)
    head = student.stages["head"].state_dict()
    assert all(torch.equal(head[key], before["head"][key]) for key in head)
