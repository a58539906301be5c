"""Pruning: which channels go, what stays of the answers, and the way over the disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import nn

from segskd.config import Size
from segskd.errors import UserError
from segskd.models import build
from segskd.models.adapters import Adapters, probe_adapters, with_identities
from segskd.models.build import create, describe, load, save
from segskd.models.cut import cut
from segskd.models.pairing import paired, shared
from segskd.models.prune import prune
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, feature_shapes
from segskd.standalone import narrow
from segskd.standalone.narrow import PRUNED

SIZE = (64, 96)


def network(encoder: str = "resnet10", seed: int = 0, arch: str = "unet", size: Size = SIZE) -> StagedNetwork:
    torch.manual_seed(seed)
    model = create(arch, encoder, 4)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, *size))
    return cut(model.eval())


def silence_odd_channels(model: nn.Module) -> None:
    """Odd channels of every layer but the head's are 0, and nobody listens to them."""
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                weight = layer.weight if isinstance(layer, nn.Conv2d) else layer.weight.transpose(0, 1)
                if layer.in_channels > 3:
                    weight[:, 1::2] = 0
                if not name.startswith("segmentation_head"):
                    weight[1::2] = 0
                    if layer.bias is not None:
                        layer.bias[1::2] = 0
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)[1::2] = 0
                layer.bias[1::2] = 0


@pytest.fixture(scope="module")
def pruned() -> StagedNetwork:
    made = network()
    prune(made, network("resnet34"), Adapters(), 0.5, SIZE)
    return made


def test_widths_by_hand(pruned: StagedNetwork) -> None:
    """Half of each, and nowhere fewer than 16."""
    widths = {name: shape[0] for name, shape in feature_shapes(pruned, SIZE).items() if name != IMAGE}
    encoder = {"encoder.0": 32, "encoder.1": 32, "encoder.2": 64, "encoder.3": 128, "encoder.4": 256}
    decoder = {"decoder.0": 128, "decoder.1": 64, "decoder.2": 32, "decoder.3": 16, "decoder.4": 16}
    assert widths == {**encoder, **decoder, HEAD: 4}
    # 3x3 in layer 4: 128 to 256, 256 to 256, and a 1x1 from 128 to 256; two numbers a channel in three norms.
    parameters = sum(parameter.numel() for parameter in pruned.stages["encoder.4"].parameters())
    assert parameters == 9 * (128 * 256 + 256 * 256) + 128 * 256 + 3 * 2 * 256


@pytest.mark.parametrize(("ratio", "width"), [(0.01, 64), (0.25, 48), (0.3, 48), (0.375, 40), (0.9, 16), (0.999, 16)])
def test_widths_are_multiples_of_eight_rounded_up(ratio: float, width: int) -> None:
    made = network()
    prune(made, network("resnet34"), Adapters(), ratio, SIZE)
    assert feature_shapes(made, SIZE)["encoder.0"][0] == width
    assert feature_shapes(made, SIZE)["decoder.4"][0] == 16


def test_channels_that_say_nothing_go_and_the_answers_stay() -> None:
    student, teacher = network(), network("resnet34")
    silence_odd_channels(student.model)
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        before = student.run({IMAGE: image}, SIZE)
        adapters = prune(student, teacher, Adapters(), 0.5, SIZE)
        after = student.run({IMAGE: image}, SIZE)
        assert torch.allclose(after[HEAD], before[HEAD], atol=1e-5)
        for name, feature in after.items():
            # decoder.4 keeps its 16 channels, and there is nothing to adapt.
            assert (adapters.adapt(name, feature) is feature) is (name in ("decoder.4", HEAD))
            assert torch.allclose(adapters.adapt(name, feature), before[name], atol=1e-5), name
    assert float(before[HEAD].abs().max()) > 0.1


def test_adapters_keep_the_columns_of_the_channels_that_stay() -> None:
    student, teacher = network(), network("resnet50")
    silence_odd_channels(student.model)
    names = student.names[:-1]
    old = probe_adapters(student, teacher, names, SIZE)
    columns = {key: adapter.project.weight.detach().clone() for key, adapter in old.items()}  # type: ignore[union-attr]
    with torch.no_grad():
        for adapter in old.values():
            adapter.project.weight[:, 1::2] = 0  # type: ignore[union-attr,index]
    new = prune(student, teacher, old, 0.5, SIZE)
    assert {"encoder_1", "encoder_2", "encoder_3", "encoder_4"} == set(columns) < set(new)
    for key, weight in columns.items():
        assert torch.equal(new[key].project.weight, weight[:, ::2]), key  # type: ignore[union-attr]


def test_it_can_be_trained_as_before(pruned: StagedNetwork) -> None:
    assert all(parameter.requires_grad for parameter in pruned.model.parameters())
    pruned.model.train()
    pruned.logits(torch.randn(2, 3, *SIZE)).sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.model.parameters())
    pruned.model.eval()


def test_saved_and_loaded_it_is_the_same_to_the_bit(pruned: StagedNetwork, tmp_path: Path) -> None:
    save(pruned.model, tmp_path)
    again = load(tmp_path)
    assert describe(again) == "unet:resnet10 pruned by 50 %"
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(image), pruned.model.eval()(image))
    save(again, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_nobody_takes_it_for_the_whole_network(pruned: StagedNetwork, tmp_path: Path) -> None:
    save(pruned.model, tmp_path)
    with pytest.raises(TypeError, match=PRUNED):
        smp.from_pretrained(tmp_path)


def test_weights_of_another_network_are_refused(pruned: StagedNetwork, tmp_path: Path) -> None:
    save(pruned.model, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del weights["segmentation_head.0.bias"]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"segmentation_head\.0\.bias"):
        load(tmp_path)


def test_layers_that_can_not_be_narrowed_are_named() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 4))
    model.config = {}  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="GroupNorm can't be given other channels"):
        narrow.narrow(model, {"0.weight": torch.ones(2), "0.bias": torch.ones(2)}, 0.5)


def test_depthwise_convolutions_and_linear_layers_are_narrowed() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1, groups=2), nn.Flatten(), nn.Linear(12, 6))
    model.config = {}  # type: ignore[assignment]
    weights = {"0.weight": torch.ones(4, 1, 3, 3), "0.bias": torch.zeros(4), "1.weight": torch.ones(6, 2, 1, 1)}
    weights |= {"1.bias": torch.zeros(6), "3.weight": torch.ones(3, 6), "3.bias": torch.zeros(3)}
    narrow.narrow(model, weights, 0.5)
    model.load_state_dict(weights)
    # Nine ones, two inputs a group, six features: 9 · 2 · 6 for a picture of ones.
    assert model(torch.ones(1, 4, 3, 3)).tolist() == [[108.0, 108.0, 108.0]]


@pytest.mark.parametrize("encoder", ["resnext50_32x4d", "tu-seresnet18"])
def test_grouped_convolutions_and_gates(encoder: str, tmp_path: Path) -> None:
    made = network(encoder)
    prune(made, network(encoder), Adapters(), 0.5, SIZE)
    save(made.model, tmp_path)
    again = load(tmp_path)
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(image), made.model(image))
    assert feature_shapes(cut(again), SIZE)["encoder.0"][0] == 32


@pytest.mark.parametrize(
    ("arch", "encoder", "layer", "width"),
    [
        ("linknet", "resnet18", "decoder.blocks.0.block.1.0", 64),  # of 128, a transposed convolution
        ("deeplabv3plus", "mobilenet_v2", "decoder.aspp.1.1", 128),  # of 256: its channels are read beside others
        ("upernet", "resnet10", "decoder.fpn_lateral_blocks.0.conv_norm_relu.0", 128),  # of 256, behind a LayerNorm
        ("pan", "resnet10", "encoder.model.layer4.0.conv1", 256),  # of 512, in a network that takes no small image
        ("pspnet", "mobilenet_v2", "decoder.conv.0", 256),  # of 512, before blocks of the encoder that idle
    ],
)
def test_decoders_of_all_kinds(arch: str, encoder: str, layer: str, width: int, tmp_path: Path) -> None:
    size = (128, 128)
    made = network(encoder, arch=arch, size=size)
    silence_odd_channels(made.model)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        before, whole = made.model(image), made.model.get_submodule(layer).out_channels
        prune(made, network("resnet18"), Adapters(), 0.5, size)
        after = made.model.eval()(image)
    assert (whole, made.model.get_submodule(layer).out_channels) == (2 * width, width)
    if arch != "upernet":  # a LayerNorm's mean and variance are those of all channels
        assert torch.allclose(after, before, atol=1e-4 * float(before.abs().max()))
        assert float(before.std()) > 1e-3
    save(made.model, tmp_path)
    with torch.no_grad():
        assert torch.equal(load(tmp_path)(image), after)


def test_attention_is_refused_before_it_takes_all_memory() -> None:
    """A MAnet's decoder multiplies all places with all: following their channels filled 24 GiB."""
    with pytest.raises(UserError, match="this MAnet can't be pruned: it multiplies features with each other"):
        prune(network(arch="manet"), network("resnet18"), Adapters(), 0.5, SIZE)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")  # ConvNeXt's own factors
@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("tu-ghostnet_100", r"would be left with \d+ channels instead of \d+"),
        ("tu-skresnet18", "can't be pruned"),
        ("tu-poolformer_s12", "a GroupNorm1 can't be given other channels"),
        ("mit_b0", "it multiplies features with each other"),
        ("tu-convnext_atto", r"a \w+ can't be given other channels"),
    ],
)
def test_networks_that_would_lose_more_or_break(encoder: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        prune(network(encoder), network(encoder), Adapters(), 0.4, SIZE)


def test_adapters_lie_where_the_student_lies() -> None:
    student = network()
    student.model.to("meta")
    everywhere = with_identities(Adapters(), student, student.names[:-1], SIZE)
    assert len(everywhere) == 10
    assert {parameter.device.type for parameter in everywhere.parameters()} == {"meta"}


def test_a_network_that_can_not_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a node\nof the graph")

    monkeypatch.setattr("torch_pruning.pruner.BasePruner", fail)
    said = r"this Unet can't be pruned: torch-pruning can't follow its layers \('a node\\nof the graph'\)"
    with pytest.raises(UserError, match=said):
        prune(network(), network("resnet34"), Adapters(), 0.5, SIZE)


def test_a_pruned_network_of_a_hub(pruned: StagedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(pruned.model, tmp_path)
    asked = []

    def download(repo: str, file: str) -> str:
        asked.append((repo, file))
        return str(tmp_path / file)

    monkeypatch.setattr(build, "hf_hub_download", download)
    assert describe(load("somebody/small")) == "unet:resnet10 pruned by 50 %"
    assert asked == [("somebody/small", "config.json"), ("somebody/small", "model.safetensors")]
    assert json.loads((tmp_path / "config.json").read_text())[PRUNED] == 0.5


def test_stages_without_a_partner_are_pruned_without_adapters() -> None:
    """A PSPNet's decoder ends at stride 8, where of the student's only decoder.1 does."""
    student = network()
    torch.manual_seed(1)
    teacher = paired(cut(create("pspnet", "resnet18", 4).eval()), student, SIZE)
    names = [name for name in shared(student.names, teacher.names) if name != HEAD]
    assert names == ["encoder.0", "encoder.1", "encoder.2", "decoder.1"]
    adapters = prune(student, teacher, probe_adapters(student, teacher, names, SIZE), 0.5, SIZE)
    assert sorted(adapters) == ["decoder_1", "encoder_0", "encoder_1", "encoder_2"]
    assert feature_shapes(student, SIZE)["encoder.4"][0] == 256
