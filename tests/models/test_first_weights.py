"""First weights: files of timm, torchvision and segmentation_models_pytorch, by name and by order; wrong files."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import Tensor

from segskd.errors import UserError
from segskd.models.first_weights import is_file, load_encoder, load_network

Weights = dict[str, Tensor]


def unet(encoder: str, channels: int = 3) -> torch.nn.Module:
    return smp.Unet(encoder, encoder_weights=None, classes=2, in_channels=channels)


def written(path: Path, state: Weights) -> str:
    """The path of a file with the state."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return str(path)


def test_an_encoder_takes_torchvisions_weights(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    model = unet("resnet18")
    fit = load_encoder(model, written(tmp_path / "resnet18.pth", theirs))
    assert (fit.fitted, fit.total, fit.share, fit.by_order) == (100, 100, 1.0, False)  # 20 convolutions, 20 x 4 norms
    assert torch.equal(model.encoder.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])
    assert torch.equal(model.encoder.bn1.running_var, theirs["bn1.running_var"])


def test_an_encoder_takes_timms_weights(tmp_path: Path) -> None:
    theirs = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    model = unet("tu-test_efficientnet")
    fit = load_encoder(model, written(tmp_path / "timm.safetensors", theirs))
    assert (fit.share, fit.by_order, fit.left) == (1.0, False, ())
    assert torch.equal(model.encoder.model.conv_stem.weight, theirs["conv_stem.weight"])


def test_an_encoder_takes_the_encoder_of_a_whole_network(tmp_path: Path) -> None:
    other = unet("tu-test_resnet")
    model = unet("tu-test_resnet")
    fit = load_encoder(model, written(tmp_path / "network.pt", {"state_dict": other.state_dict()}))
    assert fit.share == 1.0
    ours, theirs = (net.encoder.state_dict() for net in (model, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    decoders = [next(net.decoder.parameters()) for net in (model, other)]
    assert not torch.equal(*decoders)


def test_weights_with_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    theirs = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    renamed = {f"_blocks.{number}": tensor for number, tensor in enumerate(theirs.values())}
    model = unet("tu-test_efficientnet")
    fit = load_encoder(model, written(tmp_path / "renamed.pth", renamed))
    assert (fit.share, fit.by_order) == (1.0, True)
    assert torch.equal(model.encoder.model.conv_stem.weight, theirs["conv_stem.weight"])
    assert str(fit) == f"{fit.total} of {fit.total} tensors (100 % of the values) fit by order"


def test_an_order_that_is_not_the_networks_is_refused(tmp_path: Path) -> None:
    """Safetensors sorts by name: a norm's bias comes first there, and has the shape of its weight."""
    theirs = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    renamed = {
        f"b{number:03}.{name.rpartition('.')[2]}": tensor for number, (name, tensor) in enumerate(theirs.items())
    }
    written(tmp_path / "good.pth", renamed)
    assert load_encoder(unet("tu-test_efficientnet"), str(tmp_path / "good.pth")).by_order
    with pytest.raises(UserError, match="0 of 68 tensors"):
        load_encoder(unet("tu-test_efficientnet"), written(tmp_path / "good.safetensors", renamed))
    swapped = {name: tensor for group in _in_fours(renamed) for name, tensor in group}
    with pytest.raises(UserError, match="0 of 68 tensors"):
        load_encoder(unet("tu-test_efficientnet"), written(tmp_path / "swapped.pth", swapped))


def _in_fours(state: Weights) -> list[list[tuple[str, Tensor]]]:
    """The state with each weight and bias of the same shape changed about."""
    items = list(state.items())
    for place in range(len(items) - 1):
        one, other = items[place : place + 2]
        if one[0].endswith("weight") and other[0].endswith("bias") and one[1].shape == other[1].shape:
            items[place : place + 2] = [other, one]
    return [items]


@pytest.mark.parametrize(("channels", "expected"), [(1, 3.0), (4, 0.75)])
def test_a_first_convolution_is_adapted_to_the_channels(tmp_path: Path, channels: int, expected: float) -> None:
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    theirs["conv1.weight"] = torch.ones(64, 3, 7, 7)
    model = unet("resnet18", channels)
    assert load_encoder(model, written(tmp_path / "resnet18.pth", theirs)).share == 1.0
    # One channel gets the sum of three; four channels get the weights of R, G, B, R times 3/4.
    assert torch.equal(model.encoder.conv1.weight, torch.full((64, channels, 7, 7), expected))


def test_less_than_half_of_an_encoder_is_refused_unless_told(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    early = {name: tensor for name, tensor in theirs.items() if not name.startswith("layer4")}
    place = written(tmp_path / "early.pth", early)
    with pytest.raises(UserError, match=r"75 of 100 tensors \(25 % of the values\) fit by name") as error:
        load_encoder(unet("resnet18"), place)
    assert error.value.about == "weights"
    assert "--partial-weights" in str(error.value)
    assert load_encoder(unet("resnet18"), place, partly=True).left[0] == "layer4.0.conv1.weight"


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    place = written(tmp_path / "other.pth", timm.create_model("test_vit", pretrained=False).state_dict())
    for partly in (False, True):
        with pytest.raises(UserError, match="0 of 100 tensors"):
            load_encoder(unet("resnet18"), place, partly)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    theirs["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight holds values that are not finite"):
        load_encoder(unet("resnet18"), written(tmp_path / "nan.pth", theirs))


def test_a_network_takes_the_weights_of_a_folder(tmp_path: Path) -> None:
    other = unet("tu-test_resnet")
    other.save_pretrained(tmp_path / "other")
    model = unet("tu-test_resnet")
    assert load_network(model, str(tmp_path / "other")).share == 1.0
    assert all(torch.equal(own, other.state_dict()[name]) for name, own in model.state_dict().items())
    with pytest.raises(UserError, match=r"no model at .*nothing"):
        load_network(model, str(tmp_path / "nothing"))


def test_a_name_of_pretrained_weights_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_file("imagenet")
    assert is_file("weights.pth")
    assert is_file("folder/weights")
    (tmp_path / "imagenet").write_bytes(b"")
    assert is_file("imagenet")
