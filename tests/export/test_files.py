"""The files themselves, by their own runtimes: sizes and batches, what they say of themselves, INT8, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segskd.data.cards import load_card
from segskd.errors import UserError
from segskd.export import quantize as quantizing
from segskd.export.formats import Spec
from segskd.export.formats.onnx import metadata, write_onnx
from segskd.export.formats.openvino import OpenvinoQuantizer, write_openvino
from segskd.export.formats.pt2 import write_pt2
from segskd.export.graph import FromPixels, Logits, PoolingByProducts
from segskd.export.quantize import (
    OnnxQuantizer,
    agreeing,
    balanced,
    quantize,
)
from segskd.models.build import create, load
from segskd.runs import Run

pytestmark = pytest.mark.slow

Unpacked = Callable[[Spec], Path]
generator = np.random.default_rng(0)


def images(*shape: int) -> Any:
    return generator.standard_normal(shape).astype(np.float32)


def truth(run: Run, given: Any) -> Any:
    with torch.inference_mode():
        return load(run.model_folder)(torch.from_numpy(given)).numpy()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (3, 3, 96, 160)])
def test_any_batch_and_size(run: Run, unpacked: Unpacked, shape: tuple[int, ...]) -> None:
    given = images(*shape)
    expected = truth(run, given)
    session = onnxruntime.InferenceSession(unpacked(Spec("onnx")) / "model.onnx")
    assert np.allclose(session.run(["logits"], {"image": given})[0], expected, atol=1e-4)
    graph = torch.export.load(unpacked(Spec("pt2")) / "model.pt2").module()
    assert np.allclose(graph(torch.from_numpy(given)).detach().numpy(), expected, atol=1e-5)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(unpacked(Spec("openvino")) / "model.xml", "CPU", exact)
    assert np.allclose(compiled(given)["logits"], expected, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (12, 3), (2, 6)])
@pytest.mark.parametrize("output", [2, 3, 6, (3, 6), (None, 2)])
def test_pooling_by_products_is_pooling(size: tuple[int, int], output: Any) -> None:
    pooling, given = nn.AdaptiveAvgPool2d(output), torch.randn(2, 3, *size)
    expected = pooling(given)
    with PoolingByProducts(), FlopCounterMode(display=False) as products:
        made = pooling(given)
        area = F.interpolate(given, size=output, mode="area") if isinstance(output, int) else expected
    assert products.get_total_flops() > 0
    assert torch.allclose(made, expected, atol=1e-6)
    assert torch.allclose(area, expected, atol=1e-6)


@pytest.mark.parametrize("arch", ["pspnet", "upernet", "pan"])
def test_decoders_take_other_sizes_than_the_exporters(arch: str, tmp_path: Path) -> None:
    """The exporter's own way to pool holds at the size of its example; a PAN takes no sides of 96, as that has."""
    torch.manual_seed(0)
    model = create(arch, "resnet10", 9)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 128, 128))
        given = torch.randn(1, 3, 192, 160)
        expected = model.eval()(given).numpy()
    card = load_card("scenes")
    write_onnx(Logits(model, card).eval(), tmp_path / "model.onnx", {})
    write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(tmp_path / "model.xml", "CPU", exact)
    write_pt2(Logits(model, card).eval(), tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()(given).detach().numpy()
    atol = 1e-4 * float(np.abs(expected).max())
    assert np.allclose(exported, expected, atol=atol)
    assert np.allclose(session.run(["logits"], {"image": given.numpy()})[0], expected, atol=atol)
    assert np.allclose(compiled(given.numpy())["logits"], expected, atol=atol)


def test_pixels_go_in_and_masks_come_out(run: Run, tmp_path: Path) -> None:
    """Of sides that are no multiple of 32, against the formula: (x / 255 − mean) / std, zeros at right and bottom."""
    card = load_card(run.recipe.data.card)
    pixels = generator.integers(0, 256, (2, 37, 70, 3), dtype=np.uint8)
    given = np.zeros((2, 3, 64, 96), np.float32)
    given[:, :, :37, :70] = ((pixels / 255 - card.mean) / card.std).transpose(0, 3, 1, 2)
    expected = truth(run, given)[:, :, :37, :70]
    write_onnx(FromPixels(load(run.model_folder), card).eval(), tmp_path / "model.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    logits, mask = session.run(["logits", "mask"], {"image": pixels})
    assert np.allclose(logits, expected, atol=1e-4)
    assert mask.dtype == np.uint8
    assert (mask == expected.argmax(1)).mean() > 0.999


def test_a_surplus_output_is_no_answer(run: Run) -> None:
    card = load_card(run.recipe.data.card)
    model = load(run.model_folder)
    fewer = card.model_copy(update={"classes": card.classes[:2]})
    given = torch.from_numpy(images(1, 3, 32, 32))
    with torch.inference_mode():
        assert Logits(model, fewer)(given).shape == (1, 2, 32, 32)
        assert torch.equal(Logits(model, card)(given), model(given))
        assert FromPixels(model, fewer)(torch.zeros(1, 20, 30, 3, dtype=torch.uint8))[0].shape == (1, 2, 20, 30)


def test_an_onnx_file_says_all_that_it_takes_to_use_it(run: Run, unpacked: Unpacked) -> None:
    folder = unpacked(Spec("onnx"))
    told = metadata(folder / "model.onnx")
    assert told == json.loads((folder / "card.json").read_text())
    assert [entry["name"] for entry in told["classes"]] == ["ground", "wall", "sky"]
    assert told["classes"][2]["color"] == [70, 130, 180]
    assert (told["mean"], told["std"], told["white"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], None)
    assert (told["size"], told["size_multiple"], told["ignore_index"]) == ([50, 90], 32, 255)
    assert (told["layout"], told["channel_order"], told["input"]) == ("NCHW", "RGB", "float32")
    assert (told["network"], told["encoder"]) == ("unet:resnet10", "tu-resnet18")
    assert told["miou_of_checkpoint"] == run.read_json("result.json")["miou"]
    assert told["versions"]["onnxruntime"] == onnxruntime.__version__
    inside = metadata(unpacked(Spec("onnx", int8=True, pixels=True)) / "model.onnx")
    assert (inside["layout"], inside["input"], inside["size_multiple"]) == ("NHWC", "uint8", 1)
    assert inside["quantization"]["images"] == 4


@pytest.mark.parametrize("spec", [Spec("onnx"), Spec("pt2"), Spec("openvino")], ids=lambda spec: spec.name)
def test_no_path_of_this_machine_is_in_a_file(spec: Spec, unpacked: Unpacked, run: Run) -> None:
    root = str(Path(__file__).parents[2]).encode()
    for file in unpacked(spec).glob("model.*"):
        content = file.read_bytes()
        assert root not in content
        assert str(run.path.parent).encode() not in content
        assert b"site-packages" not in content


def test_int8_has_a_scale_for_each_output_channel(unpacked: Unpacked) -> None:
    graph = onnx.load(unpacked(Spec("onnx", int8=True)) / "model.onnx").graph
    values = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    made = {output: node for node in graph.node for output in node.output}
    assert len(convolutions) == 23
    for node in convolutions:
        weights = made[node.input[1]]
        quantized, scales = values[weights.input[0]], values[weights.input[1]]
        assert quantized.dtype == np.int8
        assert scales.shape == (quantized.shape[0],)
        activations = made[node.input[0]]
        assert values[activations.input[2]].dtype == np.uint8


class Uneven(nn.Module):
    """Its second layer sees one channel a thousand times as large as the others, which eight bits then lose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Conv2d(3, 8, 3, padding=1)
        self.decoder = nn.Conv2d(8, 8, 1)
        self.segmentation_head = nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            for layer in (self.encoder, self.decoder, self.segmentation_head):
                layer.bias.fill_(0.01)  # type: ignore[union-attr]
            self.encoder.weight[0] *= 1000
            self.decoder.weight[:, 0] = 0

    def forward(self, image: Tensor) -> Tensor:
        head: Tensor = self.segmentation_head(self.decoder(self.encoder(image)))
        return head


def test_layers_that_cost_too_much_stay_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(Uneven().eval(), tmp_path / "model.onnx", {})
    given = [images(1, 3, 32, 32) for _ in range(4)]
    quantizer = OnnxQuantizer(tmp_path / "model.onnx", given, tmp_path)
    assert quantizer.layers == ["encoder", "decoder", "segmentation_head"]
    expected = OnnxQuantizer.classes(tmp_path / "model.onnx", given)
    uneven = quantizer.by_sensitivity(given, expected)[:2]
    assert sorted(uneven) == ["decoder", "encoder"]  # the one gives what the other takes
    quantizer([], tmp_path / "all.onnx")
    assert agreeing(OnnxQuantizer.classes(tmp_path / "all.onnx", given), expected) < 0.9
    made = quantize(tmp_path / "model.onnx", tmp_path / "made.onnx", given, OnnxQuantizer)
    assert made.floats[:2] == uneven
    assert made.agreement > 0.99
    assert made.agreement == agreeing(OnnxQuantizer.classes(tmp_path / "made.onnx", given), expected)
    assert made.balance == balanced(OnnxQuantizer.classes(tmp_path / "made.onnx", given), expected) > 0.96
    assert made.images == 4
    monkeypatch.setattr(quantizing, "AGREEMENT", -1.0)
    assert quantize(tmp_path / "model.onnx", tmp_path / "made.onnx", given, OnnxQuantizer).floats != []
    monkeypatch.setattr(quantizing, "BALANCE", -1.0)
    assert quantize(tmp_path / "model.onnx", tmp_path / "made.onnx", given, OnnxQuantizer).floats == []


def test_balance_by_hand() -> None:
    """Of class 0 three of four pixels are common, of class 1 one of two, of class 2 none; class 4 is not theirs."""
    ours, theirs = np.array([[0, 0, 0, 1, 1]]), np.array([[0, 0, 0, 0, 1]])
    assert balanced([ours, np.array([[4]])], [theirs, np.array([[2]])]) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert agreeing([ours], [theirs]) == 4 / 5
    assert balanced([ours, ours], [ours, ours]) == 1


def test_classes_of_a_few_pixels_have_no_say() -> None:
    ours, theirs = np.zeros((1, 100, 100), int), np.zeros((1, 100, 100), int)
    theirs[0, 0, :4] = 1  # 0.04 %
    assert balanced([ours], [theirs]) == pytest.approx(0.9996)
    theirs[0, 0, 4] = 1
    assert balanced([ours], [theirs]) == pytest.approx(0.9995 / 2)


def test_where_no_file_is_good_enough_the_nearest_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(Uneven().eval(), tmp_path / "model.onnx", {})
    given = [images(1, 3, 32, 32) for _ in range(4)]
    every = ["encoder", "decoder", "segmentation_head"]
    monkeypatch.setattr(OnnxQuantizer, "candidates", lambda *_: iter([["encoder"], every, []]))
    monkeypatch.setattr(quantizing, "BALANCE", 2.0)
    made = quantize(tmp_path / "model.onnx", tmp_path / "made.onnx", given, OnnxQuantizer)
    assert made.floats == every
    expected = OnnxQuantizer.classes(tmp_path / "model.onnx", given)
    assert made.agreement == agreeing(OnnxQuantizer.classes(tmp_path / "made.onnx", given), expected)


def test_a_file_that_grows_too_large_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(Uneven().eval(), tmp_path / "model.onnx", {})
    given = [images(1, 3, 32, 32) for _ in range(2)]
    monkeypatch.setattr(OnnxQuantizer, "candidates", lambda *_: iter([[], ["encoder"], ["encoder", "decoder"]]))
    sizes = iter([30, 100, 31, 100])  # of the file and its source, in turns
    monkeypatch.setattr(quantizing, "_bytes", lambda _: next(sizes))
    made = quantize(tmp_path / "model.onnx", tmp_path / "made.onnx", given, OnnxQuantizer)
    assert made.floats == []


def test_the_ends_are_tried_before_all_layers_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = OnnxQuantizer.__new__(OnnxQuantizer)
    quantizer.layers = [f"layer{number}" for number in range(11)]
    asked = []

    def measured(*_: object) -> list[str]:
        asked.append(1)
        return quantizer.layers[::-1]

    monkeypatch.setattr(quantizer, "by_sensitivity", measured)
    candidates = quantizer.candidates([], [])
    assert [next(candidates) for _ in range(3)] == [[], ["layer10"], ["layer10", "layer0"]]
    assert asked == []
    assert [len(floats) for floats in candidates] == [4, 8, 11]
    assert asked == [1]


def test_openvino_leaves_these_layers_in_float_too(tmp_path: Path) -> None:
    """Weights that are quantized are eight-bit constants, scaled on the way into their convolution."""
    write_onnx(Uneven().eval(), tmp_path / "model.onnx", {})
    given = [images(1, 3, 32, 32) for _ in range(4)]
    expected = OnnxQuantizer.classes(tmp_path / "model.onnx", given)
    quantizer = OpenvinoQuantizer(tmp_path / "model.onnx", given)
    kinds, agreement = [], []
    for floats in ([], ["encoder", "decoder"]):
        quantizer(floats, tmp_path / "model.xml")
        model = openvino.Core().read_model(tmp_path / "model.xml")
        operations = {one.get_friendly_name(): one for one in model.get_ops()}
        layers = [operations[f"{name}/WithoutBiases"] for name in ("encoder", "decoder", "segmentation_head")]
        kinds.append([layer.input_value(1).get_node().get_type_name() for layer in layers])
        agreement.append(agreeing(OpenvinoQuantizer.classes(tmp_path / "model.xml", given), expected))
    assert kinds[0] == ["Multiply", "Multiply", "Multiply"]
    assert kinds[1][2] == "Multiply"
    assert "Multiply" not in kinds[1][:2]
    assert agreement[1] > agreement[0] + 0.2


class Eigen(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.linalg.eig(image)[0].real


class Asking(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image if image.sum() > 0 else -image


def test_what_an_exporter_cannot_take_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't be written as ONNX: there is no ONNX operator for aten.linalg_eig"):
        write_onnx(Eigen(), tmp_path / "model.onnx", {})
    with pytest.raises(UserError, match="can't be written as ONNX: Could not guard on data-dependent expression"):
        write_onnx(Asking(), tmp_path / "model.onnx", {})
    with pytest.raises(UserError, match=r"torch\.export can't take this network: Could not guard on data-dependent"):
        write_pt2(Asking(), tmp_path / "model.pt2")
    assert list(tmp_path.iterdir()) == []
