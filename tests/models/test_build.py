"""Networks by name, and models on disk: what is written can be read by others, what is read can do no harm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch

from segskd.errors import UserError
from segskd.models.build import create, describe, digest, load, model_folder, output_classes, parse_spec, save

CLASSES = 3


@pytest.fixture(scope="module")
def student() -> Any:
    """A ResNet-10 U-Net with random weights and running statistics, in eval mode."""
    torch.manual_seed(0)
    model = create("unet", "resnet10", CLASSES)
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 64, 96))
    return model.eval()


@pytest.fixture
def folder(student: Any, tmp_path: Path) -> Path:
    save(student, tmp_path / "model")
    return tmp_path / "model"


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# -- by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "millions"),
    [
        ("resnet10", 8.06),
        ("resnet14", 13.96),
        ("resnet18", 14.33),
        ("resnet20", 15.51),
        ("resnet26", 20.60),
        ("resnet34", 24.44),
    ],
)
def test_parameters_are_the_papers(encoder: str, millions: float) -> None:
    with torch.device("meta"):
        model = create("unet", encoder, 12)
        logits = model.eval()(torch.empty(1, 3, 64, 96))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions
    assert logits.shape == (1, 12, 64, 96)
    assert output_classes(model) == 12
    assert describe(model) == f"unet:{encoder}"


def test_spec() -> None:
    assert parse_spec("unet:resnet10") == ("unet", "resnet10")
    assert parse_spec("unet:tu-resnet18") == ("unet", "tu-resnet18")


@pytest.mark.parametrize("spec", ["resnet10", "unet", "unet:", ":resnet10", ""])
def test_bad_spec(spec: str) -> None:
    with pytest.raises(UserError, match=f"'{spec}' is no network: write ARCH:ENCODER"):
        parse_spec(spec)


@pytest.mark.parametrize("arch", ["fpn9", "Unet"])
def test_unknown_architecture(arch: str) -> None:
    with pytest.raises(UserError, match=f"there is no architecture '{arch}'; name one of unet, unetplusplus, .*, dpt"):
        parse_spec(f"{arch}:resnet10")


@pytest.mark.parametrize("encoder", ["resnet11", "tu-nonesuch"])
def test_unknown_encoder(encoder: str) -> None:
    with pytest.raises(UserError, match=f"can't build unet:{encoder}: ") as caught:
        create("unet", encoder, 2)
    assert "\n" not in str(caught.value)


def test_our_own_students_have_no_pretrained_weights() -> None:
    with pytest.raises(UserError, match="no pretrained weights for resnet10"):
        create("unet", "resnet10", 2, weights="imagenet")


# -- written and read ---------------------------------------------------------------------------------

STRANGER = """
import sys, torch
import segmentation_models_pytorch as smp
folder = sys.argv[1]
model = smp.from_pretrained(folder + "/model").eval()
with torch.inference_mode():
    torch.save(model(torch.load(folder + "/image.pt")), folder + "/logits.pt")
print("segskd" in sys.modules)
"""


def test_a_process_that_never_heard_of_us_gets_the_same_logits(student: Any, folder: Path) -> None:
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    torch.save(image, folder.parent / "image.pt")
    program = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n{STRANGER}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder.parent)], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "False"
    with torch.inference_mode():
        assert torch.equal(torch.load(folder.parent / "logits.pt"), student(image))


def test_save_writes_two_files_and_leaves_nothing_beside(folder: Path, student: Any) -> None:
    save(student, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["encoder_name"], config["layers"]) == ("tu-resnet18", [1, 1, 1, 1])


def test_load_gives_the_same_network(folder: Path, student: Any, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(folder)
    assert equal(student, loaded)
    assert digest(loaded) == digest(student)
    assert describe(loaded) == "unet:resnet10"
    assert not any(module.training for module in loaded.modules())
    # Standard output belongs to a command's --json.
    assert capsys.readouterr().out == ""


def test_digest_sees_every_value(folder: Path, student: Any) -> None:
    loaded = load(folder)
    with torch.no_grad():
        loaded.get_buffer("decoder.blocks.0.conv1.1.running_mean")[0] += 1e-6
    assert digest(loaded) != digest(student)


def test_half_precision_weights_become_fp32_in_eval_mode(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    safetensors.torch.save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load(folder)
    assert {t.dtype for t in loaded.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded.get_parameter("encoder.model.conv1.weight"), halves["encoder.model.conv1.weight"].float())


def test_a_pickle_of_tensors(folder: Path, student: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(student.state_dict(), folder / "pytorch_model.bin")
    assert equal(student, load(folder))


# -- what is no model ---------------------------------------------------------------------------------


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_a_pickle_that_does_more_is_refused_before_it_does_it(folder: Path, student: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({**student.state_dict(), "more": Malicious(folder / "done")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin .*holds more than tensors: get the model as safetensors"):
        load(folder)
    assert not (folder / "done").exists()
    # The same file would do it if it were let.
    torch.load(folder / "pytorch_model.bin", weights_only=False)["more"].close()
    assert (folder / "done").exists()


@pytest.mark.parametrize("content", [b"", b"junk junk", b"\x80\x02junk", b"PK\x03\x04junk"])
def test_a_pickle_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is damaged"):
        load(folder)


def write_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return write


def write_config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"garbage, garbage, garbage"),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8]),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        write_weights(lambda weights: weights.pop("segmentation_head.0.bias")),
        write_weights(lambda weights: weights.update({"segmentation_head.0.bias": torch.zeros(7)})),
        write_config("{}"),
        write_config("{"),
        write_config("[]"),
        write_config("3"),
        write_config('{"_model_class": "Nonesuch"}'),
        write_config('{"_model_class": "encoders"}'),
        write_config('{"_model_class": "Unet", "encoder_name": "nonesuch"}'),
    ],
)
@pytest.mark.filterwarnings(r"ignore:\s+!+ Mismatched keys:UserWarning")
def test_damaged_models(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder)
    with pytest.raises(UserError, match="can't be loaded as a model: ") as caught:
        load(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model at .*none: name a folder, a run or a hub id"):
        load(tmp_path / "none")


def test_folder_without_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no model: a folder with config\.json and model\.safetensors"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, and a model is a folder"):
        load(tmp_path / "file")


def test_config_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has a config\.json but no weights \(model\.safetensors or pytorch_model\.bin\)"
    ):
        load(folder)


def test_a_runs_student_comes_before_the_run_itself(folder: Path) -> None:
    assert model_folder(folder) == folder
    shutil.copytree(folder, folder / "student")
    assert model_folder(folder) == folder / "student"
    (folder / "config.json").unlink()
    assert model_folder(str(folder)) == folder / "student"


@pytest.mark.parametrize(("place", "is_hub"), [("someone/model-1.0", True), ("./model", False), ("a/b/c", False)])
def test_what_may_be_a_hub_id(place: str, is_hub: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if is_hub:
        assert model_folder(place) is None
    else:
        with pytest.raises(UserError, match="no model at"):
            model_folder(place)


def test_what_smp_saved_can_be_loaded(teacher_folder: Path) -> None:
    loaded = load(teacher_folder)
    assert equal(smp.from_pretrained(teacher_folder), loaded)
    assert (describe(loaded), output_classes(loaded)) == ("linknet:tu-test_resnet", 3)
