"""What networks cost: by hand for a small one, and the known figures of the paper's."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from segskd.evaluate.cost import cost, gmacs, latencies, parameters, weight_bytes
from segskd.models.build import create

SIZE = (10, 12)
# 10·12 pixels · 8 · (3·3·3), then 5·6 · 4 · 8
MACS = 25_920 + 960
# 8·27 + 8, 8 + 8, 4·8 + 4
PARAMETERS = 224 + 16 + 36
# In fp32, with the two statistics of 8 channels and one int64 counter
BYTES = 4 * (PARAMETERS + 16) + 8


@pytest.fixture
def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, stride=2))


def test_a_small_network_by_hand(small: nn.Module) -> None:
    assert gmacs(small, SIZE) == pytest.approx(MACS / 1e9)
    assert parameters(small) == PARAMETERS
    assert weight_bytes(small) == BYTES
    assert cost(small, SIZE, 1.5) == {
        "parameters": PARAMETERS,
        "gmacs": pytest.approx(MACS / 1e9),
        "bytes": BYTES,
        "latency_ms": 1.5,
    }


def test_frozen_parameters_count(small: nn.Module) -> None:
    assert parameters(small.requires_grad_(False)) == PARAMETERS


def test_weight_bytes_are_a_safetensors_files(small: nn.Module) -> None:
    for model in (small, small.half()):
        file = safetensors.torch.save(model.state_dict())
        header = int.from_bytes(file[:8], "little")
        json.loads(file[8 : 8 + header])
        assert weight_bytes(model) == len(file) - 8 - header


def test_counting_leaves_the_network_alone(small: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    gmacs(small.train(), SIZE)
    assert small.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


@pytest.mark.parametrize(("encoder", "expected"), [("resnet34", 20.413), ("resnet18", 14.184)])
def test_the_papers_networks_at_half_camvid(encoder: str, expected: float) -> None:
    with torch.device("meta"):
        model = create("unet", encoder, 12)
    assert gmacs(model, (352, 480)) == pytest.approx(expected, abs=0.01)


def test_networks_take_turns() -> None:
    calls: list[tuple[str, tuple[int, ...], bool]] = []

    class Listed(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, image: Tensor) -> Tensor:
            calls.append((self.name, tuple(image.shape), torch.is_inference_mode_enabled()))
            return image

    times = latencies([Listed("a"), Listed("b")], SIZE, torch.device("cpu"), repeats=3)
    # Two turns to warm up, three that count
    assert calls == [(name, (1, 3, *SIZE), True) for _ in range(5) for name in "ab"]
    assert len(times) == 2


def test_latency_is_the_median_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 9.0, 0.001, 0.5, 0.002])
    monkeypatch.setattr("segskd.evaluate.cost._timed", lambda model, image: next(seconds))
    assert latencies([nn.Identity()], SIZE, torch.device("cpu"), repeats=3) == pytest.approx([2.0])
