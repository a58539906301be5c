"""Files of weights from outside: what they hold is found, what doesn't fit is named, nothing in them is run."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from segskd.cli import main
from segskd.errors import UserError
from segskd.models.build import create, load, output_classes
from segskd.models.importing import Adjustments, NetworkSpec, import_model, import_teacher, read_network
from segskd.models.torchvision_models import torchvision_network

ASKED = NetworkSpec("unet", "resnet18")
IMAGE = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create("unet", "resnet18", 5).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, name: str = "weights.pth", **arguments: Any) -> Path:
        torch.save(content, tmp_path / name, **arguments)
        return tmp_path / name

    return write


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.net._orig_mod.", "some.thing."])
@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"epoch": 3, "loss": torch.ones(1), "state_dict": s}])
def test_weights_are_found(
    model: nn.Module, saved: Callable[..., Path], prefix: str, wrapped: Callable[[Any], Any]
) -> None:
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    found = read_network(saved(wrapped(state)), ASKED)
    assert same(found.model, model)
    assert (output_classes(found.model), found.left_out) == (5, [])


def test_a_checkpoint_of_lightning_has_a_loss_beside_the_network(model: nn.Module, saved: Callable[..., Path]) -> None:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"loss.weight": torch.ones(5)}
    found = read_network(saved({"state_dict": state, "epoch": 1}, "last.ckpt"), ASKED)
    assert same(found.model, model)
    assert found.left_out == ["loss.weight"]


def test_of_two_networks_the_one_that_was_trained_counts(model: nn.Module, saved: Callable[..., Path]) -> None:
    state = model.state_dict()
    both = {f"ema_model.{n}": torch.zeros_like(t) for n, t in state.items()} | {
        f"model.{n}": t for n, t in state.items()
    }
    assert same(read_network(saved(both), ASKED).model, model)


def test_safetensors_and_counters_that_older_files_lack(model: nn.Module, tmp_path: Path) -> None:
    state = {n: t.contiguous() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert same(read_network(tmp_path / "w.safetensors", ASKED).model, model)


def test_channels_are_told_by_the_weights(saved: Callable[..., Path]) -> None:
    made = read_network(saved(create("unet", "resnet18", 2, channels=4).state_dict()), ASKED).model
    assert made(torch.zeros(1, 4, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            NetworkSpec("unet", "resnet18", 12),
            r"segmentation_head\.0\.weight has 5 outputs in the file, but 12 are asked for",
        ),
        (
            NetworkSpec("unet", "resnet18", None, 4),
            r"conv1\.weight has 3 input channels .* 4 are asked for: take --channels 3",
        ),
        (
            NetworkSpec("unet", "resnet34"),
            r"missing encoder\.layer1\.2\.conv1\.weight, .* and 77 more.* --encoder resnet18",
        ),
        (NetworkSpec("unet", "resnet50"), r"of another shape .*64x64x3x3 in the file, 64x64x1x1 .* --encoder resnet18"),
        (NetworkSpec("fcn_resnet50"), r"missing backbone\.conv1.*; unexpected encoder\.conv1\.weight"),
    ],
)
def test_what_does_not_fit_is_named(
    model: nn.Module, saved: Callable[..., Path], asked: NetworkSpec, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_network(saved(model.state_dict()), asked)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 1)), {}, r"whole network.*execute code.*torch\.save\(model\.state_dict\(\)"),
        (
            nn.Sequential(nn.Conv2d(3, 2, 1)),
            {"_use_new_zipfile_serialization": False},
            r"whole network.*author's classes \(such as torch\.nn",
        ),
        ({"state_dict": {}, "hparams": argparse.Namespace(lr=1)}, {}, r"more than tensors \(argparse\.Namespace\)"),
        ({"epoch": 3}, {}, "holds no weights"),
        ([1, 2], {}, "holds no weights"),
    ],
)
def test_what_is_no_state_dict(
    saved: Callable[..., Path], content: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_network(saved(content, **arguments), ASKED)


def test_damaged_and_foreign_files(model: nn.Module, saved: Callable[..., Path], tmp_path: Path) -> None:
    whole = saved(model.state_dict()).read_bytes()
    for name, content in (("cut.pth", whole[:50_000]), ("junk.pth", b"hello " * 99), ("j.safetensors", b"hello " * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged, or no file of weights"):
            read_network(tmp_path / name, ASKED)
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="is an ONNX file"):
        read_network(tmp_path / "m.onnx", ASKED)
    with pytest.raises(UserError, match="no file"):
        read_network(tmp_path / "none.pth", ASKED)


def test_programs_are_refused(tmp_path: Path) -> None:
    for name, member, message in (("t.pt", "t/code/x.py", "TorchScript"), ("e.pt2", "e/version", "exported program")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "")
        with pytest.raises(UserError, match=message):
            read_network(tmp_path / name, ASKED)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("nothing", "resnet18"), "there is no such network; known are unet"),
        (("unet", None), "name the one it was trained with by --encoder"),
        (("fcn_resnet50", "resnet50"), "leave --encoder out"),
    ],
)
def test_what_can_not_be_asked(asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        NetworkSpec(*asked)


def test_a_network_of_bgr_images_takes_rgb(model: nn.Module, saved: Callable[..., Path], tmp_path: Path) -> None:
    import_model(str(saved(model.state_dict())), ASKED, Adjustments(bgr=True), tmp_path / "out")
    made = load(tmp_path / "out")
    assert torch.allclose(made(IMAGE), model(IMAGE.flip(1)), atol=1e-4)


@pytest.mark.parametrize("arch", ["unet", "lraspp_mobilenet_v3_large"])
def test_outputs_in_another_order(arch: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    network = create("unet", "resnet18", 4) if arch == "unet" else torchvision_network(arch, 4)
    asked = ASKED if arch == "unet" else NetworkSpec(arch)
    before = read_network(saved(network.state_dict()), asked).model
    import_model(str(tmp_path / "weights.pth"), asked, Adjustments(outputs=(2, 0, 3)), tmp_path / "out")
    made = load(tmp_path / "out")
    assert output_classes(made) == 3
    assert torch.allclose(made(IMAGE), before(IMAGE)[:, [2, 0, 3]], atol=1e-5)
    with pytest.raises(UserError, match="each output from 0 to 2 once"):
        import_model(str(tmp_path / "out"), None, Adjustments(outputs=(0, 3)), tmp_path / "out2")


def test_nothing_is_overwritten(model: nn.Module, saved: Callable[..., Path], tmp_path: Path) -> None:
    file = saved(model.state_dict())
    with pytest.raises(UserError, match="exists already"):
        import_model(str(file), ASKED, Adjustments(), tmp_path)
    with pytest.raises(UserError, match="needs no import"):
        import_model(str(import_teacher(file, ASKED, tmp_path / "imported")), None, Adjustments(), tmp_path / "out")


def test_a_teacher_is_named_by_file_and_weights(model: nn.Module, saved: Callable[..., Path], tmp_path: Path) -> None:
    place = import_teacher(saved(model.state_dict(), "my best (1).pth"), ASKED, tmp_path / "imported")
    assert place.name.startswith("my-best-1-")
    assert len(place.name) == len("my-best-1-") + 8
    assert same(load(place), model)
    assert import_teacher(tmp_path / "my best (1).pth", ASKED, tmp_path / "imported") == place


def test_the_commands(
    model: nn.Module, saved: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(saved(model.state_dict()))
    assert main(["import", file, "--arch", "unet", "--encoder", "resnet18", "--out", str(tmp_path / "out")]) == 0
    assert "unet:resnet18, 5 outputs" in capsys.readouterr().out
    assert main(["import", file, "--out", str(tmp_path / "other")]) == 2
    assert main(["distill", "--dataset", "scenes", "--teacher", file]) == 2
    assert main(["distill", "--dataset", "scenes", "--teacher", str(tmp_path / "out"), "--arch", "unet"]) == 2
    assert main(["evaluate", file, "--dataset", "scenes", "--size", "64x64"]) == 2
    said = capsys.readouterr().err
    assert said.count("add --arch and --encoder") == 2
    assert "are for a teacher that is a file of weights" in said
    assert "python -m segskd import" in said
