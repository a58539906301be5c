"""Every architecture: its stages are found, and in turn they are the network's own forward."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from segskd.errors import UserError
from segskd.models.build import create, parse_spec
from segskd.models.cut import check_size, cut, kinds
from segskd.models.stages import HEAD, IMAGE, StagedNetwork, feature_shapes, freeze, set_trained

SIZE = (96, 160)
EXACT, PYRAMID, WHOLE = "exact", "pyramid", "one stage"
# Name, how encoder and decoder are cut, strides of the encoder's and of the decoder's features.
FOUND: tuple[tuple[str, tuple[str, str], list[int], list[int]], ...] = (
    ("unet:mobilenet_v2", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:efficientnet-b0", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:vgg11", (EXACT, EXACT), [1, 2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:mit_b0", (EXACT, EXACT), [4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:densenet121", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:xception", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:tu-convnext_atto", (EXACT, EXACT), [4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:tu-mobilenetv3_small_100", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:dpn68", (PYRAMID, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unet:tu-hrnet_w18_small", (PYRAMID, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("unetplusplus:resnet18", (EXACT, WHOLE), [2, 4, 8, 16, 32], [1]),
    ("manet:resnet18", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("linknet:resnet18", (EXACT, EXACT), [2, 4, 8, 16, 32], [16, 8, 4, 2, 1]),
    ("fpn:resnet18", (EXACT, WHOLE), [2, 4, 8, 16, 32], [4]),
    ("fpn:mit_b0", (EXACT, WHOLE), [4, 8, 16, 32], [4]),
    ("pspnet:resnet18", (EXACT, EXACT), [2, 4, 8], [8]),
    ("deeplabv3:resnet18", (EXACT, EXACT), [2, 4, 8, 8, 8], [8]),
    ("deeplabv3plus:resnet18", (EXACT, WHOLE), [2, 4, 8, 16, 16], [4]),
    ("upernet:resnet18", (EXACT, WHOLE), [2, 4, 8, 16, 32], [4]),
    ("segformer:mit_b0", (EXACT, WHOLE), [4, 8, 16, 32], [4]),
    ("dpt:tu-vit_tiny_patch16_224", (PYRAMID, WHOLE), [16, 16, 16, 16], [2]),
)


def made(spec: str) -> nn.Module:
    torch.manual_seed(0)
    return create(*parse_spec(spec), classes=3)


@pytest.mark.parametrize(("spec", "cuts", "encoder", "decoder"), FOUND, ids=[row[0] for row in FOUND])
def test_stages_are_found(spec: str, cuts: tuple[str, str], encoder: list[int], decoder: list[int]) -> None:
    model = made(spec)
    network = cut(model)
    assert kinds(network) == cuts
    shapes = feature_shapes(network, SIZE)
    strides = {name: SIZE[0] // shape[1] for name, shape in shapes.items()}
    assert {name: stride for name, stride in strides.items() if name not in (IMAGE, HEAD)} == {
        **{f"encoder.{place}": stride for place, stride in enumerate(encoder)},
        **{f"decoder.{place}": stride for place, stride in enumerate(decoder)},
    }
    for training in (False, True):
        compare(model, network, training)


def compare(model: nn.Module, network: StagedNetwork, training: bool) -> None:
    """Whole and in stages, from the same weights and the same random numbers."""
    model.train(training)
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found: list[Tensor] = []
    for forward in (model, network.logits):
        model.load_state_dict(before)
        torch.manual_seed(2)
        with torch.no_grad():
            found.append(forward(image))
    assert torch.equal(*found)


@pytest.mark.parametrize("spec", ["unet:mobilenet_v2", "unet:mit_b0", "unet:dpn68", "fpn:resnet18", "linknet:resnet18"])
def test_every_parameter_belongs_to_one_stage(spec: str) -> None:
    model = made(spec)
    owned = [id(parameter) for stage in cut(model).stages.values() for parameter in stage.parameters()]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.parameters())


def test_sides_of_any_length() -> None:
    for spec in ("unet:mobilenet_v2", "unet:vgg11", "unet:mit_b0"):
        model = made(spec).eval()
        image = torch.randn(1, 3, 75, 101)
        with torch.no_grad():
            assert torch.equal(cut(model).logits(image), model(image))


def test_a_level_of_a_pyramid_has_what_reaches_its_feature_and_no_earlier_one() -> None:
    """DPN's second feature is made of conv2, whose two branches meet there; the stem before it belongs to the first."""
    network = cut(made("unet:dpn68"))
    names = {id(parameter): name for name, parameter in network.model.named_parameters()}
    owned = [{names[id(p)] for p in network.stages[f"encoder.{level}"].parameters()} for level in (0, 1)]
    assert owned[0] == {f"encoder.features.conv1_1.{part}" for part in ("conv.weight", "bn.weight", "bn.bias")}
    assert owned[1]
    assert {name.split(".")[2].split("_")[0] for name in owned[1]} == {"conv2"}


def test_a_pyramid_runs_once_for_all_its_levels() -> None:
    network = cut(made("unet:dpn68").eval())
    calls: list[int] = []
    cast(Any, network.model).encoder.register_forward_hook(lambda module, inputs, output: calls.append(1))
    with torch.no_grad():
        network.run({IMAGE: torch.randn(1, 3, *SIZE)}, SIZE)
    assert calls == [1]


@pytest.mark.parametrize("trained", ["encoder.1", "encoder.4", "decoder.0"])
def test_a_level_moves_alone(trained: str) -> None:
    network = cut(made("unet:dpn68"))
    freeze([network.model])
    set_trained(network, [trained])
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    network.run({IMAGE: torch.randn(2, 3, *SIZE)}, SIZE)[trained].square().mean().backward()
    with torch.no_grad():
        for parameter in network.model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad + 0.01
    moved = {name for name, tensor in network.model.state_dict().items() if not torch.equal(tensor, before[name])}
    own = {id(tensor) for tensor in network.stages[trained].state_dict(keep_vars=True).values()}
    expected = {name for name, tensor in network.model.state_dict(keep_vars=True).items() if id(tensor) in own}
    assert moved == expected


def test_copies_keep_the_cut() -> None:
    """A tokens' decoder asks the image again, through the copy's own encoder."""
    network, other = cut(made("dpt:tu-vit_tiny_patch16_224").eval()), made("dpt:tu-vit_tiny_patch16_224").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        image = torch.randn(1, 3, *SIZE)
        assert torch.equal(network.on(other).logits(image), other(image))
    assert network.sources(network.index("decoder.0")) == ["encoder.3", "encoder.2", "encoder.1", "encoder.0", IMAGE]


def test_renamed_stages_refer_to_each_other_by_their_new_names() -> None:
    network = cut(made("linknet:resnet18").eval())
    renamed = network.renamed({"encoder.3": "deep", "decoder.4": "last"})
    assert renamed.sources(renamed.index("decoder.0")) == ["encoder.4", "deep"]
    assert renamed.sources(renamed.index(HEAD)) == ["last"]
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(renamed.logits(image), network.logits(image))


def test_a_size_that_a_network_does_not_take() -> None:
    swin, pan = cut(made("unet:tu-swin_tiny_patch4_window7_224")), cut(made("pan:resnet18"))
    check_size(swin, (224, 224), "student")
    check_size(pan, (128, 128), "student")
    with pytest.raises(UserError, match=r"student doesn't take images of 192x256 \(.*224.*\): take --size 224x224"):
        check_size(swin, (192, 256), "student")
    with pytest.raises(UserError, match=r"teacher t doesn't take images of 96x128 \(.*\): take --size 128x128"):
        check_size(pan, (96, 128), "teacher t")


def test_a_network_of_windows_is_cut_for_all_sizes_that_it_takes() -> None:
    """It refuses the sizes that others are watched at, and takes multiples of its own."""
    model = made("unet:tu-maxvit_nano_rw_256").to("meta").eval()
    network = cut(model)
    for size in ((256, 256), (512, 512), (256, 512)):
        assert network.logits(torch.empty(2, 3, *size, device="meta")).shape == (2, 3, *size)


class Split(nn.Module):
    """Encoder and decoder of a network whose decoder takes its second feature apart by a function of many results."""

    def __init__(self, encodes: bool) -> None:
        super().__init__()
        self.encodes = encodes
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.joint = nn.Conv2d(6, 3, 1)

    def forward(self, x: Any) -> Any:
        if self.encodes:
            half = self.first(x)
            return [x, half, self.second(half)]
        _, half, quarter = x
        part, _ = half.chunk(2, dim=1)
        return self.joint(torch.cat([part, nn.functional.interpolate(quarter, size=half.shape[-2:])], 1))


def test_a_decoder_gets_every_feature_where_not_all_that_it_does_is_seen() -> None:
    model: Any = nn.Module()
    model.encoder, model.decoder = Split(True), Split(False)
    model.segmentation_head = nn.Upsample(scale_factor=2.0)
    network = cut(model)
    assert kinds(network) == (EXACT, WHOLE)
    assert network.sources(network.index("decoder.0")) == ["encoder.1", "encoder.0", IMAGE]
    image = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        expected = model.segmentation_head(model.decoder(model.encoder(image)))
        assert torch.equal(network.logits(image), expected)
