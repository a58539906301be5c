"""torchvision's networks in this house's form give torchvision's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from segskd.errors import UserError
from segskd.models.build import describe, load, output_classes, parse_spec, save
from segskd.models.importing import NetworkSpec, read_network
from segskd.models.torchvision_models import TORCHVISION, TorchvisionModel, torchvision_network

pytestmark = pytest.mark.slow

STRIDES = {"resnet": [1, 2, 4, 8, 8, 8], "deeplabv3_mobilenet": [1, 2, 4, 8, 16, 16], "lraspp": [1, 2, 4, 8, 8, 16, 16]}


@pytest.mark.parametrize("arch", TORCHVISION)
@torch.no_grad()
def test_forward_is_torchvisions_own(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision_network(arch, 5).eval()
    image = torch.randn(1, 3, 64, 96)
    wanted: Any = network(image)["out"]
    model = TorchvisionModel(arch, network).eval()
    features = model.encoder(image)
    assert [96 // feature.shape[-1] for feature in features] == next(s for k, s in STRIDES.items() if k in arch)
    assert torch.equal(model.segmentation_head(model.decoder(features)), wanted)
    assert torch.equal(model(image), wanted)
    save(model, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(image), wanted)
    assert (describe(again), output_classes(again)) == (arch, 5)


def test_sides_that_scale_unevenly_are_refused() -> None:
    model = TorchvisionModel("fcn_resnet50", torchvision_network("fcn_resnet50", 2)).eval()
    with pytest.raises(RuntimeError, match="multiples of 8"):
        model(torch.zeros(1, 3, 60, 64))


def test_the_auxiliary_head_of_a_file_is_left_out(tmp_path: Path) -> None:
    network = torchvision_network("fcn_resnet50", 7)
    torch.save({"model": {**network.state_dict(), "aux_classifier.0.weight": torch.ones(2)}}, tmp_path / "w.pth")
    made = read_network(tmp_path / "w.pth", NetworkSpec("fcn_resnet50")).model
    assert output_classes(made) == 7
    with pytest.raises(UserError, match="These are weights of fcn_resnet50"):
        read_network(tmp_path / "w.pth", NetworkSpec("unet", "resnet50"))


def test_they_are_no_students() -> None:
    with pytest.raises(UserError, match="can only be a teacher"):
        parse_spec("deeplabv3_resnet50")


def test_other_channels(tmp_path: Path) -> None:
    model = TorchvisionModel("fcn_resnet50", torchvision_network("fcn_resnet50", 2, channels=1)).eval()
    save(model, tmp_path)
    assert load(tmp_path)(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)
