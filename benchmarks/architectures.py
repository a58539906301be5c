"""Trains pairs of a teacher and a student of many architectures for a few steps a stage, and prints what happened.

    python benchmarks/architectures.py --write docs/architectures.md

Each pair has a teacher with random weights, four images and two steps a stage. Then the student is loaded from disk.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
import yaml

from segskd.config import Size, make_recipe, parse_size
from segskd.data.transforms import padded_size
from segskd.distill.running.session import start
from segskd.errors import UserError
from segskd.models.build import create, load, parse_spec, save
from segskd.models.cut import cut, kinds
from segskd.models.pairing import paired, shared
from segskd.models.stages import HEAD, StagedNetwork, feature_shapes
from segskd.models.torchvision_models import TORCHVISION, TorchvisionModel, torchvision_network

CLASSES, IMAGES, SIZE = 3, 4, "96x128"
PAIRS = (
    ("unet:resnet34", "unet:resnet10"),
    ("unet:resnet34", "unet:mobilenet_v2"),
    ("unet:resnet34", "unet:mit_b0"),
    ("unet:resnet34", "unet:vgg11"),
    ("unet:resnet34", "unet:tu-hrnet_w18_small"),
    ("unet:resnet34", "segformer:mit_b0"),
    ("unet:resnet34", "deeplabv3plus:mobilenet_v2"),
    ("unet:resnet50", "linknet:resnet18"),
    ("unet:vgg11", "unet:resnet10"),
    ("unet:densenet121", "unet:mobilenet_v2"),
    ("unet:xception", "unet:tu-mobilenetv3_small_100"),
    ("unet:dpn68", "unet:resnet10"),
    ("unet:inceptionv4", "unet:resnet10"),
    ("unet:se_resnet50", "unet:mobileone_s0"),
    ("unet:tu-hrnet_w18_small", "unet:mobilenet_v2"),
    ("unet:tu-swin_tiny_patch4_window7_224", "unet:resnet10"),
    ("unet:resnet34", "unet:tu-swin_tiny_patch4_window7_224"),
    ("unet:tu-pvt_v2_b0", "unet:efficientnet-b0"),
    ("unet:tu-regnety_002", "unet:tu-repvgg_a0"),
    ("unetplusplus:resnet34", "unet:resnet10"),
    ("unetplusplus:resnet18", "unetplusplus:mobilenet_v2"),
    ("manet:resnet34", "manet:mobilenet_v2"),
    ("linknet:resnet34", "linknet:efficientnet-b0"),
    ("fpn:resnet34", "fpn:resnet10"),
    ("fpn:mit_b0", "fpn:resnet10"),
    ("fpn:efficientnet-b0", "unet:resnet10"),
    ("pspnet:resnet34", "pspnet:mobilenet_v2"),
    ("deeplabv3:resnet34", "deeplabv3:mobilenet_v2"),
    ("deeplabv3plus:resnet50", "unet:resnet10"),
    ("deeplabv3plus:resnet34", "deeplabv3plus:mobilenet_v2"),
    ("pan:resnet34", "pan:mobilenet_v2"),
    ("upernet:resnet34", "upernet:mobilenet_v2"),
    ("upernet:tu-convnext_atto", "unet:mobilenet_v2"),
    ("segformer:mit_b0", "unet:resnet10"),
    ("segformer:mit_b0", "segformer:mobilenet_v2"),
    ("dpt:tu-vit_tiny_patch16_224", "unet:resnet10"),
    ("dpt:tu-vit_tiny_patch16_224", "dpt:tu-vit_tiny_patch16_224"),
    ("deeplabv3_resnet50", "unet:mobilenet_v2"),
    ("fcn_resnet50", "unet:resnet10"),
    ("lraspp_mobilenet_v3_large", "unet:mobilenet_v2"),
)
HEADER = ("teacher", "student", "teacher's cut", "student's cut", "trained one after another", "size")
KINDS = {"exact": "exact", "pyramid": "levels of the pyramid", "one stage": "one stage"}


@dataclass(frozen=True)
class Row:
    """The result of a pair."""

    teacher: str
    student: str
    cuts: tuple[str, str]
    phases: tuple[str, ...]
    size: Size
    seconds: float

    def cells(self) -> list[str]:
        """The cells of the table."""
        return [self.teacher, self.student, *self.cuts, ", ".join(self.phases), f"{self.size[0]}x{self.size[1]}"]


def train_pair(teacher: str, student: str, folder: Path) -> Row:
    """Trains a pair through all stages at a size that both take. Raises an error when something is wrong."""
    began = time.perf_counter()
    card = draw(folder / "data")
    torch.manual_seed(1)
    network = create_teacher(teacher)
    save(network, folder / "teacher")
    size = SIZE
    try:
        run_pair(student, folder, card, size)
    except UserError as error:
        match = re.search(r"take --size (\d+x\d+)", str(error))
        if match is None:
            raise
        size = match[1]
        run_pair(student, folder, card, size)
    ours, theirs = cut(load(folder / "run")), cut(network)
    check_trained(ours, student, parse_size(size))
    partner = paired(theirs, ours, padded_size(parse_size(size)))
    cuts = tuple(cut_in_words(one) for one in (theirs, ours))
    phases = shared(ours.names, partner.names)
    return Row(teacher, student, (cuts[0], cuts[1]), phases, parse_size(size), time.perf_counter() - began)


def create_teacher(name: str) -> torch.nn.Module:
    """A teacher with random weights, and normalisation statistics of random images."""
    made = (
        TorchvisionModel(name, torchvision_network(name, CLASSES))
        if name in TORCHVISION
        else create(*parse_spec(name), classes=CLASSES)
    )
    side = 224 if "_224" in name and not name.startswith("dpt") else 256
    with torch.no_grad():
        made.train()(torch.randn(2, 3, side, side))
    return made.eval()


def draw(folder: Path) -> Path:
    """Writes a dataset of noisy images with three horizontal bands, and returns its card."""
    generator = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rows = np.sort(generator.integers(8, 88, size=2))
            mask = np.digitize(np.arange(96), rows)[:, None].repeat(128, 1).astype(np.uint8)
            image = (80 * mask[..., None] + generator.integers(0, 60, size=(96, 128, 3))).astype(np.uint8)
            cv2.imwrite(str(folder / split / "images" / f"{number}.png"), image)
            cv2.imwrite(str(folder / split / "masks" / f"{number}.png"), mask)
    splits = {s: {"images": f"{s}/images/{{name}}.png", "masks": f"{s}/masks/{{name}}.png"} for s in ("train", "val")}
    classes = [{"name": f"band {number}", "color": [80 * number] * 3} for number in range(CLASSES)]
    content = {"name": "bands", "title": "bands", "folder": folder.name, "classes": classes, "splits": splits}
    card = folder.parent / "bands.yaml"
    card.write_text(yaml.safe_dump(content), encoding="utf-8")
    return card


def run_pair(student: str, folder: Path, card: Path, size: str) -> None:
    """Trains a student for two steps a stage."""
    recipe = {
        "data": {"card": str(card), "folder": str(folder), "size": size, "views": 1},
        "teacher": str(folder / "teacher"),
        "trust_teacher": True,
        "student": student,
        "init": "random",
        "optimisation": {"epochs": 1, "batch": 2, "lr": 1e-3, "patience": 0},
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    start(make_recipe(recipe), folder / "run")


def check_trained(student: StagedNetwork, spec: str, size: Size) -> None:
    """Raises AssertionError if a stage of the saved student wasn't trained, or the student is no network of smp."""
    torch.manual_seed(0)
    before = cut(create(*parse_spec(spec), classes=CLASSES))
    for name, stage in student.stages.items():
        values = list(zip(stage.parameters(), before.stages[name].parameters(), strict=True))
        if values and all(torch.equal(now, then) for now, then in values):
            raise AssertionError(f"{name} of {spec} was not trained")
    shapes = feature_shapes(student, padded_size(size))
    if shapes[HEAD] != (CLASSES, *padded_size(size)):
        raise AssertionError(f"{spec} gives {shapes[HEAD]}")
    if type(student.model).__module__.partition(".")[0] != smp.__name__:
        raise AssertionError(f"{spec} is no network of smp")


def cut_in_words(network: StagedNetwork) -> str:
    """How a network was cut, such as "encoder exact (5), decoder one stage"."""
    encoder, decoder = kinds(network)
    counts = [sum(name.startswith(part) for name in network.names) for part in ("encoder", "decoder")]
    parts = [f"encoder {KINDS[encoder]} ({counts[0]})"]
    parts.append("decoder one stage" if counts[1] == 1 else f"decoder {KINDS[decoder]} ({counts[1]})")
    return ", ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def replace_table(file: Path, made: str) -> None:
    """Replaces the table in a Markdown file whose first column has the same title as that of `made`."""
    before, _, after = file.read_text(encoding="utf-8").partition(first_column(made))
    rest = after.partition("\n\n")[2]
    file.write_text(before + "\n" + made + ("\n" + rest if rest else ""), encoding="utf-8")


def check_table(file: Path, header: Sequence[str]) -> None:
    """Ends the program if the file has no such table."""
    if first_column(table(header, [])) not in file.read_text(encoding="utf-8"):
        raise SystemExit(f"{file} has no table whose first column is {header[0]}")


def first_column(made: str) -> str:
    """The text with which a table begins."""
    return "\n" + made[: made.index("|", 1) + 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", type=Path, help="the Markdown file whose table is replaced")
    given = parser.parse_args()
    if given.write:
        check_table(given.write, HEADER)
    rows = []
    for teacher, student in PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(train_pair(teacher, student, Path(folder)))
        print(f"{teacher} -> {student}: {rows[-1].seconds:.0f} s; {', '.join(rows[-1].phases)}", flush=True)
    made = table(HEADER, [row.cells() for row in rows])
    print(made)
    if given.write:
        replace_table(given.write, made)


if __name__ == "__main__":
    main()
